"""Songs and what is said about them: scanning folders, sidecars, CSV, LRC, and the dataset file."""
