"""Check the documents: they parse, their code and all docstrings run.

Fails if the README or a page of `docs/` is not valid reStructuredText, if one of
their Python blocks or one of the examples in a public docstring raises, or if a
public object has no docstring or is not in `docs/api`. Pages that only Sphinx can
read are left to it; their Python blocks run here like the others.
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
    if not re.search(
        r"\.\. (toctree|testcode|testoutput|literalinclude|auto\w+)::|:download:`", text
    ):
        docutils.core.publish_doctree(
            text, source_path=str(path), settings_overrides={"halt_level": 2}
        )
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
    modules += [filterprune.criteria, filterprune.plots]
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


def check_reference() -> str:
    """Every public object has an entry in the API reference."""
    pages = "".join(page.read_text() for page in (ROOT / "docs/api").glob("*.rst"))
    entries = {
        name.split(".")[-1]
        for name in re.findall(r"^\.\. auto\w+:: ([\w.]+)", pages, re.MULTILINE)
    }
    entries |= set(filterprune.plots.__all__)  # by `automodule`
    missing = [p for p, _ in public_objects() if p.split(".")[-1] not in entries]
    if missing:
        raise SystemExit(f"not in docs/api: {', '.join(missing)}")
    return f"API reference: {len(entries)} entries"


def methods(path, value):
    """The public methods that a class has of its own."""
    if inspect.isclass(value):
        for name, method in vars(value).items():
            if inspect.isfunction(method) and not name.startswith("_"):
                yield f"{path}.{name}", method


def check_docstrings() -> str:
    """Every public object has a docstring, and its examples run."""
    count = 0
    objects = dict(public_objects())
    for path, value in list(objects.items()):
        if not inspect.getdoc(value):
            raise SystemExit(f"{path} has no docstring")
        objects.update(methods(path, value))
    for path, value in objects.items():
        text = inspect.getdoc(value) or ""
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
        print(check_reference())
        print(check_docstrings())
        os.chdir(ROOT)
    sys.exit(0)
