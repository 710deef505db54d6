"""How long loading a full-size 2B checkpoint takes and how much memory it needs, beside the obvious way.

Writes a checkpoint of random bf16 weights in the original layout (4.8 GB, removed afterwards) and loads all of it on
the CPU in fresh processes, in turns:

* ours: `acestep.model.loading`, tensor by tensor into modules without memory;
* plain: modules initialised in bf16, `safetensors.torch.load_file`, `load_state_dict`.

Peak memory is the whole process, imports included, over the size of the file. `--small` only shows that the script
runs: there the imports outweigh the file.

    env/bin/python benchmarks/load.py [--small] [--layers N] [--repeats N] [--folder DIR] [--json]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

WAYS = ("ours", "plain")
LIMIT = 1.2
"""Peak memory over file size that loading must not exceed, for the full size."""

SMALL = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "fsq_dim": 512,
}
_BLOCK_VALUES = 1 << 24


def main() -> int:
    options = parse()
    if options.measure:
        print(json.dumps(measure(options.measure, Path(options.folder))))
        return 0
    values: dict[str, Any] = {"model_type": "acestep", **(SMALL if options.small else {})}
    if options.layers:
        values.update(num_hidden_layers=options.layers, num_lyric_encoder_hidden_layers=min(8, options.layers))
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="acestep-load-") as place:
        folder = Path(place) / "acestep-v15-random"
        file_bytes = write_checkpoint(folder, values)
        runs = {way: [] for way in WAYS}
        for _ in range(options.repeats):
            for way in WAYS:  # in turns, so that a busy moment hits both
                runs[way].append(in_fresh_process(way, folder))
    report(file_bytes, runs, options.json)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a model of 0.2 GB")
    parser.add_argument("--layers", type=int, default=0, help="layers of the DiT instead of 24")
    parser.add_argument("--repeats", type=int, default=3, help="fresh processes for each way")
    parser.add_argument("--folder", default=None, help="where to write it (default: temporary folder)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument("--measure", choices=WAYS, help=argparse.SUPPRESS)
    return parser.parse_args()


def write_checkpoint(folder: Path, values: dict[str, Any]) -> int:
    """Write config.json, model.safetensors and silence_latent.pt without holding the weights. Returns bytes."""
    import torch

    from acestep.model.config import DitConfig
    from acestep.model.names import to_original

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values))
    config = DitConfig.read(folder)
    with torch.device("meta"):
        shapes = {
            to_original(part, name): tuple(value.shape)
            for part, module in build_modules(config).items()
            for name, value in module.named_parameters()
        }
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    block = torch.randn(_BLOCK_VALUES, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
    random_bytes = block.view(torch.uint8).numpy()
    path = folder / "model.safetensors"
    with open(path, "wb") as handle:
        handle.write(struct.pack("<Q", len(text)) + text)
        for start in range(0, end, random_bytes.size):
            handle.write(random_bytes[: min(random_bytes.size, end - start)])
    torch.save(torch.zeros(1, config.latent_width, 15_000), folder / "silence_latent.pt")
    return path.stat().st_size


def build_modules(config: Any) -> dict[Any, Any]:
    """The four modules of a checkpoint, on torch's current default device and dtype."""
    from diffusers.models.transformers.ace_step_transformer import AceStepTransformer1DModel
    from diffusers.pipelines.ace_step.modeling_ace_step import (
        AceStepAudioTokenDetokenizer,
        AceStepAudioTokenizer,
        AceStepConditionEncoder,
    )

    return {
        "transformer": AceStepTransformer1DModel(**config.transformer_kwargs()),
        "condition_encoder": AceStepConditionEncoder(**config.condition_encoder_kwargs()),
        "audio_tokenizer": AceStepAudioTokenizer(**config.tokenizer_kwargs()),
        "audio_token_detokenizer": AceStepAudioTokenDetokenizer(**config.detokenizer_kwargs()),
    }


def in_fresh_process(way: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, str(Path(__file__).resolve()), "--measure", way, "--folder", str(folder)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(way: str, folder: Path) -> dict[str, float]:
    """Load everything one way in this process: seconds without imports, and the peak of resident memory."""
    import torch

    from acestep.model import loading
    from acestep.model.checkpoints import resolve_checkpoint

    checkpoint = resolve_checkpoint(folder, needs=())
    with torch.device("meta"):
        build_modules(checkpoint.config)  # only for its imports
    started = time.perf_counter()
    if way == "ours":
        place = (torch.bfloat16, "cpu")
        parts = (
            loading.load_transformer(checkpoint, *place),
            loading.load_condition_encoder(checkpoint, *place),
            loading.load_audio_tokenizer(checkpoint, *place),
            loading.load_audio_token_detokenizer(checkpoint, *place),
        )
    else:
        parts = load_plainly(checkpoint)
    seconds = time.perf_counter() - started
    values = sum(parameter.numel() for part in parts for parameter in part.parameters())
    return {"seconds": seconds, "peak_bytes": peak_bytes(), "values": values}


def load_plainly(checkpoint: Any) -> tuple[Any, ...]:
    import torch
    from safetensors.torch import load_file

    from acestep.model.names import to_diffusers

    torch.set_default_dtype(torch.bfloat16)
    modules = build_modules(checkpoint.config)
    states: dict[str, dict[str, Any]] = {part: {} for part in modules}
    for name, tensor in load_file(checkpoint.dit / "model.safetensors").items():
        part, key = to_diffusers(name)
        states[part][key] = tensor
    for part, module in modules.items():
        result = module.load_state_dict(states[part], strict=False)
        assert not result.unexpected_keys
        assert set(result.missing_keys) <= {"silence_latent"}
    return tuple(modules.values())


def peak_bytes() -> int:
    """The most memory this process has had resident. Linux keeps ru_maxrss across exec, VmHWM it does not."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def report(file_bytes: int, runs: dict[str, list[dict[str, float]]], as_json: bool) -> None:
    medians = {
        way: {key: statistics.median(run[key] for run in results) for key in ("seconds", "peak_bytes")}
        for way, results in runs.items()
    }
    if as_json:
        print(json.dumps({"file_bytes": file_bytes, "runs": runs, "medians": medians}))
        return
    print(f"file: {file_bytes / 1e9:.2f} GB, {runs['ours'][0]['values'] / 1e9:.3f} billion values, bf16 on the CPU")
    print(f"medians of {len(runs['ours'])} fresh processes each, taken in turns:")
    for way in WAYS:
        seconds, peak = medians[way]["seconds"], medians[way]["peak_bytes"]
        print(f"  {way:5}  {seconds:7.2f} s   peak {peak / 1e9:6.2f} GB   {peak / file_bytes:5.2f} x file")
    if file_bytes > 4e9:
        print(f"limit: {LIMIT} x file; ours is {'within' if within(medians, file_bytes) else 'ABOVE'} it")


def within(medians: dict[str, dict[str, float]], file_bytes: int) -> bool:
    return medians["ours"]["peak_bytes"] <= LIMIT * file_bytes


if __name__ == "__main__":
    sys.exit(main())
