"""Which runs may go side by side."""

from __future__ import annotations

from collections.abc import Sequence

from mtop_batch.experiments.runs.specs import RunSpec

_USE_OTHERS = ("trial", "fine-grained")


def waves(specs: Sequence[RunSpec]) -> list[list[RunSpec]]:
    """The runs that may go side by side, wave after wave.

    Some use what others have measured, or begin with their encoder; and what the first seed of a method is
    pre-finetuned to is what the others begin with.
    """
    first_seeds: dict[str, int] = {}

    def wave_of(spec: RunSpec) -> int:
        if spec.prefinetune is not None:
            return int(spec.seed != first_seeds.setdefault(spec.method, spec.seed))
        chooses = (spec.auxiliary or {}).get("method", "")
        return _USE_OTHERS.index(chooses) + 1 if chooses in _USE_OTHERS else int(spec.begins_with is not None)

    found = [[spec for spec in specs if wave_of(spec) == number] for number in range(len(_USE_OTHERS) + 1)]
    return [wave for wave in found if wave]
