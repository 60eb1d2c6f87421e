"""Long texts in windows: labelled as each window alone through the model and then the mean, whatever the batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor
from transformers import BertTokenizer, ElectraModel

from mtop_batch.data.examples import tokenise_examples
from mtop_batch.data.labelled_tokens import LabelledTokens
from mtop_batch.data.raw_examples import RawExamples
from mtop_batch.data.tokens import TextTokenizer
from mtop_batch.labelling.run import predictor as predictor_module
from mtop_batch.labelling.run.predictor import Predictor
from mtop_batch.labelling.run.probes import ProbePredictor
from mtop_batch.model.bundle.fingerprints import task_fingerprints, vector_fingerprint
from mtop_batch.model.kinds.base import MultiTaskModel
from mtop_batch.model.kinds.by_name import KINDS
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.table.outputs import TaskOutputs
from mtop_batch.tasks import Task
from mtop_batch.training.evaluation.evaluate import task_predictions
from mtop_batch.training.probe import example_vectors
from mtop_batch.training.settings import Worker
from tests.conftest import make_backbone

TASKS = [
    Task("politics"),
    Task("tone", labels=("calm", "neutral", "loud"), scores="all", combine="max"),
    Task("grade", kind="regression", labels=(), mean=3.0, std=2.0),
    Task("tags", "multi-label", labels=("a", "b")),
    Task("lead", labels=tuple("pqrst"), combine="first"),
]
PROBES = [Task("vague", "probe"), Task("size", "regression", labels=(), reads="vector", mean=-1.0, std=3.0)]
LIMITS = {"max_tokens": 12, "max_windows": 7, "window_overlap": 3}
MakeTexts = Callable[..., list[str]]


def windowed(model: MultiTaskModel) -> Any:
    """The same model with windows, and with weights large enough to tell texts apart."""
    for key, value in LIMITS.items():
        setattr(model.config, key, value)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture
def model(backbone: ElectraModel) -> MTOPModel:
    made: MTOPModel = MTOPModel.from_backbone(backbone, TASKS, max_tokens=12)
    made.add_tasks(PROBES)
    return windowed(made)


def texts_of(make_texts: MakeTexts) -> list[str]:
    """Short ones and long ones, some beyond the last window."""
    texts = make_texts(30)
    return [*texts, *(f"{a} {b}" for a, b in zip(texts, texts[7:], strict=False)), " ".join(texts[:9])]


def by_hand(model: Any, tokenizer: BertTokenizer, text: str) -> tuple[dict[str, Tensor], Tensor]:
    """(C,) logits of each task, and the vector, from windows one at a time."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][: 10 + 6 * 7]
    starts = [0] if len(ids) <= 10 else [*range(0, len(ids) - 10, 7), len(ids) - 10]
    said, vectors = [], []
    with torch.no_grad():
        for start in starts:
            window = torch.tensor([[tokenizer.cls_token_id, *ids[start : start + 10], tokenizer.sep_token_id]])
            tasks = [task.name for task in model.tasks if not task.reads_vector]
            if model.pass_per_task:
                said.append(model.all_tasks(window, tasks=tasks)[0])
                continue
            logits, vector = model.all_tasks_and_vectors(window, tasks=tasks)
            said.append(logits[0])
            vectors.append(vector[0].float())
    together = torch.stack(said)  # (W, n, C)
    how = {"mean": together.mean(0), "max": together.amax(0), "first": together[0]}
    tasks = [task for task in model.tasks if not task.reads_vector]
    found = {task.name: how[task.combine][place, : task.num_outputs] for place, task in enumerate(tasks)}
    if not vectors:
        return found, torch.empty(0)
    mean = vectors[0] if len(vectors) == 1 else torch.nn.functional.normalize(torch.stack(vectors).mean(0), dim=0)
    for task in model.tasks:
        if task.reads_vector:
            probe = model.task_modules[f"task_{task.name}"]
            found[task.name] = (mean.half().float() @ probe.weight.T + probe.bias) * task.std + task.mean
    return found, mean


def check(outputs: TaskOutputs, model: Any, tokenizer: BertTokenizer, texts: list[str]) -> None:
    """That the outputs are those of texts one at a time."""
    for row, text in enumerate(texts):
        logits, vector = by_hand(model, tokenizer, text)
        for place, task in enumerate(model.tasks):
            label, score = outputs.label_ids[place, row], outputs.scores[place, row]
            wanted = logits[task.name]
            if task.kind == "regression":
                assert (label, score) == (-1, pytest.approx(wanted.item(), abs=2e-3))
                continue
            chances = wanted.sigmoid() if task.is_multi_label else wanted.softmax(0)
            assert score == pytest.approx(chances.max().item(), abs=1e-3)
            assert label == (-1 if task.is_multi_label else chances.argmax())
            if task.keeps_probabilities:
                np.testing.assert_allclose(outputs.probabilities[task.name][:, row], chances, atol=1e-3)
        if outputs.vectors is not None:
            np.testing.assert_allclose(outputs.vectors[row], vector, atol=2e-3)


@pytest.mark.parametrize("max_batch_tokens", [1, 60, 100_000])
def test_a_long_text_is_what_its_windows_say_together(
    model: MTOPModel, tokenizer: BertTokenizer, make_texts: MakeTexts, max_batch_tokens: int
) -> None:
    texts = texts_of(make_texts)
    predictor = Predictor(
        model, tokenizer, device="cpu", precision="fp32", vectors=True, max_batch_tokens=max_batch_tokens
    )
    tokens = TextTokenizer(tokenizer, **LIMITS).encode([*texts, None])
    counts = tokens.num_windows(12)
    assert (counts.min(), counts.max()) == (1, 7)
    outputs = predictor.predict_tokens(tokens)
    check(outputs[:-1], model, tokenizer, texts)
    assert (outputs.label_ids[:, -1] == -1).all()
    assert np.isnan(outputs.scores[:, -1]).all()
    assert outputs.num_tokens == tokens.lengths.sum()
    table = predictor.predict([*texts, None])
    assert table.num_rows == len(texts) + 1
    assert table["grade_score"].to_pylist()[:-1] == pytest.approx(outputs.scores[2, :-1].tolist(), abs=1e-5)


def test_the_order_of_texts_and_the_memory_do_not_matter(
    model: MTOPModel, tokenizer: BertTokenizer, make_texts: MakeTexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = texts_of(make_texts)
    encode = TextTokenizer(tokenizer, **LIMITS).encode
    predictor = Predictor(model, tokenizer, device="cpu", precision="fp32", max_batch_tokens=500)
    expected = predictor.predict_tokens(encode(texts))
    order = np.random.default_rng(0).permutation(len(texts))
    found = predictor.predict_tokens(encode([texts[row] for row in order]))
    np.testing.assert_array_equal(found.label_ids, expected.label_ids[:, order])
    np.testing.assert_allclose(found.scores, expected.scores[:, order], atol=1e-4)
    monkeypatch.setattr(predictor_module, "_MAX_WINDOW_LOGITS", 500)
    monkeypatch.setattr(predictor_module, "_MAX_LOGITS", 60)
    forward = model.all_tasks

    def little_memory(**inputs: Any) -> Tensor:
        if inputs["input_ids"].numel() > 100:
            raise torch.OutOfMemoryError("too much")
        return forward(**inputs)

    monkeypatch.setattr(model, "all_tasks", little_memory)
    tasks = [task.name for task in TASKS]
    split = Predictor(model, tokenizer, device="cpu", precision="fp32", tasks=tasks).predict_tokens(encode(texts))
    np.testing.assert_array_equal(split.label_ids, expected.label_ids[: len(TASKS)])
    np.testing.assert_allclose(split.scores, expected.scores[: len(TASKS)], atol=1e-4)


def test_texts_that_fit_are_labelled_as_where_texts_are_cut(
    model: MTOPModel, tokenizer: BertTokenizer, make_texts: MakeTexts
) -> None:
    short = [text for text in make_texts(60) if len(tokenizer(text)["input_ids"]) <= 12]
    assert len(short) > 5
    found = Predictor(model, tokenizer, device="cpu", precision="fp32", vectors=True).predict(short)
    model.config.max_windows, model.config.window_overlap = 1, 0
    assert found.equals(Predictor(model, tokenizer, device="cpu", precision="fp32", vectors=True).predict(short))


@pytest.mark.parametrize("kind", ["mt-dnn", "single-task", "p-tuning", "p-tuning-v2", "ca-mtl"])
def test_every_kind_of_model_has_windows(tokenizer: BertTokenizer, make_texts: MakeTexts, kind: str) -> None:
    tasks = [
        Task(**{**task.to_dict(), "labels": task.labels, "text": task.text, "reads": KINDS[kind].readers[0]})
        for task in TASKS
    ]
    model = windowed(KINDS[kind].from_backbone(make_backbone(), tasks, max_tokens=12))
    texts = texts_of(make_texts)[20:40]
    tokens = TextTokenizer(tokenizer, **LIMITS).encode(texts)
    check(Predictor(model, tokenizer, device="cpu", precision="fp32").predict_tokens(tokens), model, tokenizer, texts)


def test_added_tasks_leave_the_labels_of_long_texts_as_they_are(
    model: MTOPModel, tokenizer: BertTokenizer, make_texts: MakeTexts
) -> None:
    tokens = TextTokenizer(tokenizer, **LIMITS).encode(texts_of(make_texts))
    names = [task.name for task in TASKS]
    fingerprints = task_fingerprints(model, "t")
    before = Predictor(model, tokenizer, device="cpu", precision="fp32", tasks=names).predict_tokens(tokens)
    model.add_tasks([Task("new", labels=("x", "y", "z"))], prompts_per_task=3, lora_rank=2)
    after = Predictor(model.eval(), tokenizer, device="cpu", precision="fp32").predict_tokens(tokens)
    np.testing.assert_array_equal(after.label_ids[: len(names)], before.label_ids)
    np.testing.assert_array_equal(after.scores[: len(names)], before.scores)
    found = task_fingerprints(model, "t")
    assert {name: found[name] for name in fingerprints} == fingerprints


def test_stored_vectors_of_long_texts_give_the_labels_of_the_texts(
    model: MTOPModel, tokenizer: BertTokenizer, make_texts: MakeTexts
) -> None:
    tokens = TextTokenizer(tokenizer, **LIMITS).encode(texts_of(make_texts))
    names = [task.name for task in PROBES]
    said = Predictor(model, tokenizer, device="cpu", precision="fp32", tasks=names, vectors=True).predict_tokens(tokens)
    assert said.vectors is not None
    weights = [{key: value.numpy() for key, value in model.task_tensors(name).items()} for name in names]
    stored = pa.FixedSizeListArray.from_arrays(pa.array(said.vectors.ravel()), said.vectors.shape[1])
    from_vectors = ProbePredictor(PROBES, weights).predict(pa.chunked_array([stored]))
    np.testing.assert_array_equal(from_vectors.label_ids, said.label_ids)
    np.testing.assert_allclose(from_vectors.scores, said.scores, atol=1e-4)
    examples = LabelledTokens(tokens.windows(12), np.zeros(len(tokens), np.int64), tokens.num_windows(12))
    np.testing.assert_array_equal(example_vectors(model, examples, worker=Worker()), said.vectors)


@pytest.mark.parametrize("task", [*TASKS, *PROBES], ids=lambda task: task.name)
@pytest.mark.parametrize("max_batch_tokens", [1, 300])
def test_an_evaluation_sees_what_labelling_says(
    model: MTOPModel, tokenizer: BertTokenizer, make_texts: MakeTexts, task: Task, max_batch_tokens: int
) -> None:
    texts = texts_of(make_texts)
    rng = np.random.default_rng(0)
    labels: Any = rng.integers(task.num_outputs, size=len(texts))
    if task.is_multi_label:
        labels = rng.random((len(texts), task.num_outputs)) < 0.5
    elif task.kind == "regression":
        labels = labels.astype(np.float32)
    text_tokenizer = TextTokenizer(tokenizer, **LIMITS)
    examples = tokenise_examples(RawExamples(task, "here", False, texts, None, labels, []), text_tokenizer)
    found = task_predictions(model, examples, task, max_batch_tokens=max_batch_tokens)
    predictor = Predictor(model, tokenizer, device="cpu", precision="fp32", tasks=[task.name])
    said = predictor.predict_tokens(text_tokenizer.encode(texts))
    if task.is_multi_label:
        np.testing.assert_allclose(found.scores.T, said.probabilities[task.name], atol=1e-4)
        return
    if task.kind == "regression":
        np.testing.assert_allclose(found.values, said.scores[0], atol=1e-3)
        assert found.loss == pytest.approx((((said.scores[0] - labels) / task.std) ** 2).sum(), rel=1e-3)
        return
    np.testing.assert_array_equal(found.values, said.label_ids[0])
    np.testing.assert_allclose(found.scores, said.scores[0], atol=1e-4)


def test_windows_are_part_of_the_fingerprints(model: MTOPModel) -> None:
    seen = [task_fingerprints(model, "t")]
    vectors = [vector_fingerprint(model, "t")]
    for key, value in (("window_overlap", 4), ("max_windows", 6), ("max_windows", 1)):
        setattr(model.config, key, value)
        seen.append(task_fingerprints(model, "t"))
        vectors.append(vector_fingerprint(model, "t"))
    for task in seen[0]:
        assert len({fingerprints[task] for fingerprints in seen}) == 4
    assert len(set(vectors)) == 4
    # Where texts are cut, nothing that is about windows counts.
    model.config.window_overlap = 0
    assert task_fingerprints(model, "t") == seen[-1]
    model.config.tasks = [{**entry, "task": {**entry["task"], "combine": "mean"}} for entry in model.config.tasks]
    assert task_fingerprints(model, "t") == seen[-1]
    model.config.max_windows, model.config.window_overlap = 7, 3
    changed = task_fingerprints(model, "t")
    assert [name for name in changed if changed[name] != seen[0][name]] == ["tone", "lead"]
