"""How much the attention heads of an encoder matter to a task (GradTS, section on head ranking).

The paper takes the absolute gradient of the loss at each head, summed over the examples. Its authors' code takes the
gradients of a head's key and value projections, averaged over a batch, in which the examples' gradients cancel out.
Here it is the gradient with respect to a mask of 1 on what the head puts out (`model.encoder.head_masks`), its absolute
value taken example by example: so it depends neither on the batches nor on their order. The scale is that of the
authors' code: every layer is divided by its sum, then the matrix is brought to 0 to 1.

Shapes: R examples, L layers, H heads.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from mtop_batch.data.batches import length_sorted_batches, pad_batch
from mtop_batch.data.labelled_tokens import LabelledTokens
from mtop_batch.model.encoder.head_masks import head_masks
from mtop_batch.model.kinds.base import MultiTaskModel
from mtop_batch.training.settings import Worker

MAX_BATCH_TOKENS = 4096
FloatArray = npt.NDArray[np.float32]


def head_gradients(
    model: MultiTaskModel,
    task: str,
    examples: LabelledTokens,
    *,
    worker: Worker | None = None,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
) -> FloatArray:
    """The absolute gradient of each example's loss with respect to the mask of each head.

    Args:
        model: Was trained on the task; its weights are left without gradients and in evaluation mode.
        task: One of its tasks.
        examples: R of the task, of one window each.
        worker: This process; None for a single one on the CPU.
        max_batch_tokens: Positions of a batch, padding included.

    Returns:
        (R, L, H)

    Raises:
        ConfigError: The heads of the encoder cannot be had one by one.
    """
    worker = worker or Worker()
    model.to(worker.device).eval().requires_grad_(False)  # type: ignore[arg-type]  # transformers wraps it
    encoder = model.encoder_of(task)
    order, found = [], []
    for rows in length_sorted_batches(examples.window_lengths, max_batch_tokens):
        labels = worker.to_device(torch.from_numpy(examples.targets(rows, rows)))
        with torch.enable_grad(), head_masks(encoder) as masks:
            with worker.autocast():
                inputs = pad_batch(examples.tokens, rows, worker.device, examples.vectors_of(rows))
                mean = model(**inputs, task=task, labels=labels).loss
            found.append(masks.gradients(mean * len(rows)).abs().cpu())
        order.append(rows)
    gradients: FloatArray = torch.cat(found).numpy()[np.argsort(np.concatenate(order))]
    return gradients


def importance(gradients: FloatArray) -> FloatArray:
    """(L, H) The importance of each head to a task, from the (R, L, H) gradients of its examples."""
    return normalised(gradients.astype(np.float64).sum(axis=0, keepdims=True))[0]


def normalised(gradients: npt.NDArray[np.floating]) -> FloatArray:
    """Matrices (..., L, H) with each layer divided by its sum, and then each matrix brought to 0 to 1.

    >>> normalised(np.array([[1.0, 3.0], [2.0, 2.0]])).tolist()
    [[0.0, 1.0], [0.5, 0.5]]
    """
    sums = gradients.sum(axis=-1, keepdims=True)
    shares = np.divide(gradients, sums, out=np.zeros_like(gradients), where=sums > 0)
    low, high = (bound(shares, axis=(-2, -1), keepdims=True) for bound in (np.min, np.max))
    scaled = np.divide(shares - low, high - low, out=np.zeros_like(shares), where=high > low)
    return scaled.astype(np.float32)
