"""What to write into a dataset file that another program has changed since this one read it: both programs' changes.

Three texts are read by the same reader: what the file holds now (theirs), what this program wants it to hold (ours),
and what this program wanted when it last read or wrote the file. What differs between the last two was changed here.
"""

from __future__ import annotations

from dataclasses import replace

from acestep.dataset.dataset import Dataset
from acestep.dataset.resolve import apply_evidence
from acestep.dataset.saved import MISSING, Saved, SavedSong
from acestep.dataset.song import DEFAULT, EDITED, NOT_SAID, Song
from acestep.settings.dataset import DatasetSettings

NOTHING = '{"samples": []}'
"""The text that stands for a file that was not there."""

_VOICE = ("lyrics", "is_instrumental")
_CHANGED_AS_ONE = (_VOICE, *((name,) for name in NOT_SAID if name not in _VOICE))
"""Labels that follow each other are taken from the same program."""


def merged(dataset: Dataset, ours: Saved, before: Saved, theirs: Saved) -> Dataset:
    """The dataset with all that another program has changed in its file; `dataset` itself stays as it is.

    Where both changed the same label of a song, or the same setting, it is ours. But what the user typed there
    outranks what was only read or made by a machine here. A song that was removed there comes back where it was
    changed here.
    """
    ids = {song.id for song in dataset.songs}
    songs, matched = [], set()
    for song in dataset.songs:
        mine, once, found = (saved.find(song, ids) for saved in (ours, before, theirs))
        own, old = _as_saved(mine, song), _as_saved(once, song)
        if found is not None:
            matched.add(id(found))
            songs.append(_merged_song(song, own, old, _as_saved(found, song)))
        elif once is None or _differ(own, old, tuple(NOT_SAID)):
            songs.append(song)
    removed = {sample.content_id for sample in before.songs} - {sample.content_id for sample in ours.songs}
    gone = (removed | ids) - {None}
    rest = [sample for sample in theirs.songs if id(sample) not in matched and sample.content_id not in gone]
    assert theirs.file is not None
    # songs that another program has found, and samples without their audio
    kept = [sample.kept(theirs.file.parent) for sample in rest]
    extra = {**dataset.extra, **theirs.extra, MISSING: kept}
    return Dataset(dataset.root, _merged_settings(ours, before, theirs), songs, extra=extra)


def _as_saved(sample: SavedSong | None, song: Song) -> Song:
    """The song as a sample tells of it; without one nothing is said about it."""
    told = Song(song.id, song.path, song.relative, song.duration_s)
    if sample is not None:
        told.path, told.extra = sample.audio or song.path, sample.extra
        apply_evidence(told, sample.evidence(restoring=True))
    return told


def _merged_song(song: Song, own: Song, old: Song, now: Song) -> Song:
    result = replace(song.copy(), extra={**song.extra, **now.extra})
    if own.path == old.path:
        result.path = now.path  # another program may know where it was moved to
    for names in _CHANGED_AS_ONE:
        if not _differ(now, old, names):
            continue
        if not _differ(own, old, names) or _weight(now, names[0]) > _weight(own, names[0]):
            for name in names:
                result.take(now, name)
    return result


def _differ(one: Song, other: Song, names: tuple[str, ...]) -> bool:
    return any(one.said(name) != other.said(name) for name in names)


def _weight(song: Song, name: str) -> tuple[int, bool]:
    """How much the word of a song's label counts: typed, then read or made, then nobody's; an empty one less."""
    source = song.sources.get(name, DEFAULT)
    return {EDITED: 2, DEFAULT: 0}.get(source, 1), getattr(song, name) not in ("", None)


def _merged_settings(ours: Saved, before: Saved, theirs: Saved) -> DatasetSettings:
    assert ours.settings is not None and before.settings is not None and theirs.settings is not None
    own, old = ours.settings.model_dump(), before.settings.model_dump()
    return theirs.settings.changed(**{name: value for name, value in own.items() if value != old[name]})
