"""What a training step makes a GPU do: on a GPU it is the number of operations that a step takes its time for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from mtop_batch.model.kinds.config import PromptAttention
from mtop_batch.training import loop
from mtop_batch.training.settings import Worker
from tests.training.toy import make_data, make_model, make_settings

WAITS = {"nonzero", "_local_scalar_dense", "masked_select"}
"""Operations that read a tensor's values."""


class Operations(TorchDispatchMode):
    """The names of all operations that compute or copy, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if not func.is_view:
            self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def operations_of_a_step(attention: PromptAttention) -> list[str]:
    model = make_model(dropout=0.1, prompt_attention=attention)
    data = make_data()
    run = loop._Run(model, data, make_settings(), None, None, Worker(precision="bf16"))
    losses = loop._Losses(model.train(), [item.task for item in data])
    run._step(losses)  # AdamW starts
    with Operations() as operations:
        run._step(losses)
    return operations.names


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    monkeypatch.setattr("mtop_batch.model.encoder.encode._FEW_POSITIONS", 0)
    return lambda: monkeypatch.setattr("mtop_batch.model.encoder.encode._launches_kernels", lambda _: True)


@pytest.mark.parametrize("attention", ["joint", "isolated"])
def test_on_a_gpu_a_step_waits_for_nothing(attention: PromptAttention, on_gpu: Callable[[], None]) -> None:
    assert WAITS & set(operations_of_a_step(attention))  # on a CPU it looks for padding
    on_gpu()
    assert not WAITS & set(operations_of_a_step(attention))


def test_on_a_gpu_isolated_prompts_take_no_more_operations_than_joint_ones(on_gpu: Callable[[], None]) -> None:
    two_passes = len(operations_of_a_step("isolated"))
    on_gpu()
    isolated, joint = len(operations_of_a_step("isolated")), len(operations_of_a_step("joint"))
    assert isolated < joint + 20
    assert isolated < 0.7 * two_passes


def test_moments_and_gradients_are_not_handled_one_by_one() -> None:
    names = operations_of_a_step("joint")
    assert names.count("_fused_adamw_") <= 4
    assert names.count("_foreach_norm") == 1
