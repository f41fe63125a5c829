"""The formula of a fit against NumPy's own least squares."""

import numpy as np
import pytest

from filterprune.reconstruction.least_squares import RIDGES, Moments, Rows, fit

KINDS = pytest.mark.parametrize("kind", [Moments, Rows])


def samples(rows=400, inputs=6, outputs=3, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(1.0, 2.0, (rows, inputs))
    weights, bias = rng.normal(size=(inputs, outputs)), rng.normal(size=outputs)
    return x, x @ weights + bias + 0.01 * rng.normal(size=(rows, outputs))


def moments(kind, *groups):
    """The moments of pairs of inputs and outputs, taken in by two batches."""
    x, y = (np.stack(arrays) for arrays in zip(*groups))
    found = kind((len(x), x.shape[2], y.shape[2]))
    for part in (slice(0, 100), slice(100, None)):
        found.add(x[:, part], y[:, part])
    return found


@KINDS
def test_without_a_ridge_it_is_least_squares(kind):
    x, y = samples(rows=101, inputs=120 if kind is Rows else 6)
    found = moments(kind, (x, y)).solve(np.zeros((1, x.shape[1], 3)), 1e-9, False)[0]
    np.testing.assert_allclose(found, np.linalg.lstsq(x, y, rcond=None)[0], rtol=1e-4)


@KINDS
def test_a_ridge_draws_to_the_old_weights(kind):
    """Stack rows that say `old` with the weight of the ridge: least squares again."""
    x, y = samples()
    old, ridge = np.ones((6, 3)), 0.3
    shift = ridge * np.square(x).sum(axis=0).mean()
    wide = np.concatenate([x, np.sqrt(shift) * np.eye(6)])
    high = np.concatenate([y, np.sqrt(shift) * old])
    found = moments(kind, (x, y)).solve(old[None], ridge, False)[0]
    np.testing.assert_allclose(found, np.linalg.lstsq(wide, high, rcond=None)[0])


@KINDS
def test_the_bias_takes_the_means(kind):
    x, y = samples()
    seen, unseen = (moments(kind, (x[p], y[p])) for p in (slice(300), slice(300, None)))
    found = fit(seen, unseen, np.zeros((1, 6, 3)), np.zeros((1, 3)), fits_bias=True)
    error = np.square(y[300:] - x[300:] @ found.weights[0] - found.bias).sum()
    spread = np.square(y[300:] - y[300:].mean(axis=0)).sum()
    assert found.after[0] == pytest.approx(error / spread, rel=1e-6)
    assert found.after[0] < 1e-4 < found.before[0]


@KINDS
def test_the_error_is_that_of_the_samples(kind):
    x, y = samples()
    rng = np.random.default_rng(1)
    weights, bias = rng.normal(size=(1, 6, 3)), rng.normal(size=(1, 3))
    found = moments(kind, (x, y))
    wanted = np.square(y - x @ weights[0] - bias).mean(axis=0)
    np.testing.assert_allclose(found.error(weights, bias)[0], wanted)
    np.testing.assert_allclose(found.variance()[0], y.var(axis=0))


def test_products_of_samples_give_the_same_weights():
    x, y = samples()
    old = np.random.default_rng(2).normal(size=(1, 6, 3))
    for ridge in RIDGES:
        for centred in (False, True):
            one, other = (
                moments(kind, (x, y)).solve(old, ridge, centred)
                for kind in (Moments, Rows)
            )
            np.testing.assert_allclose(one, other, rtol=1e-6)


def test_groups_are_fitted_each_by_itself():
    """The second group's targets have nothing to do with its inputs: it stays."""
    rng = np.random.default_rng(0)
    first, noise = samples(), (rng.normal(size=(400, 6)), rng.normal(size=(400, 3)))
    seen, unseen = (
        moments(Moments, *((x[p], y[p]) for x, y in (first, noise)))
        for p in (slice(150), slice(150, None))
    )
    found = fit(seen, unseen, np.zeros((2, 6, 3)), np.zeros((2, 3)), fits_bias=False)
    assert found.after[0] < 0.1 * found.before[0]
    assert found.after[1] == pytest.approx(found.before[1], rel=0.05)


@KINDS
def test_what_does_not_hold_on_other_samples_is_not_taken(kind):
    """As many inputs as samples, and targets that have nothing to do with them."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 40)), rng.normal(size=(60, 2))
    seen, unseen = (moments(kind, (x[p], y[p])) for p in (slice(40), slice(40, None)))
    old = np.zeros((1, 40, 2))
    found = fit(seen, unseen, old, np.zeros((1, 2)), fits_bias=True)
    assert (found.after <= found.before).all()


@KINDS
def test_inputs_that_are_zero_leave_the_weights(kind):
    x, y = np.zeros((120, 4)), np.ones((120, 2))
    old = np.ones((1, 4, 2))
    found = moments(kind, (x, y))
    fitted = fit(found, found, old, np.zeros((1, 2)), fits_bias=False)
    np.testing.assert_array_equal(fitted.weights, old)
