"""Pre-finetuning: contrastive learning beside token supervision, and a backbone with the LoRA of families."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mtop_batch.config.load import validate
from mtop_batch.data.batches import pad_batch
from mtop_batch.errors import ConfigError
from mtop_batch.families import Family
from mtop_batch.model.encoder.backbone import load_backbone
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.model.parts.losses import contrastive_loss
from mtop_batch.model.prefinetuned import check_prefinetuned, load_prefinetuned, read_families, save_prefinetuned
from mtop_batch.tasks import Task
from mtop_batch.training.loop import fit
from mtop_batch.training.prefinetuning import check_sources, prefinetuning_model
from mtop_batch.training.settings import TaskData
from tests.conftest import make_tokenizer
from tests.training.toy import TASKS, make_encoder, make_examples, make_settings

NAMES = Task("names", "token", ("PER", "LOC"))
TAGS = Task("tags", "multi-label", ("a", "b", "c"))
FAMILY_OF = {"names": "entities", "sport": "texts", "tags": "texts"}


def make_config(tasks: tuple[Task, ...], backbone: str = "none", **changes: Any) -> Any:
    """A configuration with these tasks; those of `FAMILY_OF` have a family."""
    tables = [
        {
            **{"name": task.name, "kind": task.kind, "labels": list(task.labels), "train": "t", "eval": "e"},
            **({"family": FAMILY_OF[task.name]} if task.name in FAMILY_OF else {}),
        }
        for task in tasks
    ]
    families = sorted({FAMILY_OF[task.name] for task in tasks if task.name in FAMILY_OF})
    values = {"output": "o", "backbone": {"name": backbone, "max_tokens": 16}, "task": tables}
    return validate({**values, "family": [{"name": name, "layers": 1} for name in families], **changes}, "test")


def make_data(tasks: tuple[Task, ...]) -> list[TaskData]:
    return [TaskData(task, make_examples(task, 40, seed)) for seed, task in enumerate(tasks)]


def test_the_contrastive_loss_is_the_published_one() -> None:
    vectors = F.normalize(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    labels = torch.tensor([0, 1, 0, 2, 0])
    scores = (vectors @ vectors.T / 0.1).tolist()
    expected = []
    for i in range(5):
        others = [a for a in range(5) if a != i]
        same = [p for p in others if labels[p] == labels[i]]
        total = torch.logsumexp(torch.tensor([scores[i][a] for a in others]), dim=0)
        if same:
            expected.append(-sum(scores[i][p] - total for p in same) / len(same))
    found = contrastive_loss(vectors, labels)
    torch.testing.assert_close(found, torch.stack([torch.as_tensor(value) for value in expected]).mean())
    lists = F.one_hot(labels).float()
    lists[3, 0] = 1
    assert contrastive_loss(vectors, lists) > 0
    assert contrastive_loss(vectors, F.one_hot(labels).bool()) == found


@pytest.mark.parametrize("labels", [torch.tensor([0]), torch.tensor([0, 1]), torch.zeros(2, 3)])
def test_texts_without_a_pair_move_nothing(labels: torch.Tensor) -> None:
    vectors = torch.randn(len(labels), 4, requires_grad=True)
    loss = contrastive_loss(F.normalize(vectors, dim=1), labels)
    loss.backward()
    assert loss == 0
    assert vectors.grad is not None
    assert not vectors.grad.any()


def test_texts_of_a_label_come_closer_and_each_family_learns() -> None:
    tasks = (TASKS[0], NAMES, TAGS)
    model, sources = prefinetuning_model(make_config(tasks), make_encoder(), make_data(tasks))
    examples = make_examples(TASKS[0], 30, seed=9)
    before = closeness(model, examples)
    fit(model, sources, make_settings(epochs=8, evaluate=False))
    assert closeness(model, examples) > before + 0.1
    for family in ("entities", "texts"):
        assert all(tensor.any() for tensor in model.family_tensors(family).values())


@torch.no_grad()
def closeness(model: MTOPModel, examples: Any) -> float:
    """How much closer texts of a label are to one another than to others."""
    inputs: dict[str, Any] = pad_batch(examples.tokens, np.arange(len(examples)))
    with model._as_family("texts"):
        vectors = model.all_tasks_and_vectors(**inputs, tasks=[])[1].float()
    same = torch.from_numpy(examples.labels[:, None] == examples.labels)
    cosines = vectors @ vectors.T
    return float(cosines[same].mean() - cosines[~same].mean())


def test_a_step_leaves_the_other_family_alone() -> None:
    tasks = (TASKS[0], NAMES)
    model, sources = prefinetuning_model(make_config(tasks), make_encoder(), make_data(tasks))
    fit(model, sources[:1], make_settings(epochs=1, evaluate=False))
    assert all(tensor.any() for name, tensor in model.family_tensors("texts").items() if ".B." in name)
    assert not any(tensor.any() for name, tensor in model.family_tensors("entities").items() if ".B." in name)


def test_a_model_begins_with_what_was_learned(tmp_path: Path) -> None:
    tasks = (TASKS[0], NAMES)
    model, sources = prefinetuning_model(make_config(tasks), make_encoder(), make_data(tasks))
    fit(model, sources, make_settings(epochs=1, evaluate=False))
    save_prefinetuned(tmp_path, model, make_tokenizer(), {"run": "x"})
    backbone, known = load_backbone(str(tmp_path)), read_families(str(tmp_path))
    assert known["entities"][0] == Family("entities", layers=1)
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(backbone.state_dict()[name], value)
    new = MTOPModel.from_backbone(
        backbone,
        [Task("a"), NAMES],
        families=[Family("entities", layers=1), Family("new", layers=2)],
        family_of={"names": "entities", "a": "new"},
        max_tokens=16,
    )
    load_prefinetuned(new, known)
    expected = model.family_tensors("entities")
    assert all(torch.equal(value, expected[name]) for name, value in new.family_tensors("entities").items())
    assert not any(value.any() for name, value in new.family_tensors("new").items() if ".B." in name)
    again, _ = prefinetuning_model(make_config(tasks, str(tmp_path)), backbone, make_data(tasks))
    assert all(torch.equal(value, expected[name]) for name, value in again.family_tensors("entities").items())
    with pytest.raises(ConfigError, match=r"of the backbone .* has rank = 8, alpha = 16 and layers = 1"):
        check_prefinetuned(str(tmp_path), [Family("entities", layers=2)])
    (tmp_path / "families.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_families(str(tmp_path))


@pytest.mark.parametrize(
    ("tasks", "changes", "message"),
    [
        ((Task("n", "regression", ()),), {}, "task 'n' is a regression"),
        ((Task("a"),), {"model": {"kind": "mt-dnn"}}, "mtop prefinetune trains an encoder"),
        ((Task("a"),), {"unlabelled": {}}, "does not learn from"),
    ],
)
def test_what_it_cannot_learn_from_is_refused(tasks: tuple[Task, ...], changes: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_sources(make_config(tasks, **changes))
