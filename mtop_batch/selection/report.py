"""The report of a selection: a page in Markdown, with the pictures beside it."""

from __future__ import annotations

from collections.abc import Sequence

from mtop_batch import storage
from mtop_batch.lines import counted, shown
from mtop_batch.selection.pictures import correlations_picture, heads_picture
from mtop_batch.selection.select import Heads, Selection, described

_HOW = {
    "threshold": "GradTS, threshold: tasks whose heads correlate with the primary task's by more than a threshold.",
    "trial": "GradTS, trial: the most correlated tasks, as many of them as did best on evaluation examples.",
    "fine-grained": "GradTS, fine-grained: of the tasks that trial found, the examples that correlate themselves.",
    "autosem": "AUTOSEM: a bandit found useful tasks, a Gaussian process their mixing ratio.",
}


def write_report(directory: str, selection: Selection, *, reused: int, done: int) -> str:
    """Write `<primary>.<method>.md`, and pictures of the heads where these were measured.

    Args:
        directory: Where to.
        selection: What was chosen.
        reused: Trainings whose records were there.
        done: Trainings that were done for it.

    Returns:
        The page.

    Raises:
        ConfigError: matplotlib is not installed.
        LabelTableError: The storage cannot be reached or refuses.
    """
    pictures = []
    if selection.heads is not None:
        for name, content in (
            ("correlations.png", correlations_picture(selection.heads)),
            ("heads.png", heads_picture(selection.heads)),
        ):
            storage.write_bytes(storage.join(directory, name), content)
            pictures.append(name)
    page = storage.join(directory, f"{selection.primary}.{selection.method}.md")
    storage.write_bytes(page, _page(selection, pictures, reused, done).encode())
    return page


def _page(selection: Selection, pictures: Sequence[str], reused: int, done: int) -> str:
    parts = [
        f"# Which tasks help {selection.primary}\n\n{_HOW[selection.method]}\n",
        f"\n**{described(selection)}.**\n",
        *(f"\n{note}.\n" for note in selection.notes),
        f"\n{counted(done, 'training')} done, {reused:,} known already. Anew, the selection takes "
        f"{counted(selection.num_steps, 'training step')} and {selection.seconds:,.0f} s, one after the other.\n",
    ]
    if selection.heads is not None:
        parts.append(_tasks(selection, selection.heads))
    if selection.utilities:
        parts.append(_utilities(selection))
    if selection.tried:
        parts.append(_tried(selection))
    parts += [f"\n![{name}]({name})\n" for name in pictures]
    return "".join(parts)


def _tasks(selection: Selection, heads: Heads) -> str:
    correlations = {selection.primary: 1.0, **heads.with_(selection.primary)}
    alone = dict(zip(heads.names, heads.scores, strict=True))
    examples = {name: len(found) for name, found in zip(heads.names, heads.gradients, strict=True)}
    names = sorted(correlations, key=lambda name: -correlations[name])
    rows = [
        [
            shown(name),
            "" if name == selection.primary else f"{correlations[name]:.3f}",
            f"{alone[name]:.4f}",
            f"{examples[name]:,}",
            _part(selection, name, examples[name]),
        ]
        for name in names
    ]
    return "\n## Tasks\n\n" + _table(["task", "tau", "alone, own metric", "examples", "chosen"], rows)


def _part(selection: Selection, name: str, examples: int) -> str:
    if name == selection.primary:
        return "primary"
    if name not in selection.auxiliary:
        return ""
    return f"{len(selection.rows.get(name, range(examples))):,} examples"


def _utilities(selection: Selection) -> str:
    parts = dict(zip((selection.primary, *selection.auxiliary), selection.ratio, strict=False))
    rows = [
        [shown(name), f"{utility:.3f}", str(parts.get(name, ""))]
        for name, utility in sorted(selection.utilities.items(), key=lambda item: -item[1])
    ]
    return "\n## Tasks\n\n" + _table(["task", "utility", "part"], rows)


def _tried(selection: Selection) -> str:
    rows = [
        [", ".join(tried.auxiliary) or "none", ":".join(map(str, tried.ratio)), f"{tried.score:.4f}"]
        for tried in selection.tried
    ]
    return "\n## What was tried\n\n" + _table(["auxiliary tasks", "ratio", selection.primary], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, ["---"] * len(head), *rows))
