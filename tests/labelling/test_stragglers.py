"""Which units count as stragglers."""

from __future__ import annotations

from mtop_batch.labelling.report.stragglers import Stragglers


def add(units: Stragglers, name: str, seconds: float) -> bool:
    return units.add(name, {"read": seconds / 2, "write": seconds / 2})


def test_a_unit_is_a_straggler_beyond_three_medians_and_half_a_minute() -> None:
    units = Stragglers()
    assert not any(add(units, f"{n}", 12.0) for n in range(10))
    assert not add(units, "within 3 medians", 35.9)
    assert add(units, "a.parquet", 36.1)
    assert units.slowest() == [{"unit": "a.parquet", "seconds": 36.1, "read_s": 18.05, "write_s": 18.05}]


def test_what_is_quick_is_no_straggler_however_quick_the_others_are() -> None:
    units = Stragglers()
    assert not any(add(units, f"{n}", 0.1) for n in range(10))
    assert not add(units, "b", 30.0)
    assert units.slowest() == []


def test_the_slowest_five_are_kept_and_the_first_unit_is_judged_by_those_after_it() -> None:
    units = Stragglers()
    assert not add(units, "first", 500.0)
    for n in range(20):
        add(units, f"quick {n}", 1.0)
    slow = [add(units, f"slow {n}", 100.0 + n) for n in range(7)]
    assert all(slow)
    assert [entry["unit"] for entry in units.slowest()] == ["first", "slow 6", "slow 5", "slow 4", "slow 3"]


def test_a_night_in_which_everything_takes_long_has_no_stragglers() -> None:
    units = Stragglers()
    assert not any(add(units, f"{n}", 300.0) for n in range(10))
    assert units.slowest() == []
