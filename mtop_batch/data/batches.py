"""Ragged tokens to padded batches, where they are wanted. B rows, T tokens of the longest of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mtop_batch.data.input_vectors import InputVectors
from mtop_batch.data.labelled_tokens import LabelledTokens
from mtop_batch.data.tokens import Tokens


def pad_batch(
    tokens: Tokens,
    rows: npt.NDArray[np.integer],
    device: torch.device | None = None,
    vectors: Sequence[InputVectors] = (),
) -> dict[str, Any]:
    """The model's inputs for these rows.

    They are written where a GPU can copy them from by itself (pinned memory), and go there by one copy, which queues up
    behind the GPU's work; a copy from other memory may wait for that work.

    Args:
        tokens: Tokens of all rows.
        rows: (B,) indices into `tokens`.
        device: Where the inputs are wanted; None for the CPU.
        vectors: Those of the B rows, of each input of the model.

    Returns:
        `input_ids`, `attention_mask` (1 where there is a token or a vector) and `token_type_ids` (1 in the second text
        of a pair), each (B, T) int64. Ids after a row's tokens are 0, whatever the tokenizer pads with, for nothing
        reads them. Vectors stand behind their row's tokens; where there are any, `input_vectors` has those of each
        input, (N, S), and their places in the flattened batch, (N,).
    """
    device = device or torch.device("cpu")
    lengths = tokens.lengths[rows]
    counts = sum((of.counts for of in vectors), np.zeros(len(rows), np.int64))
    position = np.arange((lengths + counts).max(initial=0))
    is_token = position < lengths[:, None]
    inputs = torch.empty(3, *is_token.shape, dtype=torch.int64, pin_memory=device.type == "cuda")
    input_ids, attention_mask, token_type_ids = inputs.numpy()
    input_ids[:] = 0
    input_ids[is_token] = tokens.values[tokens.positions(rows)]
    attention_mask[:] = position < (lengths + counts)[:, None] if vectors else is_token
    token_type_ids[:] = is_token & (position >= tokens.first_lengths[rows][:, None])
    names = ("input_ids", "attention_mask", "token_type_ids")
    batch: dict[str, Any] = dict(zip(names, inputs.to(device, non_blocking=True).unbind(), strict=True))
    if counts.any():
        batch["input_vectors"] = _placed(vectors, lengths, len(position), device)
    return batch


def pad_examples(
    examples: LabelledTokens, windows: npt.NDArray[np.integer], device: torch.device | None = None
) -> dict[str, Any]:
    """The model's inputs for these windows of examples, with what stands beside their texts (`pad_batch`)."""
    return pad_batch(examples.tokens, windows, device, examples.vectors_of(windows))


def _placed(
    vectors: Sequence[InputVectors], lengths: npt.NDArray[np.int64], width: int, device: torch.device
) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    """The vectors of each input, and where they stand in a batch: behind rows of these lengths, input after input."""
    placed: list[tuple[torch.Tensor, torch.Tensor]] = []
    ends = lengths + width * np.arange(len(lengths))
    for of in vectors:
        counts = of.counts
        places = np.repeat(ends - of.offsets[:-1], counts) + np.arange(len(of.values))
        ends = ends + counts
        placed.append((_to_device(of.values, device), _to_device(places, device)))
    return tuple(placed)


def _to_device(array: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    pinned = tensor.pin_memory() if device.type == "cuda" else tensor
    return pinned.to(device, non_blocking=True)


def length_sorted_batches(
    lengths: npt.NDArray[np.integer], max_batch_tokens: int, max_batch_rows: int | None = None
) -> list[npt.NDArray[np.int64]]:
    """Batches of rows of similar length, longest first, so that running out of memory shows at once.

    Every row with tokens is in exactly one batch; rows without are in none. In each batch rows times the longest is at
    most `max_batch_tokens`; a row that is longer than that is a batch of its own.

    Args:
        lengths: (R,) tokens of each row.
        max_batch_tokens: Tokens of a batch, padding included.
        max_batch_rows: Rows of a batch; None for no limit.

    >>> [batch.tolist() for batch in length_sorted_batches(np.array([3, 9, 0, 3, 4]), max_batch_tokens=9)]
    [[1], [4, 0], [3]]
    """
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    order = order[: np.count_nonzero(lengths)]
    batches = []
    start = 0
    while start < len(order):
        num_rows = max(1, max_batch_tokens // int(lengths[order[start]]))
        if max_batch_rows is not None:
            num_rows = min(num_rows, max_batch_rows)
        batches.append(order[start : start + num_rows])
        start += num_rows
    return batches
