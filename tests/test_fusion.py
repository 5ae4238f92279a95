"StarClassifierFusion from outside: counts, the published network written out, what is missing, gradients, options, state; and the class losses"
import json
from dataclasses import FrozenInstanceError, replace
from functools import lru_cache

import pytest, torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from stellar_nb.data.catalog import class_weights
from stellar_nb.models.mamba_fusion import GatedCNN, StarClassifierConfig, StarClassifierFusion, Trunk, hide_modality, pooled, published
from stellar_nb.objectives.classes import ClassLoss, bce, cross_entropy

tiny,paper,laptop = StarClassifierConfig.tiny, StarClassifierConfig.paper, StarClassifierConfig.laptop
ONE = dict(patch=64, positions='', each=False, prenorm='')
OPTIONS = [{}, ONE, dict(prenorm=''), dict(prenorm='layer'), dict(trunk='gated_cnn'), dict(trunk='transformer', prenorm='layer'), dict(alternate=True), dict(positions=''),
           dict(positions='sinusoidal'), dict(cross=False), dict(each=False), dict(patch=64), dict(channels=2), dict(modalities=('spectrum',)), dict(modalities=('gaia',)),
           dict(hide=.5), dict(dropout=.2), dict(d_conv=2, expand=1, headdim=4)]
ids = lambda o: ' '.join(f'{k}={v}' for k,v in o.items()) or 'tiny'


def randomised(config, seed=0):
    "A network whose weights are all far from their first values, biases and norms too"
    torch.manual_seed(seed)
    model = StarClassifierFusion(config)
    for name,p in model.named_parameters():
        if p.ndim > 1: nn.init.normal_(p, std=p[0].numel()**-.5)
        elif 'A_log' not in name and 'dt_bias' not in name: nn.init.normal_(p, float('bias' not in name), .3)
    return model.eval()


def stars(config, n=4, seed=1):
    "Spectra and Gaia features"
    g = torch.Generator().manual_seed(seed)
    shape = (config.channels, config.pixels) if config.channels > 1 else (config.pixels,)
    return torch.randn(n, *shape, generator=g), torch.randn(n, config.features, generator=g)


def close(a, b, tol=1e-5): torch.testing.assert_close(a, b, atol=tol, rtol=0)


def count(m): return sum(p.numel() for p in m.parameters())


@lru_cache
def on_meta(config):
    with torch.device('meta'): model = StarClassifierFusion(config)
    assert {p.device.type for p in model.parameters()} == {'meta'}
    return model


def test_published_counts():
    model = on_meta(paper())
    assert count(model) == 741_407_287
    assert {count(l) for t in model.trunks.values() for l in t.layers} == {26_372_800} and [len(t.layers) for t in model.trunks.values()] == [12, 12]
    assert [count(m) for m in model.cross.values()] == [50_358_272]*2
    assert count(model.tokens) == 7_510_016 and count(model.norm) + count(model.head) == 233_527


def test_laptop_is_small():
    assert 2e5 < count(on_meta(laptop())) < 8e5
    model = StarClassifierFusion(laptop())
    assert model(*[torch.randn(2, 3440), None, torch.randn(2, 18)]).shape == (2, 55)


@pytest.mark.parametrize('dtype,tol', [(torch.float32, 1e-5), (torch.float64, 1e-11)])
@pytest.mark.parametrize('changes', [{}, dict(depth=4, d_conv=2), dict(expand=1, headdim=4), dict(heads=1, d_state=16), dict(ffn=2, features=18)], ids=ids)
def test_published_network_written_out(changes, dtype, tol):
    model = randomised(tiny(**ONE, **changes)).to(dtype)
    x,gaia = [o.to(dtype) for o in stars(model.config, 8)]
    y = model(x, gaia=gaia)
    assert y.std(0).min() > 1e-2
    close(y, published(model, x, gaia), tol)


@pytest.mark.parametrize('changes', OPTIONS, ids=ids)
def test_options(changes):
    "Shape, finite, every weight gets a gradient, stars do not mix, and computing layers twice gives the same gradients"
    config = tiny(**changes)
    grads = []
    for again in (False, True):
        model = randomised(replace(config, checkpoint=again)).train()
        x,gaia = stars(config, 64)
        gaia[::3,1] = torch.nan
        torch.manual_seed(2)
        y = model(x, gaia=gaia)
        (y*torch.randn(64, 3)).sum().backward()
        grads.append({k: p.grad for k,p in model.named_parameters()})
    assert y.shape == (64, 3) and y.isfinite().all()
    for k in grads[0]: close(grads[0][k], grads[1][k], 1e-5*grads[0][k].abs().max().item() + 1e-9)
    one = {m for m,alone in (('spectrum', config.patch == 64), ('gaia', not config.each)) if alone}
    for k,g in grads[0].items():
        if any(f'trunks.{m}' in k for m in one) and ('A_log' in k or 'conv1d.weight' in k) or 'qkv' in k and one or k.startswith('cross') and 'ffn.0' in k: continue
        if 'qkv.bias' in k: g = g.unflatten(0, (3, -1))[[0, 2]]  # a softmax does not see the keys' bias
        assert (g != 0).any() and (g.ndim == 1 or (g.flatten(1) != 0).any(1).all()), k
    model.eval()
    close(model(x, gaia=gaia)[5:6], model(x[5:6], gaia=gaia[5:6]), 2e-5)


def idle(config):
    "Share of each weight whose gradient is exactly zero"
    model = randomised(config).train()
    x,gaia = stars(config, 256)
    with sdpa_kernel(SDPBackend.MATH): (model(x, gaia=gaia)*torch.randn(256, 3)).sum().backward()
    return {k: (p.grad == 0).double().mean().item() for k,p in model.named_parameters()}


def test_one_token_leaves_weights_idle():
    shares = idle(tiny(**ONE))
    expected = lambda k: 1. if 'A_log' in k else .75 if 'conv1d.weight' in k else 2/3 if 'qkv' in k else 0.
    assert shares == pytest.approx({k: expected(k) for k in shares})
    # the same tensors of the published network: 24 layers of 64 heads and 4608 channels, queries and keys of two blocks
    total = sum(round(expected(k)*p.numel()) for k,p in on_meta(paper()).named_parameters())
    assert total == 24*(64 + 3*4608) + 4*(2048**2 + 2048) == 17_118_720


def test_tokens_put_them_to_work():
    shares = idle(tiny())
    assert {k for k,s in shares.items() if s > 0 and 'qkv.bias' not in k} <= {'tokens.gaia.missing'}


@pytest.mark.parametrize('changes', [o for o in OPTIONS if o.get('channels', 1) == 1], ids=ids)
def test_what_is_missing_has_no_influence(changes):
    model = randomised(tiny(**changes)); c = model.config
    x,gaia = stars(c)
    present = torch.tensor([[True, True], [True, False], [False, True], [False, False]])
    y = model(x, gaia=gaia, present=present)
    assert y.isfinite().all() and y.shape == (4, 3)
    for fill in (1e6, torch.nan, torch.inf):
        close(model(torch.where(present[:,:1], x, fill), gaia=torch.where(present[:,1:], gaia, fill), present=present), y)
    close(model(torch.where(present[:,:1], x, torch.nan), gaia=torch.where(present[:,1:], gaia, torch.nan)), y)
    close(model(x, present[:,:1].expand(-1, 64), gaia, present[:,1:].expand(-1, 5)), y)
    close(model(x, gaia=gaia)[0], y[0], 2e-5)
    if 'spectrum' in c.modalities: close(model(x)[1], y[1], 2e-5)
    if 'gaia' in c.modalities: close(model(gaia=gaia)[2], y[2], 2e-5)
    for i,m in enumerate(('spectrum', 'gaia')):
        if m in c.modalities: assert (y[0] - y[2-i]).abs().max() > 1e-4, f'{m} is not used'


@pytest.mark.parametrize('changes', [{}, ONE, dict(trunk='transformer', prenorm='layer'), dict(trunk='gated_cnn')], ids=ids)
def test_nothing_at_all_gives_finite_gradients(changes):
    model = randomised(tiny(**changes)).train()
    x,gaia = stars(model.config)
    x[1:],gaia[2:] = torch.nan,torch.nan
    y = model(x, gaia=gaia)
    y.square().sum().backward()
    assert y.isfinite().all() and all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize('changes', [{}, dict(trunk='transformer', prenorm='layer'), dict(trunk='gated_cnn'), dict(channels=2)], ids=ids)
def test_bad_pixels(changes):
    "What stands in bad pixels has no influence; a patch with too few good ones is left out altogether"
    model = randomised(tiny(**changes)); x,gaia = stars(model.config)
    good = torch.ones(4, 64, dtype=torch.bool)
    good[0,3] = False; good[1,16:21] = False; good[2] = False
    y = model(x, good, gaia)
    loud = torch.where(good if x.ndim == 2 else good[:,None], x, 1e5)
    close(model(loud, good, gaia), y)
    close(y[2], model(gaia=gaia)[2], 2e-5)
    other = x.clone(); other[1,...,21:24] += 3  # the good pixels of a patch that is left out
    close(model(other, good, gaia), y)
    other = x.clone(); other[0,...,4] += 3
    assert (model(other, good, gaia)[0] - y[0]).abs().max() > 1e-4
    assert (model(x, None, gaia) - y).abs().amax(1)[[0, 1, 2]].min() > 1e-4


def test_missing_gaia_features():
    model = randomised(tiny()); x,gaia = stars(model.config)
    good = torch.ones(4, 5, dtype=torch.bool); good[0,2] = False
    y = model(x, gaia=gaia, gaia_good=good)
    close(model(x, gaia=torch.where(good, gaia, 99.), gaia_good=good), y)
    close(model(x, gaia=torch.where(good, gaia, torch.nan)), y)
    assert (model(x, gaia=gaia) - y).abs()[0].max() > 1e-4 and (model(x, gaia=torch.where(good, gaia, 0.)) - y).abs()[0].max() > 1e-4


def test_hide_modality():
    present = torch.ones(20_000, 2, dtype=torch.bool); present[:100] = torch.tensor([True, False]); present[100:200] = False
    shown = hide_modality(present, .3, torch.Generator().manual_seed(0))
    assert shown[:200].equal(present[:200]) and shown[200:].any(1).all()
    lost = (~shown[200:]).float().mean(0)
    close(lost, torch.tensor([.15, .15]), .01)
    assert hide_modality(present, 0.).equal(present)
    again = hide_modality(present, .3, torch.Generator().manual_seed(0))
    assert again.equal(shown)


def test_hiding_is_for_training_only():
    model = randomised(tiny(hide=.9)); x,gaia = stars(model.config, 64)
    y = model(x, gaia=gaia)
    close(model(x, gaia=gaia), y)
    model.train()
    torch.manual_seed(0)
    changed = (model(x, gaia=gaia) - y).abs().amax(1) > 1e-4
    assert .7 < changed.float().mean() <= 1
    alone = torch.stack([model(x, gaia=gaia, present=torch.tensor([o]).expand(64, 2)) for o in ((True, False), (False, True))])
    model.eval()
    close(alone[0], model(x), 2e-5); close(alone[1], model(gaia=gaia), 2e-5)


def test_features_and_pooling():
    model = randomised(tiny()); x,gaia = stars(model.config)
    f = model.features(x, gaia=gaia)
    assert f.shape == (4, 32)
    close(model.head(f), model(x, gaia=gaia))
    assert StarClassifierFusion(tiny(modalities=('gaia',))).features(gaia=gaia).shape == (4, 16)
    z,seen = torch.randn(2, 3, 4), torch.tensor([[True, False, True], [False]*3])
    close(pooled(z, seen)[0], z[0,[0, 2]].mean(0))
    assert pooled(z, seen)[1].eq(0).all()


def test_order_matters_to_patches():
    model = randomised(tiny()); x,gaia = stars(model.config)
    assert (model(x, gaia=gaia) - model(x.roll(8, 1), gaia=gaia)).abs().max() > 1e-3
    assert (model(x, gaia=gaia) - model(x, gaia=gaia.roll(1, 1))).abs().max() > 1e-3


def test_alternate_reads_both_ways():
    "The first token learns of the last one only if a layer reads backwards"
    for alternate in (False, True):
        torch.manual_seed(0)
        trunk = Trunk(tiny(alternate=alternate))
        z = torch.randn(1, 6, 16); other = z.clone(); other[:,-1] += 1
        assert ((trunk(z) - trunk(other))[:,0].abs().max() > 1e-6) == alternate


def test_transformer_trunk():
    c = tiny(trunk='transformer', prenorm='layer')
    ours = Trunk(c)
    layer = nn.TransformerEncoderLayer(16, 2, 64, 0., 'gelu', batch_first=True, norm_first=True)
    theirs = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    names = {'attn.qkv.': 'self_attn.in_proj_', 'attn.out': 'self_attn.out_proj', 'ffn.0': 'linear1', 'ffn.2': 'linear2'}
    def rename(k):
        for a,b in names.items(): k = k.replace(a, b)
        return k
    theirs.load_state_dict({rename(k): v for k,v in ours.state_dict().items()})
    z,seen = torch.randn(3, 7, 16), torch.arange(7) < torch.tensor([7, 4, 2])[:,None]
    close(ours(z, seen)[seen], theirs(z, src_key_padding_mask=~seen)[seen])


@pytest.mark.parametrize('width,kernel,n', [(8, 7, 11), (16, 3, 5), (4, 5, 1)])
def test_gated_cnn(width, kernel, n):
    m,z = GatedCNN(width, kernel), torch.randn(2, n, width)
    h = F.linear(z, m.fc1.weight, m.fc1.bias)
    rows = []
    for t in range(n):
        c = m.conv.bias.clone()
        for k in range(kernel):
            if 0 <= t + k - kernel//2 < n: c = c + m.conv.weight[:,0,k]*h[:,t + k - kernel//2,-width:]
        rows.append(F.linear(F.gelu(h[:,t,:m.hidden])*torch.cat([h[:,t,m.hidden:-width], c], -1), m.fc2.weight, m.fc2.bias))
    close(m(z), torch.stack(rows, 1))


@pytest.mark.parametrize('config', [paper(), laptop(), tiny(modalities=('gaia',), names=('a', 'b', 'c'))])
def test_config_round_trip(config):
    again = StarClassifierConfig.from_json(config.to_json())
    assert again == config and hash(again) == hash(config)
    with pytest.raises(FrozenInstanceError): config.width = 3
    with pytest.raises(ValueError, match="no field 'colour'"): StarClassifierConfig.from_json(json.dumps({**json.loads(config.to_json()), 'colour': 1}))


@pytest.mark.parametrize('changes,words', [(dict(patch=7), 'no multiple of the patch'), (dict(heads=3), 'do not divide'), (dict(headdim=7), 'do not divide an inner width'),
                                           (dict(trunk='rnn'), 'trunk is one of'), (dict(prenorm='batch'), 'prenorm is one of'), (dict(positions='rope'), 'positions is one of'),
                                           (dict(trunk='transformer'), 'own LayerNorms'), (dict(modalities=()), 'modalities are'), (dict(modalities=('gaia', 'spectrum')), 'modalities are'),
                                           (dict(modalities=('radio',)), 'modalities are'), (dict(names=('a',)), '1 names for 3 classes'), (dict(good_share=0), 'good_share'), (dict(hide=1.), 'hide must'),
                                           (dict(dropout=-.1), 'dropout must'), (dict(depth=0), 'positive whole number'), (dict(classes=2.5), 'positive whole number'), (dict(kernel=4), 'odd')])
def test_bad_configs(changes, words):
    with pytest.raises(ValueError, match=words) as e: tiny(**changes)
    assert '\n' not in str(e.value)


def test_wrong_inputs():
    model = StarClassifierFusion(tiny()); x,gaia = stars(model.config)
    for args,words in [((x[:,1:], None, gaia), 'spectrum: this model reads'), ((x[:,None], None, gaia), 'spectrum: this model reads|expected'), ((x, None, gaia[:,1:]), 'gaia: this model reads'),
                       ((x[1:], None, gaia), 'do not fit together'), ((), 'none of spectrum, gaia is given')]:
        if args and args[0].ndim == 3: close(model(*args), model(x, None, gaia)); continue  # one channel may be written out
        with pytest.raises(ValueError, match=words): model(*args)
    with pytest.raises(ValueError, match='none of gaia is given'): StarClassifierFusion(tiny(modalities=('gaia',)))(x)


def test_state_dict_round_trip(tmp_path):
    from safetensors.torch import load_file, save_file
    model = randomised(tiny()); x,gaia = stars(model.config)
    save_file(model.state_dict(), tmp_path/'model.safetensors')
    with torch.device('meta'): other = StarClassifierFusion(StarClassifierConfig.from_json(model.config.to_json()))
    other.load_state_dict(load_file(tmp_path/'model.safetensors'), assign=True)
    assert other.eval()(x, gaia=gaia).equal(model(x, gaia=gaia))


def test_bce():
    z,y = torch.randn(50, 4, requires_grad=True), (torch.rand(50, 4) < .3).float()
    w = class_weights(y)
    close(bce(z, y, w), F.binary_cross_entropy_with_logits(z, y, pos_weight=w))
    y[::2,1] = torch.nan; y[3] = torch.nan
    loss = bce(z, y, w); loss.backward()
    keep = y.isfinite()
    weights = torch.where(y > 0, w, 1.)[keep]
    close(loss, F.binary_cross_entropy_with_logits(z[keep], y[keep], weights))
    assert z.grad[~keep].eq(0).all() and z.grad[keep].ne(0).all()
    assert bce(z, torch.full_like(y, torch.nan)) == 0
    assert bce(z, (y > 0)).isfinite(), 'labels may be bool'


def test_cross_entropy():
    z,y,w = torch.randn(50, 4, requires_grad=True), torch.randint(0, 4, (50,)), torch.tensor([1., 2., 3., 4.])
    y[::5] = -1
    close(cross_entropy(z, y, w), F.cross_entropy(z[y >= 0], y[y >= 0], w))
    close(cross_entropy(z, torch.where(y < 0, torch.nan, y.float())), F.cross_entropy(z[y >= 0], y[y >= 0]))
    nothing = cross_entropy(z, torch.full((50,), -1)); nothing.backward()
    assert nothing == 0 and z.grad.eq(0).all()


def test_class_loss():
    z,y = torch.randn(20, 4), (torch.rand(20, 4) < .3).float()
    several,single = ClassLoss(weight=class_weights(y)), ClassLoss(several=False)
    close(several(z, y), bce(z, y, class_weights(y))); close(single(z, z.argmax(1)), cross_entropy(z, z.argmax(1)))
    assert several.decodes(several.activation(z)).equal(z > 0) and single.decodes(single.activation(z)).equal(z.argmax(1))
    assert 'weight' in several.state_dict() and several.to(torch.float64).weight.dtype == torch.float64
