"""How right `acestep analyze` is on played pieces whose tempo, metre and key are known, and what it costs.

Pieces in 18 styles are written as MIDI (tests/played_pieces.py), played by FluidSynth with a General MIDI sound font
and stored in five formats; beside them sounds without beat or key. The seed of the report is never used for fitting.

    env/bin/python benchmarks/analysis.py [--pieces N] [--seed N] [--folder DIR] [--failures] [--json]
    env/bin/python benchmarks/analysis.py --fit       fit the weights anew and say how well they do in styles left out
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tools")]
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402 - after the search path
import soundfile  # noqa: E402
from demo_model.judging import key_score  # noqa: E402
from foreign_songs import missing_tools  # noqa: E402
from played_pieces import SECONDS, STYLES, Piece, draw_drum_pieces, draw_pieces, make_beatless, play_all  # noqa: E402

from acestep.audio import key, rhythm  # noqa: E402
from acestep.audio.analysis import Analysis, analyze  # noqa: E402
from acestep.audio.format import SAMPLE_RATE  # noqa: E402
from acestep.audio.hearing import hear  # noqa: E402
from acestep.audio.pitch import listen_for_pitches  # noqa: E402
from acestep.audio.synth import NOTE_NAMES, SongPlan, render  # noqa: E402
from acestep.audio.weighing import WEIGHTS_FILE  # noqa: E402

REPORT_SEED, FIT_SEED = 2026, 1
FIT_PIECES, FIT_DRUM_PIECES, FIT_BEATLESS = 480, 48, 96
TOLERANCE = 0.02
RHYTHM_PENALTY, KEY_PENALTY = 3e-3, 3e-3
"""Weight decay of the fit, chosen by leaving styles out."""


def main() -> int:
    options = parse()
    if missing := missing_tools():
        print(f"Not installed: {', '.join(missing)}.", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="acestep-analysis-") as place:
        folder = Path(options.folder or place)
        report = fit(folder) if options.fit else measure(folder, options)
    print(
        json.dumps(report, indent=1)
        if options.json
        else "\n".join(f"{name:<44} {value}" for name, value in report.items())
    )
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pieces", type=int, default=96)
    parser.add_argument("--seed", type=int, default=REPORT_SEED)
    parser.add_argument("--folder", help="keep the sound files here, and use those that are there")
    parser.add_argument("--failures", action="store_true", help="name every piece that was heard wrongly")
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


# Measuring


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Accuracy over pieces, invented values over sounds without any, and the time of a warm process."""
    pieces = draw_pieces(options.pieces, options.seed)
    paths = play_all(pieces, folder / f"pieces {options.seed}")
    drums = draw_drum_pieces(options.pieces // 6, options.seed)
    drum_paths = play_all(drums, folder / f"drums {options.seed}")
    beatless = make_beatless(folder / f"beatless {options.seed}", options.pieces // 3, options.seed)
    analyze(paths[0])  # imports and compilation are paid once a process
    before = time.process_time()
    found = [analyze(path) for path in paths]
    seconds = time.process_time() - before
    judged = [Judged.of(piece, one) for piece, one in zip(pieces, found, strict=True)]
    if options.failures:
        for piece, one, verdict in zip(pieces, found, judged, strict=True):
            if not (verdict.tempo and verdict.metre and verdict.key == 1):
                print(
                    f"{piece.name}: {piece.tempo} {piece.metre} {piece.key} heard as {one.to_dict()}", file=sys.stderr
                )
    drums_found = [analyze(path) for path in drum_paths]
    drums_judged = [Judged.of(piece, one) for piece, one in zip(drums, drums_found, strict=True)]
    beatless_found = [analyze(path) for path in beatless]
    others = synthesised_songs(folder / f"synthesised {options.seed}", options.pieces // 4, options.seed)
    others_judged = [Judged.of(piece, analyze(path)) for piece, path in others]
    return {
        "pieces": len(pieces),
        "tempo within 2 %": share([one.tempo for one in judged]),
        "tempo within 2 %, octave allowed": share([one.tempo_octave for one in judged]),
        "metre": share([one.metre for one in judged]),
        "key exact": share([one.key == 1 for one in judged]),
        "key, MIREX weighted": share([one.key for one in judged]),
        "right among tempi given": share([j.tempo for j, one in zip(judged, found, strict=True) if one.bpm.value]),
        "right among metres given": share(
            [j.metre for j, one in zip(judged, found, strict=True) if one.timesignature.value]
        ),
        "right among keys given": share(
            [j.key == 1 for j, one in zip(judged, found, strict=True) if one.keyscale.value]
        ),
        "drums alone: tempo within 2 %": share([one.tempo for one in drums_judged]),
        "drums alone: key invented": share([one.keyscale.value is not None for one in drums_found]),
        "sounds without beat: tempo invented": share([one.bpm.value is not None for one in beatless_found]),
        "sounds without key: key invented": share([one.keyscale.value is not None for one in beatless_found]),
        "other songs (synthesiser): tempo within 2 %": share([one.tempo for one in others_judged]),
        "other songs (synthesiser): metre": share([one.metre for one in others_judged]),
        "other songs (synthesiser): key exact": share([one.key == 1 for one in others_judged]),
        "CPU seconds per second of sound": round(seconds / (len(pieces) * SECONDS), 4),
    }


def synthesised_songs(folder: Path, count: int, seed: int) -> list[tuple[Piece, Path]]:
    """Songs of the synthesiser's song plans, which shares nothing with the played pieces and is never fitted to."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(f"synthesised {seed}")
    songs = []
    for number in range(count):
        metre, mode = "4236"[number % 4], draw.choice(key.MODES)
        tempo = draw.randint(60, 100) if metre == "6" else draw.randint(66, 150)
        plan = SongPlan(tempo, NOTE_NAMES[number % 12], mode, metre, SECONDS, number, ("verse", "chorus") * 2)
        path = folder / f"{number:03}.wav"
        if not path.exists():
            soundfile.write(path, render(plan).T, SAMPLE_RATE)
        songs.append((Piece(path.name, STYLES[0], tempo, metre, number % 12, mode, True, number), path))
    return songs


@dataclass(frozen=True)
class Judged:
    """What of an analysis is right; a value that was not given is wrong."""

    tempo: bool
    tempo_octave: bool
    metre: bool
    key: float

    @classmethod
    def of(cls, piece: Piece, found: Analysis) -> Judged:
        ratio = (found.bpm.value or math.inf) / piece.tempo
        near = [abs(ratio / other - 1) <= TOLERANCE for other in (1, 2, 1 / 2, 3, 1 / 3)]
        key_right = key_score(key_of(piece), found.keyscale.value)
        return cls(near[0], any(near), found.timesignature.value == piece.metre, key_right)


def key_of(piece: Piece) -> str | None:
    return f"{key.NAMES[piece.mode][piece.tonic]} {piece.mode}" if piece.key else None


def share(values: list[Any]) -> float:
    return round(float(np.mean(values)), 3) if values else math.nan


# Fitting


@dataclass(frozen=True)
class Example:
    """Features of one sound, and which hypothesis is true: (tempo or tonic, metre or mode), or None where none is."""

    style: str
    tempi: np.ndarray
    rhythm: np.ndarray
    keys: np.ndarray
    beat: tuple[int, int] | None
    key: tuple[int, int] | None
    usable: bool
    """Whether the true tempo is among the candidates at all."""


def example(path: Path, piece: Piece | None) -> Example:
    heard = hear(path)
    pitches = [listen_for_pitches(part) for part in heard.excerpts]
    found = rhythm.listen_for_rhythm(heard.excerpts, pitches)
    tempi = rhythm.candidates(found)
    beat, tonic = None, None
    if piece:
        nearest = int(np.argmin(np.abs(np.log(tempi / piece.tempo))))
        if abs(tempi[nearest] / piece.tempo - 1) <= TOLERANCE:
            beat = nearest, rhythm.METRES.index(piece.metre)
        if piece.key:
            tonic = piece.tonic, key.MODES.index(piece.mode)
    keys = np.moveaxis(key.features(pitches), 0, 1)
    style = piece.style.name if piece else "beatless"
    return Example(style, tempi, rhythm.features(found, tempi), keys, beat, tonic, piece is None or beat is not None)


def fit(folder: Path) -> dict[str, Any]:
    """Fit both sets of weights, write them, and report how well they do on each style when fitted on the others."""
    pieces: list[Piece | None] = [*draw_pieces(FIT_PIECES, FIT_SEED), *draw_drum_pieces(FIT_DRUM_PIECES, FIT_SEED)]
    paths = play_all(pieces[:FIT_PIECES], folder / f"pieces {FIT_SEED}")
    paths += play_all(pieces[FIT_PIECES:], folder / f"drums {FIT_SEED}")
    paths += make_beatless(folder / f"beatless {FIT_SEED}", FIT_BEATLESS, FIT_SEED)
    pieces += [None] * FIT_BEATLESS
    with ProcessPoolExecutor() as pool:
        examples = list(pool.map(example, paths, pieces, chunksize=8))
    fitted = fit_both(examples)
    rows = [json.dumps(name) + ": " + _rows(values) for name, values in fitted.items()]
    WEIGHTS_FILE.write_text("{" + ",\n".join(rows) + "}\n", encoding="utf-8")
    left_out = []
    for style in sorted({one.style for one in examples} - {"beatless"}):
        others = fit_both([one for one in examples if one.style != style])
        left_out += [_right(one, others) for one in examples if one.style == style and one.key]
    names = ("tempo in a style left out", "metre in a style left out", "key in a style left out")
    return dict(zip(names, (share(list(column)) for column in zip(*left_out, strict=True)), strict=True))


def fit_both(examples: list[Example]) -> dict[str, np.ndarray]:
    usable = [one for one in examples if one.usable and len(one.tempi)]
    return {
        "rhythm": softmax_weights([(one.rhythm[:, None], one.beat) for one in usable], 4, RHYTHM_PENALTY),
        "key": softmax_weights([(one.keys, one.key) for one in examples], 2, KEY_PENALTY),
    }


def softmax_weights(data: list[tuple[np.ndarray, tuple[int, int] | None]], kinds: int, penalty: float) -> np.ndarray:
    """Weights [features, kinds] of the likeliest softmax over features [places, 1 or kinds, features] and "none".

    Each kind's weights are a shared part and one of its own; both are held small, in units of each feature's spread.
    """
    import torch

    torch.set_num_threads(1)
    places, count = max(len(one) for one, _ in data), data[0][0].shape[-1]
    every = np.concatenate([one.reshape(-1, count) for one, _ in data])
    mean, spread = every.mean(axis=0), every.std(axis=0)
    mean[0], spread[spread < 1e-9] = 0.0, 1.0  # the first feature is a constant 1
    inputs = np.zeros((len(data), places, kinds, count), dtype=np.float32)
    absent = np.ones((len(data), places, kinds), dtype=bool)
    for row, (one, _) in enumerate(data):
        inputs[row, : len(one)] = (one - mean) / spread
        absent[row, : len(one)] = False
    truths = [places * kinds if truth is None else truth[0] * kinds + truth[1] for _, truth in data]
    given, hidden, target = torch.from_numpy(inputs), torch.from_numpy(absent), torch.tensor(truths)
    weights = torch.zeros(count, kinds + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        scores = torch.einsum("npkf,fk->npk", given, weights[:, :1] + weights[:, 1:]).masked_fill(hidden, -1e9)
        scores = torch.cat([scores.flatten(1), torch.zeros(len(data), 1)], dim=1)
        value = torch.nn.functional.cross_entropy(scores, target) + penalty * (weights[1:] ** 2).sum()
        value.backward()
        return value

    optimizer.step(loss)
    found = (weights[:, :1] + weights[:, 1:]).detach().numpy().astype(np.float64) / spread[:, None]
    found[0] -= mean @ found
    return found


def _right(one: Example, fitted: dict[str, np.ndarray]) -> tuple[bool, bool, bool]:
    chances = np.exp((scores := one.rhythm @ fitted["rhythm"]) - scores.max())
    keys = np.einsum("tmf,fm->tm", one.keys, fitted["key"])
    tempo, metre = one.beat or (-1, -1)
    tonic = divmod(int(keys.argmax()), 2)
    return int(chances.sum(axis=1).argmax()) == tempo, int(chances.sum(axis=0).argmax()) == metre, tonic == one.key


def _rows(values: np.ndarray) -> str:
    return "[\n" + ",\n".join(json.dumps([float(f"{value:.5g}") for value in row]) for row in values) + "\n]"


if __name__ == "__main__":
    raise SystemExit(main())
