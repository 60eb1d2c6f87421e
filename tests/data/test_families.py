"""The builder of entities beside texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtop_batch.config.load import load_tasks
from mtop_batch.data.sets.families import build_families
from mtop_batch.data.sets.task_files import TaskExamples, write_tasks
from mtop_batch.errors import DataError, MtopError
from mtop_batch.tasks import Task

WORDS = [["Ada", "went", "to", "Rome"], ["it", "rains"]]
TAGS = [["B-PER", "O", "O", "B-LOC"], ["O", "O"]]


def write_entities(root: Path, dev: str = "dev", **columns: Any) -> Path:
    """A directory of a token task."""
    root.mkdir(parents=True, exist_ok=True)
    table = pa.table({"tokens": WORDS, "tags": TAGS, **columns})
    for part in ("train", dev, "test"):
        pq.write_table(table, root / f"{part}.parquet")
    return root


def write_texts(root: Path, *names: str) -> str:
    """A file of tasks on texts."""
    table = pa.table({"headline": ["a", "b"], "label": ["no", "yes"]})
    tasks = [
        TaskExamples(Task(name, text=("headline",)), dict.fromkeys(("train", "eval", "test"), table)) for name in names
    ]
    write_tasks(str(root), tasks, "a test")
    return str(root / "tasks.toml")


def test_token_tasks_and_files_of_tasks_become_one_set(tmp_path: Path) -> None:
    texts = write_texts(tmp_path / "texts", "sport", "film", "law")
    others = write_entities(tmp_path / "others", "validation", words=WORDS, marks=TAGS)
    entities = {"names": str(write_entities(tmp_path / "names")), "others": f"{others}?text=words&label=marks"}
    output = tmp_path / "families"
    counts = build_families(entities, [texts], str(output), tasks=["sport", "law"])
    assert list(counts) == ["names", "others", "sport", "law"]
    assert counts["names"] == counts["sport"] == {"train": 2, "eval": 2, "test": 2}
    tasks = {task.name: task for task in load_tasks(output / "tasks.toml")}
    assert tasks["names"].definition() == Task("names", "token", ("LOC", "PER"), ("tokens",))
    assert (tasks["others"].text, tasks["others"].label) == (("words",), "marks")
    assert str(tasks["others"].eval).endswith("others/validation.parquet")
    assert tasks["sport"] == load_tasks(texts)[0]
    assert not (output / "sources.toml").exists()


def test_source_tasks_stand_in_a_file_of_their_own(tmp_path: Path) -> None:
    names, texts = str(write_entities(tmp_path / "names")), write_texts(tmp_path / "texts", "sport")
    build_families({"more": names}, [], str(tmp_path / "before"))
    before = tmp_path / "before" / "tasks.toml"
    before.write_text("\n".join(line for line in before.read_text().splitlines() if not line.startswith("eval")))
    output = tmp_path / "families"
    build_families({"names": names}, [texts], str(output), sources=[str(before)])
    learned_before = load_tasks(output / "sources.toml", evaluates=False)
    assert [(task.name, task.eval) for task in learned_before] == [("more", None)]
    assert [task.name for task in load_tasks(output / "tasks.toml")] == ["names", "sport"]


def test_numbers_with_names_are_tags_too(tmp_path: Path) -> None:
    names = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    numbers = pa.array([[names.index(tag) for tag in row] for row in TAGS], pa.list_(pa.int32()))
    feature = {"feature": {"names": names, "_type": "ClassLabel"}, "_type": "List"}
    note = {"huggingface": json.dumps({"info": {"features": {"tags": feature}}})}
    root = write_entities(tmp_path / "names")
    table = pa.table({"tokens": WORDS, "tags": numbers}).replace_schema_metadata(note)
    for file in root.iterdir():
        pq.write_table(table, file)
    build_families({"names": str(root)}, [], str(tmp_path / "families"))
    assert load_tasks(tmp_path / "families" / "tasks.toml")[0].labels == ("LOC", "PER")


def spoil(root: Path, kind: str) -> tuple[dict[str, str], list[str], list[str]]:
    """Data with one fault: token tasks, files of tasks, and the tasks that are wanted of these."""
    names, texts = write_entities(root / "names"), write_texts(root / "texts", "sport")
    if kind == "part":
        (names / "dev.parquet").unlink()
    elif kind == "column":
        return {"names": f"{names}?label=ner_tags"}, [texts], []
    elif kind == "option":
        return {"names": f"{names}?tags=ner_tags"}, [texts], []
    elif kind == "none":
        write_entities(names, tags=[["O"] * 4, ["O"] * 2])
    elif kind == "tags":
        write_entities(names, tags=[["B-PER", "O"], ["O", "O"]])
    elif kind == "type":
        pq.write_table(pa.table({"tokens": WORDS[:1], "tags": [["O", "O", "O", "B-ORG"]]}), names / "test.parquet")
    elif kind == "test":
        file = Path(texts)
        file.write_text("".join(line for line in file.open() if not line.startswith("test")))
    elif kind == "wanted":
        return {"names": str(names)}, [texts], ["sports"]
    elif kind == "same":
        return {"sport": str(names)}, [texts], []
    elif kind == "empty":
        return {}, [], []
    return {"names": str(names)}, [texts], []


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("part", "task 'names': .*names has no dev.parquet or eval.parquet or validation.parquet"),
        ("column", "has no column 'ner_tags'"),
        ("option", "'tags' is not an option of .*allowed: text, label"),
        ("none", "has no entity"),
        ("tags", "row 0: it has 4 words and 2 tags"),
        ("type", "tag 'B-ORG' cannot be used"),
        ("test", "task 'sport' has no test part"),
        ("wanted", "there is no task 'sports'; did you mean 'sport'"),
        ("same", "sport"),
        ("empty", "no task is given"),
    ],
)
def test_what_cannot_be_used_is_refused_and_nothing_written(tmp_path: Path, kind: str, message: str) -> None:
    entities, texts, wanted = spoil(tmp_path, kind)
    with pytest.raises(MtopError, match=message) as caught:
        build_families(entities, texts, str(tmp_path / "families"), tasks=wanted)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "families").exists()
    assert caught.type is DataError or kind == "same"
