"""The commands: what each takes, and what it calls. The work itself is in the rooms above.

Rooms are imported inside the functions, so that `--help` and light commands start at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from acestep.cli.analyze_command import ANALYZE_COMMAND
from acestep.cli.approval import approval
from acestep.cli.arguments import POSITIONAL, CommandOptions, WithPreset, settings_in
from acestep.cli.caption_command import CAPTION_COMMAND
from acestep.cli.command import EXIT_FAILED, EXIT_PARTLY, EXIT_STOPPED, MODEL_HELP, Command, Output, problem_lines
from acestep.cli.dataset_edits import DatasetEditOptions, apply_edits, check_edits, unpacked, write_outputs
from acestep.cli.estimate_command import ESTIMATE_COMMAND
from acestep.cli.export_commands import EXPORT_COMMANDS
from acestep.cli.preset_commands import PRESET_COMMANDS
from acestep.cli.terminal import confirm
from acestep.core.errors import Problem, UserError
from acestep.core.jobs import Job, heavy_job
from acestep.core.words import counted
from acestep.settings import DatasetSettings, GenerateSettings, PreprocessSettings, TrainSettings, knob
from acestep.settings.generate import SweepSettings
from acestep.training.requests import RunRequest, ask

if TYPE_CHECKING:
    from acestep.generate import Generated
    from acestep.model.checkpoints import Checkpoint


def _checkpoint(name: str) -> Checkpoint:
    from acestep.model.checkpoints import resolve_checkpoint

    return resolve_checkpoint(name)


# dataset ----------------------------------------------------------------------------------------------------------


class DatasetOptions(DatasetSettings, DatasetEditOptions):
    folder: Path = knob(..., "Folder of songs, a dataset file, or a ZIP archive of songs.", group=POSITIONAL)


def dataset(options: DatasetOptions, job: Job) -> Output:
    """Scan a folder, report every problem, edit labels, save the dataset file."""
    from acestep.dataset.dataset import summary
    from acestep.dataset.store import load_dataset, save_dataset

    check_edits(options, options.folder)
    source, skipped = unpacked(options.folder, options, job)
    found = load_dataset(source, job=job, edits=options.save)
    found.problems += skipped
    if not found.songs:
        raise UserError(
            f"No usable song was found in {options.folder}.",
            fix="Put audio files there, or choose another folder.",
            detail="\n".join(problem_lines(found.problems)),
        )
    edit_lines, changes = apply_edits(found, options, source)
    facts = summary(found)
    lines = [
        f"{counted(facts.songs, 'songs')}, {facts.duration_s / 60:.1f} min: {facts.labeled} labelled, "
        f"{facts.instrumental} instrumental, {facts.with_lyrics} with lyrics"
        + (f", {facts.regularization} for regularization." if facts.regularization else "."),
        *problem_lines(found.problems),
        *edit_lines,
    ]
    if options.save:
        save_dataset(found, options.save)
        lines.append(f"Saved to {options.save}.")
    more_lines, written, failed = write_outputs(found, options, job)
    data = {**facts.to_dict(), "problems": [problem.to_dict() for problem in found.problems], "changes": changes}
    return Output({**data, **written}, lines + more_lines, EXIT_PARTLY if facts.errors or failed else 0)


# preprocess -------------------------------------------------------------------------------------------------------


class PreprocessOptions(PreprocessSettings, CommandOptions):
    dataset: Path = knob(..., "Folder of labelled songs, or a dataset file.", group=POSITIONAL)
    model: str = knob(..., MODEL_HELP, group="command")
    out: Path = knob(..., "Folder the tensors go to.", group="command")
    trigger_word: str | None = knob(None, "Trigger word, where the dataset file has none.", group="command")
    config: Path | None = knob(None, "Settings file (JSON).", group="command")


def preprocess(options: PreprocessOptions, job: Job) -> Output:
    """Encode the songs of a dataset into a tensor folder."""
    from acestep.dataset.store import load_dataset
    from acestep.preprocess.run import preprocess as encode

    checkpoint = _checkpoint(options.model)
    found = load_dataset(options.dataset, job=job)
    if options.trigger_word is not None:
        found.settings = found.settings.changed(trigger_word=options.trigger_word)
    job.kept.append(options.out)
    with heavy_job(f"preprocess {options.dataset}"):
        report = encode(found, checkpoint, options.out, settings_in(options, PreprocessSettings), job)
    problems = [*found.problems, *report.problems]
    lines = [
        f"{counted(report.total, 'songs')} in {report.folder}: {report.encoded} encoded, {report.reused} unchanged, "
        f"{report.failed} failed, {report.audio_s:.0f} s of audio, {report.size_bytes / 1e6:.1f} MB.",
        *(
            [f"Too long, so that tempo and key fall out of the prompt: {counted(report.metas_cut, 'captions')}."]
            if report.metas_cut
            else []
        ),
        *([f"Lyrics longer than the model reads: {counted(report.lyrics_cut, 'songs')}."] if report.lyrics_cut else []),
        *problem_lines(problems),
    ]
    data = {**report.to_dict(), "problems": [problem.to_dict() for problem in problems]}
    failed = any(problem.severity == "error" for problem in problems)
    return Output(data, lines, EXIT_PARTLY if failed else 0)


# train ------------------------------------------------------------------------------------------------------------


class TrainOptions(TrainSettings, WithPreset):
    model: str | None = knob(None, f"{MODEL_HELP} A resumed run knows its own.", group="command")
    tensors: Path | None = knob(None, "Folder written by preprocess. A resumed run knows its own.", group="command")
    out: Path | None = knob(None, "Run folder to make; unset makes one under lora_output/.", group="command")
    resume: Path | None = knob(None, "Run folder, or one of its checkpoints, to go on with.", group="command")
    yes: bool = knob(False, "Begin without a question where memory or disk will probably not suffice.", group="command")


def train(options: TrainOptions, job: Job) -> Output:
    """Train an adapter, or go on with a run."""
    from acestep.core.gpu import watched_gpu
    from acestep.preprocess.store import TensorStore
    from acestep.training.runs import RunFolder, new_run_path

    model, tensors, out = options.model, options.tensors, options.out
    if options.resume:
        run = RunFolder.open(options.resume)
        model = model or run.origin("model")
        tensors = tensors or Path(run.origin("tensors"))
        if out and out.resolve() != run.path:
            raise UserError("A resumed run goes on in its own folder.", fix="Leave --out away.")
        out = run.path
    if not model or not tensors:
        raise UserError("A new run needs --model and --tensors.", fix="See acestep train --help.")
    checkpoint, store = _checkpoint(model), TensorStore.open(tensors)
    out = out or new_run_path(Path("lora_output"), store.info.dataset_name)
    job.kept.append(out)

    with heavy_job(f"train {out}"):
        from acestep.training.train import train as train_adapter  # torch comes in here

        with watched_gpu(job):
            settings, approve = settings_in(options, TrainSettings), approval(options.yes, job)
            outcome = train_adapter(checkpoint, store, out, settings, job, options.resume, approve)
    summary = outcome.summary
    lines = [
        f"{'Stopped' if outcome.stopped else 'Finished'} at step {summary.step} of {summary.total_steps} "
        f"after {outcome.seconds:.1f} s.",
        f"Adapter: {outcome.adapter}",
    ]
    if summary.first_validation is not None and summary.best_validation is not None:
        lines.insert(
            1,
            f"Validation loss {summary.first_validation:.5f} before, {summary.best_validation:.5f} at its best "
            f"(step {summary.best_step}).",
        )
    if outcome.stopped:
        lines.append(f"Go on with: acestep train --resume {outcome.run.path}")
    return Output(outcome.to_dict(), lines, EXIT_STOPPED if outcome.stopped else 0)


# generate ---------------------------------------------------------------------------------------------------------


class GenerateOptions(GenerateSettings, SweepSettings, CommandOptions):
    model: str = knob(..., MODEL_HELP, group="command")
    out: Path = knob(..., "Audio file to write; several pieces add strength and seed to its name.", group="command")
    adapter: Path | None = knob(None, "Adapter folder or file.", group="command")


def generate(options: GenerateOptions, job: Job) -> Output:
    """Text to music, with or without an adapter; one file a strength and seed."""
    from acestep.audio.write import WRITABLE_SUFFIXES, write_audio
    from acestep.core.device import choose_device

    settings, sweep = settings_in(options, GenerateSettings), settings_in(options, SweepSettings)
    out = options.out if options.out.suffix else options.out.with_suffix(f".{settings.format}")
    if out.suffix.lower() not in WRITABLE_SUFFIXES:
        raise UserError(f"{out} has no known audio suffix.", fix=f"End it in {', '.join(WRITABLE_SUFFIXES)}.")
    checkpoint = _checkpoint(options.model)
    pieces: list[dict[str, Any]] = []

    def keep(piece: Generated, strength: float | None) -> None:
        stem = out.stem
        if strength is not None and len(set(sweep.strength)) > 1:
            stem += f"_strength_{strength:g}".replace(".", "_")
        if sweep.takes > 1:
            stem += f"_seed_{piece.seed}"
        path = write_audio(out.with_stem(stem), piece.samples, piece.sample_rate)
        job.kept.append(path)
        pieces.append({"path": str(path), "strength": strength, "seconds": piece.duration_s, "seed": piece.seed})

    with heavy_job(f"generate {out}"):
        from acestep.generate import load_parts, play_sweep  # torch comes in here

        parts = load_parts(checkpoint, choose_device(settings.device, settings.precision))
        play_sweep(parts, settings, sweep, options.adapter, keep, job)
    lines = [f"{piece['path']}: {piece['seconds']:.1f} s, seed {piece['seed']}" for piece in pieces]
    return Output({"pieces": pieces}, lines)


# runs -------------------------------------------------------------------------------------------------------------


class RunsOptions(CommandOptions):
    folder: Path = knob(Path("lora_output"), "Folder of runs, or one run.", group=POSITIONAL)
    compare: Path | None = knob(None, "Another run: show the settings in which the two differ.", group="command")
    delete: bool = knob(False, "Delete this run with everything in its folder; asks first.", group="command")
    yes: bool = knob(False, "Delete without asking.", group="command")
    request: RunRequest | None = knob(
        None, "Ask the run, while it goes on: play previews, save a checkpoint, or save and stop.", group="command"
    )


def runs(options: RunsOptions, job: Job) -> Output:
    """List runs, show one, compare two, delete one, or ask one that goes on for something."""
    from acestep.core.paths import existing_folder
    from acestep.training.history import RunHistory, delete_run
    from acestep.training.runs import RunFolder, compare, summarise

    if options.delete:
        doomed = RunFolder.open(options.folder)
        if not options.yes and not confirm(f"Delete {doomed.path} with its adapters and checkpoints?"):
            raise UserError("Nothing was deleted.", fix="Run it again with --yes to go ahead without a question.")
        delete_run(doomed.path, doomed.path.parent)
        return Output({"deleted": str(doomed.path)}, [f"{doomed.path} is deleted."])
    if options.request:
        asked = RunFolder.open(options.folder)
        path = ask(asked, options.request)
        lines = [f"Asked {asked.path.name} for: {options.request}. It follows after its present step."]
        return Output({"run": str(asked.path), "request": options.request, "file": str(path)}, lines)
    if options.compare:
        pair = [summarise(RunFolder.open(path)) for path in (options.folder, options.compare)]
        differences = compare(*pair)
        lines = [f"{name}: {one} | {other}" for name, (one, other) in differences.items()]
        lines.append(f"best validation: {pair[0].best_validation} | {pair[1].best_validation}")
        data = {"runs": [summary.to_dict() for summary in pair], "differences": differences}
        return Output(data, lines)
    folder = existing_folder(options.folder, "the folder of runs")
    problems: list[Problem] = []
    if (folder / "run.json").is_file():
        found = [summarise(RunFolder.open(folder))]
    else:
        found, problems = RunHistory().read(folder)
        found = found[::-1]  # the newest stands next to the prompt
    if not found and not problems:
        raise UserError(f"{options.folder} holds no runs.", fix="Train one, or choose another folder.")
    lines = [
        f"{summary.name}: {summary.adapter}, {summary.state} at step {summary.step} of {summary.total_steps}"
        + (f", validation {summary.best_validation:.5f} at step {summary.best_step}" if summary.best_validation else "")
        for summary in found
    ]
    if len(found) == 1:
        lines += [f"  {name}: {value}" for name, value in found[0].settings.items()]
    data = {"runs": [summary.to_dict() for summary in found], "problems": [item.to_dict() for item in problems]}
    return Output(data, lines + problem_lines(problems), EXIT_PARTLY if problems else 0)


# doctor -----------------------------------------------------------------------------------------------------------


class DoctorOptions(CommandOptions):
    checkpoints: Path = knob(Path("checkpoints"), "Folder where models are looked for.", group="command")


def doctor(options: DoctorOptions, job: Job) -> Output:
    """What is installed, which device, memory and disk, which models, and what to put right."""
    from acestep.core.health import all_checks, failed
    from acestep.model.checkpoints import survey_checkpoints

    checks = all_checks(Path.cwd())
    models, problems = survey_checkpoints([options.checkpoints]) if options.checkpoints.is_dir() else ([], [])
    lines = [str(check) for check in checks]
    lines += [f"model: {model.name} ({model.variant.name}, {model.layout} layout) in {model.dit}" for model in models]
    lines += problem_lines(problems)
    if not models:
        lines.append(f"model: none in {options.checkpoints}; `acestep download turbo` fetches one, the demo needs none")
    data = {
        "checks": [check.to_dict() for check in checks],
        "models": [{"name": model.name, "path": str(model.dit), "layout": model.layout} for model in models],
        "problems": [problem.to_dict() for problem in problems],
    }
    return Output(data, lines, EXIT_FAILED if failed(checks) else 0)


# download ---------------------------------------------------------------------------------------------------------


class DownloadOptions(CommandOptions):
    variant: str = knob(..., "Model variant, such as turbo, base or sft.", group=POSITIONAL)
    folder: Path = knob(Path("checkpoints"), "Folder the model goes to.", group="command")
    yes: bool = knob(False, "Download without asking after the size is shown.", group="command")


def download(options: DownloadOptions, job: Job) -> Output:
    """Fetch a model from the Hugging Face Hub; shows the size first, goes on where it was cut off."""
    from acestep.model.download import fetch, plan_download

    plan = plan_download(options.variant, options.folder)
    job.say(plan.summary())
    if plan.remaining_bytes and not options.yes and not confirm("Download?"):
        raise UserError("Nothing was downloaded.", fix="Run it again with --yes to go ahead without a question.")
    job.kept.append(plan.folder)
    folder = fetch(plan, job)
    return Output({"model": str(folder)}, [f"The model is in {folder}."])


# demo -------------------------------------------------------------------------------------------------------------


class DemoOptions(CommandOptions):
    out: Path = knob(
        Path("demo_output"), "Folder of the demo: songs, model, tensors, run and previews.", group="command"
    )


def demo(options: DemoOptions, job: Job) -> Output:
    """The whole job on generated songs and a small model: hear it before and after."""
    from acestep.cli.demo import run_demo

    job.kept.append(options.out)
    return run_demo(options.out, job)


COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        Command("demo", "the whole job on generated songs and a small model that plays", DemoOptions, demo),
        Command("doctor", "what is installed, which device and models, what to fix", DoctorOptions, doctor),
        Command("download", "fetch a model from the Hugging Face Hub", DownloadOptions, download),
        Command("dataset", "scan a folder of songs, report problems, save the dataset file", DatasetOptions, dataset),
        ANALYZE_COMMAND,
        CAPTION_COMMAND,
        Command("preprocess", "encode songs into a tensor folder", PreprocessOptions, preprocess),
        ESTIMATE_COMMAND,
        Command("train", "train an adapter", TrainOptions, train),
        Command("generate", "text to music with or without an adapter", GenerateOptions, generate),
        Command("runs", "list, show, compare and delete runs", RunsOptions, runs),
        *EXPORT_COMMANDS,
        *PRESET_COMMANDS,
    )
}
