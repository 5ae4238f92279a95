"""The stored tables behind the pages on DESA: who is in them, and that they belong together."""
import pandas as pd
import pytest

from stellar_nb.core import package_data
from stellar_nb.mock.sky import PARTS
from stellar_nb.recipes.alignment import ABLATIONS, ALIGNERS, PLAIN


def table(name):
    path = package_data('results', name)
    return pd.read_csv(path) if path.suffix == '.csv' else pd.read_parquet(path)


@pytest.fixture(scope='module')
def runs(): return table('desa_runs.csv')


def test_everyone_takes_part(runs):
    "Without labels each method has a row, DESA three seeds with labels and without; nothing is there twice"
    full, short = (runs[(runs.preset == 'ablation') == o] for o in (False, True))
    assert {*ALIGNERS, *PLAIN} <= set(full[~full.conditioned].method)
    assert {'DESA', 'DESA, self-attention', 'DESA, cross-attention', 'DESA, A twice'} <= set(short.method) and not short.conditioned.any()
    assert set(runs.method) <= {*ALIGNERS, *PLAIN, *ABLATIONS}
    assert not runs.duplicated(['method', 'conditioned', 'seed', 'preset']).any()
    assert (full[full.method == 'DESA'].groupby('conditioned').seed.nunique() >= 3).all()


def test_scores_are_possible(runs):
    shares = [k for k in runs if k.endswith(('_within', '_auc', '_accuracy', '_random', '_majority'))]
    assert runs[shares].stack().dropna().between(0, 1).all()
    r2 = runs[[k for k in runs if k.endswith('_r2')]]
    assert r2.notna().all(axis=None) and (r2 < 1).all(axis=None)
    assert runs[[k for k in runs if k.startswith('pairs_')]].gt(0).all(axis=None)


def test_the_told_know_more(runs):
    "Radius and T_eff tell the place on the CMD: a reason to keep both kinds of rows apart"
    g = runs[runs.preset != 'ablation'].groupby(['method', 'conditioned']).gmag_r2.mean().unstack().dropna()
    assert (g[True] > g[False]).all() and len(g) > 4


def test_losses_end_as_the_rows_say(runs):
    "Losses are stored with five decimals"
    keys = ['method', 'conditioned', 'seed', 'preset']
    last = table('desa_losses.csv').sort_values('epoch').groupby(keys).valid_loss.last()
    said = runs[runs.valid_loss.notna()].set_index(keys).valid_loss
    assert set(said.index) == set(last.index) and (said - last).abs().max() < 2e-5


def test_maps_belong_to_the_stars(runs):
    stars, maps = table('desa_stars.parquet'), table('desa_map.parquet')
    assert set(stars.kic % 10) <= set(PARTS['test'])
    assert (maps.groupby(['method', 'conditioned'], observed=True).size() == len(stars)).all()
    assert not maps[['x', 'y']].isna().any(axis=None)
    full = runs[runs.preset != 'ablation']
    assert {*ALIGNERS, *PLAIN} <= set(maps[~maps.conditioned].method) and set(maps.method) <= set(full.method)


@pytest.mark.parametrize('kind', ['few', 'sensitivity'])
def test_pictures_of_desa(kind):
    t = table(f'desa_{kind}.parquet')
    assert {(m, c) for m, c in zip(t.method, t.conditioned) if m == 'DESA'} == {('DESA', False), ('DESA', True)}
