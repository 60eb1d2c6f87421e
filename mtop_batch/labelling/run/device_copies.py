"""Between host and device without waiting: a GPU copies inputs and results while it computes.

A copy to or from ordinary memory waits until the GPU has done all it was given, and so does reading a tensor's values.
From pinned memory inputs queue up behind the batches before them, and results are waited for one batch at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor


def to_device(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """A batch on the device, or on its way there."""
    if device.type == "cuda":
        # The pinned copies go back to PyTorch's pool when the GPU has read them.
        return {key: value.pin_memory().to(device, non_blocking=True) for key, value in batch.items()}
    return {key: value.to(device) for key, value in batch.items()}


class ToHost:
    """A tensor on its way to the host; what is launched after it does not delay it.

    Args:
        tensor: On any device. It must not be written to afterwards.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._copied: torch.Event | None = None
        self._host = tensor
        if tensor.device.type == "cuda":
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._copied = torch.cuda.current_stream(tensor.device).record_event()

    def numpy(self) -> npt.NDArray[Any]:
        """Its values; waits for them."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._host.cpu().numpy()
