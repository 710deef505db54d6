"""Everything that was trained as one checkpoint folder in the original layout, in bf16, with a README of its making."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from acestep.core.errors import UserError
from acestep.core.paths import atomic_folder, write_json, write_text
from acestep.model.demo import DIT_FOLDER, LANGUAGE_MODEL_FOLDER
from acestep.model.names import to_original
from acestep.model.untrained_text import write_language_model
from acestep.model.variants import TEXT_ENCODER_FOLDER, VAE_FOLDER
from demo_model.codes import Codes
from demo_model.dit import Trainer
from demo_model.sizes import LEVELS, dit_config
from demo_model.state import load_state
from demo_model.texts import make_tokenizer
from demo_model.vae import load_trained, silence_latent

MEASURED = Path(__file__).with_name("measured.md")
"""What `tools/evaluate_demo_model.py` found about the weights that are shipped; written anew with new weights."""

README = """# The demo's ACE-Step model

A small model in the layout of ACE-Step 1.5 that really plays: {parameters:.1f} million weights in bf16. It was trained
from scratch, on music that this project's own synthesiser made (`acestep/audio/synth`), by `tools/train_demo_model.py`.
No recording and no other model's weights or outputs went into it.

Licence: Apache-2.0, as the project. All training data is synthetic.

| part | steps | hours | on |
|---|---|---|---|
{rows}
"""


def assemble(work: Path, out: Path) -> str:
    """Write the checkpoint into `out`, which must be new or empty. Returns a sentence about it."""
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty.", fix="Choose a new folder for the checkpoint.")
    vae = load_trained(work / "vae")
    silence = silence_latent(vae)
    tokenizer = make_tokenizer(work / "tokenizer")
    trainer = Trainer(tokenizer, silence, "cpu")
    codes = Codes()
    facts = {
        "vae": json.loads((work / "vae" / "state.json").read_text(encoding="utf-8")),
        "dit": load_state(work / "dit", trainer.modules),
        "codes": load_state(work / "codes", codes),
    }
    if missing := [stage for stage, found in facts.items() if not found]:
        raise UserError(f"The stages {missing} were not trained yet.", fix="Run them first.")
    model = trainer.modules["average"]
    parts: dict[str, nn.Module] = {
        "transformer": model.transformer,
        "condition_encoder": model.condition,
        "audio_tokenizer": codes.tokenizer,
        "audio_token_detokenizer": codes.detokenizer,
    }
    with atomic_folder(out) as folder:
        vae.written().to(torch.bfloat16).save_pretrained(folder / VAE_FOLDER)
        tokenizer.save_pretrained(folder / TEXT_ENCODER_FOLDER)
        model.text.to(torch.bfloat16).save_pretrained(folder / TEXT_ENCODER_FOLDER)
        write_language_model(folder / LANGUAGE_MODEL_FOLDER, codes=math.prod(LEVELS), seed=3)
        dit = folder / DIT_FOLDER
        dit.mkdir()
        write_json(dit / "config.json", dit_config())
        torch.save(silence.transpose(1, 2).contiguous(), dit / "silence_latent.pt")
        save_file(_original_tensors(parts), dit / "model.safetensors", metadata={"format": "pt"})
        size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
        rows = [
            f"| {stage} | {_steps(found)} | {found['seconds'] / 3600:.2f} | {found['machine']} |"
            for stage, found in facts.items()
        ]
        text = README.format(parameters=size / 2e6, rows="\n".join(rows))
        write_text(folder / "README.md", f"{text}\n{MEASURED.read_text(encoding='utf-8')}")
        for file in folder.rglob("*.safetensors"):
            file.chmod(0o644)  # safetensors makes private files
    return f"{out}: {size / 1e6:.1f} MB of weights"


def _steps(facts: dict) -> str:
    alone = facts["step"] - facts.get("decoder_from", facts["step"])
    return f"{facts['step']}, the last {alone} its decoder alone" if alone else str(facts["step"])


def _original_tensors(parts: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Weights of the DiT folder under their original names."""
    return {
        to_original(part, key): value.detach().to(torch.bfloat16).contiguous()
        for part, module in parts.items()
        for key, value in module.named_parameters()
    }
