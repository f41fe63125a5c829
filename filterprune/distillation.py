"""Learning from a teacher, in any `fit`."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from filterprune.channels.trace import check_model
from filterprune.running import undisturbed
from filterprune.verification import fitting_inputs

DISTANCES = ("kl", "binary_kl", "mse")
# By how much probabilities in half precision may miss a sum of 1.
ROUNDING = 1e-2


def distill(
    student,
    teacher,
    alpha: float = 0.5,
    temperature: float = 4.0,
    distance: str | Any = "kl",
    from_logits: bool | None = None,
):
    """Let a model learn from a teacher too, whenever it is trained.

    From now on `student.fit` minimises

    `(1 - alpha) * loss + alpha * temperature**2 * KL(teacher || student)`

    where `loss` is what the student was compiled with and `KL` compares the
    softmax of the logits divided by the temperature, meaned over the batch and
    summed over the model's outputs. Regularisation is not scaled. Sample
    weights count in both parts. In the logs `loss` is the sum, and `val_loss`,
    `evaluate` and all metrics are as without a teacher.

    Everything else stays as it is: data, callbacks (`FilterPruningCallback`),
    optimizer, saving. The teacher is no part of the student: no weight of it is
    changed or saved with the student, and what is made of the student (a loaded
    file, a clone, `filterprune.compact`) learns without it. It runs in
    inference mode, with the weights that it has when `fit` starts.

    Args:
        student: a compiled functional or sequential model: plain, masked or
            compact. A `train_step` of its own must call `compute_loss`.
        teacher: a built Keras model that takes the student's inputs and gives
            outputs of the same shapes, such as the model that was wrapped; or
            `None`, with which the student learns without a teacher again.
        alpha: the teacher's share, in [0, 1]. Defaults to `0.5`.
        temperature: positive float; a high one shows how the teacher ranks the
            wrong classes. Defaults to `4.0`.
        distance: `"kl"` for classes on the last axis of outputs of shape
            `(batch, ..., classes)`; `"binary_kl"` for outputs that are each a
            yes or no, meaned over the last axis; `"mse"` for the mean squared
            difference of the outputs as they are, without a temperature.
            Defaults to `"kl"`.
        from_logits: whether the outputs of both are logits. Defaults to
            `None`: for `"kl"` found out for each of them by running it on
            generated inputs; must be given for `"binary_kl"`.

    Returns:
        `student` itself.

    Raises:
        TypeError: if `student` is no Keras model or `teacher` no Keras layer.
        ValueError: if `student` is subclassed, not built or not compiled, if
            `teacher` is not built, shares weights that the student trains,
            does not take its inputs or gives other outputs, or if another
            argument is out of range. The student is then as before.

    Example:

    ```python
    filterprune.distill(masked, teacher=model, alpha=0.5, from_logits=True)
    masked.fit(x, y)
    small = filterprune.compact(masked)
    ```

    Reference:

    - [Hinton et al., 2015](https://arxiv.org/abs/1503.02531), with the KL
      divergence for the cross-entropy: the gradients are the same
    """
    _check_student(student)
    losses: list[_Divergence] = []
    if teacher is not None:
        _check_teacher(student, teacher)
        _check_distance(alpha, temperature, distance, from_logits)
        pairs = _outputs(student, teacher)
        losses = [
            _Divergence(
                distance, temperature, *_are_logits(pair, distance, from_logits)
            )
            for pair in pairs
        ]
    if isinstance(vars(student).get("compute_loss"), _Lesson):
        del student.compute_loss
    if teacher is not None:
        student.compute_loss = _Lesson(
            student, teacher, student.compute_loss, alpha, losses
        )
    student.train_function = None  # it was made of the old loss
    return student


def go_on_learning(old, new) -> None:
    """Let a model made of a student learn from its teacher too, if it has one."""
    lesson = vars(old).get("compute_loss")
    if isinstance(lesson, _Lesson):
        new.compute_loss = dataclasses.replace(
            lesson, student=new, plain=new.compute_loss
        )
        new.train_function = None


@dataclasses.dataclass(frozen=True, eq=False)
class _Lesson:
    """A student's `compute_loss` with what its teacher says.

    Attributes:
        student, teacher: the models.
        plain: the student's own `compute_loss`.
        alpha: the teacher's share.
        losses: for each output how far the student is from the teacher.
    """

    student: Any
    teacher: Any
    plain: Callable
    alpha: float
    losses: list

    def __call__(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        loss = self.plain(
            x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training
        )
        if not training:
            return loss
        with undisturbed(self.teacher):
            wanted = self.teacher(x, training=False)
        wanted = [keras.ops.stop_gradient(t) for t in keras.tree.flatten(wanted)]
        given = keras.tree.flatten(y_pred)
        weights = keras.tree.flatten(sample_weight)
        if len(weights) != len(given):
            weights = [weights[0] if len(weights) == 1 else None] * len(given)
        soft = sum(
            distance(*rest)
            for distance, *rest in zip(self.losses, wanted, given, weights, strict=True)
        )
        # Regularisation is in `loss`, and is not to be scaled.
        mean = _Mean(name="mean")
        added = sum(mean(extra, keras.ops.sum(extra)) for extra in self.student.losses)
        return (1 - self.alpha) * loss + self.alpha * (soft + added)


class _Mean(keras.losses.Loss):
    """What it is given, over the number of replicas, as Keras has its losses."""

    def call(self, y_true, y_pred):
        return y_pred


class _Divergence(keras.losses.Loss):
    """How far a student's outputs are from a teacher's, one value a position."""

    def __init__(self, distance, temperature, student_logits, teacher_logits):
        super().__init__(name="distillation")
        self.distance = distance
        self.temperature = temperature
        self.student_logits = student_logits
        self.teacher_logits = teacher_logits

    def call(self, y_true, y_pred):
        if self.distance == "mse":
            return keras.ops.mean(keras.ops.square(y_true - y_pred), axis=-1)
        teacher = self._log_shares(y_true, self.teacher_logits)
        student = self._log_shares(y_pred, self.student_logits)
        shares = keras.ops.exp(teacher) * (teacher - student)
        values = self.temperature**2 * keras.ops.sum(shares, axis=-1)
        return values if self.distance == "kl" else keras.ops.mean(values, axis=-1)

    def _log_shares(self, outputs, logits):
        """The logarithm of the softened probabilities, on the last axis."""
        if self.distance == "binary_kl":  # yes and no are two classes
            other = keras.ops.zeros_like(outputs) if logits else 1 - outputs
            outputs = keras.ops.stack([outputs, other], axis=-1)
        if not logits:  # the logarithms are logits, up to a constant
            outputs = keras.ops.log(keras.ops.maximum(outputs, keras.config.epsilon()))
        return keras.ops.log_softmax(outputs / self.temperature, axis=-1)


def _check_student(student) -> None:
    check_model(student, "student")
    if not student.compiled:
        raise ValueError(
            f"Expected `student` to be compiled. Received: '{student.name}', which is "
            "not. Call `compile` on it first."
        )
    if "training" not in inspect.signature(student.compute_loss).parameters:
        raise ValueError(
            "Expected the student's `compute_loss` to take `training`. Received: "
            f"'{student.name}' (of type {type(student).__name__}), whose does not."
        )


def _check_teacher(student, teacher) -> None:
    if not isinstance(teacher, keras.layers.Layer):
        raise TypeError(
            f"Expected `teacher` to be a Keras model. Received: teacher={teacher!r} "
            f"(of type {type(teacher).__name__})"
        )
    if not teacher.built:
        raise ValueError(
            f"Expected `teacher` to be built and trained. Received: '{teacher.name}', "
            "which is not built."
        )
    own = {id(weight) for weight in teacher.weights}
    shared = [weight for weight in student.trainable_weights if id(weight) in own]
    if shared:
        raise ValueError(
            "Expected a teacher that stays as it is. Received: "
            f"'{teacher.name}', which shares weights that the student trains "
            f"({shared[0].path} and {len(shared) - 1} more). Copy it with its weights."
        )


def _check_distance(alpha, temperature, distance, from_logits) -> None:
    if not 0 <= alpha <= 1:
        raise ValueError(f"Expected `alpha` to be in [0, 1]. Received: alpha={alpha!r}")
    if not 0 < temperature < float("inf"):
        raise ValueError(
            "Expected `temperature` to be positive and finite. Received: "
            f"temperature={temperature!r}"
        )
    if distance not in DISTANCES:
        raise ValueError(
            f"Expected `distance` to be one of {DISTANCES}. Received: {distance!r}"
        )
    if distance == "binary_kl" and from_logits is None:
        raise ValueError(
            'Expected `from_logits` to be given for `distance="binary_kl"`. Received: '
            "None. Pass `True` if the outputs are logits, `False` behind a sigmoid."
        )


def _outputs(student, teacher) -> list[tuple[np.ndarray, np.ndarray]]:
    """What both give for generated inputs, output by output."""
    inputs = fitting_inputs(student, 4)
    with undisturbed(student, teacher):
        own = student(inputs, training=False)
        try:
            other = teacher(inputs, training=False)
        except Exception as error:
            raise ValueError(
                f"Expected a teacher that takes the inputs of '{student.name}'. "
                f"Received: '{teacher.name}', which raises: {error}"
            ) from error
    shapes = [
        keras.tree.map_structure(lambda tensor: str(tuple(tensor.shape)), outputs)
        for outputs in (own, other)
    ]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"Expected a teacher with the outputs of '{student.name}', for four "
            f"samples {shapes[0]}. Received: '{teacher.name}', which gives {shapes[1]}."
        )
    arrays = [
        [keras.ops.convert_to_numpy(tensor) for tensor in keras.tree.flatten(outputs)]
        for outputs in (own, other)
    ]
    return list(zip(*arrays, strict=True))


def _are_logits(pair, distance, from_logits) -> list[bool]:
    """Whether an output of the student is logits, and that of the teacher."""
    if distance == "kl" and (pair[0].ndim < 2 or pair[0].shape[-1] < 2):
        raise ValueError(
            'Expected outputs of shape `(batch, ..., classes)` for `distance="kl"`. '
            f"Received: {pair[0].shape} for four samples. Use "
            '`distance="binary_kl"` or "mse".'
        )
    if distance == "mse" or from_logits is not None:
        return [bool(from_logits)] * 2
    return [_look_like_logits(np.asarray(outputs, "float64")) for outputs in pair]


def _look_like_logits(outputs) -> bool:
    if not np.isfinite(outputs).all():
        raise ValueError(
            "Expected finite outputs for generated inputs. Received infinite or NaN "
            "ones: say with `from_logits` whether they are logits."
        )
    if (outputs < 0).any() or (outputs > 1 + ROUNDING).any():
        return True
    if (abs(outputs.sum(-1) - 1) < ROUNDING).all():
        return False
    raise ValueError(
        "Expected outputs that are logits, or probabilities that add up to 1. "
        "Received numbers from 0 to 1 that do not: use "
        '`distance="binary_kl"` for the outputs of a sigmoid, or say with '
        "`from_logits` what they are."
    )
