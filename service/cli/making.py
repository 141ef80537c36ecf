"""Making: a study and its spec from the options of a command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from service.cli.console import out
from service.cli.display import data_line
from service.cli.options import DEFAULT_TRIALS, full_path
from service.errors import ConfigurationError
from service.sampling import factory
from service.studies import registry
from service.studies.hall import Hall, check_name
from service.studies.permission import Permission
from service.studies.provenance import command_line
from service.studies.spec import Budget, Spec
from service.studies.study import Study

COMPARED = (
    "objective",
    "trials",
    "timeout",
    "sampler",
    "pruner",
    "seed",
    "direction",
    "trial_timeout",
    "max_attempts",
    "keep",
    "pruner_audit",
)
"""Options that have the same name in the stored spec or budget."""


def make_study(hall: Hall, options: dict[str, Any], permission: Permission) -> Study:
    """Create the study that the options describe, or find it and compare it with them.

    Args:
        hall: The database.
        options: The options of the command.
        permission: What the command allows; the objective that it names is among it.

    Raises:
        SpecMismatch: The study exists, and the options contradict its spec.
        ConfigurationError: An option is invalid.
    """
    name = options["objective"] if options["study"] is None else options["study"]
    if name in hall.names():
        study = hall.study(name)
        study.refuse_contradictions(explicit_options(options, study.spec, permission))
        return study
    return create_study(hall, name, options, permission)


def create_study(hall: Hall, name: str, options: dict[str, Any], permission: Permission) -> Study:
    """Create a study, unless another process creates it at the same time."""
    budget = make_budget(options["trials"], options["timeout"])
    spec, objective = make_spec(options, permission)
    check_name(name)
    spec.check()  # before the data, which may have to be downloaded
    data = registry.data_of(objective)
    if data is None and options["data"] == "synthetic":
        raise ConfigurationError(
            f"the objective {spec.objective!r} has no data set that could be generated: leave "
            "out --data synthetic"
        )
    if data is not None:
        out.print(data_line(data), markup=False)
        spec = Spec.from_json({**spec.to_json(), "data": data.get("kind")})
    study = hall.create(name, spec, budget, own_command())
    # Another process may have created it just now, with other options.
    study.refuse_contradictions(explicit_options(options, study.spec, permission))
    study.compare_data(data)
    return study


def own_command() -> str:
    """The command line of this process, as a provenance keeps it."""
    return command_line(["studyhall", *sys.argv[1:]])


def make_budget(trials: int | None, timeout: float | None) -> Budget:
    """The budget of these options; without any, `DEFAULT_TRIALS`."""
    if trials is None and timeout is None:
        return Budget(DEFAULT_TRIALS)
    return Budget(trials, timeout)


def make_spec(options: dict[str, Any], permission: Permission) -> tuple[Spec, registry.Objective]:
    """A spec from the options and from the objective's own attributes."""
    data_dir = full_path(options["data_dir"])
    objective = registry.configure(
        registry.load(options["objective"], permission),
        factory.parse_arguments(options["settings"], "--set"),
        options["data"],
        data_dir,
    )
    direction = getattr(objective, "direction", None)
    if direction and options["direction"] not in (None, direction):
        raise ConfigurationError(
            f"the objective's direction is {direction}, not {options['direction']}"
        )
    spec = Spec(
        objective=options["objective"],
        settings=registry.settings_of(objective),
        sampler=options["sampler"] or "tpe",
        sampler_arguments=factory.parse_arguments(options["sampler_arg"], "--sampler-arg"),
        pruner=options["pruner"] or "median",
        pruner_arguments=factory.parse_arguments(options["pruner_arg"], "--pruner-arg"),
        seed=options["seed"] or 0,
        direction=direction or options["direction"] or "minimize",
        monitor=getattr(objective, "monitor", None),
        data=options["data"],
        data_dir=data_dir,
        path=permission.path or str(Path.cwd()),
        trial_timeout=options["trial_timeout"],
        max_attempts=options["max_attempts"] or 3,
        keep=1 if options["keep"] is None else options["keep"],
        pruner_audit=options["pruner_audit"] or 0.0,
    )
    return spec, objective


def explicit_options(
    options: dict[str, Any], stored: Spec, permission: Permission
) -> dict[str, Any]:
    """The options that the user set, under the names of the stored spec."""
    explicit = {key: options[key] for key in COMPARED if options[key] is not None}
    if options["data"] not in (None, "auto"):
        explicit["data"] = options["data"]
    for key in ("sampler", "pruner"):
        pairs = options[f"{key}_arg"]
        if pairs:
            explicit[f"{key}_arguments"] = factory.parse_arguments(pairs, f"--{key}-arg")
    if options["settings"]:
        given = factory.parse_arguments(options["settings"], "--set")
        objective = registry.load(options["objective"], permission)
        before, now = (
            registry.settings_of(
                registry.configure(
                    objective, settings, stored.data, options["data_dir"] or stored.data_dir
                )
            )
            for settings in (stored.settings, {**stored.settings, **given})
        )
        # A setting that is younger than the study has its default there.
        explicit["settings"] = {
            key: value
            for key, value in now.items()
            if key in stored.settings or value != before.get(key)
        }
    return explicit
