"""Device and precision, with machines that are not here played by their facts."""

from __future__ import annotations

import platform

import pytest
import torch

from acestep.core.device import available_devices, choose_device, device_memory, free_memory, memory_told
from acestep.core.errors import UserError
from acestep.core.health import check_torch


@pytest.fixture
def only_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def cuda(only_cpu: None, monkeypatch: pytest.MonkeyPatch):
    def with_capability(major: int, minor: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (major, minor))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some Card")

    return with_capability


def test_cpu_computes_in_fp32(only_cpu: None) -> None:
    choice = choose_device()
    assert available_devices() == ["cpu"]
    assert (choice.device, choice.precision, choice.dtype) == ("cpu", "fp32", torch.float32)
    assert choice.torch_device == torch.device("cpu")
    assert choice.reason in str(choice)
    assert device_memory() is None
    free_memory()


def test_cpu_can_be_chosen_where_a_card_is(cuda) -> None:
    cuda(9, 0)
    assert choose_device("cpu").device == "cpu"
    assert choose_device("cpu", "bf16").dtype == torch.bfloat16


@pytest.mark.parametrize("device", ["cuda", "xpu", "mps"])
def test_a_missing_device_is_a_user_error(only_cpu: None, device) -> None:
    with pytest.raises(UserError, match=rf"device {device} is not available.*auto or one of: cpu"):
        choose_device(device)


@pytest.mark.parametrize(("capability", "precision"), [((8, 0), "bf16"), ((12, 0), "bf16"), ((7, 5), "fp16")])
def test_the_card_decides_the_precision(cuda, capability: tuple[int, int], precision: str) -> None:
    cuda(*capability)
    choice = choose_device()
    assert (choice.device, choice.precision) == ("cuda", precision)
    assert "Some Card" in choice.reason


def test_bf16_on_a_card_without_it_is_a_user_error(cuda) -> None:
    cuda(7, 5)
    with pytest.raises(UserError, match="no bf16"):
        choose_device("auto", "bf16")
    assert choose_device("auto", "fp32").precision == "fp32"


@pytest.mark.parametrize(("version", "precision"), [("14.1", "bf16"), ("13.6", "fp32"), ("", "fp32")])
def test_the_mac_decides_the_precision(
    only_cpu: None, monkeypatch: pytest.MonkeyPatch, version: str, precision: str
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(platform, "mac_ver", lambda: (version, ("", "", ""), ""))
    assert (choose_device().device, choose_device().precision) == ("mps", precision)


def test_intel_cards_compute_in_bf16(only_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    assert (choose_device().device, choose_device().precision) == ("xpu", "bf16")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_a_lack_of_memory_is_told_in_a_sentence(error: Exception) -> None:
    with pytest.raises(UserError, match=r"No room.*Use less"), memory_told("No room.", fix="Use less."):
        raise error


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="illegal"), memory_told("No room.", fix="Use less."):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


@pytest.mark.parametrize(
    ("capability", "built", "fits"),
    [
        ((6, 1), ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"], False),
        ((7, 0), ["sm_75", "sm_80"], False),
        ((7, 5), ["sm_75", "sm_80"], True),
        ((8, 9), ["sm_75", "sm_80", "sm_86"], True),
        ((8, 0), ["sm_86", "compute_86"], False),
        ((12, 1), ["sm_90a", "compute_90"], True),
        ((6, 1), [], True),
    ],
)
def test_a_card_for_which_torch_holds_no_code_is_not_taken(
    cuda, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], built: list[str], fits: bool
) -> None:
    """Builds for CUDA 13 list a Pascal card as available, and fail in the first computation on it."""
    cuda(*capability)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
    choice = choose_device()
    assert choice.device == ("cuda" if fits else "cpu")
    if not fits:
        assert "holds no code for Some Card" in choice.reason
        with pytest.raises(UserError) as refusal:
            choose_device("cuda")
        assert "holds no code for Some Card" in refusal.value.detail
        assert "holds no code for" in check_torch().found and "Delete env/" in check_torch().fix
