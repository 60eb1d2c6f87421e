"""The paper map names functions and tests that exist, and links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCES = "".join(path.read_text() for path in (ROOT / "mtop_batch").rglob("*.py"))
TESTS = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))


def test_the_paper_map_names_what_exists() -> None:
    for name in re.findall(r"`([^`]+)`", (ROOT / "docs" / "paper-map.md").read_text()):
        if name.startswith("test_"):
            assert f"def {name}(" in TESTS, name
        elif name.endswith(".py"):
            assert (ROOT / "mtop_batch" / name).exists() or (ROOT / "tests" / name).exists(), name
        elif re.fullmatch(r"[A-Za-z_.]+", name):
            last = name.split(".")[-1]
            assert re.search(rf"(def|class) {last}\b|\b{last}\b.*[:=]", SOURCES), name


def test_links_between_documents_lead_somewhere() -> None:
    for document in (ROOT / "docs").glob("*.md"):
        for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
