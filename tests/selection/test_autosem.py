"""A bandit that finds useful tasks, and a Gaussian process that finds their ratio."""

from __future__ import annotations

import numpy as np
import pytest

from mtop_batch.selection.autosem import BanditPlan, Beliefs, first_ratios, next_ratio, play


def test_beliefs_by_hand() -> None:
    beliefs = Beliefs.at_first(2).after(0, helped=True)
    assert (beliefs.alpha.tolist(), beliefs.beta.tolist()) == ([2, 1], [1, 1])
    beliefs = beliefs.after(1, helped=False)
    # 0.7 * 2 + 0.3, and for the loser 0.7 * 1 + 0.3 + 1.
    assert (beliefs.alpha.tolist(), beliefs.beta.tolist()) == ([pytest.approx(1.7), 1], [1, 2])
    assert beliefs.utilities.tolist() == [pytest.approx(1.7 / 2.7), pytest.approx(1 / 3)]


def test_the_primary_task_comes_first_and_equal_scores_are_a_reward() -> None:
    tasks, beliefs = play([0.5], 3, seed=0)
    assert tasks[0] == 0
    assert beliefs.utilities[0] == pytest.approx(2 / 3)
    same, worse = (play([0.5, score], 3, seed=0)[1].utilities[tasks[1]] for score in (0.5, 0.4))
    assert same > 0.5 > worse or tasks[1] == 0


def test_a_task_after_which_the_score_falls_is_believed_useless() -> None:
    scores, score = list[float](), 0.0
    for _ in range(60):
        task = play(scores, 3, seed=1)[0][-1]
        score += {0: 0.01, 1: 0.02, 2: -0.02}[task]
        scores.append(score)
    tasks, beliefs = play(scores, 3, seed=1)
    assert beliefs.utilities[2] < 0.5 < beliefs.utilities[1]
    assert tasks.count(2) < tasks.count(1)


def test_what_a_step_does_follows_from_the_scores() -> None:
    scores = np.random.default_rng(0).random(60).tolist()
    plan = BanditPlan([7, 9, 5], batch_size=4, num_steps=99, seed=3)  # rounds of 2 steps
    tasks, _ = play(scores, 3, seed=3)
    seen: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for step in range(99):
        task, rows = plan.batch(step, scores[: step // 2])
        assert task == tasks[step // 2]
        assert (plan.batch(step, scores[: step // 2 + 1])[1] == rows).all()
        seen[task] += rows.tolist()
    for task, size in enumerate([7, 9, 5]):
        first_pass = seen[task][:size]
        assert len(set(first_pass)) == len(first_pass)  # every example before any comes again
    assert plan.evaluation_steps() == [*range(2, 99, 2), 99]


def test_ratios_are_tried_where_scores_are_high() -> None:
    def score(ratio: tuple[int, ...]) -> float:
        return -abs(ratio[1] / sum(ratio) - 0.6)

    tried = first_ratios(2, seed=0)
    assert tried[0] == (1, 1)
    scores = [score(ratio) for ratio in tried]
    while len(tried) < 12:
        tried.append(next_ratio(tried, scores, seed=0))
        scores.append(score(tried[-1]))
    assert len(set(tried)) == len(tried)
    assert max(scores) > -0.05
    assert all(ratio[0] >= 1 for ratio in tried)
