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
        choice: "auto" is bf16 on devices that compute in it by themselves.
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
    """Whether the device computes matrix products in bf16 by itself, not by conversions to fp32."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16"))
