"""The state of a training run, and the checkpoints that hold it.

A checkpoint is a directory:

    model.safetensors      weights after `step` steps
    optimizer.safetensors  `<parameter>/exp_avg`, `<parameter>/exp_avg_sq`, `<parameter>/step`
    best.safetensors       weights of the best evaluation so far; absent before the first
    state.json             step, history, best, and what the run was started with; written last

It holds tensors and JSON only, so that reading one runs no code.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import AdamW

from mtop_batch.errors import BundleError, ConfigError
from mtop_batch.json_text import to_json

TaskMetrics = dict[str, float]

_MODEL = "model.safetensors"
_OPTIMIZER = "optimizer.safetensors"
_BEST = "best.safetensors"
WRITTEN_LAST = _STATE = "state.json"


@dataclass(frozen=True)
class Evaluation:
    """How the model did after `step` steps: the metrics of each task, and the mean of the tasks' own metrics.

    One that is undefined is NaN.
    """

    step: int
    epoch: float
    mean: float
    metrics: dict[str, TaskMetrics]

    def is_better_than(self, other: Evaluation) -> bool:
        """A higher mean, or the same one and a lower loss: small evaluation sets often come to the same mean.

        Where the mean is undefined, the loss alone decides.
        """
        return self.rank > other.rank

    @property
    def rank(self) -> tuple[float, float]:
        """The higher, the better."""
        loss = sum(metrics["loss"] for metrics in self.metrics.values())
        return (-math.inf if math.isnan(self.mean) else self.mean), -loss


@dataclass
class TrainingState:
    """All that a run needs to resume as if it had never stopped.

    Random numbers are not part of it: they are drawn at every step from the seed and the step.

    Args:
        model: The model that trains, not wrapped.
        optimizer: Its optimiser.
        run: What must be the same when the run resumes, as JSON values.
        step: Finished steps.
        history: All evaluations so far.
        best: The one with the highest mean; of equal ones, that with the lowest loss, and then the earliest.
        best_weights: The weights of that evaluation, on the CPU.
    """

    model: nn.Module
    optimizer: AdamW
    run: Mapping[str, Any]
    step: int = 0
    history: list[Evaluation] = field(default_factory=list)
    best: Evaluation | None = None
    best_weights: dict[str, Tensor] | None = None

    def record(self, evaluation: Evaluation) -> None:
        """Take an evaluation of the present weights into the history; keep the weights if it is the best so far."""
        self.history.append(evaluation)
        if self.best is None or evaluation.is_better_than(self.best):
            self.best = evaluation
            self.best_weights = _copy_weights(self.model)

    def evaluations_without_improvement(self) -> int:
        """How many evaluations have come since the mean was last higher than ever before.

        Where the mean is undefined, the loss counts. That evaluation need not be the best one, which of equal means is
        the one with the lowest loss.
        """
        highest, since = (-math.inf, -math.inf), 0
        for evaluation in self.history:
            rank = evaluation.rank if math.isnan(evaluation.mean) else (evaluation.mean, -math.inf)
            highest, since = (rank, 0) if rank > highest else (highest, since + 1)
        return since

    def load_best_weights(self) -> None:
        """Give the model the weights of the best evaluation, if there was one."""
        if self.best_weights is not None:
            self.model.load_state_dict(self.best_weights)

    def write(self, directory: Path) -> None:
        """Write a checkpoint into a directory, which may have to be made.

        If it fails, the directory has no `state.json` and `read` refuses it.
        """
        directory.mkdir(parents=True, exist_ok=True)
        (directory / _STATE).unlink(missing_ok=True)
        save_file(_copy_weights(self.model), directory / _MODEL)
        save_file(self._optimizer_tensors(), directory / _OPTIMIZER)
        if self.best_weights is not None:
            save_file(self.best_weights, directory / _BEST)
        values = {
            "step": self.step,
            "run": dict(self.run),
            "best": None if self.best is None else asdict(self.best),
            "history": [asdict(evaluation) for evaluation in self.history],
        }
        (directory / _STATE).write_text(to_json(values, indent=1))

    def read(self, directory: Path) -> None:
        """Take everything from a checkpoint of the same run.

        Raises:
            BundleError: The checkpoint is missing or incomplete.
            ConfigError: It is of a run with other settings or tasks.
        """
        values = _read_json(directory)
        _check_same_run(values["run"], json.loads(to_json(dict(self.run))), directory)
        self.model.load_state_dict(load_file(directory / _MODEL))
        self._load_optimizer(load_file(directory / _OPTIMIZER))
        self.step = values["step"]
        self.history = [_evaluation(evaluation) for evaluation in values["history"]]
        if values["best"] is not None:
            self.best = _evaluation(values["best"])
            self.best_weights = load_file(directory / _BEST)

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        return {
            f"{name}/{key}": value.detach().cpu()
            for name, parameter in self.model.named_parameters()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }

    def _load_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        parameters = dict(self.model.named_parameters())
        self.optimizer.state.clear()
        for flat_name, value in tensors.items():
            name, _, key = flat_name.rpartition("/")
            parameter = parameters[name]
            self.optimizer.state[parameter][key] = value.to(parameter.device)


def read_final_weights(directory: Path) -> dict[str, Tensor]:
    """The weights that a run ending at this checkpoint ends with: the best, or the last if none was evaluated.

    Raises:
        BundleError: The checkpoint is missing or incomplete.
    """
    values = _read_json(directory)
    return load_file(directory / (_MODEL if values["best"] is None else _BEST))


def _evaluation(values: Mapping[str, Any]) -> Evaluation:
    """An evaluation; null stands for a value that is no number."""
    mean = math.nan if values["mean"] is None else values["mean"]
    metrics = {
        task: {name: math.nan if value is None else value for name, value in found.items()}
        for task, found in values["metrics"].items()
    }
    return Evaluation(values["step"], values["epoch"], mean, metrics)


def _copy_weights(model: nn.Module) -> dict[str, Tensor]:
    # Copies, because the model goes on training and safetensors refuses tensors that share memory.
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in model.state_dict().items()}


def _read_json(directory: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads((directory / _STATE).read_text())
    except FileNotFoundError:
        raise BundleError(
            f"{directory} is not a complete training checkpoint: it has no {_STATE}, which is written last; "
            "resume from an earlier one or start from the beginning"
        ) from None
    return values


def _check_same_run(theirs: Mapping[str, Any], ours: Mapping[str, Any], directory: Path) -> None:
    for key in sorted({*theirs, *ours}):
        if theirs.get(key) != ours.get(key):
            raise ConfigError(
                f"checkpoint {directory} is of another run: {key} = {theirs.get(key)!r} there, {ours.get(key)!r} here; "
                "train with the same settings to resume, or remove the checkpoint to start from the beginning"
            )
