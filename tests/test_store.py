"""The survey store: the same files give the same bytes, whoever does the work and however often it is killed; nothing is lost in silence."""
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.table import Table

from stellar_nb.cli import main
from stellar_nb.core import BadInput, data_dir
from stellar_nb.data import store as module
from stellar_nb.data.gaia import GAIA_COLUMNS
from stellar_nb.data.spectra import example_file, julian_year, read_spectra
from stellar_nb.data.store import Keys, Listing, Store, StoreConfig, on_grid, prepare

WAVE = 10**np.arange(3.57, 3.9585, 1e-3)
COARSE = dict(kind='spectra', step=1e-3, row_group=8)


def spectrum(path, i=0):
    "A small spectrum on the coarse grid"
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(i)
    np.savez(path, wave=WAVE, flux=1 + .1*rng.normal(size=len(WAVE)), ivar=rng.uniform(50, 150, len(WAVE)))
    return path


@pytest.fixture
def survey(tmp_path):
    for i in range(40): spectrum(tmp_path/'in'/f'plate{i % 3}'/f'{i:03d}.npz', i)
    (tmp_path/'in/plate1/bad.npz').write_bytes(b'PK\x03\x04 no archive')
    (tmp_path/'in/plate2/empty.csv').touch()
    return tmp_path/'in'


def content(folder): return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob('*')) if p.is_file()}
def rows(folder): return pd.concat([pd.read_parquet(p) for p in Store(folder).parts], ignore_index=True)


def test_rows_are_the_files(survey, tmp_path):
    r = prepare(survey, tmp_path/'s', workers=0, part_files=16, **COARSE)
    s, d = Store(tmp_path/'s'), rows(tmp_path/'s')
    assert (r.found, r.rows, r.failed, r.parts, len(s)) == (42, 40, 2, 3, 40)
    assert d.file.is_unique and list(d.file) == sorted(d.file)
    for _, row in d.iloc[::9].iterrows():
        x, = read_spectra(survey/row.file)
        at = np.searchsorted(s.wave, WAVE[0]*.9999)
        np.testing.assert_array_equal(row.flux[at:at+len(WAVE)], x.flux.astype('f4'))
        np.testing.assert_array_equal(row.ivar[at:at+len(WAVE)], x.ivar.astype('f4'))
        assert (row.ivar > 0).sum() == len(WAVE)
        assert row['size'] == (survey/row.file).stat().st_size and len(row.sha256) == 64
    assert sorted(s.failures.file) == ['plate1/bad.npz', 'plate2/empty.csv'] and s.failures.reason.str.len().gt(5).all()
    assert pq.ParquetFile(s.parts[0]).num_row_groups == 2 and sorted(os.listdir(tmp_path/'s')) == ['_failures.parquet', '_store.json', *(f'part-0000{i}.parquet' for i in range(3))]
    for f in pq.read_schema(s.parts[0]): assert f.metadata[b'description'] and b'unit' in f.metadata
    assert pq.read_schema(s.parts[0]).metadata[b'kind'] == b'spectra'


def test_same_bytes_with_any_workers(survey, tmp_path):
    "In this process, on a cluster that is reached by its address, and with a worker of its own"
    from distributed import LocalCluster
    prepare(survey, tmp_path/'a', workers=0, part_files=8, **COARSE)
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=False, protocol='tcp', dashboard_address='127.0.0.1:0', local_directory=str(tmp_path/'dask')) as cluster:
        assert cluster.scheduler_address.startswith('tcp://')
        r = prepare(survey, tmp_path/'b', scheduler=cluster.scheduler_address, part_files=8, **COARSE)
    assert r.parts == 6 and not r.lost
    prepare(survey, tmp_path/'c', workers=1, part_files=8, **COARSE)
    assert content(tmp_path/'a') == content(tmp_path/'b') == content(tmp_path/'c')


def test_no_scheduler(survey, tmp_path):
    with pytest.raises(BadInput, match='no Dask scheduler answers'): prepare(survey, tmp_path/'s', scheduler='nonsense://x', **COARSE)
    assert prepare(survey, tmp_path/'s', workers=0).rows == 40, 'the plan is there'


SLOW = """
import sys, time
from stellar_nb.data import store
read = store.read_rows
def slow(*a): time.sleep(.05); return read(*a)
store.read_rows = slow
print('ready', flush=True)
store.prepare(sys.argv[1], sys.argv[2], workers=0, part_files=8, kind='spectra', step=1e-3, row_group=8)
"""


def test_killed_and_continued(survey, tmp_path):
    p = subprocess.Popen([sys.executable, '-c', SLOW, survey, tmp_path/'s'], stdout=subprocess.PIPE)
    p.stdout.readline()
    end = time.time() + 60
    while not (tmp_path/'s/part-00001.parquet').exists() and time.time() < end: time.sleep(.01)
    time.sleep(.1)
    with pytest.raises(BadInput, match='another run is writing there'): prepare(survey, tmp_path/'s', workers=0)
    os.kill(p.pid, signal.SIGKILL); p.wait()
    assert (tmp_path/'s/.plan').exists() and not (tmp_path/'s/part-00005.parquet').exists(), 'it was killed too late to tell'
    (tmp_path/'s/.tmp-left.parquet').touch()
    r = prepare(survey, tmp_path/'s', workers=0)
    assert 0 < r.files < 42 and r.found == 42
    prepare(survey, tmp_path/'t', workers=0, part_files=8, **COARSE)
    assert content(tmp_path/'s') == content(tmp_path/'t')


@pytest.mark.parametrize('step', ['_write_json', '_write', '_plan_path', 'settle'])
def test_killed_at_any_step(survey, tmp_path, monkeypatch, step):
    "Every n-th call of a step fails until the work is done; in the end nobody can tell"
    prepare(survey, tmp_path/'t', workers=0, part_files=8, **COARSE)
    count, real = [0], getattr(module, step)
    def dies(*a, **k):
        count[0] += 1
        if count[0] % 4 == 3: raise KeyboardInterrupt
        return real(*a, **k)
    monkeypatch.setattr(module, step, dies)
    for _ in range(60):
        try:
            prepare(survey, tmp_path/'s', workers=0, part_files=8, **COARSE)
            if count[0] > 3 or step == 'settle': break
        except KeyboardInterrupt: pass
    monkeypatch.undo()
    prepare(survey, tmp_path/'s', workers=0)
    assert content(tmp_path/'s') == content(tmp_path/'t')


def test_again_and_more(survey, tmp_path):
    s = tmp_path/'s'
    prepare(survey, s, workers=0, **COARSE)
    before = content(s)
    r = prepare([survey, survey/'plate0/000.npz', survey/'plate1'], s, workers=0)
    assert (r.found, r.known, r.known_bad, r.files) == (42, 42, 2, 0) and content(s) == before
    os.utime(survey/'plate0/000.npz')                                   # touched, not changed
    spectrum(survey/'plate0/new.npz', 99); spectrum(survey/'plate0/003.npz', 77)
    r = prepare(survey, s, workers=0)
    assert (r.files, r.changed, r.told) == (1, 1, ('plate0/003.npz: changed since it was read',))
    assert {k: v for k, v in content(s).items() if k in before and k != '_failures.parquet'} == {k: v for k, v in before.items() if k != '_failures.parquet'}
    spectrum(survey/'plate1/bad.npz', 55)
    r = prepare(survey, s, workers=0, again=True)
    assert (r.files, r.rows, r.failed, r.changed) == (3, 2, 1, 0)       # changed, mended, still empty
    d = rows(s)
    assert len(d) == 42 and d.file.is_unique and list(Store(s).failures.file) == ['plate2/empty.csv']
    x, = read_spectra(survey/'plate0/003.npz')
    assert x.flux.astype('f4')[7] in d.set_index('file').flux['plate0/003.npz']
    assert prepare(survey, s, workers=0).changed == 0


def test_a_lost_part_is_said_and_made_up_for(survey, tmp_path, monkeypatch):
    real = module.write_part
    def fails(folder, number):
        if number == 1: raise MemoryError('no room')
        return real(folder, number)
    monkeypatch.setattr(module, 'write_part', fails)
    r = prepare(survey, tmp_path/'s', workers=0, part_files=8, **COARSE)
    assert r.lost == ('part 1: MemoryError: no room',) and r.parts == 5
    monkeypatch.undo()
    assert prepare(survey, tmp_path/'s', workers=0).parts == 1
    prepare(survey, tmp_path/'t', workers=0, part_files=8, **COARSE)
    assert content(tmp_path/'s') == content(tmp_path/'t')


def test_names(tmp_path):
    names = ['with space.npz', 'étoile ☆.npz', 'line\nbreak.npz', 'quote".npz', os.fsdecode(b'byte\xff.npz'), 'a/x.npz', 'b/x.npz', "tab\t'.npz"]
    for i, k in enumerate(names): spectrum(tmp_path/'in'/k, i)
    (tmp_path/'in/link.npz').symlink_to('a/x.npz'); (tmp_path/'in/loop').symlink_to('.'); (tmp_path/'in/.hidden.npz').touch()
    r = prepare(tmp_path/'in', tmp_path/'s', workers=0, **COARSE)
    assert (r.rows, r.failed, r.links) == (8, 0, 2)
    assert set(rows(tmp_path/'s').file) == {o.replace('\udcff', '\\xff') for o in names}
    assert prepare(tmp_path/'in', tmp_path/'s', workers=0).files == 0
    assert prepare(tmp_path/'in/link.npz', tmp_path/'s', workers=0).rows == 1, 'a link that is named is followed'


def test_store_among_its_files(survey):
    r = prepare(survey, survey/'plate0/store', workers=0, **COARSE)
    again = prepare(survey, survey/'plate0/store', workers=0)
    assert (r.found, r.rows, again.found, again.files) == (42, 40, 42, 0)


def test_lists(survey, tmp_path):
    files = sorted(map(str, survey.rglob('*.npz')))
    (tmp_path/'lines').write_text('\n'.join(files) + '\n'); (tmp_path/'nul').write_bytes(b'\0'.join(map(os.fsencode, files)) + b'\0')
    prepare(survey, tmp_path/'a', workers=0, **COARSE)
    for k in ('lines', 'nul'):
        r = prepare((), tmp_path/f's_{k}', lists=[tmp_path/k], workers=0, **COARSE)
        assert r.rows == 40 and list(rows(tmp_path/f's_{k}').file) == list(rows(tmp_path/'a').file)
    with pytest.raises(BadInput, match='nothing: no such file'): prepare((), tmp_path/'c', lists=[tmp_path/'nothing'], workers=0)
    assert not (tmp_path/'c').exists()


def test_long_directories_are_sorted_on_disk(tmp_path, monkeypatch):
    for i in range(50): (tmp_path/f'{i*37 % 50:02d}.npz').touch()
    (tmp_path/'sub').mkdir(); (tmp_path/'sub/a.npz').touch()
    plain = list(Listing().walk(str(tmp_path)))
    monkeypatch.setattr(module, '_SPILL', 7)
    assert list(Listing().walk(str(tmp_path))) == plain == sorted(plain) and len(plain) == 51
    keys = Keys()
    for i in range(100): keys.add(f'{i}')
    assert all(f'{i}' in keys for i in range(100)) and '100' not in keys and len(keys.old) > 90


def test_moved_data(survey, tmp_path):
    prepare(survey, tmp_path/'s', workers=0, **COARSE)
    before = {k: v for k, v in content(tmp_path/'s').items() if k != '_store.json'}
    shutil.move(survey, tmp_path/'elsewhere')
    r = prepare(tmp_path/'elsewhere', tmp_path/'s', root=tmp_path/'elsewhere', workers=0)
    assert r.files == 0 and {k: v for k, v in content(tmp_path/'s').items() if k != '_store.json'} == before
    assert Store(tmp_path/'s').root == str(tmp_path/'elsewhere')


def test_refusals(survey, tmp_path):
    (tmp_path/'letters').mkdir(); (tmp_path/'letters/a').touch(); (tmp_path/'file').touch()
    for folder, kw, why in ((tmp_path/'letters', {}, 'neither empty nor a store'), (tmp_path/'file', {}, 'is a file'), (tmp_path/'n', dict(paths=()), 'no files')):
        with pytest.raises(BadInput, match=why): prepare(**dict(paths=survey, workers=0) | kw, folder=folder)
    prepare(survey, tmp_path/'s', workers=0, **COARSE)
    with pytest.raises(BadInput, match='its step is 0.001, not 0.0001'): prepare(survey, tmp_path/'s', workers=0, step=1e-4)
    with pytest.raises(BadInput, match='its kind is spectra, not gaia'): prepare(survey, tmp_path/'s', workers=0, kind='gaia')
    with pytest.raises(ValueError, match='kind must be one of'): prepare(survey, tmp_path/'n', kind='stars')
    for text in ('', '[]', '{"format": 2}', '{"format": 1}'):
        (tmp_path/'s/_store.json').write_text(text)
        with pytest.raises(BadInput): Store(tmp_path/'s')
    assert not (tmp_path/'n').exists()


def test_every_layout(tmp_path):
    "All layouts of spectra in one store; what lies beyond the grid is a failure"
    from stellar_nb.data.spectra import EXAMPLES
    (tmp_path/'in').mkdir()
    for k in EXAMPLES: example_file(k, tmp_path/'in')
    prepare(tmp_path/'in', tmp_path/'s', workers=0)
    d, bad = rows(tmp_path/'s'), Store(tmp_path/'s').failures
    assert len(d) + len(bad) >= len(EXAMPLES) and (d.ivar.map(lambda x: (x > 0).mean()) > .05).all()
    assert d.set_index('file').star.filter(like='xp').tolist() == ['Gaia 7', 'Gaia 8']
    assert d[d.layout == 'lamost-mrs'].item.tolist() == [0, 1]


def gaia_table(n, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(dict(source_id=np.arange(n) + 2**60) | {k: rng.uniform(1, 5, n) for k in GAIA_COLUMNS if not k.startswith('flag')})


def test_kinds(tmp_path):
    (tmp_path/'in').mkdir()
    t = np.arange(900)*.02 + np.repeat([0, 5, 10], 300)
    for i in range(3):
        fits.HDUList([fits.PrimaryHDU(header=fits.Header(dict(TELESCOP='Kepler', OBJECT=f'KIC {i}', QUARTER=4, KEPMAG=12., RA_OBJ=1., DEC_OBJ=2.))),
                      fits.BinTableHDU(Table(dict(TIME=t, PDCSAP_FLUX=np.float32(1e4 + t), PDCSAP_FLUX_ERR=np.float32(1 + 0*t), SAP_QUALITY=np.int32(128*(t > 15) + (t == t[3])))))]).writeto(tmp_path/f'in/kplr{i}.fits')
    gaia_table(7).to_csv(tmp_path/'in/0stars.csv', index=False); example_file('text', tmp_path/'in')
    r = prepare(tmp_path/'in', tmp_path/'s', workers=0)
    assert (r.kind, r.rows, r.failed) == ('lightcurves', 3, 2), 'most of the files decide'
    why = Store(tmp_path/'s').failures.set_index('file').reason
    assert why['0stars.csv'] == 'a table of Gaia stars, not a light curve: it belongs into a store of the kind gaia' and why['text.csv'].startswith('a spectrum, not a light curve')
    d = rows(tmp_path/'s'); c = d.iloc[0]
    assert Store(tmp_path/'s').config.cadences == 1280 and len(c.time) == 1280
    np.testing.assert_allclose(c.t0 + c.time[:900], t); assert np.isnan(c.time[900:]).all() and np.isnan(c.flux[900:]).all()
    assert np.isnan(c.flux[3]) and c.quality[3] == 1 and c.flux[4] == np.float32(1e4 + t[4])
    assert (c.star, c.segment, c.mission) == ('KIC 0', 4, 'Kepler') and c.epoch == pytest.approx(julian_year(2454833 + (t[0] + t[-1])/2))
    r = prepare(tmp_path/'in', tmp_path/'p', kind='lightcurves', cadences=400, workers=0)
    p = rows(tmp_path/'p'); p = p[p.file == 'kplr0.fits']
    assert p.piece.tolist() == [0, 1, 2] and p.item.tolist() == [0, 0, 0]
    np.testing.assert_allclose(np.concatenate([a + b[np.isfinite(b)] for a, b in zip(p.t0, p.time)]), t)


def test_gaia(tmp_path):
    (tmp_path/'in').mkdir()
    a = gaia_table(300); a.loc[5, 'parallax'] = np.nan
    a.to_csv(tmp_path/'in/a.csv', index=False); gaia_table(40, 1).to_parquet(tmp_path/'in/b.parquet')
    r = prepare(tmp_path/'in', tmp_path/'s', workers=0, row_group=128)
    d = rows(tmp_path/'s')
    assert (r.kind, r.rows) == ('gaia', 340) and d.source_id[2] == 2**60 + 2 and d.star[2] == f'Gaia {2**60 + 2}'
    np.testing.assert_allclose(d.pmra[:300], a.pmra); assert np.isnan(d.parallax[5]) and d.flagnopllx[5] == 1 and d.item[299] == 299


def test_a_spectrum_and_its_gaia_row_have_one_name(tmp_path):
    (tmp_path/'in').mkdir(); (tmp_path/'table').mkdir()
    a = gaia_table(3); a.to_csv(tmp_path/'table/a.csv', index=False)
    wave = np.geomspace(3800, 9000, 500)
    np.savez(tmp_path/'in/a.npz', wave=wave, flux=np.ones((3, 500)), ivar=np.ones((3, 500)), source_id=a.source_id, obsid=np.arange(3))
    prepare(tmp_path/'table', tmp_path/'g', workers=0); prepare(tmp_path/'in', tmp_path/'s', workers=0)
    assert rows(tmp_path/'s').star.tolist() == rows(tmp_path/'g').star.tolist() == [f'Gaia {o}' for o in a.source_id]


def test_rebinning_against_specutils():
    "Flux onto wider pixels, against an independent implementation of Carnall (2017)"
    specutils, manipulation = pytest.importorskip('specutils'), pytest.importorskip('specutils.manipulation')
    import astropy.units as u
    rng = np.random.default_rng(0)
    wave = np.arange(3600., 9300., .5); flux = 2 + np.sin(wave/7) + rng.normal(size=wave.shape)
    config = StoreConfig(step=3e-4)
    ours, ivar = on_grid(wave, flux, 0*wave + 4, config)
    kind = getattr(specutils, 'Spectrum', None) or specutils.Spectrum1D
    theirs = manipulation.FluxConservingResampler()(kind(flux=flux*u.Jy, spectral_axis=wave*u.AA), config.wave*u.AA).flux.value
    np.testing.assert_allclose(ours[1:-1], theirs[1:-1], rtol=2e-4, atol=2e-4)
    width = np.gradient(config.wave)
    np.testing.assert_allclose(ivar[1:-1], 4*(width/.5)[1:-1], rtol=2e-2)


def test_bad_pixels_stay_bad():
    wave = np.arange(3600., 9300., .8); flux, ivar = 1 + 0*wave, 9 + 0*wave
    bad = abs(wave - 5000) < 1; flux[bad], ivar[bad] = 1e9, 0
    f, v = on_grid(wave, flux, ivar)
    near = abs(StoreConfig().wave - 5000) < .9
    assert not v[near].any() and f.max() < 1.0001 and (v[~(abs(StoreConfig().wave - 5000) < 4)] > 0).all()
    gap = (wave < 5000) | (wave > 6000)
    v = on_grid(wave[gap], 1 + 0*wave[gap], 1 + 0*wave[gap])[1]
    assert not v[(StoreConfig().wave > 5002) & (StoreConfig().wave < 5998)].any(), 'no bridge over a gap'


def test_opens_elsewhere(survey, tmp_path):
    dd, datasets = pytest.importorskip('dask.dataframe'), pytest.importorskip('datasets')
    prepare(survey, tmp_path/'s', workers=0, part_files=16, **COARSE)
    parts = str(tmp_path/'s/part-*.parquet')
    n = StoreConfig(step=1e-3).pixels
    assert dd.read_parquet(parts).snr.mean().compute() == pytest.approx(rows(tmp_path/'s').snr.mean())
    d = datasets.load_dataset('parquet', data_files=parts, split='train', cache_dir=str(tmp_path/'cache'))
    assert len(d) == 40 and d.features['flux'].length == n and d.with_format('numpy')[3]['flux'].shape == (n,)
    assert Store(tmp_path/'s').dataset().count_rows() == 40


@pytest.mark.skipif(not data_dir('lamost_formats'), reason='no real files at hand')
def test_real_pixels_are_copied(tmp_path):
    "LAMOST and SDSS lie on the default grid"
    wave, n = StoreConfig().wave, 0
    for k in ('dr1', 'dr5', 'dr7', 'dr10_pylasp', 'sdss', 'dr2_dr3_sdss'):
        for p in sorted((data_dir('lamost_formats')/k).glob('*.fits*'))[:2]:
            s, = read_spectra(p)
            f, v = on_grid(s.wave, s.flux, s.ivar)
            i = np.searchsorted(wave, s.wave[0]*(1 - 5e-5)); j = min(len(s.wave), len(wave) - i)
            np.testing.assert_array_equal(f[i:i+j], s.flux[:j]); np.testing.assert_array_equal(v[i:i+j], s.ivar[:j])
            n += 1
    assert n == 12


def test_command(survey, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(os.listdir())
    assert main('prepare in -o out/s --kind spectra --step 0.001 --workers 0'.split()) == 1
    err = capsys.readouterr().err
    assert 'plate1/bad.npz: ' in err and 'spectra: 40 from 42 files, in already: 0, failed: 2, store: out/s' in err
    assert set(os.listdir()) - before == {'out'} and os.listdir('out') == ['s']
    assert main('prepare in/plate0 -o out/s'.split()) == 0 and main('prepare in -o out/s --quiet'.split()) == 1
    for line, why in (('prepare in/nothing -o n', 'in/nothing: there is no such file or folder'), ('prepare --list /dev/null -o n', 'not a regular file'), ('prepare in/plate1/bad.npz -o n', 'none of the first 1 files'), ('prepare -o n', 'neither paths nor --list'), ('prepare in -o n --scheduler a --workers 2', 'exclude each other'),
                      ('prepare in/plate1/bad.npz -o n --kind spectra', 'no usable file')):
        assert main(line.split()) == 2 and why in capsys.readouterr().err
    for i in range(30): (tmp_path/f'in/z{i}.npz').write_bytes(b'x')
    assert main('prepare in -o out/s --workers 0'.split()) == 1 and '… and 10 more; all failures are in out/s/_failures.parquet' in (err := capsys.readouterr().err) and 'failed earlier: 2, see out/s/_failures.parquet' in err


def test_slips_of_the_pen_are_told_and_not_kept(survey, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare(survey, 's', workers=0, **COARSE)
    before = content('s')
    assert main('prepare in in/palte0 -o s'.split()) == 1 and 'in/palte0: there is no such file or folder\n' in capsys.readouterr().err
    assert main('prepare palte0 -o s'.split()) == 2 and content('s') == before
    (tmp_path/'list').write_text('in/gone.npz\n')
    assert main('prepare --list list -o s'.split()) == 2 and Store('s').failures.file.tolist()[-1] == 'gone.npz'


def test_list_from_a_pipe(survey, tmp_path):
    names = b'\0'.join(os.fsencode(o.relative_to(tmp_path)) for o in survey.rglob('*.npz'))
    run = subprocess.run([sys.executable, '-c', 'import sys; from stellar_nb.cli import main; sys.exit(main(sys.argv[1:]))', *'prepare --list - -o s --kind spectra --step 0.001 --workers 0'.split()], cwd=tmp_path, input=names, capture_output=True)
    assert run.returncode == 1 and len(Store(tmp_path/'s')) == 40, run.stderr


def test_interrupted(survey, tmp_path, capsys, monkeypatch):
    def press(*a): raise KeyboardInterrupt
    monkeypatch.setattr(module, 'read_rows', press)
    line = f'prepare {survey} -o {tmp_path}/s --kind spectra --step 0.001 --workers 0'.split()
    assert main(line) == 130 and 'goes on from here' in capsys.readouterr().err
    monkeypatch.undo()
    assert main(line) == 1 and len(Store(tmp_path/'s')) == 40


def test_memory_does_not_grow(tmp_path, monkeypatch):
    "Five times the files in five times the parts, with a reader that costs no time: at its peak Python holds the same"
    import tracemalloc
    row = next(module.read_rows(str(spectrum(tmp_path/'one.npz')), StoreConfig(**COARSE)))
    monkeypatch.setattr(module, 'read_rows', lambda path, config: [(0, dict(row[1]), '')])
    peaks = []
    for n in (400, 2000):
        folder = tmp_path/f'n{n}'; folder.mkdir()
        for i in range(n): (folder/f'{i:05d}.npz').touch()
        prepare(folder/'00000.npz', tmp_path/f's{n}', root=folder, workers=0, part_files=50, **COARSE) # imports and caches
        tracemalloc.start(1)
        prepare(folder, tmp_path/f's{n}', workers=0)
        peaks.append(tracemalloc.get_traced_memory()[1]/2**20); tracemalloc.stop()
    print(f'{peaks[0]:.2f} MB for 400 files, {peaks[1]:.2f} MB for 2,000')
    assert peaks[1] < 1.5*peaks[0] + .2
