"""Labels of which there are few: what their examples count, in every way of learning."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from mtop_batch.data.labelled_tokens import LabelledTokens
from mtop_batch.data.tokens import Tokens
from mtop_batch.model.kinds.by_name import KINDS
from mtop_batch.model.parts.losses import task_loss
from mtop_batch.tasks import Task
from mtop_batch.training.class_weights import class_weights
from mtop_batch.training.evaluation.evaluate import task_predictions
from mtop_batch.training.evaluation.label_report import label_report
from mtop_batch.training.loop import fit
from mtop_batch.training.probe import fit_probe
from mtop_batch.training.settings import TaskData
from tests.training.toy import make_data, make_encoder, make_model, make_settings

RARE = Task("rare")
TOPIC = Task("topic", labels=("a", "b", "c"))


def rare_examples(count: int, seed: int) -> LabelledTokens:
    """One in 51 has the second label. A token hints at it, which one in ten of the others has too."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 51 == 0
    hints = labels | (rng.random(count) < 0.1)
    rows = [[2, 10 + int(hint), *rng.integers(20, 60, size=4), 3] for hint in hints]
    return LabelledTokens(Tokens.from_rows(rows), labels.astype(np.int64))


def test_balanced_weights_are_those_of_scikit_learn_and_all_have_mean_1() -> None:
    labels = np.array([0] * 50 + [1] * 9 + [2])
    balanced, named = class_weights(TOPIC, "balanced", labels), class_weights(TOPIC, {"c": 20.0}, labels)
    assert balanced is not None
    assert named is not None
    np.testing.assert_allclose(balanced, compute_class_weight("balanced", classes=np.arange(3), y=labels), rtol=1e-6)
    assert named[2] / named[0] == pytest.approx(20)
    assert named[1] == named[0]
    for weights in (balanced, named):
        assert weights[labels].mean() == pytest.approx(1)
    assert class_weights(TOPIC, None, labels) is None


def test_the_loss_is_that_of_weighted_examples_and_equal_weights_change_nothing() -> None:
    logits, labels = torch.randn(8, 3), torch.tensor([0, 1, 2, 0, 0, 0, 1, 0])
    weights = torch.tensor([0.5, 1.0, 4.0])
    expected = (F.cross_entropy(logits, labels, reduction="none") * weights[labels]).mean()
    torch.testing.assert_close(task_loss(TOPIC, logits, labels, weights), expected)
    torch.testing.assert_close(task_loss(TOPIC, logits, labels, torch.ones(3)), task_loss(TOPIC, logits, labels))


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_of_model_learns_with_them(kind: str) -> None:
    task = replace(RARE, reads=KINDS[kind].readers[0])
    model = KINDS[kind].from_backbone(make_encoder(), [task], max_tokens=16, seed=0)
    texts, labels = torch.tensor([[2, 10, 3], [2, 11, 3]]), torch.tensor([0, 1])
    with torch.no_grad():
        rows = [model(texts[[row]], task="rare", labels=labels[[row]]).loss for row in (0, 1)]
        loss = model(texts, task="rare", labels=labels, class_weights=torch.tensor([0.5, 3.0])).loss
    torch.testing.assert_close(loss, (0.5 * rows[0] + 3.0 * rows[1]) / 2, rtol=1e-4, atol=1e-5)


def test_a_label_of_one_in_fifty_is_found_with_weights() -> None:
    train, evaluation = rare_examples(510, seed=0), rare_examples(510, seed=1)
    recalls = []
    for weights in (None, class_weights(RARE, "balanced", train.labels)):
        model = make_model(tasks=(RARE,))
        data = TaskData(RARE, train, evaluation, class_weights=weights)
        fit(model, [data], make_settings(epochs=6, batch_size=32, evaluate=False))
        report = label_report(RARE, task_predictions(model, evaluation, RARE), evaluation.labels)
        recalls.append(report.labels[1].recall)
    assert recalls[0] < 0.3
    assert recalls[1] > 0.6


def test_a_probe_finds_it_too() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(510) % 51 == 0
    vectors = torch.from_numpy(rng.normal(size=(510, 4)) + labels[:, None])
    weights = class_weights(RARE, "balanced", labels.astype(np.int64))
    assert weights is not None
    recalls = []
    for chosen in (None, torch.from_numpy(weights)):
        probe = fit_probe(RARE, vectors, torch.from_numpy(labels.astype(np.int64)), chosen)
        found = (vectors.float() @ probe.weight.T + probe.bias).argmax(dim=1).numpy()
        recalls.append(found[labels].mean())
    assert recalls[0] < 0.4
    assert recalls[1] > 0.8


def test_a_checkpoint_with_other_weights_is_of_another_run() -> None:
    from mtop_batch.training.loop import _identity

    (item,) = make_data((24,), (RARE,))
    weighted = replace(item, class_weights=np.array([0.5, 2.0], np.float32))
    settings = make_settings()
    assert _identity([item], settings) != _identity([weighted], settings)
    assert "class_weights" not in _identity([item], settings)
