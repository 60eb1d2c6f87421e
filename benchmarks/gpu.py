"""How near does labelling come to what the GPU can do? Needs torch and transformers, no Ray; also runs on a CPU.

With an encoder of BERT-base size (random weights: they cost the same) and eight tasks, after measuring the rate of a
large bf16 matrix product in the same run:

* `mtop`     `Predictor.predict_tokens`: batches are padded, copied, run and fetched, as in a labelling job
* `forward`  `MTOPModel.all_tasks` over the same batches, which lie on the device already
* `encoder`  the bare encoder over the same batches, without prompts and heads

for texts of exactly 128 tokens, and for lengths as in news (log-normal, median 90, cut at 128 and at 512). All compute
in bf16, take turns, and are given as documents per second and as the share of the matrix rate that real tokens and
prompts make use of (`mtop_batch.model.flops`; for `encoder` without prompts).

    python benchmarks/gpu.py [--size base] [--attention isolated] [--texts 32768] [--rounds 3] [--compile]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from results_file import write_result
from transformers import BertConfig, BertModel, BertTokenizer, PreTrainedModel

from mtop_batch.data.batches import length_sorted_batches, pad_batch
from mtop_batch.data.tokens import Tokens
from mtop_batch.labelling.run.predictor import Predictor
from mtop_batch.model.flops import ForwardFlops, measure_matrix_rate
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.tasks import Task

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512},
    "small": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
}
NUM_TASKS = 8
VOCABULARY = 30_522


def lengths_of(kind: str, num_texts: int) -> npt.NDArray[np.int64]:
    """Tokens of each text."""
    if kind == "128":
        return np.full(num_texts, 128)
    drawn = np.random.default_rng(0).lognormal(np.log(90), 0.8, num_texts)
    return np.clip(drawn, 8, int(kind.split()[-1])).astype(np.int64)


def make_tokens(lengths: npt.NDArray[np.int64]) -> Tokens:
    """Texts of random tokens."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    values = np.random.default_rng(1).integers(1000, VOCABULARY, offsets[-1]).astype(np.int32)
    return Tokens(values, offsets.astype(np.int64), lengths.astype(np.int32))


def measure(
    runs: Mapping[str, Callable[[], Any]], num_texts: int, num_rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Documents per second in each round; the first round is a warm-up."""
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(num_rounds + 1):
        for name, run in runs.items():
            _synchronise(device)
            started = time.perf_counter()
            run()
            _synchronise(device)
            if round_number:
                rates[name].append(num_texts / (time.perf_counter() - started))
    return rates


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def inputs_of(tokens: Tokens, rows: npt.NDArray[np.int64]) -> dict[str, torch.Tensor]:
    """A batch as `Predictor` makes it: with a mask where there is padding."""
    batch = pad_batch(tokens, rows, 0)
    if batch["attention_mask"].all():
        del batch["attention_mask"]
    return batch


def compile_layers(encoder: PreTrainedModel) -> None:
    """Compile all of each layer but its attention, which leaves and reads keys and values and would break graphs."""
    for name, part in encoder.named_modules():
        if name.endswith((".output", ".intermediate")):
            part.compile(dynamic=True)


def study(predictor: Predictor, lengths: npt.NDArray[np.int64], num_rounds: int, matrix_rate: float) -> dict[str, Any]:
    """All three on texts of these lengths."""
    model, device, names = predictor._model, predictor.device, predictor._names
    tokens = make_tokens(lengths)
    costs = lengths + predictor._num_prompts
    rows = length_sorted_batches(costs, predictor.max_batch_tokens)
    batches = [{k: v.to(device) for k, v in inputs_of(tokens, batch).items()} for batch in rows]

    @torch.inference_mode()
    def forward() -> None:
        for batch in batches:
            model.all_tasks(**batch, tasks=names)

    @torch.inference_mode()
    def encoder() -> None:
        for batch in batches:
            model.backbone(**batch)

    with_prompts = ForwardFlops.of(model, names)
    without = ForwardFlops(
        with_prompts.per_position,
        with_prompts.per_pair,
        share_of_context=1,
        share_of_pairs=1,
        per_text=0,
        num_context_prompts=0,
        num_reading_prompts=0,
    )
    runs = {"mtop": lambda: predictor.predict_tokens(tokens), "forward": forward, "encoder": encoder}
    found = {}
    for name, rates in measure(runs, len(lengths), num_rounds, device).items():
        flops = (without if name == "encoder" else with_prompts)(lengths) / len(lengths)
        rate = statistics.median(rates)
        found[name] = {
            "documents_per_s": round(rate, 1),
            "rounds": [round(value, 1) for value in rates],
            "flop_utilisation": round(rate * flops / matrix_rate, 4),
        }
    padded = sum(batch["input_ids"].numel() for batch in batches)
    return {
        "texts": len(lengths),
        "tokens_per_text": round(float(lengths.mean()), 1),
        "padding_share": round(1 - int(lengths.sum()) / padded, 4),
        "batches": len(batches),
        "gflop_per_text": round(with_prompts(lengths) / len(lengths) / 1e9, 3),
        **found,
    }


def main() -> None:
    """Measure, print and write `results/gpu*.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="base")
    parser.add_argument("--attention", choices=["joint", "isolated"], nargs="+", default=["joint", "isolated"])
    parser.add_argument("--texts", type=int, default=32_768)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-tokens", type=int, nargs="+", default=[0], help="0: what Predictor chooses")
    parser.add_argument("--compile", action="store_true", help="compile the layers with torch.compile")
    parser.add_argument("--name", default="gpu")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    config = BertConfig(vocab_size=VOCABULARY, max_position_embeddings=512, **SIZES[arguments.size])
    tokenizer = BertTokenizer(vocab={f"w{number}": number for number in range(10)} | {"[UNK]": 10, "[PAD]": 11})
    matrix_rate = measure_matrix_rate(device, torch.bfloat16)
    print(f"matrix rate {matrix_rate / 1e12:.1f} TFLOP/s in bf16", flush=True)
    found = []
    for attention in arguments.attention:
        model = MTOPModel.from_backbone(
            BertModel(config, add_pooling_layer=False),
            [Task(f"task_{index}") for index in range(NUM_TASKS)],
            prompt_attention=attention,
            max_tokens=512,
        )
        for batch_tokens in arguments.batch_tokens:
            predictor = Predictor(
                model, tokenizer, device=device, precision="bf16", max_batch_tokens=batch_tokens or None
            )
            if arguments.compile:
                compile_layers(predictor._model.backbone)
            for kind in ("128", "news cut at 128", "news cut at 512"):
                lengths = lengths_of(kind, arguments.texts)
                entry = {"attention": attention, "texts_are": kind, "batch_tokens": predictor.max_batch_tokens}
                entry |= study(predictor, lengths, arguments.rounds, matrix_rate)
                found.append(entry)
                print(entry, flush=True)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    result = {
        "size": arguments.size,
        "tasks": NUM_TASKS,
        "compiled": arguments.compile,
        "matrix_tflops": round(matrix_rate / 1e12, 2),
        "peak_memory_gb": round(peak / 1e9, 2),
        "studies": found,
    }
    print(f"wrote {write_result(arguments.name, result)}")


if __name__ == "__main__":
    main()
