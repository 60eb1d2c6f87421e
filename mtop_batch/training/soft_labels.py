"""Soft labels: what teachers say of texts for all tasks, and the loss of a model that learns it in one forward pass.

Self-training with all tasks' labels at once, as in MuST (Ghiasi et al., 2021): a step on a text moves all tasks, and
with a model of one forward pass its cost does not grow with them. The target is the mean of several teachers, which is
better than each of them (Hinton et al., 2015).

Shapes: R texts, B of a batch, N tasks, C outputs of the task with the most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from mtop_batch.data.batches import length_sorted_batches, pad_batch
from mtop_batch.data.tokens import Tokens
from mtop_batch.model.encoder.inputs import Text
from mtop_batch.model.kinds.base import MultiTaskModel
from mtop_batch.tasks import Task, TaskKind
from mtop_batch.training.evaluation.evaluate import MAX_BATCH_TOKENS, evaluating
from mtop_batch.training.sampling import example_rows
from mtop_batch.training.settings import Worker

FloatArray = npt.NDArray[np.float32]

# Large enough to be no probability at all, and finite, so that zero times it is zero.
_NO_LABEL = -1e4


@dataclass(frozen=True)
class SoftLabels:
    """Texts and what teachers say of them.

    Args:
        tokens: R texts.
        targets: (R, N, C) Probabilities of labels (of a multi-label task, of each by itself), zero beyond a task's own;
            a regression's value comes first, in standard deviations from the mean (`Task.mean`), as the model puts it
            out.
        batch_size: Texts per step, over all workers together.
        weight: Of their loss beside that of the examples.
    """

    tokens: Tokens
    targets: FloatArray
    batch_size: int
    weight: float

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, step: int, seed: int, stream: int) -> npt.NDArray[np.int64]:
        """(batch_size,) The texts of a step: shuffled passes over all of them, a pure function of the arguments."""
        return example_rows(len(self), step * self.batch_size, self.batch_size, seed, stream)


def label_softly(
    model: MultiTaskModel,
    tokens: Tokens,
    tasks: Sequence[Task],
    *,
    worker: Worker | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> FloatArray:
    """(R, N, C) What one teacher says of texts.

    Args:
        model: The teacher, on the worker's device.
        tokens: Of the texts, in the teacher's own vocabulary.
        tasks: In the wanted order; the teacher has them.
        worker: This process; None for a single one on the CPU.
        on_progress: Called with how many texts are done.
    """
    worker = worker or Worker()
    names = [task.name for task in tasks]
    width = max(task.num_outputs for task in tasks)
    targets = np.zeros((len(tokens), len(tasks), width), np.float32)
    lengths = tokens.lengths + model.num_positions(names)
    done = 0
    with evaluating(model), worker.autocast():
        for rows in length_sorted_batches(lengths, MAX_BATCH_TOKENS):
            text = text_of(tokens, rows, worker)
            logits = model.outputs(tuple(names), text, vectors=False)[0].float()
            targets[rows] = _probabilities(tasks, logits).cpu().numpy()
            done += len(rows)
            if on_progress is not None:
                on_progress(done)
    return targets


def text_of(tokens: Tokens, rows: npt.NDArray[np.integer], worker: Worker) -> Text:
    """These rows as the model takes them."""
    inputs = pad_batch(tokens, rows, worker.device)
    return Text(inputs["input_ids"], inputs["attention_mask"], inputs["token_type_ids"])


def mean_labels(of_teachers: Sequence[FloatArray]) -> FloatArray:
    """(R, N, C) The mean of what several teachers say: of probabilities, and of a regression's values."""
    mean: FloatArray = np.mean(np.stack(of_teachers), axis=0, dtype=np.float32)
    return mean


def soft_loss(tasks: Sequence[Task], logits: Tensor, targets: Tensor) -> Tensor:
    """() The mean over texts and tasks of the cross-entropy to the teachers' probabilities, or of the squared error.

    Of a multi-label task it is the binary cross-entropy, the mean over its labels.

    Args:
        tasks: N
        logits: (B, N, C) -inf beyond a task's own labels.
        targets: (B, N, C)
    """
    finite = logits.float().clamp(min=_NO_LABEL)
    losses = -(targets * F.log_softmax(finite, dim=-1)).sum(dim=-1)
    if any(task.is_multi_label for task in tasks):
        of_labels = F.binary_cross_entropy_with_logits(finite, targets, reduction="none")  # zero beyond its own
        num_labels = torch.tensor([task.num_outputs for task in tasks], device=logits.device)
        losses = torch.where(_is_kind("multi-label", tasks, logits), of_labels.sum(dim=-1) / num_labels, losses)
    squared_error = (logits[..., 0].float() - targets[..., 0]).square()
    return torch.where(_is_kind("regression", tasks, logits), squared_error, losses).mean()


def _probabilities(tasks: Sequence[Task], logits: Tensor) -> Tensor:
    """(B, N, C) Of logits."""
    values = F.pad(logits[..., :1], (0, logits.shape[-1] - 1))
    is_multi_label = _is_kind("multi-label", tasks, logits)[:, None]
    probabilities = torch.where(is_multi_label, logits.sigmoid(), logits.softmax(dim=-1))
    return torch.where(_is_kind("regression", tasks, logits)[:, None], values, probabilities)


def _is_kind(kind: TaskKind, tasks: Sequence[Task], like: Tensor) -> Tensor:
    """(N,) bool"""
    return torch.tensor([task.kind == kind for task in tasks], device=like.device)


def identity(soft: SoftLabels | None) -> dict[str, Any]:
    """What a checkpoint must have in common with the run that resumes from it."""
    if soft is None:
        return {}
    return {"soft_labels": {"texts": len(soft), "batch_size": soft.batch_size, "weight": soft.weight}}
