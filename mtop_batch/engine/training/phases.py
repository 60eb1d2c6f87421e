"""The phases of a training on Ray: each task alone on the frozen backbone, then all tasks together; or, in place of
both, a model of its own for each task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar, cast

import ray

# `ray.train` exports the same, but tells type checkers that it is the first version.
from ray.train.v2.api.config import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError
from ray.train.v2.api.result import Result
from ray.train.v2.torch.torch_trainer import TorchTrainer
from torch import Tensor

from mtop_batch.config.sections import Config
from mtop_batch.engine.monitoring.events import EventQueue
from mtop_batch.engine.monitoring.memory import KEEP_FREED_MEMORY
from mtop_batch.engine.monitoring.monitor import TrainingMonitor
from mtop_batch.engine.session import Resources
from mtop_batch.engine.training import single_tasks
from mtop_batch.engine.training.failures import Failures, reason
from mtop_batch.engine.training.run_directory import RunDirectory
from mtop_batch.engine.training.single_tasks import SingleTasks, max_threads
from mtop_batch.engine.training.workers import (
    OWN_MODELS_PHASE,
    TRAIN_PHASE,
    WARM_START_PHASE,
    MultiTaskJob,
    train_own_model,
    train_worker,
)
from mtop_batch.errors import JobError, MtopError
from mtop_batch.lines import counted
from mtop_batch.model.kinds.base import MultiTaskModel
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.model.kinds.single_task import SingleTaskModel
from mtop_batch.training.checkpoint import TaskMetrics, read_final_weights
from mtop_batch.training.loop import FitResult
from mtop_batch.training.settings import TaskData
from mtop_batch.training.soft_labels import SoftLabels
from mtop_batch.training.start import all_tasks_settings, train_settings, warm_start_settings

T = TypeVar("T")

_CHECKPOINTS_TO_KEEP = 2
_KEEP_MEMORY = {"env_vars": dict(KEEP_FREED_MEMORY)}


@dataclass(frozen=True)
class Trained:
    """What a training came to.

    Args:
        metrics: Of each task, at the chosen weights.
        best_step: The steps after which these were taken.
        num_steps: Steps of the whole training.
        last_step: Steps that were done: fewer, where patience ran out. Where each task has a model of its own, all
            three are sums over the tasks.
        phase: The last phase; events carry it.
        left_out: Tasks that no step trained, for want of steps.
    """

    metrics: dict[str, TaskMetrics]
    best_step: int
    num_steps: int
    last_step: int
    phase: str
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Phases:
    """What the phases need.

    Args:
        config: Of the training.
        data: Of every task, in the order of the configuration.
        resources: Of the connected Ray.
        run: Where the phases leave what they have done.
        monitor: Where their events go.
        events: What carries them there.
        soft: Texts with soft labels that all tasks also learn from.
        evaluates: Whether training all tasks together chooses weights by evaluations; else they are the last ones.
    """

    config: Config
    data: Sequence[TaskData]
    resources: Resources
    run: RunDirectory
    monitor: TrainingMonitor
    events: EventQueue
    soft: SoftLabels | None = None
    evaluates: bool = True

    def single_tasks(self, start: MTOPModel, new_task: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
        """Each task's prompts, pooler and head from a training of its own (paper, section 4.3), side by side.

        What an interrupted run has finished is taken from the run's directory.

        Args:
            start: A model without tasks.
            new_task: How a task begins: arguments of `MTOPModel.add_tasks`.

        Raises:
            MtopError: A task cannot be trained.
        """
        tasks = SingleTasks(
            phase=WARM_START_PHASE,
            data=[item.without_vectors for item in self.data if item.task.reads_prompts],
            settings=warm_start_settings(self.config.train),
            optimizer=self.config.train,
            new_task=new_task,
            prompt_groups=self.config.prompt_groups(),
            family_of=self.config.family_of(),
        )
        learned = tasks.learn(start, self.resources, self.run, self.monitor, self.events)
        return {name: task.tensors for name, task in learned.items()}

    def own_models(self, model: SingleTaskModel) -> Trained:
        """Train each task's model by itself, side by side; each ends with weights of its own choice.

        What an interrupted run has finished is taken from the run's directory, and what it was at resumes from its last
        checkpoint.

        Args:
            model: What to begin with; it ends with the weights that were chosen.

        Raises:
            MtopError: A task cannot be trained.
        """
        train = self.config.train
        settings = {"dropout": model.config.dropout, "max_tokens": model.config.max_tokens, "seed": train.seed}
        tasks = SingleTasks(OWN_MODELS_PHASE, self.data, train_settings(train), train, settings, train=train_own_model)
        learned = tasks.learn(model.backbone, self.resources, self.run, self.monitor, self.events)
        for name, task in learned.items():
            model.load_task(name, task.tensors)
        return Trained(
            {item.task.name: learned[item.task.name].metrics for item in self.data},
            sum(task.best_step for task in learned.values()),
            sum(task.num_steps for task in learned.values()),
            sum(task.last_step for task in learned.values()),
            OWN_MODELS_PHASE,
        )

    def all_tasks(self, model: MultiTaskModel) -> Trained:
        """Train all tasks together, from the last checkpoint of this run if there is one.

        Args:
            model: What to begin with; it ends with the weights that were chosen.

        Raises:
            MtopError: The settings cannot work together, training diverged, or (`JobError`) workers failed too often.
        """
        fitted, weights = self._train(model)
        model.load_state_dict(weights)
        model.settle()
        steps = fitted.best_step, fitted.num_steps, fitted.last_step
        return Trained(fitted.best_metrics, *steps, TRAIN_PHASE, fitted.left_out)

    def _train(self, model: MultiTaskModel) -> tuple[FitResult, dict[str, Tensor]]:
        """How the run went, and the weights that it chose."""
        train = self.config.train
        job = MultiTaskJob(
            settings=all_tasks_settings(self.config, evaluate=self.evaluates),
            precision=train.precision,
            model=ray.put(model),
            data=[ray.put(item) for item in self.data],
            soft=None if self.soft is None else ray.put(self.soft),
            events=self.events,
            failures=Failures(self.run.uri),
            run_uri=self.run.uri,
            max_threads=max_threads(),
        )
        filesystem, path = self.run.storage()
        trainer = TorchTrainer(
            train_worker,
            # By reference: Ray Train's controller opens this dictionary, and need not import all that the workers do.
            train_loop_config={"job": ray.put(job)},
            scaling_config=ScalingConfig(num_workers=train.num_workers, use_gpu=self.resources.num_gpus > 0),
            run_config=RunConfig(
                name=self.run.name,
                storage_path=path,
                storage_filesystem=filesystem,
                failure_config=FailureConfig(max_failures=train.max_failures),
                checkpoint_config=CheckpointConfig(num_to_keep=_CHECKPOINTS_TO_KEEP),
                logging_config=LoggingConfig(log_level="ERROR"),
                worker_runtime_env=_KEEP_MEMORY,
            ),
        )
        self.monitor.begin_training()
        try:
            result = self._fit(trainer)
            outcome = cast(FitResult | MtopError, result.return_value)
            if isinstance(outcome, MtopError):
                raise outcome
        except MtopError:
            with suppress(MtopError):  # what failed is the news; the next run removes them too
                self.run.remove_unfinished_checkpoints()
            raise
        if result.checkpoint is None:
            raise JobError("training ended without a checkpoint; run the same command again")
        with result.checkpoint.as_directory() as directory:
            return outcome, read_final_weights(Path(directory))

    def _fit(self, trainer: TorchTrainer) -> Result:
        """Run the trainer beside the main thread, which shows progress meanwhile.

        In the main thread Ray Train would also take Ctrl-C for itself, and end the process as if all were well.
        """
        try:
            return cast(Result, _in_thread(trainer.fit, lambda: self.monitor.poll(self.events)))
        except TrainingFailedError as error:
            failures = self.config.train.max_failures
            how = f"more than {counted(failures, 'time')} (train.max_failures = {failures}), at last "
            raise JobError(
                f"training failed {how if isinstance(error, WorkerGroupError) else ''}with {reason(error)}; the "
                "same command resumes from the last checkpoint"
            ) from error


def _in_thread(function: Callable[[], T], meanwhile: Callable[[], None]) -> T:
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, name="ray-train", daemon=True).start()
    while not future.done():
        wait([future], timeout=single_tasks.POLL_S)
        meanwhile()
    return future.result()
