"""Types, targets, folds and spectral types; the metrics of classification."""
import json

import numpy as np
import pandas as pd
import pytest
import torch

from stellar_nb.core import data_dir
from stellar_nb.data import catalog as cat
from stellar_nb.eval import classes as ec

V = cat.Vocabulary.simbad()


def test_hierarchy():
    assert len(V) == 55 and set(cat.PARENTS) == set(cat.SIMBAD_TYPES) and all(cat.SIMBAD_TYPES.values())
    assert all(set(p) <= set(V.names) for p in cat.PARENTS.values())
    up = V.up
    assert not up.diagonal().any() and not (up & up.T).any()
    assert not ((up.float()@up.float() > 0) & ~up).any(), 'closed under itself'


def test_vocabulary_is_json():
    for v in (V, cat.Vocabulary.of('OBAFGKM', single=True)):
        assert cat.Vocabulary(**json.loads(json.dumps(v.__dict__))) == v
    with pytest.raises(AttributeError): V.names = ()


def test_encode_is_idempotent():
    "Expanding an expanded set changes nothing, and separators and containers do not matter"
    rng = np.random.default_rng(0)
    sets = [list(rng.choice(V.names, rng.integers(1, 6), replace=False)) for _ in range(200)]
    y = V.encode(sets)
    assert torch.equal(V.encode(V.decode(y)), y)
    for sep in ('|', ',', ' ; '): assert torch.equal(V.encode([sep.join(o) for o in sets]), y)
    for o, row in zip(sets, y):
        want, more = set(o), True
        while more:
            more = {p for k in want for p in cat.PARENTS[k]} - want
            want |= more
        assert {V.names[i] for i in row.nonzero()[:, 0]} == want


def test_unknown_is_counted():
    assert V.unknown(['RR?|*', 'RR?;XX', np.nan, None]) == {'RR?': 2, 'XX': 1}
    assert V.encode(['RR?|*', None]).sum() == 0


def test_weights_and_rare():
    y = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0]]).float()
    assert torch.allclose(cat.class_weights(y), torch.tensor([4/12, 4/3, 4/3]))
    few, kept = cat.drop_rare(y)
    assert few.shape == (4, 1) and kept.tolist() == [True, False, False]
    assert cat.drop_rare(y, 2, np.zeros(4))[1].sum() == 0


@pytest.mark.parametrize('seed', range(3))
def test_folds(seed):
    "Each class within two stars or 15 % of a fifth (parents follow their children), better than chance, no star on both sides, the rarest spread"
    rng = np.random.default_rng(seed)
    y = V.encode([list(rng.choice(V.names, rng.integers(1, 4), replace=False, p=(w := np.geomspace(1, .002, 55))/w.sum())) for _ in range(1500)]).numpy()
    star = rng.permutation(np.repeat(np.arange(1500), rng.integers(1, 4, 1500)))
    folds = cat.stratified_folds(y[star], star, 5, seed)
    counts = np.stack([y[np.unique(star[b])].sum(0) for _, b in folds])
    assert (abs(counts-y.sum(0)/5) < np.maximum(2, .15*y.sum(0)/5)).all()
    order = rng.permutation(1500)
    chance = np.stack([y[order[i::5]].sum(0) for i in range(5)])
    assert abs(counts-y.sum(0)/5).mean() < .4*abs(chance-y.sum(0)/5).mean()
    rare = (y.sum(0) > 0) & (y.sum(0) <= 5)
    assert (counts[:, rare] <= 1).all()
    assert not any(len(cat.leaks(star[a], star[b])) for a, b in folds)
    assert np.array_equal(np.sort(np.concatenate([b for _, b in folds])), np.arange(len(star)))


@pytest.mark.skipif(data_dir('miles', 'miles_labels.csv') is None, reason='MILES is not at hand (data/miles)')
def test_sptypes_of_miles():
    "Letters follow the temperature, luminosity classes the gravity"
    d = pd.read_csv(data_dir('miles', 'miles_labels.csv'))
    d = d.join(pd.DataFrame(map(cat.parse_sptype, d.sptype), columns=['letter', 'sub', 'lum']))
    teff = d.groupby('letter').teff.median()[list('BAFGKM')]
    assert (np.diff(teff) < 0).all()
    logg = d[d.letter.isin(list('GK'))].groupby('lum').logg.median()
    assert logg['V'] > logg['IV'] > logg['III'] > logg['Ib']
    assert d.letter.notna().sum() > 900


@pytest.mark.skipif(data_dir('lamost_dr10', 'labels.csv') is None, reason='LAMOST is not at hand (data/lamost_dr10)')
def test_sptypes_of_lamost():
    d = pd.read_csv(data_dir('lamost_dr10', 'labels.csv'))
    parts = [cat.parse_sptype(o) for o in d.subclass_catalog]
    assert all(a == o[0] and b == float(o[1]) and c is None for o, (a, b, c) in zip(d.subclass_catalog, parts))


def world(seed=0, n=400, c=8):
    rng = np.random.default_rng(seed)
    y = rng.random((n, c)) < np.geomspace(.5, .01, c)
    y[:, -1] = False
    return (.3*y+.7*rng.random((n, c))).round(2), y.astype(float)


@pytest.mark.parametrize('seed', range(3))
def test_metrics_as_loops(seed):
    "Every number of the table and of the summary, written out star by star; ties in the probabilities count half"
    p, y = world(seed)
    t, s = ec.class_table(p, y, list('abcdefgh')), ec.scores(torch.tensor(p), torch.tensor(y))
    for c in range(7):
        tp = sum(a >= .5 and b for a, b in zip(p[:, c], y[:, c]))
        assert t.recall.iloc[c] == pytest.approx(tp/y[:, c].sum())
        assert t.f1.iloc[c] == pytest.approx(2*tp/((p[:, c] >= .5).sum()+y[:, c].sum()))
        pairs = [(a > b)+.5*(a == b) for a in p[y[:, c] == 1, c] for b in p[y[:, c] == 0, c]]
        assert t.auroc.iloc[c] == pytest.approx(np.mean(pairs))
        levels, ap, last = sorted(set(p[:, c]), reverse=True), 0, 0
        for v in levels:
            said = p[:, c] >= v
            recall = y[said, c].sum()/y[:, c].sum()
            ap, last = ap+(recall-last)*y[said, c].mean(), recall
        assert t.ap.iloc[c] == pytest.approx(ap)
    assert t.iloc[7][['recall', 'f1', 'auroc', 'ap']].isna().all()
    assert s['macro_f1'] == pytest.approx(t.f1[:7].mean()) and s['auroc'] == pytest.approx(t.auroc[:7].mean())
    assert (s['classes'], s['auroc_classes'], s['stars']) == (7, 7, 400)
    assert s['accuracy'] == pytest.approx(np.mean([(a >= .5) == b for a, b in zip(p.ravel(), y.ravel())]))
    assert s['all_right'] == pytest.approx(np.mean([all((a >= .5) == b) for a, b in zip(p, y)]))


def test_baselines():
    p, y = world()
    zero, prior = ec.scores(ec.baseline_allzero(y), y), ec.scores(ec.baseline_prior(y, len(y)), y)
    assert zero['accuracy'] == zero['accuracy_allzero'] == pytest.approx(1-y.mean())
    for o in (zero, prior): assert o['auroc'] == .5 and o['ap'] == pytest.approx(o['ap_chance'])
    assert zero['micro_f1'] == zero['macro_f1'] == 0


def test_calibration_as_loops():
    p, y = world()
    want = 0
    for i in range(10):
        k = (p*10 >= i) & ((p*10 < i+1) if i < 9 else True)
        if k.any(): want += abs(p[k].mean()-y[k].mean())*k.sum()/p.size
    assert ec.ece(p, y) == pytest.approx(want)
    assert ec.ece(y, y) == 0 == ec.ece(y, y, by_class=True)


def test_confusion_and_single():
    p, y = world()
    m = ec.confusion(p, y)
    assert np.isnan(m[7]).all() and np.allclose(m[:7], [[(p[y[:, i] == 1, j] >= .5).mean() for j in range(8)] for i in range(7)])
    one = np.eye(4)[np.arange(40) % 4]
    assert np.array_equal(ec.confusion(one, one, single=True), np.eye(4))
    assert ec.scores_single(one, one)['accuracy'] == 1 and ec.scores_single(one, one)['accuracy_majority'] == .25
    with pytest.raises(ValueError, match='without exactly one class'): ec.scores_single(p, y)


@pytest.mark.parametrize('p', [np.array([[2.]]), np.array([[np.nan]]), np.array([.5])])
def test_refuses(p):
    with pytest.raises(ValueError, match='probabilities'): ec.scores(p, np.ones((1, 1)))


def test_unknown_truth_is_refused():
    "NaN is neither yes nor no"
    p, y = world()
    y[3, 2] = np.nan
    for f in (ec.scores, ec.confusion, ec.ece, ec.scores_single, ec.reliability):
        with pytest.raises(ValueError, match=r'not known \(NaN\) in 1 of 400 stars'): f(p, y)
    with pytest.raises(ValueError, match='not known'): ec.class_table(torch.tensor(p), torch.tensor(y), list('abcdefgh'))
    assert ec.scores(p > .5, y > .5)['stars'] == 400, 'bool will do'


def test_one_half_is_yes():
    "The vocabulary, the metrics and the loss agree about a probability of exactly 0.5"
    from stellar_nb.objectives.classes import ClassLoss
    p = torch.tensor([[.5, .499]])
    assert cat.Vocabulary.of('ab').decode(p) == [['a']] and ClassLoss().decodes(p).tolist() == [[True, False]] and ec.scores(p, torch.tensor([[1., 0.]]))['all_right'] == 1


def test_pictures():
    p, y = world()
    t = ec.class_table(p, y, list('abcdefgh'))
    assert len(ec.plot_ap(t).patches) == 7
    ax = ec.plot_confusion(ec.confusion(p, y), list('abcdefgh'))
    assert len(ax.texts) == 64 and ec.plot_reliability(p, y, ax) is ax
