"""Entities of texts by a predictor: the label table's columns, whatever the batches, columns and windows."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtop_batch.data.tokens import TextTokenizer
from mtop_batch.labelling.run.predictor import Predictor
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.table.columns import ENTITIES_TYPE, OutputKind, kinds_of
from mtop_batch.tasks import Task
from tests.conftest import make_backbone, make_tokenizer
from tests.data.test_tokens import _TEXTS

TASKS = [
    Task("names", "token", ("PER", "LOC")),
    Task("politics"),
    Task("grade", "regression", labels=()),
    Task("things", "token", ("THING",)),
]


def make_model(max_windows: int = 1, tasks: list[Task] = TASKS) -> MTOPModel:
    """A model whose random weights are large enough to tell texts apart."""
    backbone = make_backbone()
    model: MTOPModel = MTOPModel.from_backbone(backbone, tasks, max_tokens=14)
    model.config.max_windows, model.config.window_overlap = max_windows, 3 if max_windows > 1 else 0
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="module", params=[1, 6], ids=["cut", "windows"])
def predictor(request: pytest.FixtureRequest) -> Predictor:
    return Predictor(make_model(request.param), make_tokenizer(), precision="fp32")


def test_the_columns_are_those_of_the_label_table(predictor: Predictor) -> None:
    table = predictor.predict(["a bank wins the cup in a market of music", None, "x"])
    names = ["names_label", "names_score", "politics_label", "politics_score", "grade_score"]
    assert table.column_names == [*names, "things_label", "things_score", "error"]
    assert table.schema.field("names_label").type == ENTITIES_TYPE
    assert table["names_label"][1].as_py() is None
    assert table["error"].to_pylist() == [None, "text is null", None]
    kinds = kinds_of(table.schema)
    assert {task.name: kinds[task.name] for task in TASKS} == {task.name: OutputKind.of(task) for task in TASKS}


@cache
def predictor_of_pairs() -> Predictor:
    tasks = [Task(task.name, task.kind, task.labels, ("title", "body")) for task in TASKS]
    return Predictor(make_model(tasks=tasks), make_tokenizer(), precision="fp32")


@given(texts=st.lists(st.tuples(_TEXTS, st.none() | _TEXTS), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_offsets_give_back_what_was_tagged(predictor: Predictor, texts: list[tuple[str, str | None]]) -> None:
    firsts, seconds = [text for text, _ in texts], [second for _, second in texts]
    pairs = predictor_of_pairs()
    cases: list[tuple[Any, dict[str, Any]]] = [
        (predictor.predict(firsts), {"text": firsts}),
        (pairs.predict(firsts, seconds), {"title": firsts, "body": seconds}),
    ]
    for found, columns in cases:
        for row, (entities, score) in enumerate(zip(found["names_label"], found["names_score"], strict=True)):
            if entities.as_py() is None:
                continue
            ends = dict.fromkeys(columns, 0)
            for entity in entities.as_py():
                text = columns[entity["column"]][row]
                assert text is not None
                tagged = text[entity["start"] : entity["end"]]
                assert tagged == tagged.strip() != ""
                assert ends[entity["column"]] <= entity["start"] < entity["end"] <= len(text)
                ends[entity["column"]] = entity["end"]
                assert entity["label"] in TASKS[0].labels
                assert score.as_py() - 1e-6 <= entity["score"] <= 1


def test_batches_and_neighbours_change_nothing(predictor: Predictor) -> None:
    generator = np.random.default_rng(0)
    words = "bank market profit goal team x q the a in , .".split()
    texts = [" ".join(generator.choice(words, size=size)) for size in generator.integers(1, 40, size=25)]
    together = predictor.predict(texts)
    assert pa.compute.sum(pa.compute.list_value_length(together["names_label"])).as_py() > 10
    small = Predictor(predictor._model, make_tokenizer(), precision="fp32", max_batch_tokens=40).predict(texts)
    alone = pa.concat_tables([predictor.predict([text]) for text in texts])
    for other in (small, alone):
        for name in ("names", "things"):
            ours, theirs = (
                [[(e["start"], e["end"], e["label"]) for e in row] for row in table[f"{name}_label"].to_pylist()]
                for table in (together, other)
            )
            assert ours == theirs
            np.testing.assert_allclose(together[f"{name}_score"], other[f"{name}_score"], atol=1e-5)
        assert together["politics_label"].equals(other["politics_label"])


def test_token_tasks_alone_and_others_alone(predictor: Predictor) -> None:
    texts = ["a bank wins the cup", "music of the team in a market"]
    whole = predictor.predict(texts)
    for wanted in (["names"], ["names", "things"], ["politics"]):
        some = Predictor(predictor._model, make_tokenizer(), precision="fp32", tasks=wanted).predict(texts)
        assert some.column_names[:-1] == [name for name in whole.column_names if name.split("_")[0] in wanted]
        for name in some.column_names:
            if name.endswith("label"):
                assert some[name].combine_chunks().equals(whole[name].combine_chunks()) or "names" in name


def test_a_text_that_fits_is_tagged_as_its_words_say() -> None:
    model, tokenizer = make_model(), make_tokenizer()
    text = "bank wins x market"
    tokens = TextTokenizer(tokenizer, 14).encode([text], words=True)
    ids = torch.from_numpy(tokens.row(0).astype(np.int64))[None]
    with torch.inference_mode():
        logits = model.all_outputs(ids, tasks=["things"]).at_tokens["things"][0, 1:-1]
    best = logits.argmax(dim=-1).tolist()
    found = Predictor(model, tokenizer, precision="fp32").predict([text])["things_label"][0].as_py()
    if all(tag != 2 or before in (1, 2) for before, tag in zip([0, *best], best, strict=False)):
        assert len(found) == best.count(1)
    least = logits.softmax(-1).max(-1).values.min().item()
    score = Predictor(model, tokenizer, precision="fp32").predict([text])["things_score"][0].as_py()
    assert score <= least + 1e-6
