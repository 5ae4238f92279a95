"""Matches in memory, matches piece by piece and a plain loop over all pairs agree; identifiers come first; wrong units say so."""
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stellar_nb.core import BadInput
from stellar_nb.data import crossmatch as xm

needs_lsdb = pytest.mark.skipif(not (find_spec('lsdb') and find_spec('hats_import')), reason="needs pip install 'stellar_nb[survey]'")


def vec(ra, dec): return np.stack([np.cos(np.radians(dec))*np.cos(np.radians(ra)), np.cos(np.radians(dec))*np.sin(np.radians(ra)), np.sin(np.radians(dec))], -1)


def flown(t, dt):
    "Positions (deg) after dt years, with the tangent vectors written out"
    ra, dec = np.radians(t.ra), np.radians(t.dec)
    east, north = np.stack([-np.sin(ra), np.cos(ra), 0*ra], -1), np.stack([-np.cos(ra)*np.sin(dec), -np.sin(ra)*np.sin(dec), np.cos(dec)], -1)
    known = np.isfinite(t.pmra) & np.isfinite(t.pmdec)
    mu = np.radians(np.where(known, [t.pmra, t.pmdec], 0)/3.6e6)*dt
    v = vec(t.ra, t.dec) + mu[0][:, None]*east + mu[1][:, None]*north
    return np.degrees(np.arctan2(v[:, 1], v[:, 0])), np.degrees(np.arctan2(v[:, 2], np.hypot(v[:, 0], v[:, 1])))


def haversine(a, d, a2, d2):
    a, d, a2, d2 = map(np.radians, (a, d, a2, d2))
    return np.degrees(2*np.arcsin(np.sqrt(np.sin((d2-d)/2)**2 + np.cos(d)*np.cos(d2)*np.sin((a2-a)/2)**2)))*3600


def slow(left, right, radius):
    "All pairs, a row of the left at a time; known motion of the right star moves it, else that of the left row moves that one"
    known, out = (np.isfinite(right.pmra) & np.isfinite(right.pmdec)).to_numpy(), []
    start, drift = vec(right.ra, right.dec), (vec(*flown(right, 1e-3))-vec(right.ra, right.dec))*1e3
    for i, o in enumerate(left.itertuples()):
        dt = np.nan_to_num(o.epoch - right.epoch.to_numpy())
        v = start + drift*dt[:, None]
        ra, dec = np.degrees(np.arctan2(v[:, 1], v[:, 0])), np.degrees(np.arctan2(v[:, 2], np.hypot(v[:, 0], v[:, 1])))
        a, d = o.ra, o.dec
        if np.isfinite(o.pmra + o.pmdec) and not known.all(): # the right's epoch is one
            a, d = [np.where(known, here, there) for here, there in zip((a, d), flown(left.iloc[[i]], -dt[0]))]
        sep = haversine(a, d, ra, dec)
        at = np.flatnonzero(sep <= radius)
        out += [(i, j, sep[j], len(at) > 1) for j in at[np.lexsort((at, sep[at]))]]
    return pd.DataFrame(out, columns=['left', 'right', 'separation', 'ambiguous']).astype(dict(left=int, right=int, separation=float, ambiguous=bool))


def surveys(n=2000, m=5000, seed=0):
    "Two mock surveys: crowded spots at the origin of right ascension, at both poles and on HEALPix borders, fast stars, repeats, twins, missing values"
    rng = np.random.default_rng(seed)
    k = m//5
    spread = lambda n, s: rng.normal(0, s/3600, n)
    ra, dec = rng.uniform(0, 360, m), np.degrees(np.arcsin(rng.uniform(-1, 1, m)))
    ra[:k], dec[:k] = spread(k, 40) % 360, spread(k, 40)
    ra[k:k+300], dec[k:k+300] = rng.uniform(0, 360, 300), 90-abs(spread(300, 60))
    ra[k+300:k+600], dec[k+300:k+600] = rng.uniform(0, 360, 300), -90+abs(spread(300, 60))
    ra[k+600:k+900], dec[k+600:k+900] = 45+spread(300, 40), np.degrees(np.arcsin(2/3))+spread(300, 40)
    pm = rng.normal(0, 20, (2, m))
    pm[:, ::50] = rng.normal(0, 3000, (2, len(pm[0, ::50])))
    pm[:, 5] = -801.551, 10362.394
    right = pd.DataFrame(dict(ra=ra, dec=dec, pmra=pm[0], pmdec=pm[1], epoch=2016.))
    right.loc[rng.choice(m, m//10, replace=False), ['pmra', 'pmdec']] = np.nan
    right.loc[rng.choice(m, 20, replace=False), 'pmdec'] = np.nan
    right.loc[rng.choice(m, 10, replace=False), 'dec'] = np.nan
    right.loc[[7, 8, 9]] = right.loc[[7, 7, 7]].to_numpy()
    right.loc[5, ['ra', 'dec', 'pmra', 'pmdec']] = 359.99999, 1e-4, -801.551, 10362.394
    at = np.r_[[5]*4, [7]*3, rng.integers(0, m, n-7)]
    year = rng.uniform(2002, 2024, n)
    year[10:30] = np.nan
    a, d = flown(right.iloc[at], np.nan_to_num(year-2016))
    d = np.clip(d+spread(n, .5), -90, 90)
    left = pd.DataFrame(dict(ra=(a+spread(n, .5)/np.maximum(np.cos(np.radians(d)), 1e-3)) % 360, dec=d, pmra=np.nan, pmdec=np.nan, epoch=year))
    some = rng.choice(n, n//3, replace=False)
    left.loc[some, ['pmra', 'pmdec']] = rng.normal(0, 500, (len(some), 2))
    left.loc[rng.choice(n, 15, replace=False), 'ra'] = np.nan
    return left, right


CASES = dict(main=(2000, 5000, 2.), tight=(300, 700, .3), wide=(400, 600, 30.), one=(4, 1, 2.))
PIECEWISE = 'main', 'one'


def cases():
    for name, (n, m, radius) in CASES.items():
        left, right = surveys(max(n, 300), max(m, 1500)) if name == 'one' else surveys(n, max(m, 1500))
        yield (name, left[:n], right[5:6] if name == 'one' else right[:m], radius)


def lsdb_runs(out):
    "In a process of its own: all that needs LSDB, answers as files, sentences of errors as JSON"
    import dask
    dask.config.set(scheduler='synchronous')
    out, said = Path(out), {}
    xm._PIECE = 1000
    for name, left, right, radius in cases():
        if name not in PIECEWISE: continue
        left.reset_index(drop=True, inplace=True), right.reset_index(drop=True, inplace=True)
        xm.crossmatch(left, right, radius, engine='lsdb').to_parquet(out/f'{name}.parquet')
        if name == 'main':
            main = left.assign(file=[f'spec-{i:05d}' for i in range(len(left))], flux=[[1., 2.]]*len(left)), right.assign(source_id=10**18+np.arange(len(right))[::-1])
    xm.crossmatch(main[0][:0], main[1], engine='lsdb').to_parquet(out/'empty.parquet')
    for name, t in zip(('l', 'r'), main):
        (out/name).mkdir()
        for i, at in enumerate(np.array_split(np.arange(len(t)), 3)): t.iloc[at].to_parquet(out/name/f'part-{i:05d}.parquet', index=False)
        xm.to_hats(out/name, out/f'{name}_hats', margin=300 if name == 'r' else 60, rows=1000)
    said['pieces'] = len(xm._files(out/'r_hats'))
    hats = out/'l_hats', out/'r_hats'
    xm.crossmatch(*hats, 2, engine='astropy').to_parquet(out/'hats_astropy.parquet')
    xm.crossmatch(*hats, 2, 'file', 'source_id', best=True, engine='lsdb').to_parquet(out/'named.parquet')
    said['files'] = len(list(xm.crossmatch(*hats, 2, engine='lsdb', output=out/'pairs').iterdir()))
    for key, f in dict(margin=lambda: xm.crossmatch(hats[1], hats[0], 2, engine='lsdb'), folder=lambda: xm.crossmatch(out/'l', hats[1], engine='lsdb'),
                       full=lambda: xm.to_hats(out/'l', hats[0]), key=lambda: xm.crossmatch(*hats, right_id='tic', engine='lsdb')).items():
        try: f()
        except BadInput as e: said[key] = str(e)
    (out/'said.json').write_text(json.dumps(said))


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    out = tmp_path_factory.mktemp('lsdb')
    env = os.environ | dict(NUMBA_DISABLE_JIT='1', PYTHONPATH=os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])) # compiling takes longer than all the rest
    r = subprocess.run([sys.executable, '-c', f'import test_crossmatch; test_crossmatch.lsdb_runs({str(out)!r})'], env=env, capture_output=True, text=True)
    assert r.returncode == 0, r.stderr[-3000:]
    return out


def same(a, b, tol=1e-5):
    pd.testing.assert_frame_equal(a.drop(columns='separation'), b.drop(columns='separation'))
    assert np.abs(a.separation-b.separation).max() < tol if len(a) else True


@pytest.mark.parametrize('name', CASES)
def test_in_memory_as_slow_code(name):
    left, right, radius = next(o[1:] for o in cases() if o[0] == name)
    want, got = slow(left, right, radius), xm.crossmatch(left, right, radius)
    same(got, want)
    assert len(want) and (name != 'main' or want.ambiguous.any() and want.right.duplicated().any())
    same(xm.crossmatch(left, right, radius, best=True), want.drop_duplicates('left', ignore_index=True))


@needs_lsdb
@pytest.mark.parametrize('name', PIECEWISE)
def test_lsdb_as_in_memory(runs, name):
    left, right, radius = next(o[1:] for o in cases() if o[0] == name)
    same(pd.read_parquet(runs/f'{name}.parquet'), xm.crossmatch(left, right, radius), 1e-9)


@needs_lsdb
def test_catalogues_on_disk(runs):
    "HATS catalogues in pieces, read by either engine, point back into the folders that they were made of"
    left, right, radius = next(o[1:] for o in cases() if o[0] == 'main')
    want, said = xm.crossmatch(left, right, radius), json.loads((runs/'said.json').read_text())
    assert said['pieces'] >= 12 and said['files'] > 1
    same(pd.read_parquet(runs/'hats_astropy.parquet'), want, 1e-9)
    same(xm.crossmatch(runs/'l', runs/'r', radius), want, 1e-9)
    same(pd.read_parquet(runs/'pairs').sort_values(['left', 'separation', 'right'], ignore_index=True), want, 1e-9)
    named, want = pd.read_parquet(runs/'named.parquet'), want.drop_duplicates('left')
    assert sorted(zip(named.left, named.right)) == sorted((f'spec-{i:05d}', 10**18+len(right)-1-j) for i, j in zip(want.left, want.right))
    assert len(pd.read_parquet(runs/'empty.parquet')) == 0


@needs_lsdb
def test_what_lsdb_refuses(runs):
    said = json.loads((runs/'said.json').read_text())
    assert said['margin'].startswith('l_hats: its margin is 60 arcsec, but a match may lie') and 'to_hats(…, margin=' in said['margin']
    assert said['folder'] == 'l: no HATS catalogue; to_hats makes one of a folder of Parquet files'
    assert said['full'] == 'l_hats: the folder is not empty' and said['key'] == 'r_hats: no column tic'


def test_join_by_id_keeps_digits():
    ids = [3_045_678_901_234_567_890, 3_045_678_901_234_567_891]
    right = pd.DataFrame(dict(source_id=ids))
    for left in (pd.Series(ids), pd.Series(map(str, ids)), pd.Series([f'Gaia DR3 {o}' for o in ids])):
        assert xm.join_by_id(pd.DataFrame(dict(g=left)), right, 'g', 'source_id').tolist() == [0, 1]
    with pytest.raises(BadInput, match='floating-point'): xm.join_by_id(pd.DataFrame(dict(g=np.array(ids, float))), right, 'g', 'source_id')


def test_join_by_id_in_other_words():
    right = pd.DataFrame(dict(source_id=[11, 12, 13]))
    left = pd.DataFrame(dict(g=['Gaia EDR3 11', 'gaia dr2 12', ' 13', 'HD 13', None]))
    assert xm.join_by_id(left, right, 'g', 'source_id').tolist() == [0, 1, 2, -1, -1]
    assert xm.join_by_id(right.astype(str), pd.DataFrame(dict(n=[12., np.nan])), 'source_id', 'n').tolist() == [-1, 0, -1]
    with pytest.raises(BadInput, match='^n: 1.5 is no identifier'): xm.join_by_id(left, pd.DataFrame(dict(n=[1., 1.5])), 'g', 'n')


def test_join_by_position_as_brute_force():
    "The nearest of all pairs, across the pole and the origin of right ascension too"
    rng = np.random.default_rng(0)
    n, m = 300, 200
    t = pd.DataFrame(dict(ra=rng.uniform(-.002, .002, n) % 360, dec=rng.uniform(-.002, .002, n), pmra=rng.normal(0, 300, n), pmdec=rng.normal(0, 300, n)))
    t = pd.concat([t, pd.DataFrame(dict(ra=rng.uniform(0, 360, 50), dec=90-rng.uniform(0, .002, 50)))], ignore_index=True)
    ra, dec = rng.uniform(-.002, .002, m) % 360, rng.uniform(-.002, .002, m)
    ra, dec = np.r_[ra, rng.uniform(0, 360, 20)], np.r_[dec, 90-rng.uniform(0, .002, 20)]
    year = rng.uniform(2011, 2020, m+20)
    out = xm.join_by_position(ra, dec, t, 2., year)
    vec = lambda a, d: np.stack([np.cos(np.radians(a))*np.cos(np.radians(d)), np.sin(np.radians(a))*np.cos(np.radians(d)), np.sin(np.radians(d))], -1)
    for i in range(m+20):
        dt, pm = year[i]-2016, t[['pmra', 'pmdec']].fillna(0).to_numpy()/3.6e6
        at = vec(t.ra+pm[:, 0]*dt/np.cos(np.radians(t.dec)), t.dec+pm[:, 1]*dt)
        sep = 2*np.degrees(np.arcsin(np.linalg.norm(at-vec(ra[i], dec[i]), axis=1)/2))*3600
        assert out.row[i] == (sep.argmin() if sep.min() <= 2 else -1)
        assert out.ambiguous[i] == ((sep <= 2).sum() > 1)
        if out.row[i] >= 0: assert abs(out.separation[i]-sep.min()) < 1e-4


def test_units_that_cannot_be():
    ok = pd.DataFrame(dict(ra=[1., 2.], dec=[0., 1.]))
    for bad, said in ((dict(dec=[0., -90.1]), 'right: dec = -90.1 in row 1 is no declination'), (dict(ra=[361., 2.]), 'right: ra = 361 in row 0 is no right ascension'),
                      (dict(epoch=[2016., 2457388.5]), r'right: epoch = 2.45739e\+06 in row 1 is no year'), (dict(ra=['a', 'b']), 'right: column ra holds no numbers'),
                      (dict(pmra=[2e5, 0], pmdec=[0., 0]), 'right: pmra = 200000 in row 0 is no proper motion')):
        with pytest.raises(BadInput, match=said): xm.crossmatch(ok, ok.assign(**bad))
    for radius in (0, -1, np.nan, np.inf):
        with pytest.raises(BadInput, match='^radius: .* must be above 0$'): xm.crossmatch(ok, ok, radius)
    with pytest.raises(BadInput, match='^left: no column ra and no dec$'): xm.crossmatch(ok[[]], ok)
    with pytest.raises(BadInput, match='^table: no column tic$'): xm.crossmatch(ok, ok, right_id='tic')
    with pytest.raises(BadInput, match='^engine: gpu is none of'): xm.crossmatch(ok, ok, engine='gpu')


def test_nothing_to_match():
    left, right = surveys(300, 1500)
    lost = right.assign(ra=np.nan)
    for a, b in ((left[:0], right), (left, right[:0]), (left, lost), (lost, lost), (left[:0], right[:0])):
        m = xm.crossmatch(a, b)
        assert len(m) == 0 and list(m) == ['left', 'right', 'separation', 'ambiguous'] and m.right.dtype.kind == 'i'


def test_folders_and_output(tmp_path):
    left, right = surveys(300, 1500)
    (tmp_path/'a').mkdir()
    for i in range(3): left[i*100:i*100+100].to_parquet(tmp_path/'a'/f'part-{i:05d}.parquet', index=False)
    pd.DataFrame(dict(file=['x'], reason=['y'])).to_parquet(tmp_path/'a'/'_failures.parquet')
    want = xm.crossmatch(left, right)
    same(xm.crossmatch(tmp_path/'a', right), want)
    out = xm.crossmatch(str(tmp_path/'a'), right, output=tmp_path/'out')
    same(pd.read_parquet(out), want)
    with pytest.raises(BadInput, match='the folder is not empty'): xm.crossmatch(left, right, output=out)
    with pytest.raises(BadInput, match='no Parquet files in it'): xm.crossmatch(left, tmp_path)


def test_engine_by_size(tmp_path, monkeypatch):
    left, right = surveys(300, 1500)
    right.to_parquet(tmp_path/'part-00000.parquet')
    assert xm.pick_engine(left, right) == xm.pick_engine(left, tmp_path) == 'astropy' and xm.free_memory() > 0
    monkeypatch.setattr(xm, 'free_memory', lambda: 1800*xm._BYTES*2)
    assert xm.pick_engine(left, tmp_path) == 'lsdb' and xm.pick_engine(left, right) == 'astropy'


def test_missing_packages(monkeypatch):
    monkeypatch.setattr(xm, 'find_spec', lambda o: None)
    t = pd.DataFrame(dict(ra=[1.], dec=[1.]))
    with pytest.raises(BadInput, match=r"^lsdb: not installed; pip install 'stellar_nb\[survey\]' brings it$"): xm.crossmatch(t, t, engine='lsdb')


def test_identifiers_before_positions():
    right = pd.DataFrame(dict(source_id=['1', '2', '3'], kic=[10, 20, 30], ra=[10., 20., 30.], dec=[0., 0., 89.999]))
    left = pd.DataFrame(dict(gaia=['Gaia DR3 1', None, '3', None, '2', None], kic=['10', '20', '10', None, None, '99'], ra=[10., 20., 30., 30.2, np.nan, 10.], dec=[0., 1., 89.999, 89.999, np.nan, 0.]))
    m = xm.match_stars(left, right, [('gaia', 'source_id'), ('kic', 'kic')])
    assert m.left.tolist() == [0, 1, 2, 3, 4, 5] and m.right.tolist() == [0, 1, 2, 2, 1, 0]
    assert m.by.tolist() == ['id', 'id', 'id', 'position', 'id', 'position']
    assert m.conflict.tolist() == [False, True, True, False, False, False], 'far from the star named, and two identifiers that disagree'
    assert np.isnan(m.separation[4]) and abs(m.separation[1]-3600) < 1e-6
    assert len(xm.match_stars(left[:0], right, [('gaia', 'source_id')])) == 0


def test_fastest_star():
    "Over a century Barnard's star is found with its motion and not without"
    star = pd.DataFrame(dict(ra=[269.448503, 269.5], dec=[4.739420, 4.8], pmra=[-801.551, 0], pmdec=[10362.394, 0]))
    year = np.arange(1920., 2030, 10)
    seen = pd.DataFrame(np.transpose(flown(star.iloc[[0]*len(year)], year-2016)), columns=['ra', 'dec']).assign(epoch=year)
    assert xm.crossmatch(seen, star, .01).right.tolist() == [0]*len(year)
    assert len(xm.crossmatch(seen.drop(columns='epoch'), star, 20)) == 0
    both = xm.crossmatch(star.assign(epoch=2016.), seen.drop(columns='epoch').assign(ref_epoch=year), .01)
    assert sorted(both.right) == list(range(len(year))), 'the left row moves where only it has a motion'


def test_chance_pairs_as_expected():
    rng = np.random.default_rng(0)
    t = pd.DataFrame(dict(ra=rng.uniform(0, 1, 5000), dec=rng.uniform(-.5, .5, 5000)))
    want = 5000*5000*np.pi*(10/3600)**2
    assert abs(len(xm.chance_pairs(t, t, 10))/2/want - 1) < .1
