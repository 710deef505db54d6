"""The synthesiser plays what the plan says, the same each time; written songs are what their labels say."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from planned_songs import TEST_SONGS

from acestep.audio.decode import decode, probe
from acestep.audio.format import AUDIO_SUFFIXES
from acestep.audio.synth import (
    HELD_OUT_STYLES,
    HELD_OUT_TIMBRES,
    METRES,
    NOTE_NAMES,
    SCALES,
    SongPlan,
    caption_vocabulary,
    oscillator,
    render,
)
from acestep.dataset.demo import CSV_NAME, DEMO_SONGS, DemoSong, write_demo_songs
from acestep.dataset.scan import scan_folder
from acestep.model.facts import INSTRUMENTAL

RATE = 48_000


def pulse_strength(samples: np.ndarray, period_s: float) -> float:
    """How alike the rhythm is to itself one period later, from -1 to 1."""
    envelope = np.abs(np.diff(samples.mean(axis=0)))
    hop = 480
    energy = np.log1p(envelope[: len(envelope) // hop * hop].reshape(-1, hop).mean(axis=1) * 100)
    onsets = np.clip(np.diff(energy), 0, None)
    lag = round(period_s * RATE / hop)
    return float(np.corrcoef(onsets[:-lag], onsets[lag:])[0, 1])


@pytest.mark.parametrize("metre", list(METRES))
@pytest.mark.parametrize("timbre", ["reed", "bell", "organ"])
def test_shape_level_and_repeatability(metre: str, timbre: str) -> None:
    plan = SongPlan(metre=metre, timbre=timbre, seconds=3.3, tempo=113)
    samples = render(plan)
    assert samples.shape == (2, round(3.3 * RATE))
    assert samples.dtype == np.float32
    assert np.abs(samples).max() == pytest.approx(0.8, abs=1e-5)
    assert not np.array_equal(samples[0], samples[1])
    np.testing.assert_array_equal(samples, render(plan))
    assert not np.array_equal(samples, render(dataclasses.replace(plan, seed=1)))


def test_fast_enough() -> None:
    render(SongPlan(seconds=2))
    started = time.process_time()
    render(SongPlan(seconds=12, tempo=140))
    assert time.process_time() - started < 0.6


@pytest.mark.parametrize(("tempo", "metre"), [(90, "4"), (120, "4"), (100, "3"), (80, "6"), (130, "2")])
def test_tempo_and_metre_are_heard(tempo: int, metre: str) -> None:
    plan = SongPlan(tempo=tempo, metre=metre, seconds=14, sections=("verse",))
    samples = render(plan)
    assert plan.bar_s == pytest.approx(METRES[metre][0] * 60 / tempo)
    assert pulse_strength(samples, plan.bar_s) > 0.7
    assert pulse_strength(samples, plan.bar_s) > pulse_strength(samples, plan.bar_s * 1.13) + 0.3


@pytest.mark.parametrize(("key", "mode"), [("A", "minor"), ("D", "major"), ("F#", "minor")])
def test_only_notes_of_the_key(key: str, mode: str) -> None:
    plan = SongPlan(key=key, mode=mode)
    allowed = {(NOTE_NAMES.index(key) + step) % 12 for step in SCALES[mode]}
    notes = [plan.midi_note(step, 55) for step in range(-7, 14)]
    assert {note % 12 for note in notes} == allowed
    assert notes == sorted(notes)
    assert plan.midi_note(0, 55) % 12 == NOTE_NAMES.index(key)
    assert plan.midi_note(7, 55) == plan.midi_note(0, 55) + 12


def test_oscillator_has_its_frequency_and_no_tone_above_half_the_rate() -> None:
    wave = oscillator(440.0, RATE, (1.0, 0.5))
    spectrum = np.abs(np.fft.rfft(wave)) * 2 / RATE
    assert spectrum[440] == pytest.approx(2 / 3, abs=0.01)
    assert spectrum[880] == pytest.approx(1 / 3, abs=0.01)
    assert np.delete(spectrum, [440, 880]).max() < 1e-3
    high = np.abs(np.fft.rfft(oscillator(15_000.0, RATE, (1.0, 1.0, 1.0)))) * 2 / RATE
    assert high[15_000] == pytest.approx(1, abs=0.05)
    assert high[3000] < 0.01  # where the third harmonic would fold down to


def test_sections_and_lead_change_the_sound() -> None:
    plan = SongPlan(tempo=120, seconds=8, sections=("intro", "chorus"))
    samples = render(plan)
    assert [plan.section_of(bar) for bar in range(plan.bars)] == ["intro", "intro", "chorus", "chorus"]
    assert np.abs(samples[:, 4 * RATE :]).mean() > np.abs(samples[:, : 4 * RATE]).mean()
    assert not np.array_equal(samples, render(dataclasses.replace(plan, lead=False)))


SONGS = {"demo": DEMO_SONGS, "tests": TEST_SONGS}


@pytest.fixture(scope="module", params=SONGS)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[DemoSong]]:
    """A folder of songs and what they should be."""
    songs = list(SONGS[request.param])
    return write_demo_songs(tmp_path_factory.mktemp("written"), songs), songs


def test_written_songs_are_what_their_labels_say(written: tuple[Path, list[DemoSong]]) -> None:
    folder, songs = written
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix in AUDIO_SUFFIXES)
    assert found == sorted(song.name for song in songs)
    assert len(found) >= 6
    assert {Path(name).suffix for name in found} == {".wav", ".flac", ".mp3", ".ogg", ".opus"}
    assert any("/" in name for name in found)
    for song in songs:
        info = probe(folder / song.name)
        assert 8 <= info.duration_s <= 14
        assert info.duration_s == pytest.approx(song.duration_s, abs=0.01)
        assert (info.sample_rate, info.channels) == (song.sample_rate, 1 if song.mono else 2)
        assert decode(folder / song.name).warnings == ()
    assert {soundfile.info(folder / song.name).channels for song in songs} == {1, 2}
    assert {song.labels for song in songs} == {"json", "texts", "lrc", "sheet", "csv"}
    assert {song.timesignature for song in songs} == {"2", "3", "4", "6"}
    assert len({song.keyscale for song in songs}) == len({song.bpm for song in songs}) == len(songs)


def test_labels_on_disk(written: tuple[Path, list[DemoSong]]) -> None:
    folder, songs = written
    with open(folder / CSV_NAME, encoding="utf-8", newline="") as handle:
        rows = {row["File"]: row for row in csv.DictReader(handle)}
    for song in songs:
        path = folder / song.name
        if song.labels in ("json", "lrc"):
            facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            assert facts["bpm"] == song.bpm
            assert facts["keyscale"] == song.keyscale
            assert facts["timesignature"] == song.timesignature
        if song.labels in ("csv", "texts"):
            assert float(rows[path.name]["BPM"]) == song.bpm
            assert rows[path.name]["Key"] == song.keyscale
        if song.labels == "sheet":
            assert path.with_suffix(".txt").read_text(encoding="utf-8").startswith(f"caption: {song.caption}\n")
        if song.labels == "lrc":
            text = path.with_suffix(".lrc").read_text(encoding="utf-8")
            assert ("[Instrumental]" if song.lyrics == INSTRUMENTAL else "[00:00.00]") in text


def test_written_songs_are_scanned_as_labelled(written: tuple[Path, list[DemoSong]]) -> None:
    folder, songs = written
    read = {song.relative: song for song in scan_folder(folder).songs}
    for song in songs:
        labels = read[song.name]
        found = (labels.caption, labels.bpm, labels.keyscale, labels.is_instrumental)
        assert found == (song.caption, song.bpm, song.keyscale, song.lyrics == INSTRUMENTAL), song.name


def test_written_songs_are_the_same_each_time(written: tuple[Path, list[DemoSong]], tmp_path: Path) -> None:
    folder, songs = written
    for song in songs:
        if song.name.endswith((".wav", ".flac", ".mp3")):  # Ogg streams carry a random serial number
            write_demo_songs(tmp_path / "again", [song])
            assert (tmp_path / "again" / song.name).read_bytes() == (folder / song.name).read_bytes(), song.name


def test_the_test_songs_are_sung_and_instrumental_and_the_demos_new_to_its_model() -> None:
    assert {song.lyrics == INSTRUMENTAL for song in TEST_SONGS} == {True, False}
    for song in DEMO_SONGS:
        piece = song.play.args[0]
        assert piece.style in HELD_OUT_STYLES and {piece.lead_timbre, piece.pad_timbre} <= set(HELD_OUT_TIMBRES)
        words = re.findall(r"[\w-]+", song.caption.casefold())
        assert song.lyrics == INSTRUMENTAL and set(words) <= set(caption_vocabulary("base")), song.caption
