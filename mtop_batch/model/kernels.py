"""Whether the GPU kernels of `mtop_batch.model.triton_kernels` can run; where not, PyTorch's own do the same."""

from __future__ import annotations

import importlib.util
import logging
from functools import cache

import torch
from torch import Tensor

_log = logging.getLogger(__name__)


def has_kernels(tensor: Tensor) -> bool:
    """Whether they can compute from this tensor: on an NVIDIA GPU with Triton and a C compiler, without gradients."""
    return tensor.device.type == "cuda" and not torch.is_grad_enabled() and _run_on(tensor.device)


@cache
def _run_on(device: torch.device) -> bool:
    """Triton compiles its kernels on the machine that runs them, which fails there or not at all."""
    is_capable = torch.version.cuda is not None and torch.cuda.get_device_capability(device) >= (8, 0)
    if not is_capable or importlib.util.find_spec("triton") is None:
        return False
    try:
        from mtop_batch.model.triton_kernels import add_norm

        ones = torch.ones(1, 16, device=device)
        add_norm(ones, ones, ones[0], ones[0], 1e-12)
    except Exception as error:  # no compiler, no headers, no place to write to: each fails in its own way
        _log.warning("labelling goes on without Triton's kernels, and is slower: %s", error)
        return False
    return True
