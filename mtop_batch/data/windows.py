"""Windows: how a text that is longer than a model reads at once is divided. Pure functions of numbers of tokens.

Every window of a long text is full, so the last one reaches back as far as it must. Of a pair the longer text is
divided and the shorter one stands in every window, as much of it as half a window holds. With one window this is
truncation as in the `tokenizers` library, tokens taken from the longer text first ("longest_first").
"""

from __future__ import annotations

from dataclasses import dataclass

Part = tuple[slice, slice]
"""What a window holds of a first and of a second text."""


@dataclass(frozen=True)
class Windows:
    """How texts are divided.

    Args:
        most: Windows of a text; what is behind them is not read. With 1 texts are cut.
        overlap: Tokens that a window shares with the one before; the last one shares more.
        keeps_end: Of a text that is too long the last tokens are read, not the first.
    """

    most: int = 1
    overlap: int = 0
    keeps_end: bool = False

    def reach(self, room: int) -> int:
        """How many tokens of a text count at most.

        Args:
            room: Tokens of it that a window holds, more than the overlap.

        >>> Windows().reach(10), Windows(most=3, overlap=2).reach(10)
        (10, 26)
        """
        return room + (self.most - 1) * (room - self.overlap)

    def starts(self, num_tokens: int, room: int) -> list[int]:
        """Where the windows of a text begin.

        Args:
            num_tokens: Of the text, at most its reach.
            room: As for `reach`.

        >>> windows = Windows(most=3, overlap=2)
        >>> windows.starts(10, room=10), windows.starts(11, room=10), windows.starts(26, room=10)
        ([0], [0, 1], [0, 8, 16])
        """
        last = max(0, num_tokens - room)
        return [*range(0, last, room - self.overlap), last]

    def divide(self, first: int, second: int, budget: int) -> list[Part]:
        """What each window holds of two texts.

        Texts that both exceed half of the budget get half of it each, the longer one (the second, if they are equal)
        the odd token. That one of the two is longer which is so within the reach of a text alone, for nobody looks
        beyond it; where texts are cut, their whole lengths count.

        Args:
            first: Tokens of the first text.
            second: Tokens of the second text, 0 for a single one.
            budget: Tokens of both that a window holds.

        >>> [Windows().divide(*pair, budget=21) for pair in ((3, 100), (50, 40), (40, 40))]  # doctest: +ELLIPSIS
        [[(slice(0, 3, None), slice(0, 18, None))], [(slice(0, 11, None), slice(0, 10, None))], [(slice(0, 10...
        >>> Windows(most=9).divide(3, 30, budget=21)
        [(slice(0, 3, None), slice(0, 18, None)), (slice(0, 3, None), slice(12, 30, None))]
        """
        if first + second <= budget:
            return [(slice(0, first), slice(0, second))]
        seen = self.reach(budget) if self.most > 1 else max(first, second)
        divides_first = min(first, seen) > min(second, seen)
        longer, shorter = (first, second) if divides_first else (second, first)
        kept = min(shorter, budget // 2)
        room = budget - kept
        read = min(longer, self.reach(room))
        beside = _kept(shorter, kept, self.keeps_end)
        before = longer - read if self.keeps_end else 0
        parts = [slice(before + start, before + start + room) for start in self.starts(read, room)]
        return [(part, beside) if divides_first else (beside, part) for part in parts]


def _kept(num_tokens: int, kept: int, keeps_end: bool) -> slice:
    return slice(num_tokens - kept, num_tokens) if keeps_end else slice(0, kept)
