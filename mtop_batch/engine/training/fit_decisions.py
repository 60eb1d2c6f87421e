"""Decisions of a model's tasks, fitted on development data in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mtop_batch.config.sections import Config
from mtop_batch.data.labelled_tokens import LabelledTokens
from mtop_batch.decisions.rules import with_rules
from mtop_batch.errors import TaskError
from mtop_batch.model.bundle.files import read_decisions
from mtop_batch.model.kinds.base import MultiTaskModel
from mtop_batch.precision import PrecisionChoice
from mtop_batch.tasks import Task
from mtop_batch.training.calibration.fit_decisions import FittedDecision, fit_decision
from mtop_batch.training.evaluation.evaluate import task_predictions
from mtop_batch.training.settings import single_worker

Examples = Mapping[str, LabelledTokens]
"""Development examples by task."""


def fit_on(
    model: MultiTaskModel, examples: Examples, config: Config, precision: PrecisionChoice
) -> dict[str, FittedDecision]:
    """What the configuration wants decided, fitted on examples; regressions and token tasks have nothing to decide.

    Args:
        model: Moved to a GPU if there is one.
        examples: By task.
        config: It names these tasks.
        precision: Of the model.
    """
    worker = single_worker(precision)
    model = model.to(worker.device)  # type: ignore[arg-type]  # transformers wraps it
    fitted = {}
    for source in config.task:
        task = model.task(source.name)
        if not task.has_labels_of_texts:
            continue
        of_task = examples[task.name]
        found = task_predictions(model, of_task, task, worker=worker)
        wish = None if source.decide is None else source.decide.wish
        fitted[task.name] = fit_decision(task, found.probabilities, of_task.labels, wish, source.abstain_below)
    return fitted


def check_written(uri: str) -> None:
    """Refuse to take a bundle for done that does not decide as was wished; it is there all the same.

    Raises:
        TaskError: Says which precision or recall its tasks do not reach, and what they do.
    """
    problems = [of["problem"] for of in read_decisions(uri).values() if "problem" in of]
    if problems:
        raise TaskError(
            f"{'; '.join(problems)}. The bundle {uri} is written, and decides {'it' if len(problems) == 1 else 'them'} "
            "without thresholds; change `decide` and run `mtop calibrate` on it"
        )


def check_rules(tasks: Sequence[Task], config: Config) -> None:
    """Refuse rules that these tasks cannot keep, before anything is computed.

    Raises:
        TaskError: Says which rule, and why.
    """
    if config.rules is not None:
        with_rules(tasks, config.rules)


def set_decisions(model: MultiTaskModel, fitted: Mapping[str, FittedDecision], config: Config) -> None:
    """Give a model's tasks what was fitted, and the rules of the configuration, or those that its tasks have."""
    tasks = [fitted[task.name].task if task.name in fitted else task for task in model.tasks]
    rules = config.rules
    if rules is None:
        rules = tuple(dict.fromkeys(rule for task in model.tasks for rule in task.decision.rules))
    model.set_tasks(with_rules(tasks, rules))
