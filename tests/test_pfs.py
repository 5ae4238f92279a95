"""The mock PFS survey and its ceiling: photons are conserved, splits do not move, the table belongs to the stars it names."""
import numpy as np
import pytest
import torch

from stellar_nb.core import generator
from stellar_nb.eval import ceiling as ce
from stellar_nb.mock import pfs as mp
from stellar_nb.mock.emulator import Emulator
from stellar_nb.mock.stars import alpha_of

PINNED = [5395.95117, 4.33997011, -.983522177, .393408865, 21.9268913, 1.15267754, 12.6198492] # first star of the test split: labels, i, seeing, velocity
STAR = dict(labels=torch.tensor([[4900., 2.6, -.4, .16], [5600., 4.4, -.1, .04]]), imag=torch.tensor([20.5, 22.]), seeing=torch.tensor([.6, 1.2]),
            rv=torch.tensor([0., 12.]), calib=torch.zeros(2, 4))


def test_grid():
    np.testing.assert_allclose(Emulator.load('pfs').wave, mp.PFS_WAVE, rtol=1e-9)


def test_shift_agrees_with_lamost_sign():
    "A star that recedes has its lines redwards"
    f = mp.clean_pfs(STAR['labels'][:1])[0]
    red = mp.clean_pfs(STAR['labels'][:1], 60.)[0]
    at = lambda f: float(mp.PFS_WAVE[4000-700:4000-500][f[4000-700:4000-500].argmin()])
    assert at(red)/at(f)-1 == pytest.approx(60/299792.458, abs=6e-5)


@pytest.mark.parametrize('resolution', [2000., 5000., 20_000.])
def test_lines_keep_their_light(resolution):
    "The share of each line summed over the pixels is 1, whatever the resolution"
    lines = mp.sky_lines()[0]
    inner = lines[(lines > 7200) & (lines < 8800)]
    share = mp._line_profile(mp.PFS_WAVE.numpy(), inner, mp.PFS(resolution=resolution)).sum(1)
    np.testing.assert_allclose(share, 1, atol=1e-6)


def test_known_magnitudes():
    "A flat source of 0 mag gives the gain; ten times the fibre's area gives ten times the sky"
    flat = mp.PFS_WAVE.float()[None]**-2
    e = mp.electrons(flat, 0., 1e-3)[0].numpy()
    np.testing.assert_allclose(e, mp.gain(mp.PFS_WAVE.numpy())*mp.transmission(mp.PFS_WAVE.numpy()), rtol=1e-4)
    one, ten = mp.sky_electrons(), mp.sky_electrons(inst=mp.PFS(fibre=1.12*10**.5))
    np.testing.assert_allclose(ten, 10*one)
    # a G star of V = 0 sends about 1000 photons/s/cm²/Å at 5500 Å (Allen): AB = 0 sends 5.5e6 per unit of ln λ
    assert mp._PHOTONS/5500 == pytest.approx(1000, rel=.05)


def test_variance_adds_up():
    flux, sigma = mp.mock_pfs(**STAR, noise=False)
    e = mp.electrons(flux, STAR['imag'], STAR['seeing'])
    k = mp.electrons_per_flux(flux, STAR['imag'], STAR['seeing'])
    total = e + torch.tensor(sum(mp.noise_budget().values())).float()
    torch.testing.assert_close((sigma*k)**2, total, rtol=1e-4, atol=1e-2)


def test_calibration_keeps_the_snr():
    flux, sigma = mp.mock_pfs(**STAR, noise=False)
    bent = mp.mock_pfs(**(STAR | dict(calib=torch.tensor([[.05, -.02, .01, .03]]).expand(2, 4))), noise=False)
    torch.testing.assert_close(bent[0]/bent[1], flux/sigma, rtol=1e-4, atol=1e-4)
    assert (bent[0]/flux-1).abs().max() > .03


def test_worse_conditions_more_noise():
    f = torch.ones(1, 4096)
    s = lambda *a, **k: float(mp.noise_sigma_pfs(f, *a, **k).median())
    assert s(21., .6) < s(21., .9) < s(21., 1.4) and s(20., .8) < s(21., .8) < s(22., .8)
    assert s(21., .8, mp.PFS(read=8.)) > s(21., .8) > s(21., .8, mp.PFS(exposures=24))


def test_generator_decides():
    a, b, c = (mp.mock_pfs(**STAR, generator=generator(s))[0] for s in (1, 1, 2))
    assert (a == b).all() and (a != c).any()


def test_splits_do_not_share_stars():
    parts = {k: mp.PfsSplit(k, n=1000).labels for k in mp.SPLITS}
    rows = [set(map(tuple, v.tolist())) for v in parts.values()]
    assert sum(map(len, rows)) == len(set.union(*rows)) == 3000
    assert (mp.PfsSplit('test', seed=43, n=10).labels != parts['test'][:10]).any()


def test_noise_belongs_to_the_star():
    a = mp.star_noise(torch.tensor([5, 900, 6]))
    assert (a[1] == mp.star_noise(torch.arange(900, 902))[0]).all() and (a[0] != a[2]).any()
    assert (mp.star_noise(torch.tensor([5]), 'valid') != a[:1]).any()
    assert np.corrcoef(a.numpy())[0, 1:].max() < .06


def test_first_stars_are_pinned():
    "A change of the survey that nobody meant shows here"
    s = mp.PfsSplit('test', n=2)
    assert s.labels[0].tolist() == pytest.approx(PINNED[:4], rel=1e-5)
    assert [float(s.params[k][0]) for k in ('imag', 'seeing', 'rv')] == pytest.approx(PINNED[4:], rel=1e-5)


def test_bad_requests():
    with pytest.raises(ValueError, match='the splits are'): mp.PfsSplit('all')
    with pytest.raises(ValueError, match='valid has 1 to 1000'): mp.PfsSplit('valid', n=1001)
    with pytest.raises(ValueError, match='outside the computed grid'): mp.mock_pfs(torch.tensor([[3000., 5., 0., 0.]]), 21., .8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_device_of_the_inputs():
    s = mp.PfsSplit('valid', n=20)
    a, b = s.noisy(), s.noisy(device='cuda')
    assert b[0].is_cuda and torch.allclose(a[0], b[0].cpu(), atol=2e-3)


# --- ceiling --------------------------------------------------------------------------------------------------------------------------------

def test_survey_line():
    free = mp.PfsSplit('valid', n=200).labels
    torch.testing.assert_close(ce.on_survey(free[:, :3]), free, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(ce.on_survey(torch.tensor([[5000., 3., -2.], [5000., 3., .3]]))[:, 3], alpha_of([-2, .3]), atol=1e-6)


def test_bounds_grow_with_magnitude():
    near, far = (ce.bounds(STAR | dict(imag=torch.full((2,), m))) for m in (20., 23.))
    assert (near[0] < far[0]).all() and (near[1] < far[1]).all() and (near[1] <= near[0]).all()
    sd = ce.prior_covariance().diagonal().sqrt()*ce.SPREAD[:3]
    assert (far[1] <= sd*1.001).all()


def test_table_names_its_stars():
    t = ce.ceiling_table()
    own = t[~t.fixed]
    s = mp.PfsSplit('test', n=len(own))
    np.testing.assert_allclose(own[[f'{k}_true' for k in ce.FREE]], s.labels[:, :3], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(own.imag, s.params["imag"], rtol=1e-4)
    assert (t.ess > 20).all()


def test_table_is_reproducible():
    t = ce.ceiling_table()
    new = ce.ceiling_rows(mp.PfsSplit('test', n=1000), torch.tensor([3, 17]))
    for k in ce.FREE:
        np.testing.assert_allclose(new[f'{k}_mean'], t[~t.fixed][f'{k}_mean'].iloc[[3, 17]], atol=.02*float(ce.SPREAD[ce.FREE.index(k)]))
        np.testing.assert_allclose(new[f'{k}_vt'], t[~t.fixed][f'{k}_vt'].iloc[[3, 17]], rtol=.02)


@pytest.mark.parametrize('label', ce.FREE)
def test_posteriors_are_calibrated(label):
    "Truth minus posterior mean in units of the posterior's spread has unit variance"
    t = ce.ceiling_table()
    z = (t[f'{label}_true']-t[f'{label}_mean'])/t[f'{label}_sd']
    assert abs(z.mean()) < .1 and z.std() == pytest.approx(1, abs=.06)
