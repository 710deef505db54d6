"""Results for the user to take along: links to files, and folders as ZIP archives."""

from __future__ import annotations

import zipfile
from html import escape
from pathlib import Path
from urllib.parse import quote

from gradio import processing_utils
from gradio.utils import get_upload_folder

from acestep.core.paths import atomic_file, value_hash
from acestep.ui.app import App
from acestep.ui.machine import size_words

LARGEST_BYTES = 1_000_000_000
"""Larger results stay where they are: no browser is needed to copy them."""


def download_link(app: App, path: Path) -> str:
    """A link to a file or folder, or where it lies when that is too large. `path` is one the app has written."""
    files = [path] if path.is_file() else sorted(item for item in path.rglob("*") if item.is_file())
    size = sum(file.stat().st_size for file in files)
    where = f'<p class="quiet">It lies in {escape(str(path))}, {size_words(size)}.</p>'
    if not files or size > LARGEST_BYTES:
        return where
    if path.is_file():
        source = path if path.is_relative_to(app.output) else _copied(path)
        name, words = path.name, "Download the file"
    else:
        source, name, words = _zipped(path, files), f"{path.name}.zip", "Download as a ZIP"
    # relative: behind a proxy the app does not stand at the root
    address = f"gradio_api/file={quote(str(source))}"
    return f'{where}<p><a class="download" href="{address}" download="{escape(name)}">{words}</a></p>'


def _copied(path: Path) -> Path:
    return Path(processing_utils.save_file_to_cache(path, get_upload_folder()))


def _zipped(folder: Path, files: list[Path]) -> Path:
    """An archive of the folder in the server's cache, made once for the same files."""
    sign = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    archive = Path(get_upload_folder()) / value_hash(sign)[:32] / f"{folder.name}.zip"
    if not archive.exists():
        with atomic_file(archive) as temporary, zipfile.ZipFile(temporary, "w") as bundle:
            for file in files:  # weights do not get smaller by compression
                bundle.write(file, Path(folder.name) / file.relative_to(folder))
    return archive
