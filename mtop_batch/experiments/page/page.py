"""The page of results, written from the records alone: the same records give the same page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import mean, median

from mtop_batch.data.sets.glue import GLUE_TASKS as GLUE_RECIPES
from mtop_batch.experiments.methods.method import COMMON, Method
from mtop_batch.experiments.methods.tables import METHODS, OURS, OURS_TAUGHT, TABLE_DATA, TABLE_METHODS, TableName
from mtop_batch.experiments.page import paper
from mtop_batch.experiments.page.family_tables import FAMILY_NAMES, notes_on_families, quality_of_families
from mtop_batch.experiments.page.many_tables import costs_beside_one, fewer_tasks, notes_of_many, quality_of_many
from mtop_batch.experiments.page.markdown import EMPTY, bold, judged_by, markdown, spread_text
from mtop_batch.experiments.page.statistics import Difference
from mtop_batch.experiments.page.summary import Comparison, ResultTable, Setting, tables
from mtop_batch.experiments.runs.records import Records, RunRecord

_TITLES: Mapping[TableName, str] = {
    "news": "News (the paper's Table 1)",
    "glue": "GLUE (the paper's Table 2)",
    "ablations": "Ablations (the paper's Table 3)",
    "prompt-lengths": "Lengths of prompts (the paper's Figure 2), and layers that have some",
    "auxiliary": "Auxiliary tasks (GradTS and AUTOSEM)",
    "families": "Entities beside texts (task-primary LoRA)",
    "many": "A hundred tasks: how steps take them (large-scale multi-task learning, Table 1)",
    "many-alpha": "A hundred tasks: where alpha ends (large-scale multi-task learning, Table 1)",
    "many-reads": "A hundred tasks: what each reads (large-scale multi-task learning, Table 2)",
    "many-numbers": "A hundred tasks and more (large-scale multi-task learning, Table 3 and Figure 7)",
    "many-transfer": "A very large task after many (large-scale multi-task learning, Table 4)",
    "many-fewer": "From ten tasks to a hundred (large-scale multi-task learning, Table 6)",
}
_PAPER: Mapping[TableName, Mapping[str, Mapping[str, str]]] = {
    "news": paper.TABLE_1,
    "glue": paper.TABLE_2,
    "ablations": paper.TABLE_3,
    "prompt-lengths": {},
    "auxiliary": {},
    "families": {},
    "many": paper.MANY,
    "many-alpha": paper.MANY_ALPHA,
    "many-reads": paper.MANY_READS,
    "many-numbers": paper.MANY_NUMBERS,
    "many-transfer": paper.MANY_TRANSFER,
    "many-fewer": paper.MANY_FEWER,
}
_HEAD = """# Results

Every method of the paper on one bench: the same encoder, the same labelled examples, as many steps. `mtop reproduce`
writes this page from the JSON files in `{results}/`, one for each run.

```sh
mtop build-nhc --source News_Category_Dataset_v3.json --extra opinion=opinion.parquet   # data/nhc
mtop build-glue --source glue                                                           # data/glue
mtop build-families --entities conll2003=ner/conll2003 --texts data/nhc/tasks.toml      # data/families
mtop reproduce news --examples 1000
```

Runs that have their file are not done again, and a run that was stopped goes on from its checkpoint. `--source` of
`build-nhc` is the [News Category Dataset](https://www.kaggle.com/datasets/rmisra/news-category-dataset) as JSON lines,
or as Parquet with `category` and `headline`. The paper's eighth task, opinion, is not public: `--extra NAME=PATH` takes
any labelled Parquet (`PATH?positive=A,B` makes two labels of many). `--source` of `build-glue` has
`<task>/train.parquet` and `<task>/dev.parquet`. `--entities NAME=DIR` of `build-families` has `train.parquet`,
`dev.parquet` and `test.parquet` with lists of words, `tokens`, and of their tags, `tags`.

How to read it:

* A cell is the median over seeds on **test** examples, in per cent, with the lowest and highest seed in brackets. No
  training looks at them. The weights are those with the best mean on evaluation examples.
* *To MTOP* is the mean difference to MTOP, paired by seed and by test example, with its 95 % interval: a bootstrap over
  seeds and examples. An interval with zero in it shows no difference. *To* other methods is the same.
* *Win / tie / loss* counts the tasks whose own interval is clear of zero, or not.
* The paper's rows are its authors' numbers, with a larger encoder and other examples.
"""
_RECIPE = """
All methods: `{common}`. Beside that: {own}.

What else was tried on the recipe, and what did not pay, is told with numbers in
[the benchmarks](../benchmarks/README.md#what-was-tried-on-the-recipe).
"""


def results_page(records: Records, results: str, images: Mapping[str, str]) -> str:
    """The page in Markdown.

    Args:
        records: All that is known.
        results: The directory of the records, as the page calls it.
        images: Title -> path of each plot, relative to the page.
    """
    parts = [_HEAD.format(results=results)]
    found = tables(records)
    if not found:
        parts.append("\nNothing has been run yet.\n")
    for number, table in enumerate(found):
        first = number == 0 or found[number - 1].name != table.name
        parts.append(f"\n## {_TITLES[table.name]}\n" if first else "")
        if table.name != "many-fewer":
            parts.append(_section(table))
        elif first:
            parts.append(_fewer([other for other in found if other.name == table.name]))
    if found:
        parts.append(_recipes())
    if images:
        parts.append("\n## Plots\n" + "".join(f"\n![{title}]({path})\n" for title, path in images.items()))
    return "".join(parts)


def _section(table: ResultTable) -> str:
    return "".join(
        [
            _heading(table.setting, len(table.tasks)),
            "\n" + _quality(table),
            *_notes(table),
            *("\n" + _against(table, other) for other in table.compared_with),
            "\n" + (_selection_costs(table) if table.name == "auxiliary" else _costs(table)),
            "\n" + _made_on([run for row in table.rows for run in row.runs.values()]),
        ]
    )


def _fewer(tables_: Sequence[ResultTable]) -> str:
    """A table for each setting, with a line for each number of tasks."""
    parts = []
    settings = {replace(table.setting, data_digest="") for table in tables_}
    for setting in sorted(settings, key=repr):
        same = [table for table in tables_ if replace(table.setting, data_digest="") == setting]
        runs = [run for table in same for row in table.rows for run in row.runs.values()]
        parts += [_heading(setting, 0), "\n" + fewer_tasks(same, paper.MANY_FEWER), "\n" + _made_on(runs)]
    return "".join(parts)


def _heading(setting: Setting, num_tasks: int) -> str:
    changes = json.loads(setting.changes)
    judged = f", judged on {num_tasks:,} of {setting.num_among:,} tasks" if setting.among else ""
    changed = "; " + ", ".join(f"`{key} = {json.dumps(value)}`" for key, value in changes.items()) if changes else ""
    return f"\n### {setting.data}: {setting.examples_named}, `{setting.backbone}`{judged}{changed}\n"


def _quality(table: ResultTable) -> str:
    if table.is_of_many:
        return quality_of_many(table, _PAPER[table.name])
    if table.name == "families":
        return quality_of_families(table)
    columns = paper.NEWS_TASKS if table.setting.data == "news" else paper.GLUE_TASKS
    names = [task.name for task in table.tasks]
    head = ["method", "seeds", *map(judged_by, table.tasks), "mean"]
    rows = []
    for row in table.rows:
        cells = [spread_text(row.tasks.get(name)) for name in names]
        rows.append([row.title, str(len(row.runs)), *cells, bold(spread_text(row.mean))])
        published = _PAPER[table.name].get(row.method)
        if published and table.setting.data == TABLE_DATA[table.name]:
            theirs = [published.get(columns.get(name, ""), EMPTY) for name in names]
            rows.append(["*in the paper*", "", *theirs, published["Avg"]])
    return markdown(head, rows)


def _notes(table: ResultTable) -> list[str]:
    """Which rows are missing, and why cells are empty, or not what their name may suggest."""
    notes = [f"Not run with these settings: {'; '.join(table.not_run)}."] if table.not_run else []
    if table.is_of_many:
        notes += notes_of_many(table, _PAPER[table.name])
    elif table.name == "families":
        notes += notes_on_families(table)
    elif table.name == "auxiliary":
        notes.append(
            "A row whose title names a way to choose has a model for each task, trained with the tasks that were "
            "chosen to help it; *Single task* and *MTOP, each task alone* are such models without others; *MT-DNN* and "
            "*MTOP* are one model of all tasks."
        )
    elif table.setting.data != TABLE_DATA[table.name]:
        notes.append("The paper has this table on GLUE only.")
    if table.setting.data == "glue":
        names = {task.name for task in table.tasks}
        if _PAPER[table.name]:
            covered = {paper.GLUE_TASKS[name] for name in names if name in paper.GLUE_TASKS}
            missing = sorted(set(paper.GLUE_TASKS.values()) - covered)
            notes += [f"{column}: not in the data, so the paper's mean covers more tasks." for column in missing]
        notes += [
            f"`{name}` stands in for {recipe.paper}: {recipe.note}."
            for name, recipe in GLUE_RECIPES.items()
            if name in names and recipe.note
        ]
        notes.append("The test labels of GLUE are not public: its development sets are the test examples here.")
    if min(len(row.runs) for row in table.rows) < 5:
        notes.append("Rows with fewer than five seeds support no claim.")
    return ["\n", *(f"* {note}\n" for note in notes)] if notes else []


def _against(table: ResultTable, other: str) -> str:
    """How much better the methods are than another; beside the first of these, what they are on evaluation examples."""
    title = METHODS[other].title
    on_evaluation = other == table.compared_with[0]
    families = FAMILY_NAMES if table.name == "families" else ()
    columns = [column for family in families for column in (f"{family}, points", "95 % interval")]
    head = ["method", f"to {title}, points", "95 % interval", *columns, "seeds", "win / tie / loss"]
    head += ["on evaluation examples"] if on_evaluation else []
    rows = []
    for row in table.rows:
        compared = row.comparisons.get(other)
        empty = [""] * (1 + len(columns))
        if row.method == other:
            cells = ["", *empty, str(len(row.runs)), ""]
        elif compared is None:
            cells = [f"{EMPTY} ({title} has no run with these seeds)", *empty, "", ""]
        else:
            own = [row.families[family].difference for family in families if family in row.families]
            both = [part for part in (compared.difference, *own) if part is not None]
            cells = [text for part in both for text in (_points(part.mean), _interval(part))]
            cells += [str(compared.difference.seeds), _outcomes(compared)]
        rows.append([row.title, *cells, *([spread_text(row.dev_mean)] if on_evaluation else [])])
    return markdown(head, rows)


def _outcomes(compared: Comparison) -> str:
    counts = [sum(part.outcome == kind for part in compared.by_task.values()) for kind in ("win", "tie", "loss")]
    return " / ".join(map(str, counts))


def _costs(table: ResultTable) -> str:
    head = ["method", "forward passes", "documents/s", "parameters of a task", "all parameters", "training, s"]
    rows = []
    for row in table.rows:
        runs = list(row.runs.values())
        run = runs[0]
        documents_per_s = f"{row.speed.documents_per_s:,.0f}" if row.speed else f"{EMPTY} (not measured)"
        seconds = median(sum(value for key, value in run.seconds.items() if key != "test") for run in runs)
        rows.append(
            [
                row.title,
                f"{run.passes:.3g}",
                documents_per_s,
                f"{run.parameters['per_task']:,.0f}",
                f"{run.parameters['total']:,.0f}",
                f"{seconds:,.0f}",
            ]
        )
    measured = [row.speed for row in table.rows if row.speed is not None]
    speeds = {(speed.machine["gpu"] or speed.machine["cpu"], speed.precision) for speed in measured}
    notes = [f"\nDocuments/s, all labels of each: {machine}, {precision}.\n" for machine, precision in sorted(speeds)]
    beside = costs_beside_one(table) if table.name == "many-reads" else ""
    return markdown(head, rows) + "".join(notes) + beside


def _selection_costs(table: ResultTable) -> str:
    """What choosing and training takes, and how many tasks were chosen: medians over the seeds."""
    head = ["method", "auxiliary tasks of a task", "steps of choosing", "s", "steps of training", "s"]
    rows = []
    for row in table.rows:
        runs = list(row.runs.values())
        chosen = [mean(len(names) for names in run.chosen.values()) for run in runs if run.chosen]
        training = [sum(run.seconds.get(key, 0.0) for key in ("warm_start", "train")) for run in runs]
        rows.append(
            [
                row.title,
                f"{median(chosen):.1f}" if chosen else EMPTY,
                f"{median(run.selection_steps for run in runs):,.0f}",
                f"{median(run.seconds.get('selection', 0.0) for run in runs):,.0f}",
                f"{median(run.num_steps for run in runs):,.0f}",
                f"{median(training):,.0f}",
            ]
        )
    note = (
        "\nAll tasks together. Choosing counts every training that it takes, also where its record was there. Steps of "
        "warm starts are not counted, their time is.\n"
    )
    return markdown(head, rows) + note


def _made_on(runs: Sequence[RunRecord]) -> str:
    """Where and when the runs of a table were made, and how long they took together."""
    machines: dict[str, list[RunRecord]] = {}
    for run in runs:
        where = f"{run.machine['gpu'] or run.machine['cpu']}, {run.machine['precision']}, torch {run.versions['torch']}"
        machines.setdefault(where, []).append(run)
    lines = []
    for where, made in sorted(machines.items()):
        hours = sum(sum(run.seconds.values()) for run in made) / 3600
        dates = sorted({run.finished[:10] for run in made})
        when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
        lines.append(f"{len(made)} runs, {hours:,.1f} hours one after the other, on {where}, {when}.\n")
    return "".join(lines)


def _recipes() -> str:
    own = "; ".join(
        f"{chosen.title} `{json.dumps({**chosen.model, **chosen.train, **_soft_labels(chosen)})}`"
        for name, chosen in METHODS.items()
        if chosen.auxiliary is None
        and chosen.judged is None
        and name not in TABLE_METHODS["families"]
        and (not name.startswith("mtop-") or name in ("mtop-isolated", "mtop-taught", "mtop-cls", OURS, OURS_TAUGHT))
    )
    return "\n## Recipes\n" + _RECIPE.format(common=json.dumps(COMMON), own=own)


def _soft_labels(chosen: Method) -> dict[str, object]:
    return {} if chosen.unlabelled is None else {"unlabelled": dict(chosen.unlabelled)}


def _points(value: float) -> str:
    return f"{100 * value:+.2f}"


def _interval(difference: Difference) -> str:
    return f"{_points(difference.low)} to {_points(difference.high)}"
