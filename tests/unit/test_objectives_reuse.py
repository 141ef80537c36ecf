"""Programs are reused for models of the same layers, and train them to the same bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import optuna
import pytest
from tiny import DATASET

from objectives.training import plan
from objectives.training.compiled import reuse
from objectives.training.compiled.program import Programs
from objectives.training.fit import fit, prepare
from objectives.training.recorder import FitResult
from objectives.training.settings import TrainingSettings

SETTINGS = TrainingSettings(
    epochs=3, batch_size=32, patience=None, monitor="val_loss", direction="minimize", seed=4
)


@pytest.fixture(autouse=True)
def empty_cache() -> Iterator[None]:
    reuse._cache.clear()
    yield
    reuse._cache.clear()


@pytest.fixture
def float32_again() -> Iterator[None]:
    yield
    prepare(0, "float32")


def model(
    seed: int = 9,
    *,
    units: int = 8,
    dropout: float = 0.3,
    rate: float = 0.01,
    optimizer: str = "Adam",
    loss: Any = "sparse_categorical_crossentropy",
    extra: Callable[[], list[Any]] = list,
) -> Any:
    import keras

    prepare(seed)
    made = keras.Sequential(
        [
            keras.Input((4, 4), dtype="uint8"),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Flatten(),
            *extra(),
            keras.layers.Dense(units, activation="relu"),
            keras.layers.Dropout(dropout),
            keras.layers.Dense(2, activation="softmax"),
        ]
    )
    made.compile(getattr(keras.optimizers, optimizer)(rate), loss, metrics=["accuracy"])
    return made


def trained(
    made: Any, how: plan.How = "graph", settings: TrainingSettings = SETTINGS, **options: Any
) -> FitResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "objectives.training.fit.choose_plan",
            lambda *_: plan.Plan(how, "as the test says"),
        )
        return fit(made, DATASET, settings, optuna.trial.FixedTrial({}), **options)


def cached() -> list[Programs]:
    return list(reuse._cache.values())


@pytest.mark.parametrize(
    ("how", "policy"), [("graph", None), ("xla", None), ("graph", "mixed_float16")]
)
def test_reused_programs_train_to_the_bits_of_a_models_own_programs(
    how: plan.How, policy: str | None, float32_again: None
) -> None:
    import keras

    prepare(0, policy)
    alone = model(seed=5, dropout=0.6, rate=0.003)
    expected = trained(alone, how)
    reuse._cache.clear()

    # The callback leaves the optimizer with another learning rate.
    slower = keras.callbacks.LearningRateScheduler(lambda epoch: 0.5 ** (epoch + 1))
    trained(model(), how, callbacks=[slower])
    (programs,) = cached()
    again = model(seed=5, dropout=0.6, rate=0.003)
    result = trained(again, how)

    assert cached() == [programs]
    assert programs.model is not again
    assert result.history == expected.history
    for one, other in zip(alone.get_weights(), again.get_weights(), strict=True):
        assert np.array_equal(one, other)
    assert again.layers[3].rate == 0.6


@pytest.mark.parametrize("how", ["graph", "xla"])
def test_reused_programs_are_not_traced_again(how: plan.How) -> None:
    for seed in range(3):
        trained(model(seed, dropout=0.2 + 0.1 * seed, rate=0.1**seed), how)
    (programs,) = cached()
    loops = [programs.train._loop, programs.test._loop]
    assert [loop.experimental_get_tracing_count() for loop in loops] == [1, 1]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "make",
    [
        lambda: model(units=9),
        lambda: model(dropout=0.0),
        lambda: model(optimizer="RMSprop"),
        lambda: model(loss=summed_loss()),
    ],
    ids=["units", "no dropout", "optimizer", "loss"],
)
def test_other_models_have_programs_of_their_own(make: Callable[[], Any]) -> None:
    trained(model())
    trained(make())
    first, second = cached()
    assert first is not second


def test_another_batch_size_or_compiler_has_programs_of_its_own() -> None:
    trained(model())
    trained(model(), "xla")
    trained(
        model(),
        settings=TrainingSettings(
            epochs=1, batch_size=16, patience=None, monitor="val_loss", direction="minimize"
        ),
    )
    assert len(cached()) == 3


def summed_loss() -> Any:
    import keras

    return keras.losses.SparseCategoricalCrossentropy(reduction="sum")


def own_loss(y: Any, predicted: Any) -> Any:
    import keras

    return keras.losses.sparse_categorical_crossentropy(y, predicted)


def adapted() -> list[Any]:
    import keras

    layer = keras.layers.Normalization()
    layer.adapt(np.arange(32, dtype=np.float32).reshape(2, 16))
    return [layer]


def decayed() -> Any:
    import keras

    made = model()
    optimizer = keras.optimizers.AdamW()
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    made.compile(optimizer, "sparse_categorical_crossentropy")
    return made


def patched() -> Any:
    made = model()
    fit_model = made.fit
    made.fit = lambda *args, **kwargs: fit_model(*args, **kwargs)
    return made


@pytest.mark.parametrize(
    "make",
    [lambda: model(loss=own_loss), lambda: model(extra=adapted), decayed, patched],
    ids=["own loss", "adapted layer", "weights without decay", "own method"],
)
def test_a_model_with_more_than_its_configuration_is_not_cached(make: Callable[[], Any]) -> None:
    trained(make())
    assert cached() == []


def test_a_model_that_a_callback_changed_is_not_cached() -> None:
    import keras

    made = model()
    freezes = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: setattr(made.layers[2], "trainable", False)
    )
    trained(made, callbacks=[freezes])
    assert cached() == []


def test_a_model_whose_training_broke_is_not_cached() -> None:
    import keras

    def broken(*_: Any) -> None:
        raise RuntimeError("broken")

    trained(model())
    with pytest.raises(RuntimeError, match="broken"):
        trained(model(), callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=broken)])
    assert cached() == []


def test_the_cache_is_limited_in_models_and_in_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reuse, "MAX_MODELS", 2)
    monkeypatch.setattr(reuse, "MAX_WEIGHTS", 200)
    for units in (3, 4, 5, 100):
        trained(model(units=units))
    assert [programs.model.layers[2].units for programs in cached()] == [4, 5]


def test_a_dtype_policy_set_by_a_module_holds_for_every_trial(float32_again: None) -> None:
    import keras

    keras.config.set_dtype_policy("mixed_bfloat16")
    for seed in range(2):
        assert model(seed).layers[2].compute_dtype == "bfloat16"
