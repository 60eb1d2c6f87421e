from __future__ import annotations

import pytest

from mtop_batch.errors import TaskError
from mtop_batch.tasks import Decision, Task, check_task_names, select_tasks


def test_a_task_reads_back_from_its_dictionary() -> None:
    task = Task("opinion", labels=("no", "yes"), text=("title", "body"), metric="f1")
    assert Task.from_dict(task.to_dict()) == task


def test_a_regression_task_has_one_output_and_no_labels() -> None:
    task = Task("similarity", kind="regression", labels=())
    assert (task.num_outputs, task.metric) == (1, "pearson_spearman")
    with pytest.raises(TaskError, match="a regression task has no labels"):
        Task("similarity", kind="regression")


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(TaskError, match=r"unknown task fields \['colour'\]"):
        Task.from_dict({"name": "x", "colour": "red"})


def test_repeated_labels_are_refused() -> None:
    with pytest.raises(TaskError, match=r"labels \['a'\] are given more than once"):
        Task("x", labels=("a", "b", "a"))


def test_names_must_differ_in_more_than_case() -> None:
    check_task_names(["a", "b"])
    for names in (["a", "A"], ["a", "a"]):
        with pytest.raises(TaskError, match="names must differ in more than case"):
            check_task_names(names)


def test_selected_tasks_come_in_the_models_order() -> None:
    assert select_tasks(["c", "a"], ["a", "b", "c"]) == ["a", "c"]
    with pytest.raises(TaskError, match=r"there is no task 'polotics'; did you mean 'politics'\?"):
        select_tasks(["polotics"], ["politics", "travel"])


def test_a_probe_is_short_for_a_classification_that_reads_the_vector() -> None:
    assert Task("x", "probe") == Task("x", "classification", reads="vector")
    assert Task("x", "regression", labels=(), reads="vector").reads_vector
    with pytest.raises(TaskError, match="reads = 'tokens' is not one of prompts, pooled, attention, vector, words"):
        Task("x", reads="tokens")  # type: ignore[arg-type]


def test_a_multi_label_task_has_one_or_more_labels_and_metrics_of_its_own() -> None:
    task = Task("alert", "multi-label", labels=("alert",))
    assert (task.num_outputs, task.metric, task.is_multi_label) == (1, "micro_f1", True)
    assert Task.from_dict(task.to_dict()) == task
    with pytest.raises(TaskError, match="a multi-label task needs at least one"):
        Task("x", "multi-label", labels=())
    with pytest.raises(TaskError, match="one of its labels is empty"):
        Task("x", "multi-label", labels=("a", ""))
    with pytest.raises(TaskError, match="metric = 'accuracy' does not fit a multi-label task; allowed: micro_f1"):
        Task("x", "multi-label", labels=("a", "b"), metric="accuracy")


def test_scores_of_all_labels_are_for_tasks_that_have_labels() -> None:
    assert Task("x", labels=("a", "b", "c"), scores="all").keeps_probabilities
    assert not Task("x", labels=("a", "b", "c")).keeps_probabilities
    assert not Task("x", scores="all").keeps_probabilities  # of two labels the likelier one says both
    with pytest.raises(TaskError, match="a regression task has one value and no labels"):
        Task("x", "regression", labels=(), scores="all")
    with pytest.raises(TaskError, match="scores = 'some' is not one of label, all"):
        Task("x", scores="some")  # type: ignore[arg-type]


def test_a_token_task_has_types_and_reads_words() -> None:
    task = Task("names", "token", ("PER", "LOC"))
    assert (task.num_outputs, task.metric, task.reads, task.has_labels_of_texts) == (5, "entity_f1", "words", False)
    assert Task.from_dict(task.to_dict()) == task
    for changes, message in (
        ({"labels": ()}, "a token task needs at least one"),
        ({"labels": ("PER", "")}, "one of its labels is empty; a text without entities needs none"),
        ({"scores": "all"}, 'keeps the score of each entity that it finds; remove scores = "all"'),
        ({"combine": "max"}, "combine = 'max' does not fit a token task"),
        ({"reads": "vector"}, "reads = 'vector' does not fit kind = 'token'"),
        ({"decision": Decision(temperature=2.0)}, "a token task has no temperature"),
        ({"metric": "accuracy"}, "metric = 'accuracy' does not fit a token task; allowed: entity_f1"),
    ):
        with pytest.raises(TaskError, match=message):
            Task(**{"name": "names", "kind": "token", "labels": ("PER", "LOC"), **changes})  # type: ignore[arg-type]
    with pytest.raises(TaskError, match="reads = 'words' does not fit kind = 'classification'"):
        Task("x", reads="words")
