"""How stacked models are trained: which batch each takes in every step, the losses, and masked language modelling.

The shapes are those of `stacked_models`; C steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from stacked_models import DEVICE, Arm, Encoder, Parameters, StackedModels, clip_factor, linear, repeat, text_mask
from torch import Tensor
from torch.nn import functional

DROPOUT = 0.1
MASK, FIRST_WORD = 103, 1000  # ids of BERT's vocabulary
_LAST_SPECIAL = 103
_SOFT_TOKENS = 24
_WARM_UP = 0.1
_WARM_START_EPOCHS, _WARM_START_BATCH, _WARM_START_RATE = 2, 32, 1e-3
_MOST_AVERAGED = 0.995
_MASKED_TOKENS, _MASKED_SHARE, _MASKED_BATCH = 4, 0.25, 256

Examples = Sequence[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]


@dataclass(frozen=True)
class Texts:
    """Tokens (R, L), 0 behind a text's end, and lengths (R,)."""

    tokens: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class SoftTexts:
    """Rows of texts (U,), the probability of yes that teachers give them (U, T), and how many a step takes."""

    rows: Tensor
    yes: Tensor
    batch: int = 16


@dataclass(frozen=True)
class Plan:
    """For each step and model its task (C, K), texts and labels (C, K, B), and factor of the rates (C, K); 0: rest."""

    task: Tensor
    rows: Tensor
    labels: Tensor
    factor: Tensor

    @classmethod
    def stack(cls, plans: Sequence[tuple[npt.NDArray[np.number], ...]]) -> Plan:
        """Of models whose numbers of steps may differ."""
        steps = max(len(plan[0]) for plan in plans)
        padded = [
            np.stack([np.pad(of, [(0, steps - len(of)), *[(0, 0)] * (of.ndim - 1)]) for of in kind], 1)
            for kind in zip(*plans, strict=True)
        ]
        return cls(*(torch.from_numpy(part).to(DEVICE) for part in padded))

    def __len__(self) -> int:
        return len(self.task)

    def at(self, step: Tensor) -> tuple[Tensor, ...]:
        """Of one step, whose number lies on the device."""
        return tuple(part.index_select(0, step)[0] for part in (self.task, self.rows, self.labels, self.factor))


def ramp(steps: int) -> npt.NDArray[np.float32]:
    """Linear warm-up and linear decay."""
    warm_up = round(_WARM_UP * steps)
    step = np.arange(steps)
    rising = (step + 1) / max(warm_up, 1)
    return np.where(step < warm_up, rising, (steps - step) / (steps - warm_up)).astype(np.float32)


def training_plan(arm: Arm, examples: Examples, epochs: float, batch: int) -> tuple[npt.NDArray[np.number], ...]:
    """All tasks mixed, each as often as it has examples; or the only one of the arm."""
    rng = np.random.default_rng(arm.seed)
    sizes = np.array([len(labels) for _, labels in examples])
    if arm.task is not None:
        order = np.full(math.ceil(epochs * sizes[arm.task] / batch), arm.task)
    else:
        order = rng.choice(len(sizes), math.ceil(epochs * sizes.sum() / batch), p=sizes / sizes.sum())
    return _with_batches(order, ramp(len(order)), examples, batch, rng)


def warm_start_plan(arm: Arm, examples: Examples) -> tuple[npt.NDArray[np.number], ...]:
    """One task after the other."""
    batch = _WARM_START_BATCH
    steps = [math.ceil(_WARM_START_EPOCHS * len(labels) / batch) for _, labels in examples]
    order, factor = np.repeat(np.arange(len(steps)), steps), np.concatenate([ramp(count) for count in steps])
    return _with_batches(order, factor, examples, batch, np.random.default_rng(arm.seed + 500))


def _with_batches(
    order: npt.NDArray[np.int64],
    factor: npt.NDArray[np.float32],
    examples: Examples,
    batch: int,
    rng: np.random.Generator,
) -> tuple[npt.NDArray[np.number], ...]:
    """Every example of a task once, then all in another order."""
    rows, labels = (np.zeros((len(order), batch), np.int64) for _ in range(2))
    waiting = [np.zeros(0, np.int64) for _ in examples]
    for step, task in enumerate(order):
        of_texts, of_labels = examples[task]
        while len(waiting[task]) < batch:
            waiting[task] = np.concatenate([waiting[task], rng.permutation(len(of_labels))])
        picked, waiting[task] = waiting[task][:batch], waiting[task][batch:]
        rows[step], labels[step] = of_texts[picked], of_labels[picked]
    return order, rows, labels, factor


class Training:
    """One training of K models side by side, for MTOP with the warm start of prompts, poolers and heads.

    Args:
        models: Changed in place.
        texts: All texts that rows point to.
        examples: Of each task.
        soft: Texts to learn from besides.
    """

    def __init__(
        self,
        models: StackedModels,
        texts: Texts,
        examples: Examples,
        *,
        epochs: float = 2,
        batch: int = 16,
        soft: SoftTexts | None = None,
    ) -> None:
        self.models, self.texts, self.soft = models, texts, soft
        arms = models.arms
        self.plan = Plan.stack([training_plan(arm, examples, epochs, batch) for arm in arms])
        warm_start = models.method == "mtop"
        self.first = Plan.stack([warm_start_plan(arm, examples) for arm in arms]) if warm_start else None
        self.smoothing, self.hidden, self.soft_weight = (
            torch.tensor([getattr(arm, name) for arm in arms], device=DEVICE)
            for name in ("label_smoothing", "hidden_tokens", "soft_weight")
        )
        self.hides = any(arm.hidden_tokens for arm in arms)
        self.step = torch.zeros(1, dtype=torch.long, device=DEVICE)
        self.soft_rows = self._deal(soft) if soft is not None else None

    def _deal(self, soft: SoftTexts) -> Tensor:
        """(C, K, U) which of the unlabelled texts each model takes in each step."""
        wanted = len(self.plan) * soft.batch
        dealt = []
        for arm in self.models.arms:
            generator = torch.Generator().manual_seed(arm.seed + 77)
            rounds = range(math.ceil(wanted / len(soft.rows)))
            orders = [torch.randperm(len(soft.rows), generator=generator) for _ in rounds]
            dealt.append(torch.cat(orders)[:wanted].view(len(self.plan), soft.batch))
        return torch.stack(dealt, 1).to(DEVICE)

    def run(self, most_steps: int | None = None) -> StackedModels:
        """Train; a limit on the steps is for trying the code."""
        if self.first is not None:
            with self._warm_start_rate():
                repeat(partial(self._step, self.first, warm_start=True), min(len(self.first), most_steps or 10**9))
            for parameters in (self.models.shared, self.models.own):
                parameters.forget()
            self.step.zero_()
        repeat(partial(self._step, self.plan), min(len(self.plan), most_steps or 10**9))
        return self.models

    @contextmanager
    def _warm_start_rate(self) -> Iterator[None]:
        own = self.models.own
        rate, own.rate = own.rate, torch.full_like(own.rate, _WARM_START_RATE)
        yield
        own.rate = rate

    def _step(self, plan: Plan, warm_start: bool = False) -> None:
        models, own, shared = self.models, self.models.own, self.models.shared
        task, rows, labels, factor = plan.at(self.step)
        for parameters in (own, shared):
            parameters.gradient.zero_()
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=DEVICE.type == "cuda", cache_enabled=False):
            loss = self._loss(task, rows, labels, warm_start)
            if self.soft is not None and not warm_start:
                loss = loss + self.soft_weight * self._soft_loss(self.soft)
        loss.sum().backward()  # type: ignore[no-untyped-call]
        learns = (task[:, None] == torch.arange(models.num_tasks, device=DEVICE)) | (
            self.soft is not None and not warm_start
        )
        learns &= (factor > 0)[:, None]
        norm = (own.gradient * learns[..., None]).flatten(1).pow(2).sum(1)
        if not warm_start:
            norm = norm + shared.gradient.pow(2).sum(1)
        clip = clip_factor(norm)[:, None]
        own.step(factor[:, None, None], clip[..., None], learns[..., None])
        if not warm_start:
            shared.step(factor[:, None], clip, (factor > 0)[:, None])
            self._average()
        self.step += 1

    def _average(self) -> None:
        """The mean over steps forgets the first of them quickly."""
        share = 1 - ((self.step + 2) / (self.step + 11)).clamp(max=_MOST_AVERAGED)
        for parameters in (self.models.shared, self.models.own):
            parameters.add_to_average(share)

    def _loss(self, task: Tensor, rows: Tensor, labels: Tensor, warm_start: bool) -> Tensor:
        """(K,) cross entropy with smoothed labels; a warm start leaves the encoder alone."""
        shared = {name: part.detach() if warm_start else part for name, part in self.models.shared.parts.items()}
        tokens, lengths = self._hide(self.texts.tokens[rows]), self.texts.lengths[rows]
        logits = self.models.one_task(shared, self.models.own.parts, tokens, lengths, task, DROPOUT)
        smoothing = self.smoothing[:, None, None]
        is_label = labels[..., None] == torch.arange(2, device=DEVICE)  # unlike one_hot never waits for the GPU
        wanted = is_label * (1 - smoothing) + smoothing / 2
        return -(wanted * functional.log_softmax(logits.float(), -1)).sum(-1).mean(1)

    def _soft_loss(self, soft: SoftTexts) -> Tensor:
        """(K,) cross entropy with what teachers say, of all tasks."""
        assert self.soft_rows is not None
        picked = self.soft_rows.index_select(0, self.step)[0]
        rows, yes = soft.rows[picked], soft.yes[picked]
        tokens = self._hide(self.texts.tokens[rows][..., :_SOFT_TOKENS])
        lengths = self.texts.lengths[rows].clamp(max=_SOFT_TOKENS)
        shared, own = self.models.shared.parts, self.models.own.parts
        says = functional.log_softmax(self.models.all_tasks(shared, own, tokens, lengths, DROPOUT).float(), -1)
        return -(yes * says[..., 1] + (1 - yes) * says[..., 0]).mean((1, 2))

    def _hide(self, tokens: Tensor) -> Tensor:
        """Words replaced by [MASK] at random."""
        if not self.hides:
            return tokens
        hide = (torch.rand(tokens.shape, device=DEVICE) < self.hidden[:, None, None]) & (tokens > _LAST_SPECIAL)
        return torch.where(hide, torch.full_like(tokens, MASK), tokens)


class MaskedLanguageModel:
    """Continued pretraining of K encoders, one for each rate, on the same batches of texts."""

    def __init__(self, encoder: Encoder, texts: Texts, rows: Tensor, rates: Sequence[float], epochs: int) -> None:
        self.encoder, self.texts = encoder, texts
        width, generator = encoder.width, torch.Generator().manual_seed(0)
        head = {"head.weight": (width, width), "head.bias": (width,), "words.bias": (len(encoder.words),)}
        first = torch.eye(width) + 0.02 * torch.randn(width, width, generator=generator)
        start = torch.cat([encoder.pretrained, first.flatten().to(DEVICE)])
        start = functional.pad(start, (0, width + len(encoder.words)))
        rate = torch.tensor(rates, device=DEVICE)[:, None]
        self.parameters = Parameters(start.repeat(len(rates), 1), {**encoder.shapes, **head}, rate)
        self.steps_per_epoch = len(rows) // _MASKED_BATCH
        taken = self.steps_per_epoch * _MASKED_BATCH
        orders = [torch.randperm(len(rows), generator=generator)[:taken] for _ in range(epochs)]
        self.batches = rows[torch.cat(orders).to(DEVICE)].view(-1, _MASKED_BATCH)
        self.factor = torch.from_numpy(ramp(len(self.batches))).to(DEVICE)
        self.step = torch.zeros(1, dtype=torch.long, device=DEVICE)

    def run(self, epochs: int, most_steps: int | None = None) -> Tensor:
        """Train for so many further epochs; returns the encoders, (K, N)."""
        repeat(self._step, min(epochs * self.steps_per_epoch, most_steps or 10**9))
        return self.parameters.value[:, : len(self.encoder.pretrained)].clone()

    def _step(self) -> None:
        self.parameters.gradient.zero_()
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=DEVICE.type == "cuda", cache_enabled=False):
            loss = self._loss(self.batches.index_select(0, self.step)[0])
        loss.sum().backward()  # type: ignore[no-untyped-call]
        clip = clip_factor(self.parameters.gradient.pow(2).sum(1))[:, None]
        self.parameters.step(self.factor[self.step], clip, torch.ones_like(clip, dtype=torch.bool))
        self.step += 1

    def _loss(self, rows: Tensor) -> Tensor:
        """(K,) of the words at a few places, most of them replaced by [MASK]."""
        parts, num_models = self.parameters.parts, len(self.parameters.value)
        tokens, lengths = self.texts.tokens[rows], self.texts.lengths[rows]
        places, counts = _places(lengths, tokens.shape[1])
        words = tokens.gather(1, places)
        shown = torch.where(counts, _disturbed(words, len(self.encoder.words)), words)
        inputs = tokens.scatter(1, places, shown).expand(num_models, -1, -1)
        mask = text_mask(lengths.repeat(num_models), tokens.shape[1])
        read = self.encoder(parts, inputs, mask, DROPOUT)
        read = read.gather(2, places[None, :, :, None].expand(num_models, -1, -1, read.shape[-1])).flatten(1, 2)
        hidden = functional.layer_norm(functional.gelu(linear(read, parts, "head")).float(), read.shape[-1:])
        logits = torch.matmul(hidden, self.encoder.words.t()) + parts["words.bias"][:, None]
        wanted = words.flatten().repeat(num_models)
        losses = functional.cross_entropy(logits.flatten(0, 1).float(), wanted, reduction="none").view(num_models, -1)
        return (losses * counts.flatten()).sum(1) / counts.sum()


def _places(lengths: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
    """(B, M) places of words drawn from each text, and which of them count: a quarter of the text's tokens at most."""
    place = torch.arange(num_tokens, device=DEVICE)
    inside = (place >= 1) & (place < (lengths[:, None] - 1))  # between [CLS] and [SEP]
    lot = torch.where(inside, torch.rand(inside.shape, device=DEVICE), torch.full_like(inside, 2.0, dtype=torch.float))
    places = lot.topk(_MASKED_TOKENS, 1, largest=False).indices
    most = (lengths[:, None] * _MASKED_SHARE).clamp(min=1)
    return places, inside.gather(1, places) & (torch.arange(_MASKED_TOKENS, device=DEVICE) < most)


def _disturbed(words: Tensor, num_words: int) -> Tensor:
    """BERT's recipe: eight of ten words are masked, one is another word, one stays."""
    lot = torch.rand(words.shape, device=DEVICE)
    other = torch.randint(FIRST_WORD, num_words, words.shape, device=DEVICE)
    return torch.where(lot < 0.8, torch.full_like(words, MASK), torch.where(lot < 0.9, other, words))
