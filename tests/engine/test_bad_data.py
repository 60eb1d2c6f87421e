"""One run over a corpus of everything that goes wrong: the good is labelled, the bad is listed, nothing is lost."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtop_batch import Task, read_labels
from mtop_batch.cli.commands import main
from mtop_batch.model.bundle.bundle import save_bundle
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.table.footer import FOOTER_KEY, LabelFooter
from tests.conftest import make_backbone, make_tokenizer
from tests.engine.bad_corpus import NULL, readable_files, unreadable_files, write_all

pytestmark = pytest.mark.usefixtures("ray_local")


@dataclass
class Run:
    """A labelled corpus: its root directory, the command's exit code, and the report."""

    root: Path
    exit_code: int
    report: dict[str, Any]

    def label_files(self) -> dict[str, list[pq.ParquetFile]]:
        """Source path -> its label files, by first row."""
        found: dict[str, list[tuple[int, pq.ParquetFile]]] = defaultdict(list)
        for path in filter(Path.is_file, self.root.glob("labels/_store/**/*")):
            file = pq.ParquetFile(path)
            footer = LabelFooter.decode(file.metadata.metadata[FOOTER_KEY.encode()], file.metadata.num_rows)
            found[footer.source.path].append((footer.rows[0], file))
        return {source: [file for _, file in sorted(files, key=lambda f: f[0])] for source, files in found.items()}


def label(root: Path, *options: str) -> Run:
    places = ("--model", f"{root}/model", "--corpus", f"{root}/corpus", "--labels", f"{root}/labels")
    with pytest.raises(SystemExit) as end:
        main(["label", *places, *options])
    newest = max((root / "labels" / "_runs").glob("*/report.json"), key=lambda path: path.stat().st_mtime_ns)
    return Run(root, int(end.value.code or 0), json.loads(newest.read_text()))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("bad")
    model = MTOPModel.from_backbone(make_backbone(), [Task("mood", text=("body",))], max_tokens=32)
    save_bundle(f"{root}/model", model, make_tokenizer(), metrics={}, training_config={}, backbone_name="tiny")
    for _ in write_all(root / "corpus"):
        pass
    return label(root)


def test_bad_files_are_listed_with_their_reason_and_exit_code_3(run: Run) -> None:
    reasons = {entry["path"]: entry["reason"] for entry in run.report["unreadable_files"]}
    expected = unreadable_files()
    assert run.exit_code == 3
    assert reasons.keys() == expected.keys()
    unexplained = {path: reason for path, reason in reasons.items() if not re.search(expected[path].reason, reason)}
    assert unexplained == {}


def test_every_row_of_every_readable_file_is_in_the_table_once_in_order(run: Run) -> None:
    files, expected = run.label_files(), readable_files()
    assert files.keys() == expected.keys()
    for path, source in expected.items():
        table = pa.concat_tables(file.read() for file in files[path])
        ids = source.table["id"].to_pylist() if source.ids is None else list(source.ids)
        assert repr(table["id"].to_pylist()) == repr(ids), path  # NaN is not equal to itself
        assert table["mood_label"].is_null().to_pylist() == [error is not None for error in source.expected_errors]


def test_every_bad_row_says_why(run: Run) -> None:
    files = run.label_files()
    for path, source in readable_files().items():
        errors = pa.concat_tables(file.read() for file in files[path])["error"].to_pylist()
        for error, expected in zip(errors, source.expected_errors, strict=True):
            assert (error is None) == (expected is None), (path, error)
            assert expected is None or error.startswith(expected), (path, error)


def test_the_report_accounts_for_every_row_and_file(run: Run) -> None:
    sources = readable_files().values()
    errors = [error for source in sources for error in source.expected_errors if error is not None]
    report = run.report
    assert report["rows"] == sum(source.table.num_rows for source in sources)
    assert report["errors"] == len(errors) == sum(report["error_reasons"].values())
    assert report["rows"] == report["labelled"] + report["errors"]
    assert report["error_reasons"][NULL] == errors.count(NULL)
    assert report["units_done"] == len(sources)
    assert report["units_planned"] <= len(sources) + len(unreadable_files())


def test_nothing_is_written_outside_the_label_table(run: Run) -> None:
    assert sorted(path.name for path in run.root.iterdir()) == ["corpus", "labels", "model"]
    written = {path.relative_to(run.root / "corpus").as_posix() for path in run.root.glob("corpus/**/*.parquet")}
    assert written >= readable_files().keys() - {"names/short.pq", "names/UPPER.PARQUET"}


def test_the_next_run_labels_nothing_and_names_the_bad_files_again(run: Run) -> None:
    again = label(run.root)
    assert again.exit_code == 3
    assert (again.report["cells_done"], again.report["rows"]) == (0, 0)
    assert again.report["cells_already_current"] == run.report["rows"]
    assert again.report["unreadable_files"] == run.report["unreadable_files"]


def test_read_labels_reads_ids_of_one_type_back(run: Run) -> None:
    labels = read_labels(f"{run.root}/labels", partition={"case": "id-string"})
    assert labels["id"].to_pylist() == ["a", None, "a"]
