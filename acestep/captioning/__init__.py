"""Everything that writes labels: analysis, local models, services, and batch runs over a folder of songs."""
