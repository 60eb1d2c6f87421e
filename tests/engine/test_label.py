"""The labelling job on a real local Ray: local disk and a real S3 server, by the same code."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from mtop_batch import Predictor, Task, read_labels, storage
from mtop_batch.engine.labelling.label import LabelOptions, label_corpus
from mtop_batch.engine.labelling.pipeline import plan_actors
from mtop_batch.engine.session import Resources
from mtop_batch.errors import (
    BundleError,
    ConfigError,
    DataError,
    JobError,
    LabelTableError,
    StorageError,
    TaskError,
)
from mtop_batch.labelling.plan import staleness
from mtop_batch.labelling.report.run_report import RunReport
from mtop_batch.model.bundle.bundle import load_bundle, save_bundle
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.table.lease.lease import hold_lease
from mtop_batch.table.row_ranges import slice_rows
from tests.conftest import WORDS, make_backbone, make_tokenizer
from tests.s3 import S3Server

pytestmark = pytest.mark.usefixtures("s3_environment", "ray_local")

TASKS = [
    Task("politics", text=("title", "body")),
    Task("mood", labels=("bad", "neutral", "good"), text=("title", "body")),
    Task("length", kind="regression", labels=(), text=("title", "body")),
]

Texts = Callable[[int, int], list[str]]


def save_model(uri: str, tasks: Sequence[Task] = TASKS, seed: int = 0) -> str:
    model = MTOPModel.from_backbone(make_backbone(), tasks, prompt_attention="isolated", max_tokens=32, seed=seed)
    save_bundle(uri, model, make_tokenizer(), metrics={}, training_config={}, backbone_name="tiny")
    return uri


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(str(tmp_path_factory.mktemp("models") / "tiny"))


def write_articles(uri: str, texts: list[str], first_id: int = 0, **columns: list[Any]) -> None:
    table = pa.table(
        {
            "id": pa.array(range(first_id, first_id + len(texts)), pa.int64()),
            "title": [text[:10] for text in texts],
            "body": texts,
            **columns,
        }
    )
    fs, path = storage.filesystem(uri)
    fs.create_dir(path.rsplit("/", 1)[0], recursive=True)
    pq.write_table(table, path, filesystem=fs)


def options(bundle: str, root: str, **changes: Any) -> LabelOptions:
    return LabelOptions(model=bundle, corpus=f"{root}/corpus", labels=f"{root}/labels", **changes)


def files_of(labels: Path, part: str) -> dict[str, bytes]:
    """The files of the store ("_store") or of the published table ("current")."""
    directory = labels / part
    return {str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*.parquet"))}


def label_two_files(bundle: str, root: str, texts: list[str]) -> dict[str, Any]:
    write_articles(f"{root}/corpus/date=2026-11-19/a.parquet", texts[:30])
    write_articles(f"{root}/corpus/date=2026-11-20/b.parquet", texts[30:], first_id=30)
    return label_corpus(options(bundle, root))


def check_labels(labels: str, bundle: str, texts: list[str]) -> None:
    table = read_labels(labels).sort_by("id")
    expected = Predictor.load(bundle).predict([text[:10] for text in texts], texts)
    assert table["id"].to_pylist() == list(range(len(texts)))
    assert table["mood_label"].to_pylist() == expected["mood_label"].to_pylist()
    assert table["length_score"].to_pylist() == pytest.approx(expected["length_score"].to_pylist(), abs=1e-5)


@dataclass
class Labelled:
    root: Path
    texts: list[str]
    report: dict[str, Any]

    @property
    def labels(self) -> Path:
        return self.root / "labels"


@pytest.fixture(scope="module")
def labelled(bundle: str, tmp_path_factory: pytest.TempPathFactory) -> Labelled:
    """A corpus of two partitions, labelled once for all tests that only look."""
    root = tmp_path_factory.mktemp("labelled")
    rng = random.Random(1)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 30))) for _ in range(50)]
    return Labelled(root, texts, label_two_files(bundle, str(root), texts))


def test_every_article_gets_every_label_on_local_disk(labelled: Labelled, bundle: str) -> None:
    report = labelled.report
    assert (report["rows"], report["labelled"], report["errors"], report["cells_done"]) == (50, 50, 0, 150)
    assert sum(report["label_counts"]["politics"].values()) == 50
    check_labels(str(labelled.labels), bundle, labelled.texts)
    (path,) = (labelled.labels / "_runs").glob("*/report.json")
    assert json.loads(path.read_text()) == report


def test_every_article_gets_every_label_on_s3(bundle: str, s3_service: S3Server, labelled: Labelled) -> None:
    root = f"s3://{s3_service.bucket}/label-job"
    remote_bundle = save_model(f"{root}/models/tiny")
    assert label_two_files(remote_bundle, root, labelled.texts)["labelled"] == 50
    check_labels(f"{root}/labels", bundle, labelled.texts)
    assert label_corpus(options(remote_bundle, root))["cells_planned"] == 0


def test_the_published_table_is_a_plain_parquet_data_set(labelled: Labelled) -> None:
    current = labelled.labels / "current"
    table = ds.dataset(current, partitioning="hive").to_table()
    assert sorted(table["id"].to_pylist()) == list(range(50))
    query = f"SELECT date, count(DISTINCT id) FROM '{current}/**/*.parquet' GROUP BY 1 ORDER BY 1"
    assert [count for _, count in duckdb.connect().execute(query).fetchall()] == [30, 20]


def test_label_files_carry_the_bundles_fingerprints(labelled: Labelled, bundle: str) -> None:
    for path in [*labelled.labels.glob("_store/**/*.parquet"), *labelled.labels.glob("current/**/*.parquet")]:
        footer = json.loads(pq.read_metadata(path).metadata[b"mtop_batch"])
        fingerprints = {name: task["fingerprint"] for name, task in footer["tasks"].items()}
        assert fingerprints == load_bundle(bundle).fingerprints
        assert footer["run"] == labelled.report["run"]


def test_a_second_run_finds_everything_current_and_writes_no_labels(labelled: Labelled, bundle: str) -> None:
    before = files_of(labelled.labels, ".")
    report = label_corpus(options(bundle, str(labelled.root)))
    assert (report["cells_planned"], report["cells_already_current"], report["rows"]) == (0, 150, 0)
    assert files_of(labelled.labels, ".") == before


def test_bad_rows_keep_their_place_and_say_why(bundle: str, tmp_path: Path) -> None:
    titles = ["bank profit", None, "", "film star", None]
    bodies = ["shares in a new bank", None, "  ", None, "team wins cup"]
    (tmp_path / "corpus").mkdir()
    table = pa.table({"id": ["a", "b", "c", "d", "e"], "title": titles, "body": bodies})
    pq.write_table(table, tmp_path / "corpus" / "x.parquet")
    report = label_corpus(options(bundle, str(tmp_path)))
    labels = read_labels(str(tmp_path / "labels"))
    assert labels["id"].to_pylist() == ["a", "b", "c", "d", "e"]
    assert labels["error"].to_pylist() == [None, "text is null", "text is empty", None, None]
    assert [label is None for label in labels["mood_label"].to_pylist()] == [False, True, True, False, False]
    assert (report["rows"], report["labelled"], report["errors"]) == (5, 3, 2)
    assert report["error_reasons"] == {"text is null": 1, "text is empty": 1}


def test_unreadable_files_are_listed_and_the_others_labelled(bundle: str, tmp_path: Path, make_texts: Texts) -> None:
    write_articles(f"{tmp_path}/corpus/good.parquet", make_texts(5, 0))
    (tmp_path / "corpus" / "truncated.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "corpus" / "empty.parquet").write_bytes(b"")
    pq.write_table(pa.table({"key": [1]}), tmp_path / "corpus" / "other.parquet")
    report = label_corpus(options(bundle, str(tmp_path)))
    assert report["labelled"] == 5
    reasons = {entry["path"]: entry["reason"] for entry in report["unreadable_files"]}
    assert reasons.keys() == {"truncated.parquet", "empty.parquet", "other.parquet"}
    assert "no id column 'id'" in reasons["other.parquet"]


def test_large_files_are_cut_into_slices_that_do_not_depend_on_unit_rows(
    bundle: str, tmp_path: Path, make_texts: Texts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staleness, "slice_rows", partial(slice_rows, slice_rows=15))
    texts = make_texts(40, 3)
    write_articles(f"{tmp_path}/corpus/a.parquet", texts)
    report = label_corpus(options(bundle, str(tmp_path), unit_rows=15))
    assert report["units_done"] == 3
    assert label_corpus(options(bundle, str(tmp_path), unit_rows=7))["cells_planned"] == 0
    check_labels(str(tmp_path / "labels"), bundle, texts)


def test_a_plan_writes_nothing(bundle: str, tmp_path: Path, make_texts: Texts) -> None:
    write_articles(f"{tmp_path}/corpus/a.parquet", make_texts(5, 0))
    plan = label_corpus(options(bundle, str(tmp_path)), plan_only=True)
    assert (plan["articles"], plan["cells_planned"], plan["units_planned"]) == (5, 15, 1)
    assert not (tmp_path / "labels").exists()


def test_only_the_wanted_tasks_and_partitions_are_touched(bundle: str, tmp_path: Path, make_texts: Texts) -> None:
    for day in ("2026-11-19", "2026-11-20"):
        write_articles(f"{tmp_path}/corpus/date={day}/a.parquet", make_texts(5, 0))
    report = label_corpus(options(bundle, str(tmp_path), tasks=("mood",), partitions=("date=2026-11-20",)))
    assert report["cells_done"] == 5
    labels = read_labels(str(tmp_path / "labels"))
    assert labels.column_names == ["id", "date", "mood_label", "mood_score", "error"]
    assert labels["date"].to_pylist() == ["2026-11-20"] * 5


def test_a_new_task_gets_a_label_set_of_its_own(tmp_path: Path, make_texts: Texts) -> None:
    write_articles(f"{tmp_path}/corpus/a.parquet", make_texts(8, 0))
    label_corpus(options(save_model(f"{tmp_path}/m1", TASKS[:2]), str(tmp_path)))
    before = files_of(tmp_path / "labels", "_store")
    report = label_corpus(options(save_model(f"{tmp_path}/m2", TASKS), str(tmp_path)))
    after = files_of(tmp_path / "labels", "_store")
    assert (report["cells_done"], report["cells_already_current"]) == (8, 16)
    assert {name: after[name] for name in before} == before
    assert {"politics_label", "mood_label", "length_score"} <= set(read_labels(str(tmp_path / "labels")).column_names)


def test_labels_of_removed_source_files_stay_until_a_run_prunes_them(
    bundle: str, tmp_path: Path, make_texts: Texts
) -> None:
    for name in ("a", "b"):
        write_articles(f"{tmp_path}/corpus/{name}.parquet", make_texts(5, 0))
    label_corpus(options(bundle, str(tmp_path)))
    (tmp_path / "corpus" / "b.parquet").unlink()
    before = files_of(tmp_path / "labels", "current")
    orphan = "b.parquet"
    plan = label_corpus(options(bundle, str(tmp_path), prune=True), plan_only=True)
    report = label_corpus(options(bundle, str(tmp_path)))
    assert plan["files_to_remove"] == plan["orphaned_files"] == report["orphaned_files"] == [orphan]
    assert report["removed_files"] == []
    assert files_of(tmp_path / "labels", "current") == before

    labels = str(tmp_path / "labels")
    with hold_lease(labels, "other"), pytest.raises(LabelTableError, match="is being written by run other"):
        label_corpus(options(bundle, str(tmp_path), prune=True))
    report = label_corpus(options(bundle, str(tmp_path), prune=True))
    assert (report["orphaned_files"], report["removed_files"]) == ([orphan], [orphan])
    assert files_of(tmp_path / "labels", "current").keys() == before.keys() - {orphan}
    assert label_corpus(options(bundle, str(tmp_path), prune=True))["orphaned_files"] == []


def test_tasks_read_what_they_were_trained_on_in_one_pass_for_each_input(
    tmp_path: Path, make_texts: Texts, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = [Task("politics", text=("body",)), Task("mood", text=("headline", "body")), Task("tone", text=("body",))]
    bundle, texts = save_model(f"{tmp_path}/mixed", tasks), make_texts(6, 0)
    write_articles(f"{tmp_path}/corpus/a.parquet", texts, headline=[*texts[:-2][::-1], None, None])
    bodies: list[str | None] = [*texts[:-1], None]
    table = pq.read_table(f"{tmp_path}/corpus/a.parquet").set_column(2, "body", pa.array(bodies))
    pq.write_table(table, f"{tmp_path}/corpus/a.parquet")
    report = label_corpus(options(bundle, str(tmp_path)))
    line = "texts: body (politics, tone) and headline + body (mood): 2 passes, one for each"
    assert line in capsys.readouterr().out
    assert (report["cells_done"], report["units_done"], report["rows"], report["errors"]) == (18, 2, 12, 2)
    labels = read_labels(f"{tmp_path}/labels").sort_by("id")
    alone = Predictor.load(bundle, tasks=["politics", "tone"]).predict(bodies)
    pairs = Predictor.load(bundle, tasks=["mood"]).predict([*texts[:-2][::-1], None, None], bodies)
    for task, expected in (("politics", alone), ("tone", alone), ("mood", pairs)):
        assert labels[f"{task}_label"].to_pylist() == expected[f"{task}_label"].to_pylist()
    assert labels["error"].to_pylist() == [None] * 5 + ["text is null"]
    assert label_corpus(options(bundle, str(tmp_path)), plan_only=True)["cells_planned"] == 0
    fewer = label_corpus(options(bundle, str(tmp_path), tasks=("tone",)), plan_only=True)
    assert (fewer["cells_planned"], fewer["inputs"]) == (0, [{"text_columns": ["body"], "tasks": ["tone"]}])


@pytest.mark.parametrize(("trained_on", "given"), [(("body",), ("title", "body")), (("title", "body"), ("body",))])
def test_other_texts_than_a_task_was_trained_on_are_worth_a_warning(
    tmp_path: Path,
    make_texts: Texts,
    capsys: pytest.CaptureFixture[str],
    trained_on: tuple[str, ...],
    given: tuple[str, ...],
) -> None:
    bundle = save_model(f"{tmp_path}/model", [Task("politics", text=trained_on)])
    write_articles(f"{tmp_path}/corpus/a.parquet", make_texts(3, 0))
    label_corpus(options(bundle, str(tmp_path)), plan_only=True)
    assert "warning" not in capsys.readouterr().err
    plan = label_corpus(options(bundle, str(tmp_path), text_columns=given), plan_only=True)
    assert plan["inputs"] == [{"text_columns": list(given), "tasks": ["politics"]}]
    assert f"warning: --text-columns {','.join(given)} gives" in " ".join(capsys.readouterr().err.split())


def test_a_corpus_without_the_columns_of_the_training_is_refused_with_the_way_out(
    tmp_path: Path, make_texts: Texts
) -> None:
    bundle = save_model(f"{tmp_path}/model", [Task("politics", text=("headline",))])
    write_articles(f"{tmp_path}/corpus/a.parquet", make_texts(3, 0))
    with pytest.raises(DataError, match=r"no text column 'headline'; columns: id, title, body; .*--text-columns"):
        label_corpus(options(bundle, str(tmp_path)), plan_only=True)


def test_most_of_the_table_is_not_removed_without_force(bundle: str, tmp_path: Path, make_texts: Texts) -> None:
    for name in "abc":
        write_articles(f"{tmp_path}/corpus/{name}.parquet", make_texts(3, 0))
    label_corpus(options(bundle, str(tmp_path)))
    for name in "ab":
        (tmp_path / "corpus" / f"{name}.parquet").unlink()
    assert len(label_corpus(options(bundle, str(tmp_path), prune=True), plan_only=True)["files_to_remove"]) == 2
    with pytest.raises(ConfigError, match=r"remove 2 of 3 published files, such as a.parquet.*50%.*--force"):
        label_corpus(options(bundle, str(tmp_path), prune=True))
    assert read_labels(f"{tmp_path}/labels").num_rows == 9
    report = label_corpus(options(bundle, str(tmp_path), prune=True, force=True))
    assert report["removed_files"] == ["a.parquet", "b.parquet"]


def test_a_report_that_cannot_be_written_ends_the_run_with_1(
    bundle: str, tmp_path: Path, make_texts: Texts, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_articles(f"{tmp_path}/corpus/good.parquet", make_texts(5, 0))
    (tmp_path / "corpus" / "empty.parquet").write_bytes(b"")

    def fail(report: RunReport) -> str:
        raise StorageError("the disk is full")

    monkeypatch.setattr("mtop_batch.engine.labelling.label.write_report", fail)
    for _ in range(2):  # with and without anything to do
        with pytest.raises(LabelTableError, match=r"report of run .* could not be written: the disk is full") as caught:
            label_corpus(options(bundle, str(tmp_path)))
        assert caught.value.exit_code == 1
    assert read_labels(f"{tmp_path}/labels").num_rows == 5


def test_storage_without_conditional_writes_is_told_at_the_start(
    bundle: str, tmp_path: Path, make_texts: Texts, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_articles(f"{tmp_path}/corpus/a.parquet", make_texts(5, 0))
    monkeypatch.setattr("mtop_batch.storage.conditional.create", lambda *_, **__: True)
    with hold_lease(f"{tmp_path}/labels", "other"), pytest.raises(LabelTableError, match="written by run other"):
        label_corpus(options(bundle, str(tmp_path)))
    assert "this storage has no conditional writes; see that one run at a time" in capsys.readouterr().err


def test_too_many_bad_rows_stop_the_run(bundle: str, tmp_path: Path, make_texts: Texts) -> None:
    write_articles(f"{tmp_path}/corpus/a.parquet", make_texts(5, 0))
    write_articles(f"{tmp_path}/corpus/b.parquet", [""] * 5)
    with pytest.raises(JobError, match=r"5 of the run's 10 rows cannot be labelled.*--max-error-fraction 0.2"):
        label_corpus(options(bundle, str(tmp_path), max_error_fraction=0.2))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": "nowhere"}, BundleError, "there is no bundle at"),
        ({"corpus": "nowhere"}, DataError, "check the path"),
        ({"tasks": ("moood",)}, TaskError, "did you mean 'mood'"),
        ({"text_columns": ("headline",)}, DataError, "no text column 'headline'.*--text-columns"),
        ({"id_column": "key"}, DataError, "no id column 'key'.*--id-column"),
        ({"partitions": ("date",)}, ConfigError, "--partition"),
        ({"partitions": ("day=1",)}, ConfigError, "not partitioned by 'day'"),
    ],
)
def test_wrong_options_are_refused_before_any_work(
    bundle: str, tmp_path: Path, make_texts: Texts, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    write_articles(f"{tmp_path}/corpus/a.parquet", make_texts(5, 0))
    wrong = {**{"model": bundle, "corpus": f"{tmp_path}/corpus", "labels": f"{tmp_path}/labels"}, **changes}
    with pytest.raises(error, match=message):
        label_corpus(LabelOptions(**wrong))
    assert not (tmp_path / "labels").exists()


def test_actors_are_one_per_gpu_or_one_per_spare_cpu() -> None:
    gpus = plan_actors(Resources(num_cpus=32, num_gpus=4, num_nodes=2, may_grow=True), None, num_pieces=100)
    assert (gpus.size, gpus.num_gpus, gpus.num_cpus) == (4, 1, 0)
    cpus = plan_actors(Resources(num_cpus=8, num_gpus=0, num_nodes=2, may_grow=True), None, num_pieces=100)
    assert (cpus.size, cpus.num_gpus, cpus.num_cpus) == (6, 0, 1)
    assert (gpus.num_storage_tasks, cpus.num_storage_tasks) == (None, 4)
    assert (gpus.pieces_per_actor, cpus.pieces_per_actor) == (2, 1)
    assert plan_actors(Resources(8, 0, 2, False), 3, num_pieces=2).size == 2
