"""Errors that another attempt would only repeat end a training; lost workers do not."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from mtop_batch.engine import train as training
from mtop_batch.engine.monitoring.progress import Progress
from mtop_batch.engine.training.failures import Failures, reason
from mtop_batch.engine.training.run_directory import RunDirectory
from mtop_batch.engine.training.single_tasks import _result
from mtop_batch.errors import JobError
from tests.engine.conftest import MakeConfig

pytestmark = pytest.mark.usefixtures("ray_local")


OUT_OF_MEMORY = """Controller error: the actor died.
2 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 192.0.2.2, ID: aee5) was \
22.37GB used / 23.54GB limit (0.950254), which exceeds the threshold.
Top 10 memory users: PID MEM(GB) COMMAND
Refer to the documentation on how to address the out of memory issue: https://docs.ray.io. Consider more."""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("Traceback (most recent call last):\n  File x\nOSError: no space left"), "OSError: no space left"),
        (ValueError(OUT_OF_MEMORY), "too little memory on a node: 22.37GB of 23.54GB were in use"),
        (ValueError(), "ValueError"),
    ],
)
def test_a_training_that_ray_gives_up_says_why_in_a_line(error: Exception, said: str) -> None:
    assert reason(error).startswith(said)
    assert "\n" not in reason(error)
    assert "docs.ray.io" not in reason(error)


def raised(error: Exception) -> Exception:
    """The error as it comes out of a function."""
    try:
        raise error
    except Exception as caught:
        return caught


def test_the_same_error_of_a_worker_a_second_time_ends_the_training() -> None:
    failures = Failures("s3://models/news.training/1f")
    assert failures.add(raised(IndexError("Target 7 is out of bounds for batch 3")), rank=0) is None
    assert failures.add(raised(IndexError("Target 7 is out of bounds for batch 3")), rank=1) is None
    assert failures.add(raised(ValueError("Target 7 is out of bounds")), rank=0) is None
    assert failures.last_word() is None
    found = failures.add(raised(IndexError("Target 7 is out of bounds for batch 9")), rank=0)
    assert isinstance(found, JobError)
    assert "twice with the same error" in str(found)
    assert "IndexError: Target 7 is out of bounds for batch 9" in str(failures.last_word())


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "/data/model.safetensors"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError('Error while serializing: IoError(Os { code: 28, message: "No space left on device" })'),
    ],
    ids=["disk", "quota", "of a library"],
)
def test_a_full_disk_ends_the_training_at_once_and_names_itself(error: Exception) -> None:
    assert "the disk is full" in str(Failures("s3://models/news.training/1f").add(raised(error), rank=0))


def test_what_a_worker_says_of_another_that_is_gone_counts_for_nothing() -> None:
    failures = Failures("s3://models/news.training/1f")
    for _ in range(3):
        error = RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:31337")
        assert failures.add(raised(error), rank=1) is None


def test_without_its_memory_nothing_ends() -> None:
    failures = Failures("s3://models/news.training/1f")
    ray.kill(failures._actor)
    assert [failures.add(raised(ValueError("x")), rank=0) for _ in range(3)] == [None] * 3


def test_a_task_that_cannot_be_trained_alone_is_one_line() -> None:
    @ray.remote
    def fail() -> None:
        raise IndexError("Target 7 is out of bounds")

    with pytest.raises(JobError, match=r"^the training of task 'sport' failed: IndexError: Target 7 .*") as caught:
        _result("sport", fail.remote())
    assert "\n" not in str(caught.value)


def test_checkpoints_that_are_not_whole_are_removed(tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path / "out"), "abc")
    directory = Path(run.uri)
    for name in ("checkpoint_2026-11-26_18-31-31.1", "checkpoint_2026-11-26_18-31-32.2", "tasks"):
        (directory / name).mkdir(parents=True)
        (directory / name / "model.safetensors").touch()
    (directory / "checkpoint_2026-11-26_18-31-33.3").mkdir()
    note = {"checkpoint_results": [{"checkpoint_dir_name": "checkpoint_2026-11-26_18-31-31.1", "metrics": {}}]}
    (directory / "checkpoint_manager_snapshot.json").write_text(json.dumps(note))
    run.remove_unfinished_checkpoints()
    kept = ["checkpoint_2026-11-26_18-31-31.1", "checkpoint_manager_snapshot.json", "tasks"]
    assert sorted(path.name for path in directory.iterdir()) == kept


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_training_that_cannot_work_ends_with_its_error(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    load_task = training.load_task

    def with_a_label_too_many(*arguments: Any, **options: Any) -> Any:
        data = load_task(*arguments, **options)
        return replace(data, train=replace(data.train, labels=data.train.labels + 7))

    monkeypatch.setattr(training, "load_task", with_a_label_too_many)
    model = {"prompt_init": "random", "pooler_init": "random"}
    config = make_config(tmp_path / "bundle", model=model, train={"num_workers": num_workers})
    events: list[dict[str, Any]] = []
    with pytest.raises(JobError, match=r"twice with the same error.*IndexError: Target"), Progress() as progress:
        training.train(config, progress=progress, on_event=events.append)
    starts = [event for event in events if event["event"] == "start"]
    assert len(starts) == 2
