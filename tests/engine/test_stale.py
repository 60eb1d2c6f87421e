"""After any change the next run computes exactly the cells affected, and the plan says how many and why."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mtop_batch import Task, read_labels
from mtop_batch.engine.labelling.label import LabelOptions, label_corpus
from mtop_batch.errors import TaskError
from mtop_batch.model.bundle.bundle import load_bundle, save_bundle
from mtop_batch.model.kinds.mtop import MTOPModel
from tests.conftest import make_backbone, make_tokenizer

pytestmark = pytest.mark.usefixtures("ray_local")

TASKS = [Task("mood", text=("body",)), Task("politics", text=("body",))]
ROWS = 4


def save_model(uri: Path, seed: int = 0) -> None:
    model = MTOPModel.from_backbone(make_backbone(seed), TASKS, prompt_attention="isolated", max_tokens=16, seed=seed)
    save_bundle(str(uri), model, make_tokenizer(), metrics={}, training_config={}, backbone_name="tiny")


def write_articles(path: Path, first_id: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"id": range(first_id, first_id + ROWS), "body": ["bank profit"] * ROWS}), path)


def label(root: Path, **options: Any) -> dict[str, Any]:
    options = {"model": f"{root}/model", **options}
    return label_corpus(LabelOptions(corpus=f"{root}/corpus", labels=f"{root}/labels", **options))


def plan(root: Path) -> dict[str, Any]:
    options = LabelOptions(f"{root}/model", f"{root}/corpus", f"{root}/labels")
    return label_corpus(options, plan_only=True)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three labelled source files: 3 x 4 articles, 2 tasks, 24 cells."""
    root = tmp_path_factory.mktemp("labelled")
    save_model(root / "model")
    for number, name in enumerate("abc"):
        write_articles(root / "corpus" / f"{name}.parquet", first_id=10 * number)
    assert label(root)["cells_done"] == 24
    return root


@pytest.fixture
def root(labelled: Path, tmp_path: Path) -> Path:
    """A copy of all that was labelled, with the files' times: nothing of it is stale."""
    root = tmp_path / "copy"
    shutil.copytree(labelled, root)
    assert plan(root)["cells_planned"] == 0
    return root


def check_next_run(root: Path, reasons: dict[str, int], ids: list[int]) -> None:
    """The plan tells these cells and reasons, a run does them, and then the table is right and nothing is left."""
    assert plan(root)["planned_reasons"] == reasons
    report = label(root)
    assert (report["planned_reasons"], report["cells_done"]) == (reasons, sum(reasons.values()))
    assert read_labels(f"{root}/labels")["id"].to_pylist() == ids
    assert plan(root)["cells_planned"] == 0


def test_a_new_file(root: Path) -> None:
    write_articles(root / "corpus" / "d.parquet", first_id=30)
    check_next_run(root, {"new file": 8}, [0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23, 30, 31, 32, 33])


def test_a_file_of_other_content(root: Path) -> None:
    write_articles(root / "corpus" / "b.parquet", first_id=50)
    check_next_run(root, {"content changed": 8}, [0, 1, 2, 3, 50, 51, 52, 53, 20, 21, 22, 23])


def test_a_file_of_the_same_size_and_another_time(root: Path) -> None:
    path = root / "corpus" / "b.parquet"
    size = path.stat().st_size
    write_articles(path, first_id=11)
    assert path.stat().st_size == size
    os.utime(path, ns=(0, 0))
    check_next_run(root, {"content changed": 8}, [0, 1, 2, 3, 11, 12, 13, 14, 20, 21, 22, 23])


def test_a_removed_file(root: Path) -> None:
    label(root)  # the corpus has moved; --prune wants to have seen it there
    (root / "corpus" / "b.parquet").unlink()
    assert plan(root)["cells_planned"] == 0
    assert len(label(root, prune=True)["removed_files"]) == 1
    assert read_labels(f"{root}/labels")["id"].to_pylist() == [0, 1, 2, 3, 20, 21, 22, 23]


def test_a_retrained_bundle(root: Path) -> None:
    save_model(root / "model", seed=1)
    check_next_run(root, {"bundle changed": 24}, [0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23])


@pytest.mark.slow
def test_one_retrained_task(root: Path) -> None:
    bundle = load_bundle(f"{root}/model")
    with torch.no_grad():
        cast(MTOPModel, bundle.model).task_module("mood").head.weight.add_(1)
    save_bundle(f"{root}/model", bundle.model, bundle.tokenizer, metrics={}, training_config={}, backbone_name="tiny")
    check_next_run(root, {"task changed": 12}, [0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23])


@pytest.mark.slow
def test_a_bundle_of_other_tasks_with_the_same_names_is_refused_and_nothing_is_written(root: Path) -> None:
    tasks = [Task("mood", labels=("glad", "sad"), text=("body",)), TASKS[1]]
    model = MTOPModel.from_backbone(make_backbone(1), tasks, prompt_attention="isolated", max_tokens=16)
    save_bundle(str(root / "other"), model, make_tokenizer(), metrics={}, training_config={}, backbone_name="tiny")
    before = sorted((root / "labels").rglob("*"))
    options = LabelOptions(f"{root}/other", f"{root}/corpus", f"{root}/labels")
    for plan_only in (True, False):
        with pytest.raises(TaskError, match="another task of the same name"):
            label_corpus(options, plan_only=plan_only)
    assert sorted((root / "labels").rglob("*")) == before
    assert label(root, model=f"{root}/other", tasks=("politics",))["cells_done"] == 12
