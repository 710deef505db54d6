"""Small transformers of two shapes, their output for fixed inputs, and adapters with random weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace

import pytest
import torch
from diffusers import AceStepTransformer1DModel
from torch import Tensor, nn

from acestep.adapters import Adapter, attach
from acestep.adapters.attaching import attach_spec
from acestep.adapters.families import FAMILIES
from acestep.settings import AdapterSettings

KINDS: dict[str, AdapterSettings] = {
    "lora": AdapterSettings(rank=4, alpha=8, dropout=0),
    "lora-self": AdapterSettings(rank=3, alpha=5, dropout=0, attention="self"),
    "lora-cross-mlp": AdapterSettings(rank=2, alpha=3.5, dropout=0, attention="cross", train_mlp=True),
    "lora-rslora": AdapterSettings(rank=4, alpha=8, dropout=0, rslora=True, train_mlp=True),
    "dora": AdapterSettings(rank=4, alpha=8, dropout=0, dora=True, train_mlp=True),
    "lokr": AdapterSettings(adapter="lokr", lokr_factor=4, lokr_dim=3, lokr_alpha=6),
    "lokr-self": AdapterSettings(adapter="lokr", lokr_factor=-1, lokr_dim=2, lokr_alpha=1, attention="self"),
    "lokr-cross-mlp": AdapterSettings(adapter="lokr", lokr_factor=8, lokr_dim=3, attention="cross", train_mlp=True),
    "lokr-whole": AdapterSettings(adapter="lokr", lokr_factor=4, lokr_dim=1000, train_mlp=True),
    "lokr-both-split": AdapterSettings(
        adapter="lokr", lokr_factor=8, lokr_dim=2, lokr_alpha=3, lokr_decompose_both=True
    ),
    "lora-ranks": AdapterSettings(
        rank=4,
        alpha=8,
        dropout=0,
        layers="1",
        self_modules=("q", "o"),
        rank_pattern={"layers.1.self_attn.q_proj": 7, "layers.1.cross_attn.v_proj": 2},
        alpha_pattern={"layers.1.cross_attn.v_proj": 3},
    ),
    "loha": AdapterSettings(adapter="loha", loha_dim=3, loha_alpha=6),
    "loha-part": AdapterSettings(
        adapter="loha", loha_dim=2, loha_alpha=1, attention="cross", cross_modules=("k", "o"), train_mlp=True
    ),
    "oft": AdapterSettings(adapter="oft", oft_block_size=8, train_mlp=True),
    "oft-constrained": AdapterSettings(
        adapter="oft", oft_block_size=16, oft_constrained=True, oft_eps=1.0, attention="self"
    ),
}
"""Every family with every option that changes its tensors."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small are several times faster without a pool of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=list(KINDS))
def settings(request: pytest.FixtureRequest) -> AdapterSettings:
    return KINDS[request.param]


@pytest.fixture
def make_transformer() -> Callable[..., AceStepTransformer1DModel]:
    """A new transformer with the same random weights at every call; sizes may be given."""

    def make(**sizes: int) -> AceStepTransformer1DModel:
        torch.manual_seed(7)
        # heads * head_dim and the condition differ from the width, as on XL
        standard = {
            "hidden_size": 64,
            "intermediate_size": 144,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "encoder_hidden_size": 48,
            "sliding_window": 6,
        }
        return AceStepTransformer1DModel(**standard | sizes).eval()

    return make


@pytest.fixture
def velocity() -> Callable[[torch.nn.Module], Tensor]:
    """The output for fixed inputs, (2, 21, 64), in the type of the model."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    inputs = {
        "hidden_states": draw(2, 21, 64),
        "timestep": torch.tensor([0.9, 0.4]),
        "timestep_r": torch.tensor([0.9, 0.4]),
        "encoder_hidden_states": draw(2, 5, 48),
        "context_latents": draw(2, 21, 128),
    }

    def run(transformer: torch.nn.Module) -> Tensor:
        dtype = transformer.proj_in_conv.weight.dtype
        return transformer(**{name: value.to(dtype) for name, value in inputs.items()}, return_dict=False)[0]

    return run


@pytest.fixture
def attach_random() -> Callable[..., Adapter]:
    """Attach an adapter and give every weight of it a random value, so that all of them count.

    `modules` names those it wraps one by one (diffusers names, in model order), as a file may.
    """

    def make(transformer: torch.nn.Module, settings: AdapterSettings, modules: Sequence[str] = ()) -> Adapter:
        torch.manual_seed(2)
        if modules:
            spec = FAMILIES[settings.adapter].spec.from_settings(settings)
            adapter = attach_spec(transformer, settings.adapter, spec, modules)
        else:
            adapter = attach(transformer, settings)
        generator = torch.Generator().manual_seed(3)
        for parameter in adapter.parameters():
            parameter.data.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        return adapter

    return make


class OriginalAttention(nn.Module):
    """Attention whose projections have their original names; the arithmetic stays diffusers' own."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = attention.to_q, attention.to_k, attention.to_v
        self.o_proj = attention.to_out[0]
        self.q_norm, self.k_norm = attention.norm_q, attention.norm_k
        self._shape = {
            name: getattr(attention, name)
            for name in ("heads", "kv_heads", "head_dim", "dropout", "scaling", "sliding_window", "is_cross_attention")
        }
        self._processor = [attention.processor]

    @property
    def processor(self) -> object:
        return self._processor[0]

    def forward(self, hidden_states: Tensor, **kwargs: object) -> Tensor:
        view = SimpleNamespace(
            **self._shape,
            training=self.training,
            to_q=self.q_proj,
            to_k=self.k_proj,
            to_v=self.v_proj,
            to_out=[self.o_proj, nn.Identity()],
            norm_q=self.q_norm,
            norm_k=self.k_norm,
        )
        return self.processor(view, hidden_states, **kwargs)


@pytest.fixture
def make_original(make_transformer: Callable[..., AceStepTransformer1DModel]) -> Callable[..., nn.Module]:
    """The same transformer with the module names of the original decoder, as the official app has it."""

    def make(**sizes: int) -> nn.Module:
        transformer = make_transformer(**sizes)
        for layer in transformer.layers:
            layer.self_attn = OriginalAttention(layer.self_attn)
            layer.cross_attn = OriginalAttention(layer.cross_attn)
        return transformer

    return make
