"""Training on a real local Ray: from a configuration to a bundle, also when workers are killed."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from mtop_batch.config.sections import Config
from mtop_batch.engine.evaluate import evaluate_bundle, evaluate_in_detail, write_errors
from mtop_batch.engine.monitoring.events import Event, EventQueue
from mtop_batch.engine.monitoring.progress import Progress
from mtop_batch.engine.train import TrainResult, train
from mtop_batch.errors import ConfigError, DataError, JobError, TaskError
from mtop_batch.model.bundle.bundle import load_bundle
from mtop_batch.training.evaluation.label_report import ERROR_COLUMNS
from tests.engine.conftest import MakeConfig

pytestmark = pytest.mark.usefixtures("ray_local")

COLD = {"prompt_init": "random", "pooler_init": "random"}


def run(config: Config, on_event: Callable[[Event], None] | None = None) -> tuple[TrainResult, list[Event]]:
    """Train, and return the events as well."""
    events: list[Event] = []

    def collect(event: Event) -> None:
        events.append(event)
        if on_event is not None:
            on_event(event)

    with Progress() as progress:
        return train(config, progress=progress, on_event=collect), events


def weights(config: Config) -> dict[str, Tensor]:
    return load_file(Path(config.output) / "model.safetensors")


def starts(events: list[Event], phase: str) -> list[Event]:
    return [event for event in events if event["event"] == "start" and event["phase"] == phase]


def assert_same_losses(events: list[Event], expected: list[Event], tolerance: float) -> None:
    """The evaluations of two runs, the last ones of each step, saw the same weights."""
    losses = [
        {
            (event["step"], task): metrics["loss"]
            for event in run_events
            if event["event"] == "evaluation"
            for task, metrics in event["metrics"].items()
        }
        for run_events in (events, expected)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0, abs=tolerance)


@pytest.fixture(scope="module")
def trained(
    make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Config, TrainResult, list[Event]]:
    config = make_config(tmp_path_factory.mktemp("trained") / "bundle")
    return (config, *run(config))


@pytest.fixture(scope="module")
def two_workers(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, list[Event]]:
    output = tmp_path_factory.mktemp("two") / "bundle"
    config = make_config(output, model=COLD, train={"num_workers": 2, "epochs": 6, "learning_rate": 1e-3})
    return config, run(config)[1]


def test_a_configuration_becomes_a_bundle_that_has_learned(trained: tuple[Config, TrainResult, list[Event]]) -> None:
    config, result, events = trained
    bundle = load_bundle(config.output)
    assert bundle.model.task_names == ["sport", "business"]
    as_read = [task.model_copy(update={"label_by": "name"}) for task in config.task]
    assert bundle.training_config == config.model_copy(update={"task": tuple(as_read)}).model_dump(mode="json")
    assert bundle.metrics == result.metrics
    assert result.mean > 0.8
    assert [event["task"] for event in starts(events, "warm start")] in (["sport", "business"], ["business", "sport"])
    assert not Path(config.output + ".training").exists()


def test_the_log_beside_the_bundle_has_every_event(trained: tuple[Config, TrainResult, list[Event]]) -> None:
    config, result, events = trained
    lines = (Path(config.output) / "training.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == events
    assert {event["event"] for event in events} == {"run", "worker", "start", "texts", "step", "evaluation", "end"}
    assert events[-1]["mean"] == result.mean == max(e["mean"] for e in events if e["event"] == "evaluation")


def test_the_errors_of_a_bundle_are_written_with_their_texts(
    trained: tuple[Config, TrainResult, list[Event]], tmp_path: Path
) -> None:
    config, result, _ = trained
    evaluated = evaluate_in_detail(result.output, config)
    count = write_errors(str(tmp_path / "errors.parquet"), evaluated)
    table = pq.read_table(tmp_path / "errors.parquet")
    assert table.schema == ERROR_COLUMNS
    wrong = [round((1 - task.metrics["accuracy"]) * task.metrics["num_examples"]) for task in evaluated.values()]
    assert len(table) == count == sum(wrong)
    assert all(sum(scores.support for scores in task.report.labels) == 24 for task in evaluated.values())


def test_wrong_labels_are_searched_for_in_few_tasks_or_when_asked(
    trained: tuple[Config, TrainResult, list[Event]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, result, _ = trained

    def is_searched(suspects: bool | None) -> bool:
        found = evaluate_in_detail(result.output, config, suspects=suspects)
        return any(item.suspects is not None or item.no_suspects for item in found.values())

    assert (is_searched(None), is_searched(False)) == (True, False)
    monkeypatch.setattr("mtop_batch.engine.evaluate._MOST_SEARCHED", 1)
    assert (is_searched(None), is_searched(True)) == (False, True)


def test_the_same_training_again_does_nothing_and_another_needs_leave_to_overwrite(
    trained: tuple[Config, TrainResult, list[Event]],
) -> None:
    config, result, _ = trained
    before = {path.name: path.read_bytes() for path in Path(config.output).iterdir()}
    again, events = run(config)
    assert (again.was_there, events) == (True, [])
    assert (again.metrics, again.mean, again.best_step) == (result.metrics, result.mean, result.best_step)
    other = config.model_copy(update={"train": config.train.model_copy(update={"seed": 1})})
    with pytest.raises(ConfigError, match=r"holds the bundle of another configuration .* pass --overwrite"):
        run(other)
    assert {path.name: path.read_bytes() for path in Path(config.output).iterdir()} == before


def test_evaluating_the_bundle_gives_the_metrics_it_was_chosen_by(
    trained: tuple[Config, TrainResult, list[Event]],
) -> None:
    config, result, _ = trained
    metrics = evaluate_bundle(config.output, config)
    assert list(metrics) == ["sport", "business"]
    for name, values in metrics.items():
        assert values == pytest.approx(result.metrics[name], abs=1e-5)


def test_a_bundle_is_evaluated_on_the_data_of_its_training_unless_a_configuration_names_other(
    trained: tuple[Config, TrainResult, list[Event]],
) -> None:
    config = trained[0]
    output = io.StringIO()
    with Progress(Console(file=output, width=200), interval_s=0) as progress:
        metrics = evaluate_bundle(config.output, progress=progress)
        assert {name: values["num_examples"] for name, values in metrics.items()} == {"sport": 24, "business": 24}
        assert "not evaluated" not in output.getvalue()
        only = config.model_copy(update={"task": config.task[1:]})
        assert list(evaluate_bundle(config.output, only, progress=progress)) == ["business"]
    assert "not evaluated, for no evaluation data is named for them: sport" in output.getvalue()
    assert "business: 24 examples" in output.getvalue()


def test_a_task_that_means_something_else_in_the_bundle_is_not_evaluated(
    trained: tuple[Config, TrainResult, list[Event]],
) -> None:
    values = trained[0].model_dump()
    values["task"][0]["labels"] = ["yes", "no"]
    with pytest.raises(TaskError, match=r"task 'sport': labels = \('yes', 'no'\) in the configuration, but the bundle"):
        evaluate_bundle(trained[0].output, Config.model_validate(values))


@pytest.mark.slow
def test_two_workers_give_the_result_of_one(
    make_config: MakeConfig, two_workers: tuple[Config, list[Event]], tmp_path: Path
) -> None:
    one_worker = make_config(tmp_path / "bundle", model=COLD, train={"epochs": 6, "learning_rate": 1e-3})
    _, events = run(one_worker)
    assert_same_losses(events, two_workers[1], tolerance=1e-5)
    expected = weights(two_workers[0])
    for name, tensor in weights(one_worker).items():
        # Attention does not depend on its key bias, whose gradient is rounding noise that AdamW blows up.
        tolerance = 1e-3 if name.endswith("key.bias") else 1e-5
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=tolerance, msg=name)


@pytest.mark.slow
def test_training_goes_on_from_the_last_checkpoint_when_a_worker_is_killed(
    make_config: MakeConfig, two_workers: tuple[Config, list[Event]], tmp_path: Path
) -> None:
    pids: dict[int, int] = {}
    killed: list[int] = []

    def kill_once(event: Event) -> None:
        if event["event"] == "worker":
            pids[event["rank"]] = event["pid"]
        # The third evaluation of six: the first checkpoint is then known to Ray Train for certain.
        if event["event"] == "evaluation" and event["epoch"] >= 3 and not killed:
            killed.append(pids[1])
            os.kill(pids[1], signal.SIGKILL)

    train_ = {"num_workers": 2, "epochs": 6, "learning_rate": 1e-3}
    disturbed = make_config(tmp_path / "bundle", model=COLD, train=train_)
    _, events = run(disturbed, kill_once)
    first, second = (event["step"] for event in starts(events, "train"))
    assert first == 0 < second < events[-1]["num_steps"]
    assert_same_losses(events, two_workers[1], tolerance=0)
    expected = weights(two_workers[0])
    for name, tensor in weights(disturbed).items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.slow
def test_tasks_of_a_prompt_group_become_a_bundle_with_one_tensor_of_prompts(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    model = {"prompt_groups": 1, "pooler_rank": 4, "prompt_attention": "isolated"}
    config = make_config(tmp_path / "bundle", model=model, train={"num_workers": 2})
    result, _ = run(config)
    names = {name for name in weights(config) if not name.startswith("backbone.")}
    own = ("pooler.down.weight", "pooler.up.weight", "pooler.up.bias", "head.weight")
    tasks = {f"task_modules.task_{task}.{name}" for task in ("sport", "business") for name in own}
    assert names == {"prompt_groups.group_1.prompts", *tasks}
    assert result.mean > 0.8
    assert evaluate_bundle(config.output, config)["sport"] == pytest.approx(result.metrics["sport"], abs=1e-5)


@pytest.mark.slow
def test_tasks_choose_their_prompt_groups_on_two_workers_as_on_one(make_config: MakeConfig, tmp_path: Path) -> None:
    model = {"prompt_groups": {"by": "learned", "n": 2}, "prompt_attention": "isolated"}
    found = []
    for workers in (1, 2):
        config = make_config(tmp_path / f"bundle-{workers}", model=model, train={"num_workers": workers})
        result, _ = run(config)
        assert evaluate_bundle(config.output, config)["sport"] == pytest.approx(result.metrics["sport"], abs=1e-5)
        tasks = json.loads((Path(config.output) / "config.json").read_text())["tasks"]
        groups = [task["prompt_group"] for task in tasks]
        assert {f"prompt_groups.group_{group}.prompts" for group in groups} == {
            name for name in weights(config) if name.startswith("prompt_groups.")
        }
        found.append(groups)
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("sections", "error", "message"),
    [
        ({"train": {"num_workers": 7}}, ConfigError, r"num_workers = 7 needs 7 CPUs, one each, and this machine has 6"),
        ({"train": {"num_workers": 9}}, ConfigError, r"batch_size = 8 is less than train\.num_workers = 9"),
        ({"backbone": {"name": "./nowhere"}}, ConfigError, r"backbone\.name = './nowhere'"),
        ({"backbone": {"max_tokens": 65}}, ConfigError, r"65"),
        ({"model": {"pooler_rank": 32}}, ConfigError, r"model\.pooler_rank = 32 is not below the width 32"),
    ],
)
def test_what_cannot_work_is_refused_before_work_starts(
    make_config: MakeConfig, tmp_path: Path, sections: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(make_config(tmp_path / "bundle", **sections))


def test_a_missing_column_is_refused_before_work_starts(make_config: MakeConfig, tmp_path: Path) -> None:
    values = make_config(tmp_path / "bundle").model_dump()
    values["task"][1]["text"] = ["head_line"]
    with pytest.raises(DataError, match="did you mean 'headline'"):
        run(Config.model_validate(values))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["README.md", "config.json"])
def test_an_output_that_holds_something_else_is_left_alone(make_config: MakeConfig, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(ConfigError, match="has files in it that are no bundle"):
        run(make_config(tmp_path))
    assert (tmp_path / name).read_text() == "{}"


def ask_until_gone(queue: EventQueue) -> None:
    """`ray.kill` returns before the actor is gone."""
    while True:
        ray.get(queue._actor.take.remote())


def test_losing_the_event_queue_loses_news_and_nothing_else() -> None:
    queue = EventQueue()
    queue.emit({"event": "step"})
    assert queue.take() == [{"event": "step"}]
    ray.kill(queue._actor)
    with pytest.raises(ray.exceptions.RayActorError):
        ask_until_gone(queue)
    queue.emit({"event": "step"})
    assert queue.take() == []


@pytest.mark.slow
def test_workers_that_fail_too_often_end_the_job_and_the_same_command_goes_on(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    def kill(event: Event) -> None:
        if event["event"] == "worker":
            os.kill(event["pid"], signal.SIGKILL)

    config = make_config(tmp_path / "bundle", train={"max_failures": 0})
    with pytest.raises(JobError, match=r"training failed more than 0 times .* the same command resumes"):
        run(config, kill)
    _, events = run(config)
    assert not [event for event in events if event.get("phase") == "warm start"]
    assert load_bundle(config.output).model.task_names == ["sport", "business"]


@pytest.mark.slow
def test_diverged_training_is_not_tried_again(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(tmp_path / "bundle", model=COLD)
    steep = config.train.model_copy(update={"learning_rate": 1e38})  # a file may not say so
    seen: list[Event] = []
    with pytest.raises(ConfigError, match="training diverged"):
        run(config.model_copy(update={"train": steep}), seen.append)
    assert len(starts(seen, "train")) == 1


@pytest.mark.slow
def test_prompts_may_begin_as_tokens_and_word_embeddings_stay_frozen(make_config: MakeConfig, tmp_path: Path) -> None:
    model = {"prompt_init": "token", "shared_prompts": 1, "prompt_attention": "isolated"}
    config = make_config(tmp_path / "bundle", model=model, train={"epochs": 1, "freeze_word_embeddings": True})
    run(config)
    before = load_file(Path(config.backbone.name) / "model.safetensors")["embeddings.word_embeddings.weight"]
    assert torch.equal(weights(config)["backbone.embeddings.word_embeddings.weight"], before)
