"""`mtop select-tasks`: which tasks of a configuration to train together with one of them.

The trainings that a selection asks for run side by side on Ray, one process each. Their records lie in
`<output>.selection` of the configuration, by digests of examples, settings and backbone: whatever has a record is not
done again, by this command for another primary task, with another method, or with a task more. A worker that is lost
is tried again and goes on from the training's checkpoint; so does the same command after its driver was killed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from mtop_batch import storage
from mtop_batch.config.model import SingleTaskModelConfig
from mtop_batch.config.sections import Config
from mtop_batch.data.tokens import TextTokenizer
from mtop_batch.engine.monitoring.progress import Progress
from mtop_batch.engine.train import load_task
from mtop_batch.engine.trainings import kept_beside, trainings
from mtop_batch.errors import ConfigError
from mtop_batch.lines import counted
from mtop_batch.model.encoder.backbone import load_backbone, load_tokenizer
from mtop_batch.model.encoder.whole import check_fit
from mtop_batch.selection.chosen_config import chosen_config, write_config, write_examples
from mtop_batch.selection.pictures import check_pictures
from mtop_batch.selection.report import write_report
from mtop_batch.selection.select import Selection, SelectOptions, check_primary, described, select
from mtop_batch.training.one_process import Encoder
from mtop_batch.training.settings import TaskData
from mtop_batch.training.start import check_encoder, check_readers


@dataclass(frozen=True)
class SelectResult:
    """What `select_tasks` found.

    Args:
        selection: What was chosen, and why.
        reused: Titles of the trainings whose records were there.
        done: Of those that were done now.
        report: The page about it.
        output: The configuration that was written; "" for none.
    """

    selection: Selection
    reused: tuple[str, ...]
    done: tuple[str, ...]
    report: str
    output: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        chosen = self.selection
        heads = chosen.heads
        return {
            "primary": chosen.primary,
            "method": chosen.method,
            "auxiliary": list(chosen.auxiliary),
            "ratio": list(chosen.ratio),
            "examples": {name: len(rows) for name, rows in chosen.rows.items()},
            "correlations": {} if heads is None else heads.with_(chosen.primary),
            "utilities": chosen.utilities,
            "tried": [vars(tried) for tried in chosen.tried],
            "notes": list(chosen.notes),
            "num_steps": chosen.num_steps,
            "seconds": round(chosen.seconds, 1),
            "reused": list(self.reused),
            "done": list(self.done),
            "report": self.report,
            "output": self.output,
        }


def select_tasks(
    config: Config,
    primary: str,
    options: SelectOptions,
    *,
    progress: Progress,
    output: str | None = None,
    kept: str | None = None,
) -> SelectResult:
    """Choose the tasks that are to train together with one of them.

    If it fails or is killed, the records of finished trainings stay, as do the checkpoints of others; the same call
    goes on.

    Args:
        config: With all tasks. What trainings together begin with is its `[model]`, how all train is its `[train]`.
        primary: The task that is to be helped.
        options: How to choose.
        progress: Where to show how it gets on; it is entered already.
        output: Where to write the configuration with the chosen tasks; None for nowhere.
        kept: Directory of the records and the report; None for `<output>.selection` of the configuration.

    Raises:
        MtopError: The configuration, the backbone or the examples cannot work, there is no such task or none beside
            it, storage fails, or (`JobError`) workers failed too often.
    """
    if isinstance(config.model, SingleTaskModelConfig):
        raise ConfigError("model.kind = 'single-task' trains no tasks together; name the kind that is to be helped")
    check_primary(primary, [task.name for task in config.task])
    check_pictures()
    check_readers(config)
    place = None if output is None else storage.file_place(output, "--output")
    known = storage.absolute(kept) if kept else kept_beside(config)
    encoder, text_tokenizer, data = _load(config, progress)
    with trainings(config, data, encoder, known, progress) as (jobs, records):
        selection = select(jobs, primary, options, records)
    report = write_report(known, selection, reused=len(records.reused), done=len(records.done))
    if output is not None and place is not None:
        examples = write_examples(config, selection, _beside(output), text_tokenizer)
        head = f"Made by `mtop select-tasks`: {described(selection)}."
        write_config(place, chosen_config(config, selection, examples), head)
    return SelectResult(selection, tuple(records.reused), tuple(records.done), report, output or "")


def _load(config: Config, progress: Progress) -> tuple[Encoder, TextTokenizer, Sequence[TaskData]]:
    """The encoder and the examples, checked."""
    progress.phase("read and tokenise the examples", len(config.task), "tasks")
    tokenizer = load_tokenizer(config.backbone.name)
    backbone = load_backbone(config.backbone.name)
    check_fit(config.backbone.name, tokenizer, backbone)
    check_encoder(config, backbone)
    text_tokenizer = TextTokenizer(tokenizer, config.backbone.max_tokens)
    data = []
    for task in config.task:
        data.append(load_task(task, task.definition(config.model.default_reader), text_tokenizer))
        progress.advance(1, f"{task.name}: {counted(len(data[-1].train.tokens), 'example')}")
    return Encoder(backbone, tokenizer), text_tokenizer, data


def _beside(output: str) -> str:
    """The directory of chosen examples, beside the configuration."""
    path = PurePosixPath(output.rpartition("/")[2])
    return output[: len(output) - len(path.name)] + f"{path.stem}-examples"
