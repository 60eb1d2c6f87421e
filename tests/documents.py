"""What the tests of README and documentation share: their code blocks, and one Ray for all commands in them."""

from __future__ import annotations

import re
import shlex

import pytest

from mtop_batch.cli.commands import main
from tests.shared_ray import start_shared_ray


def blocks(text: str, *languages: str) -> list[tuple[str, str]]:
    """Language and content of the code blocks in these languages, in order."""
    found = re.findall(r"^```(\w+)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return [(language, content) for language, content in found if language in languages]


def commands(text: str, program: str) -> list[list[str]]:
    """All commands of a program in the shell blocks, as words."""
    lines = "".join(content for _, content in blocks(text, "sh")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line for line in words if line and line[0] == program]


def run_mtop(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Run a command, which must end well."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code in (0, None), f"{shlex.join(arguments)}: {capsys.readouterr()}"


@pytest.fixture(scope="module")
def one_ray() -> None:
    """A Ray that all commands of a test module use; each would start one of its own otherwise."""
    start_shared_ray()
