"""Masked recurrent layers."""

from keras import layers

from filterprune.layers.base import Masked, masks
from filterprune.rebuilding import states_of


@masks(layers.RNN)
class MaskedRNN(Masked):
    """An `RNN` layer with one gate for each unit of its cells.

    A closed unit is zero in the output and in the states that are returned, and
    no cell reads it in the next time step. Gates of stacked cells stand in one
    row, those of the first cell first, and those of a bidirectional layer that
    reads forward before those that read backward. See
    `filterprune.layers.Masked`.
    """

    def call(  # type: ignore[override]
        self, sequences, initial_state=None, mask=None, training=None
    ):
        outputs = self._gated_call(
            sequences, initial_state=initial_state, mask=mask, training=training
        )
        states = self._states()
        for place in self._plan.states if states else ():
            state = states[place.output]
            state.assign(self._close(state, place))
        return outputs

    def compute_output_spec(  # type: ignore[override]
        self, sequences, initial_state=None, mask=None, training=None
    ):
        if initial_state is None:
            return self.layer.compute_output_spec(sequences)
        return self.layer.compute_output_spec(sequences, initial_state=initial_state)

    @property
    def states(self):
        """The states that a stateful layer goes on from, nested as it has them."""
        return self.layer.states

    def reset_state(self):
        """Let a stateful layer begin with zeros again."""
        self.layer.reset_state()

    def _states(self):
        return states_of(self.layer)


@masks(layers.LSTM)
class MaskedLSTM(MaskedRNN):
    """An `LSTM` with one gate for each unit. See `MaskedRNN`."""


@masks(layers.GRU)
class MaskedGRU(MaskedRNN):
    """A `GRU` with one gate for each unit. See `MaskedRNN`."""


@masks(layers.SimpleRNN)
class MaskedSimpleRNN(MaskedRNN):
    """A `SimpleRNN` with one gate for each unit. See `MaskedRNN`."""


@masks(layers.Bidirectional)
class MaskedBidirectional(MaskedRNN):
    """A `Bidirectional` layer with one gate for each unit. See `MaskedRNN`.

    Where the outputs of both directions are added, multiplied or averaged one
    gate stands for a unit of each.
    """


@masks(layers.ConvLSTM1D)
class MaskedConvLSTM1D(MaskedRNN):
    """A `ConvLSTM1D` with one gate for each filter. See `MaskedRNN`."""


@masks(layers.ConvLSTM2D)
class MaskedConvLSTM2D(MaskedRNN):
    """A `ConvLSTM2D` with one gate for each filter. See `MaskedRNN`."""


@masks(layers.ConvLSTM3D)
class MaskedConvLSTM3D(MaskedRNN):
    """A `ConvLSTM3D` with one gate for each filter. See `MaskedRNN`."""
