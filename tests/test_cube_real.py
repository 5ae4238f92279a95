"""Few labels on real cubes: sides that share no pixel, the same draws for all, nothing of the test side in pretraining, and a run that is not repeated."""
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from stellar_nb.core import BadInput, data_dir
from stellar_nb.data.fields import Fields
from stellar_nb.recipes import cube_real
from stellar_nb.recipes.cube_real import (KEYS, PRESETS, WINDOW, again, answers, draw, get_task, halves, kept, main, places, run_all, score, strips,
                                          usable, windows)

HSI = data_dir('hsi')
real = pytest.mark.skipif(HSI is None, reason='the hyperspectral data sets are not at hand')
TINY = PRESETS['smoke']


@pytest.fixture(scope='module')
def pines(): return get_task('pines', 'strips', 'smoke', HSI)


@pytest.fixture(scope='module')
def town(): return get_task('houston', 'place', 'smoke', HSI)


# sides

def test_windows_of_the_two_sides_share_no_pixel():
    side = usable(strips((145, 145)))
    h, seen = WINDOW//2, {1: set(), 2: set()}
    for y, x in np.argwhere(side > 0):
        seen[side[y, x]] |= {(i, j) for i in range(max(y-h, 0), min(y+h+1, 145)) for j in range(max(x-h, 0), min(x+h+1, 145))}
    assert seen[1] and seen[2] and not seen[1] & seen[2]
    assert all(strips((145, 145))[y, x] == s for s in seen for y, x in seen[s])


def test_mirrored_edges_stay_on_their_side():
    "A scene whose two sides hold 1 and 2: a window of one side holds nothing else, beyond the edge of the scene neither"
    side = strips((145, 145))
    use = usable(side)
    x = torch.tensor(side, dtype=torch.float32)[None]
    for s in (1, 2): assert (windows(x, np.argwhere(use == s)[::7]) == s).all()


def test_places_are_found_from_overlaps_alone():
    rng = np.random.default_rng(1)
    scene = rng.random((2, 60, 120)).astype('f4')
    at = rng.integers((3, 3), (57, 117), (60, 2))
    p = places(np.stack([scene[:, y-3:y+4, x-3:x+4] for y, x in at]))
    near = (abs(at[:, None]-at) <= 5).all(-1)  # patches of 7 pixels that share at least 2 × 2
    reach = np.linalg.matrix_power(near.astype(float), 60) > 0
    assert (reach == (p[:, None] == p)).all()


def test_flat_patches_join_nobody():
    flat = np.zeros((5, 2, 7, 7), 'f4')
    assert len(np.unique(places(flat))) == 5


def test_places_stay_whole():
    rng = np.random.default_rng(2)
    place, labels = rng.integers(0, 40, 500), rng.integers(1, 4, 500)
    side = halves(labels, place)
    assert set(side) == {1, 2} and all(len(set(side[place == p])) == 1 for p in np.unique(place))
    assert .4 < (side == 1).mean() < .6


@real
def test_no_patch_of_lidar_is_on_both_sides(town):
    "Brute force: no piece of 2 × 2 pixels that is not flat occurs on both sides"
    a, b = (f.images['lidar'].unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).flatten(0, 2).flatten(1) for f in (town.train, town.test))
    a, b = (o[(o.view(len(o), 21, 4).std(-1) > .05).any(1)].numpy() for o in (a, b))
    assert len(a) and len(b) and not {o.tobytes() for o in a} & {o.tobytes() for o in b}


@real
def test_classes_that_are_left_out_are_named(pines, town):
    assert set(pines.left_out) == {'alfalfa', 'grass, mowed', 'oats', 'wheat', 'stone, steel'} and len(pines.names) == 11
    assert set(town.left_out) == {'synthetic grass', 'tennis court', 'running track'} and len(town.names) == 12
    for t in (pines, town): assert (np.bincount(t.labels[t.labels >= 0]) >= 50).all() and (np.bincount(t.true) >= 30).all()


def test_kept_numbers_follow_the_names():
    labels, side = np.array([1]*60+[2]*3+[3]*60+[0]*5), np.array([1, 2]*64)
    new, names, out = kept(labels, side, ('a', 'b', 'c'), (20, 20))
    assert names == ['a', 'c'] and out == ['b'] and set(new[:60]) == {0} and set(new[60:63]) == {-1} and set(new[63:123]) == {1} and set(new[123:]) == {-1}


# draws

def test_draws_are_nested_and_follow_the_seed():
    labels = np.random.default_rng(0).integers(-1, 5, 900)
    few, more, other = draw(labels, 5, 1), draw(labels, 25, 1), draw(labels, 5, 2)
    assert set(few) < set(more) and set(few) != set(other) and (draw(labels, 5, 1) == few).all()
    assert (labels[few] >= 0).all() and (np.bincount(labels[more]) == 25).all()


@real
def test_all_methods_get_the_same_draws(pines, monkeypatch):
    "What the readers and the fine-tuning are given"
    seen = []
    monkeypatch.setattr(cube_real, 'fitted', lambda reader, x, y: seen.append(y) or type('Model', (), dict(predict=lambda self, x: np.zeros(len(x), int)))())
    monkeypatch.setattr(cube_real, 'finetune', lambda model, x, y, **kw: seen.append((x[0], y[:, 0].long().numpy())))
    list(answers(pines, TINY, 7))
    rows = draw(pines.labels, 5, 7)
    for o in seen:
        if isinstance(o, tuple): assert torch.equal(o[0], pines.train.cubes[rows]); o = o[1]
        assert (o == pines.labels[rows]).all()
    assert len(seen) == 12


@real
def test_pretraining_sees_neither_labels_nor_the_test_side(town, monkeypatch):
    got = []
    def fit(train, valid, config, *a, **kw): got.extend([train, valid]); raise KeyboardInterrupt
    monkeypatch.setattr(cube_real, 'fit_mae', fit)
    with pytest.raises(KeyboardInterrupt): cube_real.pretrained(town, PRESETS['full'], 0, True)
    known = {o.numpy().tobytes() for o in town.train.cubes}
    for f in got: assert isinstance(f, Fields) and {o.numpy().tobytes() for o in f.cubes} <= known
    broken = replace(town, labels=None, true=None, test=None)
    with pytest.raises(KeyboardInterrupt): cube_real.pretrained(broken, PRESETS['full'], 0)


@real
def test_choices_do_without_the_test_side(pines):
    first = again(pines)
    known = {o.numpy().tobytes() for o in pines.train.cubes}
    assert {o.numpy().tobytes() for o in first.test.cubes} <= known and not {o.numpy().tobytes() for o in first.test.cubes} & {o.numpy().tobytes() for o in first.train.cubes}
    assert again(replace(pines, test=None, true=None)).names == first.names


# runs

def test_scores():
    s = score(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]))
    assert s['oa'] == .75 and s['aa'] == pytest.approx(5/6) and s['kappa'] == .5 and s['recalls'] == '0.667 1.000'


@real
def test_smoke_from_end_to_end_and_not_twice(tmp_path, capsys, monkeypatch):
    main(['--preset', 'smoke', '--data', str(HSI), '--out', str(tmp_path)])
    assert 'fine-tuned' in capsys.readouterr().out
    t = pd.concat([pd.read_csv(tmp_path/f'cube_{k}.csv', keep_default_na=False) for k in ('pines', 'houston')])
    assert not t.duplicated(['data', 'split', 'seed', *KEYS]).any() and t[['oa', 'aa', 'kappa']].notna().all(axis=None) and t.oa.between(0, 1).all()
    m = pd.read_parquet(tmp_path/'cube_pines_map.parquet')
    assert len(m) == 145**2 and ((m.true >= 0) <= (m.side == 2)).all() and {'SVM, pixel', 'fine-tuned, network, cube'} < set(m)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path/'parts').iterdir()}
    monkeypatch.setattr(cube_real, 'run_part', lambda *a: pytest.fail('a part was repeated'))
    assert run_all('smoke', HSI, tmp_path) == ['cube_pines.csv', 'cube_houston.csv', 'cube_pines_map.parquet']
    assert {p: p.stat().st_mtime_ns for p in (tmp_path/'parts').iterdir()} == before


def test_missing_folder_is_one_sentence(tmp_path, capsys):
    with pytest.raises(BadInput, match='there is no such folder'): run_all('smoke', tmp_path/'none', tmp_path)
    with pytest.raises(SystemExit): main(['--preset', 'smoke', '--data', str(tmp_path/'none'), '--out', str(tmp_path)])
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    with pytest.raises(BadInput, match='Indian_pines_corrected.npy'): run_all('smoke', tmp_path, tmp_path)
