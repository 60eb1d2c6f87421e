"""Does a labelling run come to its end, exactly, while nodes are taken away and come back all the time?

Starts a cluster of some nodes on this machine and `mtop label` on it. Every so often a node dies, as if its machine had
lost power, and a new one joins. A run that ends with code 1 is started again, as a scheduler would. In the end the
table is compared, column by column, with one that undisturbed runs have made: of the first half of the articles, and of
the rest, of which the plan's estimate is compared with what the run took.

    PYTHONPATH=. python benchmarks/soak.py [--articles 200000] [--nodes 4] [--every 60] [--dir DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from bundles import COLUMN, save_random_bundle
from results_file import write_result

from cluster.local_cluster import LocalCluster, Process, add_node, kill_node, start_cluster, stop_cluster

CPUS_PER_NODE = 2
JOIN_S = 180.0
"""How long a node may take to join on a machine whose cores all compute."""
FILES = 100
WORDS = (
    "mayor votes on new school budget after long night storm closes roads in north team wins final match late goal "
    "how to cook better rice study finds sleep helps memory market falls as rates rise court hears case of lost ship"
).split()


def write_corpus(directory: Path, num_articles: int) -> None:
    """Short articles of random words, as many in each file."""
    directory.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number, ids in enumerate(np.array_split(np.arange(num_articles), FILES)):
        texts = [" ".join(rng.choice(WORDS, rng.integers(5, 15))) for _ in ids]
        table = pa.table({"id": [f"a{index}" for index in ids], COLUMN: texts})
        pq.write_table(table, directory / f"articles-{number:03d}.parquet")


def start_label(
    root: Path, labels: Path, environment: Mapping[str, str], *options: str, corpus: str = "corpus"
) -> subprocess.Popen[bytes]:
    """`mtop label`, whose output goes to a log."""
    command = [sys.executable, "-m", "mtop_batch.cli", "label", "--model", str(root / "model")]
    # In bf16 the batches that a text goes with change its scores in the third digit.
    command += ["--corpus", str(root / corpus), "--labels", str(labels), "--precision", "fp32", *options]
    with (root / "label.log").open("ab") as log:
        return subprocess.Popen(command, env={**os.environ, **environment}, stdout=log, stderr=subprocess.STDOUT)


class Nodes:
    """The nodes of a cluster but its head, which one by one die and are replaced."""

    def __init__(self, cluster: LocalCluster, rng: random.Random) -> None:
        self._cluster, self._rng = cluster, rng
        self._alive: list[Process] = list(cluster.nodes[1:])
        self.num_killed = self.num_joined = 0

    def kill_one(self) -> None:
        """One of them dies."""
        node = self._alive.pop(self._rng.randrange(len(self._alive)))
        kill_node(node)
        self.num_killed += 1

    def add_one(self) -> None:
        """A new one joins."""
        self._cluster = add_node(self._cluster, CPUS_PER_NODE, timeout_s=JOIN_S)
        self._alive.append(self._cluster.nodes[-1])
        self.num_joined += 1


def disturb(root: Path, labels: Path, cluster: LocalCluster, every_s: float) -> dict[str, Any]:
    """Label while nodes die; what happened."""
    nodes, codes, started = Nodes(cluster, random.Random(0)), [], time.monotonic()
    run = start_label(root, labels, cluster.environment, "--num-actors", "3")
    due = time.monotonic() + every_s
    while True:
        code = run.poll()
        if code == 0:
            break
        if code is not None:
            codes.append(code)
            if code != 1:
                raise SystemExit(f"the run ended with code {code}; see {root / 'label.log'}")
            run = start_label(root, labels, cluster.environment, "--num-actors", "3")
        if time.monotonic() > due:
            nodes.kill_one()
            time.sleep(5)
            nodes.add_one()
            print(f"{time.monotonic() - started:.0f} s: {nodes.num_killed} nodes killed", flush=True)
            due += every_s
        time.sleep(1)
    return {
        "seconds": round(time.monotonic() - started),
        "nodes_killed": nodes.num_killed,
        "nodes_joined": nodes.num_joined,
        "runs": len(codes) + 1,
        "codes": [*codes, 0],
    }


def label_quietly(root: Path, labels: Path, *options: str) -> None:
    """A run that nothing disturbs, on a Ray of its own, with as many articles as are in `root / "half"`."""
    code = start_label(root, labels, {}, *options, corpus="half").wait()
    if code != 0:
        raise SystemExit(f"an undisturbed run ended with code {code}; see {root / 'label.log'}")


def in_two_halves(root: Path, labels: Path) -> dict[str, Any]:
    """Label half of the corpus, plan the rest, and label that; planned and actual seconds of the second run."""
    files = sorted((root / "corpus").iterdir())
    (root / "half").mkdir()
    for number, some in enumerate((files[: FILES // 2], files[FILES // 2 :])):
        for file in some:
            os.link(file, root / "half" / file.name)
        if number:
            label_quietly(root, labels, "--plan", "--json", str(root / "plan.json"))
        label_quietly(root, labels)
    planned, report = json.loads((root / "plan.json").read_bytes()), reports(labels)[-1]
    return {
        "planned_seconds": round(planned["estimated_seconds"], 1),
        "actual_seconds": round(report["seconds"], 1),
        "actual_over_planned": round(report["seconds"] / planned["estimated_seconds"], 3),
        "planned_device_hours": round(planned["estimated_device_hours"], 4),
        "actual_device_hours": round(report["device_hours"], 4),
    }


def table_of(labels: Path) -> pa.Table:
    """What readers see, in the order of the files."""
    return ds.dataset(labels / "current", format="parquet").to_table()


def compared(disturbed: pa.Table, undisturbed: pa.Table) -> dict[str, Any]:
    """Where two tables differ; batches are made in other ways, so a score may differ in its last digits."""
    if disturbed["id"] != undisturbed["id"]:
        return {"same_ids_in_order": False}
    names = disturbed.column_names
    flips = sum(
        (disturbed[name].cast(pa.string()).to_numpy() != undisturbed[name].cast(pa.string()).to_numpy()).sum()
        for name in names
        if name.endswith("_label")
    )
    distances = [
        np.abs(disturbed[name].to_numpy() - undisturbed[name].to_numpy()).max()
        for name in names
        if name.endswith("_score")
    ]
    return {"same_ids_in_order": True, "other_labels": int(flips), "largest_score_difference": float(max(distances))}


def reports(labels: Path) -> list[dict[str, Any]]:
    """The reports of a table's runs."""
    return [json.loads(path.read_bytes()) for path in sorted((labels / "_runs").glob("*/report.json"))]


def main() -> None:
    """Label with and without disturbances, compare, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--articles", type=int, default=200_000)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--every", type=float, default=60.0, help="Seconds from one lost node to the next.")
    parser.add_argument(
        "--dir", type=Path, help="An empty directory for corpus, tables and logs; else a temporary one."
    )
    arguments = parser.parse_args()
    root = (arguments.dir or Path(tempfile.mkdtemp(prefix="soak-"))).resolve()
    write_corpus(root / "corpus", arguments.articles)
    save_random_bundle(str(root / "model"))
    cluster = start_cluster(root / "cluster", 1, CPUS_PER_NODE)
    try:
        for _ in range(arguments.nodes - 1):  # one after the other: all at once take too long on few cores
            cluster = add_node(cluster, CPUS_PER_NODE, timeout_s=JOIN_S)
        happened = disturb(root, root / "disturbed", cluster, arguments.every)
    finally:
        stop_cluster(root / "cluster")
    started = time.monotonic()
    estimate = in_two_halves(root, root / "quiet")
    made = reports(root / "disturbed")
    disturbed, undisturbed = table_of(root / "disturbed"), table_of(root / "quiet")
    result = {
        "articles": arguments.articles,
        "nodes": arguments.nodes,
        "cpus_per_node": CPUS_PER_NODE,
        "every_s": arguments.every,
        **happened,
        "undisturbed_seconds": round(time.monotonic() - started),
        "second_half": estimate,
        "rows": disturbed.num_rows,
        "ids_once": len(set(disturbed["id"].to_pylist())) == disturbed.num_rows == arguments.articles,
        **compared(disturbed, undisturbed),
        "cells_reported": sum(report["cells_done"] for report in made),
        "cells": arguments.articles * 8,
    }
    print(json.dumps(result, indent=2))
    print(f"wrote {write_result('soak', result)}")
    if not (result["ids_once"] and result["same_ids_in_order"] and result["largest_score_difference"] < 1e-4):
        raise SystemExit("the table is not exact")


if __name__ == "__main__":
    main()
