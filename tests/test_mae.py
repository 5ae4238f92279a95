"""The guided masked autoencoder of cubes: counts, patches, masks, presence, bad pixels, what the losses see, and determinism."""
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from stellar_nb.blocks.cubepatch import (CubePatches, CubePositions, bad_tokens, cube_patches, fill_bad, join_patches, mask_tokens, put_tokens,
                                         take_tokens)
from stellar_nb.core import generator
from stellar_nb.encoders.cube import CubeEncoder, CubeEncoderConfig, ImageCNN, ImageViT, pool_tokens
from stellar_nb.models.mae import GuidedMAE, GuidedMAEConfig, count_gmac
from stellar_nb.models.towers import count_parameters
from stellar_nb.objectives.contrastive import spread
from stellar_nb.objectives.mae import contrast_present, guided_loss, masked_reconstruction, normalised_pixels, recall_at_1

TINY = GuidedMAEConfig.tiny()
ALL = {'ir': 3, 'af': 2, 'thickness': 1}


def batch(n=5, config=TINY, seed=0, dtype=torch.float64):
    "(cube, images)"
    g = generator(seed)
    cube = torch.randn(n, config.bands, config.size, config.size, generator=g, dtype=dtype)
    return cube, {k: torch.randn(n, c, config.size, config.size, generator=g, dtype=dtype) for k, c in zip(config.modalities, config.channels)}


def network(seed=0, **changes):
    torch.manual_seed(seed)
    return GuidedMAE(replace(TINY, **changes)).double().eval()


def some(n=5, seed=3): return torch.rand(n, 3, generator=generator(seed)) < .6


def same(a, b):
    "All tensors of two outputs, bit by bit"
    for x, y in zip(a, b):
        if isinstance(x, dict): same(x.values(), y.values())
        else: assert (x is None and y is None) or torch.equal(x, y)


# counts

@pytest.mark.parametrize('aux, count', [('vit', 253_043_712), ('cnn', 244_432_128)])
def test_published_count(aux, count):
    assert count_parameters(GuidedMAE, GuidedMAEConfig.paper(aux=aux)) == count


def test_standalone_count():
    assert count_parameters(CubeEncoder, CubeEncoderConfig.paper()) == 114_600_192


def test_operations_follow_the_visible_tokens_and_the_modalities():
    with torch.device('meta'): net = GuidedMAE(replace(TINY, size=32, contrast='leaky'))
    none, one, two = (count_gmac(net, m) for m in ((), ('ir',), ('ir', 'af')))
    assert none < one < two
    assert count_gmac(net, share=0.) > 1.5*none
    net.config = replace(net.config, contrast='unconditioned')
    assert count_gmac(net) == none and count_gmac(net, ('ir',)) > one


# configuration

@pytest.mark.parametrize('changes, words', [
    (dict(size=10), 'pixels must divide size, and 4 does not divide 10'), (dict(bands=5), 'group must divide bands'), (dict(heads=3), 'heads must divide width'),
    (dict(decoder_heads=3), 'decoder_heads must divide decoder_width'), (dict(depth=0), 'depth must be at least 1'), (dict(channels=(3,)), '3 modalities need as many'),
    (dict(modalities=('a', 'a', 'b')), 'different words'), (dict(target='x'), 'target must be one of'), (dict(aux='x'), 'aux must be one of'), (dict(contrast='x'), 'contrast must be one of')])
def test_configs_that_do_not_fit(changes, words):
    with pytest.raises(ValueError, match=words): replace(TINY, **changes)


@pytest.mark.parametrize('name', ['paper', 'laptop', 'tiny'])
def test_configs_to_json_and_back(name):
    for kind in (CubeEncoderConfig, GuidedMAEConfig):
        config = getattr(kind, name)()
        assert kind.from_json(config.to_json()) == config
    assert getattr(GuidedMAEConfig, name)().encoder() == getattr(CubeEncoderConfig, name)()


# patches and masks

@pytest.mark.parametrize('group, pixels, shape', [(3, 16, (2, 12, 32, 48)), (1, 2, (1, 3, 4, 2)), (4, 5, (3, 4, 5, 10))])
def test_patches_are_a_strided_convolution(group, pixels, shape):
    cube = torch.randn(shape, dtype=torch.float64)
    grid = shape[1]//group, shape[2]//pixels, shape[3]//pixels
    assert torch.equal(join_patches(cube_patches(cube, group, pixels), grid, group), cube)
    emb, conv = CubePatches(group, pixels, 6).double(), nn.Conv3d(1, 6, (group, pixels, pixels), stride=(group, pixels, pixels)).double()
    conv.load_state_dict({'weight': emb.proj.weight.view(6, 1, group, pixels, pixels), 'bias': emb.proj.bias})
    torch.testing.assert_close(emb(cube), conv(cube[:, None]).flatten(2).transpose(1, 2))


@pytest.mark.parametrize('shape', [(1, 12, 30, 32), (1, 12, 32, 30), (1, 11, 32, 32)])
def test_odd_sizes_are_refused(shape):
    with pytest.raises(ValueError, match='cannot be cut into patches of 3 bands and 16×16 pixels'): cube_patches(torch.zeros(shape), 3, 16)


def test_cubes_of_another_size_are_refused():
    for shape in ((1, 4, 8, 7), (1, 4, 16, 16), (1, 5, 8, 8), (4, 8, 8)):
        with pytest.raises(ValueError, match='cubes of 4 bands and 8×8 pixels are expected'): network()(torch.zeros(shape).double())


@pytest.mark.parametrize('kind', ['joint', 'learned', 'sinusoidal'])
def test_positions_differ(kind):
    pos = CubePositions((3, 4, 5), 16, kind)(torch.zeros(1))
    assert pos.shape == (60, 16) and torch.pdist(pos.detach()).min() > .01


@pytest.mark.parametrize('share', [0., .5, .75, .99])
@pytest.mark.parametrize('holes', [False, True])
def test_mask(share, holes):
    b, n = 6, 48
    bad = torch.rand(b, n, generator=generator(1)) < torch.linspace(0, 1, b)[:, None] if holes else torch.zeros(b, n, dtype=torch.bool)
    m = mask_tokens(b, n, share, generator(0), bad if holes else None)
    order = torch.cat([m.visible, m.masked], 1)
    assert torch.equal(order.sort(1).values, torch.arange(n).expand(b, -1))
    assert torch.equal(order.gather(1, m.restore), torch.arange(n).expand(b, -1))
    for i in range(b):
        good = int((~bad[i]).sum())
        seen = m.visible[i] if m.seen is None else m.visible[i, m.seen[i]]
        want = m.masked[i] if m.counts is None else m.masked[i, m.counts[i]]
        assert not bad[i, seen].any() and not bad[i, want].any()
        assert (len(seen), len(want)) == (good - int(share*good + 1e-6), int(share*good + 1e-6))
        assert torch.equal(seen, seen.sort().values)


def test_masks_are_fair_and_repeat():
    m = mask_tokens(4000, 8, .75, generator(0))
    shown = torch.zeros(4000, 8).scatter_(1, m.visible, 1.).mean(0)
    assert (shown - .25).abs().max() < .03
    assert torch.equal(m.visible, mask_tokens(4000, 8, .75, generator(0)).visible)
    with pytest.raises(ValueError, match='share of hidden tokens'): mask_tokens(1, 8, 1.)


def test_put_is_the_inverse_of_take():
    x, bad = torch.randn(4, 12, 3), torch.rand(4, 12, generator=generator(2)) < .4
    for m in (mask_tokens(4, 12, .5, generator(1)), mask_tokens(4, 12, .5, generator(1), bad)):
        y = put_tokens(take_tokens(x, m.visible), m, torch.full((3,), -7.))
        kept = (y != -7).all(-1)
        assert torch.equal(y[kept], x[kept])
        assert kept.sum() == (m.visible.numel() if m.seen is None else m.seen.sum())


# encoders

def test_image_patches_are_a_convolution_and_size_is_free():
    vit = ImageViT(2, 8, 1, 2, 4)
    assert vit(torch.randn(2, 2, 8, 12)).shape == (2, 8) == ImageCNN(2, 8)(torch.randn(2, 2, 9, 13)).shape
    with pytest.raises(ValueError, match='an image of 9×12 pixels'): vit(torch.randn(2, 2, 9, 12))


@pytest.mark.parametrize('positions', ['joint', 'learned', 'sinusoidal'])
def test_the_encoder_is_the_main_path(positions):
    net = network(positions=positions)
    cube, images = batch()
    with torch.no_grad():
        full, alone = net.represent(cube), net.encoder(cube)
        assert torch.equal(full, alone)
        assert torch.equal(net.represent(cube, images, torch.zeros(5, 3, dtype=torch.bool)), alone)
        standalone = CubeEncoder(net.config.encoder()).double().eval()
        standalone.load_state_dict(net.encoder.state_dict())
        assert torch.equal(standalone.features(cube, pool=False), alone)
        assert torch.equal(standalone.features(cube), alone.mean(1))
        assert torch.equal(net(cube, share=0.).z_hsi, net.hsi_head(alone.mean(1)))
        assert not torch.allclose(net.represent(cube, images), alone)


def test_nothing_hidden_leaks_into_the_visible_tokens():
    net, (cube, images) = network(), batch()
    out = net(cube, images, generator=generator(1))
    hidden = join_patches(torch.zeros(5, 8, 32).scatter_(1, out.masked[..., None].expand(-1, -1, 32), 1.), net.config.grid, 2).bool()
    other = net(torch.where(hidden, 9., cube), images, generator=generator(1))
    assert torch.equal(out.pred, other.pred) and torch.equal(out.z_hsi, other.z_hsi)
    assert not torch.allclose(out.target, other.target)


# presence

@pytest.mark.parametrize('aux', ['vit', 'cnn'])
@pytest.mark.parametrize('contrast', ['unconditioned', 'leaky'])
def test_company_changes_nothing(aux, contrast):
    net, (cube, images), present = network(aux=aux, contrast=contrast), batch(), some()
    absent = {k: torch.where(p[:, None, None, None], o, torch.nan) for (k, o), p in zip(images.items(), present.T)}
    with torch.no_grad():
        whole, out = net.represent(cube, absent, present), net(cube, absent, present, share=0.)
        for i in range(5):
            own = {k: o[i:i+1] for k, o, p in zip(images, images.values(), present[i]) if p}
            torch.testing.assert_close(whole[i:i+1], net.represent(cube[i:i+1], own))
            one = net(cube[i:i+1], own, share=0.)
            torch.testing.assert_close(out.z_hsi[i:i+1], one.z_hsi)
            for k in own: torch.testing.assert_close(out.z_aux[k][i:i+1], one.z_aux[k])
    assert all(not out.z_aux[k][~p].any() for k, p in zip(images, present.T))


def test_absent_images_have_no_say_and_no_gradient():
    net, (cube, images), present = network(), batch(), some()
    noise = {k: torch.where(p[:, None, None, None], o, 1e3*torch.randn_like(o)) for (k, o), p in zip(images.items(), present.T)}
    same(net(cube, images, present, generator=generator(1)), net(cube, noise, present, generator=generator(1)))
    for o in images.values(): o.requires_grad_(True)
    guided_loss(net(cube, images, present, generator=generator(1))).total.backward()
    for o, p in zip(images.values(), present.T): assert not o.grad[~p].any() and o.grad[p].any()


def test_order_of_the_modalities_matters_and_is_the_config_s():
    net, (cube, images) = network(), batch()
    with torch.no_grad():
        forward, back = (net.represent(cube, {k: images[k] for k in names}) for names in (images, list(images)[::-1]))
    assert torch.equal(forward, back)


def test_presence_is_checked():
    net, (cube, images) = network(), batch()
    with pytest.raises(ValueError, match='images are called ir, af, thickness, not uv'): net(cube, dict(uv=images['ir']))
    with pytest.raises(ValueError, match='af is said to be present'): net(cube, dict(ir=images['ir']), torch.ones(5, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r'presence has the shape \(5, 3\)'): net(cube, images, torch.ones(5, 2, dtype=torch.bool))
    assert torch.equal(net(cube, dict(af=images['af'])).present, torch.tensor([[False, True, False]]).expand(5, -1))


# bad pixels

@pytest.mark.parametrize('target', ['embedding', 'pixels'])
def test_bad_pixels_never_count(target):
    net, (cube, images) = network(target=target), batch()
    good = torch.rand(cube.shape, generator=generator(7)) < .8
    good[0, :2, :4, :4] = False
    good[1, :, 4:] = False
    good[4] = False
    outs = [net(cube.masked_fill(~good, v), images, good=good, generator=generator(1)) for v in (0., torch.nan, torch.inf, 1e9)]
    for o in outs[1:]: same(o, outs[0])
    losses = guided_loss(outs[0])
    assert all(o.isfinite() for o in losses)
    losses.total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())
    assert not outs[0].present[4].any() and outs[0].counts[4].sum() == 0
    bad = bad_tokens(good, 2, 4)
    assert bad[0, 0] and not bad.gather(1, outs[0].masked)[outs[0].counts].any()


def test_a_mask_of_the_sky_is_one_of_all_bands():
    cube, _ = batch()
    sky = torch.rand(5, 8, 8, generator=generator(8)) < .7
    a, b = fill_bad(cube, sky), fill_bad(cube, sky[:, None].expand_as(cube))
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    assert fill_bad(cube)[1] is None


def test_one_broken_cube_does_not_change_the_others():
    net, (cube, _) = network(), batch()
    broken = cube.clone()
    broken[0, :2, :4, :4] = torch.nan
    with torch.no_grad(): torch.testing.assert_close(net.encoder.features(broken)[1:], net.encoder.features(cube)[1:])
    assert pool_tokens(torch.ones(1, 2, 3), torch.zeros(1, 2, dtype=torch.bool)).sum() == 0


# losses

def test_reconstruction_by_hand():
    pred, target = torch.randn(2, 3, 5, 4)
    counts = torch.tensor([[1, 1, 0, 0, 1], [0]*5, [1]*5]).bool()
    want = ((pred - target)**2).mean(-1)[counts].mean()
    torch.testing.assert_close(masked_reconstruction(pred, target, counts), want)
    torch.testing.assert_close(masked_reconstruction(pred, target), ((pred - target)**2).mean())
    assert masked_reconstruction(pred, target, counts & False) == 0
    assert masked_reconstruction(pred[:, :0], target[:, :0]) == 0


def test_flat_patches_are_not_blown_up():
    t, mean, scale = normalised_pixels(5 + 1e-6*torch.randn(2, 3, 16))
    assert t.abs().max() < 1e-3 and t.isfinite().all() and (scale == .01).all()
    x = torch.randn(2, 3, 16)
    good = torch.rand(x.shape, generator=generator(1)) < .6
    t, mean, scale = normalised_pixels(torch.where(good, x, 0), good)
    for i, j in ((0, 0), (1, 2)):
        v = x[i, j, good[i, j]]
        torch.testing.assert_close(t[i, j, good[i, j]], (v - v.mean())/v.std(unbiased=False))
    assert not t[~good].any()


@pytest.mark.parametrize('both', [False, True])
def test_contrast_by_hand(both):
    z, keys, present = torch.randn(6, 4), {k: torch.randn(6, 4) for k in ALL}, torch.tensor([[1, 1, 0]]*3 + [[0, 1, 0]]*2 + [[0, 0, 1]]).bool()
    total = []
    for k, p in list(zip(keys, present.T))[:2]:
        a, b = (nn.functional.normalize(o[p], dim=-1) for o in (z, keys[k]))
        s = a @ b.T/.1
        ways = [(m.logsumexp(1) - m.diag()).mean() for m in ([s, s.T] if both else [s])]
        total.append(sum(ways)/len(ways))
    torch.testing.assert_close(contrast_present(z, keys, present, .1, both), sum(total)/2)
    torch.testing.assert_close(contrast_present(z, keys, present, .1, both, 'published'), sum(total)/2*3/2)
    torch.testing.assert_close(contrast_present(3*z, {k: 5*o for k, o in keys.items()}, present, .1, both), sum(total)/2)
    with pytest.raises(ValueError, match="'mean' or as 'published'"): contrast_present(z, keys, present, scale='x')


@pytest.mark.parametrize('n, present', [(5, torch.zeros(5, 3)), (1, torch.ones(1, 3)), (3, torch.eye(3))])
def test_nobody_to_compare_with_is_zero(n, present):
    net, (cube, images) = network(), batch(n)
    loss = guided_loss(net(cube, images, present.bool(), generator=generator(1)))
    assert loss.contrastive == 0 and loss.total == loss.reconstruction
    loss.total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


def test_recall():
    z = torch.randn(50, 8)
    assert recall_at_1(z, 2*z) == 1 and recall_at_1(z, -z) < .2


# gradients and determinism

@pytest.mark.parametrize('target', ['embedding', 'pixels', 'attached'])
@pytest.mark.parametrize('aux', ['vit', 'cnn'])
def test_every_parameter_learns(target, aux):
    net, (cube, images) = network(target=target, aux=aux).train(), batch()
    guided_loss(net(cube, images, generator=generator(1))).total.backward()
    dead = [k for k, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead


def test_detached_target_takes_no_gradient():
    cube, _ = batch()
    assert not network()(cube).target.requires_grad
    assert network(target='attached')(cube).target.requires_grad


def test_contrast_does_not_see_the_images_unless_leaky():
    cube, images = batch()
    other = {k: o.flip(0) for k, o in images.items()}
    for contrast, equal in (('unconditioned', True), ('leaky', False)):
        net = network(contrast=contrast)
        a, b, c = (net(cube, o, generator=generator(1)).z_hsi for o in (images, other, None))
        assert torch.equal(a, b) is equal and torch.equal(a, c) is equal


def test_same_seed_same_answer():
    cube, images = batch()
    same(network()(cube, images, some(), generator=generator(2)), network()(cube, images, some(), generator=generator(2)))
    a, b = (network()(cube, images, generator=generator(s)).masked for s in (2, 3))
    assert not torch.equal(a, b)


def train(steps=80, **changes):
    config = replace(TINY, width=16, hidden=32, **changes)
    torch.manual_seed(0)
    net, g = GuidedMAE(config), generator(1)
    opt = torch.optim.AdamW(net.parameters(), 5e-3)
    for _ in range(steps):
        out = net(torch.randn(32, 4, 1, 1, generator=g).expand(-1, -1, 8, 8), generator=g)
        loss = guided_loss(out).total
        opt.zero_grad(); loss.backward(); opt.step()
    return loss.item(), out.target.detach().flatten(0, 1).var(0).mean().item()


def test_attached_targets_collapse():
    (_, kept), (loss, gone) = train(), train(target='attached')
    assert gone < .5*kept and math.isfinite(loss)
    assert spread(torch.ones(4, 3)) == 0
