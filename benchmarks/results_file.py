"""Where measurements go: one JSON file each, with what is needed to repeat them."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("torch", "transformers", "ray", "pyarrow", "tokenizers")


def write_result(name: str, result: Any) -> Path:
    """Write `results/<name>.json`: the result, and the command, machine, date and versions that made it."""
    content = {
        "command": shlex.join(["python", *map(_without_directory, sys.argv)]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cpu": _cpu_model(), "cores": os.cpu_count(), "gpu": _gpu_model()},
        "versions": {"python": platform.python_version(), **_versions()},
        "result": result,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(content, indent=2) + "\n")
    return path


def _without_directory(word: str) -> str:
    """Absolute paths say something about one machine only: a script's from here, of others the last part."""
    if word.endswith(".py"):
        return os.path.relpath(word)
    return Path(word).name if os.path.isabs(word) else word


def _versions() -> dict[str, str]:
    """Of what is installed; a machine that only runs the model needs no Ray."""
    installed = {distribution.name for distribution in distributions()}
    return {package: version(package) for package in _PACKAGES if package in installed}


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _gpu_model() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
