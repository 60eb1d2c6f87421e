"""What an interrupted training leaves, and how it is found again; no Ray runs here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mtop_batch.config.sections import Config
from mtop_batch.data.labelled_tokens import LabelledTokens
from mtop_batch.data.tokens import Tokens
from mtop_batch.engine.training.run_directory import RunDirectory, run_digest
from mtop_batch.tasks import Task
from mtop_batch.training.settings import TaskData

EXAMPLES = LabelledTokens(Tokens.from_rows([[1, 2], [3]]), np.array([0, 1]))
DATA = [TaskData(Task("sport"), EXAMPLES, EXAMPLES)]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    task = {"name": "sport", "labels": ["no", "yes"], "train": "t.parquet", "eval": "e.parquet"}
    return Config.model_validate({"output": str(tmp_path / "out"), "backbone": {"name": "tiny"}, "task": [task]})


def test_the_digest_changes_with_what_decides_the_result_and_nothing_else(config: Config) -> None:
    digest = run_digest(config, DATA)
    for same in ({"num_workers": 2}, {"max_failures": 9}):
        assert run_digest(config.model_copy(update={"train": config.train.model_copy(update=same)}), DATA) == digest
    assert run_digest(config.model_copy(update={"output": "elsewhere"}), DATA) == digest
    seed = config.model_copy(update={"train": config.train.model_copy(update={"seed": 1})})
    labels = [replace(DATA[0], train=LabelledTokens(EXAMPLES.tokens, np.array([1, 1])))]
    assert len({digest, run_digest(seed, DATA), run_digest(config, labels)}) == 3


def test_warm_starts_and_events_are_found_again(config: Config) -> None:
    run = RunDirectory(config.output, "abc")
    assert run.begin(config) == ""
    assert run.task("sport") is None
    run.keep_task("sport", {"prompts": torch.ones(2, 3).t()})
    run.events.append({"event": "run"})
    run.keep_events()
    again = RunDirectory(config.output, "abc")
    assert "resuming the interrupted run" in again.begin(config)
    assert again.events == [{"event": "run"}]
    found = again.task("sport")
    assert found is not None
    assert torch.equal(found["prompts"], torch.ones(3, 2))


def test_another_run_of_the_same_output_is_left_until_one_is_done(config: Config) -> None:
    RunDirectory(config.output, "abc").begin(config)
    run = RunDirectory(config.output, "def")
    assert "had another configuration or other examples: starting from the beginning" in run.begin(config)
    assert (Path(run.root) / "abc").is_dir()
    run.discard()
    assert not Path(run.root).exists()


@pytest.mark.parametrize("note", ["", '{"checkpoint_results": [', '{"other": 1}'])
def test_a_note_of_ray_train_that_was_cut_off_does_not_stop_the_next_run(config: Config, note: str) -> None:
    run = RunDirectory(config.output, "abc")
    run.begin(config)
    snapshot = Path(run.uri) / "checkpoint_manager_snapshot.json"
    snapshot.write_text(note)
    assert "no checkpoint yet" in run.begin(config)
    assert not snapshot.exists()
