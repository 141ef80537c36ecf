"""Registry: objectives by name, and what the service reads from them.

The contract with an objective is Optuna's: ``objective(trial) -> float``. An objective may have
more attributes, which the service uses if they exist: ``direction``, ``monitor``,
``configured(settings, data=, data_dir=)``, ``settings_dict()``, ``data()``, ``warm_up()``,
``search_space()``, ``grid()``. A configuration mistake is a ValueError (or an OSError, for a
file) whose message is one line.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from service.errors import ConfigurationError, UnknownObjective

GROUP = "studyhall.objectives"
Objective = Callable[[Any], float]


def names() -> list[str]:
    """The names of all installed objectives."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def load(reference: str, path: str | None = None) -> Objective:
    """Import an objective by its installed name or as ``package.module:attribute``.

    Args:
        reference: The name or reference.
        path: A folder to put first on the import path; the current folder is always on it.

    Raises:
        UnknownObjective: It cannot be found, imported or called.
    """
    for folder in (str(Path.cwd()), path):
        if folder and folder not in sys.path:
            sys.path.insert(0, folder)
    points = entry_points(group=GROUP, name=reference)
    target = next(iter(points)).value if points else reference
    module, _, attribute = target.partition(":")
    if not attribute:
        raise UnknownObjective(_unknown(reference))
    return _attribute(reference, _module(reference, module), attribute)


def _unknown(reference: str) -> str:
    known = names()
    close = difflib.get_close_matches(reference, known, 1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return (
        f"there is no objective {reference!r}; {hint}"
        f"known: {', '.join(known)}, or write package.module:attribute"
    )


def _module(reference: str, name: str) -> Any:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        # The user's module may raise anything; the user gets one line.
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UnknownObjective(
            f"the objective {reference!r} cannot be imported: {reason} "
            f"(searched the current folder and --path)"
        ) from error


def _attribute(reference: str, module: Any, attribute: str) -> Objective:
    objective = module
    for part in attribute.split("."):
        objective = getattr(objective, part, None)
    if objective is None:
        raise UnknownObjective(
            f"the objective {reference!r} cannot be found: "
            f"module {module.__name__!r} has no {attribute!r}"
        )
    if isinstance(objective, type):
        raise UnknownObjective(
            f"the objective {reference!r} is a class; name an instance or a function of it"
        )
    if not callable(objective):
        raise UnknownObjective(f"the objective {reference!r} is not callable")
    return objective  # type: ignore[no-any-return]


def configure(
    objective: Objective, settings: Mapping[str, Any], data: str | None, data_dir: str | None
) -> Objective:
    """The objective with these settings and this data source.

    Raises:
        ConfigurationError: The objective refuses a setting, or takes no settings.
    """
    configured = getattr(objective, "configured", None)
    if configured is None:
        if settings:
            raise ConfigurationError(
                f"this objective takes no settings, but --set passes {', '.join(sorted(settings))}"
            )
        return objective
    try:
        return configured(settings, data=data, data_dir=data_dir)  # type: ignore[no-any-return]
    except (ValueError, OSError) as error:
        raise ConfigurationError(str(error)) from error


def data_of(objective: Objective) -> dict[str, Any] | None:
    """Name, source and fingerprint of the objective's data, or None if it has no data.

    Raises:
        ConfigurationError: The data are missing or cannot be read.
    """
    data = getattr(objective, "data", None)
    if not callable(data):
        return None
    try:
        return dict(data())
    except (ValueError, OSError) as error:
        raise ConfigurationError(str(error)) from error


def settings_of(objective: Objective) -> dict[str, Any]:
    """All settings of the objective with their values."""
    settings = getattr(objective, "settings_dict", None)
    return dict(settings()) if callable(settings) else {}
