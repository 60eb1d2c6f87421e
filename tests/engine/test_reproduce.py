"""The experiments on a real local Ray."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtop_batch.data.sets.many import build_many
from mtop_batch.data.sets.nhc import TOPICS
from mtop_batch.engine.monitoring.progress import Progress
from mtop_batch.engine.reproduce import Reproduced, ReproduceOptions, reproduce
from mtop_batch.errors import ConfigError
from mtop_batch.experiments.methods.tables import BUILT_BY, DATA_FILES, METHODS, TABLE_METHODS, DataName, methods_of
from mtop_batch.experiments.runs.records import RunRecord
from mtop_batch.experiments.runs.specs import RunSettings
from tests.conftest import WORDS, make_backbone, make_tokenizer
from tests.documents import run_mtop
from tests.experiments.conftest import QUICK, SIZES, write_data_set
from tests.experiments.test_families import words_and_tags, write_families

pytestmark = pytest.mark.usefixtures("ray_local")


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory, backbone_dir: Path) -> ReproduceOptions:
    root = tmp_path_factory.mktemp("reproduce")
    return ReproduceOptions(
        table="news",
        methods=("mt-dnn", "single-task"),
        seeds=(0, 1),
        settings=RunSettings(str(backbone_dir), max_tokens=16, train=QUICK),
        tasks=str(write_data_set(root / "data")),
        results=str(root / "results"),
    )


def run(options: ReproduceOptions, *, plan_only: bool = False) -> Reproduced:
    with Progress() as progress:
        return reproduce(options, progress=progress, plan_only=plan_only)


def without_times(page: str) -> list[str]:
    """The page without what differs from one run of the same to the next: seconds and dates."""
    lines = [line for line in page.splitlines() if not re.match(r"\d+ runs, ", line)]
    return [re.sub(r"\s+", " ", line).rsplit("|", 2)[0] if line.endswith("|") else line for line in lines]


@pytest.mark.slow
def test_a_rerun_does_only_what_is_missing(options: ReproduceOptions) -> None:
    first = run(options)
    assert (len(first.done), len(first.known)) == (4, 0)
    results = Path(options.results)
    assert {path.stem for path in results.glob("*.json")} > set(first.done)
    assert not list(results.glob("*.unfinished"))
    page = Path(first.page).read_text()
    assert "| MT-DNN | 2 |" in page
    assert "not measured" not in page
    again = run(options)
    assert (again.done, set(again.known)) == ((), set(first.done))
    lost = results / f"{first.done[0]}.json"
    before = RunRecord.from_dict(json.loads(lost.read_bytes()))
    lost.unlink()
    assert run(options, plan_only=True).missing == (first.done[0],)
    assert run(replace(options, speed=False)).done == (first.done[0],)
    after = RunRecord.from_dict(json.loads(lost.read_bytes()))
    assert (after.predictions, after.test) == (before.predictions, before.test)
    assert without_times(Path(first.page).read_text()) == without_times(page)


def test_a_quick_trial_keeps_apart(options: ReproduceOptions) -> None:
    done = run(replace(options, quick=True, methods=("mt-dnn",), speed=False))
    assert len(done.done) == 1
    assert done.page == f"{options.results}/quick.md"
    assert "Rows with fewer than five seeds" in Path(done.page).read_text()


@pytest.mark.parametrize("key", ["epochs", "train.epochs"])
def test_values_of_train_are_given_as_in_other_commands(
    key: str, options: ReproduceOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--methods", "mt-dnn", "--seeds", "0", "--backbone", options.settings.backbone, "--plan"]
    where = ["--tasks", str(options.tasks), "--results", options.results]
    for epochs in (1, 3):
        run_mtop(["reproduce", "news", *arguments, *where, "--set", f"{key}={epochs}"], capsys)
        said = capsys.readouterr().out
        assert f"1 runs are missing, which train on {3 * SIZES['train'] * epochs} examples" in said


def test_a_run_trains_in_the_wanted_precision(options: ReproduceOptions, tmp_path: Path) -> None:
    settings = replace(options.settings, train={**QUICK, "precision": "bf16"})
    wanted = replace(options, quick=True, methods=("mt-dnn",), speed=False, settings=settings)
    done = run(replace(wanted, results=str(tmp_path)))
    record = json.loads((tmp_path / "quick" / f"{done.done[0]}.json").read_bytes())
    assert record["machine"]["precision"] == "bf16"
    assert "precision" not in record["spec"]["train"]


@pytest.mark.slow
def test_the_table_of_auxiliary_tasks_is_tried_by_one_command(options: ReproduceOptions, tmp_path: Path) -> None:
    wanted = replace(options, table="auxiliary", methods=(), on="news", results=str(tmp_path / "results"), quick=True)
    assert len(run(wanted).done) == len(TABLE_METHODS["auxiliary"])
    page = (tmp_path / "results" / "quick.md").read_text()
    for name in TABLE_METHODS["auxiliary"]:
        assert f"| {METHODS[name].title} | 1 |" in page
    assert "| steps of choosing |" in page
    assert (tmp_path / "results" / "quick" / "auxiliary.png").exists()


@pytest.fixture(scope="module")
def many_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve tasks of six sites, and a large one."""
    root = tmp_path_factory.mktemp("many")
    rng = random.Random(0)
    labels = [f"topic {number}" for number in range(6)]
    texts = [f"{rng.choice(WORDS)} {rng.choice(WORDS)} {number}" for number in range(400)]
    pq.write_table(pa.table({"text": texts, "label": [labels[n % 6] for n in range(400)]}), root / "topics.parquet")
    source = str(root / "topics.parquet")
    build_many({"topics": source}, str(root / "data"), sites=6, least=40, most=60, whole={"large": source})
    return root / "data" / "tasks.toml"


@pytest.fixture
def many_options(options: ReproduceOptions, many_file: Path, tmp_path: Path) -> ReproduceOptions:
    backbone = tmp_path / "backbone"
    make_backbone(width=128).save_pretrained(backbone)  # wider than the poolers' rank
    make_tokenizer().save_pretrained(backbone)
    settings = replace(options.settings, backbone=str(backbone), train={**QUICK, "batch_size": 32})
    return replace(
        options, table="many", methods=(), settings=settings, tasks=str(many_file), results=str(tmp_path / "results")
    )


def test_a_plan_of_many_tasks_counts_examples_and_names_what_is_left_out(
    many_options: ReproduceOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = run(many_options, plan_only=True)
    told = capsys.readouterr()
    assert "left out many-1000: a method wants 1,000 tasks" in told.out + told.err
    fewer = [name for name in methods_of("many") if name.startswith(("many-of-25", "many-of-50", "many-of-75"))]
    of_thousand = {"many-1000", "many-1000-epochs", "many-large-1000", "many-large-1000-epochs"}
    left_out = {"many-500", "many-500-epochs", *of_thousand, *fewer}
    assert len(plan.missing) == 2 * (len(methods_of("many")) - len(left_out))
    assert plan.examples > 0
    with pytest.raises(ConfigError, match="a method wants 500 tasks, and the data set 'many' has 12"):
        run(replace(many_options, methods=("many-500",)), plan_only=True)


@pytest.mark.slow
def test_a_run_that_needs_the_encoder_of_another_has_that_done_first(many_options: ReproduceOptions) -> None:
    wanted = replace(many_options, methods=("many-large-100",), seeds=(0,), speed=False)
    first = run(wanted)
    assert len(first.done) == 2  # that of "many" too
    results = Path(wanted.results)
    encoders = list((results / "encoders").iterdir())
    assert len(encoders) == 1
    dependent = next(digest for digest in first.done if digest != encoders[0].stem)
    (results / f"{dependent}.json").unlink()
    encoders[0].unlink()
    assert set(run(wanted, plan_only=True).missing) == set(first.done)
    assert set(run(wanted).done) == set(first.done)
    encoders[0].unlink()
    assert run(wanted).done == ()  # nothing needs it any more


@pytest.mark.slow
def test_all_tables_of_many_tasks_are_tried_by_one_command(many_options: ReproduceOptions) -> None:
    done = run(replace(many_options, quick=True))
    assert len(done.done) == len(methods_of("many"))
    page = Path(done.page).read_text()
    for name in ("many", "many-alpha", "many-reads", "many-numbers", "many-transfer"):
        for method in TABLE_METHODS[name]:
            assert re.search(rf"\| {re.escape(METHODS[method].title)} \| [\d,]+ \| [\d,]+ \| 1 \|", page), method
    assert "times one task" in page
    assert "| tasks | seeds | alpha 1, width 64 |" in page
    assert not list(Path(many_options.results).glob("**/*.unfinished"))


@pytest.mark.slow
def test_the_table_of_families_is_tried_by_one_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text_tasks = write_families(tmp_path / "texts", ())
    for part, size in (("train", 24), ("dev", 12), ("test", 12)):
        (tmp_path / "names").mkdir(exist_ok=True)
        words = words_and_tags(part, size).rename_columns(["tokens", "tags"])
        pq.write_table(words, tmp_path / "names" / f"{part}.parquet")
    data, results = tmp_path / "families", tmp_path / "results"
    entities = ["--entities", f"names={tmp_path / 'names'}"]
    run_mtop(["build-families", *entities, "--texts", str(text_tasks), "--output", str(data)], capsys)
    assert "24 train     12 eval     12 test" in capsys.readouterr().out
    backbone = tmp_path / "backbone"
    make_backbone(max_tokens=128).save_pretrained(backbone)
    make_tokenizer().save_pretrained(backbone)
    where = ["--backbone", str(backbone), "--tasks", str(data / "tasks.toml"), "--results", str(results)]
    run_mtop(["reproduce", "families", "--quick", *where], capsys)
    page = (results / "quick.md").read_text()
    for name in TABLE_METHODS["families"]:
        assert f"| {METHODS[name].title} | 1 |" in page
    assert (results / "quick" / "families.png").exists()
    assert len(list((results / "quick" / "prefinetuned").iterdir())) == 4
    run_mtop(["reproduce", "families", "--quick", *where], capsys)
    assert "0 runs done, 7 were there" in capsys.readouterr().out


@pytest.mark.slow
def test_the_whole_news_table_is_tried_by_one_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backbone = tmp_path / "backbone"
    make_backbone(max_tokens=128).save_pretrained(backbone)
    make_tokenizer().save_pretrained(backbone)
    rows = [
        {"category": category, "headline": f"{category} {random.Random(number).choice(WORDS)} {number}"}
        for category in [*TOPICS.values(), "SPORTS"]
        for number in range(60)
    ]
    (tmp_path / "news.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data, results = tmp_path / "nhc", tmp_path / "results"
    run_mtop(["build-nhc", "--source", str(tmp_path / "news.json"), "--output", str(data)], capsys)
    where = ["--backbone", str(backbone), "--tasks", str(data / "tasks.toml"), "--results", str(results)]
    run_mtop(["reproduce", "news", "--quick", *where], capsys)
    page = (results / "quick.md").read_text()
    for name in TABLE_METHODS["news"]:
        assert f"| {METHODS[name].title} | 1 |" in page
    assert "not measured" not in page
    assert {path.name for path in (results / "quick").glob("*.png")} == {"news-curves.png", "news-speed.png"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"table": "table-1"}, "there is no table 'table-1'; allowed: news, glue"),
        ({"methods": ("bert",)}, "there is no method 'bert'"),
        ({"on": "imdb"}, "--on 'imdb' is not a data set; allowed: news, glue"),
        ({"seeds": ()}, "--seeds .* cannot be used"),
        ({"tasks": "nowhere.toml"}, "there is no configuration file 'nowhere.toml'"),
        ({"primaries": ("tennis",)}, "--primaries 'tennis' is not a task of the data set"),
    ],
)
def test_what_cannot_work_is_refused_before_work_starts(
    options: ReproduceOptions, change: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(replace(options, **change))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", get_args(DataName))
def test_a_data_set_that_is_not_there_names_the_command_that_makes_it(
    name: DataName, options: ReproduceOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"there is no {DATA_FILES[name]}/tasks\.toml.*`{BUILT_BY[name]}`.*--tasks"):
        run(replace(options, on=name, tasks=None))
