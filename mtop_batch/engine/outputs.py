"""Where a bundle goes: whether it may, whether it is there already, and what it says of how it came to be."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mtop_batch import storage
from mtop_batch.errors import BundleError, ConfigError
from mtop_batch.model.bundle.bundle import Bundle
from mtop_batch.model.bundle.files import CONFIG, check_bundle, read_bundle_info
from mtop_batch.model.kinds.by_name import KINDS


def check_output(output: str) -> None:
    """Refuse an output that holds something else: a bundle has a README.md, and would replace the one there."""
    output = storage.absolute(output)
    for directory in (output, interrupted_runs(output)):
        storage.check_directory(directory, "output")
    if not storage.exists(output) or storage.list_files(interrupted_runs(output)):
        return
    try:
        described = json.loads(storage.read_bytes(storage.join(output, "config.json")))
        is_ours = described["model_type"] in KINDS
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        is_ours = not storage.list_files(output)
    if not is_ours:
        raise ConfigError(
            f"output = {output!r} has files in it that are no bundle, and training would replace some of them; "
            f"name another directory, such as {storage.join(output, 'mtop')!r}"
        )


def check_apart(model_uri: str, output: str) -> None:
    """Refuse an output in the bundle that it is made from.

    Raises:
        ConfigError: It is that bundle, or lies in it.
    """
    below = storage.path_below(output, model_uri)
    if below is not None:
        what = f"lies in the bundle {model_uri}" if below else "is the bundle itself"
        raise ConfigError(
            f"--output {output} {what}; name another place, so that the one that made the labels stays and a failure "
            "costs nothing"
        )


def is_finished(output: str, run: str) -> bool:
    """Whether `output` holds the bundle of this very run.

    Args:
        output: Where a bundle is to go.
        run: What the bundle there says of the run that made it.

    Raises:
        ConfigError: It holds another one, or one that is damaged or of another version.
    """
    if not storage.is_file(storage.join(storage.absolute(output), CONFIG)):
        return False
    try:
        is_same = read_bundle_info(output).run == run
        if is_same:
            check_bundle(output)
    except BundleError as error:
        raise ConfigError(f"output = {output!r}: {error}; pass --overwrite to replace it") from error
    if not is_same:
        raise ConfigError(
            f"output = {output!r} holds the bundle of another configuration or of other examples; name another output, "
            "or pass --overwrite to replace it"
        )
    return True


def interrupted_runs(output: str) -> str:
    """Below which URI the runs of an output lie."""
    return storage.absolute(output) + ".training"


def changed_config(
    bundle: Bundle, change: Mapping[str, Any], tasks: Sequence[Any], new_families: Sequence[Any] = ()
) -> dict[str, Any]:
    """The training configuration of a bundle that was made from another one, with what was done."""
    history = bundle.training_config.get("history", [])
    left = {task.get("family") for task in tasks}
    families = [*bundle.training_config.get("family", []), *new_families]
    return {
        **bundle.training_config,
        "family": [family for family in families if family["name"] in left],
        "task": list(tasks),
        "history": [*history, dict(change)],
    }
