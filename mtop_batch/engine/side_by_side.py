"""Small pieces of work side by side on Ray, each in a process of its own: a run, a training, a measurement."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from mtop_batch.engine.session import Resources
from mtop_batch.engine.training import single_tasks
from mtop_batch.errors import JobError, MtopError, one_line

T = TypeVar("T")
R = TypeVar("R")


def side_by_side(
    function: Callable[..., R],
    pieces: Sequence[T],
    shared: object,
    options: Mapping[str, Any],
    *,
    name_of: Callable[[T], str],
    waiting: Callable[[], None],
) -> Iterator[tuple[T, R]]:
    """Call a function with each piece on Ray, and give every piece with its result as it comes.

    What is under way is ended if one fails, or if the caller asks for no more.

    Args:
        function: Called as `function(piece, shared)`.
        pieces: What is to be done.
        shared: The same for all; Ray carries it.
        options: What Ray gives to each.
        name_of: What messages call a piece.
        waiting: Called now and then.

    Raises:
        MtopError: As the function, or (`JobError`) a worker was lost too often.
    """
    task: Any = ray.remote(function).options(**options)
    running = {task.remote(piece, shared): piece for piece in pieces}
    try:
        while running:
            finished, _ = ray.wait(list(running), timeout=single_tasks.POLL_S)
            waiting()
            for ref in finished:
                piece = running.pop(ref)
                yield piece, result_of(ref, name_of(piece), options["max_retries"])
    finally:
        for ref in running:
            ray.cancel(ref, force=True)


def result_of(ref: ray.ObjectRef[R], name: str, max_failures: int) -> R:
    """What a piece of work came to.

    Raises:
        MtopError: As its function, or (`JobError`) its worker was lost too often.
    """
    try:
        return ray.get(ref)
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, MtopError) else error from error
    except RayError as error:
        raise JobError(
            f"the run of {name} was lost more than {max_failures} times, at last with {one_line(error)}; the same "
            "command goes on with what is missing"
        ) from error


def processes_per_node(num_pieces: int, resources: Resources) -> int:
    """How many pieces share a node."""
    return max(1, min(math.ceil(num_pieces / resources.num_nodes), resources.num_cpus // resources.num_nodes))
