"The command `stellar_nb predict` from outside: files in, table, messages and exit status out."
import gzip, os, re, signal, subprocess, sys, time, weakref
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch
from astropy.io import fits
from astropy.table import Table

from stellar_nb.cli import COLUMNS, main, picture_name
from stellar_nb.core import data_dir, generator, seed_everything
from stellar_nb.data.preprocess import PreprocessConfig
from stellar_nb.data.spectra import example_file, read_spectra
from stellar_nb.mock.spectra import mock_lamost
from stellar_nb.models.specvit import SpecViT, SpecViTConfig
from stellar_nb.pretrained import LabelModel, save_pretrained
from stellar_nb.data.labels import LabelScale

LABELS = ('teff', 'logg', 'feh')
REAL = (p := data_dir('lamost_formats')) and p.resolve()
NUMBERS = [k for k,c in COLUMNS.items() if c.unit is not None]


# --- files ---------------------------------------------------------------------------------------------------------------------------------

WAVE = 10**(3.5682 + 1e-4*np.arange(3909))

@pytest.fixture(scope='session')
def star(tmp_path_factory):
    "Flux and inverse variance of a made-up star on LAMOST's pixels"
    s = read_spectra(example_file('lamost-table', tmp_path_factory.mktemp('star')))[0]
    np.testing.assert_allclose(s.wave, WAVE, rtol=1e-6)
    return s.flux, s.ivar

def write(path, flux, ivar, wave=WAVE, z=1e-4):
    "A LAMOST file (data release 10): a table of one row"
    cols = dict(FLUX=flux, IVAR=ivar, WAVELENGTH=wave, ANDMASK=0*wave, ORMASK=0*wave)
    table = fits.BinTableHDU.from_columns([fits.Column(k, f'{len(wave)}E', array=np.asarray(v)[None]) for k,v in cols.items()], name='COADD')
    head = fits.Header(dict(TELESCOP='LAMOST', DATA_V='LAMOST DR10', OBSID=1, Z=z, SNRG=40.))
    fits.HDUList([fits.PrimaryHDU(header=head), table]).writeto(path, overwrite=True)
    return Path(path)

@pytest.fixture(scope='session')
def model(tmp_path_factory):
    "A folder with a small untrained model: these tests are about everything around it"
    seed_everything(0)
    net = SpecViT(SpecViTConfig(length=3600, patch=72, width=16, depth=1, heads=2, hidden=32, labels=LABELS, quantiles=(.16, .5, .84)))
    limits = dict(teff=(3750., 8000.), logg=(0., 5.), feh=(-2.5, .5))
    m = LabelModel(net, PreprocessConfig(), LabelScale(LABELS, (5500., 4., -.5), (800., .5, .4)), (50., .1, .1), limits, card='# Untrained\n')
    return str(save_pretrained(m, tmp_path_factory.mktemp('models')/'untrained'))

@pytest.fixture
def predict(model, capsys):
    "Run the command in this process; exit status, stdout, lines of stderr"
    def run(*args):
        status = main(['predict', '--model', model, *map(str, args)])
        out,err = capsys.readouterr()
        return status, out, err.splitlines()
    return run

def rows(path):
    "A table as it was written, text without NaN"
    t = pd.read_csv(path, dtype=str, keep_default_na=False)
    assert list(t.columns) == list(COLUMNS)
    return t.assign(**{k: [float(v or 'nan') for v in t[k]] for k in NUMBERS})


# --- good files ----------------------------------------------------------------------------------------------------------------------------

LAYOUTS = ['lamost-dr1', 'lamost-image', 'lamost-table', 'sdss-coadd', 'sdss-image', 'text', 'ecsv', 'parquet', 'npz']

def test_layouts(here, predict):
    "Every layout that covers the model's wavelengths gives labels, and the three LAMOST layouts of one star the same"
    files = [example_file(o, here).name for o in LAYOUTS]
    status,_,err = predict(*files, '--rv', 29.98, '-o', 'out.csv')
    t = rows('out.csv')
    assert status == 0 and t.file.tolist() == files and set(t.status) == {'ok'} and set(t.reason) == {''}
    assert np.isfinite(t[[f'{l}{e}' for l in LABELS for e in ('', '_lo', '_hi')]]).all(axis=None)
    for l,tol in zip(LABELS, (2., .01, .01)):
        assert ((t[f'{l}_lo'] <= t[l]) & (t[l] <= t[f'{l}_hi'])).all()
        np.testing.assert_allclose(t[l][:3], t[l][0], atol=tol)
    np.testing.assert_allclose(t.rv, 29.98, atol=.01)
    assert dict(zip(LAYOUTS, t.rv_source)) == {o: 'header' if o.startswith(('lamost', 'sdss')) else 'given' for o in LAYOUTS}
    assert err == [f'spectra: {len(files)}, with labels: {len(files)}, failed: 0, written to out.csv']

def test_several_spectra_in_a_file(here, predict):
    "They are numbered; here they lie in the infrared and say so"
    status,_,err = predict(example_file('hdf5', here).name, example_file('lamost-table', here).name, '-o', 'out.csv')
    t = rows('out.csv')
    assert status == 1 and t.file.tolist() == ['hdf5.h5[0]', 'hdf5.h5[1]', 'lamost-table.fits.gz'] and t.status.tolist() == ['failed', 'failed', 'ok']
    assert all('7100–8850' in o and 'not covered' in o for o in t.reason[:2])

def test_velocity_sources(here, predict, star):
    "From the header, else as given, else measured: each is named"
    write('header.fits', *star)
    for z,name in ((0., 'rest.csv'), (-2e-4, 'moving.csv')): pd.DataFrame(dict(wave=WAVE*(1+z), flux=star[0], ivar=star[1])).to_csv(name, index=False)
    predict('.', '--rv', '-200', '-o', '../given.csv'); predict('.', '-o', '../measured.csv')
    given,measured = (rows(f'../{o}.csv').set_index('file') for o in ('given', 'measured'))
    assert given.rv_source.to_dict() == {'./header.fits': 'header', './rest.csv': 'given', './moving.csv': 'given'}
    assert set(measured.rv_source[['./rest.csv', './moving.csv']]) == {'template'} and (given.rv[['./rest.csv', './moving.csv']] == -200).all()
    assert given.rv['./header.fits'] == measured.rv['./header.fits'] == pytest.approx(1e-4*299792.458, abs=.1)
    assert measured.rv['./moving.csv'] - measured.rv['./rest.csv'] == pytest.approx(-2e-4*299792.458, abs=6)
    assert given.teff['./rest.csv'] != measured.teff['./rest.csv']

def test_batches_do_not_matter(here, predict, star):
    for i in range(5): write(f'{i}.fits', star[0]*(1 + i*np.sin(WAVE/20)/9), star[1])
    for n in (1, 2, 256): assert predict('.', '--batch-size', n, '-o', f'../{n}.csv')[0] == 0
    one,two,all_ = (rows(f'../{n}.csv') for n in (1, 2, 256))
    assert one.file.tolist() == two.file.tolist() == all_.file.tolist() == [f'./{i}.fits' for i in range(5)]
    assert one.teff.nunique() == 5
    for t in (two, all_): np.testing.assert_allclose(t[NUMBERS], one[NUMBERS], rtol=1e-5, atol=1e-4)

@pytest.mark.skipif(not REAL, reason='no real files at hand (STELLAR_NB_DATA)')
def test_real_layouts(here, predict):
    "Every LAMOST low-resolution layout gives rows; none stops the others"
    folders = ('dr1', 'dr5', 'dr7', 'dr8_repeats', 'dr10_pylasp', 'dr2_dr3_sdss', 'sdss')
    files = [p for f in folders for p in sorted((REAL/f).iterdir())[:3]]
    status,_,err = predict(*files, '-o', 'out.csv')
    t = rows('out.csv')
    t['folder'] = [Path(f).parent.name for f in t.file]
    assert status in (0, 1) and set(t.folder) == set(folders)
    assert (t[t.status == 'ok'].groupby('folder').size() > 0).sum() == len(folders)
    assert sum(': ' in e for e in err) >= (t.status == 'failed').sum()


def test_shipped_model(here, capsys):
    "The model that needs no name knows a dwarf from a giant"
    labels = torch.tensor([[5777., 4.44, 0., 0.], [4600., 2.4, -.4, .1]])
    two = lambda *v: torch.tensor(v)
    flux,ivar = mock_lamost(labels, snr=two(100., 100.), rv=two(20., -50.), ebv=two(0., 0.), vsini=two(3., 3.), generator=generator(0))
    for n,f,i in zip(('dwarf', 'giant'), flux, ivar): write(f'{n}.fits', f.numpy(), i.numpy(), z=(20. if n == 'dwarf' else -50.)/299792.458)
    assert main(['predict', 'dwarf.fits', 'giant.fits', '-o', 'out.csv']) == 0
    t = rows('out.csv')
    np.testing.assert_allclose(t.teff, labels[:,0], atol=250)
    np.testing.assert_allclose(t.logg, labels[:,1], atol=.7)
    np.testing.assert_allclose(t.feh, labels[:,2], atol=.4)


# --- bad files -----------------------------------------------------------------------------------------------------------------------------

def _truncated(p, f, i): p.write_bytes(write(p, f, i).read_bytes()[:9000])
def _truncated_gz(p, f, i): p.with_suffix('.fits.gz').write_bytes(gzip.compress(write(p, f, i).read_bytes())[:-3000]); p.unlink()
def _foreign(p, f, i): p.write_bytes(b'%PDF-1.4 not a spectrum')
def _picture(p, f, i): fits.PrimaryHDU(np.ones((64, 64), 'f4')).writeto(p)
def _empty(p, f, i): p.touch()
def _nan(p, f, i): write(p, f*np.nan, i)
def _no_weight(p, f, i): write(p, f, i*0)
def _short(p, f, i): write(p, f[:900], i[:900], WAVE[:900])
def _infrared(p, f, i): write(p, f, i, WAVE*2)
def _missing(p, f, i): pass
def _directory(p, f, i): p.mkdir()

BAD = dict(truncated=_truncated, truncated_gz=_truncated_gz, foreign=_foreign, picture=_picture, empty=_empty, nan=_nan, no_weight=_no_weight, short=_short, infrared=_infrared,
           missing=_missing, directory=_directory)
REASONS = dict(short='covered', infrared='covered', nan='NaN|usable|finite', no_weight='inverse variance is zero', empty='empty', missing='no such file|not exist|not found', directory='no spectrum')

@pytest.mark.parametrize('kind', BAD)
def test_bad_file(here, predict, star, kind):
    "Named with its reason in table and on stderr; the others go on; status 1"
    write('a.fits', *star); write('z.fits', *star)
    BAD[kind](Path('bad.fits'), *star)
    name = 'bad.fits.gz' if kind == 'truncated_gz' else 'bad.fits'
    status,_,err = predict('a.fits', name, 'z.fits', '-o', 'out.csv')
    t = rows('out.csv')
    assert status == 1 and t.file.tolist() == ['a.fits', name, 'z.fits'] and t.status.tolist() == ['ok', 'failed', 'ok']
    bad = t.iloc[1]
    assert np.isnan(bad[[l+e for l in LABELS for e in ('', '_lo', '_hi')]].astype(float)).all() and len(bad.reason) > 5 and '\n' not in bad.reason
    if kind in REASONS: assert re.search(REASONS[kind], bad.reason), bad.reason
    assert err[0] == f'{name}: {bad.reason}' and len(err) == 2 and 'Traceback' not in '\n'.join(err)

def test_only_bad_files(here, predict):
    "Nothing could be done: status 2, and the reasons are still written"
    Path('x.fits').touch()
    status,_,err = predict('x.fits', 'y.fits', '-o', 'out.csv')
    assert status == 2 and rows('out.csv').status.tolist() == ['failed', 'failed'] and 'no usable spectrum' in err[-1]

def test_directory_without_spectra(here, predict):
    Path('d').mkdir(); Path('d/readme.md').write_text('nothing here')
    status,_,err = predict('d')
    assert status == 2 and err[0].startswith('d: no spectrum') and 'no usable spectrum' in err[-1]

def test_one_odd_spectrum_stays_alone(here, predict, star, monkeypatch):
    "An exception out of the model costs one row, not the batch"
    for i in range(5): write(f'{i}.fits', star[0]*(1 + (i == 3)), star[1])
    healthy = LabelModel.predict
    def explode(self, spectra):
        if any(np.median(s.flux) > 1.5*np.median(star[0]) for s in spectra): raise RuntimeError('odd')
        return healthy(self, spectra)
    monkeypatch.setattr(LabelModel, 'predict', explode)
    assert predict('.', '-o', '../out.csv')[0] == 1
    t = rows('../out.csv')
    assert t.status.tolist() == ['ok', 'ok', 'ok', 'failed', 'ok'] and 'RuntimeError: odd' in t.reason[3]


# --- outputs -------------------------------------------------------------------------------------------------------------------------------

def test_four_formats_hold_the_same(here, predict, star):
    for n in ('one.fits', 'my star.fits'): write(n, *star)
    Path('bad.fits').touch()
    for end in ('csv', 'ecsv', 'parquet', 'fits'): assert predict('one.fits', 'my star.fits', 'bad.fits', '-o', f'new/folder/out.{end}')[0] == 1
    want = rows('new/folder/out.csv')
    pq,ecsv,fit = pd.read_parquet('new/folder/out.parquet'), Table.read('new/folder/out.ecsv'), Table.read('new/folder/out.fits')
    assert sorted(os.listdir('new/folder')) == ['out.csv', 'out.ecsv', 'out.fits', 'out.parquet']
    assert list(pq.columns) == ecsv.colnames == fit.colnames == list(COLUMNS)
    text = lambda v: v.decode() if isinstance(v, bytes) else '' if np.ma.is_masked(v) else str(v)
    for k in COLUMNS:
        for t in (pq, ecsv, fit):
            if k in NUMBERS: np.testing.assert_array_equal(np.ma.filled(np.ma.asarray(t[k], float), np.nan), want[k])
            else: assert [text(v) for v in t[k]] == want[k].tolist()
    for t in (ecsv, fit, Table.read('new/folder/out.parquet')): assert str(t['teff'].unit) == 'K' and t['rv'].unit == 'km/s'
    assert ecsv['logg'].unit == 'dex' and 'gravity' in ecsv['logg'].description and ecsv.meta['model'] == 'untrained'
    assert 'gravity' in fits.getheader('new/folder/out.fits', 1)['TCOMM7']

def test_names(here, predict, star):
    "Spaces, other scripts, line breaks and bytes that are no text survive; FITS gets escapes"
    names = ['my star.fits', '恒星.fits', 'two\nlines.fits', os.fsdecode(b'\xff.fits')]
    for n in names: write('tmp.fits', *star).rename(n)
    for end in ('csv', 'ecsv', 'parquet', 'fits'): assert predict(*names, '-o', f'out.{end}')[0] == 0
    want = ['my star.fits', '恒星.fits', 'two\\nlines.fits', '\\udcff.fits']
    assert rows('out.csv').file.tolist() == pd.read_parquet('out.parquet').file.tolist() == Table.read('out.ecsv')['file'].tolist() == want
    assert [o for o in fits.getdata('out.fits', 1)['file']] == ['my star.fits', '\\u6052\\u661f.fits', *want[2:]]
    status,out,_ = predict(*names)
    assert status == 0 and len([o for o in out.splitlines() if not o.startswith('    ')]) == 5

def test_same_file_once(here, predict, star):
    write('a.fits', *star); os.symlink('a.fits', 'link.fits'); os.mkdir('d'); write('d/b.fits', *star)
    assert predict('link.fits', 'd', 'a.fits', '-o', 'out.csv')[0] == 0
    assert rows('out.csv').file.tolist() == ['a.fits', 'd/b.fits']
    assert predict('a.fits', './a.fits', 'link.fits', 'd', 'd/b.fits', 'd/', '-o', 'out.csv')[0] == 0
    assert rows('out.csv').file.tolist() == ['a.fits', 'd/b.fits']

def test_output_is_no_input(here, predict, star):
    "A table among the spectra is replaced by the next run and not read by it"
    write('a.fits', *star)
    for _ in range(2): assert predict('.', '-o', 'labels.csv')[0] == 0
    assert rows('labels.csv').file.tolist() == ['./a.fits']

@pytest.mark.parametrize('args', (['d', '-o', 'd/star.csv'], ['-o', 'd/star.csv', 'other.fits']))
def test_output_replaces_no_spectrum(here, predict, star, args):
    "Neither one in a directory among the inputs nor the one that a shell put behind -o"
    os.mkdir('d'); write('other.fits', *star)
    pd.DataFrame(dict(wave=WAVE, flux=star[0])).to_csv('d/star.csv'); old = Path('d/star.csv').read_bytes()
    status,_,err = predict(*args)
    assert status == 2 and 'holds a spectrum' in err[-1] and Path('d/star.csv').read_bytes() == old

def test_own_tables_are_no_inputs(here, predict, star):
    "Skipped in a directory, named where they are asked for"
    os.mkdir('d'); write('d/a.fits', *star); Path('d/b.fits').touch()
    for end in ('csv', 'ecsv', 'parquet', 'fits'): predict('d', '-o', f'd/labels.{end}')
    os.unlink('d/b.fits')
    status,_,err = predict('d', '-o', 'out.csv')
    assert status == 0 and rows('out.csv').file.tolist() == ['d/a.fits'], err
    tables = [f'd/labels.{end}' for end in ('csv', 'ecsv', 'parquet', 'fits')]
    assert predict('d/a.fits', *tables, '-o', 'out.csv')[0] == 1
    assert rows('out.csv').reason.tolist() == [''] + ['a table of predictions, not a spectrum']*4

@pytest.mark.skipif(not hasattr(os, 'geteuid'), reason='no POSIX permissions')
def test_closed_folder(here, predict, star, monkeypatch):
    "A folder that may not be listed is a failed row"
    os.makedirs('d/closed'); write('d/a.fits', *star); write('d/closed/b.fits', *star)
    if os.geteuid(): os.chmod('d/closed', 0)
    else: # nothing is closed to root
        scan = os.scandir
        def refuse(path='.'):
            if str(path).endswith('closed'): raise PermissionError(13, 'Permission denied', str(path))
            return scan(path)
        monkeypatch.setattr(os, 'scandir', refuse)
    status,_,err = predict('d', '-o', 'out.csv')
    os.chmod('d/closed', 0o700)
    assert status == 1 and rows('out.csv').file.tolist() == ['d/a.fits', 'd/closed'] and err[0] == 'd/closed: permission denied'

def test_coarse_or_constant(here, predict, star, monkeypatch):
    "Neither is shown to the model nor cross-correlated"
    import stellar_nb.data.velocity as velocity
    monkeypatch.setattr(velocity, 'radial_velocity', lambda *a, **k: pytest.fail('cross-correlated'))
    write('a.fits', *star)
    wave = np.arange(3360., 10220., 20)
    pd.DataFrame(dict(wave=wave, flux=np.interp(wave, WAVE, star[0]), ivar=1.)).to_csv('xp.csv', index=False)
    pd.DataFrame(dict(wave=WAVE, flux=3., ivar=1.)).to_csv('flat.csv', index=False)
    assert predict('a.fits', 'xp.csv', 'flat.csv', '-o', 'out.csv')[0] == 1
    t = rows('out.csv')
    assert t.reason.tolist() == ['', 'sampled too coarsely for this model (20 Å a pixel where 4 Å are needed)', 'the flux is constant'] and np.isnan(t.teff[1:]).all()

def test_fine_enough(here, predict, star):
    "Pixels of 3 Å are"
    wave = np.arange(3700., 9000., 3)
    pd.DataFrame(dict(wave=wave, flux=np.interp(wave, WAVE, star[0]))).to_csv('a.csv', index=False)
    assert predict('a.csv', '--rv', 0)[0] == 0

@pytest.mark.parametrize('z', (.01, .3, -.02))
def test_redshift_is_no_velocity(here, predict, star, z):
    "What is no star's velocity is measured instead, or taken from --rv"
    write('a.fits', *star, z=z); write('b.fits', *star, z=-.0005)
    for args,want in (([], ['template', 'header']), (['--rv', 20], ['given', 'header'])):
        predict('a.fits', 'b.fits', *args, '-o', 'out.csv')
        t = rows('out.csv')
        assert t.rv_source.tolist() == want and abs(t.rv[0]) < 2000 and t.rv[1] == pytest.approx(-149.9, abs=.1)

def test_other_labels(here, star, model, tmp_path, capsys):
    "A model may predict more than the table has columns for, but not nothing of it; its name may be in any script"
    from stellar_nb.pretrained import load_pretrained
    write('a.fits', *star)
    m = load_pretrained(model)
    for labels,status in ((('teff', 'logg', 'mass'), 0), (('age', 'radius', 'mass'), 2)):
        m.scale = LabelScale(labels, m.scale.mean, m.scale.std); m.limits = dict(zip(labels, m.limits.values()))
        save_pretrained(m, '模型')
        assert main(['predict', 'a.fits', '--model', './模型', '-o', 'out.fits']) == status, capsys.readouterr().err
    assert 'predicts none of' in capsys.readouterr().err
    assert fits.getval('out.fits', 'MODEL', 1) == '\\u6a21\\u578b' and np.isnan(fits.getdata('out.fits', 1)['feh']).all()

def test_unforeseen_error(here, predict, star, monkeypatch):
    "One line, no traceback"
    import stellar_nb.cli as cli
    def odd(*a, **k): raise ZeroDivisionError('odd\nsecond line')
    monkeypatch.setattr(cli, 'write_table', odd)
    write('a.fits', *star)
    status,_,err = predict('a.fits', '--quiet', '-o', 'out.csv')
    assert status == 2 and err == ['stellar_nb predict: ZeroDivisionError: odd']

def test_refused_leaves_no_folders(here, predict, star):
    write('a.fits', *star); os.mkdir('old')
    for args in (['a.fits', '-o', 'old/new/o.csv', '--plots', 'p/q', '--model', 'nowhere'], ['missing.fits', '--plots', 'p/q']): assert predict(*args)[0] == 2
    assert sorted(os.listdir()) == ['a.fits', 'old'] and not os.listdir('old')

def test_terminal_names(here, monkeypatch):
    "At 80 columns rows can be told apart and flags are whole"
    from stellar_nb.cli import terminal_table
    one = dict(status='ok', reason='', teff=5777., teff_lo=5600., teff_hi=5900., logg=4.4, logg_lo=4.2, logg_hi=4.6, feh=-.52, feh_lo=-.6, feh_hi=-.4, snr=120., rv=-123.4, rv_source='template')
    names = [f'/data/survey/night/{plate}/spec-{plate}-B6212_sp{s:02d}-{f:03d}.fits.gz' for plate in (55862, 55863) for s in (1, 2) for f in (7, 17)]
    flags = ['', 'low_snr,few_pixels,rv_uncertain,edge']*4
    lines = terminal_table(pd.DataFrame([one | dict(file=n, flags=f) for n,f in zip(names, flags)]), 80).splitlines()
    assert lines[0] == 'folder: /data/survey/night' and max(map(len, lines)) <= 80
    stars = [o.split()[0] for o in lines[2:] if not o.startswith('    ')]
    assert len(set(stars)) == 8 and all(o.endswith(n[-len('sp01-007.fits.gz'):-8]) for o,n in zip(stars, names)) and sum(flags[1] in o for o in lines) == 4

def test_terminal(here, predict, star, monkeypatch):
    for n in ('a'*70 + '-001.fits', 'b.fits'): write(n, *star)
    Path('bad.fits').touch()
    for width in (80, 100, 120):
        monkeypatch.setenv('COLUMNS', str(width))
        status,out,err = predict('.')
        lines = [o for o in out.splitlines() if not o.startswith('    ')]
        assert status == 1 and len(lines) == 4 and max(map(len, out.splitlines())) <= width
        assert all(o in lines[0] for o in ('teff (K)', 'logg (dex)', 'feh (dex)', 'rv (km/s)')) and '-001 ' in lines[1] and '±' in lines[1]
        assert 'failed' in [o for o in lines if o.startswith('bad ')][0]

def test_quiet(here, predict, star):
    write('a.fits', *star); Path('bad.fits').touch()
    status,_,err = predict('a.fits', 'bad.fits', '--quiet', '-o', 'out.csv')
    assert status == 1 and len(err) == 1 and err[0].startswith('bad.fits: ')

def test_pictures(here, predict, star):
    from matplotlib.image import imread
    os.makedirs('d')
    for n in ('a.fits', 'd/a.fits', 'd/恒 星$.fits'): write(n, *star)
    Path('bad.fits').touch()
    assert predict('a.fits', 'd/a.fits', 'd/恒 星$.fits', 'bad.fits', '--plots', 'pictures', '-o', 'out.csv')[0] == 1
    assert len(os.listdir('pictures')) == 3 and {'a.png', 'd_a.png', '恒_星.png'} == set(os.listdir('pictures'))
    for p in Path('pictures').iterdir():
        im = imread(p)
        assert im.shape[0] >= 300 and im.shape[1] >= 600 and im[..., :3].std() > .02

def test_picture_names_stay_inside():
    taken = set()
    for n in ('../../x.fits', '/etc/passwd', '..', '', '.hidden', 'a/../b', 'x'*400, 'x'*400, 'nul\x00', 'c:\\d.fits', 'm.fits[3]', '恒星'*99):
        p = picture_name(n, taken)
        assert re.fullmatch(r'[\w-][\w.-]*\.png', p) and len(p.encode()) < 140
    assert len(taken) == 12


# --- which model ---------------------------------------------------------------------------------------------------------------------------

@pytest.fixture
def three(tmp_path_factory, monkeypatch):
    "Untrained models under the names of the three shipped ones"
    folder = tmp_path_factory.mktemp('three')
    inputs = dict(specvit_lamost=PreprocessConfig(), specvit_pfs=PreprocessConfig(arms=((7100., 8850.),), step=3e-5, length=3600), specvit_xp=PreprocessConfig(arms=((3400., 10180.),), step=1e-3, length=504))
    for name,prep in inputs.items():
        seed_everything(1)
        net = SpecViT(SpecViTConfig(length=prep.length, patch=72, width=16, depth=1, heads=2, hidden=32, labels=LABELS, quantiles=(.16, .5, .84)))
        save_pretrained(LabelModel(net, prep, LabelScale(LABELS, (5500., 4., -.5), (800., .5, .4)), (50., .1, .1), dict(teff=(3750., 8000.), logg=(0., 5.), feh=(-2.5, .5))), folder/name)
    monkeypatch.setenv('STELLAR_NB_MODELS', str(folder))

def test_model_by_kind(here, three, capsys):
    "Each spectrum goes to the model that was made for its kind, in the order of the files; the column `model` says which"
    files = [example_file(o, here).name for o in ('hdf5', 'lamost-table', 'gaia-xp', 'lamost-mrs', 'text', 'sdss-coadd')]
    assert main(['predict', *files, '--rv', '10', '--batch-size', '4', '--plots', 'png', '-o', 'out.csv']) == 1, capsys.readouterr().err
    t = rows('out.csv')
    assert t.file.tolist() == ['hdf5.h5[0]', 'hdf5.h5[1]', files[1], 'gaia-xp.npz[0]', 'gaia-xp.npz[1]', 'lamost-mrs.fits.gz[0]', 'lamost-mrs.fits.gz[1]', *files[4:]]
    assert t.model.tolist() == ['specvit_pfs']*2 + ['specvit_lamost'] + ['specvit_xp']*2 + ['']*2 + ['specvit_lamost']*2
    assert t.status.tolist() == ['ok']*5 + ['failed']*2 + ['ok']*2 and all(re.match(r'no model reads \d+–\d+ Å at 0.1\d Å a pixel \(specvit_lamost: 4000–8798', o) for o in t.reason[5:7])
    assert t.rv_source[3:5].tolist() == ['', ''] and not t['flags'][3:5].str.contains('rv_').any() and t.rv_source[:2].tolist() == ['header', 'given']
    assert np.isfinite(t[[*LABELS]].to_numpy()[t.status == 'ok']).all() and len(os.listdir('png')) == 7

def test_one_model_for_all(here, three):
    "--model decides for every file, and what it cannot read says why"
    files = [example_file(o, here).name for o in ('lamost-table', 'hdf5', 'gaia-xp')]
    assert main(['predict', *files, '--model', 'specvit_lamost', '-o', 'out.ecsv']) == 1
    t = Table.read('out.ecsv')
    assert t['status'].tolist() == ['ok'] + ['failed']*4 and set(t['model']) == {'specvit_lamost'} and t.meta['model'] == 'specvit_lamost'
    assert 'not covered' in t['reason'][1] and 'coarsely' in t['reason'][3]

def test_model_that_is_not_there(here, three, monkeypatch):
    "Costs the rows that need it, and is named"
    import stellar_nb.cli as cli
    monkeypatch.setattr(cli, 'MODELS', {('nowhere' if k == 'specvit_pfs' else k): v for k,v in cli.MODELS.items()})
    assert main(['predict', example_file('hdf5', here).name, example_file('lamost-table', here).name, '-o', 'out.csv']) == 1
    t = rows('out.csv')
    assert t.status.tolist() == ['failed']*2 + ['ok'] and all(o.startswith('needs the model nowhere (no such model') for o in t.reason[:2]) and t.model.tolist() == ['', '', 'specvit_lamost']

def test_tables_without_the_column_model(here, predict, star):
    "Those of earlier versions are known as predictions too"
    from stellar_nb.cli import is_predictions, write_table
    write('a.fits', *star)
    predict('a.fits', '-o', 'new.csv')
    pd.read_csv('new.csv').drop(columns='model').to_csv('old.csv', index=False)
    pd.read_csv('new.csv').drop(columns='model').to_parquet('old.parquet', index=False)
    assert all(map(is_predictions, ('new.csv', 'old.csv', 'old.parquet'))) and not is_predictions('a.fits')

def test_predict_as_a_function(here, three, star):
    "Folders, one path or several, a model by name or itself"
    from stellar_nb import load_pretrained, predict
    os.mkdir('d'); write('d/a.fits', *star); write('b.fits', *star)
    assert predict('d').file.tolist() == ['d/a.fits'] and predict(Path('d')).model.tolist() == ['specvit_lamost']
    one,two = predict(['d', 'b.fits'], 'specvit_lamost'), predict(['d', 'b.fits'], load_pretrained('specvit_lamost'), batch_size=1)
    assert one.file.tolist() == ['d/a.fits', 'b.fits'] and list(one) == list(COLUMNS)
    np.testing.assert_allclose(one.teff, two.teff, rtol=1e-5)
    with pytest.raises(ValueError, match='no such model'): predict('d', 'nothing')


# --- refused before the work ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('args,why', [
    (['-o', 'out.xlsx'], 'unknown ending'), (['-o', 'out'], 'unknown ending'), (['-o', 'a.fits'], 'is an input'), (['-o', 'a.fits/out.csv'], 'cannot be written'),
    (['-o', 'd.csv'], 'is a directory'), (['--plots', 'a.fits'], 'cannot be written'), (['-o', '/proc/nowhere/out.csv'], 'cannot be written'),
    (['--rv', 'fast'], 'velocity'), (['--rv', 'nan'], 'velocity'), (['--batch-size', '0'], 'whole number'), (['--colour'], 'unrecognized'),
    (['--model', 'no_such_model'], 'no such model'), (['--model', 'd.csv'], 'no such model')])
def test_refused(here, star, capsys, monkeypatch, model, args, why):
    "Status 2 and one clear sentence, before any spectrum is read"
    import stellar_nb.data.spectra as readers
    monkeypatch.setattr(readers, 'read_spectra', lambda *a, **k: pytest.fail('a spectrum was read'))
    write('a.fits', *star); os.mkdir('d.csv')
    assert main(['predict', 'a.fits', *([] if '--model' in args else ['--model', model]), *args]) == 2
    assert why in capsys.readouterr().err
    assert fits.getval('a.fits', 'DATA_V') == 'LAMOST DR10'

def test_interrupt_leaves_the_old_table(here, predict, star, monkeypatch):
    import stellar_nb.data.spectra as readers
    write('a.fits', *star); Path('out.csv').write_text('old')
    def stop(*a, **k): raise KeyboardInterrupt
    monkeypatch.setattr(readers, 'read_spectra', stop)
    status,_,err = predict('a.fits', '-o', 'out.csv')
    assert status == 130 and 'interrupted' in err[-1]
    assert Path('out.csv').read_text() == 'old' and sorted(os.listdir()) == ['a.fits', 'out.csv']

@pytest.fixture
def ctrl_c():
    "Ctrl-C works as on a terminal, also where the tests run in the background and inherit that it is ignored"
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, old)

def test_swallowed_interrupt(here, predict, star, monkeypatch, ctrl_c):
    "Ctrl-C counts even if a library swallows it"
    import stellar_nb.data.spectra as readers
    read,handler = readers.read_spectra,signal.getsignal(signal.SIGINT)
    def greedy(*a, **k):
        try: signal.raise_signal(signal.SIGINT)
        except: pass
        return read(*a, **k)
    monkeypatch.setattr(readers, 'read_spectra', greedy)
    write('a.fits', *star)
    assert predict('a.fits', '-o', 'out.csv')[0] == 130 and os.listdir() == ['a.fits'] and signal.getsignal(signal.SIGINT) is handler

def test_failed_write_leaves_the_old_table(here, predict, star, monkeypatch):
    write('a.fits', *star); Path('out.csv').write_text('old')
    def full(self, path, **k): Path(path).write_text('half'); raise OSError(28, 'No space left on device')
    monkeypatch.setattr(pd.DataFrame, 'to_csv', full)
    status,_,err = predict('a.fits', '-o', 'out.csv')
    assert status == 2 and 'No space left' in err[-1]
    assert Path('out.csv').read_text() == 'old' and sorted(os.listdir()) == ['a.fits', 'out.csv']


# --- many files ----------------------------------------------------------------------------------------------------------------------------

def test_memory_does_not_grow_with_files(here, predict, star, monkeypatch):
    "Never more spectra alive than two batches"
    import stellar_nb.data.spectra as readers
    data = write('a.fits', *star).read_bytes()
    for i in range(60): Path(f'{i}.fits').write_bytes(data)
    alive,peak,read = set(),[],readers.read_spectra
    def watched(*a, **k):
        out = read(*a, **k)
        for s in out: alive.add(id(s)); weakref.finalize(s, alive.discard, id(s))
        peak.append(len(alive))
        return out
    monkeypatch.setattr(readers, 'read_spectra', watched)
    assert predict('.', '--batch-size', 10, '-o', '../out.csv')[0] == 0
    assert len(peak) == 61 and max(peak) <= 21

def test_progress_bar(here, predict, star, monkeypatch):
    "What takes over two seconds shows a bar on stderr, and messages do not run into it"
    import stellar_nb.data.spectra as readers
    for i in range(4): write(f'{i}.fits', *star)
    Path('bad.fits').touch()
    read = readers.read_spectra
    def slow(*a, **k): time.sleep(.8); return read(*a, **k)
    monkeypatch.setattr(readers, 'read_spectra', slow)
    status,out,err = predict('.', '--batch-size', 1, '-o', '../out.csv')
    assert status == 1 and any('%|' in o for o in err) and out == ''
    assert [o for o in err if 'bad.fits' in o] == [f"./bad.fits: {rows('../out.csv').reason[4]}"]


# --- the installed command -----------------------------------------------------------------------------------------------------------------

COMMAND = [sys.executable, '-c', 'import sys; from stellar_nb.cli import main; sys.exit(main())']

def command(*args, **kwargs): return subprocess.run([*COMMAND, *args], capture_output=True, text=True, timeout=120, **kwargs)

def test_help_is_quick():
    "No heavy import before the options are understood"
    took = []
    for _ in range(2):
        t = time.perf_counter(); o = command('predict', '--help'); took.append(time.perf_counter() - t)
        assert o.returncode == 0 and 'stellar_nb predict spec-' in o.stdout and '--plots' in o.stdout
    assert min(took) < 1
    heavy = subprocess.run([sys.executable, '-c', 'import sys, stellar_nb.cli; print([m for m in ("torch", "fastai", "astropy", "pandas", "matplotlib") if m in sys.modules])'], capture_output=True, text=True)
    assert heavy.stdout.strip() == '[]'

def test_version_and_no_command():
    import stellar_nb
    assert command('--version').stdout.strip() == f'stellar_nb {stellar_nb.__version__}'
    assert command().returncode == 2 and 'usage' in command().stderr
    assert command('--help').returncode == 0

def test_a_real_process(here, star, model):
    "Status, streams and table of a process of its own; only our own words on stderr"
    write('a.fits', *star); Path('bad.fits').touch()
    o = command('predict', 'a.fits', 'bad.fits', '--model', model, '-o', 'out.ecsv')
    assert o.returncode == 1 and o.stdout == '' and len(o.stderr.splitlines()) == 2, o.stderr
    assert Table.read('out.ecsv')['status'].tolist() == ['ok', 'failed']

def test_closed_pipe(here, star, model):
    "`stellar_nb predict … | head` ends in silence"
    write('a.fits', *star)
    get,put = os.pipe()
    p = subprocess.Popen([*COMMAND, 'predict', 'a.fits', '--model', model, '--quiet'], stdout=put, stderr=subprocess.PIPE, text=True)
    os.close(get); os.close(put)
    assert p.communicate(timeout=120)[1] == ''

@pytest.mark.skipif(sys.platform == 'win32', reason='no SIGINT to send')
def test_ctrl_c(here, star, model, ctrl_c):
    "An interrupted run leaves no half file"
    data = write('a.fits', *star).read_bytes()
    for i in range(400): Path(f'b{i}.fits').write_bytes(data)
    Path('0.fits').touch()
    p = subprocess.Popen([*COMMAND, 'predict', '0.fits', '.', '--model', model, '-o', 'out.csv', '--batch-size', '1'], stderr=subprocess.PIPE, text=True)
    assert p.stderr.readline().startswith('0.fits: ')
    p.send_signal(signal.SIGINT)
    err = p.communicate(timeout=60)[1]
    assert p.returncode == 130 and 'interrupted' in err and 'Traceback' not in err, err
    assert not Path('out.csv').exists() and not list(Path('.').glob('.tmp-*'))
