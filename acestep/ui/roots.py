"""The folders an app may show and open: nothing outside them can be reached from a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from acestep.core.errors import UserError


class Roots:
    """Allowed folders and everything below them, links resolved."""

    def __init__(self, folders: Sequence[Path]) -> None:
        resolved = [folder.expanduser().resolve() for folder in folders]
        self.folders = list(dict.fromkeys(folder for folder in resolved if folder.is_dir()))

    def allows(self, path: Path) -> bool:
        """Whether `path`, wherever its links lead, is one of the folders or lies below one."""
        resolved = path.resolve()
        return any(resolved.is_relative_to(folder) for folder in self.folders)

    def resolve(self, typed: str | Path, what: str) -> Path:
        """The path a user typed or chose, absolute and without links.

        Raises UserError when it is empty or outside the allowed folders; `what` names the field.
        """
        text = str(typed).strip().strip('"')
        if not text:
            raise UserError(f"{what} is empty.", fix="Choose a folder or type its path.")
        try:
            path = Path(text).expanduser().resolve()
        except (OSError, RuntimeError, ValueError) as error:  # a loop of links, an unknown home, a NUL byte
            raise UserError(f"{what}: {text!r} is no path ({error}).", fix="Correct it.") from error
        if not self.allows(path):
            allowed = ", ".join(str(folder) for folder in self.folders)
            raise UserError(
                f"{what}: {path} is outside the folders this app may open ({allowed}).",
                fix="Choose one of them, or start the app with --root FOLDER to allow another.",
            )
        return path

    def subfolders(self, folder: Path) -> list[Path]:
        """The folders directly in `folder` that may be opened, hidden ones left out, by name.

        Raises UserError when `folder` cannot be read.
        """
        try:
            found = [path for path in folder.iterdir() if not path.name.startswith(".") and path.is_dir()]
        except OSError as error:
            raise UserError(f"{folder} cannot be read: {error.strerror}.", fix="Choose another folder.") from error
        return sorted((path for path in found if self.allows(path)), key=lambda path: path.name.lower())

    def parent(self, folder: Path) -> Path | None:
        """The folder above, or None where that may not be opened."""
        above = folder.parent
        return above if above != folder and self.allows(above) else None
