"""Every real file reads or is refused with a reason; no damaged file does anything else."""
import gzip
import warnings
import zipfile

import numpy as np
import pandas as pd
import pytest

from stellar_nb.core import BadInput, data_dir
from stellar_nb.data.spectra import EXAMPLES, C_KMS, example_file, find_spectra, read_spectra

FOLDERS = [o for o in (data_dir('lamost_formats'), data_dir('lamost_dr10', 'fits')) if o]
REAL = find_spectra(FOLDERS)
needs_data = pytest.mark.skipif(not REAL, reason='no real files: link a data folder as data/ or set STELLAR_NB_DATA')
PER_LAYOUT = 13  # damaged files of each layout


def valid(spectra):
    "Do all records keep the promises of `Spectrum`?"
    assert isinstance(spectra, list) and spectra
    for s in spectra:
        s.check()
        assert np.array_equal(s.mask, s.ivar == 0)
        assert s.rv_source == ('header' if np.isfinite(s.rv) else '')
        assert np.isfinite(s.snr) and isinstance(s.id, str) and s.meta['file'] and s.meta['layout']
    assert any(not s.mask.all() for s in spectra)


def relative(path):
    return '/'.join(path.parts[-2:])


@needs_data
@pytest.mark.parametrize('path', REAL or [None], ids=relative if REAL else str)
def test_real_file(path):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        spectra = read_spectra(path)
    valid(spectra)
    survey = 'SDSS' if '/spec-' in str(path) and path.name.split('-')[1].isdigit() and len(path.name.split('-')[1]) != 5 else None
    first = spectra[0]
    if survey or relative(path).startswith('sdss/'):
        assert first.meta['survey'] == 'SDSS' and np.isfinite(first.rv)
    elif path.name.startswith('FERRE'):
        assert first.meta['ivar'] == 'estimated' and np.isnan(first.rv)
    elif path.name.startswith('med-'):
        assert [o.meta['extension'] for o in spectra] == ['COADD_B', 'COADD_R']
    else:
        assert first.meta['survey'] == 'LAMOST' and abs(first.rv) < 700 and 3690 < first.wave[0] < first.wave[-1] < 9110


@needs_data
def test_same_as_the_packed_survey():
    "The 40 FITS files against the survey table, whose flux is rounded to 1e-4 and whose ivar to 1e-2; z against the catalogue"
    packed, checked = data_dir('lamost_dr10', 'spectra.npz'), []
    if not packed: pytest.skip('no lamost_dr10/spectra.npz')
    table = {s.id: s for s in read_spectra(packed)}
    z = pd.read_csv(packed.with_name('labels.csv')).set_index('obsid').z
    for path in find_spectra(data_dir('lamost_dr10', 'fits')):
        s, = read_spectra(path)
        t = table.get(s.id)
        if t is None: continue
        n, good = len(s.wave), ~s.mask
        np.testing.assert_allclose(t.wave[:n], s.wave, rtol=5e-6)  # the short files start at 3700.000 Å, not at 10**3.5682
        np.testing.assert_allclose(t.flux[:n][good], s.flux[good], rtol=2e-4)
        np.testing.assert_allclose(t.ivar[:n][good], s.ivar[good], rtol=1e-2)
        assert np.array_equal(t.mask[:n], s.mask)
        checked.append(abs(s.rv - C_KMS*z[int(s.id)]))
    assert len(checked) > 30 and np.median(checked) < .01 and max(checked) < 15  # the catalogue's LASP was run again for some stars


@pytest.fixture(scope='session')
def pristine(tmp_path_factory):
    "Unpacked bytes of a made-up file of each layout"
    folder = tmp_path_factory.mktemp('pristine')
    data = {k: example_file(k, folder).read_bytes() for k in EXAMPLES}
    return {k: gzip.decompress(o) if o[:2] == b'\x1f\x8b' else o for k, o in data.items()}


@pytest.mark.parametrize('layout', EXAMPLES)
def test_made_up_file(layout, tmp_path):
    spectra = read_spectra(example_file(layout, tmp_path))
    valid(spectra)
    assert spectra[0].snr == pytest.approx(50, rel=.02)
    if layout in ('lamost-dr1', 'lamost-image', 'lamost-table', 'sdss-coadd', 'sdss-image', 'hdf5'):
        assert spectra[0].rv == pytest.approx(1e-4*C_KMS, rel=1e-4)


def damage(data, kind, rng):
    "A copy with one kind of damage"
    data = bytearray(data)
    if kind == 'cut': return bytes(data[:rng.integers(1, len(data))])
    if kind == 'flip':
        for _ in range(rng.integers(1, 4)): data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    if kind == 'head': data[rng.integers(16, min(len(data), 9000))] = rng.integers(256)
    if kind == 'hole':
        i = rng.integers(len(data))
        data[i:i+rng.integers(1, 3000)] = b''
    if kind == 'noise':
        i = rng.integers(len(data))
        n = min(len(data)-i, int(rng.integers(1, 400)))
        data[i:i+n] = rng.bytes(n)
    return bytes(data)


@pytest.mark.parametrize('case', range(PER_LAYOUT))
@pytest.mark.parametrize('layout', EXAMPLES)
def test_damaged(layout, case, pristine, tmp_path):
    rng = np.random.default_rng([case, list(EXAMPLES).index(layout)])
    path = tmp_path/'damaged'
    path.write_bytes(damage(pristine[layout], ('cut', 'flip', 'head', 'hole', 'noise')[case % 5], rng))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        try: spectra = read_spectra(path)
        except BadInput as e:
            assert e.name == str(path) and 3 < len(e.reason) < 200 and '\n' not in e.reason
            return
    valid(spectra)


@pytest.mark.parametrize('cut', (.001, .3, .9, .999))
def test_truncated_gzip(cut, tmp_path):
    whole = example_file('lamost-table', tmp_path).read_bytes()
    (path := tmp_path/'cut.fits.gz').write_bytes(whole[:int(cut*len(whole))])
    with pytest.raises(BadInput, match='ends early|empty'): read_spectra(path)


@pytest.mark.parametrize('cards,reason', ((dict(NAXIS1=10**12), 'ends early|promise'), (dict(NAXIS2=10**9), 'ends early|promise'),
                                          (dict(NAXIS1=-5), '.'), (dict(BITPIX=7), '.')))
def test_absurd_header(cards, reason, pristine, tmp_path):
    data = pristine['lamost-image']
    for k, v in cards.items():
        i = data.index(f'{k:8s}='.encode())
        data = data[:i] + f'{k:8s}={v:21d}'.ljust(80).encode() + data[i+80:]
    (path := tmp_path/'absurd.fits').write_bytes(data)
    with pytest.raises(BadInput, match=reason): read_spectra(path)


def test_bombs(tmp_path):
    (gz := tmp_path/'bomb.fits.gz').write_bytes(gzip.compress(bytes(2**27), 1))
    with pytest.raises(BadInput, match='unpacks'): read_spectra(gz)
    with zipfile.ZipFile(tmp_path/'bomb.npz', 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as z: z.writestr('flux.npy', bytes(2**27))
    with pytest.raises(BadInput, match='unpacks'): read_spectra(tmp_path/'bomb.npz')


def test_never_unpickles(tmp_path):
    class Trap:
        def __reduce__(self): return (tmp_path/'sprung').touch, ()
    np.savez(tmp_path/'trap.npz', wave=np.array([Trap()], dtype=object), flux=np.ones(20))
    np.save(tmp_path/'trap.npy', np.array([Trap()], dtype=object), allow_pickle=True)
    (tmp_path/'trap.pkl').write_bytes(__import__('pickle').dumps(np.arange(3)))
    for o in ('trap.npz', 'trap.npy', 'trap.pkl'):
        with pytest.raises(BadInput): read_spectra(tmp_path/o)
    assert not (tmp_path/'sprung').exists()


@pytest.mark.parametrize('text,reason', (('', 'empty'), ('hello\n', 'no layout'), ('wave,flux\n' + '5000,x\n'*20, 'no number'), ('x,y\n' + '1,2\n'*20, 'no layout'), ('wave,teff\n' + '1,2\n'*20, 'no flux among wave, teff'),
                                         ('flux,error\n' + '1,2\n'*20, 'no wavelengths'), ('wave,flux\n' + ''.join(f'{k},1\n' for k in range(5000, 5050)), 'no scatter'),
                                         ('wave flux\n' + ''.join(f'{k} 1\n' for k in range(5000, 5050)) + '6000\n', 'instead of 2'),
                                         ('wave,flux,ivar\n' + ''.join(f'{k},1,0\n' for k in range(5000, 5050)), 'zero or negative'),
                                         ('wave,flux,ivar\n' + ''.join(f'{k},nan,1\n' for k in range(5000, 5050)), 'NaN'),
                                         ('wave,flux,ivar\n' + ''.join(f'{k//2},1,1\n' for k in range(10000, 10050)), 'repeated'),
                                         (''.join(f'{k} 1 1 1\n' for k in range(5000, 5050)), '4 columns'), ('\0\1\2'*50, 'no layout')))
def test_bad_text(text, reason, tmp_path):
    (path := tmp_path/'spectrum.csv').write_text(text)
    with pytest.raises(BadInput, match=reason): read_spectra(path)


def test_closed_folder(tmp_path, monkeypatch):
    "A folder that may not be listed stands for itself, and reading it says why"
    import os
    (tmp_path/'closed').mkdir()
    (tmp_path/'a.csv').touch()
    scan = os.scandir
    def refuse(path='.'):
        if str(path).endswith('closed'): raise PermissionError(13, 'Permission denied', str(path))
        return scan(path)
    monkeypatch.setattr(os, 'scandir', refuse)
    assert find_spectra(tmp_path) == [tmp_path/'a.csv', tmp_path/'closed']
    with pytest.raises(BadInput, match='closed: permission denied'): read_spectra(tmp_path/'closed')


def test_closed_file(tmp_path, monkeypatch):
    from pathlib import Path
    def refuse(*a, **k): raise PermissionError(13, 'Permission denied')
    monkeypatch.setattr(Path, 'read_bytes', refuse)
    (tmp_path/'a.csv').write_text('wave,flux\n')
    with pytest.raises(BadInput, match='a.csv: permission denied'): read_spectra(tmp_path/'a.csv')


def test_cube_without_third_axis(pristine, tmp_path):
    "A library's error becomes a sentence"
    data = pristine['lamost-image'].replace(b'NAXIS   =                    2', b'NAXIS   =                    3', 1)
    (path := tmp_path/'cube.fits').write_bytes(data)
    with pytest.raises(BadInput) as e: read_spectra(path)
    assert 'KeyError' not in e.value.reason and '"' not in e.value.reason
