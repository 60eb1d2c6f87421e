"""Whole jobs on a real cluster of two nodes: submitted, followed to the end, checked."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from cluster.local_cluster import LocalCluster, find_cluster, kill_node, start_cluster, stop_cluster
from mtop_batch import Predictor, read_labels
from tests.conftest import WORDS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ROOT = Path(__file__).resolve().parent.parent
RAY = str(Path(sys.executable).parent / "ray")
TASKS = {"sport": "goal", "business": "profit"}
"""Task -> the word that makes a text one of its own."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    directory = tmp_path_factory.mktemp("cluster")
    yield start_cluster(directory, nodes=2, cpus_per_node=4)
    assert stop_cluster(directory)


def ray_job(cluster: LocalCluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [RAY, "job", *arguments],
        env={**os.environ, **cluster.environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def submit(cluster: LocalCluster, name: str, *command: str) -> tuple[int, int | None, str]:
    """Send a job and follow it; returns the exit codes of `ray job submit` and of the job, and the log."""
    done = ray_job(cluster, "submit", "--submission-id", name, "--", "python", *command)
    details: dict[str, Any] = cluster.get(f"/api/jobs/{name}")
    return done.returncode, details["driver_exit_code"], done.stdout + done.stderr


def submit_nightly(cluster: LocalCluster, name: str, *command: str) -> tuple[int, int | None, str]:
    """The same by the command of the nightly run, which exits with the job's own code."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    arguments = ["-m", "mtop_batch.engine.submit", f"--submission-id={name}", "--", "python", *command]
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **cluster.environment, "PATH": path},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    details: dict[str, Any] = cluster.get(f"/api/jobs/{name}")
    return done.returncode, details["driver_exit_code"], done.stdout + done.stderr


def job(name: str) -> str:
    return str(ROOT / "jobs" / name)


def make_texts(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(5, 20))) for _ in range(count)]


def write_config(directory: Path, backbone: Path) -> Path:
    """A configuration with tiny training data for every task."""
    lines = [f'output = "{directory}/model"', "[backbone]", f'name = "{backbone}"', "max_tokens = 32"]
    lines += ["[train]", "epochs = 2", "batch_size = 16", "learning_rate = 1e-3", "num_workers = 2"]
    for seed, (task, word) in enumerate(TASKS.items()):
        for part, count in (("train", 128), ("eval", 32)):
            texts = make_texts(count, seed)
            labels = ["yes" if word in text.split() else "no" for text in texts]
            pq.write_table(pa.table({"text": texts, "label": labels}), directory / f"{task}-{part}.parquet")
        lines += ["[[task]]", f'name = "{task}"', 'labels = ["no", "yes"]', 'text = ["text"]']
        lines += [f'{part} = "{directory}/{task}-{part}.parquet"' for part in ("train", "eval")]
    path = directory / "config.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def write_corpus(directory: Path, rows: int = 100) -> dict[int, str]:
    """300 articles in source files of so many; returns their texts by id."""
    texts = dict(enumerate(make_texts(300, seed=9)))
    for start in range(0, 300, rows):
        part = {key: text for key, text in texts.items() if start <= key < start + rows}
        path = directory / f"day={start}" / "articles.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.table({"id": list(part), "text": list(part.values())}), path)
    return texts


@pytest.fixture(scope="module")
def trained(cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory, backbone_dir: Path) -> Path:
    """A directory with the `model` that a training job on the cluster has written."""
    directory = tmp_path_factory.mktemp("jobs")
    config = write_config(directory, backbone_dir)
    code, driver_code, log = submit(cluster, "train", job("train_mtop.py"), "--config", str(config))
    assert (code, driver_code) == (0, 0), log
    return directory


def test_train_and_label_on_two_nodes(cluster: LocalCluster, trained: Path) -> None:
    metrics = json.loads((trained / "model" / "metrics.json").read_text())
    assert all(task in json.dumps(metrics) for task in TASKS)
    texts = write_corpus(trained / "corpus")
    options = ["--model", f"{trained}/model", "--corpus", f"{trained}/corpus", "--labels", f"{trained}/labels"]
    report = trained / "report.json"
    code, driver_code, log = submit(cluster, "label", job("label_corpus.py"), *options, "--json", str(report))
    assert (code, driver_code) == (0, 0), log
    labels = read_labels(f"{trained}/labels").to_pandas().set_index("id")
    assert sorted(labels.index) == sorted(texts)
    expected = Predictor.load(f"{trained}/model").predict(list(texts.values()))
    for task in TASKS:
        assert labels[f"{task}_label"].loc[list(texts)].tolist() == expected[f"{task}_label"].to_pylist()
    assert "2 nodes" in log

    code, driver_code, log = submit(cluster, "label-again", job("label_corpus.py"), *options, "--json", str(report))
    assert (code, driver_code) == (0, 0), log
    again = json.loads(report.read_text())
    assert again["rows"] == 0


def test_a_stopped_job_is_resumed_by_submitting_it_again(cluster: LocalCluster, trained: Path) -> None:
    texts = write_corpus(trained / "long-corpus", rows=1)
    labels = trained / "long-labels"
    command = ["python", job("label_corpus.py"), "--model", f"{trained}/model", "--corpus", f"{trained}/long-corpus"]
    command += ["--labels", str(labels), "--unit-rows", "1"]
    assert ray_job(cluster, "submit", "--no-wait", "--submission-id", "long", "--", *command).returncode == 0
    wait_for(lambda: len(label_files(labels)) >= 20)
    assert ray_job(cluster, "stop", "long").returncode == 0
    assert cluster.get("/api/jobs/long")["status"] == "STOPPED"
    before = label_files(labels)
    assert 20 <= len(before) < len(texts)

    done = ray_job(cluster, "submit", "--submission-id", "long-again", "--", *command)
    assert done.returncode == 0, done.stdout + done.stderr
    after = label_files(labels)
    assert len(after) == len(texts)
    assert before.items() <= after.items()
    report = json.loads(max(labels.glob("_runs/*/report.json")).read_text())
    assert report["cells_done"] == (len(texts) - len(before)) * len(TASKS)
    assert sorted(read_labels(str(labels))["id"].to_pylist()) == sorted(texts)


def label_files(labels: Path) -> dict[str, int]:
    """Label files with the times they were written."""
    return {str(path.relative_to(labels)): path.stat().st_mtime_ns for path in labels.glob("_store/**/*.parquet")}


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)


def test_the_nightly_command_exits_with_the_code_of_the_job(cluster: LocalCluster, trained: Path) -> None:
    corpus = trained / "damaged"
    corpus.mkdir()
    pq.write_table(pa.table({"id": [1], "text": ["goal"]}), corpus / "good.parquet")
    (corpus / "bad.parquet").write_bytes(b"PAR1 no more than that PAR1")
    options = ["--model", f"{trained}/model", "--corpus", str(corpus), "--labels", f"{trained}/labels-damaged"]
    code, driver_code, log = submit_nightly(cluster, "unreadable", job("label_corpus.py"), *options)
    assert (code, driver_code) == (0, 3), log  # the files are in the report, and nobody need get up for them
    assert "bad.parquet" in log
    code, driver_code, log = submit_nightly(cluster, "wrong", job("label_corpus.py"), *options, "--tasks", "sports")
    assert (code, driver_code) == (2, 2), log
    assert "sports" in log


def test_only_holders_of_the_token_can_send_jobs(cluster: LocalCluster) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{cluster.dashboard_url}/api/jobs/", timeout=10)
    refused = subprocess.run(
        [RAY, "job", "submit", "--address", cluster.dashboard_url, "--", "true"],
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert refused.returncode != 0
    assert "Missing authentication token" in refused.stdout + refused.stderr


def test_nodes_answer_the_probes_of_the_manifest_without_a_token(cluster: LocalCluster, trained: Path) -> None:
    manifest = yaml.safe_load((ROOT / "cluster" / "raycluster.yaml").read_text())
    (container,) = manifest["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
    path = container["readinessProbe"]["httpGet"]["path"]
    agent = cluster.get("/api/jobs/train")["driver_agent_http_address"]
    with urllib.request.urlopen(agent + path, timeout=10) as response:
        assert response.status == 200


def test_a_lost_node_is_noticed_and_the_rest_can_be_stopped(tmp_path: Path) -> None:
    small = start_cluster(tmp_path, nodes=2, cpus_per_node=1)
    try:
        kill_node(small.nodes[1])
        deadline = time.monotonic() + 60
        while small.num_alive_nodes() != 1 and time.monotonic() < deadline:
            time.sleep(0.5)
        assert small.num_alive_nodes() == 1
    finally:
        assert stop_cluster(tmp_path)
    assert find_cluster(tmp_path) is None
    assert small.num_alive_nodes() == 0
    assert not Path(small.temp_dir).exists()
