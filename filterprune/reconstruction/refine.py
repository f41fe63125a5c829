"""Refinement: a few hundred steps towards the original's outputs, without labels."""

import keras
import numpy as np

from filterprune.recovery import state_kept

# Adam's first rate, which falls to zero as a cosine.
RATE = 1e-3
STEPS = 400
BATCH = 64


def refine(model, inputs, targets, steps: int, seed: int) -> None:
    """Train a model to give what another gives, end to end, in place.

    It runs in inference mode: no unit is dropped, and moving statistics stay. Nothing
    but its trainable weights changes, and not how it is compiled.

    Args:
        model: a functional or sequential model.
        inputs: an array for each of its inputs.
        targets: for each of its outputs what it is to give.
        steps: how many steps of the optimizer.
        seed: seed of the order of samples.
    """
    student = keras.Model(model.inputs, _Inference(model)(model.inputs))
    rate = keras.optimizers.schedules.CosineDecay(RATE, steps)
    # XLA makes steps slower on a processor, and Keras would take it by itself.
    jit = False if keras.backend.backend() == "tensorflow" else "auto"
    losses = [_loss(target) for target in targets]
    student.compile(keras.optimizers.Adam(rate), losses, jit_compile=jit)
    size = model.inputs[0].shape[0] or min(BATCH, len(inputs[0]))
    rng = np.random.default_rng(seed)
    orders = [
        rng.permutation(len(inputs[0]))
        for _ in range(-(-steps * size // len(inputs[0])))
    ]
    order = np.concatenate(orders)[: steps * size]
    data = _Samples(inputs, targets, order.reshape(steps, size))
    with state_kept(model, but={id(v) for v in model.trainable_variables}):
        student.fit(data, epochs=1, shuffle=False, verbose=0)


class _Inference(keras.layers.Layer):
    """A model in inference mode, even when it is trained."""

    def __init__(self, model):
        super().__init__()
        # The same layers, without what `model` is compiled with.
        self.model = keras.Model(model.inputs, keras.tree.flatten(model.outputs))

    def call(self, inputs):
        return self.model(inputs, training=False)

    def compute_output_spec(self, inputs):
        return [keras.KerasTensor(x.shape, x.dtype) for x in self.model.outputs]


class _Samples(keras.utils.PyDataset):
    """The samples of each step."""

    def __init__(self, inputs, targets, steps):
        super().__init__()
        self.inputs, self.targets, self.steps = inputs, targets, steps

    def __len__(self):
        return len(self.steps)

    def __getitem__(self, step):
        chosen = self.steps[step]
        x, y = (tuple(a[chosen] for a in part) for part in (self.inputs, self.targets))
        return (x[0] if len(x) == 1 else x), (y[0] if len(y) == 1 else y)


def _loss(target: np.ndarray):
    """How far outputs are from a target, whatever its scale."""
    if target.ndim > 1 and _are_probabilities(target):
        return keras.losses.KLDivergence()
    spread = float(np.var(np.asarray(target, "float64"))) or 1.0

    def error(wanted, given):
        return keras.ops.mean(keras.ops.square(wanted - given)) / spread

    return error


def _are_probabilities(array: np.ndarray) -> bool:
    sums = np.asarray(array, "float64").sum(axis=-1)
    return (
        array.shape[-1] > 1 and array.min() >= 0 and bool(np.allclose(sums, 1, 0, 1e-2))
    )
