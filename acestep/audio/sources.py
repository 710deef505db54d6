"""Open sound files of any kind and read them block by block, in their own sample rate.

libsndfile (through soundfile) reads most formats, PyAV what it cannot. Three kinds go to PyAV although
libsndfile opens them, because libsndfile would silently lose music or guess:

* MP3: without a frame count in its header libsndfile estimates the length and stops there (60 s at a variable
  bit rate can end after 15 s); its decoder also writes to standard error past Python.
* Ogg with several streams one after the other (recordings of net radio): libsndfile ends after the first.
* FLAC written to a pipe: its header states no length, and libsndfile reports 2**63 frames.
"""

from __future__ import annotations

import contextlib
import mmap
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from acestep.audio.format import CHANNELS
from acestep.core.errors import UserError

if TYPE_CHECKING:
    import av

BLOCK_FRAMES = 16_384
"""Frames read at a time. A decoder that fails loses at most the block it was reading."""

_MOST_FRAMES = 1 << 40
_HEAD_BYTES = 4096
_STREAMED_WAV_BYTES = 0x7FFF_0000  # programs that write wav to a pipe put placeholders above this
_PADDING_FRAMES = 4096  # encoders add a few packets of 1152 frames or less before and after the music

# Only real containers: libav also knows playlists, which could make it open other files or addresses.
_LIBAV_OPTIONS = {
    "format_whitelist": "aac,ac3,aiff,amr,ape,asf,avi,caf,dsf,flac,flv,m4a,matroska,mov,mp3,mp4,mpeg,mpegts,ogg,"
    "tta,w64,wav,webm,wv",
    "protocol_whitelist": "file",
}


class Undecodable(Exception):
    """A library cannot read a file; the text says why in the library's words."""


class Source(Protocol):
    """An open sound file."""

    sample_rate: int
    channels: int
    declared_frames: int | None
    """Frames the file says it has, or None where it does not say."""
    damage: str
    """After reading: why parts are missing, or an empty string."""

    def blocks(self) -> Iterator[np.ndarray]:
        """The sound as float32 blocks [frames, 1 or 2]; more channels than two are left out."""

    def count_frames(self) -> int:
        """Frames there are by the file's own structure, without decoding."""

    def close(self) -> None: ...


def open_source(path: Path) -> contextlib.closing[Source]:
    """Open a sound file for a `with` block, or raise a UserError that says what is wrong with it."""
    head = _read_head(path)
    if _wants_libav(path, head):
        return contextlib.closing(_open_with_libav(path, first_reason=""))
    try:
        return contextlib.closing(_SoundfileSource(path))
    except Undecodable as reason:
        return contextlib.closing(_open_with_libav(path, first_reason=str(reason)))


def _open_with_libav(path: Path, first_reason: str) -> Source:
    try:
        return _LibavSource(path)
    except Undecodable as reason:
        detail = "; ".join(text for text in (first_reason, str(reason)) if text)
        raise UserError(
            f"{path} cannot be read as audio.",
            fix="It may be damaged, or another kind of file under this name; export it again or remove it.",
            detail=detail,
        ) from reason


def _read_head(path: Path) -> bytes:
    """The first bytes of a file, or a UserError where there are none to read."""
    try:
        # a pipe or device would block for ever, so look before opening
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{path} is not a file.", fix="Choose an audio file.")
        with open(path, "rb") as handle:
            head = handle.read(_HEAD_BYTES)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist.", fix="Check the path.") from error
    except PermissionError as error:
        raise UserError(
            f"{path} cannot be opened: permission denied.", fix="Allow reading it, or copy it to a folder of yours."
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be opened: {error.strerror}.", fix="Check the file and its disk.") from error
    if not head:
        raise UserError(f"{path} is empty (0 bytes).", fix="Copy or export it again, or remove it.")
    return head


def _wants_libav(path: Path, head: bytes) -> bool:
    if head.startswith(b"OggS"):
        with open(path, "rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(b"OggS\x00\x02", 1) >= 0  # a second "beginning of stream" page
    return path.suffix.lower() == ".mp3" or head.startswith(b"ID3") or _is_mpeg_frame(head)


def _is_mpeg_frame(head: bytes) -> bool:
    """Whether bytes begin with an MPEG audio header of layer I to III (AAC has the layer bits 00)."""
    return len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0 and head[1] & 0x06 != 0


class _SoundfileSource:
    def __init__(self, path: Path) -> None:
        import soundfile

        self._error = soundfile.LibsndfileError
        try:
            self._file = soundfile.SoundFile(path)
        except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: a .raw file, which has no header
            raise Undecodable(f"libsndfile: {error}") from error
        self.sample_rate: int = self._file.samplerate
        self.channels: int = self._file.channels
        self.damage = ""
        self._frames: int = self._file.frames
        if self.sample_rate <= 0 or not 0 <= self._frames < _MOST_FRAMES:
            self._file.close()
            raise Undecodable("libsndfile: the header states no length")
        self.declared_frames: int | None = max(self._frames, self._wav_header_frames())

    def _wav_header_frames(self) -> int:
        """Frames the header of a cut-off wav file speaks of; libsndfile counts what is there instead."""
        found = re.search(r"^data : (\d+) \(should be (\d+)\)", self._file.extra_info, flags=re.MULTILINE)
        if not found or not self._frames:
            return 0
        stated_bytes, present_bytes = int(found[1]), int(found[2])
        if not present_bytes <= stated_bytes < _STREAMED_WAV_BYTES:
            return 0
        return stated_bytes * self._frames // present_bytes

    def count_frames(self) -> int:
        return self._frames

    def blocks(self) -> Iterator[np.ndarray]:
        while True:
            try:
                block = self._file.read(BLOCK_FRAMES, dtype="float32", always_2d=True)
            except self._error as error:
                self.damage = str(error)
                return
            if not len(block):
                return
            yield np.ascontiguousarray(block[:, :CHANNELS])

    def close(self) -> None:
        self._file.close()


class _LibavSource:
    def __init__(self, path: Path) -> None:
        import av

        self._av = av
        self._path = path
        self.damage = ""
        self._container = self._open()
        try:
            if not self._container.streams.audio:
                raise Undecodable("libav: there is no sound track")
            self._stream = self._container.streams.audio[0]
            context = self._stream.codec_context
            self.sample_rate: int = context.sample_rate
            self.channels: int = context.layout.nb_channels
            if self.sample_rate <= 0 or self.channels <= 0:
                raise Undecodable("libav: the sound track has no sample rate or no channels")
        except Undecodable:
            self._container.close()
            raise
        self.declared_frames = self._declared()

    def _open(self) -> av.container.InputContainer:
        try:
            # tags in unknown encodings must not stop the music
            return self._av.open(str(self._path), options=_LIBAV_OPTIONS, metadata_errors="ignore")
        except (self._av.error.FFmpegError, ValueError) as error:
            raise Undecodable(f"libav: {_words(error)}") from error

    def _declared(self) -> int | None:
        kind = self._container.format.name
        if kind == "aac" or self._stream.duration is None or (kind == "mp3" and not mp3_states_length(self._path)):
            return None  # libav would estimate from the bit rate
        return round(float(self._stream.duration * self._stream.time_base) * self.sample_rate)

    def count_frames(self) -> int:
        declared = self.declared_frames
        if declared is not None and self._container.format.name not in ("mp3", "ogg"):
            return declared
        counted = self._count_packets()
        if declared is not None and abs(counted - declared) < _PADDING_FRAMES:
            return declared
        return counted

    def _count_packets(self) -> int:
        duration = 0
        with self._open() as container:
            stream = container.streams.audio[0]
            try:
                for packet in container.demux(stream):
                    duration += packet.duration or 0
            except self._av.error.FFmpegError as error:
                self.damage = _words(error)
            return round(float(duration * stream.time_base) * self.sample_rate)

    def blocks(self) -> Iterator[np.ndarray]:
        gathered: list[np.ndarray] = []
        frames = 0
        for piece in self._pieces():
            gathered.append(piece)
            frames += len(piece)
            if frames >= BLOCK_FRAMES:
                yield np.concatenate(gathered)
                gathered, frames = [], 0
        if gathered:
            yield np.concatenate(gathered)

    def _pieces(self) -> Iterator[np.ndarray]:
        """Decoded frames [frames, 1 or 2]; packets that do not decode are left out and noted in `damage`."""
        to_float = self._av.AudioResampler(format="fltp")
        for packet in self._packets():
            try:
                decoded = packet.decode()
            except self._av.error.FFmpegError as error:
                self.damage = _words(error)
                continue
            for frame in decoded:
                if frame.sample_rate != self.sample_rate or frame.layout.nb_channels != self.channels:
                    self.damage = "the sample rate or the number of channels changes"
                    return
                for planar in to_float.resample(frame):
                    yield np.ascontiguousarray(planar.to_ndarray()[:CHANNELS].T, dtype=np.float32)

    def _packets(self) -> Iterator[Any]:
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except self._av.error.FFmpegError as error:
                self.damage = _words(error)
                return
            if packet is None:
                return
            yield packet

    def close(self) -> None:
        self._container.close()


def mp3_states_length(path: Path) -> bool:
    """Whether the first frame of an MP3 file holds a Xing, Info or VBRI header, which counts the frames."""
    with open(path, "rb") as handle:
        head = handle.read(10)
        start = 0
        if head.startswith(b"ID3") and len(head) == 10:
            # the size of the tag is stored in four bytes of seven bits
            start = 10 + (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9])
        handle.seek(start)
        first_frame = handle.read(256)
    return any(mark in first_frame for mark in (b"Xing", b"Info", b"VBRI"))


def _words(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
