"""Batch norms folded into the layers before them: fewer operations to run."""

import collections
from typing import Any

import keras
import numpy as np

from filterprune.channels.calls import Call, Flow
from filterprune.channels.flow import flow
from filterprune.channels.registry import weight_of
from filterprune.channels.remaking import remake
from filterprune.channels.rules.normalization import affine_of
from filterprune.channels.trace import check_model, is_of_keras
from filterprune.compiling import recompile
from filterprune.gates import is_masked
from filterprune.loading import warn_of_unloadable
from filterprune.rebuilding import Rebuilder, copy_whole
from filterprune.verification import verify_folded


def fold_batch_norm(model):
    """Fold batch norms into the convolutions and dense layers before them.

    In inference a batch norm multiplies each channel by `gamma / sqrt(variance +
    epsilon)` and adds a constant. Where nothing but it reads what a layer makes,
    the layer's kernel and bias can take in both (Jacob et al., "Quantization and
    training of neural networks for efficient integer-arithmetic-only inference",
    CVPR 2018, section 3.2), and the model has one operation less to run. That
    matters most to narrow nets, in which an operation takes little longer than its
    start.

    The result is meant to be run, not to be trained on: it has no statistics any
    more. Batch norms stay that follow something else, such as an activation or a
    sum, whose input is read twice, that the graph calls with `training=True`, or
    that belong to layers called several times.

    Args:
        model: a built functional or sequential Keras model, such as `compact`
            returns. It is not touched.

    Returns:
        A new plain model that computes the same in inference mode, up to float
        rounding, without the folded layers. It is compiled if `model` is, with a
        fresh optimizer. `model` itself if there is nothing to fold.

    Raises:
        TypeError: if `model` is no Keras model.
        ValueError: if `model` is subclassed, not built or masked.
        filterprune.VerificationError: if both models' outputs for generated inputs
            differ by more than rounding.

    Example:

    ```python
    small = filterprune.compact(masked)
    fast = filterprune.fold_batch_norm(small)
    fast.save("fast.keras")
    ```
    """
    check_model(model)
    if is_masked(model):
        raise ValueError(
            f"Expected a model without gates. Received: '{model.name}', which is "
            "masked: its statistics are still those of closed filters too. Call "
            "`filterprune.compact` first."
        )
    found = _foldable(flow(model))
    if not found:
        return model
    folder = _Folder(found)
    small = folder.rebuild(model)
    warn_of_unloadable(model, folder.unloadable)
    verify_folded(model, small)
    if model.compiled:
        recompile(model, small)
    return small


def _foldable(found: Flow) -> dict[int, Any]:
    """For the id of a layer it and what its batch norm does; for that of that None."""
    calls = {id(call.op): call for call in found.calls}
    readers: collections.Counter = collections.Counter()
    makers = {}
    uses: collections.Counter = collections.Counter()
    for graph in found.graphs.values():
        for node in graph.nodes:
            uses[id(node.op)] += 1
            readers.update(map(id, node.inputs))
            makers.update({id(tensor): node.op for tensor in node.outputs})
        readers.update(map(id, graph.outputs))
    pairs: dict[int, Any] = {}
    for graph in found.graphs.values():
        for node in graph.nodes:
            factors = affine_of(node.op)
            if len(node.inputs) != 1 or factors is None:
                continue
            (tensor,) = node.inputs
            maker, norm = calls.get(id(makers.get(id(tensor)))), calls.get(id(node.op))
            if maker is None or norm is None or norm.training:
                continue
            once = uses[id(maker.op)] == uses[id(norm.op)] == readers[id(tensor)] == 1
            if once and _takes_factors(maker) and _axis(maker) == _axis(norm):
                pairs |= {id(maker.op): (maker, factors), id(norm.op): None}
    return pairs


def _axis(call: Call) -> int | None:
    """The axis of the output that gates run along."""
    return None if call.gate is None else call.gate.axis


def _takes_factors(call: Call) -> bool:
    """Whether a layer's kernel and bias can take in factors of its channels."""
    # What a layer of somebody's own does behind its kernel is unknown.
    known = is_of_keras(type(call.op)) and hasattr(call.op, "use_bias")
    return known and call.is_linear


class _Folder(Rebuilder):
    """Rebuilds a model with some batch norms in the layers before them."""

    def __init__(self, pairs: dict[int, Any]):
        super().__init__(self._make)
        self._pairs = pairs

    def _make(self, op):
        if id(op) not in self._pairs:
            return copy_whole(op)
        pair = self._pairs[id(op)]
        return None if pair is None else _folded(*pair)


def _folded(call: Call, factors: tuple[np.ndarray, np.ndarray]):
    """The layer with a batch norm's factors and summands in its kernel and bias."""
    scale, shift = factors
    new = remake(call.op, use_bias=True)
    if not new.built:
        new.build_from_config(call.op.get_build_config())
    weights = call.op.get_weights()
    if not call.op.use_bias:  # Keras adds it last
        weights.append(np.zeros(new.bias.shape))
    new.set_weights(weights)
    gate = call.gates[0]
    for name, numbers in gate.weights.items():
        if name != "bias":
            variable = weight_of(new, name)
            variable.assign(_double(variable) * scale[numbers])
    new.bias.assign(_double(new.bias) * scale + shift)
    return new


def _double(variable) -> np.ndarray:
    return keras.ops.convert_to_numpy(variable).astype("float64")
