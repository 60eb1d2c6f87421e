"""Decisions through the whole product, on a real local Ray: fitted, kept, and changed without a forward pass."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mtop_batch import Predictor, read_labels
from mtop_batch.cli.predict import Given, predict
from mtop_batch.config.sections import Config
from mtop_batch.engine.add_tasks import drop_tasks
from mtop_batch.engine.calibrate import CalibrateResult, calibrate_bundle
from mtop_batch.engine.labelling.label import LabelOptions, label_corpus
from mtop_batch.engine.monitoring.progress import Progress
from mtop_batch.engine.train import train
from mtop_batch.errors import ConfigError, TaskError
from mtop_batch.model.bundle.bundle import load_bundle
from mtop_batch.model.bundle.files import read_bundle_info, read_decisions
from mtop_batch.table.gate.rules import Rules
from tests.engine.conftest import MakeConfig
from tests.engine.test_add_tasks import add, write_config
from tests.engine.test_label import write_articles

pytestmark = pytest.mark.usefixtures("ray_local")

TEXTS = ["match goal team", "bank market profit", "team goal bank market", "film star vote", "", "player cup economy"]
RULE = 'excludes("sport:yes", "business:yes")'
OPEN = Rules(max_label_share_change=1.0, max_flips=1.0, max_new_share_change=1.0)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, make_config: MakeConfig) -> Config:
    return make_config(tmp_path_factory.mktemp("bundle") / "model")


@pytest.fixture(scope="module")
def model(config: Config) -> str:
    with Progress(Console(quiet=True)) as progress:
        train(config, progress=progress)
    return config.output


def changed(config: Config, rules: tuple[str, ...] | None = None, **keys: Any) -> Config:
    """The configuration with other keys for its first task."""
    first = type(config.task[0]).model_validate({**config.task[0].model_dump(), **keys})
    return config.model_copy(update={"task": (first, *config.task[1:]), "rules": rules})


def calibrate(model: str, config: Config, output: Path, **options: Any) -> CalibrateResult:
    with Progress(Console(quiet=True)) as progress:
        return calibrate_bundle(model, config, str(output), progress=progress, **options)


def label(model: str, root: Path, labels: str = "labels", **options: Any) -> dict[str, Any]:
    options = {"text_columns": ("body",), "gate": OPEN, **options}
    return label_corpus(LabelOptions(model, f"{root}/corpus", f"{root}/{labels}", **options))


def test_a_training_ends_with_probabilities_that_can_be_trusted(model: str) -> None:
    bundle = load_bundle(model)
    for name, report in read_decisions(model).items():
        assert bundle.model.task(name).decision.temperature == report["temperature"] != 1
        assert bundle.metrics[name]["ece"] == report["after"]["error"]
        assert {"ece_before", "ece", "brier", "accuracy"} <= bundle.metrics[name].keys()
    card = (Path(model) / "README.md").read_text()
    assert "| task | temperature | ECE before | ECE | Brier | decides |" in card
    assert "![How often a label is right, by its score](reliability.png)" in card
    assert (Path(model) / "reliability.png").read_bytes().startswith(b"\x89PNG")


def test_a_changed_decision_is_labelled_without_the_weights(model: str, config: Config, tmp_path: Path) -> None:
    write_articles(f"{tmp_path}/corpus/a.parquet", TEXTS)
    label(model, tmp_path)
    before = read_labels(f"{tmp_path}/labels")
    result = calibrate(model, changed(config, (RULE,), decide={"threshold": 0.2}), tmp_path / "m2")
    assert (result.changed, result.rules) == (("sport", "business"), (RULE,))
    assert read_bundle_info(str(tmp_path / "m2")).fingerprints == read_bundle_info(model).fingerprints
    expected = Predictor.load(str(tmp_path / "m2")).predict(TEXTS)
    label(str(tmp_path / "m2"), tmp_path, "fresh")
    weights = tmp_path / "m2" / "model.safetensors"
    weights.rename(tmp_path / "weights")
    report = label(str(tmp_path / "m2"), tmp_path)
    assert (report["cells_from_scores"], report["cells_done"], report["num_tokens"]) == (12, 12, 0)
    assert report["planned_reasons"] == {"decision changed": 12}
    table = read_labels(f"{tmp_path}/labels")
    assert table.equals(read_labels(f"{tmp_path}/fresh"))
    for column in ("sport_label", "business_label", "sport_score", "error"):
        assert table[column].to_pylist() == expected[column].to_pylist()
    # Nothing is left to do, and the former decision is in the store.
    assert label(str(tmp_path / "m2"), tmp_path)["cells_planned"] == 0
    shutil.rmtree(tmp_path / "m2")
    report = label(model, tmp_path)
    assert (report["cells_planned"], report["cells_done"]) == (0, 0)
    assert read_labels(f"{tmp_path}/labels").equals(before)


def test_what_is_kept_of_scores_comes_from_the_configuration(model: str, config: Config, tmp_path: Path) -> None:
    write_articles(f"{tmp_path}/corpus/a.parquet", TEXTS)
    label(model, tmp_path)
    before = read_labels(f"{tmp_path}/labels")
    result = calibrate(model, changed(config, scores="all"), tmp_path / "m2")
    assert (result.stored, result.changed) == (("sport",), ())
    was, now = read_bundle_info(model), read_bundle_info(str(tmp_path / "m2"))
    assert (now.fingerprints, now.decisions) == (was.fingerprints, was.decisions)
    report = label(str(tmp_path / "m2"), tmp_path)
    assert report["planned_reasons"] == {"scores of all labels wanted": 6}
    assert report["cells_from_scores"] == report["cells_done"] == 6
    table = read_labels(f"{tmp_path}/labels")
    assert table.drop_columns(["sport_scores"]).equals(before)
    for scores, score in zip(table["sport_scores"].to_pylist(), table["sport_score"].to_pylist(), strict=True):
        assert scores is score is None or max(scores) == score
    # A configuration that does not speak of it wants what every task keeps; what is stored is enough for that.
    assert calibrate(str(tmp_path / "m2"), config, tmp_path / "m3").stored == ("sport",)
    assert label(str(tmp_path / "m3"), tmp_path)["cells_planned"] == 0
    assert load_bundle(str(tmp_path / "m2")).training_config["task"][0]["scores"] == "all"


def test_a_task_that_is_tied_is_not_labelled_alone(model: str, config: Config, tmp_path: Path) -> None:
    calibrate(model, changed(config, (RULE,)), tmp_path / "m2")
    write_articles(f"{tmp_path}/corpus/a.parquet", TEXTS)
    with pytest.raises(TaskError, match=r"the rule .* ties .* which is left out"):
        label(str(tmp_path / "m2"), tmp_path, tasks=("sport",))
    with pytest.raises(TaskError, match="which is left out"):
        Predictor.load(str(tmp_path / "m2"), tasks=["sport"])
    with pytest.raises(TaskError, match="which is left out"):
        drop_tasks(str(tmp_path / "m2"), ["sport"], str(tmp_path / "m3"))


def test_predict_marks_what_is_not_the_likeliest(model: str, config: Config, tmp_path: Path) -> None:
    given = [Given(text) for text in TEXTS[:4]]
    plain = predict(model, given, "fp32", lambda _: None)
    calibrate(model, changed(config, (RULE,), abstain_below=0.999), tmp_path / "m2")
    rows = predict(str(tmp_path / "m2"), given, "fp32", lambda _: None)
    for row, was in zip(rows, plain, strict=True):
        assert set(row["sport_scores"]) == {"no", "yes"}
        assert row["sport_scores"] == pytest.approx(was["sport_scores"])
        assert row["sport_label"] is None
        assert row["sport_abstained"] is True
        assert "business_abstained" not in row
        both = was["sport_label"] == was["business_label"] == "yes"
        assert both == (row["sport_corrected"] or row["business_corrected"])


def test_the_same_calibration_is_not_done_twice(model: str, config: Config, tmp_path: Path) -> None:
    wanted = changed(config, decide={"precision": 0.5})
    first = calibrate(model, wanted, tmp_path / "m2")
    again = calibrate(model, wanted, tmp_path / "m2")
    assert (first.was_there, again.was_there) == (False, True)
    assert again.tasks == first.tasks
    with pytest.raises(ConfigError, match="holds the bundle of another configuration"):
        calibrate(model, config, tmp_path / "m2")
    assert calibrate(model, config, tmp_path / "m2", overwrite=True).changed == ()
    with pytest.raises(ConfigError, match="is the bundle itself"):
        calibrate(model, config, Path(model))


@pytest.mark.parametrize(
    ("keys", "rules", "message"),
    [
        ({"labels": ["yes", "no"]}, None, "labels = .* in the configuration"),
        ({}, ('implies("sport:yes", "film:yes")',), "names a task 'film', which there is not"),
        ({}, ('implies("sport:maybe", "business:yes")',), "names a label 'maybe'"),
        ({}, ('implies("sport:yes", "business:yes")', RULE), "contradict each other"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(
    model: str, config: Config, tmp_path: Path, keys: dict[str, Any], rules: tuple[str, ...] | None, message: str
) -> None:
    with pytest.raises(TaskError, match=message):
        calibrate(model, changed(config, rules, **keys), tmp_path / "m2")
    assert not (tmp_path / "m2").exists()


@pytest.mark.slow
def test_a_precision_that_cannot_be_reached_is_said(config: Config, tmp_path: Path) -> None:
    """Both evaluation texts of a kind have one of either label, so no threshold parts them."""
    data = tmp_path / "coin.parquet"
    write_articles(str(data), ["match goal", "match goal", "bank market", "bank market"], label=["no", "yes"] * 2)
    coin = {"name": "coin", "labels": ["no", "yes"], "text": ["body"], "train": str(data), "eval": str(data)}
    wanted = type(config.task[0]).model_validate({**coin, "decide": {"precision": 0.9}})
    once = config.model_copy(update={"task": (*config.task, wanted), "output": str(tmp_path / "m")})
    message = "task 'coin': a precision of 0.9 cannot be reached by any threshold on its 4 .* 'yes' 0.500"
    for _ in range(2):  # the bundle is written all the same, for a training is dear; and the same command says it again
        with pytest.raises(TaskError, match=message), Progress(Console(quiet=True)) as progress:
            train(once, progress=progress)
    assert load_bundle(once.output).model.task("coin").decision.thresholds == ()
    with pytest.raises(TaskError, match=message):
        calibrate(once.output, once.model_copy(update={"task": (wanted,)}), tmp_path / "m2")
    assert not (tmp_path / "m2").exists()
    calibrate(once.output, once.model_copy(update={"task": (coin_of(wanted, 0.5),)}), tmp_path / "m2")
    report = read_decisions(str(tmp_path / "m2"))["coin"]
    assert report["labels"][0]["precision"] == 0.5
    assert "problem" not in json.dumps(report)


def coin_of(task: Any, precision: float) -> Any:
    return type(task).model_validate({**task.model_dump(), "decide": {"precision": precision}})


def test_added_tasks_are_calibrated_and_the_others_decide_as_before(
    model: str, config: Config, tmp_path: Path, task_tables: list[dict[str, Any]]
) -> None:
    calibrate(model, changed(config, (RULE,), decide={"threshold": 0.7}), tmp_path / "m2")
    path = write_config(tmp_path / "new.toml", [{**task_tables[1], "name": "trade"}])
    Path(path).write_text(Path(path).read_text() + '\ndecide = { metric = "f1" }')
    add(str(tmp_path / "m2"), path, tmp_path / "m3")
    before, after = (read_bundle_info(str(tmp_path / name)) for name in ("m2", "m3"))
    assert {name: after.decisions[name] for name in before.decisions} == before.decisions
    trade = next(task for task in after.tasks if task.name == "trade")
    assert (trade.decision.temperature != 1, len(trade.decision.thresholds), trade.decision.rules) == (True, 1, ())
    assert set(read_decisions(str(tmp_path / "m3"))) == {"sport", "business", "trade"}
