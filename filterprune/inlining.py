"""Calling a layer's parts in the layer's place, on symbolic tensors."""

import contextlib
import inspect
import math
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from filterprune.channels.flow import keeps_apart
from filterprune.channels.likeness import (
    likeness_of_arguments,
    likeness_of_operation,
)
from filterprune.channels.registry import own_call
from filterprune.channels.trace import (
    Node,
    call_signature,
    copy_object,
    copy_operation,
    is_autocast,
    is_layer,
    mask_of,
    members_of,
    no_mode,
    operation_of,
    own_parts,
    parts_of,
    takes_training,
    trace,
)
from filterprune.inputs import generate_inputs
from filterprune.products import Holder, holder_of, layer_instead, linear_in
from filterprune.running import seeds_of, undisturbed
from filterprune.tensorflow_calls import tensorflow_as_keras
from filterprune.unknown_sizes import sizes_as_keras
from filterprune.verification import relative_difference, tolerance_of


def inline(layer, trial: "Trial", args, kwargs):
    """Do what a layer does: the parts that it calls join the graph.

    Args:
        layer: the layer.
        trial: what it is called for.
        args, kwargs: symbolic tensors, and other arguments.

    Returns:
        The outputs, in the structure in which the layer gives them.
    """
    if takes_training(layer) and kwargs.get("training") is None:
        kwargs = {**kwargs, "training": _mode(layer, trial.training)}
    call: Any = trial.function_of(layer)
    try:
        with _opened(layer, trial), sizes_as_keras(trial.sizes), tensorflow_as_keras():
            return call(layer, *_cast(layer, args), **_cast(layer, kwargs))
    except Exception:
        trial.failed = layer if trial.failed is None else trial.failed
        raise


class NotTraced(Exception):
    """Raised where a layer cannot be called with symbolic tensors.

    Args:
        error: what was raised.
        part: the number of the part whose code raised it; None for the layer itself.
    """

    def __init__(self, error: Exception, part: int | None):
        super().__init__(str(error))
        self.part = part


def _mode(layer, training: bool | None):
    """The mode in which Keras calls a layer that is not told of one."""
    default = call_signature(layer).parameters["training"].default
    if training is None and default is not inspect.Parameter.empty:
        return default
    return training


def is_symbolic(value) -> bool:
    """Whether a value is a symbolic tensor."""
    return isinstance(value, keras.KerasTensor)


class _Part:
    """Stands for a part of a layer while that is called with symbolic tensors."""

    def __init__(self, layer, trial):
        self.layer = layer
        self.trial = trial

    def __call__(self, *args, **kwargs):
        if self.trial.function_of(self.layer) is not None:
            return inline(self.layer, self.trial, args, kwargs)
        given = keras.tree.flatten((args, kwargs))
        if args and keras.ops.is_tensor(args[0]) and not any(map(is_symbolic, given)):
            args = (self.trial.symbolic(args[0]), *args[1:])
        return self.layer(*args, **kwargs)

    def __getattr__(self, name):
        return getattr(self.layer, name)

    @property  # type: ignore[misc]  # for code that asks what it holds
    def __class__(self):
        return type(self.layer)


@contextlib.contextmanager
def _opened(layer, trial) -> Iterator[None]:
    """Within it a layer's parts and weights are what the trial makes of them."""
    own = trial.function_of(layer) is own_call  # a function knows what it handles
    stand_ins: dict[int, Any] = {
        id(part): _Part(part, trial)
        for part in own_parts(layer)
        if own or trial.function_of(part) is not None
    }
    if own:
        for weight in own_variables(layer):
            stand_ins[id(weight)] = trial.hold(layer, weight)

    def switch(value):
        if id(value) in stand_ins:
            return stand_ins[id(value)]
        if isinstance(value, (list, tuple)):
            return [switch(one) for one in value]
        if isinstance(value, dict):
            return {key: switch(one) for key, one in value.items()}
        return value

    before = dict(vars(layer))
    for name, value in members_of(layer):
        if _holds(value, stand_ins):
            vars(layer)[name] = switch(value)
    added = {name for name in vars(layer) if name not in before}
    try:
        yield
    finally:
        for name, value in before.items():
            vars(layer)[name] = value
        for name in added:
            del vars(layer)[name]


def _holds(value, ids) -> bool:
    """Whether a value is, or a collection holds, an object of one of these ids."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return any(_holds(one, ids) for one in value)
    return id(value) in ids


def own_variables(layer) -> list:
    """The variables of a layer that no part of it has."""
    parts = {id(variable) for part in parts_of(layer) for variable in part.variables}
    return [variable for variable in layer.variables if id(variable) not in parts]


def why_not_held(layer) -> str | None:
    """Why a layer's own variables cannot be held by another layer, or None."""
    weights = {id(weight) for weight in layer.weights}
    for variable in own_variables(layer):
        if id(variable) not in weights:
            return f"it has the variable `{variable.name}`, which is no weight"
        if "float" not in variable.dtype:
            values = keras.ops.convert_to_numpy(variable)
            if variable.trainable or np.abs(values).max(initial=0) > _WHOLE_NUMBERS:
                return f"its weight `{variable.name}` is of dtype {variable.dtype}"
    return None


def _held_as(layer, variable):
    """The dtype policy of a layer that holds another's variable."""
    if "float" not in variable.dtype:
        return "float32"
    if variable.dtype == layer.variable_dtype and is_autocast(variable):
        return layer.dtype_policy
    return variable.dtype


_WHOLE_NUMBERS = 2**24  # all of them are numbers in float32


def makes_a_mask(layer, args, kwargs) -> bool:
    """Whether what a layer makes of such arguments has a mask, for all we know."""
    _, own, named = _inputs_like(args, kwargs)
    try:
        outputs = copy_object(layer)(*own, **named, **no_mode(layer))
    except Exception:
        return True
    return any(mask_of(y) is not None for y in keras.tree.flatten(outputs))


def _cast(layer, arguments):
    """Arguments in the dtype that Keras hands to the layer's `call`."""

    def cast(value):
        wanted = layer.compute_dtype
        if not is_symbolic(value) or not layer.autocast or "float" not in value.dtype:
            return value
        return value if value.dtype == wanted else keras.ops.cast(value, wanted)

    return keras.tree.map_structure(cast, arguments)


class Trial:
    """A functional model of one call of a copy of a composite layer.

    Args:
        layer: the layer.
        function_of: see `inline`.
        args, kwargs: the call's arguments, symbolic tensors among them.
        training: see `inline`.
        whole: the numbers of parts to call as layers.

    Raises:
        NotTraced: if the layer raises anything for symbolic tensors.
    """

    def __init__(self, layer, function_of, args, kwargs, training=None, whole=()):
        self.layer = layer
        self.training = training
        self.whole = whole
        self.copy = copy_object(layer)
        self._function_of = function_of
        self._kept = {id(parts_of(self.copy)[number]) for number in whole}
        self.failed: Any = None  # the part whose code raised what it did
        self._numbers = {id(w): number for number, w in enumerate(self.copy.weights)}
        # By the number of the weight: the layer that holds it, how to make that, and
        # the dtype policy.
        self._holders: dict[int, tuple[Any, Holder, Any]] = {}
        self._told: set[int] = set()
        self._ones: dict[str, Any] = {}
        self._samples: int | None = None  # in a batch, where that must be a number
        self.sizes = True  # whether unknown ones stand for themselves
        self._try_to_call(args, kwargs)
        lifted = dict(self._products())
        if lifted or self._samples is not None:
            inputs, own, named = _inputs_like(args, kwargs)
            outputs = self.play(own, named, lifted=lifted)
            self.inputs = inputs
            self._record(outputs)

    def function_of(self, part) -> Callable | None:
        """How to do what a part, or the layer itself, does by others, or None."""
        return None if id(part) in self._kept else self._function_of(part)

    def _try_to_call(self, args, kwargs) -> None:
        """Call the copy, in the first way in which that can be done.

        Code may want a size as a number, as that of a batch, or None for it.
        """
        parts = parts_of(self.copy)
        found = None
        for self.sizes, self._samples in (
            (True, None),
            (False, None),
            (True, _SAMPLES),
        ):
            self._holders.clear()
            self._ones.clear()
            try:
                self._call(args, kwargs)
                return
            except Exception as error:
                where = (n for n, part in enumerate(parts) if part is self.failed)
                found = found or NotTraced(error, next(where, None))
                self.failed = None
        raise found  # type: ignore[misc]

    def _call(self, args, kwargs) -> None:
        self.inputs, own, named = _inputs_like(args, kwargs, self._samples)
        self._record(inline(self.copy, self, own, named))

    def _record(self, outputs) -> None:
        self.outputs = outputs
        made = [y for y in keras.tree.flatten(outputs) if is_symbolic(y)]
        self.model = keras.Model(self.inputs, made)
        self.nodes = trace(self.model).nodes

    def hold(self, layer, weight):
        """A symbolic tensor that stands for a weight of a layer."""
        policy = keras.dtype_policies.get(_held_as(layer, weight))
        dtype = policy.compute_dtype
        if dtype not in self._ones:
            one = keras.ops.ones_like(_nothing(self.inputs[0]), dtype=dtype)
            self._ones[dtype] = keras.ops.reshape(one, (1,))
        number = self._numbers[id(weight)]
        if number not in self._holders:
            self._let_hold(number, holder_of(weight.shape), policy)
        made = self._holders[number][0](self._ones[dtype])
        made = keras.ops.squeeze(made, 0 if weight.shape else None)
        return made if "float" in weight.dtype else keras.ops.cast(made, weight.dtype)

    def symbolic(self, tensor):
        """A symbolic tensor of the same value."""
        nothing = _nothing(self.inputs[0], tensor.dtype)
        return keras.ops.add(tensor, keras.ops.reshape(nothing, (1,) * tensor.ndim))

    def _let_hold(self, number: int, holder: Holder, policy):
        name = f"{self.copy.name}_{number}"  # in the trial alone
        layer = holder.make(self.copy.weights[number], name, policy)
        self._holders[number] = layer, holder, policy
        return layer

    def _products(self) -> Iterator[tuple[int, "_Product"]]:
        """Products with weights that are read in no other way, as `play` takes them."""
        readers: dict[int, list[Node]] = {}
        makers = {id(y): node for node in self.nodes for y in node.outputs}
        weights: dict[int, int] = {}  # from the id of a tensor to the weight's number
        for node in self.nodes:
            for tensor in node.inputs:
                readers.setdefault(id(tensor), []).append(node)
        for node in self.nodes:
            number = self.number_held(node.op)
            if number is not None:
                (squeeze,) = readers[id(node.outputs[0])]
                weights[id(squeeze.outputs[0])] = number
        found = {}
        for node in self.nodes:
            for tensor in node.inputs:
                steps = linear_in(tensor, {*weights}, makers)
                holder = steps is not None and layer_instead(node, tensor)
                if holder:
                    (x,) = [one for one in node.inputs if one is not tensor]
                    found[id(node)] = _Product(node, x, tensor, holder, steps, weights)
        outer = {id(tensor) for tensor in self.model.outputs}
        while True:
            known = {*found}.union(id(s) for one in found.values() for s in one.steps)
            holders: dict[int, list[Holder]] = {}
            for one in found.values():
                for number in one.numbers:
                    holders.setdefault(number, []).append(one.holder)
            left = {
                key: one
                for key, one in found.items()
                if outer.isdisjoint(one.read)
                and known.issuperset(id(r) for t in one.read for r in readers[t])
                and all(a == one.holder for n in one.numbers for a in holders[n])
            }
            if len(left) == len(found):
                break
            found = left
        for number, (holder, *_) in holders.items():
            self._let_hold(number, holder, self._holders[number][2])
        for one in found.values():
            yield id(one.node.outputs[0]), one

    def number_held(self, layer) -> int | None:
        """The number of the weight that a layer was made to hold, or None."""
        found = self._holders.items()
        return next((number for number, (one, *_) in found if one is layer), None)

    def holder(self, number: int):
        """The layer that holds the weight of that number."""
        return self._holders[number][0]

    def hold_again(self, number: int, weight, name: str):
        """A layer that holds another layer's weight of that number."""
        _, holder, policy = self._holders[number]
        return holder.make(weight, name, policy)

    @property
    def _variables(self) -> list:
        """The weights of the layer, or of what holds them."""
        return [
            self._holders[number][0].weights[0] if number in self._holders else weight
            for number, weight in enumerate(self.copy.weights)
        ]

    def play(
        self,
        args,
        kwargs,
        twin: Callable = lambda layer: layer,
        name_for: Callable = str,
        lifted: "Mapping[int, _Product]" = types.MappingProxyType({}),
    ):
        """Do the same with other tensors, which may know more of their sizes.

        Args:
            args, kwargs: the arguments.
            twin: from a layer that the copy calls to the one to call instead.
            name_for: from the name of an operation that is no layer to that to give it.
            lifted: products that layers make, by the ids of what they make.

        Returns:
            The outputs, in the structure in which the layer gives them.
        """
        given = [x for x in keras.tree.flatten((args, kwargs)) if is_symbolic(x)]
        known = dict(zip(map(id, self.inputs), given, strict=True))
        for number, node in enumerate(self.nodes):
            own, named = node.fill(known)
            if self._samples is not None:
                own, named = keras.tree.map_structure(
                    lambda x: _for_any_samples(x, self._samples, given, name_for),
                    (own, named),
                )
            if number in self._told or _is_default(node.op, named):
                named.pop("training", None)
            if id(node.outputs[0]) in lifted:
                made = lifted[id(node.outputs[0])].by_layers(self, known, name_for)
                known[id(node.outputs[0])] = made
                continue
            if _spreads_over_samples(node.op, self._samples):
                shape = (None, *node.outputs[0].shape[1:])
                made = _over_samples(own[0], shape, given, name_for)
                known[id(node.outputs[0])] = made
                continue
            if is_layer(node.op):
                op = twin(node.op)
            else:
                op = _resized(node.op, own, self._samples)
            if not is_layer(node.op):
                op.name = name_for(op.name)
            outputs = keras.tree.flatten(op(*own, **named))
            for old, new in zip(node.outputs, outputs, strict=True):
                known[id(old)] = new
        return keras.tree.map_structure(
            lambda y: known[id(y)] if is_symbolic(y) else y, self.outputs
        )

    def keeps_channels(self, args, kwargs) -> bool:
        """Whether a copy of the layer with fewer channels computes the same for each.

        Both the trace and a probe of the layer must say so.
        """
        first = keras.config.image_data_format() == "channels_first"
        axis = 1 if first else -1
        inputs, own, named = _inputs_like(args, kwargs)
        return keeps_apart(self.model, axis) and keeps_apart(
            keras.Model(inputs, self.copy(*own, **named)), axis
        )

    def why_not(self, layer, function_of, args, kwargs) -> str | None:
        """Why this does not stand for the layer that was copied, or None."""
        own = function_of(layer) is own_call
        if own and self._leaves_out(layer):
            return "it has weights that nothing it calls reads"
        given = keras.tree.flatten([(node.args, node.kwargs) for node in self.nodes])
        handed = any(isinstance(value, keras.Variable) for value in given)
        if handed and own:
            return "it hands a weight of a part to an operation"
        known = [part.losses for part in own_parts(self.copy)]
        known += [layer.losses for layer, *_ in self._holders.values()]
        if len(self.copy.losses) > sum(map(len, known)):
            return "it adds a loss"
        if any(mask_of(y) is not None for y in self.model.outputs):
            return "it makes a mask that its parts alone do not hand on"
        trained = Trial(self.layer, function_of, args, kwargs, True, self.whole)
        if trained._sequence() != self._sequence():
            return "it calls other parts in training"
        for number, pair in enumerate(zip(self.nodes, trained.nodes, strict=True)):
            modes = [node.kwargs.get("training") for node in pair]
            if modes[0] != modes[1]:  # what the layer was told is told its parts
                self._told.add(number)
        return self._difference(layer, args, kwargs)

    def _sequence(self) -> list:
        """What is called, in order, and with what besides tensors and the mode."""
        numbers = {id(part): n for n, part in enumerate(parts_of(self.copy))}
        found = []
        for node in self.nodes:
            kwargs = {k: v for k, v in node.kwargs.items() if k != "training"}
            told = Node(node.op, node.args, kwargs, node.inputs, ())
            op, how = node.op, likeness_of_arguments(told)
            known = not is_layer(op) and likeness_of_operation(op)
            found.append((type(op), numbers.get(id(op)), how, known))
        return found

    def _leaves_out(self, layer) -> bool:
        """Whether a weight of the layer is no variable of the model, without proof.

        Where other weights are tried, what is not read makes no difference.
        """
        if self._draws(layer):
            return False
        known = {id(variable) for variable in self.model.variables}
        for part in parts_of(self.copy):
            if self.function_of(part) not in (None, own_call):  # it sees to its own
                known.update(map(id, part.weights))
        return not known.issuperset(map(id, self._variables))

    def _difference(self, layer, args, kwargs) -> str | None:
        """Whether the model computes something else than the layer.

        With other weights than the layer has: an operation that was handed one keeps
        its value, and is no function of it. Not where a function makes layers that
        hold weights of the layer.
        """
        inputs, own, named = _inputs_like(args, kwargs)
        outputs = keras.tree.flatten(self.play(own, named))
        model = keras.Model(inputs, [y for y in outputs if is_symbolic(y)])
        batches = _BATCHES if self._samples is None else (1, *_BATCHES, 5)
        worst = max(self._error(layer, model, batch, args, kwargs) for batch in batches)
        if worst < min(TOLERANCE, tolerance_of(model)):
            return None
        return f"its parts alone compute something else (by {worst:.2g})"

    def _draws(self, layer) -> bool:
        """Whether other weights than the layer has are tried."""
        parts = [self.function_of(part) for part in parts_of(self.copy)]
        return all(
            each in (None, own_call) for each in (self._function_of(layer), *parts)
        )

    def _error(self, layer, model, batch: int, args, kwargs) -> float:
        """How far a model of the calls is from the layer, for so many samples."""
        given = keras.tree.flatten(generate_inputs(model, batch, size=_SIZE))
        weights = layer.weights if self._draws(layer) else []
        values = [*map(_drawn, weights, range(len(weights)))]
        held = [
            keras.ops.reshape(keras.ops.cast(value, variable.dtype), variable.shape)
            for value, variable in zip(values, self._variables)
        ]
        with undisturbed(model, values=zip(self._variables, held), seed=1):
            found = keras.tree.flatten(model(given))
        left = iter(given)
        args, kwargs = keras.tree.map_structure(
            lambda x: next(left) if is_symbolic(x) else x, (args, kwargs)
        )
        with undisturbed(layer, values=zip(layer.weights, values), seed=1):
            for _ in range(1 if seeds_of(layer) else 2):  # some count their calls
                wanted = keras.tree.flatten(layer(*args, **kwargs, **no_mode(layer)))
        wanted = wanted[: len(found)]
        return max(map(relative_difference, wanted, found), default=0.0)


class _Product:
    """A product of a tensor and a sum of multiples of weights.

    Args:
        node: the call that makes it.
        x: the tensor.
        operand: the symbolic tensor of the sum.
        holder: how to make a layer that makes the product with one weight.
        steps: the calls that make the sum, in order.
        weights: from the ids of the tensors that are weights to their numbers.
    """

    def __init__(self, node, x, operand, holder, steps, weights):
        self.node, self.x, self.operand = node, x, operand
        self.holder, self.steps = holder, steps
        tensors = [operand, *(x for step in steps for x in step.inputs)]
        self.read = {id(tensor) for tensor in tensors}
        self._weights = {key: weights[key] for key in self.read if key in weights}
        self.numbers = {*self._weights.values()}

    def by_layers(self, trial: Trial, known: dict, name_for: Callable):
        """The sum of the multiples of what the layers make that hold the weights."""
        x = known[id(self.x)]
        made = {key: trial.holder(number)(x) for key, number in self._weights.items()}
        for step in self.steps:
            args, kwargs = step.fill(made)
            op = copy_operation(step.op)
            op.name = name_for(op.name)
            made[id(step.outputs[0])] = op(*args, **kwargs)
        return made[id(self.operand)]


def _drawn(weight, seed: int):
    """Another value for a weight, of its own order; a variance stays positive."""
    if "float" not in weight.dtype:
        return keras.ops.convert_to_tensor(weight)
    rng = np.random.default_rng(seed)
    value = keras.ops.convert_to_numpy(weight).astype("float64")
    value = value * rng.uniform(0.5, 1.5, value.shape) + rng.uniform(
        0, 0.1, value.shape
    )
    return keras.ops.cast(value, weight.dtype)


def _inputs_like(args, kwargs, samples: int | None = None) -> tuple:
    """Inputs like the symbolic tensors among arguments, and those in their place.

    Args:
        args, kwargs: the arguments.
        samples: how many samples a batch of any number of them gets.
    """
    inputs: list[Any] = []

    def fresh(value):
        if not is_symbolic(value):
            return value
        shape = value.shape
        if samples is not None and shape and shape[0] is None:
            shape = (samples, *shape[1:])
        inputs.append(keras.Input(batch_shape=shape, dtype=value.dtype))
        return inputs[-1]

    args, kwargs = keras.tree.map_structure(fresh, (args, kwargs))
    return inputs, args, kwargs


def _is_default(op, kwargs) -> bool:
    """Whether a layer was called in training mode only because it always is.

    Said anew, Keras would take it for the mode of the layers that follow.
    """
    if not takes_training(op) or kwargs.get("training") is not True:
        return False
    return call_signature(op).parameters["training"].default is True


def _spreads_over_samples(op, samples: int | None) -> bool:
    """Whether an operation repeats a tensor for every sample of a batch."""
    name, wanted = type(op).__name__, (None, samples)
    if name == "BroadcastTo":
        return op.shape[0] in wanted
    if samples is None or name not in ("Tile", "Repeat"):
        return False
    if name == "Repeat":
        return op.axis == 0 and op.repeats == samples
    return op.repeats[0] == samples and set(op.repeats[1:]) <= {1}


def _for_any_samples(value, samples, given, name_for: Callable):
    """A constant that is the same for all samples of a batch, for any number of them.

    Args:
        value: an argument; what is no such constant is given back.
        samples: how many samples the batch has.
        given, name_for: see `_over_samples`.
    """
    if not (isinstance(value, np.ndarray) or keras.ops.is_tensor(value)):
        return value
    array = keras.ops.convert_to_numpy(value)
    if array.shape[:1] != (samples,) or (array != array[:1]).any():
        return value
    row = keras.ops.convert_to_tensor(array[:1])
    return _over_samples(row, (None, *array.shape[1:]), given, name_for)


def _over_samples(tensor, shape, given, name_for: Callable):
    """Repeat a tensor for every sample, without a number of them.

    Args:
        tensor: a symbolic tensor.
        shape: the shape that it gets; the first size is None.
        given: symbolic tensors, some of which have a sample for each.
        name_for: from the name of an operation to that to give it.
    """
    like = next(x for x in given if x.shape and x.shape[0] is None)
    made = [keras.ops.zeros_like(like, dtype=tensor.dtype)]
    if like.shape[1:]:
        made.append(keras.ops.sum(made[-1], axis=[*range(1, len(like.shape))]))
    made.append(keras.ops.reshape(made[-1], (-1, *(1,) * (len(shape) - 1))))
    made.append(keras.ops.zeros_like(made[-1]))
    samples = made[-1]
    if (1, *shape[1:]) != tensor.shape:
        tensor = keras.ops.broadcast_to(tensor, (1, *shape[1:]))
        made.append(tensor)
    # On TensorFlow `add` takes as many samples as channels for a bias of the latter,
    # where they come second.
    made.append(keras.ops.add(samples, tensor))
    for one in made:
        operation = operation_of(one)
        operation.name = name_for(operation.name)
    return made[-1]


def _nothing(tensor, dtype=None):
    """A zero of the rank of a symbolic tensor, whatever is in that."""
    nothing = keras.ops.zeros_like(tensor, dtype=dtype)
    total = keras.ops.sum(nothing, axis=[*range(len(tensor.shape))], keepdims=True)
    return keras.ops.zeros_like(total)  # known to be zero, whatever is summed


def _resized(op, args, samples: int | None):
    """A copy of a bare operation; a reshape finds out one size itself.

    A layer asks a tensor for its sizes; a symbolic one does not know all of them.
    """
    given = getattr(op, "newshape", None)
    if isinstance(given, (list, tuple)) and given and given[0] == samples:
        given = [None, *given[1:]]
    if not isinstance(given, (list, tuple)) or None not in given:
        return copy_operation(op)
    (x,) = args
    shape = _with_one_open([*given], x.shape)
    if given[0] is x.shape[0] is None and shape.count(-1) == 2:
        # A layer knows the number of samples when it is run, an operation does not.
        dtype = x.dtype if "float" in x.dtype else None
        return keras.layers.Reshape(shape[1:], dtype=dtype)
    return copy_operation(op, newshape=shape)


def _with_one_open(sizes: list, shape) -> tuple:
    """The sizes of a reshape of a tensor, of which one is to be found out."""
    rest = [place for place, size in enumerate(sizes) if place and size in (None, -1)]
    whole = sizes[0] is shape[0] is None and None not in shape[1:]
    if whole and len(rest) == 1:
        known = math.prod(size for size in sizes[1:] if size not in (None, -1))
        sizes[rest[0]] = math.prod(shape[1:]) // max(known, 1)
    return tuple(-1 if size is None else size for size in sizes)


_SIZE = 4
_BATCHES = (2,)
_SAMPLES = 521  # a prime, which no other size is likely to be
TOLERANCE = 1e-2  # of half precision too
