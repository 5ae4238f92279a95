"""Baselines: they learn, choose on training stars only, and survive missing labels and few stars."""
import numpy as np
import pytest

from stellar_nb.data.splits import kfold_by_star
from stellar_nb.eval.baselines import GRID, BoostingPCA, RidgePCA, compare, cross_predict


@pytest.fixture(scope='module')
def data():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(300, 3))
    x = hidden@rng.normal(size=(3, 40)) + .05*rng.normal(size=(300, 40))
    y = np.stack([hidden[:, 0], np.abs(hidden[:, 1])], 1)
    y[::7, 1] = np.nan
    return x, y


def test_linear_and_not(data):
    x, y = data
    folds = kfold_by_star(np.arange(300), 3)
    pred = {'Ridge': cross_predict(lambda: RidgePCA(3), x, y, folds), 'boosting': cross_predict(lambda: BoostingPCA(3, grid=GRID[:1], trees=60), x, y, folds)}
    t = compare(y, pred, folds, ('linear', 'bent'))
    assert t.loc['Ridge', 'linear MAE'] < .02 and t.loc['boosting', 'bent MAE'] < .7*t.loc['Ridge', 'bent MAE']
    assert np.isfinite(t.to_numpy()).all()


def test_chosen_settings_can_be_handed_on(data):
    x, y = data
    first = BoostingPCA(3, grid=GRID[:2], trees=20).fit(x, y)
    assert len(first.settings) == 2 and all(s in GRID for s in first.settings)
    again = BoostingPCA(3, trees=20, settings=first.settings).fit(x, y)
    assert np.allclose(first.predict(x), again.predict(x))


def test_few_stars(data):
    x, y = data
    assert RidgePCA(50).fit(x[:20], y[:20]).predict(x[20:25]).shape == (5, 2)
    assert BoostingPCA(50, grid=GRID[:1], trees=5).fit(x[:40], y[:40]).predict(x[:5]).shape == (5, 2)


def test_each_star_is_predicted_by_a_model_that_has_not_seen_it(data):
    x, y = data
    seen = []
    class Spy:
        def fit(self, x, y): self.x = x; return self
        def predict(self, x):
            seen.extend((self.x[:, None] == x[None]).all(-1).any(0).tolist())
            return np.zeros((len(x), 2))
    out = cross_predict(Spy, x, y, kfold_by_star(np.arange(300)))
    assert len(seen) == 300 and not any(seen) and (out == 0).all()
