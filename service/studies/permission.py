"""Permission: what this process may import, and whether it may unpickle, for a stored study.

The rows of the database are data: who can write them must not be able to choose the code that a
worker runs. Code comes from what the process itself was started with.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.machinery import FrozenImporter, ModuleSpec, PathFinder
from pathlib import Path

VARIABLE = "STUDYHALL_ALLOW"
PICKLE_VARIABLE = "STUDYHALL_ALLOW_PICKLE"
DRIFT_VARIABLE = "STUDYHALL_ALLOW_DRIFT"
TRUE = ("1", "true", "t", "yes", "y", "on")
"""Values of these variables that mean yes, as click reads them."""


@dataclass(frozen=True)
class Permission:
    """What this process may import, unpickle and mix. Installed objectives need no permission.

    Attributes:
        allow: Modules, each with everything below it, or whole references
            (``package.module:attribute``).
        path: A folder whose modules are allowed; it goes first on the import path.
        pickle: Whether a sampler may unpickle what it finds in the database.
        drift: Whether the objective's source and its data may differ from the study's.
    """

    allow: tuple[str, ...] = ()
    path: str | None = None
    pickle: bool = False
    drift: bool = False

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> Permission:
        """What ``STUDYHALL_ALLOW``, ``…_ALLOW_PICKLE`` and ``…_ALLOW_DRIFT`` allow."""
        pickle, drift = (
            environment.get(name, "").strip().lower() in TRUE
            for name in (PICKLE_VARIABLE, DRIFT_VARIABLE)
        )
        return cls(parse_allow(environment.get(VARIABLE)), None, pickle, drift)

    def names(self, reference: str) -> bool:
        """Whether the reference or its module is named, wherever the module lies."""
        module = reference.partition(":")[0]
        return any(
            reference == allowed or module == allowed or module.startswith(f"{allowed}.")
            for allowed in self.allow
        )

    def allows(self, reference: str) -> bool:
        """Whether the module of ``package.module:attribute`` may be imported."""
        if self.names(reference):
            return True
        return self.path is not None and lies_in(reference.partition(":")[0], self.path)


def parse_allow(text: str | None) -> tuple[str, ...]:
    """``mine,other.module`` as a tuple."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def lies_in(module: str, folder: str) -> bool:
    """Whether an import of the module finds it in the folder, once that is first on the path.

    Nothing is imported. A module of the same name that is built into Python, or that this process
    has imported from elsewhere, comes before the folder's.
    """
    top, *rest = module.split(".")
    if not all(part.isidentifier() for part in (top, *rest)) or top in sys.builtin_module_names:
        return False
    here = str(Path(folder).resolve())
    first = _find(top, here)
    if first is None or FrozenImporter.find_spec(top) or not _is_first(top, first):
        return False
    place, found = here, first
    for part in rest:
        if found.submodule_search_locations is None:
            return False
        place = str(Path(place, found.name))
        below = _find(part, place)
        if below is None:
            return False
        found = below
    return True


def _find(name: str, folder: str) -> ModuleSpec | None:
    return PathFinder.find_spec(name, [folder])


def _is_first(top: str, found: ModuleSpec) -> bool:
    """Whether an import takes this module, and no other one of the same name."""
    loaded = sys.modules.get(top)
    if loaded is not None:
        origin = getattr(getattr(loaded, "__spec__", None), "origin", None)
        return origin is not None and found.origin is not None and _same(origin, found.origin)
    if found.loader is not None:
        return True
    # A folder without __init__.py: a package of that name anywhere else comes before it.
    other = PathFinder.find_spec(top)
    return other is None or other.origin is None


def _same(one: str, other: str) -> bool:
    """Whether two paths lead to one file."""
    return Path(one).resolve() == Path(other).resolve()
