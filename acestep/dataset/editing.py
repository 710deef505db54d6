"""Editing the labels of many songs at once: see what would change, apply it, take it back.

`set_labels`, `replace_text`, `add_text` and `set_dataset` change nothing; they return a Draft. `History.apply` puts it
into the dataset and onto the disk in one step, `History.undo` takes both back.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import regex

from acestep.core.errors import UserError
from acestep.dataset.dataset import Dataset
from acestep.dataset.label_files import Written, restore, save_labels
from acestep.dataset.lrc import plain_lyrics
from acestep.dataset.song import NOT_SAID, Song
from acestep.dataset.text import LARGEST_LABEL_FILE
from acestep.settings.dataset import DatasetSettings

TextField = Literal["caption", "genre", "lyrics", "custom_tag"]
TEXT_FIELDS: tuple[TextField, ...] = ("caption", "genre", "lyrics", "custom_tag")
_JOINED_BY = {"caption": ", ", "genre": ", ", "custom_tag": " ", "lyrics": "\n"}

PATTERN_TIME_S = 2.0
"""Seconds a pattern may take for all songs together; a bad one could search for years."""

_LONGEST_PATTERN = 1000


@dataclass(frozen=True)
class Change:
    """One label of one song (its path below the dataset's root; "" for the whole dataset), before and after."""

    song: str
    field: str
    before: Any
    after: Any


@dataclass(frozen=True)
class Draft:
    """An edit that has not been made yet: each song it touches as it is and as it would be."""

    title: str
    songs: tuple[tuple[Song, Song], ...] = ()
    settings: tuple[DatasetSettings, DatasetSettings] | None = None
    warnings: tuple[str, ...] = ()

    @property
    def changes(self) -> list[Change]:
        """Every value that would change, for a preview."""
        found = [
            Change(before.relative, name, getattr(before, name), getattr(after, name))
            for before, after in self.songs
            for name in NOT_SAID
            if getattr(before, name) != getattr(after, name)
        ]
        if self.settings is not None:
            before, after = (values.model_dump() for values in self.settings)
            found += [Change("", name, before[name], after[name]) for name in before if before[name] != after[name]]
        return found


@dataclass
class Edit:
    """A draft that was applied, and the sidecars written for it."""

    draft: Draft
    written: list[Written] = field(default_factory=list)


def set_labels(songs: Sequence[Song], **values: Any) -> Draft:
    """The given labels for every song, spelled as anywhere (`bpm="120 BPM"`, `language="German"`); None clears.

    Raises UserError that names the song and the label for a value that cannot be read.
    """
    return _draft(f"set {', '.join(values)}", songs, lambda song: song.edit(**values))


def override_language(songs: Sequence[Song], language: str) -> Draft:
    """`language` for every song with a voice; instrumental pieces have none to be sung in."""
    return set_labels([song for song in songs if not song.is_instrumental], language=language)


def replace_text(
    songs: Sequence[Song],
    field: TextField,
    find: str,
    replacement: str,
    *,
    is_pattern: bool = False,
    match_case: bool = True,
    clock: Callable[[], float] = time.monotonic,
) -> Draft:
    r"""`replacement` for every `find` in a text label. A pattern is a regular expression; \1 stands for its group 1.

    Times in lyrics are kept where only words change. Raises UserError for a bad or endless pattern.
    """
    _check_text_field(field)
    if not find or max(len(find), len(replacement)) > _LONGEST_PATTERN:
        raise UserError(f"The text to find needs 1 to {_LONGEST_PATTERN} characters.", fix="Change it.")
    flags = 0 if match_case else regex.IGNORECASE
    try:
        pattern = regex.compile(find if is_pattern else regex.escape(find), flags | regex.VERSION0)
    except (regex.error, OverflowError, RecursionError) as error:
        raise UserError(f'"{find}" is no regular expression: {error}.', fix="Correct the pattern.") from error
    budget = _Budget(clock)

    def substitute(text: str) -> str:
        return _substitute(pattern, text, replacement, is_pattern, budget)

    def edit(song: Song) -> list[str]:
        old = getattr(song, field)
        new = substitute(old)
        if new == old:
            return []
        if field == "lyrics" and song.times_fit:
            timed = substitute(song.timed_lyrics)
            if plain_lyrics(timed) == plain_lyrics(new):
                return song.edit(lyrics=timed)
            return [*song.edit(lyrics=new), f"{song.relative}: its lyrics lose their times by this."]
        return song.edit(**{field: new})

    return _draft(f"replace in {field}", songs, edit)


def add_text(songs: Sequence[Song], field: TextField, text: str, where: Literal["before", "after"] = "before") -> Draft:
    """`text` before or after a text label: in captions and genres with a comma, in lyrics as lines of their own.

    Songs that have it there already and songs where the label is empty stay as they are, as do instrumental lyrics.
    """
    _check_text_field(field)
    joint = _JOINED_BY[field]
    text = text.strip().strip(",").strip()
    if not text:
        raise UserError(f"There is no text to add to {field}.", fix="Write one.")

    def edit(song: Song) -> list[str]:
        old = song.written_lyrics if field == "lyrics" else getattr(song, field)
        if not old or (field == "lyrics" and song.is_instrumental):
            return []
        if (old + joint).startswith(text + joint) if where == "before" else (joint + old).endswith(joint + text):
            return []
        return song.edit(**{field: f"{text}{joint}{old}" if where == "before" else f"{old}{joint}{text}"})

    return _draft(f"add to {field}", songs, edit)


def set_dataset(dataset: Dataset, **values: Any) -> Draft:
    """Settings of the whole dataset: trigger_word, tag_position, genre_ratio, name. Wrong values are a UserError."""
    return Draft(f"set {', '.join(values)}", settings=(dataset.settings, dataset.settings.changed(**values)))


class History:
    """The edits of a dataset, each kept on disk as it is made, the last `most` of which can be taken back.

    `file` is the dataset file they are kept in; None keeps labels in song.json beside each song. What is true of the
    whole dataset has its place in a dataset file only.
    """

    def __init__(self, dataset: Dataset, file: Path | None = None, most: int = 100) -> None:
        self.dataset = dataset
        self.file = file
        self._done: deque[Edit] = deque(maxlen=most)
        self._undone: list[Edit] = []

    def apply(self, draft: Draft) -> Edit:
        """Make an edit. Raises UserError, with nothing changed, when it cannot be kept or the draft is outdated."""
        if draft.settings is not None and self.file is None:
            raise UserError(
                "The trigger word and other values of the whole dataset have no place beside a song.",
                fix="Save the dataset file first; edits are kept in it then.",
            )
        edit = self._put(draft, forward=True)
        if draft.songs or draft.settings:
            self._done.append(edit)
            self._undone.clear()
        return edit

    def amend(self, draft: Draft) -> Edit:
        """Make an edit as part of the last one, as while somebody is typing; one `undo` takes both back.

        An edit of other songs than the last one stands for itself.
        """
        first = self._done[-1] if self._done else None
        second = self.apply(draft)
        touched = [[song.id for song, _ in edit.draft.songs] for edit in (first, second) if edit is not None]
        if first is None or not draft.songs or touched[0] != touched[1]:
            return second
        pairs = zip(first.draft.songs, draft.songs, strict=True)
        both = Draft(
            first.draft.title, tuple((before, after) for (before, _), (_, after) in pairs), warnings=draft.warnings
        )
        files = zip(first.written, second.written, strict=True)
        edit = Edit(both, [Written(last.path, begun.before, last.after) for begun, last in files])
        for _ in range(min(2, len(self._done))):
            self._done.pop()
        self._done.append(edit)
        return edit

    def undo(self) -> Edit:
        """Take the last edit back, in memory and on disk. Raises UserError when there is none."""
        if not self._done:
            raise UserError("There is nothing to undo.")
        edit = self._done[-1]
        self._put(edit.draft, forward=False, written=edit.written)
        self._undone.append(self._done.pop())
        return edit

    def redo(self) -> Edit:
        """Make the edit that was taken back last once more. Raises UserError when there is none."""
        if not self._undone:
            raise UserError("There is nothing to redo.")
        edit = self._put(self._undone[-1].draft, forward=True)
        self._undone.pop()
        self._done.append(edit)
        return edit

    def _put(self, draft: Draft, forward: bool, written: Sequence[Written] = ()) -> Edit:
        """Move the dataset from one side of a draft to the other, and the disk with it."""
        live = {song.id: song for song in self.dataset.songs}
        ways = [(before, after) if forward else (after, before) for before, after in draft.songs]
        for old, _ in ways:
            if old.id not in live or _labels(live[old.id]) != _labels(old):
                raise UserError(
                    f"The labels of {old.relative} have changed meanwhile, so this edit does not fit any more.",
                    fix="Look at them and make the edit anew.",
                )
        settings = self.dataset.settings
        for _, new in ways:
            _become(live[new.id], new)
        if draft.settings is not None:
            self.dataset.settings = draft.settings[1 if forward else 0]
        try:
            changes = [(live[new.id], _changed(old, new)) for old, new in ways]
            if self.file is None and not forward:
                with self.dataset.files.written(*(entry.path for entry in written)):
                    elsewhere = set(restore(written))  # written to by somebody else since: only our labels leave them
                changes = [one for one, entry in zip(changes, written, strict=True) if entry.path in elsewhere]
            return Edit(draft, save_labels(self.dataset, changes, self.file))
        except BaseException:
            for old, _ in ways:
                _become(live[old.id], old)
            self.dataset.settings = settings
            raise


def _draft(title: str, songs: Sequence[Song], edit: Callable[[Song], list[str]]) -> Draft:
    """A draft of what `edit` does to a copy of each song. Its UserErrors get the song's name."""
    pairs, warnings = [], []
    for song in songs:
        before, after = song.copy(), song.copy()
        try:
            warnings += [f"{song.relative}: {word}" for word in edit(after)]
        except UserError as error:
            raise UserError(f"{song.relative}: {error.message}", fix=error.fix, detail=error.detail) from error
        if _labels(before) != _labels(after):
            pairs.append((before, after))
    return Draft(title, tuple(pairs), warnings=tuple(warnings))


_LABELS = tuple(
    item.name for item in fields(Song) if item.name not in ("id", "path", "relative", "duration_s", "extra")
)


def _labels(song: Song) -> tuple[Any, ...]:
    return tuple(getattr(song, name) for name in _LABELS)


def _changed(old: Song, new: Song) -> frozenset[str]:
    """The labels that an edit gives another value or another origin."""
    return frozenset(name for name in NOT_SAID if old.said(name) != new.said(name))


def _become(song: Song, other: Song) -> None:
    """Give `song` the labels of `other`, sharing nothing with it."""
    other = other.copy()
    for name in _LABELS:
        setattr(song, name, getattr(other, name))


def _check_text_field(name: str) -> None:
    if name not in TEXT_FIELDS:
        raise UserError(f'"{name}" is no label with text.', fix=f"There are: {', '.join(TEXT_FIELDS)}.")


class _Budget:
    """What is left of the time for a pattern."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._until = clock() + PATTERN_TIME_S

    def left_s(self) -> float:
        return max(self._until - self._clock(), 0.001)


def _substitute(pattern: regex.Pattern[str], text: str, template: str, is_pattern: bool, budget: _Budget) -> str:
    """`pattern.sub` within bounds of time and size."""
    parts: list[str] = []
    end = size = 0
    try:
        for match in pattern.finditer(text, timeout=budget.left_s()):
            parts += [text[end : match.start()], match.expand(template) if is_pattern else template]
            end = match.end()
            size += len(parts[-1])
            if size > LARGEST_LABEL_FILE:
                raise UserError("The replaced text becomes too long.", fix="Change the pattern or the replacement.")
    except TimeoutError as error:
        raise UserError(
            f'The pattern "{pattern.pattern}" takes too long to search with.',
            fix="Make it simpler; repeats inside repeats such as (a+)+ are the usual reason.",
        ) from error
    except (regex.error, IndexError) as error:
        raise UserError(f'"{template}" is no replacement for that pattern: {error}.', fix="Correct it.") from error
    return "".join([*parts, text[end:]])
