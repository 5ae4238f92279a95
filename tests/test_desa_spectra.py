"""The spectra encoder: published size, what bad pixels may not do, masking, weights, two calibrated intervals, saved and loaded."""
import numpy as np
import pytest
import torch

from stellar_nb.blocks.conformer import ConformerLayer
from stellar_nb.core import generator, seed_everything
from stellar_nb.data.labels import LabelScale
from stellar_nb.encoders.spectra import DesaSpectra, SpectraEncoder, SpectraEncoderConfig
from stellar_nb.mock.spectra import LAMOST_WAVE, draw_labels, mock_lamost
from stellar_nb.objectives.masked import hybrid_loss, mask_pixels, masked_mse, snr_weights
from stellar_nb.objectives.quantile import coverage_by, group_margins, interval_margins, pinball, widen
from stellar_nb.pretrained import LabelModel, load_pretrained, quantiles, save_pretrained
from stellar_nb.recipes.core import LABELS, with_margins
from stellar_nb.recipes.lamost import mock_quantiles
from stellar_nb.recipes.spectra import DESA_PREP, MaskForFilling, desa_loss
from stellar_nb.recipes.spectra_real import adapt_spectra, calibrate_across
from stellar_nb.train.finetune import finetune


def tiny(**kw): return DesaSpectra(SpectraEncoderConfig.tiny(**kw)).eval()


def labelled(scale=LabelScale(LABELS, (5500., 4., -.3), (800., .7, .5)), seed=0):
    "A model for real spectra that has learned nothing"
    seed_everything(seed)
    net = DesaSpectra(SpectraEncoderConfig.laptop(stem=4, channels=(4, 8, 8, 16), depth=1, decoder=(8, 8, 8, 4), hidden=16))
    return LabelModel(net.eval(), DESA_PREP, scale, ((100., .1, .1), (40., .05, .05)), dict(zip(LABELS, ((4000., 8000.), (0., 5.), (-2.5, .5)))), (.8, .5))


def mock(n, seed=0):
    g = generator(seed)
    labels = draw_labels(n, g, 'field')
    flux, ivar = mock_lamost(labels, 60., generator=g)
    return flux, ivar, labels[:, :3]


def test_published_size():
    with torch.device('meta'): e = SpectraEncoder(SpectraEncoderConfig.paper())
    count = lambda m: sum(p.numel() for p in m.parameters())
    assert (count(e.cnn), count(e.conformer), count(e)) == (19_795_008, 503_627_776, 523_422_784)
    with torch.device('meta'): assert count(ConformerLayer(512, 8, ffn=0)) == 1_840_128


@pytest.mark.parametrize('training', [False, True])
def test_bad_stretch_says_nothing(training):
    net, g = tiny().train(training), generator(1)
    x, good = torch.randn(6, 64, generator=g), torch.ones(6, 64, dtype=torch.bool)
    good[:3, 24:] = False
    x = x*good
    q, filled = net(x, good, True)
    assert q.isfinite().all() and (q.diff(dim=-1) >= 0).all() and filled.shape == x.shape
    none = net(x*0, good & False)
    assert none.isfinite().all()
    if not training: assert torch.allclose(net(x[:1], good[:1]), net(x, good)[:1], atol=1e-5)


@pytest.mark.parametrize('change', [dict(length=60), dict(heads=3), dict(kernel=4), dict(down='mean'), dict(quantiles=(.5, .1)), dict(quantiles=()), dict(decoder=(8,))])
def test_sizes_that_do_not_fit(change):
    with pytest.raises(ValueError): SpectraEncoderConfig.tiny(**change)


def test_mask_leaves_the_rest_alone():
    g = generator(2)
    x, good = torch.randn(40, 500, generator=g), torch.rand(40, 500, generator=g) < .8
    good[0] = False; good[1] = False; good[1, 7] = True
    x[~good] = 1e9
    m, masked = mask_pixels(x, good, g, share=.3, constant=.5, value=-7.)
    assert not masked[~good].any() and torch.equal(m[~masked], x[~masked])
    assert m[masked].max() < 10 and abs(masked[2:][good[2:]].float().mean() - .3) < .02 and abs((m[masked] == -7).float().mean() - .5) < .03
    assert torch.equal(mask_pixels(x, good, generator(5))[0], mask_pixels(x, good, generator(5))[0])
    assert not mask_pixels(x, good, g, share=0.)[1].any()


def test_loss_ignores_padding_and_scale():
    g = generator(3)
    x, pred, y = torch.randn(8, 50, generator=g), torch.randn(8, 50, generator=g), torch.randn(8, 3, generator=g)
    q = torch.randn(8, 3, 5, generator=g).sort(-1).values
    masked, snr, y[0, 1] = torch.rand(8, 50, generator=g) < .3, 100*torch.rand(8, generator=g), torch.nan
    def loss(x, snr): return desa_loss((q, pred), y, x, masked, snr_weights(snr))
    assert torch.isclose(loss(x, snr), loss(x.masked_fill(~masked, torch.nan), snr)) and torch.isclose(loss(x, snr), loss(x, 50*snr))
    w = snr_weights(snr)
    assert torch.isclose(w.mean(), torch.tensor(1.)) and (w.max() <= 3*w.median() + 1e-5)
    assert torch.isclose(hybrid_loss(masked_mse(pred, x, masked), pinball(q, y, (.1, .25, .5, .75, .9))), desa_loss((q, pred), y, x, masked, torch.ones(8)))
    with pytest.raises(ValueError): hybrid_loss(w[0], w[0], -1.)


def test_intervals_hold_what_they_promise():
    g = generator(4)
    x, snr = torch.randn(8000, 2, generator=g), 5 + 95*torch.rand(8000, generator=g)
    y = x + (10/snr)[:, None]*torch.randn(8000, 2, generator=g)
    q = x[..., None] + (8/snr)[:, None, None]*torch.tensor([-.9, -.5, 0, .5, .9])
    m = interval_margins(q[:4000], y[:4000], (.8, .5))
    c = widen(q, m)
    assert (c.diff(dim=-1) >= 0).all()
    held = coverage_by(c[4000:], y[4000:], snr[4000:], (0., 200.))[0]
    assert (held - torch.tensor([[.8], [.5]])).abs().max() < .025
    edges = (10., 30.)
    binned = widen(q, group_margins(q[:4000], y[:4000], (.8, .5), snr[:4000], edges)[torch.bucketize(snr, torch.tensor(edges), right=True)])
    assert (coverage_by(binned[4000:], y[4000:], snr[4000:], (0., *edges, 200.)) - torch.tensor([[.8], [.5]])).abs().max() < .1
    with pytest.raises(ValueError, match='too few'): group_margins(q, y, (.8, .5), snr, (5.01, 20.))
    across = calibrate_across(q, y, np.arange(8000) % 5, snr, edges)
    assert ((across[..., 0] <= y) & (y <= across[..., -1])).float().mean().sub(.8).abs() < .02


def test_two_intervals_there_and_back(tmp_path):
    m = labelled()
    flux, ivar, y = mock(12)
    args = LAMOST_WAVE, flux, ivar, torch.zeros(12)
    q = quantiles(m, *args)[0]
    assert q.shape == (12, 3, 5) and (q.diff(dim=-1) >= 0).all()
    back = load_pretrained(save_pretrained(m, tmp_path/'m'))
    assert torch.equal(quantiles(back, *args)[0], q) and back.promises == (.8, .5) and back.margin == m.margin
    c = with_margins(m, q, q[..., 2], torch.full((12,), 50.))
    assert isinstance(c.margin[0], tuple) and len(c.margin) == 2 and c.snr_edges == ()
    old = load_pretrained('specvit_lamost')
    assert old.promises == (.68,) and quantiles(old, *args)[0].shape == (12, 3, 3)


def test_one_batch_is_learned():
    m = labelled()
    flux, ivar, y = mock(32, 5)
    x, good = m.prep(LAMOST_WAVE, flux, ivar, torch.zeros(32))
    before = m.model(x, good)[..., 2]
    h = finetune(m.model, (x, good, torch.full((32,), 60.)), m.scale.encode(y), epochs=30, steps=1, lr=5e-3, loss=desa_loss, cbs=(MaskForFilling(),))
    true, after = m.scale.encode(y), m.model(x, good)[..., 2]
    assert h.train_loss.iloc[-1] < .7*h.train_loss.iloc[0] and (after - true).abs().mean() < .8*(before - true).abs().mean()


def test_adapted_model_forgets_its_margins():
    flux, ivar, y = mock(20, 6)
    y[0, 2] = torch.nan
    m = labelled()
    new = adapt_spectra(m, *m.prep(LAMOST_WAVE, flux, ivar, torch.zeros(20)), y, torch.full((20,), 60.), epochs=1, steps=1)
    assert new.margin == ((0., 0., 0.),)*2 and m.margin[0][0] == 100. and new.limits['teff'][0] == y[:, 0].min()


def test_shipped_model_keeps_its_word():
    m = load_pretrained('desa_spectra')
    q, true, snr = mock_quantiles(m, 800, 902)
    assert m.promises == (.8, .5) and q.shape == (800, 3, 5)
    held = coverage_by(q, true, snr, (0., 1e9))[0]
    assert (held - torch.tensor([[.8], [.5]])).abs().max() < .06, held
    assert ((q[..., 2] - true).abs().mean(0) < torch.tensor([75., .18, .13])).all()
