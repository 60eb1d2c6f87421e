"""Families through the product, on a real local Ray: trained, planned, labelled, added later."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console

from mtop_batch import Predictor, read_labels
from mtop_batch.config.task import FamilyConfig, SourceConfig
from mtop_batch.engine.evaluate import evaluate_in_detail
from mtop_batch.engine.labelling.label import LabelOptions, label_corpus
from mtop_batch.engine.monitoring.progress import Progress
from mtop_batch.engine.prefinetune import prefinetune
from mtop_batch.engine.train import train
from mtop_batch.errors import ConfigError, TaskError
from mtop_batch.model.bundle.bundle import load_bundle
from mtop_batch.model.bundle.files import read_bundle_info
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.model.prefinetuned import read_families
from tests.engine.conftest import MakeConfig
from tests.engine.test_add_tasks import add, write_config
from tests.engine.test_label import write_articles
from tests.engine.test_token_tasks import TEXTS, write_words

pytestmark = pytest.mark.usefixtures("ray_local")


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_words(tmp_path_factory.mktemp("words"), "names")


def with_tables(config: Any, tables: list[dict[str, Any]], families: list[dict[str, Any]]) -> Any:
    tasks = tuple(type(config.task[0]).model_validate(table) for table in tables)
    own = tuple(FamilyConfig.model_validate(family) for family in families)
    return config.model_copy(update={"task": tasks, "family": own})


def with_sources(config: Any, sources: Sequence[dict[str, Any]], families: Sequence[dict[str, Any]]) -> Any:
    """The configuration with these in place of tasks."""
    own = tuple(map(SourceConfig.model_validate, sources))
    return with_tables(config, [], list(families)).model_copy(update={"source": own})


@pytest.fixture(scope="module")
def model(
    tmp_path_factory: pytest.TempPathFactory,
    make_config: MakeConfig,
    task_tables: list[dict[str, Any]],
    names: dict[str, Any],
) -> str:
    """Entities are a family, one topic is another one, and the other topic has none."""
    output = tmp_path_factory.mktemp("bundle") / "model"
    config = make_config(output, train={"epochs": 12})
    tables = [{**names, "family": "entities"}, {**task_tables[0], "family": "topics"}, task_tables[1]]
    families = [{"name": "entities", "layers": 1, "rank": 4}, {"name": "topics", "layers": 1}]
    with Progress(Console(quiet=True)) as progress:
        result = train(with_tables(config, tables, families), progress=progress)
    assert result.metrics["names"]["entity_f1"] > 0.5
    assert result.metrics["sport"]["accuracy"] > 0.7
    return str(output)


def test_a_bundle_has_its_families(model: str) -> None:
    bundle, info = load_bundle(model), read_bundle_info(model)
    assert isinstance(bundle.model, MTOPModel)
    assert [family.name for family in bundle.model.task_families] == ["entities", "topics"]
    for family in ("entities", "topics"):
        moved = bundle.model.family_tensors(family)
        assert all(tensor.any() for name, tensor in moved.items() if ".B." in name)
    assert info.passes(["names", "sport", "business"]) == info.passes(bundle.model.task_names) == 2
    assert info.passes(["names"]) == info.passes(["business"]) == 1
    card = Path(model, "README.md").read_text()
    assert "in 2 forward passes" in card
    assert "* `entities`, LoRA in the last 1 of 2 layers: names" in card
    assert evaluate_in_detail(model)["names"].metrics["entity_f1"] > 0.5


def test_a_plan_and_a_report_say_what_families_cost(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_articles(f"{tmp_path}/corpus/a.parquet", TEXTS)
    options = LabelOptions(model, f"{tmp_path}/corpus", f"{tmp_path}/labels", text_columns=("body",), precision="fp32")
    wanted: dict[tuple[str, ...], float] = {(): 2, ("names", "sport"): 1.5, ("sport",): 1}
    for tasks, passes in wanted.items():
        assert label_corpus(replace(options, tasks=tasks), plan_only=True)["passes_per_text"] == passes
        said = f"{passes:.3g} forward pass{'' if passes == 1 else 'es'} per text"
        assert said in capsys.readouterr().out
    report = label_corpus(options)
    assert report["passes_per_text"] == 2
    table, expected = read_labels(f"{tmp_path}/labels"), Predictor.load(model, precision="fp32").predict(TEXTS)
    for name in ("sport_label", "business_label"):
        assert table[name].to_pylist() == expected[name].to_pylist()
    assert label_corpus(options)["cells_planned"] == 0


def test_tasks_are_added_to_a_family_and_with_a_new_one(
    model: str, names: dict[str, Any], task_tables: list[dict[str, Any]], tmp_path: Path
) -> None:
    tables = [
        {**task_tables[0], "name": "one", "family": "late"},
        {**names, "name": "two", "family": "late"},
        {**names, "name": "three", "family": "entities"},
        {**task_tables[1], "name": "four"},
    ]
    config = write_config(tmp_path / "new.toml", tables, '[[family]]\nname = "late"\nlayers = 2')
    result = add(model, config, tmp_path / "m2", overrides=["add_tasks.epochs=6"])
    before, after = load_bundle(model), load_bundle(str(tmp_path / "m2"))
    assert {name: after.fingerprints[name] for name in before.fingerprints} == before.fingerprints
    assert result.unchanged == tuple(before.model.task_names)
    old, new = before.model, after.model
    assert isinstance(old, MTOPModel)
    assert isinstance(new, MTOPModel)
    assert [family.name for family in new.task_families] == ["entities", "topics", "late"]
    for family in ("entities", "topics"):
        was = old.family_tensors(family)
        assert all(torch.equal(value, was[name]) for name, value in new.family_tensors(family).items())
    assert all(tensor.any() for tensor in new.family_tensors("late").values())
    assert result.added["two"]["entity_f1"] > 0.1
    ids = torch.randint(5, 80, (4, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = old.task_names
        found, expected = new.all_outputs(ids, tasks=[*wanted, "one"]), old.all_outputs(ids, tasks=wanted)
        assert torch.equal(found.logits[:, :2], expected.logits)
        assert torch.equal(found.at_tokens["names"], expected.at_tokens["names"])
    described = json.loads(Path(tmp_path, "m2", "training.json").read_text())
    assert [family["name"] for family in described["family"]] == ["entities", "topics", "late"]
    again = add(model, config, tmp_path / "m2", overrides=["add_tasks.epochs=6"])
    assert again.was_there


def test_what_families_cannot_be_is_refused_before_work(
    model: str, make_config: MakeConfig, names: dict[str, Any], task_tables: list[dict[str, Any]], tmp_path: Path
) -> None:
    config = make_config(tmp_path / "other")
    late = [{"name": "late", "layers": 3}]
    for tables, families, error, message in (
        ([{**names, "family": "x"}], [], TaskError, "task 'names': there is no family 'x'"),
        ([names], [{"name": "x"}], TaskError, "family 'x' has no task"),
        ([{**names, "family": "late"}], late, ConfigError, "layers = 3 is more than the layers"),
    ):
        with pytest.raises(error, match=message), Progress(Console(quiet=True)) as progress:
            train(with_tables(config, tables, families), progress=progress)
    for head, family, error, message in (
        ("", "x", TaskError, "there is no family 'x'; families: entities, topics"),
        ('[[family]]\nname = "topics"', "topics", TaskError, "'topics' is there already"),
        ('[[family]]\nname = "y"\nlayers = 9', "y", ConfigError, "layers = 9 is more than the layers"),
    ):
        new = {**task_tables[0], "name": "new", "family": family}
        with pytest.raises(error, match=message):
            add(model, write_config(tmp_path / "new.toml", [new], head), tmp_path / "m3")


@pytest.mark.slow
def test_a_training_begins_with_a_pre_finetuned_backbone(
    make_config: MakeConfig, names: dict[str, Any], task_tables: list[dict[str, Any]], tmp_path: Path
) -> None:
    tables = [{**names, "family": "entities"}, {**task_tables[0], "family": "topics"}]
    families = [{"name": "entities", "layers": 1}, {"name": "topics", "layers": 1}]
    learned = [{key: value for key, value in table.items() if key != "eval"} for table in tables]
    sources = with_tables(make_config(tmp_path / "backbone", train={"epochs": 1}), learned, families)
    with Progress(Console(quiet=True)) as progress:
        result = prefinetune(sources, progress=progress)
        assert (result.families, result.was_there) == (("entities", "topics"), False)
        with pytest.raises(ConfigError, match="has no evaluation examples; add eval = PATH"):
            train(sources.model_copy(update={"output": str(tmp_path / "model")}), progress=progress)
        assert prefinetune(sources, progress=progress).was_there
        other = sources.model_copy(update={"train": sources.train.model_copy(update={"seed": 3})})
        with pytest.raises(ConfigError, match="holds the backbone of another configuration"):
            prefinetune(other, progress=progress)
        found = read_families(str(tmp_path / "backbone"))
        assert all(tensor.any() for _, tensors in found.values() for tensor in tensors.values())
        config = make_config(tmp_path / "model", backbone={"name": str(tmp_path / "backbone")}, train={"epochs": 1})
        train(with_tables(config, tables, families), progress=progress)
        with pytest.raises(ConfigError, match="set these, or give the family another name"):
            train(with_tables(config, tables, [{"name": "entities", "layers": 2}, families[1]]), progress=progress)
        with pytest.raises(ConfigError, match="is there already and is no backbone of mtop prefinetune"):
            prefinetune(sources.model_copy(update={"output": str(tmp_path / "model")}), progress=progress)
        with pytest.raises(ConfigError, match="name a local directory"):
            prefinetune(sources.model_copy(update={"output": "s3://bucket/b"}), progress=progress)
    assert not (tmp_path / "backbone.training").exists()


@pytest.mark.slow
def test_a_backbone_is_made_again_where_that_is_wanted(
    make_config: MakeConfig, task_tables: list[dict[str, Any]], tmp_path: Path
) -> None:
    """`--overwrite` replaces what another configuration, or the same one, has made; and nothing else."""
    output = tmp_path / "backbone"
    tables = [{**task_tables[0], "family": "topics"}]
    first = with_tables(make_config(output, train={"epochs": 1}), tables, [{"name": "topics", "layers": 1}])
    plain = with_tables(make_config(output, train={"epochs": 1, "seed": 3}), [task_tables[0]], [])
    with Progress(Console(quiet=True)) as progress:
        prefinetune(first, progress=progress)
        before = read_families(str(output))["topics"][1]
        again = prefinetune(first, progress=progress, overwrite=True)
        assert not again.was_there
        assert all(torch.equal(value, before[name]) for name, value in read_families(str(output))["topics"][1].items())
        with pytest.raises(ConfigError, match="holds the backbone of another configuration"):
            prefinetune(plain, progress=progress)
        assert prefinetune(plain, progress=progress, overwrite=True).families == ()
        assert read_families(str(output)) == {}
        assert not (output / "families.safetensors").exists()
        assert prefinetune(plain, progress=progress).was_there
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "notes.txt").write_text("mine")
        elsewhere = plain.model_copy(update={"output": str(tmp_path / "mine")})
        with pytest.raises(ConfigError, match="so --overwrite does not replace it; name another directory"):
            prefinetune(elsewhere, progress=progress, overwrite=True)
        assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"backbone", "mine"}


@pytest.mark.slow
def test_texts_without_labels_teach_a_backbone(model: str, make_config: MakeConfig, tmp_path: Path) -> None:
    """Pairs, and what a bundle finds."""
    titles = [text.split(" ")[0] for text in TEXTS]
    pq.write_table(
        pa.table({"title": titles * 5, "body": [f"{text} {n}" for n in "abcde" for text in TEXTS]}),
        tmp_path / "c.parquet",
    )
    corpus = str(tmp_path / "c.parquet")
    sources = (
        {"name": "pairs", "corpus": corpus, "text": ["title", "body"], "family": "texts"},
        {"name": "found", "corpus": corpus, "text": ["body"], "teacher": model, "family": "names"},
    )
    families = ({"name": "texts", "layers": 1}, {"name": "names", "layers": 1})
    config = with_sources(make_config(tmp_path / "a", train={"epochs": 10}), sources, families)

    with Progress(Console(quiet=True)) as progress:
        result = prefinetune(config, progress=progress)
        assert (result.tasks, result.families) == (("pairs", "found"), ("texts", "names"))
        assert prefinetune(config, progress=progress).was_there
        again = with_sources(config, sources[:1], families[:1])
        with pytest.raises(ConfigError, match="holds the backbone of another configuration"):
            prefinetune(again, progress=progress)
    found = read_families(str(tmp_path / "a"))
    assert all(value.any() for _, tensors in found.values() for value in tensors.values())
