"""Schedules against their formulas, written down again in numpy."""

import keras
import numpy as np
import pytest

from filterprune import ConstantSparsity, PolynomialDecay, Schedule


def by_hand(steps, initial, final, begin, end, power):
    progress = np.clip((steps - begin) / (end - begin), 0, 1)
    return final + (initial - final) * (1 - progress) ** power


@pytest.mark.parametrize("power", [1, 2, 3, 0.5])
@pytest.mark.parametrize(
    ("initial", "final", "begin", "end"),
    [(0.0, 0.5, 0, 10), (0.2, 0.9, 7, 20), (0.6, 0.1, 3, 5), (0.0, 0.3, 0, 1)],
)
def test_polynomial_decay_follows_its_formula(initial, final, begin, end, power):
    schedule = PolynomialDecay(initial, final, begin, end, power)
    steps = np.arange(end + 5)
    found = [schedule(int(step)) for step in steps]
    expected = by_hand(steps, initial, final, begin, end, power)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)
    assert found[: begin + 1] == pytest.approx([initial] * (begin + 1))
    assert found[end:] == [final] * 5  # exactly, not nearly


@pytest.mark.parametrize("final", [0.1, 1 / 3, 0.7, 0.999])
def test_polynomial_decay_rises_and_ends_exactly(final):
    schedule = PolynomialDecay(final_sparsity=final, begin_step=3, end_step=1003)
    found = [schedule(step) for step in range(1100)]
    assert found == sorted(found)
    assert max(found) == schedule(1003) == schedule(10**9) == final


def test_polynomial_decay_is_fast_at_first():
    schedule = PolynomialDecay(final_sparsity=0.5, end_step=100)
    assert schedule(50) == 0.4375
    assert schedule.power == 3


def test_without_an_end_it_must_be_given_one():
    schedule = PolynomialDecay(final_sparsity=0.5, begin_step=2)
    with pytest.raises(ValueError, match=r"end_step"):
        schedule(5)
    ended = schedule.with_end(12)
    assert ended == PolynomialDecay(final_sparsity=0.5, begin_step=2, end_step=12)
    assert schedule.end_step is None


@pytest.mark.parametrize("begin", [0, 10])
def test_constant_sparsity_steps_up_once(begin):
    schedule = ConstantSparsity(0.3, begin_step=begin)
    assert [schedule(step) for step in range(begin)] == [0.0] * begin
    assert [schedule(begin + step) for step in (0, 1, 10**6)] == [0.3] * 3
    assert schedule.end_step == begin


SCHEDULES = [
    PolynomialDecay(0.1, 0.6, begin_step=5, end_step=50, power=2),
    PolynomialDecay(final_sparsity=0.25),
    ConstantSparsity(0.3, begin_step=10),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_serialized_and_deserialized(schedule):
    config = keras.saving.serialize_keras_object(schedule)
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is type(schedule)
    assert again == schedule
    assert isinstance(again, Schedule)
    assert type(schedule).from_config(schedule.get_config()) == schedule


def test_steps_may_be_numpy_integers():
    """As in `end_step = np.ceil(count / batch_size).astype(int) * epochs`."""
    end = np.ceil(1000 / 32).astype("int64") * 2
    schedule = PolynomialDecay(final_sparsity=0.5, end_step=end)
    assert schedule(64) == 0.5
    assert ConstantSparsity(0.5, begin_step=end)(64) == 0.5


@pytest.mark.parametrize("cls", [PolynomialDecay, ConstantSparsity])
@pytest.mark.parametrize("value", [1.0, 1.5, -0.1, float("nan")])
def test_sparsity_outside_its_range_is_refused(cls, value):
    with pytest.raises(ValueError, match=r"final_sparsity.*\[0, 1\).*Received") as info:
        cls(final_sparsity=value)
    assert repr(value) in str(info.value)


@pytest.mark.parametrize("cls", [PolynomialDecay, ConstantSparsity])
@pytest.mark.parametrize("value", ["0.5", None, [0.5], True])
def test_sparsity_that_is_no_number_is_refused(cls, value):
    with pytest.raises(TypeError, match=r"final_sparsity.*number.*Received"):
        cls(final_sparsity=value)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"initial_sparsity": 1.0}, r"initial_sparsity.*\[0, 1\).*1.0"),
        ({"begin_step": 10, "end_step": 10}, "begin_step=10, end_step=10"),
        ({"begin_step": 11, "end_step": 10}, "below `end_step`.*begin_step=11"),
        ({"begin_step": 0, "end_step": 0}, "below `end_step`"),
        ({"begin_step": -1, "end_step": 10}, "begin_step.*at least 0.*-1"),
        ({"begin_step": 1.5, "end_step": 10}, "begin_step.*integer.*1.5"),
        ({"end_step": 9.5}, "end_step.*integer.*9.5"),
        ({"end_step": "10"}, "end_step.*integer.*'10'"),
        ({"end_step": True}, "end_step.*integer.*True"),
        ({"power": 0}, "power.*above 0.*0"),
        ({"power": -1.5}, "power.*above 0.*-1.5"),
        ({"power": "3"}, "power.*above 0.*'3'"),
        ({"power": None}, "power.*above 0.*None"),
        ({"power": float("nan")}, "power.*above 0.*nan"),
    ],
)
def test_polynomial_decay_refuses_bad_arguments(kwargs, message):
    with pytest.raises((TypeError, ValueError), match=message):
        PolynomialDecay(**kwargs)


@pytest.mark.parametrize("begin", [-1, 0.5, "0", None])
def test_constant_sparsity_refuses_bad_steps(begin):
    with pytest.raises((TypeError, ValueError), match=r"begin_step.*integer"):
        ConstantSparsity(0.5, begin_step=begin)
