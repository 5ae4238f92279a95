"""Stores that do not fit into memory, and batches of them: every row once, in the same order whoever makes them."""
import json
import multiprocessing
import os
import pickle
from itertools import combinations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from stellar_nb.core import BadInput, generator
from stellar_nb.data.loaders import EveryRow, FromStore, FromStores, Loader, OneVisit, Together, Visits, batch_edges, visits_by_match, visits_by_name
from stellar_nb.data.shards import Shards, star_codes

PIXELS = 6


def write_part(path, first, n, pixels=PIXELS, stars=40, seed=0):
    rng = np.random.default_rng([seed, first])
    wide = pa.FixedSizeListArray.from_arrays(pa.array(np.repeat(np.arange(first, first+n, dtype='f4'), pixels) + np.tile(np.arange(pixels, dtype='f4')/10, n)), pixels)
    star = [f'S{j}' if j else '' for j in rng.integers(0, stars, n)]
    pq.write_table(pa.table(dict(star=star, item=np.arange(first, first+n, dtype='i4'), snr=rng.random(n, dtype='f4'), flux=wide)), path, row_group_size=13)


def write_store(folder, parts=(30, 1, 50, 20), pixels=PIXELS, stars=40, kind='spectra', seed=0):
    folder.mkdir()
    (folder/'_store.json').write_text(json.dumps(dict(format=1, kind=kind, grid=dict(pixels=pixels))))
    for i, n in enumerate(parts): write_part(folder/f'part-{i:05}.parquet', sum(parts[:i]), n, pixels, stars, seed)
    return folder


def pandas_of(folder): return pd.concat([pd.read_parquet(p) for p in sorted(folder.glob('part-*.parquet'))], ignore_index=True)
def flux_and_noise(columns, gen): return columns['flux'] + torch.rand(len(columns['flux']), 1, generator=gen)/20
def rows_of(batches): return torch.cat([b[0][:, 0] for b in batches]).long().tolist()
def copies(loader): return [tuple(o.clone() for o in b) for b in loader]
def same(a, b): return len(a) == len(b) and all(torch.equal(x, y) for p, q in zip(a, b) for x, y in zip(p, q, strict=True))


@pytest.fixture
def folder(tmp_path): return write_store(tmp_path/'store')


@pytest.fixture
def make(folder):
    shards = Shards(folder)
    return lambda plan=None, batch=16, **kw: Loader(FromStore(shards, flux_and_noise, ['snr']), plan or EveryRow(len(shards)), batch, device='cpu', **kw)


def test_rows_are_those_of_pandas(folder):
    shards, table = Shards(folder), pandas_of(folder)
    assert len(shards) == len(table) == 101
    for seed in range(5):
        rows = np.random.default_rng(seed).integers(0, 101, 40)
        out = shards[rows]
        for k in ('star', 'item', 'snr'): np.testing.assert_array_equal(out[k], table[k].to_numpy()[rows])
        np.testing.assert_array_equal(out['flux'], np.stack(table['flux'].to_numpy()[rows]))
    np.testing.assert_array_equal(shards[10:60:7]['item'], np.arange(10, 60, 7))
    np.testing.assert_array_equal(shards[torch.tensor([100])]['item'], [100])
    assert [shards.where(r) for r in (0, 29, 30, 31, 100)] == [('part-00000.parquet', 0), ('part-00000.parquet', 29), ('part-00001.parquet', 0), ('part-00002.parquet', 0), ('part-00003.parquet', 19)]
    for r in (-1, 101):
        with pytest.raises(IndexError, match=f'row {r} of a store of 101'): shards[[0, r]]


def test_blocks_do_not_show(folder, monkeypatch):
    monkeypatch.setattr('stellar_nb.data.shards.BLOCK', 7)
    shards = Shards(folder)
    assert len(shards.block) > 14
    rows = np.random.default_rng(0).permutation(101)
    np.testing.assert_array_equal(shards[rows]['item'], rows)
    assert shards.where(80) == ('part-00002.parquet', 49)


def test_what_is_read_is_a_copy(folder):
    shards = Shards(folder)
    shards[[3]]['flux'][:] = -1
    assert (shards[[3]]['flux'] >= 0).all()
    with pytest.raises(ValueError): shards.view(0, 'flux')[0] = -1


def test_another_process(folder):
    shards = Shards(folder, ['item'])
    shards[[0]]
    again = pickle.loads(pickle.dumps(shards))
    assert again[[7, 90]]['item'].tolist() == [7, 90] and list(again[[0]]) == ['item']


def test_changed_part_is_noticed(folder):
    old, maps = Shards(folder), lambda: sorted(p.name for p in (folder/'.arrow').iterdir())
    before, part = maps(), folder/'part-00002.parquet'
    assert len(Shards(folder)) == 101 and maps() == before
    stat = part.stat()
    write_part(part, 31, 49, seed=1)
    os.utime(part, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert len(Shards(folder)) == 100 and len(maps()) == 4 and maps() != before
    assert old[[80]]['item'] == 80 # whoever has the old one open keeps it
    write_part(folder/'part-00004.parquet', 100, 9)
    assert len(Shards(folder)) == 109 and len(maps()) == 5


def test_same_size_and_time_but_other_contents(folder):
    part = folder/'part-00001.parquet'
    first, stat = Shards(folder)[[30]]['item'], part.stat()
    table = pq.read_table(part)
    pq.write_table(table.set_column(1, 'item', pa.array([77], pa.int32())), part, row_group_size=13)
    os.utime(part, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert part.stat().st_size == stat.st_size and first == 30
    assert Shards(folder)[[30]]['item'] == 77


@pytest.mark.parametrize('broken', [b'', b'ARROW1', None, b'\0'*4000])
def test_broken_map_is_made_anew(folder, broken):
    Shards(folder)
    for p in (folder/'.arrow').iterdir(): p.write_bytes(p.read_bytes()[:-100] if broken is None else broken)
    assert Shards(folder)[[44]]['item'] == 44


@pytest.mark.parametrize('broken', [b'', b'PAR1', b'SIMPLE  =                    T', None])
def test_broken_part_is_named(folder, broken):
    part = folder/'part-00002.parquet'
    part.write_bytes(part.read_bytes()[:-300] if broken is None else broken)
    with pytest.raises(BadInput, match='^part-00002.parquet: not a readable parquet file') as e: Shards(folder)
    assert '\n' not in str(e.value)


def test_damage_within_a_part_is_named(folder):
    part = folder/'part-00002.parquet'
    b = bytearray(part.read_bytes())
    b[8:600] = bytes(592)
    part.write_bytes(b)
    with pytest.raises(BadInput, match='^part-00002.parquet: '): Shards(folder)
    assert not [p for p in (folder/'.arrow').iterdir() if p.name.startswith(('part-00002', '.tmp'))]


def test_parts_and_stores_that_do_not_fit(tmp_path, folder):
    with pytest.raises(BadInput, match='^wide: its grid is not that of store$'): Shards([folder, write_store(tmp_path/'wide', pixels=7)])
    with pytest.raises(BadInput, match='^curves: its kind is not that of store$'): Shards([folder, write_store(tmp_path/'curves', kind='lightcurves')])
    write_part(folder/'part-00004.parquet', 0, 4, pixels=7)
    with pytest.raises(BadInput, match=r'^part-00004.parquet: its flux is fixed_size_list.*\[7\], not .*\[6\] as in part-00000.parquet$'): Shards(folder)
    pq.write_table(pa.table(dict(star=['a'])), folder/'part-00004.parquet')
    with pytest.raises(BadInput, match='^part-00004.parquet: it has other columns than part-00000.parquet$'): Shards(folder)
    pq.write_table(pa.table(dict(star=['a', 'b'], flux=[[1.], [2., 3.]])), folder/'part-00004.parquet')
    with pytest.raises(BadInput, match='^part-00004.parquet: column flux does not have lists of one length$'): Shards(folder)


def test_no_store(tmp_path, folder):
    with pytest.raises(BadInput, match='^nothing: not a store'): Shards(tmp_path/'nothing')
    for p in folder.glob('part-*'): p.unlink()
    with pytest.raises(BadInput, match='^store: the store has no rows$'): Shards(folder)
    (folder/'_store.json').write_text('[1]')
    with pytest.raises(BadInput, match='^store: not a store'): Shards(folder)


def test_maps_elsewhere(tmp_path, folder):
    (tmp_path/'b').mkdir()
    other = write_store(tmp_path/'b'/'store', (10,))
    both = Shards([folder, other], cache=tmp_path/'cache') # both folders have the same name
    assert len(both) == 111 and both[[105]]['item'] == 4 and not (folder/'.arrow').exists()


def test_no_room_for_maps(tmp_path, folder):
    (tmp_path/'file').touch()
    with pytest.raises(BadInput, match='^part-00000.parquet: its map cannot be written .*cache= names another folder$'): Shards(folder, cache=tmp_path/'file')


def test_lists_that_change_their_length_within_a_part(folder, monkeypatch):
    monkeypatch.setattr('stellar_nb.data.shards.BLOCK', 2)
    pq.write_table(pa.table(dict(star=list('abcd'), flux=[[1.], [2.], [3., 4.], [5., 6.]])), folder/'part-00000.parquet')
    with pytest.raises(BadInput, match='^part-00000.parquet: its lists do not have one length$'): Shards(folder)


def test_star_numbers(tmp_path, folder):
    other = write_store(tmp_path/'other', (60,), stars=60, seed=5)
    a, b = Shards(folder), Shards(other)
    codes = np.concatenate(star_codes(a, b))
    names = np.concatenate([a.column('star'), b.column('star')])
    assert (names == '').sum() > 1
    for i, j in combinations(range(len(names)), 2): assert (codes[i] == codes[j]) == (names[i] == names[j] != '')


@pytest.mark.parametrize('plan', [EveryRow(101), EveryRow(101, block=9, window=3)], ids=['rows', 'blocks'])
def test_every_row_once_whatever_the_workers(make, plan):
    epochs = {}
    for workers in range(3):
        with make(plan, workers=workers) as loader: epochs[workers] = [copies(loader) for _ in range(2)]
    for two in epochs.values():
        assert all(sorted(rows_of(o)) == list(range(101)) for o in two) and rows_of(two[0]) != rows_of(two[1])
    for workers in (1, 2): assert all(map(same, epochs[0], epochs[workers]))
    assert not multiprocessing.active_children()


def test_blocks_stay_together():
    for n, block, window in ((100, 10, 2), (101, 9, 3), (5, 9, 1), (64, 1, 4)):
        rows = EveryRow(n, block, window)(generator(n))
        assert sorted(rows.tolist()) == list(range(n))
        blocks = (rows//block).tolist()
        last = {b: max(i for i, o in enumerate(blocks) if o == b) for b in blocks}
        open_ = [len({b for b in set(blocks) if blocks.index(b) <= i <= last[b]}) for i in range(n)]
        assert max(open_) <= window


def test_order_depends_on_seed_and_epoch_alone(make):
    a, b, c = make(), make(), make(seed=1)
    torch.manual_seed(5)
    first = copies(a)
    torch.manual_seed(6)
    assert same(first, copies(b)) and rows_of(first) != rows_of(copies(c))
    b.epoch = 0
    assert same(first, copies(b))


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize('k', [0, 1, 4, 7])
def test_resumed_epoch_is_the_rest(make, k, workers):
    whole = make()
    epochs = [copies(whole) for _ in range(3)]
    with make(workers=workers) as loader:
        loader.load_state_dict(dict(epoch=1, batch=k))
        assert same(copies(loader), epochs[1][k:]) and same(copies(loader), epochs[2])
        assert loader.state_dict() == dict(epoch=3, batch=0)


def test_state_within_an_epoch(make):
    loader = make()
    for i, _ in enumerate(loader):
        assert loader.state_dict() == dict(epoch=0, batch=i+1)
        if i == 2: break
    assert len(copies(loader)) == len(loader) == 7 # without load_state_dict it begins anew
    for state in (dict(epoch=0, batch=8), dict(epoch=-1, batch=0), {}):
        with pytest.raises(ValueError, match='no loader of 7 batches stops at'): loader.load_state_dict(state)


def test_resuming_reads_nothing_of_what_came_before(folder):
    shards, seen = Shards(folder), []
    loader = Loader(FromStore(shards, lambda c, gen: (seen.extend(c['item'].tolist()), c['flux'])[1]), EveryRow(101), 16, device='cpu')
    loader.load_state_dict(dict(epoch=0, batch=6))
    list(loader)
    assert len(seen) == 5


@pytest.mark.parametrize('world', [1, 2, 3, 5])
def test_parts_make_up_the_batches(make, world):
    whole = [b[0][:, 0].long() for b in make()]
    ranks = [[b[0][:, 0].long() for b in make(part=(r, world))] for r in range(world)]
    assert len(ranks[0]) == len(batch_edges(101, 16, world)) - 1
    together = [torch.cat(o) for o in zip(*ranks, strict=True)]
    assert torch.equal(torch.cat(together), torch.cat(whole)) and (world > 2 or all(map(torch.equal, together, whole)))
    for o in zip(*ranks): assert max(map(len, o)) - min(map(len, o)) <= 1 and min(map(len, o)) > 0


def test_edges():
    for n in range(1, 90):
        for batch in range(1, 14):
            for w in range(1, min(batch, n) + 1):
                e = batch_edges(n, batch, w)
                sizes = np.diff(e)
                assert e[0] == 0 and e[-1] == n and (sizes[:-1] == batch).all() and min(sizes) >= w and max(sizes) < batch + 2*w
                assert n < 2 or batch < 2 or min(sizes) > 1
    for n, batch in ((2, 8), (8, 2)):
        with pytest.raises(ValueError, match='2 rows cannot be shared by 3 machines'): batch_edges(n, batch, 3)


@pytest.mark.parametrize('block', [0, 7])
def test_a_star_comes_once(make, folder, block):
    code, = star_codes(Shards(folder))
    loader, seen = make(OneVisit(code, block=block), batch=8), []
    for _ in range(30):
        rows = rows_of(copies(loader))
        assert len({code[r] for r in rows}) == len(rows) == len(set(code))
        seen += rows
    assert set(seen) >= {r for r in range(101) if (code == code[r]).sum() < 4} and len(set(seen)) > 95
    some = np.arange(0, 101, 2)
    assert set(OneVisit(code, some, block)(generator(0)).tolist()) <= set(some.tolist())


def test_fixed_is_always_the_same(make):
    valid = make(EveryRow(range(3, 60)), fixed=True)
    first = copies(valid)
    assert rows_of(first) == list(range(3, 60)) and same(first, copies(valid)) and valid.epoch == 0


def picky(columns, gen):
    if (columns['item'] == 42).any(): raise TypeError('this one\nis odd')
    if len(columns['item']) > 1 and (columns['item'] == 50).any(): raise ValueError('only together')
    return columns['flux']


@pytest.mark.parametrize('workers', [0, 1])
def test_error_names_the_row(folder, workers):
    with Loader(FromStore(Shards(folder), picky), EveryRow(range(40, 45)), 4, workers=workers, device='cpu') as loader:
        with pytest.raises(BadInput, match='part-00002.parquet row 11: this one') as e: list(loader)
        assert 'in picky' in str(e.value.__cause__)
    assert not multiprocessing.active_children()
    with Loader(FromStore(Shards(folder), picky), EveryRow(range(50, 53)), 4, workers=workers, fixed=True, device='cpu') as loader:
        with pytest.raises(BadInput, match='part-00002.parquet row 19 and 2 more: only together'): list(loader)


def test_workers_end_with_the_loader(make):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    loader = make(workers=2)
    next(iter(loader))
    children = multiprocessing.active_children()
    assert len(children) == 2 and torch.equal(torch.get_rng_state(), state)
    del loader
    assert not any(p.is_alive() for p in children)


@pytest.mark.slow
def test_spawned_workers(make, monkeypatch):
    with make() as loader: want = copies(loader)
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method('spawn', force=True)
    try:
        with make(workers=2) as loader: assert same(copies(loader), want)
    finally: multiprocessing.set_start_method(before, force=True)


def first_only(columns, gen): return columns['flux']


@pytest.fixture
def two(tmp_path, folder): return Shards(folder), Shards(write_store(tmp_path/'curves', (25,), pixels=4, stars=60, kind='lightcurves', seed=9))


@pytest.mark.parametrize('fill', [0., float('nan')])
def test_missing_modality(two, fill):
    visits = visits_by_name(*two)
    codes = star_codes(*two)
    loader = Loader(FromStores(two, (flux_and_noise, first_only), np.arange(len(visits))[:, None], fill, ('present', 'star')), Together(visits), 8, device='cpu')
    stars = []
    for x, curve, label, present, star in loader:
        assert torch.equal(label[:, 0], star) and present.any(1).all()
        for k, v in enumerate((x, curve)):
            empty = v[~present[:, k]]
            assert empty.isnan().all() if np.isnan(fill) else not empty.any()
            assert (codes[k][v[present[:, k], 0].long()] == visits.code[star[present[:, k]]]).all()
            for s, p in zip(star, present[:, k]): assert bool(p) == (visits.code[s] in codes[k])
        stars += star.tolist()
    assert sorted(stars) == list(range(len(set(np.concatenate(codes)))))


def test_batch_in_which_nobody_has_it(two):
    visits = Visits([np.arange(101), np.full(25, -1)])
    x, curve, present = next(iter(Loader(FromStores(two, (first_only, first_only)), Together(visits), 16, device='cpu')))
    assert curve.shape == (16, 4) and not curve.any() and present.sum(0).tolist() == [16, 0]


def test_need_and_balance(two):
    visits = visits_by_name(*two)
    kinds = lambda plan, seed: [tuple(o) for o in (plan(generator(seed))[:, 1:] >= 0).tolist()]
    assert set(kinds(Together(visits, 'all'), 0)) == {(True, True)} and len(Together(visits, 'all')) == visits.present.all(1).sum()
    assert set(kinds(Together(visits, [1]), 0)) == {(True, True), (False, True)}
    plan = Together(visits, balance=True)
    for seed in range(3):
        count = pd.Series(kinds(plan, seed)).value_counts()
        assert len(count) == 3 and count.nunique() == 1 and count.sum() == len(plan) and len(set(plan(generator(seed))[:, 0].tolist())) == len(plan)
    assert set(plan(generator(0))[:, 0].tolist()) != set(plan(generator(1))[:, 0].tolist())


def test_matches_join_rows_by_brute_force():
    rng = np.random.default_rng(0)
    for _ in range(20):
        table = np.stack([rng.integers(-1, 9, 8), rng.integers(-1, 7, 8), rng.integers(-1, 5, 8)], 1)
        table = table[(table >= 0).any(1)]
        groups = [{(k, r) for k, r in enumerate(row) if r >= 0} for row in table.tolist()]
        while any(a & b for a, b in combinations(groups, 2)):
            a, b = next((a, b) for a, b in combinations(groups, 2) if a & b)
            groups.remove(a), groups.remove(b), groups.append(a | b)
        visits = visits_by_match(table, (9, 7, 5))
        found = [set() for _ in range(len(visits))]
        for seed in range(60):
            for s, rows in enumerate(visits.draw(generator(seed)).tolist()): found[s] |= {(k, r) for k, r in enumerate(rows) if r >= 0}
        assert sorted(map(sorted, found)) == sorted(map(sorted, groups))


def test_ranks_see_the_same_pairs(two):
    visits = visits_by_name(*two)
    loader = lambda part: Loader(FromStores(two, (first_only, first_only), last=('star',)), Together(visits), 8, part=part, device='cpu')
    whole = [torch.cat(o) for o in zip(*loader((0, 1)))]
    ranks = [[torch.cat(o) for o in zip(*b)] for b in zip(loader((0, 2)), loader((1, 2)))]
    for a, *b in zip(whole, *ranks): assert torch.equal(a, torch.cat(b))
