"""The numbers that a model computes in. Costs nothing to import: torch comes when needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from mtop_batch.errors import ConfigError

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "bf16"]
PrecisionChoice = Literal["auto", "fp32", "bf16"]


def resolve_precision(choice: PrecisionChoice, device: torch.device, *, autocast: bool) -> Precision:
    """What a user's choice means on a device.

    Args:
        choice: "auto" is bf16 on devices that gain by it (`has_bf16`).
        device: Where the model runs.
        autocast: The weights stay in fp32, as in training and evaluation. Then "auto" is bf16 on GPUs only.

    Raises:
        ConfigError: There is no such choice.
    """
    allowed = get_args(PrecisionChoice)
    if choice not in allowed:
        raise ConfigError(f"precision = {choice!r} is not one of {', '.join(allowed)}")
    if choice != "auto":
        return choice
    return "bf16" if has_bf16(device) and (device.type == "cuda" or not autocast) else "fp32"


def has_bf16(device: torch.device) -> bool:
    """Whether the device computes matrix products in bf16 by itself, and faster than in fp32.

    Intel's cores that have AMX multiply by AVX512-BF16 at about half their speed in fp32, and a virtual machine may
    hide AMX (measured by `benchmarks/bf16.py`).
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    is_intel = "intel" in str(capabilities.get("cpu_name", "")).lower()
    return bool(capabilities.get("amx_bf16") or (capabilities.get("avx512_bf16") and not is_intel))
