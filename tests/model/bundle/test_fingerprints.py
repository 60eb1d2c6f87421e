from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertTokenizer

from mtop_batch.model.bundle.fingerprints import task_fingerprints, tokenizer_digest, vector_fingerprint
from mtop_batch.model.kinds.config import PromptAttention
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.tasks import Task
from tests.conftest import make_backbone
from tests.model.conftest import TASKS, MakeModel

ALL = {"topic", "type", "score"}


def changed(model: MTOPModel, change: Callable[[MTOPModel], object], tokenizer: str = "t") -> set[str]:
    """The tasks whose fingerprints a change changes."""
    before = task_fingerprints(model, "t")
    with torch.no_grad():
        change(model)
    after = task_fingerprints(model, tokenizer)
    return {name for name in before if before[name] != after[name]}


def vector_changes(model: MTOPModel, change: Callable[[MTOPModel], object]) -> bool:
    """Whether a change changes the fingerprint of document vectors."""
    before = vector_fingerprint(model, "t")
    with torch.no_grad():
        change(model)
    return vector_fingerprint(model, "t") != before


def redefine(**fields: object) -> Callable[[MTOPModel], object]:
    """A change of the definition of the task "type"."""

    def change(model: MTOPModel) -> None:
        tasks = [replace(t, **fields) if t.name == "type" else t for t in model.tasks]  # type: ignore[arg-type]
        model.config.tasks = [{**e, "task": t.to_dict()} for e, t in zip(model.config.tasks, tasks, strict=True)]

    return change


OF_ALL: dict[str, Callable[[MTOPModel], object]] = {
    "a weight of the backbone": lambda m: m.word_embeddings.weight[7, 3].add_(1e-3),
    "a setting of the backbone": lambda m: m.config.backbone_config.update(hidden_act="relu"),  # type: ignore[union-attr]
    "the length at which texts are cut": lambda m: setattr(m.config, "max_tokens", 39),
    "a shared prompt": lambda m: m.shared_prompts[0, 0].add_(1e-3),  # type: ignore[index]
}
OF_ONE: dict[str, Callable[[MTOPModel], object]] = {
    "its pooler": lambda m: dict(m.task_module("type").named_parameters())["pooler.bias"][0].add_(1e-3),
    "its head": lambda m: m.task_module("type").head.weight[0, 0].add_(1e-3),
    "its labels": redefine(labels=("yes", "no")),
    "its kind": redefine(kind="multi-label", metric="micro_f1"),
    "its text columns": redefine(text=("body", "title")),
}
OF_NONE: dict[str, Callable[[MTOPModel], object]] = {
    "its metric": redefine(metric="f1"),
    "which scores are kept": redefine(scores="all"),
    "the gradient stop": lambda m: setattr(m.config, "stop_gradient", False),
    "a new task": lambda m: m.add_tasks([Task("new")]),
}


@pytest.mark.parametrize("attention", ["joint", "isolated"])
@pytest.mark.parametrize(
    ("what", "change", "expected"),
    [
        *((what, change, ALL) for what, change in OF_ALL.items()),
        *((what, change, {"type"}) for what, change in OF_ONE.items()),
        *((what, change, set()) for what, change in OF_NONE.items()),
    ],
)
def test_a_change_changes_the_fingerprints_of_what_it_determines(
    make_model: MakeModel, attention: str, what: str, change: Callable[[MTOPModel], object], expected: set[str]
) -> None:
    assert changed(make_model(prompt_attention=attention, shared_prompts=1), change) == expected


@pytest.mark.parametrize(("attention", "expected"), [("joint", ALL), ("isolated", {"type"})])
def test_a_tasks_prompts_determine_what_sees_them(make_model: MakeModel, attention: str, expected: set[str]) -> None:
    model = make_model(prompt_attention=attention)
    assert changed(model, lambda m: m.prompts("type")[1, 0].add_(1e-3)) == expected


@pytest.mark.parametrize(
    ("attention", "expected"),
    [("joint", "f31ad5ba4679b5be669df9651ead98f1"), ("isolated", "336b20c6449df6c677fec7cb293fbf7a")],
)
def test_fingerprints_are_those_of_earlier_versions(attention: PromptAttention, expected: str) -> None:
    model = MTOPModel.from_backbone(make_backbone(), TASKS, prompt_attention=attention, shared_prompts=1, max_tokens=40)
    assert task_fingerprints(model, "t")["topic"] == expected


def test_the_tokenizer_determines_all_tasks(make_model: MakeModel) -> None:
    assert changed(make_model(), lambda _: None, tokenizer="another") == ALL


def test_isolated_tasks_have_the_same_fingerprint_in_every_company(make_model: MakeModel) -> None:
    many, one = (make_model(tasks, prompt_attention="isolated") for tasks in (TASKS, TASKS[1:2]))
    assert task_fingerprints(many, "t")["type"] == task_fingerprints(one, "t")["type"]
    joint, alone = make_model(TASKS), make_model(TASKS[1:2])
    assert task_fingerprints(joint, "t")["type"] != task_fingerprints(alone, "t")["type"]


def test_the_tokenizer_digest_knows_rules_not_passing_settings(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    digest = tokenizer_digest(tokenizer)
    tokenizer(["a b c", "a"], truncation=True, max_length=4, padding=True)
    assert tokenizer_digest(tokenizer) == digest
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_digest(AutoTokenizer.from_pretrained(tmp_path)) == digest
    cased = BertTokenizer(vocab=tokenizer.get_vocab(), do_lower_case=False)
    assert tokenizer_digest(cased) != digest


@pytest.mark.parametrize("attention", ["joint", "isolated"])
@pytest.mark.parametrize("what", [*OF_ALL, *OF_ONE, *OF_NONE, "a prompt of a task"])
def test_the_fingerprint_of_vectors_covers_the_context_and_no_task(
    make_model: MakeModel, attention: str, what: str
) -> None:
    model = make_model(prompt_attention=attention, shared_prompts=1)
    changes = {**OF_ALL, **OF_ONE, **OF_NONE, "a prompt of a task": lambda m: m.prompts("type").mul_(2)}
    expected = what in OF_ALL or (what == "a prompt of a task" and attention == "joint")
    assert vector_changes(model, changes[what]) == expected


@pytest.mark.parametrize("attention", ["joint", "isolated"])
def test_a_probes_fingerprint_covers_the_vectors_and_its_own_weights(make_model: MakeModel, attention: str) -> None:
    model = make_model(prompt_attention=attention, shared_prompts=1)
    model.add_tasks([Task("probe", "probe"), Task("other", "probe")])
    assert changed(model, lambda m: m.load_task("probe", {"bias": torch.ones(2)})) == {"probe"}
    assert changed(model, lambda m: m.task_module("type").head.weight.mul_(2)) == {"type"}
    assert changed(model, OF_ALL["a weight of the backbone"]) == {*ALL, "probe", "other"}
    in_context = {*ALL, "probe", "other"} if attention == "joint" else {"type"}
    assert changed(model, lambda m: m.prompts("type").mul_(2)) == in_context
