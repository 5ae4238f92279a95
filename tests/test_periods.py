"Rotation periods: the light-curve encoder, its losses, its rivals and its model on disk"
import math

import numpy as np
import pandas as pd
import pytest
import torch

from stellar_nb.core import generator, seed_everything
from stellar_nb.data.labels import LabelScale
from stellar_nb.data.views import CADENCE, ViewConfig, Views
from stellar_nb.encoders.lightcurve import DesaLightCurve, LightCurveEncoder, LightCurveEncoderConfig
from stellar_nb.eval.periods import acf_peak, lomb_scargle, period_table, within
from stellar_nb.mock.lightcurve import draw_targets, reserved
from stellar_nb.objectives.contrastive import effective_rank, simsiam_pair, spread
from stellar_nb.periods import PERIOD_FLAGS, PeriodModel, period_flags, period_quantiles, view_starts, margin_group
from stellar_nb.pretrained import load_pretrained, save_pretrained
from stellar_nb.recipes.lightcurve import LIMITS, TwoViews, ViewSet, draw_views, fit_views, fresh_views, in_blocks, ln_period, mock_series, pair_loss, period_margins, some_quarters

VIEW = ViewConfig.tiny()
SMALL = LightCurveEncoderConfig.tiny(length=VIEW.length, patch=16, grid=VIEW.grid)


def loss_of(out, y, lam=.5): return pair_loss(out, y, lam, scale=LabelScale(('lnprot',), (1.,), (.7,)), periods=VIEW.periods)


def curves(n=6, cadences=1400, seed=0):
    g = generator(seed)
    p = torch.logspace(math.log10(.5), math.log10(5), n)
    t = torch.arange(cadences)*CADENCE
    flux = 1 + .01*torch.sin(2*math.pi*t/p[:, None] + 6*torch.rand(n, 1, generator=g)) + .001*torch.randn(n, cadences, generator=g)
    return flux, torch.rand(n, cadences, generator=g) > .05, torch.full((n,), 4.8), p


def demo(seed=0):
    seed_everything(seed)
    return PeriodModel(DesaLightCurve(SMALL).eval(), VIEW, LabelScale(('lnprot',), (1.,), (.7,)), (.2, .1), (.3, 8.), name='demo')


def view_set(n=48, seed=0):
    g = generator(seed)
    v = lambda: Views(torch.randn(n, 2, VIEW.length, generator=g).half(), torch.randn(n, 2, VIEW.grid, generator=g).half(), torch.rand(n, VIEW.length, generator=g) > .1)
    return ViewSet(v(), v(), torch.randn(n, 1, generator=g), pd.DataFrame(dict(kic=range(n))))


def test_published_sizes():
    with torch.device('meta'):
        net = LightCurveEncoder(LightCurveEncoderConfig.paper())
        whole = DesaLightCurve(LightCurveEncoderConfig.paper())
    size = lambda m: sum(p.numel() for p in m.parameters())
    assert size(net) == 11_717_504 and size(net.projector) == 395_520 and size(whole.predictor) == 132_096


def test_published_network_runs():
    net = LightCurveEncoder(LightCurveEncoderConfig.paper(length=400, grid=400)).eval()
    assert net(torch.randn(2, 2, 400), torch.randn(2, 2, 400)).shape == (2, 1024)


@pytest.mark.parametrize('branches', [('freq',), ('flux',), ('freq', 'flux')])
@pytest.mark.parametrize('head', ['features', 'projection'])
@pytest.mark.parametrize('pool', ['map', 'mean'])
def test_options(branches, head, pool):
    net = DesaLightCurve(LightCurveEncoderConfig.tiny(branches=branches, head=head, pool=pool))
    view = torch.randn(4, 2, 80), torch.randn(4, 2, 64), torch.rand(4, 80) > .3
    assert (net(*view).diff(dim=-1) > 0).all()
    net.pair(view, view).quantiles.sum().backward()
    assert sum(p.grad is not None for p in net.parameters()) > 5


def test_what_was_not_seen_does_not_count():
    net = LightCurveEncoder(LightCurveEncoderConfig.tiny()).train()
    flux, freq, seen = torch.randn(4, 2, 80), torch.randn(4, 2, 64), torch.ones(4, 80, dtype=torch.bool)
    seen[:, 40:] = False
    out = []
    for junk in (0., 9.):
        net.load_state_dict(LightCurveEncoder(LightCurveEncoderConfig.tiny()).state_dict() if not out else state)
        state = {k: v.clone() for k, v in net.state_dict().items()}
        out.append(net(torch.where(seen[:, None], flux, junk), freq, seen))
    torch.testing.assert_close(*out)


def test_a_curve_that_was_never_seen_is_finite():
    net = LightCurveEncoder(LightCurveEncoderConfig.tiny()).eval()
    assert net(torch.zeros(2, 2, 80), torch.zeros(2, 2, 64), torch.zeros(2, 80, dtype=torch.bool)).isfinite().all()


@pytest.mark.parametrize('lam,still', [(1., 'predictor'), (0., 'head')])
def test_hybrid_loss_at_its_ends(lam, still):
    net = DesaLightCurve(LightCurveEncoderConfig.tiny())
    view = torch.randn(8, 2, 80), torch.randn(8, 2, 64), None
    two = tuple(torch.randn_like(o) for o in view[:2])
    one = (*view[:2], torch.ones(8, 80, dtype=torch.bool))
    loss_of(net.pair(one, (*two, one[2])), torch.randn(8, 1), lam).backward()
    moves = lambda m: any(p.grad is not None and p.grad.abs().sum() > 0 for p in m.parameters())
    assert not moves(getattr(net, still)) and moves(net.encoder)


def test_pairs_go_through_mixed_precision():
    from fastai.torch_core import to_float
    net = TwoViews(DesaLightCurve(LightCurveEncoderConfig.tiny()))
    view = torch.randn(8, 2, 80), torch.randn(8, 2, 64), torch.ones(8, 80, dtype=torch.bool)
    assert loss_of(to_float(net(*view, *view)), torch.randn(8, 1)).isfinite()


def test_missing_periods_do_not_count():
    net = DesaLightCurve(LightCurveEncoderConfig.tiny()).eval()
    view = torch.randn(8, 2, 80), torch.randn(8, 2, 64), torch.ones(8, 80, dtype=torch.bool)
    out, y = net.pair(view, view), torch.randn(8, 1)
    gone = torch.where(torch.arange(8)[:, None] < 4, y, torch.nan)
    half = out._replace(quantiles=out.quantiles[:4], scores=out.scores[:4])
    torch.testing.assert_close(loss_of(out, gone, 1.), loss_of(half, y[:4], 1.))
    assert loss_of(out, torch.full((8, 1), torch.nan), 1.) == 0


def test_simsiam_is_symmetric_and_scale_free():
    p1, p2, z1, z2 = torch.randn(4, 10, 6, generator=generator(0))
    torch.testing.assert_close(simsiam_pair(p1, p2, z1, z2), simsiam_pair(p2, p1, z2, z1))
    torch.testing.assert_close(simsiam_pair(p1, p2, z1, z2), simsiam_pair(3*p1, p2, z1, 7*z2))


def test_measures_of_collapse():
    z = torch.randn(4000, 32, generator=generator(0))
    assert abs(spread(z) - 1) < .02 and effective_rank(z) > 30
    assert spread(torch.ones(50, 32)) < 1e-3 and effective_rank(z[:, :1]*torch.ones(32)) < 1.01


def test_training_goes_on_where_it_stopped(tmp_path):
    data, scale = view_set(), LabelScale(('lnprot',), (0.,), (1.,))
    whole, h = fit_views(data, data, SMALL, scale, 3, batch=16)

    class Stop(Exception): pass
    import stellar_nb.recipes.lightcurve as L
    kept = L.CollapseMonitor
    class Twice(kept):
        def before_epoch(self):
            if self.epoch == 2: raise Stop('now')
    try:
        L.CollapseMonitor = Twice
        with pytest.raises(Stop): fit_views(data, data, SMALL, scale, 3, batch=16, checkpoint=tmp_path/'c.safetensors')
    finally: L.CollapseMonitor = kept
    again, h2 = fit_views(data, data, SMALL, scale, 3, batch=16, checkpoint=tmp_path/'c.safetensors')
    for a, b in zip(whole.state_dict().values(), again.state_dict().values()): torch.testing.assert_close(a, b)
    assert {'spread', 'rank'} <= set(h2) and len(h2) == 3


def test_model_on_disk(tmp_path):
    model, (flux, seen, mag, _) = demo(), curves()
    save_pretrained(model, tmp_path/'m')
    again = load_pretrained(tmp_path/'m')
    pd.testing.assert_frame_equal(model.predict(flux, seen, mag), again.predict(flux, seen, mag))
    assert (again.view, again.scale, again.margin, again.limits, again.coverage) == (model.view, model.scale, model.margin, model.limits, model.coverage)


def test_an_answer_does_not_depend_on_the_company():
    model, (flux, seen, mag, _) = demo(), curves()
    seen[0, 500:] = False
    together = period_quantiles(model, flux, seen, mag)
    for i in range(len(flux)): torch.testing.assert_close(period_quantiles(model, flux[i:i+1], seen[i:i+1], mag[i:i+1])[0], together[i], rtol=1e-4, atol=1e-5)
    assert (together.diff(dim=1) >= 0).all()


def test_views_of_a_long_series():
    seen = torch.zeros(2, 3000, dtype=torch.bool)
    seen[0, 100:2900], seen[1, 10:500] = True, True
    starts = torch.stack(view_starts(seen, 512))
    assert starts[:, 0].tolist() == [100, 1244, 2388] and starts[:, 1].tolist() == [10, 10, 10]


def test_margins_keep_their_promise():
    g = generator(3)
    ln = torch.randn(8000, generator=g)
    centre = ln + .3*torch.randn(8000, generator=g)
    q = (centre[:, None] + torch.tensor([-.1, -.05, 0, .05, .1])).exp()
    (outer, inner), = period_margins(q[:4000], ln[:4000].exp().numpy())
    z = q[4000:].log() + torch.tensor([-outer, -inner, 0, inner, outer])
    for i, c in ((0, .8), (1, .5)): assert abs(((ln[4000:] >= z[:, i]) & (ln[4000:] <= z[:, 4-i])).float().mean() - c) < .02


def test_groups_keep_the_promise_where_one_margin_does_not():
    g = generator(4)
    ln, noisy = torch.randn(8000, generator=g), torch.rand(8000, generator=g) < .5
    centre = ln + torch.where(noisy, .6, .1)*torch.randn(8000, generator=g)
    q = (centre[:, None] + torch.tensor([-.1, -.05, 0, .05, .1])).exp()
    group = margin_group((~noisy).float(), q[:, 2], (.5,), ((1.,), (1.,)))
    assert group.unique().tolist() == [0, 1, 2, 3] and bool(((group < 2) == noisy).all())
    held = lambda m, s: ((ln[4000:] >= centre[4000:] - .1 - m) & (ln[4000:] <= centre[4000:] + .1 + m))[s[4000:]].float().mean()
    one = period_margins(q[:4000], ln[:4000].exp().numpy())[0][0]
    each = torch.tensor(period_margins(q[:4000], ln[:4000].exp().numpy(), group[:4000]))[group[4000:], 0]
    assert held(one, noisy) < .72 and held(one, ~noisy) > .88
    for s in (noisy, ~noisy): assert abs(held(each, s) - .8) < .04


def test_blocks_do_not_depend_on_processes():
    "Another process draws the same stars; blocks come in order, each with its own seed"
    one, two = (draw_views(20, 'desa_quarter', 5, workers=k) for k in (1, 2))
    assert one.stars.equals(two.stars) and torch.equal(one.one.flux, two.one.flux) and torch.equal(one.two.freq, two.two.freq)
    sizes, seeds = zip(*in_blocks(lambda n, seed: (n, seed), 600, 5))
    assert sizes == (256, 256, 88) and seeds[0] == 5 and len(set(seeds)) == 3


def test_flags():
    assert period_flags(np.array([1., 2, 3, 4, 5]), 90, .9, 4., (.3, 45)) == 'uncertain'
    words = period_flags(np.array([.2, .25, .3, .31, .32]), 10, .3, math.nan, (.3, 45)).split(',')
    assert words == ['short_series', 'sparse', 'no_luminosity', 'edge'] and set(words) <= set(PERIOD_FLAGS)
    assert 'few_cycles' in period_flags(np.array([29., 30, 31, 32, 33]), 50, 1, 4., (.3, 45))


def test_scores():
    t = period_table([10., 10, 10, np.nan], {'a': [10.9, 5, 21, 3]})
    assert t.loc['a', ['right', 'half', 'double']].tolist() == pytest.approx([1/3, 1/3, 1/3]) and t.stars['a'] == 3
    assert within([10.], [np.nan]) == 0


def test_classical_methods():
    flux, seen, _, p = curves(5, 6000, 1)
    for f in (lomb_scargle, acf_peak): np.testing.assert_allclose(f(flux, seen), p, rtol=.03)
    none = acf_peak(torch.ones(1, 500), torch.ones(1, 500, dtype=torch.bool))
    assert np.isnan(none[0]) and np.isnan(lomb_scargle(torch.ones(1, 500), torch.zeros(1, 500, dtype=torch.bool))[0])


def test_labels_and_parts():
    stars = pd.DataFrame(dict(prot=[np.nan, .1, 10., 60.]))
    assert ln_period(stars, LIMITS['desa_quarter']).isfinite()[:, 0].tolist() == [False, False, True, False]
    kic = {part: draw_targets(2000, generator(0), part).kic for part in ('train', 'calibrate', 'test')}
    assert set(kic['calibrate'] % 10) == {8} and set(kic['test'] % 10) == {9} and not set(kic['train'] % 10) & {8, 9}
    assert len(reserved()) > 100 and not any(set(o) & reserved() for o in kic.values())


def test_quarters_that_a_star_is_seen():
    g = generator(0)
    many = [some_quarters('desa_lightcurve', g) for _ in range(400)]
    assert .6 < np.mean([len(o) == 17 for o in many]) < .8 and all(o[-1] - o[0] == len(o) - 1 and 1 <= o[0] and o[-1] <= 17 for o in many)
    assert {len(some_quarters('desa_quarter', g)) for _ in range(100)} == {1}


def test_stars_that_nobody_observed_are_left_out():
    for flux, seen, mag, stars in mock_series(64, generator(4), 'desa_quarter'):
        assert seen.any(1).all() and len(flux) == len(mag) == len(stars)


def test_fresh_views():
    loader = fresh_views('desa_quarter', VIEW, LabelScale(('lnprot',), (2.,), (1.,)), 32, 16)
    *xb, y = next(iter(loader))
    assert len(xb) == 6 and xb[0].shape[1:] == (2, VIEW.length) and len(y) == len(xb[0]) <= 16
