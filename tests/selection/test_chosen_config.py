"""The configuration that a selection comes to."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtop_batch.config.load import load_config, validate
from mtop_batch.errors import ConfigError
from mtop_batch.selection.chosen_config import chosen_config, write_config
from mtop_batch.selection.select import Selection
from tests.selection.conftest import make_config

FILES = {"train": "a.parquet", "eval": "b.parquet"}


def test_what_is_written_is_read_as_it_was(tmp_path: Path) -> None:
    values = {
        "output": 'models/"it"',
        "backbone": {"name": "encoder", "max_tokens": 32},
        "model": {"kind": "mtop", "prompt_groups": {"by": "correlation", "n": 3}},
        "train": {"epochs": 2, "learning_rate": 1e-5, "warm_start": {"epochs": 1, "learning_rate": 0.01}},
        "task": [
            {"name": "a", "labels": ["nö", 'y"es\\'], "class_weights": {"nö": 2.5}, "prompt_group": "g", **FILES},
            {"name": "b", "kind": "regression", "text": ["one", "two"], "reads": None, **FILES},
        ],
    }
    config = validate(values, "a test")
    write_config(str(tmp_path / "new.toml"), config, "a line")
    assert load_config(tmp_path / "new.toml") == config
    assert (tmp_path / "new.toml").read_text().startswith("# a line\noutput = ")


def test_chosen_tasks_stay_in_the_order_of_the_file() -> None:
    config = make_config(["noise", "twin", "count", "sport"])
    selection = Selection("sport", "autosem", ("twin", "count"), ratio=(3, 1, 2))
    chosen = chosen_config(config, selection, {"twin": "some.parquet"})
    assert [(task.name, task.rate, task.train) for task in chosen.task] == [
        ("twin", 1.0, "some.parquet"),
        ("count", 2.0, "train.parquet"),
        ("sport", 3.0, "train.parquet"),
    ]
    assert chosen.output == "models/it-sport"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": [{"name": "a", "rate": 2.0}, {"name": "b"}]}, "task 'b' has no rate, and others have one"),
        ({"task": [{"name": "a", "rate": 0}]}, r"task\[a\].rate = 0 cannot be used"),
        (
            {"model": {"prompt_groups": {"by": "size", "n": 3}}},
            "model.prompt_groups = .* give a number of groups",
        ),
        ({"model": {"prompt_groups": {"by": "correlation", "n": 0}}}, "give a number of groups up to 256"),
        ({"model": {"prompt_groups": 257}}, "model.prompt_groups = 257 cannot be used: give a number of groups"),
        ({"model": {"prompt_groups": True}}, "neither true nor false|give a number of groups"),
    ],
)
def test_rates_and_groups_that_mean_nothing_are_refused(changes: dict[str, object], message: str) -> None:
    values = {"output": "o", "backbone": {"name": "e"}, "task": [{"name": "a"}], **changes}
    tasks = values["task"]
    assert isinstance(tasks, list)
    values["task"] = [{"labels": ["no", "yes"], **FILES, **task} for task in tasks]
    with pytest.raises(ConfigError, match=message):
        validate(values, "a test")
