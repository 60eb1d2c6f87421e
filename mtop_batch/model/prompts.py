"""Where prompts stand in the sequence, what each position sees, and how prompts start.

One rule decides what every position sees. Each prompt position has a group. Group 0 is the *context*: the text
and the prompts of group 0. A position of the context sees the context; a position of group g > 0 sees the context
and its own group. "joint" attention (the paper, section 4.2) puts every prompt into the context; "isolated"
attention gives every task a group of its own, so that no task's output depends on which other tasks exist. A task
added to a trained model always gets a group of its own, whatever the model was trained with.

Shapes: S prompt positions of the sequence, T text positions, L = S + T, E width of the input embeddings, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mtop_batch.errors import DataError

INIT_STD = 0.02


class TaskPrompts(NamedTuple):
    """How many prompts a task has, and whether they form a group of their own."""

    name: str
    num_prompts: int
    isolated: bool


@dataclass(frozen=True)
class PromptLayout:
    """The prompt part of a sequence: shared prompts first, then each present task's prompts in the model's order.

    Args:
        groups: (S,) The group of each position; 0 is the context.
        positions: The positions of every present task's own prompts.
    """

    groups: tuple[int, ...]
    positions: dict[str, range]


def prompt_layout(tasks: Sequence[TaskPrompts], num_shared_prompts: int, wanted: Collection[str]) -> PromptLayout:
    """Lay out the prompts that the wanted tasks need.

    Prompts of the context always stand in the sequence, because every output depends on them; those of an isolated
    task only where the task is wanted, because no other output does. A task without prompts (a probe) has no place.

    >>> tasks = [TaskPrompts("a", 2, False), TaskPrompts("b", 1, True), TaskPrompts("c", 1, True)]
    >>> prompt_layout(tasks, 1, ["c"])
    PromptLayout(groups=(0, 0, 0, 1), positions={'a': range(1, 3), 'c': range(3, 4)})
    """
    wanted = set(wanted)
    groups = [0] * num_shared_prompts
    positions: dict[str, range] = {}
    num_groups = 0
    for name, num_prompts, isolated in tasks:
        if not num_prompts or (isolated and name not in wanted):
            continue
        num_groups += isolated
        positions[name] = range(len(groups), len(groups) + num_prompts)
        groups += [num_groups if isolated else 0] * num_prompts
    return PromptLayout(tuple(groups), positions)


def visibility(groups: Tensor) -> Tensor:
    """What each position sees, by the rule at the top of this module.

    Args:
        groups: (L,) The group of each position; text positions have group 0.

    Returns:
        (L, L) bool; row q, column k says whether position q sees position k.
    """
    return (groups[None, :] == 0) | (groups[None, :] == groups[:, None])


def random_prompts(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Prompts drawn from a normal distribution of sigma 0.02, cut at two sigma (section 6.1, "RD").

    The paper discards and redraws what lies outside; the inverse-CDF sampling used here has the same distribution.
    """
    return nn.init.trunc_normal_(
        torch.empty(*shape), std=INIT_STD, a=-2 * INIT_STD, b=2 * INIT_STD, generator=generator
    )


def token_prompts(
    embedding_table: Tensor,
    token_counts: Tensor,
    num_prompts: int,
    generator: torch.Generator,
    *,
    special_ids: Sequence[int] = (),
    vocabulary_size: int = 5000,
) -> Tensor:
    """Prompts that start as embeddings of frequent tokens of the data (section 6.1, "TK").

    Each prompt draws its token independently and uniformly among the most frequent ones.

    Args:
        embedding_table: (V, E) The backbone's input embeddings.
        token_counts: (V,) How often each token occurs in the data.
        num_prompts: Prompts to make.
        generator: Source of the draws, on the CPU.
        special_ids: Tokens never to draw: [CLS], [SEP], [PAD] and the like.
        vocabulary_size: How many of the most frequent tokens to draw from; fewer where the data has fewer.

    Returns:
        (num_prompts, E)

    Raises:
        DataError: The data holds no token but special ones.
    """
    counts = token_counts.clone()
    counts[list(special_ids)] = 0
    by_count, token_ids = counts.sort(descending=True, stable=True)
    frequent = token_ids[by_count > 0][:vocabulary_size]
    if not len(frequent):
        raise DataError(
            "prompts cannot start from tokens: the training data holds no token but special ones; "
            'check its text columns or set model.prompt_init = "random"'
        )
    chosen = frequent[torch.randint(len(frequent), (num_prompts,), generator=generator)]
    return embedding_table.detach()[chosen.to(embedding_table.device)].clone()
