"""`mtop select-tasks` on a real local Ray."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.local_cluster import find_process, processes_of
from mtop_batch import api
from mtop_batch.config.load import load_config
from mtop_batch.config.model import MTOPModelConfig
from mtop_batch.errors import ConfigError, MtopError, TaskError
from mtop_batch.model.kinds.mtop import MTOPModel
from tests.conftest import WORDS
from tests.documents import run_mtop

pytestmark = pytest.mark.usefixtures("ray_local")

SPORT = "match goal team player cup".split()
TASKS: dict[str, dict[str, Any]] = {
    "sport": {"labels": ["no", "yes"], "label_by": "index"},
    "twin": {"labels": ["no", "yes"]},
    "count": {"kind": "regression"},
    "themes": {"kind": "multi-label", "labels": ["sport", "long"]},
}
ENTITIES: dict[str, dict[str, Any]] = {
    "names": {"kind": "token", "labels": ["TEAM"], "text": ["tokens"], "label": "tags"},
}


def write_config(root: Path, backbone: Path, names: list[str], **sections: dict[str, Any]) -> Path:
    """A configuration with these tasks, whose data has rows that are no examples."""
    values: dict[str, dict[str, Any]] = {
        "backbone": {"name": str(backbone), "max_tokens": 16},
        "model": {"kind": "mt-dnn"},
        "train": {"epochs": 1, "batch_size": 8, "learning_rate": 3e-3},
        **sections,
    }
    lines = [f'output = "{root}/model"']
    for name, section in values.items():
        lines += [f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in section.items())]
    for name in names:
        lines += [
            "[[task]]",
            f'name = "{name}"',
            *(f"{key} = {_toml(value)}" for key, value in {**TASKS, **ENTITIES}[name].items()),
        ]
        for part, size in (("train", 24), ("eval", 12)):
            path = root / f"{name}-{part}.parquet"
            pq.write_table(_examples(name, part, size), path)
            lines.append(f'{part} = "{path}"')
    (root / "all.toml").write_text("\n".join(lines) + "\n")
    return root / "all.toml"


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value)


def _examples(name: str, part: str, size: int) -> pa.Table:
    rng = random.Random(f"{name}/{part}")
    texts: list[str | None] = [None, ""]
    labels: list[Any] = [None, None]
    for number in range(size):
        has = number % 2
        texts.append(" ".join([*rng.choices(WORDS[15:], k=4), *(rng.choices(SPORT, k=2) if has else [])]))
        themes = [theme for theme, given in (("sport", has), ("long", number % 3)) if given]
        labels.append({"sport": has, "count": 1.5 * has, "themes": themes}.get(name, "yes" if has else "no"))
    if name in ENTITIES:
        words = [None if text is None else text.split() for text in texts]
        tags = [None if row is None else ["B-TEAM" if word in SPORT else "O" for word in row] for row in words]
        return pa.table({"tokens": words, "tags": tags})
    return pa.table({"text": texts, "label": pa.array(labels)})


@pytest.fixture
def config(tmp_path: Path, backbone_dir: Path) -> Path:
    return write_config(tmp_path, backbone_dir, list(TASKS))


@pytest.mark.slow
def test_the_configuration_that_is_written_trains(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new, out = tmp_path / "new.toml", tmp_path / "out.json"
    arguments = ["select-tasks", "--config", str(config), "--primary", "sport", "--output", str(new)]
    run_mtop([*arguments, "--method", "threshold", "--threshold", "-1", "--json", str(out)], capsys)
    assert "4 trainings done, 0 reused" in capsys.readouterr().out
    chosen = load_config(new)
    assert [task.name for task in chosen.task] == list(TASKS)
    assert chosen.output == f"{tmp_path}/model-sport"
    found = json.loads(out.read_text())
    assert sorted(found["auxiliary"]) == ["count", "themes", "twin"]
    assert (tmp_path / "model.selection" / "sport.threshold.md").read_text().startswith("# Which tasks help sport")
    for picture in ("correlations.png", "heads.png"):
        assert (tmp_path / "model.selection" / picture).read_bytes().startswith(b"\x89PNG")
    assert api.train(new).num_steps == 12
    run_mtop([*arguments, "--method", "threshold"], capsys)
    assert "0 trainings done, 4 reused" in capsys.readouterr().out


@pytest.mark.slow
def test_chosen_examples_are_rows_of_the_tasks_own_data(config: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.toml"
    result = api.select_tasks(config, "twin", method="fine-grained", threshold=-0.3, output=str(new))
    assert result.selection.tried[0].auxiliary == ()
    kept = {task.name: task.train for task in load_config(new).task}
    for name, rows in result.selection.rows.items():
        assert kept[name] == f"{tmp_path}/new-examples/{name}.parquet"
        chosen, whole = pq.read_table(kept[name]), pq.read_table(tmp_path / f"{name}-train.parquet")
        assert chosen.equals(whole.take(rows + 2))  # the first two rows have no text
    assert kept["twin"] == f"{tmp_path}/twin-train.parquet"
    api.train(new, ["train.epochs=0.5"])


@pytest.mark.slow
def test_entities_help_and_are_helped(tmp_path: Path, backbone_dir: Path) -> None:
    model = {"kind": "mtop", "prompt_init": "random", "pooler_init": "random"}
    config = write_config(tmp_path, backbone_dir, ["sport", "names"], model=model)
    new = tmp_path / "new.toml"
    result = api.select_tasks(config, "sport", method="fine-grained", threshold=-1.0, output=str(new))
    assert set(result.selection.rows) <= {"names"}
    for name, rows in result.selection.rows.items():
        chosen = pq.read_table(f"{tmp_path}/new-examples/{name}.parquet")
        assert chosen.equals(pq.read_table(tmp_path / f"{name}-train.parquet").take(rows + 2))
    api.train(new, ["train.epochs=0.5"])
    assert api.select_tasks(config, "names", method="threshold", threshold=-1.0).selection.auxiliary == ("sport",)


def test_a_ratio_becomes_rates(config: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.toml"
    result = api.select_tasks(config, "sport", ["train.epochs=2"], method="autosem", output=str(new))
    rates = {task.name: task.rate for task in load_config(new).task}
    if result.selection.ratio:
        wanted = ("sport", *result.selection.auxiliary)
        assert rates == dict(zip(wanted, map(float, result.selection.ratio), strict=True))
    else:
        assert rates == {"sport": None}


@pytest.mark.parametrize(
    ("names", "primary", "model", "error", "message"),
    [
        (["sport", "twin"], "sprot", "mt-dnn", TaskError, "there is no task 'sprot'; did you mean 'sport'"),
        (["sport"], "sport", "mt-dnn", ConfigError, "'sport' is the only task, so there is none to help it"),
        (["sport", "twin"], "sport", "single-task", ConfigError, "'single-task' trains no tasks together"),
    ],
)
def test_what_cannot_work_is_refused_before_work_starts(
    tmp_path: Path, backbone_dir: Path, names: list[str], primary: str, model: str, error: type[MtopError], message: str
) -> None:
    config = write_config(tmp_path, backbone_dir, names, model={"kind": model})
    with pytest.raises(error, match=message):
        api.select_tasks(config, primary)


def test_an_encoder_whose_heads_cannot_be_had_is_refused(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(backbone: Any) -> None:
        backbone.set_attn_implementation("eager")

    monkeypatch.setattr("mtop_batch.model.encoder.backbone.use_kv_cache_attention", without)
    with pytest.raises(ConfigError, match="the heads of ElectraModel cannot be measured: its attention is 'eager'"):
        api.select_tasks(config, "sport")


@pytest.mark.slow
def test_tasks_that_correlate_share_prompts(tmp_path: Path, backbone_dir: Path) -> None:
    model = {"kind": "mtop", "prompt_groups": {"by": "correlation", "n": 2}}
    train = {"epochs": 1, "batch_size": 8, "warm_start": {"epochs": 1}}
    config = write_config(tmp_path, backbone_dir, list(TASKS), model=model, train=train)
    output = api.train(config).output
    trained = MTOPModel.from_pretrained(output)
    groups = json.loads((Path(output) / "training.json").read_text())
    found = [task["prompt_group"] for task in groups["task"]]
    assert set(found) == {"c1", "c2"}
    assert trained.task_names == list(TASKS)
    section = load_config(config).model
    assert isinstance(section, MTOPModelConfig)
    assert section.like_groups == ("correlation", 2)
    assert api.train(config).was_there
    result = api.select_tasks(config, "sport", method="threshold")  # what training measured is not measured again
    assert len(result.reused) == 4


@pytest.mark.slow
def test_a_killed_command_goes_on_where_it_was(tmp_path: Path, backbone_dir: Path) -> None:
    train = {"epochs": 3, "batch_size": 8, "learning_rate": 3e-3}
    config = write_config(tmp_path, backbone_dir, list(TASKS), train=train)
    command = [sys.executable, "-m", "mtop_batch.cli", "select-tasks", "--config", str(config), "--primary", "sport"]
    kept = tmp_path / "model.selection"
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    deadline = time.monotonic() + 200
    while len(list(kept.glob("*.npz"))) < 2 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    for each in processes_of([find_process(process.pid)]):  # what Ray leaves would go on to write for a while
        os.kill(each.pid, signal.SIGKILL)
    process.wait()
    before = len(list(kept.glob("*.npz")))
    assert before >= 2
    result = api.select_tasks(config, "sport")
    assert len(result.reused) >= before
    assert len(result.reused) + len(result.done) == 4 + 4
    fresh = api.select_tasks(config, "sport", kept=str(tmp_path / "fresh"))
    assert [tried.score for tried in fresh.selection.tried] == [tried.score for tried in result.selection.tried]
    assert not list(kept.glob("*.unfinished"))
