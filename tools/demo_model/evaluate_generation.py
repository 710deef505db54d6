"""Does the model play what the prompt says? Unseen prompts, judged as music and by a simple classifier.

Every measure is taken of four things: what the model plays; the synthesiser's own rendering of the same pieces, which
is the most that can be measured; that rendering through the VAE; and what the model plays against the prompts of other
pieces, which is chance.

The classifiers learn from real pieces, and from real pieces through the VAE: one that never heard the VAE takes its
small changes of every sound for other instruments. What such a one answers is kept beside, as `STRANGE`.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from acestep.audio.analysis import analyze
from acestep.audio.synth import Piece, draw_piece, render_piece
from acestep.audio.synth.words import STYLE_WORDS, words_of
from acestep.audio.write import write_audio
from acestep.core.device import choose_device
from acestep.generate import Parts, generate, load_parts
from acestep.model.checkpoints import resolve_checkpoint
from acestep.model.vae import decode_latents, encode_audio
from acestep.settings import GenerateSettings
from demo_model.judging import (
    TEMPO_TOLERANCE,
    Listener,
    chance_agreement,
    features_of,
    key_score,
    share_of_way,
    tempo_is_octave,
    tempo_is_right,
)
from demo_model.reports import keep, number, table

FIRST_SEED, FIRST_LISTENED_SEED = 9_600_000, 9_700_000
DURATION_S = 10.0
LISTENED, CODED = 900, 300
"""Real pieces the classifiers are trained on, and how many of them they hear through the VAE as well."""

SOURCES = ("generated", "synthesiser", "through the VAE")
KEPT_SOUNDS = 6
TOLD_EVERY = 10


@dataclass(frozen=True)
class Sampling:
    """Sampler values; those left open are the variant's."""

    steps: int | None = None
    guidance: float | None = None
    shift: float | None = None


@dataclass(frozen=True)
class Found:
    """What was heard in one recording; `features` are the classifiers', `told` their answers by measure."""

    bpm: float | None
    keyscale: str | None
    timesignature: str | None
    features: np.ndarray
    told: Mapping[str, str] = field(default_factory=dict)


def lead_of(piece: Piece) -> str:
    return piece.lead_timbre or "none"


def names_style(piece: Piece) -> bool:
    """Whether the caption says the style; now and then one does not."""
    said = " ".join(words_of(piece.caption))
    return any(word in said for word in STYLE_WORDS[piece.style])


def style_of(piece: Piece) -> str:
    return piece.style


STRANGE = ", told by ears that never heard the VAE"
CLASSES: dict[str, Callable[[Piece], str]] = {"lead timbre": lead_of, "style": style_of}
"""What classifiers tell, and the truth of a piece."""

Measure = Callable[[Piece, Found], float]
OCTAVES = "  counted 2 or 3 times as fast or slow"
MEASURES: dict[str, Measure] = {
    f"tempo within {TEMPO_TOLERANCE:.0%}": lambda piece, found: tempo_is_right(piece.bpm, found.bpm),
    OCTAVES: lambda piece, found: tempo_is_octave(piece.bpm, found.bpm),
    "key exact": lambda piece, found: key_score(piece.keyscale, found.keyscale) == 1.0,
    "key, MIREX weights": lambda piece, found: key_score(piece.keyscale, found.keyscale),
    "metre": lambda piece, found: piece.timesignature == found.timesignature,
} | {
    name + ears: lambda piece, found, name=name, ears=ears: CLASSES[name](piece) == found.told[name + ears]
    for name in CLASSES
    for ears in ("", STRANGE)
}
"""Words, and how right a recording is for a piece, from 0 to 1."""


# One piece


_loaded: list[Parts] = []
"""The model of this process."""


def _prepare(checkpoint: Path) -> None:
    torch.set_num_threads(1)
    _loaded.append(load_parts(resolve_checkpoint(checkpoint), choose_device("cpu")))


def _hear_real(seed: int) -> np.ndarray:
    return features_of(render_piece(draw_piece(seed, duration_s=DURATION_S)))


def _hear_coded(seed: int) -> np.ndarray:
    return features_of(_coded(render_piece(draw_piece(seed, duration_s=DURATION_S))))


def _coded(samples: np.ndarray) -> np.ndarray:
    """Through the VAE and back.  (2, N)."""
    (parts,) = _loaded
    return decode_latents(parts.vae, encode_audio(parts.vae, samples, "mean", seed=0))


def _play(seed: int, sampling: Sampling, kept: Path | None) -> tuple[dict[str, Found], dict[str, float]]:
    """What is heard in all recordings of a piece, and the seconds that playing and coding took."""
    (parts,) = _loaded
    piece = draw_piece(seed, duration_s=DURATION_S)
    began = time.perf_counter()
    generated = generate(parts, request_for(piece, sampling)).samples
    played = time.perf_counter()
    original = render_piece(piece)
    coded_began = time.perf_counter()
    coded = _coded(original)
    seconds = {"generate": played - began, "encode and decode": time.perf_counter() - coded_began}
    recordings = dict(zip(SOURCES, (generated, original, coded), strict=True))
    if kept is not None:
        for source, samples in recordings.items():
            write_audio(kept / f"{seed} {source}.wav", samples)
    return {source: hear(samples) for source, samples in recordings.items()}, seconds


def request_for(piece: Piece, sampling: Sampling = Sampling()) -> GenerateSettings:
    """The prompt of a piece with everything that is known of it; its seed is also that of the noise."""
    return GenerateSettings(
        caption=piece.caption,
        lyrics=piece.lyrics,
        language=piece.language,
        bpm=piece.bpm,
        keyscale=piece.keyscale,
        timesignature=piece.timesignature,
        duration_s=piece.duration_s,
        seed=piece.seed,
        **asdict(sampling),
    )


def hear(samples: np.ndarray) -> Found:
    """Tempo, key and metre as `acestep analyze` finds them, and the classifier's features.  (2, N)."""
    with tempfile.TemporaryDirectory() as folder:
        found = analyze(write_audio(Path(folder) / "piece.wav", samples))
    values = found.bpm.value, found.keyscale.value, found.timesignature.value
    return Found(*values, features=features_of(samples))


# All pieces


def evaluate_generation(
    checkpoint: Path, count: int, out: Path, processes: int, sampling: Sampling, listened: int = LISTENED
) -> str:
    """Play and judge `count` pieces; writes generation.json and sounds into `out`, returns the table."""
    resolve_checkpoint(checkpoint)  # a wrong folder is told before processes start
    seeds = range(FIRST_SEED, FIRST_SEED + count)
    pieces = [draw_piece(seed, duration_s=DURATION_S) for seed in seeds]
    began = time.perf_counter()
    kept = [out / "sounds" if place < KEPT_SOUNDS else None for place in range(count)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_prepare, initargs=(checkpoint,)) as workers:
        played = []
        for one in workers.map(_play, seeds, [sampling] * count, kept):
            played.append(one)
            if len(played) % TOLD_EVERY == 0:
                print(f"{len(played)} of {count} pieces after {time.perf_counter() - began:.0f} s", flush=True)
        real_seeds = range(FIRST_LISTENED_SEED, FIRST_LISTENED_SEED + listened)
        real = np.stack(list(workers.map(_hear_real, real_seeds, chunksize=8)))
        coded = np.stack(list(workers.map(_hear_coded, real_seeds[:CODED], chunksize=8)))
    found = {source: [recordings[source] for recordings, _ in played] for source in SOURCES}
    found = told_by_classifiers(found, real, coded, [draw_piece(seed, duration_s=DURATION_S) for seed in real_seeds])
    rows = {words: judge(words, pieces, found) for words in MEASURES}
    seconds = {name: float(np.mean([times[name] for _, times in played])) for name in played[0][1]}
    heard = [
        {
            "seed": piece.seed,
            "caption": piece.caption,
            "wanted": [piece.bpm, piece.keyscale, piece.timesignature, *(truth(piece) for truth in CLASSES.values())],
            **{source: _values(found[source][place]) for source in SOURCES},
        }
        for place, piece in enumerate(pieces)
    ]
    facts = {"sampling": asdict(sampling), "seconds": seconds, "measures": rows, "pieces": heard}
    keep(out / "generation.json", facts)
    lines = [
        report(rows),
        f"{count} pieces of {DURATION_S:g} s; a piece took {seconds['generate']:.1f} s to play in one of {processes} "
        f"processes; everything took {time.perf_counter() - began:.0f} s",
    ]
    return "\n".join(lines)


def told_by_classifiers(
    found: dict[str, list[Found]], real: np.ndarray, coded: np.ndarray, real_pieces: Sequence[Piece]
) -> dict[str, list[Found]]:
    """The same with what classifiers tell that learned from real pieces.

    real: (pieces, F); coded: the first of these through the VAE, (fewer pieces, F).
    """
    listeners = {}
    for name, truth in CLASSES.items():
        truths = [truth(piece) for piece in real_pieces]
        listeners[name] = Listener.trained(np.concatenate([real, coded]), truths + truths[: len(coded)])
        listeners[name + STRANGE] = Listener.trained(real, truths)
    result = {}
    for source, recordings in found.items():
        features = np.stack([one.features for one in recordings])
        answers = {name: listener.tell(features) for name, listener in listeners.items()}
        result[source] = [
            replace(one, told={name: words[place] for name, words in answers.items()})
            for place, one in enumerate(recordings)
        ]
    return result


def judge(words: str, pieces: Sequence[Piece], found: dict[str, list[Found]]) -> dict[str, float]:
    """One measure of all sources, chance, and how far from chance to what is possible; shares from 0 to 1.

    Styles are judged where the caption names one. `way_error` is the standard error of the way over the pieces.
    """
    measure = MEASURES[words]
    places = [place for place, piece in enumerate(pieces) if not words.startswith("style") or names_style(piece)]
    chosen = [pieces[place] for place in places]
    scores = {
        source: np.array([measure(pieces[place], recordings[place]) for place in places], dtype=float)
        for source, recordings in found.items()
    }
    generated = [found["generated"][place] for place in places]
    table_of_all = np.array([[measure(piece, one) for piece in chosen] for one in generated], dtype=float)
    chance = chance_agreement(table_of_all)
    means = {source: float(values.mean()) for source, values in scores.items()}
    row = {**means, "shuffled prompts": chance, "pieces": float(len(places))}
    row["way"] = share_of_way(means["generated"], chance, means["synthesiser"])
    row["way_through_vae"] = share_of_way(means["generated"], chance, means["through the VAE"])
    row["way_error"] = way_error(scores["generated"], scores["synthesiser"], chance)
    return row


def way_error(generated: np.ndarray, ceiling: np.ndarray, chance: float, draws: int = 500) -> float:
    """Standard error of the share of the way, by drawing the pieces anew."""
    random = np.random.default_rng(0)
    chosen = random.integers(0, len(generated), (draws, len(generated)))
    ways = np.array([share_of_way(generated[one].mean(), chance, ceiling[one].mean()) for one in chosen])
    known = ways[np.isfinite(ways)]
    return float(known.std()) if len(known) else float("nan")


def report(rows: dict[str, dict[str, float]]) -> str:
    head = ["", *SOURCES, "shuffled prompts", "way from chance to synthesiser", "to the VAE's"]
    lines = []
    for words, row in rows.items():
        line = [words, *(number(100 * row[source]) for source in (*SOURCES, "shuffled prompts"))]
        if words == OCTAVES:
            lines.append([*line, "", ""])
            continue
        way = f"{number(100 * row['way'], '.0f')} ± {number(100 * row['way_error'], '.0f')}"
        lines.append([*line, way, number(100 * row["way_through_vae"], ".0f")])
    return table(head, lines) + "\nAll numbers in percent."


def _values(found: Found) -> list[Any]:
    return [found.bpm, found.keyscale, found.timesignature, *(found.told[name] for name in CLASSES)]
