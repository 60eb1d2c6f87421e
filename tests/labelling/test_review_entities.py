"""Articles to review for their entities, and what people fill in read back."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtop_batch import review
from mtop_batch.data.examples import load_examples
from mtop_batch.errors import ConfigError
from mtop_batch.labelling.review_choice import FILLED_IN
from mtop_batch.table.columns import ENTITIES_TYPE
from mtop_batch.table.read import read_labels
from mtop_batch.tasks import Task
from tests.labelling.support import articles, definition, label_corpus, small_slices, write_corpus

NAMES = Task("names", "token", ("PER", "LOC"), ("title", "body"))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus that two bundles have labelled."""
    root = tmp_path_factory.mktemp("review")
    write_corpus(root / "corpus", {"x.parquet": articles(30)}, row_group_size=7)
    with small_slices(10):
        for fingerprint in ("0", "1"):
            label_corpus(root / "corpus", root / "labels", definition({"names": fingerprint}, tasks=[NAMES]))
    return root


@pytest.mark.parametrize("strategy", ["uncertain", "disagree", "random"])
def test_articles_come_with_their_entities_and_a_column_to_fill_in(table: Path, tmp_path: Path, strategy: str) -> None:
    review(f"{table}/labels", "names", str(tmp_path / "next.parquet"), strategy=strategy, num_articles=6)
    found = pq.read_table(tmp_path / "next.parquet")
    assert found.column_names == ["id", "title", "body", "names_label", "names_score", "label"]
    assert found.schema.field("names_label").type == ENTITIES_TYPE
    assert found.schema.field("label").type == FILLED_IN
    published = {row["id"]: row["names_label"] for row in read_labels(f"{table}/labels").to_pylist()}
    rows = found.to_pylist()
    assert len(rows) == 6
    assert all(row["names_label"] == published[row["id"]] and row["label"] is None for row in rows)


def test_what_is_filled_in_is_learned_from(table: Path, tmp_path: Path) -> None:
    review(f"{table}/labels", "names", str(tmp_path / "next.parquet"), num_articles=5)
    rows = pq.read_table(tmp_path / "next.parquet")
    given = [[{"column": "body", "start": 0, "end": 4, "label": "LOC"}], [], None, None, []]
    given[1] = [{"column": None, "start": 2, "end": 5, "label": "PER"}]
    filled = rows.set_column(5, "label", pa.array(given, FILLED_IN))
    pq.write_table(filled, tmp_path / "filled.parquet")
    raw = load_examples(NAMES, str(tmp_path / "filled.parquet"), "label", training=True)
    assert raw.entities is not None
    assert [raw.entities.row(row) for row in range(len(raw))] == [[(1, 0, 4, 1)], [(0, 2, 5, 0)], []]


def test_lists_of_entities_do_not_fit_into_csv(table: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has lists of entities, which a CSV file cannot hold"):
        review(f"{table}/labels", "names", str(tmp_path / "next.csv"))
