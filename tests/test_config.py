from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from mtop_batch.config.load import load_config
from mtop_batch.config.model import MODEL_SECTIONS, ModelConfig, MTOPModelConfig
from mtop_batch.config.sections import Config
from mtop_batch.errors import ConfigError
from mtop_batch.families import Family
from mtop_batch.model.kinds.by_name import KINDS
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.storage import write_bytes
from tests.s3 import S3Server

JOBS = Path(__file__).parent.parent / "jobs"
CONFIG = """
output = "models/news"
[backbone]
name = "some/encoder"
[train]
epochs = 2
[[task]]
name = "politics"
labels = ["no", "yes"]
text = ["headline"]
train = "train.parquet"
eval = "eval.parquet"
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def _write(text: str, name: str = "config.toml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return _write


def test_defaults_are_the_papers_but_for_isolated_prompts(write: Callable[..., Path]) -> None:
    config = load_config(write(CONFIG))
    assert isinstance(config.model, MTOPModelConfig)
    assert config.model.prompts_per_task == 2
    assert config.model.shared_prompts == 0
    assert config.model.prompt_attention == "isolated"
    assert (config.train.batch_size, config.train.learning_rate, config.train.warmup_fraction) == (
        16,
        1e-5,
        0.1,
    )
    assert config.train.alpha == 1.0
    assert config.backbone.max_tokens == 128
    assert config.tasks()[0].metric == "accuracy"


def test_a_model_made_in_python_has_the_configurations_defaults() -> None:
    defaults = {name: field.default for name, field in inspect.signature(MTOPModel.from_backbone).parameters.items()}
    for name in ("prompts_per_task", "shared_prompts", "prompt_attention", "pooler_rank", "stop_gradient"):
        assert defaults[name] == MTOPModelConfig.model_fields[name].default


def test_tasks_are_assigned_to_prompt_groups_round_robin_unless_they_name_theirs(write: Callable[..., Path]) -> None:
    tasks = "".join(
        CONFIG[CONFIG.index("[[task]]") :].replace("politics", name) + (f'prompt_group = "{group}"\n' if group else "")
        for name, group in (("b", None), ("c", "topics"), ("d", None), ("e", None))
    )
    assert load_config(write(CONFIG)).prompt_groups() == {}
    path = write(CONFIG + tasks)
    assert load_config(path).prompt_groups() == {"c": "topics"}
    assigned = load_config(path, ["model.prompt_groups=2"]).prompt_groups()
    assert assigned == {"politics": "1", "b": "2", "c": "topics", "d": "1", "e": "2"}
    with pytest.raises(ConfigError, match=r"task\[politics\]\.prompt_group = '1' cannot be used: string should match"):
        load_config(write(CONFIG + 'prompt_group = "1"'))


def test_overrides_are_read_as_toml_or_as_plain_strings(write: Callable[..., Path]) -> None:
    path = write(CONFIG)
    config = load_config(
        path,
        [
            "train.epochs=3.5",
            "output=s3://bucket/model",
            "train.warm_start.epochs=1",
            "model.stop_gradient=false",
        ],
    )
    assert config.train.epochs == 3.5
    assert config.output == "s3://bucket/model"
    assert config.train.warm_start.epochs == 1
    assert isinstance(config.model, MTOPModelConfig)
    assert config.model.stop_gradient is False


def test_tasks_may_stand_in_a_file_of_their_own(write: Callable[..., Path]) -> None:
    head, _, tasks = CONFIG.partition("[[task]]")
    tasks_file = write("[[task]]" + tasks, "tasks.toml")
    config = load_config(write(f'tasks = "{tasks_file}"\n' + head))
    assert [task.name for task in config.task] == ["politics"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs = 2", "epoch = 2", r"unknown key train\.epoch; did you mean 'epochs'\?"),
        (
            "epochs = 2",
            "alpha = 1.4",
            r"train\.alpha = 1\.4 cannot be used: input should be less than or equal to 1",
        ),
        (
            "epochs = 2",
            "warm_start = {epoch = 3}",
            r"unknown key train\.warm_start\.epoch; did you mean 'epochs'",
        ),
        (
            'labels = ["no", "yes"]',
            'label_names = ["a"]',
            r"unknown key task\[politics\]\.label_names; did you mean",
        ),
        (
            'labels = ["no", "yes"]',
            'labels = ["no", "yes"]\ndecide = { treshold = 0.5 }',
            r"unknown key task\[politics\]\.decide\.treshold; did you mean 'threshold'",
        ),
        (
            'labels = ["no", "yes"]',
            'labels = ["no"]',
            r"labels = \['no'\]; a classification task needs at least two",
        ),
        ('name = "politics"', 'name = "the politics"', r"task name 'the politics' is not allowed"),
        ('train = "train.parquet"', "", r"task\[politics\]\.train is missing"),
        ('name = "some/encoder"', "", r"backbone\.name is missing"),
        ("[[task]]", "[task]", r"task is one table; write \[\[task\]\], with two brackets"),
        (
            'text = ["headline"]',
            'text = "headline"',
            r"task\[politics\]\.text = 'headline' is no list; write text = \[\"headline",
        ),
        (
            'labels = ["no", "yes"]',
            'labels = "no"',
            r'labels = \'no\' is no list; write labels = \["no"\]',
        ),
        ("epochs = 2", "epochs = inf", r"train\.epochs = inf cannot be used: input should be a finite number"),
        ("epochs = 2", "epochs = 1e9", r"train\.epochs = 1000000000\.0 cannot be used: .* less than or equal to 10000"),
        ("epochs = 2", "epochs = true", r"train\.epochs = True cannot be used: neither true nor false is meant here"),
        ("epochs = 2", "batch_size = false", r"train\.batch_size = False cannot be used: neither true nor false"),
        ("epochs = 2", "seed = 18446744073709551616", r"train\.seed = 18446744073709551616 .* less than 4294967296"),
        ("epochs = 2", "batch_size = 99999999999999999999", r"less than or equal to 1000000"),
        (
            'output = "models/news"',
            'output = ""',
            r"output = '' cannot be used: string should have at least 1 character",
        ),
        ('train = "train.parquet"', 'train = ""', r"task\[politics\]\.train = '' cannot be used"),
        (
            "[train]",
            "[model]\nkind = ['mtop']\n[train]",
            r"model = .* cannot be used: kind = \['mtop'\] is not one of mtop",
        ),
        (
            "[train]",
            "[model]\nkind = {a = 1}\n[train]",
            r"model = .* cannot be used: kind = \{'a': 1\} is not one of mtop",
        ),
        (
            "[train]",
            "[unlabelled]\nteachers = 'a'\n[train]",
            r"unlabelled\.teachers = 'a' cannot be used: give how many to train, or a list of bundles",
        ),
        (
            'text = ["headline"]',
            'kind = "classify"',
            r"task\[politics\]\.kind = 'classify' cannot be used: input should be",
        ),
        ('text = ["headline"]', 'text = ["label"]', r"task 'politics': 'label' is the label column and a text column"),
        ("epochs = 2", "learning_rate = nan", r"train\.learning_rate = nan cannot be used"),
        ('text = ["headline"]', 'text = ["a", "b", "c"]', r"give one, or two different ones for a pair"),
        (
            'text = ["headline"]',
            'metric = "pearson"',
            r"metric = 'pearson' does not fit a classification task",
        ),
    ],
)
def test_a_wrong_configuration_says_what_where_and_what_is_allowed(
    write: Callable[..., Path], old: str, new: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as refusal:
        load_config(write(CONFIG.replace(old, new)))
    assert "\n" not in str(refusal.value)


def test_every_mistake_has_a_line_and_nothing_else_has(write: Callable[..., Path]) -> None:
    wrong = CONFIG.replace('eval = "eval.parquet"', 'eval = 1\nmetric = "good"')
    with pytest.raises(ConfigError) as refusal:
        load_config(write(wrong))
    assert [line.split(" = ")[0].split()[-1] for line in str(refusal.value).splitlines()] == [
        "task[politics].metric",
        "task[politics].eval",
    ]
    twice = CONFIG + CONFIG[CONFIG.index("[[task]]") :].replace("politics", "law")
    with pytest.raises(ConfigError) as refusal:
        load_config(write(twice.replace('eval = "eval.parquet"', 'metric = "good"', 1).replace("eval =", "#")))
    assert [line.split()[-1] for line in str(refusal.value).splitlines()[1:]] == ["it", "it"]
    assert "task[politics].eval is missing; add it\n  task[law].eval is missing; add it" in str(refusal.value)
    with pytest.raises(ConfigError, match="there is no task; add at least one"):
        load_config(write("task = []\n" + CONFIG[: CONFIG.index("[[task]]")]))
    tasks_file = write("[task]\n" + CONFIG.partition("[[task]]")[2], "tasks.toml")
    with pytest.raises(ConfigError, match=r"config\.toml with .*tasks\.toml: task is one table"):
        load_config(write(f'tasks = "{tasks_file}"\n' + CONFIG.partition("[[task]]")[0]))


def test_two_tasks_of_one_name_are_refused(write: Callable[..., Path]) -> None:
    task = CONFIG[CONFIG.index("[[task]]") :]
    with pytest.raises(ConfigError, match="two tasks are called 'politics' and 'Politics'"):
        load_config(write(CONFIG + task.replace("politics", "Politics")))


def test_a_missing_file_and_broken_toml_are_named(write: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no configuration file .*nowhere\.toml"):
        load_config(tmp_path / "nowhere.toml")
    with pytest.raises(ConfigError, match="is not valid TOML"):
        load_config(write("output = "))
    path = write(CONFIG)
    with pytest.raises(ConfigError, match=r"leads through '.*config\.toml', which is a file; name a TOML file"):
        load_config(path / "news.toml")
    with pytest.raises(ConfigError, match="has more than 64,000,000 bytes"):
        load_config("/dev/zero")
    with pytest.raises(ConfigError, match="is a directory; name a TOML file"):
        load_config(tmp_path)
    path.write_bytes(CONFIG.encode("utf-16"))
    with pytest.raises(ConfigError, match="is not valid TOML: byte 0 is not UTF-8; save it as UTF-8"):
        load_config(path)


def test_a_byte_order_mark_does_no_harm(write: Callable[..., Path]) -> None:
    path = write("")
    path.write_bytes(CONFIG.encode("utf-8-sig"))
    assert load_config(path) == load_config(write(CONFIG, "plain.toml"))


@pytest.mark.parametrize("override", ["train.epochs", "=3", "train..epochs=3"])
def test_a_malformed_override_is_refused(write: Callable[..., Path], override: str) -> None:
    with pytest.raises(ConfigError, match=r"is not of the form section\.key=value"):
        load_config(write(CONFIG), [override])


def test_a_resolved_configuration_reads_back(write: Callable[..., Path]) -> None:
    config = load_config(write(CONFIG))
    assert Config.model_validate(config.model_dump(mode="json")) == config


def test_a_configuration_may_lie_on_object_storage(s3: S3Server) -> None:
    uri = f"s3://{s3.bucket}/configs/news.toml"
    write_bytes(uri, CONFIG.encode())
    assert load_config(uri).output == "models/news"
    with pytest.raises(ConfigError, match=r"there is no configuration file 's3://test/configs/nowhere\.toml'"):
        load_config(f"s3://{s3.bucket}/configs/nowhere.toml")


def test_families_are_tables_and_tasks_name_them(write: Callable[..., Path]) -> None:
    family = '[[family]]\nname = "topics"\nlayers = 3\n'
    named = CONFIG.replace("[[task]]", f"{family}[[task]]") + 'family = "topics"\n'
    config = load_config(write(named))
    assert config.families() == [Family("topics", layers=3)]
    assert config.family_of() == {"politics": "topics"}
    assert Config.model_validate(config.model_dump(mode="json")) == config
    assert config.with_tasks([config.task[0].model_copy(update={"family": None})]).family == ()
    assert config.teacher(0).family_of() == {}
    for text, message in (
        (named.replace("layers = 3", "layer = 3"), r"unknown key family\[topics\]\.layer; did you mean 'layers'"),
        (named.replace("layers = 3", "layers = 0"), r"family\[topics\]\.layers = 0 cannot be used"),
        (named.replace("[[family]]", "[family]"), r"family is one table; write \[\[family\]\], with two brackets"),
        (named.replace('"topics"', '"a b"'), "family name 'a b' is not allowed"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(write(text))
    with pytest.raises(ConfigError, match=r"task 'politics': model\.kind = 'mt-dnn' has no families; remove it"):
        load_config(write(named), ["model.kind=mt-dnn"])
    with pytest.raises(ConfigError, match="the vector is that of the encoder as it is for all"):
        load_config(write(named + 'reads = "vector"\n'))


def test_each_kind_of_model_has_keys_of_its_own(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    class PooledConfig(ModelConfig):
        kind: Literal["pooled"] = "pooled"
        default_reader = "pooled"
        dropout: float = 0.1

    monkeypatch.setitem(MODEL_SECTIONS, "pooled", PooledConfig)
    path = write(CONFIG)
    config = load_config(path, ["model.kind=pooled", "model.dropout=0.2"])
    assert config.model.settings() == {"dropout": 0.2}
    assert (config.tasks()[0].reads, config.prompt_groups()) == ("pooled", {})
    assert Config.model_validate(config.model_dump(mode="json")) == config
    with pytest.raises(ConfigError, match=r"unknown key model\.prompts_per_task; it is a key of kind = 'mtop'; those"):
        load_config(path, ["model.kind=pooled", "model.prompts_per_task=3"])
    with pytest.raises(ConfigError, match=r"unknown key model\.dropuot; did you mean 'dropout'"):
        load_config(path, ["model.kind=pooled", "model.dropuot=0.3"])
    with pytest.raises(ConfigError, match=r"kind = 'mtdnn' is not one of mtop, mt-dnn, .*, ca-mtl, pooled"):
        load_config(path, ["model.kind=mtdnn"])
    with pytest.raises(ConfigError, match=r"'politics': model\.kind = 'pooled' has no prompt_group"):
        load_config(write(CONFIG + 'prompt_group = "a"'), ["model.kind=pooled"])


@pytest.mark.parametrize(
    ("kind", "reads", "settings"),
    [
        ("mt-dnn", "pooled", {"dropout": 0.1, "inputs": ()}),
        ("single-task", "pooled", {"dropout": 0.1}),
        ("p-tuning", "prompts", {"dropout": 0.1, "prompts_per_task": 2}),
        ("p-tuning-v2", "pooled", {"dropout": 0.1, "prompts_per_task": 8, "prompt_dropout": 0.1}),
        ("ca-mtl", "pooled", {"dropout": 0.1, "pretrained_top": False}),
    ],
)
def test_each_method_has_a_section_that_fits_its_model(
    write: Callable[..., Path], kind: str, reads: str, settings: dict[str, object]
) -> None:
    config = load_config(write(CONFIG), [f"model.kind={kind}"])
    assert (config.model.settings(), config.tasks()[0].reads) == (settings, reads)
    arguments = inspect.signature(KINDS[kind].from_backbone).parameters
    assert {name: arguments[name].default for name in settings} == settings
    assert Config.model_validate(config.model_dump(mode="json")) == config
    with pytest.raises(ConfigError, match=r"unknown key model\.stop_gradient; it is a key of kind = 'mtop'; those of"):
        load_config(write(CONFIG), [f"model.kind={kind}", "model.stop_gradient=false"])


def test_every_kind_has_a_class_and_a_section() -> None:
    assert list(MODEL_SECTIONS) == list(KINDS)
    assert all(section.default_reader == KINDS[kind].readers[0] for kind, section in MODEL_SECTIONS.items())


@pytest.mark.parametrize("path", sorted(JOBS.glob("*.toml")), ids=lambda path: path.stem)
def test_the_configurations_that_come_with_it_are_valid(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    for name in ("nhc", "many"):
        (tmp_path / "data" / name).mkdir(parents=True)
        write(CONFIG[CONFIG.index("[[task]]") :], f"data/{name}/tasks.toml")
    monkeypatch.chdir(tmp_path)
    config = load_config(path)
    kind = path.stem.removeprefix("nhc-")
    assert config.model.kind == (kind if kind in KINDS else "mtop")
    assert config.output == f"models/{path.stem}"
    cpu = load_config(JOBS / "nhc-cpu.toml")
    if config.backbone == cpu.backbone and path.stem.startswith("nhc"):
        keys = ("epochs", "batch_size", "seed", "num_workers", "freeze_word_embeddings")
        assert all(getattr(config.train, key) == getattr(cpu.train, key) for key in keys)


def test_a_probe_is_a_classification_that_reads_the_vector(write: Callable[..., Path]) -> None:
    for line in ('kind = "probe"', 'reads = "vector"'):
        task = load_config(write(CONFIG + line)).tasks()[0]
        assert (task.kind, task.reads, task.metric) == ("classification", "vector", "accuracy")
    assert load_config(write(CONFIG)).tasks()[0].reads == "prompts"


def test_a_multi_label_task_needs_one_label_and_keeps_scores_on_request(write: Callable[..., Path]) -> None:
    table = CONFIG.replace('labels = ["no", "yes"]', 'kind = "multi-label"\nlabels = ["alert"]\nscores = "all"')
    (task,) = load_config(write(table)).tasks()
    assert (task.kind, task.labels, task.metric, task.scores) == ("multi-label", ("alert",), "micro_f1", "all")
    for wrong, message in (
        ('kind = "multi-label"', r"labels = \[\]; a multi-label task needs at least one"),
        ('kind = "regression"\nscores = "all"', "a regression task has one value and no labels"),
        ('labels = ["a", "b"]\nscores = "some"', "scores"),
        ('kind = "multi-label"\nlabels = ["a"]\nmetric = "f1"', "allowed: micro_f1, macro_f1, subset_accuracy"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(write(CONFIG.replace('labels = ["no", "yes"]', wrong)))


@pytest.mark.parametrize("text", ['class_weights = "balanced"', "class_weights = { yes = 10 }", ""])
def test_labels_may_have_weights(write: Callable[..., Path], text: str) -> None:
    weights = load_config(write(CONFIG + text)).task[0].class_weights
    assert weights == (("balanced" if "balanced" in text else {"yes": 10.0}) if text else None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class_weights = { maybe = 2.0 }", r"task 'politics': class_weights has no label 'maybe'; labels: no, yes"),
        ("class_weights = { yes = 0 }", r'task\[politics\].class_weights = .* give "balanced", or a table'),
        ("class_weights = { yes = nan }", r'task\[politics\].class_weights = .* give "balanced", or a table'),
        ("class_weights = { yes = true }", r'task\[politics\].class_weights = .* give "balanced", or a table'),
        ("class_weights = {}", r'task\[politics\].class_weights = .* give "balanced", or a table'),
        ('class_weights = "auto"', r"task\[politics\].class_weights = 'auto' cannot be used"),
        ("class_weights = [1.0, 2.0]", r"task\[politics\].class_weights = \[1.0, 2.0\] cannot be used"),
    ],
)
def test_weights_that_cannot_be_are_refused_in_one_line(write: Callable[..., Path], text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(write(CONFIG + text))
    assert "\n" not in str(caught.value)


def test_a_regression_has_no_labels_to_weigh(write: Callable[..., Path]) -> None:
    regression = CONFIG.replace('labels = ["no", "yes"]', 'kind = "regression"')
    with pytest.raises(ConfigError, match="a regression task has no labels to weigh; remove class_weights"):
        load_config(write(regression + 'class_weights = "balanced"'))
