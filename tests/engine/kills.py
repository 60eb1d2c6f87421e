"""Kill parts of a labelling run at moments picked by seed, and see what becomes of the label table.

PYTHONPATH=. python -m tests.engine.kills          # every case, then the table of benchmarks/README.md
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from cluster.local_cluster import Process
from mtop_batch import storage
from tests.engine.kill_world import TASKS, UNIT_ROWS, RayKind, Run, RunEnded, Storage, World, open_world
from tests.engine.label_readers import TableReader, contents, label_files, num_rows, published_files, reports

GUEST = "guest"


@dataclass(frozen=True)
class Case:
    """One disturbed run.

    Args:
        target: What dies, a key of `TARGETS`.
        where: Where corpus, bundle and labels lie.
        ray: The Ray that does the work: the command's own, or a cluster of two nodes.
        seed: Decides the moments, and which of several processes dies.
    """

    target: str
    where: Storage
    ray: RayKind
    seed: int

    def __str__(self) -> str:
        return f"{self.target}, {self.where}, {self.ray} Ray, seed {self.seed}"


@dataclass(frozen=True)
class Outcome:
    """What became of it.

    Args:
        case: What was tried.
        num_kills: How often something was killed.
        code: The disturbed run's exit code; minus the signal that ended it.
        cells_kept: Cells that were there when the disturbed run had ended.
        cells_redone: Cells that the same command then did.
        seconds: Of the disturbed run.
        last_line: The disturbed run's last line.
    """

    case: Case
    num_kills: int
    code: int
    cells_kept: int
    cells_redone: int
    seconds: float
    last_line: str


class Moments:
    """Moments of a run: before its first label file for numbers below 0, else when this part of the files is there."""

    def __init__(self, world: World, case: Case, run: Run) -> None:
        self.case = case
        self.rng = random.Random(str(case))
        self._run = run
        self._undisturbed = world.undisturbed(case.where)
        self._started = time.monotonic()

    def wait(self, moment: float) -> None:
        """Wait for a moment between -1, the start, and 1, the last label file."""
        if moment < 0:
            ends = self._started + (1 + moment) * self._undisturbed.first_label_s
            self._run.wait_for(lambda: time.monotonic() >= ends)
        else:
            num_files = moment * self._undisturbed.num_label_files
            self._run.wait_for(lambda: len(label_files(self._run.labels)) >= num_files)


# --- targets: each waits for its moments, kills, and returns how often --------------------------------------------


def kill_driver(_: World, run: Run, moments: Moments) -> int:
    moments.wait(moments.rng.uniform(-1, 0.9))
    run.process.kill()
    return 1


def stop_driver(_: World, run: Run, moments: Moments) -> int:
    moments.wait(moments.rng.uniform(0.1, 0.8))
    run.process.terminate()
    return 1


def kill_publisher(_: World, run: Run, moments: Moments) -> int:
    """The driver dies between its first published file and its last; that is soon over, and may be missed."""
    num_files = moments.rng.randint(1, 5)
    try:
        run.wait_for(lambda: len(published_files(run.labels)) >= num_files)
        run.process.kill()
    except RunEnded:
        return 0
    return 1


def kill_one_of_two(world: World, run: Run, moments: Moments) -> int:
    """Two runs write one table at once, without the lease and with other units; one of the drivers dies, and the other
    goes on."""
    with _other(world, run, moments) as other:
        moments.wait(moments.rng.uniform(-0.3, 0.8))
        run.process.kill()
        assert other.end() == 0, other.output
    return 1


def let_two_write(world: World, run: Run, moments: Moments) -> int:
    """Two runs write one table at once, without the lease and with other units, and nothing dies."""
    with _other(world, run, moments) as other:
        assert other.end() == 0, other.output
    return 0


def _other(world: World, run: Run, moments: Moments) -> Run:
    units = ["--unit-rows", str(UNIT_ROWS // 3)]  # of an option that is given twice the last one counts
    return world.start(moments.case.where, moments.case.ray, run.labels, *units, with_lease=False)


def kill_actors(_: World, run: Run, moments: Moments) -> int:
    return _kill_in_turn(run, moments, {0.0: "MapWorker", 0.5: "MapWorker"})


def kill_workers(_: World, run: Run, moments: Moments) -> int:
    return _kill_in_turn(run, moments, {0.0: "MapBatches(_read_piece)", 0.3: "MapBatches(_write_piece)"})


def _kill_in_turn(run: Run, moments: Moments, titles: dict[float, str]) -> int:
    """Kill a worker of each title at its moment; the run may be over before the later ones."""
    num_kills = 0
    for moment, title in titles.items():
        try:
            moments.wait(moment + moments.rng.uniform(0, 0.3))
            _kill(_one_of(run, title, moments))
        except RunEnded:
            if not num_kills:
                raise
            break
        num_kills += 1
    return num_kills


def kill_raylet(world: World, run: Run, moments: Moments) -> int:
    moments.wait(moments.rng.uniform(-0.3, 0.8))
    found = [p for p in run.processes() if _is_raylet_of(p, world.cluster.nodes[-1])]
    assert len(found) == 1, f"the node has {len(found)} raylets"
    _kill(found[0])
    return 1


def stop_server(down_s: float) -> Callable[[World, Run, Moments], int]:
    """The S3 server dies and is started again after so many seconds; or when the run has given up, if that is first."""

    def stop(world: World, run: Run, moments: Moments) -> int:
        moments.wait(moments.rng.uniform(-0.5, 0.8))
        world.server.stop()
        try:
            deadline = time.monotonic() + down_s
            while time.monotonic() < deadline and run.process.poll() is None:
                time.sleep(0.1)
        finally:
            world.server.start()
        return 1

    return stop


def take_rights_away(world: World, run: Run, moments: Moments) -> int:
    """The run's user may not write to the bucket any more, from one moment to the next."""
    moments.wait(moments.rng.uniform(0, 0.8))
    world.server.configure_user(GUEST, "Write", remove=True)
    return 1


TARGETS: dict[str, Callable[[World, Run, Moments], int]] = {
    "driver": kill_driver,
    "driver, SIGTERM": stop_driver,
    "driver, publishing": kill_publisher,
    "driver, one of two": kill_one_of_two,
    "nothing, but two write at once": let_two_write,
    "labelling actor": kill_actors,
    "reading and writing worker": kill_workers,
    "raylet of a node": kill_raylet,
    "right to write": take_rights_away,
    "S3 server, down 4 s": stop_server(4),
    "S3 server, down 30 s": stop_server(30),
    "S3 server, down until the run gives up": stop_server(600),
}


def cases() -> list[Case]:
    """Every case, those of one target and storage side by side."""
    found: list[Case] = []
    for target, ray in (("driver", "own"), ("driver, SIGTERM", "own"), ("driver", "cluster")):
        number = 2 if target == "driver" else 1
        found += [Case(target, where, ray, seed) for where in ("disk", "s3") for seed in range(number)]  # type: ignore[arg-type]
    for target in ("driver, publishing", "driver, one of two", "nothing, but two write at once"):
        found += [Case(target, where, "cluster", 0) for where in ("disk", "s3")]
    for target in ("labelling actor", "reading and writing worker", "raylet of a node"):
        found += [Case(target, where, "cluster", seed) for where in ("disk", "s3") for seed in range(2)]
    found.append(Case("right to write", "s3", "own", 0))
    outages = {"S3 server, down 4 s": 2, "S3 server, down 30 s": 2, "S3 server, down until the run gives up": 1}
    found += [Case(target, "s3", "cluster", seed) for target, number in outages.items() for seed in range(number)]
    return found


def run_case(world: World, case: Case) -> Outcome:
    """Disturb a run, give the same command again if need be, and compare with the undisturbed table.

    Raises:
        AssertionError: Something does not hold that docs/reliability.md promises.
    """
    undisturbed, sources = world.undisturbed(case.where), world.sources[case.where]
    labels = storage.join(world.base(case.where), f"labels-{abs(hash(case)):x}")
    started = time.monotonic()
    reader = TableReader(labels, sources, through_outages=case.target.startswith("S3"))
    options: dict[str, Any] = {"with_lease": "two" not in case.target}
    if case.target == "right to write":
        options["keys"] = world.server.configure_user(GUEST, "Read,Write,List")
    arguments = ["--retry-timeout", "5"] if case.target == "right to write" else []
    with world.start(case.where, case.ray, labels, *arguments, **options) as run, reader:
        try:
            num_kills = TARGETS[case.target](world, run, Moments(world, case, run))
            code = run.end()
        finally:
            if case.target == "raylet of a node":
                world.replace_node()
    seconds = time.monotonic() - started
    kept = label_files(labels)
    cells_kept = num_rows(labels) * len(TASKS)
    _check_end(case, code, run)
    cells_redone = 0
    if code:
        cells_redone = _resume(world, case, labels)
        assert cells_redone == undisturbed.num_cells - cells_kept
    reader.look()
    now = label_files(labels)
    assert kept.items() <= now.items(), "label files were written again"
    assert contents(labels) == undisturbed.files
    for report in reports(labels):
        assert report["rows"] == report["labelled"] + report["errors"]
    return Outcome(case, num_kills, code, cells_kept, cells_redone, seconds, run.last_line)


def _resume(world: World, case: Case, labels: str) -> int:
    """Give the same command again; the cells it did."""
    sources = world.sources[case.where]
    reader = TableReader(labels, sources, through_outages=False)
    with world.start(case.where, case.ray, labels) as again, reader:
        assert again.end() == 0, again.output
    report = reports(labels)[-1]
    assert report["cells_done"] == report["cells_planned"]
    return int(report["cells_done"])


def _check_end(case: Case, code: int, run: Run) -> None:
    """A run goes on to the end, or says in its last line that it failed; one that is killed outright cannot."""
    if case.target in ("driver", "driver, one of two"):
        assert code == -signal.SIGKILL
    elif case.target == "right to write":
        assert code == 1, run.output
        assert "was refused" in run.last_line, run.output
    elif case.target == "driver, publishing":
        assert code in (0, -signal.SIGKILL), run.output
    else:
        assert code in (0, 1), run.output
        assert code == 0 or run.last_line.startswith(("error: ", "stopped")), run.output


def _one_of(run: Run, title: str, moments: Moments) -> Process:
    found: list[Process] = []

    def look() -> bool:
        found[:] = run.workers(title)
        return bool(found)

    run.wait_for(look)
    return moments.rng.choice(found)


def _kill(process: Process) -> None:
    os.kill(process.pid, signal.SIGKILL)


def _is_raylet_of(process: Process, node: Process) -> bool:
    name = Path(f"/proc/{process.pid}/comm").read_text().strip()
    return name == "raylet" and os.getsid(process.pid) == node.pid


# --- the table of benchmarks/README.md --------------------------------------------------------------------------


def table(outcomes: list[Outcome]) -> str:
    """The outcomes as Markdown, one line per target, storage and Ray."""
    lines = ["| killed | storage | Ray | kills | continued by itself | resumed | cells kept | cells done again |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for (target, where, ray), group in groupby(outcomes, lambda o: (o.case.target, o.case.where, o.case.ray)):
        same = list(group)
        resumed = [outcome for outcome in same if outcome.code]
        kept, redone = sum(o.cells_kept for o in resumed), sum(o.cells_redone for o in resumed)
        counts = [sum(o.num_kills for o in same), len(same) - len(resumed), len(resumed), kept, redone]
        lines.append(f"| {target} | {where} | {ray} | " + " | ".join(f"{count:,}" for count in counts) + " |")
    return "\n".join(lines)


def main(patterns: list[str]) -> None:
    """Run the cases whose names hold one of the patterns, or all; print each outcome, then the table."""
    wanted = [case for case in cases() if not patterns or any(pattern in str(case) for pattern in patterns)]
    with tempfile.TemporaryDirectory() as root, open_world(Path(root)) as world:
        outcomes, failures = [], 0
        for case in wanted:
            try:
                outcomes.append(run_case(world, case))
                print(outcomes[-1], flush=True)
            except AssertionError as failure:
                failures += 1
                print(f"FAILED {case}: {failure}", flush=True)
    print(f"\n{sum(outcome.num_kills for outcome in outcomes)} kills, {failures} failed\n\n{table(outcomes)}")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main(sys.argv[1:])
