"""The untrained model's texts: a small byte-level tokenizer, a tiny text encoder and a tiny 5 Hz language model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acestep.model.facts import END_OF_TEXT, INSTRUMENTAL, LANGUAGES
from acestep.model.prompt import PromptLabels, lyric_prompt, text_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TEXT_WIDTH = 48
"""Width of the text encoder's hidden states."""

CHAT_START, CHAT_END = "<|im_start|>", "<|im_end|>"
THINK_START, THINK_END = "<think>", "</think>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_VOCABULARY = 900
_WORDS = """
a an the with and of in on for at by warm bright dark slow fast soft loud gentle driving dreamy melancholic happy sad
calm energetic pop rock jazz folk blues funk soul house techno ambient electronic acoustic classical cinematic lo-fi
piano guitar bass drums strings synth synthesizer lead pad chords organ flute violin voice vocals vocal male female
choir melody rhythm beat groove song music instrumental ballad waltz anthem lullaby tempo major minor sharp flat
verse chorus bridge intro outro night day light love time heart home rain sun sea sky road fire dance sing play
bpm timesignature keyscale duration language caption genres unknown N/A A B C D E F G C# F# Bb Eb Ab
"""


def train_tokenizer(
    extra_tokens: tuple[str, ...] = (),
    appends_end: bool = True,
    corpus: Iterable[str] | None = None,
    vocabulary: int = _VOCABULARY,
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer for any text, the same every time; it knows `corpus` best.

    Without a corpus it is trained on the prompt forms and musical words. `appends_end` adds an end token after every
    text, as the published text encoder's tokenizer does.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT, CHAT_START, CHAT_END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus() if corpus is None else corpus, trainer)
    if extra_tokens:
        tokenizer.add_special_tokens(list(extra_tokens))
    if appends_end:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {END_OF_TEXT}", special_tokens=[(END_OF_TEXT, tokenizer.token_to_id(END_OF_TEXT))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT if appends_end else CHAT_END,
        pad_token=END_OF_TEXT,
        padding_side="right",
        model_max_length=32768,
        clean_up_tokenization_spaces=False,
    )


def write_text_encoder(folder: Path, seed: int) -> None:
    """A Qwen3 encoder and its tokenizer, as transformers saves them."""
    from transformers import Qwen3Config, Qwen3Model

    tokenizer = train_tokenizer()
    tokenizer.save_pretrained(folder)
    config = Qwen3Config(**_sizes(len(tokenizer)), pad_token_id=tokenizer.pad_token_id, bos_token_id=None)
    _seeded(seed, Qwen3Model, config).save_pretrained(folder)


def write_language_model(folder: Path, codes: int, seed: int) -> None:
    """A causal Qwen3 with `codes` audio-code tokens after the text tokens, as transformers saves it."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    audio_codes = tuple(f"<|audio_code_{code}|>" for code in range(codes))
    tokenizer = train_tokenizer((THINK_START, THINK_END, *audio_codes), appends_end=False)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    config = Qwen3Config(
        **_sizes(len(tokenizer)),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    _seeded(seed, Qwen3ForCausalLM, config).save_pretrained(folder)


def _sizes(vocabulary: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 2 * TEXT_WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
        "initializer_range": 0.15,  # small models need large weights for texts to differ
    }


def _seeded(seed: int, model_class: Any, config: Any) -> Any:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model_class(config).to(torch.bfloat16).eval()


def _corpus() -> list[str]:
    words = _WORDS.split()
    texts = [" ".join(words)] * 4 + [" " + word for word in words] * 4
    for index in range(24):
        labels = PromptLabels(
            caption=" ".join(words[index : index + 8]),
            lyrics=INSTRUMENTAL if index % 2 else "[Verse 1]\nsing the song of the night\n\n[Chorus]\nlove and light",
            language=LANGUAGES[index],
            bpm=60 + 5 * index,
            keyscale="C major" if index % 3 else "A minor",
            timesignature="4",
            duration_s=10.0 * index + 5,
        )
        texts += [text_prompt(labels), lyric_prompt(labels)]
    return texts
