"""A kind of model that is only known to the tests labels a corpus on Ray."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from mtop_batch import Predictor, read_labels
from mtop_batch.engine.label import LabelOptions, label_corpus
from mtop_batch.model.bundle.bundle import save_bundle
from mtop_batch.model.kinds.by_name import KINDS
from mtop_batch.tasks import Task
from tests.conftest import make_backbone, make_tokenizer
from tests.model.kinds.shared_pooler import SharedPooler

TASKS = [Task("sport", reads="pooled", text=("title",)), Task("length", "regression", (), ("title",), reads="pooled")]
TITLES = ["bank market profit", "match goal", None, "the law wins a vote"]


def make_known() -> None:
    """What every Ray worker does first."""
    KINDS["shared-pooler"] = SharedPooler


@pytest.fixture
def ray_that_knows_it(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(KINDS, "shared-pooler", SharedPooler)
    hook = {"worker_process_setup_hook": make_known}
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, runtime_env=hook)
    yield
    ray.shutdown()


@pytest.mark.slow  # every Ray worker imports torch first
@pytest.mark.usefixtures("ray_that_knows_it")
def test_a_second_kind_of_model_labels_a_corpus(tmp_path: Path) -> None:
    model = SharedPooler.from_backbone(make_backbone(), TASKS, max_tokens=16)
    bundle = f"{tmp_path}/pooled"
    save_bundle(bundle, model, make_tokenizer(), metrics={}, training_config={}, backbone_name="tiny")
    (tmp_path / "corpus").mkdir()
    pq.write_table(pa.table({"id": ["a", "b", "c", "d"], "title": TITLES}), tmp_path / "corpus" / "a.parquet")
    options = LabelOptions(bundle, f"{tmp_path}/corpus", f"{tmp_path}/labels", precision="fp32")
    label_corpus(options)
    expected = Predictor.load(bundle, device="cpu", precision="fp32").predict(TITLES)
    found = read_labels(f"{tmp_path}/labels").select(expected.column_names)
    assert found["sport_label"].to_pylist() == expected["sport_label"].to_pylist()
    assert found["length_score"].to_pylist() == pytest.approx(expected["length_score"].to_pylist(), abs=1e-3)
    assert found["error"].to_pylist() == [None, None, "text is null", None]
