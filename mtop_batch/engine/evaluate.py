"""`mtop evaluate`: the metrics of a bundle on the evaluation data that a configuration names."""

from __future__ import annotations

from collections.abc import Sequence

from mtop_batch.config.sections import Config
from mtop_batch.data.examples import load_examples, tokenise_examples
from mtop_batch.data.tokens import TextTokenizer
from mtop_batch.engine.workers import single_worker
from mtop_batch.errors import TaskError
from mtop_batch.model.bundle.bundle import load_bundle
from mtop_batch.tasks import Task, select_tasks
from mtop_batch.training.checkpoint import TaskMetrics
from mtop_batch.training.evaluation import evaluate_task


def evaluate_bundle(model_uri: str, config: Config) -> dict[str, TaskMetrics]:
    """The metrics of every task of the bundle that the configuration has, in one process, on a GPU if there is one.

    Texts are cut where the bundle says; of the configuration, only the tasks and `train.precision` count.

    Args:
        model_uri: The bundle.
        config: Its tasks must be tasks of the bundle, and defined in the same way; the bundle may have more.

    Returns:
        Task -> metric -> value, in the bundle's order: the task's own metric, "loss", "num_examples".

    Raises:
        BundleError: There is no bundle, or it is damaged.
        TaskError: A task of the configuration is none of the bundle's, or is defined in another way.
        DataError: Evaluation data does not fit its task.
        LabelTableError: The storage cannot be reached or refuses.
    """
    bundle = load_bundle(model_uri)
    _check_tasks(config.tasks(), bundle.model.tasks, model_uri)
    worker = single_worker(config.train.precision)
    text_tokenizer = TextTokenizer(bundle.tokenizer, bundle.model.config.max_tokens)
    model = bundle.model.to(worker.device)  # type: ignore[arg-type]  # transformers wraps it
    tasks = {task.name: (task, source) for task, source in zip(config.tasks(), config.task, strict=True)}
    metrics = {}
    for name in select_tasks(list(tasks), bundle.model.task_names):
        task, source = tasks[name]
        raw = load_examples(task, source.eval, source.label, training=False)
        metrics[name] = evaluate_task(model, tokenise_examples(raw, text_tokenizer), task, worker=worker)
    return metrics


def _check_tasks(wanted: Sequence[Task], known: Sequence[Task], model_uri: str) -> None:
    """Refuse tasks that mean something else here than in the bundle; the metric may differ, it judges only."""
    by_name = {task.name: task for task in known}
    select_tasks([task.name for task in wanted], list(by_name))
    for task in wanted:
        for key in ("kind", "reads", "labels", "text"):
            ours, theirs = getattr(task, key), getattr(by_name[task.name], key)
            if ours != theirs:
                raise TaskError(
                    f"task {task.name!r}: {key} = {ours!r} in the configuration, but the bundle {model_uri} was "
                    f"trained with {theirs!r}; use the configuration it was trained with (training.json in the bundle)"
                )
