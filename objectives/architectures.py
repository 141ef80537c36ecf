"""The models of the built-in objectives: a multilayer perceptron and a convolutional network.

The input is uint8 images, which the model scales itself, so that a saved model takes raw images.
Keras is imported when the first model is built.
"""

from __future__ import annotations

from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from objectives.data.dataset import Dataset
from objectives.space import Space, suggest

_OPTIMIZER: Space = {
    "optimizer": CategoricalDistribution(("adam", "rmsprop", "sgd")),
    "learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
}

MLP_LAYERS = 3
MLP_SPACE: Space = {
    "n_layers": IntDistribution(1, MLP_LAYERS),
    "units_i": IntDistribution(32, 512, step=32),
    "dropout": FloatDistribution(0.0, 0.5),
    **_OPTIMIZER,
}

CNN_LAYERS = 4
CNN_SPACE: Space = {
    "num_conv_layers": IntDistribution(1, CNN_LAYERS),
    "filters_i": IntDistribution(32, 128, step=16),
    "kernel_size": CategoricalDistribution((3, 5)),
    "dense_units": IntDistribution(64, 256, step=32),
    "dropout": FloatDistribution(0.0, 0.5),
    **_OPTIMIZER,
}


def build_mlp(trial: optuna.Trial, data: Dataset) -> Any:
    """Build and compile a `keras.Model`: dense layers with dropout, then logits of the classes."""
    import keras

    layers = [*_scaled_input(data), keras.layers.Flatten()]
    dropout = suggest(trial, MLP_SPACE, "dropout")
    for i in range(suggest(trial, MLP_SPACE, "n_layers")):
        units = suggest(trial, MLP_SPACE, "units_i", i)
        layers += [keras.layers.Dense(units, activation="relu"), keras.layers.Dropout(dropout)]
    return _classifier(trial, MLP_SPACE, layers, data.n_classes)


def build_cnn(trial: optuna.Trial, data: Dataset) -> Any:
    """Build and compile a `keras.Model`: convolutions with pooling, one dense layer, then logits.

    Convolutions keep the size of the image. Pooling halves it, down to one pixel. So every number
    of layers and every kernel size fits every image.
    """
    import keras

    height, width = data.input_shape[:2]
    layers = [*_scaled_input(data)]
    if len(data.input_shape) == 2:
        layers.append(keras.layers.Reshape((height, width, 1)))
    kernel_size = suggest(trial, CNN_SPACE, "kernel_size")
    for i in range(suggest(trial, CNN_SPACE, "num_conv_layers")):
        filters = suggest(trial, CNN_SPACE, "filters_i", i)
        layers.append(keras.layers.Conv2D(filters, kernel_size, padding="same", activation="relu"))
        if min(height, width) >= 2:
            layers.append(keras.layers.MaxPooling2D(2))
            height, width = height // 2, width // 2
    dense_units = suggest(trial, CNN_SPACE, "dense_units")
    layers += [
        keras.layers.Flatten(),
        keras.layers.Dense(dense_units, activation="relu"),
        keras.layers.Dropout(suggest(trial, CNN_SPACE, "dropout")),
    ]
    return _classifier(trial, CNN_SPACE, layers, data.n_classes)


def _scaled_input(data: Dataset) -> list[Any]:
    import keras

    return [keras.Input(data.input_shape, dtype="uint8"), keras.layers.Rescaling(1 / 255)]


def _classifier(trial: optuna.Trial, space: Space, layers: list[Any], n_classes: int) -> Any:
    import keras

    # Logits are float32 under every dtype policy: Keras advises it for the input of a loss.
    model = keras.Sequential([*layers, keras.layers.Dense(n_classes, dtype="float32")])
    model.compile(
        optimizer=_optimizer(trial, space),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def _optimizer(trial: optuna.Trial, space: Space) -> Any:
    import keras

    name = suggest(trial, space, "optimizer")
    learning_rate = suggest(trial, space, "learning_rate")
    if name == "sgd":
        return keras.optimizers.SGD(learning_rate, momentum=0.9, nesterov=True)
    return {"adam": keras.optimizers.Adam, "rmsprop": keras.optimizers.RMSprop}[name](
        learning_rate
    )
