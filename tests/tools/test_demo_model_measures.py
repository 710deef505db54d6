"""How generated pieces are scored against their prompts and against chance; distances between styles."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from demo_model import adaptation_bench, evaluate_generation
from demo_model.evaluate_generation import (
    CLASSES,
    MEASURES,
    OCTAVES,
    SOURCES,
    STRANGE,
    Found,
    judge,
    lead_of,
    names_style,
    told_by_classifiers,
)

from acestep.audio.synth import Piece, draw_piece

PIECES = [draw_piece(evaluate_generation.FIRST_SEED + place, duration_s=10.0) for place in range(40)]
NOTHING = np.zeros(1)


def perfect(piece: Piece) -> Found:
    told = {name + ears: truth(piece) for name, truth in CLASSES.items() for ears in ("", STRANGE)}
    return Found(piece.bpm, piece.keyscale, piece.timesignature, NOTHING, told)


def recordings(generated: list[Found]) -> dict[str, list[Found]]:
    right = [perfect(piece) for piece in PIECES]
    return dict(zip(SOURCES, (generated, right, right), strict=True))


@pytest.mark.parametrize("words", [words for words in MEASURES if words != OCTAVES])
def test_a_perfect_model_goes_all_the_way(words: str) -> None:
    row = judge(words, PIECES, recordings([perfect(piece) for piece in PIECES]))
    assert row["generated"] == row["synthesiser"] == row["way"] == 1
    assert 0 < row["shuffled prompts"] < 0.6


def test_a_model_that_plays_other_prompts_goes_nowhere() -> None:
    others = [perfect(piece) for piece in [*PIECES[7:], *PIECES[:7]]]
    assert judge("lead timbre", PIECES, recordings(others))["way"] == pytest.approx(0, abs=0.15)


def test_a_model_that_plays_half_of_the_tempi_twice_as_fast() -> None:
    found = [Found(piece.bpm * (1 + place % 2), None, None, NOTHING) for place, piece in enumerate(PIECES)]
    assert (
        judge(f"tempo within {evaluate_generation.TEMPO_TOLERANCE:.0%}", PIECES, recordings(found))["generated"] == 0.5
    )
    assert judge(OCTAVES, PIECES, recordings(found))["generated"] == 0.5
    assert judge("key exact", PIECES, recordings(found))["generated"] == 0


def test_styles_are_judged_where_the_caption_names_them() -> None:
    named = [draw_piece(seed) for seed in range(300)]
    assert 0.9 < np.mean([names_style(piece) for piece in named]) < 1


def test_what_the_vae_does_to_all_sounds_is_not_taken_for_another_instrument() -> None:
    """Leads lie apart in one feature; the VAE shifts it by half of the distance, and tells itself by another."""
    random = np.random.default_rng(0)
    pieces = [draw_piece(seed) for seed in range(400)]
    pieces = [piece for piece in pieces if lead_of(piece) in ("flute", "organ")]
    half = len(pieces) // 2
    lead = np.array([lead_of(piece) == "organ" for piece in pieces], float)

    def features(coded: bool) -> np.ndarray:
        fingerprint = np.full(len(pieces), float(coded))
        values = np.stack([lead - 0.6 * coded, fingerprint], axis=1)
        return values + 0.05 * random.standard_normal(values.shape)

    found = {"generated": [Found(None, None, None, values) for values in features(coded=True)[half:]]}
    told = told_by_classifiers(found, features(coded=False)[:half], features(coded=True)[:half], pieces[:half])
    truths = [lead_of(piece) for piece in pieces[half:]]

    def right(measure: str) -> float:
        answers = [one.told[measure] for one in told["generated"]]
        return np.mean([answer == truth for answer, truth in zip(answers, truths, strict=True)])

    assert right("lead timbre") == 1
    assert right("lead timbre" + STRANGE) < 0.7


def test_requests_hold_every_label() -> None:
    piece = PIECES[0]
    request = evaluate_generation.request_for(piece)
    assert (request.bpm, request.keyscale, request.timesignature) == (piece.bpm, piece.keyscale, piece.timesignature)
    assert (request.caption, request.lyrics, request.steps) == (piece.caption, piece.lyrics, None)


# Adaptation


def test_the_way_to_a_style_counts_only_steps_in_its_direction() -> None:
    before, target = np.zeros((3, 2, 4)), np.ones((3, 2, 4))
    sideways = np.zeros_like(before)
    sideways[0], sideways[1] = 1, -1
    assert adaptation_bench.way_along(before, 0.5 * target, target) == 0.5
    assert adaptation_bench.way_along(before, sideways, target) == 0
    assert adaptation_bench.distance_db(before, target) == 1


def test_songs_are_written_as_people_keep_them(tmp_path: Path) -> None:
    from acestep.dataset.scan import scan_folder

    pieces = adaptation_bench.style_pieces("toybox", 1, 2, duration_s=2.0)
    dataset = scan_folder(adaptation_bench.write_songs(tmp_path / "songs", pieces))
    assert not dataset.problems
    for piece, song in zip(pieces, sorted(dataset.songs, key=lambda song: song.relative), strict=True):
        labels = song.labels(song.words("caption"), song.duration_s)
        assert labels == adaptation_bench.labels_of(piece)


def test_prompts_with_and_without_trigger_word() -> None:
    said = [make("Toy tune") for make in adaptation_bench.CAPTIONS.values()]
    assert said == ["demostyle, Toy tune", "Toy tune", "demostyle, Music", "Music"]
