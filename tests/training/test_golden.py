from __future__ import annotations

import json

import pytest

from tests.regenerate_golden import LOSSES, golden_losses


def test_the_loss_curve_is_that_of_the_golden_file() -> None:
    expected = json.loads(LOSSES.read_text())
    found = golden_losses()
    assert found.keys() == expected.keys()
    for attention, losses in found.items():
        assert losses == pytest.approx(expected[attention], abs=1e-3)
