"""What a run is to do: units of work, the label files they become, what is published then, and why.

A unit is a slice of one source file with the tasks that are not current there. It is read once, goes through the
model once, and is committed as one label file per label set.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from mtop_batch.corpus.files import SourceFile
from mtop_batch.families import EncoderPasses
from mtop_batch.lines import shown
from mtop_batch.table.definition import Definition
from mtop_batch.table.footer import LabelFooter
from mtop_batch.table.row_ranges import RowRange
from mtop_batch.table.store import LabelFile

SourceOfLabels = Literal["texts", "vectors", "scores"]
_MAX_NAMED = 5


@dataclass(frozen=True)
class Target:
    """A label file to write, or to read, and the tasks whose columns that is about."""

    file: LabelFile
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class Unit:
    """A slice of a source file with the tasks that are not current there: one read, one forward pass, one commit.

    Args:
        source: The file, as it was listed.
        num_rows_file: Rows of the whole file.
        num_row_groups: Row groups of the whole file.
        row_groups: The row groups that hold the unit: first, and the one after the last.
        rows: The unit's rows in the file: first, and the one after the last.
        text_columns: The text columns to read, all that the file has of those that the tasks are asked about.
        tasks: The tasks to compute, in the definition's order.
        targets: The label files to write; each task belongs to one.
        vectors: The label file with the vectors of these rows, if the tasks are computed from them.
        scores: The label files with the scores of these rows, and for which of the tasks, if only these tasks'
            decisions have changed. Where there are neither vectors nor scores, the texts are read.
    """

    source: SourceFile
    num_rows_file: int
    num_row_groups: int
    row_groups: tuple[int, int]
    rows: RowRange
    text_columns: tuple[str, ...]
    tasks: tuple[str, ...]
    targets: tuple[Target, ...]
    vectors: LabelFile | None = None
    scores: tuple[Target, ...] = ()

    @property
    def source_of_labels(self) -> SourceOfLabels:
        """What the labels are computed from."""
        return "scores" if self.scores else "texts" if self.vectors is None else "vectors"

    @property
    def num_rows(self) -> int:
        """Rows of the unit."""
        return self.rows[1] - self.rows[0]

    @property
    def num_cells(self) -> int:
        """Cells (rows x tasks) that the unit computes."""
        return self.num_rows * len(self.tasks)

    def __str__(self) -> str:
        whole = self.rows == (0, self.num_rows_file)
        return shown(self.source.path) + ("" if whole else f" rows {self.rows[0]}-{self.rows[1]}")

    def to_dict(self) -> dict[str, Any]:
        """The unit as JSON-ready values."""
        files = {"targets": self.targets, "scores": self.scores}
        described = {
            key: [{"label_set": of.file.label_set, "path": of.file.path, "tasks": of.tasks} for of in found]
            for key, found in files.items()
        }
        # `asdict` would copy every name of a thousand tasks.
        return {**asdict(replace(self, tasks=(), targets=(), scores=())), "tasks": self.tasks, **described}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Unit:
        """The unit that `to_dict` described, also after a detour through JSON."""
        targets, scores = (
            tuple(Target(LabelFile(of["label_set"], of["path"]), tuple(of["tasks"])) for of in values[key])
            for key in ("targets", "scores")
        )
        vectors = None if values["vectors"] is None else LabelFile(**values["vectors"])
        tuples = {key: tuple(values[key]) for key in ("row_groups", "rows", "text_columns", "tasks")}
        parts = {"source": SourceFile(**values["source"]), "targets": targets, "scores": scores, "vectors": vectors}
        return cls(**{**values, **tuples, **parts})

    def footer(self, target: Target, definition: Definition, run: str) -> LabelFooter:
        """The footer of one of the unit's label files, as written by run `run`."""
        return LabelFooter(
            source=self.source,
            num_rows=self.num_rows_file,
            rows=self.rows,
            fingerprints={task: definition.fingerprints[task] for task in target.tasks},
            kinds={task: definition.kinds[task] for task in target.tasks},
            bundles=dict.fromkeys(target.tasks, definition.bundle_name),
            bundle=definition.bundle_uri,
            text_columns=definition.text_columns[target.tasks[0]],
            text_columns_used=self.text_columns,
            id_column=definition.id_column,
            run=run,
            decisions={
                task: definition.view.decisions[task] for task in target.tasks if task in definition.view.decisions
            },
        )


def encode_units(units: Iterable[Unit]) -> str:
    """Units as JSON, in which units that want the same tasks name them once: a thousand tasks have 20 KB of names."""
    numbers: dict[tuple[str, ...], int] = {}
    described = [unit.to_dict() for unit in units]
    for unit in described:
        for values in (unit, *unit["targets"], *unit["scores"]):
            values["tasks"] = numbers.setdefault(values["tasks"], len(numbers))
    return json.dumps({"tasks": list(numbers), "units": described})


def decode_units(text: str) -> list[Unit]:
    """The units that `encode_units` described."""
    content = json.loads(text)
    for unit in content["units"]:
        for values in (unit, *unit["targets"], *unit["scores"]):
            values["tasks"] = content["tasks"][values["tasks"]]
    return [Unit.from_dict(unit) for unit in content["units"]]


def described_inputs(inputs: Mapping[tuple[str, ...], tuple[str, ...]]) -> str:
    """The text columns that tasks are asked about, for people.

    >>> described_inputs({("title", "body"): ("topic", "mood"), ("headline",): ("clickbait",)})
    'title + body (topic, mood) and headline (clickbait)'
    """
    if len(inputs) == 1:
        return " + ".join(next(iter(inputs)))
    return " and ".join(
        f"{' + '.join(columns)} ({', '.join(tasks) if len(tasks) <= _MAX_NAMED else f'{len(tasks):,} tasks'})"
        for columns, tasks in inputs.items()
    )


@dataclass(frozen=True)
class Plan:
    """What a run is to do, and why.

    Args:
        units: The work, in order of source file and row.
        to_publish: Source files whose published file is not what it should be, or will not be after the units.
        corpus: Where the source files' paths start.
        labels: The label table.
        num_files: Readable source files in scope.
        num_articles: Their rows.
        cells_total: Articles x wanted tasks.
        cells_planned: Those of them that the units compute.
        reasons: Planned cells by the reason why they are not current.
        planned_per_task: Articles to label, per wanted task.
        inputs: The different text columns that are read, each with the wanted tasks that are asked about them.
        unreadable: Source files that cannot be read, each with the reason.
        ignored_files: Files of the corpus that are not Parquet by their name.
        hidden_files: Parquet files that are passed over because a name on their path starts with `_` or `.`.
        damaged: Label files that were read and are not what their names say: removed before they are written anew.
        displaced: Published files that make way because their path is now that of a directory, or the other way round.
        orphaned: Other published files (below `current`) in scope whose source file is gone from the corpus.
        num_published: All published files.
        prune: Orphaned published files are removed; else they stay.
        passes: How often a text goes through the model's encoder.
        text_limits: How much of a text the model reads; empty if that is not known.
        other_corpus: The corpus of the newest run, if it is another one and its published files are replaced.
    """

    units: tuple[Unit, ...]
    to_publish: tuple[SourceFile, ...] = ()
    corpus: str = ""
    labels: str = ""
    num_files: int = 0
    num_articles: int = 0
    cells_total: int = 0
    cells_planned: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    planned_per_task: Mapping[str, int] = field(default_factory=dict)
    inputs: Mapping[tuple[str, ...], tuple[str, ...]] = field(default_factory=dict)
    unreadable: tuple[tuple[str, str], ...] = ()
    ignored_files: tuple[str, ...] = ()
    hidden_files: tuple[str, ...] = ()
    damaged: tuple[LabelFile, ...] = ()
    displaced: tuple[str, ...] = ()
    orphaned: tuple[str, ...] = ()
    num_published: int = 0
    prune: bool = False
    passes: EncoderPasses = field(default_factory=EncoderPasses)
    text_limits: Mapping[str, int] = field(default_factory=dict)
    other_corpus: str = ""

    @property
    def removals(self) -> tuple[str, ...]:
        """Published files that the run removes."""
        return self.orphaned if self.prune else ()

    @property
    def has_work(self) -> bool:
        """Whether the run has anything to compute, publish or remove."""
        return bool(self.units or self.to_publish or self.removals)

    @property
    def cells_current(self) -> int:
        """Cells (articles x tasks) that need no work."""
        return self.cells_total - self.cells_planned

    @property
    def num_articles_planned(self) -> int:
        """Articles that at least one task is to be computed for."""
        slices = {(unit.source.path, unit.rows): unit.num_rows for unit in self.units}
        return sum(slices.values())

    @property
    def num_rows_planned(self) -> int:
        """Rows of all units: an article that tasks read by different columns counts once for each of these."""
        return sum(unit.num_rows for unit in self.units)

    def units_from(self, source: SourceOfLabels) -> tuple[Unit, ...]:
        """The units that are computed from texts, from stored vectors, or from stored scores."""
        return tuple(unit for unit in self.units if unit.source_of_labels == source)

    def cells_from(self, source: SourceOfLabels) -> int:
        """Their cells."""
        return sum(unit.num_cells for unit in self.units_from(source))

    @property
    def num_rows_from_texts(self) -> int:
        """Rows of the units for which texts are read."""
        return sum(unit.num_rows for unit in self.units_from("texts"))

    @property
    def passes_per_text(self) -> float:
        """Forward passes of each text that is read, on average; 0 if none is.

        Where it is a pass for each task, those that read an article by different columns read one text.
        """
        units = self.units_from("texts")
        slices = {(unit.source.path, unit.rows): unit.num_rows for unit in units}
        num_texts = sum(slices.values() if self.passes.per_task else (unit.num_rows for unit in units))
        return sum(unit.num_rows * self.passes(unit.tasks) for unit in units) / num_texts if num_texts else 0.0
