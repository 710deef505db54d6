"""The demo's model: a small ACE-Step model that really plays and comes with the program, in the original layout.

Its files lie in `demo_model/` beside this module; the README there says how they were made. They are copied into a
folder of the user's, where they are handled like any other model. `acestep.model.untrained` builds the tiny model with
random weights that tests and benchmarks use.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from acestep.core.errors import UserError
from acestep.core.paths import atomic_folder, content_hash, read_json, write_json
from acestep.model.variants import TEXT_ENCODER_FOLDER, VAE_FOLDER

DIT_FOLDER = "acestep-v15-demo"
LANGUAGE_MODEL_FOLDER = "acestep-5Hz-lm-demo"
SHIPPED = Path(__file__).parent / "demo_model"

MARKER = "demo.json"
_NEEDED = (
    "README.md",
    f"{DIT_FOLDER}/config.json",
    f"{DIT_FOLDER}/model.safetensors",
    f"{DIT_FOLDER}/silence_latent.pt",
    f"{VAE_FOLDER}/config.json",
    f"{VAE_FOLDER}/diffusion_pytorch_model.safetensors",
    f"{TEXT_ENCODER_FOLDER}/config.json",
    f"{TEXT_ENCODER_FOLDER}/model.safetensors",
    f"{TEXT_ENCODER_FOLDER}/tokenizer.json",
    f"{LANGUAGE_MODEL_FOLDER}/config.json",
    f"{LANGUAGE_MODEL_FOLDER}/model.safetensors",
)


def write_demo_checkpoint(folder: Path) -> Path:
    """Copy the demo's model into `folder` (new, empty or an earlier demo) and return the folder.

    A copy that is whole and the same is kept; one of another version, or with files that changed, is replaced.
    Raises UserError when `folder` holds anything else, so that real checkpoints are never replaced, and when this
    installation came without the model.
    """
    folder = Path(folder)
    files = _shipped_files()
    marker = {"digest": _digest(SHIPPED, files), "what": "the small ACE-Step model of the demo"}
    if (folder / MARKER).is_file():
        known = read_json(folder / MARKER, "the demo's marker file").get("digest")
        if known == marker["digest"] and _digest(folder, files) == known:
            return folder
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"{folder} is not empty and was not made by the demo.", fix="Choose a new folder for the demo model."
        )
    with atomic_folder(folder) as temporary:
        for name in files:
            target = temporary / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(SHIPPED / name, target)  # content only: an installation may be read-only
        write_json(temporary / MARKER, marker)
    return folder


def _shipped_files() -> list[str]:
    """Names of the model's files, posix and relative, sorted."""
    missing = [name for name in _NEEDED if not (SHIPPED / name).is_file()]
    if missing:
        raise UserError(
            f"The demo's model did not come with this installation: {SHIPPED / missing[0]} is missing.",
            fix="Install the program again, from a complete copy of its repository.",
        )
    return sorted(file.relative_to(SHIPPED).as_posix() for file in SHIPPED.rglob("*") if file.is_file())


def _digest(folder: Path, names: list[str]) -> str | None:
    """One hash of names and contents; None where a file is missing."""
    if not all((folder / name).is_file() for name in names):
        return None
    lines = [f"{content_hash(folder / name)} {name}\n" for name in names]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:32]
