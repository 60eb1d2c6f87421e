"""What the commands `mtop train`, `prefinetune`, `add-tasks`, `calibrate`, `select-tasks`, `label` and others do.

    from mtop_batch import add_tasks, calibrate, evaluate, label, prefinetune, review, select_tasks, train

Arguments, output on the terminal and errors are those of the commands, which call these functions. Paths are local or
URLs, as on the command line. Heavy imports wait until a function is called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mtop_batch.errors import ConfigError
from mtop_batch.precision import PrecisionChoice

if TYPE_CHECKING:
    from mtop_batch.config.sections import Config
    from mtop_batch.engine.add_tasks import ChangeResult
    from mtop_batch.engine.calibrate import CalibrateResult
    from mtop_batch.engine.prefinetune import PrefinetuneResult
    from mtop_batch.engine.select_tasks import SelectResult
    from mtop_batch.engine.train import TrainResult
    from mtop_batch.labelling.review import Strategy
    from mtop_batch.table.lake import TableFormat
    from mtop_batch.training.evaluation.evaluated import EvaluatedTask

Event = dict[str, Any]


def train(
    config: str | Path | Config,
    overrides: Sequence[str] = (),
    *,
    overwrite: bool = False,
    on_event: Callable[[Event], None] | None = None,
) -> TrainResult:
    """Train one model on all tasks of a configuration and write its bundle to the configuration's `output`.

    If it fails or is killed, `<output>.training` holds what was done, and the same call resumes from there. If `output`
    holds the bundle of the same configuration and examples, nothing is done.

    Args:
        config: A TOML file, or a configuration that is loaded already.
        overrides: `section.key=value` strings, as with `--set`; only with a file.
        overwrite: Train whatever bundle `output` holds, and replace it.
        on_event: Called with every event (start, step, evaluation, ...) of the training.

    Returns:
        Metrics on the evaluation data, and how the run went.

    Raises:
        MtopError: The configuration, the backbone or the examples cannot work, `output` holds another bundle and is not
            to be overwritten, storage fails, or workers failed too often (`JobError`); `exit_code` is that of the
            command.
    """
    loaded = _loaded(config, overrides)  # first: importing torch and Ray takes seconds
    from mtop_batch.engine.monitoring.progress import Progress
    from mtop_batch.engine.train import train as run

    with Progress() as progress:
        return run(loaded, progress=progress, on_event=on_event, overwrite=overwrite)


def prefinetune(
    config: str | Path | Config,
    overrides: Sequence[str] = (),
    *,
    overwrite: bool = False,
    on_event: Callable[[Event], None] | None = None,
) -> PrefinetuneResult:
    """Let an encoder learn from source tasks, and write it, with the LoRA of its families, to the configuration's
    `output`: a directory that `backbone.name` may name.

    If it fails or is killed, `<output>.training` holds what was done, and the same call resumes from there.

    Args:
        config: A TOML file, or a configuration that is loaded already.
        overrides: `section.key=value` strings, as with `--set`; only with a file.
        overwrite: Replace what an earlier call has left at `output`.
        on_event: Called with every event (start, step, ...) of the training.

    Raises:
        MtopError: As `train`.
    """
    loaded = _loaded(config, overrides, prefinetunes=True)
    from mtop_batch.engine.monitoring.progress import Progress
    from mtop_batch.engine.prefinetune import prefinetune as run

    with Progress() as progress:
        return run(loaded, progress=progress, on_event=on_event, overwrite=overwrite)


def add_tasks(
    model: str,
    config: str | Path,
    output: str,
    overrides: Sequence[str] = (),
    *,
    replace: bool = False,
    overwrite: bool = False,
) -> ChangeResult:
    """Learn new tasks on a trained bundle; outputs and labels of the tasks it has stay as they are.

    Args:
        model: The bundle; it stays as it is.
        config: A TOML file with the new tasks and, if wanted, a section `[add_tasks]`.
        output: Where the new bundle goes.
        overrides: `section.key=value` strings, as with `--set`.
        replace: Train a task that the bundle has again, in its place.
        overwrite: Replace whatever bundle `output` holds; without it, the bundle of the same call is left there, and
            another one refused.

    Raises:
        MtopError: As the command; nothing is written to `output` then.
    """
    from mtop_batch.engine.add_tasks import add_tasks as run
    from mtop_batch.engine.monitoring.progress import Progress

    with Progress() as progress:
        return run(
            model, str(config), output, progress=progress, overrides=overrides, replace=replace, overwrite=overwrite
        )


def calibrate(
    model: str,
    config: str | Path | Config,
    output: str,
    overrides: Sequence[str] = (),
    *,
    overwrite: bool = False,
) -> CalibrateResult:
    """Fit temperatures, thresholds and what else decides labels on evaluation data, without training.

    Args:
        model: The bundle; it stays as it is.
        config: A TOML file with tasks of the bundle (`decide`, `abstain_below`, `scores`), and `rules` if they are to
            change, or a configuration that is loaded already. Tasks that it does not name stay as they are.
        output: Where the bundle with these decisions goes; its fingerprints are those of `model`.
        overrides: `section.key=value` strings, as with `--set`; only with a file.
        overwrite: Replace whatever bundle `output` holds.

    Raises:
        MtopError: As the command; nothing is written then.
    """
    # What a file of `add-tasks` leaves out is the bundle's, and does not count here.
    loaded = _loaded(config, overrides, {"output": output, "backbone": {"name": model}})
    from mtop_batch.engine.calibrate import calibrate_bundle
    from mtop_batch.engine.monitoring.progress import Progress

    with Progress() as progress:
        return calibrate_bundle(model, loaded, output, progress=progress, overwrite=overwrite)


def select_tasks(
    config: str | Path | Config,
    primary: str,
    overrides: Sequence[str] = (),
    *,
    method: str = "trial",
    threshold: float | None = None,
    most: int | None = None,
    output: str | None = None,
    kept: str | None = None,
) -> SelectResult:
    """Find the tasks of a configuration that help one of them.

    If it fails or is killed, the same call goes on; what was measured is not measured again for another primary task,
    with another method, or with a task more.

    Args:
        config: A TOML file, or a configuration that is loaded already.
        primary: The task that is to be helped.
        overrides: `section.key=value` strings, as with `--set`; only with a file.
        method: "threshold", "trial", "fine-grained" or "autosem".
        threshold: Least correlation of a task, or for "fine-grained" of an example; None for the paper's.
        most: Most auxiliary tasks that are tried together.
        output: Where to write the configuration with the chosen tasks.
        kept: Directory of what was measured and of the report; None for the configuration's output + `.selection`.

    Raises:
        MtopError: As the command.
    """
    loaded = _loaded(config, overrides)  # first: importing torch and Ray takes seconds
    from mtop_batch.engine.monitoring.progress import Progress
    from mtop_batch.engine.select_tasks import select_tasks as run
    from mtop_batch.selection.select import SelectOptions

    options = SelectOptions(method, threshold, most)  # type: ignore[arg-type]  # checked there
    with Progress() as progress:
        return run(loaded, primary, options, progress=progress, output=output, kept=kept)


def evaluate(
    model: str,
    config: str | Path | Config | None = None,
    overrides: Sequence[str] = (),
    *,
    errors: str | None = None,
    suspects: str | None = None,
    report: str | None = None,
) -> dict[str, dict[str, float]]:
    """Measure the tasks of a bundle on their evaluation data.

    Args:
        model: The bundle.
        config: A TOML file with the tasks to evaluate, also one of `add-tasks`, or a configuration that is loaded
            already. By default the tasks and the evaluation data that the bundle was trained with.
        overrides: `section.key=value` strings, as with `--set`; only with a file.
        errors: Also write the examples it gets wrong to this Parquet file, the surest first.
        suspects: Also write the training examples that are likely to be labelled wrongly to this Parquet file.
        report: Also write all that the command knows to this HTML file.

    Returns:
        Task -> metric -> value: the task's own metric, "loss", "num_examples". NaN stands for a metric that the
        evaluation data leave undefined, such as a correlation where all labels are the same.

    Raises:
        MtopError: As the command.
    """
    from mtop_batch.storage import file_place

    options = {"errors": errors, "suspects": suspects, "report": report}
    files = {option: file_place(typed, option) for option, typed in options.items() if typed is not None}
    wants_suspects = True if suspects is not None else None if report is not None else False
    evaluated = evaluate_in_detail(model, config, overrides, compare=report is not None, suspects=wants_suspects)
    from mtop_batch.engine.evaluate import write_errors, write_report, write_suspects

    if "errors" in files:
        write_errors(files["errors"], evaluated)
    if "suspects" in files:
        write_suspects(files["suspects"], evaluated)
    if "report" in files:
        write_report(files["report"], model, evaluated)
    return {name: item.metrics for name, item in evaluated.items()}


def evaluate_in_detail(
    model: str,
    config: str | Path | Config | None = None,
    overrides: Sequence[str] = (),
    *,
    compare: bool = True,
    suspects: bool | None = False,
) -> dict[str, EvaluatedTask]:
    """As `evaluate`, and each task label by label, with the examples that it gets wrong, and what of its data to doubt.

    Args:
        model: As for `evaluate`, like the next two.
        config: See there.
        overrides: See there.
        compare: Compare evaluation with training data, where these can be read.
        suspects: Look for training examples that are likely to be labelled wrongly; None does so unless there are many
            tasks.
    """
    if config is None and overrides:
        raise ConfigError("--set changes a configuration; name one with --config")
    # What a file of `add-tasks` leaves out is the bundle's, and does not count here.
    defaults = {"output": model, "backbone": {"name": model}}
    loaded = None if config is None else _loaded(config, overrides, defaults)  # first: importing torch takes seconds
    from mtop_batch.engine.evaluate import evaluate_in_detail as run
    from mtop_batch.engine.monitoring.progress import Progress

    with Progress() as progress:
        return run(model, loaded, progress=progress, compare=compare, suspects=suspects)


def label(
    model: str,
    corpus: str,
    labels: str,
    *,
    tasks: Sequence[str] = (),
    partition: Mapping[str, str] | None = None,
    allow_empty: bool = False,
    plan: bool = False,
    id_column: str = "id",
    text_columns: Sequence[str] = (),
    unit_rows: int = 20_000,
    num_actors: int | None = None,
    max_error_fraction: float | None = None,
    prune: bool = False,
    force: bool = False,
    publish: bool = True,
    format: TableFormat = "parquet",
    lake: str | None = None,
    catalog: str | None = None,
    table: str | None = None,
    retry_timeout: float = 120.0,
    vectors: bool = False,
    precision: PrecisionChoice = "auto",
    notify: str | None = None,
    price_per_hour: float | None = None,
    config: str | None = None,
    max_label_share_change: float | None = None,
    max_new_share_change: float | None = None,
    max_flips: float | None = None,
    min_articles: int | None = None,
    max_metric_drop: float | None = None,
) -> dict[str, Any]:
    """Make every wanted cell of a corpus current: only what is missing or stale is computed.

    If it fails, what was computed stays, and the same call does the rest.

    Args:
        model: The bundle.
        corpus: Parquet files anywhere below this directory or prefix, or one file.
        labels: The label table: a directory or prefix of its own.
        tasks: Only these tasks.
        partition: Only source files of this hive partition, such as `{"date": "2026-11-20"}`.
        allow_empty: No source file need be in the partition.
        plan: Say what would be done, and do nothing.
        id_column: Column that identifies an article.
        text_columns: One text column, or two for a pair; the default is the command's.
        unit_rows: Most rows that go through the model together.
        num_actors: Labelling actors; by default one per GPU, else one per spare CPU.
        max_error_fraction: Fail as soon as more of the rows than this cannot be labelled, and keep labels back then.
        prune: Remove labels whose source file is gone.
        force: Also if that is most of the table.
        publish: Show readers what was computed; else it stays in the store.
        format: "delta" or "iceberg" publishes the same rows to such a table too, in one commit.
        lake: Where that table's files lie; `<labels>/delta` by default, or where the Iceberg catalogue puts them.
        catalog: The Iceberg catalogue: a name of pyiceberg's configuration, or a URI; `default` by default.
        table: The Iceberg table, with its namespace, such as `news.labels`.
        retry_timeout: Fail when storage has not answered for this many seconds.
        vectors: Store a document vector of each article too.
        precision: Of the model; "auto" is bf16 where the hardware gains by it, fp32 elsewhere.
        notify: URL that gets a summary when the run has ended, whatever the end.
        price_per_hour: Of a device (a GPU, or else a CPU core): tells costs.
        config: TOML file with a section `[gate]`.
        max_label_share_change: Keep labels back if the share of one changes by more, on the same articles.
        max_new_share_change: Keep labels back if the share of one changes by more, on new articles.
        max_flips: Keep labels back if those of more of the same articles change.
        min_articles: Keep labels back if they are of fewer articles.
        max_metric_drop: Keep labels back if a task's metric on development data drops by more.

    Returns:
        The run report, or the plan, JSON-ready. Source files that cannot be read, for which the command exits with 3,
        are under `unreadable_files`, each with the reason. Where `gate` says that it is not `open`, for which the
        command exits with 4, nothing was published.

    Raises:
        MtopError: As the command; `exit_code` is that of the command.
    """
    from mtop_batch.engine.labelling.gate import gate_rules
    from mtop_batch.engine.labelling.label import LabelOptions, label_corpus
    from mtop_batch.table.lake.target import lake_target

    gate = gate_rules(
        config,
        max_error_fraction=max_error_fraction,
        max_label_share_change=max_label_share_change,
        max_new_share_change=max_new_share_change,
        max_flips=max_flips,
        min_articles=min_articles,
        max_metric_drop=max_metric_drop,
    )
    options = LabelOptions(
        model=model,
        corpus=corpus,
        labels=labels,
        tasks=tuple(tasks),
        partitions=tuple(f"{key}={value}" for key, value in (partition or {}).items()),
        allow_empty=allow_empty,
        id_column=id_column,
        text_columns=tuple(text_columns),
        unit_rows=unit_rows,
        num_actors=num_actors,
        max_error_fraction=max_error_fraction,
        prune=prune,
        force=force,
        publish=publish,
        lake=lake_target(format, labels, lake, catalog, table),
        gate=gate,
        retry_timeout_s=retry_timeout,
        vectors=vectors,
        precision=precision,
        notify=notify,
        price_per_hour=price_per_hour,
    )
    return label_corpus(options, plan_only=plan)


def review(
    labels: str,
    task: str,
    output: str,
    *,
    num_articles: int = 200,
    strategy: str = "uncertain",
    against: str | None = None,
    corpus: str | None = None,
    partition: Mapping[str, str] | None = None,
    label_column: str = "label",
    seed: int = 0,
) -> dict[str, Any]:
    """Choose articles of a label table that are worth labelling by hand next, and write them with a column to fill in.

    The file has the columns `id`, the text columns, the task's `<task>_label` and `<task>_score`, and `label_column`,
    which is empty. Filled in, it is training data like any other; rows that were left empty are passed over.

    Args:
        labels: The label table.
        task: The task whose labels are wanted.
        output: Where to write: Parquet, or CSV where it ends in `.csv`. There must be no file yet.
        num_articles: How many articles; there may be fewer.
        strategy: "uncertain", the least probable labels; "disagree", where another task or bundle is sure of another
            label; "random"; or "diverse", spread over the vectors that `label(..., vectors=True)` stored.
        against: For "disagree", another task of the table; by default the task's labels by other bundles.
        corpus: Where the articles lie; by default where the newest run of the task found them.
        partition: Only articles of this hive partition.
        label_column: Name of the column to fill in.
        seed: Of what is random; the same arguments choose the same articles.

    Returns:
        How many articles were written and looked at, and the source files that could not be read.

    Raises:
        MtopError: An option cannot work, nothing is published, what the strategy needs is not there, or storage fails.
    """
    from mtop_batch.labelling.review import ReviewOptions, choose_articles

    return choose_articles(
        ReviewOptions(
            labels=labels,
            task=task,
            output=output,
            num_articles=num_articles,
            strategy=cast("Strategy", strategy),
            against=against,
            corpus=corpus,
            partition=partition or {},
            label_column=label_column,
            seed=seed,
        )
    )


def _loaded(
    config: str | Path | Config,
    overrides: Sequence[str],
    defaults: Mapping[str, Any] | None = None,
    *,
    prefinetunes: bool = False,
) -> Config:
    from mtop_batch.config.load import load_config

    if not isinstance(config, str | Path):
        return config
    return load_config(config, overrides, defaults, prefinetunes=prefinetunes)
