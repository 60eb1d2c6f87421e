"""Labelled data: what counts as an example, how labels are written, and what is refused."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import BertTokenizer

from mtop_batch.data.examples import few_warnings, load_examples, load_train_and_eval, token_counts, tokenise_examples
from mtop_batch.data.tokens import TextTokenizer, Tokens
from mtop_batch.errors import DataError
from mtop_batch.tasks import LabelBy, Task

POLITICS = Task("politics", text=("headline",))
GRADE = Task("grade", kind="regression", labels=(), text=("headline",))
PAIR = Task("entails", labels=("yes", "no"), text=("premise", "claim"))


def write(path: Path, **columns: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return str(path)


def labels_of(tmp_path: Path, task: Task, labels: Any) -> list[Any]:
    """The labels read back from a file with that label column."""
    source = write(tmp_path / "data.parquet", headline=["bank"] * len(labels), label=labels)
    return load_examples(task, source, "label", training=False).labels.tolist()


@pytest.mark.parametrize(
    "labels",
    [
        pa.array(["yes", "no"]),
        pa.array(["yes", "no"], pa.large_string()),
        pa.array(["yes", "no"]).dictionary_encode(),
        pa.array([1, 0]),
        pa.array([1, 0], pa.uint8()),
        pa.array([1.0, 0.0]),
        pa.array([True, False]),
    ],
    ids=lambda labels: str(labels.type),
)
def test_labels_may_be_strings_indices_or_booleans(tmp_path: Path, labels: pa.Array) -> None:
    assert labels_of(tmp_path, POLITICS, labels) == [1, 0]


STARS = Task("stars", labels=("3", "2", "1"), text=("headline",))
ANSWER = Task("answer", labels=("yes", "no"), text=("headline",))


def test_numbers_that_are_the_labels_themselves_are_not_indices(tmp_path: Path) -> None:
    assert labels_of(tmp_path, STARS, [1, 2, 3, 1]) == [2, 1, 0, 2]
    assert labels_of(tmp_path, STARS, [1.0, 3.0]) == [2, 0]
    assert labels_of(tmp_path, STARS, [0, 1, 2]) == [0, 1, 2]
    halves = Task("halves", labels=("1.0", "0.50", "02"), text=("headline",))
    assert labels_of(tmp_path, halves, [0.5, 1.0, 2.0, 0.5]) == [1, 0, 2, 1]


def read_both(tmp_path: Path, task: Task, train: Any, evaluation: Any, label_by: LabelBy | None = None) -> list[Any]:
    """The labels of the training and of the evaluation examples."""
    sources = [
        write(tmp_path / f"{name}.parquet", headline=["bank"] * len(labels), label=labels)
        for name, labels in (("train", train), ("eval", evaluation))
    ]
    both = load_train_and_eval(task, sources[0], sources[1], "label", label_by)
    return [raw.labels.tolist() for raw in both]


def test_one_reading_of_numbers_holds_for_all_files_of_a_task(tmp_path: Path) -> None:
    assert read_both(tmp_path, STARS, [1, 2, 3], [1, 2]) == [[2, 1, 0], [2, 1]]
    assert read_both(tmp_path, STARS, [0, 1, 2], [1.0, float("nan"), 2.0]) == [[0, 1, 2], [1, 2]]


@pytest.mark.parametrize(
    ("task", "labels", "readings"),
    [
        (STARS, [1, 2], {"name": [2, 1], "index": [1, 2]}),
        (Task("flag", labels=("1", "0"), text=("headline",)), [0, 1], {"name": [1, 0], "index": [0, 1]}),
        (ANSWER, [0, 1], {"index": [0, 1]}),
        (ANSWER, [1.0, 0.0], {"index": [1, 0]}),
        (Task("mood", labels=("bad", "good"), text=("headline",)), [True, False], {"index": [1, 0]}),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused_until_label_by_says_which(
    tmp_path: Path, task: Task, labels: list[Any], readings: dict[LabelBy, list[int]]
) -> None:
    source = write(tmp_path / "data.parquet", headline=["bank"] * len(labels), label=labels)
    with pytest.raises(DataError, match=f"task '{task.name}': .*label_by = \"index\""):
        load_examples(task, source, "label", training=False)
    for label_by, expected in readings.items():
        assert load_examples(task, source, "label", training=False, label_by=label_by).labels.tolist() == expected


@pytest.mark.parametrize(
    ("labels", "expected"),
    [(("True", "False"), [0, 1]), (("yes", "no"), [0, 1]), (("no", "Yes"), [1, 0]), (("0", "1", "unsure"), [1, 0])],
)
def test_booleans_are_the_labels_that_mean_true_and_false(
    tmp_path: Path, labels: tuple[str, ...], expected: list[int]
) -> None:
    assert labels_of(tmp_path, Task("t", labels=labels, text=("headline",)), [True, False]) == expected


def write_named(path: Path, names: list[str], labels: list[int]) -> str:
    """A Parquet file of a data set whose labels are a `ClassLabel`."""
    features = datasets.Features({"headline": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    rows = {"headline": ["bank"] * len(labels), "label": labels}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    return str(path)


def test_whole_numbers_are_read_by_the_names_that_a_parquet_file_notes(tmp_path: Path) -> None:
    source = write_named(tmp_path / "a.parquet", ["yes", "unsure", "no"], [0, 2, -1, 0])
    examples = load_examples(POLITICS, source, "label")
    assert (examples.labels.tolist(), examples.skipped) == ([1, 0, 1], [(2, "label is null")])
    with_gaps = pq.read_table(source)
    gaps = pa.array([0.0, 2.0, float("nan"), 0.0])
    pq.write_table(with_gaps.set_column(1, "label", gaps).replace_schema_metadata(with_gaps.schema.metadata), source)
    assert load_examples(POLITICS, source, "label").labels.tolist() == [1, 0, 1]
    numbered = write_named(tmp_path / "numbered.parquet", ["0", "1"], [1, 0])
    assert load_examples(POLITICS, numbered, "label").labels.tolist() == [1, 0]
    grades = write_named(tmp_path / "grades.parquet", ["1", "2.5", "10"], [2, 0, 1])
    assert load_examples(GRADE, grades, "label").labels.tolist() == [10.0, 1.0, 2.5]


def test_named_numbers_and_strings_are_labels_of_one_kind(tmp_path: Path) -> None:
    train = write(tmp_path / "train.parquet", headline=["bank"] * 2, label=pa.array(["no", "yes"]).dictionary_encode())
    named = write_named(tmp_path / "eval.parquet", ["yes", "no"], [0, 1])
    both = load_train_and_eval(POLITICS, train, named, "label")
    assert [raw.labels.tolist() for raw in both] == [[0, 1], [1, 0]]
    plain = write(tmp_path / "plain.parquet", headline=["bank"] * 2, label=[0, 1])
    with pytest.raises(DataError, match=r"different types: string in .*train\.parquet; int64 in .*plain\.parquet"):
        load_train_and_eval(POLITICS, train, plain, "label")


@pytest.mark.parametrize(("task", "names"), [(GRADE, ["2", "4"]), (POLITICS, ["yes", "no"])])
def test_numbers_beside_numbers_with_names_are_refused(tmp_path: Path, task: Task, names: list[str]) -> None:
    named = write_named(tmp_path / "train.parquet", names, [0, 1])
    plain = write(tmp_path / "plain.parquet", headline=["bank"] * 2, label=[0, 1])
    with pytest.raises(DataError, match=r"numbers with names in .*train\.parquet; int64 in .*plain\.parquet"):
        load_train_and_eval(task, named, plain, "label")


def test_numbers_mean_in_an_evaluation_what_labels_meant_in_training(tmp_path: Path) -> None:
    learned = load_examples(POLITICS, write_named(tmp_path / "a.parquet", ["yes", "no"], [0, 1]), "label")
    plain = write(tmp_path / "plain.parquet", headline=["bank"] * 2, label=[0, 1])
    assert learned.label_by == "name"
    with pytest.raises(DataError, match=r'label 0 .* cannot be used; .* label_by = "index" of the task takes them'):
        load_examples(POLITICS, plain, "label", label_by=learned.label_by)


@pytest.mark.parametrize(
    ("task", "names", "message"),
    [
        (POLITICS, ["No", "Yes"], r"comes with the names 'No', 'Yes' .* labels = \['no', 'yes'\]"),
        (POLITICS, ["yes", "unsure", "no"], r"the names 'yes', 'unsure', 'no' .* labels = \['no', 'yes'\]"),
        (GRADE, ["one star", "two stars"], "the names 'one star', 'two stars' .* a regression, which needs numbers"),
    ],
)
def test_names_that_do_not_fit_are_refused_with_both_lists(
    tmp_path: Path, task: Task, names: list[str], message: str
) -> None:
    source = write_named(tmp_path / "a.parquet", names, list(range(len(names))))
    with pytest.raises(DataError, match=message):
        load_examples(task, source, "label")


@pytest.mark.parametrize("labels", [[float("nan")] * 2, [None, None], pa.array([None, None], pa.timestamp("us"))])
def test_a_file_without_any_label_has_no_say_in_their_type(tmp_path: Path, labels: Any) -> None:
    write(tmp_path / "a.parquet", headline=["x", "y"], label=["yes", "no"])
    write(tmp_path / "b.parquet", headline=["x", "y"], label=labels)
    assert load_examples(POLITICS, str(tmp_path), "label").labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    "nothing", [[float("nan")] * 2, pa.nulls(2, pa.bool_()), pa.nulls(2, pa.timestamp("us"))], ids=str
)
def test_a_text_column_without_values_may_have_any_type(tmp_path: Path, nothing: Any) -> None:
    source = write(tmp_path / "d.parquet", premise=["bank", "cup"], claim=nothing, label=["yes", "no"])
    examples = load_examples(PAIR, source, "label")
    assert (examples.texts, examples.seconds) == (["bank", "cup"], [None, None])


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.string_view(), pa.json_()])
def test_texts_may_be_written_as_bytes_or_as_another_kind_of_string(tmp_path: Path, kind: pa.DataType) -> None:
    texts = pa.array(["1", "2"], pa.string())
    column = pa.ExtensionArray.from_storage(kind, texts) if isinstance(kind, pa.BaseExtensionType) else texts.cast(kind)
    source = write(tmp_path / "a.parquet", headline=column, label=["no", "yes"])
    assert load_examples(POLITICS, source, "label").texts == ["1", "2"]


@pytest.mark.parametrize("kind", [pa.binary(), pa.string()])
def test_a_text_that_is_not_utf_8_is_skipped(tmp_path: Path, kind: pa.DataType) -> None:
    texts = pa.array([b"bank", b"\xff\xfe", b"law"]).view(kind)
    source = write(tmp_path / "a.parquet", headline=texts, label=["no", "yes", "yes"])
    raw = load_examples(POLITICS, source, "label")
    assert (raw.texts, raw.skipped) == (["bank", "law"], [(1, "text column 'headline' is not valid UTF-8")])


def test_labels_that_are_not_utf_8_are_refused(tmp_path: Path) -> None:
    labels = pa.array([b"yes", b"\xff"]).view(pa.string())
    source = write(tmp_path / "a.parquet", headline=["bank", "law"], label=labels)
    with pytest.raises(DataError, match=r"label column 'label' of .* has strings that are not UTF-8"):
        load_examples(POLITICS, source, "label")


@pytest.mark.parametrize("name", ["headline", "label"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, name: str) -> None:
    columns = [pa.array(["yes", "no"])] * 3
    pq.write_table(pa.Table.from_arrays(columns, ["headline", "label", name]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=rf"has 2 columns called '{name}'"):
        load_examples(POLITICS, str(tmp_path / "a.parquet"), "label")


@pytest.mark.parametrize("hidden", ["_more.parquet", ".part/a.parquet"])
def test_hidden_files_are_named(tmp_path: Path, hidden: str, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / hidden).parent.mkdir(exist_ok=True)
    write(tmp_path / hidden, headline=["bank"] * 2, label=["no", "yes"])
    with pytest.raises(DataError, match=f"a name starts with '_' or '\\.': {re.escape(hidden)}"):
        load_examples(POLITICS, str(tmp_path), "label")
    write(tmp_path / "a.parquet", headline=["law"] * 2, label=["no", "yes"])
    assert load_examples(POLITICS, str(tmp_path), "label").texts == ["law"] * 2
    assert f"not read, for a name on the path starts with '_' or '.': {hidden}" in caplog.text


def test_a_directory_is_read_in_the_order_of_its_files(tmp_path: Path) -> None:
    write(tmp_path / "b.parquet", headline=["three"], label=pa.array([None], pa.string()))
    write(tmp_path / "c/c.parquet", headline=pa.array(["four"]).dictionary_encode(), label=["no"])
    write(tmp_path / "a.parquet", headline=pa.array(["one", "two"], pa.large_string()), label=["yes", "no"])
    write(tmp_path / "_hidden.parquet", other=[1])
    examples = load_examples(POLITICS, str(tmp_path), "label")
    assert examples.texts == ["one", "two", "four"]
    assert examples.labels.tolist() == [1, 0, 0]
    assert examples.skipped == [(2, "label is null")]


def test_rows_without_text_or_label_are_skipped_with_their_reason(tmp_path: Path) -> None:
    source = write(
        tmp_path / "data.parquet",
        headline=["bank", None, "", " \t", "cup", "film"],
        label=["yes", "no", "no", "no", None, "no"],
    )
    examples = load_examples(POLITICS, source, "label")
    assert (examples.texts, examples.labels.tolist(), examples.seconds) == (["bank", "film"], [1, 0], None)
    reasons = {1: "text is null", 2: "text is empty", 3: "text is empty", 4: "label is null"}
    assert dict(examples.skipped) == reasons


def test_a_pair_with_one_text_is_that_text_alone(tmp_path: Path) -> None:
    source = write(
        tmp_path / "data.parquet",
        premise=["bank", "cup", None, " ", None],
        claim=["market", None, "film", "star", ""],
        label=["yes", "no", "no", "no", "no"],
    )
    examples = load_examples(PAIR, source, "label")
    assert examples.texts == ["bank", "cup", "film", "star"]
    assert examples.seconds == ["market", None, None, None]
    assert examples.skipped == [(4, "text is empty")]


def test_regression_takes_any_finite_number(tmp_path: Path) -> None:
    source = write(tmp_path / "data.parquet", headline=["a", "b", "c"], label=[2.5, float("nan"), -1.0])
    examples = load_examples(GRADE, source, "label")
    assert examples.labels.dtype == np.float32
    assert examples.labels.tolist() == [2.5, -1.0]
    assert examples.skipped == [(1, "label is null")]
    assert labels_of(tmp_path, GRADE, [1, 2]) == [1.0, 2.0]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1.0, 1e39], r"row 1: label 1e\+39 cannot be used; allowed: finite numbers, no larger than float32 has"),
        ([1_700_000_000, 1_700_000_050, 1_700_000_100], r"differ by less than float32, .* can tell apart"),
        ([1e-50, 2e-50], "differ by less than float32"),
    ],
)
def test_values_that_float32_cannot_hold_are_refused(tmp_path: Path, labels: list[Any], message: str) -> None:
    source = write(tmp_path / "data.parquet", headline=["bank"] * len(labels), label=labels)
    with pytest.raises(DataError, match=message):
        load_examples(GRADE, source, "label")


def test_gaps_that_made_floats_of_integers_do_no_harm(tmp_path: Path) -> None:
    write(tmp_path / "gaps.parquet", headline=["a", "b", "c"], label=[1.0, float("nan"), 0.0])
    write(tmp_path / "plain.parquet", headline=["d"], label=[1])
    examples = load_examples(POLITICS, str(tmp_path), "label")
    assert (examples.texts, examples.labels.tolist()) == (["a", "c", "d"], [1, 0, 1])


@pytest.mark.parametrize(
    ("task", "labels", "message"),
    [
        (POLITICS, ["yes", "maybe", "no"], r"data\.parquet, row 1: label 'maybe' cannot be used; allowed: 'no', 'yes'"),
        (POLITICS, ["Yes", "NO"], r"row 0: label 'Yes' \(and those of 1 more rows\) cannot be used"),
        (POLITICS, [0, 1, 2], r"row 2: label 2 cannot be used; allowed: 'no', 'yes', or their indices 0 to 1"),
        (POLITICS, [0, -1], "row 1: label -1 cannot be used"),
        (POLITICS, [0.0, 0.5], r"row 1: label 0\.5 cannot be used"),
        (POLITICS, [["yes"], ["no"]], "label column 'label' of .* has type list<.*>; allowed are strings, integers"),
        (POLITICS, ["yes", "yes"], "has no example of 'no', so the task cannot be learned"),
        (POLITICS, pa.array([None, None], pa.string()), "has no example: 2 times label is null"),
        (POLITICS, pa.array([], pa.string()), "has no example: there are no rows"),
        (GRADE, [1.0, float("inf")], "row 1: label inf cannot be used; allowed: finite numbers"),
        (GRADE, ["1.0"], "its labels have type string, and a regression needs numbers"),
    ],
)
def test_labels_outside_the_task_are_refused(tmp_path: Path, task: Task, labels: Any, message: str) -> None:
    source = write(tmp_path / "data.parquet", headline=["bank"] * len(labels), label=labels)
    with pytest.raises(DataError, match=message):
        load_examples(task, source, "label")


def test_a_label_of_another_file_is_named_by_its_own_row(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", headline=["x", "y"], label=["yes", "no"])
    write(tmp_path / "b.parquet", headline=["x", "y"], label=["yes", "perhaps"])
    with pytest.raises(DataError, match=r"b\.parquet, row 1: label 'perhaps'"):
        load_examples(POLITICS, str(tmp_path), "label")


def test_files_with_labels_of_different_types_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", headline=["x"], label=["yes"])
    write(tmp_path / "b.parquet", headline=["x"], label=[0])
    with pytest.raises(DataError, match=r"different types: string in .*a\.parquet; int64 in .*b\.parquet"):
        load_examples(POLITICS, str(tmp_path), "label")


def test_evaluation_only_warns_of_a_label_without_example(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write(tmp_path / "data.parquet", headline=["a"], label=["yes"])
    with caplog.at_level(logging.WARNING):
        assert len(load_examples(POLITICS, source, "label", training=False)) == 1
    assert "has no example of 'no'" in caplog.text


def test_the_log_of_many_tasks_has_few_warnings_of_a_kind(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write(tmp_path / "data.parquet", headline=["a", None], label=["yes", "no"])
    with caplog.at_level(logging.WARNING), few_warnings(most=3):
        for _ in range(10):
            load_examples(POLITICS, source, "label", training=False)
    assert [record.message for record in caplog.records].count(caplog.messages[0]) == 3
    assert caplog.text.count("has no example of 'no'") == 3
    assert caplog.text.count("and 7 more warnings like the last of these") == 2
    load_examples(POLITICS, source, "label", training=False)
    assert caplog.text.count("has no example of 'no'") == 4


def test_sources_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    source = write(tmp_path / "data.parquet", headline=["a"], label=["yes"], count=[1])
    wrong_column = Task("politics", text=("headlin",))
    with pytest.raises(DataError, match=r"no column 'headlin'; did you mean 'headline'\? columns: headline, label"):
        load_examples(wrong_column, source, "label")
    with pytest.raises(DataError, match=r"text column 'count' of .* has type int64, not string"):
        load_examples(Task("politics", text=("count",)), source, "label")
    with pytest.raises(DataError, match=r"there is no data at '.*missing': it does not exist"):
        load_examples(POLITICS, str(tmp_path / "missing"), "label")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no file below it ends in \.parquet"):
        load_examples(POLITICS, str(tmp_path / "empty"), "label")
    (tmp_path / "text.parquet").write_text("headline,label\n")
    with pytest.raises(DataError, match=r"text\.parquet cannot be read as Parquet"):
        load_examples(POLITICS, str(tmp_path / "text.parquet"), "label")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A data set in a local directory, which stands for one of the hub."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features(
        {"headline": datasets.Value("string"), "label": datasets.ClassLabel(names=["yes", "no"])}
    )
    for split, labels in {"train": [0, 1, 1], "validation": [1, -1]}.items():
        data = datasets.Dataset.from_dict({"headline": ["bank"] * len(labels), "label": labels}, features=features)
        path = tmp_path / f"news/data/{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        data.to_parquet(path)
    return f"hub:{tmp_path / 'news'}"


@pytest.mark.filterwarnings("ignore")
def test_a_hub_data_set_is_read_by_its_own_label_names(hub: str) -> None:
    assert load_examples(POLITICS, hub, "label").labels.tolist() == [1, 0, 0]
    evaluation = load_examples(POLITICS, hub, "label", training=False)
    assert (evaluation.labels.tolist(), evaluation.skipped) == ([0], [(1, "label is null")])
    renamed = Task("politics", labels=("politics", "rest"), text=("headline",))
    train = f"{hub}?config=default&split=train"
    with pytest.raises(DataError, match=r"the names 'yes', 'no' .* labels = \['politics', 'rest'\]"):
        load_examples(renamed, train, "label")
    assert load_examples(renamed, train, "label", label_by="index").labels.tolist() == [0, 1, 1]


@pytest.mark.filterwarnings("ignore")
def test_hub_data_sets_that_cannot_be_loaded_are_named(hub: str) -> None:
    with pytest.raises(DataError, match="the data set 'no-one/no-such-set' cannot be loaded"):
        load_examples(POLITICS, "hub:no-one/no-such-set", "label")
    with pytest.raises(DataError, match="news' cannot be loaded: Unknown split"):
        load_examples(POLITICS, f"{hub}?split=dev", "label")
    with pytest.raises(DataError, match="unknown option 'splt'; write hub:<data set>"):
        load_examples(POLITICS, f"{hub}?splt=train", "label")
    with pytest.raises(DataError, match="has no column 'labels'; did you mean 'label'"):
        load_examples(POLITICS, hub, "labels")


def test_examples_become_tokens_with_their_labels(tmp_path: Path, tokenizer: BertTokenizer) -> None:
    source = write(tmp_path / "d.parquet", premise=["bank", "cup"], claim=["law", None], label=["yes", "no"])
    examples = tokenise_examples(load_examples(PAIR, source, "label"), TextTokenizer(tokenizer, 8))
    assert (len(examples), examples.tokens.first_lengths.tolist()) == (2, [3, 3])
    assert examples.tokens.row(0).tolist() == tokenizer("bank", "law")["input_ids"]
    assert examples.labels.tolist() == [0, 1]


def test_examples_whose_texts_say_nothing_are_left_out(
    tmp_path: Path, tokenizer: BertTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    texts, labels = ["\u200b", "bank", "\x00", "cup"], ["yes", "yes", "no", "no"]
    source = write(tmp_path / "d.parquet", headline=texts, label=labels)
    with caplog.at_level(logging.WARNING):
        examples = tokenise_examples(load_examples(POLITICS, source, "label"), TextTokenizer(tokenizer, 8))
    assert (examples.tokens.lengths.tolist(), examples.labels.tolist()) == ([3, 3], [1, 0])
    assert "{'text has no visible character': 2}" in caplog.text
    for chosen, message in ((slice(0, 3), "has no example of 'no'"), (slice(0, 4, 2), "2 times text has no visible")):
        source = write(tmp_path / "d.parquet", headline=texts[chosen], label=labels[chosen])
        raw = load_examples(POLITICS, source, "label")
        with pytest.raises(DataError, match=message):
            tokenise_examples(raw, TextTokenizer(tokenizer, 8))


def test_token_counts_add_up() -> None:
    parts = [Tokens.from_rows([[1, 2], [2]]), Tokens.from_rows([]), Tokens.from_rows([[2]])]
    assert token_counts(parts, 4).tolist() == [0, 1, 3, 0]
