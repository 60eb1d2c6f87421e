"""Nothing secret gets out, and nothing from outside gets run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mtop_batch import Task, storage
from mtop_batch.cli.commands import main
from mtop_batch.errors import ConfigError
from mtop_batch.model.bundle.bundle import save_bundle
from mtop_batch.model.encoder.backbone import load_backbone
from mtop_batch.model.kinds.mtop import MTOPModel
from tests.conftest import make_backbone, make_tokenizer
from tests.s3 import S3Server

CODE = "from pathlib import Path\nPath('executed').touch()\n"


def save_model(uri: str) -> str:
    model = MTOPModel.from_backbone(make_backbone(), [Task("mood", text=("body",))], max_tokens=32)
    save_bundle(uri, model, make_tokenizer(), metrics={}, training_config={}, backbone_name="tiny")
    return uri


def write_articles(uri: str) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": range(5), "body": ["bank profit"] * 5}), sink)
    storage.write_bytes(uri, sink.getvalue().to_pybytes())


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    return int(end.value.code or 0)


def everything_below(uri: str) -> bytes:
    fs, path = storage.fsspec_filesystem(uri)
    return b"".join(fs.cat_file(file) for file in fs.find(path))


def command_lines() -> bytes:
    return b"".join(path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists())


@pytest.mark.usefixtures("s3_environment", "ray_local")
def test_keys_of_the_object_store_are_in_no_output_file_or_command_line(
    s3_service: S3Server, capfd: pytest.CaptureFixture[str]
) -> None:
    root = f"s3://{s3_service.bucket}/security"
    save_model(f"{root}/model")
    write_articles(f"{root}/corpus/a.parquet")
    storage.write_bytes(f"{root}/corpus/bad.parquet", b"no Parquet")
    places = ("--model", f"{root}/model", "--corpus", f"{root}/corpus", "--labels", f"{root}/labels")
    assert run("label", *places) == 3
    written = everything_below(f"{root}/labels") + everything_below(f"{root}/model")
    assert b'"labelled": 5' in written
    output = "".join(capfd.readouterr())
    assert "5 articles" in output
    secret = s3_service.environment["AWS_SECRET_ACCESS_KEY"]
    assert secret not in output
    assert secret.encode() not in written + command_lines()


def test_a_tampered_bundle_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(f"{tmp_path}/model")
    write_articles(f"{tmp_path}/corpus/a.parquet")
    weights = tmp_path / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    places = ("--model", f"{tmp_path}/model", "--corpus", f"{tmp_path}/corpus", "--labels", f"{tmp_path}/labels")
    assert run("label", *places) == 2
    assert "model.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "labels").exists()


ADDRESSES = ["s3://AKIA:hunter2/x@bucket/x", "https://host/x?X-Amz-Signature=hunter2"]


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize(
    "command",
    [
        "label --model {} --corpus corpus --labels labels",
        "label --model model --corpus {} --labels labels",
        "label --model model --corpus corpus --labels {}",
        "labels --labels {}",
        "publish --labels {}",
        "vacuum --labels {}",
        "predict --model {} text",
        "evaluate --model model --config {}",
        "train --config train.toml --set output={}",
        "train --config train.toml",
        "drop-tasks --model model --tasks a --output {}",
    ],
)
def test_addresses_with_secrets_are_refused_and_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], command: str, address: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.toml").write_text(
        f'output = "out"\nbackbone.name = "x"\n[[task]]\nname = "a"\nlabels = ["n", "y"]\n'
        f'train = "{address}"\neval = "b"\n'
    )
    save_model("model")
    write_articles("corpus/a.parquet")
    assert run(*command.format(address).split()) == 2
    output = "".join(capfd.readouterr())
    assert "must not carry credentials or a signature" in output
    assert "hunter2" not in output
    assert not any("hunter2" in path.read_text(errors="replace") for path in tmp_path.rglob("*.json"))


def test_names_from_files_cannot_write_on_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    hostile = "\x1b[2J\u202eevil\r\nerror: none"
    save_model(f"{tmp_path}/model")
    write_articles(f"{tmp_path}/corpus/{hostile}/{hostile}.parquet")
    write_articles(f"{tmp_path}/corpus/a.parquet")
    (tmp_path / "corpus" / f"{hostile}.pq").write_bytes(b"")
    (tmp_path / "corpus" / f"{hostile}.txt").write_bytes(b"")
    columns = {f"{number}{hostile}" + "x" * 99_000: [1] for number in range(30)}
    pq.write_table(pa.table(columns), tmp_path / "corpus" / "columns.parquet")
    pq.write_table(pa.table({"id": [1], "body": pa.array([{"y" * 99_000: 1}])}), tmp_path / "corpus" / "type.parquet")
    places = ("--model", f"{tmp_path}/model", "--corpus", f"{tmp_path}/corpus", "--labels", f"{tmp_path}/labels")
    assert run("label", *places, "--plan") == 3
    only = ("--corpus", f"{tmp_path}/corpus/columns.parquet")
    assert run("label", *places, *only, "--plan") == 2
    output = "".join(capfd.readouterr())
    lines = output.splitlines()
    assert "columns.parquet: no id column 'id'; columns: 0\\x1b[2J" in output
    assert all(line.isprintable() and len(line) < 5_000 for line in lines)
    assert not any(line.startswith("error: none") for line in lines)


def test_code_that_comes_with_a_backbone_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_backbone().save_pretrained(tmp_path / "backbone")
    make_tokenizer().save_pretrained(tmp_path / "backbone")
    (tmp_path / "backbone" / "evil.py").write_text(CODE)
    path = tmp_path / "backbone" / "config.json"
    config = json.loads(path.read_text())
    auto_map = {"AutoConfig": "evil.EvilConfig", "AutoModel": "evil.EvilModel"}
    path.write_text(json.dumps({**config, "model_type": "evil", "auto_map": auto_map}))
    with pytest.raises(ConfigError):
        load_backbone(str(tmp_path / "backbone"))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "setting", [{"attn_implementation": "evil/kernels"}, {"quantization_config": {"quant_method": "evil"}}]
)
def test_a_backbone_that_asks_for_other_code_or_weights_is_refused(tmp_path: Path, setting: dict[str, object]) -> None:
    make_backbone().save_pretrained(tmp_path / "backbone")
    path = tmp_path / "backbone" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **setting}))
    with pytest.raises(ConfigError, match=f"{next(iter(setting))} = .* asks for other code or weights"):
        load_backbone(str(tmp_path / "backbone"))


def test_pickled_weights_are_not_loaded(tmp_path: Path) -> None:
    make_backbone().save_pretrained(tmp_path / "backbone")
    (tmp_path / "backbone" / "model.safetensors").unlink()
    torch.save(make_backbone().state_dict(), tmp_path / "backbone" / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="safetensors"):
        load_backbone(str(tmp_path / "backbone"))


def test_a_bundle_with_pickled_weights_is_refused(tmp_path: Path) -> None:
    save_model(f"{tmp_path}/model")
    shutil.move(tmp_path / "model" / "model.safetensors", tmp_path / "model" / "pytorch_model.bin")
    assert run("predict", "--model", f"{tmp_path}/model", "text") == 2
