"""The predictor: tokens to labels, whatever the batches, the memory and the gaps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor
from transformers import BertTokenizer, ElectraModel

from mtop_batch.data.labelled_tokens import LabelledTokens
from mtop_batch.data.tokens import TextTokenizer
from mtop_batch.errors import BundleError, ConfigError, DataError, TaskError
from mtop_batch.labelling.run import predictor as predictor_module
from mtop_batch.labelling.run.device_copies import ToHost
from mtop_batch.labelling.run.predictor import Predictor
from mtop_batch.model.bundle.bundle import save_bundle
from mtop_batch.model.kinds.config import PromptAttention
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.precision import PrecisionChoice
from mtop_batch.table.columns import scored_labels
from mtop_batch.table.outputs import TaskOutputs, label_columns
from mtop_batch.tasks import Task
from mtop_batch.training.evaluation.evaluate import task_predictions

TASKS = [
    Task("politics"),
    Task("tone", labels=("calm", "neutral", "loud")),
    Task("grade", kind="regression", labels=()),
]
MakeTexts = Callable[..., list[str]]


@pytest.fixture
def model(backbone: ElectraModel) -> MTOPModel:
    return make_model(backbone)


def make_model(
    backbone: ElectraModel, attention: PromptAttention = "isolated", tasks: Sequence[Task] = TASKS
) -> MTOPModel:
    """A model whose random weights are large enough to tell texts apart."""
    model = MTOPModel.from_backbone(backbone, tasks, prompt_attention=attention, max_tokens=32).eval()
    generator = torch.Generator().manual_seed(1)
    for name in model.task_names:
        shapes = {key: value.shape for key, value in model.task_tensors(name).items()}
        model.load_task(name, {key: 0.3 * torch.randn(shape, generator=generator) for key, shape in shapes.items()})
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.mul_(16 if parameter.dim() == 2 else 1)
    return model


@pytest.fixture
def predictor(model: MTOPModel, tokenizer: BertTokenizer) -> Predictor:
    return Predictor(model, tokenizer, device="cpu", precision="fp32")


def one_by_one(model: MTOPModel, tokenizer: BertTokenizer, texts: list[str]) -> list[dict[str, Any]]:
    """The expected table, one text at a time through the model's own forward."""
    rows = []
    for text in texts:
        inputs = tokenizer(text, truncation=True, max_length=32, return_tensors="pt")
        row: dict[str, Any] = {}
        for task in TASKS:
            with torch.no_grad():
                logits = model(**inputs, task=task.name).logits[0]
            if task.kind == "regression":
                row["grade_score"] = logits.item()
            else:
                best = logits.softmax(-1).max(-1)
                row |= {f"{task.name}_label": task.labels[best.indices], f"{task.name}_score": best.values.item()}
        rows.append(row | {"error": None})
    return rows


def test_every_row_is_what_the_model_says_of_it_alone(
    predictor: Predictor, model: MTOPModel, tokenizer: BertTokenizer, make_texts: MakeTexts
) -> None:
    texts = make_texts(40)
    table = predictor.predict(texts)
    expected = one_by_one(model, tokenizer, texts)
    for name in table.column_names:
        wanted = [row[name] for row in expected]
        assert table[name].to_pylist() == (pytest.approx(wanted, abs=1e-4) if name.endswith("_score") else wanted)
    assert len(set(table["tone_label"].to_pylist())) > 1


def test_the_columns_are_those_of_the_label_table(predictor: Predictor) -> None:
    schema = predictor.predict(["bank"]).schema
    label = pa.dictionary(pa.int32(), pa.string())
    assert dict(zip(schema.names, schema.types, strict=True)) == {
        "politics_label": label,
        "politics_score": pa.float32(),
        "tone_label": label,
        "tone_score": pa.float32(),
        "grade_score": pa.float32(),
        "error": pa.string(),
    }
    assert predictor.predict([]).schema == schema


def test_rows_without_text_get_the_reason_and_the_others_their_labels(predictor: Predictor) -> None:
    table = predictor.predict([None, "bank profit", "", " \n", "match goal"])
    assert table["error"].to_pylist() == ["text is null", None, "text is empty", "text is empty", None]
    for name in table.column_names[:-1]:
        assert [value is None for value in table[name].to_pylist()] == [True, False, True, True, False]
    alone = predictor.predict(["bank profit", "match goal"])
    assert alone["tone_label"].to_pylist() == table["tone_label"].take([1, 4]).to_pylist()


def test_half_a_pair_is_a_single_text(predictor: Predictor) -> None:
    pairs = predictor.predict(["bank", "bank", None, " "], ["cup", "", "bank", None])
    single, pair = predictor.predict(["bank"]), predictor.predict(["bank"], ["cup"])
    expected = [pair["grade_score"][0].as_py(), *[single["grade_score"][0].as_py()] * 2, None]
    assert pairs["grade_score"].to_pylist() == pytest.approx(expected, abs=1e-6)
    assert pairs["error"].to_pylist() == [None, None, None, "text is empty"]
    assert pair["grade_score"] != single["grade_score"]


@pytest.mark.parametrize("max_batch_tokens", [1, 50, 100_000])
def test_batch_mates_do_not_change_a_row(
    model: MTOPModel, tokenizer: BertTokenizer, make_texts: MakeTexts, max_batch_tokens: int
) -> None:
    tokens = TextTokenizer(tokenizer, 32).encode([*make_texts(30), None])
    alone = Predictor(model, tokenizer, device="cpu", precision="fp32", max_batch_tokens=1).predict_tokens(tokens)
    together = Predictor(
        model, tokenizer, device="cpu", precision="fp32", max_batch_tokens=max_batch_tokens
    ).predict_tokens(tokens)
    np.testing.assert_array_equal(together.label_ids, alone.label_ids)
    np.testing.assert_allclose(together.scores, alone.scores, atol=1e-4)
    assert together.num_tokens == tokens.lengths.sum() <= together.num_padded_tokens


def test_wanted_tasks_come_alone_and_unchanged(
    predictor: Predictor, model: MTOPModel, tokenizer: BertTokenizer, make_texts: MakeTexts
) -> None:
    texts = make_texts(5)
    some = Predictor(model, tokenizer, device="cpu", precision="fp32", tasks=["grade", "politics"]).predict(texts)
    assert some.column_names == ["politics_label", "politics_score", "grade_score", "error"]
    every = predictor.predict(texts)
    assert some["politics_label"].to_pylist() == every["politics_label"].to_pylist()
    assert some["grade_score"].to_pylist() == pytest.approx(every["grade_score"].to_pylist(), abs=1e-4)


def test_many_tasks_that_share_prompts_are_labelled_as_each_alone(
    backbone: ElectraModel, tokenizer: BertTokenizer, make_texts: MakeTexts
) -> None:
    tasks = [Task(f"t{index}", labels=tuple("abcde"[: 2 + index % 4])) for index in range(60)]
    groups = {task.name: str(index % 7) for index, task in enumerate(tasks[:-2])}
    model = MTOPModel.from_backbone(backbone, tasks, prompt_groups=groups, pooler_rank=4, max_tokens=32)
    with torch.no_grad():
        for task in tasks:
            model.task_module(task.name).head.weight.mul_(50)
    tokens = TextTokenizer(tokenizer, 32).encode([*make_texts(9), None])
    outputs = Predictor(model, tokenizer, device="cpu", precision="fp32", max_batch_tokens=100).predict_tokens(tokens)
    assert outputs.label_ids.shape == outputs.scores.shape == (60, 10)
    for index, task in enumerate(tasks):
        alone = Predictor(model, tokenizer, device="cpu", precision="fp32", tasks=[task.name]).predict_tokens(tokens)
        np.testing.assert_array_equal(outputs.label_ids[index], alone.label_ids[0])
        np.testing.assert_allclose(outputs.scores[index], alone.scores[0], atol=1e-4)
    assert len(np.unique(outputs.label_ids)) > 3


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("attention", ["isolated", "joint"])
def test_tasks_that_are_added_change_no_label_and_no_score_of_earlier_ones(
    backbone: ElectraModel,
    tokenizer: BertTokenizer,
    make_texts: MakeTexts,
    attention: PromptAttention,
    precision: PrecisionChoice,
) -> None:
    model = make_model(backbone, attention)
    tokens = TextTokenizer(tokenizer, 32).encode(make_texts(50))
    before, after = (
        Predictor(each, tokenizer, device="cpu", precision=precision, max_batch_tokens=150).predict_tokens(tokens)
        for each in (model, with_added_tasks(model))
    )
    assert after.label_ids.shape == (6, 50)
    np.testing.assert_array_equal(after.label_ids[:3], before.label_ids)
    np.testing.assert_array_equal(after.scores[:3], before.scores)


def with_added_tasks(model: MTOPModel) -> MTOPModel:
    """With three more tasks, whose prompts are more than those of the others."""
    more = deepcopy(model)
    tasks = [Task("sport"), Task("kind", labels=("a", "b", "c")), Task("opinion")]
    more.add_tasks(tasks, prompts_per_task=3, lora_rank=2)
    return more.eval()


def test_batches_of_many_tasks_are_larger_on_a_cpu(
    model: MTOPModel, tokenizer: BertTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, every = (
        sum(p.numel() for name in names for p in model.task_parameters(name)) for names in (["grade"], model.task_names)
    )
    usual = Predictor(model, tokenizer, device="cpu").max_batch_tokens
    monkeypatch.setattr(predictor_module, "_MANY_TASK_PARAMETERS", (one + every) // 2)
    assert Predictor(model, tokenizer, device="cpu", tasks=["grade"]).max_batch_tokens == usual
    assert Predictor(model, tokenizer, device="cpu").max_batch_tokens == 2 * usual
    monkeypatch.setattr(predictor_module, "_MANY_TASK_PARAMETERS", every)
    assert Predictor(with_added_tasks(model), tokenizer, device="cpu").max_batch_tokens == usual


def test_batches_without_padding_have_no_mask(
    predictor: Predictor, model: MTOPModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    masked: list[bool] = []
    all_tasks = model.all_tasks

    def watched(input_ids: Tensor, attention_mask: Tensor | None = None, **arguments: Any) -> Tensor:
        masked.append(attention_mask is not None)
        return all_tasks(input_ids, attention_mask, **arguments)

    monkeypatch.setattr(model, "all_tasks", watched)
    alike, alone, with_other = (
        predictor.predict(texts)["grade_score"].to_pylist()
        for texts in (["good day", "good day"], ["good day"], ["good day", "good news of a longer day"])
    )
    assert masked == [False, False, True]
    assert [alike[0], with_other[0]] == pytest.approx(alone * 2, abs=1e-5)


def test_the_peak_is_not_measured_after_every_piece(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = iter([1.0, 2.0])
    monkeypatch.setattr(predictor_module, "measure_peak_flops_per_s", lambda *_: next(rates))
    assert [predictor.measure_peak_flops_per_s() for _ in range(3)] == [1.0] * 3
    monkeypatch.setattr(predictor_module, "_PEAK_EVERY_S", 0.0)
    assert predictor.measure_peak_flops_per_s() == 2.0


def run_out_of_memory_beyond(model: MTOPModel, max_rows: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let batches of more rows fail; the returned list fills with the sizes tried."""
    tried: list[int] = []
    all_tasks = model.all_tasks

    def limited(input_ids: Tensor, **arguments: Any) -> Tensor:
        tried.append(len(input_ids))
        if len(input_ids) > max_rows:
            raise torch.OutOfMemoryError("no memory")
        return all_tasks(input_ids, **arguments)

    monkeypatch.setattr(model, "all_tasks", limited)
    return tried


def test_out_of_memory_halves_batches_until_they_fit(
    predictor: Predictor, model: MTOPModel, make_texts: MakeTexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = make_texts(40)
    expected = predictor.predict(texts)
    tried = run_out_of_memory_beyond(model, 3, monkeypatch)
    table = predictor.predict(texts)
    assert table["tone_label"].to_pylist() == expected["tone_label"].to_pylist()
    assert table["grade_score"].to_pylist() == pytest.approx(expected["grade_score"].to_pylist(), abs=1e-4)
    tried.clear()
    predictor.predict([max(texts, key=len)] * 40)
    assert max(tried) <= 3  # it has learned


def test_a_single_row_that_does_not_fit_is_an_error(
    predictor: Predictor, model: MTOPModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_out_of_memory_beyond(model, 0, monkeypatch)
    with pytest.raises(torch.OutOfMemoryError):
        predictor.predict(["bank", "bank profit"])


def test_a_damaged_model_is_not_taken_for_an_answer(predictor: Predictor, model: MTOPModel) -> None:
    tensors = model.task_tensors("tone")
    model.load_task("tone", {key: torch.full_like(value, torch.nan) for key, value in tensors.items()})
    with pytest.raises(BundleError, match="not a number"):
        predictor.predict(["bank"])


def test_bf16_agrees_with_fp32(
    predictor: Predictor, model: MTOPModel, tokenizer: BertTokenizer, make_texts: MakeTexts
) -> None:
    texts = make_texts(40)
    rough = Predictor(model, tokenizer, device="cpu", precision="bf16").predict(texts)
    exact = predictor.predict(texts)
    assert rough["grade_score"].to_pylist() == pytest.approx(exact["grade_score"].to_pylist(), abs=0.5)
    assert rough["grade_score"] != exact["grade_score"]


@pytest.mark.parametrize("has_bf16", [True, False])
def test_a_cpu_runs_in_bf16_where_it_computes_in_it(
    monkeypatch: pytest.MonkeyPatch,
    predictor: Predictor,
    model: MTOPModel,
    tokenizer: BertTokenizer,
    make_texts: MakeTexts,
    has_bf16: bool,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has_bf16})
    texts = make_texts(10)
    found = Predictor(model, tokenizer, device="cpu").predict(texts)
    assert (found != predictor.predict(texts)) == has_bf16


def test_label_columns_are_null_where_rows_are_not_valid() -> None:
    outputs = TaskOutputs(np.array([[1, 0, -1]], np.int32), np.array([[0.75, 0.5, np.nan]], np.float32))
    columns = dict(label_columns([TASKS[0]], outputs, np.array([True, False, True])))
    assert columns["politics_label"].to_pylist() == ["yes", None, None]
    assert columns["politics_score"].to_pylist() == [0.75, None, None]
    tail = dict(label_columns([TASKS[0]], outputs[1:], np.array([True, True])))
    assert tail["politics_label"].to_pylist() == ["no", None]


def test_a_predictor_loads_from_a_bundle(
    predictor: Predictor, model: MTOPModel, tokenizer: BertTokenizer, tmp_path: Path
) -> None:
    uri = str(tmp_path / "bundle")
    save_bundle(uri, model, tokenizer, metrics={}, training_config={}, backbone_name="tiny")
    loaded = Predictor.load(uri, device="cpu", precision="fp32", tasks=["tone"])
    expected = predictor.predict(["bank"])["tone_score"].to_pylist()
    assert loaded.predict(["bank"])["tone_score"].to_pylist() == pytest.approx(expected, abs=1e-6)


def test_wrong_arguments_say_what_is_allowed(predictor: Predictor, model: MTOPModel, tokenizer: BertTokenizer) -> None:
    with pytest.raises(TaskError, match="there is no task 'politic'; did you mean 'politics'"):
        Predictor(model, tokenizer, tasks=["politic"])
    with pytest.raises(ConfigError, match="no task is wanted; name some of politics, tone, grade"):
        Predictor(model, tokenizer, tasks=[])
    with pytest.raises(ConfigError, match="precision = 'fp8' is not one of auto, fp32, bf16"):
        Predictor(model, tokenizer, precision="fp8")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="max_batch_tokens = 0 must be at least 1"):
        Predictor(model, tokenizer, max_batch_tokens=0)
    with pytest.raises(DataError, match="texts are given as one string; give a list"):
        predictor.predict("bank")
    with pytest.raises(DataError, match="text 1 is 5, a int; texts are strings or None"):
        predictor.predict(["bank", 5])  # type: ignore[list-item]
    with pytest.raises(DataError, match="there are 1 texts and 2 second texts"):
        predictor.predict(["bank"], ["cup", "cup"])


LISTS = [
    Task("politics", scores="all"),
    Task("topics", "multi-label", labels=("film", "sport", "money", "art")),
    Task("grade", kind="regression", labels=()),
    Task("alert", "multi-label", labels=("alert",), scores="all"),
]


@pytest.fixture
def lists(backbone: ElectraModel) -> MTOPModel:
    """A model with multi-label tasks, and scores of all labels."""
    return make_model(backbone, tasks=LISTS)


def test_multi_label_tasks_say_what_the_model_says_of_each_label(
    lists: MTOPModel, tokenizer: BertTokenizer, make_texts: MakeTexts
) -> None:
    texts: list[str | None] = [*make_texts(30), None]
    table = Predictor(lists, tokenizer, device="cpu", precision="fp32", max_batch_tokens=100).predict(texts)
    assert table.column_names == [
        *("politics_label", "politics_score", "politics_scores", "topics_label", "topics_score", "grade_score"),
        *("alert_label", "alert_score", "alert_scores", "error"),
    ]
    assert [scored_labels(table.schema.field(f"{name}_scores")) for name in ("politics", "alert")] == [
        ("no", "yes"),
        ("alert",),
    ]
    rows = table.to_pylist()
    assert [rows[-1][name] for name in table.column_names[:-1]] == [None] * 9
    for text, row in zip(texts[:-1], rows, strict=False):
        inputs = tokenizer([str(text)], return_tensors="pt", truncation=True, max_length=32)
        with torch.no_grad():
            said = [lists(inputs["input_ids"], task=task.name).logits[0] for task in LISTS]
        politics, topics, alert = said[0].softmax(0).tolist(), said[1].sigmoid().tolist(), said[3].sigmoid().tolist()
        assert row["politics_scores"] == pytest.approx(politics, abs=1e-4)
        assert row["politics_score"] == max(row["politics_scores"])
        assert row["alert_scores"] == pytest.approx(alert, abs=1e-4)
        given = [(label, p) for label, p in zip(LISTS[1].labels, topics, strict=True) if p >= 0.5]
        assert row["topics_label"] == [label for label, _ in given]
        assert row["topics_score"] == pytest.approx([p for _, p in given], abs=1e-4)
        assert row["grade_score"] == pytest.approx(said[2].item(), abs=1e-3)
    assert len({tuple(row["topics_label"]) for row in rows[:-1]}) > 2


def test_evaluation_and_labelling_agree(lists: MTOPModel, tokenizer: BertTokenizer, make_texts: MakeTexts) -> None:
    texts = make_texts(20)
    tokens = TextTokenizer(tokenizer, 32).encode(texts)
    examples = LabelledTokens(tokens, np.zeros((20, 4), bool))
    evaluated = task_predictions(lists, examples, LISTS[1])
    labelled = Predictor(lists, tokenizer, device="cpu", precision="fp32").predict(texts)["topics_label"].to_pylist()
    names = np.array(LISTS[1].labels)
    assert [names[row > 0].tolist() for row in evaluated.values] == labelled


def test_a_batch_comes_to_the_host_as_one_tensor_and_no_larger_than_it_must_be(
    predictor: Predictor, lists: MTOPModel, tokenizer: BertTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, ...]] = []

    class Watched(ToHost):
        def __init__(self, tensor: Tensor) -> None:
            shapes.append(tuple(tensor.shape))
            super().__init__(tensor)

    monkeypatch.setattr(predictor_module, "ToHost", Watched)
    predictor.predict(["bank"])
    Predictor(lists, tokenizer, device="cpu").predict(["bank"])
    assert shapes == [(2 * 3, 1), (2 * 4 + 4 + 1, 1)]
