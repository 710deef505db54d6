"""Ground floor: errors, files, events, jobs and devices. Nothing here knows about music."""
