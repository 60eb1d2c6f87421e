"""What an interrupted run leaves, and when it goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtop_batch import storage
from mtop_batch.training.unfinished import discard_finished, unfinished_in


@pytest.mark.parametrize("where", ["disk", "memory"])
def test_what_finished_runs_left_goes_and_what_others_left_stays(tmp_path: Path, where: str) -> None:
    root = str(tmp_path) if where == "disk" else f"memory://{tmp_path.name}"
    for digest in ("done", "killed"):
        unfinished_in(root, digest).keep_seconds({"train": 1.0})
    storage.write_bytes(storage.join(root, "done.json"), b"{}")
    discard_finished(root, {"done", "another"}.__contains__)
    assert unfinished_in(root, "done").seconds() == {}
    assert unfinished_in(root, "killed").seconds() == {"train": 1.0}
    assert storage.is_file(storage.join(root, "done.json"))


def test_a_directory_that_is_not_there_has_nothing_to_discard(tmp_path: Path) -> None:
    discard_finished(str(tmp_path / "none"), {"done"}.__contains__)
    assert not list(tmp_path.iterdir())
