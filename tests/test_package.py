"""What whoever installs the package relies on: its names, its types, its licence, and transformers' Auto classes."""

from __future__ import annotations

import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer

import mtop_batch
from mtop_batch import api
from mtop_batch.cli.commands import app, main
from mtop_batch.model.bundle.bundle import save_bundle
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.tasks import Task
from tests.conftest import make_backbone, make_tokenizer

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_every_exported_name_is_there() -> None:
    assert sorted(mtop_batch.__all__) == mtop_batch.__all__ == sorted(mtop_batch._MODULES)
    for name in mtop_batch.__all__:
        assert getattr(mtop_batch, name).__module__.startswith("mtop_batch."), name


def test_types_and_licence_come_with_the_package() -> None:
    assert (ROOT / "mtop_batch" / "py.typed").exists()
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert (PROJECT["license"], PROJECT["license-files"]) == ("Apache-2.0", ["LICENSE"])


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code in (0, None)
    assert capsys.readouterr().out == f"mtop-batch {mtop_batch.__version__}\n"
    assert PROJECT["version"] == mtop_batch.__version__


@pytest.mark.parametrize("name", ["train", "prefinetune", "add-tasks", "select-tasks", "label", "evaluate"])
def test_a_function_takes_what_its_command_takes(name: str) -> None:
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    options = {parameter.name for parameter in command.params} - {"json_out"}
    taken = set(inspect.signature(getattr(api, name.replace("-", "_"))).parameters) - {"on_event"}
    assert {"set_" if parameter == "overrides" else parameter for parameter in taken} == options


IMPORTS = {
    "package first": "import mtop_batch; assert 'transformers' not in sys.modules; from transformers import {names}",
    "transformers first": "from transformers import {names}; import mtop_batch",
    "between the two": "from transformers import AutoConfig; import mtop_batch; from transformers import {names}",
    "from within": "import mtop_batch.model.encoder.backbone; from transformers import {names}",
}
LOAD = """
names = {type(each.from_pretrained(sys.argv[1])).__name__ for each in (AutoConfig, AutoModel)}
assert names == {"MTOPConfig", "MTOPModel"}, names
assert len(AutoTokenizer.from_pretrained(sys.argv[1]))
"""


@pytest.mark.parametrize("order", IMPORTS)
def test_transformers_loads_a_bundle_whoever_is_imported_first(tmp_path: Path, order: str) -> None:
    model = MTOPModel.from_backbone(make_backbone(), [Task("politics")], max_tokens=32)
    save_bundle(str(tmp_path), model, make_tokenizer(), metrics={}, training_config={}, backbone_name="tiny")
    code = "import sys; " + IMPORTS[order].format(names="AutoConfig, AutoModel, AutoTokenizer") + LOAD
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
