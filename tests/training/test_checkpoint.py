from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from mtop_batch.errors import BundleError, ConfigError
from mtop_batch.training.checkpoint import Evaluation, TrainingState, read_final_weights
from mtop_batch.training.optimizer import make_optimizer
from mtop_batch.training.settings import TrainSettings
from tests.training.toy import make_model


def make_state(step: int = 0) -> TrainingState:
    model = make_model()
    return TrainingState(model, make_optimizer(model, TrainSettings()), run={"seed": 0, "tasks": {"a": 3}}, step=step)


def evaluation(step: int, mean: float, loss: float = 0.5) -> Evaluation:
    return Evaluation(step, step / 4, mean, {"a": {"accuracy": mean, "loss": loss}})


def trained_state() -> TrainingState:
    """A state with momentum for one task, and a best evaluation that is not the last."""
    state = make_state(step=7)
    for mean in (0.5, 0.75, 0.25):
        state.model(torch.tensor([[2, 9, 3]]), task="sport", labels=torch.tensor([1])).loss.backward()
        state.optimizer.step()
        state.record(evaluation(step=7, mean=mean))
    return state


def test_a_checkpoint_reads_back_whole(tmp_path: Path) -> None:
    state, again = trained_state(), make_state()
    state.write(tmp_path / "new" / "directory")
    again.read(tmp_path / "new" / "directory")
    assert (again.step, again.history, again.best) == (7, state.history, state.best)
    torch.testing.assert_close(again.model.state_dict(), state.model.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(again.best_weights, state.best_weights, rtol=0, atol=0)
    before, after = (list(s.optimizer.state_dict()["state"].items()) for s in (state, again))
    torch.testing.assert_close(dict(after), dict(before), rtol=0, atol=0)


def test_only_safetensors_and_json_are_written(tmp_path: Path) -> None:
    trained_state().write(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"model.safetensors", "optimizer.safetensors", "best.safetensors", "state.json"}


def test_of_equal_evaluations_that_with_the_lowest_loss_is_the_best_and_then_the_earliest() -> None:
    state = make_state()
    for step, mean, loss in [(1, 0.5, 0.1), (2, 0.8, 0.4), (3, 0.8, 0.3), (4, 0.8, 0.3), (5, 0.7, 0.1)]:
        state.record(evaluation(step, mean, loss))
    assert state.best == evaluation(3, 0.8, 0.3)
    assert len(state.history) == 5


def test_where_no_mean_is_defined_the_lowest_loss_is_the_best(tmp_path: Path) -> None:
    state = make_state()
    for step, loss in enumerate((0.5, 0.2, 0.4)):
        state.record(evaluation(step, math.nan, loss))
    assert state.best is state.history[1]
    assert state.evaluations_without_improvement() == 1
    state.write(tmp_path)
    again = make_state()
    again.read(tmp_path)
    assert again.best is not None
    assert math.isnan(again.best.mean)
    assert again.evaluations_without_improvement() == 1


def test_patience_counts_from_the_last_higher_mean_whatever_the_loss() -> None:
    state = make_state()
    found = []
    for step, (mean, loss) in enumerate([(0.5, 0.3), (0.6, 0.3), (0.6, 0.2), (0.5, 0.1), (0.7, 0.9)]):
        state.record(evaluation(step, mean, loss))
        found.append(state.evaluations_without_improvement())
    assert found == [0, 0, 1, 2, 0]


def test_final_weights_are_the_best_or_else_the_last(tmp_path: Path) -> None:
    state = trained_state()
    state.write(tmp_path / "evaluated")
    torch.testing.assert_close(read_final_weights(tmp_path / "evaluated"), state.best_weights, rtol=0, atol=0)
    fresh = make_state()
    fresh.write(tmp_path / "fresh")
    torch.testing.assert_close(read_final_weights(tmp_path / "fresh"), fresh.model.state_dict(), rtol=0, atol=0)


def test_an_incomplete_checkpoint_is_refused(tmp_path: Path) -> None:
    trained_state().write(tmp_path)
    (tmp_path / "state.json").unlink()
    with pytest.raises(BundleError, match=r"is not a complete training checkpoint: it has no state\.json"):
        make_state().read(tmp_path)


def test_a_failed_write_leaves_no_complete_checkpoint(tmp_path: Path) -> None:
    state = trained_state()
    state.write(tmp_path)
    state.best_weights = {"bad": "not a tensor"}  # type: ignore[dict-item]
    with pytest.raises((ValueError, AttributeError, TypeError)):
        state.write(tmp_path)
    assert not (tmp_path / "state.json").exists()


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    make_state().write(tmp_path)
    other = make_state()
    other.run = {"seed": 0, "tasks": {"a": 4}}
    with pytest.raises(ConfigError, match=r"is of another run: tasks = \{'a': 3\} there, \{'a': 4\} here"):
        other.read(tmp_path)
