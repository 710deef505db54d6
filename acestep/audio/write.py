"""Write sound files: wav, flac, mp3, ogg and opus by the suffix of the name, never seen half written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from acestep.audio.format import SAMPLE_RATE
from acestep.core.errors import UserError
from acestep.core.paths import atomic_file

_FORMATS: dict[str, dict[str, Any]] = {
    ".wav": {"format": "WAV", "subtype": "PCM_16"},
    ".flac": {"format": "FLAC", "subtype": "PCM_16"},
    # 0.2 at constant bit rate is 256 kbit/s at 48 kHz
    ".mp3": {"format": "MP3", "subtype": "MPEG_LAYER_III", "bitrate_mode": "CONSTANT", "compression_level": 0.2},
    ".ogg": {"format": "OGG", "subtype": "VORBIS"},
    ".opus": {"format": "OGG", "subtype": "OPUS"},
}
WRITABLE_SUFFIXES = tuple(_FORMATS)

_CHUNK_FRAMES = 48_000  # libsndfile's Vorbis encoder puts a whole call on the stack, so long calls crash


def write_audio(path: str | Path, samples: np.ndarray, sample_rate: int = SAMPLE_RATE) -> Path:
    """Write float samples [2, N], [1, N] or [N] (full scale 1.0; beyond it they clip); the suffix picks the format.

    wav and flac are 16 bit, mp3 is 256 kbit/s at 48 kHz, ogg is Vorbis. Raises UserError for another suffix, samples
    that are not finite, a sample rate the format does not have, and a disk that refuses. Returns the path.
    """
    path = Path(path)
    options = _FORMATS.get(path.suffix.lower())
    if options is None:
        raise UserError(
            f'Audio cannot be written as "{path.suffix}" ({path.name}).',
            fix=f"End the name in one of: {', '.join(WRITABLE_SUFFIXES)}.",
        )
    frames = _interleaved(samples)
    if not np.isfinite(frames).all():
        raise UserError(
            f"{path} was not written: the sound holds NaN or infinite samples.",
            fix="Try another precision, such as fp32.",
        )
    import soundfile

    with atomic_file(path) as temporary:
        try:
            with soundfile.SoundFile(temporary, "w", sample_rate, frames.shape[1], **options) as handle:
                for start in range(0, len(frames), _CHUNK_FRAMES):
                    handle.write(frames[start : start + _CHUNK_FRAMES])
        except soundfile.LibsndfileError as error:
            raise UserError(
                f"{path} could not be written at {sample_rate} Hz: {error}",
                fix="Check the free space on the disk, or choose wav, which takes every sample rate.",
            ) from error
    return path


def _interleaved(samples: np.ndarray) -> np.ndarray:
    """Float32 [N, channels] of [channels, N] or [N]."""
    planar = np.atleast_2d(np.asarray(samples, dtype=np.float32))
    if planar.ndim != 2 or planar.shape[0] > 2:
        raise ValueError(f"samples must be [2, N], [1, N] or [N], not {list(planar.shape)}")
    return np.ascontiguousarray(planar.T)
