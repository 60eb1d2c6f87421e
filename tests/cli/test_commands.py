from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from mtop_batch import ConfigError, evaluate
from mtop_batch.cli.commands import app, main
from mtop_batch.cli.options import comma_separated
from mtop_batch.errors import AccessRefused
from mtop_batch.model.bundle.bundle import save_bundle
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.tasks import Task
from tests.conftest import make_backbone, make_tokenizer


def exit_code(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return int(end.value.code or 0)


@pytest.fixture
def bundle(tmp_path: Path) -> str:
    model = MTOPModel.from_backbone(
        make_backbone(), [Task("politics"), Task("mood", labels=("bad", "good"))], max_tokens=32
    )
    uri = str(tmp_path / "model")
    save_bundle(uri, model, make_tokenizer(), metrics={}, training_config={}, backbone_name="tiny")
    return uri


def test_predictions_of_arguments_are_shown_as_a_table(bundle: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["predict", "--model", bundle, "bank profit", " "]) == 0
    output = capsys.readouterr().out
    assert "bank profit" in output
    assert "politics" in output
    assert "text is empty" in output


def test_predictions_of_standard_input_are_json_lines(bundle: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "mtop_batch.cli", "predict", "--model", bundle, "--json"],
        input="bank profit\nfilm star\n",
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    assert [row["text"] for row in rows] == ["bank profit", "film star"]
    assert rows[0]["politics_label"] in ("no", "yes")
    assert run.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--config", "nowhere.toml"], "there is no configuration file 'nowhere.toml'"),
        (["predict", "--model", "nowhere", "text"], "there is no bundle at"),
        (["label", "--model", "m", "--corpus", "c", "--labels", "l", "--tasks", "a,,b"], "has an empty name"),
        (["label", "--model", "nowhere", "--corpus", "c", "--labels", "l"], "there is no bundle at"),
        (["evaluate", "--model", "nowhere"], "there is no bundle at"),
        (["evaluate", "--model", "nowhere", "--set", "train.seed=1"], "name one with --config"),
        (["build-nhc", "--source", "s", "--extra", "opinion"], "is not of the form NAME=PATH"),
        (["label", "--corpus", "c"], "Missing option"),
        (["lable"], "No such command"),
        (["label", "--model", "m", "--corpus", "c", "--labels", "l", "--text-columns", '"a'], "quotes that do not fit"),
        (["labels", "--labels", "l", "--json", "/tmp"], "--json /tmp is a directory; name a file"),
        (["labels", "--labels", ""], "a path or URL is empty"),
        (["evaluate", "--model", "s3:/models/x", "--config", "f"], "there is no configuration file"),
        (["predict", "--model", "s3:/models/x", "text"], "write s3://bucket/path"),
    ],
)
def test_a_mistake_ends_with_code_2_and_one_message(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(arguments) == 2
    error = capsys.readouterr().err
    assert message in " ".join(error.replace("│", " ").split())
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        ("a, b ,c", ["a", "b", "c"]),
        ('"a, b",c', ["a, b", "c"]),
        ('" a ","say ""hi"""', [" a ", 'say "hi"']),
        ("it's", ["it's"]),
    ],
)
def test_names_with_commas_or_spaces_at_an_end_go_in_quotes(typed: str, names: list[str]) -> None:
    assert comma_separated(typed, "--text-columns") == names


def test_evaluation_takes_a_file_of_added_tasks_and_asks_for_one_where_the_bundle_names_no_data(
    bundle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pa.table({"text": ["bank profit", "film star"], "label": ["good", "bad"]})
    pq.write_table(table, tmp_path / "mood.parquet")
    data = f'train = "{tmp_path}/mood.parquet"\neval = "{tmp_path}/mood.parquet"\n'
    config = tmp_path / "later.toml"
    config.write_text(f'[add_tasks]\nepochs = 2\n[[task]]\nname = "mood"\nlabels = ["bad", "good"]\n{data}')
    assert exit_code(["evaluate", "--model", bundle, "--config", str(config)]) == 0
    shown = capsys.readouterr()
    assert "mood" in shown.out
    assert "not evaluated, for no evaluation data is named for them: politics" in shown.err
    assert exit_code(["evaluate", "--model", bundle]) == 2
    assert "names no evaluation data; name some with --config" in capsys.readouterr().err


@pytest.mark.parametrize("command", typer.main.get_command(app).commands)  # type: ignore[attr-defined]
def test_help_shows_all_that_it_says(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Brackets are markup to Rich."""
    monkeypatch.setenv("COLUMNS", "400")
    found = typer.main.get_command(app).commands[command]  # type: ignore[attr-defined]
    shown = CliRunner().invoke(app, [command, "--help"]).output
    for text in [found.help, *(parameter.help for parameter in found.params)]:
        assert str(text).replace("\\[", "[") in shown


@pytest.mark.parametrize("place", ["", "data.parquet/errors.parquet"])
def test_evaluation_refuses_a_place_for_errors_before_it_works(
    bundle: str, tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data.parquet").touch()
    assert exit_code(["evaluate", "--model", bundle, "--errors", f"{tmp_path}/{place}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --errors ")
    assert error.endswith(
        "; name a file\n" if not place else "data.parquet is a file, and no directory; name a file elsewhere\n"
    )
    with pytest.raises(ConfigError, match=r"errors .*name a"):
        evaluate(bundle, errors=f"{tmp_path}/{place}")


@pytest.mark.parametrize("waits_in_ray", [False, True])
def test_a_command_that_is_told_to_end_says_so_in_one_line(
    waits_in_ray: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def works(**_: object) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException as error:
            if waits_in_ray:  # as `CoreWorker.wait` does
                raise SystemError("<cyfunction CoreWorker.wait> returned a result with an exception set") from error
            raise

    monkeypatch.setattr("mtop_batch.cli.commands.app", works)
    assert exit_code([]) == 1
    assert capsys.readouterr().err == "stopped; the same command goes on where it stopped\n"


def test_another_system_error_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(**_: object) -> None:
        raise SystemError("broken")

    monkeypatch.setattr("mtop_batch.cli.commands.app", breaks)
    with pytest.raises(SystemError, match="broken"):
        main([])


def test_help_answers_without_loading_torch() -> None:
    code = (
        "import sys; from mtop_batch.cli.commands import app; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_reading_labels_needs_no_torch() -> None:
    code = "import sys; from mtop_batch import read_labels; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_only_labelling_actors_import_torch() -> None:
    code = "import sys, mtop_batch.engine.labelling.label; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("command", [["train"], ["evaluate", "--model", "m"]])
def test_a_wrong_configuration_is_refused_before_torch_is_imported(command: list[str]) -> None:
    code = (
        "import sys; from mtop_batch.cli.commands import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: sys.exit(99 if 'torch' in sys.modules else end.code)"
    )
    words = [sys.executable, "-c", code, *command, "--config", "nowhere.toml"]
    assert subprocess.run(words, capture_output=True, check=False).returncode == 2


@pytest.mark.parametrize("command", ["labels", "publish", "vacuum"])
def test_credentials_that_never_worked_are_a_wrong_option(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AccessRefused("access to s3://news/labels at AWS was refused")

    for name in ("exists", "list_files", "read_bytes", "is_file"):
        monkeypatch.setattr(f"mtop_batch.storage.{name}", refused)
    with pytest.raises(SystemExit) as end:
        main([command, "--labels", "s3://news/labels"])
    assert end.value.code == 2
    assert "was refused" in capsys.readouterr().err
