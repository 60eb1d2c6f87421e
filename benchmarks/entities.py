"""How well a token task finds entities, and what it costs beside other tasks.

    python benchmarks/entities.py f1 [--data data/ner/conll2003] [--epochs 1] [--seeds 0] [--rates 1e-4 2e-4 4e-4]
    python benchmarks/entities.py speed [--corpus demo/corpus] [--rounds 7]

`f1`: entity F1 on the test sentences of a token task alone, and of `AutoModelForTokenClassification` around the same
encoder as a script would train it: words given apart, the first sub-word of a word decides, the likeliest tag of each
word. Steps, rate, schedule, batch size, clipping and decay are the same. The rate is the one of `--rates` that is best
on the validation sentences after one epoch over a quarter of the training sentences, by the token task. Each of these
trainings is a step with a result file under --work, so a run that is cut off goes on.

`speed`: documents/s of `Predictor.predict`, tokenising included, with eight tasks on texts, with a token task beside
them, and with one that is of a family, round by round in turn; heads, prompts and LoRA are random. Costs are relative
to the eight tasks, in the same round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from bundles import BACKBONE, COLUMN, random_model
from results_file import write_result
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW

from mtop_batch import Predictor
from mtop_batch.data.entities.tags import entities_of_tags
from mtop_batch.data.examples import load_examples, tokenise_examples
from mtop_batch.data.tokens import TextTokenizer
from mtop_batch.families import Family
from mtop_batch.model.encoder.backbone import load_backbone, load_tokenizer, locate_backbone
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.tasks import Task
from mtop_batch.training.evaluation.evaluate import evaluate_task
from mtop_batch.training.loop import fit
from mtop_batch.training.schedules import linear_warmup_decay
from mtop_batch.training.settings import TaskData, TrainSettings

MAX_TOKENS = 128
WEIGHT_DECAY, WARMUP, MAX_NORM = 0.01, 0.1, 1.0
NO_TAG = -100
Sentences = list[tuple[list[str], list[str]]]


def main() -> None:
    """Measure and write `results/entities-<what>.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["f1", "speed"])
    parser.add_argument("--data", type=Path, default=Path("data/ner/conll2003"))
    parser.add_argument("--backbone", default=BACKBONE)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 2e-4, 4e-4])
    parser.add_argument("--corpus", type=Path, default=Path("demo/corpus"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--texts", type=int, default=600)
    parser.add_argument("--work", type=Path, default=Path("models/entities"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    found = {"f1": f1, "speed": speed}[arguments.what](arguments)
    print(f"wrote {write_result(f'entities-{arguments.what}', found)}")


def f1(arguments: argparse.Namespace) -> dict[str, Any]:
    """Entity F1 of both, by seed, at the rate that is best for the token task."""
    work = arguments.work
    of_rates = {
        rate: _step(work, f"rate-{rate:g}", partial(token_task, arguments, rate, 1.0, 0, quarter=True))
        for rate in arguments.rates
    }
    best = max(of_rates, key=lambda rate: of_rates[rate]["dev"]["f1"])
    found: dict[str, Any] = {"token task": [], "plain": []}
    for seed in arguments.seeds:
        for name, train in (("token task", token_task), ("plain", plain)):
            step = f"{name.replace(' ', '-')}-{best:g}-{arguments.epochs:g}-{seed}"
            found[name].append(_step(work, step, partial(train, arguments, best, arguments.epochs, seed)))
    return {"epochs": arguments.epochs, "batch_size": arguments.batch_size, "rates": of_rates, "rate": best, **found}


def _step(work: Path, name: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result of a training, from its file if it has been done."""
    path = work / f"{name}.json"
    if not path.exists():
        started = time.monotonic()
        path.write_text(json.dumps({**run(), "seconds": round(time.monotonic() - started)}))
        print(name, path.read_text(), flush=True)
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def token_task(
    arguments: argparse.Namespace, rate: float, epochs: float, seed: int, *, quarter: bool = False
) -> dict[str, Any]:
    """Train a token task alone with this package."""
    task = Task("names", "token", tuple(_types(_read(arguments.data / "train.parquet"))), ("tokens",))
    tokenizer = TextTokenizer(load_tokenizer(arguments.backbone), MAX_TOKENS)
    train, dev, test = (
        tokenise_examples(
            load_examples(task, str(arguments.data / f"{part}.parquet"), "tags", training=part == "train"), tokenizer
        )
        for part in ("train", "dev", "test")
    )
    if quarter:
        train = train.take(np.random.default_rng(0).permutation(len(train))[: len(train) // 4])
    model = MTOPModel.from_backbone(load_backbone(arguments.backbone), [task], max_tokens=MAX_TOKENS, seed=seed)
    settings = TrainSettings(
        epochs=epochs,
        batch_size=arguments.batch_size,
        learning_rate=rate,
        weight_decay=WEIGHT_DECAY,
        warmup_fraction=WARMUP,
        max_grad_norm=MAX_NORM,
        seed=seed,
        evaluate=False,
    )
    result = fit(model, [TaskData(task, train)], settings)
    judged = {} if quarter else {"test": test}
    metrics = {part: evaluate_task(model, examples, task) for part, examples in {"dev": dev, **judged}.items()}
    return {"steps": result.num_steps} | {part: _rounded(of["entity_f1"]) for part, of in metrics.items()}


def plain(arguments: argparse.Namespace, rate: float, epochs: float, seed: int) -> dict[str, Any]:
    """Train a token classifier of transformers."""
    from transformers import AutoModelForTokenClassification

    sentences = {part: _read(arguments.data / f"{part}.parquet") for part in ("train", "dev", "test")}
    types = _types(sentences["train"])
    tags = ["O", *(f"{mark}-{name}" for name in types for mark in "BI")]
    torch.manual_seed(seed)
    path = locate_backbone(arguments.backbone)
    model = AutoModelForTokenClassification.from_pretrained(path, num_labels=len(tags), dtype=torch.float32)
    tokenizer = load_tokenizer(arguments.backbone)
    groups = [
        {"params": [each for each in model.parameters() if (each.ndim > 1) == decays], "weight_decay": decay}
        for decays, decay in ((True, WEIGHT_DECAY), (False, 0.0))
    ]
    optimizer = AdamW(groups, lr=rate, fused=True)
    num_sentences, size = len(sentences["train"]), arguments.batch_size
    num_steps = max(1, round(epochs * num_sentences / size))
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(num_sentences) for _ in range(int(np.ceil(epochs)) + 1)])
    model.train()
    for step in range(num_steps):
        batch = [sentences["train"][row] for row in order[step * size : (step + 1) * size]]
        encoded = _encoded(tokenizer, [words for words, _ in batch])
        labels = torch.full(encoded["input_ids"].shape, NO_TAG)
        for row, (_, own) in enumerate(batch):
            for place, word in _first_tokens(encoded.word_ids(row)):
                labels[row, place] = tags.index(own[word])
        for group in optimizer.param_groups:
            group["lr"] = rate * linear_warmup_decay(step, num_steps, WARMUP)
        model(**encoded, labels=labels).loss.backward()
        clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    model.eval()
    return {"steps": num_steps} | {
        part: _rounded(_plain_f1(model, tokenizer, sentences[part], tags, types)) for part in ("dev", "test")
    }


@torch.inference_mode()
def _plain_f1(model: Any, tokenizer: Any, sentences: Sentences, tags: Sequence[str], types: Sequence[str]) -> float:
    given, found, right = 0, 0, 0
    by_length = sorted(sentences, key=lambda sentence: len(sentence[0]))
    for start in range(0, len(by_length), 64):
        batch = by_length[start : start + 64]
        encoded = _encoded(tokenizer, [words for words, _ in batch])
        said = model(**encoded).logits.argmax(dim=-1).tolist()
        for row, (words, own) in enumerate(batch):
            predicted = ["O"] * len(words)
            for place, word in _first_tokens(encoded.word_ids(row)):
                predicted[word] = tags[said[row][place]]
            truth, guess = (set(entities_of_tags(some, types)) for some in (own, predicted))
            given, found, right = given + len(truth), found + len(guess), right + len(truth & guess)
    return 2 * right / (given + found)


def _encoded(tokenizer: Any, words: Sequence[list[str]]) -> Any:
    options = {"truncation": True, "max_length": MAX_TOKENS, "padding": True, "return_tensors": "pt"}
    return tokenizer(list(words), is_split_into_words=True, **options)


def _first_tokens(word_ids: Sequence[int | None]) -> list[tuple[int, int]]:
    """The first token of each word, and the word."""
    first: dict[int, int] = {}
    for place, word in enumerate(word_ids):
        if word is not None:
            first.setdefault(word, place)
    return [(place, word) for word, place in first.items()]


def _read(path: Path) -> Sentences:
    table = pq.read_table(path)
    return [
        (words, tags)
        for words, tags in zip(table["tokens"].to_pylist(), table["tags"].to_pylist(), strict=True)
        if any(word and not word.isspace() for word in words)
    ]


def _types(sentences: Sentences) -> list[str]:
    return sorted({tag[2:] for _, tags in sentences for tag in tags if tag != "O"})


def _rounded(value: float) -> dict[str, float]:
    return {"f1": round(value, 4)}


def speed(arguments: argparse.Namespace) -> dict[str, Any]:
    """Documents/s by contestant, of titles and of titles with bodies."""
    files = sorted(arguments.corpus.rglob("*.parquet"))
    table = pa.concat_tables(pq.read_table(file, columns=["title", "body"], partitioning=None) for file in files)
    titles, bodies = (table[name].to_pylist()[: arguments.texts] for name in ("title", "body"))
    articles = [f"{title}. {body}" for title, body in zip(titles, bodies, strict=True)]
    predictors = {
        "eight tasks": _predictor(arguments, []),
        "and a token task": _predictor(arguments, [], token_task=True),
        "and a token task of a family": _predictor(arguments, [Family("entities")], token_task=True),
    }
    return {
        name: _in_turn(predictors, [text or "" for text in texts], arguments.rounds)
        for name, texts in (("titles", titles), ("articles", articles))
    }


def _predictor(arguments: argparse.Namespace, families: Sequence[Family], *, token_task: bool = False) -> Predictor:
    model = random_model(arguments.backbone)
    if token_task:
        task = Task("names", "token", ("PER", "LOC", "ORG", "MISC"), (COLUMN,))
        model.add_tasks([task], families=families, family_of={"names": families[0].name} if families else {})
    return Predictor(model, load_tokenizer(arguments.backbone), precision="fp32")


def _in_turn(predictors: Mapping[str, Predictor], texts: list[str], rounds: int) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {name: [] for name in predictors}
    for _ in range(rounds + 1):  # the first one warms up
        for name, predictor in predictors.items():
            started = time.perf_counter()
            predictor.predict(texts)
            seconds[name].append(time.perf_counter() - started)
    base, *_ = seconds.values()
    found: dict[str, Any] = {"documents": len(texts)}
    for name, of in seconds.items():
        ratios = [own / other for own, other in zip(of[1:], base[1:], strict=True)]
        found[name] = {
            "documents_per_s": round(len(texts) / min(of[1:]), 1),
            "cost": round(statistics.median(ratios), 3),
            "costs": [round(ratio, 3) for ratio in ratios],
        }
    return found


if __name__ == "__main__":
    main()
