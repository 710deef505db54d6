"""What a command is: a name, its options, and a function from these to an output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from acestep.cli.arguments import CommandOptions
from acestep.core.errors import Problem
from acestep.core.jobs import Job

EXIT_FAILED, EXIT_USAGE, EXIT_PARTLY, EXIT_STOPPED = 1, 2, 3, 130
MODEL_HELP = "Model: a name found in checkpoints/, or the path of a checkpoint folder."


@dataclass(frozen=True)
class Output:
    """A command's result: data for --json, lines for people."""

    data: dict[str, Any]
    lines: list[str]
    exit_code: int = 0


@dataclass(frozen=True)
class Command:
    """One subcommand."""

    name: str
    summary: str
    options: type[CommandOptions]
    run: Callable[[Any, Job], Output]


def problem_lines(problems: list[Problem] | tuple[Problem, ...]) -> list[str]:
    return [f"  {problem.severity}: {problem}" for problem in problems]
