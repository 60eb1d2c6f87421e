from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtop_batch.training.sampling import (
    BatchPlan,
    draw_tasks,
    draw_tasks_by_size,
    evaluation_steps,
    example_rows,
    num_steps,
    occurrences,
    task_rates,
)

SIZES = st.lists(st.integers(1, 10**9), min_size=1, max_size=20)


@given(SIZES, st.floats(0, 1))
def test_rates_sum_to_one_and_never_leave_a_task_out(sizes: list[int], alpha: float) -> None:
    rates = task_rates(sizes, alpha)
    assert rates.sum() == pytest.approx(1)
    assert (rates > 0).all()


@given(SIZES)
def test_alpha_0_is_uniform_and_alpha_1_proportional(sizes: list[int]) -> None:
    np.testing.assert_allclose(task_rates(sizes, 0), 1 / len(sizes))
    np.testing.assert_allclose(task_rates(sizes, 1), np.array(sizes) / sum(sizes))


def test_tasks_are_drawn_at_their_rates() -> None:
    drawn = draw_tasks(np.array([0.1, 0.6, 0.3]), num_steps=20_000, seed=0)
    np.testing.assert_allclose(np.bincount(drawn) / 20_000, [0.1, 0.6, 0.3], atol=0.01)
    assert (drawn == draw_tasks(np.array([0.1, 0.6, 0.3]), num_steps=20_000, seed=0)).all()


@given(SIZES, st.sampled_from([0.0, 0.3, 1.0]), st.integers(0, 9))
def test_an_alpha_that_stays_draws_as_without_a_schedule(sizes: list[int], alpha: float, seed: int) -> None:
    by_step = draw_tasks_by_size(sizes, np.full(1500, alpha), seed)
    assert (by_step == draw_tasks(task_rates(sizes, alpha), 1500, seed)).all()


def test_small_tasks_come_later_where_alpha_falls() -> None:
    plan = BatchPlan.draw([100_000, 100], 16, epochs=4, alpha=1.0, seed=0, alpha_end=0.0, alpha_decay="linear")
    shares = [float((part == 1).mean()) for part in np.array_split(plan.tasks, 4)]
    assert shares == sorted(shares)
    assert shares[0] < 0.02
    assert shares[-1] > 0.25


def test_steps_in_a_row_take_one_task() -> None:
    plan = BatchPlan.draw([5000] * 4, 16, epochs=1, alpha=1.0, seed=0, consecutive_steps=10)
    assert len(plan) == 1250
    assert (plan.tasks.reshape(-1, 10) == plan.tasks[::10, None]).all()
    assert set(plan.occurrences[plan.tasks == 0]) == set(range(int((plan.tasks == 0).sum())))


@given(
    st.lists(st.sampled_from([1, 2, 5, 40, 3000]), min_size=1, max_size=12),
    st.sampled_from([1, 2, 2.5]),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.integers(0, 9),
)
def test_every_task_has_a_step_in_every_epoch_that_has_enough(
    sizes: list[int], epochs: float, alpha: float, seed: int
) -> None:
    plan = BatchPlan.draw(sizes, 16, epochs, alpha, seed)
    ends = evaluation_steps(sum(sizes), 16, epochs)
    drawn = draw_tasks(task_rates(sizes, alpha), len(plan), seed)
    for start, end in zip([0, *ends], ends, strict=False):
        found, before = set(plan.tasks[start:end].tolist()), set(drawn[start:end].tolist())
        assert len(found) == min(len(sizes), end - start)
        if len(before) == len(sizes):
            assert plan.tasks[start:end].tolist() == drawn[start:end].tolist()
    assert len(plan.left_out()) == len(set(range(len(sizes))) - set(plan.tasks.tolist()))


def test_given_rates_stand_for_those_by_size() -> None:
    plan = BatchPlan.draw([10, 1000], 1, epochs=20, alpha=1.0, seed=0, rates=[3, 1])
    np.testing.assert_allclose(np.bincount(plan.tasks) / len(plan), [0.75, 0.25], atol=0.01)
    assert len(plan) == len(BatchPlan.draw([10, 1000], 1, epochs=20, alpha=1.0, seed=0))


def test_tasks_that_had_no_step_come_first_where_steps_are_scarce() -> None:
    plan = BatchPlan.draw([4] * 16, batch_size=16, epochs=4, alpha=1.0, seed=0)  # 16 steps in 4 epochs of 4
    assert plan.left_out() == []
    assert len(BatchPlan.draw([4] * 16, batch_size=16, epochs=1, alpha=1.0, seed=0).left_out()) == 12


@given(st.integers(1, 30), st.integers(0, 5), st.integers(0, 9))
def test_each_pass_sees_every_example_once(size: int, number: int, seed: int) -> None:
    assert sorted(example_rows(size, start=number * size, count=size, seed=seed)) == list(range(size))


@given(st.integers(1, 30), st.integers(0, 100), st.integers(0, 50), st.integers(0, 50))
def test_slices_of_the_sequence_fit_together(size: int, start: int, first: int, second: int) -> None:
    whole = example_rows(size, start, first + second, seed=3)
    parts = [example_rows(size, start, first, seed=3), example_rows(size, start + first, second, seed=3)]
    assert whole.tolist() == np.concatenate(parts).tolist()


def test_passes_seeds_and_streams_shuffle_differently() -> None:
    places = [(0, 0, 0), (50, 0, 0), (0, 1, 0), (0, 0, 1), (50, 0, 1)]
    orders = {tuple(example_rows(50, start, 50, seed, stream)) for start, seed, stream in places}
    assert len(orders) == len(places)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60))
def test_occurrences_count_the_earlier_steps_of_the_same_task(tasks: list[int]) -> None:
    assert occurrences(np.array(tasks)).tolist() == [tasks[:step].count(task) for step, task in enumerate(tasks)]


@pytest.mark.parametrize(
    ("epochs", "total", "steps"), [(1, 160, 10), (1, 161, 11), (1.1, 160, 11), (0.001, 160, 1), (20, 25_000, 31_250)]
)
def test_steps_of_batches_of_16(epochs: float, total: int, steps: int) -> None:
    assert num_steps(total, 16, epochs) == steps


def test_evaluation_follows_every_epoch_and_the_last_step() -> None:
    assert evaluation_steps(total_examples=160, batch_size=16, epochs=2.5) == [10, 20, 25]
    assert evaluation_steps(total_examples=160, batch_size=16, epochs=0.5) == [5]


@pytest.mark.parametrize(
    ("every", "steps"), [(0.1, [*range(1, 26)]), (0.3, [3, 6, 9, 12, 15, 18, 21, 24, 25]), (2, [20, 25]), (7, [25])]
)
def test_evaluation_every_so_many_epochs_leaves_the_steps_as_they_are(every: float, steps: list[int]) -> None:
    assert evaluation_steps(total_examples=160, batch_size=16, epochs=2.5, every=every) == steps
    plan = BatchPlan.draw([100, 60], 16, 2.5, alpha=1.0, seed=0, eval_every=every)
    assert plan.evaluation_steps() == steps
    assert plan.tasks.tolist() == BatchPlan.draw([100, 60], 16, 2.5, alpha=1.0, seed=0).tasks.tolist()


def test_a_plan_walks_through_each_tasks_examples() -> None:
    plan = BatchPlan.draw(sizes=[7, 20], batch_size=4, epochs=10, alpha=0.5, seed=1)
    rows: dict[int, list[int]] = {0: [], 1: []}
    for step in range(len(plan)):
        task, batch = plan.batch(step)
        assert len(batch) == 4
        rows[task] += batch.tolist()
    for task, size in enumerate([7, 20]):
        passes = [rows[task][start : start + size] for start in range(0, len(rows[task]) - size, size)]
        assert passes
        assert all(sorted(seen) == list(range(size)) for seen in passes)
