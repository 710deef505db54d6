"""Nothing outside the allowed folders can be opened, however its path is written."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acestep.core.errors import UserError
from acestep.ui.roots import Roots


@pytest.fixture
def music(tmp_path: Path) -> Path:
    folder = tmp_path / "music"
    (folder / "rock").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    (tmp_path / "secret").mkdir()
    return folder


def test_folders_below_a_root_are_allowed(music: Path) -> None:
    roots = Roots([music])
    assert roots.resolve(f' "{music}/rock/../rock" ', "Songs") == music / "rock"
    assert roots.resolve(music / "not-yet" / "there", "Songs") == music / "not-yet" / "there"
    assert roots.subfolders(music) == [music / "rock"]
    assert roots.parent(music / "rock") == music and roots.parent(music) is None


@pytest.mark.parametrize("typed", ["", "   ", "/etc/passwd", "../secret", "\0", "~nobody-of-that-name/x"])
def test_anything_else_is_refused_with_the_name_of_the_field(
    music: Path, typed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(music)
    with pytest.raises(UserError, match="Songs"):
        Roots([music]).resolve(typed, "Songs")


def test_a_link_that_leads_outside_is_refused(music: Path) -> None:
    (music / "link").symlink_to(music.parent / "secret")
    roots = Roots([music])
    with pytest.raises(UserError, match="outside"):
        roots.resolve(music / "link", "Songs")
    assert music / "link" not in roots.subfolders(music)


@given(st.lists(st.sampled_from(["..", ".", "rock", "a", "//", "music", "secret"]), max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_path_leads_outside(music: Path, parts: list[str]) -> None:
    roots = Roots([music])
    try:
        found = roots.resolve("/".join([str(music), *parts]), "Songs")
    except UserError:
        return
    assert found == music or music in found.parents


def test_a_folder_that_cannot_be_read_says_so(music: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        Roots([music]).subfolders(music / "gone")
