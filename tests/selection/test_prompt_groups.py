"""Prompt groups of tasks that are alike."""

from __future__ import annotations

import pytest

from mtop_batch.config.load import validate
from mtop_batch.config.sections import Config
from mtop_batch.errors import ConfigError
from mtop_batch.selection.prompt_groups import label_similarities, needs_trainings, with_like_groups


def config_of(labels: dict[str, list[str]], groups: object, **task: object) -> Config:
    tasks = [
        {"name": name, "labels": own, "train": "a.parquet", "eval": "b.parquet", **task} for name, own in labels.items()
    ]
    model = {"kind": "mtop", "prompt_groups": groups}
    return validate({"output": "none", "backbone": {"name": "tiny"}, "model": model, "task": tasks}, "a test")


LABELS = {
    "shop_1": ["shoes", "red shoes", "hats"],
    "news_1": ["politics", "sports"],
    "shop_2": ["hats", "shoes"],
    "news_2": ["world politics", "sports", "travel"],
}


def test_tasks_with_like_labels_share_prompts() -> None:
    config = config_of(LABELS, {"by": "labels", "n": 2})
    assert not needs_trainings(config)
    groups = with_like_groups(config).prompt_groups()
    assert groups["shop_1"] == groups["shop_2"] != groups["news_1"] == groups["news_2"]


def test_words_of_all_tasks_say_little() -> None:
    """Of tasks that say yes or no, what tells them apart is their names."""
    config = config_of({name: ["no", "yes"] for name in ("ball_game", "ball_player", "tax_law")}, 0)
    similar = label_similarities(config.task)
    assert similar[0, 1] > similar[0, 2]


def test_names_without_words_are_groups_of_their_own() -> None:
    groups = with_like_groups(config_of({"a": ["1", "2"], "b": ["1", "2"]}, {"by": "labels", "n": 2})).prompt_groups()
    assert groups["a"] != groups["b"]


@pytest.mark.parametrize("groups", [0, 2])
def test_groups_made_otherwise_stay(groups: int) -> None:
    config = config_of(LABELS, groups)
    assert with_like_groups(config) is config


def test_a_group_that_a_task_names_counts() -> None:
    config = with_like_groups(config_of(LABELS, {"by": "labels", "n": 2}, prompt_group="own"))
    assert set(config.prompt_groups().values()) == {"own"}


def test_tasks_that_choose_their_groups_begin_as_if_they_were_assigned() -> None:
    config = config_of(LABELS, {"by": "learned", "n": 3})
    assert with_like_groups(config) is config
    assert not needs_trainings(config)
    assert config.prompt_groups() == {"shop_1": "1", "news_1": "2", "shop_2": "3", "news_2": "1"}
    assert config.choosing_tasks() == list(LABELS)
    named = config_of(LABELS, {"by": "learned", "n": 3}, prompt_group="own")
    assert (named.choosing_tasks(), set(named.prompt_groups().values())) == ([], {"own"})
    assert not config_of(LABELS, 3).choosing_tasks()


def test_joint_prompts_cannot_be_chosen() -> None:
    values = config_of(LABELS, {"by": "learned", "n": 3}).model_dump(mode="json")
    values["model"]["prompt_attention"] = "joint"
    with pytest.raises(ConfigError, match="is for prompts that the text does not see"):
        validate(values, "a test")


def test_other_likenesses_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"by = \"correlation\", n = 8 }, or by = \"labels\""):
        config_of(LABELS, {"by": "name", "n": 2})
