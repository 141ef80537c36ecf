"""GpuCapacity: how many workers share a GPU, measured by the first trial's memory.

TensorFlow and JAX, told to grow as they need, never give memory back: what a GPU's memory has
grown by when the first trial has ended is that trial's peak, with all that the process itself
takes. Later trials may need more. One that runs out of memory is tried again with the device to
itself, so a guess that was too high costs time, not trials.
"""

from __future__ import annotations

from service.workers import gpus
from service.workers.devices import Device, cores

SHARE = 0.9
"""Of a GPU's memory, what its workers may take together."""


class GpuCapacity:
    """The GPUs of a pool that has one worker on each, to begin with.

    Args:
        places: These workers' devices.

    Raises:
        ConfigurationError: nvidia-smi does not tell what a GPU has.
    """

    def __init__(self, places: list[Device]) -> None:
        self._places = places
        self._before = [gpus.memory(place.number) for place in places]

    def more(self) -> list[Device]:
        """Places for further workers, now that a trial has ended on each of the GPUs."""
        counts = [
            fitting(before, gpus.memory(place.number))
            for place, before in zip(self._places, self._before, strict=True)
        ]
        most = max(1, cores() // len(self._places))
        counts = [min(count, most) for count in counts]
        threads = max(1, cores() // sum(counts))
        return [
            Device(place.name, threads)
            for place, count in zip(self._places, counts, strict=True)
            for _ in range(count - 1)
        ]


def fitting(before: gpus.Memory, after: gpus.Memory) -> int:
    """How many workers fit on a GPU, of which the first one took it from before to after."""
    taken = max(1.0, after.used - before.used)
    return max(1, int((SHARE * after.total - before.used) / taken))
