"""A real local Ray that the test modules of a process share: starting one anew for each would take minutes."""

from __future__ import annotations

import pytest
import ray

# How soon Ray Train sees reports, deaths and the end. A checkpoint waits until the one before has been seen, so a
# driver that looks more often can act (kill a worker, say) long before a short training is over.
_ENVIRONMENT = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}
# More logical CPUs than cores: actors hold them while short tasks run.
_NUM_CPUS = 6


def start_shared_ray() -> None:
    """Start it unless it runs; it ends with the process, or when a module wants none."""
    if ray.is_initialized():
        return
    with pytest.MonkeyPatch.context() as environment:
        for name, value in _ENVIRONMENT.items():
            environment.setenv(name, value)
        ray.init(address="local", num_cpus=_NUM_CPUS, include_dashboard=False, log_to_driver=False)


def stop_shared_ray() -> None:
    """For modules that start a Ray of their own, or see to it that nothing is left of one."""
    ray.shutdown()
