"Small good files of every format, written by code: `make(folder)` gives {target: {name: path}}"
import gzip
import shutil
import warnings
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import scipy.io
import torch
from astropy.io import fits
from astropy.table import Table
from PIL import Image

from stellar_nb.core import package_data
from stellar_nb.data.gaia import GAIA_COLUMNS
from stellar_nb.data.spectra import EXAMPLES, example_file
from stellar_nb.train.checkpoint import write_state

MODELS = ('specvit_xp', 'desa_quarter', 'fusion_sky', 'guided_mae', 'desa_aligned', 'desa_spectra')


def packed(path):
    "The same file, gzipped"
    out = path.with_name(path.name + '.gz')
    out.write_bytes(gzip.compress(path.read_bytes(), 1, mtime=0))
    return out


def spectra(d):
    "A made-up star in each layout, unpacked and packed; and a table in FITS"
    out = {}
    for k in EXAMPLES:
        path = example_file(k, d)
        if path.suffix == '.gz': (path := path.with_suffix('')).write_bytes(gzip.decompress(path.with_name(path.name + '.gz').read_bytes()))
        out[k] = path
    wave = np.linspace(4000., 8990., 500)
    flux = 1 + .1*np.sin(wave/50)
    Table(dict(wave=wave, flux=flux, ivar=0*wave + 100), units=dict(wave='Angstrom')).write(d/'table.fits')
    (d/'columns.txt').write_text('# wave flux error\n' + ''.join(f'{a:.2f} {b:.5f} 0.1\n' for a, b in zip(wave, flux)))
    return out | {'table': d/'table.fits', 'columns': d/'columns.txt', 'packed': packed(out['sdss-coadd'])}


def curve(n=400, step=.0204):
    "(time, flux) of a spotted star"
    t = 100 + step*np.arange(n)
    return t, 1 + .01*np.sin(2*np.pi*t/2.5) + 1e-3*np.random.default_rng(1).normal(size=n)


def archive(path, mission, n=400):
    "A file as of Kepler or TESS"
    t, f = curve(n)
    key, mag = dict(Kepler=('QUARTER', 'KEPMAG'), TESS=('SECTOR', 'TESSMAG'))[mission]
    cols = dict(TIME=t, CADENCENO=np.arange(n), SAP_FLUX=9e3*f, PDCSAP_FLUX=1e4*f, PDCSAP_FLUX_ERR=0*f + 3, SAP_QUALITY=np.zeros(n))
    table = fits.BinTableHDU.from_columns([fits.Column(k, 'J' if k in ('SAP_QUALITY', 'CADENCENO') else 'D' if k == 'TIME' else 'E', array=v) for k, v in cols.items()], name='LIGHTCURVE')
    head = fits.Header({'TELESCOP': mission, 'MISSION': mission, 'OBJECT': f'{mission[:1]}IC 7', key: 3, mag: 12., 'RA_OBJ': 290., 'DEC_OBJ': 40.})
    fits.HDUList([fits.PrimaryHDU(header=head), table]).writeto(path)
    return path


def lightcurves(d):
    "Kepler, TESS and KEPSEISMIC files, and tables of one star and of several"
    t, f = curve()
    out = {'kepler': archive(d/'kepler.fits', 'Kepler'), 'tess': archive(d/'tess.fits', 'TESS')}
    image = fits.PrimaryHDU(np.stack([t, 1e6*(f-1)], 1), fits.Header(dict(TTYPE1='TIME', TTYPE2='FLUX', TUNIT2='ppm', OBJECT='KIC 8', KEPMAG=11.)))
    fits.HDUList([image, fits.ImageHDU(np.ones(len(t), 'i2'))]).writeto(d/'kepseismic.fits')
    table = pd.DataFrame(dict(time=t, flux=f, flux_err=1e-3, quality=0, quarter=2, kic=7))
    for k, write in dict(csv=table.to_csv, parquet=table.to_parquet).items(): write(d/f'curve.{k}', index=False)
    Table.from_pandas(table).write(d/'curve.ecsv')
    pd.concat([table, table.assign(kic=8)]).to_csv(d/'stars.csv', index=False)
    (d/'bare.txt').write_text(''.join(f'{a:.5f} {b:.5f}\n' for a, b in zip(t, f)))
    names = dict(kepseismic='kepseismic.fits', csv='curve.csv', parquet='curve.parquet', ecsv='curve.ecsv', stars='stars.csv', bare='bare.txt')
    return out | {k: d/v for k, v in names.items()} | {'packed': packed(out['kepler'])}


def gaia(d):
    "The 18 columns of six stars in each format"
    rng = np.random.default_rng(0)
    t = Table({k: np.exp(rng.normal(size=6))*(1e4 if k.endswith('flux') else 1) for k in GAIA_COLUMNS if not k.startswith('flag')})
    t['ra'], t['dec'] = rng.uniform(0, 360, 6), rng.uniform(-90, 90, 6)
    t['source_id'], t['name'] = 3338040968345126913 + np.arange(6), [f'star {i}' for i in range(6)]
    for k in t.colnames:
        if k in GAIA_COLUMNS and GAIA_COLUMNS[k].unit: t[k].unit = GAIA_COLUMNS[k].unit
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for k, o in dict(fits='fits', ecsv='ascii.ecsv', vot='votable').items(): t.write(d/f'gaia.{k}', format=o)
        t.write(d/'binary.vot', format='votable', tabledata_format='binary2')
    frame = t.to_pandas()
    frame.to_csv(d/'gaia.csv', index=False)
    frame.to_parquet(d/'gaia.parquet', index=False)
    return {k: d/f'gaia.{k}' for k in ('fits', 'ecsv', 'vot', 'csv', 'parquet')} | {'binary': d/'binary.vot', 'packed': packed(d/'gaia.csv')}


def match(d):
    "Which light curve belongs to which spectrum"
    frame = pd.DataFrame(dict(spectrum=[f's{i}.fits' for i in range(20)], curve=[f'c{i}.fits' for i in range(20)]))
    frame.to_csv(d/'match.csv', index=False)
    frame.to_parquet(d/'match.parquet', index=False)
    return {k: d/f'match.{k}' for k in ('csv', 'parquet')}


def distances(d):
    "Stars with distances"
    frame = pd.DataFrame(dict(kic=np.arange(20), distance=np.linspace(10, 300, 20), mag=12.))
    frame.to_csv(d/'distances.csv', index=False)
    Table.from_pandas(frame).write(d/'distances.fits')
    return {k: d/f'distances.{k}' for k in ('csv', 'fits')}


def cubes(d):
    "A cube of 12 bands and 20 x 18 pixels in each format"
    x, wave = np.random.default_rng(0).normal(100, 10, (12, 20, 18)).astype('f4'), np.linspace(4000., 8400., 12)
    sky = dict(CTYPE1='RA---TAN', CTYPE2='DEC--TAN', CRVAL1=56.75, CRVAL2=24.1, CRPIX1=3., CRPIX2=2., CDELT1=-1e-3, CDELT2=1e-3, CUNIT1='deg', CUNIT2='deg')
    head = fits.Header(sky | dict(CTYPE3='WAVE', CUNIT3='Angstrom', CRVAL3=4000., CDELT3=400., CRPIX3=1., BUNIT='erg/s'))
    fits.PrimaryHDU(x, head).writeto(d/'cube.fits')
    parts = [fits.PrimaryHDU(), fits.ImageHDU(x, head, name='DATA'), fits.ImageHDU(x**2/100, name='VAR'), fits.ImageHDU((x > 120).astype('i2'), name='MASK'), fits.ImageHDU(wave, name='WAVE')]
    fits.HDUList(parts).writeto(d/'parts.fits')
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(x, head, compression_type='GZIP_1')]).writeto(d/'tiled.fits')
    np.save(d/'cube.npy', x)
    np.savez(d/'cube.npz', cube=x, wave=wave, ivar=0*x + 1)
    np.savez_compressed(d/'small.npz', cube=x, wave=wave)
    scipy.io.savemat(d/'cube.mat', dict(cube=x.T, wavelength=wave))
    scipy.io.savemat(d/'packed.mat', dict(cube=x.T), do_compression=True)
    with h5py.File(d/'seven.mat', 'w', userblock_size=512) as f: f['cube'], f['wave'] = x.T, wave
    data = (d/'seven.mat').read_bytes()
    (d/'seven.mat').write_bytes(b'MATLAB 7.3 MAT-file'.ljust(124) + b'\0\x02IM' + data[128:])
    (d/'envi').mkdir()
    (d/'envi'/'c.img').write_bytes(x.tobytes())
    (d/'envi'/'c.hdr').write_text('ENVI\nsamples = 18\nlines = 20\nbands = 12\ndata type = 4\ninterleave = bsq\nbyte order = 0\nheader offset = 0\n'
                                  'wavelength units = Angstroms\nwavelength = {' + ', '.join(f'{o:.1f}' for o in wave) + '}\n')
    names = dict(fits='cube.fits', parts='parts.fits', tiled='tiled.fits', npy='cube.npy', npz='cube.npz', zipped='small.npz', mat='cube.mat', matz='packed.mat', mat73='seven.mat')
    return {k: d/v for k, v in names.items()} | {'packed': packed(d/'cube.fits'), 'envi': d/'envi'}


def images(d):
    "An image beside it"
    x = np.random.default_rng(1).integers(0, 255, (20, 18, 3)).astype('u1')
    for end in ('png', 'tif', 'jpg'): Image.fromarray(x).save(d/f'image.{end}')
    Image.fromarray(x[..., 0]).convert('P').save(d/'palette.png')
    fits.PrimaryHDU(x[..., 0].astype('f4')).writeto(d/'image.fits')
    np.save(d/'image.npy', x)
    return {k: d/f'image.{k}' for k in ('png', 'tif', 'jpg', 'fits', 'npy')} | {'palette': d/'palette.png'}


def models(d):
    "Copies of shipped models, one of each kind"
    return {k: Path(shutil.copytree(package_data('models', k), d/k)) for k in MODELS}


def checkpoints(d):
    "The state of a training"
    write_state(d/'run.safetensors', dict(at=(1, 3), model=dict(w=torch.ones(4, 3), b=torch.zeros(3)), optimizer=dict(state={0: dict(step=torch.tensor(2.))}), rng=dict(torch=torch.get_rng_state())), dict(seed=1))
    return dict(run=d/'run.safetensors')


def make(folder):
    "All of them below a folder"
    out = {}
    for name, write in dict(spectra=spectra, lightcurves=lightcurves, gaia=gaia, match=match, distances=distances, cube=cubes, image=images, model=models, checkpoint=checkpoints).items():
        (folder/name).mkdir(parents=True)
        out[name] = write(folder/name)
    return out
