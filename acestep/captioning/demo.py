"""Tiny random models of the true classes, as folders in the layout of the published ones.

They hear and write by the real code in milliseconds. What they write is nonsense, or, whatever they hear, the lines
they are built to say. Tests and benchmarks use them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from acestep.core.paths import write_json
from acestep.model.checkpoints import WEIGHTS_STEM

_OMNI_TOKENS = {
    "image_token": "<|IMAGE|>",
    "audio_token": "<|AUDIO|>",
    "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
}
_END, _PADDING = "<|im_end|>", "<|endoftext|>"
_TEMPLATE = """{% for message in messages %}<|im_start|>{{ message['role'] }}
{% for part in message['content'] %}{% if part['type'] == 'audio' %}AUDIO{% else %}{{ part['text'] }}{% endif %}\
{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
_LANGUAGES = ("en", "de", "ja")


def build_omni(folder: Path, says: tuple[str, ...] = (), ends: bool = True, seed: int = 0, chunk_s: int = 12) -> Path:
    """A whole Qwen2.5-Omni checkpoint, stored as the published ones are, that hears `chunk_s` seconds at most.

    It writes the lines of `says` and ends, or says the last one for ever; without lines it writes random bytes.
    """
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import (
        Qwen2_5OmniThinkerConfig,
        Qwen2_5OmniThinkerForConditionalGeneration,
        WhisperFeatureExtractor,
    )

    vocabulary = _save_tokenizer(folder, _OMNI_TOKENS, says)
    template = _TEMPLATE.replace("AUDIO", "<|audio_bos|><|AUDIO|><|audio_eos|>")
    write_json(folder / "chat_template.json", {"chat_template": template})
    WhisperFeatureExtractor(feature_size=16, chunk_length=chunk_s).save_pretrained(folder)
    config = Qwen2_5OmniThinkerConfig(
        audio_config=_AUDIO_TOWER | {"n_window": 100, "output_dim": 32, "max_source_positions": 200},
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [0],
        },
        text_config=_text_config(vocabulary)
        | {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6}},
        audio_token_index=vocabulary["<|AUDIO|>"],
        image_token_index=vocabulary["<|IMAGE|>"],
        video_token_index=vocabulary["<|VIDEO|>"],
        audio_start_token_id=vocabulary["<|audio_bos|>"],
        audio_end_token_id=vocabulary["<|audio_eos|>"],
        vision_start_token_id=vocabulary["<|vision_bos|>"],
        vision_end_token_id=vocabulary["<|vision_eos|>"],
        user_token_id=1,
    )
    model = _seeded(lambda: Qwen2_5OmniThinkerForConditionalGeneration(config), seed)
    _teach(model, vocabulary, says, ends)
    _save_chat_model(folder, model, vocabulary)
    weights = folder / f"{WEIGHTS_STEM}.safetensors"
    stored = {f"thinker.{name}": tensor for name, tensor in load_file(weights).items()}
    save_file(stored | {"talker.unused.weight": torch.zeros(8, 8)}, weights, metadata={"format": "pt"})
    thinker = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    whole = {"architectures": ["Qwen2_5OmniForConditionalGeneration"], "model_type": "qwen2_5_omni"}
    write_json(folder / "config.json", whole | {"enable_audio_output": True, "thinker_config": thinker})
    return folder


def build_flamingo(
    folder: Path, kind: str = "musicflamingo", says: tuple[str, ...] = (), seed: int = 0, longest_s: int = 16
) -> Path:
    """A Music Flamingo ("musicflamingo") or Audio Flamingo 3 ("audioflamingo3") that hears `longest_s` at most."""
    import transformers
    from transformers import WhisperFeatureExtractor

    tokens = {"audio_token": "<sound>", "audio_bos_token": "<|sound_bos|>", "audio_eos_token": "<|sound_eos|>"}
    vocabulary = _save_tokenizer(folder, tokens, says)
    music = kind == "musicflamingo"
    names = (
        ("MusicFlamingo", transformers.MusicFlamingoConfig)
        if music
        else (
            "AudioFlamingo3",
            transformers.AudioFlamingo3Config,
        )
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    processor = getattr(transformers, f"{names[0]}Processor")(
        feature_extractor=WhisperFeatureExtractor(feature_size=16, chunk_length=4),
        tokenizer=tokenizer,
        chat_template=_TEMPLATE.replace("AUDIO", "<sound>"),
        max_audio_len=longest_s,
    )
    processor.save_pretrained(folder)
    config = names[1](
        audio_config=_AUDIO_TOWER | {"model_type": "audioflamingo3_encoder", "max_source_positions": 200},
        text_config=_text_config(vocabulary) | {"model_type": "qwen2"},
        audio_token_id=vocabulary["<sound>"],
        **(
            {
                "audio_bos_token_id": vocabulary["<|sound_bos|>"],
                "audio_eos_token_id": vocabulary["<|sound_eos|>"],
            }
            if music
            else {}
        ),
    )
    model = _seeded(lambda: getattr(transformers, f"{names[0]}ForConditionalGeneration")(config), seed)
    _teach(model, vocabulary, says, ends=True)
    _save_chat_model(folder, model, vocabulary)
    return folder


def build_whisper(folder: Path, seed: int = 0, chunk_s: int = 4) -> Path:
    """A Whisper that hears `chunk_s` seconds at a time and knows three languages."""
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
        WhisperTokenizer,
    )

    folder.mkdir(parents=True, exist_ok=True)
    languages = [f"<|{code}|>" for code in _LANGUAGES]
    controls = ["<|startoftranscript|>", *languages, "<|translate|>", "<|transcribe|>", "<|startoflm|>"]
    controls += ["<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    times = [f"<|{0.02 * number:.2f}|>" for number in range(50 * chunk_s + 1)]
    vocabulary = _byte_vocabulary([_PADDING, *controls, *times])
    tokenizer = WhisperTokenizer(
        vocab={token: number for token, number in vocabulary.items() if number <= vocabulary[_PADDING]},
        merges=[],
        unk_token=_PADDING,
        bos_token=_PADDING,
        eos_token=_PADDING,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": controls})
    tokenizer.add_tokens(times)
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=chunk_s)
    WhisperProcessor(extractor, tokenizer).save_pretrained(folder)
    config = WhisperConfig(
        vocab_size=len(vocabulary),
        num_mel_bins=16,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_source_positions=50 * chunk_s,
        max_target_positions=32,
        pad_token_id=vocabulary[_PADDING],
        bos_token_id=vocabulary[_PADDING],
        eos_token_id=vocabulary[_PADDING],
        decoder_start_token_id=vocabulary["<|startoftranscript|>"],
    )
    generation = GenerationConfig(
        max_length=32,
        pad_token_id=vocabulary[_PADDING],
        bos_token_id=vocabulary[_PADDING],
        eos_token_id=vocabulary[_PADDING],
        decoder_start_token_id=vocabulary["<|startoftranscript|>"],
        no_timestamps_token_id=vocabulary["<|notimestamps|>"],
        max_initial_timestamp_index=50,
        is_multilingual=True,
        lang_to_id={token: vocabulary[token] for token in languages},
        task_to_id={"transcribe": vocabulary["<|transcribe|>"], "translate": vocabulary["<|translate|>"]},
        prev_sot_token_id=vocabulary["<|startofprev|>"],
        alignment_heads=[[0, 0], [0, 1]],
        suppress_tokens=[],
        begin_suppress_tokens=[vocabulary[_PADDING]],
        return_timestamps=False,
    )
    model = _seeded(lambda: WhisperForConditionalGeneration(config), seed)
    model.generation_config = generation
    model.save_pretrained(folder)
    return folder


_AUDIO_TOWER = {
    "num_mel_bins": 16,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "d_model": 16,
}


def _text_config(vocabulary: dict[str, int]) -> dict[str, Any]:
    return {
        "vocab_size": len(vocabulary),
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 8192,
        "eos_token_id": vocabulary[_END],
        "pad_token_id": vocabulary[_PADDING],
    }


def _byte_vocabulary(special: list[str]) -> dict[str, int]:
    """One token for each byte, then the special ones."""
    from tokenizers.pre_tokenizers import ByteLevel

    return {token: number for number, token in enumerate([*sorted(ByteLevel.alphabet()), *special])}


def _as_token(line: str) -> str:
    """A whole line as one token, in the alphabet of byte-level tokenizers."""
    from tokenizers.pre_tokenizers import ByteLevel

    return "".join(part for part, _ in ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(line))


def _save_tokenizer(folder: Path, tokens: dict[str, str], says: tuple[str, ...]) -> dict[str, int]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = _byte_vocabulary([_PADDING, "<|im_start|>", _END, *tokens.values(), *map(_as_token, says)])
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=_END,
        pad_token=_PADDING,
        additional_special_tokens=["<|im_start|>"],
        extra_special_tokens=tokens,
    ).save_pretrained(folder)
    return vocabulary


def _seeded(make: Callable[[], Any], seed: int) -> Any:
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def _teach(model: Any, vocabulary: dict[str, int], says: tuple[str, ...], ends: bool) -> None:
    """Make a model write `says`: each token decides the next, by its embedding alone."""
    import torch

    if not says:
        return
    lines = [vocabulary[_as_token(line)] for line in says]
    chain = [vocabulary[_as_token("\n")], *lines]  # prompts end with a line break
    followers = [*lines, vocabulary[_END] if ends else lines[-1]]
    embedding, head = model.get_input_embeddings().weight.data, model.get_output_embeddings().weight.data
    for name, weights in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weights.data.zero_()  # so that what is embedded arrives at the end unchanged
    head.zero_()
    for before, after in zip(chain, followers, strict=True):
        head[after] += 100 * torch.nn.functional.normalize(embedding[before], dim=0)


def _save_chat_model(folder: Path, model: Any, vocabulary: dict[str, int]) -> None:
    model.generation_config.eos_token_id = vocabulary[_END]
    model.generation_config.pad_token_id = vocabulary[_PADDING]
    model.save_pretrained(folder)


def build_clap(folder: Path, seed: int = 0, window_s: int = 2) -> Path:
    """A CLAP that hears `window_s` seconds of 48 kHz at a time."""
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, ClapProcessor, RobertaTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]  # first: positions are counted from that of <pad>
    vocabulary = {token: number for number, token in enumerate([*special, *_byte_vocabulary([])])}
    tokenizer = RobertaTokenizer(vocab=vocabulary, merges=[], model_max_length=77)
    extractor = ClapFeatureExtractor(feature_size=64, max_length_s=window_s, truncation="rand_trunc")
    ClapProcessor(extractor, tokenizer).save_pretrained(folder)
    config = ClapConfig(
        text_config={
            "vocab_size": len(vocabulary),
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "max_position_embeddings": 80,
            "pad_token_id": vocabulary["<pad>"],
            "bos_token_id": vocabulary["<s>"],
            "eos_token_id": vocabulary["</s>"],
            "initializer_range": 1.0,
        },
        audio_config={
            "spec_size": 256,
            "num_mel_bins": 64,
            "patch_embeds_hidden_size": 8,
            "hidden_size": 64,
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 1, 1, 1],
            "projection_dim": 16,
        },
        projection_dim=16,
        logit_scale_init_value=200.0,  # as sharp as a trained model's, so that some tags stand out
    )
    _seeded(lambda: ClapModel(config), seed).save_pretrained(folder)
    return folder
