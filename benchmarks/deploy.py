"""Where the model runs: full against compact in one runtime after another.

    python benchmarks/deploy.py [--quick] [--nets ResNet50 MobileNetV2]

ResNet-50 and MobileNetV2 at 224 x 224 are pruned once to half of their widths,
multiples of 8, and compacted. Full and compact model run in turn, in Keras `predict`,
compiled by the backend, in LiteRT, ONNX Runtime and OpenVINO, in float and, where the
runtime has a way to it here, in int8, calibrated on random images; medians, and how
large the files are, also gzipped. On a machine with a GPU that the backend knows, both
run there too, single images and batches of 64. What cannot be measured here says why.
Weights are random, as trained ones cannot be had offline: gzip finds more in those.
"""

import argparse
import contextlib
import gzip
import importlib
import io
import os
import pathlib
import sys
import tempfile
import warnings

import measuring
import bars
import keras
import numpy as np

import filterprune
from filterprune.latency.running import devices
from filterprune.latency.units import run_model
from filterprune.runtimes import Exported
from filterprune.verification import generate_inputs

NETS = {"ResNet50": "ResNet-50", "MobileNetV2": "MobileNetV2"}
CALIBRATION = 8  # images
GPU_BATCHES = (1, 64)
PACKAGES = ("ai-edge-litert", "onnxruntime", "openvino", "nncf", "tf2onnx")


class Unavailable(Exception):
    """Raised where something cannot be measured here; says why."""


def pair(name, size):
    """A net, and the compact model of half its widths."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3))
    masked = filterprune.wrap_model(model)
    filterprune.prune(masked, sparsity=0.5, criterion="l1", scope="layer", round_to=8)
    return model, filterprune.compact(masked, verify=False)


def in_keras(model, path):
    file = path.with_suffix(".keras")
    model.save(file)
    # XLA, which Keras takes by itself, is slower on a CPU.
    on_cpu = keras.backend.backend() == "tensorflow" and not gpus()
    model.compile(jit_compile=False if on_cpu else "auto")
    inputs = generate_inputs(model, 1)
    return lambda: model.predict(inputs, verbose=0), [file]


def compiled(model, path):
    return run_model(model, 1), []


def exported(format, suffix, also=()):
    """As `filterprune.export_model` writes it and `filterprune.runtimes` runs it."""

    def ready(model, path):
        file = path.with_suffix(suffix)
        filterprune.export_model(model, file, format, verify=False)
        files = [file, *(file.with_suffix(each) for each in also)]
        return session(file, format, model), files

    return ready


def session(file, format, model):
    inputs = keras.tree.map_structure(
        keras.ops.convert_to_numpy, generate_inputs(model, 1)
    )
    run = Exported(file, format, model)
    return lambda: run(inputs)


def images(model):
    """Random images to calibrate with, one at a time."""
    shape = (1, *model.inputs[0].shape[1:])
    rng = np.random.default_rng(0)
    return [rng.uniform(size=shape).astype("float32") for _ in range(CALIBRATION)]


def litert_int8(model, path):
    tf = importable("tensorflow")
    if keras.backend.backend() != "tensorflow":
        raise Unavailable("its converter to int8 takes models of TensorFlow")
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([image] for image in images(model))
    file = path.with_suffix(".tflite")
    with contextlib.redirect_stdout(io.StringIO()):  # it lists every variable
        file.write_bytes(converter.convert())
    return session(file, "litert", model), [file]


def onnx_int8(model, path):
    tools = importable("onnxruntime.quantization")
    plain = path.with_name(path.name + "-float.onnx")
    filterprune.export_model(model, plain, "onnx", verify=False)
    name = importable("onnxruntime").InferenceSession(str(plain)).get_inputs()[0].name

    class Reader(tools.CalibrationDataReader):
        def __init__(self):
            self.rest = iter(images(model))

        def get_next(self):
            image = next(self.rest, None)
            return None if image is None else {name: image}

    file = path.with_suffix(".onnx")
    tools.quantize_static(str(plain), str(file), Reader(), per_channel=True)
    return session(file, "onnx", model), [file]


def openvino_int8(model, path):
    nncf, openvino = importable("nncf"), importable("openvino")
    plain, file = path.with_name(path.name + "-float.xml"), path.with_suffix(".xml")
    filterprune.export_model(model, plain, "openvino", verify=False)
    read = openvino.Core().read_model(str(plain))
    openvino.save_model(nncf.quantize(read, nncf.Dataset(images(model))), str(file))
    return session(file, "openvino", model), [file, file.with_suffix(".bin")]


def importable(name):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Unavailable(f"{name} is not installed") from error


def on_gpu(batch):
    """Compiled by the backend, on its GPU."""

    def ready(model, path):
        if not gpus():
            raise Unavailable(f"{keras.backend.backend()} finds no GPU here")
        return run_model(model, batch), []

    return ready


def gpus() -> list[str]:
    """The GPUs that the backend runs on."""
    return [name for name in devices() if name.lower() != "cpu"]


def compiled_name() -> str:
    names = {"tensorflow": "tf.function", "jax": "jax.jit", "torch": "PyTorch"}
    return names[keras.backend.backend()]


def ways() -> dict:
    """What to run in, by name: from a model to a function that runs it, and files."""
    return {
        "Keras predict": in_keras,
        compiled_name(): compiled,
        "LiteRT": exported("litert", ".tflite"),
        "LiteRT, int8": litert_int8,
        "ONNX Runtime": exported("onnx", ".onnx"),
        "ONNX Runtime, int8": onnx_int8,
        "OpenVINO": exported("openvino", ".xml", (".bin",)),
        "OpenVINO, int8": openvino_int8,
        **{f"GPU, {compiled_name()}, batch {n}": on_gpu(n) for n in GPU_BATCHES},
    }


def measure(ready, models, seconds) -> dict:
    """Full and compact in turn in one runtime."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            made = [
                ready(model, pathlib.Path(folder) / f"net{number}")
                for number, model in enumerate(models)
            ]
            times = measuring.interleaved([run for run, _ in made], seconds)
        except Exception as error:
            words = " ".join(str(error).split())[:200]
            known = isinstance(error, (Unavailable, ImportError))
            return {"why not": words if known else f"{type(error).__name__}: {words}"}
        median = 1e3 * np.median(times, axis=1)
        return {
            "ms": median.tolist(),
            "speedup": float(1 / measuring.ratios(times)[0]),
            "bytes": [sum(map(os.path.getsize, files)) for _, files in made],
            "gzipped": [sum(map(zipped, files)) for _, files in made],
        }


def zipped(file) -> int:
    return len(gzip.compress(pathlib.Path(file).read_bytes(), 6))


def cells(row) -> tuple[str, str, str]:
    """Milliseconds, how many times faster, and megabytes, or why there are none."""
    if "why not" in row:
        return row["why not"], "", ""

    def sizes(key):
        return " / ".join(f"{size / 1e6:.1f}" for size in row[key])

    files = f"{sizes('bytes')} ({sizes('gzipped')})" if row["bytes"][0] else ""
    times = " / ".join(f"{each:.3g}" for each in row["ms"])
    return times, f"{row['speedup']:.2f}", files


def table(figures, where) -> str:
    """The figures as reStructuredText."""
    lines = [
        "Where the model runs",
        "====================",
        "",
        "ResNet-50 and MobileNetV2 at 224 x 224 against themselves at half of their",
        "widths, multiples of 8: full / compact, single images where no batch is",
        "named. The same command reports a GPU where there is one.",
        "",
        f"Made by ``python benchmarks/deploy.py`` with {where}.",
        "",
        ".. list-table::",
        "   :header-rows: 1",
        "",
        "   * - net",
        "     - runs in",
        "     - ms",
        "     - times faster",
        "     - MB (gzipped)",
    ]
    for net, rows in figures.items():
        for way, row in rows.items():
            lines += [f"   * - {net}", f"     - {way}"]
            lines += [f"     - {cell}".rstrip() for cell in cells(row)]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one net at 96 px")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    options = parser.parse_args()
    size, seconds = (96, 1.0) if options.quick else (224, 5.0)
    figures: dict = {}
    for name in ["MobileNetV2"] if options.quick else options.nets:
        rows = figures.setdefault(NETS[name], {})
        models = pair(name, size)
        for way, ready in ways().items():
            rows[way] = measure(ready, models, seconds)
            print(f"{NETS[name]:12} {way:24}", *cells(rows[way]), sep="  ", flush=True)
    backend = keras.backend.backend()
    name = f"deploy-{backend}-{'gpu' if gpus() else 'cpu'}"
    bars.save(name, [], figures, options.quick, PACKAGES, gpus=gpus())
    if not options.quick and backend == "tensorflow" and not gpus():
        known = measuring.versions(*PACKAGES).items()
        where = ", ".join(f"{key} {value}" for key, value in known)
        path = measuring.ROOT / "docs" / "deployment.rst"
        measuring.write(path, table(figures, f"{where}, on {measuring.machine()}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
