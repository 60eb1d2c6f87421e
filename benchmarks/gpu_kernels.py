"""What do kernels of our own bring on a GPU (`mtop_batch.model.triton_kernels`)? Needs torch, transformers and Triton.

Parts, each of which prints and writes `results/gpu_kernels_<part>.json` when it ends, whatever became of the others:

* `right`     the kernels beside the same sums in float32, and how long they take beside PyTorch's
* `flips`     a trained bundle: labels that differ from fp32, without kernels, with them, and with the GELU of cuBLAS
* `speed`     documents per second of `MTOPModel.all_tasks` at BERT-base size with more and more of them; for the last
              that of `Predictor.predict_tokens` too, and where the time of a forward pass goes
* `tasks`     1 to 1,000 tasks in eight prompt groups, without kernels and with them; where the time of 1,000 goes
* `training`  examples per second of MTOP and of a plain `transformers.Trainer` (if `accelerate` is installed)

    python benchmarks/gpu_kernels.py [--parts right flips ...] [--work DIR with a bundle] [--cap 170]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from gpu import NUM_TASKS, SIZES, VOCABULARY, inputs_of, kernels, lengths_of, make_tokens, times_of
from gpu_right import compare, outputs_of
from gpu_right import predictor as predictor_of
from results_file import write_result
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel, BertTokenizer

from mtop_batch.data.batches import length_sorted_batches
from mtop_batch.data.tokens import Tokens
from mtop_batch.labelling.run.predictor import Predictor
from mtop_batch.model.encoder import fused, ragged
from mtop_batch.model.encoder.masks import group_spans
from mtop_batch.model.encoder.packing import Packing
from mtop_batch.model.encoder.ragged import Ragged
from mtop_batch.model.flops import measure_peak_flops_per_s
from mtop_batch.model.kinds.config import MTOPConfig
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.model.parts import stacked_heads
from mtop_batch.model.parts.heads import TaskModule
from mtop_batch.tasks import Task

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE.type == "cuda"


@dataclass(frozen=True)
class Variant:
    """What of ours is in use.

    Args:
        norms: Sums and norms.
        prompts: Attention from isolated prompts.
        heads: Poolers and heads.
        gelu: That of cuBLAS at the end of its product, by tanh; else the exact one.
    """

    norms: bool = True
    prompts: bool = True
    heads: bool = True
    gelu: bool = True

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """While the block runs, models compute like this."""
        with ExitStack() as stack:
            for module, wanted in ((fused, self.norms), (ragged, self.prompts), (stacked_heads, self.heads)):
                if not wanted:
                    stack.enter_context(patch.object(module, "has_kernels", lambda _: False))
            if not self.heads:
                stack.enter_context(patch.object(stacked_heads, "_GPU_MULTIPLE", 1))
            if not self.gelu:
                stack.enter_context(patch.object(fused, "_has_gelu_in_product", lambda _: False))
            yield


PLAIN = Variant(norms=False, prompts=False, heads=False, gelu=False)
VARIANTS = {
    "plain": PLAIN,
    "norms": replace(PLAIN, norms=True),
    "norms, prompts": Variant(heads=False, gelu=False),
    "kernels": Variant(gelu=False),
    "kernels, tanh": Variant(),
}


def microseconds(run: Callable[[], Any], repeats: int = 20) -> float:
    """Of one call among many."""
    run()
    wait()
    started = time.perf_counter()
    for _ in range(repeats if ON_GPU else 1):
        run()
    wait()
    return round((time.perf_counter() - started) / (repeats if ON_GPU else 1) * 1e6, 1)


def wait() -> None:
    """For the GPU."""
    if ON_GPU:
        torch.cuda.synchronize()


def furthest(own: Tensor, exact: Tensor) -> float:
    """The largest difference from numbers in float32."""
    return float((own.float() - exact).abs().max())


@torch.inference_mode()
def right(found: dict[str, Any]) -> None:
    """Each kernel by itself; leaves the fastest settings in force."""
    positions, width = (65_536, 768) if ON_GPU else (64, 64)
    draw = partial(torch.randn, device=DEVICE, dtype=torch.bfloat16 if ON_GPU else torch.float32)
    attempt(found, "norm", lambda: right_norm(draw(positions, width), draw(positions, width), draw(width), draw(width)))
    for num_texts, length, num_prompts, num_groups in ((455, 128, 16, 8), (128, 512, 16, 8), (200, 128, 128, 64)):
        name = f"prompts, {num_texts} x {length}, {num_prompts} in {num_groups}"
        num_texts = num_texts if ON_GPU else 2
        attempt(found, name, partial(right_prompts, draw, num_texts, length, num_prompts, num_groups))
    attempt(found, "heads", lambda: right_heads(draw))
    inner = 4 * width
    attempt(found, "up", lambda: right_up(draw(positions, width), draw(inner, width) * 0.03, draw(inner)))


def attempt(found: dict[str, Any], name: str, run: Callable[[], Any]) -> None:
    """Note what a run gives, or how it failed."""
    try:
        found[name] = run()
    except Exception as error:  # whatever fails, the rest is worth having
        found[name] = f"failed: {type(error).__name__}: {str(error)[:400]}"
        print(traceback.format_exc()[-2000:], flush=True)
    print(name, str(found[name])[:700], flush=True)


def right_norm(hidden: Tensor, added: Tensor, weight: Tensor, bias: Tensor) -> dict[str, Any]:
    """Sum and norm."""
    from mtop_batch.model import triton_kernels

    size = hidden.shape[1:]
    exact = F.layer_norm(hidden.float() + added.float(), size, weight.float(), bias.float(), 1e-12)
    plain = partial(F.layer_norm, hidden + added, size, weight, bias, 1e-12)
    times = {}
    for triton_kernels.NORM_WARPS in (1, 2, 4, 8):
        times[triton_kernels.NORM_WARPS] = microseconds(
            lambda: triton_kernels.add_norm(hidden, added, weight, bias, 1e-12)
        )
    triton_kernels.NORM_WARPS = min(times, key=lambda warps: times[warps])
    own = triton_kernels.add_norm(hidden, added, weight, bias, 1e-12)
    return {
        "off": furthest(own, exact),
        "plain_off": furthest(plain(), exact),
        "us_by_warps": times,
        "plain_us": microseconds(lambda: F.layer_norm(hidden + added, size, weight, bias, 1e-12)),
    }


def right_prompts(
    draw: Callable[..., Tensor], num_texts: int, length: int, num_prompts: int, num_groups: int
) -> dict[str, Any]:
    """Attention from isolated prompts, to texts of one length but the first, which has one position less."""
    from mtop_batch.model import triton_kernels

    heads, width = 12, 64
    lengths = torch.full((num_texts,), length, device=DEVICE)
    lengths[0] -= 1
    batch = Ragged.of(Packing(None, lengths, (num_texts, length)))
    text_key, text_value = draw(int(lengths.sum()), 3, heads, width).unbind(1)[1:]
    query, key, value = (
        each.view(num_texts, num_prompts, heads, width)
        for each in draw(num_texts * num_prompts, 3, heads, width).unbind(1)
    )
    groups = tuple(index * num_groups // num_prompts for index in range(num_prompts))
    spans = group_spans(groups, DEVICE)
    run = partial(triton_kernels.attend_from_prompts, query, key, value, (text_key, text_value), batch.offsets, spans)

    def plain() -> Tensor:
        with patch.object(ragged, "has_kernels", lambda _: False):
            return ragged.attend_from_prompts(query, key, value, (text_key, text_value), batch, spans)

    def exact(text: int) -> Tensor:
        own = slice(int(batch.offsets[text]), int(batch.offsets[text + 1]))
        keys, values = torch.cat([text_key[own], key[text]]), torch.cat([text_value[own], value[text]])
        sees = torch.cat([spans.new_ones(num_prompts, int(lengths[text])), spans[0][:, None] == spans[0]], dim=1)
        q, k, v = (each.float().transpose(0, 1) for each in (query[text], keys, values))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=sees.bool()).transpose(0, 1)

    some = (0, 1, num_texts - 1)
    references = [exact(text) for text in some]
    times = {}
    before = triton_kernels.TEXT_BLOCK, triton_kernels.PROMPT_WARPS, triton_kernels.PROMPT_STAGES
    others = [(128, 4, 1), (64, 4, 2), (64, 4, 1), (64, 2, 2), (128, 8, 2)]
    for setting in (before, *(others if ON_GPU and num_prompts == 16 else ())):
        triton_kernels.TEXT_BLOCK, triton_kernels.PROMPT_WARPS, triton_kernels.PROMPT_STAGES = setting
        try:
            times[setting] = microseconds(run)
        except Exception as error:  # a setting that takes more than there is
            print(setting, str(error)[:200], flush=True)
    best = min(times, key=lambda setting: times[setting]) if length == 128 and num_prompts == 16 else before
    triton_kernels.TEXT_BLOCK, triton_kernels.PROMPT_WARPS, triton_kernels.PROMPT_STAGES = best
    own = run()
    result = {
        "off": max(furthest(own[text], reference) for text, reference in zip(some, references, strict=True)),
        "us_by_block_warps_stages": {str(key): value for key, value in sorted(times.items(), key=lambda x: x[1])},
    }
    if ON_GPU:
        theirs = plain()
        result["plain_off"] = max(furthest(theirs[t], r) for t, r in zip(some, references, strict=True))
        result["plain_us"] = microseconds(plain)
    return result


def right_heads(draw: Callable[..., Tensor]) -> dict[str, Any]:
    """What comes behind the poolers' products."""
    from mtop_batch.model import triton_kernels

    num_tasks, width, num_texts = (95, 768, 464) if ON_GPU else (2, 64, 8)
    products, bias, head = draw(num_tasks, width, num_texts), draw(num_tasks, width), draw(num_tasks, 2, width).float()
    exact = torch.bmm(head.double(), torch.tanh(products.double() + bias.double()[..., None])).float()
    kernel, inputs = draw(1, num_tasks * width, width) * 0.03, draw(1, width, num_texts)

    def plain() -> Tensor:
        pooled = torch.baddbmm(bias.view(1, -1, 1), kernel, inputs[..., : num_texts - 9 * ON_GPU]).tanh_()
        return torch.bmm(head, pooled.view(num_tasks, width, -1).float())

    def own() -> Tensor:
        return triton_kernels.head_logits(torch.bmm(kernel, inputs).view(num_tasks, width, -1), bias, head)

    return {
        "off": furthest(triton_kernels.head_logits(products, bias, head), exact),
        "us": microseconds(lambda: triton_kernels.head_logits(products, bias, head)),
        "with_product_us": microseconds(own),
        "plain_with_product_us": microseconds(plain),
    }


def right_up(hidden: Tensor, weight: Tensor, bias: Tensor) -> dict[str, Any]:
    """A product and a GELU: the exact one after it, and the one by tanh at its end."""
    exact = F.gelu(F.linear(hidden[:4096].float(), weight.float(), bias.float()))
    result: dict[str, Any] = {"product_us": microseconds(lambda: F.linear(hidden, weight, bias))}
    runs: dict[str, Callable[[], Tensor]] = {
        "plain": lambda: F.gelu(F.linear(hidden, weight, bias)),
        "tanh": lambda: torch._addmm_activation(bias, hidden, weight.t(), use_gelu=True),
    }
    for name, run in runs.items():
        result[name] = {"us": microseconds(run), "off": furthest(run()[:4096], exact)}
    return result


def bundle(work: Path, attention: str) -> MTOPModel:
    """A trained model; its stored weights are rounded, which makes it no other kind of model."""
    settings = json.loads((work / "config.json").read_text())
    settings["prompt_attention"] = attention
    for entry in settings["tasks"]:
        entry["isolated"] = attention == "isolated"
    model = MTOPModel(MTOPConfig(**settings))
    stored = load_file(work / "weights.safetensors")
    weights = {
        key: value.float() * stored[f"{key}#"][:, None] if f"{key}#" in stored else value.float()
        for key, value in stored.items()
        if not key.endswith("#")
    }
    model.load_state_dict(weights)
    model.train(mode=False)
    return model


def flips(found: dict[str, Any], work: Path) -> None:
    """Labels that differ from those of fp32 on the same device, without kernels."""
    stored = np.load(work / "tokens.npz")
    tokens = Tokens(
        stored["values"].astype(np.int32), stored["offsets"].astype(np.int64), stored["first_lengths"].astype(np.int32)
    )
    tokens = tokens if ON_GPU else tokens.take(np.arange(200))
    found |= {"texts": len(tokens), "tokens": int(tokens.lengths.sum())}
    for attention in ("isolated", "joint"):
        model = bundle(work, attention)
        in_fp32 = predictor_of(model, str(DEVICE), "fp32")
        with PLAIN.in_use():
            expected = outputs_of(in_fp32, tokens)
        with Variant().in_use():
            found[f"{attention}: kernels, fp32"] = compare(outputs_of(in_fp32, tokens), expected)
        in_bf16 = predictor_of(model, str(DEVICE), "bf16")
        for name, variant in VARIANTS.items():

            def run(predicts: Predictor = in_bf16, variant: Variant = variant) -> dict[str, Any]:
                with variant.in_use():
                    return compare(outputs_of(predicts, tokens), expected)  # noqa: B023

            attempt(found, f"{attention}: {name}, bf16", run)


def base_model(attention: str, num_tasks: int = NUM_TASKS, groups: int = 0) -> MTOPModel:
    """Of BERT-base size; its weights are random, and those of the tasks are drawn on the device, which is faster."""
    config = BertConfig(vocab_size=VOCABULARY, max_position_embeddings=512, **SIZES["base" if ON_GPU else "tiny"])
    with patch.object(nn.Linear, "reset_parameters", lambda _: None):
        backbone = BertModel(config, add_pooling_layer=False)
        with patch.object(TaskModule, "initialise", lambda *_: None):
            model = MTOPModel.from_backbone(
                backbone,
                [Task(f"task_{index}") for index in range(num_tasks)],
                prompt_attention="joint" if attention == "joint" else "isolated",
                prompt_groups={f"task_{index}": str(index % groups) for index in range(num_tasks)} if groups else None,
                max_tokens=512,
            )
    nn.Module.to(model, device=DEVICE)
    with torch.no_grad():
        for parameter in [*model.task_modules.parameters(), *model.prompt_groups.parameters()]:
            parameter.normal_(0, 0.02)
    return model


def predictor(model: MTOPModel) -> Predictor:
    """In bf16."""
    tokenizer = BertTokenizer(vocab={f"w{number}": number for number in range(10)} | {"[UNK]": 10, "[PAD]": 11})
    return Predictor(model, tokenizer, device=DEVICE, precision="bf16")


@dataclass
class Rates:
    """Documents per second, round by round."""

    rounds: list[float] = field(default_factory=list)

    def describe(self, flops: float, matrix_rate: float) -> dict[str, Any]:
        """The median and what it makes of the device."""
        rate = statistics.median(self.rounds)
        return {
            "documents_per_s": round(rate, 1),
            "rounds": [round(value, 1) for value in self.rounds],
            "flop_utilisation": round(rate * flops / matrix_rate, 4),
        }


def in_turn(runs: Mapping[str, Callable[[], Any]], num_texts: int, num_rounds: int) -> dict[str, Rates]:
    """All of them round by round, after a warm-up; one that fails is left out."""
    rates = {name: Rates() for name in runs}
    for round_ in range(num_rounds + 1):
        for name in [name for name in runs if name in rates]:
            wait()
            started = time.perf_counter()
            try:
                runs[name]()
                wait()
            except Exception as error:
                print(f"{name} failed: {str(error)[:300]}", flush=True)
                del rates[name]
                continue
            if round_:
                rates[name].rounds.append(num_texts / (time.perf_counter() - started))
    return rates


def forward_of(predicts: Predictor, batches: Sequence[Mapping[str, Any]], variant: Variant) -> Callable[[], None]:
    """`MTOPModel.all_tasks` over batches that lie on the device."""

    @torch.inference_mode()
    def forward() -> None:
        with variant.in_use():
            for batch in batches:
                predicts._model.all_tasks(**batch, tasks=predicts._names)

    return forward


def speed(found: dict[str, Any], num_texts: int, ends: float) -> None:
    """Documents per second with more and more kernels."""
    rate = measure_peak_flops_per_s(DEVICE, torch.bfloat16)
    found |= {"matrix_tflops": round(rate / 1e12, 1), "studies": []}
    for attention in ("isolated", "joint"):
        predicts = predictor(base_model(attention))
        for kind in ("128", "news cut at 512", "news cut at 128"):
            if time.perf_counter() > ends:
                print("no time for", attention, kind, flush=True)
                continue
            lengths = lengths_of(kind, num_texts)
            tokens = make_tokens(lengths)
            rows = length_sorted_batches(lengths + predicts._num_prompts, predicts.max_batch_tokens)
            batches = [inputs_of(tokens, batch, DEVICE) for batch in rows]
            runs: dict[str, Callable[[], Any]] = {
                name: forward_of(predicts, batches, variant)
                for name, variant in VARIANTS.items()
                if attention == "isolated" or "prompts" not in name
            }
            runs["predict_tokens, kernels"] = partial(predicts.predict_tokens, tokens)
            flops = predicts._model.forward_flops(predicts._names)(lengths) / len(lengths)
            entry: dict[str, Any] = {"attention": attention, "texts_are": kind, "texts": num_texts}
            entry |= {name: rates.describe(flops, rate) for name, rates in in_turn(runs, num_texts, 2).items()}
            found["studies"].append(entry)
            print(*(f"{key}: {value}" for key, value in entry.items()), sep="\n  ", flush=True)
            if kind != "news cut at 128":
                attempt(entry, "profile", partial(kernels, predicts, lengths))
                write_result("gpu_kernels_speed", found)


def tasks(found: dict[str, Any], num_texts: int, ends: float) -> None:
    """More and more tasks, and where the time of the most goes."""
    predictors = {}
    for num_tasks in (1, 8, 64, 256, 1000) if ON_GPU else (1, 20):
        predictors[num_tasks] = predictor(base_model("isolated", num_tasks, groups=8))
    tokens = make_tokens(np.full(num_texts, 128))
    runs: dict[str, Callable[[], Any]] = {}
    for num_tasks, predicts in predictors.items():
        runs[f"{num_tasks}"] = partial(predicts.predict_tokens, tokens)

        def plain(predicts: Predictor = predicts) -> None:
            with PLAIN.in_use():
                predicts.predict_tokens(tokens)

        runs[f"{num_tasks} plain"] = plain
    rates = in_turn(runs, num_texts, 2)
    for name, rate in rates.items():
        base = rates["1 plain" if "plain" in name else "1"]
        found[name] = {
            "documents_per_s": round(statistics.median(rate.rounds), 1),
            "rounds": [round(value, 1) for value in rate.rounds],
            "cost": round(statistics.median(b / r for b, r in zip(base.rounds, rate.rounds, strict=True)), 3),
        }
        print(name, found[name], flush=True)
    write_result("gpu_kernels_tasks", found)
    most = predictors[max(predictors)]
    if time.perf_counter() < ends:
        attempt(found, "profile", partial(profile_of, most, tokens))
        attempt(found, "host", partial(host_of, most, tokens))


def profile_of(predicts: Predictor, tokens: Tokens) -> dict[str, Any]:
    """Milliseconds on the device, of `predict_tokens`."""
    activity = torch.profiler.ProfilerActivity.CUDA if ON_GPU else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as profile:
        predicts.predict_tokens(tokens)
    times = times_of(profile, DEVICE)
    return {
        "texts": len(tokens),
        "busy_ms": round(sum(us for us, *_ in times) / 1e3, 2),
        "kernels": [[round(us / 1e3, 3), count, key[:110]] for us, count, key in times[:24]],
    }


def host_of(predicts: Predictor, tokens: Tokens) -> dict[str, Any]:
    """Seconds of the host, of `predict_tokens`: where it waits for the device, and where it works."""
    import cProfile
    import pstats

    profile = cProfile.Profile()
    started = time.perf_counter()
    profile.runcall(predicts.predict_tokens, tokens)
    seconds = time.perf_counter() - started
    found: Any = pstats.Stats(profile)
    rows = sorted(((own, calls, key) for key, (calls, _, own, *_) in found.stats.items()), reverse=True)
    lines = [[round(own, 4), calls, f"{Path(key[0]).name}:{key[1]} {key[2]}"] for own, calls, key in rows[:14]]
    return {"seconds": round(seconds, 3), "longest": lines}


def training(found: dict[str, Any], ends: float) -> None:
    """Examples per second."""
    import importlib.util

    import train_speed

    with tempfile.TemporaryDirectory() as directory:
        config = BertConfig(vocab_size=VOCABULARY, max_position_embeddings=512, **SIZES["base" if ON_GPU else "tiny"])
        BertModel(config, add_pooling_layer=False).save_pretrained(directory)
        words = ["a", *(f"w{number}" for number in range(VOCABULARY - 6))]  # a tokenizer without a letter is refused
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        BertTokenizer(vocab={word: index for index, word in enumerate(special + words)}).save_pretrained(directory)
        found |= {"batch_size": 32, "tokens": 128, "size": "base"}
        with_trainer = ["trainer"] if importlib.util.find_spec("accelerate") else []
        for variant in ["isolated", *with_trainer, "kept"]:
            if time.perf_counter() > ends:
                print("no time for", variant, flush=True)
                continue
            run = partial(train_speed.measure, variant, directory, 60 if ON_GPU else 2, 0, 32, 128)
            attempt(found, variant, lambda: round(run(), 1))  # noqa: B023
            write_result("gpu_kernels_training", found)


def main() -> None:
    """Measure, print and write part by part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("right", "flips", "speed", "tasks", "training")
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--work", type=Path, default=Path(".gpu/next"), help="with a bundle, for `flips`")
    parser.add_argument("--texts", type=int, default=8_192)
    parser.add_argument("--cap", type=float, default=170, help="seconds after which nothing more is started")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    ends = time.perf_counter() + arguments.cap
    num_texts = arguments.texts if ON_GPU else 16
    for part in arguments.parts:
        if time.perf_counter() > ends:
            print(f"no time for {part}", flush=True)
            continue
        found: dict[str, Any] = {}
        own = time.perf_counter()
        runs: dict[str, Callable[[], None]] = {
            "right": partial(right, found),
            "flips": partial(flips, found, arguments.work),
            "speed": partial(speed, found, num_texts // 2, ends - 40),
            "tasks": partial(tasks, found, num_texts, ends),
            "training": partial(training, found, ends),
        }
        try:
            runs[part]()
        except Exception:  # the other parts are worth having
            found["failed"] = traceback.format_exc()[-1500:]
            print(found["failed"], flush=True)
        found["seconds"] = round(time.perf_counter() - own, 1)
        print(f"== {part}: {found['seconds']} s; wrote {write_result(f'gpu_kernels_{part}', found)}", flush=True)
        if ON_GPU:
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
