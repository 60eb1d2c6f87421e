"""Where prompts stand in the sequence, what each position sees, and how prompts start.

One rule decides what every position sees. Each prompt position has a group. Group 0 is the *context*: the text
and the prompts of group 0. A position of the context sees the context; a position of group g > 0 sees the context
and its own group. "joint" attention (the paper, section 4.2) puts every prompt into the context; "isolated"
attention gives every task a group of its own, so that no task's output depends on which other tasks exist. A task
added to a trained model always gets a group of its own, whatever the model was trained with.

Tasks may share prompts (the paper's section 7): those of one *prompt group* read the same prompts, which stand in the
sequence once. With isolated attention these prompts are one group in the sense above.

The isolated prompts of tasks that were added later go through the encoder in a pass of their own. So they do not even
change the shapes that the tasks trained together are computed in, on which the rounding of their results depends.

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
_HEAD_START = 0.5  # of the logit of the group that a task begins with


class TaskPrompts(NamedTuple):
    """How many prompts a task reads, whether they are isolated, the prompt group that it shares them with, and whether
    the task was added to a trained model.
    """

    name: str
    num_prompts: int
    isolated: bool
    prompt_group: str | None = None
    added: bool = False


@dataclass(frozen=True)
class PromptLayout:
    """The prompt part of a sequence: shared prompts first, then those of the context, then isolated ones.

    Args:
        groups: (S,) The group of each position; 0 is the context.
        positions: The positions of the prompts that every present task reads.
        owners: One task for each set of prompts, in the order of their positions.
        passes: The positions of isolated prompts that go through the encoder together: those of tasks that were there
            from the start, and those of tasks that were added, as far as there are such.
    """

    groups: tuple[int, ...]
    positions: dict[str, range]
    owners: tuple[str, ...]
    passes: tuple[range, ...]


def prompt_layout(tasks: Sequence[TaskPrompts], num_shared_prompts: int, wanted: Collection[str]) -> PromptLayout:
    """Lay out the prompts that the wanted tasks need.

    Prompts of the context always stand in the sequence, because every output depends on them; those of isolated
    tasks only where one of them is wanted, because no other output does. Prompt groups come by name, before the tasks
    with prompts of their own: so nothing moves when a task leaves a group. A task without prompts (a probe) has no
    place.

    >>> tasks = [TaskPrompts("a", 2, False), TaskPrompts("b", 1, True, "x"), TaskPrompts("c", 1, True, "x")]
    >>> prompt_layout(tasks, 1, ["c"])
    PromptLayout(groups=(0, 0, 0, 1), positions={'a': range(1, 3), 'c': range(3, 4)}, owners=('a', 'c'),
                 passes=(range(3, 4),))
    """
    wanted = set(wanted)
    sets: dict[tuple[str, str], list[TaskPrompts]] = {}
    for task in sorted(tasks, key=lambda t: (t.isolated, t.added, t.prompt_group is None, t.prompt_group or "")):
        if task.num_prompts and (task.name in wanted or not task.isolated):
            own = ("task", task.name) if task.prompt_group is None else ("group", task.prompt_group)
            sets.setdefault(own, []).append(task)
    groups = [0] * num_shared_prompts
    positions: dict[str, range] = {}
    passes: dict[bool, range] = {}
    num_groups = 0
    for owner, *others in sets.values():
        num_groups += owner.isolated
        own_positions = range(len(groups), len(groups) + owner.num_prompts)
        positions |= {task.name: own_positions for task in (owner, *others)}
        groups += [num_groups if owner.isolated else 0] * owner.num_prompts
        if owner.isolated:
            first = passes.get(owner.added, own_positions)
            passes[owner.added] = range(first.start, own_positions.stop)
    owners = tuple(owner.name for owner, *_ in sets.values())
    return PromptLayout(tuple(groups), positions, owners, tuple(passes.values()))


def attention_mask_of(groups: Tensor) -> Tensor:
    """What each position sees, by the rule at the top of this module.

    Args:
        groups: (L,) The group of each position; text positions have group 0.

    Returns:
        (L, L) bool; row q, column k says whether position q sees position k.
    """
    return (groups[None, :] == 0) | (groups[None, :] == groups[:, None])


class GroupChoice(nn.Module):
    """Which of several prompt groups a task reads, while it learns that.

    The task reads the group with the highest logit, and the logits learn as if it read the groups' outputs in the
    shares of their softmax: a straight-through estimator (Bengio et al., 2013, arXiv:1308.3432). So what is computed
    while training is what is computed later.

    Args:
        groups: G names.
        first: The place of the group that the task begins with.
    """

    def __init__(self, groups: Sequence[str], first: int) -> None:
        super().__init__()
        self.groups = tuple(groups)
        self.logits = nn.Parameter(torch.zeros(len(groups)))
        with torch.no_grad():
            self.logits[first] = _HEAD_START

    @property
    def best(self) -> int:
        """The place of the group that is read."""
        return int(self.logits.argmax())

    def forward(self, outputs: Tensor) -> Tensor:
        """(B, P, D) The outputs that the task reads, of (B, G, P, D) at the prompts of all groups."""
        shares = self.logits.softmax(dim=0).to(outputs.dtype)
        nothing = torch.einsum("g,bgpd->bpd", shares - shares.detach(), outputs.detach())  # but for its gradient
        return outputs[:, self.best] + nothing


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
    """(num_prompts, E) Prompts that start as embeddings of frequent tokens of the data (section 6.1, "TK").

    Args:
        embedding_table: (V, E) The backbone's input embeddings.
        token_counts: As for `common_tokens`, like the others.

    Raises:
        DataError: As `common_tokens`.
    """
    chosen = common_tokens(
        token_counts, num_prompts, generator, special_ids=special_ids, vocabulary_size=vocabulary_size
    )
    return embedding_table.detach()[chosen.to(embedding_table.device)].clone()


def common_tokens(
    token_counts: Tensor,
    num_tokens: int,
    generator: torch.Generator,
    *,
    special_ids: Sequence[int] = (),
    vocabulary_size: int = 5000,
) -> Tensor:
    """Frequent tokens of the data, for prompts to start from.

    Each is drawn independently and uniformly among the most frequent ones.

    Args:
        token_counts: (V,) How often each token occurs in the data.
        num_tokens: How many to draw.
        generator: Source of the draws, on the CPU.
        special_ids: Tokens never to draw: [CLS], [SEP], [PAD] and the like.
        vocabulary_size: How many of the most frequent tokens to draw from; fewer where the data has fewer.

    Returns:
        (num_tokens,) ids.

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
    return frequent[torch.randint(len(frequent), (num_tokens,), generator=generator)]
