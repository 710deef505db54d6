"""`acestep analyze`: tempo, key, metre, length and loudness of sound files, without a model."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acestep.cli.arguments import POSITIONAL, CommandOptions
from acestep.cli.command import EXIT_PARTLY, EXIT_STOPPED, Command, Output, problem_lines
from acestep.core.errors import Problem, Stopped, UserError
from acestep.core.jobs import Job
from acestep.core.words import counted
from acestep.settings import knob

if TYPE_CHECKING:
    from acestep.audio.analysis import Analysis
    from acestep.audio.weighing import Estimate


class AnalyzeOptions(CommandOptions):
    paths: tuple[Path, ...] = knob(..., "Audio files, and folders that are searched for them.", group=POSITIONAL)


def analyze(options: AnalyzeOptions, job: Job) -> Output:
    """Analyse every sound file named or found; files that cannot be read are reported and left out.

    When it is stopped, what was analysed by then is shown.
    """
    if not options.paths:
        raise UserError("No sound file was named.", fix="Name audio files, or folders that hold some.")
    paths, problems = _find(options.paths)
    found: dict[Path, Analysis] = {}
    results = _analyze_all(paths, job)
    for path, result in zip(paths, results, strict=False):
        if isinstance(result, UserError):
            problems.append(Problem(str(path), str(result)))
        else:
            found[path] = result
            problems += [Problem(str(path), note, "warning") for note in result.notes]
    stopped = len(results) < len(paths)
    if not found and not stopped:
        raise UserError(
            "No sound file could be analysed." if paths else "No sound file was found.",
            fix="Name audio files, or folders that hold some.",
            detail="\n".join(problem_lines(problems)),
        )
    errors = [problem for problem in problems if problem.severity == "error"]
    data = {
        "songs": [{"path": str(path), **result.to_dict()} for path, result in found.items()],
        "problems": [problem.to_dict() for problem in problems],
        "stopped": stopped,
    }
    lines = [*table(found), *problem_lines(problems)]
    if stopped:
        lines.append(f"Stopped after {len(results)} of {counted(len(paths), 'files')}.")
    code = EXIT_STOPPED if stopped else EXIT_PARTLY if errors else 0
    return Output(data, lines, code)


def _find(given: tuple[Path, ...]) -> tuple[list[Path], list[Problem]]:
    """The files meant, each once, in the order given; and what of the folders could not be looked at."""
    from acestep.dataset.walk import walk

    paths: dict[Path, None] = {}
    problems: list[Problem] = []
    for path in given:
        if not path.is_dir():
            paths[path] = None  # a file that is missing is told when it is read
            continue
        tree = walk(path.resolve())
        problems += tree.problems
        paths |= {path / folder.relative_name(name): None for folder in tree.folders for name in folder.audio}
    return list(paths), problems


def _analyze_all(paths: list[Path], job: Job) -> list[Analysis | UserError]:
    """What was found in each file, in their order; of the first ones only where the job is stopped."""
    from acestep.audio.analysis import analyze as analyze_one
    from acestep.audio.analysis import prepare, threads_at_once

    prepare()

    def run(path: Path) -> Analysis | UserError:
        job.check_stop()
        try:
            result: Analysis | UserError = analyze_one(path)
        except UserError as error:
            result = error
        return result

    results = []
    with (
        contextlib.suppress(Stopped),
        job.stage("analyze", len(paths), "songs") as stage,
        ThreadPoolExecutor(threads_at_once()) as pool,
    ):
        for path, result in zip(paths, pool.map(run, paths), strict=True):
            results.append(result)
            stage.advance(note=path.name)
    return results


def table(found: dict[Path, Analysis]) -> list[str]:
    """One line a song: name, length, loudness, and each value with its confidence."""
    width = max((len(path.name) for path in found), default=0)
    return [f"{path.name:<{width}}  {_words(result)}" for path, result in found.items()]


def _words(result: Analysis) -> str:
    minutes, seconds = divmod(round(result.duration_s), 60)
    loudness = "  silent?" if result.loudness_lufs is None else f"{result.loudness_lufs:6.1f} LUFS"
    return "  ".join(
        [
            f"{minutes:3}:{seconds:02}",
            loudness,
            _told(result.bpm, "tempo", " BPM"),
            _told(result.keyscale, "key"),
            _told(result.timesignature, "metre", "/8" if result.timesignature.value == "6" else "/4"),
        ]
    )


def _told(estimate: Estimate[Any], what: str, unit: str = "") -> str:
    if estimate.value is not None:
        return f"{estimate.value}{unit} ({estimate.confidence:.0%})"
    return (
        f"no {what}" if estimate.runner_up is None else f"no {what} ({estimate.runner_up}? {estimate.confidence:.0%})"
    )


ANALYZE_COMMAND = Command(
    "analyze", "tempo, key, metre, length and loudness of songs, without a model", AnalyzeOptions, analyze
)
