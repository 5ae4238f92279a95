"""Light curves: every real file reads, every broken one is refused with a reason, and the channels are what they should be."""
import gzip
import math
import types
import warnings
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
from astropy.io import fits
from astropy.table import Table

from stellar_nb.core import BadInput, data_dir, generator
from stellar_nb.data.lightcurve import (BITMASKS, KEPLER_FLAGS, TESS_FLAGS, LightCurve, despike, find_lightcurves, from_columns, from_lightkurve, join_segments, prepare,
                                        quality_names, read_kepler_sample, read_lightcurve, read_lightcurves, to_grid)
from stellar_nb.data.views import (CADENCE, ViewConfig, acf, acf_naive, amplitude_spectrum, bin_points, fill_gaps, magnitude_normalise, one_view, smooth, stitch, two_views, views,
                                   absolute_magnitude)

FOLDER = data_dir('kepler_lc')
REAL = find_lightcurves(FOLDER) if FOLDER else []
REAL = [o for o in REAL if '.fits' in o.name]
needs_data = pytest.mark.skipif(not REAL, reason='no real files: link a data folder as data/ or set STELLAR_NB_DATA')
CONFIGS = {'tiny': ViewConfig.tiny(), 'linear': ViewConfig(points=512, smooth=3), 'binned': ViewConfig(points=512, smooth=5, bin=4)}


def batch(n=4, length=700, seed=0, share=.9):
    "(flux, seen, abs_mag) of spotted stars"
    g = generator(seed)
    t = torch.arange(length)*CADENCE/torch.linspace(.5, 3, n)[:, None]
    flux = 1 + .01*torch.sin(2*math.pi*t) + 1e-3*torch.randn(t.shape, generator=g)
    return flux, torch.rand(t.shape, generator=g) < share, torch.linspace(0, 6, n)


# channels

def by_definition(x):
    "The estimate that statsmodels documents: biased, of the series less its mean"
    x = x - x.mean()
    return np.correlate(x, x, 'full')[len(x)-1:]/(x@x)


def test_acf_is_the_published_one():
    flux, seen, _ = batch()
    every = torch.ones_like(seen)
    want = np.stack([by_definition(o) for o in flux.double().numpy()])
    np.testing.assert_allclose(acf(flux.double()), want, atol=1e-10)
    np.testing.assert_allclose(acf(flux, every), want, atol=1e-5)
    torch.testing.assert_close(acf(flux, seen), acf_naive(flux, seen), atol=1e-5, rtol=0)
    scaled = acf(flux, every, scaled=True)
    np.testing.assert_allclose(scaled, (want - want.mean(1, keepdims=True))/want.std(1, keepdims=True), atol=1e-4)


def test_statsmodels_agrees():
    tools = pytest.importorskip('statsmodels.tsa.stattools')
    flux = batch(n=1)[0].double()
    np.testing.assert_allclose(acf(flux)[0], tools.acf(flux[0].numpy(), nlags=699, fft=True), atol=1e-10)


@pytest.mark.parametrize('name', CONFIGS)
def test_batch_equals_star_by_star(name):
    flux, seen, mag = batch()
    start = torch.tensor([0, 5, 100, 188])
    all_at_once = views(flux, seen, mag, CONFIGS[name], start)
    for i in range(len(flux)):
        for a, b in zip(all_at_once, views(*(o[i:i+1] for o in (flux, seen, mag)), CONFIGS[name], start[i:i+1])):
            torch.testing.assert_close(a[i:i+1].float(), b.float(), atol=2e-4, rtol=1e-4)
    for a, b in zip(all_at_once, views(flux, seen, mag, CONFIGS[name], start, chunk=3)):
        torch.testing.assert_close(a.float(), b.float(), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize('name', CONFIGS)
def test_views_are_the_functions_in_a_row(name):
    c = CONFIGS[name]
    flux, seen, mag = (o[..., :512] if o.ndim == 2 else o for o in batch())
    v = views(flux, seen, mag, c)
    x = smooth(flux.masked_fill(~seen, 0), seen, c.smooth)
    y, some = bin_points(x, seen, c.bin)
    assert torch.equal(v.seen, some)
    mean = (y*some).sum(-1, keepdim=True)/some.sum(-1, keepdim=True)
    z = torch.where(some, y - mean, 0)
    torch.testing.assert_close(v.flux[:, 1], z/(z.square().sum(-1, keepdim=True)/some.sum(-1, keepdim=True)).sqrt(), atol=1e-3, rtol=0)
    if not c.compress:
        torch.testing.assert_close(v.flux[:, 0], magnitude_normalise(y, some, mag), atol=1e-6, rtol=1e-3)
        torch.testing.assert_close(v.freq[:, 0], acf(x, seen, scaled=True)[:, ::c.bin], atol=1e-3, rtol=0)
        zero_mean = torch.where(seen, x - (x*seen).sum(-1, keepdim=True)/seen.sum(-1, keepdim=True), 0)
        full = zero_mean/(zero_mean.square().sum(-1, keepdim=True)/seen.sum(-1, keepdim=True)).sqrt()
        torch.testing.assert_close(v.freq[:, 1], amplitude_spectrum(full, c.length), atol=.02, rtol=0)


@pytest.mark.parametrize('name', CONFIGS)
def test_padding_does_not_count(name):
    c = CONFIGS[name]
    flux, seen, mag = batch(length=400)
    wide = ViewConfig(**{**c.__dict__, 'points': 1024})
    a = views(flux, seen, mag, c)
    junk = torch.nn.functional.pad(flux, (0, 600), value=math.nan), torch.nn.functional.pad(seen, (0, 600))
    b = views(*junk, mag, wide)
    n = c.length
    torch.testing.assert_close(a.flux, b.flux[..., :n], atol=1e-5, rtol=1e-4)
    assert torch.equal(a.seen, b.seen[:, :n]) and not b.seen[:, n:].any() and not b.flux[..., n:].any()
    m = 400//c.bin if c.axis == 'linear' else c.grid
    torch.testing.assert_close(a.freq[:, 0, :m], b.freq[:, 0, :m], atol=1e-4, rtol=1e-4)
    if c.axis == 'linear': assert (b.freq[:, 0, n:] - b.freq[:, 0, -1:]).abs().max() < 1e-3  # the ACF is zero where the series has ended


def test_what_is_not_seen_does_not_matter():
    flux, seen, mag = batch()
    other = torch.where(seen, flux, torch.tensor(math.nan))
    for c in CONFIGS.values():
        for a, b in zip(views(flux, seen, mag, c), views(other, seen, mag, c)): assert torch.equal(a, b)
    nothing = views(flux, torch.zeros_like(seen), mag, ViewConfig.tiny())
    assert nothing.flux.isfinite().all() and nothing.freq.isfinite().all() and not nothing.flux.any()


def test_periods_are_found_to_a_grid_step():
    config = ViewConfig.quarter()
    periods = torch.tensor([.3, 1., 4., 11.])
    t = torch.arange(4500)*CADENCE
    flux = 1 + .01*torch.sin(2*math.pi*t/periods[:, None])
    v = one_view(flux, torch.ones_like(flux, dtype=torch.bool), torch.zeros(4), config)
    step = math.log(config.lags[1]/config.lags[0])
    assert ((config.lags[v.freq[:, 1].argmax(-1)].log() - periods.log()).abs() < torch.tensor([1.5, 1.5, 2, 4])*step).all()
    at = (config.lags[None].log() - periods[:, None].log()).abs().argmin(-1)
    assert (v.freq[torch.arange(4), 0, at] > .6).all()  # a whole turn later it is as bright as before


def test_gaps_are_bridged_and_marked():
    flux, seen, _ = batch(n=8, length=300, share=.5)
    seen[0] = False
    seen[1] = True
    seen[2, :50] = False
    seen[3, -50:] = False
    seen[4, 100:150] = False
    y, ok = fill_gaps(flux, seen, longest=3)
    i = np.arange(300)
    for k in range(1, 8):
        np.testing.assert_allclose(y[k], np.interp(i, i[seen[k]], flux[k][seen[k]]), atol=1e-6)
    assert not y[0].any() and not ok[0].any() and ok[1].all()
    assert not ok[2, :50].any() and not ok[3, -50:].any() and not ok[4, 101:149].any()
    assert (ok | ~seen).all() and torch.equal(fill_gaps(flux, seen, 0)[1], seen)


def test_stitching():
    flux, seen, _ = batch(n=3, length=900)
    quarter = torch.arange(900)//300
    level = torch.tensor([5e3, 7e3, 0.])[quarter]
    y, ok = stitch(flux*level, seen, quarter)
    for q in (0, 1):
        here = seen & (quarter == q)
        np.testing.assert_allclose([y[k][here[k]].median() for k in range(3)], 1, atol=1e-6)
    assert not ok[:, 600:].any()  # no positive level, nothing to divide by
    same, _ = stitch(flux*level, seen, quarter.expand(3, -1))
    assert torch.equal(y, same)
    slow = (1 + .05*torch.linspace(0, 1, 900))[None]*torch.tensor([5e3, 7e3, 2e3])[quarter]
    ramp, _ = stitch(slow, torch.ones(1, 900, dtype=torch.bool), quarter, ends=5)
    assert (ramp[0].diff() > -1e-3).all() and abs(float(ramp[0, -1] - ramp[0, 0]) - .05) < 3e-3


def test_magnitudes():
    flux, seen, _ = batch(n=2)
    near, far = magnitude_normalise(flux[:1], seen[:1], torch.tensor([5.])), magnitude_normalise(flux[:1]/100, seen[:1], torch.tensor([5.]))
    torch.testing.assert_close(near, far)  # distance drops out
    unknown = magnitude_normalise(flux, seen, torch.tensor([math.nan]*2))
    assert ((unknown[seen] - flux[seen]).abs() < 1e-2).all() and not unknown[~seen].any()
    torch.testing.assert_close(magnitude_normalise(flux, seen, torch.tensor([2., 2.]), literal=True)[seen], 4*flux[seen])
    assert float(absolute_magnitude(torch.tensor(10.), torch.tensor(100.), .5)) == pytest.approx(4.5)
    plain = ViewConfig(points=512, luminosity=False)
    assert torch.equal(views(flux, seen, torch.tensor([1., 9.]), plain).flux, views(flux, seen, torch.tensor([math.nan]*2), plain).flux)


@pytest.mark.parametrize('length', [300, 600, 1000, 1024, 3000])
def test_two_views(length):
    config = ViewConfig(points=512, smooth=1)
    flux = (1 + torch.arange(length, dtype=torch.float64)).expand(200, -1)  # each value tells its place
    seen = torch.ones(200, length, dtype=torch.bool)
    shown = [[v.flux[i, 0][v.seen[i]]*(1 + flux[0, 0]) for i in range(200)] for v in two_views(flux, seen, torch.zeros(200), ViewConfig(points=512, smooth=1), generator(0))]
    a, b = two_views(flux, seen, torch.zeros(200), config, generator(0))
    n = [v.seen.sum(-1) for v in (a, b)]
    least = 512 if length >= 1024 else min(512, math.ceil(config.share*length))
    assert all((o >= least).all() and (o <= min(512, length)).all() for o in n)
    if length < 1000: assert all(o.max() - o.min() > .5*(min(512, length) - least) for o in n) and not torch.equal(*n)  # widths are drawn
    first = [torch.stack([o[i][0]/(o[i][1] - o[i][0]) for i in range(200)]) for o in shown]  # the place, whatever the scale
    assert all((f > .5).all() and (f + w < length + 1.5).all() for f, w in zip(first, n))
    apart = (first[0] - first[1]).abs()
    assert (apart >= 511).all() if length >= 1024 else (apart < length).all()
    assert apart.max() > 5 or length == 1024
    again = two_views(flux, seen, torch.zeros(200), config, generator(0))
    assert torch.equal(a.flux, again[0].flux) and torch.equal(b.flux, again[1].flux)


def test_one_view_is_the_best_covered():
    flux, seen, mag = batch(n=2, length=2000, share=1.1)
    seen[:, 300:900] = False
    config = ViewConfig.tiny()
    v = one_view(flux, seen, mag, config)
    assert v.seen.all()
    middle = 900 + int((torch.arange(1489)[900:] - 744).abs().argmin())  # of the stretch behind the gap, the start that is nearest to the middle
    torch.testing.assert_close(v.flux, views(flux, seen, mag, config, torch.tensor([middle, middle])).flux)
    flux, seen = flux[:, 300:], seen[:, 300:]  # begins with what is not seen
    short = seen & (torch.arange(1700) < 1000)
    torch.testing.assert_close(one_view(flux, short, mag, config).flux, views(flux[:, 600:], short[:, 600:], mag, config).flux)


@pytest.mark.parametrize('wrong, why', [(dict(bin=7), 'whole number'), (dict(smooth=4), 'odd'), (dict(axis='mel'), 'linear'), (dict(axis='log'), 'grid'),
                                        (dict(axis='log', grid=9, periods=(1, 1e4)), 'periods'), (dict(share=0), 'share'), (dict(cadence=-1), 'positive')])
def test_configuration_is_checked(wrong, why):
    with pytest.raises(ValueError, match=why): ViewConfig(**wrong)


# records

def test_thirty_days_stay_thirty_days():
    for cadence in (CADENCE, 2/1440, 10/1440):
        t = 55000 + np.arange(0, 120, cadence)
        keep = np.random.default_rng(0).random(len(t)) < .9
        lc = from_columns('30 d', t[keep], 1 + .01*np.sin(2*np.pi*t[keep]/30))
        assert lc.cadence == pytest.approx(cadence, rel=1e-6)
        flux, seen, _, t0, step = to_grid(lc, CADENCE)
        assert t0 == t[keep][0] and step == CADENCE
        r = acf(torch.from_numpy(flux)[None], torch.from_numpy(seen)[None])[0]/torch.linspace(1, 0, len(flux) + 1)[:-1]  # without the bias
        assert CADENCE*(700 + int(r[700:2500].argmax())) == pytest.approx(30, abs=.3)


def test_bitmasks():
    assert [BITMASKS['Kepler'][o] for o in ('default', 'hard', 'hardest')] == [1130799, 1664431, 2096639]
    assert [BITMASKS['TESS'][o] for o in ('default', 'hard', 'hardest')] == [17087, 24319, 65535]
    t, q = np.arange(32)*CADENCE, np.zeros(32, int)
    bits = list(KEPLER_FLAGS)
    q[:len(bits)] = bits
    lc = from_columns('x', t, t + 1, quality=q, mission='Kepler')
    bad = {1, 2, 4, 8, 32, 256, 16384, 65536, 1048576}
    assert [not o for o in lc.usable()[:len(bits)]] == [b in bad for b in bits] and lc.usable('none').all() and lc.usable(16).sum() == 31
    assert from_columns('x', t, t + 1, quality=q).usable().sum() == 32 - len(bits)  # an unknown mission is taken at its word
    assert quality_names(33) == ['attitude tweak', 'desaturation'] and quality_names(16, 'TESS') == ['argabrightening'] and len(TESS_FLAGS) == 16


def test_spikes_go_and_eclipses_stay():
    flux, seen, _ = batch(n=1, share=1.1)
    flux = flux.clone()
    flux[0, 100] += .05
    flux[0, 200:206] -= .3
    ok = despike(flux, seen)
    assert not ok[0, 100] and ok.sum() == 699


@needs_data
@pytest.mark.parametrize('path', REAL or [None], ids=lambda o: o.name if o else 'none')
def test_real_file(path):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        lc = read_lightcurve(path)
    n = len(lc)
    assert n > 1200 and all(len(getattr(lc, k)) == n for k in ('flux', 'flux_err', 'quality', 'segment'))
    assert (lc.time.dtype, lc.flux.dtype, lc.quality.dtype, lc.segment.dtype) == (np.float64, np.float32, np.int32, np.int32)
    assert (np.diff(lc.time) > 0).all() and not np.isinf(lc.flux).any() and .5 < lc.usable().mean() <= 1
    tess, k2 = path.name.startswith('tess'), path.name.startswith('ktwo')
    assert lc.mission == ('TESS' if tess else 'K2' if k2 else 'Kepler') and lc.star.split()[0] == ('TIC' if tess else 'EPIC' if k2 else 'KIC')
    assert 1440*lc.cadence == pytest.approx(2 if tess else 29.424, abs=.003) and 5 < lc.magnitude < 17
    digits = path.name.split('-')[0][4:] if not tess else path.name.split('-')[2]
    assert 'kepseismic' in str(path) or int(lc.star.split()[1]) == int(digits)
    flux, seen = prepare([lc], ViewConfig.quarter())
    assert flux.isfinite().all() and abs(float(flux[seen].median()) - 1) < 1e-3
    v = one_view(flux, seen, torch.tensor([math.nan]), ViewConfig.quarter())
    assert all(o.isfinite().all() for o in (v.flux, v.freq))


@needs_data
def test_quarters_of_one_star():
    quarters = [read_lightcurve(o) for o in REAL if '1996679_17q' in str(o)]
    [whole] = join_segments(quarters[::-1])
    assert len(whole) == sum(map(len, quarters)) and sorted(set(whole.segment)) == list(range(1, 18)) and whole.cadenceno is not None
    assert whole.cadence == pytest.approx(CADENCE, rel=1e-4)
    assert len(join_segments([*quarters, *quarters])[0]) == len(whole)  # the same quarter twice counts once
    flux, seen = prepare([whole, quarters[3]], ViewConfig.laptop())
    assert flux.shape == seen.shape and seen[0].sum() > 60_000 and 4000 < seen[1].sum() < 4700
    with_others = join_segments([quarters[0], read_lightcurve(REAL[0]), quarters[1]])
    assert [len(set(o.segment)) for o in with_others] == [2, 1]


@needs_data
def test_kepseismic_periods():
    for kic, period in {'003733735': 2.57, '008006161': 31.7, '010644253': 10.88}.items():
        lc = read_lightcurve(next(o for o in REAL if kic in o.name))
        config = ViewConfig.laptop()
        v = one_view(*prepare([lc], config), torch.tensor([math.nan]), config)
        near = (config.lags > .6*period) & (config.lags < 1.5*period)
        assert abs(float(config.lags[near][v.freq[0, 0][near].argmax()])/period - 1) < .1, kic


@needs_data
def test_kepler_sample():
    curves, labels = read_kepler_sample(FOLDER)
    assert len(curves) == len(labels) == 108 and list(labels.kic) == [int(o.star.split()[1]) for o in curves]
    assert labels.prot.notna().sum() == 18 and labels.abs_mag.notna().sum() > 90
    packed = {o.star: o for o in curves}
    for path in [o for o in REAL if o.parent.name == 'fits']:
        lc = read_lightcurve(path)
        np.testing.assert_allclose(lc.flux, packed[lc.star].flux, rtol=5e-6)  # the packed flux is rounded
        np.testing.assert_array_equal(lc.quality, packed[lc.star].quality)
    with pytest.raises(BadInput, match='no such file'): read_kepler_sample(FOLDER/'nowhere')


# files

@pytest.fixture
def made_up():
    t = 120 + np.delete(np.arange(200), [7, 8, 50])*CADENCE
    flux = (1e4*(1 + .01*np.sin(t))).astype('f4')
    flux[3] = np.nan
    return from_columns('x', t, flux, flux*1e-4, np.arange(197) % 5, 4, np.arange(197), star='KIC 42', mission='Kepler', magnitude=12.5, meta=dict(layout='made up'))


@pytest.mark.parametrize('end', ['ecsv', 'parquet', 'csv', 'csv.gz'])
def test_round_trip(made_up, tmp_path, end):
    path = tmp_path/f'lc.{end}'
    made_up.to_table().write(tmp_path/f"lc.{end.removesuffix('.gz')}")
    if end.endswith('gz'): path.write_bytes(gzip.compress((tmp_path/'lc.csv').read_bytes()))
    back = read_lightcurve(path)
    for k in ('time', 'flux', 'flux_err', 'quality', 'segment', 'cadenceno'): np.testing.assert_array_equal(getattr(back, k), getattr(made_up, k))
    assert back.cadence == made_up.cadence and back.meta['file'] == path.name
    if 'csv' not in end or end == 'ecsv': assert (back.star, back.mission, back.magnitude) == ('KIC 42', 'Kepler', 12.5)


@pytest.mark.parametrize('header, mission, star', [('time,flux', '', ''), ('BKJD;PDCSAP_FLUX;kic', 'Kepler', 'KIC 7'), ('# time [d] flux error', '', ''), ('tic\tbtjd\tSAP_FLUX\tsector', 'TESS', 'TIC 7')])
def test_names_of_columns(tmp_path, header, mission, star):
    sep = next((o for o in ',;\t' if o in header), ' ')
    names = header.lstrip('# ').replace(' [d]', '').split(sep)
    if header.startswith('#'): header = '# ' + ' '.join(names)
    row = lambda i: sep.join({'kic': '7', 'tic': '7', 'sector': '3'}.get(o, f'{i*CADENCE + 1:.6f}' if 'time' in o or 'jd' in o.lower() else '10.5') for o in names)
    (tmp_path/'a.txt').write_text('\n'.join([header, *map(row, range(40))]))
    lc = read_lightcurve(tmp_path/'a.txt')
    assert (len(lc), lc.mission, lc.star) == (40, mission, star) and lc.cadence == pytest.approx(CADENCE, abs=1e-5)


def test_many_stars_in_a_table(tmp_path):
    t = np.arange(60)*CADENCE
    frame = pd.DataFrame(dict(kic=np.repeat([8, 5, 7], 60), time=np.tile(t, 3), flux=np.random.default_rng(0).random(180) + 5, quarter=2))
    frame = frame.sample(frac=1, random_state=0).sort_values('time', kind='stable')
    for name in ('a.csv', 'a.parquet'):
        frame.to_csv(tmp_path/name, index=False) if name.endswith('csv') else frame.to_parquet(tmp_path/name)
        curves = read_lightcurves(tmp_path/name)
        assert [o.star for o in curves] == ['KIC 5', 'KIC 7', 'KIC 8'] and all((o.segment == 2).all() for o in curves)
        np.testing.assert_allclose(curves[0].flux, frame[frame.kic == 5].flux, rtol=1e-6)
    with pytest.raises(BadInput, match='3 light curves'): read_lightcurve(tmp_path/'a.csv')


def test_lightkurve_objects(made_up):
    value = lambda x: types.SimpleNamespace(value=x)
    meta = dict(OBJECT='KIC 42', MISSION='Kepler', QUARTER=4, KEPMAG=12.5)
    obj = types.SimpleNamespace(time=value(made_up.time), flux=value(np.ma.masked_invalid(made_up.flux)), flux_err=value(made_up.flux_err), quality=made_up.quality,
                                cadenceno=made_up.cadenceno, meta=meta, label='KIC 42')
    lc = from_lightkurve(obj)
    for k in ('time', 'flux', 'quality', 'segment', 'cadenceno'): np.testing.assert_array_equal(getattr(lc, k), getattr(made_up, k))
    assert (lc.star, lc.mission, lc.magnitude) == ('KIC 42', 'Kepler', 12.5)
    with pytest.raises(BadInput, match='no time or no flux'): from_lightkurve(types.SimpleNamespace(flux=[1]))


def table(path, hdu_columns, cards=None, **kwargs):
    fits.HDUList([fits.PrimaryHDU(header=fits.Header(cards or {})), fits.BinTableHDU(Table(hdu_columns), **kwargs)]).writeto(path)


def test_sap_flux_where_there_is_no_pdc(tmp_path):
    t = np.arange(100)*CADENCE
    table(tmp_path/'a.fits', dict(TIME=t, SAP_FLUX=t + 5, PDCSAP_FLUX=np.full(100, np.nan)), dict(TELESCOP='Kepler', OBJECT='KIC 1', QUARTER=3))
    lc = read_lightcurve(tmp_path/'a.fits')
    assert lc.meta['column'] == 'SAP_FLUX' and 'empty' in lc.meta['note'] and set(lc.segment) == {3}


def broken(name, tmp):
    "Write a file that is no light curve"
    t = np.arange(100)*CADENCE
    path = tmp/(name.replace(' ', '_') + '.fits')
    whole = tmp/'whole.fits'
    table(whole, dict(TIME=t, PDCSAP_FLUX=t + 5))
    csv = lambda rows: path.write_text('\n'.join(rows))
    rows = [f'{a},{a+5}' for a in t]
    match name:
        case 'missing': pass
        case 'empty': path.write_bytes(b'')
        case 'folder': path.mkdir()
        case 'truncated': path.write_bytes(whole.read_bytes()[:6000])
        case 'broken gzip': path.write_bytes(gzip.compress(whole.read_bytes())[:-50])
        case 'image': fits.PrimaryHDU(np.zeros((20, 20))).writeto(path)
        case 'spectrum': table(path, dict(LOGLAM=t + 3, FLUX=t, IVAR=t))
        case 'pixels': table(path, dict(TIME=t, FLUX=np.zeros((100, 3, 4))))
        case 'no flux': table(path, dict(TIME=t, CADENCENO=np.arange(100)))
        case 'all NaN': table(path, dict(TIME=t, PDCSAP_FLUX=t*np.nan))
        case 'no time stamps': table(path, dict(TIME=t*np.nan, PDCSAP_FLUX=t))
        case 'backwards': table(path, dict(TIME=t[::-1], PDCSAP_FLUX=t))
        case 'repeated': table(path, dict(TIME=np.repeat(t[:50], 2), PDCSAP_FLUX=t))
        case 'short': table(path, dict(TIME=t[:5], PDCSAP_FLUX=t[:5] + 1))
        case 'words': csv(['time,flux', *rows[:30], 'noon,5', *rows[31:]])
        case 'ragged': csv(['time,flux', *rows[:30], '3,4,5', *rows[31:]])
        case 'no flux column': csv(['time,brightness', *rows])
        case 'prose': path.write_text('Dear colleague,\nplease find no data below.\n'*20)
        case 'pickle': path.write_bytes(b'\x80\x04K\x01.')
        case 'archive': zipfile.ZipFile(path, 'w').writestr('a', 'b')
        case 'picture': path.write_bytes(b'\x89PNG\r\n\x1a\n' + bytes(100))
        case 'noise': path.write_bytes(np.random.default_rng(0).bytes(5000))
        case 'broken parquet': path.write_bytes(b'PAR1' + bytes(100) + b'PAR1')
        case 'broken ecsv': path.write_text('# %ECSV 1.0\n# ---\n# datatype: [\ntime flux\n1 2\n')
    return path


BROKEN = {'missing': 'no such file', 'empty': 'empty', 'folder': 'directory', 'truncated': 'ends early', 'broken gzip': 'gzip', 'image': 'images', 'spectrum': 'no columns of time', 'pixels': 'pixel file',
          'no flux': 'no columns of time and flux', 'all NaN': 'NaN', 'no time stamps': 'fewer than', 'backwards': 'not increasing', 'repeated': 'not increasing', 'short': 'fewer than', 'words': 'no number',
          'ragged': 'instead of', 'no flux column': 'no column of flux', 'prose': '', 'pickle': 'pickle', 'archive': 'archive', 'picture': 'picture', 'noise': '', 'broken parquet': '', 'broken ecsv': ''}


@pytest.mark.parametrize('name', BROKEN)
def test_broken_file(name, tmp_path):
    path = broken(name, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with pytest.raises(BadInput, match=BROKEN[name] or None) as e: read_lightcurves(path)
    assert e.value.name == str(path) and e.value.reason and '\n' not in str(e.value) and len(e.value.reason) < 200


def test_nothing_usable():
    t = np.arange(50)*CADENCE
    with pytest.raises(BadInput, match='flagged'): to_grid(from_columns('x', t, t + 1, quality=np.full(50, 2), mission='Kepler', star='KIC 1'))
    t[-1] = 1e7
    with pytest.raises(BadInput, match='spans'): to_grid(from_columns('x', t, t + 1))


def test_folders(tmp_path):
    for o in ('b.csv', 'a.fits.gz', 'c.png', '.hidden.csv', 'sub/d.parquet', 'e.h5'):
        (tmp_path/o).parent.mkdir(exist_ok=True)
        (tmp_path/o).touch()
    assert [o.name for o in find_lightcurves(tmp_path)] == ['a.fits.gz', 'b.csv', 'd.parquet']
    assert find_lightcurves([tmp_path/'c.png', tmp_path/'b.csv', tmp_path/'b.csv']) == [tmp_path/'c.png', tmp_path/'b.csv']


def test_repr(made_up):
    assert repr(made_up).startswith('LightCurve KIC 42 [Kepler 4]: 197 cadences of 29.42 min') and isinstance(made_up, LightCurve)
