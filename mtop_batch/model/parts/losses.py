"""The losses of tasks.

Shapes: B texts, C outputs of a task.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from mtop_batch.tasks import Task


def task_loss(task: Task, logits: Tensor, labels: Tensor) -> Tensor:
    """The loss of a batch of one task, in float32.

    Args:
        task: Decides the loss: mean cross-entropy for classification; for a multi-label task binary cross-entropy, the
            mean over labels and texts; for a regression the mean squared error, in standard deviations of what it
            learned from.
        logits: (B, C) What the task's head puts out.
        labels: (B,) Indices of labels, or the values of a regression; (B, C) which labels a text has, of a multi-label
            task.

    Returns:
        () The loss.
    """
    if task.kind == "regression":
        standardised = (labels.double() - task.mean) / task.std
        return F.mse_loss(logits[:, 0].float(), standardised.float())
    if task.is_multi_label:
        return F.binary_cross_entropy_with_logits(logits.float(), labels.float())
    return F.cross_entropy(logits.float(), labels)
