"""What labelling would do, told before it begins: who is asked, what is fetched, where songs go and what it costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from acestep.captioning import five_hz, local
from acestep.captioning.contract import BackendFacts
from acestep.captioning.plan import Step
from acestep.captioning.registry import model_name
from acestep.captioning.services import estimated_usd, recipient
from acestep.core.errors import UserError
from acestep.core.words import counted
from acestep.settings.caption import CaptionSettings

SPOKEN: dict[str, str] = {"bpm": "tempo", "keyscale": "key", "timesignature": "metre"}
"""Labels whose names in files are no plain words."""


@dataclass(frozen=True)
class Download:
    """A model that is fetched first. `size_bytes` is None where nobody could tell it; `trouble` says why."""

    size_bytes: int | None
    trouble: str = ""


@dataclass(frozen=True)
class StepOutlook:
    """One backend's part. `sent_to` is empty where the songs stay on this computer, `usd` None without a price."""

    backend: str
    title: str
    songs: int
    minutes: float
    fields: list[str]
    model: str
    memory_gib: float
    sent_to: str
    usd: float | None
    download: Download | None

    @property
    def needs_consent(self) -> bool:
        """Whether somebody has to agree first: songs leave this computer, or something large comes to it."""
        return bool(self.sent_to) or self.download is not None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "sends_audio": bool(self.sent_to)}

    def sentences(self) -> list[str]:
        """What to tell before it begins."""
        songs = counted(self.songs, "songs")
        told = [f"{self.title}: {spoken(self.fields)} of {songs}, {self.minutes:.1f} min of sound."]
        if self.download is not None:
            size = self.download.size_bytes
            told.append(
                f"The model {self.model} is fetched first: {size / 1e9:.1f} GB."
                if size is not None
                else f"The model {self.model} is fetched first if it is not here; its size is not known. "
                f"{self.download.trouble}".strip()
            )
        if self.memory_gib:
            told.append(f"It takes about {self.memory_gib:.0f} GiB of memory, which is given back afterwards.")
        if self.sent_to:
            told.append(f"The sound of {songs} leaves this computer and goes to {self.sent_to}.")
            told.append(
                "What that costs is not known here."
                if self.usd is None
                else f"By its public prices that costs {money(self.usd)}; the bill may differ."
            )
        return told


def spoken(fields: Iterable[str]) -> str:
    """Names of labels as people say them."""
    return ", ".join(sorted(SPOKEN.get(name, name) for name in fields))


def money(usd: float) -> str:
    """An estimate in US dollars, in words."""
    return f"about {usd:.2f} US dollars" if usd >= 0.01 else "less than 0.01 US dollars"


def look_ahead(steps: Sequence[Step], settings: CaptionSettings) -> list[StepOutlook]:
    """What each step would do. Asks the Hub for the sizes of models that are not here yet.

    Raises UserError for a model or an address that cannot be.
    """
    found = []
    for step in steps:
        facts = step.backend.facts
        seconds = sum(song.duration_s for song, _ in step.songs)
        sent_to = recipient(facts, settings)
        model = model_name(facts, settings)
        found.append(
            StepOutlook(
                backend=facts.name,
                title=facts.title,
                songs=len(step.songs),
                minutes=round(seconds / 60, 1),
                fields=sorted({field for _, wanted in step.songs for field in wanted}),
                model=model,
                memory_gib=facts.memory_gib,
                sent_to=sent_to,
                usd=estimated_usd(facts.name, model, seconds) if sent_to else None,
                download=_download(facts, model, settings) if facts.origin == "model" else None,
            )
        )
    return found


def _download(facts: BackendFacts, model: str, settings: CaptionSettings) -> Download | None:
    """What is to be fetched for a local backend; None where its model is here."""
    if facts.name == five_hz.NAME and (size := five_hz.published_name(model)):
        checkpoint = five_hz.codes_checkpoint(settings.codes_model)
        present = five_hz.present_language_model(size, checkpoint)
        plan = partial(five_hz.plan_language_model, size, checkpoint)
    else:
        present, plan = local.present_folder(model), partial(local.plan_model, model)
    if present is not None:
        return None
    try:
        return Download(plan().remaining_bytes)
    except UserError as error:  # the Hub cannot be asked, and perhaps can when it is needed
        return Download(None, error.message)
