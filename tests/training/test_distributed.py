"""Two processes that share every batch train as one process does."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mtop_batch.training.loop import FitResult, WriteCheckpoint, fit
from mtop_batch.training.settings import Worker
from mtop_batch.training.soft_labels import SoftLabels, label_softly
from tests.training.distributed import run_distributed
from tests.training.toy import TASKS, make_data, make_examples, make_model, make_settings

SETTINGS = make_settings(epochs=2, batch_size=5, checkpoint_steps=1, weight_decay=0.1)


@dataclass
class Outcome:
    """What one process saw: its result and final weights; on rank 0 also the weights and task of every step."""

    result: FitResult
    weights: dict[str, Tensor]
    steps: list[dict[str, Tensor]]
    tasks: list[str]


def train(worker: Worker, prompt_groups: dict[str, str] | None = None, soft: SoftLabels | None = None) -> Outcome:
    """A short run that watches every step."""
    steps: list[dict[str, Tensor]] = []
    tasks: list[str] = []

    def save(write: WriteCheckpoint | None, metrics: dict[str, Any]) -> None:
        assert (write is not None) == (worker.rank == 0)
        if write is not None:
            with tempfile.TemporaryDirectory() as directory:
                write(Path(directory))
                steps.append(load_file(Path(directory) / "model.safetensors"))

    def emit(event: dict[str, Any]) -> None:
        if event["event"] == "step":
            tasks.append(event["task"])

    model = make_model(
        prompt_groups=prompt_groups
    ).double()  # in float32, Adam makes steps of rounding errors where gradients are zero
    result = fit(model, make_data(), SETTINGS, soft=soft, worker=replace(worker, event_sink=emit), save=save)
    return Outcome(result, dict(model.state_dict()), steps, tasks)


def train_group(worker: Worker) -> Outcome:
    """The same with tasks that share their prompts."""
    return train(worker, {"sport": "a", "mood": "a"})


def train_softly(worker: Worker) -> Outcome:
    """The same with texts of soft labels, five a step: three for one worker and two for the other."""
    tokens = make_examples(TASKS[0], 20, seed=5).tokens
    return train(worker, soft=SoftLabels(tokens, label_softly(make_model(), tokens, TASKS), 5, weight=2.0))


@pytest.fixture(scope="module")
def pair() -> list[Outcome]:
    return run_distributed(train, world_size=2)


def test_two_workers_equal_one_with_the_joint_batch(pair: list[Outcome]) -> None:
    alone = train(Worker())
    for outcome in pair:
        torch.testing.assert_close(outcome.weights, alone.weights, rtol=0, atol=1e-8)
    for together, single in zip(pair[0].steps, alone.steps, strict=True):
        torch.testing.assert_close(together, single, rtol=0, atol=1e-8)


def test_two_workers_learn_from_soft_labels_as_one_does() -> None:
    pair, alone, without = run_distributed(train_softly, world_size=2), train_softly(Worker()), train(Worker())

    def mean_difference(outcome: Outcome) -> float:
        differences = [(value - alone.weights[name]).abs().flatten() for name, value in outcome.weights.items()]
        return torch.cat(differences).mean().item()

    # Heads are in float32, whose rounding errors Adam makes larger with every step where a gradient is nearly zero.
    assert 50 * max(map(mean_difference, pair)) < mean_difference(without)


def test_workers_agree_on_the_evaluation(pair: list[Outcome]) -> None:
    assert pair[0].result == pair[1].result
    alone = train(Worker()).result
    for together, single in zip(pair[0].result.history, alone.history, strict=True):
        for name, metrics in single.metrics.items():
            assert together.metrics[name] == pytest.approx(metrics, abs=1e-6)


def test_other_tasks_stay_as_they_are_under_ddp(pair: list[Outcome]) -> None:
    assert set(pair[0].tasks) == {"sport", "mood"}
    before = dict(make_model().double().state_dict())
    for task, after in zip(pair[0].tasks, pair[0].steps, strict=True):
        moved = {name.split(".")[1] for name in after if "task_" in name and not torch.equal(after[name], before[name])}
        assert moved == {f"task_{task}"}
        before = after


def test_two_workers_equal_one_with_tasks_that_share_their_prompts() -> None:
    alone, pair = train_group(Worker()), run_distributed(train_group, world_size=2)
    for outcome in pair:
        torch.testing.assert_close(outcome.weights, alone.weights, rtol=0, atol=1e-8)


def train_patiently(worker: Worker) -> FitResult:
    """At a rate so high that no evaluation is better than the first ones."""
    settings = replace(SETTINGS, epochs=12, learning_rate=0.05, patience=1)
    return fit(make_model().double(), make_data(), settings, worker=worker)


def test_two_workers_stop_at_the_same_step_when_patience_runs_out() -> None:
    first, second = run_distributed(train_patiently, world_size=2)
    assert first == second
    assert first.last_step < first.num_steps
    assert first.last_step == first.history[-1].step
