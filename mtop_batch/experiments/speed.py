"""How fast a method gives all labels of a text. It does not depend on what was learned, so a model as drawn will do."""

from __future__ import annotations

import hashlib
import json
import time

import numpy as np

from mtop_batch.data.tokens import Tokens
from mtop_batch.experiments.data import DataSet, Prepared, with_reader
from mtop_batch.experiments.records import SpeedRecord, machine
from mtop_batch.experiments.run import untrained
from mtop_batch.experiments.specs import RunSpec
from mtop_batch.labelling.run.predictor import Predictor
from mtop_batch.precision import resolve_precision
from mtop_batch.training.one_process import Encoder
from mtop_batch.training.settings import Worker

_REPEATS = 3


def speed_digest(spec: RunSpec) -> str:
    """Names the record of a method's speed: the same for all seeds and ways of training."""
    values = [spec.method, spec.model, spec.data_digest, spec.backbone, spec.max_tokens]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def measure_speed(
    spec: RunSpec, data: DataSet, prepared: Prepared, encoder: Encoder, *, worker: Worker, documents: int
) -> SpeedRecord:
    """Time the labelling of test texts of all tasks, in the precision that `mtop label` would choose.

    Nothing else should run on the machine meanwhile.

    Args:
        spec: The method; its seed and `[train]` do not matter.
        data: The data set.
        prepared: The same, tokenised.
        encoder: That of the spec.
        worker: The device to use.
        documents: How many texts; they are repeated where there are fewer.
    """
    config = spec.config(data.configs)
    own = with_reader(prepared, data.configs, config.model.default_reader)
    predictor = Predictor(untrained(config, encoder, own.train), encoder.tokenizer, device=worker.device)
    # Where there are token tasks, their texts: of no others it is known where words begin.
    with_words = [examples.tokens for examples in own.test if examples.tags is not None]
    tokens = Tokens.concat(with_words or [examples.tokens for examples in own.test])
    tokens = tokens.take(np.resize(np.random.default_rng(0).permutation(len(tokens)), documents))
    predictor.predict_tokens(tokens.take(np.arange(min(len(tokens), 256))))
    seconds = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        predictor.predict_tokens(tokens)
        seconds.append(time.perf_counter() - started)
    return SpeedRecord(
        digest=speed_digest(spec),
        method=spec.method,
        model=spec.model,
        data=spec.data,
        data_digest=spec.data_digest,
        backbone=spec.backbone,
        documents=len(tokens),
        documents_per_s=round(len(tokens) / min(seconds), 1),
        precision=resolve_precision("auto", worker.device, autocast=False),
        machine=machine(worker.device),
    )
