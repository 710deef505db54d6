"""From a folder of songs to a Dataset: find the audio, read every sidecar and table, decide, report.

Nothing is decoded. Files that did not change since the last scan are not even opened, only their sidecars are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from acestep.audio.format import AUDIO_SUFFIXES, MIN_DURATION_S
from acestep.core.errors import Problem, UserError
from acestep.core.jobs import Job
from acestep.core.paths import existing_folder
from acestep.dataset.csv_labels import CsvLabels, read_csv_folder
from acestep.dataset.dataset import Dataset, label_problems
from acestep.dataset.fingerprints import Fingerprint, Fingerprints
from acestep.dataset.freshness import FilesRead
from acestep.dataset.merging import NOTHING
from acestep.dataset.resolve import Evidence, apply_evidence
from acestep.dataset.saved import DATASET_FILE, MISSING, OTHER_AUDIO, Saved, SavedSong, find_saved, read_saved
from acestep.dataset.sidecars import Pairing, pair, read_sidecar
from acestep.dataset.song import Song
from acestep.dataset.walk import Folder, Tree, walk
from acestep.settings.dataset import DatasetSettings


def scan_folder(
    folder: str | Path,
    settings: DatasetSettings | None = None,
    job: Job | None = None,
    cache: Fingerprints | None = None,
    edits: Path | None = None,
) -> Dataset:
    """Every song below `folder` with its labels, and a problem for everything that is not as it should be.

    What the user typed into a dataset file outranks all other sources: into the dataset file `edits` if it exists,
    or else into the newest one lying directly in the folder. `settings` default to those of that file. `cache`
    remembers unchanged files (default: the one in the state folder). Raises UserError when the folder cannot be
    used or has no audio at all, Stopped when `job` is asked to stop.
    """
    root = existing_folder(folder, "the audio folder")
    job = job or Job()
    tree = walk(root)
    audio = sorted((part.relative_name(name), part, name) for part in tree.folders for name in part.audio)
    if not audio:
        raise _no_audio(root, tree)
    top = next((part for part in tree.folders if part.path == root), Folder("", root))
    edits = edits.expanduser().resolve() if edits is not None else None
    files = FilesRead()
    files.note_folders({root, *(part.path for part in tree.folders)})
    files.note(*([edits] if edits is not None else []))
    saved = read_saved(edits) if edits is not None and edits.exists() else find_saved(root, _ending(top, ".json"))
    dataset = Dataset(root, settings or saved.settings or DatasetSettings(name=root.name or "my_dataset"), files=files)
    dataset.extra = dict(saved.extra)
    dataset.known = _known_files(saved, edits, root / DATASET_FILE)
    dataset.problems += [*tree.problems, *saved.problems]
    tables = read_csv_folder([root / name for name in _ending(top, ".csv")], [relative for relative, _, _ in audio])
    dataset.problems += tables.problems
    scan = _Scan(dataset, tables, saved)
    cache = cache or Fingerprints()
    try:
        with job.stage("scan songs", total=len(audio), unit="songs") as stage:
            for part in tree.folders:
                scan.pair_sidecars(part)
            for relative, part, name in audio:
                job.check_stop()
                scan.add(part, name, cache)
                stage.advance(note=relative)
    finally:
        cache.save()
    scan.label()
    scan.keep_missing()
    dataset.problems += label_problems(dataset.songs, root.name or str(root))
    return dataset


def _known_files(saved: Saved, *to_be_made: Path | None) -> dict[Path, str]:
    """The dataset file that was read; and those that may be made, of which nothing is known while they are not there.

    Where another program makes one of these first, the labels of both come into it.
    """
    known = {path: NOTHING for path in to_be_made if path is not None and not path.exists()}
    return {**known, saved.file: saved.text} if saved.file is not None else known


def _no_audio(root: Path, tree: Tree) -> UserError:
    return UserError(
        f"No audio found in {root}.",
        fix="Put songs there or choose another folder.",
        detail=f"Looked for {', '.join(sorted(AUDIO_SUFFIXES))} files, also in sub-folders."
        + "".join(f" {problem}" for problem in tree.problems),
    )


def _ending(folder: Folder, suffix: str) -> list[str]:
    return [name for name in folder.others if name.lower().endswith(suffix)]


@dataclass
class _Scan:
    """One scan under way."""

    dataset: Dataset
    tables: CsvLabels
    saved: Saved
    by_id: dict[str, Song] = field(default_factory=dict)
    places: dict[str, tuple[Folder, str]] = field(default_factory=dict)
    pairings: dict[str, Pairing] = field(default_factory=dict)
    matched: list[SavedSong] = field(default_factory=list)

    def pair_sidecars(self, part: Folder) -> None:
        """Attach the sidecars of one folder to its songs."""
        pairing = self.pairings[part.relative] = pair(part.audio, part.others)
        for name in pairing.without_audio:
            message = "There is no audio file of that name, so it is not used."
            self.dataset.problems.append(Problem(part.relative_name(name), message, "warning"))

    def add(self, part: Folder, name: str, cache: Fingerprints) -> None:
        """Add one song, or the problem that keeps it out."""
        relative, path = part.relative_name(name), part.path / name
        if path.is_symlink():
            path = path.resolve()
        found = identify(path, cache)
        if isinstance(found, str):
            self.dataset.problems.append(Problem(relative, found))
            return
        if found.id in self.by_id:
            message = f"It is the same recording as {self.by_id[found.id].relative}, so only that one is used."
            self.dataset.problems.append(Problem(relative, message, "warning"))
            return
        song = Song(found.id, path, relative, found.duration_s)
        self.by_id[song.id] = song
        self.places[song.id] = part, name
        self.dataset.songs.append(song)

    def label(self) -> None:
        """Give all songs their labels. Which sample of a dataset file means which can be told when all are known."""
        for song in self.dataset.songs:
            self.dataset.problems += apply_evidence(song, self._evidence(*self.places[song.id], song))

    def _evidence(self, part: Folder, name: str, song: Song) -> Evidence:
        evidence = Evidence()
        if (saved := self.saved.find(song, self.by_id.keys())) is not None:
            self.matched.append(saved)
            if saved.content_id not in (None, song.id):
                self.dataset.problems.append(Problem(song.relative, OTHER_AUDIO, "warning"))
            song.extra = dict(saved.extra)
            evidence = saved.evidence(restoring=False)
        if (row := self.tables.of_audio.get(song.relative)) is not None:
            evidence.found["csv"] = row
        for kind, sidecar_name in self.pairings[part.relative].of_audio.get(name, {}).items():
            sidecar = read_sidecar(part.path / sidecar_name, kind)
            if sidecar.labels is not None:
                evidence.add_sidecar(kind, sidecar.labels, sidecar.machines)
                if sidecar.edited:
                    evidence.add_edits(sidecar.labels, sidecar.edited, self._is_newer(part.path / sidecar_name))
            elif not sidecar.is_dataset:
                self.dataset.problems.append(Problem(part.relative_name(sidecar_name), sidecar.problem))
        return evidence

    def _is_newer(self, sidecar: Path) -> bool:
        """Was this sidecar written after the dataset file? What the user typed last counts."""
        file = self.saved.file
        return file is None or sidecar.stat().st_mtime_ns > file.stat().st_mtime_ns

    def keep_missing(self) -> None:
        """Report samples of the dataset file without a song here, and keep those whose audio may come back."""
        done = {id(saved) for saved in self.matched}
        rest = [saved for saved in self.saved.songs if id(saved) not in done]
        for saved in rest:
            message = saved.problem or "Its audio is not among the songs of this folder; its labels are not used."
            self.dataset.problems.append(Problem(saved.where, message, "warning"))
        folder = self.saved.file.parent if self.saved.file is not None else self.dataset.root
        missing = [
            saved.kept(folder) for saved in rest if saved.audio is None or saved.audio.is_relative_to(self.dataset.root)
        ]
        if missing:
            self.dataset.extra[MISSING] = missing


def identify(path: Path, cache: Fingerprints) -> Fingerprint | str:
    """The fingerprint of a song's audio, or the sentence why it cannot be used."""
    try:
        found = cache.of(path)
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"It cannot be read ({error.strerror}); check its permissions."
    if found.duration_s < MIN_DURATION_S:
        return f"It is only {found.duration_s:.2f} s long; songs need at least {MIN_DURATION_S:g} s."
    return found
