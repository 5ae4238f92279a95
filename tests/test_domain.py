"The detector of spectra that a model was not made for: hits, false alarms, and what must not matter to it."
import numpy as np
import pandas as pd
import pytest
import torch

from stellar_nb.core import C_KMS, BadInput, data_dir, generator, package_data
from stellar_nb.data.spectra import Spectrum
from stellar_nb.eval.domain import Domain, known_stars, mock_inputs, observe, pixel_noise, project, rates_by_kind
from stellar_nb.mock.spectra import LAMOST_WAVE, mock_lamost, noise_sigma
from stellar_nb.pretrained import load_pretrained, save_pretrained

WORDS = 'unusual|beyond_range'


@pytest.fixture(scope='module')
def model(): return load_pretrained('specvit_lamost')


@pytest.fixture(scope='module')
def sun():
    one = torch.ones(1)
    flux, ivar = mock_lamost(torch.tensor([[5777., 4.44, 0., 0.]]), 60*one, 0*one, generator=generator(2))
    return Spectrum(LAMOST_WAVE.numpy(), flux[0].double().numpy(), ivar[0].double().numpy(), np.zeros(3909, bool), rv=0., rv_source='given', snr=60.)


def flagged(words): return pd.Series(words).str.contains(WORDS).mean()


def changed(star, **kw):
    out = Spectrum(star.wave, star.flux.copy(), star.ivar.copy(), star.mask.copy(), rv=star.rv, rv_source='given', snr=star.snr)
    for k, v in kw.items(): setattr(out, k, v)
    return out


# --- hits and false alarms -----------------------------------------------------------------------------------------------------------------

def test_false_alarms_on_mock_stars(model):
    x, good, snr = mock_inputs(1000, model.prep, seed=77)
    assert flagged(model.domain.flag(x, good)) < .04


@pytest.mark.parametrize('snr', (20., 100.))
def test_templates(model, snr):
    flux, table = known_stars()
    words = pd.Series(model.domain.flag(*observe(flux, snr, model.prep, generator(5))))
    share = words.str.contains(WORDS).groupby([table.subclass.str[0], table.kind]).mean()
    assert share['M', 2] > .95 and share['B', 2] > .85 and share['O', 2] > .7
    assert words[table.kind == 1].str.contains(WORDS).mean() < .08


def test_what_the_cross_validation_found(model):
    "As measured when the model was made, on stars that the detector did not know"
    rates = model.domain.about['rates']
    assert rates['M templates']['50'] > .9 and rates['MILES > 8200 K']['50'] > .9 and rates['A7–K templates']['50'] < .08 and rates['MILES 3900–7800 K']['50'] < .05


def test_real_lamost_stars(model):
    "Never used for the detector"
    if (folder := data_dir('lamost_dr10')) is None: pytest.skip('no LAMOST spectra at hand (STELLAR_NB_DATA)')
    d, t = np.load(folder/'spectra.npz'), pd.read_csv(folder/'labels.csv')
    flux, ivar = (torch.tensor(d[k].astype('f4')).nan_to_num(0) for k in ('flux', 'ivar'))
    wave = torch.tensor(10**(d['log10_wave0'] + d['dlog10']*np.arange(d['npix'])))
    words = pd.Series(model.domain.flag(*model.prep(wave, flux, ivar, torch.tensor(C_KMS*t.z.to_numpy())))).str.contains(WORDS)
    bright = t.snrg > 10
    assert words[bright & (t.teff > 9000)].mean() > .85 and words[bright & (t.teff > 8000)].mean() > .65
    assert words[bright & (t.teff < 7800)].mean() < .13


# --- kinds of damage -----------------------------------------------------------------------------------------------------------------------

def test_damage(model, sun):
    "A sound star passes; a wrong velocity, an inverted spectrum and pure noise do not; where most of the blue is missing nothing is said"
    blue = (sun.wave > 4700) & (sun.wave < 5800)
    noise = np.random.default_rng(0).normal(1, .3, 3909)
    stars = [sun, changed(sun, rv=400.), changed(sun, flux=2*np.median(sun.flux) - sun.flux), changed(sun, flux=noise),
             changed(sun, ivar=np.where(blue, 0, sun.ivar), mask=blue)]
    words = model.predict(stars)['flags'].str.split(',')
    assert not {'unusual', 'beyond_range', 'unchecked'} & set(words[0])
    assert all({'unusual', 'beyond_range'} & set(o) for o in words[1:4]), words.tolist()
    assert 'unchecked' in words[4] and 'no_coverage' not in words[4]


def test_what_does_not_matter(model, sun):
    "Units of the flux, the stated errors, the neighbours in the batch, one bad pixel in fifty"
    rng = np.random.default_rng(1)
    gone = rng.random(3909) < .02
    prep = lambda s: model.prep(torch.tensor(s.wave), torch.tensor(s.flux)[None].float(), torch.tensor(s.ivar)[None].float(), torch.zeros(1))
    a = model.domain(*prep(sun))
    for other in (changed(sun, flux=1e-3*sun.flux), changed(sun, ivar=sun.ivar*9)): np.testing.assert_allclose(np.array(model.domain(*prep(other))), np.array(a), rtol=2e-3, atol=1e-3)
    b = model.domain(*prep(changed(sun, ivar=np.where(gone, 0, sun.ivar))))
    assert abs(float(b.beyond - a.beyond)) < 2 and abs(float(b.outside - a.outside)) < .02
    x, good, _ = mock_inputs(9, model.prep, 3)
    alone = [model.domain.flag(x[i:i+1], good[i:i+1])[0] for i in range(9)]
    assert alone == model.domain.flag(x, good)


# --- the arithmetic ------------------------------------------------------------------------------------------------------------------------

def test_project_over_gaps():
    "Coefficients of an exact member of the subspace survive missing pixels, up to the ridge"
    g = generator(0)
    basis = torch.linalg.qr(torch.randn(400, 4, generator=g))[0].T.contiguous()
    c = 20*torch.randn(6, 4, generator=g)
    x = c@basis + 1
    good = torch.rand(6, 400, generator=g) > .2
    got, r = project(x*good, good, torch.ones(400), basis)
    assert ((got - c).abs() < .05*c.abs().max()).all() and (r[~good] == 0).all()
    assert float((r**2).mean()) < .01*float(((x - 1)**2).mean())


def test_noise_is_read_from_the_residual():
    r, good = 3*torch.randn(5, 4000, generator=generator(1)), torch.ones(5, 4000, dtype=torch.bool)
    assert ((pixel_noise(r, good) - 3).abs() < .2).all()
    assert pixel_noise(r[:, :20], good[:, :20] & False).isnan().all()


def test_fit_without_real_stars(model):
    "Limits hold their promise; a domain without stars of another kind never says `beyond_range`"
    x, good, _ = mock_inputs(600, model.prep, 8)
    d, held_out = Domain.fit(x[:400], good[:400], window=(0, 1614), k=10)
    words = d.flag(x[400:], good[400:])
    assert held_out is None and len(d.weights) == 0 and flagged(words) < .06 and not any('beyond' in o for o in words)
    assert d(x[:3], good[:3]).beyond.isnan().all()


def test_channels(model):
    "Of a network's input with several channels the first counts"
    x, good, _ = mock_inputs(5, model.prep, 9)
    two = torch.stack([x, torch.rand_like(x)], 1)
    assert model.domain.flag(two, good) == model.domain.flag(x, good)


# --- files ---------------------------------------------------------------------------------------------------------------------------------

def test_file(model, tmp_path):
    x, good, _ = mock_inputs(30, model.prep, 4)
    model.domain.save(tmp_path/'d.safetensors')
    back = Domain.load(tmp_path/'d.safetensors')
    assert back.flag(x, good) == model.domain.flag(x, good) and back.limits == model.domain.limits
    for p in (tmp_path/'d.safetensors', package_data('models', 'specvit_lamost', 'domain.safetensors')): assert p.stat().st_size < 500_000


def test_model_folder(model, tmp_path, sun):
    "The domain travels with the model; a model without one says nothing; a damaged one is named"
    hot = changed(sun, rv=400.)
    folder = save_pretrained(model, tmp_path/'m')
    assert 'unusual' in load_pretrained(folder).predict([hot])['flags'][0]
    (folder/'domain.safetensors').write_bytes(b'\x08'*40)
    with pytest.raises(BadInput, match='not a readable model'): load_pretrained(folder)
    (folder/'domain.safetensors').unlink()
    assert 'unusual' not in load_pretrained(folder).predict([hot])['flags'][0]
