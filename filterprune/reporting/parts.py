"""The parts of a report: groups, layers, and the nodes of the graph."""

import dataclasses

from filterprune.cost import Cost


@dataclasses.dataclass(frozen=True)
class GroupReport:
    """One group: layers whose channels are kept or removed together.

    Attributes:
        name: the first layer's path, and how many more there are.
        layers: the paths of all layers that make the channels.
        size: how many channels each of them has in this group.
        alive: how many of those survive.
        filters: how many filters the group has over all its layers.
        reason: why nothing in it can be pruned; `None` if it can.
        stays: why closed channels stay nonetheless, each reason once.
        kind: what sort of channels they are, such as `"heads"`; see
            `filterprune.prune`.
    """

    name: str
    layers: tuple[str, ...]
    size: int
    alive: int
    filters: int
    reason: str | None
    stays: tuple[str, ...] = ()
    kind: str = "channels"

    @property
    def prunable(self) -> bool:
        """Whether channels of the group can be removed."""
        return self.reason is None


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """One layer with weights.

    Attributes:
        name: the layer's path.
        before, after: what it costs as it is, and compacted.
        kind: the name of its class; of a masked layer that of the layer in it.
        width, width_after: how many channels come out of it as it is, and
            compacted; `None` where channels cannot be told apart.
        makes: whether it makes channels, as a convolution does, or passes them
            on, as a normalisation does.
        counted: whether its MACs are counted. They are not, and 0 in `before` and
            `after`, where the layer cannot be looked into.
    """

    name: str
    before: Cost
    after: Cost
    kind: str = ""
    width: int | None = None
    width_after: int | None = None
    makes: bool = False
    counted: bool = True


@dataclasses.dataclass(frozen=True)
class NodeReport:
    """One node of the graph: an input, or a call of a layer or an operation.

    Attributes:
        name: the path of what is called.
        kind: the name of its class.
        inputs: the numbers of the nodes that it reads.
        shape, shape_after: the shape of its (first) output as it is, and
            compacted.
        width, width_after: its channels, as in `LayerReport`.
        makes: whether it makes channels.
        reason: why none of the channels that it makes can be removed, or why it
            is a barrier; `None` if neither is so.
        barrier: whether it could not be understood.
    """

    name: str
    kind: str
    inputs: tuple[int, ...]
    shape: tuple[int | None, ...]
    shape_after: tuple[int | None, ...]
    width: int | None = None
    width_after: int | None = None
    makes: bool = False
    reason: str | None = None
    barrier: bool = False

    @property
    def removed(self) -> float:
        """The fraction of its channels that is removed."""
        return removed(self.width, self.width_after)


def removed(before: float | None, after: float | None) -> float:
    """The fraction of something that is gone; 0 where there is nothing."""
    return 1 - (after or 0) / before if before else 0.0
