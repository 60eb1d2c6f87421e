"""Texts without labels in pre-finetuning: pairs that belong together, and what a teacher finds."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mtop_batch.config.load import load_config, validate
from mtop_batch.config.sections import Config
from mtop_batch.config.task import SourceConfig
from mtop_batch.data.batches import pad_batch
from mtop_batch.data.labelled_tokens import PairedTexts
from mtop_batch.data.tokens import TextTokenizer, Tokens
from mtop_batch.errors import BundleError, ConfigError, DataError, MtopError
from mtop_batch.model.bundle.bundle import save_bundle
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.tasks import NO_TAG, Task
from mtop_batch.training.loop import fit
from mtop_batch.training.prefinetuning import PrefinetuningModel, prefinetuning_model
from mtop_batch.training.settings import TaskData
from mtop_batch.training.sources import TokenTeacher, distilled_loss, load_teacher, read_source
from tests.conftest import WORDS, make_tokenizer
from tests.training.test_loop import Checkpoints, assert_identical, weights
from tests.training.toy import TASKS, make_encoder, make_examples, make_settings

NAMES, PLACES = Task("names", "token", ("PER", "ORG")), Task("places", "token", ("LOC",))
TOKENIZER = TextTokenizer(make_tokenizer(), 16)


def write_corpus(root: Path, count: int = 60) -> str:
    """Titles of one word, and bodies that begin with the same word."""
    draws = random.Random(0)
    rows = [(draws.choice(WORDS), " ".join(draws.choices(WORDS, k=5))) for _ in range(count)]
    table = pa.table({"title": [title for title, _ in rows], "body": [f"{title} {body}" for title, body in rows]})
    root.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, root / "corpus.parquet")
    return str(root / "corpus.parquet")


def make_config(source: dict[str, Any], *others: dict[str, Any], **sections: Any) -> Config:
    """A configuration of a source, of a family if it names one, and perhaps of further ones."""
    families = [{"name": each["family"], "layers": 1} for each in (source, *others) if "family" in each]
    values = {"output": "o", "backbone": {"name": "none", "max_tokens": 16}, "family": families}
    return validate({**values, "source": [source, *others], **sections}, "test")


def save_teacher(root: Path, *tasks: Task, max_tokens: int = 16) -> str:
    """A bundle of an untrained model."""
    model = MTOPModel.from_backbone(make_encoder(), tasks, max_tokens=max_tokens)
    save_bundle(str(root), model, make_tokenizer(), metrics={}, training_config={}, backbone_name="tiny")
    return str(root)


def read(config: Config) -> tuple[dict[str, TokenTeacher], list[TaskData]]:
    found = {source.name: load_teacher(source, make_tokenizer(), 16) for source in config.source}
    data = [read_source(source, found[source.name], TOKENIZER, 0) for source in config.source]
    return {name: teacher for name, teacher in found.items() if teacher is not None}, data


def model_of(config: Config, teachers: dict[str, TokenTeacher], data: list[TaskData]) -> PrefinetuningModel:
    return prefinetuning_model(config, make_encoder(), data, teachers)[0]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def pairs(corpus: str) -> dict[str, Any]:
    return {"name": "articles", "corpus": corpus, "text": ["title", "body"], "family": "texts"}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two token tasks beside one on texts."""
    return save_teacher(tmp_path_factory.mktemp("teacher") / "bundle", NAMES, TASKS[0], PLACES)


@pytest.fixture(scope="module")
def distilled(corpus: str, teacher: str) -> dict[str, Any]:
    return {"name": "found", "corpus": corpus, "text": ["body"], "teacher": teacher, "family": "entities"}


def test_a_step_is_given_both_texts_of_each_of_its_pairs() -> None:
    firsts, seconds = Tokens.from_rows([[1, 2], [3], [4]]), Tokens.from_rows([[5], [6, 7, 8], [9]])
    examples = PairedTexts.of(firsts, seconds)
    assert len(examples) == 3
    rows = np.array([2, 0, 1])
    windows = examples.draw_windows(rows, 0, 1)
    shares = [windows[rank::2].ravel() for rank in (0, 1)]  # of two workers
    assert [[examples.tokens.row(int(row)).tolist() for row in share] for share in shares] == [
        [[4], [9], [3], [6, 7, 8]],
        [[1, 2], [5]],
    ]
    assert examples.targets(rows[::2], shares[0]).tolist() == [0, 0, 1, 1]
    few = examples.take(rows[:1])
    assert isinstance(few, PairedTexts)
    assert few.draw_windows(np.array([0])).shape == (1, 2)


def test_texts_of_a_pair_come_closer(pairs: dict[str, Any]) -> None:
    config = make_config(pairs)
    _, data = read(config)
    model = model_of(config, {}, data)
    before = found_again(model, data[0])
    fit(model, data, make_settings(epochs=10, evaluate=False))
    assert found_again(model, data[0]) > before + 0.2
    assert all(tensor.any() for tensor in model.family_tensors("texts").values())


@torch.no_grad()
def found_again(model: MTOPModel, data: TaskData) -> float:
    """Of the titles, the share whose nearest body is theirs."""
    inputs: dict[str, Any] = pad_batch(data.train.tokens, np.arange(2 * len(data.train)))
    model.eval()
    with model._as_family("texts"):
        vectors = model.all_tasks_and_vectors(**inputs, tasks=[])[1].float()
    nearest = (vectors[::2] @ vectors[1::2].T).argmax(dim=1)
    return float((nearest == torch.arange(len(nearest))).float().mean())


def test_the_distilled_loss_is_the_cross_entropy_of_each_task_by_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 7, generator=generator)  # PER, ORG and LOC: O, and B and I of each
    said = [torch.randn(2, 3, 5, generator=generator), torch.randn(2, 3, 3, generator=generator)]
    tags = torch.tensor([[NO_TAG, 0, 0], [NO_TAG, NO_TAG, 0]])
    of_texts = []
    for text in range(2):
        of_words = []
        for place in range(3):
            if tags[text, place] == NO_TAG:
                continue
            for of_task, columns in zip(said, ([0, 1, 2, 3, 4], [0, 5, 6]), strict=True):
                wanted = of_task[text, place].softmax(0)
                of_words.append(-(wanted * logits[text, place, columns].log_softmax(0)).sum())
        of_texts.append(torch.stack(of_words).mean())
    torch.testing.assert_close(distilled_loss(logits, said, tags), torch.stack(of_texts).mean())
    nothing = distilled_loss(logits, said, torch.full((2, 3), NO_TAG))
    assert nothing == 0


def test_what_a_teacher_says_is_learned_and_the_teacher_stays(distilled: dict[str, Any]) -> None:
    config = make_config(distilled)
    teachers, data = read(config)
    assert teachers["found"].types == ("names: PER", "names: ORG", "places: LOC")
    before = {name: value.clone() for name, value in teachers["found"].model.state_dict().items()}
    model = model_of(config, teachers, data)
    assert not any("teacher" in name for name in model.state_dict())
    losses = [loss_of(model, data[0])]
    fit(model, data, make_settings(epochs=20, evaluate=False))
    losses.append(loss_of(model, data[0]))
    certain = loss_of(model, data[0], itself=True)
    assert losses[1] - certain < 0.5 * (losses[0] - certain)
    assert all(tensor.any() for tensor in model.family_tensors("entities").values())
    assert_identical(dict(teachers["found"].model.state_dict()), before)


@torch.no_grad()
def loss_of(model: PrefinetuningModel, data: TaskData, *, itself: bool = False) -> float:
    """The loss of all texts; or what it is if nothing else is said than what the teacher says."""
    rows = np.arange(len(data.train))
    inputs: dict[str, Any] = pad_batch(data.train.tokens, rows)
    tags = torch.from_numpy(data.train.targets(rows, rows))
    if not itself:
        return float(model(**inputs, task=data.task.name, labels=tags).loss)
    said = model.teachers[data.task.name].logits(inputs["input_ids"], inputs["attention_mask"], None)
    return float(np.mean([distilled_loss(one, [one], tags).item() for one in said]))


def test_a_resumed_run_ends_with_the_weights_of_an_undisturbed_one(
    pairs: dict[str, Any], distilled: dict[str, Any], tmp_path: Path
) -> None:
    config = make_config(pairs, distilled)
    teachers, data = read(config)
    settings = make_settings(epochs=1, checkpoint_steps=4, evaluate=False)
    undisturbed, save = model_of(config, teachers, data), Checkpoints(tmp_path)
    fit(undisturbed, data, settings, save=save)
    for step in (4, 12):
        again, read_again = read(config)
        resumed = model_of(config, again, read_again)
        fit(resumed, read_again, settings, checkpoint=tmp_path / str(step))
        assert_identical(weights(resumed), weights(undisturbed))


def test_sources_stand_beside_tasks(pairs: dict[str, Any], distilled: dict[str, Any]) -> None:
    tasks = [{"name": "sport", "labels": ["no", "yes"], "family": "texts", "train": "t", "eval": "e"}]
    config = make_config(pairs, distilled, task=tasks)
    teachers, of_sources = read(config)
    data = [TaskData(TASKS[0], make_examples(TASKS[0], 20, 0)), *of_sources]
    model, sources = prefinetuning_model(config, make_encoder(), data, teachers)
    assert model.task_names == ["sport", "articles", "found"]
    assert [model.family_of(name) for name in model.task_names] == ["texts", "texts", "entities"]
    fit(model, sources, make_settings(epochs=1, evaluate=False))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"text": ["body"]}, ConfigError, r"source\[articles\].*text names one column: give two .* or a teacher"),
        ({"text": []}, ConfigError, "text"),
        ({"name": "1st"}, ConfigError, "name '1st' is not allowed"),
        ({"corpora": "x"}, ConfigError, r"unknown key source\[articles\]\.corpora; did you mean 'corpus'"),
        ({"corpus": "nowhere.parquet"}, DataError, "nowhere.parquet"),
        ({"text": ["title", "abstract"]}, DataError, "has no column 'abstract'"),
        ({"teacher": "nowhere"}, BundleError, "nowhere"),
        ({"rate": 2.0}, ConfigError, "'found' has no rate"),
    ],
)
def test_what_a_source_cannot_be_is_said_in_one_line(
    pairs: dict[str, Any], distilled: dict[str, Any], changes: dict[str, Any], error: type[MtopError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        read(make_config({**pairs, **changes}, distilled))
    assert len(str(caught.value).splitlines()) <= 2  # the file's name may have a line


def test_teachers_that_cannot_teach_are_refused(pairs: dict[str, Any], tmp_path: Path) -> None:
    source = SourceConfig.model_validate({**pairs, "teacher": save_teacher(tmp_path / "topics", TASKS[0])})
    with pytest.raises(ConfigError, match=r"has no token task; its tasks: sport; name another"):
        load_teacher(source, make_tokenizer(), 16)
    source = SourceConfig.model_validate({**pairs, "teacher": save_teacher(tmp_path / "names", NAMES)})
    other = make_tokenizer()
    other.add_tokens(["another"])
    with pytest.raises(ConfigError, match="has another vocabulary than the backbone"):
        load_teacher(source, other, 16)
    with pytest.raises(ConfigError, match=r"cannot read texts of backbone\.max_tokens = 100"):
        load_teacher(source, make_tokenizer(), 100)


@pytest.mark.parametrize(
    ("title", "body"), [([None, "a b"], ["x y", None]), (["...", ""], ["x y", "a b"]), (["a"], ["b"])]
)
def test_a_corpus_without_pairs_is_refused(tmp_path: Path, title: list[Any], body: list[Any]) -> None:
    pq.write_table(pa.table({"title": title, "body": body}), tmp_path / "corpus.parquet")
    values = {"name": "articles", "corpus": str(tmp_path / "corpus.parquet"), "text": ["title", "body"]}
    source = SourceConfig.model_validate(values)
    with pytest.raises(DataError, match="fewer than two rows with a text in each of title, body"):
        read_source(source, None, TOKENIZER, 0)


def test_only_pre_finetuning_does_without_evaluation_examples(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(
        'output = "o"\n[backbone]\nname = "b"\n[[task]]\nname = "a"\nlabels = ["x", "y"]\ntrain = "t.parquet"\n'
    )
    task = load_config(path, prefinetunes=True).task[0]
    assert task.eval is None
    with pytest.raises(ConfigError, match=r"task\[a\]\.eval is missing; add it"):
        load_config(path)
    with pytest.raises(ConfigError, match=r"task 'a' has no evaluation examples; add eval = PATH"):
        _ = task.evaluation


def test_only_pre_finetuning_takes_sources(tmp_path: Path, corpus: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(
        f'output = "o"\n[backbone]\nname = "b"\n[[source]]\nname = "a"\ncorpus = "{corpus}"\ntext = ["title", "body"]\n'
    )
    assert load_config(path, prefinetunes=True).source[0].name == "a"
    with pytest.raises(ConfigError, match=r"only mtop prefinetune learns from \[\[source\]\] tables; remove them"):
        load_config(path)
