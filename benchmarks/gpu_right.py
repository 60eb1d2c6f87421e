"""Does a GPU compute what a CPU computes? Two steps, because a machine with a GPU may have no data and no Ray.

`prepare` takes a trained bundle with isolated prompts and texts, and writes rounded weights, tokens and the outputs
of a CPU in fp32 into a directory. `check` reads it and writes `results/gpu_right.json`:

* `isolated`, `joint`  label flips and differences of scores in fp32 and bf16, beside the CPU's fp32; `joint` has the
  same weights, its prompts in the context
* `added`  two tasks more, with LoRA: are the outputs of the earlier ones the same bits?
* `memory`  the same with so little memory that batches must be split
* `waiting`  whether a forward pass waits for the GPU anywhere

    python benchmarks/gpu_right.py prepare --model M --texts T.parquet [T2.parquet ...] --columns C [C2 ...] --work DIR
    python benchmarks/gpu_right.py check --work DIR
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch
from results_file import write_result
from safetensors.torch import load_file, save_file
from transformers import BertTokenizer

from mtop_batch.data.batches import length_sorted_batches, pad_batch
from mtop_batch.data.tokens import TextTokenizer, Tokens
from mtop_batch.labelling.run.predictor import Predictor
from mtop_batch.model.bundle.bundle import load_bundle
from mtop_batch.model.kinds.config import MTOPConfig
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.precision import PrecisionChoice
from mtop_batch.tasks import Task

ADDED = ("added_first", "added_second")
VARIANTS = ("isolated", "joint", "added")
# LoRA is slow on a CPU.
MOST_ADDED = 1_000
PRECISIONS: tuple[PrecisionChoice, ...] = ("fp32", "bf16")
Outputs = tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]


def build(work: Path, variant: str) -> MTOPModel:
    """The model of a variant; the same on every machine."""
    settings = json.loads((work / "config.json").read_text())
    if variant == "joint":
        settings["prompt_attention"] = "joint"
        for entry in settings["tasks"]:
            entry["isolated"] = False
    model = MTOPModel(MTOPConfig(**settings))
    model.load_state_dict({key: value.float() for key, value in load_file(work / "weights.safetensors").items()})
    if variant == "added":
        model.add_tasks([Task(name) for name in ADDED], lora_rank=8)
        stored = load_file(work / "added.safetensors")
        for name in ADDED:
            model.load_task(name, {key: stored[f"{name}/{key}"].float() for key in model.task_tensors(name)})
    model.train(mode=False)
    return model


def predictor(model: MTOPModel, device: str, precision: PrecisionChoice, **settings: Any) -> Predictor:
    """One that is given tokens only."""
    tokenizer = BertTokenizer(vocab={"[UNK]": 0, "[PAD]": 1})
    return Predictor(model, tokenizer, device=device, precision=precision, **settings)


def outputs_of(predictor: Predictor, tokens: Tokens) -> Outputs:
    """(n, R) Label ids and scores."""
    found = predictor.predict_tokens(tokens)
    return found.label_ids, found.scores


def read_tokens(work: Path) -> Tokens:
    """The texts."""
    found = np.load(work / "tokens.npz")
    return Tokens(found["values"], found["offsets"], found["first_lengths"])


def prepare(model_uri: str, texts: Sequence[Path], columns: Sequence[str], rows: int, work: Path) -> None:
    """Write what `check` needs."""
    work.mkdir(parents=True, exist_ok=True)
    bundle = load_bundle(model_uri)
    save_file(
        {key: value.half().contiguous() for key, value in bundle.model.state_dict().items()},
        work / "weights.safetensors",
    )
    save_added(cast(MTOPModel, bundle.model), work)
    (work / "config.json").write_text(json.dumps(bundle.model.config.to_dict()))
    found = [text for path, name in zip(texts, columns, strict=True) for text in read_column(path, name, rows)]
    tokens = TextTokenizer(bundle.tokenizer, bundle.model.config.max_tokens).encode(found)
    np.savez(work / "tokens.npz", values=tokens.values, offsets=tokens.offsets, first_lengths=tokens.first_lengths)
    for variant in VARIANTS:
        some = tokens.take(np.arange(min(MOST_ADDED, len(tokens)))) if variant == "added" else tokens
        label_ids, scores = outputs_of(predictor(build(work, variant), "cpu", "fp32"), some)
        np.savez(work / f"{variant}.npz", label_ids=label_ids, scores=scores)
        print(f"{variant}: {label_ids.shape[1]} texts, {label_ids.shape[0]} tasks", flush=True)


def save_added(model: MTOPModel, work: Path) -> None:
    """Weights of two tasks more, drawn here once: random numbers differ between processors."""
    model.add_tasks([Task(name) for name in ADDED], lora_rank=8)
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for name in ADDED:
        for key, value in model.task_tensors(name).items():
            drawn = torch.randn(value.shape, generator=generator) * 0.02 if key.startswith("lora.B") else value
            tensors[f"{name}/{key}"] = drawn.half()
    save_file(tensors, work / "added.safetensors")
    model.drop_tasks(ADDED)


def read_column(path: Path, name: str, rows: int) -> list[str]:
    """The first texts of a column."""
    return [text for text in pq.read_table(path, columns=[name])[name].to_pylist() if text][:rows]


def compare(own: Outputs, other: Outputs) -> dict[str, Any]:
    """Label flips and differences of scores, over the tasks that both have and that were trained."""
    num_tasks = min(len(own[0]), len(other[0]))
    flips = own[0][:num_tasks] != other[0][:num_tasks]
    differences = np.abs(own[1][:num_tasks] - other[1][:num_tasks])[~flips]
    return {
        "labels": int(flips.size),
        "flips": int(flips.sum()),
        "flipped_share": round(float(flips.mean()), 6),
        "score_difference_max": float(differences.max()),
        "score_difference_mean": float(differences.mean()),
    }


def waits(predictor: Predictor, tokens: Tokens) -> str:
    """What in a forward pass waits for the GPU: the error of PyTorch's own watch; "nowhere" if it finds none."""
    rows = length_sorted_batches(tokens.lengths, 8192)[1]
    batch = pad_batch(tokens, rows, predictor.device)
    wanted = {"tasks": predictor._names, "num_tokens": int(tokens.lengths[rows].sum())}
    with torch.inference_mode():
        predictor._model.all_tasks(**batch, **wanted)
        torch.cuda.set_sync_debug_mode("error")
        try:
            predictor._model.all_tasks(**batch, **wanted)
        except RuntimeError as error:
            return str(error)[:300]
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return "nowhere"


def with_little_memory(work: Path, tokens: Tokens, precision: PrecisionChoice, expected: Outputs) -> dict[str, Any]:
    """The same with a limit that the first batches do not fit into."""
    own = predictor(build(work, "isolated"), "cuda", precision)
    before = own.max_batch_tokens
    torch.cuda.empty_cache()
    limit = torch.cuda.memory_reserved() + 2**28
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
    try:
        found = compare(outputs_of(own, tokens), expected)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    return {"batch_tokens": [before, own.max_batch_tokens], **found}


def check(work: Path, name: str) -> None:
    """Compare and write the result."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokens = read_tokens(work)
    result: dict[str, Any] = {"texts": len(tokens), "tokens": int(tokens.lengths.sum())}
    own: dict[tuple[str, str], Outputs] = {}
    for variant in VARIANTS:
        stored = np.load(work / f"{variant}.npz")
        expected = stored["label_ids"], stored["scores"]
        for precision in PRECISIONS:
            predicts = predictor(build(work, variant), device, precision)
            own[variant, precision] = outputs_of(predicts, tokens)
            some = expected[0].shape[1]
            result[f"{variant} {precision}"] = compare(
                (own[variant, precision][0][:, :some], own[variant, precision][1][:, :some]), expected
            )
            if device == "cuda":
                result[f"{variant} {precision}"]["waits"] = waits(predicts, tokens)
            print(f"{variant} {precision}", result[f"{variant} {precision}"], flush=True)
    for precision in PRECISIONS:
        with_added, without = own["added", precision], own["isolated", precision]
        same = [np.array_equal(a[: len(b)], b) for a, b in zip(with_added, without, strict=True)]
        result[f"added tasks leave labels and scores bit for bit, {precision}"] = all(same)
        if device == "cuda":
            result[f"memory {precision}"] = with_little_memory(work, tokens, precision, without)
    print({key: value for key, value in result.items() if key.startswith(("added tasks", "memory"))})
    print(f"wrote {write_result(name, result)}")


def main() -> None:
    """Prepare or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["prepare", "check"])
    parser.add_argument("--model")
    parser.add_argument("--texts", type=Path, nargs="+", default=[])
    parser.add_argument("--columns", nargs="+", default=[])
    parser.add_argument("--rows", type=int, default=8_000)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--name", default="gpu_right")
    arguments = parser.parse_args()
    if arguments.step == "prepare":
        prepare(arguments.model, arguments.texts, arguments.columns, arguments.rows, arguments.work)
    else:
        check(arguments.work, arguments.name)


if __name__ == "__main__":
    main()
