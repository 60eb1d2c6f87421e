"""JSON that any reader takes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from mtop_batch.json_text import to_json
from mtop_batch.model.bundle.bundle import load_bundle, save_bundle
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.tasks import Task
from tests.conftest import make_backbone, make_tokenizer


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def strictly(text: str) -> object:
    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float64("nan")])
def test_numbers_that_are_not_finite_become_null(value: float) -> None:
    assert strictly(to_json({"a": value, "b": [value, (1.5, {"c": value})]})) == {
        "a": None,
        "b": [None, [1.5, {"c": None}]],
    }


def test_text_stays_readable_and_a_name_that_is_not_unicode_is_escaped() -> None:
    text = to_json({"ü": "\udcff/a.parquet"})
    assert text == '{"ü": "\\udcff/a.parquet"}'
    assert strictly(text) == {"ü": "\udcff/a.parquet"}


def test_a_bundle_of_a_training_without_a_number_is_read_again(tmp_path: Path) -> None:
    model = MTOPModel.from_backbone(make_backbone(), [Task("politics")], max_tokens=32)
    metrics = {"politics": {"accuracy": 0.5, "loss": math.nan}}
    save_bundle(
        str(tmp_path), model, make_tokenizer(), metrics=metrics, training_config={"x": math.inf}, backbone_name=""
    )
    for path in tmp_path.glob("*.json"):
        strictly(path.read_text())
    assert math.isnan(load_bundle(str(tmp_path)).metrics["politics"]["loss"])
