"""Groups hang together as a plain search says, keep their names, and no star stands on two sides."""
import numpy as np
import pandas as pd
import pytest

from stellar_nb.core import BadInput
from stellar_nb.data import groups as gr
from stellar_nb.data.crossmatch import crossmatch


def field(seed=0, n=600, surveys=('gaia', 'lamost', 'kepler')):
    "Surveys of some of the stars each, with repeats, positions within 0.2 arcsec, stars no nearer than that"
    rng = np.random.default_rng(seed)
    ra, dec = np.meshgrid(np.arange(30)/300, np.arange(n//30)/300)
    out = {}
    for k in surveys:
        at = rng.choice(n, n//2, replace=False)[rng.integers(0, n//2, n)]
        out[k] = pd.DataFrame(dict(ra=ra.ravel()[at], dec=dec.ravel()[at]+rng.uniform(-.2, .2, n)/3600, id=[f'{k[0]}{o}' for o in rng.permutation(n)[at]], star=at))
    return out


def links(t, names):
    return [(a, b, crossmatch(t[a], t[b], 1.)) for i, a in enumerate(names) for b in names[i+1:]]


def grouped(t, names, before=None, matches=None):
    return gr.star_groups({k: t[k].id for k in names}, links(t, names) if matches is None else matches, before)


def rows_of(t, g, names):
    return pd.concat([t[k].assign(survey=k, group=gr.group_of(g, k, t[k].id)) for k in names], ignore_index=True)


@pytest.mark.parametrize('seed', range(3))
def test_groups_are_the_stars(seed):
    t = field(seed)
    rows = rows_of(t, grouped(t, list(t)), list(t))
    assert rows.groupby('star').group.nunique().max() == rows.groupby('group').star.nunique().max() == 1
    sides = [set(rows.star.iloc[o]) for o in gr.split_by_hash(rows.group)]
    assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]


def test_components_as_slow_code():
    rng = np.random.default_rng(0)
    ids = {k: rng.integers(0, 60, 100).astype(str) for k in 'ab'}
    m = pd.DataFrame(rng.integers(0, 100, (30, 2)), columns=['left', 'right'])
    label = {(k, o): f'{k}:{o}' for k in 'ab' for o in ids[k]}
    while True:
        old = dict(label)
        for i, j in m.to_numpy():
            a, b = ('a', ids['a'][i]), ('b', ids['b'][j])
            label[a] = label[b] = min(label[a], label[b])
        if old == label: break
    g = gr.star_groups(ids, [('a', 'b', m)])
    assert {(o.survey, o.id): o.group for o in g.itertuples()} == label


def test_a_later_survey_moves_nobody():
    t = field()
    two = grouped(t, ['gaia', 'lamost'])
    for three in (grouped(t, list(t)), grouped(t, list(t)[::-1], two), grouped(t, list(t), two)):
        assert len(gr.side_changes(two, three)) == 0
        both = two.merge(three, on=['survey', 'id'])
        assert (both.group_x == both.group_y).all()


def test_new_rows_with_smaller_names():
    old = gr.star_groups(dict(a=['5'], b=['7']), [('a', 'b', pd.DataFrame(dict(left=[0], right=[0])))])
    new = gr.star_groups(dict(a=['1', '5'], b=['7']), [('a', 'b', pd.DataFrame(dict(left=[0], right=[0])))], old)
    assert new.group.tolist() == ['a:5']*3, 'old pairs hold, and the old name'


def test_groups_that_meet_are_reported():
    n = 400
    ids = [f'{i:04d}' for i in range(n)]
    old = gr.star_groups(dict(a=ids, b=ids))
    new = gr.star_groups(dict(a=ids, b=ids), [('a', 'b', pd.DataFrame(dict(left=range(n), right=range(n))))], old)
    moved = gr.side_changes(old, new)
    assert set(moved.survey) == {'b'} and (new.group == 'a:'+new.id).all()
    want = [gr._side([f'{k}:{o}' for o in ids], (.8, .1, .1), 42) for k in 'ab']
    assert moved.id.tolist() == [o for o, x, y in zip(ids, *want) if x != y] and len(moved) > 50


def test_no_group_without_a_name():
    for bad in (['a', ''], ['a', None], ['a', np.nan], ['a', ' ']):
        with pytest.raises(BadInput, match='^x: row 1 has no identifier'): gr.star_groups(dict(x=bad))
    with pytest.raises(BadInput, match='floating-point'): gr.star_groups(dict(x=[1.5, 2.]))
    for left in ([5], [-1], [.5]):
        with pytest.raises(BadInput, match='^x: the pairs do not fit'): gr.star_groups(dict(x=['a'], y=['b']), [('x', 'y', pd.DataFrame(dict(left=left, right=[0])))])
    assert len(gr.star_groups(dict(x=[]))) == 0


def test_hash_is_for_ever():
    "Numbers that must never change, for a split that is published cannot"
    np.testing.assert_allclose(gr.hash_place(['lamost:L1', '514069102427176704']), [0.18150021697357133, 0.9068324974681978], atol=1e-12)
    assert gr.hash_place(np.array([7]))[0] == gr.hash_place(['7'])[0] != gr.hash_place(['7'], 1)[0]
    parts = gr.split_by_hash(np.arange(1000), (.5, .5))
    assert len(parts) == 2 and sum(map(len, parts)) == 1000
