"""The stages' retries while storage does not answer."""

from __future__ import annotations

import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtop_batch.corpus.files import SourceFile
from mtop_batch.corpus.listing import list_corpus
from mtop_batch.data.tokens import TextTokenizer
from mtop_batch.errors import StorageError
from mtop_batch.labelling.plan.work import Target, Unit
from mtop_batch.labelling.run.predictor import Predictor
from mtop_batch.labelling.run.stages import LabelJob, killed_units, label, read_and_tokenise, write
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.storage import clients
from mtop_batch.table.lease.lease import LeaseToken
from mtop_batch.table.names import label_path
from mtop_batch.table.store import LabelFile
from mtop_batch.tasks import Task, VectorInput
from tests.conftest import make_tokenizer
from tests.labelling.support import definition
from tests.training.toy import make_encoder

X = SourceFile("x.parquet", 9, "1")
TARGET = Target(LabelFile("set", label_path(X, (0, 1))), ("a",))
UNIT = Unit(X, 1, 1, (0, 1), (0, 1), ("body",), ("a",), (TARGET,))


@pytest.mark.parametrize(("retry_timeout_s", "num_pauses"), [(0, 0), (0.5, 1)])
def test_storage_is_asked_again_until_the_retry_timeout_ends(
    monkeypatch: pytest.MonkeyPatch, retry_timeout_s: float, num_pauses: int
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(clients, "_S3_ATTEMPTS", 1)
    wanted = definition({"a": "1"})
    job = LabelJob("s3://test/corpus", "s3://test/labels", "run", wanted, LeaseToken("", "run", 1, 60), retry_timeout_s)
    started = time.monotonic()
    with pytest.raises(StorageError, match="cannot be reached"):
        read_and_tokenise(job, [UNIT], TextTokenizer(make_tokenizer(), 32))
    assert num_pauses <= time.monotonic() - started < num_pauses + 1


def test_whatever_is_odd_about_a_file_makes_it_unreadable_and_no_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("no such case was thought of")

    monkeypatch.setattr("mtop_batch.labelling.run.stages.read_unit", fail)
    job = LabelJob(str(tmp_path), str(tmp_path), "run", definition({"a": "1"}), LeaseToken("", "run", 1, 60))
    (result,) = write(job, read_and_tokenise(job, [UNIT], TextTokenizer(make_tokenizer(), 32)))
    assert result.unreadable == "reading it failed unexpectedly: ValueError: no such case was thought of"


def test_what_stands_beside_texts_travels_from_the_corpus_to_the_model(tmp_path: Path) -> None:
    inputs = [{"column": "image", "size": 3, "tokens": 2}]
    model = MTOPModel.from_backbone(make_encoder(), [Task("a")], inputs=inputs, max_tokens=16)
    images = [[1.0, 2.0, 3.0], None, [1.0], [3.0, 2.0, 1.0]]
    texts = ["bank market", "goal team", "film star", None]
    table = {"id": range(4), "body": texts, "image": pa.array(images, pa.list_(pa.float32()))}
    (tmp_path / "corpus").mkdir()
    pq.write_table(pa.table(table), tmp_path / "corpus" / "x.parquet")
    (source,) = list_corpus(f"{tmp_path}/corpus").sources
    target = Target(LabelFile("set", label_path(source, (0, 4))), ("a",))
    unit = Unit(source, 4, 1, (0, 1), (0, 4), ("body",), ("a",), (target,))
    wanted = definition({"a": "1"}, text_columns=("body",), vector_inputs=(VectorInput("image", 3, 2),))
    job = LabelJob(f"{tmp_path}/corpus", f"{tmp_path}/labels", "run", wanted, LeaseToken("", "run", 1, 60))
    predictor = Predictor(model, make_tokenizer(), precision="fp32")
    streams = read_and_tokenise(job, [unit], TextTokenizer(make_tokenizer(), 16))
    found = pa.ipc.open_stream(label([*streams, *killed_units([unit])], predictor)[0]).read_all()
    expected = predictor.predict(texts, inputs={"image": images})
    assert found["a_score"].to_pylist() == pytest.approx(expected["a_score"].to_pylist(), abs=1e-6, nan_ok=True)
    assert found["error"].to_pylist() == [
        None,
        None,
        "input column 'image' has a vector of 1 floats, not 3",
        "text is null",
    ]
