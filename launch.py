"""Starts the apps or the demo: checks the installation, then hands over. Use start.sh (Windows: start.bat)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from acestep.core.errors import UserError
from acestep.core.health import require_packages

NOT_YET = (
    "The captioner in the browser comes with a later version; until then write each song's caption into a text file "
    "of the same name beside it, or into the Dataset tab of the trainer."
)


def main(arguments: list[str] | None = None) -> int:
    """Parse the arguments, check the installation, start what was asked for; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="launch.py",
        description="Start the trainer, the captioner, both, or the demo.",
        epilog="In demo mode further options go to `acestep demo`, such as --out DIR.",
    )
    parser.add_argument("--mode", choices=("train", "caption", "both", "demo"), default="train", help="what to start")
    parser.add_argument("--host", default="127.0.0.1", help="address the apps listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=7861, help="port of the first app (default: %(default)s)")
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
    if options.mode != "train":
        print(NOT_YET, file=sys.stderr)
        return 1
    import lora_training_ui
    from acestep.ui.serving import ServeOptions

    open_browser = not options.no_browser and sys.stdout.isatty()
    served = ServeOptions(options.host, options.port, options.share, options.auth, open_browser)
    lora_training_ui.run(served, tuple(options.root), options.demo, options.project)
    return 0


if __name__ == "__main__":
    sys.exit(main())
