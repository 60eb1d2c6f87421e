"""Texts run through a frozen backbone once, however many epochs the prompts that read them train.

Where neither the backbone nor a prompt of the context trains, the KV cache that isolated prompts read
(`model.encoder.kv_cache`) is the same in every epoch. It is computed once and kept, so a step costs the prompts' own
few positions instead of the whole text.

Shapes: R windows of examples, B of a batch, C positions of a context (its prompts and its text), K = 2 x layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from mtop_batch.data.batches import length_sorted_batches, pad_examples
from mtop_batch.data.labelled_tokens import LabelledTokens
from mtop_batch.model.encoder.kv_cache import KVCache
from mtop_batch.model.kinds.base import MultiTaskModel
from mtop_batch.training.settings import Worker

MAX_BATCH_TOKENS = 4096
MAX_CPU_BYTES = 2 << 30
_MAX_GPU_SHARE = 0.5


class CachedContexts:
    """The KV caches of examples, for a model whose context does not train.

    The backbone runs without dropout here, so that every epoch reads the same; with few examples a task learns that by
    heart. `dropout` on what is read keeps it from that. What does not fit into memory is computed again each time it is
    asked for, still without gradients.

    Args:
        model: On the worker's device.
        tasks: Those that read them, of one family; none for tasks of no family.
        worker: This process.
        dropout: Share of the keys and values that is zeroed each time a batch is asked for while the model trains; the
            rest is scaled up.
        max_bytes: Memory for what is kept; None for 2 GiB on a CPU, half of what is free on a GPU.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        *,
        tasks: Sequence[str] = (),
        worker: Worker,
        dropout: float = 0.0,
        max_bytes: int | None = None,
    ) -> None:
        self._model, self._tasks, self._worker = model, tasks, worker
        self._dropout = dropout
        self._bytes_left = _memory(worker.device) if max_bytes is None else max_bytes
        self._kept: dict[int, _Kept] = {}

    def keep(self, examples: LabelledTokens, on_progress: Callable[[int, int], None] | None = None) -> bool:
        """Compute and keep the KV caches of all examples, if they fit into memory.

        Args:
            examples: Of R windows; asked for later as the same object.
            on_progress: Called with how many are done, and R.

        Returns:
            Whether they are kept.
        """
        lengths = examples.window_lengths
        done, kept = 0, None
        for rows in length_sorted_batches(lengths, MAX_BATCH_TOKENS):
            kv_cache = self._compute(examples, rows)
            if kept is None:
                kept = _Kept.empty(kv_cache, lengths)
                if kept.num_bytes > self._bytes_left:
                    return False
            kept.put(rows, kv_cache)
            done += len(rows)
            if on_progress is not None:
                on_progress(done, len(lengths))
        if kept is not None:
            self._kept[id(examples)] = kept
            self._bytes_left -= kept.num_bytes
        return kept is not None

    def batch(self, examples: LabelledTokens, rows: npt.NDArray[np.integer]) -> KVCache:
        """The KV cache of B windows of the examples."""
        kept = self._kept.get(id(examples))
        kv_cache = self._compute(examples, rows) if kept is None else kept.take(rows)
        if not self._model.training or not self._dropout:
            return kv_cache
        key_values = [
            (F.dropout(key, self._dropout), F.dropout(value, self._dropout)) for key, value in kv_cache.key_values
        ]
        return replace(kv_cache, key_values=key_values)

    def _compute(self, examples: LabelledTokens, rows: npt.NDArray[np.integer]) -> KVCache:
        worker = self._worker
        inputs = pad_examples(examples, rows, worker.device)
        # Not inference mode: what the backward pass keeps must be ordinary tensors.
        with torch.no_grad(), worker.autocast(), _without_dropout(self._model):
            return self._model.cache(**inputs, tasks=self._tasks)


@dataclass(frozen=True)
class _Kept:
    """KV caches of R windows, one behind the other.

    Args:
        values: (K, positions of all, heads, width of a head) keys and values of layer after layer.
        starts: (R,) Where each window's positions start.
        lengths: (R,) How many positions each has.
    """

    values: Tensor
    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]

    @classmethod
    def empty(cls, like: KVCache, num_tokens: npt.NDArray[np.int64]) -> _Kept:
        """Room for windows of so many tokens and vectors; `like` is the KV cache of the longest, among others."""
        key = like.key_values[0][0]  # (B, heads, C, width)
        num_prompts = key.shape[2] - int(num_tokens.max())
        lengths = num_tokens + num_prompts
        shape = (2 * len(like.key_values), int(lengths.sum()), key.shape[1], key.shape[3])
        return cls(key.new_empty(shape), np.cumsum(lengths) - lengths, lengths)

    @property
    def num_bytes(self) -> int:
        return self.values.numel() * self.values.element_size()

    def put(self, rows: npt.NDArray[np.integer], kv_cache: KVCache) -> None:
        """Store the KV cache of these rows, without its padding."""
        present, positions = self._present(rows), self._positions(rows)
        for index, tensor in enumerate(_tensors(kv_cache)):
            self.values[index, positions[present]] = tensor.transpose(1, 2)[present]

    def take(self, rows: npt.NDArray[np.integer]) -> KVCache:
        """The padded KV cache of these rows."""
        # (K, B, C, heads, width); what stands at padding is not seen.
        taken = self.values[:, self._positions(rows)].transpose(2, 3)
        key_values = [(taken[index], taken[index + 1]) for index in range(0, len(taken), 2)]
        return KVCache(key_values, self._present(rows).long())

    def _present(self, rows: npt.NDArray[np.integer]) -> Tensor:
        """(B, C) Where the rows have positions."""
        lengths = self.lengths[rows]
        return self._on_device(np.arange(lengths.max()) < lengths[:, None])

    def _positions(self, rows: npt.NDArray[np.integer]) -> Tensor:
        """(B, C) Where the positions of the rows are stored; the last one of the row for padding."""
        lengths = self.lengths[rows]
        within = np.minimum(np.arange(lengths.max()), lengths[:, None] - 1)
        return self._on_device(self.starts[rows][:, None] + within)

    def _on_device(self, array: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(self.values.device, non_blocking=True)


def cached_contexts(
    model: MultiTaskModel, tasks: Sequence[str], *, worker: Worker, dropout: float = 0.0
) -> CachedContexts | None:
    """The KV caches for training these tasks, if nothing trains that changes them; else None."""
    return CachedContexts(model, tasks=tasks, worker=worker, dropout=dropout) if model.has_fixed_cache(tasks) else None


def model_inputs(
    examples: LabelledTokens,
    rows: npt.NDArray[np.integer],
    worker: Worker,
    contexts: CachedContexts | None,
) -> dict[str, Any]:
    """What the model takes of B windows: their KV cache where it is kept, else their tokens."""
    if contexts is not None:
        return {"kv_cache": contexts.batch(examples, rows)}
    return pad_examples(examples, rows, worker.device)


def _tensors(kv_cache: KVCache) -> Iterator[Tensor]:
    """(B, heads, C, width) Keys and values of layer after layer."""
    for key, value in kv_cache.key_values:
        yield key
        yield value


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * _MAX_GPU_SHARE)
    return MAX_CPU_BYTES


@contextmanager
def _without_dropout(model: MultiTaskModel) -> Iterator[None]:
    was_training = model.backbone.training
    model.backbone.eval()
    try:
        yield
    finally:
        model.backbone.train(was_training)
