"""Whatever dies while labels are made: no reader sees a wrong row, and the same command ends with the same table."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engine.kill_world import World, open_world
from tests.engine.kills import Case, cases, run_case

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with open_world(tmp_path_factory.mktemp("kills")) as world:
        yield world


@pytest.mark.parametrize("case", cases(), ids=str)
def test_the_label_table_survives(world: World, case: Case) -> None:
    run_case(world, case)
