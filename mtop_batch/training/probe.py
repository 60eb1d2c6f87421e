"""Fitting a probe: a regularised linear model on the document vectors of labelled texts.

    minimise over W, b    mean loss of (W z + b, label)  +  L2 penalty / 2 |W|^2

The loss is cross-entropy for a classification; binary cross-entropy, the mean over the labels, for a multi-label task;
the squared error, in standard deviations, for a regression. z is the vector, centred and divided by one number such
that its features have variance 1 on average, so that the same penalties do for every backbone; this is folded into the
weights in the end. The L2 penalty is the one that gives the smallest loss on examples held out. Nothing but their
choice is random: the problem has one minimum, which is found in float64 on the CPU.

Shapes: R examples, D hidden width, C outputs (labels, or 1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from mtop_batch.data.batches import length_sorted_batches, pad_examples
from mtop_batch.data.labelled_tokens import LabelledTokens
from mtop_batch.model.encoder.inputs import hidden_size
from mtop_batch.model.kinds.base import MultiTaskModel
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.model.parts.losses import classification_loss, multi_label_loss
from mtop_batch.model.parts.windows import combine_vectors
from mtop_batch.tasks import Task
from mtop_batch.training.settings import TaskData, Worker

LossOf = Callable[[Tensor, Tensor], Tensor]

L2_PENALTIES = (100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 1e-4)
_MAX_BATCH_TOKENS = 8192
_NUM_PARTS = 5
# With more examples than this, one part held out says enough, and fitting takes a while.
_FEW_EXAMPLES = 2_000
_MAX_ITERATIONS = 200


@dataclass(frozen=True)
class FittedProbe:
    """What was fitted.

    Args:
        weight: (C, D) float32
        bias: (C,) float32
        l2_penalty: Of the weights.
        losses: Per L2 penalty that was tried, the mean loss on the examples held out.
    """

    weight: Tensor
    bias: Tensor
    l2_penalty: float
    losses: dict[float, float]


def train_probe(model: MTOPModel, data: TaskData, *, seed: int, worker: Worker) -> FittedProbe:
    """Learn a task that reads the vector, of a model of which nothing changes: one pass over the texts, then a fit.

    Args:
        model: Has the task.
        data: The task and its examples.
        seed: Of the choice of examples held out.
        worker: This process.
    """
    model.to(worker.device).eval()  # type: ignore[arg-type]  # transformers wraps it
    vectors = example_vectors(model, data.train, worker=worker)
    weights = None if data.class_weights is None else torch.from_numpy(data.class_weights)
    fitted = fit_probe(data.task, vectors, torch.from_numpy(data.train.labels), weights, seed=seed)
    model.load_task(data.task.name, {"weight": fitted.weight, "bias": fitted.bias})
    return fitted


def example_vectors(model: MultiTaskModel, examples: LabelledTokens, *, worker: Worker) -> Tensor:
    """(R, D) The document vectors of examples, of all windows of each, float16 on the CPU.

    The worker's event sink gets {"event": "texts", "done": ..., "num": ...} after each batch.
    """
    tokens = examples.tokens
    vectors = torch.empty(len(tokens), hidden_size(model.backbone), dtype=torch.float16)
    done = 0
    for rows in length_sorted_batches(examples.window_lengths, _MAX_BATCH_TOKENS):
        with torch.inference_mode(), worker.autocast():
            _, found = model.all_tasks_and_vectors(**pad_examples(examples, rows, worker.device), tasks=())
        vectors[rows] = found.cpu()
        done += len(rows)
        worker.event_sink({"event": "texts", "done": done, "num": len(tokens)})
    return vectors if examples.counts is None else combine_vectors(vectors, torch.from_numpy(examples.counts))


def fit_probe(
    task: Task,
    vectors: Tensor,
    labels: Tensor,
    class_weights: Tensor | None = None,
    *,
    seed: int = 0,
    l2_penalties: Sequence[float] = L2_PENALTIES,
) -> FittedProbe:
    """Fit a probe, with the L2 penalty that does best on examples held out.

    Args:
        task: Decides the loss and the number of outputs.
        vectors: (R, D)
        labels: (R,) label indices, or values of a regression; (R, C) which labels a text has, of a multi-label task.
        class_weights: (C,) What an example of each label counts in the loss; None for 1 each.
        seed: Of the choice of examples held out.
        l2_penalties: To choose from, from strong to weak.
    """
    if task.kind == "regression":
        labels = (labels.double() - task.mean) / task.std
    vectors = vectors.double()
    mean = vectors.mean(dim=0)
    scale = (vectors - mean).square().mean().sqrt().clamp(min=1e-12)
    features = (vectors - mean) / scale
    start = features.new_zeros(features.shape[1] + 1, task.num_outputs)
    losses = dict.fromkeys(l2_penalties, 0.0)
    loss_of = partial(_loss, task, class_weights)
    if len(l2_penalties) > 1:
        masks = _held_out(labels, seed)
        for held_out in masks:
            solution = start
            for l2_penalty in l2_penalties:
                solution = _minimise(loss_of, features[~held_out], labels[~held_out], l2_penalty, solution)
                outputs = features[held_out] @ solution[:-1] + solution[-1]
                losses[l2_penalty] += float(loss_of(outputs, labels[held_out])) / len(masks)
    l2_penalty = min(losses, key=lambda penalty: losses[penalty])
    solution = _minimise(loss_of, features, labels, l2_penalty, start)
    weight = (solution[:-1] / scale).T
    bias = solution[-1] - weight @ mean
    return FittedProbe(weight.float().contiguous(), bias.float(), l2_penalty, losses)


def _held_out(labels: Tensor, seed: int) -> list[Tensor]:
    """(R,) masks of the examples held out, one after the other; every label has its share in each.

    Of a multi-label task an example goes by its rarest label.
    """
    if labels.ndim == 2:
        rarity = labels.sum(dim=0).argsort().argsort()
        labels = torch.where(labels, rarity, labels.shape[1]).amin(dim=1)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = order[labels[order].argsort(stable=True)]
    part = torch.empty_like(order)
    part[order] = torch.arange(len(labels)) % _NUM_PARTS
    masks = [part == index for index in range(_NUM_PARTS if len(labels) <= _FEW_EXAMPLES else 1)]
    return [mask for mask in masks if mask.any()]


def _loss(task: Task, class_weights: Tensor | None, outputs: Tensor, labels: Tensor) -> Tensor:
    """() As `task_loss`, in float64."""
    if task.kind == "regression":
        return F.mse_loss(outputs[:, 0], labels)
    if task.is_multi_label:
        return multi_label_loss(outputs, labels, class_weights)
    return classification_loss(outputs, labels, class_weights)


def _minimise(loss_of: LossOf, features: Tensor, labels: Tensor, l2_penalty: float, start: Tensor) -> Tensor:
    """(D + 1, C) The weights that minimise the loss, and below them the bias."""
    solution = start.clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [solution],
        max_iter=_MAX_ITERATIONS,
        tolerance_grad=1e-6,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(features @ solution[:-1] + solution[-1], labels)
        loss = loss + l2_penalty / 2 * solution[:-1].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return solution.detach()
