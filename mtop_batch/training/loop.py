"""The training loop: one task per step, one model, one checkpoint for all tasks (paper, section 6.1).

`fit` is the only loop: the multi-task phase and the single-task warm start run through it, alone or as one of several
workers under DDP. It knows nothing of the engine that runs it: checkpoints leave through `save`, events through the
worker's event sink.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from mtop_batch.errors import ConfigError, DataError
from mtop_batch.model.encoder.inputs import Text
from mtop_batch.model.kinds.base import MultiTaskModel
from mtop_batch.tasks import Task
from mtop_batch.training.cached_contexts import cached_contexts, model_inputs
from mtop_batch.training.checkpoint import Evaluation, TaskMetrics, TrainingState
from mtop_batch.training.evaluation.evaluate import evaluate, mean_metric
from mtop_batch.training.meter import StepMeter
from mtop_batch.training.optimizer import leave_backbone, make_optimizer, set_learning_rates
from mtop_batch.training.sampling import BatchPlan, Plan
from mtop_batch.training.schedules import RateFactors, rate_factors
from mtop_batch.training.settings import ClassWeights, TaskData, TrainSettings, Worker, ignore_event
from mtop_batch.training.soft_labels import SoftLabels, identity, soft_loss, text_of

WriteCheckpoint = Callable[[Path], None]
Save = Callable[[WriteCheckpoint | None, dict[str, Any]], None]

STEP_EVENTS_EVERY_S = 2.0


@dataclass(frozen=True)
class FitResult:
    """How a run went.

    Args:
        history: All evaluations, oldest first.
        best_metrics: The metrics of each task at the chosen weights; empty if nothing was evaluated.
        best_step: The steps after which the chosen weights were taken.
        num_steps: Steps of the whole run.
        last_step: Steps that were done: fewer, where patience ran out.
        left_out: Tasks that no step trained, for want of steps.
    """

    history: list[Evaluation]
    best_metrics: dict[str, TaskMetrics]
    best_step: int
    num_steps: int
    last_step: int
    left_out: tuple[str, ...] = ()


def fit(
    model: MultiTaskModel,
    data: Sequence[TaskData],
    settings: TrainSettings,
    *,
    soft: SoftLabels | None = None,
    plan: Plan | None = None,
    worker: Worker | None = None,
    checkpoint: Path | None = None,
    save: Save | None = None,
) -> FitResult:
    """Train all parameters that require gradients; the model ends with the weights of its best evaluation.

    Every step draws a task, each at least once an epoch if that has so many steps, and takes the next `batch_size` of
    its examples; with w workers, worker r computes on rows r, r + w, r + 2w ... of them, and their mean gradient is
    that of the whole batch. What a step does depends on the settings, its number and the weights only: a run that
    resumes from a checkpoint ends with the very same weights. The best evaluation is the one with the highest mean of
    the tasks' own metrics; of equal ones, the one with the lowest loss. The run ends early where `settings.patience`
    runs out; the learning rate falls as it would over all steps.

    Args:
        model: Moved to the worker's device, trained in place, and left in evaluation mode.
        data: At least one task, each of the model's.
        settings: How to train.
        soft: Texts with soft labels for all tasks of `data`, in its order. Every step also takes some of these, so one
            task's examples and all tasks' soft labels move the weights together.
        plan: Which task each step takes, where it is not to be drawn; tasks without evaluation examples are not
            evaluated then.
        worker: This process; None for a single one on the CPU. All workers call `fit` with the same arguments, and
            models with the same weights. Rank 0 sends events: {"event": "start" | "step" | "evaluation", ...}, "step"
            every few seconds.
        checkpoint: A directory that an earlier `save` wrote, to resume from.
        save: Called by every worker for every checkpoint, with what writes it into a directory (rank 0) or None (the
            others), and with its step, epoch, and mean metric if just evaluated. It must write before it returns.

    Raises:
        ConfigError: More workers than examples in a batch, a checkpoint of another run, or weights that are no longer
            finite; the last checkpoint is still good then.
        DataError: A task has no training examples, or none to evaluate on.
        BundleError: The checkpoint is incomplete.
    """
    worker = worker or Worker()
    settings.check_workers(worker.world_size)
    _check_data(data, settings, plan)
    model.to(worker.device)  # type: ignore[arg-type]  # transformers wraps it without its types
    run = _Run(model, data, settings, soft, plan, worker)
    if checkpoint is not None:
        run.state.read(checkpoint)
    run.train(save)
    run.state.load_best_weights()
    model.eval()
    model.settle()
    best = run.state.best
    return FitResult(
        history=run.state.history,
        best_metrics=best.metrics if best else {},
        best_step=best.step if best else run.state.step,
        num_steps=len(run.plan),
        last_step=run.state.step,
        left_out=run.left_out,
    )


class _Run:
    """The parts of one call of `fit`."""

    def __init__(
        self,
        model: MultiTaskModel,
        data: Sequence[TaskData],
        settings: TrainSettings,
        soft: SoftLabels | None,
        plan: Plan | None,
        worker: Worker,
    ) -> None:
        self.model, self.data, self.settings, self.soft, self.worker = model, data, settings, soft, worker
        self.emit = worker.event_sink if worker.rank == 0 else ignore_event
        sizes = [len(item.train) for item in data]
        self.examples_per_epoch = sum(sizes)
        self.plan: Plan = plan or BatchPlan.draw(
            sizes,
            settings.batch_size,
            settings.epochs,
            settings.alpha,
            settings.seed,
            _rates(data),
            alpha_end=settings.alpha_end,
            alpha_decay=settings.alpha_decay,
            consecutive_steps=settings.consecutive_steps,
            eval_every=settings.eval_every,
        )
        self.last_task = ""
        self.left_out = tuple(data[index].task.name for index in self.plan.left_out())
        self.optimizer = make_optimizer(model, settings)
        self.trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self.state = TrainingState(model, self.optimizer, run={**_identity(data, settings), **identity(soft)})
        self.class_weights = [_to_tensor(item.class_weights, worker) for item in data]
        names = [item.task.name for item in data]
        self.meter = StepMeter(names, worker.device)
        self.contexts = cached_contexts(model, names, worker=worker, dropout=settings.context_dropout)

    def train(self, save: Save | None) -> None:
        """Do the steps that are left."""
        steps, evaluation_after = len(self.plan), self._evaluation_steps()
        losses = _Losses(self.model.train(), [item.task for item in self.data])
        parallel = _distribute(losses, self.worker)
        self._emit_start()
        self._keep_contexts()
        self.meter.restart()
        while not self._is_over():
            self._step(parallel)
            evaluating = self.state.step in evaluation_after
            checkpointing = evaluating or self._checkpoint_due(steps)
            if checkpointing or self.meter.age_s() > STEP_EVENTS_EVERY_S:
                self._emit_step()
            if not checkpointing:
                continue
            self._check_finite()
            if evaluating:
                self._evaluate()
            if save is not None:
                save(self.state.write if self.worker.rank == 0 else None, self._checkpoint_metrics(evaluating))
            self.meter.restart()
        if self.state.step < steps:
            self.emit({"event": "stopped", "step": self.state.step, "num_steps": steps, "epoch": self._epoch()})

    def _is_over(self) -> bool:
        """Whether all steps are done, or patience has run out; the same on all workers, which share evaluations."""
        patience = self.settings.patience
        if patience is not None and self.state.evaluations_without_improvement() >= patience:
            return True
        return self.state.step == len(self.plan)

    def _step(self, parallel: nn.Module) -> None:
        """One step on one task: Eq. 3's cross-entropy (or squared error), AdamW, warm-up and decay."""
        step, settings, worker = self.state.step, self.settings, self.worker
        index, joint_rows = self.plan.batch(step, [entry.mean for entry in self.state.history])
        self.last_task = self.data[index].task.name
        own = slice(worker.rank, None, worker.world_size)
        rows = joint_rows[own]
        examples = self.data[index].train
        # Drawn for the whole batch, so that it is the same by any number of workers. The tasks' examples have the
        # streams 1 to N, the places of tasks that were not drawn N + 1, and soft labels N + 2.
        windows = examples.draw_windows(joint_rows, settings.seed, len(self.data) + 3, step)[own].ravel()
        labels = torch.from_numpy(examples.targets(rows, windows))

        _seed_dropout(settings.seed, step, worker.rank)
        with worker.autocast():
            loss, soft_loss_ = parallel(
                {
                    **model_inputs(examples, windows, worker, self.contexts),
                    "labels": worker.to_device(labels),
                    "class_weights": self.class_weights[index],
                    "task": self.last_task,
                },
                self._soft_batch(step),
            )
        # DDP takes the mean over workers, whose shares of the batch may differ by a row.
        total = loss * (len(rows) * worker.world_size / settings.batch_size)
        if soft_loss_ is not None:
            total = total + soft_loss_
        total.backward()
        factors = self._rate_factors(step)
        if not factors.backbone:
            leave_backbone(self.optimizer)
        if settings.max_grad_norm:
            clip_grad_norm_(self.trained, settings.max_grad_norm)
        set_learning_rates(self.optimizer, factors)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.state.step += 1
        self.meter.add(index, loss, settings.batch_size)

    def _soft_batch(self, step: int) -> _SoftBatch | None:
        """This worker's share of the texts with soft labels of a step."""
        soft, worker = self.soft, self.worker
        if soft is None:
            return None
        rows = soft.rows(step, self.settings.seed, len(self.data) + 2)[worker.rank :: worker.world_size]
        share = len(rows) * worker.world_size / soft.batch_size
        return _SoftBatch(
            text_of(soft.tokens, rows, worker),
            worker.to_device(torch.from_numpy(soft.targets[rows])),
            soft.weight * share,
        )

    def _keep_contexts(self) -> None:
        """Run all texts through a backbone that does not train, once for all epochs."""
        if self.contexts is None or self._is_over():
            return
        for item in self.data:
            self.contexts.keep(item.train, lambda done, num: self.emit({"event": "texts", "done": done, "num": num}))
        for item in self.data:
            if item.eval is not None and self.settings.evaluate:
                self.contexts.keep(item.eval)

    def _evaluate(self) -> None:
        judged = [item for item in self.data if item.eval is not None]
        metrics = evaluate(self.model, judged, worker=self.worker, contexts=self.contexts)
        mean = mean_metric(metrics, [item.task for item in judged])
        evaluation = Evaluation(self.state.step, self._epoch(), mean, metrics)
        self.state.record(evaluation)
        self.emit({"event": "evaluation", **asdict(evaluation), "best": self.state.best is evaluation})

    def _evaluation_steps(self) -> set[int]:
        return set(self.plan.evaluation_steps()) if self.settings.evaluate else set()

    def _checkpoint_due(self, last_step: int) -> bool:
        return self.state.step == last_step or self.state.step % self.settings.checkpoint_steps == 0

    def _checkpoint_metrics(self, evaluated: bool) -> dict[str, Any]:
        metrics = {"step": self.state.step, "epoch": self._epoch()}
        return {**metrics, "mean": self.state.history[-1].mean} if evaluated else metrics

    def _check_finite(self) -> None:
        """Refuse to evaluate or save weights that are lost; they are the same on all workers, so all of them stop."""
        if not torch.stack([parameter.isfinite().all() for parameter in self.trained]).all():
            raise ConfigError(
                f"training diverged: after step {self.state.step} some weights are no longer finite numbers; lower "
                f"train.learning_rate = {self.settings.learning_rate} (or head_learning_rate), or raise warmup_fraction"
            )

    def _rate_factors(self, step: int) -> RateFactors:
        return rate_factors(self.settings.schedule, step, len(self.plan), self.settings.warmup_fraction)

    def _epoch(self) -> float:
        return self.state.step * self.settings.batch_size / self.examples_per_epoch

    def _emit_start(self) -> None:
        self.emit(
            {
                "event": "start",
                "step": self.state.step,
                "num_steps": len(self.plan),
                "num_tasks": len(self.data),
                "num_examples": self.examples_per_epoch,
                "left_out": list(self.left_out),
                "class_weights": {
                    item.task.name: dict(zip(item.task.labels, item.class_weights.tolist(), strict=True))
                    for item in self.data
                    if item.class_weights is not None
                },
                "num_workers": self.worker.world_size,
                "num_parameters": sum(parameter.numel() for parameter in self.trained),
                "device": str(self.worker.device),
                "precision": self.worker.precision,
            }
        )

    def _emit_step(self) -> None:
        last = self.state.step - 1
        factors = self._rate_factors(last)
        self.emit(
            {
                "event": "step",
                "step": self.state.step,
                "num_steps": len(self.plan),
                "epoch": self._epoch(),
                "task": self.last_task,
                "learning_rate": self.settings.learning_rate * factors.backbone,
                "head_learning_rate": (self.settings.head_learning_rate or self.settings.learning_rate) * factors.heads,
                **self.meter.read(),
            }
        )


class _SoftBatch(NamedTuple):
    """B texts, (B, N, C) targets, and the weight of their loss."""

    text: Text
    targets: Tensor
    weight: float


class _Losses(nn.Module):
    """The losses of a step as one module, so that DDP sees one forward pass.

    Args:
        model: Trains.
        tasks: Those that soft labels are of.
    """

    def __init__(self, model: MultiTaskModel, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.model, self.tasks = model, tasks
        self.names = tuple(task.name for task in tasks)

    def forward(self, labelled: Mapping[str, Any], soft: _SoftBatch | None) -> tuple[Tensor, Tensor | None]:
        """The loss of a batch of one task, and the weighted one of a batch with soft labels, if there is one."""
        loss: Tensor = self.model(**labelled).loss
        if soft is None:
            return loss, None
        logits = self.model.outputs(self.names, soft.text, vectors=False).logits
        return loss, soft.weight * soft_loss(self.tasks, logits, soft.targets)


def _check_data(data: Sequence[TaskData], settings: TrainSettings, plan: Plan | None) -> None:
    for item in data:
        if not len(item.train):
            raise DataError(f"task {item.task.name!r} has no training examples; give it some or remove the task")
        if settings.evaluate and (plan is None or item.eval is not None):
            item.evaluation_examples()


def _rates(data: Sequence[TaskData]) -> list[float] | None:
    """The rates at which steps draw the tasks, where the tasks say so."""
    given = [item.rate for item in data if item.rate is not None]
    return given if len(given) == len(data) else None


def _identity(data: Sequence[TaskData], settings: TrainSettings) -> Mapping[str, Any]:
    """What a checkpoint must have in common with the run that resumes from it; the hardware may be another."""
    values = {key: value for key, value in asdict(settings).items() if key != "checkpoint_steps"}
    weighted = {item.task.name: item.class_weights.tolist() for item in data if item.class_weights is not None}
    values |= {"class_weights": weighted} if weighted else {}
    values |= {} if (rates := _rates(data)) is None else {"rates": rates}
    return {**values, "tasks": {item.task.name: len(item.train) for item in data}}


def _to_tensor(weights: ClassWeights | None, worker: Worker) -> Tensor | None:
    return None if weights is None else worker.to_device(torch.from_numpy(weights))


def _distribute(model: nn.Module, worker: Worker) -> nn.Module:
    if worker.world_size == 1:
        return model
    # A step uses the parameters of one task only; DDP leaves the gradients that no worker used at None.
    return DistributedDataParallel(model, find_unused_parameters=True)


def _seed_dropout(*seeds: int) -> None:
    torch.manual_seed(int(np.random.SeedSequence(seeds).generate_state(1)[0]))
