"""`mtop predict`: what it takes from people and programs, and what each task is asked."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtop_batch.cli import predict as prediction
from mtop_batch.cli.commands import main
from mtop_batch.cli.predict import Given, of_arguments, read_lines
from mtop_batch.cli.tables import print_predictions
from mtop_batch.errors import ConfigError
from mtop_batch.labelling.run.predictor import Predictor
from mtop_batch.model.bundle.bundle import save_bundle
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.tasks import Task
from tests.conftest import make_backbone, make_tokenizer

SINGLE = Task("politics")
PAIR = Task("follows", labels=("no", "yes", "maybe"), text=("premise", "hypothesis"))
VALUE = Task("mood", kind="regression", labels=(), text=("title", "body"))

Save = Callable[..., str]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """`save(task, ...)`: a bundle with these tasks."""

    def write(*tasks: Task) -> str:
        uri = str(tmp_path / "model")
        model = MTOPModel.from_backbone(make_backbone(), list(tasks), max_tokens=32, prompt_attention="isolated")
        save_bundle(uri, model, make_tokenizer(), metrics={}, training_config={}, backbone_name="tiny")
        return uri

    return write


def predict(model: str, *given: Given) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows, and what was noted."""
    notes: list[str] = []
    return prediction.predict(model, given, "fp32", notes.append), notes


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (b"a\nb\n", ["a", "b"]),
        (b"\xef\xbb\xbfa\r\nb\r\n", ["a", "b"]),
        (b"\xef\xbb\xbf\n\nb", ["", "", "b"]),
        ("ü\u2028x\x85y\r".encode(), ["ü\u2028x\x85y"]),
        (b"", []),
    ],
)
def test_lines_are_utf8_with_or_without_a_mark_and_end_as_on_any_system(content: bytes, texts: list[str]) -> None:
    assert list(read_lines(io.BytesIO(content))) == [Given(text) for text in texts]


def test_a_line_that_cannot_be_decoded_is_one_bad_line(save: Save) -> None:
    given = read_lines(io.BytesIO(b"bank\nfilm \xff star\ncup"))
    rows, _ = predict(save(SINGLE), *given)
    assert [row["error"] for row in rows] == [None, "line 2 is not valid UTF-8", None]
    assert [row["politics_label"] is None for row in rows] == [False, True, False]
    assert rows[1]["text"] == "film \ufffd star"


def test_utf16_is_refused_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match="standard input is UTF-16; convert it"):
        list(read_lines(io.BytesIO("bank".encode("utf-16"))))


def test_tasks_on_pairs_are_asked_about_pairs_and_others_about_the_text(save: Save) -> None:
    model = save(SINGLE, PAIR, VALUE)
    given = [Given("bank profit", "market"), Given("team\tcup final"), Given("film star")]
    rows, notes = predict(model, *given)
    single = Predictor.load(model, precision="fp32", tasks=["politics"])
    pairs = Predictor.load(model, precision="fp32", tasks=["follows", "mood"])
    expected = single.predict(["bank profit", "team", "film star"]).to_pylist()
    of_pairs = pairs.predict(["bank profit", "team"], ["market", "cup final"]).to_pylist()
    for row, one in zip(rows, expected, strict=True):
        assert row["politics_score"] == pytest.approx(one["politics_score"])
    for row, two in zip(rows, of_pairs, strict=False):
        assert row["mood_score"] == pytest.approx(two["mood_score"])
        assert row["follows_label"] == two["follows_label"]
    assert list(rows[0]) == [
        *(
            "text",
            "second",
            *POLITICS_COLUMNS,
            "follows_label",
            "follows_score",
            "follows_scores",
            "mood_score",
            "error",
        )
    ]
    assert (rows[2]["follows_label"], rows[2]["mood_score"], rows[2]["error"]) == (None, None, None)
    assert notes == [
        "left out for 1 of 3 texts, because they read two texts: follows, mood; give the second by --second, or after "
        "a tab"
    ]


def test_a_bundle_of_pairs_alone_is_asked_about_the_first_text_and_says_so(save: Save) -> None:
    rows, notes = predict(save(PAIR), Given("bank profit"), Given("cup"))
    assert [row["error"] for row in rows] == [None, None]
    assert notes == [
        "warning: all tasks read two texts, and are asked about the first alone; give the second by --second, or after "
        "a tab"
    ]


def test_a_tab_means_nothing_where_no_task_reads_two_texts(save: Save) -> None:
    model = save(SINGLE)
    (row,), notes = predict(model, Given("bank\tprofit"))
    assert (row["text"], notes) == ("bank\tprofit", [])
    with pytest.raises(ConfigError, match=r"no task of the bundle .* reads two texts"):
        predict(model, Given("bank", "profit"))


def exit_code(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return int(end.value.code or 0)


def test_second_texts_and_precision_are_options(save: Save, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["predict", "--model", save(SINGLE, PAIR), "bank", "cup", "--precision", "bf16", "--json"]
    assert exit_code([*command, "--second", "profit", "--second", "final"]) == 0
    output = capsys.readouterr()
    assert [json.loads(line)["second"] for line in output.out.splitlines()] == ["profit", "final"]
    assert output.err == ""
    assert exit_code([*command, "--second", "profit"]) == 2
    assert "--second is given 1 time for 2 texts" in capsys.readouterr().err


def test_a_table_shows_texts_and_labels_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"text": "[/b] x", "second": "[red]", "a_label": "[bold]", "a_score": 0.5, "b_score": None, "error": None}
    print_predictions([row, {"text": "t", "error": "[/b]"}])
    output = capsys.readouterr().out
    assert "[/b] x | [red]" in output
    assert "[bold]" in output
    assert output.count("[/b]") == 2


def test_scores_of_all_labels_are_named_for_programs(save: Save) -> None:
    tags = Task("tags", "multi-label", labels=("a", "b", "c"), scores="all")
    model = save(SINGLE, tags)
    (row, empty), _ = predict(model, Given("bank"), Given(""))
    assert list(row) == ["text", *POLITICS_COLUMNS, *TAGS_COLUMNS, "error"]
    assert list(row["tags_scores"]) == ["a", "b", "c"]
    given = [label for label, score in row["tags_scores"].items() if score >= 0.5]
    assert (row["tags_label"], row["tags_score"]) == (given, [row["tags_scores"][label] for label in given])
    assert (empty["tags_label"], empty["tags_scores"]) == (None, None)
    json.dumps(row)


POLITICS_COLUMNS = ["politics_label", "politics_score", "politics_scores"]
TAGS_COLUMNS = ["tags_label", "tags_score", "tags_scores"]


def test_entities_have_their_text_and_are_shown_in_it(save: Save, capsys: pytest.CaptureFixture[str]) -> None:
    names = Task("names", "token", ("PER", "LOC"), ("title", "body"))
    (row, _), _ = predict(save(SINGLE, names), Given("bank of [b]", "a cup final"), Given("x"))
    entities = row["names_label"]
    assert all(row[of["column"]][of["start"] : of["end"]] == of["text"] for of in entities)
    json.dumps(row)
    shown = [
        {"text": "[b]", "column": "text", "start": 8, "end": 11, "label": "PER", "score": 0.9},
        {"text": "cup", "column": "second", "start": 2, "end": 5, "label": "LOC", "score": 0.8},
    ]
    print_predictions([{**row, "names_label": shown}, {**row, "names_label": []}])
    output = capsys.readouterr().out
    assert "bank of [b]" in output
    assert re.search(r"\[b\] \(PER\) +│ 0.900", output)
    assert re.search(r"cup \(LOC\) +│ 0.800", output)


def test_a_table_says_why_a_label_is_not_the_likeliest(capsys: pytest.CaptureFixture[str]) -> None:
    scores = {"a_scores": {"no": 0.9, "yes": 0.1}, "b_scores": {str(n): 1 / (n + 2) for n in range(20)}}
    row = {"text": "t", "a_label": "yes", "a_score": 0.1, "a_corrected": True, **scores, "error": None}
    print_predictions([{**row, "b_label": None, "b_score": 0.5, "b_abstained": True}])
    output = capsys.readouterr().out
    assert re.search(r"a +│ yes \* by a rule +│ 0.100", output)
    assert "- too unsure for a label" in output
    assert "... and 12 more" in output


def test_what_is_not_utf_8_is_in_error_wherever_it_comes_from() -> None:
    lines = list(read_lines(io.BytesIO("bank\nstar".encode("utf-16-le"))))
    assert [line.error for line in lines] == [
        f"line {number} has NUL characters, as UTF-16 does; write it as UTF-8" for number in (1, 2)
    ]
    texts = of_arguments(["bank", "caf\udce9"], [])
    assert [text.error for text in texts] == [None, "text 2 is not valid UTF-8"]
    pairs = of_arguments(["bank", "star"], ["film", "caf\udce9"])
    assert [pair.error for pair in pairs] == [None, "second text 2 is not valid UTF-8"]
    assert (texts[1].text, pairs[1].second) == ("caf\ufffd", "caf\ufffd")


@pytest.mark.parametrize(
    ("redirection", "error"),
    [
        ("> /dev/full", r"error: \[Errno 28\] No space left on device\n"),
        ("<&- --json", "error: there is no text: give texts as arguments, or lines on standard input\n"),
    ],
)
def test_standard_streams_that_do_not_work_are_one_line(save: Save, redirection: str, error: str) -> None:
    text = "" if "<" in redirection else "bank"
    command = f"{sys.executable} -m mtop_batch.cli predict --model {save(SINGLE)} {text} {redirection}"
    run = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert run.returncode == (1 if text else 2)
    assert re.fullmatch(error, run.stderr)
