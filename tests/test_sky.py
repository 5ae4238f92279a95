"""The mock sky: laws of orbits and light, rules of the types, spectra that show them."""
import time

import numpy as np
import pytest
import torch

from stellar_nb.core import generator
from stellar_nb.data.gaia import GAIA_COLUMNS
from stellar_nb.mock import sky as ms
from stellar_nb.mock.spectra import LAMOST_WAVE


@pytest.fixture(scope='module')
def stars(): return ms.draw_sky(6000, generator(7))


def has(stars, kind): return stars.types.str.split('|').map(lambda o: kind in o)


def test_same_seed_same_sky(stars):
    a, b, c = (ms.sky_batch(48, generator(s)) for s in (3, 3, 4))
    for x, y in zip(a[:3], b[:3]): assert torch.equal(x, y)
    assert a.stars.equals(b.stars) and not torch.equal(a.flux, c.flux)
    assert a.flux.shape == a.sigma.shape == (48, 3909) and a.y.shape == (48, 55) and list(a.gaia) == list(GAIA_COLUMNS)
    assert a.flux.isfinite().all() and (a.sigma > 0).all() and a.rv.isfinite().all()
    d = ms.sky_batch(0, generator(1), stars=stars[:9])
    assert len(d.flux) == 9 and d.stars.equals(stars[:9])


def test_mix(stars):
    p = stars.kind.value_counts(normalize=True)
    for k, want in ms.SKY_MIX.items(): assert abs(p[k]-want) < 4*np.sqrt(want/6000)+.005, k
    assert set(ms.draw_sky(50, generator(1), dict(hot=1.)).kind) == {'hot'}
    with pytest.raises(ValueError, match='the kinds are'): ms.draw_sky(5, generator(1), dict(galaxy=1))


def test_targets_are_closed(stars):
    y = ms.SKY.encode(stars.types)
    assert torch.equal(ms.SKY.encode(ms.SKY.decode(y)), y) and (y.sum(1) > 0).all()
    assert ms.SKY.unknown(stars.types) == {}


def test_stars_obey_stefan_boltzmann(stars):
    assert (abs(stars.loglum-2*np.log10(stars.radius)-4*np.log10(stars.teff/5772)) < .05).mean() > .95
    assert (abs(stars.logg-4.438-np.log10(stars.mass/stars.radius**2)) < .1).mean() > .9


def test_orbits(stars):
    p = stars[stars.a.notna()]
    assert np.allclose((p.a/215.03)**3, (p.mass+p.mass2)*(p.period/365.25)**2, rtol=1e-3), 'Kepler III'
    assert np.allclose(p.k1*p.mass, p.k2*p.mass2) and np.allclose(p.dv1*p.mass, -p.dv2*p.mass2), 'momentum'
    assert (p.a >= 1.99*(p.radius+p.radius2)).all() and (p.mass2 <= p.mass).all()
    circumference = 2*np.pi*p.a*695700*np.sqrt(1-p.cos_i**2)/86400/p.period
    assert np.allclose(p.k1+p.k2, circumference, rtol=5e-3)
    chance = ((p.radius+p.radius2)/p.a).clip(upper=1)
    seen = p.cos_i < chance
    assert abs(seen.sum()-chance.sum()) < 4*np.sqrt(chance.sum())
    assert seen[has(p, 'EB*')].all()


def test_rules(stars):
    pm = np.hypot(stars.pmra_true, stars.pmdec_true)
    assert (has(stars, 'PM*') == (pm > 150)).all() and (has(stars, 'SB*') == (stars.k1 > 10)).all() and (has(stars, '**') == stars.mass2.notna()).all()
    assert not (has(stars, 'MS*') & has(stars, 'Ev*')).any() and (stars.logg[has(stars, 'RG*')] < 3.5).all()
    assert (stars.population[has(stars, 'HV*')] == 'halo').mean() > .8
    assert set(stars.kind[has(stars, 'Ma*')]) == {'hot'} and set(stars.kind[has(stars, 'LM*')]) >= {'cool'}
    assert not (has(stars, 'EB*') & has(stars, 'El*')).any()
    for k in ('RS*', 'BY*'): assert (stars.period[has(stars, k)] <= 14).all() and stars.mass2[has(stars, k)].notna().all()
    cool = stars[stars.kind == 'cool']
    assert has(cool, 'Em*')[cool.prot < 3].mean() > .9 and not has(cool, 'Em*')[cool.log_ha < -5.5].any()


def test_brightness(stars):
    "S/N falls with G, but for stars that were moved nearer; the parallax gives back the distance"
    far = stars[stars.g_true > 12]
    assert stars.snr.between(5, 150).all() and np.corrcoef(far.g_true, np.log(far.snr))[0, 1] < -.7
    assert stars.g_true.min() > -4 and (stars.g_true < 8).mean() > .05 and stars.distance.min() > .5
    near = stars[stars.parallax/stars.parallax_error > 50]
    assert (1000/near.parallax/near.distance-1).abs().median() < .02
    hr = stars[stars.kind == 'cool'].groupby('subclass').abs_g.median()
    assert hr.is_monotonic_increasing and hr['M0'] == pytest.approx(8.2, abs=.5) and hr['M5'] == pytest.approx(12.45, abs=.7)


def test_twins_look_like_one(stars):
    "A pair of equal stars at one velocity has the spectrum of one of them, and twice the light"
    s = stars[(stars.kind == 'single') & stars.prot.isna() & (stars.teff < 6500)][:4]
    two = s.assign(seen2=True, rv2=s.rv1, period=100., template2=-1, light2=.5, **{k+'2': s[k] for k in ('teff', 'logg', 'mass', 'radius', 'loglum', 'vsini')})
    one, pair = (ms.sky_spectra(o, generator(0), None)[0] for o in (s.assign(seen2=False), two))
    assert torch.allclose(one, pair, atol=2e-3)
    assert np.asarray(ms._add(two)['light2']) == pytest.approx(.5)
    assert np.asarray(ms._add(two)['abs_g']) == pytest.approx(ms._magnitudes(two)[0]-2.5*np.log10(2))


def test_flux_ratio_is_that_of_the_magnitudes(stars):
    "Light of the companion in the spectrum against that in G, which follow from different data"
    p = stars[stars.seen2.eq(True) & (stars.light2 > .05)][:60]
    zero = torch.zeros(len(p))
    one, two = ms._light(p, zero, None), ms._light(ms._second(p), zero, None)
    band = (LAMOST_WAVE > 4500) & (LAMOST_WAVE < 8000)
    share = (two[:, band].mean(1)/(one+two)[:, band].mean(1)).numpy()
    assert np.median(abs(share-p.light2)) < .01 and abs(share-p.light2).max() < .06


def test_emission_has_its_width(stars):
    "Equivalent width of Hα in the spectrum, with the chromosphere against without it"
    s = stars[(stars.kind.isin(['single', 'cool'])) & (stars.ew_ha > .1) & stars.logg.gt(4.3)][:40].assign(rv1=0., vsini=0., av=0.)
    lit, dark = ms._surface(s), ms._surface(s.assign(log_ha=-9.))
    near = (LAMOST_WAVE-6564.61).abs() < 20
    cont = dark[:, ((LAMOST_WAVE-6564.61).abs() > 15) & ((LAMOST_WAVE-6564.61).abs() < 35)].median(1).values
    ew = ((lit-dark)[:, near]*LAMOST_WAVE[near].diff().mean()).sum(1)/cont
    assert np.median(abs(ew.numpy()/s.ew_ha-1)) < .1 and abs(ew.numpy()/s.ew_ha-1).max() < .5


def test_rotation_of_the_sun():
    assert ms.log_rhk(np.array([26.1]), np.array([5772.]))[0] == pytest.approx(-4.91, abs=.1)
    p = np.geomspace(.3, 90, 50)
    for t, m in ((5772., 1.), (4400., .7), (3300., .3)):
        assert (np.diff(ms.log_rhk(p, np.full(50, t))) <= 1e-9).all() and (np.diff(ms.halpha_share(p, np.full(50, m), np.full(50, t))) <= 0).all()
    assert ms.halpha_share(np.array([1.]), np.array([1.5]), np.array([7000.]))[0] == 0


def test_speed(stars):
    "Loose, for a busy machine; the notebook prints the figure"
    start = time.process_time()
    ms.sky_batch(256, generator(0), stars=stars[:256])
    assert 256/(time.process_time()-start) > 100


def test_parts_share_no_star_of_the_catalogue():
    parts = [ms.draw_sky(3000, generator(i), part=k).kic.dropna() for i,k in enumerate(('train', 'calibrate', 'test'))]
    assert all(len(o) > 1500 for o in parts)
    for a,b in ((0, 1), (0, 2), (1, 2)): assert not set(parts[a]) & set(parts[b])
    with pytest.raises(ValueError, match='the parts are'): ms.draw_sky(3, generator(0), part='tests')
