import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from filterprune.channels.labels import LabelTable, components, fit, squeeze_uniform


def closure(count, ties):
    """The smallest tied label of each, by repeated search."""
    smallest = list(range(count))
    for _ in range(count):
        for a, b in ties:
            smallest[a] = smallest[b] = min(smallest[a], smallest[b])
    return smallest


@given(
    st.integers(1, 12).flatmap(
        lambda n: st.tuples(
            st.just(n),
            st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1))),
        )
    )
)
def test_components_agree_with_a_plain_search(drawn):
    count, ties = drawn
    left = np.array([a for a, _ in ties], int)
    right = np.array([b for _, b in ties], int)
    assert components(count, left, right).tolist() == closure(count, ties)


def test_reasons_follow_ties_and_the_first_counts():
    table = LabelTable()
    a, b = table.new(3), table.new(3)
    table.tie(a, b)
    table.pin(b[1:2], "later")
    table.pin(a[1:2], "too late")
    table.pin(b[1:2], "first", first=True)
    assert table.reasons() == {1: "first"}


def test_tie_along_an_axis_ties_all_else():
    table = LabelTable()
    labels = table.new(2, 3)
    along = table.tie_along(labels, 1)
    assert along.tolist() == [0, 1, 2]
    assert table.roots().tolist() == [0, 1, 2, 0, 1, 2]


def test_fit_makes_differing_values_unknown():
    values = np.array([[1.0, 2.0], [1.0, 3.0]])
    np.testing.assert_array_equal(fit(values, (1, 2)), [[1.0, np.nan]])


@pytest.mark.parametrize("shape", [(1, 4, 3), (2, 1, 3), (2, 4, 3)])
def test_squeeze_uniform_keeps_what_varies(shape):
    labels = np.broadcast_to(np.arange(3), shape)
    assert squeeze_uniform(labels).shape == (1, 1, 3)
