"""Does adding tasks change the labels of the tasks that were there?

Labels real texts with a bundle and with the bundle that `mtop add-tasks` made of it, and counts

* `flips`           labels of the earlier tasks that differ between the two, in the same batching
* `flips_batching`  labels of the first bundle alone that differ between two batchings
* `flips_to_fp32`   labels of the first bundle alone that differ between the precision and fp32
* `difference`      largest difference of an earlier task's logits, over the texts in one batch after the other

in fp32 and in bf16.

    python benchmarks/non_interference.py --before M --after M2 --texts headlines.parquet [--column headline]
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch
from results_file import write_result

from mtop_batch.data.batches import pad_batch
from mtop_batch.data.tokens import TextTokenizer, Tokens
from mtop_batch.labelling.run.predictor import Predictor
from mtop_batch.model.bundle.bundle import Bundle, load_bundle
from mtop_batch.precision import PrecisionChoice

BATCH_TOKENS = (4096, 1500)


@dataclass(frozen=True)
class Labels:
    """What one bundle says of all texts: (N, R) label ids and scores."""

    ids: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]


def labels_of(
    bundle: Bundle, tokens: Tokens, tasks: list[str], precision: PrecisionChoice, batch_tokens: int
) -> Labels:
    """The labels of the earlier tasks; all tasks of the bundle go through the model."""
    predictor = Predictor(bundle.model, bundle.tokenizer, precision=precision, max_batch_tokens=batch_tokens)
    outputs = predictor.predict_tokens(tokens)
    columns = [bundle.model.task_names.index(task) for task in tasks]
    return Labels(outputs.label_ids[columns], outputs.scores[columns])


@torch.no_grad()
def logit_difference(before: Bundle, after: Bundle, tokens: Tokens, tasks: list[str]) -> float:
    """The largest difference of an earlier task's logits in fp32, on the CPU."""
    columns = [after.model.task_names.index(task) for task in tasks]
    largest = 0.0
    for start in range(0, len(tokens), 64):
        rows = np.arange(start, min(start + 64, len(tokens)))
        batch: dict[str, Any] = pad_batch(tokens, rows)
        old = before.model.all_tasks(**batch)
        new = after.model.all_tasks(**batch)[:, columns, : old.shape[2]]
        finite = old.isfinite()
        largest = max(largest, float((old[finite] - new[finite]).abs().max()))
    return largest


def main() -> None:
    """Measure and write `results/non_interference.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True)
    parser.add_argument("--after", required=True)
    parser.add_argument("--texts", required=True, nargs="+", help="Parquet files")
    parser.add_argument("--column", default="headline")
    parser.add_argument("--limit", type=int, default=12_000)
    parser.add_argument("--name", default="non_interference")
    arguments = parser.parse_args()
    before, after = load_bundle(arguments.before), load_bundle(arguments.after)
    tasks = [task for task in before.model.task_names if before.fingerprints[task] == after.fingerprints.get(task)]
    texts = [text for path in arguments.texts for text in pq.read_table(path)[arguments.column].to_pylist() if text]
    texts = list(dict.fromkeys(texts))[: arguments.limit]
    tokens = TextTokenizer(before.tokenizer, before.model.config.max_tokens).encode(texts)
    result: dict[str, Any] = {
        "texts": len(texts),
        "earlier_tasks": len(tasks),
        "added_tasks": len(after.model.task_names) - len(tasks),
        "difference": logit_difference(before, after, tokens, tasks),
    }
    exact: Labels | None = None
    precisions: tuple[PrecisionChoice, ...] = ("fp32", "bf16")
    for precision in precisions:
        old, other = (labels_of(before, tokens, tasks, precision, batch) for batch in BATCH_TOKENS)
        new = labels_of(after, tokens, tasks, precision, BATCH_TOKENS[0])
        exact = exact or old
        result[precision] = {
            "labels": old.ids.size,
            "flips": int((old.ids != new.ids).sum()),
            "flips_batching": int((old.ids != other.ids).sum()),
            "flips_to_fp32": int((old.ids != exact.ids).sum()),
            "score_difference": float(np.abs(old.scores - new.scores)[old.ids == new.ids].max()),
        }
    print(result)
    print(f"wrote {write_result(arguments.name, result)}")


if __name__ == "__main__":
    main()
