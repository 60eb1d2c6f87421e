"""How fast a run was, how near to what its devices can do, and what to change to make it faster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Labelling actors that are idle for less than this fraction of their time are busy.
_BUSY = 0.15
# Stages before and after the model that take less than this fraction of the idle time do not explain it.
_EXPLAINS = 0.1
_CPU_STAGES = ("read", "tokenise", "write")
_NAMES = {"read": "reading", "tokenise": "tokenising", "write": "writing"}


@dataclass(frozen=True)
class Performance:
    """The speed of a run that labelled texts.

    Args:
        seconds: Wall-clock time of the run.
        start_up_s: Of these, until the first labelling actor was ready: Ray and its workers start, the bundle loads.
        num_actors: Labelling actors.
        num_tokens: Tokens that went through the model.
        num_padded_tokens: These and the padding beside them.
        stage_seconds: Per stage ("read", "tokenise", "model", "write"), summed over its processes.
        flops: FLOP that the texts take (`mtop_batch.model.flops`).
        peak_flops_per_s: Measured peak: FLOP/s of a large matrix product, the fastest that an actor measured (other
            work on a device makes some measurements too slow, and none too fast).
    """

    seconds: float
    start_up_s: float
    num_actors: int
    num_tokens: int
    num_padded_tokens: int
    stage_seconds: Mapping[str, float]
    flops: float
    peak_flops_per_s: float

    @property
    def model_s(self) -> float:
        """Seconds in which an actor was at work on batches, summed over actors."""
        return self.stage_seconds.get("model", 0.0)

    @property
    def tokens_per_s(self) -> float:
        """Real tokens per second of wall-clock time."""
        return self.num_tokens / self.seconds if self.seconds > 0 else 0.0

    @property
    def padding_share(self) -> float:
        """Share of padding in what went through the model."""
        return 1 - self.num_tokens / self.num_padded_tokens if self.num_padded_tokens else 0.0

    @property
    def idle_fraction(self) -> float:
        """Fraction of the time after the start in which labelling actors had nothing to do, the end included."""
        available_s = self.num_actors * (self.seconds - self.start_up_s)
        return max(0.0, 1 - self.model_s / available_s) if available_s > 0 else 0.0

    @property
    def mfu(self) -> float:
        """Model FLOP utilisation: real tokens' share of the devices' measured peak, while actors were at work."""
        capacity = self.peak_flops_per_s * self.model_s
        return self.flops / capacity if capacity else 0.0

    @property
    def cpus_per_actor(self) -> float:
        """CPUs that read, tokenise and write as fast as one labelling actor labels."""
        return sum(self.stage_seconds.get(stage, 0.0) for stage in _CPU_STAGES) / self.model_s if self.model_s else 0.0

    def bottleneck(self) -> str:
        """What bounds the run, and what to change, in one line."""
        idle_s = self.num_actors * (self.seconds - self.start_up_s) - self.model_s
        is_idle = self.idle_fraction >= _BUSY
        if self.start_up_s > self.seconds / 2 or (is_idle and self.start_up_s * self.num_actors > idle_s):
            return f"starting, {self.start_up_s:.0f} of {self.seconds:.0f} s: a larger run pays better"
        if not is_idle:
            return (
                f"the model: labelling actors were idle {self.idle_fraction:.0%} of their time; more GPUs (or "
                "CPUs, where there are none) make it faster"
            )
        if self.cpus_per_actor * self.model_s < _EXPLAINS * idle_s:
            return (
                f"uneven work: labelling actors were idle {self.idle_fraction:.0%} of their time, while others "
                "had all that was left; smaller units (--unit-rows) spread it better"
            )
        stage = max(_CPU_STAGES, key=lambda stage: self.stage_seconds.get(stage, 0.0))
        found = f"{_NAMES[stage]}: labelling actors were idle {self.idle_fraction:.0%} of their time"
        needed = f"about {self.cpus_per_actor:.1f} CPUs per labelling actor keep up: give the cluster more CPUs"
        if stage == "tokenise":
            return f"{found}; {needed}"
        return f"{found}; {needed}, or bring storage nearer"

    def line(self) -> str:
        """The speed in one line."""
        return (
            f"{self.tokens_per_s:,.0f} tokens/s, padding {self.padding_share:.1%}, labelling actors idle "
            f"{self.idle_fraction:.0%}, MFU {self.mfu:.0%} (of the measured peak)"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {
            "num_actors": self.num_actors,
            "tokens_per_s": round(self.tokens_per_s, 1),
            "padding_share": round(self.padding_share, 4),
            "idle_fraction": round(self.idle_fraction, 4),
            "start_up_s": round(self.start_up_s, 1),
            "mfu": round(self.mfu, 4),
            "cpus_per_actor": round(self.cpus_per_actor, 2),
            "bottleneck": self.bottleneck(),
        }
