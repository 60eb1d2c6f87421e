"""What decides the outcome of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtop_batch.config.load import load_config
from mtop_batch.data.same_text import same_text_key
from mtop_batch.data.tokens import TextTokenizer
from mtop_batch.errors import ConfigError
from mtop_batch.experiments.methods.many import JUDGED
from mtop_batch.experiments.methods.method import Share
from mtop_batch.experiments.methods.tables import METHODS, OURS, TABLE_METHODS, TABLES
from mtop_batch.experiments.runs.data_set import DataSet, first_rows, tasks_of
from mtop_batch.experiments.runs.prepared import prepare
from mtop_batch.experiments.runs.read import read_data_set, with_unlabelled
from mtop_batch.experiments.runs.records import read_records
from mtop_batch.experiments.runs.specs import RunSettings, make_spec
from tests.conftest import make_tokenizer
from tests.experiments.conftest import MakeSpec, copies

JOBS = Path(__file__).parents[2] / "jobs"
RESULTS = JOBS.parent / "docs" / "results"


def test_every_method_of_every_table_has_a_configuration(data_set: DataSet, many_set: DataSet) -> None:
    for name, chosen in METHODS.items():
        data = data_set if chosen.judged is None else many_set
        spec = make_spec(name, 3, data, RunSettings("tiny"))
        config = spec.config(tasks_of(chosen, data)[0].configs, backbone="elsewhere")
        assert (config.train.seed, config.backbone.name) == (3, "elsewhere")
        assert config.model.kind == METHODS[name].model["kind"]
    assert {name for table in TABLES for name in TABLE_METHODS[table]} == set(METHODS)


@pytest.mark.parametrize("name", ["single-task", "mt-dnn", "p-tuning", "p-tuning-v2", "ca-mtl", OURS])
def test_methods_are_the_shipped_configurations(name: str, data_set: DataSet, tasks_file: Path) -> None:
    file = "nhc-cpu" if name == OURS else f"nhc-{name}"
    config = load_config(JOBS / f"{file}.toml", [f"tasks={tasks_file}"])
    settings = RunSettings(config.backbone.name)
    spec = make_spec(name, 0, data_set, settings)
    assert spec.config(data_set.configs).model_dump(include={"model", "train"}) == config.model_dump(
        include={"model", "train"}
    )


def test_the_recommended_model_of_many_tasks_is_the_shipped_one(many_set: DataSet, tasks_file: Path) -> None:
    config = load_config(JOBS / "many.toml", [f"tasks={tasks_file}"])
    spec = make_spec("many-cls-groups-late-1", 0, many_set, RunSettings(config.backbone.name))
    assert spec.config(many_set.share(JUDGED).configs).model == config.model


def test_what_decides_the_outcome_changes_the_digest_and_nothing_else_does(spec_of: MakeSpec) -> None:
    spec = spec_of("mtop")
    others = [
        spec_of("mtop", seed=1),
        spec_of("mtop-isolated"),
        spec_of("mtop", epochs=3),
        replace(spec, examples=5),
        replace(spec, data_digest="x"),
        replace(spec, backbone="larger"),
        spec_of("mtop-taught"),
        replace(spec_of("mtop-taught"), unlabelled={"texts": "x"}),
    ]
    assert len({other.digest for other in [spec, *others]}) == 9
    same = [spec_of("mtop", num_workers=2), spec_of("mtop", precision="bf16"), spec_of("mtop", max_failures=0)]
    assert {other.digest for other in same} == {spec.digest}


def test_methods_differ_in_nothing_that_a_default_says(spec_of: MakeSpec) -> None:
    """A new default must not change what an old digest stands for."""
    for name in METHODS:
        spec = spec_of(name)
        assert {"epochs", "batch_size", "learning_rate", "weight_decay", "warmup_fraction", "alpha"} <= set(spec.train)


def test_the_digest_of_the_data_is_that_of_its_contents(data_set: DataSet, tasks_file: object) -> None:
    assert read_data_set("other name", str(tasks_file)).digest == data_set.digest
    assert first_rows(data_set, 5).digest != data_set.digest


def test_texts_without_labels_are_those_of_no_evaluation(data_set: DataSet, tmp_path: Path) -> None:
    evaluated = data_set.tasks[0].test.texts[0]
    columns = list(data_set.tasks[0].config.text)
    pq.write_table(pa.table({key: ["of nobody", evaluated.upper()] for key in columns}), tmp_path / "more.parquet")
    chosen = with_unlabelled(data_set, str(tmp_path), 1000).unlabelled
    assert chosen is not None
    assert "of nobody" in chosen.texts
    assert not {same_text_key((text, None)) for text in chosen.texts} & {
        same_text_key((text, None)) for task in data_set.tasks for part in (task.eval, task.test) for text in part.texts
    }


def test_fewer_examples_are_some_of_the_larger_draw(data_set: DataSet) -> None:
    tokenizer = TextTokenizer(make_tokenizer(), 16)
    few, more = (prepare(data_set, tokenizer, examples) for examples in (4, 8))
    for small, large in zip(few.train, more.train, strict=True):
        assert len(small.train) == 4
        assert small.train.labels.tolist() == large.train.labels[:4].tolist()


def test_runs_that_are_there_keep_their_digests() -> None:
    """Only what is said of a run names it, so what can be said besides changes nothing."""
    found = {run.spec.digest for run in read_records(str(RESULTS)).runs}
    assert found == {path.stem for path in RESULTS.glob("*.json") if "-" not in path.stem}
    assert found


def test_a_method_of_fewer_tasks_is_the_same_run_in_a_larger_set(data_set: DataSet) -> None:
    """A set of a thousand tasks begins with those of a set of a hundred."""
    tasks = copies(data_set.tasks[0], 130)
    small, large = (DataSet("many", tuple(tasks[:count]), f"of {count}") for count in (100, 130))
    small = replace(small, digest=large.share(JUDGED).digest)
    settings = RunSettings("tiny")
    for name in ("many", "many-dypa", "many-of-10-dypa"):
        assert make_spec(name, 0, small, settings).digest == make_spec(name, 0, large, settings).digest


def test_what_more_tasks_and_a_large_one_are(many_set: DataSet) -> None:
    settings = RunSettings("tiny")
    many, more, large, after = (
        make_spec(name, 0, many_set, settings) for name in ("many", "many-1000", "many-large", "many-large-1000")
    )
    assert (many.learns, many.begins_with) == (None, None)
    assert more.learns is not None
    assert (more.data_digest, more.learns["tasks"]) == (many.data_digest, 12)
    # As many steps as the tasks that are judged have.
    judged, learned = many_set.share(JUDGED), many_set.share(Share(1000))
    assert more.epochs == pytest.approx(many.epochs * judged.num_examples(None) / learned.num_examples(None), rel=1e-4)
    assert more.config(learned.configs).train.epochs == more.epochs
    whole = make_spec("many-1000-epochs", 0, many_set, settings)
    assert whole.learns == {**more.learns, "epochs": 1.0}
    assert whole.epochs == many.epochs
    assert make_spec("many-large-1000-epochs", 0, many_set, settings).begins_with == whole.digest
    assert after.begins_with == more.digest
    assert large.data_digest == after.data_digest != many.data_digest
    assert make_spec("many-large-1000", 1, many_set, settings).begins_with != more.digest


def test_others_help_the_primary_tasks_and_only_these_are_judged(data_set: DataSet) -> None:
    primary = data_set.with_primaries(["business"])
    for name, learned in {
        "single-task": 1,
        "mtop-alone": 1,
        "mt-dnn": 3,
        "mtop-threshold": 3,
        "families-each": 3,
    }.items():
        of = tasks_of(METHODS[name], primary)
        assert [len(one.tasks) for one in of] == [learned, 1], name
    settings = RunSettings("tiny")
    fewer = DataSet("news", data_set.tasks[1:], "fewer").with_primaries(["business"])
    all_judged, some_judged, among_fewer = (
        make_spec("mt-dnn", 0, data, settings) for data in (data_set, primary, fewer)
    )
    assert all_judged.among is None
    assert some_judged.among == {"number": 3, "digest": data_set.digest}
    assert some_judged.data_digest == among_fewer.data_digest != all_judged.data_digest
    assert len({spec.digest for spec in (all_judged, some_judged, among_fewer)}) == 3


def test_a_primary_task_that_is_not_there_is_refused(data_set: DataSet) -> None:
    with pytest.raises(ConfigError, match=r"--primaries 'busines' is not a task of .*'news'; did you mean 'business'"):
        data_set.with_primaries(["busines"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "many-500",
            "wants 500 tasks, and the data set 'news' has 3; make it again with `mtop build-many --sites 250`",
        ),
        ("many-of-10-dypa", "wants 10 tasks"),
        ("many-large", "wants a very large task 'large'.*`mtop build-many --whole large=...`"),
    ],
)
def test_tasks_that_a_set_lacks_are_refused(name: str, message: str, data_set: DataSet) -> None:
    with pytest.raises(ConfigError, match=message):
        make_spec(name, 0, data_set, RunSettings("tiny"))


def test_unknown_methods_and_settings_are_refused(spec_of: MakeSpec) -> None:
    with pytest.raises(ConfigError, match="there is no method 'bert'; allowed: single-task, mt-dnn"):
        spec_of("bert")
    with pytest.raises(ConfigError, match=r"unknown key train\.epoch; did you mean 'epochs'"):
        spec_of("mt-dnn", epoch=2)
