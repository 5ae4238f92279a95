"SpecViT from outside: counts, equivalence with PyTorch's own layers, shapes, errors, state, gradients"
import json
from dataclasses import FrozenInstanceError, replace

import pytest, torch
from torch import nn

from stellar_nb.blocks.heads import LabelHead, ordered
from stellar_nb.models.specvit import PlainSpecViT, SpecViT, SpecViTConfig, plain_weights

tiny = SpecViTConfig.tiny


def randomised(config, seed=0, std=.3):
    "A model whose weights are all far from their first values, biases and norms too"
    torch.manual_seed(seed)
    model = SpecViT(config)
    for p in model.parameters(): nn.init.normal_(p, std=std) if p.ndim > 1 else nn.init.normal_(p, .5, .3)
    return model


@pytest.mark.parametrize('changes,expected', [({}, 4_809_729), ({'pooler': True}, 4_875_521), ({'labels': ('teff', 'logg', 'feh')}, 4_809_729 + 2*257),
                                              ({'quantiles': (.1, .25, .5, .75, .9)}, 4_809_729 + 4*257), ({'positions': 'sinusoidal'}, 4_809_729 - 257*256),
                                              ({'channels': 2}, 4_809_729 + 16*256)])
def test_counts(changes, expected):
    with torch.device('meta'): model = SpecViT(SpecViTConfig.paper(**changes))
    assert sum(p.numel() for p in model.parameters()) == expected
    assert {p.device.type for p in model.parameters()} == {'meta'}


@pytest.mark.parametrize('dtype,tol', [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize('config', [tiny(), tiny(depth=1, labels=('teff', 'logg')), SpecViTConfig.laptop(quantiles=())])
def test_equals_plain(config, dtype, tol):
    ours,plain = randomised(config).to(dtype), PlainSpecViT(config).to(dtype)
    plain.load_state_dict(plain_weights(ours))
    x = torch.randn(6, config.length, dtype=dtype)
    a,b = ours(x),plain(x)
    scale = b.abs().max().clamp(min=1)
    assert b.std(0).min() > 1e-3 and (a - b).abs().max() < tol*scale
    for y in (a, b): y.square().sum().backward()
    theirs = dict(plain.named_parameters())
    for name,g in plain_gradients(ours).items(): torch.testing.assert_close(g, theirs[name].grad, atol=1e3*tol*g.abs().max().item() + 1e-12, rtol=0, msg=name)


def plain_gradients(model):
    "Gradients under the names of the plain network"
    shadow = SpecViT(model.config).to(next(model.parameters()).dtype)
    shadow.load_state_dict({k: p.grad for k,p in model.named_parameters()})
    return plain_weights(shadow)


def test_last_block_computes_only_cls():
    model = randomised(tiny(depth=3)).double()
    x = torch.randn(4, 64).double()
    z = model.embed(x)
    for block in model.blocks: z = block(z)
    torch.testing.assert_close(model(x), model.head(model.norm(z)[:,0]), atol=1e-12, rtol=0)


def test_deterministic():
    x = torch.randn(4, 64)
    def run(seed):
        torch.manual_seed(seed)
        model = SpecViT(tiny(dropout=.2, attn_dropout=.2))
        return model.train()(x), model.eval()(x), model.eval()(x)
    (a,b,c),(d,e,_),(f,_,_) = run(1), run(1), run(2)
    assert a.equal(d) and b.equal(e) and b.equal(c) and not a.equal(f) and not a.equal(b)


def test_stars_do_not_mix():
    model,x = randomised(tiny()), torch.randn(5, 64)
    torch.testing.assert_close(model(x)[2:3], model(x[2:3]), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(model(x), model(x.roll(8, 1)), atol=1e-3), 'patches have no positions'


@pytest.mark.parametrize('shape', [(3, 63), (3, 72), (64,), (3, 2, 64), (1, 3, 64), (3, 1, 1, 64)])
def test_wrong_shapes(shape):
    with pytest.raises(ValueError, match='reads spectra of shape'): SpecViT(tiny())(torch.zeros(shape))


def test_channels():
    model,x = randomised(tiny(channels=2)), torch.randn(3, 2, 64)
    assert model(x).shape == (3, 1) and not torch.allclose(model(x), model(x.flip(1)), atol=1e-3)
    with pytest.raises(ValueError, match='reads spectra of shape'): model(x[:,0])
    one = randomised(tiny())
    assert one(x[:,:1]).equal(one(x[:,0]))


def test_hidden_patches():
    model,x = randomised(tiny()), torch.randn(3, 64)
    good = torch.ones(3, 64, dtype=torch.bool)
    assert torch.allclose(model(x, good), model(x), atol=1e-6)
    good[1,16:32] = False
    loud = torch.where(good, x, 1e5)
    torch.testing.assert_close(model(loud, good), model(torch.where(good, x, 0.), good), atol=1e-5, rtol=1e-5)
    assert (model(x, good) - model(x)).abs()[1] > 1e-4 and torch.allclose(model(x, good)[[0, 2]], model(x)[[0, 2]], atol=1e-6)
    assert model(x, torch.zeros_like(good)).isfinite().all()


@pytest.mark.parametrize('config', [tiny(), tiny(pooler=True), tiny(channels=2, labels=('a', 'b'), quantiles=(.16, .5, .84)), tiny(depth=1),
                                    tiny(positions='sinusoidal'), tiny(looks=4), tiny(looks=4, channels=2, quantiles=(.1, .5, .9))])
def test_no_idle_parameter(config):
    model = SpecViT(config)
    x = torch.randn(16, *((config.channels,) if config.channels > 1 else ()), config.length)
    w = torch.randn(model(x).shape)
    (model(x)*w).sum().backward()
    idle = [n for n,p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not idle
    for n,p in model.named_parameters():
        if n.endswith('tokens.pos'): assert (p.grad.abs().amax(1) > 0).all(), 'a position that nobody uses'


def test_state_dict_round_trip(tmp_path):
    from safetensors.torch import load_file, save_file
    config = tiny(labels=('teff', 'logg'), quantiles=(.1, .5, .9), pooler=True)
    model,x = randomised(config), torch.randn(3, 64)
    save_file(model.state_dict(), tmp_path/'model.safetensors')
    (tmp_path/'config.json').write_text(config.to_json())
    with torch.device('meta'): other = SpecViT(SpecViTConfig.from_json((tmp_path/'config.json').read_text()))
    other.load_state_dict(load_file(tmp_path/'model.safetensors'), assign=True)
    assert other(x).equal(model(x)) and other.config == config


@pytest.mark.parametrize('config', [SpecViTConfig.paper(), SpecViTConfig.laptop(), tiny(labels=('x', 'y'), positions='sinusoidal')])
def test_config_round_trip(config):
    again = SpecViTConfig.from_json(config.to_json())
    assert again == config and isinstance(again.labels, tuple) and isinstance(again.quantiles, tuple) and hash(again) == hash(config)
    with pytest.raises(FrozenInstanceError): config.width = 3


@pytest.mark.parametrize('changes,words', [({'patch': 17}, 'no multiple of the patch'), ({'heads': 7}, 'do not divide'), ({'quantiles': (.5, .1)}, 'must increase'),
                                           ({'quantiles': (.1, .1)}, 'must increase'), ({'quantiles': (0., .5)}, 'must increase'), ({'labels': ()}, 'labels must be'),
                                           ({'labels': ('a', 'a')}, 'labels must be'), ({'labels': 'logg'}, 'labels must be'), ({'depth': 0}, 'positive whole number'),
                                           ({'width': -8}, 'positive whole number'), ({'length': 64.5}, 'positive whole number'), ({'width': '8'}, 'positive whole number'),
                                           ({'dropout': 1.5}, 'dropout'), ({'positions': 'none'}, 'positions are')])
def test_bad_configs(changes, words):
    with pytest.raises(ValueError, match=words) as e: tiny(**changes)
    assert '\n' not in str(e.value)


def test_unknown_keys():
    d = json.loads(tiny().to_json())
    with pytest.raises(ValueError, match="no field 'colour'"): SpecViTConfig.from_json(json.dumps({**d, 'colour': 1}))
    with pytest.raises(ValueError, match='JSON object'): SpecViTConfig.from_json('[1, 2]')
    with pytest.raises(ValueError): SpecViTConfig.from_json('{')
    assert SpecViTConfig.from_json('{}') == SpecViTConfig.paper()


def test_quantiles_never_cross():
    model = randomised(tiny(labels=('a', 'b'), quantiles=(.05, .16, .5, .84, .95)), std=2.)
    y = model(torch.randn(200, 64)*10)
    assert y.shape == (200, 2, 5) and (y.diff(dim=-1) >= 0).all()
    assert LabelHead(4, 1, (.7, .8, .9)).middle == 0 and LabelHead(4, 1, (.1, .2)).middle == 1
    raw = torch.randn(7, 3)
    assert ordered(raw, 0)[:,0].equal(raw[:,0]) and ordered(raw, 2)[:,2].equal(raw[:,2])


def test_quantiles_learn_their_levels():
    "The head alone, trained by the pinball loss on pure noise, finds the quantiles of the noise"
    from stellar_nb.objectives.quantile import pinball
    torch.manual_seed(0)
    levels = (.1, .5, .9)
    head,y = LabelHead(1, 1, levels), torch.randn(4000, 1)
    opt = torch.optim.Adam(head.parameters(), .05)
    for _ in range(300):
        loss = pinball(head(torch.zeros(1, 1)).expand(4000, 1, 3), y, levels)
        opt.zero_grad(); loss.backward(); opt.step()
    torch.testing.assert_close(head(torch.zeros(1, 1))[0,0], torch.quantile(y, torch.tensor(levels)), atol=.05, rtol=0)


def test_attention_maps():
    model,x = randomised(tiny()), torch.randn(3, 64)
    good = torch.ones(3, 64, dtype=torch.bool); good[:,8:16] = False
    maps = model.attention_maps(x, good)
    assert maps.shape == (3, 2, 2, 9, 9) and not maps.requires_grad
    torch.testing.assert_close(maps.sum(-1), torch.ones(3, 2, 2, 9))
    assert (maps[...,2] == 0).all()
    first = nn.MultiheadAttention(16, 2, batch_first=True)
    a = model.blocks[0].attn
    first.load_state_dict({'in_proj_weight': a.qkv.weight, 'in_proj_bias': a.qkv.bias, 'out_proj.weight': a.out.weight, 'out_proj.bias': a.out.bias})
    z = model.blocks[0].norm1(model.embed(x))
    torch.testing.assert_close(maps[:,0], first(z, z, z, key_padding_mask=~model.seen(good), average_attn_weights=False)[1])


def test_replace_and_presets():
    assert replace(tiny(), width=32).width == 32
    assert tiny(width=32, heads=4) == replace(tiny(), width=32, heads=4)
    c = SpecViTConfig.laptop()
    assert (c.length, c.labels) == (3600, ('teff', 'logg', 'feh')) and c.length//c.patch <= 100


def test_first_look():
    "Its answer stands alone when the head says nothing, quantiles around it; fitting is repeatable; the published network has none"
    torch.manual_seed(0)
    model,x = SpecViT(tiny(looks=3, labels=('a', 'b'), quantiles=(.1, .5, .9))),torch.randn(200, 64)
    y = x[:,:2] + .1*torch.randn(200, 2)
    model.start.fit(x, y)
    nn.init.zeros_(model.head.linear.weight)
    first = model.start(model.start.look(x))[1]
    torch.testing.assert_close(model(x)[..., 1], first)
    assert not torch.allclose(model.features(x), model.features(x, token=torch.zeros(200, 16))), '[CLS] does not see the token'
    assert SpecViT(tiny()).start is None
    with pytest.raises(ValueError, match='looks must be'): tiny(looks=-1)


def test_first_look_is_ridge():
    "Before anything is taught, the answer is scikit-learn's ridge regression on the same components"
    from sklearn.linear_model import Ridge
    torch.manual_seed(0)
    x = torch.randn(300, 64)*torch.linspace(3, .1, 64)
    y = x[:,:1] - x[:,5:6] + .3*torch.randn(300, 1)
    start = SpecViT(tiny(looks=64)).start.fit(x, y, ridge=1.)
    h = start.look(x).detach().numpy()
    expected = Ridge(alpha=1.).fit(h, y.numpy())
    with torch.no_grad(): answer = start(start.look(x))[1].numpy()
    assert abs(answer - expected.predict(h).reshape(-1, 1)).max() < .01*y.std()
