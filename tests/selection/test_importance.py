"""How much heads matter to a task."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor
from transformers import ElectraConfig, ElectraModel

from mtop_batch.data.batches import pad_batch
from mtop_batch.data.examples import load_examples, tokenise_examples
from mtop_batch.data.labelled_tokens import LabelledTokens
from mtop_batch.data.tokens import TextTokenizer
from mtop_batch.errors import ConfigError
from mtop_batch.model.encoder.head_masks import head_masks
from mtop_batch.model.kinds.mt_dnn import MTDNNModel
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.selection.importance import head_gradients, importance, normalised
from mtop_batch.tasks import Task
from mtop_batch.training.settings import TaskData
from tests.conftest import make_backbone, make_tokenizer
from tests.selection.conftest import KINDS, make_task_data

WIDTH = 4


def two_heads(data: TaskData) -> MTDNNModel:
    """One layer with two heads of which nobody reads the second."""
    torch.manual_seed(1)
    config = ElectraConfig(
        vocab_size=len(make_tokenizer()),
        embedding_size=2 * WIDTH,
        hidden_size=2 * WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = MTDNNModel.from_backbone(ElectraModel(config).eval(), [data.task], max_tokens=16)
    with torch.no_grad():
        read_heads(model)[:, WIDTH:] = 0
    return model


def read_heads(model: MTDNNModel) -> Tensor:
    """(8, 8) The weight of the layer that reads what the heads put out, four columns each."""
    return model.backbone.get_parameter("encoder.layer.0.attention.output.dense.weight")


def loss_with_less_of_a_head(model: MTDNNModel, data: TaskData, row: int, head: int, less: float) -> float:
    """The loss of one example where so much of what a head puts out is missing: by hand, in the layer that reads it."""
    weight = read_heads(model)
    columns = slice(head * WIDTH, (head + 1) * WIDTH)
    kept = weight[:, columns].clone()
    with torch.no_grad():
        weight[:, columns] *= 1 - less
        rows = np.array([row])
        labels = torch.from_numpy(data.train.labels[rows])
        loss = model(**pad_batch(data.train.tokens, rows), task=data.task.name, labels=labels).loss.item()
        weight[:, columns] = kept
    return float(loss)


def test_a_head_matters_as_much_as_the_loss_changes_with_less_of_it() -> None:
    data = make_task_data("sport", size=6)
    model = two_heads(data)
    gradients = head_gradients(model, "sport", data.train)
    assert gradients.shape == (6, 1, 2)
    assert (gradients[:, 0, 1] == 0).all()  # nobody reads it
    step = 1e-2
    for row in range(6):
        more, less = (loss_with_less_of_a_head(model, data, row, 0, sign * step) for sign in (-1, 1))
        assert gradients[row, 0, 0] == pytest.approx(abs(more - less) / (2 * step), rel=1e-2, abs=1e-5)


def test_layers_count_alike_and_the_matrix_goes_from_0_to_1() -> None:
    raw = np.array([[[1.0, 3.0], [200.0, 200.0]], [[0.0, 0.0], [2.0, 2.0]]])
    # Shares of the layers: .25 .75 / .5 .5, and 0 0 / .5 .5.
    assert normalised(raw).tolist() == [[[0, 1], [0.5, 0.5]], [[0, 0], [1, 1]]]
    assert normalised(np.zeros((2, 3))).tolist() == [[0, 0, 0], [0, 0, 0]]
    # Summed over the examples first: 1 3 / 202 202.
    assert importance(raw.astype(np.float32)).tolist() == [[0, 1], [0.5, 0.5]]


@pytest.mark.parametrize("name", KINDS)
def test_batches_and_their_order_make_no_difference(name: str) -> None:
    data = make_task_data(name, size=20)
    model = MTDNNModel.from_backbone(make_backbone(), [data.task], max_tokens=16)
    whole = head_gradients(model, name, data.train)
    single = head_gradients(model, name, data.train, max_batch_tokens=1)
    np.testing.assert_allclose(whole, single, rtol=1e-3, atol=1e-7)
    order = np.random.default_rng(0).permutation(20)
    turned = LabelledTokens(data.train.tokens.take(order), data.train.labels[order])
    np.testing.assert_allclose(head_gradients(model, name, turned), whole[order], rtol=1e-3, atol=1e-7)
    assert (whole > 0).any()


def test_sentences_of_a_token_task_count_alike_in_any_batch(tmp_path: Path) -> None:
    words = ["match goal team player cup", "bank", "team market goal", "profit shares economy team"]
    rows = [sentence.split() for sentence in words]
    tags = [["B-TEAM" if word == "team" else "O" for word in row] for row in rows]
    pq.write_table(pa.table({"tokens": rows, "tags": tags}), tmp_path / "names.parquet")
    task = Task("names", "token", ("TEAM",), ("tokens",))
    raw = load_examples(task, str(tmp_path / "names.parquet"), "tags")
    examples = tokenise_examples(raw, TextTokenizer(make_tokenizer(), 16))
    model = MTOPModel.from_backbone(make_backbone(), [task], max_tokens=16)
    whole = head_gradients(model, "names", examples)
    np.testing.assert_allclose(
        head_gradients(model, "names", examples, max_batch_tokens=1), whole, rtol=1e-3, atol=1e-7
    )
    assert (whole.sum(axis=(1, 2)) > 0).all()


def test_masks_change_nothing_and_are_gone_afterwards() -> None:
    data = make_task_data("sport", size=8)
    model = MTDNNModel.from_backbone(make_backbone(), [data.task], max_tokens=16)
    inputs = pad_batch(data.train.tokens, np.arange(8))
    plain = model(**inputs, task="sport").logits
    with torch.enable_grad(), head_masks(model.backbone):
        assert model(**inputs, task="sport").logits.equal(plain)
    with torch.enable_grad():
        assert model(**inputs, task="sport").logits.equal(plain)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_an_encoder_whose_heads_cannot_be_had_is_refused(attention: str) -> None:
    data = make_task_data("sport", size=4)
    model = MTDNNModel.from_backbone(make_backbone(), [data.task], max_tokens=16)
    model.backbone.set_attn_implementation(attention)
    with pytest.raises(
        ConfigError, match=f"the heads of ElectraModel cannot be measured: its attention is '{attention}'"
    ):
        head_gradients(model, "sport", data.train)
