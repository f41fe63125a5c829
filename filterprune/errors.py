"""What filterprune raises and warns of, beyond the usual exceptions."""


class PruningWarning(UserWarning):
    """Something was done, but not all that was asked for."""


class VerificationError(RuntimeError):
    """The compact model does not compute what the masked one does."""
