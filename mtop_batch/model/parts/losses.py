"""The losses of tasks.

Shapes: B texts, C outputs of a task.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from mtop_batch.tasks import Task


def task_loss(task: Task, logits: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """The loss of a batch of one task, in float32.

    Args:
        task: Decides the loss: mean cross-entropy for classification; for a regression the mean squared error, in
            standard deviations of what it learned from.
        logits: (B, C) What the task's head puts out.
        labels: (B,) Indices of labels, or the values of a regression.
        class_weights: (C,) What an example of each label counts; their mean over the examples learned from is 1, so
            that the loss is as large as without. None for 1 each.

    Returns:
        () The loss.
    """
    if task.kind == "regression":
        standardised = (labels.double() - task.mean) / task.std
        return F.mse_loss(logits[:, 0].float(), standardised.float())
    return classification_loss(logits.float(), labels, class_weights)


def classification_loss(logits: Tensor, labels: Tensor, class_weights: Tensor | None) -> Tensor:
    """() The mean cross-entropy; with weights that of weighted examples.

    It is divided by the number of examples and not by the sum of their weights, which would leave a batch without the
    rare label as it is without weights.
    """
    if class_weights is None:
        return F.cross_entropy(logits, labels)
    return F.cross_entropy(logits, labels, class_weights.to(logits.dtype), reduction="sum") / len(labels)
