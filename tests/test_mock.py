"""Mock spectra: what is shipped, what is refused, and every effect against an independent reference in double precision."""
import numpy as np
import pytest
import torch

from stellar_nb.core import data_dir, generator, package_data
from stellar_nb.mock import emulator as em
from stellar_nb.mock import spectra as sp

STARS = torch.tensor([[5772., 4.44, 0., 0.], [4500., 2., -.3, .1], [6900., 4.1, -.4, .1], [5200., 3.3, -2., .3]])
ZERO = torch.zeros(len(STARS))
GRID = data_dir('stellar_grid', 'stellar_grid.npz')
needs_grid = pytest.mark.skipif(GRID is None, reason='the computed grid is not at hand (data/stellar_grid)')


def test_shipped_size():
    sets = [package_data(o) for o in ('emulator', 'instrument', 'templates')]
    assert sum(f.stat().st_size for o in sets for f in o.rglob('*')) <= 6e6


@pytest.mark.parametrize('arm', em.ARMS)
def test_shipped_accuracy(arm):
    e = em.Emulator.load(arm)
    held = e.info['heldout']
    assert held['flux']['all']['median'] <= .0012 and held['flux']['all']['p95'] <= .009
    assert held['ridge']['all']['median'] > 5*held['flux']['all']['median']
    assert np.median([o['p95'] for o in e.info['splits'].values()]) <= .009


@needs_grid
@pytest.mark.parametrize('arm', em.ARMS)
def test_emulator_against_nodes(arm):
    "Fitted to all nodes: the stored spectra come back to better than the held-out error"
    grid, e = em.read_grid(GRID, arm), em.Emulator.load(arm)
    d = (e(grid['labels'])-grid['flux']).abs()
    assert d.median() < e.info['heldout']['flux']['all']['median'] and d.max() < .1
    assert e.inside(grid['labels']).all()


@pytest.mark.slow
@needs_grid
def test_heldout_is_reproducible():
    "The stored held-out errors, measured again from the grid with the same split"
    got, stored = em.evaluate(em.read_grid(GRID, 'pfs'), 42), em.Emulator.load('pfs').info['heldout']
    for part in ('flux', 'cont', 'ridge'):
        for region in stored[part]:
            assert got[part][region]['nodes'] == stored[part][region]['nodes']
            for k in ('median', 'p95'): assert got[part][region][k] == pytest.approx(stored[part][region][k], rel=.05, abs=1e-5), (part, region, k)


def test_gaussian_process_interpolates():
    "A fit through exact data agrees with scikit-learn's Gaussian process of the same kernel"
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct, Matern
    x = torch.rand(60, 4, generator=generator(0), dtype=torch.float64)
    y = torch.stack([torch.sin(3*x[:, 0])+x[:, 1], x[:, 2]*x[:, 3]], 1)
    theta, alpha = em.fit_group(x[:50], y[:50], np.log([.5, .5, .5, .5, 1., .01]))
    ell, amp, noise = np.exp(theta[:4]), np.exp(2*theta[4]), np.exp(2*theta[5])
    kernel = ConstantKernel(amp)*Matern(ell, nu=2.5) + ConstantKernel(em._PRIOR)*DotProduct(1.)
    ref = GaussianProcessRegressor(kernel, alpha=noise, optimizer=None).fit(x[:50].numpy(), y[:50].numpy()).predict(x[50:].numpy())
    ours = (amp*em.matern(x[50:], x[:50], torch.tensor(ell)) + em._PRIOR*em.linear(x[50:])@em.linear(x[:50]).T)@alpha
    np.testing.assert_allclose(ours.numpy(), ref, atol=1e-6)


def test_hull_is_the_convex_hull():
    "Half-spaces against a linear program's answer to `is it a mixture of nodes?`"
    from scipy.optimize import linprog
    e = sp.lamost()
    low, high = e.label_range()
    points = low+(high-low)*torch.rand(60, 4, generator=generator(5))
    nodes = e.nodes.numpy()
    A = np.vstack([nodes.T, np.ones(len(nodes))])
    truth = [linprog(np.zeros(len(nodes)), A_eq=A, b_eq=np.r_[x, 1.]).status == 0 for x in e.scale(points).numpy()]
    assert e.inside(points).tolist() == truth and 5 < sum(truth) < 55


def test_outside_is_refused_by_name():
    bad = torch.cat([STARS, torch.tensor([[3300., 4.8, 0., 0.], [12000., 4., 0., 0.]])])
    for f in (sp.lamost(), sp.lamost().continuum, lambda l: sp.mock_lamost(l, 50.)):
        with pytest.raises(ValueError, match=r'labels 4 \(teff=3300.*2 of 6'): f(bad)
    with pytest.raises(ValueError, match='labels 0'): sp.lamost()(torch.full((1, 4), float('nan')))


def test_gradient_in_double_precision():
    e = em.Emulator.load('pfs').double()
    l = STARS.double()
    for i, h in enumerate((.5, 1e-4, 1e-4, 1e-4)):
        step = torch.zeros(4, dtype=torch.float64)
        step[i] = h
        auto = torch.autograd.functional.jvp(e, l, (step/h).expand_as(l))[1]
        assert torch.allclose(auto, (e(l+step)-e(l-step))/(2*h), atol=1e-6)


@pytest.mark.parametrize('kind', ['uniform', 'field', 'mix'])
def test_draws(kind):
    l = sp.draw_labels(500, generator(1), kind)
    assert l.shape == (500, 4) and sp.lamost().inside(l).all()
    assert torch.equal(l, sp.draw_labels(500, generator(1), kind)) and not torch.equal(l, sp.draw_labels(500, generator(2), kind))


def test_same_seed_same_spectra():
    l = sp.draw_labels(16, generator(0), 'mix')
    make = lambda seed: sp.mock_lamost(l, **sp.draw_conditions(l, generator(3)), generator=generator(seed), systematics=sp.Systematics())
    (f, i), (g, j), (h, _) = make(7), make(7), make(8)
    assert torch.equal(f, g) and torch.equal(i, j) and not torch.equal(f, h)
    assert f.isfinite().all() and i.isfinite().all() and (i >= 0).all() and f.dtype == i.dtype == torch.float32


def test_snr_is_the_requested_one():
    "Measured from 200 realisations of the noise, not from the stated errors"
    snr = torch.tensor([8., 30., 100., 250.])
    gen = generator(4)
    many = torch.stack([sp.mock_lamost(STARS, snr, generator=gen)[0] for _ in range(200)]).double()
    _, ivar = sp.mock_lamost(STARS, snr, generator=gen)
    sigma = many.std(0)
    measured = (many.mean(0)/sigma)[:, sp.SNR_BAND].median(1).values
    assert torch.allclose(measured, snr.double(), rtol=.03)
    assert abs(float((sigma*ivar.sqrt()).square().mean())-1) < .02


def _direct(flux, wave_new, kernel=None):
    "Cubic-spline reference: the spectrum averaged over a velocity kernel (ln λ offsets, weights) and read at `wave_new`"
    from scipy.interpolate import CubicSpline
    s = CubicSpline(np.log(sp.LAMOST_WAVE.numpy()), flux)
    x, w = kernel or (np.zeros(1), np.ones(1))
    return (s(np.log(wave_new)[:, None]-x)*w).sum(1)/w.sum()


INNER = slice(60, -60)


@pytest.mark.parametrize('rv', [-320., -17., 45.5, 400.])
def test_velocity(rv):
    flux = sp.lamost()(STARS[:1])
    got = sp.convolve_shift(flux, torch.tensor([rv]), torch.zeros(1))[0].double().numpy()
    ref = _direct(flux[0].double().numpy(), sp.LAMOST_WAVE.numpy()/(1+rv/299792.458))
    assert np.abs(got-ref)[INNER].max() < .01 and np.sqrt(np.mean((got-ref)[INNER]**2)) < .001


@pytest.mark.parametrize('vsini', [60., 150., 300.])
def test_rotation(vsini):
    "Gray's profile summed over 400 velocities"
    flux = sp.lamost()(STARS[2:3])
    got = sp.convolve_shift(flux, torch.zeros(1), torch.tensor([vsini]))[0].double().numpy()
    x = np.linspace(-1, 1, 402)[1:-1]
    w = 2/np.pi*.4*np.sqrt(1-x**2)+.3*(1-x**2)
    ref = _direct(flux[0].double().numpy(), sp.LAMOST_WAVE.numpy(), (x*vsini/299792.458, w))
    assert np.sqrt(np.mean((got-ref)[INNER]**2)) < 3e-4
    assert np.std(got[INNER]-flux[0].numpy()[INNER]) > 1e-3


def test_resolution():
    "A Gaussian line of R=1800 becomes one of R=1200"
    lw = sp.LAMOST_WAVE.log()
    line = lambda r: 1-.3*(r/1800)*torch.exp(-.5*((lw-np.log(6000.))*2.35482*r)**2)[None] # same equivalent width
    s = sp.smoothing(torch.full((1,), 1200.))
    got = sp.convolve_shift(line(1800.).float(), torch.zeros(1), torch.zeros(1), s)
    wide = line(1200.)
    assert (got-wide).abs().max() < 2e-3


@pytest.mark.parametrize('w,a', [(4400., 1.337), (5495., 1.), (7000., .751), (9000., .479)])
def test_extinction_ccm(w, a):
    "A(λ)/A(V) for R_V=3.1: Johnson B, V, R and I of Cardelli, Clayton & Mathis 1989 (table 3); O'Donnell 1994 differs by a few hundredths"
    assert float(sp.extinction(torch.tensor([w], dtype=torch.float64))[0])/3.1 == pytest.approx(a, abs=.03)


def test_extinction_acts_on_flux():
    e = torch.full((4,), .5)
    ratio = (sp.light(STARS, ZERO, e, ZERO)/sp.light(STARS, ZERO, ZERO, ZERO)).double().log10()/-.4/.5
    k = sp.extinction(sp.LAMOST_WAVE)
    assert torch.allclose(ratio-ratio.mean(1, keepdim=True), (k-k.mean()).expand(4, -1), atol=1e-3)


def test_noise_looks_like_lamost():
    "Blue end starved, sky lines in the red, less so for bright stars"
    s = sp.noise_sigma(torch.ones(2, 3909), torch.tensor([20., 200.]))
    at = lambda a, b: s[:, (sp.LAMOST_WAVE > a) & (sp.LAMOST_WAVE < b)].median(1).values
    assert (at(3720, 3800) > 3*at(4800, 5200)).all() and (at(5870, 5900) > at(5400, 5500)).all() and (at(6800, 7200) < at(4800, 5200)).all()
    line = at(5576, 5580)/at(5500, 5550)
    assert line[0] > line[1] > 1


def test_systematics_off_is_off():
    off = sp.Systematics(*[0]*9)
    sys_free, with_off = sp.mock_lamost(STARS, 1e6, generator=generator(0)), sp.mock_lamost(STARS, 1e6, generator=generator(0), systematics=off)
    assert torch.allclose(sys_free[0], with_off[0], atol=1e-3) and torch.allclose(sys_free[1], with_off[1], rtol=1e-3)
    bad = sp.mock_lamost(STARS.repeat(100, 1), 50., generator=generator(0), systematics=sp.Systematics(bad=.1, dead=.2))[1] == 0
    assert .05 < float((bad.float().mean(1) > .4).float().mean()) < .4 and abs(float(bad.float().mean(1).median())-.1) < .01


def test_templates():
    wave, flux, info = sp.templates()
    assert flux.shape == (len(info), len(wave)) and len(info) == 228 and (wave.diff() > 0).all()
    assert flux.isnan().float().mean() < .01 and {'O5', 'B3', 'A0', 'M5', 'L0'} <= set(info.subclass)
    near = lambda a, b: (wave > a) & (wave < b)
    ratio = lambda c, a, b: float(flux[info.index[info.subclass == c][0]][near(*a)].nanmean()/flux[info.index[info.subclass == c][0]][near(*b)].nanmean())
    assert ratio('M5', (7050, 7150), (7000, 7045)) < .9 and ratio('A0', (4850, 4876), (4900, 4950)) < .9  # TiO and Hβ
