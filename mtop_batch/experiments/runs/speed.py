"""How fast a method gives all labels of a text. It does not depend on what was learned, so a model as drawn will do."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence

import numpy as np

from mtop_batch.config.sections import Config
from mtop_batch.data.tokens import Tokens
from mtop_batch.experiments.runs.data_set import DataSet
from mtop_batch.experiments.runs.prepared import Prepared, with_reader
from mtop_batch.experiments.runs.records import SpeedRecord, machine
from mtop_batch.experiments.runs.run import untrained
from mtop_batch.experiments.runs.specs import RunSpec
from mtop_batch.labelling.run.predictor import Predictor
from mtop_batch.precision import resolve_precision
from mtop_batch.training.one_process import Encoder
from mtop_batch.training.settings import Worker

_REPEATS = 3


def speed_digest(spec: RunSpec) -> str:
    """Names the record of a method's speed: the same for all seeds and ways of training."""
    values = [spec.method, spec.model, spec.data_digest, spec.backbone, spec.max_tokens]
    values += [spec.among] if spec.among else []
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def measure_speed(
    spec: RunSpec,
    data: DataSet,
    prepared: Prepared,
    encoder: Encoder,
    *,
    worker: Worker,
    documents: int,
    beside_one: bool = False,
) -> SpeedRecord:
    """Time the labelling of test texts of all tasks, in the precision that `mtop label` would choose.

    Nothing else should run on the machine meanwhile.

    Args:
        spec: The method; its seed and `[train]` do not matter.
        data: The tasks that it learns.
        prepared: The same, tokenised.
        encoder: That of the spec.
        worker: The device to use.
        documents: How many texts; they are repeated where there are fewer.
        beside_one: Also time a model of the first task alone, in turn, and both on a quarter as many texts that are cut
            to `spec.max_tokens`.
    """
    config = spec.config(data.configs)
    own = with_reader(prepared, config.task, config.model.default_reader)
    # Where there are token tasks, their texts: of no others it is known where words begin.
    with_words = [examples.tokens for examples in own.test.values() if examples.tags is not None]
    tokens = Tokens.concat(with_words or [examples.tokens for examples in own.test.values()])
    tokens = tokens.take(np.resize(np.random.default_rng(0).permutation(len(tokens)), documents))
    numbers = [len(own.train), 1] if beside_one else [len(own.train)]
    predictors = [_predictor(config, encoder, own, number, worker) for number in numbers]
    speeds = _documents_per_s(predictors, tokens)
    full = _documents_per_s(predictors, _full(tokens, spec.max_tokens, documents // 4)) if beside_one else []
    return SpeedRecord(
        digest=speed_digest(spec),
        method=spec.method,
        model=spec.model,
        data=spec.data,
        data_digest=spec.data_digest,
        backbone=spec.backbone,
        documents=len(tokens),
        documents_per_s=round(speeds[0], 1),
        precision=resolve_precision("auto", worker.device, autocast=False),
        machine=machine(worker.device),
        one_task=round(speeds[1] / speeds[0], 3) if beside_one else None,
        full={"documents_per_s": round(full[0], 1), "one_task": round(full[1] / full[0], 3)} if full else None,
    )


def _predictor(config: Config, encoder: Encoder, data: Prepared, tasks: int, worker: Worker) -> Predictor:
    """Of the first so many tasks."""
    some = config.with_tasks(config.task[:tasks])
    return Predictor(untrained(some, encoder, data.train[:tasks]), encoder.tokenizer, device=worker.device)


def _documents_per_s(predictors: Sequence[Predictor], tokens: Tokens) -> list[float]:
    """Of each, the best of some times, in turn."""
    seconds = [[math.inf] for _ in predictors]
    for predictor in predictors:
        predictor.predict_tokens(tokens.take(np.arange(min(len(tokens), 256))))
    for _ in range(_REPEATS):
        for predictor, taken in zip(predictors, seconds, strict=True):
            started = time.perf_counter()
            predictor.predict_tokens(tokens)
            taken.append(time.perf_counter() - started)
    return [len(tokens) / min(taken) for taken in seconds]


def _full(tokens: Tokens, max_tokens: int, documents: int) -> Tokens:
    """Texts of so many tokens, made of others one behind the other."""
    rows = np.resize(tokens.values, (max(1, documents), max_tokens))
    return Tokens.from_rows(rows.tolist())
