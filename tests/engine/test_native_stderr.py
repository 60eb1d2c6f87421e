"""What native code writes to standard error comes through, but for the lines that are left out."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from mtop_batch.engine.monitoring.native_stderr import without_unwanted_lines

UNWANTED = "[E 1] Actor 'MapWorker' has constructor arguments in the object store and max_restarts > 0. If they ..."


def test_a_known_line_is_left_out_and_all_else_comes_through_in_order(capfd: pytest.CaptureFixture[str]) -> None:
    with without_unwanted_lines():
        for text in ("first\n", f"{UNWANTED}\nsec", "ond\n", UNWANTED[:30], f"{UNWANTED[30:]}\n", "no line end"):
            os.write(2, text.encode())
    os.write(2, f"\n{UNWANTED}\n".encode())
    assert capfd.readouterr().err == f"first\nsecond\nno line end\n{UNWANTED}\n"


def test_python_and_children_write_as_before() -> None:
    script = f"""
        import os, subprocess, sys
        from mtop_batch.engine.monitoring.native_stderr import without_unwanted_lines
        before = sys.stderr
        with without_unwanted_lines():
            print("python \u00fc", file=sys.stderr)
            subprocess.run(["sh", "-c", "echo child >&2"])
            os.write(2, b"{UNWANTED}\\n")
        assert sys.stderr is before
        print("after", file=sys.stderr)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        check=True,
    )
    assert sorted(run.stderr.decode().splitlines()) == ["after", "child", "python ü"]


def test_without_a_standard_error_nothing_is_done() -> None:
    script = (
        "import os; os.close(2)\n"
        "from mtop_batch.engine.monitoring.native_stderr import without_unwanted_lines\n"
        "with without_unwanted_lines(): print('ran')"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert run.stdout == b"ran\n"
