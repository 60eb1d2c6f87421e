"""The README's commands are run as they stand, on a tiny model, and its links lead somewhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer

from mtop_batch.cli.commands import app
from mtop_batch.config.sections import Config
from tests.documents import blocks, commands, one_ray, run_mtop

__all__ = ["one_ray"]

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.fixture
def project(tmp_path: Path, backbone_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the files that the README's commands name, tiny."""
    articles = pa.table(
        {
            "id": range(12),
            "title": ["bank profit", "team wins", "new album"] * 4,
            "body": ["shares on the market", "cup final goal", "film star music"] * 4,
            "label": ["yes", "no", "no"] * 4,
        }
    )
    (tmp_path / "demo" / "corpus").mkdir(parents=True)
    pq.write_table(articles, tmp_path / "demo" / "corpus" / "part-0.parquet")
    task = """
        [[task]]
        name = "{}"
        labels = ["no", "yes"]
        text = ["title", "body"]
        train = "demo/corpus/part-0.parquet"
        eval = "demo/corpus/part-0.parquet"
    """
    (tmp_path / "demo" / "demo.toml").write_text(
        f"""
        output = "demo/four-topics"
        [backbone]
        name = "{backbone_dir}"
        max_tokens = 32
        {task.format("sports")}
        """
    )
    (tmp_path / "demo" / "train").mkdir()
    (tmp_path / "demo" / "train" / "later.toml").write_text(task.format("tech"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("one_ray")
def test_the_commands_run_in_their_order(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in commands(README, "mtop"):
        run_mtop(words[1:], capsys)
    (table,) = (project / "demo" / "labels").glob("[!_]*/part-0.parquet")
    assert pq.read_table(table).num_rows == 12
    assert (project / "demo" / "model" / "README.md").exists()
    ((_, python),) = blocks(README, "python")
    exec(compile(python, "README.md", "exec"), {})
    ((_, option, query),) = commands(README, "duckdb")
    assert option == "-c"
    assert sum(count for _, count in duckdb.connect().execute(query).fetchall()) == 12


def test_the_jobs_that_are_submitted_exist_with_these_options() -> None:
    (words,) = [words for words in commands(README, "ray") if words[1:3] == ["job", "submit"]]
    script, *options = words[words.index("python") + 1 :]
    assert (ROOT / script).exists()
    label = typer.main.get_command(app).commands["label"]  # type: ignore[attr-defined]
    known = {name for parameter in label.params for name in parameter.opts}
    assert {option for option in options if option.startswith("--")} <= known


def test_the_configuration_shown_is_valid() -> None:
    ((_, block),) = blocks(README, "toml")
    assert Config.model_validate(tomllib.loads(block)).train.num_workers == 4


def test_every_link_and_script_exists() -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    for words in commands(README, "python"):
        assert (ROOT / words[1]).exists(), words


def test_every_shipped_configuration_is_valid() -> None:
    for path in [*(ROOT / "jobs").glob("*.toml"), ROOT / "demo" / "demo.toml"]:
        values = tomllib.loads(path.read_text())
        assert isinstance(values.pop("tasks"), str)
        task = {"name": "politics", "labels": ["no", "yes"], "train": "a.parquet", "eval": "b.parquet"}
        Config.model_validate({**values, "task": [task]})
