"""Training on a real local Ray: from a configuration to a bundle."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mtop_batch.config import Config
from mtop_batch.engine.evaluate import evaluate_bundle
from mtop_batch.engine.events import Event
from mtop_batch.engine.progress import Progress
from mtop_batch.engine.train import TrainResult, train
from mtop_batch.errors import ConfigError, JobError, TaskError
from mtop_batch.model.bundle import load_bundle

pytestmark = pytest.mark.usefixtures("ray_local")

MakeConfig = Callable[..., Config]
NO_WARM_START = {"prompt_init": "random", "pooler_init": "random"}


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


def test_a_configuration_becomes_a_bundle_that_has_learned(make_config: MakeConfig) -> None:
    config = make_config(train={"epochs": 8})
    result, events = run(config)
    bundle = load_bundle(config.output)
    assert bundle.model.task_names == ["sport", "business"]
    assert bundle.training_config == config.model_dump(mode="json")
    assert result.mean > 0.8
    assert bundle.metrics == result.metrics == evaluate_bundle(config.output, config)
    lines = (Path(config.output) / "training.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == events
    assert {event["event"] for event in events} == {"run", "start", "step", "worker", "evaluation", "end"}
    assert {event["task"] for event in events if event.get("phase") == "warm start"} == {"sport", "business"}
    assert not Path(config.output + ".training").exists()


def test_two_workers_give_the_result_of_one(make_config: MakeConfig, tmp_path: Path) -> None:
    ends = []
    for num_workers in (1, 2):
        output = str(tmp_path / f"bundle-{num_workers}")
        config = make_config(output=output, model=NO_WARM_START, train={"epochs": 1, "num_workers": num_workers})
        _, events = run(config)
        assert {event["rank"] for event in events if event["event"] == "worker"} == set(range(num_workers))
        ends.append(weights(config))
    for name, tensor in ends[0].items():
        torch.testing.assert_close(ends[1][name], tensor, rtol=0, atol=1e-5, msg=name)


def test_training_goes_on_from_the_last_checkpoint_when_a_worker_is_killed(
    make_config: MakeConfig, dropout_backbone_dir: Path, tmp_path: Path
) -> None:
    sections: dict[str, Any] = {"model": NO_WARM_START, "train": {"epochs": 5, "num_workers": 2}}
    sections["backbone"] = {"name": str(dropout_backbone_dir)}
    undisturbed = make_config(output=str(tmp_path / "undisturbed"), **sections)
    run(undisturbed)
    pids: dict[int, int] = {}
    killed: list[int] = []

    def kill_once(event: Event) -> None:
        if event["event"] == "worker":
            pids[event["rank"]] = event["pid"]
        if event["event"] == "evaluation" and event["epoch"] >= 3 and not killed:
            killed.append(pids[1])
            os.kill(pids[1], signal.SIGKILL)

    disturbed = make_config(output=str(tmp_path / "disturbed"), **sections)
    _, events = run(disturbed, kill_once)
    first, second = (event["step"] for event in events if event["event"] == "start")
    assert first == 0
    assert 0 < second < 60
    for name, tensor in weights(undisturbed).items():
        assert torch.equal(weights(disturbed)[name], tensor), name


def test_workers_that_fail_too_often_end_the_job_with_its_work_kept(make_config: MakeConfig) -> None:
    def kill(event: Event) -> None:
        if event["event"] == "worker":
            os.kill(event["pid"], signal.SIGKILL)

    config = make_config(train={"max_failures": 0})
    with pytest.raises(JobError, match=r"training failed more than 0 times .* the same command goes on"):
        run(config, kill)
    assert Path(config.output + ".training").is_dir()
    _, events = run(config)
    assert not [event for event in events if event.get("phase") == "warm start" and event["event"] == "start"][2:]
    assert load_bundle(config.output)


def test_what_makes_training_impossible_is_said_once_and_not_tried_again(make_config: MakeConfig) -> None:
    seen: list[Event] = []
    config = make_config(model=NO_WARM_START, train={"learning_rate": 0.99, "max_grad_norm": 0, "epochs": 20})
    with pytest.raises(ConfigError, match="training diverged"):
        run(config, seen.append)
    assert sum(event["event"] == "start" for event in seen) == 1


@pytest.mark.parametrize("prompt_init", ["token", "random"])
def test_prompts_and_poolers_are_initialised_independently(make_config: MakeConfig, prompt_init: str) -> None:
    config = make_config(
        model={"prompt_init": prompt_init, "shared_prompts": 1, "prompt_attention": "isolated"},
        train={"epochs": 0.2, "freeze_word_embeddings": True},
    )
    run(config)
    assert load_bundle(config.output).model.config.shared_prompts == 1


def test_more_workers_than_the_machine_has_are_refused(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match=r"train\.num_workers = 7 needs 7 CPUs, one each, and this machine has 6"):
        run(make_config(train={"num_workers": 7}))


def test_tasks_that_mean_something_else_in_the_bundle_are_not_evaluated(make_config: MakeConfig) -> None:
    config = make_config(model=NO_WARM_START, train={"epochs": 0.2})
    run(config)
    other = config.model_dump()
    other["task"][0]["labels"] = ["yes", "no"]
    with pytest.raises(TaskError, match=r"task 'sport': labels = \('yes', 'no'\) in the configuration, but the bundle"):
        evaluate_bundle(config.output, Config.model_validate(other))
