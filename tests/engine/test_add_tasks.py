"""Adding tasks to a bundle on a real local Ray, and labelling with what comes out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console

from mtop_batch import Predictor, Task, read_labels
from mtop_batch.engine.add_tasks import ChangeResult, add_tasks, drop_tasks
from mtop_batch.engine.labelling.label import LabelOptions, label_corpus
from mtop_batch.engine.monitoring.progress import Progress
from mtop_batch.errors import BundleError, ConfigError, DataError, MtopError, TaskError
from mtop_batch.model.bundle.bundle import load_bundle, save_bundle
from mtop_batch.model.kinds.mtop import MTOPModel
from tests.conftest import make_backbone, make_tokenizer
from tests.engine.test_label import files_of, write_articles

pytestmark = pytest.mark.usefixtures("ray_local")

OLD = [
    Task("politics", text=("title", "body")),
    Task("mood", labels=("bad", "neutral", "good"), text=("title", "body")),
]
TEXTS = [f"{a} {b} wins the cup in {a}" for a in ("bank", "team", "film", "vote") for b in ("match", "market", "star")]


GROUP = {"politics": "a", "mood": "a"}


def save_model(uri: Path, attention: Any = "isolated", tasks: Sequence[Task] = OLD, **options: Any) -> str:
    model = MTOPModel.from_backbone(make_backbone(), tasks, prompt_attention=attention, max_tokens=16, **options)
    settings = {"task": [{"name": task.name} for task in tasks]}
    save_bundle(str(uri), model, make_tokenizer(), metrics={}, training_config=settings, backbone_name="tiny")
    return str(uri)


def write_config(path: Path, tables: Sequence[dict[str, Any]], head: str = "", **changes: Any) -> str:
    """A configuration of these tasks, two quick epochs."""
    lines = [head, "[add_tasks]", "epochs = 2", "learning_rate = 1e-2", "prompts_per_task = 3"]
    for table in tables:
        lines.append("[[task]]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in {**table, **changes}.items()]
    path.write_text("\n".join(lines))
    return str(path)


def add(model: str, config: str, output: Path, **options: Any) -> ChangeResult:
    with Progress(Console(quiet=True)) as progress:
        return add_tasks(model, config, str(output), progress=progress, **options)


def label(model: str, root: Path) -> dict[str, Any]:
    options = LabelOptions(model, f"{root}/corpus", f"{root}/labels", text_columns=("title", "body"))
    return label_corpus(options)


@pytest.mark.parametrize(("attention", "groups"), [("joint", None), ("isolated", None), ("joint", GROUP)])
def test_earlier_tasks_stay_what_they_were(
    attention: str, groups: dict[str, str] | None, tmp_path: Path, task_tables: list[dict[str, Any]]
) -> None:
    model = save_model(tmp_path / "m", attention, prompt_groups=groups, pooler_rank=3 if groups else 0)
    result = add(model, write_config(tmp_path / "new.toml", task_tables), tmp_path / "m2")
    before, after = load_bundle(model), load_bundle(str(tmp_path / "m2"))
    assert after.model.task_names == ["politics", "mood", "sport", "business"]
    assert {name: after.fingerprints[name] for name in before.fingerprints} == before.fingerprints
    assert (result.unchanged, set(result.added)) == (("politics", "mood"), {"sport", "business"})
    ids = torch.randint(5, 80, (4, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(after.model.all_tasks(ids)[:, :2], before.model.all_tasks(ids))
    assert set(after.metrics) == {"sport", "business"}
    assert [task["name"] for task in after.training_config["task"]] == ["politics", "mood", "sport", "business"]
    assert after.training_config["history"][0]["from_digest"] == before.digest
    assert not (tmp_path / "m2.training").exists()


def test_a_backfill_computes_the_new_cells_only_and_touches_no_earlier_file(
    tmp_path: Path, task_tables: list[dict[str, Any]]
) -> None:
    model = save_model(tmp_path / "m", "joint")
    write_articles(f"{tmp_path}/corpus/date=2026-11-19/a.parquet", TEXTS[:7])
    write_articles(f"{tmp_path}/corpus/date=2026-11-20/b.parquet", TEXTS[7:], first_id=7)
    label(model, tmp_path)
    files = files_of(tmp_path / "labels", "_store")
    add(model, write_config(tmp_path / "new.toml", task_tables[:1]), tmp_path / "m2")
    report = label(str(tmp_path / "m2"), tmp_path)
    assert (report["cells_done"], report["cells_already_current"]) == (12, 24)
    assert report["planned_reasons"] == {"new task": 12}
    now = files_of(tmp_path / "labels", "_store")
    assert {name: now[name] for name in files} == files
    labels = read_labels(f"{tmp_path}/labels", provenance=True).sort_by("id")
    expected = Predictor.load(str(tmp_path / "m2")).predict([text[:10] for text in TEXTS], TEXTS)
    for column in ("politics_label", "mood_label", "sport_label"):
        assert labels[column].to_pylist() == expected[column].to_pylist()
    assert set(labels["mood_bundle"].to_pylist()) == {"m"}
    assert set(labels["sport_bundle"].to_pylist()) == {"m2"}


@pytest.mark.slow
def test_the_tenth_addition_works_like_the_first(tmp_path: Path, task_tables: list[dict[str, Any]]) -> None:
    write_articles(f"{tmp_path}/corpus/a.parquet", TEXTS)
    model = save_model(tmp_path / "m0")
    label(model, tmp_path)
    for number in range(1, 11):
        config = write_config(tmp_path / "new.toml", task_tables[:1], name=f"added_{number}")
        output = tmp_path / f"m{number}"
        add(model, config, output, overrides=["add_tasks.epochs=1"])
        model = str(output)
        if number in (1, 9, 10):
            assert label(model, tmp_path)["cells_done"] == 12 * {1: 1, 9: 8, 10: 1}[number]
    names = ["politics", "mood", *(f"added_{number}" for number in range(1, 11))]
    assert load_bundle(model).model.task_names == names
    labels = read_labels(f"{tmp_path}/labels")
    assert not any(labels[f"{name}_label"].null_count for name in names)


@pytest.mark.slow
def test_a_task_that_is_learned_anew_makes_its_own_cells_stale_only(
    tmp_path: Path, task_tables: list[dict[str, Any]]
) -> None:
    write_articles(f"{tmp_path}/corpus/a.parquet", TEXTS)
    add(save_model(tmp_path / "m"), write_config(tmp_path / "new.toml", task_tables), tmp_path / "m2")
    label(str(tmp_path / "m2"), tmp_path)
    config = write_config(tmp_path / "again.toml", task_tables[:1])
    with pytest.raises(TaskError, match=r"has a task 'sport' already.*--replace"):
        add(str(tmp_path / "m2"), config, tmp_path / "m3")
    add(str(tmp_path / "m2"), config, tmp_path / "m3", overrides=["add_tasks.seed=1"], replace=True)
    assert load_bundle(str(tmp_path / "m3")).model.task_names == ["politics", "mood", "sport", "business"]
    report = label(str(tmp_path / "m3"), tmp_path)
    assert (report["cells_done"], report["planned_reasons"]) == (12, {"task changed": 12})
    origin = read_labels(f"{tmp_path}/labels", provenance=True)
    bundles = {name: set(origin[f"{name}_bundle"].to_pylist()) for name in ("politics", "mood", "sport", "business")}
    assert bundles == {"politics": {"m2"}, "mood": {"m2"}, "sport": {"m3"}, "business": {"m2"}}


def test_a_dropped_tasks_labels_stay_readable(tmp_path: Path) -> None:
    write_articles(f"{tmp_path}/corpus/a.parquet", TEXTS)
    model = save_model(tmp_path / "m")
    label(model, tmp_path)
    result = drop_tasks(model, ["mood"], str(tmp_path / "m2"))
    assert (result.tasks, result.unchanged) == (("politics",), ("politics",))
    assert label(str(tmp_path / "m2"), tmp_path)["cells_planned"] == 0
    assert not read_labels(f"{tmp_path}/labels")["mood_label"].null_count
    with pytest.raises(TaskError, match="no task would be left"):
        drop_tasks(str(tmp_path / "m2"), ["politics"], str(tmp_path / "m3"))
    with pytest.raises(TaskError, match="cannot be removed or replaced: with joint prompt attention"):
        drop_tasks(save_model(tmp_path / "joint", "joint"), ["mood"], str(tmp_path / "m3"))
    assert not (tmp_path / "m3").exists()
    grouped = save_model(tmp_path / "grouped", "joint", prompt_groups=GROUP)
    assert drop_tasks(grouped, ["mood"], str(tmp_path / "m3")).unchanged == ("politics",)


def test_what_was_learned_before_a_kill_is_not_learned_again(
    tmp_path: Path, task_tables: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, config = save_model(tmp_path / "m"), write_config(tmp_path / "new.toml", task_tables)
    with monkeypatch.context() as broken:
        broken.setattr("mtop_batch.engine.add_tasks.save_bundle", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            add(model, config, tmp_path / "m2")
    kept = sorted(path.name for path in (tmp_path / "m2.training").glob("*/tasks/*.safetensors"))
    assert kept == ["business.safetensors", "sport.safetensors"]
    with monkeypatch.context() as idle:
        idle.setattr("mtop_batch.engine.training.single_tasks.train_task", lambda *_: 1 / 0)
        result = add(model, config, tmp_path / "m2")
    assert set(result.added) == {"sport", "business"}
    assert result.added["sport"]["num_examples"] == 24


@pytest.mark.parametrize(
    ("changes", "head", "error", "message"),
    [
        ({"name": "Politics"}, "", TaskError, "two tasks are called 'politics' and 'Politics'"),
        ({"name": "politics"}, "", TaskError, "has a task 'politics' already"),
        ({"labels": ["no", "yes", "perhaps"]}, "", DataError, "no example of 'perhaps'"),
        ({"labels": ["a", "b"]}, "", DataError, "label 'no'.*allowed: 'a', 'b'"),
        ({"labels": ["no", "no"]}, "", ConfigError, "given more than once"),
        ({"train": "nowhere.parquet"}, "", DataError, "nowhere.parquet"),
        ({}, '[backbone]\nname = "other"', ConfigError, "leave the section out"),
        ({}, "[add_task]", ConfigError, "did you mean 'add_tasks'"),
    ],
)
def test_wrong_requests_are_refused_and_nothing_is_written(
    tmp_path: Path,
    task_tables: list[dict[str, Any]],
    changes: dict[str, Any],
    head: str,
    error: type[MtopError],
    message: str,
) -> None:
    model, config = save_model(tmp_path / "m"), write_config(tmp_path / "new.toml", task_tables[:1], head, **changes)
    with pytest.raises(error, match=message):
        add(model, config, tmp_path / "m2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "new.toml"]


def test_bundles_that_cannot_work_are_refused(tmp_path: Path, task_tables: list[dict[str, Any]]) -> None:
    model, config = save_model(tmp_path / "m"), write_config(tmp_path / "new.toml", task_tables)
    with pytest.raises(ConfigError, match="is the bundle itself"):
        add(model, config, tmp_path / "m")
    with pytest.raises(ConfigError, match="lies in the bundle"):
        add(model, config, tmp_path / "m" / "next")
    with pytest.raises(BundleError, match="there is no bundle at"):
        add(str(tmp_path / "nowhere"), config, tmp_path / "m2")
    (tmp_path / "full").mkdir()
    pq.write_table(read_table(task_tables), tmp_path / "full" / "a.parquet")
    with pytest.raises(ConfigError, match="are no bundle"):
        add(model, config, tmp_path / "full")
    grouped = save_model(
        tmp_path / "grouped", "joint", [Task("sport"), Task("business")], prompt_groups={"sport": "a", "business": "a"}
    )
    with pytest.raises(TaskError, match="'sport' cannot be removed or replaced"):
        add(grouped, config, tmp_path / "m2", replace=True)
    values = json.loads((tmp_path / "m" / "config.json").read_text())
    values["bundle"]["format"] = 99
    (tmp_path / "m" / "config.json").write_text(json.dumps(values))
    with pytest.raises(BundleError, match="has format 99, this version reads 3"):
        add(model, config, tmp_path / "m2")


def test_a_bundle_at_the_output_is_left_alone(tmp_path: Path, task_tables: list[dict[str, Any]]) -> None:
    model, config = save_model(tmp_path / "m"), write_config(tmp_path / "new.toml", task_tables)
    other = save_model(tmp_path / "other", tasks=[Task("mine")])
    with pytest.raises(ConfigError, match=r"other' holds the bundle of another .* pass --overwrite to replace it"):
        drop_tasks(model, ["mood"], other)
    with pytest.raises(ConfigError, match=r"other' holds the bundle of another .* pass --overwrite to replace it"):
        add(model, config, tmp_path / "other")
    assert load_bundle(other).model.task_names == ["mine"]
    assert not (tmp_path / "other.training").exists()
    added = add(model, config, tmp_path / "other", overwrite=True)
    dropped = drop_tasks(model, ["mood"], str(tmp_path / "m3"))
    files = files_of(tmp_path, "other"), files_of(tmp_path, "m3")
    again = add(model, config, tmp_path / "other"), drop_tasks(model, ["mood"], str(tmp_path / "m3"))
    assert again == tuple(replace(done, was_there=True, seconds=ANY) for done in (added, dropped))
    assert (files_of(tmp_path, "other"), files_of(tmp_path, "m3")) == files
    with pytest.raises(ConfigError, match="holds the bundle of another"):
        drop_tasks(other, ["mood", "sport"], str(tmp_path / "m3"))
    assert drop_tasks(other, ["mood", "sport"], str(tmp_path / "m3"), overwrite=True).tasks == ("politics", "business")


def read_table(task_tables: list[dict[str, Any]]) -> Any:
    return pq.read_table(task_tables[0]["train"])
