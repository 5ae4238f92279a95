"Preprocessing and velocities against independent ways of doing the same, on made-up spectra of every awkward kind"
import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np, pytest, torch
from scipy.ndimage import generic_filter
from scipy.signal import medfilt

from stellar_nb.core import C_KMS
from stellar_nb.data.preprocess import *
from stellar_nb.data.velocity import PEAK, fill_rv, radial_velocity
from stellar_nb.mock.spectra import lamost

WAVE = 10**(3.5682 + 1e-4*np.arange(3909))
CONFIG = PreprocessConfig()

def spectra(n, wave=WAVE, seed=0, bad=.02):
    "flux, ivar, rv: lines on a sloping continuum, noise, dead pixels, NaN"
    rng = np.random.default_rng(seed)
    rv = rng.normal(0, 150, n)
    rest = wave/(1 + rv[:,None]/C_KMS)
    flux = (rest/6000)**rng.uniform(-3, 3, (n, 1))*np.exp(rng.normal(0, 3, (n, 1)))
    for line in rng.uniform(3850, 8800, 60): flux *= 1 - rng.uniform(0, .6, (n, 1))*np.exp(-.5*((rest - line)/rng.uniform(2, 6))**2)
    sigma = flux.mean(1, keepdims=True)/rng.uniform(5, 100, (n, 1))
    flux, ivar = flux + sigma*rng.normal(size=flux.shape), sigma**-2 + 0*flux
    gone = rng.uniform(size=flux.shape) < bad
    ivar[gone] = 0; flux[gone] *= 1e3
    flux[gone & (rng.uniform(size=flux.shape) < .5)] = np.nan
    return flux, ivar, rv

def reference(wave, flux, ivar, rv, config=CONFIG):
    "Document 002, section 4.1, for one spectrum, in double precision"
    xs, goods = [], []
    ok = (ivar > 0) & np.isfinite(flux)
    flux = np.where(ok, flux, 0)
    for (lo, hi), n in zip(config.arms, config.sizes):
        w = np.exp(np.log(lo) + config.step*np.log(10)*np.arange(n))
        seen = w*(1 + rv/C_KMS)
        y, good = np.interp(seen, wave, flux), np.interp(seen, wave, ok*1., left=0, right=0) > 1 - 1e-6
        left = np.clip(np.searchsorted(wave, seen, side='right') - 1, 0, len(wave) - 2)
        bridge = np.diff(wave)[left] > 10*config.step*np.log(10)*wave[left]  # no interpolation over a gap
        y, good = np.where(bridge, 0, y), good & ~bridge
        whole = generic_filter(good*1., np.min, 3, mode='constant') > 0
        y = np.where(whole, medfilt(y, 3), y)
        x = np.zeros(n)
        if good.sum() < config.min_pixels: xs.append(x); goods.append(np.zeros(n, bool)); continue
        cont = np.polynomial.Legendre.fit(w[good], y[good], config.degree)(w)
        good &= cont > config.floor*y[good].mean()
        y = y/np.where(good, cont, 1)
        good &= np.abs(y - y[good].mean()) <= config.clip*y[good].std()
        x[good] = (y[good] - y[good].mean())/y[good].std()
        xs.append(x); goods.append(good)
    return np.concatenate(xs), np.concatenate(goods)

def compare(wave, flux, ivar, rv, config=CONFIG, share=.9):
    x, good = preprocess(*(torch.as_tensor(o) for o in (wave, flux, ivar, rv)), config)
    assert x.dtype == torch.float32 and good.dtype == torch.bool and x.isfinite().all() and not x[~good].any()
    same = 0
    for i in range(len(flux)):
        want, want_good = reference(wave[i] if wave.ndim == 2 else wave, flux[i], ivar[i], rv[i], config)
        assert (good[i].numpy() != want_good).sum() <= 3 # pixels at 3σ to the last digit of float32
        if (good[i].numpy() == want_good).all(): same += 1; assert np.abs(x[i].numpy() - want).max() < 1e-4
    assert same >= share*len(flux)
    return good

@pytest.mark.parametrize('bad', [0, .02, .3])
def test_lamost_grid(bad): assert compare(WAVE, *spectra(24, bad=bad)).any(1).all()

def test_linear_grid():
    wave = np.arange(3700., 9000, 1.3)
    assert compare(wave, *spectra(12, wave)).any(1).all()

def test_a_grid_for_each_star():
    wave = np.sort(np.random.default_rng(1).uniform(3700, 9000, (6, 4500)), 1)
    out = [spectra(1, w, seed=i) for i, w in enumerate(wave)]
    compare(wave, *(np.concatenate([o[k] for o in out]) for k in range(3)), share=.8)

def test_float32_wavelengths_count_as_log_linear():
    assert log_start(torch.as_tensor(WAVE.astype('f4')).double()) is not None
    assert log_start(torch.as_tensor(WAVE + .2*np.sin(np.arange(3909)))) is None

@pytest.mark.parametrize('lo,hi', [(3700, 4600), (4700, 5300), (5600, 6100), (8500, 9100), (3700, 3830), (8900, 9100)])
def test_part_of_the_range(lo, hi):
    use = (WAVE > lo) & (WAVE < hi)
    flux, ivar, rv = spectra(8)
    compare(WAVE[use], flux[:,use], ivar[:,use], rv, share=.5)

def test_extreme_velocities_and_empty_spectra():
    flux, ivar, _ = spectra(4)
    ivar[3] = 0
    good = compare(WAVE, flux, ivar, np.array([-30000., 20000., 0, 0]))
    assert good[:3].any(1).all() and not good[3].any()

def test_rest_frame_has_the_right_sign():
    flux = 1 - .5*np.exp(-.5*((WAVE - 6564.61*(1 + 100/C_KMS))/3)**2)
    one = [torch.as_tensor(o)[None] for o in (flux, np.full(3909, 1e4))]
    seen = lambda v: grid()[preprocess(torch.as_tensor(WAVE), *one, torch.tensor([v]), replace(CONFIG, clip=0))[0][0].argmin()].item()
    assert abs(seen(100.) - 6564.61) < 1.6 and abs(seen(-100.) - seen(100.) - 4.38) < 1.6 # pixels of 1.5 Å

def test_batches_are_independent_and_repeatable():
    args = [torch.as_tensor(o) for o in (WAVE, *spectra(70))]
    x, good = preprocess(*args)
    assert all(torch.equal(a, b) for a, b in zip((x, good), preprocess(*args)))
    for chunk in (1, 7, 200): assert (preprocess(*args, chunk=chunk)[0] - x).abs().median() < 1e-5
    alone = preprocess(args[0], *(o[5:6] for o in args[1:]))[0]
    assert (alone[0] - x[5]).abs().max() < 1e-4

def test_units_do_not_matter():
    flux, ivar, rv = (torch.as_tensor(o) for o in spectra(8))
    x, good = preprocess(torch.as_tensor(WAVE), flux, ivar, rv)
    for unit in (1e-17, 1e12):
        y, same = preprocess(torch.as_tensor(WAVE), flux*unit, (ivar/unit**2).clamp(max=3e38), rv)
        assert (good != same).float().mean() < 1e-4 and (x - y).abs().median() < 1e-5

def test_options():
    flux, ivar, rv = (torch.as_tensor(o) for o in spectra(8))
    run = lambda **kw: preprocess(torch.as_tensor(WAVE), flux, ivar, rv, PreprocessConfig(**kw))
    x, good = run(length=4096)
    assert x.shape == (8, 4096) and not x[:,3600:].any() and not good[:,3600:].any() and torch.equal(x[:,:3600], run()[0])
    assert run(clip=0)[1].sum() > good.sum() and torch.equal(run(clamp=True)[1], run(clip=0)[1])
    assert run(clamp=True)[0].abs().max() < run(clip=0)[0].abs().max()
    assert run(median=5)[0].std() > 0 and run(median=1)[0].std() > 0
    one = run(arms=((4000., 7000.),), length=2431)
    assert one[0].shape == (8, 2431) and one[1].any(1).all()
    assert PreprocessConfig(**json.loads(json.dumps(asdict(CONFIG)))) == CONFIG
    for wrong in (dict(median=4), dict(length=3599)):
        with pytest.raises(ValueError): PreprocessConfig(**wrong)

def test_wide_median_ignores_bad_pixels():
    y, good = torch.rand(3, 40), (torch.rand(3, 40) > .3).float()
    got = median_filter(y, good, 5)
    for i in range(3):
        for k in range(40):
            if not good[i,k]: continue
            near = [y[i,j] if 0 <= j < 40 and good[i,j] else y[i,k] for j in range(k-2, k+3)]
            assert got[i,k] == torch.stack(near).median()

def test_gradients_are_finite_even_for_hopeless_spectra():
    flux, ivar, rv = (torch.as_tensor(o).float() for o in spectra(6))
    ivar[0] = 0; flux[1] = 0; flux[2] = float('nan'); ivar[3,1500:] = 0
    flux.requires_grad_()
    for wave in (torch.as_tensor(WAVE), torch.as_tensor(WAVE) + .05*torch.sin(torch.arange(3909))):
        flux.grad = None
        preprocess(wave, flux, ivar, rv)[0].pow(3).sum().backward()
        assert flux.grad.isfinite().all() and flux.grad[4:].abs().sum() > 0

def test_gradient_is_the_derivative():
    flux, ivar, rv = (torch.as_tensor(o).float() for o in spectra(2, bad=0))
    flux = flux.nan_to_num().requires_grad_()
    config = replace(CONFIG, clip=0, median=1)
    w = torch.randn(3600, generator=torch.Generator().manual_seed(0))
    score = lambda f: (preprocess(torch.as_tensor(WAVE), f, ivar, rv, config)[0].double()@w.double()).sum()
    score(flux).backward()
    way = torch.randn(flux.shape, generator=torch.Generator().manual_seed(1))*flux.detach().mean(1, keepdim=True)
    step = 1e-3
    numeric = (score(flux.detach() + step*way) - score(flux.detach() - step*way))/(2*step)
    assert abs(numeric/(flux.grad*way).sum() - 1) < .02

def test_unknown_velocity_is_an_error():
    flux, ivar, rv = (torch.as_tensor(o) for o in spectra(3))
    for v in (np.nan, np.inf, 4e5):
        with pytest.raises(ValueError, match='rv: unknown or impossible for 1 of 3'):
            preprocess(torch.as_tensor(WAVE), flux, ivar, torch.tensor([0, v, 0]))

def record(wave, flux, ivar, rv=np.nan): return SimpleNamespace(wave=wave, flux=flux, ivar=ivar, mask=ivar <= 0, rv=rv, rv_source='', meta={})

def test_stack_pads_without_consequences():
    flux, ivar, rv = spectra(3)
    lists = [record(WAVE, flux[0], ivar[0], rv[0]), record(WAVE[200:3300], flux[1,200:3300], ivar[1,200:3300], rv[1]),
             record(np.linspace(4000, 7000, 900), *(np.interp(np.linspace(4000, 7000, 900), WAVE, np.nan_to_num(o)) for o in (flux[2], ivar[2])), rv[2])]
    together = preprocess(*stack(lists))
    for i, s in enumerate(lists):
        alone = preprocess(*stack([s]))
        assert (together[1][i] != alone[1][0]).sum() <= 3 and (together[0][i] - alone[0][0]).abs().max() < .02

@pytest.fixture(scope='module')
def moving():
    "Emulated stars moved by linear interpolation, SNR 50"
    emu, rng = lamost(), np.random.default_rng(0)
    labels = torch.tensor([[4400., 2., -.3, .1], [5100, 4.5, .1, 0], [5777, 4.44, 0, 0], [6200, 4.1, -.8, .2], [7200, 4.1, 0, 0]])
    rv = np.array([-310., -42.5, 0, 88, 450])
    flux = np.stack([np.interp(WAVE, WAVE*(1 + v/C_KMS), f) for f, v in zip(emu(labels).numpy(), rv)])*(WAVE/5000)**-1
    return flux + rng.normal(0, .02, flux.shape), np.full(flux.shape, 2500.), rv

def test_velocities_are_found_with_the_right_sign(moving):
    flux, ivar, rv = moving
    v = radial_velocity(*(torch.as_tensor(o) for o in (WAVE, flux, ivar)))
    assert np.abs(v.rv.numpy() - rv).max() < 10 and (v.err < 8).all() and (v.peak > .6).all()

def test_velocities_beyond_the_window_are_not_invented(moving):
    flux, ivar, rv = moving
    v = radial_velocity(*(torch.as_tensor(o) for o in (WAVE, flux, ivar)), vmax=120.)
    assert (np.abs(v.rv.numpy()[1:4] - rv[1:4]) < 10).all()
    assert all(v.rv[i].isnan() or v.peak[i] < .6 for i in (0, 4))

def test_fill_rv_order_and_record(moving):
    flux, ivar, rv = moving
    some = [record(WAVE, f, i) for f, i in zip(flux, ivar)] + [record(WAVE, flux[0], 0*ivar[0])]
    some[0].rv = -300.
    out = fill_rv(some, given=[7., 8., np.nan, np.nan, np.nan, np.nan])
    assert [s.rv_source for s in out] == ['header', 'given', 'template', 'template', 'template', '']
    assert [s.rv for s in out[:2]] == [-300, 8] and np.isnan(out[5].rv)
    for s, v in zip(out[2:5], rv[2:]): assert abs(s.rv - v) < 10 and s.meta['rv_ok'] is True and s.meta['rv_peak'] > PEAK and s.meta['rv_err'] > 0
    json.dumps([s.meta for s in out])
    assert all(s.rv_source == 'given' and s.rv == 3 for s in fill_rv([record(WAVE, f, i) for f, i in zip(flux, ivar)], given=3.))
    assert fill_rv([]) == []
    with pytest.raises(ValueError, match='given: 2 velocities for 5'): fill_rv([record(WAVE, f, i) for f, i in zip(flux, ivar)], given=[1., 2.])

def test_noise_is_flagged():
    rng = np.random.default_rng(0)
    out = fill_rv([record(WAVE, 1 + .3*rng.normal(size=3909), np.full(3909, 11.)) for _ in range(20)])
    assert not any(s.meta.get('rv_ok', False) for s in out)


def test_no_bridge_over_a_gap():
    "Rows missing from a table are missing, not interpolated"
    wave = torch.arange(3700., 9000., 1.5, dtype=torch.float64)
    wave = wave[(wave < 4600) | (wave > 7000)]
    flux = torch.ones(1, len(wave)) + .1*torch.sin(wave/40).float()
    _, good = preprocess(wave, flux, torch.ones_like(flux), torch.zeros(1))
    hole = (grid() > 4601) & (grid() < 6999)
    assert not good[0, hole].any() and good[0, (grid() > 7100) & (grid() < 8700)].all()


def test_one_bad_error_does_not_lose_the_velocity(moving):
    flux, ivar, rv = moving
    ivar = ivar.copy(); ivar[:, 1000] = np.nan
    v = radial_velocity(*(torch.as_tensor(o) for o in (WAVE, flux, ivar)))
    assert np.abs(v.rv.numpy() - rv).max() < 10
