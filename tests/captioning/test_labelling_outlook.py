"""What is told before labelling begins: who gets the songs, what it costs, what is fetched, which key is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from acestep.captioning.outlook import StepOutlook, look_ahead
from acestep.captioning.plan import check_keys, plan_steps
from acestep.core.errors import UserError
from acestep.dataset.song import Song
from acestep.settings.caption import CaptionSettings

SONGS = [Song(str(number), Path(f"{number}.wav"), f"{number}.wav", duration_s=300.0) for number in range(4)]


def outlook(**values: Any) -> list[StepOutlook]:
    settings = CaptionSettings(**{"caption_by": "", "lyrics_by": "", "metadata_by": "", **values})
    return look_ahead(plan_steps(SONGS, settings), settings)


def test_a_service_is_named_with_its_price() -> None:
    (step,) = outlook(lyrics_by="openai-whisper")
    assert (step.sent_to, step.songs, step.minutes, step.needs_consent) == ("OpenAI Whisper", 4, 20.0, True)
    assert step.usd == pytest.approx(20 * 0.006)
    assert "0.12 US dollars" in " ".join(step.sentences())
    (other,) = outlook(lyrics_by="openai-whisper", lyrics_model="another")
    assert other.usd is None and "not known" in " ".join(other.sentences())


@pytest.mark.parametrize(
    ("address", "sent_to"),
    [("http://127.0.0.1:8000/v1", ""), ("http://localhost:8000/v1", ""), ("https://lab.example/v1", "lab.example")],
)
def test_songs_for_a_server_on_this_computer_stay_here(address: str, sent_to: str) -> None:
    (step,) = outlook(caption_by="openai-compatible", base_url=address)
    assert (step.sent_to, step.needs_consent, step.usd) == (sent_to, bool(sent_to), None)


def test_what_is_measured_needs_nobodys_consent() -> None:
    (step,) = outlook(metadata_by="analysis")
    assert not step.needs_consent and step.sentences() == [
        f"{step.title}: key, metre, tempo of 4 songs, 20.0 min of sound."
    ]


def test_a_model_that_is_here_is_not_fetched(tmp_path: Path) -> None:
    (here,) = outlook(caption_by="ace-captioner", caption_model=str(tmp_path))
    assert here.download is None and not here.needs_consent
    (away,) = outlook(caption_by="ace-captioner", caption_model="nobody/has-this-model")
    assert away.download is not None and away.download.size_bytes is None and away.needs_consent
    assert "size is not known" in " ".join(away.sentences())
    with pytest.raises(UserError, match="no model folder"):
        outlook(caption_by="ace-captioner", caption_model="/no such folder")


def test_a_missing_key_is_said_before_the_first_song(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = CaptionSettings(caption_by="gemini", lyrics_by="", metadata_by="analysis")
    steps = plan_steps(SONGS, settings)
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    with pytest.raises(UserError, match="Google Gemini needs a key"):
        check_keys(steps, {})
    check_keys(steps, {"GEMINI_API_KEY": "typed"})
    monkeypatch.setenv("GEMINI_API_KEY", "of the environment")
    check_keys(steps, {})
    check_keys(plan_steps(SONGS, settings.changed(caption_by="openai-compatible")), {})
