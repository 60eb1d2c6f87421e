"""The kinds of models that MTOP is compared with train through the same loop, by one and two workers, and resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mtop_batch.model.encoder.inputs import encoder_layers
from mtop_batch.model.kinds.base import MultiTaskModel
from mtop_batch.model.kinds.by_name import KINDS
from mtop_batch.training.evaluation.evaluate import evaluate
from mtop_batch.training.loop import WriteCheckpoint, fit
from mtop_batch.training.optimizer import freeze_backbone, freeze_layers, freeze_word_embeddings, make_optimizer
from mtop_batch.training.settings import TaskData, TrainSettings, Worker
from mtop_batch.training.warm_start import start_from_tokens
from tests.model.kinds.kinds import RIVALS, tasks_of
from tests.training.distributed import run_distributed
from tests.training.toy import make_data, make_encoder, make_settings

SETTINGS = make_settings(epochs=2, batch_size=5, checkpoint_steps=1, weight_decay=0.1)


def make_model(kind: str, dropout: float = 0.0) -> MultiTaskModel:
    settings = {"dropout": dropout, **({"prompt_dropout": dropout} if kind == "p-tuning-v2" else {})}
    return KINDS[kind].from_backbone(make_encoder(dropout), tasks_of(kind)[:2], max_tokens=16, **settings)


def data_of(kind: str) -> list[TaskData]:
    return make_data(tasks=tasks_of(kind)[:2])


def weights(model: MultiTaskModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("kind", RIVALS)
def test_a_learnable_toy_is_learned(kind: str) -> None:
    model, data = make_model(kind), data_of(kind)
    before = evaluate(model, data)
    result = fit(model, data, make_settings(epochs=15))
    assert evaluate(model, data) == result.best_metrics
    assert all(result.best_metrics[name]["loss"] < 0.7 * before[name]["loss"] for name in ("sport", "mood"))


@pytest.mark.parametrize("kind", RIVALS)
def test_a_resumed_run_ends_with_the_weights_of_an_undisturbed_one(kind: str, tmp_path: Path) -> None:
    def save(write: WriteCheckpoint | None, metrics: dict[str, Any]) -> None:
        assert write is not None
        if metrics["step"] == 5:
            write(tmp_path)

    settings = make_settings(epochs=1.5, checkpoint_steps=5)
    undisturbed, resumed = make_model(kind, dropout=0.1), make_model(kind, dropout=0.1)
    result = fit(undisturbed, data_of(kind), settings, save=save)
    assert fit(resumed, data_of(kind), settings, checkpoint=tmp_path) == result
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, undisturbed.state_dict()[name]), name


def train_all(worker: Worker) -> dict[str, dict[str, Tensor]]:
    """The weights that each kind ends with after a short run."""
    found = {}
    for kind in RIVALS:
        model = make_model(kind).double()  # in float32, Adam makes steps of rounding errors where gradients are zero
        fit(model, data_of(kind), SETTINGS, worker=worker)
        found[kind] = weights(model)
    return found


def test_two_workers_equal_one_with_the_joint_batch() -> None:
    alone = train_all(Worker())
    for outcome in run_distributed(train_all, world_size=2):
        for kind in RIVALS:
            torch.testing.assert_close(outcome[kind], alone[kind], rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", RIVALS)
def test_a_step_leaves_the_other_tasks_alone(kind: str, tmp_path: Path) -> None:
    steps: list[dict[str, Tensor]] = []

    def save(write: WriteCheckpoint | None, metrics: dict[str, Any]) -> None:
        assert write is not None
        write(tmp_path)
        steps.append(load_file(tmp_path / "model.safetensors"))

    events: list[dict[str, Any]] = []
    model = make_model(kind)
    before = weights(model)
    fit(model, data_of(kind), SETTINGS, save=save, worker=Worker(event_sink=events.append))
    trained = [event["task"] for event in events if event["event"] == "step"]
    assert set(trained) == {"sport", "mood"}
    for task, after in zip(trained, steps, strict=True):
        changed = {part for name in after if not torch.equal(after[name], before[name]) for part in name.split(".")}
        assert changed & {"task_sport", "task_mood"} == {f"task_{task}"}
        before = after


@pytest.mark.parametrize("kind", RIVALS)
def test_what_is_frozen_stays_and_all_else_trains(kind: str) -> None:
    model, before = make_model(kind), weights(make_model(kind))
    freeze_layers(model, 1)
    freeze_word_embeddings(model)
    frozen = {id(p) for encoder in model.encoders for p in encoder_layers(encoder)[0].parameters()}
    frozen |= {id(p) for encoder in model.encoders for p in encoder.get_input_embeddings().parameters()}
    fit(model, data_of(kind), make_settings(epochs=1))
    for name, parameter in model.named_parameters():
        if id(parameter) in frozen or not parameter.requires_grad:
            assert torch.equal(parameter, before[name]), name
        elif not name.endswith(("key.bias", "position_embeddings.weight")):
            assert not torch.equal(parameter, before[name]), name
    freeze_backbone(model)
    assert not any(p.requires_grad for encoder in model.encoders for p in encoder.parameters())


@pytest.mark.parametrize("kind", RIVALS)
def test_the_rate_of_heads_is_that_of_all_but_the_encoders(kind: str) -> None:
    model = make_model(kind)
    encoders = {id(p) for encoder in model.encoders for p in encoder.parameters()}
    groups = make_optimizer(model, TrainSettings(learning_rate=1e-5, head_learning_rate=1e-3)).param_groups
    for group in groups:
        for parameter in group["params"]:
            assert (group["peak_lr"] == 1e-5) == (id(parameter) in encoders)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    still = {names[id(p)] for group in groups if not group["weight_decay"] for p in group["params"]}
    assert all(name in still for name in names.values() if name.endswith(("prompts", "bias")) or "task_vectors" in name)


def test_prompts_begin_as_tokens_of_the_data_and_depend_on_the_seed() -> None:
    counts = torch.zeros(200, dtype=torch.long)
    counts[[11, 13, 17]] = 5
    found = []
    for seed in (0, 0, 1):
        model: Any = make_model("p-tuning")
        start_from_tokens(model, counts.numpy(), (11,), seed)
        found.append(torch.cat([model.prompts(name) for name in model.task_names]))
        table = model.word_embeddings.weight[[13, 17]]
        assert all((table == prompt).all(dim=1).any() for prompt in found[-1])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
