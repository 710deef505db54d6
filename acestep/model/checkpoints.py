"""Which models are on this machine, and where their parts lie. Nothing here reads weights or needs torch.

Two layouts are known. The original one is a folder for each model with the VAE and the text encoder beside it:

    checkpoints/acestep-v15-turbo/      config.json, model.safetensors (or shards), silence_latent.pt
    checkpoints/vae/
    checkpoints/Qwen3-Embedding-0.6B/

The diffusers layout is one folder with model_index.json and a sub-folder for each part. Model folders may have any
name; Python files in them are never imported.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from acestep.core.errors import Problem, UserError, did_you_mean
from acestep.core.paths import read_json
from acestep.model.config import MODEL_INDEX, MODEL_TYPE, DitConfig
from acestep.model.names import Part
from acestep.model.variants import MAIN_REPOSITORY, TEXT_ENCODER_FOLDER, VAE_FOLDER, VARIANTS, Variant, variant_of
from acestep.model.weights import weight_files

Layout = Literal["original", "diffusers"]
SharedPart = Literal["vae", "text_encoder"]
SHARED_PARTS: tuple[SharedPart, ...] = ("vae", "text_encoder")

DEFAULT_FOLDER = Path("checkpoints")
WEIGHTS_STEM = "model"
"""How transformers names a file of weights; original DiT folders and the text encoder use it."""
DIFFUSERS_STEM = "diffusion_pytorch_model"
"""How diffusers names a file of weights; the VAE and the parts of the diffusers layout use it."""
SILENCE_LATENT_FILE = "silence_latent.pt"

_ORIGINAL_NAMES: dict[SharedPart, str] = {"vae": VAE_FOLDER, "text_encoder": TEXT_ENCODER_FOLDER}
_SPOKEN: dict[SharedPart, str] = {"vae": "VAE", "text_encoder": "text encoder"}


@dataclass(frozen=True)
class Checkpoint:
    """One model and its parts. `dit` is the DiT folder, or the whole folder in the diffusers layout."""

    name: str
    dit: Path
    vae: Path
    text_encoder: Path
    layout: Layout
    config: DitConfig
    variant: Variant

    @property
    def tokenizer(self) -> Path:
        """The folder with the text encoder's tokenizer."""
        return self.dit / "tokenizer" if self.layout == "diffusers" else self.text_encoder

    def part_location(self, part: Part) -> tuple[Path, str]:
        """Folder and stem of the files that hold a part's weights."""
        if self.layout == "diffusers":
            return self.dit / part, DIFFUSERS_STEM
        return self.dit, WEIGHTS_STEM

    @property
    def size_bytes(self) -> int:
        """What the weights of DiT and condition encoder take on disk."""
        parts: tuple[Part, ...] = ("transformer", "condition_encoder")
        files = {file for part in parts for file in weight_files(*self.part_location(part))}
        return sum(file.stat().st_size for file in files)

    def missing_parts(self) -> list[SharedPart]:
        """Which of VAE and text encoder are not there."""
        return [part for part in SHARED_PARTS if not (getattr(self, part) / "config.json").is_file()]


def is_checkpoint_folder(folder: Path) -> bool:
    """Whether a folder is a model: a DiT folder by its config.json or its tensors' names, or the diffusers layout."""
    if (folder / MODEL_INDEX).is_file():
        return (folder / "transformer").is_dir() and (folder / "condition_encoder").is_dir()
    config = folder / "config.json"
    if not config.is_file():
        return False
    try:
        model_type = read_json(config, "the configuration").get("model_type")
        if model_type is not None:
            return model_type == MODEL_TYPE
        return _holds_dit_tensors(folder)
    except UserError:
        # Broken, but named like a published model: worth a sentence about what is wrong with it.
        return folder.name.startswith("acestep-v15-")


def _holds_dit_tensors(folder: Path) -> bool:
    from acestep.model.weights import read_header

    wanted = {"decoder.layers.", "encoder.lyric_encoder."}
    for file in weight_files(folder, WEIGHTS_STEM):
        names = [tensor.name for tensor in read_header(file)]
        wanted = {prefix for prefix in wanted if not any(name.startswith(prefix) for name in names)}
    return not wanted


def open_checkpoint(folder: Path, search: Iterable[Path] = ()) -> Checkpoint:
    """The model in one folder; VAE and text encoder are looked for in it, beside it, one level up, then in `search`.

    A shared part that is nowhere gets the path where it belongs; `missing_parts` tells.
    """
    config = DitConfig.read(folder)
    variant = variant_of(config, folder.name)
    if (folder / MODEL_INDEX).is_file():
        return Checkpoint(
            folder.name, folder, folder / "vae", folder / "text_encoder", "diffusers", config, variant
        )  # fmt: skip
    places = [folder, folder.parent, folder.parent.parent, *(Path(place) for place in search)]
    found = {part: _find_shared(places, name, folder.parent) for part, name in _ORIGINAL_NAMES.items()}
    return Checkpoint(folder.name, folder, found["vae"], found["text_encoder"], "original", config, variant)


def _find_shared(places: list[Path], name: str, home: Path) -> Path:
    for place in places:
        if (place / name / "config.json").is_file():
            return (place / name).resolve()
    return home / name


def survey_checkpoints(folders: Iterable[Path]) -> tuple[list[Checkpoint], list[Problem]]:
    """Every model in `folders` (each a model itself or a folder of models), and what is wrong with the others.

    A model without VAE or text encoder is listed and has a warning; one that cannot be used at all has an error.
    """
    folders = [Path(folder) for folder in folders]
    found: dict[Path, Checkpoint] = {}
    problems: list[Problem] = []
    for folder in _model_folders(folders):
        try:
            checkpoint = open_checkpoint(folder, folders)
            _check_weights(checkpoint)
        except UserError as error:
            problems.append(Problem(str(folder), str(error)))
            continue
        found[folder] = checkpoint
        missing = checkpoint.missing_parts()
        if missing:
            problems.append(Problem(str(folder), _missing_text(checkpoint, missing), "warning"))
    return list(found.values()), problems


def find_checkpoints(folders: Iterable[Path] = (DEFAULT_FOLDER,)) -> list[Checkpoint]:
    """Every usable model in `folders`, by name; `survey_checkpoints` also tells what is wrong with the rest."""
    return survey_checkpoints(folders)[0]


def _model_folders(folders: Iterable[Path]) -> list[Path]:
    models: dict[Path, None] = {}
    for folder in folders:
        if not folder.is_dir():
            continue
        candidates = [folder, *sorted(path for path in _children(folder) if not path.name.startswith("."))]
        models.update(dict.fromkeys(path.resolve() for path in candidates if is_checkpoint_folder(path)))
    return list(models)


def _children(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_dir()]
    except OSError:  # no access; such a folder has nothing to offer
        return []


def _check_weights(checkpoint: Checkpoint) -> None:
    parts: tuple[Part, ...] = ("transformer", "condition_encoder")
    for part in parts:
        weight_files(*checkpoint.part_location(part))
    if checkpoint.layout == "original" and not (checkpoint.dit / SILENCE_LATENT_FILE).is_file():
        raise missing_silence_latent(checkpoint)


def missing_silence_latent(checkpoint: Checkpoint) -> UserError:
    return UserError(
        f"{checkpoint.dit} has no {SILENCE_LATENT_FILE}.",
        fix=f"Copy it from the model it was made from; every published model on huggingface.co has it, "
        f"for example {MAIN_REPOSITORY} in acestep-v15-turbo.",
    )


def _missing_text(checkpoint: Checkpoint, missing: Collection[SharedPart]) -> str:
    parts = " and ".join(f"the {_SPOKEN[part]} ({getattr(checkpoint, part)})" for part in missing)
    verb = "is" if len(missing) == 1 else "are"
    source = (
        f"the repository {checkpoint.variant.repo or 'it came from'}"
        if checkpoint.layout == "diffusers"
        else f"{', '.join(_ORIGINAL_NAMES[part] for part in missing)} of {MAIN_REPOSITORY} on huggingface.co"
    )
    return f"{parts} {verb} missing. Get {source}, or copy the folder beside the model's."


def resolve_checkpoint(
    path_or_name: str | Path,
    search: Iterable[Path] = (DEFAULT_FOLDER,),
    needs: Collection[SharedPart] = SHARED_PARTS,
) -> Checkpoint:
    """The model a user means: a folder, or a name in one of the `search` folders ("acestep-v15-base" or "base").

    A folder that holds exactly one model stands for it. `needs` are the shared parts the caller is going to load.
    Raises UserError that lists the models found and names what is missing and where to get it.
    """
    search = [Path(folder) for folder in search]
    text = str(path_or_name).strip()
    if not text:
        raise UserError("No model was named.", fix=_available(search))
    folder = _given_folder(text)
    checkpoint = _by_name(text, search) if folder is None else _in_folder(folder, search)
    _check_weights(checkpoint)
    missing = [part for part in checkpoint.missing_parts() if part in needs]
    if missing:
        raise UserError(f"{checkpoint.dit} cannot be used: {_missing_text(checkpoint, missing)}")
    return checkpoint


def _given_folder(text: str) -> Path | None:
    """The folder `text` is a path of, if there is one."""
    try:
        path = Path(text).expanduser()
        if path.is_file():
            raise UserError(f"The model {path} is a file.", fix=f"Give its folder, {path.parent}.")
        return path.resolve() if path.is_dir() else None
    except (OSError, RuntimeError, ValueError):  # too long for a name, unknown ~user, NUL: then it is no path
        return None


def _in_folder(folder: Path, search: list[Path]) -> Checkpoint:
    if is_checkpoint_folder(folder):
        return open_checkpoint(folder, search)
    models = _model_folders([folder])
    if len(models) == 1:
        return open_checkpoint(models[0], [folder, *search])
    if models:
        names = ", ".join(path.name for path in models)
        raise UserError(f"{folder} holds {len(models)} models.", fix=f"Give the folder of one of them: {names}.")
    raise UserError(
        f"{folder} is no ACE-Step 1.5 model: it has neither a config.json with model_type {MODEL_TYPE!r} nor "
        f"{MODEL_INDEX}.",
        fix=_available(search),
    )


def _by_name(text: str, search: list[Path]) -> Checkpoint:
    models = {path.name: path for path in reversed(_model_folders(search))}
    name = text if text in models else f"acestep-v15-{text}"
    if name in models:
        return open_checkpoint(models[name], search)
    wanted = next((row for row in VARIANTS.values() if text in (row.name, row.folder)), None)
    if wanted is not None:
        where = f"{wanted.subfolder} of {wanted.repo}" if wanted.subfolder else wanted.repo
        size = f"{wanted.size_bytes / 1e9:.1f} GB"
        fix = f"`acestep download {wanted.name}` fetches it: {where} on huggingface.co, {size}."
        raise UserError(f'The model "{text}" is not on this machine.', fix=f"{fix} {_available(search)}")
    near = did_you_mean(text, [*models, *VARIANTS])
    raise UserError(f'There is no model "{text}".{near}', fix=_available(search))


def _available(search: list[Path]) -> str:
    """What can be chosen instead, in a sentence or two."""
    places = ", ".join(str(folder) for folder in search) or "the search folders"
    names = ", ".join(path.name for path in _model_folders(search))
    if names:
        return f"In {places}: {names}."
    return f"{places} holds no model; `acestep download` fetches one of: {', '.join(VARIANTS)}."
