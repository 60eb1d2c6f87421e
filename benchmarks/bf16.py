"""Does a CPU gain by bf16? A bundle labels the same texts in fp32 and in bf16, in turn, beside matrix products alone.

What `precision = "auto"` means on a CPU (`mtop_batch.precision.has_bf16`) rests on this.

    python benchmarks/bf16.py --model models/nhc-cpu --texts data/nhc/unlabelled/headlines.parquet --column headline \
        [--rows 3000] [--rounds 5] [--threads 1] [--name bf16]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import pyarrow.parquet as pq
import torch
from results_file import write_result

from mtop_batch import Predictor
from mtop_batch.precision import Precision, has_bf16

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CAPABILITIES = ("cpu_name", "amx_bf16", "avx512_bf16")
ROWS, WIDTH, WIDER = 600, 384, 1536


def seconds_of(function: Callable[[], object]) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def products(precision: Precision) -> Callable[[], object]:
    """Thirty products of the sizes of a small encoder's feed-forward layers."""
    rows = torch.randn(ROWS, WIDTH, dtype=TYPES[precision])
    layer = torch.nn.Linear(WIDTH, WIDER, dtype=TYPES[precision])

    @torch.inference_mode()
    def run() -> None:
        for _ in range(30):
            layer(rows)

    return run


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--texts", required=True, help="Parquet.")
    parser.add_argument("--column", required=True)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", default="bf16")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    texts = pq.read_table(arguments.texts, columns=[arguments.column])[arguments.column].to_pylist()[: arguments.rows]
    predictors = {precision: Predictor.load(arguments.model, precision=precision) for precision in PRECISIONS}
    labels = {precision: predictor.predict(texts) for precision, predictor in predictors.items()}
    names = [name for name in labels["fp32"].schema.names if name.endswith("_label")]
    other = [
        sum(a != b for a, b in zip(*(labels[p][name].to_pylist() for p in PRECISIONS), strict=True)) for name in names
    ]
    alone = {precision: products(precision) for precision in PRECISIONS}
    rounds, ratios, of_products_ratios = [], [], []
    for number in range(arguments.rounds):
        taken = {precision: seconds_of(partial(predictors[precision].predict, texts)) for precision in PRECISIONS}
        of_products = {precision: seconds_of(alone[precision]) for precision in PRECISIONS}
        documents = {precision: round(len(texts) / seconds, 1) for precision, seconds in taken.items()}
        ratio, of_product = (round(each["fp32"] / each["bf16"], 3) for each in (taken, of_products))
        ratios.append(ratio)
        of_products_ratios.append(of_product)
        rounds.append({"documents_per_s": documents, "ratio": ratio, "products": of_product})
        print(
            f"round {number + 1}: {documents}, bf16 {ratio:.2f} times as fast, its products {of_product:.2f}",
            flush=True,
        )
    capabilities = torch.cpu.get_capabilities()
    result = {
        "cpu": {name: capabilities.get(name) for name in CAPABILITIES},
        "auto": "bf16" if has_bf16(torch.device("cpu")) else "fp32",
        "threads": arguments.threads,
        "rows": len(texts),
        "labels": len(names) * len(texts),
        "other_labels": sum(other),
        "ratio": median(ratios),
        "ratio_of_products": median(of_products_ratios),
        "rounds": rounds,
    }
    print(f"wrote {write_result(arguments.name, result)}")


if __name__ == "__main__":
    main()
