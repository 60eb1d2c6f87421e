"""Fitting probes: the right minimum, an L2 penalty chosen on examples held out, the same result every time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from torch import Tensor

from mtop_batch.data.labelled_tokens import LabelledTokens
from mtop_batch.data.tokens import TextTokenizer
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.tasks import Task
from mtop_batch.training.probe import L2_PENALTIES, fit_probe
from mtop_batch.training.settings import TaskData, TrainSettings, Worker
from mtop_batch.training.single_task import train_single_task
from tests.conftest import WORDS, make_backbone, make_tokenizer


def task(num_labels: int) -> Task:
    return Task("probed", "probe", labels=tuple("abc"[:num_labels]))


def clouds(count: int, num_labels: int = 3, spread: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points around one centre per label, far from the origin and of uneven scale."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % num_labels
    centres = torch.randn(num_labels, 8, generator=torch.Generator().manual_seed(99))
    points = centres[labels] + spread * torch.randn(count, 8, generator=generator)
    return (points * torch.linspace(0.01, 0.1, 8) + 0.5).half(), labels


def accuracy(probe: tuple[Tensor, Tensor], vectors: Tensor, labels: Tensor) -> float:
    weight, bias = probe
    return ((vectors.float() @ weight.T + bias).argmax(1) == labels).float().mean().item()


@pytest.mark.parametrize("num_labels", [2, 3])
def test_the_minimum_is_that_of_scikit_learn(num_labels: int) -> None:
    vectors, labels = clouds(200, num_labels)
    l2_penalty = 0.03
    fitted = fit_probe(task(num_labels), vectors, labels, l2_penalties=[l2_penalty])
    values = vectors.double().numpy()
    scale = np.sqrt(np.square(values - values.mean(0)).mean())
    # scikit-learn sums the loss over the examples; for two labels it has one vector of weights, twice ours.
    penalty = l2_penalty * len(labels) / (2 if num_labels == 2 else 1)
    reference = LogisticRegression(C=1 / penalty, tol=1e-8, max_iter=5000).fit(
        (values - values.mean(0)) / scale, labels
    )
    expected = reference.predict_proba((values - values.mean(0)) / scale)
    found = torch.softmax(vectors.double() @ fitted.weight.double().T + fitted.bias, dim=1)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_regression_that_reads_the_vector_is_ridge_regression() -> None:
    vectors, _ = clouds(200)
    values = vectors.double() @ torch.linspace(-30, 50, 8).double() + 7
    regression = Task("number", "regression", labels=(), reads="vector")
    fitted = fit_probe(regression, vectors, values.float(), l2_penalties=[0.03])
    features = (vectors.double() - vectors.double().mean(0)).numpy()
    features /= np.sqrt(np.square(features).mean())
    # scikit-learn sums the squared errors, and does not halve the penalty.
    reference = Ridge(alpha=0.03 / 2 * len(values), tol=1e-10).fit(features, values.float().numpy())
    found = vectors.double() @ fitted.weight.double().T + fitted.bias
    np.testing.assert_allclose(found[:, 0], reference.predict(features), rtol=1e-4, atol=1e-4)
    assert fit_probe(regression, vectors, values.float()).l2_penalty == min(L2_PENALTIES)
    large = replace(regression, mean=7000.0, std=1000.0)
    same = fit_probe(large, vectors, (values * 1000 + 7000).float(), l2_penalties=[0.03])
    torch.testing.assert_close(same.weight, fitted.weight, rtol=1e-3, atol=1e-3)


def test_noise_asks_for_a_stronger_penalty_than_clear_examples() -> None:
    clear = fit_probe(task(3), *clouds(300, spread=0.2))
    noisy = fit_probe(task(3), *clouds(300, spread=5.0))
    assert clear.l2_penalty < noisy.l2_penalty
    assert accuracy((clear.weight, clear.bias), *clouds(300, spread=0.2, seed=1)) > 0.99
    assert clear.l2_penalty == min(clear.losses, key=lambda penalty: clear.losses[penalty])
    assert tuple(clear.losses) == L2_PENALTIES


def test_the_same_examples_give_the_same_probe_and_the_seed_chooses_those_held_out() -> None:
    vectors, labels = clouds(60, spread=2.0)
    first, second, other = (fit_probe(task(3), vectors, labels, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.weight, second.weight)
    assert first.losses == second.losses
    assert first.losses != other.losses


def test_a_label_with_one_example_and_constant_vectors_do_no_harm() -> None:
    vectors, labels = clouds(11, num_labels=2)
    labels[:] = 0
    labels[3] = 1
    assert fit_probe(task(2), vectors, labels).weight.isfinite().all()
    assert fit_probe(task(2), torch.ones(4, 8).half(), torch.tensor([0, 1, 0, 1])).bias.isfinite().all()
    assert fit_probe(task(2), vectors[:2], torch.tensor([0, 1])).weight.isfinite().all()


def test_a_probe_learns_a_task_and_changes_no_other() -> None:
    texts = [" ".join((WORDS[index % 30], WORDS[index % 7], "wins" if index % 2 else "loses")) for index in range(120)]
    tokens = TextTokenizer(make_tokenizer(), 16).encode(texts)
    examples = LabelledTokens(tokens, np.arange(120) % 2)
    model = MTOPModel.from_backbone(make_backbone(), [Task("old")], max_tokens=16)
    before = model.task_tensors("old")
    events: list[dict[str, object]] = []
    data = TaskData(Task("wins", "probe"), examples, examples)
    model.add_tasks([data.task])
    learned = train_single_task(model, data, TrainSettings(), worker=Worker(event_sink=events.append))
    assert learned.metrics["accuracy"] > 0.9
    assert {name: tuple(tensor.shape) for name, tensor in learned.tensors.items()} == {"weight": (2, 32), "bias": (2,)}
    assert all(torch.equal(before[name], tensor) for name, tensor in model.task_tensors("old").items())
    assert events[-1] == {"event": "texts", "done": 120, "num": 120}
