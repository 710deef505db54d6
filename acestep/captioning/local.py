"""What the models on this machine share: where they come from, how they fit into memory, and how they leave it."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from acestep.core.device import DeviceChoice, choose_device, device_memory, memory_told
from acestep.core.errors import UserError
from acestep.core.jobs import Job
from acestep.core.paths import write_json
from acestep.model.checkpoints import WEIGHTS_STEM
from acestep.model.download import DownloadPlan, fetch, plan_repository
from acestep.model.weights import read_weights, weight_files
from acestep.settings.caption import CaptionSettings

if TYPE_CHECKING:
    import torch

Quantize = Literal["none", "int8", "nf4"]

SAMPLE_RATE = 16_000
"""Hz at which all these models hear."""

KEPT_EXACT = ("audio_tower", "visual", "multi_modal_projector", "lm_head", "encoder", "proj_out")
"""Parts that are never quantized: those that hear are small, and what they lose nothing after them can mend."""

_HUB_NAME = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?")
_WHOLE = "download.json"
_BYTES_OF_QUANTIZED: dict[Quantize, float] = {"int8": 1.0, "nf4": 0.5625}  # with the scales of its blocks
_WORKING_BYTES = 2 << 30  # activations and key-value cache of one song beside the weights
_OVERLAP_S = 2.0


# Where models come from -----------------------------------------------------------------------------------------------


def model_folder(name: str, job: Job) -> Path:
    """The folder of a model: a folder as it is, or a Hub name ("org/model", "org/model@revision").

    A Hub model is fetched when first used, its size told before; after that the network is not asked again. What
    other programs put into the Hub's cache is used too. Raises UserError when there is neither.
    """
    if (present := present_folder(name)) is not None:
        return present
    plan = plan_model(name)
    job.say(plan.summary())
    folder = fetch(plan, job)
    write_json(folder / _WHOLE, {"repo": plan.files[0].repo, "revision": plan.files[0].revision})
    return folder


def present_folder(name: str) -> Path | None:
    """The folder of a model that is on this machine, None for one that is still to be fetched. Asks no network.

    Raises UserError for a name that is neither a folder nor a Hub name.
    """
    local = Path(name).expanduser()
    if local.is_dir():
        return local.resolve()
    repo, revision = _repository(name)
    fetched = models_root() / _folder_name(name)
    return fetched if (fetched / _WHOLE).is_file() else _in_hub_cache(repo, revision)


def plan_model(name: str) -> DownloadPlan:
    """Ask the Hub what fetching a model takes. Raises UserError where it cannot be asked."""
    repo, revision = _repository(name)
    return plan_repository(repo, models_root(), _folder_name(name), revision)


def _repository(name: str) -> tuple[str, str]:
    match = _HUB_NAME.fullmatch(name.strip())
    if match is None or Path(name).expanduser().is_absolute():
        raise UserError(
            f'There is no model folder "{name}".', fix="Give an existing folder, or a Hub name such as org/model."
        )
    return match["repo"], match["revision"] or ""


def _folder_name(name: str) -> str:
    return name.strip().replace("/", "--")


def models_root() -> Path:
    """Where fetched models lie: beside the Hub's own cache, so that HF_HOME moves both."""
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME).expanduser() / "acestep-models"


def _in_hub_cache(repo: str, revision: str) -> Path | None:
    """The snapshot of a model that another program fetched, if it has weights and a tokenizer."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, "config.json", revision=revision or None)
    if not isinstance(found, str):
        return None
    folder = Path(found).parent
    with contextlib.suppress(UserError):  # a snapshot without whole weights is fetched anew
        weight_files(folder, WEIGHTS_STEM)
        if (folder / "tokenizer.json").is_file() or (folder / "vocab.json").is_file():
            return folder
    return None


# How models fit into memory -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelSize:
    """Parameters of a model: all of them, and those that can be quantized."""

    parameters: int
    quantizable: int

    def size_bytes(self, item_bytes: int, quantize: Quantize) -> int:
        """Bytes of the weights with `item_bytes` for each parameter that is not quantized."""
        small = _BYTES_OF_QUANTIZED.get(quantize, float(item_bytes))
        return int((self.parameters - self.quantizable) * item_bytes + self.quantizable * small)


def model_size(folder: Path, left_out: tuple[str, ...] = ()) -> ModelSize:
    """The size of the model in a folder, read from the headers of its files, without parts that are not loaded.

    `left_out` are beginnings of tensor names. Raises UserError for a folder without whole weights.
    """
    parameters = quantizable = 0
    for name, tensor in read_weights(folder, WEIGHTS_STEM).items():
        if name.startswith(left_out):
            continue
        count = math.prod(tensor.shape)
        parameters += count
        is_exact = "embed" in name or any(part in name.split(".") for part in KEPT_EXACT)
        if len(tensor.shape) == 2 and not is_exact:
            quantizable += count
    return ModelSize(parameters, quantizable)


@dataclass(frozen=True)
class Placement:
    """Where a model goes, in which numbers, and why. `room_bytes` of the card are for its weights."""

    choice: DeviceChoice
    quantize: Quantize
    offload: bool
    reason: str
    room_bytes: int = 0

    def __str__(self) -> str:
        numbers = self.choice.precision if self.quantize == "none" else f"{self.quantize} and {self.choice.precision}"
        beyond = " and main memory" if self.offload else ""
        return f"{self.choice.device}{beyond} in {numbers} ({self.reason})"

    def load_arguments(self) -> dict[str, Any]:
        """What `from_pretrained` is told."""
        arguments: dict[str, Any] = {
            "dtype": self.choice.dtype,
            "device_map": "auto" if self.offload else {"": self.choice.device},
        }
        if self.offload:
            arguments["max_memory"] = {0: self.room_bytes, "cpu": 1 << 50}  # the system says when that is full
        if self.quantize != "none":
            from transformers import BitsAndBytesConfig

            arguments["quantization_config"] = BitsAndBytesConfig(
                load_in_8bit=self.quantize == "int8",
                load_in_4bit=self.quantize == "nf4",
                bnb_4bit_quant_type="nf4",
                bnb_4bit_compute_dtype=self.choice.dtype,
                llm_int8_skip_modules=[rf"(?:.*\.)?{part}" for part in KEPT_EXACT],
            )
        return arguments


def place(size: ModelSize, settings: CaptionSettings) -> Placement:
    """Decide device, precision and quantization on this machine."""
    import psutil

    choice = choose_device(settings.device, settings.precision)
    memory = device_memory() if choice.device == "cuda" else None
    free_bytes = memory[0] if memory else psutil.virtual_memory().available
    return plan_placement(size, choice, settings, free_bytes)


def plan_placement(size: ModelSize, choice: DeviceChoice, settings: CaptionSettings, free_bytes: int) -> Placement:
    """Decide how weights are stored, from the free bytes of the device's memory (of the main memory without a card).

    On NVIDIA cards auto takes the most exact form that fits: as they are, int8, nf4; what does not fit even so stays
    in main memory and travels to the card when it is needed, which is slow. Processors fall back to bf16. Raises
    UserError for a wish that cannot be fulfilled.
    """
    wish = settings.quantize
    room = max(0, free_bytes - _WORKING_BYTES)
    free = f"{free_bytes / 2**30:.1f} GiB free"
    item_bytes = 4 if choice.precision == "fp32" else 2
    if choice.device != "cuda":
        if wish in ("int8", "nf4"):
            raise UserError(
                f"Models can be quantized to {wish} on NVIDIA cards only; this one runs on {choice.device}.",
                fix="Choose quantize auto or none, or a smaller model.",
            )
        if choice.device == "cpu" and settings.precision == "auto" and size.size_bytes(item_bytes, "none") > room:
            choice, item_bytes = replace(choice, precision="bf16"), 2
        return Placement(choice, "none", False, _weights(size.size_bytes(item_bytes, "none"), free))
    wishes: tuple[Quantize, ...] = ("none", "int8", "nf4") if wish == "auto" else (wish,)
    for quantize in wishes:
        needed = size.size_bytes(item_bytes, quantize)
        if needed <= room:
            return Placement(choice, quantize, False, _weights(needed, free))
    # bitsandbytes keeps no quantized weights in main memory, so what is offloaded is not quantized.
    return Placement(choice, "none", True, f"{_weights(size.size_bytes(item_bytes, 'none'), free)}; slow", room)


def _weights(size_bytes: int, free: str) -> str:
    return f"{size_bytes / 2**30:.1f} GiB of weights, {free}"


@contextlib.contextmanager
def quiet_library() -> Iterator[None]:
    """Keep transformers' own warnings and progress bars out of the log."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()


def load_model(model_class: Any, folder: Path, placement: Placement, unneeded: str = "-") -> Any:
    """A model from its folder, ready to answer; without any weight left as chance made it.

    `unneeded` begins the names of weights that may be missing. Call within `load_errors`.
    """
    model, loaded = model_class.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, output_loading_info=True, **placement.load_arguments()
    )
    if missing := sorted(name for name in loaded["missing_keys"] if not name.startswith(unneeded)):
        raise ValueError(f"{len(missing)} of its weights are missing, {missing[0]} among them")
    return model.eval()


@contextlib.contextmanager
def load_errors(folder: Path) -> Iterator[None]:
    """Turn what goes wrong with a model's files into sentences."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    no_room = memory_told(
        f"The memory is too small for the model in {folder}.",
        fix="Choose quantize nf4, close other programs that use the card, or choose the device cpu.",
    )
    try:
        with no_room, quiet_library():
            yield
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RuntimeError,
        SafetensorError,
        StrictDataclassError,
    ) as error:
        raise UserError(
            f"The model in {folder} cannot be loaded.",
            fix="Check that the folder holds a whole model of the kind this backend uses.",
            detail=f"{type(error).__name__}: {error}",
        ) from error


# What models hear -----------------------------------------------------------------------------------------------------


def mono(samples: np.ndarray) -> np.ndarray:
    """[channels, N] → [N], at least a second long: models trip over less."""
    signal = np.ascontiguousarray(samples.mean(axis=0), dtype=np.float32) if len(samples) > 1 else samples[0]
    missing = SAMPLE_RATE - len(signal)
    return np.pad(signal, (0, missing)) if missing > 0 else signal


def windows(signal: np.ndarray, window_s: float) -> list[np.ndarray]:
    """The whole signal [N] in order, in parts of even length of at most `window_s`; neighbours share two seconds."""
    window, overlap = int(window_s * SAMPLE_RATE), int(_OVERLAP_S * SAMPLE_RATE)
    if len(signal) <= window:
        return [signal]
    count = math.ceil((len(signal) - overlap) / (window - overlap))
    seams = [number * (len(signal) - overlap) // count for number in range(count + 1)]
    return [signal[start : end + overlap] for start, end in pairwise(seams)]


def excerpts(signal: np.ndarray, longest_s: float, window_s: float) -> list[np.ndarray]:
    """What of a signal [N] fits into `longest_s`: all of it, or excerpts spread evenly from its start to its end.

    Excerpts are as long as `window_s` where that gives three or more; so start, middle and end are always heard.
    """
    longest = int(longest_s * SAMPLE_RATE)
    if len(signal) <= longest:
        return [signal]
    count = max(3, math.ceil(longest_s / window_s))
    length = longest // count
    starts = np.linspace(0, len(signal) - length, count).round().astype(int)
    return [signal[start : start + length] for start in starts]


def weights_device(model: Any) -> torch.device:
    """The device on which a model takes its inputs; offloaded weights have none while they wait."""
    import torch

    return next((part.device for part in model.parameters() if part.device.type != "meta"), torch.device("cpu"))
