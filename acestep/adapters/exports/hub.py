"""Publishing an adapter folder on the Hugging Face Hub. Private unless asked otherwise; the token is never stored."""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass
from pathlib import Path

from acestep.core.errors import UserError
from acestep.core.paths import TEMPORARY_PREFIX, existing_folder

TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_PUBLISHED = (".safetensors", ".json", ".md")


@dataclass(frozen=True)
class PushPlan:
    """What goes where. The token is not part of it, so that a plan can be shown and logged."""

    folder: Path
    repository: str
    private: bool
    files: tuple[str, ...]
    size_bytes: int

    @property
    def summary(self) -> str:
        seen = "private" if self.private else "PUBLIC"
        return f"{len(self.files)} files, {self.size_bytes / 1e6:.1f} MB, to {self.repository} ({seen})"


def plan_push(folder: Path, repository: str, public: bool = False) -> PushPlan:
    """Check a folder and a repository name ("user/name") without talking to the Hub."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    folder = existing_folder(folder, "the folder to publish")
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UserError(
            f'"{repository}" is no name of a Hub repository.', fix="Write it as user/name.", detail=str(error)
        ) from error
    if "/" not in repository:
        raise UserError(f'"{repository}" names no user or organisation.', fix="Write it as user/name.")
    files = sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and path.suffix in _PUBLISHED and not path.name.startswith((".", TEMPORARY_PREFIX))
    )
    if not any(path.suffix == ".safetensors" for path in files):
        raise UserError(f"{folder} holds no weights to publish.", fix="Export an adapter there first.")
    size = sum(path.stat().st_size for path in files)
    return PushPlan(folder, repository, not public, tuple(path.name for path in files), size)


def hub_token() -> str:
    """The token from the environment; a UserError when there is none."""
    for name in TOKEN_VARIABLES:
        if token := os.environ.get(name):
            return token
    raise UserError(
        "Publishing needs a Hugging Face token, and there is none in the environment.",
        fix=f"Make one with write access on huggingface.co and set it as {TOKEN_VARIABLES[0]}.",
    )


def push(plan: PushPlan, token: str) -> str:
    """Upload the planned files and nothing else; returns the address. An existing repository keeps its visibility."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

    api = HfApi(token=token)
    try:
        api.create_repo(plan.repository, private=plan.private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=plan.repository,
            folder_path=str(plan.folder),
            allow_patterns=[glob.escape(name) for name in plan.files],
            commit_message="Adapter for ACE-Step 1.5",
        )
    except (HTTPError, OfflineModeIsEnabled) as error:  # refused by the Hub, or never got there
        raise UserError(
            f"The Hub did not take {plan.repository}.",
            fix="Check the name, the token's rights and the network; nothing here was changed.",
            detail=str(error),
        ) from error
    return str(commit.repo_url) if commit.repo_url else f"https://huggingface.co/{plan.repository}"
