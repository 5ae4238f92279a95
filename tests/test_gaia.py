"""Gaia tables in every format, what is missing, the input of a network, and the mock stars that Gaia would see."""
import gzip
import json
import pickle
import re
import warnings
from dataclasses import asdict

import astropy.units as u
import numpy as np
import pandas as pd
import pytest
import torch
from astropy.coordinates import CartesianDifferential, Galactic, SkyCoord
from astropy.io import fits
from astropy.table import MaskedColumn, Table
from sklearn.preprocessing import PowerTransformer

from stellar_nb.core import BadInput, data_dir, generator
from stellar_nb.data.gaia import (GAIA_COLUMNS, ZERO_POINTS, GaiaInput, bare_id, fill_missing, miles_gaia, parse_source_id, read_gaia, to_flux, to_mag,
                                  yeo_johnson)
from stellar_nb.mock.gaia import (POPULATIONS, SOLAR_MOTION, bolometric_correction, flux_error, gaia_extinction, intrinsic_colour, missing_share,
                                  mock_gaia, parallax_error, project)
from stellar_nb.mock.stars import draw_catalogue

MEASURED = [k for k in GAIA_COLUMNS if not k.startswith('flag')]
UNITS = {k: GAIA_COLUMNS[k].unit for k in MEASURED}
IDS = [3338040968345126913, 6917528997577384321, 31, 9007199254740993]
FORMATS = ['stars.fits', 'stars.fits.gz', 'stars.csv', 'stars.csv.gz', 'stars.ecsv', 'stars.parquet', 'stars.vot', 'stars.vot.gz']


def stars(n=4, seed=0):
    "Astropy columns of plausible stars"
    rng = np.random.default_rng(seed)
    t = Table({k: np.exp(rng.normal(size=n)) for k in MEASURED})
    t['ra'], t['dec'], t['pmra'] = rng.uniform(0, 360, n), rng.uniform(-90, 90, n), rng.normal(size=n)
    for b in ZERO_POINTS: t[f'phot_{b}_mean_flux'] *= 1e4
    return t


def write(table, path, units=True):
    "In the format that the name says"
    table = table.copy()
    if units:
        for k in table.colnames:
            if k.lower() in UNITS and not table[k].unit: table[k].unit = UNITS[k.lower()]
    kind = {'fits': 'fits', 'csv': 'ascii.csv', 'ecsv': 'ascii.ecsv', 'parquet': 'parquet', 'vot': 'votable'}[path.name.split('.')[1]]
    plain = path.with_name(path.name.removesuffix('.gz'))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        if kind == 'parquet': table.to_pandas().to_parquet(plain, index=False)
        else: table.write(plain, format=kind, overwrite=True)
    if path != plain: path.write_bytes(gzip.compress(plain.read_bytes()))
    return path


@pytest.mark.parametrize('name', FORMATS)
def test_every_format(name, tmp_path):
    t = stars()
    t['SOURCE_ID'], t['obsid'], t['note'] = IDS, ['007', '8', 'x', '11'], [1.5, 2.5, 3.5, 4.5]
    t.rename_columns(['ra', 'parallax'], ['RA', 'Parallax'])
    d = read_gaia(write(t, tmp_path/name))
    assert list(d)[:19] == ['source_id', *GAIA_COLUMNS] and d.source_id.dtype == np.int64
    assert d.source_id.tolist() == IDS and d.obsid.tolist() == ['007', '8', 'x', '11'] and d.note.tolist() == [1.5, 2.5, 3.5, 4.5]
    for k in MEASURED: np.testing.assert_allclose(d[k], t[dict(ra='RA', parallax='Parallax').get(k, k)], rtol=1e-12)
    assert (d[list(GAIA_COLUMNS)].dtypes == np.float64).all() and not d.flagnopllx.any() and not d.flagnoflux.any() and (d.problem == '').all()


@pytest.mark.parametrize('name', FORMATS)
def test_masked_values(name, tmp_path):
    "NaN, not 0 or 1e20, and ids stay exact beside a gap"
    t = stars()
    for k in ('parallax', 'phot_bp_mean_flux'): t[k] = MaskedColumn(t[k], mask=[False, True, False, False])
    t['source_id'] = MaskedColumn(np.array(IDS), mask=[False, False, True, False])
    path = tmp_path/name
    if name == 'stars.parquet':
        d = t.to_pandas()
        d['source_id'] = pd.array([IDS[0], IDS[1], pd.NA, IDS[3]], dtype='Int64')
        d.to_parquet(path)
    else: write(t, path)
    d = read_gaia(path)
    assert d.source_id.tolist() == [IDS[0], IDS[1], 0, IDS[3]]
    for k in ('parallax', 'phot_bp_mean_flux'): assert d[k].isna().tolist() == [False, True, False, False]
    assert d.flagnopllx.tolist() == d.flagnoflux.tolist() == [0, 1, 0, 0]


def test_no_id_and_designation(tmp_path):
    assert 'source_id' not in read_gaia(write(stars(), tmp_path/'stars.fits'))
    t = stars()
    t['DESIGNATION'] = [f'Gaia DR3 {i}' for i in IDS]
    for name in FORMATS:
        d = read_gaia(write(t, tmp_path/name))
        assert d.source_id.tolist() == IDS and d.designation.tolist() == list(t['DESIGNATION'])
    assert parse_source_id(pd.array([5, pd.NA], dtype='Int64')).tolist() == [5, 0]
    for bad in (['Gaia DR3 '], ['2MASS J1'], ['3.3e18'], [3.3e18], ['9'*19]):
        with pytest.raises(ValueError, match='source_id'): parse_source_id(bad)


def test_gaia_archive_ecsv(tmp_path):
    "The bulk files of the archive: ECSV with 'null' and quoted units"
    t = stars()
    path = write(t, tmp_path/'stars.ecsv')
    head, rows = path.read_text().split('\n'+' '.join(t.colnames)+'\n')
    head = head.replace('unit: electron / s', '''unit: "'electron'.s**-1"''').replace('unit: mas / yr', 'unit: mas.yr**-1').replace('delimiter: \' \'', "delimiter: ','")
    head = head.replace('# ---\n', "# ---\n# delimiter: ','\n", 1) if 'delimiter' not in head else head
    lines = [o.split(' ') for o in rows.strip().splitlines()]
    lines[1][t.colnames.index('pmra')] = 'null'
    path.write_text('\n'.join([head, ','.join(t.colnames), *(','.join(o) for o in lines)])+'\n')
    (gz := tmp_path/'GaiaSource_000000-003111.csv.gz').write_bytes(gzip.compress(path.read_bytes()))
    d = read_gaia(gz)
    assert np.isnan(d.pmra[1]) and d.flagnopllx.tolist() == [0, 1, 0, 0]
    np.testing.assert_allclose(d.phot_g_mean_flux, t['phot_g_mean_flux'])


@pytest.mark.parametrize('name', ['stars.fits', 'stars.ecsv', 'stars.vot'])
def test_units(name, tmp_path):
    t = stars()
    for k, unit in dict(parallax='arcsec', ra='rad', pmra='deg / yr', phot_g_mean_flux='ct / s').items():
        t[k] = t[k]*(1 if 'ct' in unit else u.Unit(UNITS[k]).to(unit))
        t[k].unit = unit
    d, want = read_gaia(write(t, tmp_path/name)), stars()
    for k in MEASURED: np.testing.assert_allclose(d[k], want[k], rtol=1e-10)
    t = stars()
    t['phot_g_mean_flux'].unit = 'Jy'
    with pytest.raises(BadInput, match='phot_g_mean_flux is in Jy, not in electron / s'): read_gaia(write(t, tmp_path/name))
    t = stars()
    t['parallax'].unit = 'kpc'
    with pytest.raises(BadInput, match='parallax is in kpc, not in mas'): read_gaia(write(t, tmp_path/name))


def test_hour_angles(tmp_path):
    t = stars()
    t['ra'] = t['ra']/15
    t['ra'].unit = 'hourangle'
    np.testing.assert_allclose(read_gaia(write(t, tmp_path/'stars.ecsv')).ra, stars()['ra'])


def test_magnitudes(tmp_path):
    t = stars()
    for b in ZERO_POINTS: t[f'phot_{b}_mean_mag'] = to_mag(t[f'phot_{b}_mean_flux'], b)
    t['phot_g_mean_mag_error'] = .01
    t['phot_bp_mean_flux_over_error'] = 50.
    t.remove_columns([k for k in t.colnames if re.match(r'phot_.*_flux(_error)?$', k)])
    d = read_gaia(write(t, tmp_path/'stars.csv'))
    want = stars()
    for b in ZERO_POINTS: np.testing.assert_allclose(d[f'phot_{b}_mean_flux'], want[f'phot_{b}_mean_flux'], rtol=1e-10)
    np.testing.assert_allclose(d.phot_g_mean_flux_error/d.phot_g_mean_flux, .01*np.log(10)/2.5)
    np.testing.assert_allclose(d.phot_bp_mean_flux_error/d.phot_bp_mean_flux, .02)
    assert d.phot_rp_mean_flux_error.isna().all() and not d.flagnoflux.any()
    assert to_flux(25.6874, 'g') == 1 and (fill_missing(d)[:, list(GAIA_COLUMNS).index('phot_rp_mean_flux_error')] == 50_000).all()


def test_errors(tmp_path):
    def refused(match, name, data):
        path = tmp_path/name
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        with pytest.raises(BadInput, match=match) as e: read_gaia(path)
        assert str(e.value).startswith(f'{path}: ') and '\n' not in str(e.value)
    with pytest.raises(BadInput, match='no such file'): read_gaia(tmp_path/'none.csv')
    with pytest.raises(BadInput, match='directory'): read_gaia(tmp_path)
    refused('is empty', 'a.csv', '')
    refused('not a table', 'a.pkl', pickle.dumps({'ra': 1}))
    refused('not a table', 'a.txt', 'hello world')
    refused('not a table', 'a.npz', b'PK\x03\x04'+bytes(100))
    refused('not a table', 'a.json', '{"ra": [1, 2]}')
    refused('ends early', 'a.csv.gz', gzip.compress(b'ra,dec\n1,2\n'*99)[:-9])
    refused('cannot be read as fits', 'a.fits', b'SIMPLE  =                    T'+bytes(50))
    refused('cannot be read as parquet', 'a.parquet', b'PAR1'+bytes(50))
    refused('cannot be read as votable', 'a.vot', '<?xml version="1.0"?><html></html>')
    refused('cannot be read as ecsv', 'a.ecsv', '# %ECSV 1.0\n# ---\n# nonsense\na b\n1 2\n')
    refused('without rows', 'a.csv', 'ra,dec\n')
    refused('two columns ra', 'a.csv', 'ra,RA,dec\n1,2,3\n')
    refused('no column parallax, dec_error,.*pmdec_error, phot_g_mean_flux.*magnitudes, phot_g_mean_mag', 'a.csv', 'ra,ra_error,dec\n1,2,3\n')
    fits.PrimaryHDU(np.ones((3, 3))).writeto(tmp_path/'image.fits')
    with pytest.raises(BadInput, match='no table in it'): read_gaia(tmp_path/'image.fits')
    d = stars().to_pandas()
    refused("pmra holds 'fast', not a number", 'a.csv', d.assign(pmra=['1', 'fast', '2', '3']).to_csv(index=False))
    refused("source_id: '1.2e18' is not", 'a.csv', d.assign(source_id=['1', '1.2e18', '2', '3']).to_csv(index=False))
    d.assign(source_id=np.array(IDS, 'f8')).to_parquet(tmp_path/'f.parquet')
    with pytest.raises(BadInput, match='floating-point'): read_gaia(tmp_path/'f.parquet')
    with pytest.raises(BadInput, match='no column phot_g_mean_flux_error'):
        d.drop(columns='phot_g_mean_flux_error').to_csv(tmp_path/'b.csv')
        read_gaia(tmp_path/'b.csv')


@pytest.mark.parametrize('name', FORMATS)
def test_damaged_files(name, tmp_path):
    "Cut, overwritten or shifted bytes: either BadInput or a table that can be used"
    data, rng = write(stars(), tmp_path/name).read_bytes(), np.random.default_rng(0)
    if packed := name.endswith('gz'): data = gzip.decompress(data)
    for i in range(9):
        at = int(rng.integers(1, len(data)))
        bad = [data[:at], data[:at]+bytes(rng.integers(0, 256, 30, np.uint8))+data[at+30:], data[:at]+data[at+50:]][i % 3]
        (tmp_path/name).write_bytes(gzip.compress(bad) if packed else bad)
        try: assert np.isfinite(fill_missing(read_gaia(tmp_path/name))).all()
        except BadInput as e: assert '\n' not in str(e)


def test_other_separators(tmp_path):
    d = stars().to_pandas()
    for head, sep in (('\ufeff', ','), ('', ';'), ('# by hand\n', '\t'), ('', '|')):
        (tmp_path/'a.txt').write_text(head+d.to_csv(index=False, sep=sep))
        np.testing.assert_allclose(read_gaia(tmp_path/'a.txt')[MEASURED], d[MEASURED])


def test_hash_signs_in_cells(tmp_path):
    "Only the lines above the header are comments"
    d = stars().to_pandas().assign(name=['NGC188 #5', '#6', 'a', 'b'])
    d = d[['name', *(k for k in d if k != 'name')]]
    for head in ('', '# by hand\n#\n', '\ufeff# by, hand; twice\n\n'):
        (tmp_path/'a.csv').write_text(head+d.to_csv(index=False))
        out = read_gaia(tmp_path/'a.csv')
        assert out.name.tolist() == d.name.tolist()
        np.testing.assert_allclose(out[MEASURED], d[MEASURED])


def test_bare_id():
    assert [bare_id(o) for o in ('Gaia DR3 31', 'gaia EDR3 31', 'Gaia DR2 31', ' 31 ', 'HD 31', 'NGC 188 #5', '')] == ['31']*4+['HD 31', 'NGC 188 #5', '']


def test_objects_are_left_out(tmp_path):
    "Columns of lists or images do not disturb"
    t = stars()
    t['image'] = np.zeros((4, 3))
    t['list'] = np.array([np.arange(i+1.) for i in range(4)], object)
    for name in ('stars.fits', 'stars.ecsv', 'stars.vot'):
        d = read_gaia(write(t, tmp_path/name))
        assert 'image' not in d and 'list' not in d and len(d) == 4


@pytest.mark.parametrize('column,value', [('ra', -1.), ('ra', 361.), ('dec', 95.), ('parallax_error', 0.), ('pmra_error', -1.), ('parallax', np.inf), ('pmdec', -np.inf),
                                          ('phot_g_mean_flux', -3.), ('phot_bp_mean_flux', 1e15), ('phot_rp_mean_flux', np.inf), ('phot_g_mean_flux', 0.), ('ra_error', 0.)])
def test_impossible_values(column, value, tmp_path):
    t = stars()
    t[column][2] = value
    d = read_gaia(write(t, tmp_path/'stars.parquet'))
    assert d.problem.tolist() == ['', '', f'{column} is {value:g}', ''] and np.isnan(d[column][2]) and np.isfinite(fill_missing(d)).all()


def test_one_impossible_row_is_read(tmp_path):
    "Its other values stay"
    t = stars(1)
    t['parallax_error'] = -1.
    d = read_gaia(write(t, tmp_path/'stars.csv'))
    assert d.problem[0] == 'parallax_error is -1' and d[MEASURED].isna().sum(axis=None) == 1 and d.flagnopllx[0] == 0


def test_missing_rules(tmp_path):
    d = stars().to_pandas()
    d.loc[0, ['parallax', 'parallax_error', 'pmra', 'pmra_error', 'pmdec', 'pmdec_error']] = [0., 10.]*3
    d.loc[1, ['phot_bp_mean_flux', 'phot_bp_mean_flux_error']] = [0., 50_000.]
    d.loc[2, 'parallax'] = 0.
    d.to_csv(tmp_path/'a.csv')
    a = read_gaia(tmp_path/'a.csv')
    assert a.flagnopllx.tolist() == [1, 0, 0, 0] and a.flagnoflux.tolist() == [0, 1, 0, 0] and (a.problem == '').all() and a.parallax[2] == 0
    assert a.loc[0, ['parallax', 'parallax_error', 'pmra', 'pmdec_error']].isna().all()
    f = pd.DataFrame(fill_missing(a), columns=list(GAIA_COLUMNS))
    np.testing.assert_allclose(f[MEASURED], d[MEASURED])
    assert f.flagnopllx.tolist() == [1, 0, 0, 0]
    f.assign(flagnopllx=0).to_csv(tmp_path/'b.csv') # flags that say "measured": then 0 with error 10 is a measurement
    b = read_gaia(tmp_path/'b.csv')
    assert b.parallax[0] == 0 and b.flagnopllx[0] == 0 and np.isnan(b.phot_bp_mean_flux[1])
    empty = fill_missing(np.full((1, 18), np.nan))[0]
    assert dict(zip(GAIA_COLUMNS, empty)) == {k: 1. if k.startswith('flag') else o.fill for k, o in GAIA_COLUMNS.items()}
    with pytest.raises(ValueError, match='no column pmdec'): fill_missing(a.drop(columns='pmdec'))
    with pytest.raises(ValueError, match=r'shape \(3, 17\)'): fill_missing(np.ones((3, 17)))


def sample(n=300, seed=1):
    rng = np.random.default_rng(seed)
    v = np.exp(rng.normal(size=(n, 18)))*.03
    for i, k in enumerate(GAIA_COLUMNS):
        if 'flux' in k and 'flag' not in k: v[:, i] = 10**rng.uniform(1, 11, n)
        if k in ('pmra', 'pmdec'): v[:, i] = rng.standard_t(2, n)*20
        if k.startswith('flag'): v[:, i] = 0
    return v


def test_yeo_johnson_is_sklearns():
    v, new = sample(), sample(seed=2)
    inp = GaiaInput.fit(v, clip=1e9)
    for i, k in enumerate(GAIA_COLUMNS):
        if k.startswith('flag'): continue
        skl = PowerTransformer().fit(v[:, i, None])
        assert abs(skl.lambdas_[0]-inp.lam[i]) < 1e-9
        ours = (yeo_johnson(new[:, i], inp.lam[i])-inp.mean[i])/inp.std[i]
        np.testing.assert_allclose(ours, skl.transform(new[:, i, None])[:, 0], atol=1e-6)
    for lam in (0., 1., 2., -3., 5.):
        skl = PowerTransformer(standardize=False).fit(v[:, 6, None])
        skl.lambdas_ = np.array([lam])
        np.testing.assert_allclose(yeo_johnson(v[:, 6], lam), skl.transform(v[:, 6, None])[:, 0], rtol=1e-9)
    assert np.isposinf(yeo_johnson(1e300, 4.)) and yeo_johnson(0., -7.) == 0


def test_gaia_input():
    v = sample()
    v[::5, 0] = np.nan
    v[:, 1] = 12.5 # a constant
    inp = GaiaInput.fit(v)
    x, good = inp(v)
    assert x.shape == good.shape == (300, 18) and x.dtype == torch.float32 and good.dtype == torch.bool and inp.width == 18
    assert (~good[:, 0]).sum() == 60 and good[:, 1:].all() and torch.isfinite(x).all() and x.abs().max() <= 6
    there = x[good[:, 0], 0].double()
    assert abs(there.mean()) < 1e-6 and abs(there.std(correction=0)-1) < 1e-6 and not x[:, 1].any()
    filled = inp(fill_missing(v))[0]
    assert torch.equal(filled, x)
    assert GaiaInput(**json.loads(json.dumps(asdict(inp)))) == inp
    small = GaiaInput.fit(v, drop=('ra', 'dec'), clip=3)
    assert small.width == 16 and 'ra' not in small.columns and small(v)[0].abs().max() <= 3
    torch.testing.assert_close(small(v)[0], x[:, [i for i, k in enumerate(GAIA_COLUMNS) if k not in ('ra', 'dec')]].clamp(-3, 3))
    with pytest.raises(ValueError, match='colour: not among'): GaiaInput.fit(v, drop=('colour',))
    x, good = GaiaInput.fit(np.full((5, 18), np.nan))(np.full((2, 18), np.nan))
    assert torch.isfinite(x).all() and not good[:, 0].any()


@pytest.mark.skipif(data_dir('miles') is None, reason='no MILES file: link a data folder as data/ or set STELLAR_NB_DATA')
def test_miles():
    d = miles_gaia()
    assert len(d) == 579 and (d.source_id == 0).sum() == 5 and d.source_id.max() > 2**62
    bp_rp = to_mag(d.phot_bp_mean_flux, 'bp')-to_mag(d.phot_rp_mean_flux, 'rp')
    off = (bp_rp-intrinsic_colour(d.teff, d.logg, d.feh))[d.teff.between(4500, 7000)]
    assert abs(np.nanmedian(off)) < .05 and d.flagnoflux.sum() == 5
    x, good = GaiaInput.fit(d)(d)
    assert torch.isfinite(x).all() and good.float().mean() > .99


@pytest.fixture(scope='module')
def mock():
    s = draw_catalogue(6000, generator(0))
    return s, mock_gaia(s, generator(1))


def test_mock_is_reproducible(mock):
    s, d = mock
    pd.testing.assert_frame_equal(d, mock_gaia(s, generator(1)))
    assert not np.allclose(d.ra, mock_gaia(s, generator(2)).ra)
    assert list(d)[:18] == list(GAIA_COLUMNS) and d.index.equals(s.index)
    assert d.dec.between(-10.001, 60.001).all() and d.ra.between(0, 360).all()
    assert len(mock_gaia(s.head(0), generator(0))) == 0


def test_mock_pulls(mock):
    d = mock[1]
    for k in ('parallax', 'pmra', 'pmdec'):
        pull = ((d[k]-(-.017 if k == 'parallax' else 0)-d[f'{k}_true'])/d[f'{k}_error']).dropna()
        assert abs(pull.mean()) < 4/np.sqrt(len(pull)) and abs(pull.std()-1) < 4/np.sqrt(2*len(pull))
    pull = (d.phot_g_mean_flux-to_flux(d.g_true, 'g'))/d.phot_g_mean_flux_error
    assert abs(pull.mean()) < .06 and abs(pull.std()-1) < .06
    np.testing.assert_allclose(d.distance, 1000/d.parallax_true)


def test_mock_kinematics():
    n = 9000
    s = pd.DataFrame(dict(abs_g=np.full(n, 5.), bp_rp=1., distance=300., age=4., population=np.resize(POPULATIONS, n)))
    d = mock_gaia(s, generator(5), tries=2)
    want = dict(thin=(36.7, 23.7, 15.8, -36.7**2/80), thick=(67, 38, 35, -46), halo=(160, 90, 90, -220))
    for k, w in want.items():
        v = (d[list('uvw')]+np.array(SOLAR_MOTION))[d.population == k]
        np.testing.assert_allclose(v.std(), w[:3], rtol=.06)
        assert abs(v.v.mean()-w[3]) < 5
    sky = SkyCoord(d.ra.to_numpy()*u.deg, d.dec.to_numpy()*u.deg, .3*u.kpc).galactic.cartesian
    sky = SkyCoord(Galactic(sky.with_differentials(CartesianDifferential(*(d[list('uvw')].to_numpy().T*u.km/u.s))))).icrs
    for ours, theirs in ((d.pmra_true, sky.pm_ra_cosdec), (d.pmdec_true, sky.pm_dec), (d.rv, sky.radial_velocity)): np.testing.assert_allclose(ours, theirs.value, atol=.02)


def test_mock_physics(mock):
    s, d = mock
    assert abs(4.74-bolometric_correction([5772.])[0]-4.68) < 1e-3
    t = np.geomspace(2400, 40_000, 400)
    assert (np.diff(intrinsic_colour(t, np.full(400, 4.5), np.zeros(400))) < .01).all()
    assert np.abs(np.diff(bolometric_correction(t))).max() < .12
    assert .8 < gaia_extinction(1., 5772., 'g') < .9 and gaia_extinction(1., 5772., 'bp') > gaia_extinction(1., 5772., 'rp')
    np.testing.assert_allclose(parallax_error(np.array([5., 13., 15.])), [.01294, .01294, .0295], rtol=1e-3)
    assert (np.diff(flux_error(np.arange(13, 21), 'bp')) > 0).all() and np.diff(missing_share(np.arange(10, 22)), axis=1).min() > 0
    metal = pd.Series(s.feh.to_numpy()).groupby(d.population.to_numpy()).mean()
    assert metal.thin > metal.thick > metal.halo
    far = pd.DataFrame(dict(abs_g=np.full(2000, 0.), bp_rp=1.2, distance=3000., population=np.resize(['thin', 'halo'], 2000)))
    e = mock_gaia(far, generator(0))
    b = np.abs(SkyCoord(e.ra.to_numpy()*u.deg, e.dec.to_numpy()*u.deg).galactic.b.deg)
    assert np.median(b[e.population == 'thin']) < 15 < np.median(b[e.population == 'halo'])


def test_mock_gaps_and_kinds(mock):
    s = mock[0].head(4000)
    d = mock_gaia(s, generator(3), missing=.3)
    assert abs(d.parallax.isna().mean()-.3) < .04 and abs(d.phot_g_mean_flux.isna().mean()-.3) < .04
    assert d.flagnopllx.eq(d.parallax.isna()).all() and d.flagnoflux.eq(d[[f'phot_{b}_mean_flux' for b in ZERO_POINTS]].isna().any(axis=1)).all()
    assert np.isfinite(fill_missing(d)).all() and d[['ra', 'dec', 'ra_error']].notna().all(axis=None)
    faint = mock_gaia(pd.DataFrame(dict(abs_g=np.full(2000, 10.), bp_rp=2., distance=2000., av=0.)), generator(0))
    assert faint.parallax.isna().mean() > .5
    kinds = mock_gaia(pd.DataFrame(dict(abs_g=[11.2, -4.2], bp_rp=[2.94, -.34])), generator(0))
    assert kinds.distance.between(1, 15_000).all() and kinds.abs_g.tolist() == [11.2, -4.2] and kinds.population[1] == 'thin'
    np.testing.assert_allclose(mock_gaia(pd.DataFrame(dict(teff=[5772.], logg=4.44, feh=0., radius=1.)), generator(0)).abs_g, 4.68, atol=1e-3)
    with pytest.raises(ValueError, match='2 stars, the first number 0, have neither'): mock_gaia(pd.DataFrame(dict(teff=[5000., 4000.], logg=4.5, feh=0.)), generator(0))
    with pytest.raises(ValueError, match='distance that is not positive'): mock_gaia(s.assign(distance=0.), generator(0))
    with pytest.raises(ValueError, match='bulge: the populations are thin'): mock_gaia(s.assign(population='bulge'), generator(0))


def test_project_by_hand():
    "A star at the north pole of the Galaxy that moves towards the centre, and one that recedes"
    pole = SkyCoord(l=0*u.deg, b=90*u.deg, frame='galactic').icrs
    ra, dec = np.array([pole.ra.deg]), np.array([pole.dec.deg])
    pmra, pmdec, rv = project(ra, dec, np.array([.1]), np.array([[4.740470463, 0, 0]]))
    assert abs(np.hypot(pmra, pmdec)-10).item() < 1e-5 and abs(rv.item()) < 1e-5
    assert project(ra, dec, np.array([.1]), np.array([[0, 0, 7.]]))[2].item() == pytest.approx(7)
