"Files in good form whose values make no sense, and values written into them"
import h5py
import numpy as np
import pandas as pd
from astropy.table import Table

from stellar_nb.data.gaia import GAIA_COLUMNS

from .seeds import curve

SPECTRUM = {
    'as it is': lambda c, r: c, 'one NaN': lambda c, r: c['flux'].__setitem__(7, np.nan), 'all NaN': lambda c, r: c['flux'].fill(np.nan), 'infinity': lambda c, r: c['flux'].__setitem__(slice(5, 90), np.inf),
    'negative ivar': lambda c, r: c['ivar'].__setitem__(slice(0, 99), -1), 'all ivar negative': lambda c, r: c['ivar'].fill(-5), 'ivar infinite': lambda c, r: c['ivar'].fill(np.inf), 'ivar huge': lambda c, r: c['ivar'].fill(1e300), 'ivar tiny': lambda c, r: c['ivar'].fill(1e-320),
    'ivar zero': lambda c, r: c['ivar'].fill(0), 'ivar NaN': lambda c, r: c['ivar'].__setitem__(slice(3, 300), np.nan), 'decreasing': lambda c, r: c.update(wave=c['wave'][::-1].copy()), 'repeated': lambda c, r: c['wave'].__setitem__(9, c['wave'][8]),
    'constant wave': lambda c, r: c['wave'].fill(5000), 'shuffled': lambda c, r: r.shuffle(c['wave']), 'wave NaN': lambda c, r: c['wave'].__setitem__(3, np.nan), 'wave negative': lambda c, r: c.update(wave=-c['wave']), 'wave zero': lambda c, r: c['wave'].__setitem__(0, 0),
    'nanometres': lambda c, r: c.update(wave=c['wave']/10), 'metres': lambda c, r: c.update(wave=c['wave']*1e-10), 'wave infinite': lambda c, r: c['wave'].__setitem__(-1, np.inf), 'no rows': lambda c, r: c.update({k: v[:0] for k, v in c.items()}), 'one row': lambda c, r: c.update({k: v[:1] for k, v in c.items()}),
    'fifteen rows': lambda c, r: c.update({k: v[:15] for k, v in c.items()}), 'sixteen rows': lambda c, r: c.update({k: v[:16] for k, v in c.items()}), 'flux huge': lambda c, r: c.update(flux=c['flux']*1e300), 'flux tiny': lambda c, r: c.update(flux=c['flux']*1e-310), 'flux zero': lambda c, r: c['flux'].fill(0),
    'flux constant': lambda c, r: c['flux'].fill(3), 'flux negative': lambda c, r: c.update(flux=-c['flux']), 'whole numbers': lambda c, r: c.update({k: v.astype('i8') for k, v in c.items()}), 'single bits': lambda c, r: c.update(flux=c['flux'] > 1), 'text': lambda c, r: c.update(flux=c['flux'].astype('U8')),
    'no flux': lambda c, r: c.pop('flux'), 'no wave': lambda c, r: c.pop('wave'), 'only flux': lambda c, r: [c.pop('wave'), c.pop('ivar')], 'two fluxes': lambda c, r: c.update(FLUX=-c['flux']), 'redshift infinite': lambda c, r: c.update(redshift=np.full(len(c['wave']), np.inf)),
    'float32': lambda c, r: c.update({k: v.astype('f4') for k, v in c.items()}), 'mask of NaN': lambda c, r: c.update(mask=c['flux']*np.nan), 'all masked': lambda c, r: c.update(mask=c['flux']*0 + 1), 'strange name': lambda c, r: c.update({'a\x1b[2Jb': c['flux']}), 'a thousand columns': lambda c, r: c.update({f'c{i}': c['flux'][:] for i in range(1000)})}

CURVE = {
    'as it is': lambda c, r: c, 'decreasing': lambda c, r: c.update(time=c['time'][::-1].copy()), 'repeated': lambda c, r: c['time'].__setitem__(9, c['time'][8]), 'shuffled': lambda c, r: r.shuffle(c['time']), 'constant': lambda c, r: c['time'].fill(1), 'time NaN': lambda c, r: c['time'].fill(np.nan),
    'time infinite': lambda c, r: c['time'].__setitem__(-1, np.inf), 'year 9999': lambda c, r: c.update(time=c['time'] + 5373484.5), 'year 99999': lambda c, r: c.update(time=c['time'] + 3.8e7), 'seconds': lambda c, r: c.update(time=c['time']*86400 + 1.7e9), 'microseconds apart': lambda c, r: c.update(time=100 + (c['time'] - 100)*1e-12),
    'flux NaN': lambda c, r: c['flux'].fill(np.nan), 'flux infinite': lambda c, r: c['flux'].__setitem__(slice(0, 399), np.inf), 'flux huge': lambda c, r: c['flux'].fill(1e300), 'flux beyond float32': lambda c, r: c.update(flux=c['flux']*1e39), 'flux zero': lambda c, r: c['flux'].fill(0), 'flux negative': lambda c, r: c.update(flux=-c['flux']),
    'flux constant': lambda c, r: c['flux'].fill(7), 'negative errors': lambda c, r: c['flux_err'].fill(-1), 'errors NaN': lambda c, r: c['flux_err'].fill(np.nan), 'errors infinite': lambda c, r: c['flux_err'].fill(np.inf), 'no rows': lambda c, r: c.update({k: v[:0] for k, v in c.items()}), 'one row': lambda c, r: c.update({k: v[:1] for k, v in c.items()}),
    'sixteen rows': lambda c, r: c.update({k: v[:16] for k, v in c.items()}), 'quality huge': lambda c, r: c.update(quality=c['flux']*0 + 2.**40), 'quality half': lambda c, r: c.update(quality=c['flux']*0 + .5), 'quality NaN': lambda c, r: c.update(quality=c['flux']*np.nan), 'quality text': lambda c, r: c.update(quality=c['flux'].astype('U8')),
    'a star a row': lambda c, r: c.update(star=np.arange(len(c['time']))), 'wild stars': lambda c, r: c.update(star=np.array(['\x1b[2J', 'b\nc', '', 'é☃', "'; drop"]*(len(c['time'])//5))), 'magnitude infinite': lambda c, r: c.update(kepmag=c['flux']*np.inf), 'no time': lambda c, r: c.pop('time'), 'no flux': lambda c, r: c.pop('flux'),
    'two times': lambda c, r: c.update(TIME=c['time']*2), 'hours apart': lambda c, r: c.update(time=c['time']*500), 'segments float': lambda c, r: c.update(quarter=c['flux']), 'text': lambda c, r: c.update(time=c['time'].astype('U9'))}

STARS = {
    'as it is': lambda c, r: c, 'ra 400': lambda c, r: c['ra'].fill(400), 'dec -91': lambda c, r: c['dec'].fill(-91), 'ra NaN': lambda c, r: c['ra'].fill(np.nan), 'infinity': lambda c, r: [v.fill(np.inf) for v in c.values() if v.dtype.kind == 'f'], 'all NaN': lambda c, r: [v.fill(np.nan) for v in c.values() if v.dtype.kind == 'f'],
    'negative errors': lambda c, r: [v.fill(-1) for k, v in c.items() if k.endswith('error')], 'zero errors': lambda c, r: [v.fill(0) for k, v in c.items() if k.endswith('error')], 'negative flux': lambda c, r: c['phot_g_mean_flux'].fill(-1), 'ids repeat': lambda c, r: c['source_id'].fill(5), 'ids negative': lambda c, r: c['source_id'].fill(-5),
    'ids float': lambda c, r: c.update(source_id=c['source_id'].astype('f8')), 'ids NaN': lambda c, r: c.update(source_id=np.full(6, np.nan)), 'ids beyond int64': lambda c, r: c.update(source_id=np.full(6, 2**64-1, 'u8')), 'ids text': lambda c, r: c.update(source_id=np.array(['Gaia DR3 12', 'x', '', '9'*25, '-3', '1e5'])), 'ids half': lambda c, r: c.update(source_id=np.full(6, 1.5)),
    'no rows': lambda c, r: c.update({k: v[:0] for k, v in c.items()}), 'text': lambda c, r: c.update(parallax=np.array(['a\x1b[2J']*6)), 'no parallax': lambda c, r: c.pop('parallax'), 'no ra': lambda c, r: c.pop('ra'), 'column twice': lambda c, r: c.update(RA=c['ra']), 'column problem': lambda c, r: c.update(problem=c['ra']), 'flags odd': lambda c, r: c.update(flagnopllx=np.full(6, 7.), flagnoflux=np.full(6, np.nan)),
    'proper motion of light': lambda c, r: c['pmra'].fill(1e4), 'whole numbers': lambda c, r: c.update({k: v.astype('i8') for k, v in c.items()}), 'bool': lambda c, r: c.update(parallax=c['parallax'] > 0), 'complex': lambda c, r: c.update(parallax=c['parallax'].astype('c16'))}


def columns(target):
    "Good columns"
    rng = np.random.default_rng(3)
    if target == 'spectra':
        wave = np.linspace(4000., 8990., 500)
        return dict(wave=wave, flux=1 + .1*np.sin(wave/50) + .01*rng.normal(size=500), ivar=0*wave + 1e4)
    if target == 'lightcurves':
        t, f = curve()
        return dict(time=t, flux=f, flux_err=0*f + 1e-3)
    out = {k: np.exp(rng.normal(size=6)) for k in GAIA_COLUMNS if not k.startswith('flag')}
    return out | dict(source_id=10**18 + np.arange(6))


def save(cols, path):
    "In the format that the name says"
    table = lambda: Table({k: v for k, v in cols.items()})
    match path.suffix:
        case '.npz': np.savez(path, **{k.replace('\x1b', ''): v for k, v in cols.items()})
        case '.h5':
            with h5py.File(path, 'w') as f:
                for k, v in cols.items(): f[k] = v.astype('S') if v.dtype.kind == 'U' else v
        case '.csv': pd.DataFrame(cols).to_csv(path, index=False)
        case '.parquet': pd.DataFrame(cols).to_parquet(path, index=False)
        case '.fits': Table({''.join(c for c in k if c.isprintable()): np.char.encode(v.astype('U'), 'ascii', 'replace') if v.dtype.kind == 'U' else v for k, v in cols.items()}).write(path)
        case '.ecsv': table().write(path, format='ascii.ecsv')
        case '.vot': table().write(path, format='votable')
    return path


DEFECTS = dict(spectra=SPECTRUM, lightcurves=CURVE, gaia=STARS)
ENDINGS = dict(spectra=('npz', 'csv', 'parquet', 'fits', 'ecsv', 'h5'), lightcurves=('csv', 'parquet', 'fits', 'ecsv'), gaia=('csv', 'parquet', 'fits', 'ecsv', 'vot'))


def write(target, defects, ending, folder):
    "A file with these defects; where two cannot be combined, or the format cannot hold them, with the first alone or none"
    path = folder/f'content.{ending}'
    for some in (defects, defects[:1], ('as it is',)):
        cols = columns(target)
        try:
            for k in some: DEFECTS[target][k](cols, np.random.default_rng(0))
            return save(cols, path)
        except Exception: path.unlink(missing_ok=True)
