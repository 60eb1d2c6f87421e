"""Tokens to labels: all wanted tasks of a bundle by one forward pass per batch, and the document vectors with them.

    Predictor.load("models/news").predict(["some text", ...])    # a table with the label table's columns

A text in several windows is labelled once, by what these say together: their logits come back from the device and are
combined. Windows are rows of batches as texts are, so those of one text may be in several batches.

Shapes: R rows, n wanted tasks, B rows of a batch, S prompt positions, C labels of the task that has most, D hidden
width, K labels of those tasks together that keep the probabilities of all of theirs, W windows of several texts, L
labels of all wanted tasks together. Of token tasks only the words of texts go to the host, and these tasks do not count
in n, K and L: N words of a batch, C' tags of all token tasks together.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mtop_batch.data.batches import length_sorted_batches, pad_batch
from mtop_batch.data.input_vectors import InputVectors, given_vectors
from mtop_batch.data.tokens import TextTokenizer, Tokens, reasons_without
from mtop_batch.decisions.rules import rule_groups
from mtop_batch.errors import ConfigError
from mtop_batch.labelling.run.device_copies import ToHost
from mtop_batch.labelling.run.found_entities import FoundEntities, word_log_probabilities
from mtop_batch.labelling.run.given_texts import given_texts
from mtop_batch.labelling.run.results import Collected, Packed, ResultLayout
from mtop_batch.labelling.run.rows import Batch, RowIndices, Rows, places_of_rows
from mtop_batch.model.bundle.bundle import load_bundle
from mtop_batch.model.encoder.inputs import hidden_size
from mtop_batch.model.flops import measure_peak_flops_per_s
from mtop_batch.model.kinds.base import MultiTaskModel
from mtop_batch.model.parts.windows import combine_vectors
from mtop_batch.model.precision import with_bf16_encoder
from mtop_batch.precision import PrecisionChoice, resolve_precision
from mtop_batch.table.columns import VECTOR_COLUMN, OutputKind
from mtop_batch.table.outputs import TaskOutputs, decide_outputs, label_columns
from mtop_batch.tasks import Task, select_tasks

Forward = Callable[[Batch], Packed]
"""Starts a batch."""

# Positions of a batch: enough to keep a GPU busy; few enough to stay in a CPU's cache.
_GPU_BATCH_TOKENS = 65_536
_CPU_BATCH_TOKENS = 2_048
# Poolers and heads are read once per batch. On a CPU that takes a while where they have more parameters than this.
_MANY_TASK_PARAMETERS = 2**24
_PEAK_EVERY_S = 10.0
# Logits of windows that are kept until those of a text are complete, and logits that become labels at once.
_MAX_WINDOW_LOGITS, _MAX_LOGITS = 2**26, 2**24


class Predictor:
    """Labels texts with a model; keeps it on one device.

    Args:
        model: Put into evaluation mode, and moved to the device unless a copy of it is.
        tokenizer: The one it was trained with.
        device: Where to run; None for the GPU if there is one.
        precision: "bf16" runs a copy of the model with weights in bf16 (`mtop_batch.model.precision`); "auto" does so
            on devices that compute in bf16.
        tasks: Names of the wanted tasks; None for all. Outputs are in the model's order.
        vectors: Give the document vectors too; then no task need be wanted.
        max_batch_tokens: Positions of a batch, prompts and padding included; None chooses by device and tasks. Halved
            for good whenever the device runs out of memory. Tasks that were added to the bundle do not count, for
            their prompts go through the encoder by themselves: other batches would change how the results of the
            earlier tasks are rounded. They do count where no other task is wanted.

    Raises:
        TaskError: A wanted task is not one of the model's, or a rule ties it to one that is not wanted.
        ConfigError: The precision is unknown, or nothing is wanted.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        device: str | torch.device | None = None,
        precision: PrecisionChoice = "auto",
        tasks: Sequence[str] | None = None,
        vectors: bool = False,
        max_batch_tokens: int | None = None,
    ) -> None:
        names = select_tasks(model.task_names if tasks is None else tasks, model.task_names)
        rule_groups(task for task in model.tasks if task.name in names)
        if not names and not vectors:
            raise ConfigError(f"no task is wanted; name some of {', '.join(model.task_names)}")
        if vectors and model.pass_per_task:
            raise ConfigError(model.no_vectors(model.config.model_type))
        if max_batch_tokens is not None and max_batch_tokens < 1:
            raise ConfigError(f"max_batch_tokens = {max_batch_tokens} must be at least 1")
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.gives_vectors = vectors
        self.inputs = tuple(model.vector_inputs)
        wanted = set(names)
        self.tasks: list[Task] = [task for task in model.tasks if task.name in wanted]
        self._of_texts = [task for task in self.tasks if not task.is_token]
        self._token_tasks = [task for task in self.tasks if task.is_token]
        counted = model.tasks_that_size_batches(names)
        self.max_batch_tokens = max_batch_tokens or _batch_tokens(self.device, model, counted)
        self._uses_bf16 = resolve_precision(precision, self.device, autocast=False) == "bf16"
        self._model = with_bf16_encoder(model).eval() if self._uses_bf16 else model.eval()
        self._model.to(device=self.device)
        if self._uses_bf16 and self.device.type == "cuda":
            self._model.fuse_layers()
        self._names = names
        self._tokenizer = TextTokenizer(tokenizer, **model.config.text_limits)
        self._num_prompts = model.num_positions(counted)
        self._flops = model.forward_flops(names, vectors=vectors)
        self._peak_flops_per_s, self._peak_measured_at = 0.0, -math.inf
        self._vector_size = hidden_size(model.backbone)
        self._layout = ResultLayout(self._of_texts, self.device)
        reads_vector = [task.reads_vector for task in self._of_texts]
        self._reads_vector = torch.tensor(reads_vector, dtype=torch.bool, device=self.device)
        self._probes = tuple(task.name for task in self.tasks if task.reads_vector)

    @classmethod
    def load(
        cls,
        uri: str,
        *,
        device: str | torch.device | None = None,
        precision: PrecisionChoice = "auto",
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

    def predict(
        self,
        texts: Sequence[str | None],
        seconds: Sequence[str | None] | None = None,
        *,
        inputs: Mapping[str, Any] | None = None,
        corrections: bool = False,
    ) -> pa.Table:
        """Label texts, or pairs of texts.

        As in a corpus, a text that is null, blank or says nothing is left out of its pair, and a row without any text
        gets the reason instead of labels.

        Args:
            texts: One per row.
            seconds: The second text of each row, for tasks on pairs.
            inputs: What stands beside the texts, for models that read such vectors: by column, for each row a vector,
                several, or None for nothing; lists, a NumPy array or an Arrow array. Columns that are left out have
                nothing. A vector that cannot be used makes an error of its row.
            corrections: Say too where a rule has changed the label, as `<task>_corrected`.

        Returns:
            One row per text, in order: the columns of every task as in the label table (`OutputKind.fields`), `vector`
            if wanted, and `error`, null where there are labels.

        Raises:
            DataError: A text is not a string, or there are not as many second texts, or vectors, as texts; or the
                model has no such input.
        """
        rows = given_texts(texts, seconds, self._tokenizer.max_chars)
        finds_entities = bool(self._token_tasks)
        first, second = rows.in_columns() if finds_entities else (rows.texts, rows.seconds)
        vectors, bad = given_vectors(self.inputs, inputs, len(texts))
        if self.inputs:
            first = pc.if_else(bad.is_null(), first, pa.scalar(None, first.type))
        tokens = self._tokenizer.encode(first.to_pylist(), second.to_pylist(), words=finds_entities)
        reasons = pc.coalesce(rows.errors, bad).to_pylist()
        errors = pa.array(reasons_without(tokens, reasons), pa.string())
        outputs = self.predict_tokens(tokens, vectors)
        decided = decide_outputs(self.tasks, outputs)
        valid = errors.is_null().to_numpy(zero_copy_only=False)
        columns = dict(label_columns(self.tasks, outputs, valid, decided))
        fields = [field for task in self.tasks for field in OutputKind.of(task).fields(task.name)]
        fields += [pa.field(name, columns[name].type) for name in [VECTOR_COLUMN] if name in columns]
        if corrections:
            marks = {f"{name}_corrected": pa.array(of_task.corrected) for name, of_task in decided.items()}
            columns |= marks
            fields += [pa.field(name, pa.bool_()) for name in marks]
        arrays = [columns[field.name] for field in fields]
        return pa.table([*arrays, errors], schema=pa.schema([*fields, pa.field("error", pa.string())]))

    def predict_tokens(self, tokens: Tokens, input_vectors: tuple[InputVectors, ...] = ()) -> TaskOutputs:
        """Label R rows of tokens, with their words where there are token tasks; those without tokens get label -1 and
        score NaN.

        Args:
            tokens: Of R texts.
            input_vectors: What stands beside them, of each input of the model; () for nothing.

        Raises:
            BundleError: An output is not a number.
            torch.OutOfMemoryError: Not even one row fits into the device's memory.
        """
        started = time.perf_counter()
        texts = Rows(tokens, input_vectors)
        lengths = tokens.lengths
        counts = self._num_windows(tokens)
        vector_size = self._vector_size if self.gives_vectors else None
        num_labelled = int(np.count_nonzero(lengths))
        collected = Collected(len(self._of_texts), self._layout.num_kept, vector_size, len(tokens), num_labelled)
        entities = FoundEntities(self._token_tasks, len(tokens))
        num_padded_tokens = 0
        for rows, packed in self._results(texts, np.flatnonzero(counts == 1), self._forward):
            collected.fetch(rows, packed)
            if packed.words is not None and packed.at_words is not None:
                entities.fetch(rows, packed.words, counts[rows], packed.at_words.numpy())
            num_padded_tokens += len(rows) * int(lengths[rows].max())
        for rows in self._parts(np.flatnonzero(counts > 1), counts):
            collected.fetch(rows, self._label_windows(texts.take(rows), counts[rows], rows, entities))
            num_padded_tokens += int(lengths[rows].sum())  # all their windows are full
        label_ids, scores, kept, found_vectors = collected.by_row()
        label_ids, scores = self._with_token_tasks(label_ids, scores, entities)
        return TaskOutputs(
            label_ids,
            scores,
            found_vectors,
            self._layout.by_task(kept),
            entities.by_row(),
            num_tokens=int(lengths.sum()),
            num_padded_tokens=num_padded_tokens,
            flops=self._flops(np.minimum(lengths, self._tokenizer.max_tokens).repeat(counts)),
            seconds=time.perf_counter() - started,
        )

    def _with_token_tasks(
        self, label_ids: npt.NDArray[np.int32], scores: npt.NDArray[np.float32], entities: FoundEntities
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """Label ids and scores of all tasks, in their order: those of token tasks among the others."""
        if not self._token_tasks:
            return label_ids, scores
        is_token = np.array([task.is_token for task in self.tasks])
        all_ids = np.full((len(self.tasks), scores.shape[1]), -1, np.int32)
        all_scores = np.empty(all_ids.shape, np.float32)
        all_ids[~is_token] = label_ids
        all_scores[~is_token], all_scores[is_token] = scores, entities.least
        return all_ids, all_scores

    def measure_peak_flops_per_s(self) -> float:
        """The device's measured peak: FLOP/s of a large matrix product, in the model's precision.

        Takes up to 0.1 s, so what was measured less than 10 s ago is not measured again.
        """
        if time.monotonic() - self._peak_measured_at > _PEAK_EVERY_S:
            self._peak_flops_per_s = measure_peak_flops_per_s(
                self.device, torch.bfloat16 if self._uses_bf16 else torch.float32
            )
            self._peak_measured_at = time.monotonic()
        return self._peak_flops_per_s

    def _num_windows(self, tokens: Tokens) -> npt.NDArray[np.int64]:
        """(R,) How many windows each row has."""
        if self._tokenizer.max_windows == 1:
            return np.ones(len(tokens), np.int64)
        return tokens.num_windows(self._tokenizer.max_tokens)

    def _parts(self, rows: RowIndices, counts: npt.NDArray[np.int64]) -> Iterator[RowIndices]:
        """Rows of several windows, in parts of which all logits may be in memory together."""
        of_words = self._tokenizer.max_tokens * sum(task.num_outputs for task in self._token_tasks)
        most = max(1, _MAX_WINDOW_LOGITS // max(1, self._layout.num_labels + self._vector_size + of_words))
        ends = counts[rows].cumsum()
        while len(rows):
            num_rows = max(1, int(np.searchsorted(ends, most, side="right")))
            yield rows[:num_rows]
            rows, ends = rows[num_rows:], ends[num_rows:] - ends[num_rows - 1]

    def _results(self, texts: Rows, rows: RowIndices, forward: Forward) -> Iterator[tuple[RowIndices, Packed]]:
        """The results of those rows that have tokens, batch by batch.

        While the device is at work on one batch, the one before it is the caller's, and the next one is padded.
        """
        running: tuple[RowIndices, Packed] | None = None
        lengths = texts.lengths
        batches = self._batches(lengths, rows)
        while batches:
            rows = batches.pop()
            packed = self._launch(texts, rows, forward)
            if packed is None:
                self._shrink(lengths[rows])
                batches = self._batches(lengths, np.concatenate([rows, *batches]))
                continue
            if running is not None:
                yield running
            running = rows, packed
        if running is not None:
            yield running

    @torch.inference_mode()
    def _label_windows(
        self, texts: Rows, counts: npt.NDArray[np.int64], rows_of_texts: RowIndices, entities: FoundEntities
    ) -> Packed:
        """The results of rows of several windows, by what these say together.

        Args:
            texts: The rows.
            counts: Their windows.
            rows_of_texts: Which rows they are.
            entities: Takes what token tasks find in them.
        """
        windows = texts.windows(self._tokenizer.max_tokens)
        num_windows_of_all = len(windows.tokens)
        needs_vectors = self.gives_vectors or bool(self._probes)
        vector_size = self._vector_size if needs_vectors else None
        collected = Collected(0, self._layout.num_labels, vector_size, num_windows_of_all, num_windows_of_all)
        words = windows.tokens.words_of(np.arange(num_windows_of_all))
        at_words = np.zeros((len(words.rows), sum(task.num_outputs for task in self._token_tasks)), np.float32)
        for rows, packed in self._results(windows, np.arange(num_windows_of_all), self._window_logits):
            collected.fetch(rows, packed)
            if packed.words is not None and packed.at_words is not None:
                at_words[places_of_rows(words.rows, rows)] = packed.at_words.numpy()
        if self._token_tasks:
            entities.fetch(rows_of_texts, words, counts, at_words)
        _, _, of_windows, found = collected.by_row()
        num_windows = torch.from_numpy(counts)
        vectors = None if found is None else combine_vectors(torch.from_numpy(found), num_windows).to(self.device)
        logits = self._layout.combine(of_windows, num_windows)
        parts = []
        for rows in np.array_split(np.arange(len(logits)), -(-logits.numel() // _MAX_LOGITS) or 1):
            part = logits[rows].to(self.device)
            if self._probes and vectors is not None:
                part[:, self._reads_vector, :] = -torch.inf
                said = self._model.all_tasks_from_vectors(vectors[rows], self._probes)
                part[:, self._reads_vector, : said.shape[2]] = said
            parts.append(self._layout.labels_and_scores(part))
        found_vectors = ToHost(vectors) if self.gives_vectors and vectors is not None else None
        return Packed(ToHost(torch.cat(parts, dim=1)), found_vectors)

    def _window_logits(self, batch: Batch) -> Packed:
        """Start a batch of windows: (L, B) logits, as int32 for the copy to the host."""
        logits, vectors, at_words = self._outputs(batch, self.gives_vectors or bool(self._probes))
        own = ToHost(self._layout.own_logits(logits.float()))
        return Packed(own, None if vectors is None else ToHost(vectors), batch.words, at_words)

    def _batches(self, lengths: npt.NDArray[np.int64], rows: RowIndices) -> list[RowIndices]:
        """Batches of those rows that have tokens, the longest last, where `list.pop` finds them."""
        costs = np.where(lengths[rows] > 0, lengths[rows] + self._num_prompts, 0)
        return [rows[batch] for batch in reversed(length_sorted_batches(costs, self.max_batch_tokens))]

    def _shrink(self, lengths: npt.NDArray[np.int64]) -> None:
        """Never again make a batch of more than half the positions of this one, which did not fit."""
        self.max_batch_tokens = len(lengths) * (int(lengths.max()) + self._num_prompts) // 2

    @torch.inference_mode()
    def _launch(self, texts: Rows, rows: RowIndices, forward: Forward) -> Packed | None:
        """Start a batch; None if there is no memory for it, but for a single row, where that is raised."""
        try:
            tokens, beside = texts.tokens, [of.take(rows) for of in texts.vectors]
            batch = pad_batch(tokens, rows, self.device, beside)
            num_tokens = int(tokens.lengths[rows].sum()) + sum(len(of.values) for of in beside)
            if num_tokens == batch["attention_mask"].numel():  # without a mask attention takes less time
                del batch["attention_mask"]
            words = tokens.words_of(rows) if self._token_tasks else None
            return forward(Batch(batch, num_tokens, words))
        except torch.OutOfMemoryError:
            if len(rows) == 1:
                raise
        # Only here has the exception released the tensors of the frames it went through.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _forward(self, batch: Batch) -> Packed:
        """Start a batch of texts."""
        logits, vectors, at_words = self._outputs(batch, self.gives_vectors)
        results = ToHost(self._layout.labels_and_scores(logits.float()))
        return Packed(results, None if vectors is None else ToHost(vectors), batch.words, at_words)

    def _outputs(self, batch: Batch, vectors: bool) -> tuple[Tensor, Tensor | None, ToHost | None]:
        """(B, n, C) logits, (B, D) vectors if they are wanted, and (N, C') what there is to say of words."""
        inputs, wanted = batch.inputs, {"tasks": self._names, "num_tokens": batch.num_tokens}
        if batch.words is not None:
            found = self._model.all_outputs(**inputs, **wanted, vectors=vectors)
            places = torch.from_numpy(batch.words.rows * inputs["input_ids"].shape[1] + batch.words.places)
            places = places.pin_memory() if self.device.type == "cuda" else places  # else the copy waits for the GPU
            places = places.to(self.device, non_blocking=True)
            at_words = word_log_probabilities(found.at_tokens, self._token_tasks, places)
            return found.logits, found.vectors if vectors else None, ToHost(at_words)
        if vectors:
            return *self._model.all_tasks_and_vectors(**inputs, **wanted), None
        return self._model.all_tasks(**inputs, **wanted), None, None


def _batch_tokens(device: torch.device, model: MultiTaskModel, names: Sequence[str]) -> int:
    """Positions of a batch that make these tasks fast on the device."""
    if device.type == "cuda":
        return _GPU_BATCH_TOKENS
    num_parameters = sum(parameter.numel() for name in names for parameter in model.task_parameters(name))
    return _CPU_BATCH_TOKENS * (2 if num_parameters > _MANY_TASK_PARAMETERS else 1)
