"""What the demonstration prints to try can be pasted and run."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parent.parent


def test_the_query_it_prints_runs_in_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "demo"))
    monkeypatch.chdir(tmp_path)
    command = runpy.run_path(str(ROOT / "demo" / "demo.py"))["query_command"]()
    labels = {"id": [1, 2], "tech_label": ["yes", "no"], "tech_score": [0.9, 0.8], "business_label": ["yes", "yes"]}
    for path, columns in (
        ("corpus/a.parquet", {"id": [1, 2], "title": ["chips", "cup"]}),
        ("labels/current/a.parquet", labels),
    ):
        (tmp_path / "demo" / path).parent.mkdir(parents=True)
        pq.write_table(pa.table(columns), tmp_path / "demo" / path)
    run = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert "chips" in run.stdout
    assert "cup" not in run.stdout
    assert command.startswith(str(Path(sys.executable).parent))
