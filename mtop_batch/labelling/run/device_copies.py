"""From device to host without waiting: a GPU copies results while it computes.

A copy to ordinary memory waits until the GPU has done all it was given, and so does reading a tensor's values. Into
pinned memory results are waited for one batch at a time. Inputs: `mtop_batch.data.batches.pad_batch`.
"""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor


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
