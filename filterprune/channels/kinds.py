"""What sort of channels a group has, so that one can choose what to prune.

| kind | what |
|---|---|
| `heads` | heads of attention |
| `key_dim`, `value_dim`, `head_dim` | dimensions of each head |
| `ffn` | what dense layers make of one tensor at each of its positions |
| `width` | what an embedding gives, or layers of several sorts add to |
| `channels` | what convolutions make |
| `units` | what recurrent layers make, and dense ones of whole samples |
"""

from collections.abc import Iterable, Sequence

import numpy as np

from filterprune.channels.calls import Gate

KINDS = (
    *("heads", "key_dim", "value_dim", "head_dim"),
    *("ffn", "width", "channels", "units"),
)


def kind_of(gates: Sequence[Gate], roots: np.ndarray, marks: Iterable[str]) -> str:
    """What sort of channels the layers of a group make.

    Args:
        gates: the gates of the layers that make them.
        roots: for each label the one that stands for it, `(labels,)`.
        marks: what the rules of operations say that the channels are.
    """
    kinds = {gate.kind for gate in gates if gate.kind}
    if "heads" in marks:
        return "heads"
    if kinds == {"key_dim", "value_dim"}:
        return "head_dim"
    if kinds != {"dense"}:
        return kinds.pop() if len(kinds) == 1 else "width"
    gates = [gate for gate in gates if gate.kind]
    if any(len(gate.call.outputs[0]) < 3 for gate in gates):
        return "units"
    if "key_dim" in marks:
        return "key_dim"
    read = {None if g.reads is None else roots[g.reads].tobytes() for g in gates}
    if len(read) > 1:
        return "width"
    return "value_dim" if "value_dim" in marks else "ffn"


def check_kinds(kinds) -> frozenset[str] | None:
    """The kinds given, or None for all of them.

    Raises:
        TypeError: if they are no strings.
        ValueError: if there are none.
    """
    if kinds is None:
        return None
    given = (
        [kinds]
        if isinstance(kinds, str) or not isinstance(kinds, Iterable)
        else list(kinds)
    )
    if not all(isinstance(kind, str) for kind in given):
        raise TypeError(
            'Expected `kinds` to be strings, as in `kinds={"heads", "ffn"}`. '
            f"Received: kinds={kinds!r}"
        )
    if not given:
        raise ValueError(
            f"Expected `kinds` to be some of {list(KINDS)}, or `None` for all. "
            f"Received: kinds={kinds!r}"
        )
    return frozenset(given)
