"Mamba2: three scans, one answer; an independent implementation beside them"
import importlib.util, time
from unittest.mock import patch

import pytest, torch
import torch.nn.functional as F

from stellar_nb.blocks.mamba2 import Mamba2, SCANS, causal_conv, scan_chunked, scan_naive


def inputs(b, l, h, p, g, n, dtype=torch.float64, seed=0):
    gen = torch.Generator().manual_seed(seed)
    r = lambda *s: torch.randn(*s, generator=gen).to(dtype)
    return dict(x=r(b, l, h, p), dt=F.softplus(r(b, l, h)), A=-r(h).abs()-.05, B=r(b, l, g, n), C=r(b, l, g, n), D=r(h), state=r(b, h, p, n))

SHAPES = [(2, 150, 4, 8, 2, 16), (1, 1, 2, 4, 1, 4), (3, 64, 6, 4, 3, 8), (2, 65, 2, 16, 1, 5), (1, 300, 1, 3, 1, 7)]


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('chunk', [16, 64])
def test_scans_agree_in_double_precision(shape, chunk):
    e = inputs(*shape)
    for a,b in zip(scan_naive(**e), scan_chunked(**e, chunk=chunk)): assert (a-b).abs().max() < 1e-10


@pytest.mark.parametrize('shape', SHAPES)
def test_gradients_agree(shape):
    grads = []
    for f in (scan_naive, scan_chunked):
        e = {k: v.requires_grad_() for k,v in inputs(*shape).items()}
        y,last = f(**e)
        gen = torch.Generator().manual_seed(1)
        ((y*torch.randn(y.shape, generator=gen)).sum() + (last*torch.randn(last.shape, generator=gen)).sum()).backward()
        grads.append({k: v.grad for k,v in e.items()})
    for k in grads[0]: assert (grads[0][k]-grads[1][k]).abs().max() < 1e-10*max(1, grads[0][k].abs().max()), k


def test_gradcheck():
    e = {k: v.requires_grad_() for k,v in inputs(1, 7, 2, 2, 1, 3).items()}
    assert torch.autograd.gradcheck(lambda *o: scan_chunked(*o, chunk=4), tuple(e.values()))


@pytest.mark.parametrize('shape', SHAPES)
def test_single_precision(shape):
    e = inputs(*shape)
    exact,_ = scan_naive(**e)
    y,_ = scan_chunked(**{k: v.float() for k,v in e.items()})
    assert (y-exact).abs().max() < 1e-4*exact.abs().max()


def test_strong_and_weak_decay_stay_finite():
    e = inputs(2, 200, 4, 8, 2, 16, torch.float32)
    for dt in (torch.zeros_like(e['dt']), 1e4*e['dt'], 1e-20*e['dt']):
        x = e['x'].clone().requires_grad_(); d = dt.clone().requires_grad_()
        y,last = scan_chunked(**{**e, 'x': x, 'dt': d})
        (y.sum()+last.sum()).backward()
        assert all(o.isfinite().all() for o in (y, last, x.grad, d.grad))


def test_zero_steps_leave_the_state_alone():
    e = inputs(1, 70, 2, 4, 1, 6)
    y,last = scan_chunked(**{**e, 'dt': torch.zeros_like(e['dt'])})
    assert (last-e['state']).abs().max() < 1e-12
    assert (y - (torch.einsum('bhpn,bln->blhp', e['state'], e['C'][:, :, 0]) + e['D'][:, None]*e['x'])).abs().max() < 1e-12


def test_convolution_is_causal_and_differentiable():
    x,w,b,m = (torch.randn(*s).double().requires_grad_() for s in ((2, 9, 5), (5, 4), (5,), (2, 3, 5)))
    assert torch.autograd.gradcheck(lambda *o: causal_conv(*o), (x, w, b, m))
    padded = torch.cat([m, x], 1).transpose(1, 2)
    assert (causal_conv(x, w, b, m)[0] - F.conv1d(padded, w[:, None], b, groups=5).transpose(1, 2)).abs().max() < 1e-12


@pytest.mark.parametrize('groups', [1, 2])
def test_module_in_every_way(groups):
    torch.manual_seed(0)
    m = Mamba2(32, d_state=16, headdim=16, ngroups=groups).double()
    u = torch.randn(2, 90, 32).double()
    whole,last = m(u, return_state=True)
    m.segment = 23
    pieces,end = m(u, return_state=True)
    m.scan = 'naive'
    for a in (pieces, m(u)): assert (a-whole).abs().max() < 1e-10
    for a,b in zip(last, end): assert (a-b).abs().max() < 1e-10
    state = None
    for t in range(90): y,state = m.step(u[:, t], state)
    assert (y-whole[:, -1]).abs().max() < 1e-10


def test_no_token_sees_the_future():
    m = Mamba2(32, d_state=16, headdim=16)
    u = torch.randn(1, 80, 32, requires_grad=True)
    m(u)[0, 40].sum().backward()
    assert u.grad[0, 41:].abs().max() == 0 and u.grad[0, 0].abs().max() > 0


def test_parameters_are_those_of_mamba_ssm():
    with torch.device('meta'): m = Mamba2(2048, d_state=256)
    assert {k: tuple(v.shape) for k,v in m.state_dict().items()} == {
        'dt_bias': (64,), 'A_log': (64,), 'D': (64,), 'in_proj.weight': (8768, 2048), 'conv1d.weight': (4608, 1, 4), 'conv1d.bias': (4608,),
        'norm.weight': (4096,), 'out_proj.weight': (2048, 4096)}
    assert sum(p.numel() for p in m.parameters()) == 26_372_800


def _transformers():
    "Their module, without torchvision, which they would import if they saw it"
    pytest.importorskip('huggingface_hub')
    real = importlib.util.find_spec
    with patch('importlib.util.find_spec', lambda name, *a: None if name == 'torchvision' else real(name, *a)):
        pytest.importorskip('transformers')
        from transformers import Mamba2Config
        from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer
    return Mamba2Mixer(Mamba2Config(hidden_size=64, state_size=32, head_dim=32, num_heads=4, expand=2, n_groups=1, chunk_size=32), 0)


@pytest.mark.filterwarnings('ignore')
def test_transformers_agree():
    torch.manual_seed(0)
    theirs,ours = _transformers(), Mamba2(64, d_state=32, headdim=32)
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())
    u = torch.randn(2, 100, 64)
    with torch.no_grad(): a,b = theirs(u), ours(u)
    a = a[0] if isinstance(a, tuple) else a
    assert (a-b).abs().max() < 1e-4*a.abs().max()


def test_half_precision_runs():
    m,u = Mamba2(64, d_state=32, headdim=32), torch.randn(2, 100, 64)
    with torch.no_grad():
        exact = m(u)
        with torch.autocast('cpu', torch.bfloat16): y = m(u)
    assert (y.float()-exact).abs().max() < .05*exact.abs().max()


def test_errors():
    with pytest.raises(ValueError, match='cannot be dealt into heads'): Mamba2(30)
    with pytest.raises(ValueError, match='cannot be dealt into heads'): Mamba2(64, headdim=32, ngroups=3)
    with pytest.raises(ValueError, match='the scans are'): Mamba2(64, scan='fast')


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA')
def test_fused_kernels_agree():
    pytest.importorskip('mamba_ssm')
    e = {k: v.cuda() for k,v in inputs(2, 300, 4, 64, 1, 128, torch.float32).items()}
    for a,b in zip(SCANS['fused'](**e), scan_chunked(**e)): assert (a-b).abs().max() < 1e-3*b.abs().max()


def test_cost_is_linear_in_length():
    m = Mamba2(64, d_state=32, headdim=32)
    def seconds(l):
        u,times = torch.randn(1, l, 64), []
        for _ in range(4):
            start = time.process_time()
            with torch.no_grad(): m(u)
            times.append(time.process_time()-start)
        return min(times)
    seconds(512)
    assert seconds(16384) < 4*1.5*seconds(4096)


@pytest.mark.parametrize('groups', [1, 2, 4])
def test_projection_is_the_norm_of_each_group_and_a_product(groups):
    torch.manual_seed(0)
    m = Mamba2(32, d_state=8, headdim=16, ngroups=groups).double()
    torch.nn.init.normal_(m.norm.weight)
    y = torch.randn(2, 5, 64).double()
    parts = [o/(o.square().mean(-1, keepdim=True)+1e-5).sqrt() for o in y.chunk(groups, -1)]
    assert (m.project(y) - (torch.cat(parts, -1)*m.norm.weight)@m.out_proj.weight.T).abs().max() < 1e-12
    y = torch.zeros(1, 2, 64).double().requires_grad_()
    m.project(y).sum().backward()
    assert y.grad.isfinite().all()
