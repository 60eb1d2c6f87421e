"""Tokens to labels: all wanted tasks of a bundle by one forward pass per batch, and the document vectors with them.

    Predictor.load("models/news").predict(["some text", ...])    # a table with the label table's columns

Shapes: R rows, n wanted tasks, B rows of a batch, S prompt positions, C labels of the task that has most, D hidden
width.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mtop_batch.data.batches import length_sorted_batches, pad_batch
from mtop_batch.data.tokens import TextTokenizer, Tokens
from mtop_batch.errors import BundleError, ConfigError, DataError
from mtop_batch.labelling.units import DEFAULT_MAX_CHARS, TEXT_IS_EMPTY, TEXT_IS_NULL
from mtop_batch.model.bundle import load_bundle
from mtop_batch.model.encoder import hidden_size
from mtop_batch.model.mtop import MTOPModel
from mtop_batch.model.prompts import prompt_layout
from mtop_batch.tasks import Task, select_tasks

Precision = Literal["auto", "fp32", "bf16"]
Rows = npt.NDArray[np.int64]
Packed = tuple[Tensor, Tensor | None]
"""What a batch leaves on the device: (2, B, n) label ids and scores, and (B, D) vectors if they are wanted."""

# Positions of a batch: enough to keep a GPU busy; few enough to stay in a CPU's cache.
_GPU_BATCH_TOKENS = 65_536
_CPU_BATCH_TOKENS = 4_096


@dataclass(frozen=True)
class TaskOutputs:
    """What n tasks say of R rows.

    Args:
        label_ids: (R, n) int32, index of the likeliest label; -1 for a regression or a row without tokens.
        scores: (R, n) float32, probability of that label, or the value of a regression; NaN for a row without tokens.
        vectors: (R, D) float16, NaN for a row without tokens; None where they are not wanted.
        num_tokens: Tokens of all rows.
        num_padded_tokens: Tokens and padding that went through the model, prompts aside.
        seconds: Wall-clock time.
    """

    label_ids: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]
    vectors: npt.NDArray[np.float16] | None = None
    num_tokens: int = 0
    num_padded_tokens: int = 0
    seconds: float = 0.0

    def __getitem__(self, rows: slice) -> TaskOutputs:
        """The outputs of some rows; the counts and seconds stay those of the whole."""
        vectors = None if self.vectors is None else self.vectors[rows]
        return replace(self, label_ids=self.label_ids[rows], scores=self.scores[rows], vectors=vectors)


class Predictor:
    """Labels texts with a model; keeps it on one device.

    Args:
        model: Moved to the device and put into evaluation mode.
        tokenizer: The one it was trained with.
        device: Where to run; None for the GPU if there is one.
        precision: "bf16" runs the model under autocast; "auto" does so on GPUs that have bf16.
        tasks: Names of the wanted tasks; None for all. Outputs are in the model's order.
        vectors: Give the document vectors too; then no task need be wanted.
        max_batch_tokens: Positions of a batch, prompts and padding included; None chooses by device. Halved for good
            whenever the device runs out of memory.

    Raises:
        TaskError: A wanted task is not one of the model's.
        ConfigError: The precision is unknown, or nothing is wanted.
    """

    def __init__(
        self,
        model: MTOPModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        device: str | torch.device | None = None,
        precision: Precision = "auto",
        tasks: Sequence[str] | None = None,
        vectors: bool = False,
        max_batch_tokens: int | None = None,
    ) -> None:
        names = select_tasks(model.task_names if tasks is None else tasks, model.task_names)
        if not names and not vectors:
            raise ConfigError(f"no task is wanted; name some of {', '.join(model.task_names)}")
        if precision not in ("auto", "fp32", "bf16"):
            raise ConfigError(f"precision = {precision!r} is not one of auto, fp32, bf16")
        if max_batch_tokens is not None and max_batch_tokens < 1:
            raise ConfigError(f"max_batch_tokens = {max_batch_tokens} must be at least 1")
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        on_gpu = self.device.type == "cuda"
        self.gives_vectors = vectors
        self.tasks: list[Task] = [task for task in model.tasks if task.name in names]
        self.max_batch_tokens = max_batch_tokens or (_GPU_BATCH_TOKENS if on_gpu else _CPU_BATCH_TOKENS)
        self._model = model.eval()
        self._model.to(device=self.device)
        self._names = names
        self._tokenizer = TextTokenizer(tokenizer, model.config.max_tokens)
        self._pad_token_id = _pad_token_id(tokenizer)
        self._uses_bf16 = precision == "bf16" or (precision == "auto" and on_gpu and torch.cuda.is_bf16_supported())
        self._num_prompts = len(prompt_layout(model.task_prompts, model.config.shared_prompts, names).groups)
        self._vector_size = hidden_size(model.backbone)
        self._is_regression = torch.tensor([task.kind == "regression" for task in self.tasks], device=self.device)

    @classmethod
    def load(
        cls,
        uri: str,
        *,
        device: str | torch.device | None = None,
        precision: Precision = "auto",
        tasks: Sequence[str] | None = None,
        vectors: bool = False,
        max_batch_tokens: int | None = None,
    ) -> Predictor:
        """A predictor of the bundle at `uri`, local or on object storage; the other arguments are those of the class.

        Raises:
            BundleError: The bundle is missing or damaged.
        """
        bundle = load_bundle(uri)
        return cls(
            bundle.model,
            bundle.tokenizer,
            device=device,
            precision=precision,
            tasks=tasks,
            vectors=vectors,
            max_batch_tokens=max_batch_tokens,
        )

    def predict(self, texts: Sequence[str | None], seconds: Sequence[str | None] | None = None) -> pa.Table:
        """Label texts, or pairs of texts.

        As in a corpus, a text that is null or blank is left out of its pair, and a row without any text gets the
        reason instead of labels.

        Args:
            texts: One per row.
            seconds: The second text of each row, for tasks on pairs.

        Returns:
            One row per text, in order: `<task>_label` and `<task>_score` of every task (a regression has a score only),
            `vector` if wanted, and `error`, null where there are labels.

        Raises:
            DataError: A text is not a string, or there are not as many second texts as texts.
        """
        firsts, seconds, errors = _usable_texts(texts, seconds)
        outputs = self.predict_tokens(self._tokenizer.encode(firsts, seconds))
        error = pa.array(errors, pa.string())
        columns = dict(label_columns(self.tasks, outputs, error.is_null().to_numpy(zero_copy_only=False)))
        return pa.table({**columns, "error": error})

    def predict_tokens(self, tokens: Tokens) -> TaskOutputs:
        """Label R rows of tokens; rows without tokens get label -1 and score NaN.

        Raises:
            BundleError: An output is not a number.
            torch.OutOfMemoryError: Not even one row fits into the device's memory.
        """
        started = time.perf_counter()
        lengths = tokens.lengths
        label_ids = np.full((len(tokens), len(self.tasks)), -1, np.int32)
        scores = np.full((len(tokens), len(self.tasks)), np.nan, np.float32)
        vectors = np.full((len(tokens), self._vector_size), np.nan, np.float16) if self.gives_vectors else None

        def fetch(rows: Rows, packed: Packed) -> int:
            ids_and_scores, found = packed
            label_ids[rows], scores[rows] = ids_and_scores.cpu().numpy()
            if vectors is not None and found is not None:
                vectors[rows] = found.cpu().numpy()
            return len(rows) * int(lengths[rows].max())

        num_padded_tokens = 0
        running: tuple[Rows, Packed] | None = None
        batches = self._batches(lengths, np.arange(len(tokens)))
        while batches:
            rows = batches.pop()
            packed = self._launch(tokens, rows)
            if packed is None:
                self._shrink(lengths[rows])
                batches = self._batches(lengths, np.concatenate([rows, *batches]))
                continue
            # While the device is at work on this batch, the one before it is fetched and the next one is padded.
            if running is not None:
                num_padded_tokens += fetch(*running)
            running = rows, packed
        if running is not None:
            num_padded_tokens += fetch(*running)
        if any(found is not None and np.isnan(found[lengths > 0]).any() for found in (scores, vectors)):
            raise BundleError(
                "the model's output is not a number for some texts; its weights are damaged: train it again"
            )
        return TaskOutputs(
            label_ids, scores, vectors, int(lengths.sum()), num_padded_tokens, seconds=time.perf_counter() - started
        )

    def _batches(self, lengths: npt.NDArray[np.int64], rows: Rows) -> list[Rows]:
        """Batches of those rows that have tokens, the longest last, where `list.pop` finds them."""
        costs = np.where(lengths[rows] > 0, lengths[rows] + self._num_prompts, 0)
        return [rows[batch] for batch in reversed(length_sorted_batches(costs, self.max_batch_tokens))]

    def _shrink(self, lengths: npt.NDArray[np.int64]) -> None:
        """Never again make a batch of more than half the positions of this one, which did not fit."""
        self.max_batch_tokens = len(lengths) * (int(lengths.max()) + self._num_prompts) // 2

    def _launch(self, tokens: Tokens, rows: Rows) -> Packed | None:
        """Start a batch; None if there is no memory for it, but for a single row, where that is raised."""
        try:
            return self._forward(pad_batch(tokens, rows, self._pad_token_id))
        except torch.OutOfMemoryError:
            if len(rows) == 1:
                raise
        # Only here has the exception let go of the tensors of the frames it went through.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    @torch.inference_mode()
    def _forward(self, batch: dict[str, Tensor]) -> Packed:
        inputs = {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._uses_bf16):
            if self.gives_vectors:
                logits, vectors = self._model.all_tasks_and_vectors(**inputs, tasks=self._names)  # (B, n, C), (B, D)
            else:
                logits, vectors = self._model.all_tasks(**inputs, tasks=self._names), None
        return labels_and_scores(logits.float(), self._is_regression), vectors


def labels_and_scores(logits: Tensor, is_regression: Tensor) -> Tensor:
    """Label ids and scores in one float32 tensor, so that one copy brings both to the host.

    Args:
        logits: (B, n, C) float32; -inf beyond a task's own labels.
        is_regression: (n,) bool

    Returns:
        (2, B, n)
    """
    if not logits.shape[1]:
        return logits.new_empty(2, len(logits), 0)
    scores, label_ids = torch.softmax(logits, dim=-1).max(dim=-1)
    scores = torch.where(is_regression, logits[..., 0], scores)
    return torch.stack([label_ids.masked_fill(is_regression, -1).float(), scores])


def label_columns(
    tasks: Sequence[Task], outputs: TaskOutputs, valid: npt.NDArray[np.bool_]
) -> list[tuple[str, pa.Array]]:
    """The label table's columns of each task: `<task>_label` (dictionary of strings) and `<task>_score` (float32).

    And `vector` (list of D float16) if the outputs have vectors.

    Args:
        tasks: The n tasks of the outputs, in their order; a regression has no label column.
        outputs: Of R rows.
        valid: (R,) False for rows whose cells are null.
    """
    columns = []
    for index, task in enumerate(tasks):
        label_ids, scores = outputs.label_ids[:, index], outputs.scores[:, index]
        missing = ~valid | np.isnan(scores)
        if task.kind != "regression":
            indices = pa.array(label_ids, pa.int32(), mask=missing)
            labels = pa.DictionaryArray.from_arrays(indices, pa.array(task.labels, pa.string()))
            columns.append((f"{task.name}_label", labels))
        columns.append((f"{task.name}_score", pa.array(scores, pa.float32(), mask=missing)))
    if outputs.vectors is not None:
        values, missing = pa.array(outputs.vectors.reshape(-1)), pa.array(~valid)
        columns.append(("vector", pa.FixedSizeListArray.from_arrays(values, outputs.vectors.shape[1], mask=missing)))
    return columns


def _usable_texts(
    texts: Sequence[str | None], seconds: Sequence[str | None] | None
) -> tuple[list[str | None], list[str | None], list[str | None]]:
    """First texts, second texts and errors of all rows, by the rule of `mtop_batch.labelling.units.read_unit`."""
    if isinstance(texts, str) or isinstance(seconds, str):
        raise DataError("texts are given as one string; give a list of strings, even for one text")
    if seconds is not None and len(seconds) != len(texts):
        raise DataError(
            f"there are {len(texts)} texts and {len(seconds)} second texts; give one (or None) for each text"
        )
    firsts: list[str | None] = []
    others: list[str | None] = []
    errors: list[str | None] = []
    for row, pair in enumerate(zip(texts, seconds or [None] * len(texts), strict=True)):
        for text in pair:
            if text is not None and not isinstance(text, str):
                raise DataError(f"text {row} is {text!r}, a {type(text).__name__}; texts are strings or None")
        given = [text[:DEFAULT_MAX_CHARS] for text in pair if text is not None and text.strip()]
        firsts.append(given[0] if given else None)
        others.append(given[1] if len(given) == 2 else None)
        errors.append(None if given else TEXT_IS_NULL if pair == (None, None) else TEXT_IS_EMPTY)
    return firsts, others, errors


def _pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """What padding is filled with; any token would do where the tokenizer has none, as it is masked."""
    pad_token_id = tokenizer.pad_token_id
    return pad_token_id if isinstance(pad_token_id, int) else 0
