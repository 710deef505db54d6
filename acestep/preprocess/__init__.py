"""Songs become tensors on disk: latents and conditions, encoded once, keyed by what went into them."""
