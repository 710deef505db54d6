"""The commands around presets, and the import of tensors that other trainers made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from acestep.cli.arguments import POSITIONAL, CommandOptions
from acestep.cli.command import EXIT_PARTLY, MODEL_HELP, Command, Output, problem_lines
from acestep.core.device import DeviceName, PrecisionName
from acestep.core.errors import UserError
from acestep.core.jobs import Job, heavy_job
from acestep.core.words import counted
from acestep.settings import TrainSettings, knob
from acestep.settings.presets import AUTO, Preset, auto_preset, load_preset, preset_files, preset_values, save_preset

# presets ----------------------------------------------------------------------------------------------------------


class PresetsOptions(CommandOptions):
    name: str | None = knob(
        None, "Preset to show, by name or path; auto is the one for this machine. Unset lists all.", group=POSITIONAL
    )
    import_file: Path | None = knob(
        None, "Read the settings of a file of Side-Step or ace-lora-trainer (preset, run or profile).", group="command"
    )
    save: str | None = knob(
        None, "Keep what was imported: a name for presets/, or the path of a .json file.", group="command"
    )
    export_side_step: Path | None = knob(None, "Write the preset as a Side-Step preset to this file.", group="command")
    songs: int | None = knob(
        None, "Say how long to train with so many songs, with the preset's settings.", group="command", ge=1
    )
    minutes: float = knob(0.0, "Minutes of music in these songs; 0 when unknown.", group="command", ge=0)


def presets(options: PresetsOptions, job: Job) -> Output:
    """List presets, show one, take settings in from other programs or give them out."""
    if options.import_file:
        if options.name or options.export_side_step:
            raise UserError("--import reads a file, so it takes no preset.", fix="Give --import alone or with --save.")
        return _import(options.import_file, options.save)
    if options.save:
        raise UserError("--save keeps what --import reads.", fix="Give --import FILE, or copy the preset's file.")
    if options.export_side_step and not options.name:
        raise UserError("--export-side-step needs a preset.", fix="Name one: acestep presets NAME --export-side-step …")
    if options.songs and options.export_side_step:
        raise UserError("--songs gives advice and writes no file.", fix="Leave --songs or --export-side-step away.")
    if options.songs:
        return _advise(options)
    if not options.name:
        return _list()
    preset = load_preset(_resolved(options.name))
    output = _show(preset)
    if options.export_side_step:
        return _export(preset, options.export_side_step, output)
    return output


def _resolved(name: str) -> str:
    if name != AUTO:
        return name
    from acestep.core.device import device_memory

    memory = device_memory()
    return auto_preset(memory[1] if memory else None)


def _list() -> Output:
    found = [load_preset(name) for name in preset_files()]
    width = max((len(preset.name) for preset in found), default=0)
    lines = [f"{preset.name:<{width}}  {preset.description}" for preset in found]
    lines.append(f"`acestep presets NAME` shows the values; `--preset {AUTO}` picks a tier by the card's memory.")
    return Output({"presets": [preset.to_dict() for preset in found]}, lines)


def _show(preset: Preset) -> Output:
    lines = [f"{preset.name}: {preset.description}", *_value_lines(preset.values)]
    lines += [f"Note: {note}" for note in preset.notes]
    return Output(preset.to_dict(), lines)


def _value_lines(values: dict[str, Any]) -> list[str]:
    """One line a setting, with the default beside it where the two differ."""
    lines = []
    for name, value in values.items():
        default = TrainSettings.model_fields[name].default
        lines.append(f"  {name}: {_shown(value)}" + (f" (default {_shown(default)})" if value != default else ""))
    return lines


def _shown(value: Any) -> str:
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _import(file: Path, save: str | None) -> Output:
    from acestep.settings.interchange import import_settings

    found = import_settings(file)
    lines = [f"{found.name or file.stem}: {found.description}".rstrip(": ")]
    for section, values in found.sections.items():
        lines += [f"{section}:", *(f"  {name}: {_shown(value)}" for name, value in values.items())]
    lines += [f"Note: {note}" for note in found.notes]
    lines += [f"Left out, {name}: {reason}" for name, reason in found.ignored.items()]
    data = {"sections": found.sections, "ignored": found.ignored, "notes": list(found.notes), "saved": None}
    if save:
        if not found.values:
            raise UserError(
                f"{file} holds no settings of training, so there is no preset to save.", fix="Leave --save away."
            )
        left_out = tuple(f"Left out, {name}: {reason}" for name, reason in found.ignored.items())
        description = found.description or f"Imported from {file.name}."
        path = save_preset(save, found.values, description, (*found.notes, *left_out))
        lines.append(f"Saved to {path}.")
        data["saved"] = str(path)
    return Output(data, lines)


def _export(preset: Preset, file: Path, shown: Output) -> Output:
    from acestep.settings.interchange import export_side_step
    from acestep.settings.side_step import lost_in_side_step

    settings = TrainSettings.parse(preset.values, str(preset.path))
    path = export_side_step(file, settings, preset.description)
    lost = lost_in_side_step(settings)
    lines = [f"Written to {path}."]
    if lost:
        lines.append(f"Side-Step has no place for: {', '.join(lost)}.")
    return Output({**shown.data, "exported": str(path), "lost": lost}, lines)


def _advise(options: PresetsOptions) -> Output:
    from acestep.settings.advice import advise, recommended_epochs

    assert options.songs is not None
    name = _resolved(options.name) if options.name else None
    settings = TrainSettings.parse(preset_values(name) if name else {}, name or "The defaults")
    epochs, save_every = recommended_epochs(options.songs)
    advice = advise(options.songs, options.minutes, settings)
    songs = counted(options.songs, "songs")
    table = f"The usual table says {epochs} epochs for {songs}, with a checkpoint every {save_every}."
    with_what = f"With {f'preset {name}' if name else 'the default settings'}:"
    data = {"songs": options.songs, "epochs": epochs, "save_every": save_every, "advice": advice.to_dict()}
    return Output(data, [table, with_what, *(f"  {line}" for line in advice.lines)])


# import-tensors ---------------------------------------------------------------------------------------------------


class ImportTensorsOptions(CommandOptions):
    folder: Path = knob(..., "Folder of .pt tensors of another trainer.", group=POSITIONAL)
    model: str = knob(..., MODEL_HELP, group="command")
    out: Path = knob(..., "Folder the tensors go to.", group="command")
    device: DeviceName = knob("auto", "Device to encode on.", group="hardware")
    precision: PrecisionName = knob("auto", "Number format of the frozen models.", group="hardware")


def import_tensors(options: ImportTensorsOptions, job: Job) -> Output:
    """Take over the latents of another trainer's .pt files; conditions are made anew from their labels."""
    from acestep.model.checkpoints import resolve_checkpoint

    checkpoint = resolve_checkpoint(options.model)
    job.kept.append(options.out)
    with heavy_job(f"import-tensors {options.folder}"):
        from acestep.preprocess.import_pt import import_pt_folder  # torch comes in here

        report = import_pt_folder(
            options.folder, options.out, checkpoint, job, device=options.device, precision=options.precision
        )
    failed = sum(problem.severity == "error" for problem in report.problems)
    lines = [
        f"{counted(report.encoded + report.reused, 'songs')} in {report.folder}, {report.audio_s:.0f} s of audio; "
        f"{counted(failed, 'files')} left out.",
        *problem_lines(report.problems),
    ]
    data = {**report.to_dict(), "problems": [problem.to_dict() for problem in report.problems]}
    return Output(data, lines, EXIT_PARTLY if failed else 0)


PRESET_COMMANDS = (
    Command("presets", "list, show, import and export presets; advice on the length of a run", PresetsOptions, presets),
    Command("import-tensors", "take over .pt tensors of another trainer, safely", ImportTensorsOptions, import_tensors),
)
