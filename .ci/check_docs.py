"""Check the documents: they parse, their code and all docstrings run.

Fails if the README or a page of `docs/` is not valid reStructuredText, if one of
their Python blocks or one of the examples in a public docstring raises, or if a
public object has no docstring.
"""

import inspect
import os
import pathlib
import re
import sys
import tempfile
import textwrap

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import docutils.core
import keras
import numpy as np

import filterprune

ROOT = pathlib.Path(__file__).parents[1]


def check_page(path) -> str:
    """Parse a page and run its Python blocks one after another."""
    text = path.read_text()
    docutils.core.publish_doctree(text, settings_overrides={"halt_level": 2})
    blocks = re.findall(
        r"\.\. code-block:: python\n\n((?:    .*\n|\n)+)", text, re.MULTILINE
    )
    names = example_names()
    for block in blocks:
        exec(compile(textwrap.dedent(block), path.name, "exec"), names)
    return f"{path.name}: {len(blocks)} code blocks"


def example_names() -> dict:
    """What examples may use without making it: a small model and data."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 3))
    y = keras.layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    y = keras.layers.Conv2D(8, 3, padding="same", activation="relu")(y)
    y = keras.layers.GlobalAveragePooling2D()(y)
    model = keras.Model(inputs, keras.layers.Dense(3, name="head")(y))
    model.compile("sgd", "mse")
    masked = filterprune.wrap_model(model)
    rng = np.random.default_rng(0)

    class MyChannelScale(keras.layers.Layer):
        def build(self, input_shape):
            self.scale = self.add_weight(shape=(input_shape[-1],), name="scale")

        def call(self, inputs):
            return inputs * self.scale

    return {
        "keras": keras,
        "np": np,
        "filterprune": filterprune,
        "model": model,
        "masked": masked,
        "MyChannelScale": MyChannelScale,
        "x": rng.normal(size=(64, 8, 8, 3)).astype("float32"),
        "y": rng.normal(size=(64, 3)).astype("float32"),
    }


def public_objects():
    """Everything with a public name, and where it is."""
    modules = [filterprune, filterprune.layers, filterprune.channels]
    modules += [filterprune.criteria, filterprune.plots, filterprune.schedules]
    for module in modules:
        names = getattr(module, "__all__", None) or [
            name
            for name, value in vars(module).items()
            if inspect.isfunction(value) and not name.startswith("_")
        ]
        for name in names:
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                yield f"{module.__name__}.{name}", value


def check_docstrings() -> str:
    """Every public object has a docstring, and its examples run."""
    count = 0
    for path, value in public_objects():
        text = inspect.getdoc(value)
        if not text:
            raise SystemExit(f"{path} has no docstring")
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            with tempfile.TemporaryDirectory() as folder:
                home = os.getcwd()
                os.chdir(folder)
                try:
                    exec(compile(block, path, "exec"), example_names())
                except Exception as error:
                    raise SystemExit(f"the example of {path} fails: {error!r}")
                finally:
                    os.chdir(home)
            count += 1
    return f"docstrings: {count} examples"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for path in [ROOT / "README.rst", *sorted((ROOT / "docs").glob("*.rst"))]:
            print(check_page(path))
        print(check_docstrings())
        os.chdir(ROOT)
    sys.exit(0)
