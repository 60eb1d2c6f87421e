"""Run ids and run records."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from mtop_batch import storage
from mtop_batch.errors import LabelTableError, TaskError
from mtop_batch.table.definition import Definition
from mtop_batch.table.runs import check_same_tasks, current_definitions, list_runs, new_run_id, read_run, write_run
from mtop_batch.tasks import Task
from tests.labelling.support import definition

AB = definition({"a": "1", "b": "1"})


def test_run_ids_sort_by_time() -> None:
    moments = [
        datetime(2026, 11, 20, 2, 0, second, micro, tzinfo=UTC) for second in (0, 1) for micro in (0, 9, 999_999)
    ]
    ids = [new_run_id(moment) for moment in moments]
    assert ids == sorted(ids)
    assert ids[0].startswith("20261120T020000Z-00000")
    assert len(ids[0]) == len("20261120T020000Z-1a2b3c")


def test_run_records_are_read_back_newest_first(tmp_path: Path) -> None:
    first, second = (new_run_id(datetime(2026, 11, day, tzinfo=UTC)) for day in (19, 20))
    write_run(str(tmp_path), second, definition({"a": "2"}), "c", {"date": "2026-11-20"})
    write_run(str(tmp_path), first, AB, "c")
    assert list_runs(str(tmp_path)) == [second, first]
    assert read_run(str(tmp_path), second).partitions == {"date": "2026-11-20"}
    current = current_definitions(str(tmp_path), ["a", "b", "c"])
    assert {task: wanted.fingerprints[task] for task, wanted in current.items()} == {"a": "2", "b": "1"}


def test_a_damaged_run_record_is_an_error(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "_runs" / "r1" / "run.json"), b"{}")
    with pytest.raises(LabelTableError, match="is not the record of a run"):
        current_definitions(str(tmp_path), ["a"])


def test_a_bundle_whose_tasks_have_the_names_of_others_is_refused(tmp_path: Path) -> None:
    def bundle(*tasks: Task) -> Definition:
        return Definition("v2", "models/v2", tasks, {task.name: "2" for task in tasks})

    labels, topic = str(tmp_path), Task("topic", labels=("sport", "tech"))
    check_same_tasks(labels, bundle(topic))  # a new table
    write_run(labels, new_run_id(), definition({"a": "1", "r": "1"}), "c")
    run = new_run_id()
    write_run(labels, run, bundle(topic), "c")
    check_same_tasks(labels, definition({"a": "2", "r": "2", "b": "1"}))  # trained anew, and one more
    check_same_tasks(labels, bundle(Task("topic", labels=("tech", "music"))))  # the labels of a task may change
    check_same_tasks(labels, bundle(Task("topic", "probe", labels=("sport", "tech"))))
    with pytest.raises(TaskError, match=rf"the labels left, right .* the labels sport, tech .*run {run}"):
        check_same_tasks(labels, bundle(Task("topic", labels=("left", "right"))))
    with pytest.raises(TaskError, match=r"'a' has a value and no labels .* another task of the same name"):
        check_same_tasks(labels, bundle(Task("a", "regression", labels=())))
    with pytest.raises(TaskError, match="'r' has the labels"):
        check_same_tasks(labels, bundle(topic, Task("r")))
