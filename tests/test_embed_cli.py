"The command `stellar_nb embed` from outside: spectra, light curves or both in; features, map, messages and exit status out."
import json, os
from dataclasses import replace
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch
from astropy.io import fits
from astropy.table import Table
from matplotlib.image import imread

import stellar_nb
from stellar_nb.aligned import AlignedModel, FeatureScale, align_features, feature_columns, restore_aligned
from stellar_nb.cli import Item, is_predictions, main
from stellar_nb.cli_embed import Curves, EMBED_COLUMNS, Seen, bare, embed, place_stars, read_match, star_names, which_files
from stellar_nb.core import BadInput, generator, seed_everything
from stellar_nb.data.labels import LabelScale
from stellar_nb.data.lightcurve import read_lightcurve
from stellar_nb.data.spectra import read_spectra
from stellar_nb.data.velocity import fill_rv
from stellar_nb.data.views import ViewConfig
from stellar_nb.encoders.lightcurve import DesaLightCurve, LightCurveEncoderConfig
from stellar_nb.encoders.spectra import DesaSpectra, SpectraEncoderConfig
from stellar_nb.mock.pairs import draw_pairs, pair_curves, pair_spectra, pair_visits
from stellar_nb.models.dualformer import DualFormer, DualFormerConfig
from stellar_nb.periods import PeriodModel
from stellar_nb.pretrained import LabelModel, load_pretrained, save_pretrained
from stellar_nb.recipes.spectra import DESA_PREP

WAVE = 10**(3.5682 + 1e-4*np.arange(3909))
LIMITS = dict(teff=(4000., 8000.), logg=(0., 5.), feh=(-2.5, .5))
TEXT = [k for k,c in EMBED_COLUMNS.items() if c.unit is None]


# --- small untrained models: these tests are about everything around them -------------------------------------------------------------------

def make(spectra='desa_spectra', curves='desa_lightcurve', labels=()):
    seed_everything(0)
    sc,view = SpectraEncoderConfig.laptop(stem=4, channels=(4, 8, 8, 16), depth=1, decoder=(8, 8, 8, 4), hidden=16),ViewConfig.tiny()
    net = DesaLightCurve(LightCurveEncoderConfig.tiny(length=view.length, patch=16, grid=view.grid)).eval()
    c = DualFormerConfig.tiny(spectra=sc.width, curve=net.encoder.features, labels=labels)
    aligned = AlignedModel(DualFormer(c).eval(), (spectra, curves), FeatureScale(((.1,)*c.spectra, (.2,)*c.curve), ((.5,)*c.spectra, (2.,)*c.curve)), 'a card', 'desa_aligned')
    readers = (LabelModel(DesaSpectra(sc).eval(), DESA_PREP, LabelScale(tuple(LIMITS), (5500., 4., -.3), (800., .7, .5)), ((100., .1, .1), (40., .05, .05)), LIMITS, (.8, .5)),
               PeriodModel(net, view, LabelScale(('lnprot',), (1.5,), (.8,)), (.2, .1), (.3, 8.)))
    return aligned, readers

@pytest.fixture(autouse=True)
def models(tmp_path_factory, monkeypatch):
    "Stand in for the shipped ones"
    folder = tmp_path_factory.getbasetemp()/'aligned_models'
    if not folder.exists():
        aligned,readers = make()
        for o,name in zip((aligned, *readers), ('desa_aligned', 'desa_spectra', 'desa_lightcurve')): save_pretrained(o, folder/name)
    monkeypatch.setenv('STELLAR_NB_MODELS', str(folder))
    return folder

@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for o in ('s', 'c'): (tmp_path/o).mkdir()
    return tmp_path

@pytest.fixture
def run(capsys):
    "The command in this process; exit status, stdout, lines of stderr"
    def run(*args):
        status = main(['embed', *map(str, args)])
        out,err = capsys.readouterr()
        return status, out, [o for o in err.splitlines() if o.strip() and '%|' not in o]
    return run

def spectrum(path, i=0, table=None, **cards):
    "A LAMOST file with lines of its own"
    flux = 1 + .2*np.sin(WAVE/(20 + i))
    cols = dict(FLUX=flux, IVAR=np.full(len(WAVE), 400.), WAVELENGTH=WAVE, ANDMASK=0*WAVE, ORMASK=0*WAVE)
    hdu = fits.BinTableHDU.from_columns([fits.Column(k, '3909E', array=v[None]) for k,v in cols.items()], name='COADD')
    head = fits.Header(dict(TELESCOP='LAMOST', DATA_V='LAMOST DR10', OBSID=900 + i, Z=1e-4, SNRG=40.) | cards)
    fits.HDUList([fits.PrimaryHDU(header=head), hdu]).writeto(path, overwrite=True)
    return str(path)

def curve(path, star=1, quarter=1, n=700, **cards):
    "A Kepler file"
    t = 100 + n*.0204*1.02*quarter + .0204*np.arange(n)
    f = 1e4*(1 + .01*np.sin(2*np.pi*t/(1.5 + star)) + 1e-3*np.random.default_rng(star + quarter).normal(size=n))
    cols = dict(TIME=t, PDCSAP_FLUX=f, SAP_QUALITY=np.zeros(n))
    table = fits.BinTableHDU.from_columns([fits.Column(k, 'J' if k == 'SAP_QUALITY' else 'D', array=v) for k,v in cols.items()], name='LIGHTCURVE')
    fits.HDUList([fits.PrimaryHDU(header=fits.Header(dict(TELESCOP='Kepler', MISSION='Kepler', OBJECT=f'KIC {star}', QUARTER=quarter, KEPMAG=12.) | cards)), table]).writeto(path, overwrite=True)
    return str(path)

def table(path='out.csv'): return pd.read_csv(path, keep_default_na=False, na_values={k: '' for k in pd.read_csv(path, nrows=0) if k not in TEXT}, dtype=dict.fromkeys(TEXT, str))

def features(rows): return rows.filter(regex=r'^f_\d+$').to_numpy(float)


# --- the model -----------------------------------------------------------------------------------------------------------------------------

def test_saved_and_loaded(here):
    "Weights, scale and the names of the encoders come back; nothing but plain files"
    model = make()[0]
    again = load_pretrained(save_pretrained(model, here/'m'))
    assert type(again) is AlignedModel and (again.encoders, again.scale, again.card, again.name, again.labels) == (model.encoders, model.scale, 'a card', 'm', ())
    assert {o.suffix for o in (here/'m').iterdir()} == {'.json', '.md', '.safetensors'}
    s,c = torch.randn(5, model.model.config.spectra), torch.randn(5, model.model.config.curve)
    torch.testing.assert_close(align_features(again, s, c), align_features(model, s, c))
    half = load_pretrained(save_pretrained(model, here/'h', half=True))
    assert (align_features(half, s, c) - align_features(model, s, c)).abs().max() < .05
    (here/'m'/'preprocessing.json').write_text('{"kind": "aligned"}')
    with pytest.raises(BadInput, match='not a readable model'): load_pretrained(here/'m')

def test_a_missing_instrument_is_the_mean(here):
    "NaN and the training mean give the same features; with neither there are none"
    model = make()[0]
    c = model.model.config
    s,k = torch.randn(3, c.spectra), torch.randn(3, c.curve)
    nan = lambda o: torch.full_like(o, torch.nan)
    torch.testing.assert_close(align_features(model, s, nan(k)), align_features(model, s, torch.full_like(k, .2)))
    torch.testing.assert_close(align_features(model, nan(s), k), align_features(model, torch.full_like(s, .1), k))
    assert align_features(model, nan(s), nan(k)).isnan().all()
    labelled = make(labels=('teff', 'prot'))[0]
    assert torch.equal(align_features(labelled, s, k), align_features(labelled, s, k, labels=torch.full((3, 2), torch.nan)))
    assert align_features(labelled, s, k).shape[1] == len(feature_columns(labelled)) == 10

def test_encoders_that_do_not_fit(here):
    model,readers = make()
    with pytest.raises(BadInput, match='trained on a DesaSpectra'): replace(model, encoders=model.encoders[::-1]).readers
    with pytest.raises(BadInput, match='no such model'): replace(model, encoders=('nowhere', 'desa_lightcurve')).readers
    other = replace(model, model=DualFormer(DualFormerConfig.tiny(spectra=8, curve=model.model.config.curve, labels=())))
    with pytest.raises(BadInput, match='16 features, and the aligner reads 8'): other.readers


# --- who belongs to whom ---------------------------------------------------------------------------------------------------------------------

def test_by_name(here, run):
    "KIC number in the header, name of the file; visits share a curve; a running number is no name; what is left has a row of its own"
    spectrum('s/a.fits', 0, KEPLERID=1), spectrum('s/b.fits', 1, KEPLERID=1), spectrum('s/kplr000000002.fits', 2), spectrum('s/x.fits', 3, OBSID=3)
    for k in (1, 2, 3):
        for q in (2, 1): curve(f'c/{k}_{q}.fits', k, q)
    status,_,err = run('s', '--curves', 'c', '-o', 'out.csv', '--own')
    t = table().set_index('file')
    assert status == 0 and len(t) == 5 and 'both: 3, spectrum alone: 1, light curve alone: 1' in err[-1]
    assert t.curve[['s/a.fits', 's/b.fits', 's/kplr000000002.fits', 's/x.fits']].tolist() == ['c/1_1.fits (+1)', 'c/1_1.fits (+1)', 'c/2_1.fits (+1)', '']
    assert t.modalities.tolist() == ['spectrum+curve']*3 + ['spectrum', 'curve'] and t.star.iloc[-1] == 'KIC 3'
    assert 'no_curve' in t['flags']['s/x.fits'] and 'no_spectrum' in t['flags'].iloc[-1]
    c = t.filter(regex=r'^c_\d+$').to_numpy(float)
    assert np.array_equal(c[0], c[1]) and not np.allclose(features(t)[0], features(t)[1]) and np.isnan(c[3]).all()
    assert is_predictions('out.csv')

def test_the_numbers_are_those_of_the_model(here):
    "Whatever comes between the files and the table"
    curve('c/1.fits', 1), spectrum('s/a.fits', 0, KEPLERID=1), spectrum('s/b.fits', 5)
    rows = embed('s', 'c')
    model = load_pretrained('desa_aligned')
    records = fill_rv([read_spectra(f's/{k}.fits')[0] for k in 'ab'])
    by_hand = model.embed(records, [read_lightcurve('c/1.fits'), None])
    assert np.allclose(features(rows), features(by_hand), atol=1e-5) and rows.modalities.tolist() == by_hand.modalities.tolist()
    assert stellar_nb.embed is embed

def test_by_position(here, run):
    "Where names say nothing; outside the radius there is nobody"
    spectrum('s/a.fits', 0, RA=290., DEC=40.), spectrum('s/b.fits', 1, RA=290.1, DEC=40.), spectrum('s/n.fits', 2)
    curve('c/1.fits', 1, RA_OBJ=290., DEC_OBJ=40 + 2/3600), curve('c/2.fits', 2, RA_OBJ=290.1, DEC_OBJ=40 + 8/3600)
    assert run('s', '--curves', 'c', '-o', 'out.csv')[0] == 0
    t = table().set_index('file')
    assert t.curve['s/a.fits'] == 'c/1.fits' and abs(t.separation['s/a.fits'] - 2) < .01 and t.curve['s/b.fits'] == '' and len(t) == 4
    assert run('s', '--curves', 'c', '-o', 'out.csv', '--radius', 10, '--by', 'position')[0] == 0
    t = table().set_index('file')
    assert t.curve['s/b.fits'] == 'c/2.fits' and 'no_position' in t['flags']['s/n.fits'] and len(t) == 3
    assert run('s', '--curves', 'c', '-o', 'out.csv', '--by', 'id')[0] == 0 and set(table().curve[:3]) == {''}

def test_by_table(here, run):
    "Paths, bare names or stars; nothing else is tried; what cannot be found is said"
    for i,k in enumerate('abcd'): spectrum(f's/{k}.fits', i, KEPLERID=9)
    for k in (1, 2): curve(f'c/long{k}.fits', k)
    pd.DataFrame(dict(spectrum=['s/a.fits', 'b', 'c.fits', 'zz'], curve=['c/long1.fits', 'KIC 2', 'lost', 'long1'])).to_csv('m.csv', index=False)
    status,_,err = run('s', '--curves', 'c', '--match', 'm.csv', '-o', 'out.csv')
    t = table().set_index('file')
    assert status == 0 and t.curve[:4].tolist() == ['c/long1.fits', 'c/long2.fits', '', ''] and 'without a spectrum: 1' in err[-1]
    assert 'lost_curve' in t['flags'].iloc[2] and 'lost_curve' not in t['flags'].iloc[3]
    with pytest.raises(BadInput, match='no column curve'): read_match(pd.DataFrame(dict(spectrum=['a'])))
    with pytest.raises(BadInput, match='two light curves'): read_match(pd.DataFrame(dict(spectrum=['a', 'a'], curve=['1', '2'])))

def test_by_column(here):
    s = replace(read_spectra(spectrum('s/a.fits'))[0], meta=dict(who='KIC 7', kic=8))
    items = [Item('s/a.fits', s, '')]
    seen = [Seen(f'c{k}', f'KIC {k}', (f'KIC {k}',), days=float(k), features=torch.zeros(2)) for k in (7, 8, 8)]
    assert [Curves(seen, by).find(items)[0].at for by in ('who', 'auto', 'nowhere')] == [0, 1, -1]
    assert Curves(seen, 'id').find(items)[0].flags == 'several_curves' and star_names(items[0], 'who') == ['kic 7']
    assert Curves([seen[0]._replace(features=None)], 'who').find(items)[0].flags == 'bad_curve' and bare('x/a.fits.gz[3]') == 'a'


# --- what goes wrong ---------------------------------------------------------------------------------------------------------------------------

def test_bad_files(here, run):
    "Each is named, explained in one sentence, and the others go on"
    spectrum('s/a.fits', 0, KEPLERID=1), curve('c/1.fits', 1), curve('c/short.fits', 2, n=60)
    Path('s/words.csv').write_text('no spectrum\nat all\n'); Path('c/empty.fits').write_bytes(b'')
    pd.DataFrame(dict(wave=np.linspace(9000, 9900, 500), flux=1 + .1*np.sin(np.arange(500)), ivar=np.ones(500))).to_csv('s/red.csv', index=False)
    spectrum('s/z.fits', 3, KEPLERID=2)
    status,_,err = run('s', '--curves', 'c', '-o', 'out.csv')
    t = table().set_index('file')
    assert status == 1 and (t.status == 'failed').sum() == 4 and all(t.reason[t.status == 'failed'].str.len() > 10)
    assert 'wavelength not covered' in t.reason['s/red.csv'] and 'days long' in t.reason['c/short.fits']
    assert t.modalities['s/z.fits'] == 'spectrum' and 'bad_curve' in t['flags']['s/z.fits']
    assert sum(o.startswith(('s/', 'c/')) for o in err) == 4 and 'failed: 4' in err[-1]

def test_a_spectrum_that_is_not_covered_leaves_its_curve(here):
    pd.DataFrame(dict(wave=np.linspace(9000, 9900, 500), flux=1 + .1*np.sin(np.arange(500)), ivar=np.ones(500))).to_csv('s/kplr1.csv', index=False)
    curve('c/1.fits', 1)
    t = embed('s', 'c')
    assert len(t) == 1 and t.modalities[0] == 'curve' and t.status[0] == 'ok' and 'no_coverage' in t['flags'][0]

@pytest.mark.parametrize('words,reason', [((), 'neither spectra nor --curves'), (('s', '-o', 'a.xls'), 'unknown ending'), (('s', '--map', 'a.jpg'), 'use .png'), (('s', '--model', 'desa_lightcurve'), 'stellar_nb period'),
                                          (('s', '--match', 'nowhere.csv'), '--match nowhere.csv'), (('s', '--table', 's/a.fits'), '--table'), (('s/none.fits',), 'no usable')])
def test_refused(here, run, words, reason):
    spectrum('s/a.fits')
    status,_,err = run(*words)
    assert status == 2 and reason in err[-1] and not Path('a.xls').exists()

def test_one_folder_for_both(here):
    "Each file is taken for what it is"
    spectrum('s/a.fits', 0, KEPLERID=1), curve('s/b.fits', 1)
    assert which_files(['s'], ['s']) == (['s/a.fits'], ['s/b.fits'])
    assert embed('s', 's').modalities.tolist() == ['spectrum+curve']
    with pytest.raises(ValueError, match='neither'): embed()


# --- what comes out ------------------------------------------------------------------------------------------------------------------------------

def test_formats_units_and_map(here, run, monkeypatch):
    "The same numbers in each format; units; a map of few stars by principal components"
    for i in range(4): spectrum(f's/{i}.fits', i)
    assert run('s', '-o', 'out.csv', '--map', 'map.png', '--quiet') == (0, '', [])
    t,n = table(), len(features(table())[0])
    for o in ('parquet', 'ecsv', 'fits'):
        status,_,err = run('s', '-o', f'out.{o}', '--map', 'map.png')
        again = Table.read(f'out.{o}')
        assert status == 0 and 'map by PCA in map.png' in err[-1] and np.allclose([again[f'f_{k:03d}'] for k in range(n)], features(t).T, atol=1e-5)
    assert str(Table.read('out.ecsv')['separation'].unit) == 'arcsec' and str(Table.read('out.ecsv')['days'].unit) == 'd' and imread('map.png').ndim == 3
    assert t.map_x.notna().all() and sorted(o.name for o in here.iterdir()) == ['c', 'map.png', 'out.csv', 'out.ecsv', 'out.fits', 'out.parquet', 's']
    monkeypatch.setattr('stellar_nb.eval.embed.umap_2d', lambda o: o[:, :2])  # the map itself is tested elsewhere
    assert place_stars(np.random.default_rng(0).normal(size=(20, 5)))[1] == 'UMAP'
    assert 'from' in run('s')[1] and 'no map of 1 star' in run('s/0.fits', '--map', 'm.png')[2][-1] and not Path('m.png').exists()

def test_distances(here):
    "A light curve whose star has a distance is read with its luminosity"
    curve('c/1.fits', 1), curve('c/2.fits', 2)
    t = embed((), 'c', table=pd.DataFrame(dict(kic=[1], distance=[100.])))
    assert ['no_luminosity' in o for o in t['flags']] == [False, True]

def test_mock_pairs_from_files(here, run):
    "Stars of the mock survey, written as files: each spectrum finds its light curve"
    gen = generator(2)
    stars = draw_pairs(3, gen, 'test')
    visits = pair_visits(stars, gen)
    flux,ivar = pair_spectra(visits, gen)
    curves = pair_curves(stars, gen, (5, 6))
    for i,v in enumerate(visits.itertuples()): pd.DataFrame(dict(wave=WAVE, flux=flux[i], ivar=ivar[i])).to_csv(f's/{v.kic}.{v.visit}.csv', index=False)
    names = [(f'{v.kic}.{v.visit}', f'KIC {v.kic}') for v in visits.itertuples()]
    pd.DataFrame(names, columns=['spectrum', 'curve']).to_csv('who.csv', index=False)
    for i,v in enumerate(stars.itertuples()):
        ok = curves.seen[i].numpy()
        pd.DataFrame(dict(time=curves.time.numpy()[ok], flux=curves.flux[i].numpy()[ok], quarter=curves.quarter.numpy()[ok], kic=v.kic)).to_csv(f'c/{i}.csv', index=False)
    assert run('s', '--curves', 'c', '--match', 'who.csv', '-o', 'f.parquet')[0] == 0
    t = pd.read_parquet('f.parquet')
    assert len(t) == len(visits) and set(t.modalities) == {'spectrum+curve'} and np.isfinite(features(t)).all()
    assert t.star.tolist() == [f"KIC {o.split('/')[1].split('.')[0]}" for o in t.file]
