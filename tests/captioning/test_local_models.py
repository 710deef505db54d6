"""What local models share: sizes, placement, quantized loading, windows and excerpts, and joined lyrics."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep.captioning.demo import build_omni
from acestep.captioning.local import (
    SAMPLE_RATE,
    ModelSize,
    Placement,
    excerpts,
    load_model,
    model_size,
    mono,
    plan_placement,
    windows,
)
from acestep.captioning.lyrics import join_lyrics
from acestep.core.device import DeviceChoice
from acestep.core.errors import UserError
from acestep.settings.caption import CaptionSettings

GIB = 2**30
OMNI = ModelSize(parameters=8_250_000_000, quantizable=6_500_000_000)
CARD = DeviceChoice("cuda", "bf16", "a card")
PROCESSOR = DeviceChoice("cpu", "fp32", "no card")


@pytest.mark.parametrize(
    ("wish", "free_gib", "quantize", "offload"),
    [
        ("auto", 24, "none", False),
        ("auto", 16, "int8", False),
        ("auto", 10, "nf4", False),
        ("auto", 6, "none", True),
        ("none", 12, "none", True),
        ("nf4", 80, "nf4", False),
        ("int8", 24, "int8", False),
    ],
)
def test_weights_take_the_most_exact_form_that_fits(wish: str, free_gib: int, quantize: str, offload: bool) -> None:
    placement = plan_placement(OMNI, CARD, CaptionSettings(quantize=wish), free_gib * GIB)
    assert (placement.quantize, placement.offload) == (quantize, offload)
    assert f"{free_gib}.0 GiB free" in str(placement)
    arguments = placement.load_arguments()
    assert ("quantization_config" in arguments) == (quantize != "none")
    assert (arguments["device_map"] == "auto") == offload
    if offload:
        assert arguments["max_memory"][0] == (free_gib - 2) * GIB, "room stays for the song"


@pytest.mark.parametrize("wish", ["int8", "nf4"])
def test_quantizing_needs_a_card(wish: str) -> None:
    with pytest.raises(UserError, match="NVIDIA cards only"):
        plan_placement(OMNI, PROCESSOR, CaptionSettings(quantize=wish), 64 * GIB)


def test_processors_take_half_precision_where_memory_asks_for_it() -> None:
    def precision(free_gib: int, **changes) -> str:
        return plan_placement(OMNI, PROCESSOR, CaptionSettings(**changes), free_gib * GIB).choice.precision

    assert precision(64) == "fp32"
    assert precision(24) == "bf16"
    assert precision(24, precision="fp32") == "fp32"


def test_the_size_is_that_of_the_parts_that_are_loaded(tmp_path: Path) -> None:
    from transformers import Qwen2_5OmniThinkerForConditionalGeneration

    folder = build_omni(tmp_path)
    placement = Placement(PROCESSOR, "none", False, "")
    model = load_model(Qwen2_5OmniThinkerForConditionalGeneration, folder, placement)
    model.model.visual = None
    size = model_size(folder, ("talker.", "thinker.visual."))
    assert size.parameters == sum(weights.numel() for weights in model.parameters())


@pytest.mark.parametrize("quantize", ["int8", "nf4"])
def test_quantized_models_keep_their_ears_exact(tmp_path: Path, quantize: str) -> None:
    """bitsandbytes also works on processors, too slowly for real models, but by the same code."""
    import bitsandbytes
    from transformers import Qwen2_5OmniThinkerForConditionalGeneration

    folder = build_omni(tmp_path)
    placement = Placement(PROCESSOR, quantize, False, "")
    model = load_model(Qwen2_5OmniThinkerForConditionalGeneration, folder, placement)
    kind = bitsandbytes.nn.Linear8bitLt if quantize == "int8" else bitsandbytes.nn.Linear4bit
    small = [name for name, module in model.named_modules() if isinstance(module, kind)]
    assert small
    assert all(name.startswith("model.language_model.layers.") for name in small)
    quantizable = sum(
        module.in_features * module.out_features for module in model.modules() if isinstance(module, kind)
    )
    assert quantizable == model_size(folder, ("talker.", "thinker.visual.")).quantizable


seconds = st.floats(0.01, 120)


@settings(deadline=None)
@given(seconds, st.floats(10, 90))
def test_windows_cover_everything_in_even_parts(duration_s: float, window_s: float) -> None:
    signal = np.arange(int(duration_s * SAMPLE_RATE))
    parts = windows(signal, window_s)
    assert (parts[0][0], parts[-1][-1]) == (0, signal[-1])
    assert all(len(part) <= window_s * SAMPLE_RATE for part in parts)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    for before, after in pairwise(parts):
        assert before[-1] - after[0] + 1 == 2 * SAMPLE_RATE, "neighbours share two seconds"


@settings(deadline=None)
@given(seconds, st.floats(4, 90), st.floats(10, 90))
def test_excerpts_fit_and_reach_from_start_to_end(duration_s: float, longest_s: float, window_s: float) -> None:
    signal = np.arange(int(duration_s * SAMPLE_RATE))
    parts = excerpts(signal, longest_s, window_s)
    assert sum(map(len, parts)) <= longest_s * SAMPLE_RATE
    if len(signal) <= int(longest_s * SAMPLE_RATE):
        assert [len(part) for part in parts] == [len(signal)]
    else:
        assert len(parts) >= 3
        assert (parts[0][0], parts[-1][-1]) == (0, signal[-1])
        assert all(before[-1] < after[0] for before, after in pairwise(parts))


def test_short_songs_are_padded_and_stereo_is_mixed() -> None:
    assert mono(np.ones((1, 5), np.float32)).tolist()[:6] == [1, 1, 1, 1, 1, 0]
    stereo = np.stack([np.ones(SAMPLE_RATE), np.zeros(SAMPLE_RATE)]).astype(np.float32)
    assert mono(stereo).dtype == np.float32
    assert set(mono(stereo).tolist()) == {0.5}


def test_lines_at_a_seam_stand_once() -> None:
    before = "[Verse]\nOne line\nAnother line, sung"
    assert join_lyrics([before, "[Verse]\nanother line sung\nA third"]) == f"{before}\nA third"
    assert join_lyrics([before, "[Chorus]\nHey"]) == f"{before}\n\n[Chorus]\nHey"
    assert join_lyrics([before, "[Verse]\nline sung\nA third"]) == f"{before}\nA third"
    assert join_lyrics([before, "[Verse]\nAnother line sung by all\nA third"]) == (
        "[Verse]\nOne line\nAnother line sung by all\nA third"
    )


def test_silence_adds_nothing_where_others_sing() -> None:
    verse = "[Verse]\nHallo"
    assert join_lyrics(["[Instrumental]", verse, "[Instrumental]"]) == verse
    assert join_lyrics(["[Instrumental]"] * 3) == "[Instrumental]"
    assert join_lyrics(["[Instrumental]", ""]) == "", "a part that nothing is known about may hold a voice"
    assert join_lyrics([]) == ""


@given(st.lists(st.text(alphabet="ab \n[]Ä", max_size=30), max_size=4))
def test_joining_never_fails_and_never_invents(parts: list[str]) -> None:
    joined = join_lyrics(parts)
    said = {line.strip() for part in parts for line in part.split("\n")}
    assert all(line in said for line in joined.split("\n") if line)
