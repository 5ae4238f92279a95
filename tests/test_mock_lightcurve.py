"""Mock light curves: spots as butterpy makes them, eclipses as batman does, calibrated noise, periods that can be found, parts that share no star."""
from pathlib import Path

import numpy as np
import pytest
import torch

from stellar_nb.core import generator
from stellar_nb.mock import lightcurve as ml
from stellar_nb.mock import variability as mv

HERE = Path(__file__).parent
CADENCE = ml.CADENCE


@pytest.fixture(scope='module')
def stars(): return ml.draw_targets(3000, generator(1))


@pytest.mark.parametrize('i', range(3))
def test_spots_against_butterpy(i):
    "The same spots give the curve that butterpy 1.0.0 computed (its light in float32), but for the kinks of rising spots"
    z = np.load(HERE/'butterpy_reference.npz')
    period, inclination, shear, grow, decay = z[f'star{i}']
    time, lat, lon, area = (torch.tensor(z[f'{k}{i}']).double() for k in ('time', 'lat', 'lon', 'area'))
    rate = torch.tensor([2*np.pi/period])
    full = torch.full_like(time, 1)
    spots = mv.Spots(torch.zeros(len(time), dtype=torch.long), time, lat, lon, area, -rate*shear*lat.sin()**2, grow*full, decay*full)
    every, block = int(z['every']), 8
    envelopes = mv.spot_envelopes(spots, torch.tensor([inclination]).deg2rad(), len(z[f'flux{i}'])*every//block+4, block*CADENCE, harmonics=12)
    ours = 1-mv.spot_light(envelopes, rate, block)[0][::every][:len(z[f'flux{i}'])].numpy()
    error = ours-z[f'flux{i}']
    assert error.std() < .01*z[f'flux{i}'].std() and abs(error).max() < .02*np.ptp(z[f'flux{i}'])


@pytest.mark.parametrize('i', range(4))
def test_eclipses_against_batman(i):
    "Eclipses by a dark body with linear limb darkening"
    z = np.load(HERE/'batman_reference.npz')
    k, a, inclination, u, _ = z[f'par{i}']
    theta = 2*np.pi*torch.tensor(z['phase'])
    d = a*(theta.sin()**2+(np.cos(np.radians(inclination))*theta.cos())**2).sqrt()
    light = 1-mv.hidden_share(d, torch.tensor(1.), torch.tensor(k), u).numpy()
    depth = 1-z[f'flux{i}'].min()
    assert abs(light-z[f'flux{i}']).max() < .001*depth
    assert abs((light < 1-1e-6).sum()-(z[f'flux{i}'] < 1-1e-6).sum()) <= 4 # duration, in steps of phase


def test_power_is_calibrated():
    "Parseval: the power integrates to the variance, and white noise has its standard deviation"
    n = 20_000
    freq = mv.frequencies(n)
    power = mv.granulation_power(freq, torch.tensor([30., 3000.]))+mv.oscillation_power(freq, torch.tensor([30., 3000.]))
    x = mv.coloured_noise(power, n, generator(0))
    assert torch.allclose(x.var(1), power[:, 1:].sum(1)*freq[1], rtol=.15)
    white = mv.coloured_noise(mv.white_power(torch.tensor([250.]))[:, None].expand(1, len(freq)), n, generator(1))
    assert abs(white.std()/250-1) < .03
    assert abs(mv.nu_max(torch.tensor(4.438), torch.tensor(5777.))-3090) < 1


def test_hot_stars_do_not_granulate():
    assert mv.convective(torch.tensor([5000., 7300., 9000.])).tolist() == [1, .5, 0]


def test_stars_of_a_batch_are_independent():
    "A star's spots do not depend on the others, and the start of a curve not on its length"
    p, tilt = torch.tensor([3., 11., 30.]), torch.tensor([1.2, .9, 1.4])
    spots = mv.draw_spots(p, torch.tensor([.03, .1, .2]), 200., generator(4))
    both = mv.spot_light(mv.spot_envelopes(spots, tilt, 110), 2*torch.pi/p)
    one = mv.Spots(*(o[spots.star == 1] for o in spots))
    alone = mv.spot_light(mv.spot_envelopes(one._replace(star=0*one.star), tilt[1:2], 60), 2*torch.pi/p[1:2])
    assert torch.allclose(both[1, :alone.shape[1]], alone[0], atol=1e-4*both[1].abs().max())


def peak(flux, seen, low=.25, high=60.):
    "Period of the strongest peak of the power spectrum, gaps filled with the mean (a Lomb-Scargle periodogram on a regular grid)"
    x = np.where(seen, flux-flux[seen].mean(), 0)
    f, p = np.fft.rfftfreq(8*len(x), CADENCE), abs(np.fft.rfft(x, 8*len(x)))
    m = (f > 1/high) & (f < 1/low)
    return 1/f[m][p[m].argmax()]


def test_period_can_be_found(stars):
    "The highest peak of three noise-free quarters is the period or half of it, but for a few stars whose spots come and go too fast"
    s = stars[(stars.kind == 'rotator') & stars.prot.between(1, 12) & (stars.sph > 1000)].head(64)
    c = ml.mock_lightcurves(s, generator(2), (5, 6, 7), noise=False)
    ratio = np.array([peak(f.double().numpy(), m.numpy()) for f, m in zip(c.flux, c.seen)])/s.prot.to_numpy()
    assert ((abs(ratio-1) < .12) | (abs(ratio-.5) < .06)).mean() > .75, ratio


def test_activity_is_the_wanted_one(stars):
    s = stars[(stars.kind == 'rotator') & stars.prot.between(2, 15)].head(24)
    c = ml.mock_lightcurves(s, generator(3), (3, 4), noise=False, attenuation=0.)
    ratio = [np.mean([f[m].std() for f, m in zip(flux.split(w), seen.split(w)) if m.float().mean() > .7])/(sph*1e-6)
             for flux, seen, sph, w in zip(c.flux, c.seen, s.sph, (5*s.prot/CADENCE).astype(int))]
    assert .85 < np.median(ratio) < 1.25


def test_seeds(stars):
    s = stars.head(40)
    a, b, c = (ml.mock_lightcurves(s, generator(k), 10) for k in (1, 1, 2))
    assert torch.equal(a.flux, b.flux) and torch.equal(a.seen, b.seen) and not torch.equal(a.flux, c.flux)
    assert ml.draw_targets(50, generator(5)).equals(ml.draw_targets(50, generator(5)))
    assert a.flux.isfinite().all() and a.flux.dtype == torch.float32 and (a.flux[~a.seen] == 0).all()


def test_parts_share_no_star(stars):
    kics = [set(stars.kic)]+[set(ml.draw_targets(800, generator(2), k).kic) for k in ('calibrate', 'test')]
    assert not kics[0] & kics[1] and not kics[0] & kics[2] and not kics[1] & kics[2]
    with pytest.raises(ValueError, match='the parts are'): ml.draw_targets(3, generator(0), 'valid')


def test_targets(stars):
    assert stars.kepmag.between(9, 16).all() and stars.prot.dropna().between(*ml.PERIODS).all()
    assert .6 < (stars.kind == 'rotator').mean() < .75 and .08 < stars.depth.notna().mean() < .15
    two = stars[stars.synchronised]
    assert len(two) and np.allclose(two.prot, two.period_orb) and stars.sph.isna().equals(stars.prot.isna())
    assert np.allclose(stars.abs_kepmag, stars.kepmag-5*np.log10(stars.distance/10))
    assert stars.age.between(.1, 13).all()
    own = stars[(stars.age_from == 'rotation') & stars.age.between(.11, 12.9)]
    assert np.allclose(ml.gyro_period(own.teff, own.age), own.prot)


def test_calendar(stars):
    c = ml.mock_lightcurves(stars.head(300), generator(6), range(4, 8))
    assert c.quarter.unique().tolist() == [0, 4, 5, 6, 7] and not c.seen[:, c.quarter == 0].any()
    assert torch.equal(c.time, torch.arange(len(c.time), dtype=torch.float64)*CADENCE)
    for at, n in ml.GAPS:
        if ml.QUARTERS[4][0] <= at <= ml.QUARTERS[7][1]: assert not c.seen[:, at-ml.QUARTERS[4][0]:at+n-ml.QUARTERS[4][0]].any()
    share = torch.stack([c.seen[:, c.quarter == q].float().mean(1) for q in (4, 5, 6, 7)], 1)
    lost = (share == 0)
    assert not lost[:, 0].any() and (lost.sum(1) <= 1).all() and .05 < lost[:, 1:].any(1).float().mean() < .25
    alone = ml.mock_lightcurves(stars.head(3), generator(6), 9)
    assert alone.flux.shape == (3, 4768) and (alone.quarter == 9).all()
    for bad in (0, 18, ()):
        with pytest.raises(ValueError, match='1 to 17'): ml.mock_lightcurves(stars.head(1), generator(0), bad)


def test_noise_follows_the_magnitude(stars):
    s = stars[stars.kind == 'quiet'].head(32)
    c = ml.mock_lightcurves(s, generator(8), 3)
    d = c.flux[:, 2:]-2*c.flux[:, 1:-1]+c.flux[:, :-2]
    m = c.seen[:, 2:] & c.seen[:, 1:-1] & c.seen[:, :-2]
    got = torch.stack([1.4826e6*x[o].abs().median()/6**.5 for x, o in zip(d, m)])
    ratio = got/ml.photon_noise(torch.tensor(s.kepmag.to_numpy()))
    assert .95 < ratio.median() < 1.15


def test_steady_stars_repeat_their_curve():
    fast = ml.draw_targets(3000, generator(6), fast=.3)
    assert (fast.prot < 1).mean() > 3*(ml.draw_targets(3000, generator(6)).prot < 1).mean() and fast.prot.min() >= ml.PERIODS[0]
    steady = fast.prot < 3
    assert .5 < (fast.decay[steady] >= 100).mean() < .95 and .05 < (fast.decay[~steady & fast.prot.notna()] >= 100).mean() < .4
    p, gen = torch.full((8,), 2., dtype=torch.float64), generator(7)
    def alike(decay):  # correlation of a curve with itself thirty rotations later
        env = mv.spot_envelopes(mv.draw_spots(p, torch.zeros(8), 200., gen, decay=torch.full((8,), decay)), torch.full((8,), 1.2), int(200/mv.CADENCE/mv.BLOCK)+3)
        f = mv.spot_light(env, 2*torch.pi/p)
        lag = round(60/mv.CADENCE)
        a, b = f[:, :-lag]-f[:, :-lag].mean(1, keepdim=True), f[:, lag:]-f[:, lag:].mean(1, keepdim=True)
        return ((a*b).mean(1)/a.std(1)/b.std(1)).mean()
    assert alike(2000.) > .9 and alike(15.) < .6
