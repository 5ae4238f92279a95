"Types of real stars: targets, folds, new heads, missing modalities, the comparison itself"
import numpy as np, pandas as pd, pytest, torch

from stellar_nb.classifier import ClassModel
from stellar_nb.core import package_data
from stellar_nb.data.catalog import Vocabulary, leaks, stratified_folds
from stellar_nb.data.gaia import GAIA_COLUMNS, GaiaInput, to_mag
from stellar_nb.models.mamba_fusion import MODALITIES, StarClassifierConfig, StarClassifierFusion
from stellar_nb.recipes.lamost import LAMOST_PREP
from stellar_nb.recipes.sky_real import *
from stellar_nb.recipes.sky_real import TypedStars

KEEP = tuple(k for k in GAIA_COLUMNS if k not in ('ra', 'dec'))

def small_model(gaia):
    torch.manual_seed(0)
    c = StarClassifierConfig.laptop(features=16, classes=4, names=tuple('abcd'), width=16, depth=1, patch=344, d_state=8, headdim=8, heads=2)
    return ClassModel(StarClassifierFusion(c).eval(), LAMOST_PREP, gaia, Vocabulary.of('abcd'), {})

def toy_stars(n=80, seed=1):
    "Warm and cool stars: another spectrum, another colour; the spectra noisy enough that neither tells all"
    rng = np.random.default_rng(seed)
    cool = rng.random(n) < .5
    x = torch.tensor(rng.normal(0, .5, (n, LAMOST_PREP.length)) + np.where(cool, 1, -1)[:,None]*np.sin(np.arange(LAMOST_PREP.length)/50)).float()
    gaia = pd.DataFrame({k: rng.lognormal(0, .3, n) for k in GAIA_COLUMNS}).assign(flagnopllx=0., flagnoflux=0.)
    gaia['phot_bp_mean_flux'] = gaia.phot_rp_mean_flux*np.where(cool, .4, 1.5)
    types = np.where(cool, 'K1 V', 'F5 III')
    return TypedStars(np.arange(n), np.arange(n), types, x, torch.ones(x.shape, dtype=torch.bool), gaia, *mk_targets(types.tolist()))

@pytest.fixture(scope='module')
def toy(): return toy_stars()

@pytest.fixture(scope='module')
def model(toy): return small_model(GaiaInput.fit(toy.gaia, ('ra', 'dec')))

@pytest.fixture(scope='module')
def miles():
    if (s := miles_stars()) is None: pytest.skip('no folder miles of real data (STELLAR_NB_DATA)')
    return s

@pytest.fixture(scope='module')
def lamost():
    if (s := lamost_stars()) is None: pytest.skip('no folder lamost_dr10 of real data (STELLAR_NB_DATA)')
    return s

def test_targets_unknown_is_nan():
    y,v = mk_targets(['G2 V', 'K3Ibvar', 'A1', 'S4', 'M0Ia', None], least=1)
    assert v.names == ('A', 'G', 'K', 'M', 'I', 'V')
    assert y[1].tolist() == [0, 0, 1, 0, 1, 0] and y[4].tolist() == [0, 0, 0, 1, 1, 0]
    assert y[2,:4].tolist() == [1, 0, 0, 0] and y[2,4:].isnan().all() and y[[3, 5]].isnan().all()

def test_targets_drop_rare(): assert mk_targets(['G2 V']*5 + ['O9 V']*4)[1].names == ('G', 'V')

@pytest.mark.parametrize('name,labels', {'HD186408': {'G', 'V'}, 'HD225212': {'K', 'I'}, 'HD039801': {'M', 'I'}, 'HD085503': {'K', 'III'}, 'HD188512': {'G', 'IV'}, 'HD087737': {'A', 'I'}}.items())
def test_known_stars(miles, name, labels): # 16 Cyg A, a supergiant, Betelgeuse, μ Leo, β Aql, η Leo
    row = miles.y[list(miles.star).index(name)].nan_to_num()
    assert {k for k,v in zip(miles.vocabulary.names, row) if v} == labels

def test_miles_spectra(miles):
    assert len(set(miles.star)) == len(miles) and miles.x.shape[1] == LAMOST_PREP.length
    assert not miles.x[~miles.good].any() and abs(miles.x[miles.good].std() - 1) < .05
    from stellar_nb.data.preprocess import grid
    assert not miles.good[:,(grid(LAMOST_PREP) > 7415).numpy()].any()

def test_spectra_and_rows_belong_together(miles):
    "Hα is deep in A stars and weak in K stars, BP - RP the other way round"
    from stellar_nb.data.preprocess import grid
    core = miles.x[:,(abs(grid(LAMOST_PREP) - 6564.6) < 3).numpy()].mean(1).numpy()
    colour = to_mag(miles.gaia.phot_bp_mean_flux, 'bp') - to_mag(miles.gaia.phot_rp_mean_flux, 'rp')
    a,m = ((miles.y[:,miles.vocabulary.names.index(k)] == 1).numpy() for k in 'AM')
    assert np.median(core[a]) < np.median(core[m]) - 1 and np.nanmedian(colour[a]) < .3 and np.nanmedian(colour[m]) > 1.8

def test_farther_keeps_what_a_star_is():
    t = toy_stars(20).gaia
    f = farther(t, np.full(20, 7.))
    absolute = lambda d: to_mag(d.phot_g_mean_flux, 'g') + 5*np.log10(d.parallax)
    assert np.allclose(absolute(t), absolute(f)) and np.allclose(t.pmra/t.parallax, f.pmra/f.parallax) and np.allclose(t.parallax/t.parallax_error, f.parallax/f.parallax_error)
    assert np.allclose(t.phot_bp_mean_flux/t.phot_rp_mean_flux, f.phot_bp_mean_flux/f.phot_rp_mean_flux) and (f[['ra', 'dec', 'flagnoflux']] == t[['ra', 'dec', 'flagnoflux']]).all().all()

@pytest.mark.parametrize('which', ['miles', 'lamost'])
def test_no_leak(which, request):
    s = request.getfixturevalue(which)
    folds = stratified_folds(s.y, s.star, 5)
    assert sorted(np.concatenate([b for _,b in folds])) == list(range(len(s)))
    for a,b in folds:
        assert not len(leaks(s.star[a], s.star[b]))
        if which == 'miles': assert (s.y[b] == 1).any(0).all()

def test_lamost_subclasses(lamost):
    assert len(lamost) == 1411 and len(set(lamost.star)) == 1403 and len(lamost.vocabulary) == 27
    assert list(lamost.vocabulary.names) == sorted(lamost.vocabulary.names, key=lambda o: ('OBAFGKM'.index(o[0]), int(o[1])))
    assert (lamost.y.sum(1) == 1).all()

@pytest.mark.parametrize('modalities', [MODALITIES, ('spectrum',), ('gaia',)])
def test_head_swap_keeps_the_rest(model, toy, modalities):
    old,new = model.model.state_dict(),new_net(model, toy.vocabulary, modalities)
    assert new.head.weight.shape == (4, 16*len(modalities)) and new.config.names == toy.vocabulary.names
    for k,v in new.state_dict().items():
        if not k.startswith(('head', 'norm')): assert torch.equal(v, old[k]), k
    at = slice(16, 32) if modalities == ('gaia',) else slice(0, 16*len(modalities))
    assert torch.equal(new.norm.weight, old['norm.weight'][at])

def test_random_start_and_unknown_start(model, toy):
    assert not torch.equal(new_net(model, toy.vocabulary, start='none').tokens['gaia'].weight, model.model.tokens['gaia'].weight)
    with pytest.raises(ValueError, match="not 'zero'"): new_net(model, toy.vocabulary, start='zero')

def test_learns_and_is_reproducible(model, toy):
    a,b = stratified_folds(toy.y, toy.star, 4)[0]
    before = {k: v.clone() for k,v in model.model.state_dict().items()}
    one,two = (predict_types(adapt(model, toy[a], epochs=6, lr=5e-3), toy[b]) for _ in range(2))
    assert np.array_equal(one, two)
    assert aurocs(one, toy.y[b].numpy()).min() > .9
    assert all(torch.equal(v, before[k]) for k,v in model.model.state_dict().items())

def test_without_gaia(model, toy):
    from dataclasses import replace
    blind = replace(toy, gaia=toy.gaia*np.nan)
    new = adapt(model, toy[np.arange(40)], epochs=1)
    x,_,gx,_,has = star_inputs(blind, new.gaia)
    p = predict_types(new, blind)
    assert has.tolist() == [[True, False]]*len(toy) and np.isfinite(p).all()
    assert np.allclose(p, predict_types(new, replace(blind, gaia=blind.gaia.assign(flagnopllx=1.))))
    assert not np.allclose(p, predict_types(new, toy))

def test_single_label(model, toy):
    from dataclasses import replace
    v = Vocabulary.of(('F5 III', 'K1 V'), single=True)
    s = replace(toy, y=v.encode(toy.type), vocabulary=v)
    for m in ('fusion', 'logistic regression', 'shares of the classes'): assert np.allclose(fold_types(m, model, s[np.arange(60)], s[np.arange(60, 80)], epochs=1).sum(1), 1, atol=1e-5)
    with pytest.raises(ValueError, match="'magic' is none of"): fold_types('magic', model, s, s)

def test_scores():
    y = np.array([[1, 0, 1, 0], [0, 1, np.nan, np.nan], [1, 0, 0, 1], [0, 1, 1, 0]])
    s = mk_scores(np.nan_to_num(y)*.8 + .1, y, ('F', 'K', 'III', 'V'))
    assert s['auroc'] == s['macro_f1'] == s['micro_f1'] == s['letter_right'] == s['luminosity_right'] == 1
    s = mk_scores(np.full(y.shape, .4), y, ('F', 'K', 'III', 'V'))
    assert s['auroc'] == .5 and s['macro_f1'] == s['micro_f1'] == 0
    assert middle(np.array([[.6, .2, .2], [.3, .3, .4], [.1, .2, .7]])).tolist() == [0, 1, 2]

def test_command_line_refuses(capsys):
    with pytest.raises(SystemExit): main(['--only', 'kepler'])
    assert "invalid choice: 'kepler'" in capsys.readouterr().err

def test_stored_tables_agree():
    t,said = pd.read_csv(package_data('results', 'miles_classes.csv')),pd.read_csv(package_data('results', 'miles_probabilities.csv'), dtype=dict(id=str))
    for r,one in said.groupby('repeat'):
        y,v = mk_targets(one.type.tolist())
        said.loc[one.index, 'auroc'] = mk_scores(one[list(v.names)].to_numpy(), y.numpy(), v.names)['auroc']
    assert abs(said.groupby('repeat').auroc.first().mean() - t[(t.method == 'fusion') & (t.metric == 'auroc')].value.iloc[0]) < 2e-3
