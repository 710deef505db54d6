"""The tables in TRAINING_GUIDE.md are those of the declarations."""

from __future__ import annotations

from pathlib import Path

import pytest

from acestep.core.errors import UserError
from acestep.settings import GenerateSettings, TrainSettings, fields_of, guide


def test_the_guide_is_up_to_date() -> None:
    text = guide.GUIDE.read_text(encoding="utf-8")
    assert guide.with_tables(text) == text, "run python -m acestep.settings.guide"
    tables = ["DatasetSettings", "CaptionSettings", "PreprocessSettings", "TrainSettings", "GenerateSettings"]
    assert guide.tables_in(text) == tables


def test_a_table_has_a_row_for_every_setting_with_default_and_values() -> None:
    rows = guide.settings_table(TrainSettings).splitlines()
    for field in fields_of(TrainSettings):
        row = next(row for row in rows if row.startswith(f"| `{field.name}` |"))
        assert field.bounds in row
        assert row.count("|") == 5
    assert "| `adapter` | `lora` | `lora`, `lokr`, `loha`, `oft` | Adapter family. |" in rows
    assert any(row.startswith("| `self_modules` | `q`, `k`, `v`, `o` | any of `q`, `k`, `v`, `o` |") for row in rows)
    assert any(row.startswith("| `rank_pattern` | empty | whole number by name |") for row in rows)
    assert any(row.startswith("| `rslora` | off | on or off |") for row in rows)
    rows = guide.settings_table(GenerateSettings).splitlines()
    assert any(row.startswith("| `bpm` | unset | whole number 30 to 300, or unset |") for row in rows)


def test_tables_are_rewritten_and_text_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "GUIDE.md"
    path.write_text("before\n<!-- settings: DatasetSettings -->\nold\n<!-- end of settings -->\nafter\n")
    monkeypatch.setattr(guide, "GUIDE", path)
    assert guide.main(["--check"]) == 1
    assert "old" in path.read_text()
    assert guide.main([]) == 0
    text = path.read_text()
    assert text.startswith("before\n<!-- settings: DatasetSettings -->\n| setting |")
    assert text.endswith("<!-- end of settings -->\nafter\n")
    assert "old" not in text
    assert guide.main(["--check"]) == 0


def test_a_table_of_nothing_is_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "<!-- settings: NoSuchSettings -->\n<!-- end of settings -->\n"
    with pytest.raises(UserError, match="NoSuchSettings"):
        guide.with_tables(text)
    monkeypatch.setattr(guide, "GUIDE", tmp_path / "missing.md")
    assert guide.main([]) == 1
