"""What a run report says of its speed."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from mtop_batch.labelling.report.throughput import Performance

BUSY = Performance(
    seconds=110.0,
    start_up_s=10.0,
    num_actors=2,
    num_tokens=90_000,
    num_padded_tokens=100_000,
    stage_seconds={"read": 20.0, "tokenise": 60.0, "model": 190.0, "write": 15.0},
    flops=4e12,
    peak_flops_per_s=10e12 / 190,
)


def test_shares_and_rates() -> None:
    assert BUSY.tokens_per_s == pytest.approx(90_000 / 110)
    assert BUSY.padding_share == pytest.approx(0.1)
    assert BUSY.idle_fraction == pytest.approx(0.05)
    assert BUSY.mfu == pytest.approx(0.4)
    assert BUSY.cpus_per_actor == pytest.approx(0.5)
    assert BUSY.line() == "818 tokens/s, padding 10.0%, labelling actors idle 5%, MFU 40% (of the measured peak)"


@pytest.mark.parametrize(
    ("stage_seconds", "start_up_s", "words"),
    [
        ({"model": 190.0}, 10.0, "the model: labelling actors were idle 5% of their time; more GPUs"),
        ({"read": 10.0, "tokenise": 150.0, "model": 100.0}, 10.0, "tokenising: .* 50% .* about 1.6 CPUs"),
        ({"read": 300.0, "tokenise": 150.0, "model": 100.0}, 10.0, "reading: .* or bring storage nearer"),
        ({"write": 80.0, "model": 100.0}, 10.0, "writing: .* about 0.8 CPUs per labelling actor"),
        ({"tokenise": 1.5, "read": 0.1, "model": 100.0}, 10.0, "uneven work: .* idle 50% .*--unit-rows"),
        ({"model": 20.0}, 100.0, "starting, 100 of 110 s: a larger run"),
        ({"model": 110.0}, 40.0, "starting, 40 of 110 s: a larger run"),  # more than the 15 s that an actor was idle
        ({"model": 135.0}, 40.0, "the model"),
    ],
)
def test_the_bottleneck_says_what_to_change(stage_seconds: dict[str, float], start_up_s: float, words: str) -> None:
    bottleneck = replace(BUSY, stage_seconds=stage_seconds, start_up_s=start_up_s).bottleneck()
    assert re.search(words, bottleneck), bottleneck


def test_a_run_that_did_nothing_has_no_shares() -> None:
    nothing = Performance(0.0, 0.0, 0, 0, 0, {}, 0.0, 0.0)
    assert (nothing.tokens_per_s, nothing.padding_share, nothing.idle_fraction) == (0, 0, 0)
    assert (nothing.mfu, nothing.cpus_per_actor) == (0, 0)
