"""What do people use today to label texts with eight tasks, and how fast is it beside one MTOP pass?

All have the same encoder weights, texts, threads and precision, take texts and give labels of eight tasks (two labels
each; heads are random, they cost the same). Every one runs in a process of its own, in turn, the order turning round by
round; loading and a warm-up are not counted. Ratios are of the same round, their median over the rounds; where
ours was not measured, they are those of the first that was.

* `mtop`  ours: `Predictor.predict`, with joint and with isolated prompts, two of each task; with isolated ones also
  one of each task (`1 prompt`), two of four tasks (`2 groups`) and two of all tasks (`1 group`)
* `bare`  the encoder alone over token batches made ready beforehand, sorted by length: no prompts, no heads
* `compiled`  the same encoder, compiled with `torch.compile`; compiling is not counted
* `pipelines`  `transformers.pipeline("text-classification")`, once for every task
* `encoder_and_heads`  one `AutoModel`, batches of 32 in the order of the texts, padded; eight linear heads
* `sentence_transformers`  `SentenceTransformer.encode`, eight linear heads on its vectors (if it is installed)
* `onnx_runtime`  the encoder as an ONNX graph, batches sorted by length; eight linear heads (if it is installed)
* `ray_data`  the pattern of Ray Data's examples: `read_parquet`, `map_batches` with an actor class that tokenises and
  labels as `encoder_and_heads` does, one actor with a thread per core, `write_parquet`; beside `mtop_job`, which is
  `mtop label` on the same files, and the same with fewer prompts. The start-up is left out: they run twice, once with
  twice the texts. Give several thousand `--rows`.

    python benchmarks/peers.py --articles demo/corpus --column title [--second body] [--max-tokens 128] [--rows 2000]
        [--precision fp32] [--only mtop bare ...] [--name peers_title]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from bundles import BACKBONE, COLUMN, NUM_TASKS, TWO_EACH, Prompts, random_model, save_random_bundle
from results_file import write_result
from torch import Tensor, nn

from mtop_batch.data.batches import length_sorted_batches, pad_batch
from mtop_batch.data.tokens import TextTokenizer
from mtop_batch.labelling.run.predictor import Predictor
from mtop_batch.model.encoder.backbone import load_backbone, load_tokenizer
from mtop_batch.model.encoder.inputs import hidden_size
from mtop_batch.model.kinds.config import PromptAttention

BATCH_SIZE = 32
WARM_UP_TEXTS = 64
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Setting:
    """What all have in common."""

    backbone: str
    max_tokens: int
    dtype: torch.dtype
    device: torch.device

    def encoder(self) -> Any:
        """The pretrained encoder on the device, in the precision."""
        encoder = load_backbone(self.backbone)
        encoder.train(mode=False)
        encoder.to(device=self.device, dtype=self.dtype)  # type: ignore[call-arg]
        return encoder

    def heads(self, width: int) -> nn.Linear:
        """Eight heads with two labels as one matrix: the cheapest way there is."""
        return nn.Linear(width, 2 * NUM_TASKS).to(self.device, self.dtype)


Texts = list[str]
Run = Callable[[Texts], Any]


def labels_of(heads: nn.Linear, vectors: Tensor) -> Tensor:
    """(R, 8) Label ids."""
    logits: Tensor = heads(vectors)
    return logits.view(-1, NUM_TASKS, 2).argmax(dim=-1).cpu()


def mtop(setting: Setting, attention: PromptAttention, prompts: Prompts = TWO_EACH) -> Run:
    """One pass for all tasks."""
    predictor = Predictor(
        random_model(setting.backbone, attention, setting.max_tokens, prompts),
        load_tokenizer(setting.backbone),
        device=setting.device,
        precision="bf16" if setting.dtype == torch.bfloat16 else "fp32",
    )
    return lambda texts: predictor.predict(texts)


def bare(setting: Setting, *, compiled: bool = False) -> Run:
    """The encoder alone, on batches of tokens that are ready."""
    encoder, tokenizer = setting.encoder(), load_tokenizer(setting.backbone)
    forward = torch.compile(encoder, dynamic=True) if compiled else encoder
    text_tokenizer = TextTokenizer(tokenizer, setting.max_tokens)
    ready: dict[int, list[dict[str, Tensor]]] = {}

    def prepare(texts: Texts) -> list[dict[str, Tensor]]:
        tokens = text_tokenizer.encode(texts)
        batch_tokens = 65_536 if setting.device.type == "cuda" else 4_096
        return [pad_batch(tokens, rows) for rows in length_sorted_batches(tokens.lengths, batch_tokens)]

    @torch.inference_mode()
    def run(texts: Texts) -> None:
        for batch in ready.setdefault(id(texts), []) or prepare(texts):
            inputs = {key: value.to(setting.device, non_blocking=True) for key, value in batch.items()}
            forward(**inputs)

    def keep(texts: Texts) -> None:
        ready[id(texts)] = prepare(texts)
        if compiled:
            run(texts)

    run.prepare = keep  # type: ignore[attr-defined]  # called before the clock starts
    return run


def pipelines(setting: Setting) -> Run:
    """Eight models, each with a pass of its own."""
    from transformers import AutoModelForSequenceClassification, pipeline

    with tempfile.TemporaryDirectory() as directory:
        setting.encoder().save_pretrained(directory)
        load_tokenizer(setting.backbone).save_pretrained(directory)
        found = [
            pipeline(  # type: ignore[call-overload]
                "text-classification",
                model=AutoModelForSequenceClassification.from_pretrained(directory, num_labels=2, dtype=setting.dtype),
                tokenizer=load_tokenizer(setting.backbone),
                device=setting.device,
                batch_size=BATCH_SIZE,
            )
            for _ in range(NUM_TASKS)
        ]

    def run(texts: Texts) -> None:
        for classify in found:
            classify(texts, truncation=True, max_length=setting.max_tokens)

    return run


def encoder_and_heads(setting: Setting) -> Run:
    """One encoder pass and eight heads, as one writes it down."""
    encoder, tokenizer = setting.encoder(), load_tokenizer(setting.backbone)
    heads = setting.heads(hidden_size(encoder))

    @torch.inference_mode()
    def run(texts: Texts) -> None:
        for start in range(0, len(texts), BATCH_SIZE):
            batch = tokenizer(
                texts[start : start + BATCH_SIZE],
                padding=True,
                truncation=True,
                max_length=setting.max_tokens,
                return_tensors="pt",
            ).to(setting.device)
            labels_of(heads, encoder(**batch).last_hidden_state[:, 0])

    return run


def sentence_transformers(setting: Setting) -> Run:
    """Vectors as sentence-transformers makes them, and eight heads."""
    from sentence_transformers import SentenceTransformer

    directory = tempfile.mkdtemp()
    setting.encoder().save_pretrained(directory)
    load_tokenizer(setting.backbone).save_pretrained(directory)
    model = SentenceTransformer(directory, device=str(setting.device), model_kwargs={"dtype": setting.dtype})
    model.max_seq_length = setting.max_tokens
    heads = setting.heads(hidden_size(setting.encoder()))

    def run(texts: Texts) -> None:
        with torch.inference_mode():
            labels_of(heads, model.encode(texts, batch_size=BATCH_SIZE, convert_to_tensor=True))

    return run


class _OutputsOnly(nn.Module):
    """An encoder as a function of three tensors that gives one, which is what can be exported."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        outputs: Tensor = self.encoder(input_ids, attention_mask, token_type_ids).last_hidden_state
        return outputs


def onnx_runtime(setting: Setting) -> Run:
    """The encoder as a graph of ONNX Runtime, in fp32."""
    import onnxruntime

    setting = replace(setting, dtype=torch.float32)
    encoder, tokenizer = setting.encoder(), load_tokenizer(setting.backbone)
    text_tokenizer = TextTokenizer(tokenizer, setting.max_tokens)
    path = os.path.join(tempfile.mkdtemp(), "encoder.onnx")
    example = {name: torch.ones(2, 8, dtype=torch.long) for name in ("input_ids", "attention_mask", "token_type_ids")}
    axes = {name: {0: "batch", 1: "tokens"} for name in (*example, "last_hidden_state")}
    encoder.set_attn_implementation("eager")
    torch.onnx.export(
        _OutputsOnly(encoder),
        tuple(example.values()),
        path,
        input_names=list(example),
        output_names=["last_hidden_state"],
        dynamic_axes=axes,
        dynamo=False,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    heads = setting.heads(hidden_size(encoder))

    @torch.inference_mode()
    def run(texts: Texts) -> None:
        tokens = text_tokenizer.encode(texts)
        for rows in length_sorted_batches(tokens.lengths, 4_096):
            batch = {key: value.numpy() for key, value in pad_batch(tokens, rows).items()}
            [outputs] = session.run(None, batch)
            labels_of(heads, torch.from_numpy(outputs[:, 0]))

    return run


def ray_data(setting: Setting, corpus: str) -> float:
    """Seconds of the pattern of Ray Data's examples."""
    import ray
    from ray.data import ActorPoolStrategy

    class Labeller:
        def __init__(self) -> None:
            torch.set_num_threads(1)
            self._run = encoder_and_heads(setting)

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            self._run(list(batch[COLUMN]))
            return {"id": batch["id"], **{f"task_{n}": np.zeros(len(batch["id"]), int) for n in range(NUM_TASKS)}}

    started = time.perf_counter()
    actors = os.cpu_count() or 1
    ray.init(address="local", num_cpus=actors + 1, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as output:
        data = ray.data.read_parquet(corpus).map_batches(
            Labeller, batch_size=BATCH_SIZE * 8, compute=ActorPoolStrategy(size=actors), num_cpus=1
        )
        data.write_parquet(output)
    ray.shutdown()
    return time.perf_counter() - started


def mtop_job(setting: Setting, corpus: str, prompts: Prompts = TWO_EACH) -> float:
    """Seconds of `mtop label`."""
    with tempfile.TemporaryDirectory() as work:
        model = f"{work}/model"
        save_random_bundle(model, setting.backbone, setting.max_tokens, prompts)
        started = time.perf_counter()
        command = ["label", "--model", model, "--corpus", corpus, "--labels", f"{work}/labels"]
        subprocess.run([sys.executable, "-m", "mtop_batch.cli", *command], check=True, capture_output=True)
        return time.perf_counter() - started


FEWER_PROMPTS = {"1 prompt": Prompts(per_task=1), "2 groups": Prompts(num_groups=2), "1 group": Prompts(num_groups=1)}
PEERS: dict[str, Callable[[Setting], Run]] = {
    "mtop joint": lambda setting: mtop(setting, "joint"),
    "mtop isolated": lambda setting: mtop(setting, "isolated"),
    **{f"mtop {name}": partial(mtop, attention="isolated", prompts=prompts) for name, prompts in FEWER_PROMPTS.items()},
    "bare": bare,
    "compiled": lambda setting: bare(setting, compiled=True),
    "pipelines": pipelines,
    "encoder_and_heads": encoder_and_heads,
    "sentence_transformers": sentence_transformers,
    "onnx_runtime": onnx_runtime,
}
JOBS: dict[str, Callable[[Setting, str], float]] = {
    "ray_data": ray_data,
    "mtop_job": mtop_job,
    **{f"mtop_job {name}": partial(mtop_job, prompts=prompts) for name, prompts in FEWER_PROMPTS.items()},
}
NEEDS = {"sentence_transformers": "sentence_transformers", "onnx_runtime": "onnxruntime", "ray_data": "ray"}


def load_texts(articles: Path, columns: Sequence[str], num_rows: int) -> Texts:
    """The first texts; of two columns, one text from both."""
    table = pq.read_table(articles, columns=list(columns)).slice(0, num_rows)
    return ["\n".join(filter(None, row.values())) for row in table.to_pylist()]


def measure(name: str, setting: Setting, texts: Texts) -> float:
    """Documents per second."""
    if name in JOBS:
        return measure_job(JOBS[name], setting, texts)
    run = PEERS[name](setting)
    prepare = getattr(run, "prepare", None)
    warm_up = texts[:WARM_UP_TEXTS]
    run(warm_up)
    if prepare is not None:
        prepare(texts)
    started = time.perf_counter()
    run(texts)
    if setting.device.type == "cuda":
        torch.cuda.synchronize()
    return len(texts) / (time.perf_counter() - started)


def measure_job(job: Callable[[Setting, str], float], setting: Setting, texts: Texts) -> float:
    """Documents per second beyond the start-up: what as many texts again take."""
    with tempfile.TemporaryDirectory() as work:
        seconds = []
        for times in (1, 2):
            directory = Path(work) / f"{times}"
            directory.mkdir()
            for part in range(4 * times):
                table = pa.table({"id": np.arange(len(texts) // 4), COLUMN: texts[part % 4 :: 4][: len(texts) // 4]})
                pq.write_table(table, directory / f"{part}.parquet")
            seconds.append(job(setting, str(directory)))
    return len(texts) / (seconds[1] - seconds[0])


def main() -> None:
    """Measure all in turn, and write a result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--articles", type=Path, required=True)
    parser.add_argument("--column", default="title")
    parser.add_argument("--second")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--rows", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--precision", choices=list(_DTYPES), default="fp32")
    parser.add_argument("--backbone", default=BACKBONE)
    parser.add_argument("--only", nargs="+", default=[*PEERS, *JOBS])
    parser.add_argument("--name", default="peers")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # the part that has a process of its own
    arguments = parser.parse_args()
    columns = [arguments.column, *([arguments.second] if arguments.second else [])]
    texts = load_texts(arguments.articles, columns, arguments.rows)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    setting = Setting(arguments.backbone, arguments.max_tokens, _DTYPES[arguments.precision], device)
    if arguments.one:
        print(json.dumps(measure(arguments.one, setting, texts)))
        return
    missing = [name for name in arguments.only if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None]
    names = [name for name in arguments.only if name not in missing]
    rates: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(arguments.rounds):
        for name in names[:: -1 if round_ % 2 else 1]:
            done = subprocess.run(
                [sys.executable, *sys.argv, "--one", name], capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
            rates[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{name:22} {rates[name][-1]:9.1f} documents/s", flush=True)
    base = next((name for name in ("mtop isolated", "mtop_job") if name in rates), names[0])
    lengths = TextTokenizer(load_tokenizer(arguments.backbone), arguments.max_tokens).encode(texts).lengths
    result = {
        "texts": len(texts),
        "tokens_per_text": round(float(lengths.mean()), 1),
        "tasks": NUM_TASKS,
        "precision": arguments.precision,
        "threads": torch.get_num_threads(),
        "peers": {
            name: {
                "documents_per_s": round(statistics.median(values), 2),
                "rounds": [round(value, 2) for value in values],
                "ours_is_faster_by": round(
                    statistics.median(own / value for own, value in zip(rates[base], values, strict=True)), 2
                ),
            }
            for name, values in rates.items()
        },
        "ours": base,
        "not_installed": missing,
    }
    print(f"wrote {write_result(arguments.name, result)}")


if __name__ == "__main__":
    main()
