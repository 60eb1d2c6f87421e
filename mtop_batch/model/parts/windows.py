"""What the windows of a text say together.

Shapes: R texts, W windows, n tasks, C outputs of the task with the most, D hidden width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mtop_batch.tasks import Combine


def combine_logits(logits: Tensor, num_windows: Tensor, combine: Combine) -> Tensor:
    """(R, ...) float32 The logits of texts, or the values of regressions.

    Args:
        logits: (W, ...) Of the windows, text after text.
        num_windows: (R,) int64, at least one each.
        combine: "mean" over the windows, "max" for each label by itself, or "first", the first window alone.
    """
    if combine == "first":
        return logits[num_windows.cumsum(0) - num_windows].float()
    return torch.segment_reduce(logits.float().contiguous(), combine, lengths=num_windows, axis=0)


def combine_vectors(vectors: Tensor, num_windows: Tensor) -> Tensor:
    """(R, D) float16 The vectors of texts: the mean over the windows, scaled to length 1 as theirs are.

    Args:
        vectors: (W, D) float16 Of the windows, text after text.
        num_windows: (R,) int64, at least one each. The vector of a text with one window stays as it is.
    """
    means = F.normalize(combine_logits(vectors, num_windows, "mean"), dim=-1).half()
    alone = combine_logits(vectors, num_windows, "first").half()
    return torch.where((num_windows == 1)[:, None], alone, means)
