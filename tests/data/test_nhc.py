"""The builder of the paper's news set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtop_batch.config.load import load_config
from mtop_batch.data.examples import load_examples
from mtop_batch.data.nhc import TOPICS, build_nhc
from mtop_batch.errors import DataError, TaskError

OTHERS = ("SPORTS", "CRIME")


def news(per_category: int = 10) -> list[dict[str, Any]]:
    return [
        {"category": category, "headline": f"{category} headline {number}", "date": "2018-05-26", "authors": ""}
        for category in [*TOPICS.values(), *OTHERS]
        for number in range(per_category)
    ]


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def write_json(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(output: Path, task: str) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The training and the evaluation rows of a task."""
    train, evaluation = (pq.read_table(output / task / f"{split}.parquet").to_pylist() for split in ("train", "eval"))
    return train, evaluation


def test_topics_have_as_many_negatives_as_positives_and_a_fifth_for_evaluation(tmp_path: Path) -> None:
    output = tmp_path / "nhc"
    counts = build_nhc(write_json(tmp_path / "news.json", news()), str(output), positives=5)
    assert list(counts) == list(TOPICS)
    for task, category in TOPICS.items():
        train, evaluation = read(output, task)
        assert (len(train), len(evaluation)) == (counts[task].train, counts[task].eval) == (8, 2)
        rows = train + evaluation
        assert sum(row["label"] == "yes" for row in rows) == 5
        assert all((row["label"] == "yes") == row["headline"].startswith(f"{category} ") for row in rows)
        assert len({row["headline"] for row in rows}) == 10


def test_other_categories_make_other_tasks(tmp_path: Path) -> None:
    source = write_json(tmp_path / "news.json", news())
    counts = build_nhc(source, str(tmp_path / "topics"), topics={"sport": "SPORTS"}, eval_fraction=0.5)
    assert list(counts) == ["sport"]
    train, evaluation = read(tmp_path / "topics", "sport")
    assert all((row["label"] == "yes") == row["headline"].startswith("SPORTS ") for row in train + evaluation)


def test_json_and_parquet_in_any_order_make_the_same_files(tmp_path: Path) -> None:
    rows = news()
    sources = [
        write_json(tmp_path / "news.jsonl", rows),
        str(Path(write_parquet(tmp_path / "parts/a.parquet", rows[40:])).parent),
        write_parquet(tmp_path / "parts/b.parquet", rows[39::-1]),
    ]
    for index in (0, 1):
        build_nhc(sources[index], str(tmp_path / f"out-{index}"), seed=3)
    build_nhc(sources[0], str(tmp_path / "out-2"), seed=4)
    for task in TOPICS:
        assert read(tmp_path / "out-0", task) == read(tmp_path / "out-1", task) != read(tmp_path / "out-2", task)


def test_doubtful_headlines_are_left_out_and_repeated_ones_kept_once(tmp_path: Path) -> None:
    doubtful: list[dict[str, Any]] = [
        {"category": "POLITICS", "headline": None},
        {"category": None, "headline": "no category"},
        {"category": "POLITICS", "headline": " "},
        {"category": "POLITICS", "headline": "marked", "ambiguous": True},
        {"category": "POLITICS", "headline": "in two"},
        {"category": "CRIME", "headline": "in two"},
        {"category": "politics ", "headline": "repeated"},
        {"category": "POLITICS", "headline": "repeated"},
    ]
    rows = [{"ambiguous": None, **row} for row in news(3) + doubtful]
    build_nhc(write_parquet(tmp_path / "news.parquet", rows), str(tmp_path / "nhc"))
    train, evaluation = read(tmp_path / "nhc", "politics")
    positives = sorted(row["headline"] for row in train + evaluation if row["label"] == "yes")
    assert positives == ["POLITICS headline 0", "POLITICS headline 1", "POLITICS headline 2", "repeated"]


def test_the_normalised_headline_is_preferred(tmp_path: Path) -> None:
    rows = [{**row, "headline_norm": row["headline"].lower()} for row in news()]
    build_nhc(write_parquet(tmp_path / "news.parquet", rows), str(tmp_path / "nhc"))
    assert all(row["headline"].islower() for row in read(tmp_path / "nhc", "travel")[0])


def test_the_tasks_file_is_a_configuration_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    counts = build_nhc(write_json(tmp_path / "news.json", news()), "data/nhc")
    (tmp_path / "c.toml").write_text('output = "m"\ntasks = "data/nhc/tasks.toml"\n[backbone]\nname = "b"\n')
    config = load_config("c.toml")
    assert [task.name for task in config.task] == list(TOPICS)
    for item in config.task:
        assert item.train == f"data/nhc/{item.name}/train.parquet"
        assert len(load_examples(item.definition(), item.train, item.label)) == counts[item.name].train


@pytest.mark.parametrize(
    ("columns", "spec", "labels"),
    [
        ({"text": list("abcd"), "opinion": ["fact", "mixed", "view", None]}, "", ("fact", "mixed", "view")),
        ({"text": list("abcd"), "opinion": ["fact", "mixed", "view", None]}, "?positive=mixed,view", ("no", "yes")),
        ({"sentence": list("abc"), "label": ["no", "yes", "yes"]}, "", ("no", "yes")),
        ({"headline": list("abc"), "label": [0, 1, 1]}, "", ("no", "yes")),
        ({"headline": list("abc"), "label": [False, True, True]}, "", ("no", "yes")),
        ({"headline": list("abc"), "label": [1, 2, 3]}, "", ("1", "2", "3")),
    ],
)
def test_a_further_task_comes_from_any_labelled_parquet(
    tmp_path: Path, columns: dict[str, Any], spec: str, labels: tuple[str, ...]
) -> None:
    path = tmp_path / "extra.parquet"
    pq.write_table(pa.table(columns), path)
    source = write_json(tmp_path / "news.json", news())
    counts = build_nhc(source, str(tmp_path / "nhc"), {"opinion": f"{path}{spec}"}, eval_fraction=0.3)
    assert (counts["opinion"].train, counts["opinion"].eval) == (2, 1)
    train, evaluation = read(tmp_path / "nhc", "opinion")
    by_text = {row["headline"]: row["label"] for row in train + evaluation}
    assert by_text == dict(zip("abc", labels if len(labels) == 3 else ("no", "yes", "yes"), strict=True))
    (tmp_path / "c.toml").write_text(f'output = "m"\ntasks = "{tmp_path}/nhc/tasks.toml"\n[backbone]\nname = "b"\n')
    assert load_config(tmp_path / "c.toml").task[-1].labels == labels


def test_wrong_sources_say_what_is_missing_and_leave_nothing_behind(tmp_path: Path) -> None:
    output = tmp_path / "nhc"
    no_category = write_parquet(tmp_path / "a.parquet", [{"headline": "x", "kind": "y"}])
    with pytest.raises(DataError, match=r"a\.parquet has no column 'category'; columns: headline, kind"):
        build_nhc(no_category, str(output))
    with pytest.raises(DataError, match=r"b\.json has no column 'headline'; columns: category"):
        build_nhc(write_json(tmp_path / "b.json", [{"category": "x"}]), str(output))
    some = [row for row in news() if row["category"] != "TRAVEL"]
    with pytest.raises(DataError, match="no headline of category 'TRAVEL'; categories: CRIME, ENTERTAINMENT"):
        build_nhc(write_json(tmp_path / "c.json", some), str(output))
    (tmp_path / "d.json").write_text("[1, 2")
    with pytest.raises(DataError, match=r"d\.json cannot be read as JSON lines, one object per line"):
        build_nhc(str(tmp_path / "d.json"), str(output))
    for missing in ("missing.json", "missing.parquet"):
        with pytest.raises(DataError, match=f"there is no .*{missing}'"):
            build_nhc(str(tmp_path / missing), str(output))
    assert not output.exists()


def test_wrong_further_tasks_say_what_is_missing(tmp_path: Path) -> None:
    source = write_json(tmp_path / "news.json", news())

    def build(name: str, spec: str = "", **columns: Any) -> None:
        pq.write_table(pa.table(columns), tmp_path / "extra.parquet")
        build_nhc(source, str(tmp_path / "nhc"), {name: f"{tmp_path}/extra.parquet{spec}"})

    with pytest.raises(DataError, match=r"has no label column \(label, opinion\) for task 'opinion'; columns: text"):
        build("opinion", text=["a"], tone=["x"])
    with pytest.raises(DataError, match=r"has no text column \(headline_norm, headline, text, sentence\)"):
        build("opinion", body=["a"], label=["x"])
    with pytest.raises(DataError, match=r"has no label 'c', which is to be a positive .*; labels: x, y"):
        build("opinion", "?positive=x,c", text=["a", "b"], label=["x", "y"])
    with pytest.raises(DataError, match="has not two labels for task 'opinion'; labels: x"):
        build("opinion", text=["a", "b"], label=["x", "x"])
    with pytest.raises(DataError, match="have type double; allowed are strings, integers and booleans"):
        build("opinion", text=["a", "b"], label=[0.5, 1.0])
    with pytest.raises(TaskError, match="names must differ"):
        build("Politics", text=["a", "b"], label=["x", "y"])
