"""What was measured on this machine, kept on disk."""

import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
from typing import Any

import keras

from filterprune.errors import warn
from filterprune.files import replacing
from filterprune.latency.running import devices

# What changes how fast operations are, from outside.
SETTINGS = (
    "OMP_NUM_THREADS",
    "TF_ENABLE_ONEDNN_OPTS",
    "TF_NUM_INTRAOP_THREADS",
    "XLA_FLAGS",
)
PACKAGES = {"tensorflow": "tensorflow", "jax": "jaxlib", "torch": "torch"}


def environment() -> dict[str, Any]:
    """All that a measured time depends on, apart from what was timed."""
    backend = keras.backend.backend()
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "processor": _processor(),
        "cores": _cores(),
        "devices": devices(),
        "backend": backend,
        "version": importlib.metadata.version(PACKAGES[backend]),
        "keras": keras.__version__,
        "settings": {name: os.environ.get(name) for name in SETTINGS},
    }


def _processor() -> str:
    path = pathlib.Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def digest(text: str) -> str:
    """A short name for a long text."""
    return hashlib.sha256(text.encode()).hexdigest()[:20]


class Cache:
    """Measured figures by name, in one file for each environment.

    Args:
        folder: where the files are; `None` for `$XDG_CACHE_HOME/filterprune`, or
            `~/.cache/filterprune`.
        refresh: whether to forget what is there.
    """

    def __init__(self, folder=None, refresh: bool = False):
        if folder is None:
            root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
            folder = pathlib.Path(root) / "filterprune"
        self.environment = environment()
        name = digest(json.dumps(self.environment, sort_keys=True))
        self.path = pathlib.Path(folder) / f"latency-{name}.json"
        self.figures: dict[str, Any] = {} if refresh else self._read()

    def _read(self) -> dict[str, Any]:
        try:
            figures = json.loads(self.path.read_text(encoding="utf-8"))["figures"]
            return figures if isinstance(figures, dict) else {}
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return {}  # there is none, or it is not ours

    def write(self) -> None:
        """Write what is known, with what others wrote meanwhile, or warn."""
        figures = {**self._read(), **self.figures}
        content = {"environment": self.environment, "figures": figures}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.path, overwrite=True) as made:
                made.write_text(json.dumps(content, indent=0), encoding="utf-8")
        except OSError as error:
            warn(
                f"What was measured cannot be kept in {self.path}: {error} It will be "
                "measured again; pass a `cache_dir` that can be written to."
            )
