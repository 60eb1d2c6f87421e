"""Vectors beside a text: what they change, and what they leave alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import BertTokenizer

from mtop_batch.data.batches import pad_batch
from mtop_batch.data.input_vectors import InputVectors
from mtop_batch.data.tokens import Tokens
from mtop_batch.errors import ConfigError
from mtop_batch.labelling.run.predictor import Predictor
from mtop_batch.model.bundle.bundle import load_bundle, save_bundle
from mtop_batch.model.bundle.files import read_bundle_info
from mtop_batch.model.bundle.fingerprints import task_fingerprints
from mtop_batch.model.kinds.base import MultiTaskModel
from mtop_batch.model.kinds.mt_dnn import MTDNNModel
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.tasks import Task, VectorInput
from tests.conftest import make_tokenizer
from tests.training.toy import make_encoder

IMAGE, SOUND = {"column": "image", "size": 3, "tokens": 2}, {"column": "sound", "size": 5, "tokens": 1}
TASKS = (Task("topic"), Task("mood", labels=("sad", "calm", "glad")))
TOKENS = Tokens.from_rows([[2, 10, 11, 12, 3], [2, 20, 3], [2, 30, 31, 3]])
Make = Callable[..., MultiTaskModel]


def vectors(*rows: list[list[float]], size: int = 3) -> InputVectors:
    values = np.array([vector for row in rows for vector in row], np.float32).reshape(-1, size)
    return InputVectors(values, np.append(0, np.cumsum([len(row) for row in rows])))


A, B = [1.0, -2.0, 3.0], [0.5, 4.0, -1.0]
BESIDE = (vectors([A, B], [], [B]), vectors([[1.0] * 5], [], [], size=5))


def isolated(**options: Any) -> MTOPModel:
    return MTOPModel.from_backbone(make_encoder(), TASKS, inputs=[IMAGE, SOUND], max_tokens=16, **options)


def joint(**options: Any) -> MTOPModel:
    return isolated(prompt_attention="joint", shared_prompts=1, **options)


def mt_dnn(**options: Any) -> MTDNNModel:
    tasks = [replace(task, reads="pooled") for task in TASKS]
    return MTDNNModel.from_backbone(make_encoder(), tasks, inputs=[IMAGE, SOUND], max_tokens=16, **options)


MODELS = pytest.mark.parametrize("make", [isolated, joint, mt_dnn])


@torch.no_grad()
def logits(model: MultiTaskModel, beside: tuple[InputVectors, ...] = (), rows: list[int] | None = None) -> Tensor:
    chosen = np.arange(len(TOKENS)) if rows is None else np.array(rows)
    return model.all_tasks(**pad_batch(TOKENS, chosen, vectors=[of.take(chosen) for of in beside])).nan_to_num(neginf=0)


@MODELS
def test_vectors_change_the_outputs_of_their_own_rows_only(make: Make) -> None:
    model = make()
    without, with_them = logits(model), logits(model, BESIDE)
    assert (without[[0, 2]] - with_them[[0, 2]]).abs().amax(dim=(1, 2)).min() > 1e-4
    torch.testing.assert_close(without[1], with_them[1], atol=1e-6, rtol=0)
    nothing = tuple(InputVectors.none(of.values.shape[1], 3) for of in BESIDE)
    torch.testing.assert_close(logits(model, nothing), without, rtol=0, atol=0)


@MODELS
def test_batch_mates_and_the_order_of_vectors_change_nothing(make: Make) -> None:
    model = make()
    together = logits(model, BESIDE)
    for row in range(3):
        torch.testing.assert_close(logits(model, BESIDE, [row])[0], together[row], atol=1e-5, rtol=0)
    turned = (vectors([B, A], [], [B]), BESIDE[1])
    torch.testing.assert_close(logits(model, turned), together, atol=1e-5, rtol=0)


@MODELS
def test_one_task_says_what_it_says_among_all_and_its_loss_moves_the_layers(make: Make) -> None:
    model = make()
    batch = pad_batch(TOKENS, np.arange(3), vectors=BESIDE)
    for place, task in enumerate(TASKS):
        alone = model(**batch, task=task.name).logits
        torch.testing.assert_close(alone, logits(model, BESIDE)[:, place, : task.num_outputs], atol=1e-5, rtol=0)
    model.train()
    model(**batch, task="mood", labels=torch.tensor([0, 1, 2])).loss.backward()
    for name, parameter in model.input_tensors():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@torch.no_grad()
def test_isolated_prompts_read_them_from_the_kv_cache_too() -> None:
    model = isolated()
    batch = pad_batch(TOKENS, np.arange(3), vectors=BESIDE)
    cached = model(kv_cache=model.cache(**batch), task="topic").logits
    torch.testing.assert_close(cached, logits(model, BESIDE)[:, 0, :2], atol=1e-5, rtol=0)


def test_a_model_without_inputs_has_nothing_more_and_refuses_vectors() -> None:
    plain = MTOPModel.from_backbone(make_encoder(), TASKS, max_tokens=16)
    assert not [name for name in plain.state_dict() if "input" in name.replace("prompts", "")]
    with pytest.raises(ConfigError, match="reads no vectors"):
        logits(plain, BESIDE)
    more = isolated()
    shared = set(plain.state_dict()) & set(more.state_dict())
    assert shared == set(plain.state_dict())
    for name in shared:
        torch.testing.assert_close(plain.state_dict()[name], more.state_dict()[name], rtol=0, atol=0)
    torch.testing.assert_close(logits(plain), logits(more), rtol=0, atol=0)


def test_fingerprints_cover_the_inputs_and_their_layers() -> None:
    plain, model = MTOPModel.from_backbone(make_encoder(), TASKS, max_tokens=16), isolated()
    found = [task_fingerprints(plain, ""), task_fingerprints(model, ""), task_fingerprints(isolated(seed=1), "")]
    renamed = MTOPModel.from_backbone(
        make_encoder(), TASKS, inputs=[{**IMAGE, "column": "picture"}, SOUND], max_tokens=16
    )
    found.append(task_fingerprints(renamed, ""))
    with torch.no_grad():
        model.projected_inputs.token_type.add_(1)
    found.append(task_fingerprints(model, ""))
    for name in ("topic", "mood"):
        assert len({fingerprints[name] for fingerprints in found}) == len(found)


@pytest.mark.parametrize("make", [isolated, mt_dnn])
def test_a_bundle_keeps_its_inputs(make: Make, tokenizer: BertTokenizer, tmp_path: Path) -> None:
    model = make()
    save_bundle(str(tmp_path), model, tokenizer, metrics={}, training_config={}, backbone_name="tiny")
    again = load_bundle(str(tmp_path)).model
    torch.testing.assert_close(logits(again, BESIDE), logits(model, BESIDE), rtol=0, atol=0)
    assert read_bundle_info(str(tmp_path)).inputs == (VectorInput("image", 3, 2), VectorInput("sound", 5))


@pytest.mark.parametrize("windows", [1, 3])
def test_the_predictor_takes_vectors_beside_texts_and_makes_errors_of_bad_ones(windows: int) -> None:
    model = isolated()
    model.config.max_windows, model.config.window_overlap = windows, 0
    predictor = Predictor(model, make_tokenizer(), precision="fp32")
    texts = ["bank market", "goal team", "film", "star " * 30]
    beside: dict[str, Any] = {"image": [[A, B], None, [[1.0]], [B]], "sound": [[1.0] * 5, None, None, None]}
    found = predictor.predict(texts, inputs=beside)
    assert found["error"].to_pylist() == [None, None, "input column 'image' has a vector of 1 floats, not 3", None]
    scores = found["topic_score"].to_pylist()
    alone = predictor.predict(texts)["topic_score"].to_pylist()
    assert scores[1] == pytest.approx(alone[1], abs=1e-6)
    assert abs(scores[0] - alone[0]) > 1e-6
    assert abs(scores[3] - alone[3]) > 1e-7
    one = predictor.predict(texts[:1], inputs={key: value[:1] for key, value in beside.items()})
    assert one["topic_score"].to_pylist()[0] == pytest.approx(scores[0], abs=1e-5)
