"""The seam for kinds of models: a second one goes all the way without a line for it in the package."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mtop_batch.engine.add_tasks import drop_tasks
from mtop_batch.errors import BundleError, TaskError
from mtop_batch.labelling.run.predictor import Predictor
from mtop_batch.model.bundle.bundle import load_bundle, save_bundle
from mtop_batch.model.bundle.files import read_bundle_info
from mtop_batch.model.bundle.fingerprints import task_fingerprints, vector_fingerprint
from mtop_batch.model.encoder.inputs import Text
from mtop_batch.model.kinds.by_name import KINDS
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.tasks import Task
from mtop_batch.training.evaluation import evaluate
from mtop_batch.training.loop import fit
from tests.conftest import make_backbone, make_tokenizer
from tests.model.kinds.shared_pooler import SharedPooler
from tests.training.toy import make_data, make_encoder, make_settings

TASKS = (
    Task("sport", reads="pooled"),
    Task("mood", labels=("sad", "calm", "glad"), reads="pooled"),
    Task("length", "regression", labels=(), reads="pooled"),
)


@pytest.fixture(autouse=True)
def second_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "shared-pooler", SharedPooler)


def saved(model: SharedPooler, uri: Path) -> str:
    save_bundle(str(uri), model, make_tokenizer(), metrics={}, training_config={}, backbone_name="tiny")
    return str(uri)


def test_the_loop_trains_it_and_its_bundle_comes_back(tmp_path: Path) -> None:
    model, data = SharedPooler.from_backbone(make_encoder(), TASKS[:2], max_tokens=16), make_data(tasks=TASKS[:2])
    before = evaluate(model, data)
    result = fit(model, data, make_settings(epochs=15))
    assert all(result.best_metrics[name]["loss"] < before[name]["loss"] for name in ("sport", "mood"))
    bundle = load_bundle(saved(model, tmp_path / "pooled"))
    assert evaluate(bundle.model, data) == result.best_metrics
    info = read_bundle_info(str(tmp_path / "pooled"))
    assert (info.kind, [task.reads for task in info.tasks]) == ("shared-pooler", ["pooled", "pooled"])


def test_texts_are_labelled_with_it(tmp_path: Path) -> None:
    model = SharedPooler.from_backbone(make_backbone(), TASKS, max_tokens=16)
    predictor = Predictor.load(saved(model, tmp_path / "pooled"), device="cpu", precision="fp32", vectors=True)
    table = predictor.predict(["bank market", " ", "the law wins"])
    assert table.column_names == ["sport_label", "sport_score", "mood_label", "mood_score", "length_score", *VECTORS]
    assert table["error"].to_pylist() == [None, "text is empty", None]
    inputs = make_tokenizer()(["bank market"], return_tensors="pt")
    with torch.no_grad():
        logits = model(inputs["input_ids"], task="mood").logits[0]
    assert table["mood_label"][0].as_py() == TASKS[1].labels[int(logits.argmax())]
    assert table["mood_score"][0].as_py() == pytest.approx(float(logits.softmax(0).max()), abs=1e-5)
    rough = Predictor(model, make_tokenizer(), device="cpu", precision="bf16").predict(["bank market"])
    assert rough["length_score"][0].as_py() == pytest.approx(table["length_score"][0].as_py(), abs=0.05)


VECTORS = ("vector", "error")


def test_a_head_changes_one_fingerprint_and_the_pooler_those_of_all_tasks() -> None:
    model = SharedPooler.from_backbone(make_backbone(), TASKS, max_tokens=16)
    before, vector = task_fingerprints(model, "t"), vector_fingerprint(model, "t")
    with torch.no_grad():
        model.task_parameters("mood")[0].add_(1)
        after = task_fingerprints(model, "t")
        assert {name for name in before if before[name] != after[name]} == {"mood"}
        model.pooler.bias.add_(1)
    assert not set(task_fingerprints(model, "t").values()) & set(after.values())
    assert vector_fingerprint(model, "t") == vector
    mtop = MTOPModel.from_backbone(make_backbone(), [Task("sport")], max_tokens=16)
    assert vector_fingerprint(mtop, "t") != task_fingerprints(mtop, "t")["sport"]


def test_its_operations_are_counted() -> None:
    model = SharedPooler.from_backbone(make_backbone(), TASKS, max_tokens=60)
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.outputs(("sport", "mood"), Text(torch.full((3, 20), 5), None, None), vectors=False)
    cost = model.forward_flops(["sport", "mood"])(np.full(3, 20))
    assert cost == pytest.approx(counter.get_total_flops(), rel=0.02)
    assert (model.num_passes(["sport"]), model.num_positions(["sport"])) == (1, 0)


def test_what_it_cannot_do_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="reads = 'prompts' is not what a 'shared-pooler' model has; allowed: pooled"):
        SharedPooler.from_backbone(make_backbone(), [Task("sport")])
    with pytest.raises(TaskError, match="reads = 'pooled' is not what a 'mtop' model has; allowed: prompts, vector"):
        MTOPModel.from_backbone(make_backbone(), TASKS, max_tokens=16)
    model = SharedPooler.from_backbone(make_backbone(), TASKS, max_tokens=16)
    with pytest.raises(TaskError, match="there is no task 'moood'; did you mean 'mood'"):
        model(torch.ones(1, 2, dtype=torch.long), task="moood")
    with pytest.raises(TaskError, match="is given neither texts nor their KV cache"):
        model(task="mood")
    with pytest.raises(BundleError, match="has a 'shared-pooler' model, whose tasks train together"):
        drop_tasks(saved(model, tmp_path / "pooled"), ["mood"], str(tmp_path / "fewer"))
    assert cast(SharedPooler, load_bundle(str(tmp_path / "pooled")).model).task_names == ["sport", "mood", "length"]
