"""Learning from vectors that stand beside texts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from mtop_batch.data.input_vectors import InputVectors
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.training.cached_contexts import CachedContexts, model_inputs
from mtop_batch.training.evaluation.evaluate import evaluate
from mtop_batch.training.loop import fit
from mtop_batch.training.optimizer import freeze_backbone
from mtop_batch.training.probe import example_vectors
from mtop_batch.training.settings import TaskData, Worker
from mtop_batch.training.single_task import train_single_task
from tests.training.toy import TASKS, make_data, make_encoder, make_settings

SIZE = 6


def beside(labels: np.ndarray, seed: int, *, tell: bool) -> InputVectors:
    """A vector for each example, which tells its label or is noise; every fifth has none."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(len(labels), SIZE)).astype(np.float32)
    if tell:
        values[np.arange(len(labels)), labels] += 6
    counts = (np.arange(len(labels)) % 5 != 4).astype(np.int64)
    return InputVectors(values[counts == 1], np.append(0, counts.cumsum()))


def make_pictures(*, tell: bool) -> list[TaskData]:
    """The toy tasks with texts that say nothing of their labels."""
    found = []
    for number, item in enumerate(make_data((60, 60))):
        parts: dict[str, Any] = {}
        for part, examples in (("train", item.train), ("eval", item.evaluation_examples())):
            labels = np.random.default_rng(number).permutation(examples.labels)
            parts[part] = replace(examples, labels=labels, vectors=(beside(labels, number, tell=tell),))
        found.append(replace(item, **parts))
    return found


def make_reader() -> MTOPModel:
    inputs = [{"column": "image", "size": SIZE, "tokens": 1}]
    return MTOPModel.from_backbone(make_encoder(), TASKS, inputs=inputs, max_tokens=16)


@pytest.mark.parametrize(("tell", "least", "most"), [(True, 0.8, 1.0), (False, 0.0, 0.75)])
def test_what_vectors_tell_is_learned_and_noise_is_not(tell: bool, least: float, most: float) -> None:
    model, data = make_reader(), make_pictures(tell=tell)
    result = fit(model, data, make_settings(epochs=8))
    mean = np.mean([metrics["accuracy"] for metrics in result.best_metrics.values()])
    assert least <= mean <= most
    again = evaluate(model, data)
    assert {name: of["accuracy"] for name, of in again.items()} == {
        name: of["accuracy"] for name, of in result.best_metrics.items()
    }


def test_on_a_frozen_backbone_the_layers_learn_and_nothing_is_cached() -> None:
    model, data = make_reader(), make_pictures(tell=True)
    freeze_backbone(model)
    assert not model.has_fixed_cache([task.name for task in TASKS])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit(model, data, make_settings(epochs=1))
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name for name in moved if name.startswith("projected_inputs")} == {
        name for name in before if name.startswith("projected_inputs")
    }
    assert not [name for name in moved if name.startswith("backbone")]


def test_a_task_alone_reads_vectors_from_contexts_that_are_kept() -> None:
    model, data = make_reader(), make_pictures(tell=True)
    model.requires_grad_(False)
    contexts = CachedContexts(model, worker=Worker())
    assert contexts.keep(data[0].train)
    rows = np.array([7, 4, 0, 51])
    plain = model(**model_inputs(data[0].train, rows, Worker(), None), task="sport").logits
    kept = model(**model_inputs(data[0].train, rows, Worker(), contexts), task="sport").logits
    torch.testing.assert_close(kept, plain, atol=1e-5, rtol=0)
    assert train_single_task(model, data[0], make_settings(epochs=2)).num_steps > 0


def test_document_vectors_of_examples_know_what_stands_beside_them() -> None:
    model, data = make_reader(), make_pictures(tell=True)
    with_them = example_vectors(model, data[0].train, worker=Worker())
    without = example_vectors(model, data[0].without_vectors.train, worker=Worker())
    differs = (with_them - without).abs().amax(dim=1) > 1e-3
    assert differs.tolist() == [row % 5 != 4 for row in range(60)]
