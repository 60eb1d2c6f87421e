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
from mtop_batch.data.sets.nhc import TOPICS, build_nhc
from mtop_batch.data.sets.parts import PARTS, Shares, words
from mtop_batch.errors import DataError, TaskError

OTHERS = ("SPORTS", "CRIME")


def news(per_category: int = 30) -> list[dict[str, Any]]:
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


def read(output: Path, task: str) -> dict[str, list[dict[str, str]]]:
    """The rows of each part of a task."""
    return {part: pq.read_table(output / task / f"{part}.parquet").to_pylist() for part in PARTS}


def read_all(output: Path, task: str) -> list[dict[str, str]]:
    """The rows of all parts of a task."""
    return [row for rows in read(output, task).values() for row in rows]


def test_topics_have_as_many_negatives_as_positives_in_every_part(tmp_path: Path) -> None:
    output = tmp_path / "nhc"
    counts = build_nhc(write_json(tmp_path / "news.json", news(60)), str(output), positives=20)
    assert list(counts) == list(TOPICS)
    for task, category in TOPICS.items():
        parts = read(output, task)
        assert counts[task] == {part: len(rows) for part, rows in parts.items()} == {"train": 30, "eval": 4, "test": 6}
        for rows in parts.values():
            assert sum(row["label"] == "yes" for row in rows) == len(rows) / 2
            assert all((row["label"] == "yes") == row["headline"].startswith(f"{category} ") for row in rows)
        assert len({row["headline"] for row in read_all(output, task)}) == 40


def test_no_headline_is_in_different_parts_of_any_two_tasks(tmp_path: Path) -> None:
    """Also where it is written otherwise, and where another source has it too."""
    source = write_json(tmp_path / "news.json", news())
    again = [{"text": f"  {row['headline'].lower()}!", "label": number % 2} for number, row in enumerate(news()[::3])]
    extra = {name: write_parquet(tmp_path / f"{name}.parquet", again) for name in ("style", "tone")}
    build_nhc(source, str(tmp_path / "nhc"), extra, unlabelled=True)
    parts_of: dict[str, set[str]] = {}
    for task in (*TOPICS, *extra):
        for part, rows in read(tmp_path / "nhc", task).items():
            for row in rows:
                parts_of.setdefault(words(row["headline"]), set()).add(part)
    assert {len(parts) for parts in parts_of.values()} == {1}
    corpus = pq.read_table(tmp_path / "nhc/unlabelled/headlines.parquet").to_pylist()
    assert {part for row in corpus for part in parts_of.get(words(row["headline"]), set())} == {"train"}
    assert len({row["id"] for row in corpus}) == len(corpus)
    held_out = {headline for headline, parts in parts_of.items() if parts != {"train"}}
    assert {words(row["headline"]) for row in news()} - {words(row["headline"]) for row in corpus} >= held_out


def test_the_unlabelled_corpus_has_headlines_of_any_category_and_of_several(tmp_path: Path) -> None:
    rows = [*news(), {"category": "POLITICS", "headline": "in two"}, {"category": "CRIME", "headline": "in two"}]
    build_nhc(write_json(tmp_path / "news.json", rows), str(tmp_path / "nhc"), unlabelled=True)
    headlines = pq.read_table(tmp_path / "nhc/unlabelled/headlines.parquet")["headline"].to_pylist()
    assert {headline.split()[0] for headline in headlines} > {"SPORTS", "CRIME", "POLITICS"}
    assert ("in two" in headlines) == (Shares(0.1, 0.15).parts(["in two"]).tolist() == ["train"])


def test_other_categories_make_other_tasks(tmp_path: Path) -> None:
    source = write_json(tmp_path / "news.json", news())
    counts = build_nhc(source, str(tmp_path / "topics"), topics={"sport": "SPORTS"}, eval_fraction=0.5)
    assert list(counts) == ["sport"]
    rows = read_all(tmp_path / "topics", "sport")
    assert all((row["label"] == "yes") == row["headline"].startswith("SPORTS ") for row in rows)


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
    rows = [{"ambiguous": None, **row} for row in news() + doubtful]
    build_nhc(write_parquet(tmp_path / "news.parquet", rows), str(tmp_path / "nhc"))
    positives = [row["headline"] for row in read_all(tmp_path / "nhc", "politics") if row["label"] == "yes"]
    assert sorted(positives) == sorted([*(f"POLITICS headline {number}" for number in range(30)), "repeated"])


def test_the_normalised_headline_is_preferred(tmp_path: Path) -> None:
    rows = [{**row, "headline_norm": row["headline"].lower()} for row in news()]
    build_nhc(write_parquet(tmp_path / "news.parquet", rows), str(tmp_path / "nhc"))
    assert all(row["headline"].islower() for row in read_all(tmp_path / "nhc", "travel"))


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
        assert item.test == f"data/nhc/{item.name}/test.parquet"
        assert len(load_examples(item.definition(), item.train, item.label)) == counts[item.name]["train"]


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
    text, label = columns
    texts = [f"{letter} {number}" for number in range(20) for letter in columns[text]]
    pq.write_table(pa.table({text: texts, label: columns[label] * 20}), path)
    source = write_json(tmp_path / "news.json", news())
    counts = build_nhc(source, str(tmp_path / "nhc"), {"opinion": f"{path}{spec}"}, eval_fraction=0.2)
    assert sum(counts["opinion"].values()) == 60
    by_text = {(row["headline"][0], row["label"]) for row in read_all(tmp_path / "nhc", "opinion")}
    assert by_text == set(zip("abc", labels if len(labels) == 3 else ("no", "yes", "yes"), strict=True))
    (tmp_path / "c.toml").write_text(f'output = "m"\ntasks = "{tmp_path}/nhc/tasks.toml"\n[backbone]\nname = "b"\n')
    assert load_config(tmp_path / "c.toml").task[-1].labels == labels


def test_a_further_task_has_the_label_names_that_come_with_its_file(tmp_path: Path) -> None:
    features = {"label": {"names": ["opinion", "fact"], "_type": "ClassLabel"}}
    note = {"huggingface": json.dumps({"info": {"features": features}})}
    texts = [f"text {number}" for number in range(60)]
    labels = [-1 if number == 7 else number % 2 for number in range(60)]
    table = pa.table({"text": texts, "label": labels}).replace_schema_metadata(note)
    pq.write_table(table, tmp_path / "extra.parquet")
    source = write_json(tmp_path / "news.json", news())
    build_nhc(source, str(tmp_path / "nhc"), {"opinion": f"{tmp_path}/extra.parquet"}, eval_fraction=0.3)
    rows = read_all(tmp_path / "nhc", "opinion")
    for row in rows:
        assert row["label"] == ("opinion", "fact")[int(row["headline"].split()[1]) % 2]
    assert "text 7" not in {row["headline"] for row in rows}


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
    with pytest.raises(DataError, match=r"task 'opinion' has no example in its .* part; give more data"):
        build("opinion", text=["a", "b"], label=["x", "y"])
    assert not (tmp_path / "nhc").exists()
