"""Labels of what is stored, without Ray; and who decides that it is not needed."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import ray

from mtop_batch import Predictor, read_labels
from mtop_batch.data.tokens import TextTokenizer
from mtop_batch.engine.labelling import units as label_units
from mtop_batch.engine.labelling.label import LabelOptions, label_corpus
from mtop_batch.engine.labelling.options import wanted_labels
from mtop_batch.errors import DamagedLabelFile, JobError
from mtop_batch.labelling.plan.planner import plan_labels
from mtop_batch.labelling.plan.work import Plan, Unit
from mtop_batch.labelling.run.stages import LabelJob, label, label_from_scores, read_and_tokenise, write
from mtop_batch.model.bundle.bundle import load_bundle, save_bundle
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.table.gate.rules import Rules
from mtop_batch.table.lease.lease import LeaseToken
from mtop_batch.table.publisher import publish
from mtop_batch.table.runs import new_run_id, write_run
from mtop_batch.tasks import Decision, Task
from tests.conftest import make_backbone, make_tokenizer
from tests.labelling.support import small_slices, write_corpus

TEXTS = ["match goal team", "bank market profit", "team goal bank", "film star vote", "", "player cup economy", "vote"]
SPORT, TONE = Task("sport"), Task("tone", "probe", labels=("calm", "loud", "sad"))
OPEN = Rules(max_label_share_change=1.0, max_flips=1.0, max_new_share_change=1.0)


class _NoLease:
    def check(self) -> None:
        """Nobody else writes."""


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is none, and none is started."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    def refuse(**_: Any) -> None:
        raise AssertionError("Ray is started")

    monkeypatch.setattr(label_units, "ray_session", refuse)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A corpus, a bundle, its vectors and the labels of one of its tasks, and the bundle with other decisions."""
    model = MTOPModel.from_backbone(make_backbone(), [SPORT, TONE], max_tokens=32)
    _save(tmp_path / "m1", model)
    model.set_tasks([replace(SPORT, decision=Decision(temperature=1.5, thresholds=(0.5001,))), TONE])
    _save(tmp_path / "m2", model)
    rows = {"id": list(range(len(TEXTS))), "text": TEXTS}
    write_corpus(tmp_path / "corpus", {"x.parquet": rows, "y.parquet": {**rows, "text": TEXTS[::-1]}})
    with small_slices(3):
        _label_texts(tmp_path)
    return tmp_path


def _save(uri: Path, model: MTOPModel) -> None:
    save_bundle(str(uri), model, make_tokenizer(), metrics={}, training_config={}, backbone_name="tiny")


def options(root: Path, model: str, **more: Any) -> LabelOptions:
    return LabelOptions(f"{root}/{model}", f"{root}/corpus", f"{root}/labels", gate=OPEN, **more)


def _label_texts(root: Path) -> None:
    """As a run on Ray does."""
    wanted = wanted_labels(options(root, "m1", tasks=("sport",), vectors=True))
    plan, run = plan_labels(f"{root}/corpus", f"{root}/labels", wanted), new_run_id()
    write_run(plan.labels, run, wanted, plan.corpus)
    job = LabelJob(plan.corpus, plan.labels, run, wanted, cast(LeaseToken, _NoLease()))
    bundle = load_bundle(f"{root}/m1")
    predictor = Predictor(bundle.model, bundle.tokenizer, tasks=["sport"], vectors=True, device="cpu", precision="fp32")
    tokenizer = TextTokenizer(bundle.tokenizer, **bundle.model.config.text_limits)
    for unit in plan.units:
        write(job, label(read_and_tokenise(job, [unit], tokenizer), predictor))
    publish(plan.labels, wanted.view, wanted.kinds, plan.to_publish, run)


def test_what_is_stored_is_labelled_without_ray_and_as_the_model_does_it(root: Path) -> None:
    with small_slices(3):
        report = label_corpus(options(root, "m2"))
    rows = 2 * len(TEXTS)
    assert (report["cells_from_scores"], report["cells_from_vectors"], report["cells_done"]) == (rows, rows, 2 * rows)
    assert (report["status"], report["num_tokens"]) == ("done", 0)
    table = read_labels(f"{root}/labels")
    expected = Predictor.load(f"{root}/m2", precision="fp32").predict([*TEXTS, *TEXTS[::-1]])
    for name in ("sport", "tone"):
        assert table[f"{name}_label"].to_pylist() == expected[f"{name}_label"].to_pylist()
        scores = table[f"{name}_score"].to_numpy(), expected[f"{name}_score"].to_numpy()
        np.testing.assert_allclose(*scores, atol=2e-3)
    assert label_corpus(options(root, "m2"))["cells_planned"] == 0


@pytest.mark.parametrize(("what", "name"), [("texts", "m1"), ("a cluster", "m2"), ("many cells", "m2")])
def test_ray_is_started_where_it_is_needed(root: Path, monkeypatch: pytest.MonkeyPatch, what: str, name: str) -> None:
    if what == "texts":
        write_corpus(root / "corpus", {"z.parquet": {"id": [99], "text": ["vote"]}})
    elif what == "a cluster":
        monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    else:
        monkeypatch.setattr(label_units, "_MOST_CELLS_HERE", 20)
    with small_slices(3), pytest.raises(JobError, match="Ray is started"):
        label_corpus(options(root, name))


def _plan(root: Path, model: str) -> tuple[LabelJob, Plan]:
    wanted = wanted_labels(options(root, model))
    plan = plan_labels(f"{root}/corpus", f"{root}/labels", wanted)
    return LabelJob(plan.corpus, plan.labels, "run", wanted, cast(LeaseToken, _NoLease())), plan


def test_the_error_of_a_piece_ends_the_work_and_what_was_written_stays(root: Path) -> None:
    with small_slices(3):
        job, plan = _plan(root, "m2")
        units = plan.units_from("scores")
        broken = units[-1].scores[0].file
        path = root / "labels" / "_store" / broken.label_set / broken.path
        path.write_bytes(path.read_bytes()[:-30])
        with pytest.raises(DamagedLabelFile):
            list(label_units.run_in_threads(job, f"{root}/m2", [[unit] for unit in units]))
        again = plan_labels(f"{root}/corpus", f"{root}/labels", wanted_labels(options(root, "m2")))
    assert [str(unit) for unit in again.units if "sport" in unit.tasks] == [str(units[-1])]


def test_closing_the_results_stops_the_work(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_slices(3):
        job, plan = _plan(root, "m2")
    monkeypatch.setattr(label_units, "num_cores", lambda: 1)
    begun: list[Unit] = []
    real = label_from_scores

    def noted(job: LabelJob, units: Any) -> list[bytes]:
        begun.extend(units)
        return real(job, units)

    monkeypatch.setattr(label_units, "label_from_scores", noted)
    results = label_units.run_in_threads(job, f"{root}/m2", [[unit] for unit in plan.units_from("scores")])
    next(results)
    results.close()
    assert len(begun) < len(plan.units_from("scores"))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("label_")]
