"""Labels of a badly trained bundle do not reach readers: a night's run, `--force`, and the way back."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mtop_batch import Predictor, Task, read_labels
from mtop_batch.cli.commands import main
from mtop_batch.engine.labelling.options import LabelOptions, wanted_labels
from mtop_batch.labelling.plan.planner import plan_labels
from mtop_batch.labelling.run.read_rows import read_unit
from mtop_batch.model.bundle.bundle import save_bundle
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.table.store import write_label_file
from tests.conftest import WORDS, make_backbone, make_tokenizer

pytestmark = pytest.mark.usefixtures("ray_local")


def save_model(uri: Path, yes_bias: float, accuracy: float = 0.9, seed: int = 0) -> None:
    """A bundle whose task says yes to more articles the greater its bias."""
    task = Task("politics", text=("body",))
    model = MTOPModel.from_backbone(make_backbone(seed), [task], prompt_attention="isolated", max_tokens=32)
    module: Any = model.task_modules["task_politics"]
    with torch.no_grad():
        module.pooler.bias += yes_bias * (module.head.weight[1] - module.head.weight[0]).sign()
    metrics = {"politics": {"accuracy": accuracy, "loss": 0.3, "num_examples": 1000}}
    save_bundle(str(uri), model, make_tokenizer(), metrics=metrics, training_config={}, backbone_name="tiny")


def write_articles(path: Path, first: int, count: int) -> None:
    rng = random.Random(first)
    bodies = [" ".join(rng.choices(WORDS, k=rng.randint(1, 30))) for _ in range(count)]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"id": range(first, first + count), "body": bodies}), path)


def mtop(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([*map(str, arguments)])
    return int(end.value.code or 0)


def compute(root: Path, model: str) -> None:
    """What a run computes, in this process: its labels wait in the store."""
    wanted = wanted_labels(LabelOptions(model=f"{root}/{model}", corpus=f"{root}/corpus", labels=f"{root}/labels"))
    plan = plan_labels(f"{root}/corpus", f"{root}/labels", wanted)
    predictor = Predictor.load(f"{root}/{model}")
    for unit in plan.units:
        (batch,) = read_unit(plan.corpus, unit, "id")
        found = predictor.predict(batch.texts)
        columns = {name: found[name] for name in found.column_names}
        (target,) = unit.targets
        write_label_file(plan.labels, target.file, batch.ids, columns, batch.errors, unit.footer(target, wanted, "r"))


def label(root: Path, model: str, *options: object) -> int:
    """The whole command; only `compute` spares it the work."""
    places = ("--model", root / model, "--corpus", root / "corpus", "--labels", root / "labels")
    return mtop("label", *places, "--json", root / "report.json", *options)


def report_of(root: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((root / "report.json").read_text())
    return report


def said_yes(root: Path) -> float:
    labels = read_labels(f"{root}/labels")["politics_label"].to_pylist()
    return labels.count("yes") / len(labels)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table that a good bundle was published to; the labels of others wait in its store."""
    root = tmp_path_factory.mktemp("gate")
    save_model(root / "good", 0.0)
    save_model(root / "retrained", 0.005)
    save_model(root / "forgetful", 0.005, accuracy=0.7)
    save_model(root / "bad", 20.0)
    save_model(root / "worse", -20.0)
    write_articles(root / "corpus" / "a.parquet", 0, 200)
    write_articles(root / "corpus" / "b.parquet", 200, 100)
    compute(root, "good")
    assert label(root, "good") == 0
    for model in ("retrained", other(root)):
        compute(root, model)
    return root


@pytest.fixture
def root(bundles: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundles, tmp_path / "copy"))


def other(root: Path) -> str:
    """The bundle that says the opposite of what is published."""
    return "bad" if said_yes(root) < 0.5 else "worse"


def test_a_bad_bundle_is_computed_and_kept_and_readers_go_on_seeing_the_old_labels(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, bad = read_labels(f"{root}/labels"), other(root)
    assert label(root, bad) == 4
    report = report_of(root)
    assert (report["status"], report["published"]) == ("gate closed", None)
    assert {reason["rule"] for reason in report["gate"]["reasons"]} >= {"max_label_share_change", "max_flips"}
    bodies = pq.read_table(root / "corpus").sort_by("id")["body"].to_pylist()
    examples = report["gate"]["tasks"]["politics"]["examples"]
    assert len(examples) == 5
    assert all(example["text"] == bodies[int(example["id"])] for example in examples)
    (page,) = (root / "labels" / "_runs" / report["run"]).glob("report.html")
    assert examples[0]["text"] in page.read_text()
    assert read_labels(f"{root}/labels").equals(before)
    output = capsys.readouterr()
    assert "politics: " in output.out
    assert "mtop publish --force" in output.err
    publish = ("publish", "--labels", root / "labels")
    assert mtop(*publish) == 4
    assert read_labels(f"{root}/labels").equals(before)
    assert mtop(*publish, "--force") == 0
    assert not read_labels(f"{root}/labels").equals(before)
    # The next night, with new articles, is as usual for this bundle now.
    write_articles(root / "corpus" / "c.parquet", 300, 200)
    compute(root, bad)
    assert label(root, bad) == 0
    # And back, in one command.
    assert mtop(*publish, "--model", root / "good") == 0
    assert read_labels(f"{root}/labels").slice(0, 300).equals(before)


def test_normal_nights_pass(root: Path) -> None:
    write_articles(root / "corpus" / "c.parquet", 300, 150)
    assert label(root, "good") == 0  # new articles only
    assert report_of(root)["gate"]["tasks"]["politics"]["fresh_articles"] == 150
    write_articles(root / "corpus" / "d.parquet", 450, 3)
    compute(root, "retrained")
    assert label(root, "retrained") == 0  # another bundle, and a few new articles
    assert report_of(root)["gate"]["tasks"]["politics"]["same_articles"] == 450
    assert label(root, "retrained") == 0  # nothing to do
    assert report_of(root)["gate"] is None


@pytest.mark.parametrize(
    ("model", "options", "rule"),
    [
        ("other", ("--max-flips", 1), "max_label_share_change"),
        ("other", ("--max-label-share-change", 1), "max_flips"),
        ("forgetful", (), "max_metric_drop"),
        ("retrained", ("--min-articles", 301), "min_articles"),
    ],
)
def test_each_rule_closes_the_gate(root: Path, model: str, options: tuple[object, ...], rule: str) -> None:
    assert label(root, other(root) if model == "other" else model, *options) == 4
    assert [reason["rule"] for reason in report_of(root)["gate"]["reasons"]] == [rule]


def test_new_articles_alone_can_close_the_gate(root: Path) -> None:
    write_articles(root / "corpus" / "day=1" / "c.parquet", 300, 200)
    compute(root, other(root))
    assert label(root, other(root), "--partition", "day=1", "--max-new-share-change", 0.2) == 4
    assert [reason["rule"] for reason in report_of(root)["gate"]["reasons"]] == ["max_new_share_change"]


def test_a_night_in_which_every_row_failed_closes_the_gate(root: Path) -> None:
    pq.write_table(pa.table({"id": range(30), "body": pa.nulls(30, pa.string())}), root / "corpus" / "c.parquet")
    compute(root, "good")
    assert label(root, "good") == 4
    assert [reason["rule"] for reason in report_of(root)["gate"]["reasons"]] == ["max_error_fraction"]
    assert label(root, "good", "--max-error-fraction", 1) == 0
    assert read_labels(f"{root}/labels")["error"].null_count == 300


def test_rules_come_from_a_file_and_mistakes_in_it_are_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = root / "gate.toml"
    file.write_text("[gate]\nmax_flips = 1.0\nmax_label_share_change = 1.0\n")
    assert label(root, other(root), "--config", file, "--min-articles", 1000) == 4  # an option goes on top
    assert [reason["rule"] for reason in report_of(root)["gate"]["reasons"]] == ["min_articles"]
    assert label(root, other(root), "--config", file) == 0
    file.write_text("[gate]\nmax_flip = 1.0\n")
    assert label(root, "good", "--config", file) == 2
    assert "unknown key gate.max_flip; did you mean 'max_flips'?" in capsys.readouterr().err
    file.write_text("[gates]\n")
    assert label(root, "good", "--config", file) == 2
    assert label(root, "good", "--max-flips", 2) == 2
    assert "gate.max_flips = 2.0 cannot be used" in capsys.readouterr().err
