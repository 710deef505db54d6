"""The `acestep` command: one subcommand a stage, its options made from the settings.

Exit codes: 0 the work was done; 1 it was not; 2 the command line is wrong; 3 it was done, but some songs were
left out; 130 it was stopped, and files that were finished are kept.
"""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from acestep import __version__
from acestep.cli.arguments import parse_options, wants_json
from acestep.cli.command import EXIT_FAILED, EXIT_STOPPED, EXIT_USAGE
from acestep.cli.commands import COMMANDS, Command, Output
from acestep.cli.terminal import TerminalListener, say_error
from acestep.core.errors import Stopped, UserError, did_you_mean
from acestep.core.jobs import Job, is_main_process

__all__ = ["COMMANDS", "main"]

STOPPED = "Stopped. Files that were finished are kept; run the same command again to go on."
ENDED = "Ended at once."


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code. Results go to standard output, everything else to standard error."""
    _speak_utf8()
    try:
        return _main(sys.argv[1:] if arguments is None else arguments)
    except BrokenPipeError:  # whoever read our output has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - python flushes it when it ends
        return EXIT_FAILED


def _main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return 0 if arguments else EXIT_USAGE
    if arguments[0] == "--version":
        print(__version__)
        return 0
    _quiet_libraries()
    try:
        command = _command(arguments[0])
        options = parse_options(command.options, arguments[1:], f"acestep {command.name}", command.summary)
    except UserError as error:
        _print_error(error, wants_json(arguments))
        return EXIT_USAGE
    except SystemExit as exit_request:  # tyro has printed help or what is wrong with the usage
        return int(exit_request.code or 0)
    except KeyboardInterrupt:
        return _stopped(ENDED, wants_json(arguments), Job())
    return run(command, options, as_json=options.as_json)


def _command(name: str) -> Command:
    if name in COMMANDS:
        return COMMANDS[name]
    raise UserError(f'There is no command "{name}".{did_you_mean(name, COMMANDS)}', fix="See acestep --help.")


def run(command: Command, options: Any, as_json: bool) -> int:
    """Run a command with parsed options and print its output."""
    job = Job(TerminalListener() if is_main_process() else None)
    try:
        with stop_signals(job):
            output: Output = command.run(options, job)
    except UserError as error:
        _print_error(error, as_json)
        return EXIT_FAILED
    except Stopped:
        return _stopped(STOPPED, as_json, job)
    except KeyboardInterrupt:
        return _stopped(ENDED, as_json, job)
    if not is_main_process():
        return 0  # whoever started it ends the other processes where one ends with another code
    data = output.data | (_kept(job) if output.exit_code == EXIT_STOPPED else {})
    print(json.dumps(data, indent=1, ensure_ascii=False) if as_json else "\n".join(output.lines), flush=True)
    return output.exit_code


@contextmanager
def stop_signals(job: Job) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask the job to stop at its next safe point; a second Ctrl-C ends it at once."""

    def ask(number: int, frame: FrameType | None) -> None:
        if job.stop_requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        job.request_stop()
        # From a thread: the signal may have come in the middle of another line, which must be finished first.
        words = "Stopping at the next safe point; press Ctrl-C again to end at once."
        threading.Thread(target=say_error, args=(words,)).start()

    try:
        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: whoever called us has its own way to stop
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def overview() -> str:
    """What `acestep --help` prints."""
    width = max(len(name) for name in COMMANDS)
    rows = [f"  {command.name:<{width}}  {command.summary}" for command in COMMANDS.values()]
    return "\n".join(
        [
            "acestep: teach the ACE-Step 1.5 music model a style or a voice.",
            "",
            "Commands:",
            *rows,
            "",
            "`acestep COMMAND --help` shows every option with its default and bounds.",
        ]
    )


def _print_error(error: UserError, as_json: bool) -> None:
    say_error(str(error))
    if error.detail:
        print(error.detail, file=sys.stderr)
    if as_json:
        print(json.dumps({"error": error.message, "fix": error.fix, "detail": error.detail}, ensure_ascii=False))


def _stopped(words: str, as_json: bool, job: Job) -> int:
    say_error(words)
    if as_json and is_main_process():
        print(json.dumps({"stopped": True, "message": words, **_kept(job)}, ensure_ascii=False), flush=True)
    return EXIT_STOPPED


def _kept(job: Job) -> dict[str, Any]:
    """Where what was finished lies, of what the command knows."""
    places = [path.expanduser() for path in job.kept]
    return {"kept": [str(path.resolve()) for path in places if path.exists()]}


def _speak_utf8() -> None:
    """Names of songs are in every script, and a pipe or a file on Windows would take only those of its code page."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what stands there instead in notebooks and tests stays as it is
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def _quiet_libraries() -> None:
    """Libraries' own progress bars and advice would drown the program's lines."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    for name in ("lycoris", "LyCORIS", "lightning_fabric", "httpx", "filelock", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
