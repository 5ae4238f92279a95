"Classifiers: calibration, missing modalities, saving, and the recipe on the mock sky"
import json

import numpy as np, pandas as pd, pytest, torch

from stellar_nb.classifier import CASES, ClassModel, calibrate_logits, case_of, class_rows, classify, has_gaia, to_probabilities
from stellar_nb.core import BadInput, generator, seed_everything
from stellar_nb.data.catalog import Vocabulary
from stellar_nb.data.gaia import GAIA_COLUMNS, GaiaInput
from stellar_nb.data.spectra import Spectrum
from stellar_nb.mock.sky import draw_sky, sky_spectra
from stellar_nb.mock.spectra import LAMOST_WAVE
from stellar_nb.models.mamba_fusion import StarClassifierConfig, StarClassifierFusion
from stellar_nb.pretrained import load_pretrained, save_pretrained
from stellar_nb.recipes.lamost import LAMOST_PREP


@pytest.fixture(scope='module')
def stars():
    s = draw_sky(6, generator(0))
    flux,ivar = sky_spectra(s, generator(1), noise=True)
    spectra = [Spectrum(LAMOST_WAVE.numpy(), f.double().numpy(), i.double().numpy(), i.numpy() == 0, rv=float(v), snr=50.) for f,i,v in zip(flux, ivar, s.rv1)]
    return spectra, s[list(GAIA_COLUMNS)].reset_index(drop=True)


@pytest.fixture(scope='module')
def model():
    seed_everything(0)
    v = Vocabulary.of(('MS*', 'Ev*', 'PM*'))
    gaia = GaiaInput.fit(draw_sky(300, generator(2))[list(GAIA_COLUMNS)], drop=('ra', 'dec'))
    return ClassModel(StarClassifierFusion(StarClassifierConfig.laptop(classes=3, names=v.names, features=gaia.width)), LAMOST_PREP, gaia, v, {'both': ((1., 2., .5), (0., 1., 0.))}, 'a card')


def columns(t): return t[[k for k in t if k.startswith('p_')]].to_numpy()


def test_saved_and_loaded_it_says_the_same(model, stars, tmp_path):
    again = load_pretrained(save_pretrained(model, tmp_path/'m'))
    assert (again.vocabulary, again.gaia, again.prep, again.calibration, again.card, again.name) == (model.vocabulary, model.gaia, model.prep, model.calibration, 'a card', 'm')
    pd.testing.assert_frame_equal(classify(model, *stars), again.classify(*stars))


def test_damaged_folder_is_named(model, tmp_path):
    folder = save_pretrained(model, tmp_path/'m')
    o = json.loads((folder/'preprocessing.json').read_text()); del o['gaia']
    (folder/'preprocessing.json').write_text(json.dumps(o))
    with pytest.raises(BadInput, match="m: not a readable model .*gaia"): load_pretrained(folder)


def test_what_is_missing_does_not_matter(model, stars):
    spectra,gaia = stars
    blank = gaia.copy(); blank.loc[:] = np.nan
    alone = classify(model, spectra)
    np.testing.assert_allclose(columns(classify(model, spectra, blank)), columns(alone), atol=1e-6)
    assert (alone.modalities == 'spectrum').all()
    dead = [Spectrum(s.wave, s.flux, 0*s.ivar, np.ones_like(s.mask), snr=50.) for s in spectra]
    only = classify(model, None, gaia)
    with_dead = classify(model, dead, gaia)
    np.testing.assert_allclose(columns(with_dead), columns(only), atol=1e-6)
    assert with_dead['flags'].str.contains('no_coverage').all() and not only['flags'].str.contains('no_coverage').any()
    none = classify(model, dead)
    assert (none.modalities == '').all() and np.isnan(columns(none)).all() and (none.classes == '').all() and (none.top1 == '').all()


def test_neighbours_in_the_batch_do_not_matter(model, stars):
    spectra,gaia = stars
    both = classify(model, spectra, gaia)
    mixed = gaia.copy(); mixed.iloc[3] = np.nan
    some = classify(model, [None, *spectra[1:]], mixed)
    keep = [1, 2, 4, 5]
    np.testing.assert_allclose(columns(some)[keep], columns(both)[keep], atol=1e-5)
    np.testing.assert_allclose(columns(some)[3], columns(classify(model, spectra[3:4]))[0], atol=1e-5)


def test_impossible_values_are_missing(model, stars):
    "The rest of the row is used, the flag says so; NaN in `problem` is no problem"
    spectra,gaia = stars
    rows = gaia.copy(); rows.loc[0, 'parallax_error'] = np.nan
    out = classify(model, spectra, rows.assign(problem=['parallax_error is -1', np.nan, None, '', '', 'ra is 481']))
    assert (out.modalities == 'spectrum+gaia').all() and out['flags'].str.contains('gaia_problem').tolist() == [True, False, False, False, False, True]
    np.testing.assert_array_equal(columns(out), columns(classify(model, spectra, rows)))
    assert np.abs(columns(out)[0]-columns(classify(model, spectra, gaia))[0]).max() > 0


def test_no_stars_no_rows(model, stars):
    want = classify(model, *stars).columns.tolist()
    for args in (([], stars[1][:0]), ([],), (None, stars[1][:0])):
        out = classify(model, *args)
        assert len(out) == 0 and out.columns.tolist() == want and out.classes.dtype == classify(model, *stars).classes.dtype


@pytest.mark.parametrize('only', ['spectrum', 'gaia'])
def test_one_modality_counts_what_it_reads(model, stars, only):
    "With both given, the calibration is that of the one that it reads"
    net = StarClassifierFusion(StarClassifierConfig.laptop(classes=3, names=model.vocabulary.names, features=model.gaia.width, modalities=(only,)))
    one = ClassModel(net, model.prep, model.gaia, model.vocabulary, {only: ((0.,)*3, (1.,)*3)})
    out = classify(one, *stars)
    assert (out.modalities == only).all() and np.allclose(columns(out), torch.tensor(1.).sigmoid())
    other = classify(one, None, stars[1]) if only == 'spectrum' else classify(one, stars[0])
    assert (other.modalities == '').all() and np.isnan(columns(other)).all()


def test_flags_are_no_measurement(model, stars):
    "A row with nothing but flags is no Gaia row, nor one with nothing but the positions that the model does not read"
    rows = stars[1].copy()
    rows.loc[0, [k for k in GAIA_COLUMNS if not k.startswith('flag')]] = np.nan
    rows.loc[1, [k for k in GAIA_COLUMNS if not k.startswith('flag') and k not in ('ra', 'dec')]] = np.nan
    assert has_gaia(model.gaia, model.gaia(rows)[1]).tolist() == [False]*2+[True]*4


def test_positions_that_were_left_out_have_no_say(model, stars):
    spectra,gaia = stars
    np.testing.assert_array_equal(columns(classify(model, spectra, gaia.assign(ra=1., dec=-80.))), columns(classify(model, spectra, gaia)))


def test_calibration_is_that_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression
    torch.manual_seed(0)
    z = torch.randn(4000, 2)*3
    y = (torch.rand_like(z) < (.4*z - 1).sigmoid()).float()
    slope,offset = calibrate_logits(z, y, pull=1e-6)
    for j in range(2):
        lr = LogisticRegression(C=1e9).fit(z[:, [j]], y[:, j])
        assert abs(slope[j]-lr.coef_[0, 0]) < 1e-3 and abs(offset[j]-lr.intercept_[0]) < 1e-3


def test_calibration_of_a_class_without_stars_stays_put():
    slope,offset = calibrate_logits(torch.randn(500, 1), torch.zeros(500, 1))
    assert slope.isfinite().all() and offset.isfinite().all() and offset < 0


def test_each_case_has_its_own_calibration(model):
    z = torch.zeros(4, 3)
    p = to_probabilities(model, z, torch.tensor([0, 1, 2, -1]))
    torch.testing.assert_close(p[0], torch.tensor([0., 1., 0.]).sigmoid())
    assert (p[1] == .5).all() and p[3].isnan().all()
    assert case_of(torch.tensor([[1, 1], [1, 0], [0, 1], [0, 0]]).bool()).tolist() == [0, 1, 2, -1] and CASES == ('both', 'spectrum', 'gaia')


def test_rows_name_the_most_probable():
    t = class_rows(Vocabulary.of(('a', 'b', 'c')), torch.tensor([[.2, .9, .6], [torch.nan]*3]))
    assert t.classes.tolist() == ['b|c', ''] and t.top1.tolist() == ['b', ''] and t.p2[0] == pytest.approx(.6) and np.isnan(t.p1[1])
    single = class_rows(Vocabulary.of(('a', 'b'), single=True), torch.tensor([[.45, .4]]))
    assert single.classes[0] == 'a'


def test_shipped_model_knows_its_sky():
    try: model = load_pretrained('fusion_sky')
    except BadInput: pytest.skip('the model is not shipped')
    from stellar_nb.eval.classes import scores
    from stellar_nb.recipes.sky import sky_probabilities, sky_stars
    y = sky_stars(600)[4].numpy()
    auroc = {k: scores(sky_probabilities(model, 600, 'test', k).numpy(), y)['auroc'] for k in CASES}
    assert auroc['both'] > .93 and auroc['both'] > auroc['spectrum'] > auroc['gaia'] > .7
