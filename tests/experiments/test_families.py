"""Entities beside texts: runs that share encoders by family, and pre-finetuned ones."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mtop_batch.data.entities.spans import Entities
from mtop_batch.data.sets.task_files import TaskExamples, write_tasks
from mtop_batch.data.tokens import TextTokenizer
from mtop_batch.errors import ConfigError, DataError, TaskError
from mtop_batch.experiments.methods.tables import METHODS, TABLE_METHODS
from mtop_batch.experiments.page.page import results_page
from mtop_batch.experiments.page.plots import results_plots
from mtop_batch.experiments.page.statistics import Drawn, TestOutputs, differences
from mtop_batch.experiments.page.summary import tables
from mtop_batch.experiments.runs.data_set import DataSet, digest_of, tasks_of
from mtop_batch.experiments.runs.prepared import Prepared, prepare
from mtop_batch.experiments.runs.read import read_data_set, read_for
from mtop_batch.experiments.runs.records import DataRecord, Records, RunRecord, pack_entities, unpack
from mtop_batch.experiments.runs.run import run_spec
from mtop_batch.experiments.runs.specs import RunSettings, RunSpec, make_spec
from mtop_batch.experiments.runs.speed import measure_speed
from mtop_batch.tasks import Task
from mtop_batch.training.one_process import Encoder
from mtop_batch.training.settings import Event, Worker
from mtop_batch.training.unfinished import Unfinished
from tests.conftest import WORDS, make_tokenizer
from tests.experiments.conftest import QUICK, SIZES, TOPICS, _examples

PREFINETUNED = [name for name in TABLE_METHODS["families"] if METHODS[name].prefinetune]


class Killed(Exception):
    """The process is gone."""


def words_and_tags(seed: str, size: int) -> pa.Table:
    """A word of a topic is an entity of that type."""
    draws = random.Random(seed)
    rows = [draws.choices(WORDS, k=draws.randint(2, 6)) for _ in range(size)]
    types = {word: topic for topic, own in TOPICS.items() for word in own}
    tags = [[f"B-{types[word]}" if word in types else "O" for word in row] for row in rows]
    return pa.table({"tokens": rows, "label": tags})


def write_families(root: Path, names: Sequence[str] = ("names", "others")) -> Path:
    """Two token tasks and two topics."""
    sizes: dict[Any, int] = {**SIZES}
    tasks = [
        TaskExamples(
            Task(name, "token", tuple(TOPICS), ("tokens",)),
            {part: words_and_tags(f"{name}/{part}", size) for part, size in sizes.items()},
        )
        for name in names
    ]
    for topic in TOPICS:
        parts = {part: _examples(random.Random(f"{topic}/{part}"), topic, size) for part, size in sizes.items()}
        tasks.append(TaskExamples(Task(topic, text=("headline",)), parts))
    write_tasks(str(root), tasks, "a test")
    return root / "tasks.toml"


@pytest.fixture(scope="module")
def tasks_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_families(tmp_path_factory.mktemp("families"))


@pytest.fixture(scope="module")
def data_set(tasks_file: Path) -> DataSet:
    return read_data_set("families", str(tasks_file))


@pytest.fixture(scope="module")
def prepared(data_set: DataSet) -> Prepared:
    return prepare(data_set, TextTokenizer(make_tokenizer(), 16), None)


def spec_of(data: DataSet, method: str, seed: int = 0, **settings: Any) -> RunSpec:
    """A short run."""
    given = RunSettings("tiny", max_tokens=16, train=QUICK, **settings)
    return make_spec(method, seed, data, given)


def run(spec: RunSpec, prepared: Prepared, data: DataSet, encoder: Encoder, **options: Any) -> RunRecord:
    return run_spec(spec, prepared, data.configs, encoder, **options)


def same(record: RunRecord) -> str:
    """A record without what differs from one time to the next; what is undefined equals nothing, so as text."""
    return repr(replace(record, seconds={}, finished=""))


@pytest.mark.parametrize("method", TABLE_METHODS["families"])
def test_every_way_to_share_has_entities_and_labels(
    method: str, prepared: Prepared, data_set: DataSet, encoder: Encoder
) -> None:
    record = run(spec_of(data_set, method), prepared, data_set, encoder)
    for task in data_set.tasks:
        examples = prepared.test[task.config.name]
        said = unpack(record.predictions[task.config.name])
        assert len(said) == SIZES["test"]
        if examples.entities is None:
            assert record.test[task.config.name]["accuracy"] == np.mean(said == examples.labels)
            continue
        f1 = 2 * said[:, 1].sum() / max(1, said[:, 0].sum() + len(examples.entities.values))
        assert record.test[task.config.name]["entity_f1"] == pytest.approx(f1)
    passes = {"families-alone": 4, "families-each": 2, "families-naive": 1, "families": 2}
    assert record.passes == passes[method.removesuffix("-prefinetuned")]
    assert set(record.history[-1]["tasks"]) <= {task.config.name for task in data_set.tasks}
    assert (record.seconds.get("prefinetune", 0) > 0) == (method in PREFINETUNED)
    again = RunRecord.from_dict(json.loads(record.to_json()))
    assert again.to_json() == record.to_json()
    assert repr(again) == repr(record)


@pytest.mark.parametrize("method", ["families-each", "families", *PREFINETUNED])
def test_a_killed_run_goes_on_from_its_checkpoint(
    method: str, prepared: Prepared, data_set: DataSet, encoder: Encoder, tmp_path: Path
) -> None:
    spec = spec_of(data_set, method)
    undisturbed = run(spec, prepared, data_set, encoder)
    evaluations = 0

    def kill(event: Event) -> None:
        nonlocal evaluations
        evaluations += event["event"] == "evaluation"
        if evaluations == 2:
            raise Killed

    unfinished, kept = Unfinished(str(tmp_path / "run")), str(tmp_path / "kept")
    with pytest.raises(Killed):
        run(spec, prepared, data_set, encoder, worker=Worker(event_sink=kill), unfinished=unfinished, kept=kept)
    starts: list[int] = []

    def note(event: Event) -> None:
        if event["event"] == "start":
            starts.append(event["step"])

    record = run(spec, prepared, data_set, encoder, worker=Worker(event_sink=note), unfinished=unfinished, kept=kept)
    assert starts[0] > 0
    assert same(record) == same(undisturbed)


@pytest.mark.parametrize("method", PREFINETUNED)
def test_a_pre_finetuning_is_done_once_for_all_seeds(
    method: str, prepared: Prepared, data_set: DataSet, encoder: Encoder, tmp_path: Path
) -> None:
    events: list[Event] = []
    worker = Worker(event_sink=lambda event: events.append(event) if event["event"] == "start" else None)
    num_models = 2 if "each" in method else 1
    for seed in (0, 1):
        run(spec_of(data_set, method, seed), prepared, data_set, encoder, worker=worker, kept=str(tmp_path))
        assert len(events) == num_models * (2 + seed)
        assert len(list(tmp_path.iterdir())) == num_models
    few = spec_of(data_set, method, examples=10)
    run(few, prepare(data_set, TextTokenizer(make_tokenizer(), 16), 10), data_set, encoder, kept=str(tmp_path))
    assert len(list(tmp_path.iterdir())) == 2 * num_models, "fewer examples are another pre-finetuning"


def test_a_killed_pre_finetuning_counts_only_when_it_is_whole(
    prepared: Prepared, data_set: DataSet, encoder: Encoder, tmp_path: Path
) -> None:
    def kill(event: Event) -> None:
        if event["event"] == "step" and event["step"] > 1:
            raise Killed

    spec = spec_of(data_set, "families-prefinetuned")
    with pytest.raises(Killed):
        run(spec, prepared, data_set, encoder, worker=Worker(event_sink=kill), kept=str(tmp_path))
    assert not list(tmp_path.glob("*/families.json"))
    found = run(spec, prepared, data_set, encoder, kept=str(tmp_path))
    assert same(found) == same(run(spec, prepared, data_set, encoder))
    assert not list(tmp_path.glob("*.unfinished"))


def test_source_tasks_are_learned_in_place_of_the_tasks(
    tasks_file: Path, encoder: Encoder, tmp_path: Path, prepared: Prepared, data_set: DataSet
) -> None:
    copy = tmp_path / "data"
    tasks = write_families(copy)
    (copy / "sources.toml").write_text(write_families(tmp_path / "before", ("more",)).read_text())
    without = read_for(["families"], "families", str(tasks))
    assert (without.digest, without.sources) == (data_set.digest, ())
    data = read_for(["families-prefinetuned"], "families", str(tasks))
    assert data.digest == data_set.digest
    assert [source.config.name for source in data.sources] == ["more", *TOPICS]
    evaluated = {text for task in data.tasks for part in (task.eval, task.test) for text in part.texts}
    assert not evaluated & {text for source in data.sources for text in source.train.texts}
    spec = spec_of(data, "families-prefinetuned")
    assert spec.digest != spec_of(data_set, "families-prefinetuned").digest
    assert spec_of(data, "families").digest == spec_of(data_set, "families").digest
    own = prepare(data, TextTokenizer(make_tokenizer(), 16), None)
    record = run(spec, own, data, encoder, kept=str(tmp_path / "kept"))
    assert record.test != run(spec_of(data_set, "families-prefinetuned"), prepared, data_set, encoder).test
    # The source tasks are the same for any number of examples of the tasks.
    assert record.spec.prefinetune == spec_of(data, "families-prefinetuned", fraction=0.5).prefinetune


@pytest.mark.parametrize("primaries", [("sport",), ("names", "business")])
@pytest.mark.parametrize("name", TABLE_METHODS["families"])
def test_only_primary_tasks_are_judged(
    name: str, primaries: tuple[str, ...], data_set: DataSet, prepared: Prepared, encoder: Encoder
) -> None:
    some = data_set.with_primaries(primaries)
    spec, (learned, judged) = spec_of(some, name), tasks_of(METHODS[name], some)
    record = run_spec(spec, prepared.of(learned.names, judged.names), learned.configs, encoder)
    assert set(record.test) == set(record.predictions) == set(record.dev) == set(primaries)


def test_a_family_without_sources_begins_as_pretrained(encoder: Encoder, tmp_path: Path) -> None:
    tasks = write_families(tmp_path / "data")
    before = write_families(tmp_path / "before", ("more",)).read_text()
    (tmp_path / "data" / "sources.toml").write_text(before[: before.index("\n[[task]]", before.index("more"))])
    data = read_for(["families-each-prefinetuned"], "families", str(tasks))
    own = prepare(data, TextTokenizer(make_tokenizer(), 16), None)
    record, plain = (
        run(spec_of(data, method), own, data, encoder, kept=str(tmp_path / "kept"))
        for method in ("families-each-prefinetuned", "families-each")
    )
    assert len(list((tmp_path / "kept").iterdir())) == 1
    assert record.test["names"] != plain.test["names"]
    assert record.test["sport"] == plain.test["sport"]


def test_sources_that_are_all_evaluated_on_are_refused(tasks_file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "data"
    tasks = write_families(copy)
    text = tasks.read_text().replace("train.parquet", "eval.parquet")
    (copy / "sources.toml").write_text(text)
    with pytest.raises(DataError, match="all training texts of 'names' are in the evaluation or test part"):
        read_for(["families-prefinetuned"], "families", str(tasks))


@pytest.mark.parametrize("method", ["single-task", "mt-dnn", "ca-mtl"])
def test_methods_without_token_tasks_say_so_before_work(method: str, data_set: DataSet) -> None:
    with pytest.raises(TaskError, match=f"task 'names': reads = 'words' is not what a '{method}' model has"):
        spec_of(data_set, method)


def test_a_fraction_is_the_same_share_of_every_task(data_set: DataSet) -> None:
    tokenizer = TextTokenizer(make_tokenizer(), 16)
    half, third = (prepare(data_set, tokenizer, None, share) for share in (0.5, 1 / 3))
    for few, more in zip(third.train, half.train, strict=True):
        assert (len(few.train), len(more.train)) == (8, 12)
        assert few.train.labels.tolist() == more.train.labels[:8].tolist()
    assert spec_of(data_set, "families", fraction=0.5).digest != spec_of(data_set, "families").digest
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"fraction": 0}, "--fraction 0 is no share"),
        ({"fraction": 1.5}, "--fraction 1.5 is no share"),
        ({"fraction": 0.5, "examples": 3}, "give one of them"),
    ]
    for settings, message in wrong:
        with pytest.raises(ConfigError, match=message):
            RunSettings("tiny", **settings)


def test_entities_change_the_digest_of_the_data(data_set: DataSet) -> None:
    task = data_set.tasks[0]
    assert task.train.entities is not None
    moved = Entities.from_rows([[(0, 0, 3, 0)] for _ in range(len(task.train))])
    other = replace(task, train=replace(task.train, entities=moved))
    assert digest_of([other]) != digest_of([task])


def test_f1_of_drawn_texts_is_that_of_their_entities() -> None:
    rng = np.random.default_rng(0)

    def draw() -> list[list[Any]]:
        return [[(0, 2 * n, 2 * n + 1, int(rng.integers(2))) for n in range(rng.integers(4))] for _ in range(40)]

    given, found = Entities.from_rows(draw()), Entities.from_rows(draw())
    said = unpack(pack_entities(given, found))
    outputs = TestOutputs(said[None], np.diff(given.offsets).astype(float), "entity_f1", 5)
    from mtop_batch.data.entities.spans import count_entities

    assert outputs.value() == pytest.approx([count_entities(given, found, 2)[0].f1])
    rows = rng.integers(40, size=40)
    weights = np.bincount(rows, minlength=40)[None].astype(float)
    expected = count_entities(given.take(rows), found.take(rows), 2)[0].f1
    assert outputs.samples(weights)[0] == pytest.approx([expected])
    perfect = replace(outputs, predictions=unpack(pack_entities(given, given))[None])
    assert differences(Drawn.of([perfect]), Drawn.of([outputs])).mean().low > 0


def test_the_speed_is_measured_on_texts_whose_words_are_known(
    prepared: Prepared, data_set: DataSet, encoder: Encoder
) -> None:
    spec = spec_of(data_set, "families")
    record = measure_speed(spec, data_set, prepared, encoder, worker=Worker(), documents=20)
    assert record.documents_per_s > 0


@pytest.fixture(scope="module")
def records(data_set: DataSet, prepared: Prepared, backbone_dir: Path) -> Records:
    """The table with two seeds of some rows."""
    from mtop_batch.model.encoder.backbone import load_backbone

    encoder = Encoder(load_backbone(str(backbone_dir)), make_tokenizer())
    specs = [
        spec_of(data_set, method, seed, fraction=0.5)
        for method in ("families-naive", "families", "families-prefinetuned")
        for seed in (0, 1)
    ]
    data = DataRecord.of(data_set)
    return Records([run(spec, prepared, data_set, encoder) for spec in specs], {data.digest: data}, [])


def test_each_family_has_a_mean_and_a_difference(records: Records) -> None:
    (table,) = tables(records)
    assert table.name == "families"
    rows = {row.method: row for row in table.rows}
    assert set(rows) == {run.spec.method for run in records.runs}
    found = rows["families-naive"]
    names = {"entities": ["names", "others"], "texts": list(TOPICS)}
    for family, tasks in names.items():
        of_seeds = [
            np.mean([100 * run.test[task][str(metric)] for task, metric in metric_of(table.tasks) if task in tasks])
            for run in found.runs.values()
        ]
        assert found.families[family].spread.median == pytest.approx(np.median(of_seeds))
        assert rows["families"].families[family].difference is None
    both = [found.families[family].difference for family in names]
    (compared,) = found.comparisons.values()
    assert compared.difference.mean == pytest.approx(np.mean([each.mean for each in both if each is not None]))
    assert "families-alone" not in rows


def metric_of(tasks: Sequence[Task]) -> list[tuple[str, str]]:
    return [(task.name, str(task.metric)) for task in tasks]


def test_the_page_and_the_plot_are_about_both_families(records: Records) -> None:
    page = results_page(records, "results", {})
    assert "## Entities beside texts (task-primary LoRA)" in page
    assert "### families: 50 % of the examples of a task, `tiny`" in page
    assert "| names (entity_f1) | others (entity_f1) | sport | business | mean, entities | mean, texts | mean |" in page
    assert "| to Task-primary LoRA, points | 95 % interval | entities, points | 95 % interval | texts, points |" in page
    assert "the very training examples of the tasks, no others" in page
    assert "* Not run with these settings: " in page
    for block in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1
    (plot,) = results_plots(records)
    assert plot[0] == "families.png"
    assert plot[2].startswith(b"\x89PNG")


def test_the_runs_that_were_made_keep_their_digests() -> None:
    """What decides a run may get new parts; they leave the digests of runs without them alone."""
    results = Path(__file__).parents[2] / "docs" / "results"
    files = [path for path in results.glob("*.json") if not path.name.startswith(("data-", "speed-"))]
    assert files
    for path in files:
        assert RunRecord.from_dict(json.loads(path.read_bytes())).spec.digest == path.stem
