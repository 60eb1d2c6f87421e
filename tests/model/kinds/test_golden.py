from __future__ import annotations

import json

import pytest
import torch

from tests.regenerate_golden import LOGITS, golden_logits


@pytest.mark.parametrize("attention", ["joint", "isolated"])
def test_logits_are_those_of_the_golden_file(attention: str) -> None:
    expected = json.loads(LOGITS.read_text())[attention]
    torch.testing.assert_close(torch.tensor(golden_logits()[attention]), torch.tensor(expected), atol=1e-5, rtol=0)
