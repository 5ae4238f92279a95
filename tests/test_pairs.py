"""Stars with a spectrum and a light curve: no star in two parts, the same draw from the same seed, flags that follow from the physics, one set of rows for both instruments."""
import numpy as np
import pandas as pd
import pytest
import torch

from stellar_nb.core import generator
from stellar_nb.mock import pairs as mp
from stellar_nb.mock.lightcurve import reserved
from stellar_nb.recipes.lightcurve import _series


@pytest.fixture(scope='module')
def stars(): return mp.draw_pairs(6000, generator(1))


@pytest.fixture(scope='module')
def visits(stars): return mp.pair_visits(stars, generator(2))


def test_parts_share_no_star():
    "Neither primaries nor the dwarfs that companions are taken from"
    drawn = {p: set(mp.draw_pairs(3000, generator(1), p).kic) for p in mp.PARTS}
    pools = {p: {tuple(o) for o in mp._pool(p)[:, [0, 1, 3, 4]]} for p in mp.PARTS}
    for a, b in (('train', 'calibrate'), ('train', 'test'), ('calibrate', 'test')): assert not drawn[a] & drawn[b]
    assert not set.union(*drawn.values()) & reserved()
    digits = {p: {k % 10 for k in v} for p, v in drawn.items()}
    assert digits == {'train': set(range(8)), 'calibrate': {8}, 'test': {9}}
    for p in mp.PARTS:
        s = mp.draw_pairs(1000, generator(2), p)
        assert all(tuple(o) in pools[p] for o in s[s.template2 == -1][['teff2', 'logg2', 'radius2', 'loglum2']].to_numpy())
    whole = mp.catalogue()
    for p, digits in mp.PARTS.items(): # as many dwarfs as that part of the catalogue has
        c = whole[whole.kic.mod(10).isin(digits) & ~whole.kic.isin(reserved())]
        assert len(mp._pool(p)) == ((c.logg > 4.1) & c.teff.between(3900, 7500) & (c.mass > .6)).sum()


def test_deterministic(stars):
    pd.testing.assert_frame_equal(mp.draw_pairs(6000, generator(1)), stars)
    assert not mp.draw_pairs(6000, generator(2)).kic.equals(stars.kic)
    a, b = (mp.conditioning(stars, generator(3)) for _ in range(2))
    assert torch.equal(a.nan_to_num(-9), b.nan_to_num(-9))
    pd.testing.assert_frame_equal(mp.pair_visits(stars, generator(2)), mp.pair_visits(stars, generator(2)))


def test_pairs_as_in_the_field(stars):
    dwarf = stars.logg > 4.1
    assert .4 < stars.binary[dwarf].mean() < .52
    far = stars[stars.binary & ~stars.close]
    assert 4 < np.log10(far.period).median() < 5.3 and (far.a/215.03/far.distance).max() < mp.RESOLVED
    assert stars.close[stars.period < 30].mean() > .7


def test_synchronised(stars):
    s = stars[stars.synchronised]
    assert len(s) > 300 and (s.period < 10).all()
    shown = s[s.prot.notna()]
    assert np.allclose(shown.prot, shown.period) and len(shown) > .95*len(s)
    assert np.allclose(np.cos(np.radians(s.inclination)), s.cos_i, atol=1e-6)
    assert s.gyro_age.isna().all() and not s.gyro.any()


def test_ruwe(stars):
    one = stars.ruwe[~stars.binary]
    assert abs(one.median()-1.02) < .01 and one.max() < mp.RUWE
    assert stars.ruwe[stars.period.between(300, 3000)].median() > 1.2
    assert abs(stars.ruwe[stars.period > 1e6].median()-1.02) < .02


def test_flags_follow_physics(stars):
    s, e = stars, stars[stars.flag_eclipsing]
    assert len(e) and (e.cos_i < (e.radius+e.radius2)/e.a).all() and e.binary.all() and (e.period < mp.CURVE).all()
    assert (s.flag_ruwe == (s.ruwe > mp.RUWE)).all()
    assert s.binary[s.flag_nss].all() and s.period[s.flag_nss].max() <= 1000 and (s.flag_ruwe | (s.k1 > 5))[s.flag_nss].mean() > .9
    assert s.binary[s.flag_rv].mean() > .99 and s.g_true[s.flag_rv].max() < 13.5
    assert s.k1[s.flag_rv].median() > 3*s.k1.median()
    assert (s.flag_any == s[['flag_ruwe', 'flag_nss', 'flag_rv', 'flag_eclipsing']].any(axis=1)).all()


def test_samples(stars):
    one = stars[stars.single_sample]
    assert not one.flag_any.any() and one.ruwe.max() < 1.2 and not one.sync_candidate.any() and one.dk_iso.abs().max() < .3
    assert (stars.binary_sample == stars.flag_any).all()
    assert stars.binary[stars.single_sample].mean() < stars.binary.mean()


def test_cmd(stars):
    assert set(stars.cmd.dropna()) == set(mp.CMD)
    assert (stars.cmd.isna() == (stars.abs_g0.isna() | stars.bp_rp0.isna())).all()
    assert (stars.logg[stars.cmd == 'giant'] < 3.9).mean() > .95 and (stars.logg[stars.cmd == 'dwarf'] > 4).mean() > .95
    assert stars.binary[stars.cmd == 'photometric binary'].mean() > .7 > stars.binary[stars.cmd == 'dwarf'].mean()
    twin = (stars.light2 > .3) & (stars.logg > 4.3) & (stars.teff < 5500)
    alone = ~stars.binary & (stars.logg > 4.3) & (stars.teff < 5500)
    assert stars.dk_iso[twin].median() < -.35 and abs(stars.dk_iso[alone].median()) < .1


def test_ages(stars):
    g = stars[stars.gyro_age.notna()]
    assert g.gyro.all() and not g.flag_any.any()
    young = g.age < mp.GYRO_TURN
    assert abs(((g.gyro_age-g.age)/g.age)[young].std()-mp.GYRO_YOUNG) < .02
    assert abs((g.gyro_age-g.age)[~young].std()-mp.GYRO_OLD) < .1
    fast = stars[stars.fast_rotator]
    assert fast.age[~fast.synchronised].median() < 1 < fast.age[fast.synchronised].median()
    assert fast.sigma[~fast.synchronised].median() < 25 < fast.sigma[fast.synchronised].median()


def test_conditioning(stars):
    x = mp.conditioning(stars, generator(3))
    assert x.shape == (len(stars), 6) and x.dtype == torch.float32
    gone = x.isnan().float().mean(0)
    assert x[stars.prot.isna().tolist(), 2].isnan().all() and x[stars.parallax.isna().tolist(), 4].isnan().all()
    assert gone[2] > .15 and (gone[[0, 1, 3, 5]] < .05).all() and (gone > 0).all()
    one = ~stars.binary
    assert abs((stars.teff_obs-stars.teff)[one].std()-100) < 5 and abs((stars.teff_obs-stars.teff)[one].mean()) < 5
    assert (stars.teff_obs-stars.teff)[stars.light2.between(.1, .4)].mean() < -50 # a cooler companion
    assert (stars.radius_obs/stars.radius)[stars.light2 > .3].median() > 1.15


def test_same_star_in_all_visits(stars, visits):
    assert 1.38 < len(visits)/len(stars) < 1.52 and .28 < (visits.groupby('star').size() > 1).mean() < .36
    same = ['kic', 'teff_obs', 'age', 'gyro_age', 'cmd', 'ruwe', 'flag_any', 'light2']
    pd.testing.assert_frame_equal(visits[same], stars[same].iloc[visits.star].reset_index(drop=True))
    assert visits.star.is_monotonic_increasing and (visits.visit == visits.groupby('star').cumcount()).all()
    move = visits.groupby('star').rv1.agg(lambda v: np.ptp(v.to_numpy()))[visits.groupby('star').size() > 1]
    of = lambda k: stars[k].to_numpy()[move.index]
    assert (move[~of('binary')] == 0).all() and move[of('period') > 1e6].max() < 1 and move[of('k1') > 50].median() > 20
    assert (visits.groupby('star').snr.nunique() == visits.groupby('star').size())[lambda o: o].size > .9*len(stars)


def test_both_instruments_take_the_same_rows(visits, stars):
    v = visits[visits.star.isin(visits.star.unique()[:12])]
    flux, ivar = mp.pair_spectra(v, generator(4))
    assert flux.shape == ivar.shape == (len(v), 3909) and flux.isfinite().all() and (ivar >= 0).all()
    assert torch.equal(flux, mp.pair_spectra(v, generator(4))[0])
    c = mp.pair_curves(stars.iloc[v.star.unique()], generator(5), 10)
    assert len(c.flux) == 12 and c.flux.isfinite().all() and torch.equal(c.flux, mp.pair_curves(stars.iloc[v.star.unique()], generator(5), 10).flux)
    series, seen, mag, there = _series(stars.iloc[v.star.unique()], generator(9), 'desa_quarter')
    assert len(series) == len(seen) == len(mag) == len(there) and series.isfinite().all()


def test_far_companions_shine_in_both(stars):
    "The same stars with and without their companion: another spectrum, less noise and weaker spots"
    far = stars[(stars.period > 1e4) & (stars.light2 > .2) & (stars.teff-stars.teff2 > 300) & (stars.prot < 15)].head(12)
    assert len(far) == 12 and far.period_orb.isna().all() and far.depth.isna().all()
    alone = far.assign(seen2=False, kepmag=far.kepmag-2.5*np.log10(1-far.light2), sph=far.sph/(1-far.light2))
    a, b = (mp.pair_spectra(o, generator(6), None, noise=False)[0] for o in (far, alone))
    assert (a-b).abs().mean(1).min() > .002
    noise = [mp.photon_noise(torch.tensor(o.kepmag.to_numpy())) for o in (far, alone)]
    assert (noise[0] < noise[1]).all()
    spots = [mp.mock_lightcurves(o, generator(7), 2, noise=False, attenuation=0) for o in (far, alone)]
    size = [torch.stack([f[m].std() for f, m in zip(c.flux, c.seen)]) for c in spots]
    assert (size[0] < size[1]).float().mean() > .9


def test_close_pair_eclipses_in_the_curve(stars):
    e = stars[stars.flag_eclipsing & (stars.depth > .1) & (stars.period < 3)].head(4)
    c = mp.mock_lightcurves(e, generator(8), 2, noise=False)
    for f, m, d in zip(c.flux, c.seen, e.depth): assert 1-f[m].min()/f[m].median() > .5*d


def test_unknown_part():
    with pytest.raises(ValueError, match='the parts are'): mp.draw_pairs(3, generator(0), 'validation')
