"""Songs in the form a labelling model hears: any sample rate, one or two channels, in bounded memory."""

from __future__ import annotations

from pathlib import Path

from acestep.audio.decode import Audio, decode

MOST_BYTES = 512 << 20
"""Memory that the samples of one song take at most: more than two hours of one channel at 16 kHz."""


def longest_heard_s(sample_rate: int, channels: int) -> float:
    """Seconds to which a song is heard in this form."""
    return MOST_BYTES / (4 * sample_rate * channels)


def decode_as(path: str | Path, sample_rate: int, channels: int) -> Audio:
    """Decode a file to float32 [channels, N] at `sample_rate` Hz. Raises UserError as `decode` does."""
    return decode(path, longest_heard_s(sample_rate, channels), sample_rate=sample_rate, channels=channels)
