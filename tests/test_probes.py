"""Frozen features, maps, leakage and heads: splits by star, numbers as scikit-learn has them, and what must not help."""
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import metrics as sk
from torch import Tensor, nn

from stellar_nb.core import generator, seed_everything
from stellar_nb.data.leakage import CONDITIONING, DEFINITIONS, check_leakage, definitions_in, headline_labels, leakage_table
from stellar_nb.eval.baselines import linear_probe
from stellar_nb.eval.embed import pair_distance, pair_table, pca_features, sensitivity, standardise
from stellar_nb.eval.probes import (age_scores, binary_scores, choose_threshold, cluster_tests, few_shot, few_shot_once, least_squares, match_clusters,
                                    separate, svm_by_star, tnr_fnr, within, zero_shot)
from stellar_nb.objectives.classes import bce
from stellar_nb.train.finetune import finetune
from stellar_nb.train.heads import HeadConfig, SlowAligner, TransformerHead, Tuned, Unaligned, predict_tuned


@pytest.fixture
def rng(): return np.random.default_rng(3)


# few shots

@pytest.mark.parametrize('share', [.1, .2, .5])
def test_few_shot_never_mixes_stars(rng, share):
    star, seen = rng.integers(0, 80, 400), []
    def probe(h, y, test):
        seen.append((set(h[:, 0]), set(test[:, 0])))
        return np.zeros((len(test), y.shape[1]))
    for seed in range(5):
        rows, p = few_shot_once(star[:, None], star[:, None], star, share, seed, probe)
        assert len(rows) == len(p) and set(star[rows]) == seen[-1][1]
    n = len(np.unique(star))
    assert all(not a & b and len(a) == round(share*n) and len(a | b) == n for a, b in seen)


def test_few_shot_of_noise_and_of_the_label(rng):
    y = dict(a=rng.normal(5, 1, 2000), b=rng.normal(5, 1, 2000))
    noise = few_shot(rng.normal(size=(2000, 5)), y, np.arange(2000))
    assert (abs(noise.r2) < .05).all() and (noise.r2_sd > 0).all()
    sure = few_shot(np.stack([y['a'] + 2*y['b'], y['b']], 1), y, np.arange(2000))
    assert np.allclose(sure[['r2', 'within']], 1)


def test_few_shot_does_not_memorise_stars(rng):
    "Features that name the star but say nothing of others are worth nothing by star"
    star = np.repeat(np.arange(60), 20)
    y, names = rng.normal(size=60)[star], np.eye(60)[star]
    assert few_shot(names, dict(y=y), star, .5).r2.iloc[0] < .1


def test_least_squares_survives_bad_features(rng):
    h = rng.normal(size=(100, 10)).astype('f4')
    y = h[:, :2] @ rng.normal(size=(2, 2))
    bad = np.hstack([h, h, 1e8 + 0*h[:, :1], 1e-9*h[:, :1], 0*h[:, :1]])
    assert np.allclose(least_squares(bad[:60], y[:60], bad[60:]), y[60:], atol=1e-4)
    wide = rng.normal(size=(100, 300))
    assert np.allclose(least_squares(wide[:60], y[:60], wide[:60]), y[:60]) and np.isfinite(least_squares(wide[:60], y[:60], wide[60:])).all()
    assert np.allclose(least_squares(np.zeros((60, 4)), y[:60], np.zeros((40, 4))), y[:60].mean(0))


def test_invertible_map_changes_no_line_but_a_penalty(rng):
    h, v = rng.normal(size=(300, 20)), rng.normal(size=(20, 20))
    y = h[:, :1] + .3*rng.normal(size=(300, 1))
    f = lambda probe, h: probe(h[:100], y[:100], h[100:])
    assert np.allclose(f(least_squares, h), f(least_squares, h@v), atol=1e-6)
    assert not np.allclose(f(linear_probe, h), f(linear_probe, h@v), atol=1e-3)


def test_within():
    assert within([1., -1., 0, 2], [1.09, -.95, 0, 3]) == .75
    assert np.isnan(within([np.nan], [1.]))


# no shots

def test_names_of_classes_do_not_matter(rng):
    kind = rng.choice(5, 400)
    xy = rng.normal(size=(5, 2))[kind]*4 + rng.normal(size=(400, 2))
    first = zero_shot(xy, kind)
    assert first['accuracy'] > 1.5*first['random'] and first['random'] >= .2
    for _ in range(4):
        again = zero_shot(xy, rng.permutation(5)[kind])
        assert again['accuracy'] == first['accuracy'] and again['ari'] == first['ari'] and again['majority'] == first['majority']
    text = zero_shot(xy, np.array(list('edcba'))[kind])
    assert text['accuracy'] == first['accuracy']


def test_matching_is_one_to_one(rng):
    c, t = rng.integers(0, 6, 200), rng.integers(0, 4, 200)
    m = match_clusters(c, t)
    assert sorted(m[m >= 0]) == [0, 1, 2, 3] and (m == -1).sum() == 2
    assert (match_clusters(t, t) == np.arange(4)).all()


def test_separation(rng):
    side = rng.random(200) < .4
    xy = np.where(side, 3., -3.)[:, None]*[.3, 1] + rng.normal(size=(200, 2))
    s = separate(xy)
    assert (s.cluster == side).mean() > .98 and ((xy@s.w + s.b > 0) == side).mean() > .98
    t = cluster_tests(s.cluster, pd.DataFrame(dict(same=rng.normal(size=200), other=side + .1*rng.normal(size=200), none=np.full(200, np.nan))))
    assert t.p.other < 1e-10 < 1e-3 < t.p.same and np.isnan(t.p.none)


def test_svm_does_not_memorise_stars(rng):
    star = np.repeat(np.arange(60), 10)
    truth, names = (rng.random(60) < .5)[star], np.eye(60)[star]
    assert abs(svm_by_star(names, truth, star)['auc'] - .5) < .15
    assert svm_by_star(np.where(truth, 1., -1.)[:, None] + .1*rng.normal(size=(600, 2)), truth, star)['auc'] == 1


# detectors and ages

def test_binary_scores_are_those_of_scikit_learn(rng):
    y = (rng.random(500) < .78).astype(int)
    s = np.round(y + rng.normal(size=500), 1)  # with ties
    t = choose_threshold(y, s)
    out = binary_scores(y, s, t)
    assert out['auc'] == sk.roc_auc_score(y, s) and out['ap'] == sk.average_precision_score(y, s) and out['ap_chance'] == y.mean()
    assert np.array_equal(out['confusion'], sk.confusion_matrix(y, s >= t))
    for c in (0, 1):
        assert np.isclose(out[f'precision{c}'], sk.precision_score(y, s >= t, pos_label=c)) and np.isclose(out[f'recall{c}'], sk.recall_score(y, s >= t, pos_label=c))
    best = max(sk.balanced_accuracy_score(y, s >= o) for o in np.unique(s))
    assert np.isclose(out['balanced'], best)
    c = tnr_fnr(y, s)
    assert np.isclose(np.trapezoid(c.tnr[::-1], c.fnr[::-1]), out['auc'])
    assert np.isnan(binary_scores(y, s, -99.)['precision0'])


def test_age_scores(rng):
    y, q = rng.normal(5, 2, 300), np.sort(rng.normal(5, 2, (300, 3)), 1)
    y[:20] = np.nan
    out = age_scores(y, q, .5)
    assert np.isclose(out['mae'], sk.mean_absolute_error(y[20:], q[20:, 1])) and np.isclose(out['rmse'], sk.root_mean_squared_error(y[20:], q[20:, 1]))
    assert np.isclose(out['coverage'], ((y >= q[:, 0]) & (y <= q[:, 2]))[20:].mean()) and out['rmse_floor'] == .5 and out['stars'] == 280


# maps and distances

def test_distances_of_visits(rng):
    star = rng.permutation(np.repeat(np.arange(200), rng.integers(1, 4, 200)))
    same, other = rng.normal(size=(200, 12))[star], rng.normal(size=(len(star), 12))
    assert (pair_distance(same, star) == 0).all()
    d = pair_distance(other, star)
    assert abs(np.median(d) - 1) < .06 and len(d) == (np.bincount(star) > 1).sum()
    assert np.array_equal(d, pair_distance(other, star)) and not np.array_equal(d, pair_distance(other, star, 1))
    assert np.allclose(pair_distance(1e3*other + 7, star), d)
    assert np.median(pair_distance(np.hstack([other, np.repeat(same, 8, 1)]), star)) < .45  # what all visits share brings them together
    assert pair_table(dict(a=same, b=other), star).loc['b', 'median'] == np.median(d)
    with pytest.raises(ValueError, match='collapsed'): pair_distance(np.zeros((len(star), 3)), star)


def test_pca_looks_at_training_rows_only(rng):
    a, b, train = rng.normal(size=(60, 8)), rng.normal(size=(60, 5)), np.arange(40)
    f = pca_features(a, b, 4, train)
    a[40:] *= 50
    assert np.allclose(f[:40], pca_features(a, b, 4, train)[:40]) and pca_features(a, b).shape == (60, 13)
    assert np.allclose(standardise(a, train)[:40].std(0), 1)


def test_sensitivity(rng):
    x = rng.normal(size=(50, 6))
    t = sensitivity(x, x + [1, 2, 3, 0, 0, 0], x + [2, 1, 1, 1, 0, 1])
    assert t.b_closer.tolist() == [False, True, True, False, False, False] and np.allclose(t.a, [1, 2, 3, 0, 0, 0])


# leakage

@pytest.mark.parametrize('target', DEFINITIONS)
def test_headline_labels_define_nothing(target):
    left = headline_labels(target)
    assert left and not definitions_in(target, left) and set(left) < set(CONDITIONING)


def test_leakage_is_refused_or_marked(rng):
    d = pd.DataFrame({k: rng.normal(size=400) for k in CONDITIONING})
    binary = d.ruwe.to_numpy() > .8
    with pytest.raises(ValueError, match='^binary: defined by conditioning labels: ruwe'): check_leakage('binary', d, binary)
    assert check_leakage('binary', d, binary, mark=True).verdict['ruwe'] == 'defines'
    with pytest.raises(ValueError, match=r'^unheard: follows from conditioning labels \(ruwe\)'): check_leakage('unheard', d, binary)
    both = (d.teff + d.prot).to_numpy()
    assert check_leakage('unheard', d, both, mark=True).verdict[['teff', 'prot', 'feh', 'all']].tolist() == ['part', 'part', 'fair', 'follows']
    assert (check_leakage('unheard', d, rng.normal(size=400)).verdict != 'follows').all()


def test_leakage_counts_stars_not_spectra(rng):
    "Twenty spectra of each star would let trees recognise the star"
    star = np.repeat(np.arange(60), 20)
    d = pd.DataFrame(dict(x=rng.normal(size=60)[star]))
    t = leakage_table('y', d, rng.normal(size=60)[star], star)
    assert t.alone['all'] < .2 and t.verdict['all'] == 'fair'


# heads

class Aligned(NamedTuple):
    z1: Tensor
    z2: Tensor
    p1: Tensor
    p2: Tensor


class Fake(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.A = nn.Linear(6, 8), nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(.3)), nn.Linear(8, 8, bias=False)

    def forward(self, spectra, curve, labels):
        z1, z2 = self.a(spectra), self.b(curve) + labels.nan_to_num().mean(1, keepdim=True)
        return Aligned(z1, z2, self.A(z1), z2@self.A.weight)


def inputs(n): return tuple(torch.randn(n, k, generator=generator(k)) for k in (6, 5, 3))


def test_toy_fine_tune_learns():
    x = inputs(500)
    y = (x[0][:, :1] + x[1][:, :1] > 0).float()
    seed_everything(0)
    net = Tuned(Fake(), TransformerHead(HeadConfig(widths=(8,)*4, dim=16, heads=2)))
    part = lambda s: tuple(o[s] for o in x)
    history = finetune(net, part(slice(300)), y[:300], (part(slice(300, None)), y[300:]), epochs=1, steps=80, lr=1e-2, loss=lambda q, t: bce(q, t), cbs=(SlowAligner(.5),))
    assert history.valid_loss.iloc[-1] < .8*history.valid_loss.iloc[0]
    assert sk.roc_auc_score(y[300:, 0], predict_tuned(net, part(slice(300, None)))[:, 0]) > .9


def test_frozen_aligner_stays(rng):
    x, y = inputs(64), torch.randn(64, 2, generator=generator(9))
    seed_everything(0)
    net = Tuned(Fake(), TransformerHead(HeadConfig(widths=(8, 8), dim=16, heads=2, labels=2, quantiles=(.14, .5, .86))), frozen=True)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    finetune(net, x, y, epochs=2, steps=4)
    after = net.state_dict()
    assert all(torch.equal(v, before[k]) for k, v in after.items() if k.startswith('aligner'))
    assert any(not torch.equal(v, before[k]) for k, v in after.items() if k.startswith('head'))
    net.train()
    assert not net.aligner.training and net.head.training
    assert (predict_tuned(net, x).diff(dim=-1) > 0).all() and torch.equal(predict_tuned(net, x, 7), predict_tuned(net, x, 7))
    assert torch.allclose(predict_tuned(net, x, 7), predict_tuned(net, x), atol=1e-5)


def test_head_without_aligner_takes_missing_labels():
    x = inputs(10)
    x[2][:] = torch.nan
    net = Tuned(Unaligned(('labels', 'curve')), TransformerHead(HeadConfig(widths=(6, 5), dim=16, heads=2)))
    assert predict_tuned(net, x).isfinite().all()
