"""Fetching published models from the Hugging Face Hub: first what it would cost, then file by file, with resume.

Partial files stay beside their target as `NAME.….part` and are continued by the next attempt, in this process or
another (huggingface_hub itself throws them away). Files are checked against the hub's checksums before they get their
name. Python files of the repositories are never fetched.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from acestep.core.errors import UserError, did_you_mean
from acestep.core.jobs import Job, Stage
from acestep.core.paths import disk_errors, give_name, output_folder
from acestep.core.words import counted
from acestep.model.checkpoints import DIFFUSERS_STEM, SILENCE_LATENT_FILE, WEIGHTS_STEM
from acestep.model.variants import MAIN_REPOSITORY, TEXT_ENCODER_FOLDER, VAE_FOLDER, VARIANTS, Variant
from acestep.model.weights import weight_files

_WANTED_SUFFIXES = (".json", ".safetensors", ".txt", ".jinja")
_SPARE_BYTES = 200_000_000  # room a disk should keep
_CHUNK_BYTES = 1 << 22
_SINGLE_WEIGHTS = re.compile(rf"{WEIGHTS_STEM}\.safetensors")
_SHARDED_WEIGHTS = re.compile(rf"{WEIGHTS_STEM}-[0-9]+-of-[0-9]+\.safetensors")


@dataclass(frozen=True)
class RemoteFile:
    """One file of a hub repository and where it goes. `sha256` is empty for small files kept in git."""

    repo: str
    revision: str
    path: str
    target: Path
    size_bytes: int
    sha256: str
    content_id: str

    @property
    def partial(self) -> Path:
        """Where its bytes are collected. The name holds the content's id, so versions are never mixed."""
        return self.target.with_name(f"{self.target.name}.{self.content_id[:16]}.part")

    @property
    def is_there(self) -> bool:
        return self.target.is_file()

    @property
    def present_bytes(self) -> int:
        if self.is_there:
            return self.size_bytes
        return min(self.partial.stat().st_size, self.size_bytes) if self.partial.is_file() else 0


@dataclass(frozen=True)
class DownloadPlan:
    """What fetching a model means: every file of it that belongs into `folder`, whether it is there or not.

    The model itself goes into the sub-folder `name`.
    """

    name: str
    folder: Path
    files: tuple[RemoteFile, ...]

    @property
    def total_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    @property
    def present_bytes(self) -> int:
        return sum(file.present_bytes for file in self.files)

    @property
    def remaining_bytes(self) -> int:
        return self.total_bytes - self.present_bytes

    def summary(self) -> str:
        """What is to be fetched, in a sentence."""
        repos = " and ".join(dict.fromkeys(file.repo for file in self.files))
        if not self.remaining_bytes:
            return f"{self.name} is complete in {self.folder}."
        here = f", of which {_spoken(self.present_bytes)} are there" if self.present_bytes else ""
        return (
            f"{self.name} from {repos}: {counted(len(self.files), 'files')}, {_spoken(self.total_bytes)}{here}; "
            f"{_spoken(self.remaining_bytes)} to fetch into {self.folder}."
        )


def plan_download(variant_name: str, folder: Path) -> DownloadPlan:
    """Ask the hub what a variant consists of. Nothing is written.

    VAE and text encoder are part of the plan unless `folder` has them. Raises UserError for an unknown variant, a hub
    that cannot be reached, and files of other content that stand in the way.
    """
    variant = _variant(variant_name)
    folder = Path(folder).expanduser().resolve()
    files = _files_of(variant.repo, variant.subfolder, folder / variant.folder)
    for shared, stem in ((VAE_FOLDER, DIFFUSERS_STEM), (TEXT_ENCODER_FOLDER, WEIGHTS_STEM)):
        if not _is_whole(folder / shared, stem):
            files += _files_of(MAIN_REPOSITORY, shared, folder / shared)
    return _checked(DownloadPlan(variant.folder, folder, tuple(files)))


def plan_repository(repo: str, folder: Path, name: str, revision: str = "", subfolder: str = "") -> DownloadPlan:
    """Ask the hub for the model in a repository (any of them) that is to lie in `folder`/`name`. Nothing is written.

    The model lies at the top of the repository or in `subfolder`. `revision` is a branch, tag or commit; empty takes
    the newest. Where weights are there in several forms, those that transformers loads by default are taken. Raises
    UserError as `plan_download` does.
    """
    folder = Path(folder).expanduser().resolve()
    files = _files_of(repo, subfolder, folder / name, revision)
    single = any(file.target.name == f"{WEIGHTS_STEM}.safetensors" for file in files)
    weights = _SINGLE_WEIGHTS if single else _SHARDED_WEIGHTS
    kept = [file for file in files if not file.path.endswith(".safetensors") or weights.fullmatch(file.target.name)]
    return _checked(DownloadPlan(name, folder, tuple(kept)))


def download(variant_name: str, folder: Path, job: Job) -> Path:
    """Fetch a variant into `folder`, telling the size first. Returns the model's folder."""
    plan = plan_download(variant_name, folder)
    job.say(plan.summary())
    return fetch(plan, job)


def fetch(plan: DownloadPlan, job: Job) -> Path:
    """Fetch what is missing of a plan, continuing partial files. Returns the model's folder.

    Raises Stopped when the job is asked to stop, and UserError for whatever goes wrong; what has arrived is kept.
    """
    folder = output_folder(plan.folder, "the folder for models")
    free = shutil.disk_usage(folder).free
    if plan.remaining_bytes + _SPARE_BYTES > free and plan.remaining_bytes:
        raise UserError(
            f"{folder} has {_spoken(free)} free; the download needs {_spoken(plan.remaining_bytes)}.",
            fix="Free some space, or choose a folder on another disk.",
        )
    with job.stage("download", plan.total_bytes, "bytes") as stage:
        stage.already = plan.present_bytes
        stage.advance(plan.present_bytes)
        for file in plan.files:
            job.check_stop()
            if not file.is_there:
                _fetch_file(file, job, stage)
    return plan.folder / plan.name


def _variant(name: str) -> Variant:
    for variant in VARIANTS.values():
        if name.strip() in (variant.name, variant.folder, variant.repo):
            return variant
    raise UserError(
        f'There is no published model "{name}".{did_you_mean(name, VARIANTS)}',
        fix=f"Choose one of: {', '.join(VARIANTS)}.",
    )


def _checked(plan: DownloadPlan) -> DownloadPlan:
    """The plan, if no file of other content stands in its way."""
    for file in plan.files:
        if file.is_there and file.target.stat().st_size != file.size_bytes:
            raise UserError(
                f"{file.target} is there but differs from the published file ({file.target.stat().st_size:,} instead "
                f"of {file.size_bytes:,} bytes).",
                fix="Move it away, or choose another folder.",
            )
    return plan


def _is_whole(folder: Path, stem: str) -> bool:
    """Whether a shared folder is there with its weights, wherever it came from."""
    try:
        return (folder / "config.json").is_file() and bool(weight_files(folder, stem))
    except UserError:
        return False


def _files_of(repo: str, subfolder: str, target: Path, revision: str = "") -> list[RemoteFile]:
    """The wanted files that lie directly in a repository or in one of its sub-folders."""
    from huggingface_hub import HfApi

    with _hub_errors(repo):
        info = HfApi().model_info(repo, revision=revision or None, files_metadata=True)
    files = []
    for sibling in info.siblings or []:
        path = PurePosixPath(sibling.rfilename)
        if str(path.parent) != (subfolder or ".") or not _is_wanted(path.name) or sibling.size is None:
            continue
        checksum = sibling.lfs.sha256 if sibling.lfs else ""
        content_id = checksum or sibling.blob_id or info.sha or ""
        files.append(
            RemoteFile(repo, info.sha or "main", str(path), target / path.name, sibling.size, checksum, content_id)
        )
    names = {file.target.name for file in files}
    if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
        where = f"{subfolder} of {repo}" if subfolder else repo
        raise UserError(f"{where} on the hub holds no model.", fix="Update this program; the model may have moved.")
    return files


def _is_wanted(name: str) -> bool:
    return not name.startswith(".") and (name.endswith(_WANTED_SUFFIXES) or name == SILENCE_LATENT_FILE)


def _fetch_file(file: RemoteFile, job: Job, stage: Stage) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    class Progress:
        """The part of tqdm that http_get uses; an error in `update` ends the transfer."""

        def __init__(self, *, initial: int = 0, **_facts: Any) -> None:
            stage.advance(initial - present)  # less than asked for where the server sends the whole file again

        def __enter__(self) -> Progress:
            return self

        def __exit__(self, *_error: object) -> None: ...

        def update(self, count: int) -> None:
            job.check_stop()
            stage.advance(count, note=file.target.name)

    with disk_errors(file.target):
        file.target.parent.mkdir(parents=True, exist_ok=True)
        present = file.partial.stat().st_size if file.partial.is_file() else 0
        if present > file.size_bytes:
            file.partial.unlink()
            present = 0
        with _hub_errors(file.repo), open(file.partial, "ab") as handle:
            http_get(
                hf_hub_url(file.repo, file.path, revision=file.revision),
                handle,
                resume_size=present,
                headers=build_hf_headers(),
                expected_size=file.size_bytes,
                tqdm_class=Progress,  # type: ignore[arg-type]  # used by these three methods only
            )
            handle.flush()
            os.fsync(handle.fileno())
        _check_content(file)
        give_name(file.partial, file.target)
        for outdated in file.target.parent.glob(f"{glob.escape(file.target.name)}.*.part"):
            outdated.unlink()


def _check_content(file: RemoteFile) -> None:
    """Compare the checksum; a partial file that is wrong is removed, so that the next attempt starts afresh."""
    if not file.sha256:
        return
    digest = hashlib.sha256()
    with open(file.partial, "rb") as handle:
        while block := handle.read(_CHUNK_BYTES):
            digest.update(block)
    if digest.hexdigest() != file.sha256:
        file.partial.unlink()
        raise UserError(f"{file.path} of {file.repo} arrived damaged.", fix="Run the same command again.")


@contextlib.contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """Turn the hub's refusals into sentences."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    again = "Run the same command again; what has arrived is kept."
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise UserError("Downloads are switched off by HF_HUB_OFFLINE.", fix="Unset that variable.") from error
    except GatedRepoError as error:
        raise UserError(
            f"{repo} is only given to people who accepted its terms.",
            fix=f"Accept them on https://huggingface.co/{repo}, then run `hf auth login`.",
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"The hub has no repository {repo}, or does not show it to you.",
            fix="Update this program; for private repositories run `hf auth login`.",
        ) from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "an error")
        raise UserError(f"The hub answered {status} for {repo}.", fix=again, detail=str(error)) from error
    except HTTPError as error:
        raise UserError(
            f"The hub cannot be reached ({type(error).__name__}).",
            fix=f"Check the connection. {again}",
            detail=str(error),
        ) from error
    except OSError as error:
        if "Consistency check failed" not in str(error):
            raise
        raise UserError(f"A file of {repo} arrived incomplete.", fix=again, detail=str(error)) from error


def _spoken(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e8 else f"{size_bytes / 1e6:.1f} MB"
