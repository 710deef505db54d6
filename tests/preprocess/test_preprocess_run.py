"""Preprocessing of real songs with the demo model: the same bits every way, only what changed, nothing lost."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import forked
import pytest
from preprocess_songs import SETTINGS, content, write_labels, write_song

from acestep.core.errors import Stopped
from acestep.core.jobs import Job
from acestep.dataset.scan import scan_folder
from acestep.preprocess.store import TensorStore

Encode = Callable[..., object]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}  # as in this process: bits are compared


def stop_after(songs: int) -> Job:
    """A job that is asked to stop when that many songs were finished, in whatever stage."""
    finished = 0

    def listen(kind: str, what: object) -> None:
        nonlocal finished
        finished += kind == "progress" and what.unit == "songs" and what.name != "compare with the tensor folder"
        if finished >= songs:
            job.request_stop()

    job = Job(listen)
    return job


def test_two_passes_give_the_same_bytes_as_one(songs: Path, encoded: Path, tmp_path: Path, encode: Encode) -> None:
    report = encode(songs, tmp_path / "two", two_pass=True)
    assert (report.encoded, report.failed, report.two_pass) == (3, 0, True)
    assert content(tmp_path / "two") == content(encoded)
    assert len(content(encoded)) == 1 + 3 + 3


def test_a_second_run_has_nothing_to_do_and_touches_nothing(songs: Path, encoded: Path, encode: Encode) -> None:
    before = {file: file.stat() for file in encoded.rglob("*") if file.is_file()}
    report = encode(songs, encoded)
    assert (report.total, report.encoded, report.reused, report.failed) == (3, 0, 3, 0)
    assert report.audio_s == pytest.approx(4.6)
    assert report.encoded_audio_s == 0
    assert set(report.seconds) == {"plan"}
    for file, stat in before.items():
        assert (file.stat().st_ino, file.stat().st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns)


def test_a_new_caption_encodes_one_condition_only(songs: Path, encoded: Path, encode: Encode, tmp_path: Path) -> None:
    before = content(encoded)
    write_labels(songs / "sub/two.wav", caption="slow drums", bpm=160)
    report = encode(songs, encoded)
    assert (report.encoded, report.latents_encoded, report.conditions_encoded) == (1, 0, 1)
    assert (report.reused, report.removed_files) == (2, 1)
    after = content(encoded)
    new = {name for name in after if before.get(name) != after[name]}
    assert {name.split("/")[0] for name in new} == {"index.json", "conditions"}
    assert len(new) == 2
    encode(songs, tmp_path / "fresh")
    assert content(tmp_path / "fresh") == after


def test_new_audio_encodes_its_latents_only(songs: Path, encoded: Path, encode: Encode) -> None:
    write_song(songs, "sub/two", 331, 2.3)
    report = encode(songs, encoded)
    assert (report.latents_encoded, report.conditions_encoded, report.removed_files) == (1, 0, 1)


def test_another_length_in_seconds_changes_the_prompt_too(songs: Path, encoded: Path, encode: Encode) -> None:
    write_song(songs, "sub/two", 330, 3.1)
    report = encode(songs, encoded)
    assert (report.latents_encoded, report.conditions_encoded) == (1, 1)
    song = next(song for song in TensorStore.open(encoded).songs if song.title == "sub/two.wav")
    assert all("- duration: 3 seconds" in prompt for prompt in song.prompts)


def test_the_prompt_names_the_length_that_is_encoded(songs: Path, tmp_path: Path, encode: Encode) -> None:
    encode(songs, tmp_path / "out", max_duration_s=1.0)
    for song in TensorStore.open(tmp_path / "out").songs:
        assert song.duration_s == 1.0
        assert song.frames == 25
        assert all("- duration: 1 seconds" in prompt for prompt in song.prompts)


def test_added_and_removed_songs(songs: Path, encoded: Path, encode: Encode) -> None:
    before = content(encoded)
    added = write_song(songs, "four", 550, 1.1, caption="a flute")
    report = encode(songs, encoded)
    assert (report.encoded, report.reused, report.total) == (1, 3, 4)
    assert len(TensorStore.open(encoded).songs) == 4
    added.unlink()
    report = encode(songs, encoded)
    assert (report.encoded, report.reused, report.removed_files) == (0, 3, 2)
    assert content(encoded) == before


def test_another_trigger_word_leaves_the_latents(songs: Path, encoded: Path, encode: Encode) -> None:
    report = encode(scan_folder(songs, SETTINGS.changed(trigger_word="polka")), encoded)
    assert (report.latents_encoded, report.conditions_encoded) == (0, 2), "one song has a tag of its own"


def test_another_place_of_the_tag_or_genre_ratio_encodes_nothing(songs: Path, encoded: Path, encode: Encode) -> None:
    report = encode(scan_folder(songs, SETTINGS.changed(tag_position="replace", genre_ratio=10)), encoded)
    assert report.encoded == 0
    info = TensorStore.open(encoded).info
    assert (info.tag_position, info.genre_ratio) == ("replace", 10)


@pytest.mark.parametrize(
    ("settings", "changed"),
    [({"normalize": "peak"}, 3), ({"latents": "mean"}, 3), ({"seed": 7}, 3), ({"max_duration_s": 0.0}, 3), ({}, 0)],
)
def test_settings_that_change_the_latents_encode_them_anew(
    songs: Path, encoded: Path, encode: Encode, settings: dict[str, object], changed: int
) -> None:
    report = encode(songs, encoded, **settings)
    assert (report.latents_encoded, report.conditions_encoded) == (changed, 0)


def test_the_mean_needs_no_seed(songs: Path, tmp_path: Path, encode: Encode) -> None:
    encode(songs, tmp_path / "out", latents="mean", seed=1)
    assert encode(songs, tmp_path / "out", latents="mean", seed=2).encoded == 0


def test_a_song_is_drawn_alike_whatever_the_others_are(
    songs: Path, encoded: Path, encode: Encode, tmp_path: Path
) -> None:
    (songs / "one.wav").unlink()
    encode(songs, tmp_path / "fewer")
    fewer = content(tmp_path / "fewer")
    all_songs = content(encoded)
    assert len(fewer) == 1 + 2 + 2
    assert all(all_songs[name] == data for name, data in fewer.items() if name != "index.json")


@pytest.mark.parametrize("two_pass", [False, True])
@pytest.mark.parametrize("songs_before", [1, 2])
def test_a_stopped_run_goes_on(
    songs: Path, encoded: Path, tmp_path: Path, encode: Encode, two_pass: bool, songs_before: int
) -> None:
    out = tmp_path / "stopped"
    with pytest.raises(Stopped):
        encode(songs, out, job=stop_after(songs_before), two_pass=two_pass)
    store = TensorStore.open(out)
    kept = 0 if two_pass else songs_before
    assert (len(store.songs), store.info.unfinished) == (kept, 3 - kept)
    for song in store.songs:
        store.load(song)
    report = encode(songs, out, two_pass=two_pass)
    assert report.latents_encoded == 3 - songs_before, "finished latents are used again"
    assert content(out) == content(encoded)


def test_a_stop_in_the_second_pass_keeps_the_first(songs: Path, encoded: Path, tmp_path: Path, encode: Encode) -> None:
    out = tmp_path / "stopped"
    with pytest.raises(Stopped):
        encode(songs, out, job=stop_after(4), two_pass=True)
    assert len(TensorStore.open(out).songs) == 1
    report = encode(songs, out, two_pass=True)
    assert (report.latents_encoded, report.conditions_encoded) == (0, 2)
    assert "text encoder" not in report.seconds, "its states waited on disk"
    assert content(out) == content(encoded)


def test_a_stop_before_anything_was_done_leaves_the_folder(songs: Path, encoded: Path, encode: Encode) -> None:
    before = content(encoded)
    job = Job()
    job.request_stop()
    write_labels(songs / "one.wav", caption="something else")
    with pytest.raises(Stopped):
        encode(songs, encoded, job=job)
    assert content(encoded) == before


_KILLED = """
import os, signal, sys
from pathlib import Path
import acestep.core.paths as paths
from acestep.core.jobs import Job
from acestep.dataset.scan import scan_folder
from acestep.model.checkpoints import resolve_checkpoint
from acestep.preprocess.run import preprocess
from acestep.settings.preprocess import PreprocessSettings
sys.path.insert(0, {helpers!r})
from preprocess_songs import SETTINGS
rename, renames = os.replace, 0
def deadly(source, target):
    global renames
    if ".safetensors" in str(target):
        renames += 1
        if renames == {at}:
            if {after}:
                rename(source, target)
            os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)
os.replace = deadly
settings = PreprocessSettings(device="cpu", two_pass={two_pass})
preprocess(scan_folder(Path({songs!r}), SETTINGS), resolve_checkpoint({checkpoint!r}), {out!r}, settings)
"""


@pytest.mark.parametrize(("two_pass", "at", "after"), [(False, 4, False), (True, 5, True)])
def test_a_killed_run_goes_on(
    songs: Path,
    encoded: Path,
    tmp_path: Path,
    encode: Encode,
    demo_checkpoint: Path,
    two_pass: bool,
    at: int,
    after: bool,
) -> None:
    """SIGKILL just before or after a file gets its name: the next run makes the bytes of an uninterrupted one."""
    out = tmp_path / "killed"
    program = _KILLED.format(
        helpers=str(Path(__file__).parent),
        at=at,
        after=after,
        two_pass=two_pass,
        songs=str(songs),
        checkpoint=str(demo_checkpoint),
        out=str(out),
    )
    done = forked.run([sys.executable, "-c", program], env=ENVIRONMENT)
    assert done.returncode == -signal.SIGKILL, done.stderr
    # on a slow machine the index is written meanwhile
    whole = [name for name in content(out) if "/.writing-" not in name and name != "index.json"]
    assert len(whole) == at - 1 + after
    report = encode(songs, out, two_pass=two_pass)
    assert report.latents_encoded + report.conditions_encoded < 6, "what was finished is used again"
    assert content(out) == content(encoded)


_AGAIN = """
import sys
from pathlib import Path
from acestep.dataset.scan import scan_folder
from acestep.model.checkpoints import resolve_checkpoint
from acestep.preprocess.run import preprocess
from acestep.settings.dataset import DatasetSettings
from acestep.settings.preprocess import PreprocessSettings
dataset = scan_folder(Path({songs!r}), DatasetSettings(**{settings!r}))
report = preprocess(dataset, resolve_checkpoint({checkpoint!r}), {out!r}, PreprocessSettings())
assert report.reused == 3, report
print(*sys.modules)
"""


def test_nothing_to_do_needs_no_torch(songs: Path, encoded: Path, demo_checkpoint: Path) -> None:
    program = _AGAIN.format(
        settings=SETTINGS.model_dump(), songs=str(songs), checkpoint=str(demo_checkpoint), out=str(encoded)
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=ENVIRONMENT)
    assert not {"torch", "transformers", "diffusers", "librosa"} & set(done.stdout.split())


def test_the_same_audio_twice_is_encoded_once(songs: Path, tmp_path: Path, encode: Encode) -> None:
    dataset = scan_folder(songs, SETTINGS)
    one = next(song for song in dataset.songs if song.relative == "one.wav")
    dataset.songs.append(dataclasses.replace(one, relative="again.wav", caption="the same, told in other words"))
    report = encode(dataset, tmp_path / "out")
    assert (report.encoded, report.latents_encoded, report.conditions_encoded) == (4, 3, 4)
    store = TensorStore.open(tmp_path / "out")
    copies = [song for song in store.songs if song.id == one.id]
    assert copies[0].latents_key == copies[1].latents_key
    assert store.load(copies[0]).texts["caption.none"].shape != store.load(copies[1]).texts["caption.none"].shape


def test_a_mark_for_regularization_changes_the_index_only(songs: Path, encoded: Path, encode: Encode) -> None:
    """Given in a CSV file for one song and in a sidecar for another; taken away again for both."""
    before = content(encoded)
    write_labels(songs / "sub" / "two.wav", caption="fast drums", bpm=160, regularization=True)
    (songs / "labels.csv").write_text("File,Regularization\none.wav,yes\n", encoding="utf-8")
    report = encode(songs, encoded)
    assert (report.encoded, report.latents_encoded, report.conditions_encoded, report.removed_files) == (0, 0, 0, 0)
    marked = {song.title: song.regularization for song in TensorStore.open(encoded).songs}
    assert marked["one.wav"] and marked["sub/two.wav"] and sum(marked.values()) == 2
    (songs / "labels.csv").unlink()
    write_labels(songs / "sub" / "two.wav", caption="fast drums", bpm=160)
    encode(songs, encoded)
    assert content(encoded) == before
