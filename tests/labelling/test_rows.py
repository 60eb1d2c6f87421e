"""Rows out = rows in, always: generated corpora through the plan and all three stages."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtop_batch import Task, read_labels
from mtop_batch.data.tokens import TextTokenizer
from mtop_batch.labelling.plan.planner import plan_labels
from mtop_batch.labelling.run.predictor import Predictor
from mtop_batch.labelling.run.stages import LabelJob, UnitResult, label, pieces_of_work, read_and_tokenise, write
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.table.definition import Definition
from mtop_batch.table.lease.lease import hold_lease
from mtop_batch.table.publisher import publish
from mtop_batch.table.runs import new_run_id, write_run
from tests.conftest import WORDS, make_backbone, make_tokenizer
from tests.labelling.support import small_slices

BOTH = ("title", "body")
TASKS = (Task("mood", labels=("bad", "neutral", "good"), text=BOTH), Task("length", "regression", (), BOTH))
WANTED = Definition("tiny", "models/tiny", TASKS, {"mood": "1", "length": "1"})

TextRows = list[tuple[int | None, str | None, str | None]]
texts = st.none() | st.sampled_from(["", " ", "\n", "\x00"]) | st.text(max_size=8) | st.sampled_from(WORDS)
rows = st.lists(st.tuples(st.none() | st.integers(0, 3), texts, texts), max_size=9)
paths = st.sampled_from(["a.parquet", "k=1/a.parquet", "k=2/b c.parquet", "x/y/z.pq"])
corpora = st.dictionaries(paths, st.tuples(rows, st.integers(1, 4), st.booleans()), min_size=1)


@cache
def predictor() -> Predictor:
    model = MTOPModel.from_backbone(make_backbone(), TASKS, prompt_attention="isolated", max_tokens=16)
    return Predictor(model, make_tokenizer())


def write_file(path: Path, content: TextRows, row_group_size: int, as_dictionary: bool) -> None:
    ids, titles, bodies = (list(column) for column in zip(*content, strict=True)) if content else ([], [], [])
    body = pa.array(bodies, pa.string())
    table = pa.table(
        {
            "id": pa.array(ids, pa.int16()),
            "title": pa.array(titles, pa.large_string()),
            "body": body.dictionary_encode() if as_dictionary else body,
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=row_group_size)


def run_stages(corpus: str, labels: str, piece_rows: int) -> list[UnitResult]:
    """What a run does, without Ray."""
    plan = plan_labels(corpus, labels, WANTED)
    run, tokenizer = new_run_id(), TextTokenizer(make_tokenizer(), 16)
    write_run(labels, run, WANTED, corpus)
    results: list[UnitResult] = []
    with hold_lease(labels, run) as lease:
        job = LabelJob(corpus, labels, run, WANTED, lease.token)
        for piece in pieces_of_work(plan.units, piece_rows):
            results += write(job, label(read_and_tokenise(job, piece, tokenizer), predictor()))
        publish(labels, WANTED.view, WANTED.kinds, plan.to_publish, run, check=lease.token.check)
    return results


@settings(max_examples=60)
@given(corpora, st.integers(1, 6), st.integers(1, 9))
def test_every_row_of_any_corpus_is_in_the_table_once_in_order_with_labels_or_a_reason(
    tmp_path_factory: pytest.TempPathFactory,
    files: dict[str, tuple[TextRows, int, bool]],
    slice_rows: int,
    piece_rows: int,
) -> None:
    root = tmp_path_factory.mktemp("rows")
    for name, (content, row_group_size, as_dictionary) in files.items():
        write_file(root / "corpus" / name, content, row_group_size, as_dictionary)
    with small_slices(slice_rows):
        results = run_stages(f"{root}/corpus", f"{root}/labels", piece_rows)
        assert run_stages(f"{root}/corpus", f"{root}/labels", piece_rows) == []
    source = [row for _, (content, _, _) in sorted(files.items()) for row in content]
    table = read_labels(f"{root}/labels")
    assert table["id"].to_pylist() == [row_id for row_id, _, _ in source]
    tokenizer = TextTokenizer(make_tokenizer(), 16)
    usable = [bool(tokenizer.encode(pair).lengths.any()) for _, *pair in source]
    assert table["error"].is_null().to_pylist() == usable
    for column in ("mood_label", "mood_score", "length_score"):
        assert table[column].is_valid().to_pylist() == usable
    assert sum(result.rows for result in results) == len(source)
    assert sum(result.labelled for result in results) == sum(usable)
    assert sum(result.errors for result in results) == len(source) - sum(usable)
