"""Own validation data, groups and order of time: which example is in which part."""

from __future__ import annotations

from typing import Any

import numpy as np
import optuna
import pytest

from objectives import DataError, Dataset, KerasObjective, SettingError, Settings
from objectives.data.dataset import load_dataset, load_test_arrays, load_test_set
from objectives.data.sources import CallableSource

RNG = np.random.RandomState(0)


def part(n: int, start: int = 0, weight: float | None = None) -> tuple[np.ndarray, ...]:
    """Examples whose first input is their number, from `start`."""
    x = np.column_stack([np.arange(start, start + n), np.zeros(n)]).astype(np.float32)
    y = np.arange(n) % 3
    return (x, y) if weight is None else (x, y, np.full(n, weight))


TRAIN, VALIDATION, TEST = part(60), part(20, 100), part(10, 200)


def read(returned: Any, **settings: Any) -> Dataset:
    return load_dataset(CallableSource(lambda: returned), "real", None, Settings(**settings))


def numbers(examples: Any) -> list[int]:
    return examples.x[:, 0].astype(int).tolist()


@pytest.mark.parametrize(
    ("returned", "parts"),
    [
        (TRAIN, "51 training, 9 validation, no test set"),
        ((TRAIN, TEST), "51 training, 9 validation, test sealed (10)"),
        ((TRAIN, None), "51 training, 9 validation, no test set"),
        ((TRAIN, VALIDATION, TEST), "60 training, 20 validation (given), test sealed (10)"),
        ((TRAIN, VALIDATION, None), "60 training, 20 validation (given), no test set"),
        ({"train": TRAIN}, "51 training, 9 validation, no test set"),
        ({"test": TEST, "train": TRAIN}, "51 training, 9 validation, test sealed (10)"),
        (
            {"validation": VALIDATION, "train": TRAIN, "test": TEST},
            "60 training, 20 validation (given), test sealed (10)",
        ),
        (
            {"train": TRAIN, "validation": VALIDATION, "test": None},
            "60 training, 20 validation (given), no test set",
        ),
        (
            {"train": TRAIN, "groups": np.arange(60) // 6},
            "54 training, 6 validation (whole groups), no test set",
        ),
        ({"train": part(6000, 1000)}, "5,100 training, 900 validation, no test set"),
    ],
)
def test_parts_are_what_their_name_or_place_says(returned: Any, parts: str) -> None:
    dataset = read(returned)
    assert dataset.parts == parts
    if "given" in parts:
        assert numbers(dataset.train) == numbers_of(TRAIN)
        assert numbers(dataset.validation) == numbers_of(VALIDATION)
    seen = {*numbers(dataset.train), *numbers(dataset.validation)}
    assert not seen & {*numbers_of(TEST)}
    if "sealed" in parts:
        test = load_test_set(CallableSource(lambda: returned), "real", None)
        assert numbers(test) == numbers_of(TEST)


def numbers_of(arrays: tuple[np.ndarray, ...]) -> list[int]:
    return arrays[0][:, 0].astype(int).tolist()


def test_the_parts_are_in_what_the_first_line_prints() -> None:
    objective = KerasObjective("mine", lambda: (TRAIN, VALIDATION, TEST), lambda trial, data: None)
    assert objective.data()["parts"] == "60 training, 20 validation (given), test sealed (10)"
    refit = objective.configured({"refit": "true"})
    assert "validation is trained on, too" in refit.data()["parts"]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"training": TRAIN}, "'training' by name; the names are train, validation, test and gro"),
        ({"validation": VALIDATION}, "no training set; its name is 'train'"),
        ({"train": None, "test": TEST}, "no training set"),
        ({"train": TRAIN, "validation": part(20)[0]}, "must return"),
        ({"train": TRAIN, "validation": (VALIDATION[0], VALIDATION[1][1:])}, "validation: .20, 2"),
        ({"train": TRAIN, "test": (TEST[0][:, :1], TEST[1])}, r"test: inputs of the shape .1,."),
        (
            (TRAIN, (VALIDATION[0], np.eye(3)[VALIDATION[1]]), TEST),
            r"validation: targets of the shape .3,., must be that of the training set, ..",
        ),
        ((TRAIN, TEST[:1]), "must return"),
        ((TRAIN, (TEST[0], TEST[1][1:])), "test: .10, 2. inputs for .9,. targets"),
        ((TRAIN, VALIDATION, TEST, TEST), "must return"),
        ({"train": TRAIN, "groups": np.zeros(59)}, r"groups of the shape .59,., must be 60"),
        ({"train": TRAIN, "validation": (*VALIDATION, np.ones(19))}, "validation: sample weights"),
        ({"train": ({"a": TRAIN[0]}, TRAIN[1])}, "only one array for each"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(returned: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as refusal:
        read(returned)
    assert "\n" not in str(refusal.value)


GIVEN = {"train": TRAIN, "validation": VALIDATION}
IN_GROUPS = {"train": TRAIN, "groups": [f"patient {i // 6}" for i in range(60)]}


@pytest.mark.parametrize(
    ("returned", "settings", "message"),
    [
        (GIVEN, {"validation_fraction": 0.3}, "validation_fraction=0.3: does not apply"),
        (GIVEN, {"folds": 3}, "folds=3: .* returns validation data of its own"),
        (GIVEN, {"train_size": 61}, "train_size=61: must be at most 60"),
        ({**GIVEN, "groups": np.zeros(60)}, {}, "groups and validation data"),
        (IN_GROUPS, {"time_order": True}, "time_order=true: .* returns groups"),
        (IN_GROUPS, {"folds": 11}, "folds=11: needs at least 11 groups, not 10"),
        ({**IN_GROUPS, "groups": ["one"] * 60}, {}, "all examples are in one group"),
        (TRAIN, {"folds": 61}, "folds=61: needs at least 61 examples, not 60"),
        (TRAIN, {"folds": 60, "time_order": True}, "needs at least 61 examples in order of time"),
        (TRAIN, {"folds": 3, "train_size": 41}, "train_size=41: must be at most 40"),
        (TRAIN, {"folds": 3, "time_order": True, "train_size": 16}, "must be at most 15"),
    ],
)
def test_settings_that_contradict_the_data_are_refused_in_one_line(
    returned: Any, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingError, match=message) as refusal:
        read(returned, **settings)
    assert "\n" not in str(refusal.value)


def test_the_fingerprint_covers_validation_data_groups_and_every_weight() -> None:
    datasets = [
        read(TRAIN),
        read((TRAIN, TEST)),
        read((TRAIN, part(10, 200, 1.0))),
        read((TRAIN, part(10, 200, 2.0))),
        read(GIVEN),
        read({**GIVEN, "validation": part(20, 101)}),
        read({**GIVEN, "validation": part(20, 100, 1.0)}),
        read({**GIVEN, "validation": part(20, 100, 2.0)}),
        read((TRAIN, VALIDATION, TEST)),
        read(GIVEN, train_size=30),
        read(IN_GROUPS),
        read({**IN_GROUPS, "groups": np.arange(60) % 10}),
        read(TRAIN, time_order=True),
        read(TRAIN, folds=3),
        read(TRAIN, folds=3, train_size=30),
        read(TRAIN, folds=3, split_seed=1),
        read(TRAIN, folds=3, time_order=True),
        read(IN_GROUPS, folds=3),
    ]
    assert len({dataset.fingerprint for dataset in datasets}) == len(datasets)
    again = [read(GIVEN), read(IN_GROUPS), read(TRAIN, folds=3)]
    assert {dataset.fingerprint for dataset in again} <= {d.fingerprint for d in datasets}


def test_weights_stay_with_their_part() -> None:
    returned = (TRAIN, part(20, 100, 2.0), part(10, 200, 3.0))
    dataset = read(returned)
    assert dataset.sample_weight is None
    assert dataset.validation_sample_weight is not None
    assert set(dataset.validation_sample_weight) == {2.0}
    *_, weights = load_test_arrays(CallableSource(lambda: returned), "real", None)
    assert set(weights) == {3.0}
    refit = dataset.with_all_in_training()
    assert refit.sample_weight is not None
    assert refit.sample_weight.tolist() == [1.0] * 60 + [2.0] * 20


@pytest.mark.parametrize("train_size", [None, 20])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_split_of_groups_keeps_them_whole(train_size: int | None, seed: int) -> None:
    groups = np.sort(RNG.randint(0, 12, 60))
    returned = {"train": TRAIN, "groups": groups}
    dataset = read(returned, train_size=train_size, split_seed=seed, validation_fraction=0.3)
    parts = [numbers(dataset.train), numbers(dataset.validation)]
    assert not set(groups[parts[0]]) & set(groups[parts[1]])
    assert len(parts[0]) == (train_size or 60 - len(parts[1]))
    assert 18 - np.bincount(groups).max() < len(parts[1]) < 18 + np.bincount(groups).max()


def test_in_order_of_time_validation_is_last_and_training_is_what_stands_before() -> None:
    whole = read(TRAIN, time_order=True, validation_fraction=0.25)
    assert numbers(whole.validation) == list(range(45, 60))
    assert numbers(whole.train) == list(range(45))
    latest = read(TRAIN, time_order=True, validation_fraction=0.25, train_size=10)
    assert numbers(latest.train) == list(range(35, 45))


def build(trial: optuna.Trial, data: Dataset) -> Any:
    import keras

    model = keras.Sequential([keras.Input(data.input_shape), keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01), loss, metrics=["accuracy"])
    return model


@pytest.mark.parametrize("weights", [(None, 2.0), (0.5, None)])
def test_a_trial_is_judged_by_the_given_validation_data(
    weights: tuple[float | None, float | None],
) -> None:
    """The value is what Keras itself computes on the validation set and its weights."""
    models: list[Any] = []

    def noting(trial: optuna.Trial, data: Dataset) -> Any:
        models.append(build(trial, data))
        return models[-1]

    returned = {"train": part(64, 0, weights[0]), "validation": part(32, 2, weights[1])}
    settings = Settings(epochs=1, batch_sizes=(32,), monitor="val_loss")
    objective = KerasObjective("mine", lambda: returned, noting, settings)
    value = objective(optuna.trial.FixedTrial({"batch_size": 32}))
    x, y, *weight = returned["validation"]
    expected = models[0].evaluate(x, y, sample_weight=weight[0] if weight else None, verbose=0)
    assert value == pytest.approx(expected[0], rel=1e-6)
