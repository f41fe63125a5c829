"""The words of messages: those of others in one line, and what was meant."""

import difflib
import re
from collections.abc import Iterable

# What colours a terminal, and other characters that are not to be seen.
_CODES = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~]?)"
)
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\s]+")
# What other tools call formats and options, without case and punctuation. Behind the
# name of an option may be an example of its value.
_OTHERS = {
    "litert": "tflite tensorflowlite lite tf_lite",
    "saved_model": "tf tensorflow pb tf_saved_model savedmodel serving",
    "openvino": "ir vino xml openvino_ir",
    "onnx": "onnxruntime ort",
    "macs": "flops mac mult_adds gflops gmacs ops",
    "params": "parameters weights param",
    "--remove": "amount pruning_ratio pruning_rate prune_ratio ratio rate sparsity "
    "final_sparsity target_sparsity ch_sparsity pruning_amount percent percentage "
    "fraction prune",
    "--target macs --budget 5e8": "flops macs max_flops max_macs target_flops",
    "--target params --budget 1e6": "params parameters max_params target_params",
    "--target latency --budget 0.01": "latency max_latency seconds",
    "--criterion": "importance metric method norm score pruner algorithm strategy",
    "--scope": "global global_pruning local layerwise isomorphic",
    "--exclude": "ignore ignored_layers ignore_layers skip skip_layers",
    "--round-to": "divisor multiple align channel_round_to",
    "--min-filters": "min_channels min_width",
    "--max-sparsity": "max_pruning_ratio max_amount max_ratio max_ch_sparsity",
    "--output": "out save save_path out_file destination export_path",
    "--to": "format target_format fmt",
    "--overwrite": "force yes replace",
    "--data": "dataset calibration calibration_data images",
    "--batch-size": "bs batch",
    "--import": "custom_objects module",
    "--tolerance": "atol rtol tol",
    "--repeats": "runs iterations trials num_runs",
}


def one_line(message, size: int = 600) -> str:
    """The message of an exception, as a part of one of ours.

    Those of Keras and of the backends have several lines, and codes for colours.

    Args:
        message: the exception, or a text.
        size: how many characters of it there may be.
    """
    text = _CONTROLS.sub(" ", _CODES.sub("", str(message))).strip()
    return text if len(text) <= size else f"{text[:size]}..."


def did_you_mean(given, known: Iterable[str]) -> str:
    """A sentence for the end of a message, ` Did you mean 'litert'?`, or nothing.

    Args:
        given: what was received.
        known: what may be given.
    """
    if not isinstance(given, str):
        return ""
    names = {_plain(name): name for name in known}
    for name, others in _OTHERS.items():
        is_known = _plain(name.split(" ")[0]) in names
        if is_known and _plain(given) in map(_plain, others.split()):
            return f" Did you mean '{name}'?"
    near = difflib.get_close_matches(_plain(given), names, n=1)
    return f" Did you mean '{names[near[0]]}'?" if near else ""


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
