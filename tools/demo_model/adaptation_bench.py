"""What adapters are judged by: songs of the style that no adapter was trained on, as latents and as sound.

The transformer in memory is one and the same for all judgements; adapters are attached to it and taken off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from acestep.audio.synth import Piece, draw_piece, render_piece
from acestep.audio.write import write_audio
from acestep.core.device import choose_device
from acestep.core.paths import write_json
from acestep.dataset.demo import TRIGGER_WORD
from acestep.dataset.scan import scan_folder
from acestep.generate import Parts, generate, load_parts
from acestep.model.checkpoints import Checkpoint
from acestep.model.condition import condition_head, condition_text, embed_lyrics, encode_text, join_condition
from acestep.model.loading import load_null_condition, load_silence_latent
from acestep.model.prompt import PromptLabels, lyric_prompt, text_prompt, with_tag
from acestep.model.vae import decode_latents, encode_audio
from acestep.preprocess.run import preprocess
from acestep.preprocess.store import TensorStore
from acestep.settings import DatasetSettings, GenerateSettings, PreprocessSettings, TrainSettings
from acestep.training.data import Flow, TrainingSong, Window, load_data
from acestep.training.forward import FlowModel
from acestep.training.validation import Validation
from demo_model.draws import labels_of
from demo_model.evaluate_generation import Sampling, request_for
from demo_model.judging import statistics_of

SONG_S = 12.0
FIRST_SEEDS = {"played": 9_810_000, "other": 9_820_000, "style": 9_830_000, "base": 9_840_000, "kept": 9_850_000}
"""Pieces that are played, other songs of the style, those whose loss is measured, and the base's songs that are trained
on for regularization; training songs of the style come before."""

NEUTRAL_CAPTION = "Music"
WITH_TRIGGER, WITHOUT_TRIGGER = "trigger word and caption", "caption without trigger word"
CAPTIONS = {
    WITH_TRIGGER: lambda caption: with_tag(caption, TRIGGER_WORD, "prepend"),
    WITHOUT_TRIGGER: lambda caption: caption,
    "trigger word and neutral caption": lambda caption: with_tag(NEUTRAL_CAPTION, TRIGGER_WORD, "prepend"),
    "neutral caption alone": lambda caption: NEUTRAL_CAPTION,
}
"""What is said of a piece, made from its caption."""


def style_pieces(style: str, first_seed: int, count: int, duration_s: float = SONG_S) -> list[Piece]:
    seeds = range(first_seed, first_seed + count)
    return [draw_piece(seed, pool="held_out", style=style, duration_s=duration_s) for seed in seeds]


def base_pieces(first_seed: int, count: int) -> list[Piece]:
    return [draw_piece(seed, duration_s=SONG_S) for seed in range(first_seed, first_seed + count)]


def write_songs(folder: Path, pieces: Sequence[Piece], kept: Sequence[Piece] = (), caption: str = "") -> Path:
    """Every piece as wav with its labels in a JSON file beside it, as people keep them.

    `kept` are for regularization; a `caption` is said of all instead of their own.
    """
    folder.mkdir(parents=True)
    for piece in (*pieces, *kept):
        write_audio(folder / f"{piece.seed}.wav", render_piece(piece))
        facts = {
            "caption": caption or piece.caption,
            "lyrics": piece.lyrics,
            "bpm": piece.bpm,
            "keyscale": piece.keyscale,
            "timesignature": piece.timesignature,
            "language": piece.language,
            "regularization": piece in kept,
        }
        write_json(folder / f"{piece.seed}.json", facts)
    return folder


def encode_songs(
    folder: Path,
    pieces: Sequence[Piece],
    checkpoint: Checkpoint,
    trigger_word: str,
    kept: Sequence[Piece] = (),
    caption: str = "",
) -> TensorStore:
    """Songs, labels and tensors of pieces below `folder`, by the functions behind the commands."""
    settings = DatasetSettings(name=folder.name, trigger_word=trigger_word)
    dataset = scan_folder(write_songs(folder / "songs", pieces, kept, caption), settings)
    preprocess(dataset, checkpoint, folder / "tensors", PreprocessSettings())
    return TensorStore.open(folder / "tensors")


def distance_db(one: np.ndarray, other: np.ndarray) -> float:
    """Root of the mean squared difference of two mean statistics, (3, 2, BANDS) each in dB."""
    return float(np.sqrt(np.mean((one - other) ** 2)))


def way_along(before: np.ndarray, after: np.ndarray, target: np.ndarray) -> float:
    """How far the statistics moved in the direction from `before` (0) to `target` (1), sideways steps left out."""
    wanted = target - before
    return float(np.sum((after - before) * wanted) / np.sum(wanted**2))


@dataclass(frozen=True)
class Songs:
    """Songs in memory whose loss is measured, with the labels of each."""

    songs: list[TrainingSong]
    labels: list[PromptLabels]


class Bench:
    """The model without adapter and everything that it and its adapters are compared with.

    A `caption` is said of all pieces of the style in the place of their own.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        style: str,
        played: int,
        judged: int,
        sampling: Sampling,
        folder: Path,
        caption: str = "",
    ) -> None:
        self.checkpoint, self.sampling, self.caption = checkpoint, sampling, caption
        choice = choose_device("cpu")
        self.parts: Parts = load_parts(checkpoint, choice)
        self.flow = FlowModel(
            self.parts.transformer,
            load_silence_latent(checkpoint),
            load_null_condition(checkpoint),
            choice.torch_device,
        )
        self.played = style_pieces(style, FIRST_SEEDS["played"], played)
        self.target = self.coded_statistics(self.played)
        self.others = self.coded_statistics(style_pieces(style, FIRST_SEEDS["other"], played))
        base = base_pieces(FIRST_SEEDS["base"], max(played, judged))
        self.base = self.coded_statistics(base[:played])
        others = style_pieces(style, FIRST_SEEDS["style"], judged)
        self.style_songs = self._songs(folder / "judged", others, TRIGGER_WORD)
        self.base_songs = self._songs(folder / "base", base[:judged], "")

    def _songs(self, folder: Path, pieces: Sequence[Piece], trigger_word: str) -> Songs:
        store = encode_songs(folder, pieces, self.checkpoint, trigger_word)
        songs = load_data(store, TrainSettings(validation="none")).songs
        by_name = {str(piece.seed): labels_of(piece) for piece in pieces}
        return Songs(songs, [by_name[Path(song.stored.title).stem] for song in songs])

    def coded_statistics(self, pieces: Sequence[Piece]) -> np.ndarray:
        """Mean statistics of real pieces as the VAE gives them back: what perfect generation would sound like."""
        vae = self.parts.vae
        coded = (decode_latents(vae, encode_audio(vae, render_piece(piece), "mean", seed=0)) for piece in pieces)
        return np.mean([statistics_of(samples) for samples in coded], axis=0)

    def said(self, caption: str, form: str) -> str:
        """What the prompt says of a piece with this caption."""
        return CAPTIONS[form](self.caption or caption)

    def request(self, piece: Piece, form: str) -> GenerateSettings:
        return request_for(piece, self.sampling).changed(caption=self.said(piece.caption, form))

    def play(self, form: str) -> list[np.ndarray]:
        """The held-out pieces as the model plays them now, prompted in one of the forms.  (2, N) each."""
        return [self.play_one(piece, form) for piece in self.played]

    def play_one(self, piece: Piece, form: str) -> np.ndarray:
        with self.flow.unmasked():
            return generate(self.parts, self.request(piece, form)).samples

    def loss(self, songs: Songs, form: str | None = None) -> float:
        """Validation loss of the model as it stands, with the songs' own prompts or with another form of them."""
        chosen = songs.songs
        if form is not None:
            texts = (replace(labels, caption=self.said(labels.caption, form)) for labels in songs.labels)
            chosen = [
                replace(song, condition=self.condition(labels)) for song, labels in zip(chosen, texts, strict=True)
            ]
        windows = [Window(song, 0, song.frames) for song in chosen]
        config = self.checkpoint.config
        self.parts.transformer.eval()
        validation = Validation(windows, TrainSettings(), Flow(config.timestep_mu, config.timestep_sigma), pass_size=8)
        return validation.run(self.flow).loss

    def condition(self, labels: PromptLabels) -> Tensor:
        """The packed condition of a prompt.  (L, E)."""
        text, encoder = self.parts.text_encoder, self.parts.condition_encoder
        head = condition_head(encoder, embed_lyrics(text, lyric_prompt(labels)))
        return join_condition(head, condition_text(encoder, encode_text(text, text_prompt(labels))))[0]
