"""`mtop label` and `mtop publish` with a Delta and an Iceberg table behind the gate, by the commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from pyiceberg.catalog import load_catalog

from mtop_batch import read_labels
from mtop_batch.cli.commands import main
from mtop_batch.engine.labelling import label as label_module
from mtop_batch.engine.labelling.label import label_corpus
from mtop_batch.errors import LabelTableError
from tests.engine.test_label import options, save_model, write_articles

pytestmark = pytest.mark.usefixtures("ray_local")

TEXTS = ["bank profit", "team wins cup", "film star", "new bank"]


def mtop(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([*map(str, arguments)])
    return int(end.value.code or 0)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four articles, labelled and published by `old`; the labels of `new` wait in the store."""
    root = tmp_path_factory.mktemp("lake")
    write_articles(f"{root}/corpus/d=1/a.parquet", TEXTS[:2])
    write_articles(f"{root}/corpus/d=2/b.parquet", TEXTS[2:], first_id=2)
    label_corpus(options(save_model(f"{root}/old"), str(root)))
    label_corpus(options(save_model(f"{root}/new", seed=1), str(root), publish=False))
    return root


@pytest.fixture
def root(labelled: Path, tmp_path: Path) -> Path:
    """A copy, with the files' times: nothing of it is stale."""
    return Path(shutil.copytree(labelled, tmp_path / "copy"))


def lake_options(root: Path, table_format: str) -> list[object]:
    if table_format == "delta":
        return ["--format", "delta"]
    return ["--format", "iceberg", "--catalog", f"sqlite:///{root}/catalog.db", "--table", "news.labels"]


def lake_rows(root: Path, table_format: str) -> pa.Table:
    if table_format == "delta":
        return DeltaTable(f"{root}/labels/delta").to_pyarrow_table()
    return load_catalog("default", uri=f"sqlite:///{root}/catalog.db").load_table("news.labels").scan().to_arrow()


def by_id(table: pa.Table) -> list[dict[str, Any]]:
    rows = [{name: row[name] for name in sorted(row)} for row in table.to_pylist()]
    return sorted(rows, key=lambda row: row["id"])


def check(root: Path, table_format: str) -> None:
    """The lake table has the rows of the published table."""
    found = lake_rows(root, table_format).drop_columns(["source_file", "labels_version"])
    assert by_id(found) == by_id(read_labels(f"{root}/labels"))


@pytest.mark.parametrize("table_format", ["delta", "iceberg"])
def test_a_run_a_closed_gate_and_a_rollback(
    root: Path, tmp_path: Path, table_format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lake, out = lake_options(root, table_format), tmp_path / "report.json"
    places = ["--corpus", f"{root}/corpus", "--labels", f"{root}/labels"]

    def report(*command: object, code: int = 0) -> dict[str, Any]:
        assert mtop(*command, *lake, "--json", out) == code
        found: dict[str, Any] = json.loads(out.read_text())
        return found

    publish = ["publish", "--labels", f"{root}/labels", "--model"]
    # Nothing is left to label: the run before it did not know of the table.
    first = report("label", "--model", f"{root}/old", *places)["lake"]
    assert (first["committed"], first["files"], first["rows"]) == (True, 2, 4)
    assert first["summary"] in " ".join(capsys.readouterr().out.split("\n"))
    check(root, table_format)
    again = report("label", "--model", f"{root}/old", *places)["lake"]
    assert (again["committed"], again["snapshot"]) == (False, first["snapshot"])

    closed = report(*publish, f"{root}/new", "--min-articles", "1000", code=4)
    assert closed["lake"] is None
    assert report("label", "--model", f"{root}/old", *places)["lake"]["snapshot"] == first["snapshot"]

    forced = report(*publish, f"{root}/new", "--force")
    assert (forced["lake"]["rows"], forced["lake"]["removed_rows"]) == (4, 4)
    page = (root / "labels" / "_runs" / forced["run"] / "report.html").read_text()
    assert f"{'version' if table_format == 'delta' else 'snapshot'} {forced['lake']['snapshot']}: 4 rows" in page
    check(root, table_format)
    back = report(*publish, f"{root}/old")["lake"]
    assert (back["rows"], back["removed_rows"]) == (4, 4)
    assert back["summary"] in capsys.readouterr().out
    check(root, table_format)


@pytest.mark.parametrize("command", ["label", "publish"])
def test_a_lake_table_that_cannot_be_used_ends_the_command_before_work_starts(
    root: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_work(*_: Any, **__: Any) -> None:
        raise AssertionError("work has started")

    monkeypatch.setattr(label_module, "plan_labels", no_work)
    (root / "notes").mkdir(exist_ok=True)
    (root / "notes" / "mine.txt").write_text("mine")
    places: list[object] = ["--labels", f"{root}/labels", "--model", f"{root}/old"]
    places += ["--corpus", f"{root}/corpus"] if command == "label" else []
    runs = len(list((root / "labels" / "_runs").iterdir()))
    for lake in (
        ["--format", "delta", "--lake", f"{root}/notes"],
        ["--format", "iceberg", "--catalog", "nowhere", "--table", "a.b"],
        ["--catalog", "nowhere"],
    ):
        assert mtop(command, *places, *lake) == 2
        assert capsys.readouterr().err.startswith(f"error: {'--catalog' if '--catalog' in lake else '--lake'} ")
    assert len(list((root / "labels" / "_runs").iterdir())) == runs


def test_a_lake_that_fails_in_the_end_is_told_and_the_same_command_does_the_rest(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mtop_batch.table.lake import sync

    def broken(*_: Any) -> None:
        raise LabelTableError("the Delta table cannot be used: the disk is gone")

    write_articles(f"{root}/corpus/d=3/c.parquet", ["bank"], first_id=9)
    command = ["label", "--model", f"{root}/old", "--corpus", f"{root}/corpus", "--labels", f"{root}/labels"]
    command += ["--format", "delta"]
    with monkeypatch.context() as patch:
        patch.setattr(sync, "_change", broken)
        assert mtop(*command) == 1
    assert "the disk is gone" in capsys.readouterr().err
    assert 9 in read_labels(f"{root}/labels")["id"].to_pylist()  # published all the same
    assert mtop(*command) == 0
    check(root, "delta")
