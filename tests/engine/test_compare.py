"""`mtop compare`: two bundles on the same articles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtop_batch import Predictor, Task
from mtop_batch.engine.compare import CompareOptions, compare_bundles
from mtop_batch.errors import ConfigError, DataError, TaskError
from mtop_batch.model.bundle.bundle import save_bundle
from mtop_batch.model.kinds.mtop import MTOPModel
from tests.conftest import make_backbone, make_tokenizer
from tests.engine.test_gate import mtop, save_model, write_articles


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("compare")
    save_model(root / "a", 0.0, accuracy=0.9)
    save_model(root / "b", -20.0, accuracy=0.7)
    write_articles(root / "corpus" / "day=1" / "x.parquet", 0, 250)
    write_articles(root / "corpus" / "day=2" / "y.parquet", 250, 50)
    return root


def options(root: Path, **changes: Any) -> CompareOptions:
    return CompareOptions(**{"model": f"{root}/a", "other": f"{root}/b", "corpus": f"{root}/corpus", **changes})


def test_agreement_shares_flips_and_metrics_are_those_of_the_labels(root: Path) -> None:
    comparison = compare_bundles(options(root), flips_uri=f"{root}/flips.parquet")
    corpus = pq.read_table(root / "corpus").sort_by("id")
    old, new = (
        Predictor.load(f"{root}/{name}").predict(corpus["body"].to_pylist())["politics_label"].to_pylist()
        for name in "ab"
    )
    same = sum(a == b for a, b in zip(old, new, strict=True))
    task = comparison["tasks"]["politics"]
    assert comparison["articles"] == task["same_articles"] == 300
    assert task["agreement"] == pytest.approx(same / 300, abs=1e-6)
    assert task["old_counts"] == {label: old.count(label) for label in task["old_counts"]}
    assert task["new_counts"] == {"no": 300}
    assert task["metric"] == {"metric": "accuracy", "old": 0.9, "num_old": 1000, "new": 0.7, "num_new": 1000}
    flips = pq.read_table(f"{root}/flips.parquet").to_pylist()
    assert sorted(int(flip["id"]) for flip in flips) == [row for row in range(300) if old[row] != new[row]]
    texts = dict(zip(corpus["id"].to_pylist(), corpus["body"].to_pylist(), strict=True))
    assert all(flip["text"] == texts[int(flip["id"])][:300] for flip in flips)
    assert {reason["rule"] for reason in comparison["gate"]["reasons"]} >= {"max_flips", "max_metric_drop"}
    assert all(example["text"] == texts[int(example["id"])][:300] for example in task["examples"])


def test_a_bundle_agrees_with_itself(root: Path) -> None:
    comparison = compare_bundles(options(root, other=f"{root}/a", sample=60))
    assert comparison["articles"] == 60
    assert comparison["same_fingerprint"] == ["politics"]
    assert comparison["tasks"]["politics"]["agreement"] == 1.0
    assert comparison["gate"]["open"]


def test_a_sample_is_drawn_by_seed_and_from_a_partition(root: Path) -> None:
    def counts(**changes: Any) -> dict[str, int]:
        found: dict[str, int] = compare_bundles(options(root, other=f"{root}/a", **changes))["tasks"]["politics"][
            "old_counts"
        ]
        return found

    assert counts(sample=100, seed=1) == counts(sample=100, seed=1)
    assert sum(counts(partitions=("day=2",)).values()) == 50


def test_the_command_prints_and_writes_the_comparison(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = ("--model", root / "a", "--with", root / "b", "--corpus", root / "corpus", "--sample", 120)
    assert mtop("compare", *places, "--json", root / "out.json") == 0
    output = capsys.readouterr().out
    assert "politics" in output
    assert "the gate would be closed" in output
    assert json.loads((root / "out.json").read_text())["articles"] == 120


def test_what_cannot_be_compared_is_refused(root: Path) -> None:
    model = MTOPModel.from_backbone(make_backbone(), [Task("sports", text=("body",))], max_tokens=32)
    save_bundle(f"{root}/c", model, make_tokenizer(), metrics={}, training_config={}, backbone_name="tiny")
    with pytest.raises(TaskError, match="have no task of the same name"):
        compare_bundles(options(root, other=f"{root}/c"))
    with pytest.raises(TaskError, match="did you mean 'politics'"):
        compare_bundles(options(root, tasks=("politic",)))
    with pytest.raises(DataError, match="no text column 'headline'"):
        compare_bundles(options(root, text_columns=("headline",)))
    with pytest.raises(ConfigError, match=r"no file of day=3; the closest are day=1, day=2; correct it"):
        compare_bundles(options(root, partitions=("day=3",)))


def test_each_bundle_reads_what_its_tasks_were_trained_on(root: Path) -> None:
    bodies = pq.read_table(root / "corpus" / "day=2" / "y.parquet")["body"].to_pylist()
    headlines = [*bodies[1:], None]
    pq.write_table(pa.table({"id": range(50), "headline": headlines, "body": bodies}), root / "pairs.parquet")
    for name, text in (("of-bodies", ("body",)), ("of-headlines", ("headline",))):
        tasks = [Task("politics", text=text), Task("mood", text=("headline", "body"))]
        model = MTOPModel.from_backbone(make_backbone(), tasks, prompt_attention="isolated", max_tokens=32)
        save_bundle(f"{root}/{name}", model, make_tokenizer(), metrics={}, training_config={}, backbone_name="tiny")
    places = {"model": f"{root}/of-bodies", "other": f"{root}/of-headlines", "corpus": f"{root}/pairs.parquet"}
    comparison = compare_bundles(options(root, **places))
    politics, mood = comparison["tasks"]["politics"], comparison["tasks"]["mood"]
    alone = Predictor.load(f"{root}/of-headlines", tasks=["politics"]).predict(headlines)["politics_label"].to_pylist()
    assert (politics["same_articles"], mood["same_articles"], comparison["errors"]) == (49, 50, 1)
    assert politics["new_counts"] == {label: alone.count(label) for label in politics["new_counts"]}
    assert all(example["text"] == headlines[example["row"]][:300] for example in politics["examples"])
    assert all("\n" in example["text"] or example["row"] == 49 for example in mood["examples"])
