"""A sample of a corpus: blocks of neighbouring articles, drawn at random.

Neighbours are read together, so a sample costs few requests; and a block is small, so articles come from many places.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from mtop_batch import storage
from mtop_batch.corpus.files import Layout, SourceFile, UnreadableSource, read_layout
from mtop_batch.labelling.plan.work import Unit
from mtop_batch.table.row_ranges import RowRange, row_groups_of

BLOCK_ROWS = 100
# Files are opened until they hold so many times the sample, and are at least so many.
_TIMES_SAMPLE, _MIN_FILES = 10, 20


@dataclass(frozen=True)
class Block:
    """Neighbouring articles of a source file."""

    source: SourceFile
    layout: Layout
    rows: RowRange

    @property
    def num_rows(self) -> int:
        """How many."""
        return self.rows[1] - self.rows[0]

    def unit(self, columns: tuple[str, ...]) -> Unit:
        """The articles with one of the inputs of the layout, to be read and not to be stored."""
        row_groups = self.layout.row_groups
        return Unit(
            source=self.source,
            num_rows_file=sum(row_groups),
            num_row_groups=len(row_groups),
            row_groups=row_groups_of(row_groups, self.rows),
            rows=self.rows,
            text_columns=self.layout.text_columns[columns],
            tasks=(),
            targets=(),
        )


def draw_sample(
    corpus: str,
    sources: Sequence[SourceFile],
    num_articles: int,
    *,
    id_column: str,
    inputs: Collection[tuple[str, ...]],
    text_columns_required: bool,
    vector_columns: Collection[str] = (),
    seed: int = 0,
) -> tuple[list[Block], dict[str, str]]:
    """Blocks of up to so many articles in all; the whole corpus if it has no more.

    Args:
        corpus: Where the source files' paths start.
        sources: The source files.
        num_articles: Size of the sample.
        id_column: The column that identifies an article.
        inputs: The text columns asked for, one or two for each input.
        text_columns_required: False lets a file lack some of the text columns.
        vector_columns: Those with what is read beside texts.
        seed: Decides which articles.

    Returns:
        The blocks, in order, and the files that cannot be read with the reasons.

    Raises:
        StorageError: The storage does not answer.
    """

    def read(source: SourceFile) -> tuple[SourceFile, Layout | str]:
        try:
            layout = read_layout(
                corpus,
                source,
                id_column=id_column,
                inputs=inputs,
                text_columns_required=text_columns_required,
                vector_columns=vector_columns,
            )
        except UnreadableSource as error:
            return source, str(error)
        return source, layout

    rng = random.Random(seed)
    blocks: list[Block] = []
    unreadable: dict[str, str] = {}
    num_rows = num_files = 0
    for source, layout in storage.in_threads(read, rng.sample(sources, len(sources))):
        if isinstance(layout, str):
            unreadable[source.path] = layout
            continue
        blocks += _blocks(source, layout)
        num_rows += sum(layout.row_groups)
        num_files += 1
        if num_rows >= _TIMES_SAMPLE * num_articles and num_files >= _MIN_FILES:
            break
    rng.shuffle(blocks)
    drawn: list[Block] = []
    left = num_articles
    for block in blocks:
        if left <= 0:
            break
        drawn.append(block)
        left -= block.num_rows
    return sorted(drawn, key=lambda block: (block.source.path, block.rows)), unreadable


def _blocks(source: SourceFile, layout: Layout) -> list[Block]:
    num_rows = sum(layout.row_groups)
    ranges = ((start, min(start + BLOCK_ROWS, num_rows)) for start in range(0, num_rows, BLOCK_ROWS))
    return [Block(source, layout, rows) for rows in ranges]
