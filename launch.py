"""Starts the apps or the demo: checks the installation, then hands over. Use start.sh (Windows: start.bat)."""

from __future__ import annotations

import argparse
import sys

from acestep.core.errors import UserError
from acestep.core.health import require_packages

NOT_YET = {
    "train": (
        "The trainer in the browser comes with a later version; until then use the command line: "
        "acestep dataset, acestep preprocess and acestep train, as README.md shows."
    ),
    "caption": (
        "The captioner in the browser comes with a later version; until then write each song's caption into a text "
        "file of the same name beside it, and look at the result with acestep dataset, as README.md shows."
    ),
    "both": (
        "Trainer and captioner in the browser come with a later version; until then use the command line: "
        "acestep dataset, acestep preprocess and acestep train, as README.md shows."
    ),
}


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
    parser.add_argument("--share", action="store_true", help="make a public link to the apps")
    options, rest = parser.parse_known_args(arguments)
    if rest and options.mode != "demo":
        parser.error(f"unknown options: {' '.join(rest)}")
    try:
        require_packages()
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    if options.mode != "demo":
        print(NOT_YET[options.mode], file=sys.stderr)
        return 1

    from acestep.cli import main as acestep  # not before the check: it needs the packages

    return acestep(["demo", *rest])


if __name__ == "__main__":
    sys.exit(main())
