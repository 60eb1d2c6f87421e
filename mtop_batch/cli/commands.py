"""The `mtop` command.

Each command checks its arguments, calls one function of the package, and turns the outcome into an exit code:
0 done, 2 bad arguments, configuration or schema, 3 done but for unreadable source files, 1 any other failure.
Heavy imports wait until a command runs, so that `mtop --help` answers at once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer

from mtop_batch.errors import ConfigError, MtopError
from mtop_batch.precision import PrecisionChoice

UNREADABLE_FILES_EXIT_CODE = 3

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


@app.command()
def train(config: ConfigOption, set_: SetOption = None, json_out: JsonOption = None) -> None:
    """Train one model on all tasks of a configuration and write its bundle to the configuration's `output`."""
    from mtop_batch.config.load import load_config

    resolved = load_config(config, set_ or ())  # first: importing torch and Ray takes seconds
    from mtop_batch.cli.tables import print_metrics
    from mtop_batch.engine.progress import Progress
    from mtop_batch.engine.train import train as run_training

    with Progress() as progress:
        result = run_training(resolved, progress=progress)
    print_metrics(result.metrics, resolved.tasks())
    typer.echo(
        f"wrote {result.output}: the weights of step {result.best_step:,} of {result.num_steps:,}, "
        f"{result.examples_per_s:,.0f} examples/s, {result.seconds:,.0f} s in all"
    )
    _write_json(json_out, asdict(result))


@app.command(name="add-tasks")
def add_tasks(
    model: ModelOption,
    config: ConfigOption,
    output: Annotated[str, typer.Option(help="Where the new bundle goes; --model stays as it is.")],
    set_: SetOption = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Train a task that the bundle has again, in its place.")
    ] = False,
    json_out: JsonOption = None,
) -> None:
    """Learn new tasks on a trained bundle; outputs and labels of the tasks it has stay as they are."""
    from mtop_batch.cli.tables import print_metrics
    from mtop_batch.engine.add_tasks import add_tasks as add
    from mtop_batch.engine.progress import Progress

    with Progress() as progress:
        result = add(model, config, output, progress=progress, overrides=set_ or (), replace=replace)
    print_metrics(result.added, result.added_tasks)
    typer.echo(
        f"wrote {result.output}: tasks added: {len(result.added)}, unchanged: {len(result.unchanged)}; "
        f"{result.seconds:,.0f} s"
    )
    _write_json(json_out, asdict(result))


@app.command(name="drop-tasks")
def drop_tasks(
    model: ModelOption,
    tasks: Annotated[str, typer.Option(help="The tasks to leave out.", metavar="a,b")],
    output: Annotated[str, typer.Option(help="Where the new bundle goes; --model stays as it is.")],
    json_out: JsonOption = None,
) -> None:
    """Write a bundle without some isolated tasks; the other tasks and all labels stay as they are."""
    from mtop_batch.engine.add_tasks import drop_tasks as drop

    result = drop(model, _comma_separated(tasks, "--tasks"), output)
    typer.echo(f"wrote {result.output}: {len(result.tasks)} tasks: {', '.join(result.tasks)}")
    _write_json(json_out, asdict(result))


@app.command()
def evaluate(model: ModelOption, config: ConfigOption, set_: SetOption = None, json_out: JsonOption = None) -> None:
    """Measure every task of a bundle on the evaluation data that a configuration names."""
    from mtop_batch.config.load import load_config

    resolved = load_config(config, set_ or ())  # first: importing torch takes seconds
    from mtop_batch.cli.tables import print_metrics
    from mtop_batch.engine.evaluate import evaluate_bundle

    metrics = evaluate_bundle(model, resolved)
    print_metrics(metrics, [task for task in resolved.tasks() if task.name in metrics])
    _write_json(json_out, metrics)


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
    plan: Annotated[bool, typer.Option("--plan", help="Say what would be done, and do nothing.")] = False,
    id_column: Annotated[str, typer.Option(help="Column that identifies an article.")] = "id",
    text_columns: Annotated[
        str | None, typer.Option(help="One text column, or two for a pair. Default: title,body as far as there.")
    ] = None,
    unit_rows: Annotated[int, typer.Option(min=1, help="Most rows that go through the model together.")] = (20_000),
    num_actors: Annotated[
        int | None, typer.Option(min=1, help="Labelling actors. Default: one per GPU, else one per spare CPU.")
    ] = None,
    max_error_fraction: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Fail as soon as more of the rows than this cannot be labelled.")
    ] = 1.0,
    prune: Annotated[bool, typer.Option("--prune", help="Remove labels whose source file is gone.")] = False,
    publish: Annotated[
        bool, typer.Option("--publish/--no-publish", help="Show readers what was computed, or leave it in the store.")
    ] = True,
    retry_timeout: Annotated[
        float, typer.Option(min=0.0, help="Fail when storage has not answered for this many seconds.")
    ] = 120.0,
    vectors: Annotated[bool, typer.Option("--vectors", help="Store a document vector of each article too.")] = False,
    precision: Annotated[
        PrecisionChoice,
        typer.Option(help="Of the model. auto: bf16 where the hardware computes in it, fp32 elsewhere."),
    ] = "auto",
    json_out: JsonOption = None,
) -> None:
    """Make every wanted cell of a corpus current: only what is missing or stale is computed."""
    from mtop_batch.engine.label import LabelOptions, label_corpus

    options = LabelOptions(
        model=model,
        corpus=corpus,
        labels=labels,
        tasks=tuple(_comma_separated(tasks, "--tasks")),
        partitions=tuple(partition or ()),
        id_column=id_column,
        text_columns=tuple(_comma_separated(text_columns, "--text-columns")),
        unit_rows=unit_rows,
        num_actors=num_actors,
        max_error_fraction=max_error_fraction,
        prune=prune,
        publish=publish,
        retry_timeout_s=retry_timeout,
        vectors=vectors,
        precision=precision,
    )
    report = label_corpus(options, plan_only=plan)
    _write_json(json_out, report)
    if report["unreadable_files"]:
        raise typer.Exit(UNREADABLE_FILES_EXIT_CODE)


@app.command()
def labels(
    labels: Annotated[str, typer.Option(help="The label table.")],
    tasks: Annotated[str | None, typer.Option(help="Only these tasks.", metavar="a,b")] = None,
    partition: Annotated[
        list[str] | None, typer.Option(help="Only this hive partition; may be repeated.", metavar="key=value")
    ] = None,
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

    wanted = _comma_separated(tasks, "--tasks") or None
    stats = table_stats(labels, wanted, parse_partitions(partition or ()))
    from mtop_batch.cli.tables import print_stats

    print_stats(stats)
    _write_json(json_out, stats.to_dict())


@app.command()
def publish(
    labels: Annotated[str, typer.Option(help="The label table.")],
    model: Annotated[
        str | None, typer.Option(help="The bundle whose labels to publish, also an older one. Default: the last run's.")
    ] = None,
    tasks: Annotated[str | None, typer.Option(help="Only these tasks.", metavar="a,b")] = None,
    json_out: JsonOption = None,
) -> None:
    """Make the published table what the store has for a bundle, without computing anything."""
    from mtop_batch.engine.publish import publish_table

    done = publish_table(labels, model, _comma_separated(tasks, "--tasks"))
    typer.echo(
        f"published {done['files']:,} files, {done['rows']:,} articles, for bundle {done['bundle']}; "
        f"{done['files_already_current']:,} files were current"
    )
    if done["incomplete_files"]:
        typer.echo(f"{len(done['incomplete_files']):,} files have no labels of these tasks in the store and stay")
    _write_json(json_out, done)


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
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per text instead of a table.")] = False,
) -> None:
    """Show all labels of a few texts."""
    from mtop_batch.labelling.run.predictor import Predictor

    given = texts or [line.rstrip("\n") for line in sys.stdin]
    if not given:
        raise ConfigError("there is no text: give texts as arguments, or lines on standard input")
    table = Predictor.load(model).predict(given)
    rows = [{"text": text, **row} for text, row in zip(given, table.to_pylist(), strict=True)]
    if as_json:
        for row in rows:
            typer.echo(json.dumps(row, ensure_ascii=False))
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
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Make the paper's eight-task news set (NHC) from the News Category Dataset."""
    from mtop_batch.data.nhc import build_nhc as build

    extras: dict[str, str] = {}
    for item in extra or ():
        name, separator, path = item.partition("=")
        if not separator or not name or not path:
            raise ConfigError(f"--extra {item!r} is not of the form NAME=LABELLED.parquet")
        extras[name] = path
    counts = build(source, output, extras, seed=seed)
    for task, count in counts.items():
        typer.echo(f"{task:20} {count.train:6,} train {count.eval:6,} eval")
    typer.echo(f"wrote {output}/tasks.toml")


def _comma_separated(value: str | None, option: str) -> list[str]:
    if value is None:
        return []
    names = [name.strip() for name in value.split(",")]
    if not all(names):
        raise ConfigError(f"{option} {value!r} has an empty name; write names with commas between, such as a,b")
    return names


def _write_json(uri: str | None, value: Any) -> None:
    if uri is not None:
        from mtop_batch.storage import write_bytes

        # A file name that is not UTF-8 becomes an escape that JSON has for it.
        write_bytes(uri, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode(errors="backslashreplace"))


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
    try:
        _quiet_libraries()
        app(args=arguments, prog_name="mtop")
    except MtopError as error:
        if os.environ.get("MTOP_TRACEBACK"):
            raise
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except _Stopped:
        typer.echo("stopped; the same command goes on where it stopped", err=True)
        sys.exit(1)
