"""From a command line to checked settings: flags over the settings file over the preset over the defaults."""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import typing
from dataclasses import asdict, field, make_dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from pydantic_core import PydanticUndefined

from acestep.cli.terminal import say_error
from acestep.core.errors import UserError, did_you_mean
from acestep.settings.base import Knob, Settings, fields_of, knob, read_values
from acestep.settings.presets import AUTO, GIB, auto_preset, preset_values

POSITIONAL = "positional"
"""Group of the options that are given by place and not by name."""

_FLAGS = {"as_json": "json", "import_file": "import", "set_labels": "set"}
"""Options whose names would be Python's own words, or hide a function of the base class."""

_BOX = " │╭╮╰╯─"
"""What tyro's boxes are drawn with."""


class CommandOptions(Settings):
    """What every command takes."""

    as_json: bool = knob(False, "Print the result as JSON on standard output.", group="command")


class WithPreset(CommandOptions):
    """What commands take whose settings may come from files."""

    preset: str | None = knob(
        None, "Preset by name, auto for the one that fits the card, or the path of its file.", group="command"
    )
    config: Path | None = knob(
        None, "Settings file (JSON); it wins over the preset, options win over it.", group="command"
    )


O = TypeVar("O", bound=CommandOptions)  # noqa: E741 - the usual name beside T
S = TypeVar("S", bound=Settings)


def parse_options(options: type[O], arguments: list[str], program: str, summary: str) -> O:
    """Options of a command, checked. Raises UserError for wrong values; for wrong usage only with --json, else tyro
    shows what is wrong and exits with 2.

    `model_fields_set` of the result holds what was given, so that a default can be asked for by name.
    """
    base = _base_values(options, arguments)
    raw = _raw_class(options, base)
    told = io.StringIO()
    try:
        # people see tyro's boxes as they are; a program that asked for JSON gets the same words without them
        with contextlib.redirect_stderr(told) if wants_json(arguments) else contextlib.nullcontext():
            values = asdict(tyro.cli(raw, args=arguments, prog=program, description=summary))
    except SystemExit as exit_request:
        if not exit_request.code or not told.getvalue():
            raise
        raise _usage_error(told.getvalue(), program) from exit_request
    given = _given(options, arguments) | base.keys()
    return options.parse({name: value for name, value in values.items() if name in given}, program)


def settings_in(options: CommandOptions, settings: type[S]) -> S:
    """The part of a command's options that is a class of settings."""
    return settings(**{name: getattr(options, name) for name in settings.model_fields})


def wants_json(arguments: list[str]) -> bool:
    """Whether the result is to be JSON, also where the rest of the command line is wrong."""
    return "--json" in arguments


def _usage_error(boxes: str, program: str) -> UserError:
    """What tyro shows in boxes: in each a title, what is wrong, and below a rule what else there is."""
    lines = [line.strip(_BOX) for line in boxes.splitlines()]
    wrong = itertools.takewhile(bool, lines[1:])
    message = " ".join(wrong).rstrip(".")
    return UserError(f"{message}.", fix=f"See {program} --help.", detail="\n".join(filter(None, lines)))


def _given(options: type[Settings], arguments: list[str]) -> set[str]:
    """Names of the options on the command line. Tyro takes no word with two hyphens for a value, so none is missed."""
    typed = {word.partition("=")[0].replace("_", "-") for word in arguments if word.startswith("--")}
    names = set()
    for item in fields_of(options):
        flag = _FLAGS.get(item.name, item.name).replace("_", "-")
        if item.group == POSITIONAL or not typed.isdisjoint((f"--{flag}", f"--no-{flag}")):
            names.add(item.name)
    return names


def _base_values(options: type[Settings], arguments: list[str]) -> dict[str, Any]:
    """Values from --preset, then --config, then the run that --resume names; later ones win over earlier."""
    files = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("preset", "config", "resume", "adapter"):
        files.add_argument(f"--{name}")
    chosen, _ = files.parse_known_args(arguments)
    values: dict[str, Any] = {}
    own: dict[str, Any] = {}
    if chosen.config and "config" in options.model_fields:
        own = _known(options, read_values(Path(chosen.config)), chosen.config)
    if chosen.preset and "preset" in options.model_fields:
        preset = chosen.preset if chosen.preset != AUTO else _auto_preset(chosen.adapter or own.get("adapter", "lora"))
        values |= _known(options, preset_values(preset), f"preset {preset}")
    values |= own
    if chosen.resume and "resume" in options.model_fields:
        from acestep.training.runs import RunFolder

        values |= RunFolder.open(Path(chosen.resume)).record.get("settings", {})
    return values


def _auto_preset(adapter: str) -> str:
    """The tier for this machine, named on standard error."""
    from acestep.core.device import device_memory

    memory = device_memory()
    name = auto_preset(memory[1] if memory else None, adapter)
    say_error(f"Preset {name}, for {f'a card with {memory[1] / GIB:.1f} GiB' if memory else 'no graphics card'}.")
    return name


def _known(options: type[Settings], values: dict[str, Any], source: str) -> dict[str, Any]:
    """The values of a file, checked by the settings themselves, so that a typo names the file."""
    settable = {item.name: item for item in fields_of(options) if item.group not in ("command", POSITIONAL)}
    for name in values:
        if name not in settable:
            raise UserError(f'{source}: There is no setting "{name}".{did_you_mean(name, settable)}')
    required = {item.name: "." for item in fields_of(options) if item.default is PydanticUndefined}
    options.parse({**required, **values}, source)
    return values


def _raw_class(options: type[Settings], base: dict[str, Any]) -> type:
    """A plain dataclass with the same fields, for tyro to fill; pydantic checks the values afterwards."""
    fields: list[tuple[str, Any, Any]] = []
    for item in fields_of(options):
        marks = [tyro.conf.arg(help=_help(item), name=_FLAGS.get(item.name))]
        if item.group == POSITIONAL:
            marks.append(tyro.conf.Positional)
        default = base.get(item.name, item.default)
        kind = item.annotation
        if typing.get_origin(kind) is dict:  # tyro would make a flag of every name in it
            kind, default = tuple[str, ...], tuple(f"{name}={value}" for name, value in default.items())
        elif typing.get_origin(kind) is tuple and default is not PydanticUndefined:
            default = tuple(default)  # JSON has lists only
        annotation = Annotated[(kind, *marks)]  # type: ignore[valid-type, name-defined]
        if default is PydanticUndefined:
            fields.append((item.name, annotation, field()))
        else:
            fields.append((item.name, annotation, field(default_factory=partial(_same, default))))
    return make_dataclass(options.__name__, fields, kw_only=True)


def _same(value: Any) -> Any:
    return value


def _help(item: Knob) -> str:
    return f"{item.help} ({item.bounds})" if item.bounds else item.help
