"""Subclasses that follow the rule of their parent: can they be made smaller?

A subclass with a constructor of its own may not be made again from its config,
or not with another number of channels. That is tried before it is relied on.
"""

from typing import Any

from filterprune.channels.registry import known_type


def why_not_remade(layer, sizes) -> str | None:
    """Why a layer's class cannot be made again with fewer channels, or None.

    Args:
        layer: a layer whose class follows the rule of its parent.
        sizes: the entries of its config that count channels.
    """
    parent: Any = known_type(type(layer))
    name = f"{type(layer).__name__} (a {parent.__name__})"
    changed = _overridden(layer)
    if changed:
        return f"`{changed}` of this {name} was replaced"
    try:
        config = layer.get_config()
        entries = {key: config[key] for key in sizes}
        if not all(type(value) is int for value in entries.values()):
            return f"no rule is known for {name}"
        for changes in _trials(layer, config, entries):
            expected = {**_unshared(parent.get_config(layer)), **changes}
            new = type(layer).from_config({**config, **changes})
            if _unshared(parent.get_config(new)) != expected:
                raise ValueError("another config")
    except Exception:
        return f"{name} cannot be made from its config with other sizes"
    return None


def _unshared(config):
    """A config without the numbers of shared objects, which Keras adds in a file."""
    if isinstance(config, dict):
        return {k: _unshared(v) for k, v in config.items() if k != "shared_object_id"}
    return config


def _overridden(layer) -> str | None:
    """A method that this one layer has of its own, or None."""
    for key in vars(layer):
        ours = key not in ("build", "quantize")  # Keras wraps these two
        if ours and callable(getattr(type(layer), key, None)):
            return key
    return None


def _trials(layer, config, entries):
    """Changes to a config that compact might come to make."""
    yield {}
    if config.get("use_bias") is False:
        yield {"use_bias": True}
    if len(entries) == 1:
        ((key, size),) = entries.items()
        step = getattr(layer, "groups", 1)
        numbers = {step, size - step, (size // step + 1) // 2 * step}
        yield from ({key: number} for number in sorted(numbers) if number > 0)
    elif entries:  # filters and groups of a depthwise convolution
        least = min(entries.values())
        yield {key: size // least for key, size in entries.items()}
