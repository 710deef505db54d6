"""Sound files: decoding to the form the model hears, loudness, writing, and a small synthesiser."""
