"""What was played: a folder for each play, with the pieces and the request beside each, and how the page shows it."""

from __future__ import annotations

import json
from collections.abc import Hashable
from dataclasses import asdict, dataclass, field
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from acestep.core.errors import UserError
from acestep.core.paths import read_json, write_json
from acestep.ui.app import App

PLAYS_SHOWN = 20


@dataclass(frozen=True)
class Piece:
    """A piece on disk. `strength` is None where no adapter was chosen; `settings` hold the request as it was used."""

    file: Path
    made: str
    model: str
    adapter: str
    strength: float | None
    seed: int
    duration_s: float
    took_s: float
    settings: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def words(self) -> str:
        return "without adapter" if not self.strength else f"strength {self.strength:g}"

    def write_note(self) -> None:
        """Write the request beside the piece."""
        note = {**asdict(self), "file": self.file.name}
        write_json(self.file.with_suffix(".json"), note)


def plays_folder(app: App) -> Path:
    return app.output / "listen"


def new_play(app: App) -> Path:
    """A folder for the pieces of a new play; names grow with time."""
    return plays_folder(app) / f"{datetime.now():%Y%m%d-%H%M%S-%f}"


def play_paths(app: App) -> list[Path]:
    """The plays shown, newest first."""
    folder = plays_folder(app)
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return sorted(found, key=lambda path: path.name, reverse=True)[:PLAYS_SHOWN]


def history_sign(app: App) -> Hashable:
    """Changes when a play or a piece comes or goes."""
    return tuple((path.name, path.stat().st_mtime_ns) for path in play_paths(app))


def read_play(folder: Path) -> list[Piece]:
    """The pieces of a play that are whole: a sound file with a readable note beside it."""
    pieces = []
    for note in sorted(folder.glob("*.json")):
        try:
            values = read_json(note, "the note on a piece")
            piece = Piece(**{**values, "file": folder / Path(str(values["file"])).name})
        except (UserError, KeyError, TypeError):  # changed by hand: the sound stays on disk, the page leaves it out
            continue
        if piece.file.is_file():
            pieces.append(piece)
    return pieces


def history_html(app: App) -> str:
    """All plays shown: players side by side, a row a seed, a column a strength."""
    plays = [(path, read_play(path)) for path in play_paths(app)]
    tables = [play_html(pieces) for _, pieces in plays if pieces]
    return "".join(tables) or '<p class="quiet">Nothing was played yet.</p>'


def play_html(pieces: list[Piece]) -> str:
    """The pieces of one play."""
    first = pieces[0]
    strengths = sorted({piece.strength for piece in pieces}, key=lambda at: (at is not None, at or 0.0))
    by_place = {(piece.seed, piece.strength): piece for piece in pieces}
    rows = ""
    for seed in sorted({piece.seed for piece in pieces}):
        cells = "".join(_cell(by_place.get((seed, strength))) for strength in strengths)
        rows += f'<div class="takes" role="group" aria-label="seed {seed}">{cells}</div>'
    prompt = escape(str(first.settings.get("caption") or "no caption"))
    facts = [first.made[:16].replace("T", " "), first.model, first.adapter]
    said = dict.fromkeys(text for piece in pieces for text in piece.warnings)
    items = "".join(f"<li>{escape(text)}</li>" for text in said)
    warnings = f'<ul class="problems">{items}</ul>' if items else ""
    return (
        f'<section class="play"><h4>{prompt}</h4><p class="quiet">{escape(", ".join(filter(None, facts)))}</p>'
        f"{rows}{warnings}"
        f"<details><summary>The whole request</summary><pre>{escape(_request(first))}</pre></details></section>"
    )


def _cell(piece: Piece | None) -> str:
    if piece is None:  # refused, stopped, or still to come
        return ""
    # relative: behind a proxy the app does not stand at the root
    source = f"gradio_api/file={quote(str(piece.file))}"
    label = escape(f"{piece.words}, seed {piece.seed}, {piece.made[:16]}")
    return (
        f'<figure class="take"><figcaption><b>{escape(piece.words)}</b> seed {piece.seed}</figcaption>'
        f'<audio controls preload="none" src="{source}" aria-label="{label}"></audio>'
        f'<p class="quiet">{piece.duration_s:.1f} s, made in {piece.took_s:.1f} s. '
        f'<a href="{source}" download="{escape(piece.file.name)}" aria-label="Save {label}">Save</a></p></figure>'
    )


def _request(piece: Piece) -> str:
    shown = {name: value for name, value in piece.settings.items() if value not in (None, "")}
    return json.dumps(shown, indent=1, ensure_ascii=False)
