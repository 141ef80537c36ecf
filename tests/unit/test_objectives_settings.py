"""Settings: which values are allowed, and what the error says about the others."""

from __future__ import annotations

import json
from typing import Any

import pytest

from objectives import SettingError, Settings
from objectives.mnist import mlp


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("epochs", "4", 4),
        ("epochs", 4.0, 4),
        ("patience", "none", None),
        ("patience", None, None),
        ("batch_sizes", "32,64", (32, 64)),
        ("batch_sizes", "[32, 64]", (32, 64)),
        ("batch_sizes", [32, 64], (32, 64)),
        ("batch_sizes", "256", (256,)),
        ("batch_sizes", 256, (256,)),
        ("train_size", "none", None),
        ("train_size", "1000", 1000),
        ("validation_fraction", "0.2", 0.2),
        ("monitor", "val_loss", "val_loss"),
        ("mode", "min", "min"),
        ("deterministic", "false", False),
        ("deterministic", "True", True),
        ("deterministic", False, False),
    ],
)
def test_takes_strings_and_json(name: str, value: Any, expected: Any) -> None:
    assert getattr(Settings().changed({name: value}), name) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", "0"),
        ("epochs", "ten"),
        ("epochs", 2.5),
        ("epochs", True),
        ("epochs", None),
        ("epochs", float("inf")),
        ("patience", "0"),
        ("batch_sizes", ""),
        ("batch_sizes", []),
        ("batch_sizes", "32,x"),
        ("batch_sizes", "32,32"),
        ("batch_sizes", {"a": 1}),
        ("train_size", "-5"),
        ("validation_fraction", "0"),
        ("validation_fraction", "1"),
        ("validation_fraction", "nan"),
        ("validation_fraction", True),
        ("split_seed", "-1"),
        ("split_seed", 2**32),
        ("monitor", ""),
        ("monitor", 3),
        ("mode", "maximum"),
        ("deterministic", "0"),
        ("deterministic", None),
    ],
)
def test_refuses_a_bad_value_in_one_line_that_says_what_is_allowed(name: str, value: Any) -> None:
    with pytest.raises(SettingError) as refusal:
        Settings().changed({name: value})
    message = str(refusal.value)
    assert message.startswith(f"setting {name}=")
    assert message.endswith(f"must be {Settings.types()[name].description}")
    assert "\n" not in message


def test_an_unknown_name_is_refused_with_the_nearest_and_with_all_of_them() -> None:
    with pytest.raises(SettingError, match="did you mean epochs") as refusal:
        mlp.configured({"epoch": "3"})
    assert all(name in str(refusal.value) for name in Settings.types())


def test_settings_survive_json() -> None:
    changed = mlp.configured({"batch_sizes": "16,32", "train_size": "500", "patience": "none"})
    stored = json.loads(json.dumps(changed.settings_dict()))
    assert mlp.configured(stored).settings == changed.settings


def test_every_setting_is_documented() -> None:
    documented = Settings.__doc__ or ""
    assert [name for name in Settings.types() if f"{name}:" not in documented] == []


@pytest.mark.parametrize(
    ("monitor", "direction"),
    [
        ("val_accuracy", "maximize"),
        ("accuracy", "maximize"),
        ("val_auc", "maximize"),
        ("val_sparse_categorical_accuracy", "maximize"),
        ("val_loss", "minimize"),
        ("val_mean_absolute_error", "minimize"),
        ("val_mae", "minimize"),
        ("val_categorical_crossentropy", "minimize"),
    ],
)
def test_the_direction_follows_from_the_monitor(monitor: str, direction: str) -> None:
    assert Settings(monitor=monitor).direction == direction


def test_a_monitor_of_unknown_direction_needs_a_mode() -> None:
    with pytest.raises(SettingError, match="set mode=max or mode=min"):
        Settings(monitor="val_regret")
    assert Settings(monitor="val_regret", mode="min").direction == "minimize"


def test_a_built_in_refuses_a_monitor_that_its_model_does_not_produce() -> None:
    with pytest.raises(SettingError, match="val_auc: mnist-mlp produces loss, accuracy, val_loss"):
        mlp.configured({"monitor": "val_auc"})


def test_configuring_leaves_the_original_as_it_was() -> None:
    before = mlp.settings_dict()
    mlp.configured({"epochs": 1}, data="synthetic")
    assert mlp.settings_dict() == before
    assert mlp.data_kind == "real"


def test_data_of_an_unknown_kind_is_refused_with_the_list() -> None:
    with pytest.raises(SettingError, match="one of real, synthetic, auto"):
        mlp.configured({}, data="fake")


@pytest.mark.parametrize(("given", "size"), [({}, 32), ({"validation_batch_size": 500}, 500)])
def test_validation_takes_batches_of_the_batch_size_unless_set_otherwise(
    given: dict[str, Any], size: int
) -> None:
    stored = {k: v for k, v in mlp.settings_dict().items() if k != "validation_batch_size"}
    restored = mlp.configured({**stored, **given})
    assert restored._training_settings(32, 0).validation_batch_size == size
