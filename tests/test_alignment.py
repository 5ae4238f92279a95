"DESA and its rivals: the same stars, the same labels, the same number of steps; runs that are there are kept."

import numpy as np, pandas as pd, pytest, torch

from stellar_nb.core import BadInput, result_path
from stellar_nb.recipes import alignment as al
from stellar_nb.recipes.pairs import PairSet, load_pairs, save_pairs


@pytest.fixture(scope='module')
def folder(tmp_path_factory): return tmp_path_factory.mktemp('features')


@pytest.fixture(scope='module')
def e(folder): return al.get_pairs('smoke', folder)


def test_parts_share_no_star(e):
    kic = [set(o.stars.kic) for o in (e.train, e.calibrate, e.test)]
    assert not kic[0] & kic[1] and not kic[0] & kic[2] and not kic[1] & kic[2]


def test_scaling_knows_the_training_stars_alone(e, folder):
    raw = load_pairs(folder/'pairs-smoke-train.safetensors')
    assert abs(e.train.spectra.mean(0)).max() < 1e-3 and torch.allclose(e.train.spectra.square().mean(0), torch.ones(e.train.spectra.shape[1]), atol=.02)
    other = PairSet(raw.spectra+9, raw.curve*2, raw.labels, raw.stars)
    again, _ = al.scale_pairs(raw, other)
    assert torch.allclose(again.spectra, e.train.spectra)
    seen = e.train.labels[e.train.labels.isfinite()]
    assert seen.abs().max() <= 5 and e.train.labels.isnan().any()


def test_visits_of_a_star_stand_together_and_see_other_crops(e):
    s = e.train.stars
    twice = s.star[s.visit == 1].unique()
    for k in twice[:5]:
        a, b = np.flatnonzero(s.star == k)[:2]
        assert b == a+1 and torch.equal(e.train.labels[a].nan_to_num(-9), e.train.labels[b].nan_to_num(-9))
        assert not torch.equal(e.train.curve[a], e.train.curve[b]) and not torch.equal(e.train.spectra[a], e.train.spectra[b])


@pytest.mark.parametrize('conditioned', [False, True])
def test_rivals_are_treated_alike(e, conditioned):
    desa = al.make_aligner('DESA', e.train, conditioned)
    width = desa.config.width + 6*conditioned
    for name in al.ALIGNERS:
        net = al.make_aligner(name, e.train, conditioned)
        assert al._size(net) >= al._size(desa), name
        h = al.final_features(net, e.test, conditioned)
        assert h.shape == (len(e.test), width) and np.isfinite(h).all(), name
        if conditioned and name not in ('DESA', 'DESA + variance', 'untrained'):
            assert np.allclose(h[:, -6:], e.test.labels.nan_to_num(), atol=1e-6), name


def test_everyone_gets_as_many_steps(e):
    steps = {}
    for name in ('VICReg', 'MoCo-clean'):
        net, history = al.align(name, e, False)
        steps[name] = len(history)
    visits = len(e.train)/e.train.stars.star.nunique()
    assert steps['MoCo-clean'] == round(steps['VICReg']*visits)


def test_heads_of_baselines_are_as_large(e):
    least = al._size(al.make_tuned(al.make_aligner('DESA', e.train, False), e.train, False, 0, labels=1))
    for name, parts in al.PLAIN.items():
        if parts: assert al._size(al.make_tuned(parts, e.train, False, least, labels=1)) >= least, name


def test_principal_components_never_see_test_stars(e):
    h = al.plain_features('both, PCA', e, False)
    moved = al.Experiment(e.train, e.calibrate, PairSet(e.test.spectra*3, e.test.curve, e.test.labels, e.test.stars), e.preset)
    k = al.plain_features('both, PCA', moved, False)
    from stellar_nb.eval.embed import pca_features
    n = len(e.train)
    a, b = (torch.cat([getattr(p, o) for p in (e.train, e.test)]).numpy() for o in ('spectra', 'curve'))
    assert np.allclose(h, pca_features(a, b, 64, np.arange(n))[n:]) and not np.allclose(h, k)


def test_draws_of_a_star_stay_on_one_side():
    g = np.random.default_rng(0)
    kic = np.repeat(np.arange(60), 5)
    s = pd.DataFrame(dict(kic=kic, visit=0, star=np.arange(300), fast_rotator=False, synchronised=False, binary=False))
    own = g.normal(size=60)[kic]  # known to nobody but the star itself
    for c in ('bp_rp0', 'abs_g0', 'teff_obs', 'loglum_obs'): s[c] = own
    code = np.eye(60)[kic]  # features that name the star
    out = al.frozen_scores(code, PairSet(torch.zeros(300, 1), torch.zeros(300, 1), torch.zeros(300, 6), s), 1)
    assert out['bp_rp_r2'] < .1


def test_runs_are_kept(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(al, 'umap_2d', lambda x, seed: np.asarray(x, float)[:, :2])  # the map itself is tested elsewhere
    t = al.run_all('smoke', tmp_path, folder, (42,), 1, ('VICReg',))
    assert t.conditioned.tolist() == [False, True] and t.binary_auc.notna().all() and t.losses.map(len).eq(1).all()
    before = (tmp_path/'runs.jsonl').read_text()
    al.run_all('smoke', tmp_path, folder, (42,), 1, ('VICReg',))
    assert (tmp_path/'runs.jsonl').read_text() == before
    monkeypatch.setattr(al, 'run', lambda *o: 1/0)
    assert len(al.run_all('smoke', tmp_path, folder, (42,), 1, ('VICReg', 'DESA'))) == 2 and 'DESA, without labels, seed 42: division by zero' in capsys.readouterr().out
    made = al.collect(tmp_path, folder)
    stars, maps = pd.read_parquet(tmp_path/'desa_stars.parquet'), pd.read_parquet(tmp_path/'desa_map.parquet')
    assert {p.name for p in made} >= {'desa_runs.csv', 'desa_losses.csv', 'desa_map.parquet', 'desa_age.parquet'} and len(maps) == 2*len(stars)


def test_a_folder_of_results_comes_first(tmp_path, monkeypatch):
    monkeypatch.setenv('STELLAR_NB_RESULTS', str(tmp_path))
    assert result_path('desa_tuning.csv').parent != tmp_path
    (tmp_path/'desa_tuning.csv').write_text('x\n')
    assert result_path('desa_tuning.csv') == tmp_path/'desa_tuning.csv'
    with pytest.raises(FileNotFoundError): result_path('nothing.csv')


def test_files_that_do_not_belong_together(e, tmp_path):
    save_pairs(e.test, tmp_path/'a.safetensors')
    e.test.stars.head(3).to_parquet(tmp_path/'a.parquet')
    with pytest.raises(BadInput, match='rows of features'): load_pairs(tmp_path/'a.safetensors')


def test_commands_are_explained(capsys):
    with pytest.raises(SystemExit) as stop: al.main(['--help'])
    assert stop.value.code == 0 and 'runs.jsonl' in capsys.readouterr().out
