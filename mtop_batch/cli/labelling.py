"""Commands that label texts, and those for the label table."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from mtop_batch import api
from mtop_batch.cli.options import (
    AllowEmptyOption,
    CatalogOption,
    FormatOption,
    GateArticlesOption,
    GateConfigOption,
    GateFlipsOption,
    GateMetricOption,
    GateNewShareOption,
    GateShareOption,
    JsonOption,
    LakeOption,
    ModelOption,
    PrecisionOption,
    TableOption,
    comma_separated,
    file_place,
    json_place,
    write_json,
)
from mtop_batch.errors import ConfigError, at_the_start
from mtop_batch.json_text import to_json
from mtop_batch.lines import counted, shown

UNREADABLE_FILES_EXIT_CODE, GATE_CLOSED_EXIT_CODE = 3, 4


def label(
    model: ModelOption,
    corpus: Annotated[str, typer.Option(help="Parquet files anywhere below this directory or prefix.")],
    labels: Annotated[str, typer.Option(help="The label table: a directory or prefix of its own.")],
    tasks: Annotated[str | None, typer.Option(help="Only these tasks.", metavar="a,b")] = None,
    partition: Annotated[
        list[str] | None,
        typer.Option(help="Only source files of this hive partition; may be repeated.", metavar="key=value"),
    ] = None,
    allow_empty: AllowEmptyOption = False,
    plan: Annotated[bool, typer.Option("--plan", help="Say what would be done, and do nothing.")] = False,
    id_column: Annotated[str, typer.Option(help="Column that identifies an article.")] = "id",
    text_columns: Annotated[
        str | None,
        typer.Option(help="One text column, or two for a pair, for all tasks. Default: as they were trained."),
    ] = None,
    unit_rows: Annotated[int, typer.Option(min=1, help="Most rows that go through the model together.")] = (20_000),
    num_actors: Annotated[
        int | None, typer.Option(min=1, help="Labelling actors. Default: one per GPU, else one per spare CPU.")
    ] = None,
    max_error_fraction: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Fail as soon as more of the rows than this cannot be labelled."),
    ] = None,
    prune: Annotated[bool, typer.Option("--prune", help="Remove labels whose source file is gone.")] = False,
    force: Annotated[bool, typer.Option("--force", help="With --prune, also most of the table.")] = False,
    publish: Annotated[
        bool, typer.Option("--publish/--no-publish", help="Show readers what was computed, or leave it in the store.")
    ] = True,
    format: FormatOption = "parquet",
    lake: LakeOption = None,
    catalog: CatalogOption = None,
    table: TableOption = None,
    retry_timeout: Annotated[
        float, typer.Option(min=0.0, help="Fail when storage has not answered for this many seconds.")
    ] = 120.0,
    vectors: Annotated[bool, typer.Option("--vectors", help="Store a document vector of each article too.")] = False,
    precision: PrecisionOption = "auto",
    notify: Annotated[
        str | None, typer.Option(help="POST a summary here when the run has ended, whatever the end.", metavar="URL")
    ] = None,
    price_per_hour: Annotated[
        float | None, typer.Option(min=0.0, help="Of a device (GPU, or else CPU core): tells costs.")
    ] = None,
    config: GateConfigOption = None,
    max_label_share_change: GateShareOption = None,
    max_new_share_change: GateNewShareOption = None,
    max_flips: GateFlipsOption = None,
    min_articles: GateArticlesOption = None,
    max_metric_drop: GateMetricOption = None,
    json_out: JsonOption = None,
) -> None:
    """Make every wanted cell of a corpus current: only what is missing or stale is computed."""
    from mtop_batch.corpus.paths import parse_partitions

    place = json_place(json_out)
    report = api.label(
        model,
        corpus,
        labels,
        tasks=comma_separated(tasks, "--tasks"),
        partition=parse_partitions(partition or ()),
        allow_empty=allow_empty,
        plan=plan,
        id_column=id_column,
        text_columns=comma_separated(text_columns, "--text-columns"),
        unit_rows=unit_rows,
        num_actors=num_actors,
        max_error_fraction=max_error_fraction,
        prune=prune,
        force=force,
        publish=publish,
        format=format,
        lake=lake,
        catalog=catalog,
        table=table,
        retry_timeout=retry_timeout,
        vectors=vectors,
        precision=precision,
        notify=notify,
        price_per_hour=price_per_hour,
        config=config,
        max_label_share_change=max_label_share_change,
        max_new_share_change=max_new_share_change,
        max_flips=max_flips,
        min_articles=min_articles,
        max_metric_drop=max_metric_drop,
    )
    write_json(place, report)
    _exit_if_closed(report)
    if report["unreadable_files"]:
        raise typer.Exit(UNREADABLE_FILES_EXIT_CODE)


def labels(
    labels: Annotated[str, typer.Option(help="The label table.")],
    tasks: Annotated[str | None, typer.Option(help="Only these tasks.", metavar="a,b")] = None,
    partition: Annotated[
        list[str] | None, typer.Option(help="Only this hive partition; may be repeated.", metavar="key=value")
    ] = None,
    allow_empty: AllowEmptyOption = False,
    sql: Annotated[bool, typer.Option("--sql", help="Print a DuckDB view of the published table instead.")] = False,
    json_out: JsonOption = None,
) -> None:
    """Say what a label table holds: each task's coverage, label shares and bundles, and the label sets."""
    from mtop_batch.corpus.paths import parse_partitions

    if sql:
        from mtop_batch.table.read import view_sql

        typer.echo(view_sql(labels))
        return
    from mtop_batch.table.stats import table_stats

    place = json_place(json_out)
    wanted = comma_separated(tasks, "--tasks") or None
    with at_the_start():
        stats = table_stats(labels, wanted, parse_partitions(partition or ()), allow_empty=allow_empty)
    from mtop_batch.cli.tables import print_stats

    print_stats(stats)
    write_json(place, stats.to_dict())


def publish(
    labels: Annotated[str, typer.Option(help="The label table.")],
    model: Annotated[
        str | None, typer.Option(help="The bundle whose labels to publish, also an older one. Default: the last run's.")
    ] = None,
    tasks: Annotated[str | None, typer.Option(help="Only these tasks.", metavar="a,b")] = None,
    force: Annotated[bool, typer.Option("--force", help="Publish although the gate is closed.")] = False,
    format: FormatOption = "parquet",
    lake: LakeOption = None,
    catalog: CatalogOption = None,
    table: TableOption = None,
    config: GateConfigOption = None,
    max_error_fraction: Annotated[
        float | None, typer.Option(help="Keep labels back if more of the articles cannot be labelled.")
    ] = None,
    max_label_share_change: GateShareOption = None,
    max_new_share_change: GateNewShareOption = None,
    max_flips: GateFlipsOption = None,
    min_articles: GateArticlesOption = None,
    max_metric_drop: GateMetricOption = None,
    json_out: JsonOption = None,
) -> None:
    """Make the published table what the store has for a bundle, without computing anything."""
    from mtop_batch.engine.labelling.gate import gate_rules
    from mtop_batch.engine.publish import publish_table
    from mtop_batch.table.lake.target import lake_target

    place = json_place(json_out)
    rules = gate_rules(
        config,
        max_error_fraction=max_error_fraction,
        max_label_share_change=max_label_share_change,
        max_new_share_change=max_new_share_change,
        max_flips=max_flips,
        min_articles=min_articles,
        max_metric_drop=max_metric_drop,
    )
    target = lake_target(format, labels, lake, catalog, table)
    done = publish_table(labels, model, comma_separated(tasks, "--tasks"), lake=target, rules=rules, force=force)
    write_json(place, done)
    if done["gate"]["reasons"]:
        typer.echo(f"the gate is {'opened by ' + done['gate']['opened_by'] if done['gate']['open'] else 'closed'}:")
        typer.echo("\n".join(f"  {reason['text']}" for reason in done["gate"]["reasons"]))
    _exit_if_closed(done)
    typer.echo(
        f"published {counted(done['files'], 'file')}, {counted(done['rows'], 'article')}, for bundle {done['bundle']}; "
        f"already current: {counted(done['files_already_current'], 'file')}"
    )
    if done["lake"]:
        typer.echo(done["lake"]["summary"])
    if done["incomplete_files"]:
        typer.echo(
            f"no labels of these tasks in the store, left as they are: {counted(len(done['incomplete_files']), 'file')}"
        )


def compare(
    model: Annotated[str, typer.Option("--model", help="Bundle whose labels are compared with.")],
    other: Annotated[str, typer.Option("--with", help="Bundle that would take its place.")],
    corpus: Annotated[str, typer.Option(help="Parquet files anywhere below this directory or prefix.")],
    sample: Annotated[int, typer.Option(min=1, help="Articles to label with both.")] = 5000,
    tasks: Annotated[str | None, typer.Option(help="Only these tasks.", metavar="a,b")] = None,
    partition: Annotated[
        list[str] | None,
        typer.Option(help="Only source files of this hive partition; may be repeated.", metavar="key=value"),
    ] = None,
    allow_empty: AllowEmptyOption = False,
    id_column: Annotated[str, typer.Option(help="Column that identifies an article.")] = "id",
    text_columns: Annotated[
        str | None,
        typer.Option(help="One text column, or two for a pair, for all tasks. Default: those of their training."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides which articles.")] = 0,
    precision: PrecisionOption = "auto",
    config: GateConfigOption = None,
    flips: Annotated[
        str | None, typer.Option(help="Also write the articles whose labels differ here.", metavar="OUT.parquet")
    ] = None,
    html_out: Annotated[
        str | None, typer.Option("--html", help="Also write the result as a page.", metavar="OUT")
    ] = None,
    json_out: JsonOption = None,
) -> None:
    """Compare two bundles on a sample of a corpus: agreement, label shares, metrics, and what the gate would say."""
    place, flips_place, page = (
        file_place(typed, option) for typed, option in ((json_out, "--json"), (flips, "--flips"), (html_out, "--html"))
    )
    from mtop_batch.cli.tables import print_comparison
    from mtop_batch.engine.compare import CompareOptions, compare_bundles
    from mtop_batch.engine.labelling.gate import gate_rules

    options = CompareOptions(
        model=model,
        other=other,
        corpus=corpus,
        sample=sample,
        tasks=tuple(comma_separated(tasks, "--tasks")),
        partitions=tuple(partition or ()),
        allow_empty=allow_empty,
        id_column=id_column,
        text_columns=tuple(comma_separated(text_columns, "--text-columns")),
        seed=seed,
        precision=precision,
        rules=gate_rules(config),
    )
    comparison = compare_bundles(options, flips_uri=flips_place)
    print_comparison(comparison)
    if page is not None:
        from mtop_batch.labelling.report.page import comparison_page
        from mtop_batch.storage import write_bytes

        write_bytes(page, comparison_page(comparison).encode())
    write_json(place, comparison)


def review(
    labels: Annotated[str, typer.Option(help="The label table.")],
    task: Annotated[str, typer.Option(help="The task whose labels are wanted.")],
    output: Annotated[str, typer.Option(help="Parquet, or CSV where it ends in .csv.", metavar="OUT")],
    n: Annotated[int, typer.Option("--n", min=1, help="How many articles.")] = 200,
    strategy: Annotated[
        str,
        typer.Option(
            help="uncertain: the least probable labels. disagree: another task or bundle says otherwise. random. "
            "diverse: spread over the stored vectors.",
            metavar="uncertain|disagree|random|diverse",
        ),
    ] = "uncertain",
    against: Annotated[
        str | None, typer.Option(help="For disagree: another task. Default: the task's labels by other bundles.")
    ] = None,
    corpus: Annotated[
        str | None, typer.Option(help="Where the articles lie. Default: where the newest run found them.")
    ] = None,
    partition: Annotated[
        list[str] | None, typer.Option(help="Only this hive partition; may be repeated.", metavar="key=value")
    ] = None,
    label_column: Annotated[str, typer.Option(help="Name of the column to fill in.")] = "label",
    seed: Annotated[int, typer.Option(min=0, help="Of what is random.")] = 0,
    json_out: JsonOption = None,
) -> None:
    """Write articles that are worth labelling by hand next, with an empty column to fill in."""
    from mtop_batch.corpus.paths import parse_partitions

    place = json_place(json_out)
    found = api.review(
        labels,
        task,
        output,
        num_articles=n,
        strategy=strategy,
        against=against,
        corpus=corpus,
        partition=parse_partitions(partition or ()),
        label_column=label_column,
        seed=seed,
    )
    typer.echo(f"wrote {counted(found['articles'], 'article')} of {found['articles_read']:,} to {output}")
    for file in found["unreadable_files"]:
        typer.echo(f"  left out: {shown(file['path'])}: {shown(file['reason'])}", err=True)
    write_json(place, found)
    if found["unreadable_files"]:
        raise typer.Exit(UNREADABLE_FILES_EXIT_CODE)


def vacuum(
    labels: Annotated[str, typer.Option(help="The label table.")],
    plan: Annotated[bool, typer.Option("--plan", help="Say what would be removed, and do nothing.")] = False,
    keep_runs: Annotated[int, typer.Option(min=1, help="Keep what the last runs wanted, so many of them.")] = 10,
    force: Annotated[bool, typer.Option("--force", help="Remove also most of the store.")] = False,
) -> None:
    """Remove stored labels that nothing published needs and no recent run wanted."""
    from mtop_batch.engine.publish import vacuum_table

    typer.echo(vacuum_table(labels, plan_only=plan, force=force, keep_runs=keep_runs))


def predict(
    model: ModelOption,
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; without any, the lines of standard input.")] = None,
    second: Annotated[
        list[str] | None,
        typer.Option(
            help="The second text, for tasks on pairs: once for each text. A tab between the two does as well."
        ),
    ] = None,
    tasks: Annotated[str | None, typer.Option(help="Only these tasks.", metavar="a,b")] = None,
    inputs: Annotated[
        str | None,
        typer.Option(
            help="What stands beside the texts, a row for each, of a model that reads vectors.", metavar="F.parquet"
        ),
    ] = None,
    precision: PrecisionOption = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per text instead of a table.")] = False,
) -> None:
    """Show all labels of a few texts."""
    from mtop_batch.cli import predict as prediction

    if second and not texts:
        raise ConfigError("--second goes with texts that are arguments; on standard input put a tab between the two")
    lines = sys.stdin.buffer if sys.stdin else ()  # it may be closed
    given = prediction.of_arguments(texts, second or ()) if texts else list(prediction.read_lines(lines))
    if not given:
        raise ConfigError("there is no text: give texts as arguments, or lines on standard input")
    wanted = comma_separated(tasks, "--tasks")
    rows = prediction.predict(model, given, precision, lambda text: typer.echo(text, err=True), wanted, inputs)
    if as_json:
        for row in rows:
            typer.echo(to_json(row))
    else:
        from mtop_batch.cli.tables import print_predictions

        print_predictions(rows)


def _exit_if_closed(report: Mapping[str, Any]) -> None:
    """End with exit code 4 if the gate kept labels back."""
    if report.get("gate") and not report["gate"]["open"]:
        typer.echo(
            "nothing was published; readers see what they saw before. `mtop publish --force` publishes what is in the "
            "store all the same",
            err=True,
        )
        raise typer.Exit(GATE_CLOSED_EXIT_CODE)
