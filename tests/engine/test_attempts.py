"""Work that kills its process is begun a few times and not for ever."""

from __future__ import annotations

import os
import signal

import pytest
import ray

from mtop_batch.engine.labelling.attempts import Attempts

pytestmark = pytest.mark.usefixtures("ray_local")


@ray.remote(max_retries=-1)
def kill_yourself(attempts: Attempts, work: str) -> str:
    with attempts.attempt(work) as may_begin:
        if may_begin and work == "deadly":
            os.kill(os.getpid(), signal.SIGKILL)
        return "done" if may_begin else "given up"


def test_work_that_kills_its_process_is_given_up_and_other_work_is_not() -> None:
    attempts = Attempts()
    found = [kill_yourself.remote(attempts, work) for work in ("deadly", "a", "b", "c")]
    assert ray.get(found, timeout=120) == ["given up", "done", "done", "done"]


def test_work_that_comes_to_an_end_may_be_done_again_and_again() -> None:
    attempts = Attempts()
    for _ in range(5):
        with attempts.attempt("read 1") as may_begin:
            assert may_begin
    with attempts.attempt("read 2"), attempts.attempt("read 2"), attempts.attempt("read 2") as may_begin:
        assert not may_begin
