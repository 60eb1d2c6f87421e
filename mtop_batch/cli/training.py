"""Commands that make a bundle, and the one that says how good it is."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from mtop_batch import api
from mtop_batch.cli.options import (
    ConfigOption,
    JsonOption,
    ModelOption,
    OverwriteOption,
    SetOption,
    comma_separated,
    file_place,
    json_place,
    write_json,
)
from mtop_batch.lines import counted, for_people, listed


def train(
    config: ConfigOption,
    set_: SetOption = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Train although the output holds a bundle, and replace it.")
    ] = False,
    json_out: JsonOption = None,
) -> None:
    """Train one model on all tasks of a configuration and write its bundle to the configuration's `output`."""
    place = json_place(json_out)
    result = api.train(config, set_ or (), overwrite=overwrite)
    from mtop_batch.cli.tables import print_metrics
    from mtop_batch.engine.monitoring.monitor import untrained

    print_metrics(result.metrics, result.tasks, result.undefined, f"metrics.json in {result.output}")
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
    write_json(place, asdict(result))


def prefinetune(
    config: ConfigOption,
    set_: SetOption = None,
    overwrite: OverwriteOption = False,
    json_out: JsonOption = None,
) -> None:
    """Let an encoder learn from source tasks, by families if there are some, before `mtop train` starts from it."""
    place = json_place(json_out)
    result = api.prefinetune(config, set_ or (), overwrite=overwrite)
    families = f" with the LoRA of {listed(result.families)}" if result.families else ""
    if result.was_there:
        typer.echo(f"{result.output} is there already, of this configuration and these examples: nothing to do")
    else:
        typer.echo(
            f"wrote {result.output}{families}: {counted(len(result.tasks), 'task')}, {result.num_steps:,} steps, "
            f"{result.examples_per_s:,.0f} examples/s, {result.seconds:,.0f} s in all"
        )
    typer.echo(f'train from it: [backbone] name = "{result.output}"')
    write_json(place, asdict(result))


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
    place = json_place(json_out)
    result = api.add_tasks(model, config, output, set_ or (), replace=replace, overwrite=overwrite)
    from mtop_batch.cli.tables import print_metrics

    print_metrics(result.added, result.added_tasks, result.undefined, f"metrics.json in {result.output}")
    wrote = f"{result.output} is there already, with" if result.was_there else f"wrote {result.output}:"
    typer.echo(f"{wrote} tasks added: {len(result.added)}, unchanged: {len(result.unchanged)}; {result.seconds:,.0f} s")
    write_json(place, asdict(result))


def drop_tasks(
    model: ModelOption,
    tasks: Annotated[str, typer.Option(help="The tasks to leave out.", metavar="a,b")],
    output: Annotated[str, typer.Option(help="Where the new bundle goes; --model stays as it is.")],
    overwrite: OverwriteOption = False,
    json_out: JsonOption = None,
) -> None:
    """Write a bundle without some isolated tasks; the other tasks and all labels stay as they are."""
    from mtop_batch.engine.add_tasks import drop_tasks as drop

    place = json_place(json_out)
    result = drop(model, comma_separated(tasks, "--tasks"), output, overwrite=overwrite)
    wrote = f"{result.output} is there already, with" if result.was_there else f"wrote {result.output}:"
    typer.echo(f"{wrote} {counted(len(result.tasks), 'task')}: {listed(result.tasks)}")
    write_json(place, asdict(result))


def calibrate(
    model: ModelOption,
    config: ConfigOption,
    output: Annotated[str, typer.Option(help="Where the bundle with these decisions goes; --model stays as it is.")],
    set_: SetOption = None,
    overwrite: OverwriteOption = False,
    json_out: JsonOption = None,
) -> None:
    """Fit temperatures, thresholds and rules on evaluation data, without training; labels follow from stored scores."""
    place = json_place(json_out)
    result = api.calibrate(model, config, output, set_ or (), overwrite=overwrite)
    from mtop_batch.cli.tables import print_decisions

    print_decisions(result.tasks)
    for rule in result.rules:
        typer.echo(f"rule: {for_people(rule)}")
    wrote = f"{result.output} is there already, with" if result.was_there else f"wrote {result.output}:"
    if result.stored:
        typer.echo(f"the label table is to keep other scores of {listed(result.stored)}")
    changed = counted(len(result.changed), "task")
    typer.echo(f"{wrote} {changed} to be decided anew: {listed(result.changed)}; {result.seconds:,.0f} s")
    write_json(place, asdict(result))


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
    place = json_place(json_out)
    options = {"--errors": errors, "--suspects": suspects, "--report": report}
    files = {option: file_place(typed, option) for option, typed in options.items()}
    find_suspects = True if suspects is not None else None if report is not None else False
    evaluated = api.evaluate_in_detail(model, config, set_ or (), suspects=find_suspects)
    from mtop_batch.cli.tables import print_doubts, print_label_reports, print_metrics
    from mtop_batch.engine.evaluate import write_errors, write_report, write_suspects

    print_metrics(
        {name: item.metrics for name, item in evaluated.items()},
        [item.task for item in evaluated.values()],
        {name: item.report.undefined for name, item in evaluated.items()},
        "--json OUT, or --report OUT.html",
    )
    values = {name: item.metrics[str(item.task.metric)] for name, item in evaluated.items()}
    print_label_reports({name: item.report for name, item in evaluated.items()}, values)
    print_doubts(evaluated)
    if (errors_place := files["--errors"]) is not None:
        typer.echo(f"wrote {errors}: {counted(write_errors(errors_place, evaluated), 'example')}")
    if (suspects_place := files["--suspects"]) is not None:
        typer.echo(f"wrote {suspects}: {counted(write_suspects(suspects_place, evaluated), 'example')}")
    if (report_place := files["--report"]) is not None:
        write_report(report_place, model, evaluated)
        typer.echo(f"wrote {report}")
    write_json(place, {name: item.to_dict() for name, item in evaluated.items()})


def select_tasks(
    config: ConfigOption,
    primary: Annotated[str, typer.Option(help="The task that is to be helped.", metavar="T")],
    method: Annotated[
        str,
        typer.Option(
            help="threshold, trial, fine-grained (chosen examples of the tasks that trial finds) or autosem (a bandit)."
        ),
    ] = "trial",
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Least correlation of a task (threshold; default 0.47) or of an example (fine-grained; default 0.62)."
        ),
    ] = None,
    most: Annotated[
        int | None, typer.Option(min=1, help="Most auxiliary tasks that are tried together. Default: all.")
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Where to write the configuration for `mtop train`.", metavar="NEW.toml")
    ] = None,
    kept: Annotated[
        str | None,
        typer.Option(
            help="Directory of what was measured, and of the report. Default: the configuration's output + .selection.",
            metavar="DIR",
        ),
    ] = None,
    set_: SetOption = None,
    json_out: JsonOption = None,
) -> None:
    """Find the tasks of a configuration that help one of them, from the attention heads that each uses."""
    place = json_place(json_out)
    result = api.select_tasks(
        config, primary, set_ or (), method=method, threshold=threshold, most=most, output=output, kept=kept
    )
    from mtop_batch.cli.tables import print_selection
    from mtop_batch.selection.select import described

    print_selection(result.selection)
    for note in result.selection.notes:
        typer.echo(note)
    done, reused = counted(len(result.done), "training"), f"{len(result.reused):,} reused"
    typer.echo(f"{described(result.selection)}: {done} done, {reused}; {result.report}")
    if result.output:
        typer.echo(f"wrote {result.output}")
    write_json(place, result.to_dict())
