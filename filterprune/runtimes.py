"""Running exported models, each in the runtime of its format."""

import dataclasses
import importlib
import importlib.util
import pathlib
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from filterprune.channels.trace import Graph, trace

Run = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray] | list[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Session:
    """An exported model that is loaded.

    Attributes:
        inputs: the names of its inputs.
        run: a function from arrays by those names to outputs, by name or in order.
    """

    inputs: tuple[str, ...]
    run: Run


@dataclasses.dataclass(frozen=True)
class Runtime:
    """What runs the files of one format.

    Attributes:
        name: how people call it.
        packages: the modules of which one must be there.
        open: a function from a path to a `Session`.
    """

    name: str
    packages: tuple[str, ...]
    open: Callable[[str], Session]

    @property
    def installed(self) -> bool:
        """Whether it can be used here."""
        return any(importlib.util.find_spec(name) for name in self.packages)


class Exported:
    """An exported model, called as the Keras model that it was made of.

    Args:
        path: the file, or the folder of a SavedModel.
        format: its format, a key of `RUNTIMES`.
        model: the Keras model, which tells what its inputs are called.

    Raises:
        ImportError: if the runtime is not installed.
        ValueError: if it takes other inputs than `model`.
    """

    def __init__(self, path, format: str, model):
        runtime = RUNTIMES[format]
        if not runtime.installed:
            raise ImportError(
                f"{runtime.name} cannot be found. Install it with: "
                f"pip install {runtime.packages[0].replace('_', '-')}"
            )
        graph = trace(model)
        self._session = runtime.open(str(path))
        self._order = _order(self._session.inputs, graph)
        self._outputs = _output_names(graph)

    def __call__(self, inputs) -> list[np.ndarray]:
        """The outputs, flat.

        Args:
            inputs: arrays in the structure that the Keras model takes.
        """
        arrays = [np.asarray(a) for a in map(_array, keras.tree.flatten(inputs))]
        names = self._session.inputs
        fed = {name: arrays[i] for name, i in zip(names, self._order, strict=True)}
        found = self._session.run(fed)
        if not isinstance(found, dict):
            return list(found)
        if set(self._outputs) == set(found):
            return [found[name] for name in self._outputs]
        return [found[name] for name in sorted(found, key=_by_number)]


def format_of(path) -> str | None:
    """The format of an exported model by its path; None if it is none."""
    path = pathlib.Path(path)
    if (path / "saved_model.pb").is_file():
        return "saved_model"
    suffixes = {".tflite": "litert", ".onnx": "onnx", ".xml": "openvino"}
    return suffixes.get(path.suffix.lower())


def _array(value):
    return keras.ops.convert_to_numpy(value)


def _by_number(name: str) -> list:
    """So that `output_10` comes after `output_9`."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _order(names: Sequence[str], graph: Graph) -> list[int]:
    """For each input of a session the number of the model's input that it is."""
    known: dict[str, int] = {}
    count = len(graph.inputs)
    numbers = keras.tree.pack_sequence_as(graph.input_struct, range(count))
    for number, tensor in enumerate(graph.inputs):
        known |= {graph.input_names[number]: number, tensor.name: number}
    if isinstance(numbers, dict):
        known |= {key: value for key, value in numbers.items() if value in range(count)}
    if len(names) != count:
        raise ValueError(
            f"Expected a file with the {count} inputs of '{graph.model.name}'. "
            f"Received: one with the inputs {list(names)}."
        )
    found = [known.get(_plain(name), -1) for name in names]
    return found if sorted(found) == list(range(count)) else list(range(count))


def _plain(name: str) -> str:
    """A name without what converters put around it: `serving_default_image:0`."""
    return name.removeprefix("serving_default_").split(":")[0]


def _output_names(graph: Graph) -> list[str]:
    """How outputs are called where they have names, in flat order."""
    count = len(graph.outputs)
    numbers = keras.tree.pack_sequence_as(graph.output_struct, range(count))
    if isinstance(numbers, dict):
        by_number = {v: k for k, v in numbers.items() if isinstance(v, int)}
        if len(by_number) == count:
            return [by_number[number] for number in range(count)]
    return [f"output_{number}" for number in range(count)]


def _open_litert(path: str) -> Session:
    runner = _interpreter(path).get_signature_runner()
    details = runner.get_input_details()

    def run(arrays):
        return runner(**{n: a.astype(details[n]["dtype"]) for n, a in arrays.items()})

    return Session(tuple(details), run)


def _interpreter(path: str):
    if importlib.util.find_spec("ai_edge_litert"):
        module = importlib.import_module("ai_edge_litert.interpreter")
        return module.Interpreter(model_path=path)
    lite = importlib.import_module("tensorflow").lite
    with warnings.catch_warnings():  # it is deprecated, which is known
        warnings.simplefilter("ignore")
        return lite.Interpreter(model_path=path)


def _open_onnx(path: str) -> Session:
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(
        path, options, providers=["CPUExecutionProvider"]
    )
    types = {"float16": "float16", "float": "float32", "double": "float64"}
    kinds = {i.name: i.type.removeprefix("tensor(")[:-1] for i in session.get_inputs()}
    dtypes = {name: types.get(kind, kind) for name, kind in kinds.items()}

    def run(arrays):
        return session.run(None, {n: a.astype(dtypes[n]) for n, a in arrays.items()})

    return Session(tuple(dtypes), run)


def _open_openvino(path: str) -> Session:
    core = importlib.import_module("openvino").Core()
    model = core.read_model(path)
    # Some processors would compute in bfloat16, which no comparison allows for.
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    dtypes = {i.any_name: i.element_type.to_dtype() for i in compiled.inputs}

    def run(arrays):
        fed = {name: array.astype(dtypes[name]) for name, array in arrays.items()}
        found = compiled(fed)
        return [found[output] for output in compiled.outputs]

    return Session(tuple(dtypes), run)


def _open_saved_model(path: str) -> Session:
    tf: Any = importlib.import_module("tensorflow")
    loaded = tf.saved_model.load(path)
    function = loaded.signatures["serving_default"]
    specs = function.structured_input_signature[1]

    def run(arrays):
        fed = {n: tf.constant(a, specs[n].dtype) for n, a in arrays.items()}
        return {name: value.numpy() for name, value in function(**fed).items()}

    run.loaded = loaded  # type: ignore[attr-defined]  # its variables live as long
    return Session(tuple(specs), run)


RUNTIMES = {
    "litert": Runtime("LiteRT", ("ai_edge_litert", "tensorflow"), _open_litert),
    "onnx": Runtime("ONNX Runtime", ("onnxruntime",), _open_onnx),
    "openvino": Runtime("OpenVINO", ("openvino",), _open_openvino),
    "saved_model": Runtime("TensorFlow", ("tensorflow",), _open_saved_model),
}
