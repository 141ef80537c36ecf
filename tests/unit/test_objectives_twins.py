"""Programs of equal models are used again, and a training by them comes to the same bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import optuna
import pytest
from tiny import DATASET

from objectives.training import plan
from objectives.training.compiled import reuse
from objectives.training.fit import fit, prepare
from objectives.training.recorder import Course, FitResult

COURSE = Course(
    epochs=3, batch_size=32, patience=None, monitor="val_loss", direction="minimize", seed=4
)


@pytest.fixture(autouse=True)
def none_kept() -> Iterator[None]:
    reuse._kept.clear()
    yield
    reuse._kept.clear()


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
    made: Any, how: plan.How = "graph", course: Course = COURSE, **options: Any
) -> FitResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "objectives.training.fit.choose_plan",
            lambda model, steps: plan.Plan(how, "as the test says"),
        )
        return fit(made, DATASET, course, optuna.trial.FixedTrial({}), **options)


def kept() -> list[reuse.Programs]:
    return list(reuse._kept.values())


@pytest.mark.parametrize(
    ("how", "policy"), [("graph", None), ("xla", None), ("graph", "mixed_float16")]
)
def test_a_twin_comes_to_the_bits_that_the_model_itself_would(
    how: plan.How, policy: str | None, float32_again: None
) -> None:
    import keras

    prepare(0, policy)
    alone = model(seed=5, dropout=0.6, rate=0.003)
    expected = trained(alone, how)
    reuse._kept.clear()

    # The callback leaves the optimizer with another learning rate.
    slower = keras.callbacks.LearningRateScheduler(lambda epoch: 0.5 ** (epoch + 1))
    trained(model(), how, callbacks=[slower])
    (programs,) = kept()
    again = model(seed=5, dropout=0.6, rate=0.003)
    result = trained(again, how)

    assert kept() == [programs]
    assert programs.model is not again
    assert result.history == expected.history
    for one, other in zip(alone.get_weights(), again.get_weights(), strict=True):
        assert np.array_equal(one, other)
    assert again.layers[3].rate == 0.6


@pytest.mark.parametrize("how", ["graph", "xla"])
def test_nothing_is_traced_again_for_a_twin(how: plan.How) -> None:
    for seed in range(3):
        trained(model(seed, dropout=0.2 + 0.1 * seed, rate=0.1**seed), how)
    (programs,) = kept()
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
    first, second = kept()
    assert first is not second


def test_other_batches_and_another_compiler_are_other_programs() -> None:
    trained(model())
    trained(model(), "xla")
    trained(
        model(),
        course=Course(
            epochs=1, batch_size=16, patience=None, monitor="val_loss", direction="minimize"
        ),
    )
    assert len(kept()) == 3


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
    ids=["own loss", "adapted layer", "spared weights", "own method"],
)
def test_a_model_that_is_not_wholly_written_down_is_not_kept(make: Callable[[], Any]) -> None:
    trained(make())
    assert kept() == []


def test_a_model_that_a_callback_changed_is_not_kept() -> None:
    import keras

    made = model()
    freezes = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: setattr(made.layers[2], "trainable", False)
    )
    trained(made, callbacks=[freezes])
    assert kept() == []


def test_a_model_whose_training_broke_is_not_kept() -> None:
    import keras

    def broken(*_: Any) -> None:
        raise RuntimeError("broken")

    trained(model())
    with pytest.raises(RuntimeError, match="broken"):
        trained(model(), callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=broken)])
    assert kept() == []


def test_a_few_small_models_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reuse, "MAX_KEPT", 2)
    monkeypatch.setattr(reuse, "MAX_WEIGHTS", 200)
    for units in (3, 4, 5, 100):
        trained(model(units=units))
    assert [programs.model.layers[2].units for programs in kept()] == [4, 5]


def test_the_precision_that_a_module_chose_holds_for_every_trial(float32_again: None) -> None:
    import keras

    keras.config.set_dtype_policy("mixed_bfloat16")
    for seed in range(2):
        assert model(seed).layers[2].compute_dtype == "bfloat16"
