"""How near does labelling come to what the GPU can do? Needs torch and transformers, no Ray; also runs on a CPU.

With an encoder of BERT-base size (random weights: they cost the same) and eight tasks, after measuring the rate of a
large bf16 matrix product in the same run:

* `mtop`     `Predictor.predict_tokens`: batches are padded, copied, run and fetched, as in a labelling job
* `forward`  `MTOPModel.all_tasks` over the same batches, which lie on the device already
* `encoder`  the bare encoder over the same batches, without prompts and heads

for texts of exactly 128 tokens, and for lengths as in news (log-normal, median 90, cut at 128 and at 512). All compute
in bf16, take turns, and are given as documents per second and as the share of the matrix rate that real tokens and
prompts make use of (`mtop_batch.model.flops`; for `encoder` without prompts).

What stands between: `kernels` lists where the time of one forward pass goes, `products` the rate of the encoder's
matrix products alone, `layers` that of a stack of layers written down for speed (one product for queries, keys and
values; nothing but tensors; compiled as a whole).

    python benchmarks/gpu.py [--size base] [--attention isolated] [--texts 16384] [--rounds 2]
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
from torch import Tensor, nn
from torch._C._autograd import DeviceType
from torch.nn import functional as F
from transformers import BertConfig, BertModel, BertTokenizer

from mtop_batch.data.batches import length_sorted_batches, pad_batch
from mtop_batch.data.tokens import Tokens
from mtop_batch.labelling.run.predictor import Predictor
from mtop_batch.model.encoder.ragged import varlen_attention
from mtop_batch.model.flops import ForwardFlops, measure_peak_flops_per_s
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


def inputs_of(tokens: Tokens, rows: npt.NDArray[np.int64], device: torch.device) -> dict[str, Any]:
    """A batch as `Predictor` makes it: with a mask where there is padding."""
    batch: dict[str, Any] = pad_batch(tokens, rows, device)
    if batch["attention_mask"].all():
        del batch["attention_mask"]
    return {**batch, "num_tokens": int(tokens.lengths[rows].sum())}


def study(
    predictor: Predictor, lengths: npt.NDArray[np.int64], num_rounds: int, matrix_rate: float, *, with_encoder: bool
) -> dict[str, Any]:
    """All three on texts of these lengths."""
    model, device, names = predictor._model, predictor.device, predictor._names
    tokens = make_tokens(lengths)
    costs = lengths + predictor._num_prompts
    rows = length_sorted_batches(costs, predictor.max_batch_tokens)
    batches = [inputs_of(tokens, batch, device) for batch in rows]

    @torch.inference_mode()
    def forward() -> None:
        for batch in batches:
            model.all_tasks(**batch, tasks=names)

    @torch.inference_mode()
    def encoder() -> None:
        for batch in batches:
            model.backbone(**{key: value for key, value in batch.items() if key != "num_tokens"})

    with_prompts = model.forward_flops(names)
    without = ForwardFlops(
        with_prompts.per_position,
        with_prompts.per_pair,
        share_of_context=1,
        share_of_pairs=1,
        per_text=0,
        num_context_prompts=0,
        num_reading_prompts=0,
        num_passes=1,
    )
    runs = {"mtop": lambda: predictor.predict_tokens(tokens), "forward": forward}
    if with_encoder:
        runs["encoder"] = encoder
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


def kernels(predictor: Predictor, lengths: npt.NDArray[np.int64], most: int = 20) -> dict[str, Any]:
    """Where the time of one forward pass goes: the kernels that take most of it, in milliseconds."""
    device = predictor.device
    tokens = make_tokens(lengths)
    rows = length_sorted_batches(lengths + predictor._num_prompts, predictor.max_batch_tokens)
    batch = inputs_of(tokens, rows[len(rows) // 2], device)
    activity = torch.profiler.ProfilerActivity.CUDA if device.type == "cuda" else torch.profiler.ProfilerActivity.CPU

    @torch.inference_mode()
    def forward() -> float:
        _synchronise(device)
        started = time.perf_counter()
        predictor._model.all_tasks(**batch, tasks=predictor._names)
        _synchronise(device)
        return time.perf_counter() - started

    seconds = min(forward() for _ in range(5))
    with torch.profiler.profile(activities=[activity]) as profile:
        forward()
    found = times_of(profile, device)
    return {
        "texts": len(batch["input_ids"]),
        "tokens": batch["num_tokens"],
        "ms": round(seconds * 1e3, 2),
        "busy_ms": round(sum(microseconds for microseconds, *_ in found) / 1e3, 2),
        "kernels": [[round(us / 1e3, 3), count, key[:110]] for us, count, key in found[:most]],
    }


def times_of(profile: torch.profiler.profile, device: torch.device) -> list[tuple[float, int, str]]:
    """Microseconds, calls and names of what a device did, longest first."""
    on_gpu = device.type == "cuda"
    found = [
        (event.self_device_time_total if on_gpu else event.self_cpu_time_total, event.count, event.key)
        for event in profile.key_averages()
        if not on_gpu or event.device_type == DeviceType.CUDA
    ]
    return sorted(found, reverse=True)


def products(size: Mapping[str, int], positions: int, device: torch.device) -> dict[str, float]:
    """TFLOP/s of the encoder's matrix products alone, in bf16, over so many positions."""
    width, inner = size["hidden_size"], size["intermediate_size"]
    found = {}
    for rows, columns in ((width, 3 * width), (width, width), (width, inner), (inner, width)):
        inputs = torch.randn(positions, rows, device=device, dtype=torch.bfloat16)
        layer = nn.Linear(rows, columns, device=device, dtype=torch.bfloat16)
        seconds = []
        with torch.inference_mode():
            for _ in range(8):
                _synchronise(device)
                started = time.perf_counter()
                for _ in range(4):
                    layer(inputs)
                _synchronise(device)
                seconds.append((time.perf_counter() - started) / 4)
        found[f"{rows} x {columns}"] = round(2 * positions * rows * columns / statistics.median(seconds) / 1e12, 1)
    return found


def layers(size: Mapping[str, int], num_texts: int, device: torch.device) -> dict[str, float]:
    """Documents per second of a stack of layers, over texts of 128 tokens that are embedded already."""
    width, inner, heads = size["hidden_size"], size["intermediate_size"], size["num_attention_heads"]
    shapes = [(3 * width, width), (width, width), (inner, width), (width, inner)]
    dtype = torch.bfloat16
    weights = [
        [torch.randn(shape, device=device, dtype=dtype) * 0.02 for shape in shapes]
        for _ in range(size["num_hidden_layers"])
    ]
    biases = [torch.zeros(shape[0], device=device, dtype=dtype) for shape in shapes]
    scale, shift = torch.ones(width, device=device, dtype=dtype), torch.zeros(width, device=device, dtype=dtype)
    offsets = torch.arange(0, num_texts * 128 + 1, 128, device=device, dtype=torch.int32)

    def layer(hidden: Tensor, qkv: Tensor, out: Tensor, up: Tensor, down: Tensor) -> Tensor:
        query, key, value = F.linear(hidden, qkv, biases[0]).view(-1, 3, heads, width // heads).unbind(1)
        if device.type == "cuda":
            mixed, _ = varlen_attention(query, key, value, (offsets, offsets), (128, 128))
        else:
            q, k, v = (each.view(num_texts, 128, heads, -1).transpose(1, 2) for each in (query, key, value))
            mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1)
        hidden = F.layer_norm(hidden + F.linear(mixed.flatten(1), out, biases[1]), (width,), scale, shift)
        return F.layer_norm(
            hidden + F.linear(F.gelu(F.linear(hidden, up, biases[2])), down, biases[3]), (width,), scale, shift
        )

    hidden = torch.randn(num_texts * 128, width, device=device, dtype=dtype)
    found = {}
    for name, run in (("eager", layer), ("compiled", torch.compile(layer))):
        seconds = []
        with torch.inference_mode():
            for _ in range(6):
                _synchronise(device)
                started = time.perf_counter()
                outputs = hidden
                for own in weights:
                    outputs = run(outputs, *own)
                _synchronise(device)
                seconds.append(time.perf_counter() - started)
        found[name] = round(num_texts / statistics.median(seconds[2:]), 1)
    return found


def main() -> None:
    """Measure, print and write `results/gpu*.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="base")
    parser.add_argument("--attention", choices=["joint", "isolated"], nargs="+", default=["isolated", "joint"])
    parser.add_argument("--texts", type=int, default=16_384)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch-tokens", type=int, nargs="+", default=[0], help="0: what Predictor chooses")
    parser.add_argument("--name", default="gpu")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    size = SIZES[arguments.size]
    config = BertConfig(vocab_size=VOCABULARY, max_position_embeddings=512, **size)
    tokenizer = BertTokenizer(vocab={f"w{number}": number for number in range(10)} | {"[UNK]": 10, "[PAD]": 11})
    matrix_rate = measure_peak_flops_per_s(device, torch.bfloat16)
    result: dict[str, Any] = {
        "size": arguments.size,
        "tasks": NUM_TASKS,
        "matrix_tflops": round(matrix_rate / 1e12, 2),
        "products_tflops": products(size, 65_536 if device.type == "cuda" else 1_024, device),
        "layers_documents_per_s": layers(size, 512 if device.type == "cuda" else 8, device),
        "studies": [],
        "kernels": [],
    }
    print({key: value for key, value in result.items() if value}, flush=True)
    for attention in arguments.attention:
        model = MTOPModel.from_backbone(
            BertModel(config, add_pooling_layer=False),
            [Task(f"task_{index}") for index in range(NUM_TASKS)],
            prompt_attention=attention,
            max_tokens=512,
        )
        for batch_tokens in arguments.batch_tokens:
            predictor = Predictor(
                model,
                tokenizer,
                device=device,
                precision="bf16",
                max_batch_tokens=batch_tokens or None,
            )
            for kind in ("128", "news cut at 128", "news cut at 512"):
                lengths = lengths_of(kind, arguments.texts)
                entry = {"attention": attention, "texts_are": kind}
                entry["batch_tokens"] = predictor.max_batch_tokens
                first = attention == arguments.attention[0]
                found = study(predictor, lengths, arguments.rounds, matrix_rate, with_encoder=first)
                result["studies"].append(entry | found)
                print(result["studies"][-1], flush=True)
                if kind != "news cut at 128" and batch_tokens == arguments.batch_tokens[0]:
                    result["kernels"].append(entry | kernels(predictor, lengths))
                result["peak_memory_gb"] = _peak_gb(device)
                write_result(arguments.name, result)
    for entry in result["kernels"]:
        print({key: value for key, value in entry.items() if key != "kernels"})
        print(*entry["kernels"][:12], sep="\n")


def _peak_gb(device: torch.device) -> float:
    return round(torch.cuda.max_memory_allocated() / 1e9, 2) if device.type == "cuda" else 0.0


if __name__ == "__main__":
    main()
