"The command `stellar_nb classify` from outside: spectra, Gaia tables or both in; table, messages and exit status out."
import os, subprocess, sys, weakref
from pathlib import Path

import numpy as np, pandas as pd, pytest
from astropy.io import fits
from astropy.table import Table

import stellar_nb
from stellar_nb.classifier import ClassModel
from stellar_nb.cli import Item, main
from stellar_nb.cli_classify import GaiaTable, class_columns, classify, classify_files, names_of
from stellar_nb.core import BadInput, data_dir, seed_everything
from stellar_nb.data.catalog import Vocabulary
from stellar_nb.data.gaia import GAIA_COLUMNS, GaiaInput, read_gaia
from stellar_nb.data.preprocess import PreprocessConfig
from stellar_nb.data.spectra import Spectrum, example_file, place, read_spectra
from stellar_nb.data.velocity import fill_rv
from stellar_nb.models.mamba_fusion import StarClassifierConfig, StarClassifierFusion
from stellar_nb.pretrained import load_pretrained, save_pretrained

NAMES = ('MS*', '**', 'Ev*', 's*b', 'dS*', 'V*')
WAVE = 10**(3.5682 + 1e-4*np.arange(3909))
REAL = (p := data_dir('lamost_dr10', 'fits')) and p.resolve()
BARNARD = dict(ra=269.448503, dec=4.739420, pmra=-801.551, pmdec=10362.394)


# --- files ---------------------------------------------------------------------------------------------------------------------------------

def make(modalities=('spectrum', 'gaia')):
    "A small untrained classifier: these tests are about everything around it"
    seed_everything(0)
    net = StarClassifierFusion(StarClassifierConfig.laptop(classes=len(NAMES), names=NAMES, modalities=modalities, width=16, features=18))
    return ClassModel(net, PreprocessConfig(arms=((4000., 5800.), (5800., 8798.)), length=3440), FIT, Vocabulary.of(NAMES), {'both': ((1.,)*6, (.3,)*6), 'gaia': ((.9,)*6, (-.1,)*6)})

SKY = pd.DataFrame(np.exp(np.random.default_rng(0).normal(size=(120, 18))), columns=list(GAIA_COLUMNS)).assign(flagnopllx=0., flagnoflux=0.)
FIT = GaiaInput.fit(SKY)

@pytest.fixture(autouse=True)
def models(tmp_path_factory, monkeypatch):
    "Stands in for the shipped one"
    folder = tmp_path_factory.getbasetemp()/'class_models'
    if not folder.exists(): save_pretrained(make(), folder/'fusion_sky', half=False)
    monkeypatch.setenv('STELLAR_NB_MODELS', str(folder))
    return folder

@pytest.fixture(scope='session')
def star(tmp_path_factory):
    s = read_spectra(example_file('lamost-table', tmp_path_factory.mktemp('star')))[0]
    return s.flux, s.ivar

def write(path, star, i=0, **cards):
    "A LAMOST file of a star like the others, with lines of its own"
    flux,ivar = star[0]*(1 + .3*np.sin(WAVE/(20 + i))), star[1]
    cols = dict(FLUX=flux, IVAR=ivar, WAVELENGTH=WAVE, ANDMASK=0*WAVE, ORMASK=0*WAVE)
    table = fits.BinTableHDU.from_columns([fits.Column(k, '3909E', array=v[None]) for k,v in cols.items()], name='COADD')
    cards = {('HIERARCH ' if len(k) > 8 else '') + k: v for k,v in (dict(TELESCOP='LAMOST', DATA_V='LAMOST DR10', OBSID=900+i, Z=1e-4, SNRG=40.) | cards).items()}
    fits.HDUList([fits.PrimaryHDU(header=fits.Header(cards)), table]).writeto(path, overwrite=True)

def gaia_rows(n=4, **columns):
    "Mock rows, far from each other"
    return SKY[:n].assign(**dict(source_id=3338040968345126912 + np.arange(n), ra=10. + 20*np.arange(n), dec=5., pmra=0., pmdec=0., flagnopllx=0.) | columns)

def save(d, path):
    match Path(path).suffix:
        case '.csv': d.to_csv(path, index=False)
        case '.parquet': d.to_parquet(path)
        case '.ecsv': Table.from_pandas(d).write(path, format='ascii.ecsv')
        case '.fits': Table.from_pandas(d).write(path)
        case '.vot': Table.from_pandas(d).write(path, format='votable')
    return str(path)

@pytest.fixture
def run(capsys):
    "The command in this process; exit status, stdout, lines of stderr"
    def run(*args):
        status = main(['classify', *map(str, args)])
        out,err = capsys.readouterr()
        return status, out, [o for o in err.splitlines() if o.strip()]
    return run

def table(path='out.csv'): return pd.read_csv(path, keep_default_na=False, na_values=dict.fromkeys(['separation', 'snr', 'rv', *P, 'p1', 'p2', 'p3', 'p4', 'p5', 'p6'], ''))
P = [f'p_{k}' for k in NAMES]


# --- joined, alone -------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('end', ('csv', 'ecsv', 'fits', 'parquet', 'vot'))
def test_gaia_formats(here, run, star, end):
    "Each format gives the numbers of `ClassModel.classify`, in the order of the files"
    for i in (2, 0, 1): write(f'{i}.fits', star, i, RA=10. + 20*i, DEC=5. + .5/3600)
    g = gaia_rows()
    status,_,err = run('2.fits', '0.fits', '1.fits', '--gaia', save(g, f'gaia.{end}'), '-o', 'out.csv')
    t = table()
    assert status == 0 and t.file.tolist() == ['2.fits', '0.fits', '1.fits'] and list(t.columns) == list(class_columns(NAMES))
    assert t.source_id.tolist() == g.source_id[[2, 0, 1]].tolist() and set(t.modalities) == {'spectrum+gaia'}
    np.testing.assert_allclose(t.separation, .5, atol=1e-4)
    assert err == ['stars: 3, with types: 3, failed: 0, Gaia rows without a spectrum: 1, written to out.csv']
    want = load_pretrained('fusion_sky').classify(fill_rv([read_spectra(f'{i}.fits')[0] for i in (2, 0, 1)]), read_gaia(f'gaia.{end}').iloc[[2, 0, 1]])
    np.testing.assert_allclose(t[P], want[P], atol=2e-6)
    assert t.classes.tolist() == want.classes.tolist() and t.top1.tolist() == want.top1.tolist() and t.p1.iloc[0] == pytest.approx(t[P].iloc[0].max())
    assert t['flags'].tolist() == want['flags'].tolist() and set(t.model) == {'fusion_sky'} and set(t.rv_source) == {'header'}

def test_proper_motion(here, run, star):
    "Barnard's star where it stood in 2012; without the date, or with a small radius, it is not found"
    then = dict(RA=BARNARD['ra'] - BARNARD['pmra']*4/3.6e6, DEC=BARNARD['dec'] - BARNARD['pmdec']*4/3.6e6)
    write('dated.fits', star, **then, MJD=55927); write('undated.fits', star, **then)
    g = save(gaia_rows(1, **BARNARD), 'g.csv')
    assert run('dated.fits', 'undated.fits', '--gaia', g, '-o', 'out.csv')[0] == 0
    t = table()
    assert t.modalities.tolist() == ['spectrum+gaia', 'spectrum'] and t.separation[0] < .05 and t['flags'].tolist() == ['', 'no_gaia_match']
    run('undated.fits', '--gaia', g, '--radius', 60, '-o', 'out.csv')
    assert 40 < table().separation[0] < 43

def test_ambiguous_lost_and_unplaced(here, run, star):
    write('two.fits', star, RA=10., DEC=5.); write('lost.fits', star, RA=99., DEC=5.); write('nowhere.fits', star); write('wrong.fits', star, RA=10., DEC=95.)
    g = gaia_rows(3, ra=[10. + 1/3600, 10. - .5/3600, 77.])
    status,_,err = run('two.fits', 'lost.fits', 'nowhere.fits', 'wrong.fits', '--gaia', save(g, 'g.csv'), '-o', 'out.csv')
    t = table()
    assert status == 0 and t['flags'].tolist() == ['gaia_ambiguous', 'no_gaia_match', 'no_gaia_match,no_position', 'no_gaia_match,no_position']
    assert t.source_id.tolist() == [g.source_id[1], 0, 0, 0] and 'without a spectrum: 2' in err[0]
    run('lost.fits', '-o', 'alone.csv')
    np.testing.assert_allclose(table('alone.csv')[P].iloc[0], t[P].iloc[1], atol=1e-6)

@pytest.mark.parametrize('by,values', dict(source_id=None, file=['a.fits', 'sub/b.fits', 'c', 'z'], obsid=['900', '901', '902', '7'], number=[900, 901, 902, 7]).items())
def test_by_identifier(here, run, star, by, values):
    "By the number of the star in the header, by path, name or name without ending, and by the survey's identifier"
    os.mkdir('sub')
    g = gaia_rows()
    for i,name in enumerate(('a.fits', 'sub/b.fits', 'c.fits')): write(name, star, i, SOURCE_ID=f'Gaia DR3 {g.source_id[i]}')
    write('d.fits', star, 55, SOURCE_ID='Gaia DR3 5')
    if values is not None: g[by] = values
    for end in ('csv', 'fits'):
        assert run('d.fits', 'sub/b.fits', 'a.fits', 'c.fits', '--gaia', save(g, f'g.{end}'), '--by', by, '-o', 'out.csv')[0] == 0
        t = table()
        assert t.source_id.tolist() == [0, *g.source_id[[1, 0, 2]]] and t['flags'].tolist() == ['no_gaia_match', '', '', ''] and t.separation.isna().all()

def test_only_gaia(here, run):
    "Every row; one without a number that can be, and one without any, say so"
    g = gaia_rows(4)
    numbers = [k for k in GAIA_COLUMNS if not k.startswith('flag')]
    g.loc[[1, 2], numbers] = np.nan; g.loc[1, 'dec'] = 95.; g.loc[3, 'ra'] = 361.
    status,_,err = run('--gaia', save(g, 'g.csv'), '-o', 'out.csv', '--batch-size', 3)
    t = table()
    assert status == 1 and t.file.tolist() == [f'g.csv[{i}]' for i in range(4)] and t.status.tolist() == ['ok', 'failed', 'failed', 'ok']
    assert t.reason.tolist() == ['', 'the Gaia row cannot be used (dec is 95)', 'the Gaia row holds no number', ''] and t.source_id.tolist() == g.source_id.tolist()
    assert t['flags'][[1, 3]].eq('gaia_problem').all() and set(t.modalities) == {'gaia', ''} and t.snr.isna().all() and err[-1] == 'stars: 4, with types: 2, failed: 2, written to out.csv'
    want = load_pretrained('fusion_sky').classify(None, read_gaia('g.csv'))
    np.testing.assert_allclose(t[P], want[P], atol=2e-6)

def test_all_rows(here, run, star):
    write('a.fits', star, RA=30., DEC=5.)
    assert run('a.fits', '--gaia', save(gaia_rows(), 'g.csv'), '--all-rows', '-o', 'out.csv')[0] == 0
    assert table().file.tolist() == ['a.fits', 'g.csv[0]', 'g.csv[2]', 'g.csv[3]']

def test_impossible_row_and_useless_spectrum(here, run, star):
    "What can be used is used, what cannot is said"
    g = gaia_rows(4); g.loc[0, 'parallax_error'] = -1.
    for i in range(3): write(f'{i}.fits', (star[0] if i == 0 else 0*star[0] + 3, star[1]), i, RA=10. + 20*i, DEC=5.)
    pd.DataFrame(dict(wave=WAVE, flux=3., ivar=1.)).to_csv('flat.csv', index=False)
    g['file'] = ['0', 'flat', 'x', 'y']
    status,*_ = run('0.fits', 'flat.csv', '--gaia', save(g, 'g.csv'), '--by', 'file', '-o', 'out.csv')
    t = table()
    assert status == 0 and t.modalities.tolist() == ['spectrum+gaia', 'gaia'] and t['flags'].tolist() == ['gaia_problem', 'no_coverage']
    assert run('flat.csv', '0.fits', '-o', 'out.csv')[0] == 1 and table().reason.tolist() == ['the flux is constant', '']
    g.loc[1, [k for k in GAIA_COLUMNS if not k.startswith('flag')]] = np.nan; g.loc[1, 'dec'] = 95.
    assert run('flat.csv', '0.fits', '--gaia', save(g, 'g.csv'), '--by', 'file', '-o', 'out.csv')[0] == 1
    assert table().reason[0] == 'the flux is constant; the Gaia row cannot be used (dec is 95)'

def test_one_useless_row_does_not_stop_a_spectrum(here, run, star):
    "Nor does a table of nothing else; alone, it leaves nothing to do"
    write('a.fits', star, RA=10., DEC=5.)
    bad = gaia_rows(1, parallax_error=-1., file='a')
    nothing = bad.assign(**{k: np.nan for k in GAIA_COLUMNS if not k.startswith('flag')}).assign(dec=95.)
    save(bad, 'bad.csv'); save(nothing, 'nothing.csv')
    assert run('a.fits', '--gaia', 'bad.csv', '-o', 'out.csv')[0] == 0
    assert table().modalities[0] == 'spectrum+gaia' and table()['flags'][0] == 'gaia_problem'
    assert run('a.fits', '--gaia', 'nothing.csv', '--by', 'file', '-o', 'out.csv')[0] == 0
    assert table().modalities[0] == 'spectrum' and table()['flags'][0] == 'gaia_problem'
    assert run('a.fits', '--gaia', 'nothing.csv', '-o', 'out.csv')[0] == 0 and table()['flags'][0] == 'no_gaia_match'
    assert run('--gaia', 'bad.csv', '-o', 'out.csv')[0] == 0
    status,_,err = run('--gaia', 'nothing.csv', '-o', 'out.csv')
    assert status == 2 and 'the Gaia row cannot be used (dec is 95)' in err[0] and table().status.tolist() == ['failed']

def test_names_and_places():
    "Numbers of numpy count, truth values do not; each keyword of the header that names a star is read"
    at = lambda **meta: place(Spectrum(WAVE, 0*WAVE, 0*WAVE, WAVE > 0, meta=meta))
    np.testing.assert_allclose(at(ra=np.float32(10.5), dec=np.int64(5), mjd=np.int32(57388)), [10.5, 5, 2016], atol=.01)
    assert np.isnan(at(ra=True, dec=np.bool_(True), mjd='57388')).all()

@pytest.mark.parametrize('key', ['SOURCE_ID', 'SOURCEID', 'GAIA_ID', 'GAIAID'])
def test_keywords_of_source_id(here, run, star, key):
    write('a.fits', star, **{key: 'Gaia EDR3 11'})
    assert names_of(Item('a.fits', read_spectra('a.fits')[0], ''))[0] == 'Gaia EDR3 11'
    assert run('a.fits', '--gaia', save(gaia_rows(2, source_id=[10, 11]), 'g.csv'), '--by', 'source_id', '-o', 'out.csv')[0] == 0
    assert table().source_id.tolist() == [11]

def test_layouts_without_gaia(here, run):
    "What `predict` reads, this reads"
    files = [example_file(o, here).name for o in ('lamost-dr1', 'lamost-table', 'sdss-coadd', 'text', 'ecsv', 'parquet', 'npz', 'gaia-xp', 'lamost-mrs')]
    assert run(*files, '--rv', 30, '-o', 'out.csv')[0] == 1
    t = table()
    assert t.status.tolist() == ['ok']*7 + ['failed']*4 and t.modalities[:7].eq('spectrum').all() and 'coarsely' in t.reason[7] and 'not covered' in t.reason[9]
    assert t.rv_source[:4].tolist() == ['header', 'header', 'header', 'given'] and t['flags'][0] == ''

def test_xp_by_source_id(here, run):
    "The numbers in a file of Gaia's own spectra find their rows"
    g = gaia_rows(3, source_id=[8, 7, 0])
    assert run(example_file('gaia-xp', here).name, '--gaia', save(g, 'g.csv'), '--by', 'source_id', '-o', 'out.csv')[0] == 0
    assert table().source_id.tolist() == [7, 8] and table()['flags'].tolist() == ['no_coverage']*2 and set(table().modalities) == {'gaia'}


# --- what goes wrong -----------------------------------------------------------------------------------------------------------------------

def test_bad_files(here, run, star):
    "One row and one line each; the others go on, and in order"
    for n in ('a', 'z'): write(f'{n}.fits', star, RA=10., DEC=5.)
    Path('empty.fits').touch(); Path('cut.fits').write_bytes(Path('a.fits').read_bytes()[:9000]); Path('text.fits').write_text('nothing')
    for n in (1, 256):
        status,_,err = run('a.fits', 'empty.fits', 'cut.fits', 'text.fits', 'missing.fits', 'z.fits', '--gaia', save(gaia_rows(), 'g.csv'), '--batch-size', n, '-o', 'out.csv')
        t = table()
        assert status == 1 and t.status.tolist() == ['ok'] + ['failed']*4 + ['ok'] and t[P].isna().all(axis=1).tolist() == [False] + [True]*4 + [False]
        assert [o for o in err if '.fits: ' in o] == [f'{f}: {r}' for f,r in zip(t.file[1:5], t.reason[1:5])] and 'Traceback' not in ''.join(err) and (t.source_id[1:5] == 0).all()
    assert run('empty.fits', '-o', 'out.csv')[0] == 2 and table().status.tolist() == ['failed']

def test_refused(here, run, star):
    "At once, with one sentence, and nothing is left behind"
    write('a.fits', star)
    g = gaia_rows(3)
    save(g, 'g.csv'); save(g.drop(columns='parallax'), 'lack.csv'); save(g.assign(obsid='5', number=[1, 1, 2], part=[1., 1.5, 2.]), 'twice.csv')
    Path('broken.fits').write_bytes(b'SIMPLE  = rubbish'); Path('empty.csv').touch()
    bad = {('a.fits', '--gaia', 'lack.csv'): 'no column parallax', ('a.fits', '--gaia', 'nowhere.csv'): 'no such file', ('a.fits', '--gaia', 'broken.fits'): 'cannot be read', ('a.fits', '--gaia', 'empty.csv'): 'the file is empty',
           ('a.fits', '--gaia', 'twice.csv', '--by', 'part'): 'part: 1.5 is no identifier', ('a.fits', '--gaia', 'g.csv', '--by', 'obsid'): 'no column obsid', ('a.fits', '--gaia', 'twice.csv', '--by', 'number'): 'occur more than once', (): 'neither a spectrum nor',
           ('a.fits', '--by', 'file'): 'need --gaia', ('a.fits', '--all-rows'): 'need --gaia', ('a.fits', '--model', 'nowhere'): 'no such model', ('a.fits', '--gaia', 'g.csv', '-o', 'g.csv'): 'is an input too',
           ('a.fits', '-o', 'o.xls'): 'unknown ending'}
    for args,words in bad.items():
        status,_,err = run(*args, '--plots', 'p/q')
        assert status == 2 and len(err) == 1 and words in err[0] and err[0].startswith('stellar_nb classify: '), (args, err)
    for args in (['--radius', '-1'], ['--top', '0'], ['--nothing']): assert run('a.fits', *args)[0] == 2
    assert not Path('p').exists()

def test_models_of_the_other_kind(here, run, models, star, capsys, monkeypatch):
    write('a.fits', star)
    status,_,err = run('a.fits', '--model', 'specvit_lamost')
    assert status == 2 and 'is no classifier; it predicts teff' in err[0]
    assert main(['predict', 'a.fits', '--model', 'fusion_sky']) == 2
    assert capsys.readouterr().err.strip() == 'stellar_nb predict: --model fusion_sky: predicts none of teff, logg, feh; it names types of stars: stellar_nb classify'

def test_one_modality(here, run, star):
    "A model of spectra refuses a Gaia table; a model of Gaia reads no spectra"
    save_pretrained(make(('spectrum',)), 'only_spectra'); save_pretrained(make(('gaia',)), 'only_gaia')
    write('a.fits', star, RA=10., DEC=5.); save(gaia_rows(), 'g.csv')
    assert run('a.fits', '--model', './only_spectra', '-o', 'out.csv')[0] == 0
    status,_,err = run('a.fits', '--gaia', 'g.csv', '--model', './only_spectra')
    assert status == 2 and 'reads spectra only' in err[0]
    assert run('a.fits', '--gaia', 'g.csv', '--model', './only_gaia', '-o', 'out.csv')[0] == 0 and table().modalities[0] == 'gaia'
    assert run('a.fits', '--model', './only_gaia', '-o', 'out.csv')[0] == 2 and table().reason[0] == 'the model reads no spectra'

def test_one_odd_star_stays_alone(here, run, star, monkeypatch):
    for i in range(5): write(f'{i}.fits', star, i, RA=10., DEC=5.)
    healthy = ClassModel.classify
    def explode(self, spectra, gaia):
        if any(s.id == '903' for s in spectra): raise RuntimeError('odd')
        return healthy(self, spectra, gaia)
    monkeypatch.setattr(ClassModel, 'classify', explode)
    assert run('.', '--gaia', save(gaia_rows(), '../g.csv'), '-o', '../out.csv')[0] == 1
    t = table('../out.csv')
    assert t.status.tolist() == ['ok']*3 + ['failed', 'ok'] and 'RuntimeError: odd' in t.reason[3] and t[P].isna().all(axis=1).tolist() == [False]*3 + [True, False]


# --- outputs -------------------------------------------------------------------------------------------------------------------------------

def test_four_formats_hold_the_same(here, run, star):
    "With units, descriptions and legal names; and none of them is taken for a spectrum"
    for i in range(2): write(f'{i}.fits', star, i, RA=10. + 20*i, DEC=5.)
    Path('bad.fits').touch(); os.mkdir('o')
    save(gaia_rows(), 'g.csv')
    for end in ('csv', 'ecsv', 'parquet', 'fits'): assert run('0.fits', '1.fits', 'bad.fits', '--gaia', 'g.csv', '-o', f'o/out.{end}')[0] == 1
    want,columns = table('o/out.csv'), class_columns(NAMES)
    pq,ecsv,fit = pd.read_parquet('o/out.parquet'), Table.read('o/out.ecsv'), Table.read('o/out.fits')
    assert list(want.columns) == list(pq.columns) == ecsv.colnames == list(columns)
    assert fit.colnames[-6:] == ['p_MS_', 'p___', 'p_Ev_', 'p_s_b', 'p_dS_', 'p_V_'] and len({o.lower() for o in fit.colnames}) == len(columns)
    text = lambda v: v.decode() if isinstance(v, bytes) else '' if np.ma.is_masked(v) else str(v)
    for (k,c),name in zip(columns.items(), fit.colnames):
        for t,n in ((pq, k), (ecsv, k), (fit, name)):
            if c.unit is None: assert [text(v) for v in t[n]] == want[k].tolist()
            elif k == 'source_id': assert np.asarray(t[n]).dtype.kind == 'i' and list(t[n]) == want[k].tolist() and want[k][0] > 2**60
            else: np.testing.assert_array_equal(np.ma.filled(np.ma.asarray(t[n], float), np.nan), want[k])
    for t in (ecsv, fit, Table.read('o/out.parquet')): assert t['separation'].unit == 'arcsec' and t['rv'].unit == 'km/s'
    assert ecsv['p_MS*'].description == 'probability of MS* (main-sequence star)' and ecsv.meta['model'] == 'fusion_sky'
    head = fits.getheader('o/out.fits', 1)
    assert head[f'TCOMM{len(columns)-5}'] == 'probability of MS* (main-sequence star)' and 'Scuti' in head[f'TCOMM{len(columns)-1}']
    status,_,err = run('o', '0.fits', '-o', 'again.csv')
    assert status == 1 and table('again.csv').file.tolist() == ['o', '0.fits'] and 'no spectrum in it' in err[0]
    assert run('o/out.csv', '-o', 'again.csv')[0] == 2 and 'a table of predictions' in table('again.csv').reason[0]

def test_fits_names_never_collide():
    from stellar_nb.cli import _fits_names
    names = _fits_names(['p_a*', 'p_a-', 'p_A*', 'p_**'])
    assert len({o.lower() for o in names}) == 4 and names[0] == 'p_a_'

def test_table_among_the_spectra(here, run, star):
    os.mkdir('d'); write('d/a.fits', star, RA=10., DEC=5.); save(gaia_rows(), 'd/g.csv')
    assert run('d', '--gaia', 'd/g.csv', '-o', 'd/types.csv')[0] == 0
    assert run('d', '--gaia', 'd/g.csv', '-o', 'd/types.csv')[0] == 0
    assert table('d/types.csv').file.tolist() == ['d/a.fits']

def test_top(here, run):
    save(gaia_rows(), 'g.csv')
    for n,k in ((1, 1), (5, 5), (50, 6)):
        run('--gaia', 'g.csv', '--top', n, '-o', 'out.csv')
        t = table()
        assert sum(c.startswith('top') for c in t) == k and (np.sort(t[P], axis=1)[:, -1] == t.p1).all()
        assert all([r[f'p{i}'] for i in range(1, k+1)] == sorted(r[P], reverse=True)[:k] for _,r in t.iterrows())

def test_terminal(here, run, star, monkeypatch):
    for n in ('a'*60 + '.fits', 'b.fits'): write(n, star, RA=10., DEC=5.)
    Path('bad.fits').touch()
    for width in (80, 120):
        monkeypatch.setenv('COLUMNS', str(width))
        status,out,_ = run('.', '--gaia', save(gaia_rows(), '../g.csv'))
        lines = [o for o in out.splitlines() if not o.startswith('    ')]
        assert status == 1 and len(lines) == 4 and max(map(len, out.splitlines())) <= width and 'most probable types' in lines[0] and ' both ' in lines[1]
    status,out,err = run('b.fits', '--quiet')
    assert status == 0 and err == [] and 'spectrum' in out

def test_pictures(here, run, star):
    from matplotlib.image import imread
    for n in ('a.fits', '恒 星$.fits'): write(n, star, RA=10., DEC=5.)
    pd.DataFrame(dict(wave=WAVE, flux=3., ivar=1.)).to_csv('flat.csv', index=False)
    save(gaia_rows(4, file=['a', 'flat', 'x', 'y']), 'g.csv')
    assert run('a.fits', '恒 星$.fits', 'flat.csv', 'missing.fits', '--gaia', 'g.csv', '--by', 'file', '--all-rows', '--plots', 'png', '-o', 'out.csv')[0] == 1
    assert set(os.listdir('png')) == {'a.png', '恒_星.png', 'flat.png', 'g_2.png', 'g_3.png'}
    for p in Path('png').iterdir(): assert (im := imread(p)).shape[0] >= 300 and im[..., :3].std() > .02

def test_help_and_status_from_outside(here):
    go = lambda *a: subprocess.run([sys.executable, '-c', 'import sys; from stellar_nb.cli import main; s = main(); assert "torch" not in sys.modules; sys.exit(s)', *a], capture_output=True, text=True)
    out = go('classify', '--help')
    assert out.returncode == 0 and all(o in out.stdout for o in ('--gaia', '--by', '--radius', '--all-rows', '--top', 'examples:', 'no_gaia_match', 'exit status')) and max(map(len, out.stdout.splitlines())) <= 100
    assert 'classify' in go('--help').stdout
    refused = go('classify')
    assert refused.returncode == 2 and refused.stderr.strip() == 'stellar_nb classify: neither a spectrum nor --gaia TABLE is given'

def test_interrupted(here, run, star, monkeypatch):
    import stellar_nb.cli_classify as cli
    write('a.fits', star)
    def press(*a, **k): raise KeyboardInterrupt
    monkeypatch.setattr(cli, 'classify_batch', press)
    status,_,err = run('a.fits', '-o', 'out.csv')
    assert status == 130 and err == ['stellar_nb classify: interrupted, no table was written'] and not Path('out.csv').exists()


# --- from Python ---------------------------------------------------------------------------------------------------------------------------

def test_python_twin(here, run, star):
    for i in range(3): write(f'{i}.fits', star, i, RA=10. + 20*i, DEC=5.)
    save(gaia_rows(), 'g.csv')
    run('.', '--gaia', 'g.csv', '--top', 2, '-o', '../out.csv')
    assert stellar_nb.classify is classify
    for gaia in ('g.csv', read_gaia('g.csv')):
        t = classify('.', gaia, top=2) if isinstance(gaia, str) else classify([f'./{i}.fits' for i in range(3)], gaia, top=2)
        assert list(t.columns) == list(class_columns(NAMES, 2)) and t.source_id.dtype == np.int64
        np.testing.assert_allclose(t[P].to_numpy(float), table('../out.csv')[P], atol=1e-6)
    assert classify(gaia='g.csv').file.tolist() == [f'g.csv[{i}]' for i in range(4)]
    assert classify('0.fits', 'g.csv', all_rows=True).modalities.tolist() == ['spectrum+gaia'] + ['gaia']*3
    assert classify('0.fits', model=make()).modalities.tolist() == ['spectrum']
    with pytest.raises(ValueError, match='neither spectra'): classify()
    with pytest.raises(BadInput, match='it names types of stars'): stellar_nb.predict('0.fits', model='fusion_sky')
    with pytest.raises(BadInput, match='no classifier'): classify('0.fits', model='specvit_lamost')
    with pytest.raises(BadInput, match='no column night'): classify('0.fits', 'g.csv', by='night')
    with pytest.raises(ValueError, match='no column parallax'): classify('0.fits', pd.DataFrame(dict(ra=[1.], dec=[1.])))

def test_batches_do_not_matter(here, star):
    for i in range(5): write(f'{i}.fits', star, i, RA=10. + 20*i, DEC=5.)
    g = read_gaia(save(gaia_rows(), '../g.csv'))
    one,two,all_ = (classify('.', g, all_rows=True, batch_size=n) for n in (1, 2, 256))
    for t in (two, all_):
        assert t.file.tolist() == one.file.tolist() and t['flags'].tolist() == one['flags'].tolist() and t.source_id.tolist() == one.source_id.tolist()
        np.testing.assert_allclose(t[P], one[P], atol=2e-6)

def test_memory_is_flat(here, star):
    "Spectra are forgotten batch by batch"
    write('a.fits', star, RA=10., DEC=5.)
    for i in range(11): os.link('a.fits', f'b{i}.fits')
    alive,most = weakref.WeakSet(),[]
    def after(items, rows):
        alive.update(o.spectrum for o in items); most.append(len(alive))
    classify_files([f'b{i}.fits' for i in range(11)], GaiaTable(gaia_rows().assign(problem='')), batch_size=2, after=after)
    assert len(most) == 6 and max(most) <= 4

@pytest.mark.skipif(not REAL, reason='no real files at hand (STELLAR_NB_DATA)')
def test_real_files(here, run):
    "LAMOST's own files: where and when they were taken is known, and mock rows at these places are found"
    files = sorted(REAL.glob('*.fits.gz'))[:4]
    where = [place(read_spectra(f)[0]) for f in files]
    assert np.isfinite(where).all() and all(2010 < w[2] < 2025 for w in where)
    g = gaia_rows(4, ra=[w[0] for w in where], dec=[w[1] for w in where])
    assert run(*files, '--gaia', save(g, 'g.csv'), '-o', 'out.csv')[0] == 0
    assert set(table().modalities) == {'spectrum+gaia'} and table().source_id.tolist() == g.source_id.tolist() and (table().separation < .01).all()
    g['obsid'] = [s.id for s in (read_spectra(f)[0] for f in files)]
    assert run(*files, '--gaia', save(g, 'g.csv'), '--by', 'obsid', '-o', 'out.csv')[0] == 0 and table().source_id.tolist() == g.source_id.tolist()
