"""Texts without labels that pre-finetuning learns from (`[[source]]`): pairs that belong together, or what a teacher
finds in them.

A teacher is asked in every step, for the texts of the step: nothing that it says has to be kept, and a training that
goes on asks it again. It reads the very tokens that the encoder reads, so both have one vocabulary.

Shapes: B texts, T text positions, K types of entities of all token tasks of a teacher, C tags of one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mtop_batch.config.task import SourceConfig
from mtop_batch.data.entities.spans import Entities
from mtop_batch.data.labelled_tokens import LabelledTokens, PairedTexts
from mtop_batch.data.tokens import TextTokenizer, Tokens
from mtop_batch.data.unlabelled import UnlabelledTexts, choose_texts, read_texts
from mtop_batch.errors import ConfigError, DataError
from mtop_batch.lines import listed
from mtop_batch.model.bundle.bundle import load_bundle
from mtop_batch.model.encoder.backbone import check_backbone
from mtop_batch.model.kinds.base import MultiTaskModel
from mtop_batch.tasks import NO_TAG, Task
from mtop_batch.training.settings import TaskData


@dataclass(frozen=True)
class TokenTeacher:
    """A model that says which entities texts have.

    Args:
        model: In evaluation mode.
        tasks: Its token tasks.
        digest: Of what they say.
    """

    model: MultiTaskModel
    tasks: tuple[Task, ...]
    digest: str

    @property
    def types(self) -> tuple[str, ...]:
        """All types of entities, with the task of each: K."""
        return tuple(f"{task.name}: {label}" for task in self.tasks for label in task.labels)

    @torch.no_grad()
    def logits(self, input_ids: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor | None) -> list[Tensor]:
        """(B, T, C) What each of its tasks puts out."""
        model = self.model.to(device=input_ids.device)  # type: ignore[call-arg]
        names = [task.name for task in self.tasks]
        found = model.all_outputs(input_ids, attention_mask, token_type_ids, names).at_tokens
        return [found[name] for name in names]


def load_teacher(source: SourceConfig, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> TokenTeacher | None:
    """The teacher of a source, if it has one.

    Args:
        source: Its configuration.
        tokenizer: Of the encoder that is to learn.
        max_tokens: Longest text that it reads.

    Raises:
        BundleError: There is no such bundle, or it is damaged.
        ConfigError: It has no token task, or reads other or fewer tokens.
    """
    if not source.teacher:
        return None
    bundle = load_bundle(source.teacher)
    tasks = tuple(task for task in bundle.model.tasks if task.is_token)
    said = f"source {source.name!r}: the teacher {source.teacher}"
    if not tasks:
        raise ConfigError(f"{said} has no token task; its tasks: {listed(bundle.model.task_names)}; name another one")
    if bundle.tokenizer.get_vocab() != tokenizer.get_vocab():
        raise ConfigError(
            f"{said} has another vocabulary than the backbone, so it reads other tokens; train a teacher on a backbone "
            "with the same tokenizer"
        )
    try:
        for encoder in bundle.model.encoders:
            check_backbone(encoder, max_tokens)
    except ConfigError as error:
        raise ConfigError(f"{said} cannot read texts of backbone.max_tokens = {max_tokens}: {error}") from error
    return TokenTeacher(bundle.model, tasks, "".join(bundle.fingerprints[task.name] for task in tasks))


def read_source(
    source: SourceConfig, teacher: TokenTeacher | None, text_tokenizer: TextTokenizer, seed: int
) -> TaskData:
    """The texts of a source, as examples of a task of its name.

    Args:
        source: Its configuration.
        teacher: Its teacher.
        text_tokenizer: Of the encoder that is to learn.
        seed: Of the part that is taken of a large corpus.

    Raises:
        DataError: The corpus does not exist, lacks a column, or has no text that can be learned from.
        LabelTableError: The storage cannot be reached or refuses.
    """
    texts = choose_texts((), read_texts(source.corpus, source.text), (), max_texts=source.max_texts, seed=seed)
    if teacher is None:
        examples: LabelledTokens = _pairs(source, texts, text_tokenizer)
        return TaskData(Task(source.name, text=source.text, reads="pooled"), examples)
    task = Task(source.name, "token", teacher.types, source.text)
    return TaskData(task, _words(source, texts, text_tokenizer, len(teacher.types)))


def _pairs(source: SourceConfig, texts: UnlabelledTexts, text_tokenizer: TextTokenizer) -> PairedTexts:
    """The rows of which both texts say something."""
    firsts, seconds = (text_tokenizer.encode(column) for column in (texts.texts, texts.seconds))
    both = np.flatnonzero((firsts.lengths > 0) & (seconds.lengths > 0))
    if len(both) < 2:
        raise DataError(
            f"source {source.name!r}: {source.corpus} has fewer than two rows with a text in each of "
            f"{listed(source.text)}; name a corpus with more, or other columns"
        )
    return PairedTexts.of(
        _first_windows(firsts.take(both), text_tokenizer), _first_windows(seconds.take(both), text_tokenizer)
    )


def _words(
    source: SourceConfig, texts: UnlabelledTexts, text_tokenizer: TextTokenizer, num_types: int
) -> LabelledTokens:
    """The texts with words; each word has some tag, which the teacher is asked for."""
    tokens = text_tokenizer.encode(texts.texts, texts.seconds_or_none, words=True)
    tokens = _first_windows(tokens.take(np.flatnonzero(tokens.lengths)), text_tokenizer)
    if not len(tokens):
        raise DataError(f"source {source.name!r}: {source.corpus} has no text in {listed(source.text)}; name another")
    begins = np.zeros(0, bool) if tokens.words is None else tokens.words[:, 0] >= 0
    return LabelledTokens(
        tokens,
        np.zeros((len(tokens), num_types), bool),
        entities=Entities.from_rows([[]] * len(tokens)),
        tags=np.where(begins, 0, NO_TAG),
    )


def _first_windows(tokens: Tokens, text_tokenizer: TextTokenizer) -> Tokens:
    """Of each text what one window holds."""
    if text_tokenizer.max_windows == 1:
        return tokens
    counts = tokens.num_windows(text_tokenizer.max_tokens)
    return tokens.windows(text_tokenizer.max_tokens).take(counts.cumsum() - counts)


def distilled_loss(logits: Tensor, said: Sequence[Tensor], tags: Tensor) -> Tensor:
    """() The cross-entropy with a teacher's tags: the mean over its tasks, a text's words, and texts.

    Its tasks share the tag of no entity; of the others each has those of its own types. A text without words counts 0.

    Args:
        logits: (B, T, 2 K + 1) What the encoder that learns puts out.
        said: (B, T, C) What each of the teacher's tasks puts out.
        tags: (B, T) `NO_TAG` where no word begins.
    """
    is_word = (tags != NO_TAG).float()
    losses, start = torch.zeros_like(is_word), 1
    for of_task in said:
        stop = start + of_task.shape[-1] - 1
        own = torch.cat([logits[..., :1], logits[..., start:stop]], dim=-1).float()
        losses = losses - (of_task.float().softmax(dim=-1) * own.log_softmax(dim=-1)).sum(dim=-1)
        start = stop
    of_texts = (losses * is_word).sum(dim=1) / is_word.sum(dim=1).clamp(min=1)
    return of_texts.mean() / len(said)
