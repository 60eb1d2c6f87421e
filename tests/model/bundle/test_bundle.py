from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import fsspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertTokenizer

from mtop_batch.errors import BundleError
from mtop_batch.model.bundle.bundle import load_bundle, save_bundle
from mtop_batch.model.bundle.files import FORMAT, bundle_name, file_digest, json_digest, read_bundle_info
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.tasks import Task
from tests.model.conftest import Batch, MakeModel

METRICS = {"topic": {"accuracy": 0.91234}, "score": {"pearson": 0.5, "spearman": 0.25}}
FILES = [
    *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    *("metrics.json", "training.json", "decisions.json"),
]


def save(uri: str, model: MTOPModel, tokenizer: BertTokenizer) -> dict[str, str]:
    config = {"train": {"epochs": 3}}
    return save_bundle(uri, model, tokenizer, metrics=METRICS, training_config=config, backbone_name="tiny")


@pytest.fixture
def bundle_dir(make_model: MakeModel, tokenizer: BertTokenizer, tmp_path: Path) -> Path:
    save(str(tmp_path / "news"), make_model(), tokenizer)
    return tmp_path / "news"


@pytest.fixture
def memory_uri(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A bundle URI on an object store in memory; local copies go below this test's own directory."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    fsspec.filesystem("memory").store.clear()
    return "memory://models/news"


def edit(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


@torch.no_grad()
def test_a_bundle_comes_back_as_it_was(
    make_model: MakeModel, tokenizer: BertTokenizer, batch: Batch, tmp_path: Path
) -> None:
    model = make_model(prompt_attention="isolated", shared_prompts=1)
    fingerprints = save(str(tmp_path / "news"), model, tokenizer)
    bundle = load_bundle(str(tmp_path / "news"))
    assert torch.equal(bundle.model.all_tasks(**batch), model.all_tasks(**batch))
    assert bundle.tokenizer("market wins")["input_ids"] == tokenizer("market wins")["input_ids"]
    assert bundle.fingerprints == fingerprints
    assert list(fingerprints) == ["topic", "type", "score"]
    assert (bundle.name, bundle.backbone_name) == ("news", "tiny")
    info = read_bundle_info(bundle.uri)
    assert (info.kind, info.fingerprints, info.decisions) == ("mtop", bundle.fingerprints, bundle.decisions)
    assert list(bundle.decisions) == list(fingerprints)
    assert (bundle.metrics, bundle.training_config) == (METRICS, {"train": {"epochs": 3}})


def test_fingerprints_survive_load_save_and_added_tasks(
    bundle_dir: Path, tokenizer: BertTokenizer, tmp_path: Path
) -> None:
    bundle = load_bundle(str(bundle_dir))
    tokenizer(["a b"], truncation=True, max_length=3, padding="max_length")
    model = cast(MTOPModel, bundle.model)
    model.add_tasks([Task("added")])
    later = save(str(tmp_path / "later"), model, tokenizer)
    assert {name: later[name] for name in bundle.fingerprints} == bundle.fingerprints
    assert load_bundle(str(tmp_path / "later")).digest != bundle.digest


def test_saving_the_same_twice_gives_the_same_digest(
    make_model: MakeModel, tokenizer: BertTokenizer, tmp_path: Path
) -> None:
    save(str(tmp_path / "a"), make_model(), tokenizer)
    tokenizer(["a b"], truncation=True, max_length=3, padding="max_length")
    save(str(tmp_path / "b"), make_model(), tokenizer)
    assert load_bundle(str(tmp_path / "a")).digest == load_bundle(str(tmp_path / "b")).digest


def test_a_bundle_replaces_an_older_one(bundle_dir: Path, make_model: MakeModel, tokenizer: BertTokenizer) -> None:
    save(str(bundle_dir), make_model((Task("other"),)), tokenizer)
    assert load_bundle(str(bundle_dir)).model.task_names == ["other"]


def test_transformers_loads_the_parts_of_a_local_bundle(bundle_dir: Path) -> None:
    assert MTOPModel.from_pretrained(bundle_dir).task_names == ["topic", "type", "score"]
    script = f"from transformers import AutoTokenizer as A; print(A.from_pretrained({str(bundle_dir)!r}).is_fast)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_damaged_file_is_noticed(bundle_dir: Path, name: str) -> None:
    content = (bundle_dir / name).read_bytes()
    for damaged in (content[:-5], bytes([content[0], content[1] ^ 1]) + content[2:]):
        (bundle_dir / name).write_bytes(damaged)
        with pytest.raises(BundleError, match=f"{name}.* is damaged|{name}.* was changed"):
            load_bundle(str(bundle_dir))
    (bundle_dir / name).unlink()
    with pytest.raises(BundleError, match=f"(lacks|has no) {name}"):
        load_bundle(str(bundle_dir))


def test_the_model_card_may_be_edited(bundle_dir: Path) -> None:
    card = (bundle_dir / "README.md").read_text()
    assert "| topic | classification | prompts | sport, film, money | title | accuracy 0.9123 |" in card
    assert "| type | classification | prompts | no, yes | title, body | not evaluated |" in card
    assert "| score | regression | prompts | a number | text | pearson 0.5, spearman 0.25 |" in card
    (bundle_dir / "README.md").write_text("ours")
    load_bundle(str(bundle_dir))


def test_other_kinds_and_versions_are_refused(bundle_dir: Path) -> None:
    original = (bundle_dir / "config.json").read_text()
    for number in (1, FORMAT - 1, 99):
        config = json.loads(original)
        config["bundle"]["format"] = number
        (bundle_dir / "config.json").write_text(json.dumps(config))
        with pytest.raises(BundleError, match=f"has format {number}, this version reads {FORMAT}"):
            load_bundle(str(bundle_dir))
    config = {**json.loads(original), "model_type": "bert"}
    del config["bundle"]["digest"]
    config["bundle"]["digest"] = json_digest(config)
    (bundle_dir / "config.json").write_text(json.dumps(config))
    with pytest.raises(BundleError, match="model kind 'bert' is not known to this version; known: mtop"):
        load_bundle(str(bundle_dir))
    (bundle_dir / "config.json").write_text(original)
    edit(bundle_dir / "config.json", lambda c: c["bundle"]["fingerprints"].update(topic="0"))  # type: ignore[index]
    with pytest.raises(BundleError, match="was changed after it was written"):
        load_bundle(str(bundle_dir))


def test_no_bundle_and_a_bare_model_are_told_apart(bundle_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"there is no bundle at .*missing"):
        load_bundle(str(tmp_path / "missing"))
    MTOPModel.from_pretrained(bundle_dir).save_pretrained(tmp_path / "bare")
    with pytest.raises(BundleError, match="holds a model but no bundle"):
        load_bundle(str(tmp_path / "bare"))


Change = Callable[[dict[str, Any]], object]


def reseal(directory: Path, change: Change = lambda _: None) -> None:
    """Change a bundle's configuration, and give it the checksums of what is there."""
    config = json.loads((directory / "config.json").read_text())
    files = config["bundle"]["files"]
    files.update({name: file_digest(directory / name) for name in files if (directory / name).is_file()})
    change(config)
    del config["bundle"]["digest"]
    config["bundle"]["digest"] = json_digest(config)
    (directory / "config.json").write_text(json.dumps(config))


MALFORMED: dict[str, tuple[Change, str]] = {
    "no tasks": (lambda c: c.pop("tasks"), "tasks: Field required"),
    "tasks are a number": (lambda c: c.update(tasks=7), "tasks: Input should be a valid list"),
    "an entry without task": (lambda c: c["tasks"][0].pop("task"), "tasks.0.task: Field required"),
    "an unknown field": (lambda c: c["tasks"][0]["task"].update(evil=1), "unknown task fields"),
    "a name that is a number": (lambda c: c["tasks"][0]["task"].update(name=7), "cannot be right"),
    "labels that are numbers": (lambda c: c["tasks"][0]["task"].update(labels=7), "cannot be right"),
    "a task twice": (lambda c: c["tasks"].append(c["tasks"][0]), "two tasks are called 'topic'"),
    "no fingerprint": (lambda c: c["bundle"]["fingerprints"].pop("topic"), "bundle.fingerprints lacks 'topic'"),
    "no text length": (lambda c: c.update(max_tokens="many"), "max_tokens: Input should be a valid integer"),
    "a negative text length": (lambda c: c.update(max_tokens=-5), "max_tokens: Input should be greater than 0"),
    "a file elsewhere": (lambda c: c["bundle"]["files"].update({"../evil": "0" * 64}), "bundle.files.../evil"),
    "no weights": (lambda c: c["bundle"]["files"].pop("model.safetensors"), "bundle.files lacks 'model.safetensors'"),
    "no encoder": (lambda c: c.pop("backbone_config"), "backbone_config: Field required"),
    "an unknown encoder": (lambda c: c["backbone_config"].update(model_type="evil"), "cannot be loaded"),
    "a wrong size": (lambda c: c["backbone_config"].update(hidden_size="wide"), "cannot be loaded"),
    "another size": (lambda c: c["backbone_config"].update(intermediate_size=48), "cannot be loaded"),
    "kernels of a hub": (
        lambda c: c["backbone_config"].update(attn_implementation="evil/kernels"),
        "backbone_config.attn_implementation = 'evil/kernels' asks for other code",
    ),
    "flash attention": (
        lambda c: c.update(_attn_implementation="flash_attention_2"),
        "_attn_implementation = 'flash_attention_2' asks for other code",
    ),
    "other kernels": (lambda c: c["backbone_config"].update(use_kernels=True), "use_kernels = True asks"),
    "a quantisation": (
        lambda c: c.update(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "quantization_config = .*bitsandbytes.* asks for other code or weights",
    ),
    "a quantised encoder": (
        lambda c: c["backbone_config"].update(quantization_config={"quant_method": "evil"}),
        "backbone_config.quantization_config",
    ),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_configuration_that_cannot_be_is_refused_in_one_line(bundle_dir: Path, what: str) -> None:
    change, message = MALFORMED[what]
    reseal(bundle_dir, change)
    with pytest.raises(BundleError, match=message) as caught:
        load_bundle(str(bundle_dir))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b"no weights"),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b'{"version": "1.0", "model": {"type": "Evil"}}'),
        ("tokenizer_config.json", b"[1]"),
        ("metrics.json", b"{"),
    ],
)
def test_a_malformed_part_with_the_right_checksum_is_refused_in_one_line(
    bundle_dir: Path, name: str, content: bytes
) -> None:
    (bundle_dir / name).write_bytes(content)
    reseal(bundle_dir)
    with pytest.raises(BundleError, match="cannot be loaded") as caught:
        load_bundle(str(bundle_dir))
    assert "\n" not in str(caught.value)


def test_weights_that_are_missing_are_not_made_up(bundle_dir: Path) -> None:
    weights = load_file(bundle_dir / "model.safetensors")
    name = next(name for name in weights if name.startswith("task_modules.task_topic"))
    save_file({key: value for key, value in weights.items() if key != name}, bundle_dir / "model.safetensors")
    reseal(bundle_dir)
    with pytest.raises(BundleError, match=f"the weights of the bundle .* lack {name}"):
        load_bundle(str(bundle_dir))


def test_config_json_is_written_last(
    make_model: MakeModel, tokenizer: BertTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploaded: list[str] = []
    monkeypatch.setattr("mtop_batch.storage.upload", lambda path, _uri: uploaded.append(Path(path).name))
    save(str(tmp_path / "news"), make_model(), tokenizer)
    assert uploaded[-1] == "config.json"
    assert {*FILES, "README.md"} == set(uploaded)


def test_a_remote_bundle_is_copied_once_and_again_if_damaged(
    make_model: MakeModel, tokenizer: BertTokenizer, memory_uri: str, tmp_path: Path
) -> None:
    save(memory_uri, make_model(), tokenizer)
    first = load_bundle(memory_uri)
    copies = list(tmp_path.glob("mtop_batch-*/*"))
    assert [copy.name for copy in copies] == [first.digest]
    inode = (copies[0] / "model.safetensors").stat().st_ino
    assert load_bundle(memory_uri).fingerprints == first.fingerprints
    assert (copies[0] / "model.safetensors").stat().st_ino == inode
    (copies[0] / "model.safetensors").write_bytes(b"damaged")
    assert load_bundle(memory_uri).fingerprints == first.fingerprints
    assert list(tmp_path.glob("mtop_batch-*/*")) == copies


def test_a_copy_of_which_the_configuration_was_changed_is_made_again(
    make_model: MakeModel, tokenizer: BertTokenizer, memory_uri: str, tmp_path: Path
) -> None:
    save(memory_uri, make_model(), tokenizer)
    first = load_bundle(memory_uri)
    (copy,) = tmp_path.glob("mtop_batch-*/*")
    (copy / "config.json").write_text("{}")
    assert load_bundle(memory_uri).fingerprints == first.fingerprints
    assert "bundle" in (copy / "config.json").read_text()


def test_copies_lie_where_nobody_else_can_change_them(
    make_model: MakeModel, tokenizer: BertTokenizer, memory_uri: str, tmp_path: Path
) -> None:
    save(memory_uri, make_model(), tokenizer)
    load_bundle(memory_uri)
    (cache,) = tmp_path.glob("mtop_batch-*")
    assert cache.stat().st_mode & 0o777 == 0o700
    cache.chmod(0o777)
    with pytest.raises(BundleError, match=r"not a directory of this user alone.*chmod 700"):
        load_bundle(memory_uri)


def test_an_incomplete_remote_bundle_is_refused(
    make_model: MakeModel, tokenizer: BertTokenizer, memory_uri: str
) -> None:
    save(memory_uri, make_model(), tokenizer)
    fsspec.filesystem("memory").rm("/models/news/model.safetensors")
    with pytest.raises(BundleError, match="is incomplete"):
        load_bundle(memory_uri)


def test_bundles_are_named_by_the_last_part_of_their_uri() -> None:
    assert bundle_name("models/nhc/") == "nhc"
    assert bundle_name("s3://bucket/models/nhc") == "nhc"
