"""The shipped model does what its card says, on mock stars and, where they are at hand, on real ones."""
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from stellar_nb.core import C_KMS, BadInput, data_dir, generator
from stellar_nb.data.preprocess import PreprocessConfig, counted, preprocess
from stellar_nb.data.spectra import Spectrum
from stellar_nb.mock.spectra import LAMOST_WAVE
from stellar_nb.pretrained import load_pretrained, save_pretrained
from stellar_nb.recipes.lamost import LAMOST_PREP, lamost_batch, mock_quantiles, mock_scale


@pytest.fixture(scope='module')
def model(): return load_pretrained('specvit_lamost')


def test_mock_survey_repeats():
    scale = mock_scale()
    a, b = (lamost_batch(8, generator(5), scale) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip((*a[0], a[1]), (*b[0], b[1])))
    assert not torch.equal(a[1], lamost_batch(8, generator(6), scale)[1])


def test_errors_and_coverage_on_mock_stars(model):
    q, true, _ = mock_quantiles(model, 800, seed=901)
    error = (q[..., 1]-true).abs().mean(0)
    assert (error < torch.tensor([70., .17, .12])).all(), error
    inside = ((true >= q[..., 0]) & (true <= q[..., 2])).float().mean(0)
    assert ((inside - model.coverage).abs() < .06).all(), inside


def test_windows_do_not_count(model):
    "What happens inside the windows that are left out changes nothing"
    (flux, sigma, rv), _ = lamost_batch(4, generator(1), model.scale)
    ivar, zero = torch.full_like(flux, 100.), torch.zeros(4)
    bright = flux.clone()
    for lo, hi in LAMOST_PREP.avoid: bright[:, (LAMOST_WAVE > lo+5) & (LAMOST_WAVE < hi-5)] *= 3
    x, good = preprocess(LAMOST_WAVE, flux, ivar, zero, LAMOST_PREP)
    y, _ = preprocess(LAMOST_WAVE, bright, ivar, zero, LAMOST_PREP)
    assert torch.equal(x, y)
    assert not good[:, ~counted(LAMOST_PREP)].any()


def test_units_of_the_flux_do_not_matter(model, tmp_path):
    (flux, sigma, rv), _ = lamost_batch(1, generator(2), model.scale)
    f, s = flux[0].double().numpy(), sigma[0].double().nan_to_num(posinf=np.inf).numpy()
    star = lambda k: Spectrum(LAMOST_WAVE.numpy(), k*f, np.where(np.isfinite(s), (k*s)**-2, 0), ~np.isfinite(s), rv=float(rv[0]))
    a, b = (model.predict([star(k)])[['teff', 'logg', 'feh']].to_numpy() for k in (1., 1e-16))
    assert np.allclose(a, b, rtol=1e-3)


def test_half_precision_is_enough(model, tmp_path):
    save_pretrained(model, tmp_path/'m', half=True)
    a, b = (mock_quantiles(m, 64, 3)[0] for m in (model, load_pretrained(tmp_path/'m')))
    assert ((a-b).abs().amax((0, 2)) < torch.tensor([20., .05, .03])).all()


def test_real_lamost_stars(model):
    folder = data_dir('lamost_dr10')
    if folder is None: pytest.skip('no LAMOST spectra at hand (STELLAR_NB_DATA)')
    d, lasp = np.load(folder/'spectra.npz'), pd.read_csv(folder/'labels.csv')
    rows = np.flatnonzero((lasp.teff < 7800) & (lasp.snrg > 10))[::4]
    flux, ivar = d['flux'][rows].astype(float), d['ivar'][rows].astype(float)
    bad = ~(np.isfinite(flux) & np.isfinite(ivar) & (ivar > 0))
    stars = [Spectrum(LAMOST_WAVE.numpy(), np.where(b, 0, f), np.where(b, 0, i), b, rv=C_KMS*z, snr=s)
             for f, i, b, z, s in zip(flux, ivar, bad, lasp.z[rows], lasp.snrg[rows])]
    error = (model.predict(stars)[['teff', 'logg', 'feh']].to_numpy()-lasp.loc[rows, ['teff', 'logg', 'feh']].to_numpy())
    assert (np.nanmean(abs(error), 0) < [200, .25, .25]).all(), np.nanmean(abs(error), 0)


@pytest.mark.parametrize('name', ['specvit_lamost', 'specvit_pfs', 'specvit_xp'])
def test_every_shipped_model_answers(name, tmp_path):
    "Loads, is small, has a card, and reads a file of its kind through the command's own path"
    from stellar_nb.cli import predict
    from stellar_nb.core import package_data
    from stellar_nb.data.spectra import example_file
    folder = package_data('models', name)
    assert sum(p.stat().st_size for p in folder.iterdir()) < 10e6 and 'test stars' in (folder/'card.md').read_text()
    file = example_file(dict(specvit_lamost='lamost-table', specvit_pfs='hdf5', specvit_xp='gaia-xp')[name], tmp_path)
    rows = predict([file])
    assert (rows.model == name).all() and (rows.status == 'ok').all(), rows.reason.tolist()
    assert rows[['teff', 'logg', 'feh']].notna().all().all() and (rows.teff_lo <= rows.teff).all() and (rows.teff <= rows.teff_hi).all()


def test_input_and_network_fit(model, tmp_path):
    folder = save_pretrained(replace(model, prep=PreprocessConfig()), tmp_path/'m')
    with pytest.raises(BadInput, match='m: its input has 3600 pixels, and its network takes 3440'): load_pretrained(folder)
