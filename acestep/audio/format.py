"""The one form of sound this project computes with, and the files it is read from."""

from __future__ import annotations

SAMPLE_RATE = 48_000
"""Samples per second and channel of all decoded sound."""

CHANNELS = 2

AUDIO_SUFFIXES = frozenset({".wav", ".mp3", ".flac", ".ogg", ".opus", ".m4a", ".aac", ".aif", ".aiff", ".wma"})
"""Lower-case suffixes of the files a folder scan takes for songs."""

SILENCE_PEAK = 1e-6
"""Sound whose samples all lie below this magnitude counts as silence."""

MIN_DURATION_S = 1.0
"""Shortest song that can be used, in seconds."""
