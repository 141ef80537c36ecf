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
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.machinery import ModuleSpec
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from service.errors import ConfigurationError, NotAllowed, UnknownObjective
from service.studies.permission import Permission, lies_in

GROUP = "studyhall.objectives"
Objective = Callable[[Any], float]


def names() -> list[str]:
    """The names of all installed objectives."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def load(reference: str, permission: Permission | None = None) -> Objective:
    """Import an objective by its installed name or as ``package.module:attribute``.

    Args:
        reference: The name or reference.
        permission: What may be imported, for a reference that was read from the database;
            by default what the environment allows. `typed` is for one that the user named.

    Raises:
        NotAllowed: The permission does not contain the module.
        UnknownObjective: It cannot be found, imported or called.
    """
    points = entry_points(group=GROUP, name=reference)
    target = next(iter(points)).value if points else reference
    module, _, attribute = target.partition(":")
    if not attribute:
        raise UnknownObjective(_unknown(reference))
    if module.endswith(".py"):
        dotted = module.removesuffix(".py").strip("./").replace("/", ".")
        raise UnknownObjective(
            f"{module!r} is a file; write its module's name: {dotted}:{attribute}"
        )
    permission = Permission.of_environment() if permission is None else permission
    if not points:
        require(reference, permission)
    _prepare_path(reference, permission)
    exact = bool(points) or reference in permission.allow
    return _attribute(reference, _module(reference, module), attribute, exact=exact)


def locate(reference: str, permission: Permission) -> tuple[str, ModuleSpec] | None:
    """The module that `load` imports, and where its outermost package or module lies.

    Nothing is imported.

    Returns:
        The module's full name, and the spec of its first part; None if it cannot be found.

    Raises:
        NotAllowed: The permission does not contain the module.
    """
    points = entry_points(group=GROUP, name=reference)
    if not points:
        require(reference, permission)
    _prepare_path(reference, permission)
    module = (next(iter(points)).value if points else reference).partition(":")[0]
    try:
        found = importlib.util.find_spec(module.partition(".")[0])
    except (ImportError, ValueError):  # the module is the command's own __main__, or no name
        return None
    return None if found is None else (module, found)


def _prepare_path(reference: str, permission: Permission) -> None:
    current = not is_installed(reference) and permission.names(reference)
    prepare_path(permission.path, str(Path.cwd()) if current else None)


def is_installed(reference: str) -> bool:
    """Whether the reference is the name of an installed objective."""
    return bool(entry_points(group=GROUP, name=reference))


def typed(reference: str, permission: Permission) -> Permission:
    """The permission of a user who has named this objective."""
    return replace(permission, allow=(*permission.allow, reference))


def require(reference: str, permission: Permission) -> None:
    """Refuse a reference that neither is installed nor allowed.

    Raises:
        NotAllowed: The message names what would allow it.
    """
    if is_installed(reference) or permission.allows(reference):
        return
    module = reference.partition(":")[0]
    raise NotAllowed(
        f"the objective is in the module {module!r}, and nothing here allows its import",
        cure(reference),
    )


def cure(reference: str) -> str:
    """The option that would allow a reference here."""
    module = reference.partition(":")[0]
    if lies_in(module, "."):
        return "--path ."
    top, _, _ = module.partition(".")
    if top.isidentifier() and _is_importable(top):
        return f"--allow {module}"
    return "--path FOLDER"


def _is_importable(top: str) -> bool:
    try:
        return importlib.util.find_spec(top) is not None
    except ValueError:  # a module such as __main__ that was not imported by name
        return False


def prepare_path(*folders: str | None) -> None:
    """Put folders on the import path, the first one first."""
    for folder in reversed(folders):
        if folder is None:
            continue
        if folder in sys.path:
            sys.path.remove(folder)
        sys.path.insert(0, folder)


def _unknown(reference: str) -> str:
    known = names()
    close = difflib.get_close_matches(reference, known, 1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return (
        f"there is no objective {reference!r}; {hint or _module_hint(reference)}"
        f"known: {', '.join(known)}, or write package.module:attribute"
    )


def _module_hint(reference: str) -> str:
    """What to write for a module of the current folder."""
    module = reference.removesuffix(".py").strip("/.").replace("/", ".")
    if not all(part.isidentifier() for part in module.split(".")) or not lies_in(module, "."):
        return ""
    return f"to run a function of the module {module}, write {module}:FUNCTION; "


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


def _attribute(reference: str, module: Any, attribute: str, *, exact: bool) -> Objective:
    """The attribute; only a reference that the user wrote may pass through other modules."""
    objective = module
    for part in attribute.split("."):
        if not exact and (objective is not module and isinstance(objective, ModuleType)):
            objective = None
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
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    except OSError as error:
        where = "" if error.filename and Path(str(error.filename)).is_absolute() else _here()
        raise ConfigurationError(f"the data cannot be read: {error}{where}") from error


def _here() -> str:
    return f" (relative paths start at {Path.cwd()}; load(data_dir) gets the folder of --data-dir)"


def settings_of(objective: Objective) -> dict[str, Any]:
    """All settings of the objective with their values."""
    settings = getattr(objective, "settings_dict", None)
    return dict(settings()) if callable(settings) else {}
