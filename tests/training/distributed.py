"""Run a test's function in several processes that form a gloo process group."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn

from mtop_batch.training.settings import Worker


def run_distributed(func: Callable[[Worker], Any], world_size: int) -> list[Any]:
    """What `func(worker)` returned in each of `world_size` new processes.

    Args:
        func: A function of a module (processes find it by name) whose result can be pickled.
        world_size: How many processes; they find one another through a file.
    """
    with tempfile.TemporaryDirectory() as directory:
        spawn(_run, args=(func, world_size, directory), nprocs=world_size)
        return [torch.load(Path(directory) / f"{rank}.pt", weights_only=False) for rank in range(world_size)]


def _run(rank: int, func: Callable[[Worker], Any], world_size: int, directory: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=world_size)
    try:
        torch.save(func(Worker(rank, world_size)), Path(directory) / f"{rank}.pt")
    finally:
        distributed.destroy_process_group()
