"""What a person types as a place becomes one address, whatever the command or key."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtop_batch import Predictor, read_labels, storage
from mtop_batch.config.load import load_config
from mtop_batch.config.sections import BackboneConfig
from mtop_batch.data.sources import read_columns
from mtop_batch.engine.outputs import check_output
from mtop_batch.errors import ConfigError, LabelTableError
from mtop_batch.labelling.plan.planner import plan_labels
from mtop_batch.model.bundle.bundle import load_bundle, save_bundle
from mtop_batch.model.bundle.files import load_bundle_tokenizer, read_bundle_info
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.tasks import Task
from tests.conftest import make_backbone, make_tokenizer
from tests.labelling.support import articles, definition, run_plan, write_corpus


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home and working directory."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "path"),
    [
        ("x/../y/", "y"),
        ("~/y", "y"),
        ("~", ""),
        ("file://{home}/my%20y", "my y"),
        ("file://localhost{home}/y", "y"),
        ("file:{home}/y/", "y"),
        ("FILE://{home}/y", "y"),
        ("{home}//y/.", "y"),
        ("/{home}/y", "y"),
        ("my%20y", "my%20y"),
    ],
)
def test_a_local_place_becomes_an_absolute_path(home: Path, typed: str, path: str) -> None:
    address = storage.absolute(typed.format(home=home))
    assert address == str(home / path)
    assert storage.absolute(address) == address


@pytest.mark.parametrize(
    ("typed", "url"),
    [
        ("s3a://b/x/", "s3://b/x"),
        ("s3n://b", "s3://b"),
        ("S3://b/x//", "s3://b/x"),
        ("s3://b/a/../x/./y%20z", "s3://b/x/y%20z"),
        ("memory://b/x/", "memory://b/x"),
        ("simplecache::s3://b/x/", "simplecache::s3://b/x"),
    ],
)
def test_a_url_becomes_one_form(typed: str, url: str) -> None:
    assert storage.absolute(typed) == url
    assert storage.absolute(url) == url


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("", "is empty"),
        ("file://data/x", "write file:///path"),
        ("file:x", "write file:///path"),
        ("s3:/b/x", "write s3://bucket/path"),
        ("gs:b/x", "write gs://bucket/path"),
        ("s3:///x", "names no bucket"),
        ("s3://b/../x", "leads above its bucket"),
        ("~no-such-user/x", r"there is no such user; write \./~no-such-user/x for a local path"),
        ("data\0/x", r"data\\x00/x: no path or URL has a NUL"),
        ("s3://b/\0", "no path or URL has a NUL"),
    ],
)
def test_what_cannot_be_meant_is_refused(typed: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        storage.absolute(typed)


def test_what_lies_above_a_link_is_above_where_it_leads(home: Path) -> None:
    (home / "there" / "deep").mkdir(parents=True)
    (home / "link").symlink_to(home / "there" / "deep")
    assert storage.absolute("link/../corpus") == str(home / "there" / "corpus")
    assert storage.absolute("link/corpus") == str(home / "link" / "corpus")


def test_places_are_compared_as_what_they_are(home: Path) -> None:
    (home / "data").mkdir()
    (home / "link").symlink_to(home / "data")
    assert storage.path_below("~/link/x y/", f"file://{home}/data") == "x y"
    assert storage.path_below("link", "data/") == ""
    assert storage.path_below("database", "data") is None
    assert storage.path_below("/x", "/") == "x"
    assert storage.path_below("s3a://b/x/y/", "s3://b/x") == "y"
    assert storage.path_below("s3://b/x", str(home)) is None


@pytest.mark.parametrize("place", ["~/my place/{}", "file://{home}/my%20place/{}", "link/../my place/{}"])
def test_every_function_that_takes_a_place_takes_it_as_it_is_typed(home: Path, place: str) -> None:
    (home / "my place").mkdir()
    (home / "elsewhere").mkdir()
    (home / "link").symlink_to(home / "elsewhere")  # what is meant by link/.. is above elsewhere

    def typed(name: str) -> str:
        return place.format(name, home=home)

    write_corpus(home / "my place", {"corpus/a.parquet": articles(3)})
    wanted = definition({"a": "1"})
    run_plan(plan_labels(typed("corpus"), typed("labels"), wanted), wanted)
    assert (home / "my place" / "labels" / "current" / "a.parquet").exists()
    assert read_labels(typed("labels/")).num_rows == 3
    assert len(read_columns(typed("corpus"), ["id"])[0].table) == 3

    model = MTOPModel.from_backbone(make_backbone(), [Task("politics")], max_tokens=32)
    save_bundle(typed("model"), model, make_tokenizer(), metrics={}, training_config={}, backbone_name="")
    assert (home / "my place" / "model" / "config.json").exists()
    for load in (load_bundle, load_bundle_tokenizer, read_bundle_info, Predictor.load):
        load(typed("model"))
    check_output(typed("model"))
    with pytest.raises(ConfigError, match="no bundle"):
        check_output(typed("corpus"))

    task = '[[task]]\nname = "politics"\nlabels = ["no", "yes"]\ntrain = "x"\neval = "x"'
    (home / "my place" / "tasks.toml").write_text(task)
    (home / "my place" / "train.toml").write_text(f'output = "x"\ntasks = "{typed("tasks.toml")}"\nbackbone.name = "b"')
    assert load_config(typed("train.toml")).tasks()[0].name == "politics"


def test_a_backbone_is_a_directory_of_the_home_or_a_name_of_the_hub(home: Path) -> None:
    assert BackboneConfig(name="~/minilm").name == str(home / "minilm")  # type: ignore[call-arg]
    assert BackboneConfig(name=f"file://{home}/my%20lm").name == str(home / "my lm")  # type: ignore[call-arg]
    for name in ("google/electra-base-discriminator", "package:a/b", "./minilm"):
        assert BackboneConfig(name=name).name == name  # type: ignore[call-arg]


def test_corpus_and_labels_in_each_other_are_found_through_links(home: Path) -> None:
    write_corpus(home / "corpus", {"a.parquet": articles(1)})
    (home / "link").symlink_to(home / "corpus")
    for labels in ("link/labels", "~/corpus/labels", f"file://{home}/link/_year=1"):
        with pytest.raises(ConfigError, match="lie in each other"):
            plan_labels("corpus", labels, definition({"a": "1"}))
    plan_labels("corpus", "link/_labels", definition({"a": "1"}))


def test_an_output_that_cannot_be_written_is_refused_before_work(home: Path) -> None:
    (home / "lost").symlink_to(home / "nowhere")
    (home / "taken.training").touch()
    for place, message in (
        ("lost", "lost is a link that leads nowhere; make its target"),
        ("lost/model", "lost is a link that leads nowhere; make its target"),
        ("taken", r"taken\.training is a file; name a directory"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_output(str(home / place))


def test_a_place_below_a_file_is_refused(home: Path) -> None:
    (home / "file").touch()
    for place in ("file", "file/labels/x"):
        with pytest.raises(ConfigError, match=r"--labels .*: .*/file is a file; name a directory"):
            storage.check_directory(storage.absolute(place), "--labels")
    with pytest.raises(ConfigError, match=r"--json .* is a directory; name a file"):
        storage.check_file(str(home), "--json")
    with pytest.raises(ConfigError, match=r"--json .*/file/x: .*/file is a file, and no directory; name a file els"):
        storage.check_file(str(home / "file" / "x"), "--json")
    storage.check_file(str(home / "new" / "file"), "--json")
    with pytest.raises(LabelTableError, match="a file is where a directory should be"):
        storage.write_bytes(str(home / "file" / "x"), b"")
    assert not storage.exists(str(home / "file" / "x"))
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(str(home / "file" / "x"))
