"""What a reconstruction did, to look at."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class LayerFit:
    """How well one layer could be fitted.

    Attributes:
        path: the path of the layer.
        before: the error of its outputs relative to their spread in the original
            model, a fraction, on samples that were not fitted to, with the weights
            that it had.
        after: the same with the weights that it has now.
    """

    path: str
    before: float
    after: float


@dataclasses.dataclass(frozen=True)
class ReconstructionReport:
    """What `filterprune.reconstruct` did.

    Attributes:
        layers: a `LayerFit` for each layer that was fitted, in graph order.
        before: the error of the model's outputs relative to their spread, a fraction,
            on samples that were not fitted to, as the model was given.
        after: the same now; never above `before`.
        agreement: the share of those samples for which the largest output is the
            same as in the original model, in [0, 1]; `None` if no output has several
            numbers.
        refined: whether training towards the original's outputs brought the model
            nearer, and was kept; `layers` are as before that.
    """

    layers: tuple[LayerFit, ...]
    before: float
    after: float
    agreement: float | None = None
    refined: bool = False

    def __str__(self) -> str:
        width = max(len(row.path) for row in (*self.layers, LayerFit("outputs", 0, 0)))
        rows = [f"{'error of':{width}}  {'before':>8}  {'after':>8}"]
        total = LayerFit("outputs", self.before, self.after)
        rows += [
            f"{row.path:{width}}  {row.before:8.4f}  {row.after:8.4f}"
            for row in (*self.layers, total)
        ]
        return "\n".join([*rows, "", self.summary()])

    def summary(self) -> str:
        """The model's error before and after, and its agreement, in a sentence."""
        text = (
            "On inputs that nothing was fitted to, outputs are off by "
            f"{self.after:.1%} of their spread (before the fit: {self.before:.1%})"
        )
        if self.agreement is None:
            return f"{text}."
        return f"{text}; for {self.agreement:.1%} the largest is the original's."
