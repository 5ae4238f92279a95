"The command `stellar_nb period` from outside: light curves in; table, pictures, messages and exit status out."
import gzip, os, subprocess, sys
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch
from astropy.io import fits
from astropy.table import Table

import stellar_nb
from stellar_nb.cli import main
from stellar_nb.cli_period import PERIOD_TABLE, SHORT, StarTable, group_files, period, period_files, read_stars, star_key
from stellar_nb.core import BadInput, data_dir, generator, seed_everything
from stellar_nb.data.labels import LabelScale
from stellar_nb.data.lightcurve import join_segments, prepare, read_lightcurve
from stellar_nb.data.spectra import example_file
from stellar_nb.data.views import ViewConfig
from stellar_nb.encoders.lightcurve import DesaLightCurve, LightCurveEncoderConfig
from stellar_nb.periods import PeriodModel
from stellar_nb.pretrained import load_pretrained, save_pretrained

REAL = data_dir('kepler_lc', 'multi')
NUMBERS = [k for k,c in PERIOD_TABLE.items() if c.unit is not None]
P = [k for k in PERIOD_TABLE if k.startswith('prot')]


# --- files ---------------------------------------------------------------------------------------------------------------------------------

def make(seed=0):
    "A small untrained model: these tests are about everything around it"
    seed_everything(seed)
    view = ViewConfig.tiny()
    net = DesaLightCurve(LightCurveEncoderConfig.tiny(length=view.length, patch=16, grid=view.grid))
    return PeriodModel(net, view, LabelScale(('lnprot',), (1.5,), (.8,)), (.2, .1), (.3, 8.))

@pytest.fixture(autouse=True)
def models(tmp_path_factory, monkeypatch):
    "Stand in for the shipped ones"
    folder = tmp_path_factory.getbasetemp()/'period_models'
    if not folder.exists():
        for i,name in enumerate(('desa_quarter', 'desa_lightcurve')): save_pretrained(make(i), folder/name)
    monkeypatch.setenv('STELLAR_NB_MODELS', str(folder))
    return folder

@pytest.fixture
def run(capsys):
    "The command in this process; exit status, stdout, lines of stderr"
    def run(*args):
        status = main(['period', *map(str, args)])
        out,err = capsys.readouterr()
        return status, out, [o for o in err.splitlines() if o.strip() and '%|' not in o] # less the bar, which a slow machine shows
    return run

def sine(n=700, step=.0204, period=3., start=100., seed=0):
    "(time, flux) of a spotted star"
    t = start + step*np.arange(n)
    return t, 1 + .01*np.sin(2*np.pi*t/period) + 1e-3*np.random.default_rng(seed).normal(size=n)

def kepler(path, star=1, quarter=1, mission='Kepler', n=700, flux=None, step=.0204, quality=None, raw=False, **cards):
    "A file of the archive"
    id_,key,mag = dict(Kepler=('KIC', 'QUARTER', 'KEPMAG'), K2=('EPIC', 'CAMPAIGN', 'KEPMAG'), TESS=('TIC', 'SECTOR', 'TESSMAG'))[mission]
    t,f = sine(n, step, 1.5 + star, 100 + n*step*1.02*quarter, 10*star + quarter)
    cols = dict(TIME=t, PDCSAP_FLUX=1e4*f if flux is None else flux, SAP_QUALITY=np.zeros(n) if quality is None else quality)
    if raw: cols['SAP_FLUX'] = 9e3*f
    table = fits.BinTableHDU.from_columns([fits.Column(k, 'J' if k == 'SAP_QUALITY' else 'D', array=v) for k,v in cols.items()], name='LIGHTCURVE')
    head = fits.Header(dict(TELESCOP='TESS' if mission == 'TESS' else 'Kepler', MISSION=mission, OBJECT=f'{id_} {star}', **{key: quarter, mag: 12.}) | cards)
    fits.HDUList([fits.PrimaryHDU(header=head), table]).writeto(path, overwrite=True)
    return str(path)

def csv(path, **columns):
    pd.DataFrame(columns).to_csv(path, index=False)
    return str(path)

def table(path='out.csv'): return pd.read_csv(path, keep_default_na=False, na_values=dict.fromkeys(NUMBERS, ''), dtype=dict(segments=str))


# --- joined, alone -------------------------------------------------------------------------------------------------------------------------

def test_quarters_are_joined_in_any_order(here, run):
    "The numbers are those of the model for the joined curve, whatever comes between the files"
    for star in (1, 2):
        for q in (1, 2, 3): kepler(f'{star}-{q}.fits', star, q)
    status,_,err = run('2-3.fits', '1-1.fits', '2-1.fits', '1-3.fits', '1-2.fits', '2-2.fits', '-o', 'out.csv')
    t = table()
    assert status == 0 and err == ['stars: 2, with periods: 2, failed: 0, written to out.csv'] and list(t.columns) == list(PERIOD_TABLE)
    assert t.file.tolist() == ['2-1.fits (+2)', '1-1.fits (+2)'] and t.star.tolist() == ['KIC 2', 'KIC 1'] and t.segments.tolist() == ['1-3']*2
    for i,star in enumerate((2, 1)):
        curve, = join_segments([read_lightcurve(f'{star}-{q}.fits') for q in (1, 2, 3)])
        model = load_pretrained('desa_quarter')
        want = model.predict(*prepare([curve], model.view), torch.tensor([np.nan]))
        np.testing.assert_allclose(t.loc[i, [*P, 'days', 'observed']].astype(float), want.loc[0, [*P, 'days', 'observed']].astype(float), rtol=1e-4)
        assert t['flags'][i] == want['flags'][0] and 'no_luminosity' in t['flags'][i]
    assert (t.prot_lo < t.prot_q25).all() and (t.prot_q25 < t.prot).all() and (t.prot < t.prot_q75).all() and (t.prot_q75 < t.prot_hi).all()
    assert set(t.mission) == {'Kepler'} and set(t.magnitude) == {12.} and set(t.model) == {'desa_quarter'}

def test_separate(here, run):
    for q in (1, 2): kepler(f'{q}.fits', 1, q)
    assert run('.', '--separate', '-o', '../out.csv')[0] == 0
    t = table('../out.csv')
    assert t.file.tolist() == ['./1.fits', './2.fits'] and t.segments.tolist() == ['1', '2'] and (t.days < 15).all()
    assert run('.', '-o', '../out.csv')[0] == 0 and table('../out.csv').file.tolist() == ['./1.fits (+1)']

def test_groups(here):
    "A table of several stars brings their files together; what has no name stays alone; nothing is lost"
    kepler('2.fits', 2)
    x = [sine(100, seed=i) for i in range(2)]
    csv('both.csv', time=np.r_[x[0][0], x[1][0]], flux=np.r_[x[0][1], x[1][1]], kic=[1]*100 + [3]*100)
    for k in (1, 3): csv(f'{k}.csv', time=20 + x[0][0], flux=x[0][1], kic=k)
    for k in 'ab': csv(f'{k}.csv', time=x[0][0], flux=x[0][1])
    Path('broken.fits').write_bytes(b'SIMPLE  = rubbish')
    files = ['1.csv', 'a.csv', '2.fits', '3.csv', 'nowhere.fits', 'both.csv', 'b.csv', 'broken.fits']
    groups = group_files(files)
    assert groups == [['1.csv', '3.csv', 'both.csv'], ['a.csv'], ['2.fits'], ['nowhere.fits'], ['b.csv'], ['broken.fits']]
    assert [o.name for o in read_stars(groups)] == ['both.csv[0] (+1)', 'both.csv[1] (+1)', 'a.csv', '2.fits', 'nowhere.fits', 'b.csv', 'broken.fits']
    assert group_files(files, separate=True) == [[o] for o in files]

def test_a_broken_quarter_costs_itself(here, run):
    for q in (1, 2, 3): kepler(f'{q}.fits', 1, q)
    Path('2.fits').write_bytes(Path('2.fits').read_bytes()[:9000])
    status,_,err = run('1.fits', '2.fits', '3.fits', '-o', 'out.csv')
    t = table()
    assert status == 1 and t.file.tolist() == ['2.fits', '1.fits (+1)'] and t.status.tolist() == ['failed', 'ok'] and t.segments[1] == '1,3' and err[0] == f'2.fits: {t.reason[0]}'

def test_pipelines_do_not_mix(here, run):
    "The same star by two pipelines makes two rows; a quarter with raw flux only belongs to the others"
    for q in (1, 2, 3): kepler(f'{q}.fits', 1, q, flux=np.full(700, np.nan) if q == 2 else None, raw=True)
    t,f = sine(start=115.); csv('other.csv', bkjd=t, flux=.5*f, kic=1, quarter=1)
    status,*_ = run('1.fits', 'other.csv', '2.fits', '3.fits', '-o', 'out.csv')
    t = table()
    assert status == 0 and t.file.tolist() == ['1.fits (+2)', 'other.csv'] and t.star.tolist() == ['KIC 1']*2 and t.segments.tolist() == ['1-3', '1']

def test_missions_and_cadences(here, run):
    "K2 in half hours, TESS in two minutes, 200 s and half hours"
    kepler('k2.fits', 5, 6, 'K2')
    kepler('two.fits', 6, 7, 'TESS', n=6000, step=2/1440); kepler('ffi.fits', 7, 7, 'TESS', n=500, step=.5/24); kepler('fast.fits', 8, 7, 'TESS', n=4000, step=200/86400)
    assert run('k2.fits', 'two.fits', 'ffi.fits', 'fast.fits', '-o', 'out.csv')[0] == 0
    t = table()
    assert t.mission.tolist() == ['K2', 'TESS', 'TESS', 'TESS'] and t.segments.tolist() == ['6', '7', '7', '7'] and t.star.tolist() == ['EPIC 5', 'TIC 6', 'TIC 7', 'TIC 8']
    assert (t.observed > .97).all() and t.days[1] == pytest.approx(6000*2/1440, abs=.05)

def test_model_by_length(here, run):
    for star,n in ((1, 4800), (2, 5000)): kepler(f'{star}.fits', star, n=n)
    assert run('1.fits', '2.fits', '-o', 'out.csv')[0] == 0
    t = table()
    assert t.days[0] < SHORT < t.days[1] and t.model.tolist() == ['desa_quarter', 'desa_lightcurve']
    run('1.fits', '2.fits', '--model', 'desa_quarter', '-o', 'out.csv')
    assert table().model.tolist() == ['desa_quarter']*2 and table().prot[0] == t.prot[0] and table().prot[1] != t.prot[1]

def test_missing_model_costs_its_rows(here, run, monkeypatch, tmp_path):
    save_pretrained(make(), tmp_path/'some'/'desa_quarter')
    monkeypatch.setenv('STELLAR_NB_MODELS', str(tmp_path/'some'))
    monkeypatch.setattr('stellar_nb.pretrained.package_data', lambda *a: (_ for _ in ()).throw(FileNotFoundError()))
    for star,n in ((1, 700), (2, 5000)): kepler(f'{star}.fits', star, n=n)
    assert run('1.fits', '2.fits', '-o', 'out.csv')[0] == 1
    assert table().status.tolist() == ['ok', 'failed'] and table().reason[1].startswith('needs the model desa_lightcurve (no such model')


# --- distances -----------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('end', ('csv', 'ecsv', 'parquet', 'fits'))
def test_distances(here, run, end):
    "Names in any style; a distance or a parallax; a magnitude of the table counts more"
    for star in (1, 2, 3): kepler(f'{star}.fits', star)
    t,f = sine(); csv('mine.csv', time=t, flux=f)
    d = pd.DataFrame(dict(star=['KIC 1', 'kplr000000002', 'mine', '77'], distance=[100., np.nan, 50., 1.], parallax=[np.nan, 5., 1., 1.], mag=[np.nan, 13., 9., np.nan]))
    dict(csv=lambda p: d.to_csv(p, index=False), parquet=d.to_parquet, ecsv=lambda p: Table.from_pandas(d).write(p, format='ascii.ecsv'), fits=lambda p: Table.from_pandas(d).write(p))[end](f'd.{end}')
    status,_,err = run('1.fits', '2.fits', '3.fits', 'mine.csv', '--table', f'd.{end}', '-o', 'out.csv')
    t = table()
    assert status == 0 and 'luminosity unknown: 1' in err[0] and t['flags'].str.contains('no_luminosity').tolist() == [False, False, True, False]
    model,stars = load_pretrained('desa_quarter'), list(read_stars([['1.fits'], ['2.fits'], ['3.fits'], ['mine.csv']]))
    known = [StarTable(f'd.{end}').abs_mag_of(o) for o in stars]
    np.testing.assert_allclose(known, [12 - 5, 13 - 5*np.log10(20), np.nan, 9 - 5*np.log10(5)])
    np.testing.assert_allclose(t.prot, model.predict(*prepare([o.curve for o in stars], model.view), torch.tensor(known)).prot, rtol=1e-4)

def test_tables_of_distances(here):
    star = lambda name: next(read_stars([[kepler('x.fits', name)]]))
    units = Table(dict(KIC=[1, 2], Parallax=[.01, -3.]), units=dict(Parallax='arcsec')); units.write('u.ecsv', format='ascii.ecsv')
    assert StarTable('u.ecsv').abs_mag_of(star(1)) == pytest.approx(7) and np.isnan(StarTable('u.ecsv').abs_mag_of(star(2)))
    d = pd.DataFrame(dict(tic=[1., 2.], distance=[10., 100.]))
    assert np.isnan(StarTable(d).abs_mag_of(star(1))), 'TIC 1 is not KIC 1'
    assert StarTable(d.rename(columns=dict(tic='id'))).abs_mag_of(star(2)) == pytest.approx(7)
    assert [star_key(o) for o in ('EPIC 0012', 'ktwo12', '12', 'alf  Cen A')] == ['epic 12', 'epic 12', '12', 'alf cen a'] and star_key('12', 'tic') == 'tic 12'
    for bad,words in ((d.drop(columns='distance'), 'no column distance'), (d.drop(columns='tic'), 'no column of stars'), (d.assign(tic=1), 'tic 1 occurs more than once')):
        with pytest.raises(BadInput, match=words): StarTable(bad)
    StarTable(pd.concat([d, d]))  # the same row twice does no harm
    Table(dict(kic=[1], distance=[1.]), units=dict(distance='mag')).write('w.ecsv', format='ascii.ecsv')
    with pytest.raises(BadInput, match='distance in mag, not pc'): StarTable('w.ecsv')


# --- what goes wrong -----------------------------------------------------------------------------------------------------------------------

def bad_files():
    "{file: part of the reason}"
    n = 700; t,f = sine(n)
    kepler('flat.fits', 11, flux=np.full(n, 5.)); kepler('nan.fits', 12, flux=np.full(n, np.nan)); kepler('flagged.fits', 13, quality=np.full(n, 65536))
    kepler('short.fits', 14, n=100); kepler('hourly.fits', 15, step=2/24); kepler('negative.fits', 16, flux=-f); kepler('few.fits', 17, quality=np.where(np.arange(n) % 12, 65536, 0))
    Path('empty.fits').touch(); Path('cut.fits').write_bytes(Path(kepler('b.fits', 18)).read_bytes()[:9000]); Path('words.csv').write_text('nothing at all')
    Path('cut.fits.gz').write_bytes(gzip.compress(Path(kepler('b.fits', 19)).read_bytes())[:700])
    csv('names.csv', wind=t, flow=f); csv('back.csv', time=t[::-1], flux=f); csv('letters.csv', time=t, flux=['x']*n); csv('seconds.csv', time=86400*t, flux=f)
    example_file('lamost-table', '.').rename('star.fits'); example_file('text', '.').rename('star.csv')
    os.mkdir('folder'); os.mkdir('locked.fits'); fits.PrimaryHDU(np.zeros((5, 5))).writeto('image.fits')
    return {'flat.fits': 'the flux is constant', 'nan.fits': 'NaN or infinite everywhere', 'flagged.fits': 'no usable cadence', 'short.fits': '2 days long, fewer than 5', 'hourly.fits': 'a cadence of 2 hours',
            'negative.fits': 'median flux is not positive', 'few.fits': 'are usable, fewer than 2', 'empty.fits': 'empty', 'cut.fits': '', 'cut.fits.gz': '', 'words.csv': 'no layout that is known', 'names.csv': 'no column of time',
            'back.csv': 'not increasing', 'letters.csv': '', 'seconds.csv': 'are the times days?', 'star.fits': 'a spectrum, not a light curve: stellar_nb predict', 'star.csv': 'a spectrum, not a light curve', 'folder': 'no light curve in it',
            'locked.fits': 'no light curve in it', 'image.fits': 'images, no table', 'nowhere.fits': 'no such file'}

def test_bad_files(here, run):
    "Each is named, explained, skipped and counted; the others go on, and in order"
    bad = bad_files()
    kepler('a.fits', 1); kepler('z.fits', 2)
    status,_,err = run('a.fits', *bad, 'z.fits', '--batch-size', 5, '-o', 'out.csv')
    t = table()
    assert status == 1 and t.file.tolist() == ['a.fits', *bad, 'z.fits'] and t.status.tolist() == ['ok'] + ['failed']*len(bad) + ['ok']
    assert (np.isnan(t[P]).any(axis=1) == (t.status == 'failed')).all() and 'Traceback' not in ''.join(err)
    for f,r in zip(t.file[1:-1], t.reason[1:-1]): assert r and bad[f] in r and '\n' not in r and len(r) < 200, (f, r)
    assert err == [f'{f}: {r}' for f,r in zip(t.file[1:-1], t.reason[1:-1])] + [f'stars: {len(bad)+2}, with periods: 2, failed: {len(bad)}, written to out.csv']
    status,out,err = run(*bad)
    assert status == 2 and err[-1] == 'stellar_nb period: no usable light curve' and len(out.splitlines()) == len(bad) + 1

def test_refused(here, run):
    "At once, with one sentence, and nothing is left behind"
    kepler('a.fits', 1); kepler('b.fits', 2); csv('d.csv', kic=[1], distance=[10.]); csv('twice.csv', kic=[1, 1], distance=[10., 11.]); csv('lack.csv', kic=[1], mag=[9.]); Path('empty.csv').touch()
    t,f = sine(); csv('lc.csv', time=t, flux=f)
    before = Path('a.fits').read_bytes()
    bad = {('a.fits', '-o', 'a.fits'): 'is an input too', ('a.fits', '-o', 'lc.csv'): 'holds a light curve, which would be replaced', ('a.fits', '-o', 'b.fits'): 'holds a light curve', ('a.fits', '-o', 'o.xls'): 'unknown ending',
           ('a.fits', '--table', 'd.csv', '-o', 'd.csv'): 'is an input too', ('a.fits', '--table', 'lack.csv'): 'no column distance', ('a.fits', '--table', 'twice.csv'): 'kic 1 occurs more than once',
           ('a.fits', '--table', 'nowhere.csv'): 'no such file', ('a.fits', '--table', 'empty.csv'): 'the file is empty', ('a.fits', '--model', 'nowhere'): 'no such model', ('a.fits', '--model', 'specvit_lamost'): 'predicts no periods; it predicts teff'}
    for args,words in bad.items():
        status,_,err = run(*args, '--plots', 'p/q')
        assert status == 2 and len(err) == 1 and words in err[0] and err[0].startswith('stellar_nb period: '), (args, err)
    for args in ([], ['a.fits', '--batch-size', '0'], ['a.fits', '--nothing']): assert run(*args)[0] == 2
    assert not Path('p').exists() and Path('a.fits').read_bytes() == before

def test_models_of_the_other_kind(here, run, capsys):
    kepler('a.fits', 1)
    for command,words in (('predict', 'predicts none of teff, logg, feh; it reads light curves: stellar_nb period'), ('classify', 'is no classifier; it reads light curves: stellar_nb period')):
        assert main([command, 'a.fits', '--model', 'desa_quarter']) == 2
        assert capsys.readouterr().err.strip() == f'stellar_nb {command}: --model desa_quarter: {words}'
    with pytest.raises(BadInput, match='it predicts teff, logg, feh: stellar_nb predict'): period('a.fits', load_pretrained('specvit_lamost'))
    assert main(['predict', 'a.fits', '-o', 'out.csv']) == 2
    assert pd.read_csv('out.csv').reason[0] == 'a light curve, not a spectrum: stellar_nb period'

def test_one_odd_star_stays_alone(here, run, monkeypatch):
    for i in range(5): kepler(f'{i}.fits', i)
    healthy,sizes = PeriodModel.predict,[]
    odd = prepare([read_lightcurve('3.fits')], ViewConfig.tiny())[0][0]
    def explode(self, flux, seen, mag):
        sizes.append(len(flux))
        if any(torch.equal(f[:len(odd)], odd) for f in flux): raise RuntimeError('odd')
        return healthy(self, flux, seen, mag)
    monkeypatch.setattr(PeriodModel, 'predict', explode)
    assert run('.', '-o', '../out.csv')[0] == 1
    t = table('../out.csv')
    assert t.status.tolist() == ['ok']*3 + ['failed', 'ok'] and 'RuntimeError: odd' in t.reason[3] and sizes[0] == 5 and 1 in sizes


# --- outputs -------------------------------------------------------------------------------------------------------------------------------

def test_four_formats_hold_the_same(here, run):
    "With units and descriptions; and none of them is taken for a light curve"
    for i in (1, 2): kepler(f'{i}.fits', i)
    Path('bad.fits').touch(); os.mkdir('o')
    for end in ('csv', 'ecsv', 'parquet', 'fits'): assert run('1.fits', '2.fits', 'bad.fits', '-o', f'o/out.{end}')[0] == 1
    want = table('o/out.csv')
    pq,ecsv,fit = pd.read_parquet('o/out.parquet'), Table.read('o/out.ecsv'), Table.read('o/out.fits')
    assert list(want.columns) == list(pq.columns) == ecsv.colnames == fit.colnames == list(PERIOD_TABLE)
    text = lambda v: v.decode() if isinstance(v, bytes) else '' if np.ma.is_masked(v) else str(v)
    for k,c in PERIOD_TABLE.items():
        for t in (pq, ecsv, fit):
            if c.unit is None: assert [text(v) for v in t[k]] == want[k].tolist()
            else: np.testing.assert_array_equal(np.ma.filled(np.ma.asarray(t[k], float), np.nan), want[k])
    for t in (ecsv, fit, Table.read('o/out.parquet')): assert t['prot'].unit == 'd' and t['magnitude'].unit == 'mag'
    assert ecsv['prot_lo'].description == 'lower end of the 80 % interval' and ecsv.meta['model'] == 'desa_quarter'
    assert run('o', '-o', 'again.csv')[0] == 2 and table('again.csv').reason.tolist() == ['no light curve in it']
    assert run(*[f'o/out.{e}' for e in ('csv', 'ecsv', 'parquet', 'fits')], '-o', 'again.csv')[0] == 2 and set(table('again.csv').reason) == {'a table of predictions, not a light curve'}
    assert run('.', '-o', 'o/out.csv')[0] == 1, 'an older table may be replaced'

def test_terminal(here, run, monkeypatch):
    for n,s in (('a'*60 + '.fits', 1), ('b.fits', 2)): kepler(n, s)
    Path('bad.fits').touch()
    for width in (80, 120):
        monkeypatch.setenv('COLUMNS', str(width))
        status,out,_ = run('.')
        lines = [o for o in out.splitlines() if not o.startswith('    ')]
        assert status == 1 and len(lines) == 4 and max(map(len, out.splitlines())) <= width and 'P (d)' in lines[0] and '80 %' in lines[0] and 'KIC 1' in lines[1]
    status,out,err = run('b.fits', '--quiet')
    assert status == 0 and err == [] and 'KIC 2' in out

def test_pictures(here, run):
    from matplotlib.image import imread
    for n,s,q in (('恒 星$.fits', 2, 1), ('b.fits', 3, 1), ('c.fits', 3, 2)): kepler(n, s, q)
    Path('bad.fits').touch()
    assert run('.', '--plots', '../png', '-o', '../out.csv')[0] == 1
    names = set(os.listdir('../png'))
    assert names == {'恒_星.png', 'KIC_3.png'}
    for p in Path('../png').iterdir(): assert (im := imread(p)).shape[0] >= 300 and im[..., :3].std() > .02

def test_help_from_outside(here):
    go = lambda *a: subprocess.run([sys.executable, '-c', 'import sys; from stellar_nb.cli import main; s = main(); assert "numpy" not in sys.modules; sys.exit(s)', *a], capture_output=True, text=True)
    out = go('period', '--help')
    assert out.returncode == 0 and all(o in out.stdout for o in ('--table', '--separate', '--model', '--plots', 'examples:', 'no_luminosity', 'desa_quarter', 'exit status')) and max(map(len, out.stdout.splitlines())) <= 100
    from stellar_nb.periods import PERIOD_FLAGS
    assert all(k in out.stdout for k in (*PERIOD_FLAGS, *PERIOD_TABLE)) and 'period' in go('--help').stdout

def test_interrupted(here, run, monkeypatch):
    import stellar_nb.cli_period as cli
    kepler('a.fits', 1)
    def press(*a, **k): raise KeyboardInterrupt
    monkeypatch.setattr(cli, 'period_rows', press)
    status,_,err = run('a.fits', '-o', 'out.csv')
    assert status == 130 and err == ['stellar_nb period: interrupted, no table was written'] and not Path('out.csv').exists()


# --- from Python ---------------------------------------------------------------------------------------------------------------------------

def test_python_twin(here, run):
    for i in (1, 2, 3): kepler(f'{i}.fits', i)
    d = pd.DataFrame(dict(kic=[1, 3], distance=[100., 50.])); d.to_csv('d.csv', index=False)
    run('.', '--table', 'd.csv', '-o', '../out.csv')
    want = table('../out.csv')
    assert stellar_nb.period is period and want.file.tolist() == ['./1.fits', './2.fits', './3.fits']
    for t in (period('.', table='d.csv'), period([f'{i}.fits' for i in (1, 2, 3)], table=d, batch_size=1), period(Path('.'), load_pretrained('desa_quarter'), Path('d.csv'))):
        assert list(t.columns) == list(PERIOD_TABLE) and t['flags'].tolist() == want['flags'].tolist()
        np.testing.assert_allclose(t[P].to_numpy(float), want[P], rtol=1e-4)
    curves = [read_lightcurve(f'{i}.fits') for i in (1, 2, 3)]
    for given in (curves, [curves[0], '2.fits', curves[2]]): np.testing.assert_allclose(period(given, table=d).sort_values('star')[P].to_numpy(float), want[P], rtol=1e-4)
    assert period(join_segments([curves[1], read_lightcurve(kepler('4.fits', 2, 2))])[0]).file.tolist() == ['2.fits (+1)']
    bare = read_lightcurve(csv('x.csv', **dict(zip(('time', 'flux'), sine())))); bare.meta.clear()
    assert period(bare).file.tolist() == ['light curve']
    assert period([]).empty and list(period([]).columns) == list(PERIOD_TABLE)
    with pytest.raises(BadInput, match='no such model'): period('1.fits', 'nowhere')

def test_memory_is_flat(here):
    "Light curves are forgotten batch by batch"
    import weakref
    for i in range(7): kepler(f'{i}.fits', i)
    alive,most = weakref.WeakSet(),[]
    def after(stars, rows):
        alive.update(o.curve for o in stars); most.append(len(alive))
    period_files(group_files([f'{i}.fits' for i in range(7)]), batch_size=2, after=after)
    assert len(most) == 4 and max(most) <= 4

@pytest.mark.skipif(not REAL, reason='no real files at hand (STELLAR_NB_DATA)')
def test_real_files(here, run):
    "17 quarters of one star are one row; K2, TESS and KEPSEISMIC are read"
    assert run(REAL, '-o', 'out.csv', '--model', 'desa_quarter')[0] == 0
    t = table().set_index('star')
    assert len(t) == 6 and t.segments['KIC 1996679'] == '1-17' and t.file['KIC 1996679'].endswith('2009166043257_llc.fits.gz (+16)') and t.days['KIC 1996679'] > 1400
    assert t.mission['EPIC 212299288'] == 'K2' and t.mission['TIC 53688090'] == 'TESS' and (t.observed > .5).all()

def test_shipped_model(here, run, monkeypatch):
    "Most periods of mock stars lie in their 80 % intervals, and most medians are right to a tenth"
    monkeypatch.delenv('STELLAR_NB_MODELS')
    from stellar_nb.data.lightcurve import from_columns
    from stellar_nb.mock.lightcurve import draw_targets, mock_lightcurves
    stars = draw_targets(200, generator(0), 'test'); stars = stars[stars.prot.between(1, 20) & (stars.kind == 'rotator')].head(30).reset_index()
    flux,seen,_,time = (o.numpy() for o in mock_lightcurves(stars, generator(1), 6))
    t = period([from_columns('x', time[at], flux[i, at], star=str(i), magnitude=stars.kepmag[i]) for i,at in enumerate(seen) if at.any()], table=pd.DataFrame(dict(star=map(str, stars.index), distance=stars.distance)))
    true = stars.prot.to_numpy()[t.star.astype(int)]
    assert set(t.model) == {'desa_quarter'} and len(t) >= 25 and t['flags'].str.contains('no_luminosity').sum() == 0
    assert .6 < ((t.prot_lo < true) & (true < t.prot_hi)).mean() and (abs(t.prot/true - 1) < .1).mean() > .5
