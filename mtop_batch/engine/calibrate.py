"""Decisions of tasks, fitted on development data: at the end of a training, and for a bundle that is there.

`mtop calibrate` writes the same model with other decisions: fingerprints stay, so labels of it are computed from stored
scores wherever these are enough.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, replace
from typing import Any

from mtop_batch.config.sections import Config
from mtop_batch.data.examples import load_examples, tokenise_examples
from mtop_batch.data.tokens import KEPT_TEXTS, TextTokenizer
from mtop_batch.engine.definitions import task_definition
from mtop_batch.engine.monitoring.progress import Progress
from mtop_batch.engine.outputs import changed_config, check_apart, check_output, is_finished
from mtop_batch.engine.training.fit_decisions import Examples, check_rules, fit_on, set_decisions
from mtop_batch.lines import counted
from mtop_batch.model.bundle.bundle import Bundle, load_bundle, save_bundle
from mtop_batch.model.bundle.files import read_bundle_info, read_decisions
from mtop_batch.tasks import select_tasks
from mtop_batch.training.calibration.fit_decisions import check_fitted, decision_reports, with_decision_metrics

_PHASE = "calibrate"
_KEYS = ("decide", "abstain_below", "scores", "eval")
"""What of a task's configuration comes from the calibration, once there has been one."""


@dataclass(frozen=True)
class CalibrateResult:
    """A bundle with decisions that were fitted.

    Args:
        output: URI of the bundle.
        tasks: What was fitted, by task, as `decisions.json` of the bundle has it.
        changed: The tasks whose decision hash is another one than before: their labels are to be decided anew.
        stored: The tasks of which the label table is to keep other scores than before.
        rules: What holds between its tasks.
        seconds: Of the whole command.
        was_there: The bundle is that of an earlier call; nothing was done.
    """

    output: str
    tasks: dict[str, Any]
    changed: tuple[str, ...]
    stored: tuple[str, ...]
    rules: tuple[str, ...]
    seconds: float
    was_there: bool = False


def calibrate_bundle(
    model_uri: str, config: Config, output: str, *, progress: Progress, overwrite: bool = False
) -> CalibrateResult:
    """Fit the decisions of tasks of a bundle, and write the bundle with them, and with what is kept of their scores.

    Tasks that the configuration does not name stay as they are, and rules stay where it has none.

    Args:
        model_uri: The bundle; it stays as it is.
        config: Its tasks must be tasks of the bundle, and defined in the same way. Of the configuration, only the
            tasks with their evaluation data and `scores`, `rules`, and `train.precision` count.
        output: Where the new bundle goes.
        progress: Where to show how it gets on; it is entered already.
        overwrite: Replace whatever bundle `output` holds.

    Raises:
        MtopError: The bundle, the configuration or the examples cannot work, a precision or recall cannot be reached,
            `output` holds another bundle and is not to be overwritten, or storage fails; nothing is written then.
    """
    started = time.monotonic()
    check_apart(model_uri, output)
    check_output(output)
    bundle = load_bundle(model_uri)
    model = bundle.model
    before = {task.name: task.scores for task in model.tasks}
    sources = {source.name: source for source in config.task}
    names = select_tasks(list(sources), model.task_names)
    tasks = {name: task_definition(sources[name], model.task(name), model_uri) for name in names}
    check_rules(model.tasks, config)
    recorded = {task["name"]: task.get("label_by") for task in bundle.training_config.get("task", [])}
    tokenizer = TextTokenizer(bundle.tokenizer, **model.config.text_limits, keeps=KEPT_TEXTS)
    progress.phase("read and tokenise the examples", len(names), "tasks")
    examples = {}
    for name, task in tasks.items():
        source = sources[name]
        label_by = source.label_by or recorded.get(name)
        raw = load_examples(
            task, source.evaluation, source.label, training=False, label_by=label_by, inputs=model.vector_inputs
        )
        examples[name] = tokenise_examples(raw, tokenizer)
        progress.advance(1, f"{name}: {counted(len(examples[name].labels), 'example')}")
    run = _run(bundle, config, examples)
    was_there = not overwrite and is_finished(output, run)
    if not was_there:
        progress.phase(_PHASE)
        model.set_tasks(
            replace(task, scores=sources[task.name].scores) if task.name in sources else task for task in model.tasks
        )
        fitted = fit_on(model, examples, config, config.train.precision)
        check_fitted(fitted.values())
        set_decisions(model, fitted, config)
        change = {"calibrated": names, "from": bundle.uri, "from_digest": bundle.digest}
        read = {item["name"]: item for item in config.model_dump(mode="json")["task"]}
        described = [
            {**task, **{key: read[task["name"]][key] for key in _KEYS}} if task["name"] in read else task
            for task in bundle.training_config.get("task", [])
        ]
        save_bundle(
            output,
            model.to("cpu"),  # type: ignore[arg-type]  # transformers wraps it
            bundle.tokenizer,
            metrics=with_decision_metrics(bundle.metrics, fitted),
            training_config=changed_config(bundle, change, described),
            backbone_name=bundle.backbone_name,
            run=run,
            decisions={**bundle.decision_reports, **decision_reports(fitted)},
        )
    info = read_bundle_info(output)
    reports = read_decisions(output)
    return CalibrateResult(
        output=output,
        tasks={name: reports[name] for name in names if name in reports},
        changed=tuple(name for name in info.decisions if info.decisions[name] != bundle.decisions[name]),
        stored=tuple(task.name for task in info.tasks if task.scores != before[task.name]),
        rules=tuple(dict.fromkeys(rule for task in info.tasks for rule in task.decision.rules)),
        seconds=time.monotonic() - started,
        was_there=was_there,
    )


def _run(bundle: Bundle, config: Config, examples: Examples) -> str:
    """What names this very calibration."""
    values = config.model_dump(mode="json", include={"task", "rules"})
    digest = hashlib.sha256(json.dumps(["calibrate", bundle.digest, values], sort_keys=True).encode())
    for of_task in examples.values():
        digest.update(of_task.labels.tobytes())
        digest.update(of_task.tokens.values.tobytes())
        for of in of_task.vectors:
            digest.update(of.values.tobytes())
    return digest.hexdigest()[:16]
