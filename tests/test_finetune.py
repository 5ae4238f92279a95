"""Fine-tuning: splits, loader, changes, missing labels, the head under another scale."""
import numpy as np
import pytest
import torch

from stellar_nb.core import generator, seed_everything
from stellar_nb.data.labels import LabelScale
from stellar_nb.data.spectra import XP_WAVE
from stellar_nb.data.splits import kfold_by_star, md5_odd, split_by_star
from stellar_nb.data.xp import XpInput, XpStars, fit_xp_input
from stellar_nb.models.specvit import SpecViT, SpecViTConfig
from stellar_nb.pretrained import LabelModel, load_pretrained, save_pretrained
from stellar_nb.recipes.xp import fit_xp, predict_xp
from stellar_nb.train.finetune import finetune, rescale_head
from stellar_nb.train.learner import fixed_stars


def tiny(**kw): return SpecViT(SpecViTConfig.tiny(labels=('teff', 'logg'), quantiles=(.16, .5, .84), **kw))


def mock_xp(n, seed=0):
    "Blackbodies with one line whose depth is the metallicity"
    gen = generator(seed)
    teff, feh = torch.empty(n, 1).uniform_(4000, 7000, generator=gen), torch.randn(n, 1, generator=gen)
    wave = torch.as_tensor(XP_WAVE)
    flux = ((wave/6000)**-5/torch.expm1(1.4388e8/(wave*teff))*(1 - .1*torch.sigmoid(feh)*torch.exp(-.5*((wave-5200)/80)**2))).float()
    flux = flux/flux.median(1, keepdim=True).values
    sigma = .005*flux
    y = torch.cat([teff, torch.full_like(teff, 4.) + .1*feh, feh], 1)
    y[::5, 2] = torch.nan
    return XpStars(np.arange(n), flux + sigma*torch.randn(flux.shape, generator=gen), sigma, y, torch.full((n,), 12.), torch.full((n,), 200.))


@pytest.mark.parametrize('k', [2, 5, 7])
def test_folds_share_no_star(k):
    star = np.random.default_rng(k).integers(0, 60, 300)
    folds = kfold_by_star(star, k)
    assert np.array_equal(np.sort(np.concatenate([b for _, b in folds])), np.arange(300))
    for a, b in folds: assert not set(star[a]) & set(star[b]) and len(a) + len(b) == 300
    assert all(np.array_equal(x, y) for p, q in zip(folds, kfold_by_star(star, k)) for x, y in zip(p, q))


def test_parts_share_no_star():
    star = np.repeat(np.arange(50), 3)
    parts = split_by_star(star, (.5, .3, .2))
    assert [len(set(star[p])) for p in parts] == [25, 15, 10]
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(150))


def test_md5_rule():
    import hashlib
    ids = np.array([514069102427176704, 1, 2**62], dtype=np.int64)
    assert md5_odd(ids).tolist() == [int(hashlib.md5(str(int(i)).encode()).hexdigest(), 16) % 2 == 1 for i in ids]


def test_loader_order_is_new_each_epoch_and_repeats():
    x, y = torch.arange(20.)[:, None], torch.arange(20.)[:, None]
    a, b = fixed_stars((x,), y, 6), fixed_stars((x,), y, 6)
    first, second = (torch.cat([o[-1] for o in a]) for _ in range(2))
    assert not torch.equal(first, second) and torch.equal(first.sort(0).values, y)
    assert torch.equal(first, torch.cat([o[-1] for o in b]))


def test_rescaled_head_keeps_medians():
    seed_everything(1)
    net, x = tiny().eval(), torch.randn(6, 64)
    old, new = LabelScale(('teff', 'logg'), (5000., 4.), (800., 1.)), LabelScale(('teff', 'logg'), (7000., 3.), (2000., .3))
    before = old.decode(net(x))[..., 1]
    rescale_head(net.head, old, new)
    assert torch.allclose(new.decode(net(x))[..., 1], before, rtol=1e-5, atol=1e-3)


def test_missing_labels_do_not_spoil_the_others():
    x, good = torch.randn(16, 64, generator=generator(0)), torch.ones(16, 64, dtype=torch.bool)
    y = x[:, :2].clone()
    y[:, 1] = torch.nan
    seed_everything(0)
    net = tiny()
    history = finetune(net, (x, good), y, steps=20, batch=8)
    assert history.train_loss.notna().all() and all(p.isfinite().all() for p in net.parameters())
    with pytest.raises(ValueError, match='no star has a label'): finetune(net, (x, good), y*torch.nan)


def test_xp_input():
    stars = mock_xp(50)
    prep = fit_xp_input(stars.flux)
    wave, ivar = torch.as_tensor(XP_WAVE), stars.sigma**-2
    x, good = prep(wave, stars.flux, ivar)
    assert x.shape == (50, 343) and good.all() and x.abs().max() <= prep.clip
    assert torch.allclose(prep(wave, stars.flux*1e-17, ivar*1e34)[0], x, atol=1e-4)
    x, good = prep(wave, stars.flux*torch.nan, ivar)
    assert not good.any() and (x == 0).all()
    part = prep(wave[20:-20], stars.flux[:, 20:-20], ivar[:, 20:-20])[1]
    assert not part[:, :20].any() and part[:, 20:-20].all()


def test_xp_model_learns_saves_and_loads(tmp_path):
    stars, test = mock_xp(600), mock_xp(200, 1)
    model, history = fit_xp(stars, epochs=8)
    q = predict_xp(model, test)
    error = (q[..., 1] - test.y).abs().nanmean(0)
    assert error[0] < 150 and error[2] < .5, error
    assert (q.diff(dim=-1) >= 0).all()
    again = load_pretrained(save_pretrained(model, tmp_path/'xp'))
    assert isinstance(again.prep, XpInput) and again.prep == model.prep
    assert torch.allclose(predict_xp(again, test), q, rtol=1e-4, atol=1e-3)
