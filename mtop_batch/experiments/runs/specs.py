"""What decides the outcome of a run, and the digest that names its file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mtop_batch.config.load import validate
from mtop_batch.config.sections import Config
from mtop_batch.config.task import TaskConfig
from mtop_batch.errors import ConfigError
from mtop_batch.experiments.methods.families import family_of
from mtop_batch.experiments.methods.many import JUDGED
from mtop_batch.experiments.methods.method import COMMON, Method
from mtop_batch.experiments.methods.tables import method
from mtop_batch.experiments.runs.data_set import DataSet, tasks_of
from mtop_batch.tasks import Reader
from mtop_batch.training.start import check_readers

FORMAT = 1
_OPTIONAL = (
    "unlabelled",
    "auxiliary",
    "reads",
    "families",
    "prefinetune",
    "fraction",
    "learns",
    "begins_with",
    "among",
)
# They change how fast a run is or who is told of it, or are the seed, which stands by itself.
_UNDECISIVE = ("num_workers", "max_failures", "precision", "seed", "tensorboard", "mlflow")


@dataclass(frozen=True)
class RunSettings:
    """What all runs of a table share.

    Args:
        backbone: `backbone.name` of a configuration.
        max_tokens: Texts are cut to so many tokens.
        examples: Most training examples of each task; None for all.
        epochs: Passes over the examples of all tasks; None for what the methods say.
        train: Other values of `[train]`, for all methods alike.
        fraction: The share of each task's training examples that is learned from, in place of `examples`; None for all.

    Raises:
        ConfigError: Both are given, or the share is none.
    """

    backbone: str
    max_tokens: int = 128
    examples: int | None = None
    epochs: float | None = None
    train: Mapping[str, Any] | None = None
    fraction: float | None = None

    def __post_init__(self) -> None:
        if self.fraction is None:
            return
        if self.examples is not None:
            raise ConfigError("--examples and --fraction both say how many examples; give one of them")
        if not 0 < self.fraction <= 1:
            raise ConfigError(f"--fraction {self.fraction:g} is no share; give more than 0 and at most 1, such as 0.1")


@dataclass(frozen=True)
class RunSpec:
    """A run: a method with a seed on a data set.

    Machine and precision are no part of it: they stand in the record of how the run went.

    Args:
        method: Its name in `METHODS`.
        seed: Of everything random but the choice of training examples.
        data: Name of the data set.
        data_digest: Of its tasks and examples, those that the run is judged on.
        examples: Most training examples of each task; None for all. The same ones for all seeds and methods.
        backbone: The pretrained encoder.
        max_tokens: Texts are cut to so many tokens.
        model: What is said in the section `[model]`.
        train: What is said in the section `[train]`, without seed and what only changes the speed.
        unlabelled: What is said in the section `[unlabelled]`, and with "texts" a digest of the texts without labels;
            None for a method that does not learn from them.
        auxiliary: How each task gets a model of its own, as in `Method`; None where one model has all tasks.
        reads: What all tasks on texts read; None for what the kind of model has them read.
        families: What the section `[[family]]` of each family says but for its name; None for no families.
        prefinetune: How the encoder learns from source tasks before, as in `Method`, and with "sources" a digest of
            these, empty where they are the tasks themselves; None if it begins as pretrained.
        fraction: The share of each task's training examples, in place of `examples`.
        learns: What it learns, where that are other tasks than it is judged on, or not as often as `epochs` says: the
            number of "tasks", their "digest", and by what `epochs` is multiplied.
        begins_with: Digest of the run that leaves the encoder; None for the pretrained one.
        among: The "number" of tasks of the data set, and its "digest", where it is judged on primary tasks only; None
            where it is judged on all.
    """

    method: str
    seed: int
    data: str
    data_digest: str
    examples: int | None
    backbone: str
    max_tokens: int
    model: dict[str, Any]
    train: dict[str, Any]
    unlabelled: dict[str, Any] | None = None
    auxiliary: dict[str, Any] | None = None
    reads: Reader | None = None
    families: dict[str, Any] | None = None
    prefinetune: dict[str, Any] | None = None
    fraction: float | None = None
    learns: dict[str, Any] | None = None
    begins_with: str | None = None
    among: dict[str, Any] | None = None

    @property
    def digest(self) -> str:
        """Names the run's file; the same for the same values."""
        return _digest({"format": FORMAT, **self.to_dict()})

    def to_dict(self) -> dict[str, Any]:
        """The run as JSON-ready values."""
        return {key: value for key, value in asdict(self).items() if value or key not in _OPTIONAL}

    @property
    def epochs(self) -> float:
        """Passes over the examples of the tasks that it learns."""
        return float(self.train["epochs"]) * float((self.learns or {}).get("epochs", 1.0))

    def config(self, tasks: Sequence[TaskConfig], backbone: str | None = None) -> Config:
        """The configuration of the run.

        Args:
            tasks: Those that it learns.
            backbone: Where the encoder lies on this machine, if not where its name says.
        """
        values = {
            "output": self.digest,
            "backbone": {"name": backbone or self.backbone, "max_tokens": self.max_tokens},
            "model": self.model,
            "train": {**self.train, "epochs": self.epochs, "seed": self.seed},
            **_tables(tasks, self.reads, self.families),
        }
        if self.unlabelled:
            values["unlabelled"] = {key: value for key, value in self.unlabelled.items() if key != "texts"}
        return validate(values, f"run {self.method}, seed {self.seed}")


def make_spec(name: str, seed: int, data: DataSet, settings: RunSettings) -> RunSpec:
    """The run of a method with a seed on a data set.

    Raises:
        ConfigError: There is no such method, a setting is not allowed, or the data set lacks the method's tasks, or the
            method cannot have such tasks.
        TaskError: The last, too.
    """
    chosen = method(name)
    train = {**COMMON, **chosen.train, **(settings.train or {})}
    if settings.epochs is not None:
        train["epochs"] = settings.epochs
    learned, judged = tasks_of(chosen, data)
    config = _config(chosen, train, learned.configs, settings)
    check_readers(config)
    values = config.train.model_dump(mode="json", exclude_unset=True)
    texts = "" if data.unlabelled is None else data.unlabelled.digest
    begins_with = chosen.begins_with and make_spec(chosen.begins_with, seed, data, settings).digest
    return RunSpec(
        method=name,
        seed=seed,
        data=data.name,
        data_digest=judged.digest,
        examples=settings.examples,
        backbone=settings.backbone,
        max_tokens=settings.max_tokens,
        model=config.model.model_dump(mode="json", exclude_unset=True),
        train={key: value for key, value in values.items() if key not in _UNDECISIVE},
        unlabelled=None if chosen.unlabelled is None else {**chosen.unlabelled, "texts": texts},
        auxiliary=None if chosen.auxiliary is None else dict(chosen.auxiliary),
        reads=chosen.reads,
        families=None if chosen.families is None else dict(chosen.families),
        prefinetune=None if chosen.prefinetune is None else {**chosen.prefinetune, "sources": data.sources_digest},
        fraction=settings.fraction,
        learns=_learns(chosen, learned, judged, data, settings.examples),
        begins_with=begins_with,
        among={"number": len(data.tasks), "digest": data.digest} if data.primaries else None,
    )


def _learns(
    chosen: Method, learned: DataSet, judged: DataSet, data: DataSet, examples: int | None
) -> dict[str, Any] | None:
    """No set takes more steps than the tasks that most methods are judged on, but where a method says so."""
    if chosen.judged is None:
        return None
    most = data.share(JUDGED).num_examples(examples) or learned.num_examples(examples)
    epochs = 1.0 if chosen.own_epochs else min(1.0, most / learned.num_examples(examples))
    if learned.digest == judged.digest and epochs == 1:
        return None
    return {"tasks": len(learned.tasks), "digest": learned.digest, "epochs": round(epochs, 6)}


def _config(chosen: Method, train: Mapping[str, Any], tasks: Sequence[TaskConfig], settings: RunSettings) -> Config:
    values = {
        "output": "none",
        "backbone": {"name": settings.backbone, "max_tokens": settings.max_tokens},
        "model": dict(chosen.model),
        "train": dict(train),
        **_tables(tasks, chosen.reads, chosen.families),
    }
    return validate(values, f"method {chosen.title}")


def _tables(tasks: Sequence[TaskConfig], reads: Reader | None, lora: Mapping[str, Any] | None) -> dict[str, Any]:
    """The tasks as in a configuration, with what they read if a method says, and with families if it has some."""
    tables = []
    for task in tasks:
        own: dict[str, Any] = {} if reads is None or task.kind == "token" else {"reads": reads}
        if lora is not None:
            own["family"] = family_of(task.kind)
        tables.append({**task.model_dump(), **own})
    families = dict.fromkeys(table["family"] for table in tables if table["family"])
    return {"task": tables, "family": [{"name": name, **(lora or {})} for name in families]}


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
