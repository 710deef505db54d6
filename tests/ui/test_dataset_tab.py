"""The Dataset tab: songs in, every edit kept at once and taken back, many songs changed, long ones split."""

from __future__ import annotations

import json
import shutil
import threading
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect
from playwright.sync_api import Page as BrowserPage

from acestep.captioning import registry
from acestep.captioning.contract import BackendFacts
from acestep.core.errors import UserError
from acestep.dataset import store
from acestep.dataset.dataset import Dataset
from acestep.dataset.song import NOT_SAID
from acestep.settings import CaptionSettings, DatasetSettings
from acestep.settings.base import SettingsError
from acestep.ui import dataset_labelling
from acestep.ui.app import App
from acestep.ui.controls import Controls
from acestep.ui.page import Page
from lora_training_ui import build

PATIENCE_S = 60.0
VIEW: dict[str, Any] = {"search": "", "show": "all", "order": ["file", False]}
SONG = "Night Train.mp3"


@pytest.fixture
def songs(app: App, demo_songs: Path) -> Path:
    """The demo's songs, copied to where they may be edited."""
    return shutil.copytree(demo_songs, app.project / "my songs")


@pytest.fixture
def page(app: App) -> Page:
    return build(app)[1]


@pytest.fixture
def opened(page: Page, songs: Path) -> Page:
    """The page with the songs open."""
    page.handler("dataset.open")(songs=str(songs))
    finish(page.app)
    return page


def finish(app: App) -> Any:
    """Wait for the work under way, which must not fail."""
    assert app.background.wait(PATIENCE_S)
    work = app.background.current
    assert work is not None and work.state == "finished", work
    return work.result


def failure(app: App) -> str:
    assert app.background.wait(PATIENCE_S)
    work = app.background.current
    assert work is not None and work.state == "failed" and not work.trace, work
    return work.problem


def pick(page: Page, name: str = SONG) -> dict[str, Any]:
    """The form of a song, as a click in the table gives it."""
    assert page.app.dataset
    song = next(song for song in page.app.dataset.songs if song.relative == name)
    return dict(page.handler("dataset.pick")(picked={"song": song.id, "sort": ""}, **VIEW) or {})


def edit(page: Page, form: Mapping[str, Any], name: str, value: Any, who: str = "me", typing: bool = False) -> Any:
    handler = page.handler(f"dataset.{'type' if typing else 'edit'}_{name}")
    return handler(song=form["song"], page=who, **{f"label_{name}": value})


def on_disk(songs: Path, name: str = SONG) -> dict[str, Any]:
    return json.loads((songs / name).with_suffix(".json").read_text(encoding="utf-8"))


def untouched(songs: Path, demo_songs: Path) -> bool:
    return all(
        path.read_bytes() == (demo_songs / path.relative_to(songs)).read_bytes() for path in songs.rglob("*.json")
    )


def bulk(**shown: Any) -> dict[str, Any]:
    """What the section for many songs holds, with some of it changed."""
    empty = {"bulk_songs": "all", "bulk_kind": "set", "bulk_field": "genre", "bulk_value": "", "bulk_find": ""}
    empty |= {"bulk_text_field": "caption", "bulk_replacement": "", "bulk_pattern": False, "bulk_match_case": True}
    return {**empty, "bulk_added": "", "bulk_where": "before", "bulk_language": "de", "song": "", **VIEW, **shown}


def test_without_songs_the_tab_says_what_to_do(page: Page) -> None:
    assert "No songs are open yet" in page.handler("dataset.facts")()["facts"]
    assert page.handler("dataset.desk")()["desk"]["visible"] is False
    assert page.handler("dataset.form")(song="", page="me")["song"] == ""
    with pytest.raises(UserError, match="No songs are open"):
        page.handler("dataset.bulk_preview")(**bulk())


def test_a_folder_is_opened_shown_and_remembered(opened: Page, songs: Path) -> None:
    assert "8 songs" in opened.handler("dataset.facts")()["facts"]
    table = opened.handler("dataset.filter")(**VIEW)["table"]
    assert table.count("data-song=") == 8 and SONG in table
    assert App(opened.app.project).workspace.songs == str(songs)


@pytest.mark.parametrize(("typed", "why"), [("", "empty"), ("/etc", "outside"), ("nowhere", "does not exist")])
def test_a_wrong_folder_is_said(page: Page, typed: str, why: str) -> None:
    place = str(page.app.project / typed) if typed == "nowhere" else typed
    with pytest.raises(UserError, match=why):
        page.handler("dataset.open")(songs=place)


def test_a_folder_without_songs_is_said(page: Page) -> None:
    (page.app.project / "empty").mkdir()
    page.handler("dataset.open")(songs=str(page.app.project / "empty"))
    assert "No audio found" in failure(page.app)
    assert page.app.dataset is None


def test_the_table_is_filtered_and_sorted(opened: Page) -> None:
    table = opened.handler("dataset.filter")(**{**VIEW, "search": "night train"})["table"]
    assert table.count("data-song=") == 1
    assert "No song fits" in opened.handler("dataset.filter")(**{**VIEW, "show": "unlabelled"})["table"]
    up = opened.handler("dataset.pick")(picked={"song": "", "sort": "bpm"}, **VIEW)
    down = opened.handler("dataset.pick")(picked={"song": "", "sort": "bpm"}, **{**VIEW, "order": up["order"]})
    assert (up["order"], down["order"]) == (["bpm", False], ["bpm", True])
    assert up["table"].index("Lantern") < up["table"].index("Glass City")
    assert down["table"].index("Lantern") > down["table"].index("Glass City")


def test_an_edit_is_on_disk_at_once_and_undo_takes_it_back(opened: Page, songs: Path, demo_songs: Path) -> None:
    form = pick(opened)
    shown = edit(opened, form, "caption", "  A slow\ntrain ")
    assert shown["label_caption"]["value"] == "A slow train" and "Saved" in shown["saved"]
    assert "# Caption\nA slow train\n" in shown["prompt"]
    assert on_disk(songs)["caption"] == "A slow train" and on_disk(songs)["sources"]["caption"] == "edited"
    back = opened.handler("dataset.undo")(song=form["song"])
    assert back["label_caption"]["value"].startswith("Driving") and "Taken back" in back["saved"]
    assert untouched(songs, demo_songs)
    late = opened.handler("dataset.form")(song=form["song"], page="me")
    assert "Taken back" in late["saved"], "a look that was under way says it, too"
    assert opened.handler("dataset.redo")(song=form["song"])["label_caption"]["value"] == "A slow train"
    with pytest.raises(UserError, match="No song is chosen"):
        opened.handler("dataset.undo")(song="")
    assert on_disk(songs)["caption"] == "A slow train", "what is refused is not done"


def test_leaving_a_field_as_it_was_changes_nothing(opened: Page, songs: Path, demo_songs: Path) -> None:
    form = pick(opened)
    for name in NOT_SAID:
        edit(opened, form, name, form[f"label_{name}"]["value"])
    assert untouched(songs, demo_songs)
    with pytest.raises(UserError, match="nothing to undo"):
        opened.handler("dataset.undo")(song=form["song"])


def test_every_label_reaches_its_file(opened: Page, songs: Path) -> None:
    values = {"genre": "ska", "bpm": 90, "keyscale": "8A", "timesignature": "3", "language": "de", "custom_tag": "zug"}
    values |= {
        "prompt_override": "genre",
        "repeat": 3,
        "regularization": True,
        "lyrics": "[Verse]\nNur ein Zug",
        "caption": "Slow",
    }
    assert values.keys() | {"is_instrumental"} == NOT_SAID.keys()
    form = pick(opened)
    for name, value in values.items():
        edit(opened, form, name, value)
    kept = on_disk(songs)
    assert {name: kept[name] for name in values} == {**values, "keyscale": "A minor"}
    edit(opened, form, "is_instrumental", True)
    assert on_disk(songs)["lyrics"] == "[Instrumental]"


def test_typing_is_kept_as_it_goes_and_undone_in_one_step(opened: Page, songs: Path, demo_songs: Path) -> None:
    form = pick(opened)
    for text in ("A", "A tr", "A train "):
        shown = edit(opened, form, "caption", text, typing=True)
        assert "value" not in shown["label_caption"], "the text being typed must not be replaced"
    assert on_disk(songs)["caption"] == "A train"
    edit(opened, form, "caption", "A train ")
    edit(opened, form, "caption", "Another edit", typing=True)
    opened.handler("dataset.undo")(song=form["song"])
    assert on_disk(songs)["caption"] == "A train"
    opened.handler("dataset.undo")(song=form["song"])
    assert untouched(songs, demo_songs)


def test_a_value_that_cannot_be_read_is_said_at_its_field(opened: Page, songs: Path, demo_songs: Path) -> None:
    shown = edit(opened, pick(opened), "keyscale", "H sharp")
    assert "H sharp" in shown["label_keyscale"]["info"] and "wrong" in shown["label_keyscale"]["elem_classes"]
    assert untouched(songs, demo_songs)


def test_a_late_edit_reaches_the_song_it_was_typed_for(opened: Page, songs: Path) -> None:
    first = pick(opened)
    second = opened.handler("dataset.next")(song=first["song"], **VIEW)
    assert "Paper Planes" in second["heading"]
    edit(opened, first, "caption", "For the train")
    assert on_disk(songs)["caption"] == "For the train"
    back = opened.handler("dataset.previous")(song=second["song"], **VIEW)
    assert back["label_caption"]["value"] == "For the train"


def test_a_late_answer_is_not_drawn_into_the_fields_of_the_next_song(opened: Page, songs: Path) -> None:
    first = pick(opened)
    opened.handler("dataset.next")(song=first["song"], page="me", **VIEW)
    assert edit(opened, first, "caption", "For the train") == {} and on_disk(songs)["caption"] == "For the train"
    assert edit(opened, first, "caption", "For the train") == {}
    with pytest.raises(UserError, match="H sharp"):
        edit(opened, first, "keyscale", "H sharp")
    edit(opened, first, "genre", "theirs", who="you")
    assert opened.handler("dataset.form")(song=first["song"], page="me") == {}
    back = opened.handler("dataset.pick")(picked={"song": first["song"].split(".", 2)[2]}, page="me", **VIEW)
    assert edit(opened, back, "caption", "Again")["label_caption"]["value"] == "Again"


def test_two_pages_see_each_others_edits_but_not_their_own(opened: Page) -> None:
    mine, theirs = pick(opened), pick(opened)
    look = opened.handler("dataset.form")
    edit(opened, mine, "caption", "Mine")
    edit(opened, theirs, "genre", "theirs", who="you")
    assert look(song=theirs["song"], page="you")["label_caption"]["value"] == "Mine"
    here = look(song=mine["song"], page="me")
    assert here["label_genre"]["value"] == "theirs" and "label_caption" not in here


@pytest.mark.parametrize("way", ["open", "read_again"])
@pytest.mark.parametrize("in_file", [False, True])
def test_what_is_typed_while_the_songs_are_read_stays(
    opened: Page, songs: Path, way: str, in_file: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if in_file:
        opened.handler("dataset.save")(file=str(songs / "mine.json"))
    place, form, load = opened.app.workspace.songs, pick(opened), store.load_dataset

    def type_at_the_end(*args: Any, **options: Any) -> Dataset:
        found = load(*args, **options)
        edit(opened, form, "lyrics", "[00:01.00] typed meanwhile")
        return found

    monkeypatch.setattr(store, "load_dataset", type_at_the_end)
    opened.handler(f"dataset.{way}")(**({"songs": place} if way == "open" else {}))
    finish(opened.app)
    monkeypatch.undo()
    for _ in range(2):  # as it stands on the page, and as it is read after a restart
        form = pick(opened)
        assert form["label_lyrics"]["value"] == "[00:01.00] typed meanwhile"
        assert form["label_is_instrumental"]["value"] is False
        opened.handler("dataset.open")(songs=place)
        finish(opened.app)


def test_a_table_is_not_copied_while_it_cannot_be_read(opened: Page, songs: Path, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("file,caption\nNight Train.mp3,From a table\n")
    stop = threading.Event()
    opened.app.background.start("demo", "Making tea", lambda job: stop.wait(PATIENCE_S))
    with pytest.raises(UserError, match="Making tea"):
        opened.handler("dataset.import")(imported=str(tmp_path / "new.csv"))
    stop.set()
    assert not (songs / "new.csv").exists()


def test_a_vanished_song_is_said_and_the_rest_goes_on(opened: Page, songs: Path) -> None:
    (songs / SONG).unlink()
    form = pick(opened)
    assert form["player"] is None and "is not there any more" in form["notes"]
    opened.handler("dataset.read_again")()
    finish(opened.app)
    with pytest.raises(UserError, match="no longer among the songs"):
        edit(opened, form, "caption", "x")
    assert "7 songs" in opened.handler("dataset.facts")()["facts"]
    assert opened.handler("dataset.form")(song=form["song"], page="me")["heading"]


def test_many_songs_are_changed_after_a_look_and_back_again(opened: Page, songs: Path) -> None:
    before = {path.name: path.read_bytes() for path in songs.rglob("*.json")}
    shown = bulk(bulk_kind="replace", bulk_find=r"electronic (\w+)", bulk_replacement=r"acoustic \1", bulk_pattern=True)
    preview = opened.handler("dataset.bulk_preview")(**shown)["bulk_preview"]
    assert "nothing is changed yet" in preview and "acoustic pop" in preview
    assert {path.name: path.read_bytes() for path in songs.rglob("*.json")} == before
    assert "changed and saved" in opened.handler("dataset.bulk_apply")(**shown)["bulk_preview"]
    assert "acoustic pop" in on_disk(songs)["caption"]
    opened.handler("dataset.bulk_undo")()
    assert {path.name: path.read_bytes() for path in songs.rglob("*.json")} == before


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ({"bulk_field": "bpm", "bulk_value": "91 BPM"}, {"bpm": 91}),
        ({"bulk_kind": "add", "bulk_text_field": "genre", "bulk_added": "live"}, {"genre": "live, synthwave"}),
        ({"bulk_kind": "language", "bulk_language": "fr"}, {"language": "fr"}),
        ({"bulk_songs": "shown", "search": "train", "bulk_field": "repeat", "bulk_value": "4"}, {"repeat": 4}),
    ],
)
def test_each_kind_of_change_reaches_the_songs(
    opened: Page, songs: Path, shown: dict[str, Any], expected: dict[str, Any]
) -> None:
    opened.handler("dataset.bulk_apply")(**bulk(**shown))
    kept = on_disk(songs)
    assert {name: kept[name] for name in expected} == expected
    if shown.get("bulk_songs") == "shown":
        assert opened.app.dataset and [song.repeat for song in opened.app.dataset.songs].count(4) == 1


def test_wrong_changes_are_refused(opened: Page) -> None:
    with pytest.raises(UserError, match="no regular expression"):
        opened.handler("dataset.bulk_preview")(**bulk(bulk_kind="replace", bulk_find="(", bulk_pattern=True))
    with pytest.raises(UserError, match="There are none"):
        opened.handler("dataset.bulk_preview")(**bulk(bulk_songs="unlabelled"))
    with pytest.raises(UserError, match="No song is chosen"):
        opened.handler("dataset.bulk_preview")(**bulk(bulk_songs="one"))


def test_settings_of_the_dataset_are_kept_in_its_file_with_all_edits(opened: Page, songs: Path) -> None:
    values = DatasetSettings(name="trains", trigger_word="zug", tag_position="append", genre_ratio=20).model_dump()
    form = pick(opened)
    opened.handler("dataset.settings")(**values)
    edit(opened, form, "caption", "Kept in the file")
    saved = json.loads((songs / "dataset.json").read_text(encoding="utf-8"))
    assert saved["metadata"]["custom_tag"] == "zug" and saved["metadata"]["genre_ratio"] == 20
    assert "Kept" not in on_disk(songs)["caption"]
    again = build(App(opened.app.project))[1]
    again.handler("dataset.open")(songs=again.app.workspace.songs)
    finish(again.app)
    assert again.app.dataset and again.app.dataset.settings.model_dump() == values
    assert pick(again)["label_caption"]["value"] == "Kept in the file"
    with pytest.raises(SettingsError):
        opened.handler("dataset.settings")(**{**values, "genre_ratio": 101})


def test_two_apps_keep_what_either_changed_in_a_dataset_file(opened: Page, songs: Path) -> None:
    """Neither had a dataset file when it read the songs; both come to keep their edits in the same."""
    other = build(App(opened.app.project))[1]
    other.handler("dataset.open")(songs=str(songs))
    finish(other.app)
    defaults = DatasetSettings(name=songs.name).model_dump()
    opened.handler("dataset.settings")(**defaults | {"trigger_word": "zug"})
    edit(opened, pick(opened), "caption", "Typed here")
    other.handler("dataset.settings")(**defaults | {"genre_ratio": 20})
    edit(other, pick(other), "genre", "typed there")
    other.handler("dataset.read_again")()
    finish(other.app)
    assert other.app.dataset
    assert (other.app.dataset.settings.trigger_word, other.app.dataset.settings.genre_ratio) == ("zug", 20)
    form = pick(other)
    assert (form["label_caption"]["value"], form["label_genre"]["value"]) == ("Typed here", "typed there")


def test_labels_travel_as_a_table(opened: Page, songs: Path, tmp_path: Path) -> None:
    table = Path(opened.handler("dataset.csv")()["download"]["value"])
    assert "Driving nocturnal" in table.read_text(encoding="utf-8-sig")
    changed = tmp_path / "changed.csv"
    changed.write_text(table.read_text(encoding="utf-8-sig").replace("Bright playful", "Dark earnest"))
    opened.handler("dataset.import")(imported=str(changed))
    finish(opened.app)
    assert (songs / "changed.csv").exists()
    assert pick(opened, "Paper Planes.flac")["label_caption"]["value"].startswith("Dark earnest")


def test_dropped_songs_and_archives_become_a_new_folder(page: Page, demo_songs: Path, tmp_path: Path) -> None:
    drop = page.handler("dataset.drop")
    files = [demo_songs / "Harbour Lights.wav", demo_songs / "Harbour Lights.json"]
    for expected in ("live", "live_2"):
        drop(dropped=[str(file) for file in files], drop_name="live")
        finish(page.app)
        assert page.app.dataset and page.app.dataset.root == page.app.datasets / expected
    assert page.app.dataset.songs[0].caption.startswith("Slow dreamy")
    archive = tmp_path / "tour.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for file in files:
            packed.write(file, f"tour/{file.name}")
        packed.writestr("readme.exe", "x")
    drop(dropped=[str(archive)], drop_name="")
    finish(page.app)
    assert page.app.dataset.root == page.app.datasets / "tour"
    assert "readme.exe" in page.handler("dataset.facts")()["facts"]


def evil(path: Path, kind: str) -> Path:
    if kind == "empty":
        path.touch()
        return path
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        if kind == "bomb":
            packed.writestr("song.wav", bytes(300 << 20))
        elif kind == "link":
            link = zipfile.ZipInfo("song.wav")
            link.external_attr = 0o120777 << 16
            packed.writestr(link, "/etc/passwd")
        else:
            packed.writestr("../../song.wav", b"x")
    return path


@pytest.mark.parametrize(
    ("kind", "why"), [("empty", "no ZIP file"), ("outside", "leads out"), ("link", "is a link"), ("bomb", "far more")]
)
def test_an_evil_archive_is_one_sentence_and_leaves_nothing(page: Page, tmp_path: Path, kind: str, why: str) -> None:
    page.handler("dataset.drop")(dropped=[str(evil(tmp_path / "songs.zip", kind))], drop_name="")
    assert why in failure(page.app)
    assert not page.app.datasets.exists() or not list(page.app.datasets.iterdir())
    assert not (tmp_path / "song.wav").exists() and page.app.dataset is None


def test_long_songs_are_split_and_the_pieces_opened(opened: Page) -> None:
    place = opened.handler("dataset.split_place")()["split_folder"]
    values = {"split_length": 5, "split_overlap": 0, "split_silence": False, "split_folder": place}
    opened.handler("dataset.split")(**values)
    finish(opened.app)
    done = opened.handler("dataset.split_done")()
    assert done["split_open"]["visible"] and "pieces in" in done["split_report"]
    opened.handler("dataset.split_open")()
    finish(opened.app)
    assert opened.app.dataset and opened.app.dataset.root == Path(place)
    assert all(song.labeled for song in opened.app.dataset.songs)


def test_what_is_said_while_work_goes_on_ends_with_it_even_where_it_fails(page: Page, songs: Path) -> None:
    (page.app.project / "empty").mkdir()
    said = page.handler("dataset.open")(songs=str(page.app.project / "empty"))
    assert "Reading the songs" in said["open_said"] and "No audio found" in failure(page.app)
    assert page.handler("dataset.open_done")() == {"open_said": "", "files_said": ""}
    page.handler("dataset.open")(songs=str(songs))
    finish(page.app)
    place = page.app.project / "pieces"
    place.write_text("no folder")
    values = {"split_length": 5, "split_overlap": 0, "split_silence": False, "split_folder": str(place)}
    assert "Splitting" in page.handler("dataset.split")(**values)["split_report"]
    assert failure(page.app)
    assert page.handler("dataset.split_done")()["split_report"] == ""


class Ear:
    """A backend as far as a page sees it: what it gives and needs."""

    facts = BackendFacts("ear", "A good ear", "service", frozenset({"caption"}), key_variable="EAR_KEY")


def test_labelling_is_drawn_from_the_backends_and_never_keeps_a_key(
    app: App, songs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "BACKENDS", {"ear": f"{__name__}:Ear"})
    monkeypatch.setattr(dataset_labelling, "BACKENDS", registry.BACKENDS)
    monkeypatch.delenv("EAR_KEY", raising=False)
    page = build(app)[1]
    parts = page.tabs["dataset"].parts
    assert [name for _, name in parts["caption_by"].choices] == ["", "ear"]  # type: ignore[union-attr]
    assert parts["lyrics_by"].choices == [("nobody", "")]  # type: ignore[union-attr]
    assert parts["EAR_KEY"].type == "password"  # type: ignore[union-attr]
    page.handler("dataset.open")(songs=str(songs))
    finish(app)
    shown: dict[str, Any] = {**CaptionSettings().model_dump(), "EAR_KEY": "", "label_songs": "all", "song": "", **VIEW}
    shown |= {"caption_by": "", "lyrics_by": "", "metadata_by": ""}
    with pytest.raises(UserError, match="Nobody is chosen"):
        page.handler("dataset.label")(**shown)
    with pytest.raises(UserError, match="needs a key"):
        page.handler("dataset.label")(**{**shown, "caption_by": "ear", "fill": "all"})
    page.handler("dataset.label")(**{**shown, "caption_by": "ear", "EAR_KEY": "very secret", "fill": "all"})
    assert app.background.wait(PATIENCE_S)
    assert App(app.project).workspace.caption.fill == "all"
    texts = [path.read_bytes() for path in app.project.rglob("*") if path.suffix in (".json", ".txt", ".log")]
    assert not any(b"very secret" in text for text in texts)


def test_a_click_before_the_form_of_labelling_is_drawn_means_what_is_to_be_shown(
    opened: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "BACKENDS", {"ear": f"{__name__}:Ear"})
    monkeypatch.setattr(dataset_labelling, "BACKENDS", registry.BACKENDS)
    monkeypatch.delenv("EAR_KEY", raising=False)
    chosen = CaptionSettings(caption_by="ear", lyrics_by="", metadata_by="", fill="all")
    opened.app.choose(caption=chosen)
    served = {**CaptionSettings().model_dump(), "EAR_KEY": "", "label_songs": "all", "song": "", **VIEW}
    with pytest.raises(UserError, match="needs a key"):
        opened.handler("dataset.label")(**served, label_form_drawn=False)
    assert opened.app.workspace.caption == chosen


def test_editing_in_the_browser_survives_a_reload(
    app: App, songs: Path, open_page: Callable[[App], BrowserPage], tmp_path: Path, browser: Browser
) -> None:
    expect.set_options(timeout=PATIENCE_S * 1000)
    page = open_page(app)
    page.get_by_role("tab", name="Dataset").click()
    page.set_input_files("#dataset-drop input[type=file]", evil(tmp_path / "evil.zip", "outside"))
    expect(page.get_by_text("leads out of the folder")).to_be_visible()
    page.get_by_label("Folder of songs, or a dataset file").fill(str(songs))
    page.get_by_role("button", name="Open", exact=True).click()
    page.get_by_role("button", name=SONG).click()
    caption = page.locator("#label-caption textarea")
    expect(caption).to_have_value(
        "Driving nocturnal electronic pop with a reedy lead melody over warm synth pads, "
        "round bass and soft drum machine"
    )
    caption.fill("")
    caption.press_sequentially("A train at night", delay=20)
    expect(page.get_by_text("Saved")).to_be_visible()  # while the field still has the cursor
    expect(page.locator("#songs").get_by_text("A train at night")).to_be_visible()
    expect(caption).to_have_value("A train at night")
    page.reload()
    page.get_by_role("tab", name="Dataset").click()
    expect(caption).to_have_value("A train at night")
    page.get_by_role("button", name="Undo", exact=True).click()
    expect(page.get_by_text("Taken back")).to_be_visible()
    expect(caption).to_have_value(
        "Driving nocturnal electronic pop with a reedy lead melody over warm synth pads, "
        "round bass and soft drum machine"
    )
    page.get_by_text("Change many songs").click()
    page.get_by_label("Find and replace").check()
    page.get_by_label("Text to find").fill("electronic")
    page.get_by_label("Replace with").fill("acoustic")
    page.get_by_role("button", name="Show the changes").click()
    expect(page.locator("#bulk-preview ins").first).to_contain_text("acoustic")
    page.get_by_role("button", name="Apply", exact=True).click()
    expect(page.get_by_text("changed and saved")).to_be_visible()
    expect(caption).to_have_value(
        "Driving nocturnal acoustic pop with a reedy lead melody over warm synth pads, round bass and soft drum machine"
    )


def test_the_model_for_codes_is_looked_for_among_the_apps_own(
    opened: Page, demo_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the app was started."""
    monkeypatch.chdir(tmp_path)
    shown = {"caption_by": "five-hz-lm", "lyrics_by": "", "metadata_by": "", "label_songs": "all", "song": "", **VIEW}
    opened.app.choose(checkpoints=str(demo_checkpoint))
    settings, _, _ = dataset_labelling.prepare(opened.app, Controls(CaptionSettings), shown)
    assert settings.codes_model == str(demo_checkpoint / "acestep-v15-demo")
    assert opened.app.workspace.caption.codes_model == "", "what is remembered is what was chosen"
    opened.app.choose(checkpoints=str(tmp_path / "empty"))
    with pytest.raises(UserError, match="empty holds none"):
        dataset_labelling.prepare(opened.app, Controls(CaptionSettings), shown)
