"""Starts the apps or the demo: checks the installation, then hands over. Use start.sh (Windows: start.bat)."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from acestep.core.errors import UserError
from acestep.core.health import require_packages
from acestep.core.paths import disk_errors

HIGHEST_PORT = 65535


def main(arguments: list[str] | None = None) -> int:
    """Parse the arguments, check the installation, start what was asked for; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="launch.py",
        description="Start the trainer, the captioner, both, or the demo.",
        epilog="In demo mode further options go to `acestep demo`, such as --out DIR.",
    )
    parser.add_argument("--mode", choices=("train", "caption", "both", "demo"), default="train", help="what to start")
    parser.add_argument("--host", default="127.0.0.1", help="address the apps listen on (default: %(default)s)")
    parser.add_argument(
        "--port",
        type=int,
        default=7861,
        help="port of the first app; of both, the captioner has the next (default: %(default)s)",
    )
    parser.add_argument("--share", action="store_true", help="make a public link to the apps; needs --auth")
    parser.add_argument(
        "--auth", default="", metavar="USER:PASSWORD", help="who may use the apps (or set ACESTEP_AUTH)"
    )
    parser.add_argument(
        "--root", action="append", default=[], type=Path, metavar="FOLDER", help="another folder the apps may open"
    )
    parser.add_argument(
        "--project",
        type=Path,
        default=Path(__file__).parent,
        metavar="FOLDER",
        help="where models, songs and results are kept (default: beside the program)",
    )
    parser.add_argument("--demo", action="store_true", help="open the trainer with the demo's songs and model")
    parser.add_argument("--no-browser", action="store_true", help="do not open the page in a browser")
    options, rest = parser.parse_known_args(arguments)
    if rest and options.mode != "demo":
        parser.error(f"unknown options: {' '.join(rest)}")
    try:
        require_packages()
        return start(options, rest)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1


def start(options: argparse.Namespace, rest: list[str]) -> int:
    """Hand over to what was asked for."""
    if options.mode == "demo":
        from acestep.cli import main as acestep  # not before the check: it needs the packages

        return acestep(["demo", *rest])
    keep_uploads_private()
    from acestep.ui.serving import ServeOptions, credentials

    open_browser = not options.no_browser and sys.stdout.isatty()
    served = ServeOptions(options.host, options.port, options.share, options.auth, open_browser)
    if options.mode == "both":
        credentials(served)  # what is wrong with them is said once, before anything starts
        return start_both(options)
    if options.mode == "caption":
        import captioner_ui

        captioner_ui.run(served, tuple(options.root), options.project)
    else:
        import lora_training_ui

        lora_training_ui.run(served, tuple(options.root), options.demo, options.project)
    return 0


def keep_uploads_private() -> None:
    """Let Gradio keep what is uploaded and shown in a folder of this user.

    Its own choice is one folder for all users of a computer: whoever comes second could not write there, and could
    read what the first one brought. It is looked up when gradio is imported.
    """
    from acestep.core.jobs import state_folder

    if not os.environ.get("GRADIO_TEMP_DIR"):
        folder = state_folder() / "uploads"
        with disk_errors(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
        os.environ["GRADIO_TEMP_DIR"] = str(folder)


def start_both(options: argparse.Namespace) -> int:
    """Each app in a process of its own, the captioner on the next port, until one of them ends."""
    from acestep.core.together import run_together
    from acestep.ui.serving import AUTH_VARIABLE

    if not 0 < options.port < HIGHEST_PORT:
        raise UserError(f"The apps cannot listen on port {options.port} and the next.", fix="Choose another --port.")
    common = ["--host", options.host, *(["--share"] if options.share else [])]
    common += [word for root in options.root for word in ("--root", str(root.absolute()))]
    common += ["--project", str(options.project.absolute())]
    common += ["--no-browser"] if options.no_browser else []
    program = [sys.executable, str(Path(__file__).resolve())]
    trainer = [*program, "--mode", "train", "--port", str(options.port), *(["--demo"] if options.demo else [])]
    captioner = [*program, "--mode", "caption", "--port", str(options.port + 1)]
    # the password is no argument of theirs: arguments of programs are seen by every user of the computer
    secrets = {AUTH_VARIABLE: options.auth} if options.auth else {}
    return run_together([[*trainer, *common], [*captioner, *common]], secrets)


if __name__ == "__main__":
    sys.exit(main())
