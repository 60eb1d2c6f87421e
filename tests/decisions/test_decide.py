"""Decisions as pure functions: temperature, thresholds, abstention, and rules against a search of all combinations."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mtop_batch.decisions.decide import both_of, calibrate, decide, last_of
from mtop_batch.decisions.identity import decision_hashes
from mtop_batch.decisions.rules import Rule, TaskLabel, with_rules
from mtop_batch.errors import TaskError
from mtop_batch.tasks import Decision, Task

NEWS, SPORT = Task("news"), Task("sport")
TOPIC = Task("topic", labels=("film", "food", "money"))
TAGS = Task("tags", "multi-label", ("a", "b", "c"))
KINDS = (NEWS, TOPIC, TAGS)

shares = st.floats(0, 1, width=32)


def decided_by(task: Task, **decision: Any) -> Task:
    return replace(task, decision=Decision(**decision))


def softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    parts = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(parts / parts.sum(axis=1, keepdims=True))


def probabilities_of(task: Task, logits: np.ndarray[Any, Any], temperature: float = 1.0) -> np.ndarray[Any, Any]:
    """What a model puts out, and what it would if its logits were divided."""
    logits = logits[:, : len(task.labels)].astype(np.float64) / temperature
    found = 1 / (1 + np.exp(-logits)) if task.is_multi_label else softmax(logits)
    found = found.astype(np.float32)
    if task.is_binary:
        found = both_of(last_of(found.argmax(axis=1), found.max(axis=1)))
    return found


logits = hnp.arrays(np.float32, (7, 3), elements=st.floats(-8, 8, width=32))


@given(logits, st.floats(0.2, 5), st.sampled_from(KINDS))
def test_calibrated_probabilities_are_those_of_divided_logits(
    values: np.ndarray[Any, Any], temperature: float, task: Task
) -> None:
    found = calibrate(decided_by(task, temperature=temperature), probabilities_of(task, values))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, probabilities_of(task, values, temperature), atol=2e-3)


@given(logits, st.floats(0.2, 5), st.sampled_from(KINDS))
def test_a_temperature_alone_changes_no_label(values: np.ndarray[Any, Any], temperature: float, task: Task) -> None:
    base = {task.name: probabilities_of(task, values)}
    hot = decide([decided_by(task, temperature=temperature)], base)[task.name]
    assert (hot.given == decide([task], base)[task.name].given).all()


@given(st.lists(shares, min_size=1, max_size=20), st.floats(0.3, 4))
def test_of_two_labels_one_number_is_enough_to_the_last_bit(values: list[float], temperature: float) -> None:
    last = both_of(np.array(values, np.float32))
    last = last_of(last.argmax(axis=1), last.max(axis=1)).astype(np.float32)
    both = both_of(last)
    assert (last_of(both.argmax(axis=1), both.max(axis=1)) == last).all()
    hot = calibrate(decided_by(NEWS, temperature=temperature), both)
    assert (last_of(hot.argmax(axis=1), hot.max(axis=1)) == hot[:, 1]).all()
    assert (hot[:, 0] == 1 - hot[:, 1]).all()


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    generator = np.random.default_rng(0)
    for task in KINDS:
        hot = decided_by(task, temperature=1.7)
        base = probabilities_of(task, generator.normal(size=(1000, 3)).astype(np.float32) * 4)
        parts = np.concatenate([calibrate(hot, base[start : start + 7]) for start in range(0, 1000, 7)])
        assert (parts == calibrate(hot, base)).all()


def test_thresholds_say_what_is_given() -> None:
    base = {"news": both_of(np.array([0.6, 0.7, 0.8], np.float32)), "tags": np.array([[0.2, 0.5, 0.9]], np.float32)}
    strict = decided_by(NEWS, thresholds=(float(np.float32(0.7)),))
    assert decide([strict], base)["news"].given[:, 1].tolist() == [False, True, True]
    assert decide([NEWS], base)["news"].given[:, 1].tolist() == [True, True, True]
    each = decided_by(TAGS, thresholds=(0.1, 0.6, 1.0))
    assert decide([each], base)["tags"].given.tolist() == [[True, False, False]]


def test_what_is_too_unsure_is_no_label() -> None:
    base = {"news": both_of(np.array([0.1, 0.6, 0.9, np.nan], np.float32))}
    assert decide([decided_by(NEWS, abstain_below=0.8)], base)["news"].abstained.tolist() == [False, True, False, False]
    # What a threshold makes of it counts, and not what is likeliest.
    high = decided_by(NEWS, abstain_below=0.3, thresholds=(0.95,))
    assert decide([high], base)["news"].abstained.tolist() == [False, False, True, False]
    tags = {"tags": np.array([[0.9, 0.9, 0.1], [0.9, 0.9, 0.4]], np.float32)}
    assert decide([decided_by(TAGS, abstain_below=0.8)], tags)["tags"].abstained.tolist() == [False, True]


def test_nothing_is_decided_where_there_are_no_probabilities() -> None:
    nothing = {task.name: np.full((2, len(task.labels)), np.nan, np.float32) for task in KINDS}
    tied = with_rules([decided_by(task, temperature=2.0) for task in KINDS], ['implies("news:no", "tags:a")'])
    for found in decide(tied, nothing).values():
        assert not (found.given.any())
        assert not (found.abstained.any())
        assert not (found.corrected.any())


RULES = (
    ['implies("sport:yes", "news:yes")'],
    ['excludes("sport:yes", "news:yes", "topic:film")'],
    ['implies("topic:food", "tags:b")', 'excludes("tags:a", "tags:b")'],
    ['implies("tags:a", "tags:c")', 'implies("tags:c", "sport:yes")', 'excludes("sport:yes", "topic:money")'],
)


@given(st.sampled_from(RULES), st.integers(0, 2**32 - 1), st.booleans())
@example(RULES[0], 126405, False)  # a probability that is 0 in single precision
def test_rules_give_the_likeliest_labels_that_keep_them(rules: list[str], seed: int, has_thresholds: bool) -> None:
    generator = np.random.default_rng(seed)
    of_kind = {task.name: task for task in (NEWS, SPORT, TOPIC, TAGS)}
    if has_thresholds:
        of_kind["news"] = decided_by(NEWS, thresholds=(0.8,))
        of_kind["tags"] = decided_by(TAGS, thresholds=(0.3, 0.6, 0.7))
    tasks = with_rules(list(of_kind.values()), rules)
    base = {task.name: probabilities_of(task, 3 * generator.normal(size=(5, 3)).astype(np.float32)) for task in tasks}
    found = decide(tasks, base)
    plain = decide(list(of_kind.values()), base)
    for row in range(5):
        mine = {name: of.given[row] for name, of in found.items()}
        assert not any(_broken(Rule.parse(rule), of_kind, mine) for rule in rules)
        with np.errstate(divide="ignore"):  # the logarithm of no probability at all
            best = max(_worth(of_kind, base, row, choice) for choice in _choices(of_kind, rules))
            assert _worth(of_kind, base, row, mine) == pytest.approx(best)
        for name, of in found.items():
            assert of.corrected[row] == (of.given[row] != plain[name].given[row]).any()


def _choices(tasks: dict[str, Task], rules: list[str]) -> list[dict[str, Any]]:
    """All combinations of labels that break no rule."""
    options = []
    for task in tasks.values():
        several = product([False, True], repeat=len(task.labels))
        options.append([np.array(flags) for flags in several if task.is_multi_label or sum(flags) == 1])
    every = (dict(zip(tasks, flags, strict=True)) for flags in product(*options))
    return [choice for choice in every if not any(_broken(Rule.parse(rule), tasks, choice) for rule in rules)]


def _broken(rule: Rule, tasks: dict[str, Task], choice: dict[str, Any]) -> bool:
    has = [bool(choice[of.task][tasks[of.task].labels.index(of.label)]) for of in rule.labels]
    return (has[0] and not has[1]) if rule.kind == "implies" else sum(has) > 1


def _worth(tasks: dict[str, Task], base: dict[str, Any], row: int, choice: dict[str, Any]) -> float:
    """The logarithm of the product of all probabilities, as odds of the thresholds."""
    total = 0.0
    for name, task in tasks.items():
        found = base[name][row].astype(np.float64)
        thresholds = task.decision.thresholds
        if task.is_multi_label:
            least = np.array(thresholds or (0.5,) * len(found))
            total += np.log(np.where(choice[name], found / least, (1 - found) / (1 - least))).sum()
        else:
            least = np.array([1 - thresholds[0], thresholds[0]]) if thresholds else np.ones(len(found))
            total += np.log((found / least)[choice[name]]).sum()
    return float(total)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (['implies("news:yes")'], "is not a rule"),
        (['implies("news:yes", "sport:yes", "topic:film")'], "is not a rule"),
        (['forbids("news:yes", "sport:yes")'], "is not a rule"),
        (["excludes(news:yes, sport:yes)"], "is not a rule"),
        (['excludes("news:yes", "news:yes")'], "names a label twice"),
        (['implies("new:yes", "sport:yes")'], "did you mean 'news'"),
        (['implies("news:maybe", "sport:yes")'], "names a label 'maybe' of task 'news'"),
        (['implies("news:yes", "price:high")'], "it is a regression"),
        (['implies("news:yes", "sport:yes")', 'excludes("news:yes", "sport:yes")'], "contradict each other.*news:yes"),
        (['implies("news:yes", "topic:film")', 'implies("news:yes", "topic:food")'], "contradict each other"),
        (
            ['implies("news:yes", "sport:yes")', 'implies("news:no", "sport:yes")'],
            "every text would be given 'sport:yes', by",
        ),
        (['implies("news:yes", "tags:a")', 'implies("news:no", "tags:a")'], "every text would be given 'tags:a', by"),
        (
            ['implies("news:yes", "topic:film")', 'implies("news:no", "topic:food")'],
            "every text would be given 'topic:film' or 'topic:food', by",
        ),
        (['implies("news:yes", "pair:yes")'], "different text columns"),
        ([f'excludes("many:{n}", "tags:a")' for n in range(12)] + ['excludes("tags:a", "tags:b")'], "combinations"),
    ],
)
def test_rules_that_cannot_be_kept_are_refused(rules: list[str], message: str) -> None:
    many = Task("many", "multi-label", tuple(map(str, range(12))))
    others = [Task("price", "regression", ()), Task("pair", text=("title", "body")), many]
    with pytest.raises(TaskError, match=message):
        with_rules([NEWS, SPORT, TOPIC, TAGS, *others], rules)


def test_a_task_is_not_decided_without_those_it_is_tied_to() -> None:
    news, sport = with_rules([NEWS, SPORT], ['implies("sport:yes", "news:yes")'])
    with pytest.raises(TaskError, match="ties sport to the task 'news', which is left out"):
        decide([sport], {"sport": np.array([[0.5, 0.5]])})
    assert Rule.parse(news.decision.rules[0]).labels == (TaskLabel("sport", "yes"), TaskLabel("news", "yes"))


def test_a_decision_hash_changes_with_all_that_changes_labels() -> None:
    prints = {"news": "1", "sport": "2", "topic": "3"}
    assert decision_hashes([NEWS, SPORT], prints) == {"news": "", "sport": ""}
    fields: list[dict[str, Any]] = [{"temperature": 2.0}, {"thresholds": (0.7,)}, {"abstain_below": 0.7}]
    hashes = [decision_hashes([decided_by(NEWS, **field), SPORT], prints) for field in fields]
    assert len({of["news"] for of in hashes}) == 3
    assert {of["sport"] for of in hashes} == {""}
    tied = with_rules([NEWS, SPORT], ['implies("sport:yes", "news:yes")'])
    before = decision_hashes([*tied, TOPIC], prints)
    assert before["topic"] == ""
    assert before["news"]
    assert before["sport"]
    # What another task is tied to decides too.
    after = decision_hashes([*tied, TOPIC], {**prints, "sport": "9"})
    assert after["news"] != before["news"]
    assert after["sport"] == before["sport"]
    hot = decision_hashes([tied[0], replace(tied[1], decision=replace(tied[1].decision, temperature=3.0))], prints)
    assert hot["news"] != before["news"]


@pytest.mark.parametrize(
    ("task", "decision", "message"),
    [
        (NEWS, {"thresholds": (1.2,)}, r"a threshold of 1.2 is outside \[0, 1\]"),
        (NEWS, {"abstain_below": -0.1}, r"abstain_below = -0.1 is outside \[0, 1\]"),
        (NEWS, {"temperature": 0.0}, "temperature = 0.0 is not above 0"),
        (NEWS, {"thresholds": (0.5, 0.5)}, "it takes 1"),
        (TAGS, {"thresholds": (0.5,)}, "it takes 3"),
        (TOPIC, {"thresholds": (0.5,)}, "more than two labels takes none"),
        (Task("price", "regression", ()), {"temperature": 2.0}, "a regression has a value"),
    ],
)
def test_decisions_that_cannot_be_are_refused(task: Task, decision: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        decided_by(task, **decision)


def test_a_task_with_a_decision_survives_a_detour_through_json() -> None:
    task = decided_by(TAGS, temperature=1.3, thresholds=(0.1, 0.2, 0.3), abstain_below=0.4)
    assert Task.from_dict(task.to_dict()) == task
    assert "decision" not in TAGS.to_dict()
    with pytest.raises(TaskError, match="unknown fields of a task's decision"):
        Task.from_dict({**TAGS.to_dict(), "decision": {"luck": 1}})
