from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mtop_batch.errors import ConfigError, DataError
from mtop_batch.model.kinds.config import PromptAttention
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.tasks import Task
from mtop_batch.training import loop
from mtop_batch.training.evaluation.evaluate import evaluate
from mtop_batch.training.loop import WriteCheckpoint, fit
from mtop_batch.training.optimizer import freeze_word_embeddings
from mtop_batch.training.schedules import RateSchedule
from mtop_batch.training.settings import TaskData, Worker
from tests.training.toy import TASKS, make_data, make_examples, make_model, make_settings


class Checkpoints:
    """A `save` that keeps every checkpoint in a directory named after its step."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.metrics: dict[int, dict[str, Any]] = {}

    def __call__(self, write: WriteCheckpoint | None, metrics: dict[str, Any]) -> None:
        assert write is not None
        self.metrics[metrics["step"]] = metrics
        write(self.directory / str(metrics["step"]))


def weights(model: MTOPModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_identical(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("prompt_attention", ["joint", "isolated"])
def test_a_learnable_toy_is_learned(prompt_attention: PromptAttention) -> None:
    model, data = make_model(prompt_attention=prompt_attention), make_data()
    before = evaluate(model, data)
    result = fit(model, data, make_settings(epochs=15))
    for name, metrics in result.best_metrics.items():
        assert metrics["loss"] < 0.5 * before[name]["loss"]
        assert metrics["accuracy"] >= 0.9


def test_bf16_learns_too() -> None:
    result = fit(make_model(), make_data(), make_settings(epochs=15), worker=Worker(precision="bf16"))
    assert all(metrics["accuracy"] >= 0.9 for metrics in result.best_metrics.values())


def test_the_same_seed_gives_the_same_weights() -> None:
    models = [make_model(dropout=0.1) for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        torch.rand(1)  # what was drawn before must not matter
        fit(model, make_data(), make_settings(epochs=1, seed=seed))
    assert_identical(weights(models[0]), weights(models[1]))
    assert not torch.equal(models[0].word_embeddings.weight, models[2].word_embeddings.weight)


@pytest.mark.parametrize("evaluating", [True, False])
@pytest.mark.parametrize("shape", [{}, {"prompt_groups": {"sport": "a", "mood": "a"}, "pooler_rank": 3}])
def test_a_resumed_run_ends_with_the_weights_of_an_undisturbed_one(
    tmp_path: Path, evaluating: bool, shape: dict[str, Any]
) -> None:
    settings = make_settings(checkpoint_steps=5, evaluate=evaluating)
    undisturbed, save = make_model(dropout=0.1, **shape), Checkpoints(tmp_path)
    result = fit(undisturbed, make_data(), settings, save=save)
    for step in (5, 15, result.num_steps):
        resumed = make_model(dropout=0.1, **shape)
        again = fit(resumed, make_data(), settings, checkpoint=tmp_path / str(step))
        assert_identical(weights(resumed), weights(undisturbed))
        assert again == result


@pytest.mark.parametrize("tasks_of_groups", [2, 3])
def test_a_choice_of_prompt_groups_is_learned_and_resumes(tmp_path: Path, tasks_of_groups: int) -> None:
    tasks = (*TASKS, Task("again", labels=TASKS[0].labels))[:tasks_of_groups]
    groups = {task.name: task.name for task in tasks}
    data = [
        TaskData(task, make_examples(task, 40, seed=index), make_examples(task, 12, seed=100 + index))
        for index, task in enumerate(tasks)
    ]
    settings = make_settings(checkpoint_steps=5)

    def begin() -> MTOPModel:
        model = make_model(0.1, tasks, "isolated", groups)
        model.open_groups(list(groups))
        return model

    undisturbed, save = begin(), Checkpoints(tmp_path)
    result = fit(undisturbed, data, settings, save=save)
    learned = load_file(tmp_path / str(result.num_steps) / "model.safetensors")
    logits = [value for name, value in learned.items() if name.endswith("choice.logits")]
    assert len(logits) == len(tasks)
    assert all(len(set(value.tolist())) == len(tasks) for value in logits)
    assert not any("choice" in name for name in undisturbed.state_dict())
    assert evaluate(undisturbed, data) == result.best_metrics
    for step in (5, 15):
        resumed = begin()
        assert fit(resumed, data, settings, checkpoint=tmp_path / str(step)) == result
        assert resumed.task_prompts == undisturbed.task_prompts
        assert_identical(weights(resumed), weights(undisturbed))


def test_checkpoints_come_at_intervals_evaluations_and_the_end(tmp_path: Path) -> None:
    save = Checkpoints(tmp_path)
    settings = make_settings(epochs=2.5, checkpoint_steps=6)  # 64 examples: epochs of 8 steps, 20 steps
    result = fit(make_model(), make_data(), settings, save=save)
    assert list(save.metrics) == [6, 8, 12, 16, 18, 20]
    assert [step for step, metrics in save.metrics.items() if "mean" in metrics] == [8, 16, 20]
    assert [evaluation.step for evaluation in result.history] == [8, 16, 20]
    assert save.metrics[20] == {"step": 20, "epoch": 2.5, "mean": result.history[-1].mean}


def test_the_model_ends_with_its_best_weights_not_its_last(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    means = iter([0.1, 0.9, 0.2, 0.5])
    monkeypatch.setattr(loop, "mean_metric", lambda *_: next(means))
    save, model = Checkpoints(tmp_path), make_model()
    result = fit(model, make_data(), make_settings(checkpoint_steps=1000), save=save)
    assert (result.best_step, result.num_steps) == (16, 32)
    assert result.best_metrics == result.history[1].metrics
    assert evaluate(model, make_data()) == result.best_metrics
    at_16 = make_model()
    at_16.load_state_dict(load_file(tmp_path / "16" / "model.safetensors"))
    assert_identical(weights(model), weights(at_16))


def test_patience_ends_the_run_with_its_best_weights_also_when_it_resumes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    left = [0.1, 0.9, 0.2, 0.9]
    monkeypatch.setattr(loop, "mean_metric", lambda *_: left.pop(0))
    settings, save, model = make_settings(epochs=6, patience=2, checkpoint_steps=5), Checkpoints(tmp_path), make_model()
    events: list[dict[str, Any]] = []
    result = fit(model, make_data(), settings, save=save, worker=Worker(event_sink=events.append))
    assert (result.last_step, result.num_steps) == (32, 48)
    assert result.best_step in (16, 32)  # of equal means the one with the lower loss
    assert len(result.history) == 4
    assert events[-1] == {"event": "stopped", "step": 32, "num_steps": 48, "epoch": 4.0}
    for step, to_come in ((10, [0.9, 0.2, 0.9]), (20, [0.2, 0.9]), (32, [])):
        left[:] = to_come
        resumed = make_model()
        again = fit(resumed, make_data(), settings, checkpoint=tmp_path / str(step))
        assert again == result
        assert_identical(weights(resumed), weights(model))


def test_a_run_that_improves_to_the_end_is_not_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    means = iter([0.1, 0.2, 0.15, 0.3])
    monkeypatch.setattr(loop, "mean_metric", lambda *_: next(means))
    result = fit(make_model(), make_data(), make_settings(patience=2))
    assert result.last_step == result.num_steps == 32


def test_a_step_moves_its_own_task_only(tmp_path: Path) -> None:
    save = Checkpoints(tmp_path)
    settings = make_settings(checkpoint_steps=1, evaluate=False, weight_decay=0.1)
    events: list[dict[str, Any]] = []
    fit(make_model(), make_data(), settings, save=save, worker=Worker(event_sink=events.append))
    trained = [event["task"] for event in events if event["event"] == "step"]
    assert set(trained) == {"sport", "mood"}
    before = weights(make_model())
    for step, task in enumerate(trained, start=1):
        after = load_file(tmp_path / str(step) / "model.safetensors")
        moved = {name.split(".")[1] for name in after if "task_" in name and not torch.equal(after[name], before[name])}
        assert moved == {f"task_{task}"}
        before = after


def test_frozen_parameters_stay_bit_by_bit() -> None:
    model, before = make_model(), weights(make_model())
    freeze_word_embeddings(model)
    fit(model, make_data(), make_settings(epochs=1))
    same = {name for name, value in model.named_parameters() if torch.equal(value, before[name])}
    assert same == {"backbone.embeddings.word_embeddings.weight"}


def test_events_tell_the_start_the_steps_and_the_evaluations() -> None:
    events: list[dict[str, Any]] = []
    fit(make_model(), make_data(), make_settings(epochs=2), worker=Worker(event_sink=events.append))
    assert [event["event"] for event in events] == ["start", *["step", "evaluation"] * 2]
    assert (events[0]["step"], events[0]["num_steps"], events[0]["num_examples"]) == (0, 16, 64)
    last_step = events[-2]
    assert (last_step["step"], last_step["num_steps"], last_step["epoch"]) == (16, 16, 2.0)
    assert last_step["loss"] > 0
    assert last_step["learning_rate"] == pytest.approx(3e-3 / 14)
    assert events[-1]["metrics"]["sport"].keys() == {"accuracy", "loss", "num_examples"}


def test_step_events_come_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "STEP_EVENTS_EVERY_S", 0.0)
    events: list[dict[str, Any]] = []
    fit(make_model(), make_data(), make_settings(epochs=1), worker=Worker(event_sink=events.append))
    assert [event["step"] for event in events if event["event"] == "step"] == list(range(1, 9))


def test_more_workers_than_examples_in_a_batch_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"train.batch_size = 8 is less than train.num_workers = 9"):
        fit(make_model(), make_data(), make_settings(), worker=Worker(0, 9))


def test_a_task_without_examples_is_refused() -> None:
    empty = TaskData(TASKS[0], make_examples(TASKS[0], 0, seed=0), make_examples(TASKS[0], 3, seed=0))
    with pytest.raises(DataError, match="task 'sport' has no training examples"):
        fit(make_model(), [empty], make_settings())
    unseen = TaskData(TASKS[0], make_examples(TASKS[0], 3, seed=0))
    with pytest.raises(DataError, match="task 'sport' has no evaluation examples"):
        fit(make_model(), [unseen], make_settings())


def test_weights_that_are_no_longer_finite_end_the_run(tmp_path: Path) -> None:
    save = Checkpoints(tmp_path)
    with pytest.raises(ConfigError, match=r"training diverged: after step 4 some weights.*lower train.learning_rate"):
        fit(
            make_model(),
            make_data(),
            make_settings(learning_rate=float("inf"), checkpoint_steps=4),
            save=save,
        )
    assert not save.metrics


def test_a_batch_larger_than_a_task_repeats_its_examples() -> None:
    data = [TaskData(TASKS[0], make_examples(TASKS[0], 3, seed=0))]
    result = fit(make_model(), data, make_settings(evaluate=False))
    assert result.num_steps == np.ceil(4 * 3 / 8)
    assert (result.history, result.best_metrics, result.best_step) == ([], {}, 2)


@pytest.mark.parametrize("cut", [False, True])
def test_a_frozen_start_leaves_the_encoder_alone_and_then_moves_it(tmp_path: Path, cut: bool) -> None:
    settings = make_settings(epochs=2, schedule=RateSchedule("frozen", frozen_fraction=0.5), checkpoint_steps=1)
    model, checkpoints = make_model(), Checkpoints(tmp_path)
    encoder = "backbone.encoder.layer.0.output.dense.weight"
    started = weights(model)[encoder]
    result = fit(model, make_data(), settings, save=checkpoints)
    half = result.num_steps // 2
    kept = load_file(tmp_path / str(half) / "model.safetensors")
    torch.testing.assert_close(kept[encoder], started, rtol=0, atol=0)
    later = load_file(tmp_path / str(half + 1) / "model.safetensors")
    assert not torch.equal(later[encoder], started)
    if cut:
        again = make_model()
        fit(again, make_data(), settings, checkpoint=tmp_path / str(half + 1))
        assert_identical(weights(again), weights(model))
