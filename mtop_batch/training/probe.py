"""Fitting a probe: logistic regression on the document vectors of labelled texts.

    minimise over W, b    mean of cross_entropy(W z + b, label)  +  strength / 2 |W|^2

with z the vector, centred and divided by one number such that its features have variance 1 on average, so that the
same strengths do for every backbone; this is folded into the weights in the end. The strength is the one that gives the
smallest loss on examples held out. Nothing but their choice is random: the problem has one minimum, which is found in
float64 on the CPU.

Shapes: R examples, D hidden width, C labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mtop_batch.data.batches import length_sorted_batches, pad_batch
from mtop_batch.data.examples import LabelledTokens
from mtop_batch.model.encoder.encode import hidden_size
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.training.added_task import AddedTask
from mtop_batch.training.evaluation import evaluate_task
from mtop_batch.training.loop import Emit
from mtop_batch.training.settings import Precision, TaskData, Worker

STRENGTHS = (100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 1e-4)
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
        strength: Of the regularisation.
        losses: Per strength that was tried, the mean loss on the examples held out.
    """

    weight: Tensor
    bias: Tensor
    strength: float
    losses: dict[float, float]


def train_probe(
    model: MTOPModel,
    data: TaskData,
    *,
    seed: int = 0,
    precision: Precision = "fp32",
    pad_token_id: int,
    worker: Worker | None = None,
    emit: Emit | None = None,
) -> AddedTask:
    """Learn one probe task on a trained model, of which nothing changes: one pass over the texts, then `fit_probe`.

    Args:
        model: Taken over: it gets the task.
        data: The task and its examples; a task of that name makes room.
        seed: Of the choice of examples held out.
        precision: Of the encoder.
        pad_token_id: Of the tokenizer.
        worker: This process; None for a single one on the CPU.
        emit: Called with {"event": "texts", "done": ..., "num": ...} now and then.

    Raises:
        TaskError: Other tasks depend on the task of that name.
        DataError: The task has no evaluation examples.
    """
    worker = worker or Worker()
    model.add_tasks([data.task], replace=True)
    model.to(worker.device).eval()  # type: ignore[arg-type]  # transformers wraps it
    vectors = example_vectors(
        model, data.train, precision=precision, pad_token_id=pad_token_id, worker=worker, emit=emit
    )
    fitted = fit_probe(vectors, torch.from_numpy(data.train.labels), data.task.num_outputs, seed=seed)
    tensors = {"weight": fitted.weight, "bias": fitted.bias}
    model.load_task(data.task.name, tensors)
    metrics = evaluate_task(
        model, data.evaluation_examples(), data.task, pad_token_id=pad_token_id, precision=precision, worker=worker
    )
    return AddedTask(tensors=tensors, metrics=metrics, best_step=1, num_steps=1)


def example_vectors(
    model: MTOPModel,
    examples: LabelledTokens,
    *,
    precision: Precision = "fp32",
    pad_token_id: int,
    worker: Worker,
    emit: Emit | None = None,
) -> Tensor:
    """(R, D) The document vectors of examples, float16 on the CPU; the arguments are those of `train_probe`."""
    tokens = examples.tokens
    vectors = torch.empty(len(tokens), hidden_size(model.backbone), dtype=torch.float16)
    done = 0
    for rows in length_sorted_batches(tokens.lengths, _MAX_BATCH_TOKENS):
        batch = {key: worker.to_device(value) for key, value in pad_batch(tokens, rows, pad_token_id).items()}
        text = batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]
        with torch.inference_mode(), worker.autocast(precision):
            _, found = model.all_tasks_and_vectors(*text, tasks=())
        vectors[rows] = found.cpu()
        done += len(rows)
        if emit is not None:
            emit({"event": "texts", "done": done, "num": len(tokens)})
    return vectors


def fit_probe(
    vectors: Tensor, labels: Tensor, num_labels: int, *, seed: int = 0, strengths: Sequence[float] = STRENGTHS
) -> FittedProbe:
    """Fit a probe, with the strength that does best on examples held out.

    Args:
        vectors: (R, D)
        labels: (R,) label indices
        num_labels: C
        seed: Of the choice of examples held out.
        strengths: To choose from, from strong to weak.
    """
    vectors = vectors.double()
    mean = vectors.mean(dim=0)
    scale = (vectors - mean).square().mean().sqrt().clamp(min=1e-12)
    features = (vectors - mean) / scale
    losses = dict.fromkeys(strengths, 0.0)
    if len(strengths) > 1:
        masks = _held_out(labels, seed)
        for held_out in masks:
            rest = ~held_out
            solution = _start(features, num_labels)
            for strength in strengths:
                solution = _minimise(features[rest], labels[rest], strength, solution)
                logits = features[held_out] @ solution[:-1] + solution[-1]
                losses[strength] += float(F.cross_entropy(logits, labels[held_out])) / len(masks)
    strength = min(losses, key=lambda s: losses[s])
    solution = _minimise(features, labels, strength, _start(features, num_labels))
    weight = (solution[:-1] / scale).T
    bias = solution[-1] - weight @ mean
    return FittedProbe(weight.float().contiguous(), bias.float(), strength, losses)


def _held_out(labels: Tensor, seed: int) -> list[Tensor]:
    """(R,) masks of the examples held out in turn; every label has its share in each."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = order[labels[order].argsort(stable=True)]
    part = torch.empty_like(order)
    part[order] = torch.arange(len(labels)) % _NUM_PARTS
    masks = [part == index for index in range(_NUM_PARTS if len(labels) <= _FEW_EXAMPLES else 1)]
    return [mask for mask in masks if mask.any()]


def _start(features: Tensor, num_labels: int) -> Tensor:
    return features.new_zeros(features.shape[1] + 1, num_labels)


def _minimise(features: Tensor, labels: Tensor, strength: float, start: Tensor) -> Tensor:
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
        loss = F.cross_entropy(features @ solution[:-1] + solution[-1], labels)
        loss = loss + strength / 2 * solution[:-1].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return solution.detach()
