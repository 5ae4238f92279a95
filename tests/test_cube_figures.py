"""The experiments with cubes: their stored table, the rival that stacks images, and what its scores are made of."""
import pandas as pd
import pytest
import torch
from sklearn import linear_model

from stellar_nb.blocks.cubepatch import cube_patches, join_patches, mask_tokens
from stellar_nb.core import generator, package_data
from stellar_nb.data.fields import FieldScale
from stellar_nb.recipes.cube import PRESETS, Ridge, draw_fields, network_of
from stellar_nb.recipes.cube_experiments import CLASSIC, LABELLED, MODALITIES, SHIFTS, TUNED, VARIANTS, FusedMAE, labelled, with_others


@pytest.fixture(scope='module')
def scores(): return pd.read_csv(package_data('results', 'cube_scores.csv')).fillna({'given': '', 'target': ''})


@pytest.fixture(scope='module')
def mock(): return {s: draw_fields(4, 3, 'test', s) for s in (0., 4.)}


@pytest.fixture(scope='module')
def fields(mock):
    m = mock[4.]
    return FieldScale.fit(m.cubes, m.good, m.images)(m.cubes, m.good, m.images)


@pytest.fixture(scope='module')
def net():
    torch.manual_seed(0)
    return FusedMAE(network_of()).eval()


# the table

def test_everyone_takes_part(scores):
    "Each variant and each method without a network has the same rows in three trainings, none twice"
    assert set(scores.variant) == {*VARIANTS, *CLASSIC, 'PCA + ridge'}
    sizes = scores.groupby(['variant', 'seed']).size().unstack()
    assert sizes.shape[1] == 3 and sizes.notna().all(axis=None) and (sizes.nunique(axis=1) == 1).all()
    assert not scores.duplicated(['variant', 'seed', 'measure', 'given', 'shift', 'labels', 'target']).any()


def test_scores_are_possible(scores):
    assert scores.value.notna().all() and scores.value.abs().lt(10).all()
    share = scores.measure.str.startswith('recall')
    assert scores[share].value.between(0, 1).all()
    assert scores[scores.measure.isin(['reconstruction', 'probe', 'fine-tune', 'field'])].value.lt(1).all()
    assert scores[scores.measure.str.startswith('target')].value.gt(0).all()


def test_questions_are_complete(scores):
    counts = set(PRESETS['full']['counts'])
    for k in TUNED: assert set(scores[(scores.variant == k) & (scores.measure == 'fine-tune')].labels) == counts
    for k in ('guided', 'hard fusion'):
        r = scores[(scores.variant == k) & (scores.given == '+'.join(MODALITIES))]
        for m in ('reconstruction', 'probe'): assert set(r[r.measure == m]['shift']) == set(SHIFTS)
    assert set(scores[scores.measure == 'recall@1'].variant) == {k for k, v in VARIANTS.items() if v.weight}


def test_five_find_more_than_one(scores):
    r = scores[scores.measure.str.startswith('recall')].pivot(index=['variant', 'seed', 'target'], columns='measure', values='value')
    assert (r['recall@5'] >= r['recall@1']).all()


# hard fusion

@torch.no_grad()
def test_hidden_boxes_have_no_say(net, fields):
    mask = mask_tokens(len(fields), 256, .75, generator(0))
    p = cube_patches(fields.cubes, 3, 4).scatter(1, mask.masked[..., None].expand(-1, -1, 48), 99.)
    a, b = (net(x, fields.images, fields.present, mask=mask) for x in (fields.cubes, join_patches(p, (4, 8, 8), 3)))
    torch.testing.assert_close(a.pred, b.pred, rtol=1e-4, atol=1e-4)
    assert a.masked.max() < 256 and not torch.equal(a.target, b.target)


@torch.no_grad()
def test_images_have_a_say(net, fields):
    mask = mask_tokens(len(fields), 256, .75, generator(0))
    without = fields.present & torch.tensor([True, True, False])
    a, b = (net(fields.cubes, fields.images, p, mask=mask).pred for p in (fields.present, without))
    assert (a-b).abs().max() > 1e-4


@pytest.mark.parametrize('name', MODALITIES)
def test_an_absent_image_is_zero(net, fields, name):
    absent = fields.present & torch.tensor([k != name for k in MODALITIES])
    zero = {**fields.images, name: torch.zeros_like(fields.images[name])}
    noise = {**fields.images, name: torch.full_like(fields.images[name], torch.nan)}
    x, ok = net.stack(fields.cubes, zero, fields.present, fields.good)
    for images in (fields.images, noise): assert torch.equal(net.stack(fields.cubes, images, absent, fields.good)[0], x)
    assert x.shape[1] == ok.shape[1] == net.config.bands == 12+3*len(MODALITIES)
    assert torch.equal(x[:, :12], fields.cubes) and torch.equal(ok[:, :12], fields.good) and ok[:, 12:].all()


def test_further_tokens_are_seen():
    mask = mask_tokens(3, 16, .75, generator(1))
    more = with_others(mask, 5)
    order = torch.cat([more.visible, more.masked], 1)
    assert torch.equal(order.sort(1).values, torch.arange(21).expand(3, -1))
    assert torch.equal(order.gather(1, more.restore), torch.arange(21).expand(3, -1))
    assert torch.equal(more.masked, mask.masked) and torch.equal(more.visible[:, -5:], torch.arange(16, 21).expand(3, -1))


# scores

@pytest.mark.parametrize('penalty', [.01, 1., 1000.])
def test_ridge(penalty):
    g = generator(2)
    x, new = torch.randn(60, 8, generator=g)*torch.logspace(-2, 2, 8)+3, torch.randn(9, 8, generator=g)
    y = torch.randn(60, 3, generator=g)
    m, s = x.double().mean(0), x.double().std(0)
    ref = linear_model.Ridge(alpha=penalty).fit(((x-m)/s).numpy(), y.double().numpy()).predict(((new-m)/s).numpy())
    torch.testing.assert_close(Ridge(x, y)(new, penalty), torch.from_numpy(ref).view(9, 3), rtol=1e-6, atol=1e-8)


def test_labelled_sets_are_nested():
    sets = [set(labelled(n, LABELLED, 42).tolist()) for n in (4, 16, 64, 256)]
    assert [len(s) for s in sets] == [4, 16, 64, 256]
    assert all(a < b for a, b in zip(sets, sets[1:]))
    assert set(labelled(64, LABELLED, 43).tolist()) != sets[2]


def test_a_shift_moves_the_images_only(mock):
    a, b = mock.values()
    assert torch.equal(a.cubes, b.cubes) and torch.equal(a.good, b.good) and a.fields.equals(b.fields)
    torch.testing.assert_close(a.labels, b.labels, rtol=0, atol=0, equal_nan=True)
    assert all((a.images[k]-b.images[k]).abs().nanmean() > 0 for k in MODALITIES)
