"""Which runs wait for others."""

from __future__ import annotations

from mtop_batch.experiments.runs.data_set import DataSet
from mtop_batch.experiments.runs.specs import RunSettings, RunSpec, make_spec
from mtop_batch.experiments.runs.waves import waves


def methods_of(found: list[list[RunSpec]]) -> list[list[tuple[str, int]]]:
    return [[(spec.method, spec.seed) for spec in wave] for wave in found]


def specs(data: DataSet, *runs: tuple[str, int]) -> list[RunSpec]:
    return [make_spec(name, seed, data, RunSettings("tiny")) for name, seed in runs]


def test_runs_that_use_nothing_of_others_go_side_by_side(data_set: DataSet) -> None:
    runs = [("mtop", 0), ("mt-dnn", 0), ("mtop", 1)]
    assert methods_of(waves(specs(data_set, *runs))) == [runs]
    assert waves([]) == []


def test_choices_wait_for_what_others_measure(data_set: DataSet) -> None:
    runs = specs(data_set, ("mt-dnn-fine-grained", 0), ("mt-dnn-trial", 0), ("mt-dnn-threshold", 0), ("mtop", 0))
    assert methods_of(waves(runs)) == [
        [("mt-dnn-threshold", 0), ("mtop", 0)],
        [("mt-dnn-trial", 0)],
        [("mt-dnn-fine-grained", 0)],
    ]


def test_what_begins_with_an_encoder_waits_for_it(many_set: DataSet) -> None:
    runs = specs(many_set, ("many-large-100", 0), ("many", 0))
    assert methods_of(waves(runs)) == [[("many", 0)], [("many-large-100", 0)]]


def test_the_first_seed_prefinetunes_for_the_others(data_set: DataSet) -> None:
    runs = [("families-prefinetuned", seed) for seed in (2, 0, 1)]
    assert methods_of(waves(specs(data_set, *runs))) == [runs[:1], runs[1:]]
