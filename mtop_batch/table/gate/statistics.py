"""How the labels of a task change, as counts that add up while rows stream by. Pure: nothing here knows of files.

`TaskChange` compares two columns of labels of the same articles ("old" and "new"), and counts apart the articles that
have a new label only. A label is compared by its name, a value (of a regression) by its number. Of a multi-label task
each label is compared by itself, as one that an article has or has not; and an article's labels as a set. So are the
types of which a token task finds entities in an article.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mtop_batch.table.gate.distributions import LabelCounts, Scores, bins_by_name, stability
from mtop_batch.table.gate.label_codes import Floats, GivenLabels, codes_of, named_labels, numbers_of

MAX_EXAMPLES = 5


@dataclass
class TaskChange:
    """How the labels of one task change.

    Args:
        kind: The task's kind.
        fingerprint: What computes the new labels.
        replaced: Articles per (bundle, fingerprint) of the old label, over those that have both.
        num_same: Articles that have an old and a new label.
        num_flipped: Those of them whose label, or set of labels, differs; none for values.
        num_fresh: Articles that have a new label only.
        pairs: Articles per (old label, new label), over those that have both; none for values. Of a multi-label task a
            label is paired with itself, or with "" where the article had it, or has it, alone.
        old: Scores of the articles that have both, before; of a multi-label task those of the labels that they have.
        new: The same, now.
        products: Sums over values that have both: of old squared, new squared, and old times new.
        fresh_labels: Articles per label, over those that have a new label only.
        fresh: Their scores.
        examples: A few articles whose label differs.
    """

    kind: str
    fingerprint: str = ""
    replaced: Counter[tuple[str, str]] = field(default_factory=Counter)
    num_same: int = 0
    num_flipped: int = 0
    num_fresh: int = 0
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)
    old: Scores = field(default_factory=Scores)
    new: Scores = field(default_factory=Scores)
    products: Floats = field(default_factory=lambda: np.zeros(3))
    fresh_labels: Counter[str] = field(default_factory=Counter)
    fresh: Scores = field(default_factory=Scores)
    examples: list[dict[str, Any]] = field(default_factory=list)

    @property
    def has_labels(self) -> bool:
        """Whether its labels have names; a regression has values."""
        return self.kind != "regression"

    @property
    def has_lists(self) -> bool:
        """Whether an article has any number of labels; of a token task these are the types of its entities."""
        return self.kind in ("multi-label", "token")

    def add(
        self,
        task: str,
        new: pa.Table,
        old: pa.Table | None,
        *,
        source: str = "",
        first_row: int = 0,
        replaced: tuple[str, str] = ("", ""),
    ) -> None:
        """Count some articles.

        Args:
            task: Its name: the columns are `<task>_label` (not for values) and `<task>_score`.
            new: The new labels, and `id`.
            old: The old labels of the same articles in the same order, null where an article has none.
            source: Where the articles come from, for the examples.
            first_row: Their first row there.
            replaced: Bundle and fingerprint of the old labels.
        """
        if self.has_lists:
            in_both = self._add_lists(task, new, old, source, first_row)
        else:
            in_both = self._add_scalars(task, new, old, source, first_row)
        if in_both:
            self.num_same += in_both
            self.replaced[replaced] += in_both
        self._keep_few_examples()

    def _add_scalars(self, task: str, new: pa.Table, old: pa.Table | None, source: str, first_row: int) -> int:
        """Count articles with one label or value each; returns how many have an old one too."""
        now = numbers_of(new, f"{task}_score")
        before = np.full(len(now), np.nan) if old is None else numbers_of(old, f"{task}_score")
        in_both = ~np.isnan(now) & ~np.isnan(before)
        is_fresh = ~np.isnan(now) & np.isnan(before)
        num_both = int(in_both.sum())
        self.num_fresh += int(is_fresh.sum())
        values = not self.has_labels
        self.old.add(before[in_both], are_values=values)
        self.new.add(now[in_both], are_values=values)
        self.fresh.add(now[is_fresh], are_values=values)
        if values:
            first, second = before[in_both], now[in_both]
            self.products += np.array([first @ first, second @ second, first @ second])
            return num_both
        names: dict[str, int] = {}
        new_codes = codes_of(named_labels(new, task), names)
        old_codes = new_codes if old is None else codes_of(named_labels(old, task), names)
        known = list(names)
        self._count_fresh(new_codes[is_fresh], known)
        self._count_pairs(old_codes[in_both], new_codes[in_both], known)
        flipped = np.flatnonzero(in_both & (old_codes != new_codes))
        self.num_flipped += len(flipped)
        for row in _some(flipped):
            self.examples.append(
                {
                    "source": source,
                    "row": first_row + row,
                    "id": _shown_id(new["id"][row]),
                    "old": known[old_codes[row]],
                    "old_score": round(float(before[row]), 4),
                    "new": known[new_codes[row]],
                    "new_score": round(float(now[row]), 4),
                }
            )
        return num_both

    def _add_lists(self, task: str, new: pa.Table, old: pa.Table | None, source: str, first_row: int) -> int:
        """Count articles with any number of labels each; returns how many have an old set of them too."""
        names: dict[str, int] = {}
        now = GivenLabels.of(new, task, names)
        before = GivenLabels.nothing(len(new)) if old is None else GivenLabels.of(old, task, names)
        in_both, is_fresh = now.is_there & before.is_there, now.is_there & ~before.is_there
        self.num_fresh += int(is_fresh.sum())
        self.old.add(before.scores[in_both[before.rows]], are_values=False)
        self.new.add(now.scores[in_both[now.rows]], are_values=False)
        self.fresh.add(now.scores[is_fresh[now.rows]], are_values=False)
        known = list(names)
        self._count_fresh(now.codes[is_fresh[now.rows]], known)
        # An article and its label as one number.
        pairs = [(of.rows * len(known) + of.codes)[in_both[of.rows]] for of in (before, now)]
        kept, lost = np.intersect1d(pairs[0], pairs[1]), np.setdiff1d(pairs[0], pairs[1])
        gained = np.setdiff1d(pairs[1], pairs[0])
        for keys, had, has in ((kept, True, True), (lost, True, False), (gained, False, True)):
            for code, count in enumerate(np.bincount(keys % max(1, len(known)), minlength=len(known)).tolist()):
                if count:
                    self.pairs[known[code] if had else "", known[code] if has else ""] += count
        flipped = np.unique(np.concatenate([lost, gained]) // max(1, len(known)))
        self.num_flipped += len(flipped)
        for row in _some(flipped):
            self.examples.append(
                {
                    "source": source,
                    "row": first_row + row,
                    "id": _shown_id(new["id"][row]),
                    "old": before.text(row, known),
                    "old_score": None,
                    "new": now.text(row, known),
                    "new_score": None,
                }
            )
        return int(in_both.sum())

    def merge(self, other: TaskChange) -> None:
        """Count the articles of the other too."""
        for mine, theirs in ((self.old, other.old), (self.new, other.new), (self.fresh, other.fresh)):
            mine.merge(theirs)
        self.num_same += other.num_same
        self.num_flipped += other.num_flipped
        self.num_fresh += other.num_fresh
        self.replaced.update(other.replaced)
        self.pairs.update(other.pairs)
        self.fresh_labels.update(other.fresh_labels)
        self.products = self.products + other.products
        self.examples += other.examples
        self._keep_few_examples()

    @property
    def disagreement(self) -> float:
        """The share of labels, or sets of them, that differs; of values, 1 less Lin's concordance, at most 1."""
        if not self.num_same:
            return 0.0
        if self.has_labels:
            return self.num_flipped / self.num_same
        n = self.num_same
        old_mean, new_mean = self.old.total / n, self.new.total / n
        old_square, new_square, product = (float(value) / n for value in self.products)
        spread = old_square - old_mean**2 + new_square - new_mean**2 + (old_mean - new_mean) ** 2
        distance = old_square + new_square - 2 * product
        return min(1.0, distance / spread) if spread > 0 and distance > 0 else 0.0

    @property
    def old_shares(self) -> LabelCounts:
        """Articles per old label, or per bin of the old value, over those that have both."""
        if not self.has_labels:
            return bins_by_name(self.old)
        return self._shares((old, count) for (old, _), count in self.pairs.items())

    @property
    def new_shares(self) -> LabelCounts:
        """The same of the new label or value."""
        if not self.has_labels:
            return bins_by_name(self.new)
        return self._shares((new, count) for (_, new), count in self.pairs.items())

    @property
    def fresh_shares(self) -> LabelCounts:
        """The same over the articles that have a new label only."""
        return LabelCounts(self.fresh_labels, self.num_fresh) if self.has_labels else bins_by_name(self.fresh)

    def stability(self, old: LabelCounts, new: LabelCounts) -> float | None:
        """The population stability index of two distributions of the task's labels; None where there are no articles.

        Of a multi-label task it is that of the label that moves most, as one that articles have or have not.
        """
        if not self.has_lists:
            return stability(old, new)
        if not old.articles or not new.articles:
            return None
        split = ([{"has": of[label], "has not": of.articles - of[label]} for of in (old, new)] for label in old | new)
        return max((stability(*both) or 0.0 for both in split), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "kind": self.kind,
            "fingerprint": self.fingerprint,
            "replaced": [
                {"bundle": bundle, "fingerprint": fingerprint, "articles": count}
                for (bundle, fingerprint), count in self.replaced.most_common()
            ],
            "same_articles": self.num_same,
            "disagreement": round(self.disagreement, 6),
            "old_counts": dict(self.old_shares.most_common()),
            "new_counts": dict(self.new_shares.most_common()),
            "old_scores": self.old.to_dict(),
            "new_scores": self.new.to_dict(),
            "flips": [
                {"old": old, "new": new, "articles": count}
                for (old, new), count in self.pairs.most_common()
                if old != new
            ],
            "fresh_articles": self.num_fresh,
            "fresh_counts": dict(self.fresh_shares.most_common()),
            "fresh_scores": self.fresh.to_dict(),
            "stability": self.stability(self.old_shares, self.new_shares),
            "examples": self.examples,
        }

    def _count_fresh(self, codes: npt.NDArray[np.int64], known: Sequence[str]) -> None:
        counts = np.bincount(codes, minlength=len(known))
        self.fresh_labels.update({known[code]: int(counts[code]) for code in np.flatnonzero(counts).tolist()})

    def _count_pairs(self, old: npt.NDArray[np.int64], new: npt.NDArray[np.int64], known: Sequence[str]) -> None:
        counts = np.bincount(old * len(known) + new)
        for code in np.flatnonzero(counts).tolist():
            self.pairs[known[code // len(known)], known[code % len(known)]] += int(counts[code])

    def _shares(self, items: Iterable[tuple[str, int]]) -> LabelCounts:
        """The sums of counts by label; of several, what stands for none is left out."""
        sums: Counter[str] = Counter()
        for name, count in items:
            if name or not self.has_lists:
                sums[name] += count
        return LabelCounts(sums, self.num_same)

    def _keep_few_examples(self) -> None:
        """The same ones whatever the order in which files are read, and not all of one file."""
        self.examples.sort(
            key=lambda example: zlib.crc32(f"{example['source']}:{example['row']}".encode(errors="replace"))
        )
        del self.examples[MAX_EXAMPLES:]


def _some(rows: npt.NDArray[np.int64]) -> list[int]:
    """A few of the rows, from all over them."""
    if not len(rows):
        return []
    found: list[int] = rows[np.linspace(0, len(rows) - 1, MAX_EXAMPLES).astype(int)].tolist()
    return found


def _shown_id(value: pa.Scalar) -> str:
    return str(value.as_py())[:200]
