"""Adapters in the original's layouts give the velocity the original gives with them."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open

from acestep.adapters import find_adapter, load_adapter, save_adapter

KINDS = ("lora", "lokr")
TOLERANCE = {"rtol": 0.0, "atol": 1e-5}


@pytest.fixture(params=KINDS)
def kind(request, golden_model):
    if not (golden_model.folder / f"adapter_{request.param}").is_dir():
        pytest.skip(f"{golden_model.folder} has no {request.param} adapter")
    return request.param


def velocity(golden_model):
    case = golden_model.cases("dit_decoder")[0]
    names = ("hidden_states", "timestep", "timestep_r", "encoder_hidden_states", "context_latents")
    with torch.no_grad():
        return golden_model.transformer(**{name: case[name] for name in names}, return_dict=False)[0]


@pytest.fixture
def adapter(golden_model, kind):
    loaded = load_adapter(golden_model.folder / f"adapter_{kind}", golden_model.transformer)
    yield loaded
    loaded.detach_from_model()


def test_velocity_with_the_adapter(golden_model, kind, adapter):
    expected = golden_model.vectors("adapter_outputs")[f"{kind}.velocity"]
    torch.testing.assert_close(velocity(golden_model), expected, **TOLERANCE)


def test_every_tensor_of_the_file_is_used_as_it_is(golden_model, kind, adapter):
    source = find_adapter(golden_model.folder / f"adapter_{kind}")
    with safe_open(source.weights, "pt") as file:
        assert set(source.keys.values()) == set(file.keys())
        stored = {name: file.get_tensor(key) for name, key in source.keys.items()}
    own = adapter.tensors()
    assert own.keys() == stored.keys()
    assert all(torch.equal(own[name], stored[name]) for name in stored)


def test_without_the_adapter_the_model_is_itself(golden_model, kind, adapter):
    adapter.set_strength(0)
    at_zero = velocity(golden_model)
    adapter.detach_from_model()
    torch.testing.assert_close(at_zero, golden_model.cases("dit_decoder")[0]["velocity"], **TOLERANCE)
    assert torch.equal(velocity(golden_model), at_zero)


def test_saved_again_it_gives_the_same_velocity(golden_model, kind, adapter, tmp_path):
    before = velocity(golden_model)
    folder = save_adapter(adapter, tmp_path / "adapter")
    adapter.detach_from_model()
    again = load_adapter(folder, golden_model.transformer)
    try:
        assert torch.equal(velocity(golden_model), before)
    finally:
        again.detach_from_model()
