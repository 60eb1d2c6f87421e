"""What a probe loses in accuracy against prompts, and what it saves when labels are backfilled.

Accuracy: each task is added to a trained bundle, which should not know it, in several ways:

* `prompts`   as `mtop add-tasks` does it by default
* `probe`     `kind = "probe"`: on the bundle's document vectors
* `plain`     the same logistic regression on the vectors of the backbone as it was pretrained: what people use today

    python benchmarks/probes.py accuracy --model M --tasks data/nhc/tasks.toml [--only a,b] [--seeds 0 1 2]
        [--examples 50 200] [--set add_tasks.epochs=5] [--work models/probes]

Each task, number of examples and seed is a step with a result file under --work, so a run that is cut off goes on; a
directory is for one model and one setting.
`--examples` draws that many training examples of each task (every label has its share); without it all are used.

Backfill: the articles of some Parquet files are labelled with a bundle, vectors are stored, and a task is added as a
probe and, apart, with prompts. The probe's labels are computed from the texts of one copy of the table and from the
vectors of another, those of the task with prompts from the texts; and a table of its own is made of all tasks at once.

    python benchmarks/probes.py backfill --model M --tasks data/nhc/tasks.toml --only travel
        --articles headlines.parquet --column headline [--rows 20000]

`documents_per_s` is over the wall-clock time of the run, the start of Ray included; `rows_per_s_of_stages` is over the
time that the stages took, all processes together.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from results_file import write_result

from mtop_batch.config.load import load_config
from mtop_batch.config.sections import Config
from mtop_batch.config.task import TaskConfig
from mtop_batch.data.examples import load_examples, tokenise_examples
from mtop_batch.data.labelled_tokens import LabelledTokens
from mtop_batch.data.tokens import TextTokenizer
from mtop_batch.engine.add_tasks import add_tasks
from mtop_batch.engine.labelling.label import LabelOptions, label_corpus
from mtop_batch.engine.monitoring.progress import Progress
from mtop_batch.model.bundle.bundle import Bundle, load_bundle
from mtop_batch.model.encoder.backbone import load_backbone
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.tasks import Task
from mtop_batch.training.settings import TaskData, TrainSettings, Worker
from mtop_batch.training.single_task import train_single_task
from mtop_batch.training.start import train_settings


def main() -> None:
    """Measure and write `results/probes-<what>.json`, or another name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["accuracy", "backfill"])
    parser.add_argument("--model", required=True)
    parser.add_argument("--tasks", required=True, help="TOML with [[task]] tables")
    parser.add_argument("--only", default="", help="names of some of the tasks, with commas between")
    parser.add_argument("--set", action="append", default=[], help="add_tasks.key=value", metavar="KEY=VALUE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--examples", type=int, nargs="+", default=[0], help="0 for all")
    parser.add_argument("--articles", nargs="+", default=[], help="Parquet files")
    parser.add_argument("--column", default="text")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--work", type=Path, default=Path("models/probes"))
    parser.add_argument("--name", default="")
    arguments = parser.parse_args()
    result = accuracy(arguments) if arguments.what == "accuracy" else backfill(arguments)
    print(f"wrote {write_result(arguments.name or f'probes-{arguments.what}', result)}")


def accuracy(arguments: argparse.Namespace) -> dict[str, Any]:
    """The tasks' own metrics by way, number of examples and seed."""
    bundle = load_bundle(arguments.model)
    config = _config(arguments, bundle)
    tokenizer = TextTokenizer(bundle.tokenizer, bundle.model.config.max_tokens)
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for task in config.task:
        train, eval_ = (_examples(task, split, tokenizer) for split in ("train", "eval"))
        for count in arguments.examples:
            for seed in arguments.seeds:
                path = arguments.work / f"{task.name}-{count or 'all'}-seed-{seed}.json"
                if not path.exists():
                    data = TaskData(task.definition(), _draw(train, count, seed), eval_)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(json.dumps(dict(_by_all_ways(bundle, config, data, seed))))
                for way, value in json.loads(path.read_text()).items():
                    found[f"{way}/{count or 'all'}"][task.name].append(value)
                    print(f"{task.name:20} {count or 'all':>5} examples, seed {seed}: {way:8} {value:.4f}", flush=True)
    summary = {way: _summary(values) for way, values in found.items()}
    for way, values in summary.items():
        print(f"{way:16} mean {values['mean']:.4f} +- {values['spread_of_means']:.4f}")
    return {"model": arguments.model, "add_tasks": config.add_tasks.model_dump(), "ways": summary}


def _by_all_ways(bundle: Bundle, config: Config, data: TaskData, seed: int) -> Iterator[tuple[str, float]]:
    """Every way learns on a model of its own; what the other tasks hold does not matter to a new one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    worker = Worker(device=device)
    task = data.task
    name = f"added_{task.name}"  # the bundle may know a task of the same name, which stays
    as_prompts = TaskData(Task(name, "classification", task.labels, task.text, task.metric), data.train, data.eval)
    as_probe = TaskData(Task(name, "probe", task.labels, task.text, task.metric), data.train, data.eval)
    settings = config.add_tasks
    model = cast(MTOPModel, bundle.model)
    model.add_tasks(
        [as_prompts.task],
        prompts_per_task=settings.prompts_per_task,
        lora_rank=settings.lora_rank,
        seed=seed,
        replace=True,
    )
    learned = train_single_task(model, as_prompts, train_settings(settings, seed=seed), worker=worker)
    yield "prompts", learned.metrics[str(task.metric)]
    model.add_tasks([as_probe.task], replace=True)
    learned = train_single_task(model, as_probe, TrainSettings(seed=seed), worker=worker)
    model.drop_tasks([name])
    yield "probe", learned.metrics[str(task.metric)]
    plain = MTOPModel.from_backbone(load_backbone(bundle.backbone_name), [as_probe.task])
    learned = train_single_task(plain, as_probe, TrainSettings(seed=seed), worker=worker)
    yield "plain", learned.metrics[str(task.metric)]


def _summary(values: dict[str, list[float]]) -> dict[str, Any]:
    """Per task all seeds; the mean over tasks and seeds, and how far the seeds' means over tasks lie apart (std)."""
    means = [statistics.mean(of_seed) for of_seed in zip(*values.values(), strict=True)]
    spread = statistics.stdev(means) if len(means) > 1 else 0.0
    return {"mean": statistics.mean(means), "spread_of_means": spread, "tasks": values}


def _examples(task: TaskConfig, split: str, tokenizer: TextTokenizer) -> LabelledTokens:
    source = getattr(task, split)
    raw = load_examples(task.definition(), source, task.label, training=split == "train")
    return tokenise_examples(raw, tokenizer)


def _draw(examples: LabelledTokens, count: int, seed: int) -> LabelledTokens:
    """So many of the examples, each label as often as in all of them, or at least once."""
    if not count or count >= len(examples):
        return examples
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(examples))
    first = [order[examples.labels[order] == label][0] for label in np.unique(examples.labels)]
    rest = [row for row in order if row not in set(first)]
    rows = np.array([*first, *rest[: count - len(first)]])
    return LabelledTokens(examples.tokens.take(rows), examples.labels[rows])


def backfill(arguments: argparse.Namespace) -> dict[str, Any]:
    """Articles per second of labelling everything, and of the backfill of one task in each way."""
    with tempfile.TemporaryDirectory(prefix="mtop_probes-") as name:
        root = Path(name)
        num_rows = _write_corpus(arguments, root)
        first = _label(arguments.model, root, root / "labels", vectors=True)
        for kind in ("probe", "classification"):
            config = root / f"{kind}.toml"
            config.write_text(_task_toml(arguments, kind))
            with Progress() as progress:
                add_tasks(arguments.model, str(config), f"{root}/{kind}", progress=progress)
        shutil.copytree(root / "labels", root / "labels_without")
        for path in _vector_sets(root / "labels_without"):
            shutil.rmtree(path)
        runs = {
            "everything_and_vectors": first,
            "probe_from_texts": _label(f"{root}/probe", root, root / "labels_without"),
            "probe_from_vectors": _label(f"{root}/probe", root, root / "labels"),
            "prompts_from_texts": _label(f"{root}/classification", root, root / "labels"),
            "everything": _label(f"{root}/classification", root, root / "labels_anew"),
        }
        label_bytes = sum(path.stat().st_size for path in (root / "labels").rglob("*.parquet"))
        vector_bytes = sum(p.stat().st_size for path in _vector_sets(root / "labels") for p in path.rglob("*.parquet"))
    assert runs["probe_from_vectors"]["rows_from_vectors"] == num_rows
    assert runs["probe_from_texts"]["rows_from_vectors"] == 0
    return {
        "articles": num_rows,
        "vector_bytes_per_article": vector_bytes / num_rows,
        "other_bytes_per_article": (label_bytes - vector_bytes) / num_rows,
        **{name: _speed(report) for name, report in runs.items()},
    }


def _speed(report: dict[str, Any]) -> dict[str, Any]:
    keys = ("rows", "cells_done", "seconds", "documents_per_s", "stage_seconds")
    stages = sum(report["stage_seconds"].values())
    return {**{key: report[key] for key in keys}, "rows_per_s_of_stages": report["rows"] / stages}


def _config(arguments: argparse.Namespace, bundle: Bundle) -> Config:
    backbone = {"name": bundle.backbone_name, "max_tokens": bundle.model.config.max_tokens}
    config = load_config(arguments.tasks, arguments.set, {"output": "unused", "backbone": backbone})
    return config.model_copy(update={"task": tuple(_chosen(config.task, arguments.only))})


def _chosen(tasks: Sequence[TaskConfig], only: str) -> list[TaskConfig]:
    names = only.split(",") if only else [task.name for task in tasks]
    return [task for task in tasks if task.name in names]


def _task_toml(arguments: argparse.Namespace, kind: str) -> str:
    defaults = {"output": "unused", "backbone": {"name": "unused"}}
    lines = []
    for task in _chosen(load_config(arguments.tasks, (), defaults).task, arguments.only):
        values = task.model_dump(mode="json", exclude_none=True)
        values |= {"name": f"added_{task.name}", "kind": kind}
        lines += ["[[task]]", *(f"{key} = {_toml(value)}" for key, value in values.items())]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    return str(value) if isinstance(value, list) else f'"{value}"'


def _write_corpus(arguments: argparse.Namespace, root: Path) -> int:
    """Files of 5,000 articles each, of the texts that are there, again and again if these are too few."""
    texts = [t for path in arguments.articles for t in pq.read_table(path)[arguments.column].to_pylist() if t]
    texts = (texts * -(-arguments.rows // len(texts)))[: arguments.rows]
    (root / "corpus").mkdir()
    for start in range(0, len(texts), 5_000):
        part = texts[start : start + 5_000]
        table = pa.table({"id": pa.array(range(start, start + len(part))), "body": part})
        pq.write_table(table, root / "corpus" / f"{start:09d}.parquet")
    return len(texts)


def _label(model: str, root: Path, labels: Path, **options: Any) -> dict[str, Any]:
    return label_corpus(LabelOptions(model=model, corpus=f"{root}/corpus", labels=str(labels), **options))


def _vector_sets(labels: Path) -> list[Path]:
    sets = [path for path in labels.iterdir() if not path.name.startswith("_")]
    return [path for path in sets if "vector" in pq.read_schema(next(path.rglob("*.parquet"))).names]


if __name__ == "__main__":
    main()
