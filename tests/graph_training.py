"""Random training of random graphs: optimizer, schedule, criterion and scope."""

import keras
import numpy as np

import filterprune
from filterprune.verification import generate_inputs

OPTIMIZERS = ["sgd", "adam", "rmsprop", "adamw", "lion"]
CRITERIA = ["l1", "l2"]


def train(masked, data, st) -> None:
    """Fit a masked model for a few steps while its gates close."""
    inputs = generate_inputs(masked, batch_size=8, size=16)
    rng = np.random.default_rng(0)
    with keras.StatelessScope():
        outputs = keras.tree.flatten(masked(inputs))
    targets = [rng.normal(size=tuple(output.shape)) for output in outputs]
    optimizer = keras.optimizers.get(data.draw(st.sampled_from(OPTIMIZERS)))
    optimizer.learning_rate = 1e-3
    optimizer.clipnorm = 1.0
    masked.compile(optimizer, "mse", run_eagerly=True)
    callback = filterprune.FilterPruningCallback(
        filterprune.PolynomialDecay(final_sparsity=data.draw(st.floats(0.1, 0.8))),
        frequency=data.draw(st.integers(1, 3)),
        criterion=data.draw(st.sampled_from(CRITERIA)),
        scope=data.draw(st.sampled_from(["global", "layer"])),
        end_fraction=1.0,
    )
    single = len(targets) == 1
    masked.fit(
        inputs,
        targets[0] if single else targets,
        batch_size=4,
        epochs=2,
        verbose=0,
        callbacks=[callback, keras.callbacks.TerminateOnNaN()],
    )


def diverged(masked) -> bool:
    """Whether a weight is no longer finite, as products of maps may make it."""
    values = map(keras.ops.convert_to_numpy, masked.weights)
    return not all(np.isfinite(value).all() for value in values)
