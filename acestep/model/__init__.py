"""The frozen ACE-Step model: finding, downloading, naming, loading it, and its prompts and latents."""
