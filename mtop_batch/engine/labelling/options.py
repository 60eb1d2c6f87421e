"""The options of `mtop label`, and the labels that they ask for."""

from __future__ import annotations

from dataclasses import dataclass

from mtop_batch.errors import ConfigError
from mtop_batch.model.bundle.files import read_bundle_info
from mtop_batch.precision import PrecisionChoice
from mtop_batch.storage.retry import DEFAULT_RETRY_TIMEOUT_S
from mtop_batch.table.definition import VECTOR, Definition
from mtop_batch.table.gate.rules import DEFAULT_RULES, Rules
from mtop_batch.table.lake.target import LakeTarget
from mtop_batch.table.row_ranges import SLICE_ROWS
from mtop_batch.tasks import select_tasks

_MAX_NAMED = 5


@dataclass(frozen=True)
class LabelOptions:
    """The options of `mtop label`; empty tuples stand for the default.

    Args:
        model: URI of the bundle.
        corpus: URI of the corpus.
        labels: URI of the label table.
        tasks: Only these tasks.
        partitions: Only source files of these hive partitions, `key=value`.
        allow_empty: No source file need be in the partition.
        id_column: Column that identifies an article.
        text_columns: One text column, or two for a pair, for all tasks; by default those that each was trained on, as
            far as a file has them.
        unit_rows: Most rows that go through the model together; what is stored does not depend on it.
        num_actors: Labelling actors; by default one per GPU, else one per spare CPU.
        max_error_fraction: The run fails as soon as it is certain that more of its rows than this have errors; by
            default the gate alone looks at them, in the end.
        prune: Remove published files whose source file is gone from the corpus.
        force: Also if that is most of the table.
        publish: Publish what is computed, if the gate lets it through; else it stays in the store.
        lake: A Delta or Iceberg table to publish to as well.
        gate: Which labels readers may see.
        retry_timeout_s: The run fails when storage has not answered for so long.
        vectors: Store document vectors too.
        notify: URL that gets a summary when the run has ended, whatever the end.
        price_per_hour: Of a device (a GPU, or a CPU core where there is none), to tell costs.
        precision: Of the model: "auto" is bf16 where the hardware gains by it, and fp32 elsewhere.
    """

    model: str
    corpus: str
    labels: str
    tasks: tuple[str, ...] = ()
    partitions: tuple[str, ...] = ()
    allow_empty: bool = False
    id_column: str = "id"
    text_columns: tuple[str, ...] = ()
    unit_rows: int = SLICE_ROWS
    num_actors: int | None = None
    max_error_fraction: float | None = None
    prune: bool = False
    force: bool = False
    publish: bool = True
    lake: LakeTarget | None = None
    gate: Rules = DEFAULT_RULES
    retry_timeout_s: float = DEFAULT_RETRY_TIMEOUT_S
    vectors: bool = False
    precision: PrecisionChoice = "auto"
    notify: str | None = None
    price_per_hour: float | None = None


def wanted_labels(options: LabelOptions) -> Definition:
    """The labels that the options ask for.

    Raises:
        ConfigError: The bundle has no vectors, and they are wanted.
        TaskError: The bundle has no such task.
        BundleError: There is no bundle, or it is damaged.
    """
    bundle = read_bundle_info(options.model)
    names = select_tasks(options.tasks or list(bundle.fingerprints), list(bundle.fingerprints))
    fingerprints = {name: bundle.fingerprints[name] for name in names}
    if options.vectors and not bundle.vector_fingerprint:
        raise ConfigError(
            f"--vectors: the bundle {bundle.uri} has a {bundle.kind!r} model, which reads a text once for each task, "
            "so there is no document vector of the text itself; leave the option out"
        )
    if options.vectors:
        fingerprints[VECTOR] = bundle.vector_fingerprint
    tasks = tuple(task for task in bundle.tasks if task.name in names)
    # Vectors are those of the bundle's first task's texts, whichever tasks are wanted and whatever is added later.
    text_columns = {VECTOR: bundle.tasks[0].text}
    if options.text_columns:
        text_columns = dict.fromkeys([*names, VECTOR], options.text_columns)
    return Definition(
        bundle_name=bundle.name,
        bundle_uri=bundle.uri,
        tasks=tasks,
        fingerprints=fingerprints,
        text_columns=text_columns,
        vector=bundle.vector_fingerprint,
        passes=bundle.passes,
        text_limits=bundle.text_limits,
        vector_inputs=bundle.inputs,
        text_columns_required=bool(options.text_columns),
        id_column=options.id_column,
    )


def other_texts(definition: Definition) -> list[str]:
    """Warnings of tasks that are asked about pairs and learned from single texts, or the other way round."""
    warnings = []
    for columns in definition.inputs:
        given = ("single texts", "pairs of texts")[len(columns) - 1]
        others = [task for task in definition.tasks if task.name in definition.inputs[columns]]
        others = [task for task in others if len(task.text) != len(columns)]
        if others:
            learned = ("single texts", "pairs of texts")[len(others[0].text) - 1]
            names = ", ".join(task.name for task in others[:_MAX_NAMED]) + (" ..." if len(others) > _MAX_NAMED else "")
            warnings.append(
                f"--text-columns {','.join(columns)} gives {given} to tasks that were trained on {learned} "
                f"({names}): expect worse labels; without --text-columns they read what they were trained on"
            )
    return warnings
