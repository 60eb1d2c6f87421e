"""The losses of tasks.

Shapes: B texts, T text positions, C outputs of a task.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mtop_batch.tasks import NO_TAG, Task


def task_loss(task: Task, logits: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """The loss of a batch of one task, in float32.

    Args:
        task: Decides the loss: mean cross-entropy for classification; for a multi-label task binary cross-entropy, the
            mean over labels and texts; for a regression the mean squared error, in standard deviations of what it
            learned from; for a token task the cross-entropy of a text's words, the mean over texts.
        logits: (B, C) What the task's head puts out; (B, T, C) of a token task.
        labels: (B,) Indices of labels, or the values of a regression; (B, C) which labels a text has, of a multi-label
            task; (B, T) the tags of a token task, `NO_TAG` where no word begins.
        class_weights: (C,) What an example of each label counts. Of a classification their mean over the examples
            learned from is 1, so that the loss is as large as without; of a multi-label task they are relative to
            examples without the label. None for 1 each.

    Returns:
        () The loss.
    """
    if task.kind == "regression":
        standardised = (labels.double() - task.mean) / task.std
        return F.mse_loss(logits[:, 0].float(), standardised.float())
    if task.is_token:
        return token_loss(logits.float(), labels)
    if task.is_multi_label:
        return multi_label_loss(logits.float(), labels, class_weights)
    return classification_loss(logits.float(), labels, class_weights)


def token_loss(logits: Tensor, tags: Tensor) -> Tensor:
    """() The mean over texts of the mean cross-entropy of their words; 0 for a text without words.

    A text counts the same however many words it has: so the loss of a batch is the mean of those of its texts, by
    however many workers it is computed.
    """
    losses = F.cross_entropy(logits.flatten(0, 1), tags.flatten(), reduction="none", ignore_index=NO_TAG)
    num_words = (tags != NO_TAG).sum(dim=1).clamp(min=1)
    return (losses.view(tags.shape).sum(dim=1) / num_words).mean()


def contrastive_loss(vectors: Tensor, labels: Tensor, temperature: float = 0.1) -> Tensor:
    """() Supervised contrastive learning (Khosla et al. 2020, equation 2): texts of a label come closer to one another.

    It is the mean over the texts i that share a label with some other text of the batch, P(i) being these:

        -1 / |P(i)| sum over p in P(i) of log (exp(v_i v_p / t) / sum over a != i of exp(v_i v_a / t))

    Args:
        vectors: (B, D) Of length 1.
        labels: (B,) Indices of labels; (B, C) which labels a text has.
        temperature: t

    Returns:
        0 where no text shares a label.
    """
    if len(vectors) < 2:
        return vectors.sum() * 0
    has_label = F.one_hot(labels.long()) if labels.ndim == 1 else labels
    same = has_label.to(vectors.dtype) @ has_label.to(vectors.dtype).T > 0
    itself = torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
    same = same & ~itself
    shares = (vectors @ vectors.T / temperature).masked_fill(itself, -torch.inf).log_softmax(dim=1)
    num_same = same.sum(dim=1)
    losses = -shares.masked_fill(~same, 0).sum(dim=1) / num_same.clamp(min=1)
    return losses.sum() / (num_same > 0).sum().clamp(min=1)


def multi_label_loss(logits: Tensor, labels: Tensor, class_weights: Tensor | None) -> Tensor:
    """() The mean binary cross-entropy over texts and labels; with weights for the labels that a text has."""
    weights = None if class_weights is None else class_weights.to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), pos_weight=weights)


def classification_loss(logits: Tensor, labels: Tensor, class_weights: Tensor | None) -> Tensor:
    """() The mean cross-entropy; with weights that of weighted examples.

    It is divided by the number of examples and not by the sum of their weights, which would leave a batch without the
    rare label as it is without weights.
    """
    if class_weights is None:
        return F.cross_entropy(logits, labels)
    return F.cross_entropy(logits, labels, class_weights.to(logits.dtype), reduction="sum") / len(labels)
