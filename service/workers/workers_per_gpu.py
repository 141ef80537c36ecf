"""GpuCapacity: how many workers fit on a GPU, measured by the memory of the first trial.

TensorFlow and JAX allocate GPU memory as they need it and never return it. So what a GPU's used
memory has grown by when the first trial ends is the peak of that trial and of its process. Later
trials may need more: a trial that runs out of memory is tried again alone on its device, so too
high an estimate costs time, not trials.
"""

from __future__ import annotations

from service.workers import gpus
from service.workers.cores import usable_cores
from service.workers.devices import Device
from service.workers.gpus import Memory

SHARE = 0.9
"""The share of a GPU's memory that its workers may use together."""


class GpuCapacity:
    """The GPUs of a pool that starts with one worker on each.

    Args:
        devices: The devices of these workers.

    Raises:
        ConfigurationError: nvidia-smi does not report the memory of a GPU.
    """

    def __init__(self, devices: list[Device]) -> None:
        self._devices = devices
        self._before = [gpus.memory(device.number) for device in devices]

    def more_devices(self) -> list[Device]:
        """One device for each further worker, once a trial has ended on every GPU."""
        most = max(1, usable_cores() // len(self._devices))
        counts = [
            min(most, workers_that_fit(before, gpus.memory(device.number)))
            for device, before in zip(self._devices, self._before, strict=True)
        ]
        threads = max(1, usable_cores() // sum(counts))
        return [
            Device(device.name, threads)
            for device, count in zip(self._devices, counts, strict=True)
            for _ in range(count - 1)
        ]


def workers_that_fit(before: Memory, after: Memory) -> int:
    """How many workers fit on a GPU whose first worker raised its used memory so far."""
    per_worker = max(1.0, after.used - before.used)
    return max(1, int((SHARE * after.total - before.used) / per_worker))
