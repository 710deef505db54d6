"""Adapters on disk: finding, reading, writing whole folders."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from acestep.adapters.families import FAMILIES
from acestep.adapters.lycoris_format import KINDS, config_file, lycoris_kind, read_lycoris, weights_file
from acestep.adapters.peft_format import CONFIG_FILE, WEIGHTS_FILE, read_peft
from acestep.adapters.source import AdapterSource, TriggerTag, read_header
from acestep.adapters.specs import Spec
from acestep.adapters.targets import target_names
from acestep.core.errors import UserError
from acestep.core.paths import atomic_folder, existing_file, write_json
from acestep.model.weights import Entry, write_safetensors

if TYPE_CHECKING:
    from torch import Tensor, nn

    from acestep.adapters.base import Adapter

SaveDtype = Literal["fp32", "bf16"]
STORED: dict[SaveDtype, str] = {"bf16": "BF16", "fp32": "F32"}
"""What safetensors calls the types that adapters are stored in."""

_ROW_LENGTHS = ("lora_magnitude_vector", "dora_scale")
_PICKLES = ("adapter_model.bin", "lora_weights.pt", "lokr_weights.pt", "loha_weights.pt")


class NoAdapter(UserError):
    """A file or folder is something else than an adapter, such as one in the form of another program."""


@dataclass(frozen=True)
class AdapterInfo:
    """What can be told about an adapter without loading it."""

    kind: str
    path: Path
    weights: Path
    spec: Spec
    trigger: TriggerTag
    target_modules: tuple[str, ...]
    tensors: int
    parameters: int
    dtype: str
    size_bytes: int

    @property
    def summary(self) -> str:
        """One line for lists."""
        tag = f', trigger word "{self.trigger.word}"' if self.trigger.word else ""
        return f"{self.spec.summary}, {self.parameters:,} parameters{tag}"


def find_adapter(path: str | Path) -> AdapterSource:
    """The adapter in a folder (or its `adapter` sub-folder), or of one of its files.

    Reads configuration and header only. Raises a UserError that says what is wrong with which file.
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise UserError(f"The adapter {place} does not exist.", fix="Check the path.")
    return _of_folder(place.resolve()) if place.is_dir() else _of_file(place.resolve())


def _of_folder(folder: Path) -> AdapterSource:
    is_peft = (folder / CONFIG_FILE).is_file()
    kinds = [kind for kind in KINDS if (folder / weights_file(kind)).is_file()]
    files = [*([WEIGHTS_FILE] if is_peft else []), *(weights_file(kind) for kind in kinds)]
    if len(files) > 1:
        raise UserError(f"{folder} holds two adapters, {files[0]} and {files[1]}.", fix="Name one of the files.")
    if kinds:
        return read_lycoris(folder / weights_file(kinds[0]), kinds[0])
    _refuse_pickle(folder)
    if is_peft:
        return _peft_folder(folder)
    if (folder / "adapter").is_dir():
        return _of_folder(folder / "adapter")
    if (folder / WEIGHTS_FILE).is_file():
        raise UserError(f"{folder} has {WEIGHTS_FILE} but no {CONFIG_FILE}.", fix="Copy that file as well.")
    below = sorted(
        str(file.parent.relative_to(folder))
        for pattern in ("*", "*/*")
        for name in (CONFIG_FILE, *(weights_file(kind) for kind in KINDS))
        for file in folder.glob(f"{pattern}/{name}")
    )
    raise NoAdapter(
        f"{folder} holds no adapter.",
        fix=f"Choose one of its sub-folders: {', '.join(below)}."
        if below
        else f"An adapter folder has {CONFIG_FILE} with {WEIGHTS_FILE},"
        f" or {' or '.join(weights_file(kind) for kind in KINDS)}.",
    )


def _peft_folder(folder: Path) -> AdapterSource:
    existing_file(folder / WEIGHTS_FILE, "the adapter's weights file")
    return read_peft(folder)


def _refuse_pickle(folder: Path) -> None:
    """Raise for a folder whose weights only unpickling could read."""
    pickles = [folder / name for name in _PICKLES if (folder / name).is_file()]
    if pickles and not (folder / WEIGHTS_FILE).is_file():
        raise _pickle_error(pickles[0])


def _pickle_error(file: Path) -> UserError:
    return UserError(
        f"{file} is a pickle file, which can run code when it is read; only safetensors are read.",
        fix="Convert it with the program it was made with, or ask its author for safetensors.",
    )


def _of_file(file: Path) -> AdapterSource:
    if file.name in (CONFIG_FILE, WEIGHTS_FILE):
        return _peft_folder(file.parent)
    for kind in KINDS:
        if file.name == config_file(kind):
            file = existing_file(file.with_name(weights_file(kind)), "the adapter's weights file")
    if file.suffix in (".bin", ".pt", ".pth", ".ckpt"):
        raise _pickle_error(file)
    if file.suffix != ".safetensors":
        raise NoAdapter(f"{file} is not an adapter file.", fix="Choose an adapter folder or a .safetensors file.")
    found = lycoris_kind(file, read_header(file))
    if found is None:
        raise NoAdapter(
            f"{file} is a single file without a LoKr or LoHa configuration in its metadata.",
            fix=f"LoRA is read as a folder with {CONFIG_FILE} and {WEIGHTS_FILE}.",
        )
    return read_lycoris(file, found)


def read_adapter_info(path: str | Path) -> AdapterInfo:
    """Kind, size and trigger word of an adapter on disk, read without torch."""
    source = find_adapter(path)
    dtypes = sorted(set(source.header.dtypes.values()))
    return AdapterInfo(
        kind=source.kind,
        path=source.path,
        weights=source.weights,
        spec=source.spec,
        trigger=source.tag,
        target_modules=source.targets or (),
        tensors=len(source.keys),
        parameters=sum(math.prod(shape) for shape in source.shapes.values() if shape),  # scalars are constants
        dtype=", ".join(dtypes),
        size_bytes=source.weights.stat().st_size,
    )


def read_adapter_tensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of an adapter on disk by the names `Adapter.load_tensors` takes."""
    return read_tensors(find_adapter(path))


def read_tensors(source: AdapterSource) -> dict[str, Tensor]:
    """The tensors of a source, on the CPU, in the file's types."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(source.weights)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{source.weights} is damaged.", fix="Copy or download it again.", detail=str(error)) from error
    return {name: tensors[key] for name, key in source.keys.items()}


def write_adapter_files(
    adapter: Adapter, folder: Path, tag: TriggerTag | None = None, dtype: SaveDtype = "fp32"
) -> None:
    """Write the adapter's files into a folder that is there already (a checkpoint that holds more than these).

    Raises a UserError, and writes nothing, when the adapter holds NaN or infinity.
    """
    import torch

    from acestep.adapters.base import refuse_unusable

    family = FAMILIES[adapter.kind]
    own = adapter.tensors()
    refuse_unusable(own, "The adapter cannot be saved")
    # alpha and the like stay fp32: bf16 has but eight binary digits. So do DoRA's lengths of whole weight rows, beside
    # which what was learned is small.
    exact = {*adapter.constants(), *(name for name in own if name.endswith(_ROW_LENGTHS))}
    types = dict.fromkeys(own, STORED[dtype]) | dict.fromkeys(exact, "F32")
    entries = [Entry(name, types[name], tuple(tensor.shape)) for name, tensor in own.items()]
    targets = target_names(adapter.module_names, adapter.transformer)
    metadata = family.metadata(adapter.spec, targets, adapter.module_names)

    def data(entry: Entry) -> Tensor:
        return own[entry.name].to(device="cpu", dtype=torch.float32 if entry.dtype == "F32" else torch.bfloat16)

    write_safetensors(folder / family.weights_file, entries, data, metadata)
    write_json(folder / family.config_file, family.config(adapter.spec, targets, tag or TriggerTag()))


def save_adapter(
    adapter: Adapter, folder: str | Path, tag: TriggerTag | None = None, dtype: SaveDtype = "fp32"
) -> Path:
    """Write an adapter folder whole or not at all, in place of an older adapter there; returns its path.

    A folder that holds anything but an adapter's files is left alone, with a UserError.
    """
    folder = Path(folder).expanduser().resolve()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; an adapter is a folder.", fix="Choose another name.")
    known = {name for family in FAMILIES.values() for name in (family.weights_file, family.config_file)}
    foreign = sorted(file.name for file in folder.iterdir() if file.name not in known) if folder.exists() else []
    if foreign:
        raise UserError(
            f"{folder} holds other files ({foreign[0]}), which saving an adapter there would remove.",
            fix="Choose a new folder.",
        )
    with atomic_folder(folder) as temporary:
        write_adapter_files(adapter, temporary, tag, dtype)
    return folder


def load_adapter(path: str | Path, transformer: nn.Module) -> Adapter:
    """Attach an adapter from disk to a transformer. Every tensor of the file is used and none is missing.

    Raises a UserError that lists what does not fit; the transformer is then as before.
    """
    import torch

    from acestep.adapters.attaching import attach_spec
    from acestep.adapters.base import refuse_second

    refuse_second(transformer)
    source = find_adapter(path)
    modules = FAMILIES[source.kind].modules(source, transformer)
    if not modules:
        raise UserError(
            f"{source.path} has nothing for this model: none of its modules is there.",
            fix="It was made for another model.",
        )
    tensors = read_tensors(source)
    # The first weights are drawn and then replaced; the draws after loading must not depend on that.
    with torch.random.fork_rng(devices=[]):
        adapter = attach_spec(transformer, source.kind, source.spec, modules)
    try:
        adapter.load_tensors(tensors, source=str(source.path))
    except UserError:
        adapter.detach_from_model()
        raise
    return adapter
