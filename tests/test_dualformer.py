"""Aligning spectra and light curves: counts, what the loss can see, bases, switches, collapse, and the training of every method."""
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from fastai.torch_core import to_float

from stellar_nb.core import generator
from stellar_nb.data.loaders import unique_star_batches
from stellar_nb.models.dualformer import DualFormer, DualFormerConfig, eigenbasis
from stellar_nb.models.towers import TwoTowers, TwoTowersConfig, count_parameters
from stellar_nb.objectives.alignment import Aligned, alignment_loss, covariance_loss, dual_loss, info_nce, variance_loss, vicreg
from stellar_nb.train.momentum import METHODS, aligner_loss, paired_stars, train_aligner

TINY = DualFormerConfig.tiny()
BARE = replace(TINY, labels=())


def batch(n=12, config=TINY, seed=0, dtype=torch.float64):
    "(spectra, curve, labels) with holes in the labels"
    g = generator(seed)
    x1, x2, y = (torch.randn(n, k, generator=g, dtype=dtype) for k in (config.spectra, config.curve, len(config.labels)))
    y[torch.rand(y.shape, generator=g) < .3] = torch.nan
    return x1, x2, y


def dual(o): return dual_loss(o.z1, o.p1, o.z2, o.p2)


# counts

@pytest.mark.parametrize('changes, count', [({}, 10_623_524), (dict(labels=()), 10_620_416), (dict(missing='learned'), 10_623_530), (dict(attention='self'), 10_623_524),
                                            (dict(attention='cross'), 10_623_524), (dict(projection='same'), 10_623_524)])
def test_published_count(changes, count):
    assert count_parameters(DualFormer, DualFormerConfig.paper(**changes)) == count


@pytest.mark.parametrize('name', ['paper', 'laptop'])
@pytest.mark.parametrize('changes', [{}, dict(condition='output'), dict(branches=('spectra',)), dict(branches=('curve',)), dict(predictor=True), dict(labels=())])
def test_towers_are_at_least_as_large(name, changes):
    config = getattr(DualFormerConfig, name)()
    want, got = count_parameters(DualFormer, config), count_parameters(TwoTowers, TwoTowersConfig.like(config, **changes))
    assert want <= got < 1.05*want


# what the loss sees

@pytest.mark.parametrize('projection', ['transpose', 'same'])
def test_dual_loss_sees_the_symmetric_part(projection):
    net = DualFormer(replace(TINY, projection=projection)).double()
    x = batch()
    with torch.no_grad():
        before, A = dual(net(*x)), net.A.weight.clone()
        net.A.weight.copy_(A.T)
        torch.testing.assert_close(dual(net(*x)), before)
        net.A.weight.copy_((A + A.T)/2)
        torch.testing.assert_close(dual(net(*x)), before)
        net.A.weight.copy_((A - A.T)/2)
        assert dual(net(*x)) < 1e-20


def test_transpose_or_same_differ_in_covariances_only():
    one, two = DualFormer(TINY).double(), DualFormer(replace(TINY, projection='same')).double()
    two.load_state_dict(one.state_dict())
    a, b = one(*batch()), two(*batch())
    torch.testing.assert_close(dual(a), dual(b))
    torch.testing.assert_close(covariance_loss(a.p1, a.p1), covariance_loss(b.p1, b.p1))
    assert not torch.isclose(covariance_loss(a.p2, a.p2), covariance_loss(b.p2, b.p2))


def test_trivial_minima():
    net = DualFormer(BARE).double()
    x = batch(config=BARE)
    with torch.no_grad():
        net.A.weight.zero_()
        assert alignment_loss(net(*x)) == 0 and alignment_loss(net(*x), variance=1) > .9
        net.A.weight.normal_()
        net.norm1.weight.zero_(), net.norm2.weight.zero_(), net.norm1.bias.normal_(), net.norm2.bias.copy_(net.norm1.bias) # the same z for all
        assert alignment_loss(net(*x)) < 1e-20 and alignment_loss(net(*x), variance=1) > .9


def test_dual_loss_collapses_without_variance():
    "A few steps on pairs that share four numbers: the scale of p goes down with the loss, and the hinge holds it"
    def run(variance):
        torch.manual_seed(0)
        net, g = DualFormer(replace(BARE, positions='own')), generator(1)
        mix = [torch.randn(4, k, generator=g) for k in (10, 6)]
        opt, first = torch.optim.AdamW(net.parameters(), 1e-2), None
        for _ in range(80):
            h = torch.randn(64, 4, generator=g)
            out = net(h@mix[0], h@mix[1])
            first = first or out.p1.std(0).mean().item()
            loss = alignment_loss(out, variance=variance)
            opt.zero_grad(), loss.backward(), opt.step()
        return out.p1.std(0).mean().item()/first, alignment_loss(out).item()
    (bare, loss), (held, _) = run(0.), run(10.)
    assert loss < .01 and bare < .3, (bare, loss)
    assert held > 2*bare, (bare, held)


@pytest.mark.parametrize('n', [1, 2])
def test_small_batches_give_finite_losses(n):
    out = Aligned(*(torch.randn(n, 5, generator=generator(i)).requires_grad_(True) for i in range(4)))
    for loss in (alignment_loss(out), alignment_loss(out, variance=1), vicreg(out.p1, out.p2), info_nce(out.p1, out.p2), variance_loss(out.p1)):
        assert loss.isfinite()
        loss.backward()
    assert all(o.grad.isfinite().all() for o in out)


def test_constant_batch_has_finite_gradients():
    out = Aligned(*(torch.ones(6, 5, requires_grad=True) for _ in range(4)))
    (alignment_loss(out, variance=1) + vicreg(out.p1, out.p2) + info_nce(out.p1, out.p2)).backward()
    assert all(o.grad.isfinite().all() for o in out)


def test_half_precision_does_not_overflow():
    z = 100*torch.randn(64, 8, generator=generator(0))
    with torch.autocast('cpu', torch.bfloat16): assert torch.isclose(covariance_loss(z, z), covariance_loss(z.double(), z.double()).float(), rtol=1e-4)


@pytest.mark.parametrize('net', [DualFormer(TINY), TwoTowers(TwoTowersConfig.like(TINY))])
def test_losses_under_mixed_precision(net):
    "As fastai does it: the network under autocast, its answer to full precision, the loss still under autocast"
    x = batch(32, dtype=torch.float32)
    with torch.autocast('cpu', torch.bfloat16):
        out = to_float(net(*x))
        assert isinstance(out, Aligned) and out.p1.dtype == torch.float
        losses = alignment_loss(out, variance=1), vicreg(out.p1, out.p2), info_nce(out.p1, out.p2, .05)
    for got, f in zip(losses, (lambda o: alignment_loss(o, variance=1), lambda o: vicreg(o.p1, o.p2), lambda o: info_nce(o.p1, o.p2, .05))):
        torch.testing.assert_close(got, f(Aligned(*(o.double() for o in out))).float(), rtol=1e-3, atol=1e-3)
    sum(losses).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


# bases

@pytest.mark.parametrize('A', [torch.randn(21, 21, generator=generator(0)), torch.eye(6), torch.zeros(4, 4), torch.diag(torch.tensor([3., -2, 1])),
                               torch.linalg.matrix_exp(torch.tensor([[0., 1], [-1, 0]]))], ids=['random', 'one', 'zero', 'diagonal', 'rotation'])
def test_bases_have_full_rank(A):
    for kind in ('real', 'symmetric', 'singular', 'none'): assert torch.linalg.matrix_rank(eigenbasis(A, kind)) == len(A), kind


def test_real_basis_is_made_of_invariant_planes():
    A = torch.randn(9, 9, generator=generator(2), dtype=torch.float64)
    V, lam = eigenbasis(A), torch.linalg.eigvals(A)
    B = torch.linalg.solve(V, A@V)
    assert (B - B.triu(-1).tril(1)).abs().max() < 1e-10
    torch.testing.assert_close(torch.linalg.eigvals(B).abs().sort().values, lam.abs().sort().values)
    assert torch.linalg.matrix_rank(eigenbasis(A, 'naive')) == (lam.imag >= -1e-12).sum() < 9


def test_basis_is_reproducible():
    "The order of the rows and columns of A, which makes LAPACK choose other signs and phases, does not matter"
    A, order = torch.randn(12, 12, generator=generator(3), dtype=torch.float64), torch.randperm(12, generator=generator(4))
    for kind in ('real', 'symmetric', 'singular'):
        torch.testing.assert_close(eigenbasis(A[order][:, order], kind), eigenbasis(A, kind)[order], atol=1e-8, rtol=0)


def test_linear_probe_does_not_depend_on_the_basis():
    net, x = DualFormer(DualFormerConfig.tiny(labels=('teff',))).double(), batch(80, DualFormerConfig.tiny(labels=('teff',)))
    t = torch.randn(80, 1, generator=generator(1), dtype=torch.float64)
    answers = []
    for kind in ('none', 'real', 'symmetric', 'singular', 'naive'):
        f = net.features(*x, kind).detach()
        X = torch.cat([f, torch.ones(80, 1)], 1)
        answers.append(X@torch.linalg.lstsq(X, t, driver='gelsd').solution)
    for o in answers[1:4]: torch.testing.assert_close(o, answers[0], atol=1e-8, rtol=0)
    assert (answers[4] - answers[0]).abs().max() > 1e-3


# switches

@pytest.mark.parametrize('attention, mixes', [('both', True), ('self', False), ('cross', True)])
def test_attention_switch(attention, mixes):
    net = DualFormer(replace(TINY, attention=attention)).double()
    x1, x2, y = batch()
    assert torch.equal(net(x1, x2, y).z1, net(x1, 0*x2, y).z1) != mixes


@pytest.mark.parametrize('net', [DualFormer(TINY), TwoTowers(TwoTowersConfig.like(TINY)), TwoTowers(TwoTowersConfig.like(TINY, condition='output')), DualFormer(replace(TINY, missing='learned'))])
def test_missing_labels_and_silent_branches(net):
    x1, x2, y = batch(dtype=torch.float32)
    net.eval()
    for x in ((x1, x2, y), (x1, x2, y*torch.nan), (x1, x2, None), (0*x1, x2, y), (x1, 0*x2, y)):
        assert all(o.isfinite().all() for o in (*net(*x), net.features(*x)))
    torch.testing.assert_close(net.features(x1, x2, y*torch.nan), net.features(x1, x2))
    assert not torch.equal(net.features(x1, x2, y), net.features(x1, x2))
    with pytest.raises(ValueError, match='6 labels are expected'): net(x1, x2, y[:, :2])


@pytest.mark.parametrize('token', [1, 3, 4, 16])
@pytest.mark.parametrize('positions', ['rotary', 'learned', 'own'])
def test_tokens_of_any_size(token, positions):
    net = DualFormer(replace(TINY, token=token, positions=positions)).double()
    x1, x2, y = batch()
    x1.requires_grad_(True), x2.requires_grad_(True)
    alignment_loss(net(x1, x2, y)).backward()
    for x in (x1, x2): assert (x.grad.abs().sum(0) > 0).all() # every feature counts


def test_shared_tokens_hardly_know_their_place():
    "Without places, two features that trade places far from the ends change z much less than with them"
    def moved(positions):
        torch.manual_seed(0)
        net = DualFormer(DualFormerConfig.tiny(spectra=40, token=1, positions=positions, labels=())).double()
        x, c = torch.randn(16, 40, generator=generator(1), dtype=torch.float64), torch.zeros(16, 6, dtype=torch.float64)
        other = x.clone()
        other[:, [19, 20]] = x[:, [20, 19]]
        a, b = net.represent(x, c)[0], net.represent(other, c)[0]
        return ((a - b).norm()/(a - a.mean(0)).norm()).item()
    assert moved('rotary') < .1*moved('own')


def test_configs_round_trip_and_refuse():
    for c in (DualFormerConfig.paper(), DualFormerConfig.laptop(missing='learned'), TwoTowersConfig.like(TINY, branches=('curve',))): assert type(c).from_json(c.to_json()) == c
    for bad in (dict(token=0), dict(attention='none'), dict(labels='teff'), dict(missing='mean'), dict(basis='real')):
        with pytest.raises((ValueError, TypeError)): DualFormerConfig(**bad)
    with pytest.raises(ValueError, match='8 heads do not divide a width of 100'): DualFormer(DualFormerConfig(width=100))


# training

def pairs(n=40):
    star = torch.arange(n).repeat_interleave(2)
    h = torch.randn(n, 3, generator=generator(0))[star]
    return (h@torch.randn(3, 10, generator=generator(1)), h@torch.randn(3, 6, generator=generator(2)), torch.full((2*n, 6), torch.nan)), star


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('unique', [False, True])
def test_every_method_trains(method, unique):
    xb, star = pairs()
    net = TwoTowers(TwoTowersConfig.like(TINY, predictor=method == 'simsiam'))
    before = [p.clone() for p in net.parameters()]
    h = train_aligner(net, paired_stars(xb, star, 16, unique=unique), paired_stars(xb, star, fixed=True), method, epochs=2, lr=1e-3, low=0)
    assert len(h) == 2 and np.isfinite(h[['train_loss', 'valid_loss', 'spread', 'rank']].to_numpy()).all()
    assert not net.training and any((a != b).any() for a, b in zip(before, net.parameters()))


def test_a_run_is_reproducible():
    xb, star = pairs()
    def run():
        torch.manual_seed(3)
        net = DualFormer(TINY)
        train_aligner(net, paired_stars(xb, star, 16), paired_stars(xb, star, fixed=True), epochs=1, low=0)
        return net.features(*xb)
    torch.testing.assert_close(run(), run())


def test_names_are_handed_to_the_loss():
    x = torch.randn(4, 3, generator=generator(0)).repeat_interleave(2, 0)
    out, star = Aligned(x, x, x, x), torch.arange(4).repeat_interleave(2)
    assert aligner_loss('clip', names=True)(out, star) < aligner_loss('clip')(out, star) - .5
    moco = [x, x, x, x, star]
    assert aligner_loss('moco', names=True)(out, star, *moco) < aligner_loss('moco')(out, star, *moco) - .5


def test_monitor_warns_when_projections_collapse():
    xb, star = pairs()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        train_aligner(DualFormer(BARE), paired_stars((*xb[:2], xb[2][:, :0]), star, 16), paired_stars((*xb[:2], xb[2][:, :0]), star, fixed=True), epochs=1, low=2.)
    assert any('collapsed' in str(o.message) for o in said)


def test_unique_batches_reach_every_visit():
    star = np.repeat(np.arange(50), 3)
    seen = torch.cat([torch.cat(unique_star_batches(star, 16, generator(i))) for i in range(40)])
    assert set(seen.tolist()) == set(range(150))
    assert all(len(set(star[b.numpy()])) == len(b) for b in unique_star_batches(star, 16, generator(0)))
