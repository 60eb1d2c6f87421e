"""Texts that kill every process that works on them: their file is named, and all others are labelled."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import ray

from mtop_batch import Task, read_labels
from mtop_batch.data.tokens import Tokens
from mtop_batch.labelling.run.stages import KILLED
from mtop_batch.table.store import LabelFile
from tests.conftest import make_tokenizer
from tests.engine.test_bad_data import label
from tests.engine.test_label import save_model, write_articles
from tests.shared_ray import stop_shared_ray

MARK = {"read": "vote", "label": "phone", "write": "law"}


def plant_killers() -> None:
    """In every worker: a text, or a file, with the word of a stage kills the process that this stage runs in."""
    from mtop_batch.data.tokens import TextTokenizer
    from mtop_batch.labelling.run.predictor import Predictor
    from mtop_batch.table.store import write_label_file

    marked = make_tokenizer().convert_tokens_to_ids(MARK["label"])

    def kill_where(is_deadly: Callable[..., bool], function: Callable[..., Any]) -> Callable[..., Any]:
        def or_die(*arguments: Any, **options: Any) -> Any:
            if is_deadly(*arguments):
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return or_die

    def has_word(_: object, texts: Sequence[str | None], *__: object) -> bool:
        return any(MARK["read"] in (text or "") for text in texts)

    def has_token(_: object, tokens: Tokens, *__: object) -> bool:
        return bool(np.any(tokens.values == marked))

    def has_name(_: object, file: LabelFile, *__: object) -> bool:
        return MARK["write"] in file.path

    for name, replacement in {
        "mtop_batch.data.tokens.TextTokenizer.encode_and_count": kill_where(has_word, TextTokenizer.encode_and_count),
        "mtop_batch.labelling.run.predictor.Predictor.predict_tokens": kill_where(has_token, Predictor.predict_tokens),
        "mtop_batch.labelling.run.stages.write_label_file": kill_where(has_name, write_label_file),
    }.items():
        mock.patch(name, replacement).start()


@pytest.fixture(scope="module")
def ray_with_killers() -> Iterator[None]:
    """A Ray whose workers have them."""
    stop_shared_ray()
    environment = {"worker_process_setup_hook": plant_killers}
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, runtime_env=environment)
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_with_killers")
def test_a_text_that_kills_every_process_makes_its_file_unreadable_and_no_other(tmp_path: Path) -> None:
    save_model(f"{tmp_path}/model", [Task("mood", text=("title", "body"))])
    write_articles(f"{tmp_path}/corpus/a.parquet", ["bank profit"] * 5)
    for number, word in enumerate(MARK.values()):
        write_articles(f"{tmp_path}/corpus/{word}.parquet", ["bank", f"new {word}"], first_id=10 * number + 10)
    write_articles(f"{tmp_path}/corpus/z.parquet", ["team wins"] * 4, first_id=5)
    run = label(tmp_path)
    assert run.exit_code == 3
    assert run.report["unreadable_files"] == [
        {"path": f"{word}.parquet", "reason": KILLED} for word in sorted(MARK.values())
    ]
    assert (run.report["status"], run.report["rows"], run.report["units_done"]) == ("done", 9, 2)
    assert read_labels(f"{tmp_path}/labels")["id"].to_pylist() == list(range(9))
