"""What all pages share: folders, the work under way, and what the user has chosen. A page shows it, none owns it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from acestep.core.background import Background, Work
from acestep.core.errors import UserError
from acestep.core.jobs import Job
from acestep.core.paths import read_json, write_json
from acestep.settings import (
    CaptionSettings,
    DatasetSettings,
    GenerateSettings,
    PreprocessSettings,
    Settings,
    TrainSettings,
)
from acestep.settings.export import ExportSettings
from acestep.settings.generate import SweepSettings
from acestep.training.history import RunHistory
from acestep.ui.label_desk import LabelDesk
from acestep.ui.loaded import Loaded
from acestep.ui.outside import OutsideChanges
from acestep.ui.roots import Roots

if TYPE_CHECKING:
    from acestep.dataset.dataset import Dataset


class Workspace(Settings):
    """What the user has chosen so far, remembered between starts. Paths are absolute; empty means not chosen."""

    checkpoints: str = ""
    model: str = ""
    songs: str = ""
    tensors: str = ""
    run: str = ""
    adapter: str = ""
    """The adapter to hear or export, and the run that was open when it was chosen: opening another one chooses anew."""
    adapter_beside: str = ""
    preset: str = ""
    smoothing: float = Field(0.9, ge=0, lt=1)
    logarithmic: bool = False
    preview_step: int = 0
    """Step whose previews are shown; 0 shows the newest."""
    looked_at: str = ""
    """The run shown in the Runs tab."""
    song: str = ""
    """Id of the song looked at last."""
    compared: list[str] = Field(default_factory=list)
    """Runs whose curves lie over those of the run looked at."""
    runs_smoothing: float = Field(0.6, ge=0, lt=1)
    runs_logarithmic: bool = False
    preprocess: PreprocessSettings = Field(default_factory=PreprocessSettings)
    train: TrainSettings = Field(default_factory=TrainSettings)
    generate: GenerateSettings = Field(default_factory=GenerateSettings)
    caption: CaptionSettings = Field(default_factory=CaptionSettings)
    sweep: SweepSettings = Field(default_factory=lambda: SweepSettings(strength=[0.0, 0.5, 1.0]))
    export: ExportSettings = Field(default_factory=ExportSettings)


class App:
    """One running app: its folders, its background work and the workspace. Safe to share between threads."""

    def __init__(self, project: Path, extra_roots: tuple[Path, ...] = (), memory: str = "trainer_config.json") -> None:
        self.project = project.resolve()
        self.output = self.project / "lora_output"
        self.datasets = self.project / "datasets"
        self.checkpoints = self.project / "checkpoints"
        self.roots = Roots([self.project, Path.home(), *extra_roots])
        self.background = Background()
        self.loaded = Loaded()
        self.history = RunHistory()
        self.labels = LabelDesk()
        """Through which all pages edit the dataset in hand."""
        self.outside = OutsideChanges(self.labels)
        self.notes: list[str] = []
        """What went wrong while the app started, for the page to show."""
        self.dismissed: float | None = None
        """When the work was begun whose ending the user has put away."""
        self.public = False
        """Whether others than the user of this computer can reach the app."""
        self.revision = 0
        """Grows with every change of the workspace, so that pages know when to look again."""
        self.filled: Counter[str] = Counter()
        """How often each group of settings was filled by other means than typing, so that forms show it anew."""
        self._memory = self.project / memory
        self._lock = threading.RLock()
        self.workspace = self._remembered()

    @property
    def models_folder(self) -> Path:
        """Where models are looked for: the chosen folder, or the project's."""
        return Path(self.workspace.checkpoints or self.checkpoints)

    @property
    def dataset(self) -> Dataset | None:
        """The dataset in hand; the labels it holds are saved with every change."""
        return self.labels.dataset

    @dataset.setter
    def dataset(self, dataset: Dataset | None) -> None:
        self.labels.take(dataset, None)

    def choose(self, **values: Any) -> Workspace:
        """Change the workspace and remember it. Wrong values raise SettingsError."""
        with self._lock:
            changed = self.workspace.changed(**values)
            self.workspace = changed
            self.revision += 1
            write_json(self._memory, changed.model_dump(mode="json"))
            return changed

    def fill(self, **values: Any) -> Workspace:
        """Like `choose`, for settings that nobody has typed: every page draws their forms anew."""
        with self._lock:
            changed = self.choose(**values)
            self.filled.update(values.keys())
            return changed

    def start_work(
        self,
        kind: str,
        title: str,
        function: Callable[[Job], Any],
        subject: Path | None = None,
        keep_model: bool = False,
        light: bool = False,
    ) -> Work:
        """Begin heavy work in the background; it gets the memory of the loaded model unless it keeps that.

        `light` work keeps it, and may run while another program trains or labels.
        Raises UserError while other work goes on.
        """

        def work(job: Job) -> Any:
            if not (keep_model or light):
                self.loaded.unload()
            return function(job)

        return self.background.start(kind, title, work, subject, light)

    def open_songs(self, path: Path, job: Job, settings: DatasetSettings | None = None) -> Dataset:
        """Load the dataset in a file or of a folder of songs, take it in hand and remember where it is.

        Edits are kept in that file, or beside the songs of the folder. Those made while it is read stay.
        """
        from acestep.dataset.store import load_dataset

        since = self.labels.revision
        dataset = load_dataset(path, settings, job)
        with self.labels.lock:
            held = self.dataset
            if held and held.root == dataset.root and self.labels.file == (path if path.is_file() else None):
                self.labels.carry_over(dataset, since)
            self.take_songs(dataset, path)
        return dataset

    def read_songs_again(self, job: Job) -> None:
        """Read the folder of the open songs anew, with what was edited, also while it is read."""
        from acestep.dataset.store import load_dataset, save_dataset

        desk = self.labels
        since, held, settings = desk.revision, desk.history.dataset, desk.history.dataset.settings
        found = load_dataset(held.root, None if desk.file else settings, job, edits=desk.file)
        with desk.lock:
            file = desk.file  # it and the settings may have been changed meanwhile
            if file is None or held.settings != settings:
                found.settings = held.settings
            desk.carry_over(found, since)
            if file is not None:
                save_dataset(found, file)
            self.take_songs(found, file or held.root)

    def reopen_songs(self) -> None:
        """Open the songs that were open when the app ended, in the background; a place that is gone is left alone."""
        path = Path(self.workspace.songs)
        if self.workspace.songs and path.exists() and self.roots.allows(path):
            self.start_work("songs", f"Reading {path.name}", lambda job: self.open_songs(path, job), path, light=True)

    def take_songs(self, dataset: Dataset, place: Path) -> None:
        """Take a dataset in hand whose edits are kept in `place`: a dataset file, or a folder of songs."""
        with self.labels.lock:  # whoever needs both locks takes this one first
            held = self.dataset
            same = held.root == dataset.root if held else self.workspace.songs in ("", str(place))
            self.labels.take(dataset, place if place.is_file() else None)
            self.choose(songs=str(place), **({} if same else {"tensors": ""}))  # the tensors are those of other songs

    def keep_dataset_settings(self, **values: Any) -> Path | None:
        """Keep settings of the songs that are open in their dataset file; None where they are so already.

        A folder without such a file gets one, and all edits are kept in it from then on.
        """
        from acestep.dataset.editing import set_dataset
        from acestep.dataset.saved import DATASET_FILE

        desk = self.labels
        with desk.lock:
            draft = set_dataset(desk.history.dataset, **values)
            if not draft.changes:
                return None
            if desk.file is None:
                self.choose(songs=str(desk.keep_in(desk.history.dataset.root / DATASET_FILE)))
            desk.apply(draft)
            return desk.file

    def _remembered(self) -> Workspace:
        if not self._memory.exists():
            return Workspace()
        try:
            return Workspace.parse(read_json(self._memory, "the app's memory"), str(self._memory))
        except UserError as error:
            kept = self._memory.replace(self._memory.with_suffix(".unreadable.json"))
            self.notes.append(f"{error} The app starts with nothing chosen; the file is kept as {kept.name}.")
            return Workspace()
