"""Cards and publishing plans: what they say, and what they never let through."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep.adapters import TriggerTag, save_adapter
from acestep.adapters.card import CardFacts, card_text, write_card
from acestep.adapters.exports.hub import TOKEN_VARIABLES, hub_token, plan_push
from acestep.core.errors import UserError
from acestep.settings import AdapterSettings

LORA = AdapterSettings(rank=4, alpha=8, dropout=0)
FACTS = CardFacts(
    title="My songs",
    variant="turbo",
    songs=12,
    audio_s=1800,
    step=40,
    why="lowest validation loss",
    settings={"rank": 4, "learning_rate": 0.0001},
    validations=[(step, 1.0 / (1 + step) if step < 40 else 0.02 + step / 1000) for step in range(0, 100, 2)],
)


@pytest.fixture
def folder(make_transformer, attach_random, tmp_path):
    return save_adapter(attach_random(make_transformer(), LORA), tmp_path / "adapter", TriggerTag("zörk", "append"))


def test_the_card_says_what_a_listener_needs(folder):
    path = write_card(folder, FACTS)
    text = path.read_text(encoding="utf-8")
    assert path.name == "README.md" and text == card_text(folder, FACTS)
    for part in ("My songs", "rank 4", "turbo", "`your caption, zörk`", "12 songs, 30 minutes", "step 40", "0.0001"):
        assert part in text
    for program in ("ACE-Step app", "ComfyUI", "diffusers"):
        assert f"- {program}: " in text
    assert text.startswith("---\n") and "base_model: ACE-Step/Ace-Step1.5\n" in text
    points = [int(step) for step in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)]
    assert points[0] == 0 and points[-1] == 98 and len(points) <= 11 and "(best)" in text


def test_numbers_and_lists_on_a_card_read_like_words(folder):
    facts = CardFacts(songs=1, audio_s=61, held_out=2, settings={"self_modules": ["q", "v"], "dora": False})
    text = card_text(folder, facts)
    assert "Trained on 1 song, 1 minute. 2 songs more were kept back to judge it." in text
    assert "| self_modules | q, v |" in text and "| dora | no |" in text
    ends = CardFacts(songs=3, audio_s=40, held_out=3, held_out_kind="windows")
    assert "3 songs, 40 seconds. The ends of 3 songs were kept back" in card_text(folder, ends)


def test_a_card_without_a_run_is_still_a_card(folder):
    text = card_text(folder, CardFacts())
    assert "## Training" not in text and "## Loading" in text and "zörk" in text


@given(word=st.text(min_size=1, max_size=30), title=st.text(max_size=30))
def test_no_text_of_users_breaks_a_card(word, title):
    from acestep.adapters.card import _header, _training, _trigger

    tag = TriggerTag(word)
    header = _header(CardFacts(title=title, variant=title), tag)
    assert all(line.startswith(("---", "tags:", "base_model:", "instance_prompt:")) for line in header.split("\n"))
    assert len(_trigger(tag).splitlines()) <= 1
    table = _training(CardFacts(settings={title: word})).split("\n")
    assert all(row.count("|") == 3 for row in table if row.startswith("|"))


@pytest.mark.parametrize(
    ("settings", "needs_model"),
    [
        (LORA, False),
        (LORA.changed(dora=True), True),
        (AdapterSettings(adapter="lokr", lokr_factor=4, lokr_dim=2), False),
        (AdapterSettings(adapter="oft", oft_block_size=8), True),
    ],
)
def test_the_exports_a_card_names_can_be_made(make_transformer, attach_random, settings, needs_model, tmp_path):
    text = card_text(save_adapter(attach_random(make_transformer(), settings), tmp_path / "adapter"), CardFacts())
    comfyui, diffusers = (
        next(line for line in text.splitlines() if line.startswith(f"- {program}")) for program in ("ComfyUI", "diffu")
    )
    assert ("--model MODEL" in comfyui) == needs_model
    assert ("--dora refit --model MODEL" in diffusers) == settings.dora
    assert ("acestep merge" in diffusers) == (settings.adapter == "oft")


def test_publishing_without_a_network_is_refused_with_a_sentence(folder):
    """The address is read when the library is imported, so this runs in a process of its own."""
    program = (
        "import sys; from pathlib import Path; from acestep.core.errors import UserError\n"
        "from acestep.adapters.exports.hub import plan_push, push\n"
        "try: push(plan_push(Path(sys.argv[1]), 'someone/zork'), 'hf_none')\n"
        "except UserError as error: print(error.message)"
    )
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.stdout == "The Hub did not take someone/zork.\n", done.stderr


def test_publishing_is_planned_without_the_hub(folder):
    write_card(folder)
    (folder / "notes.txt").write_text("private")
    (folder / ".secret.json").write_text("{}")
    plan = plan_push(folder, "someone/zork")
    assert plan.private and plan.files == ("README.md", "adapter_config.json", "adapter_model.safetensors")
    assert "private" in plan.summary and not plan_push(folder, "someone/zork", public=True).private


@pytest.mark.parametrize("name", ["zork", "a/b/c", "some one/zork", "", "-/-"])
def test_wrong_repository_names_are_refused(folder, name):
    with pytest.raises(UserError, match="user/name"):
        plan_push(folder, name)


def test_folders_without_weights_and_missing_tokens_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no weights"):
        plan_push(tmp_path, "someone/zork")
    for name in TOKEN_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="HF_TOKEN"):
        hub_token()
    monkeypatch.setenv("HF_TOKEN", "abc")
    assert hub_token() == "abc"
