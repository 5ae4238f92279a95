"Training on the mock PFS survey: the stated errors stay out of the input, a run that was cut off goes on to the last bit, the published schedule"
import json

import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback

from stellar_nb.core import BadInput, seed_everything
from stellar_nb.data.inputs import PfsInput
from stellar_nb.mock.pfs import PFS_WAVE, PfsSplit
from stellar_nb.models.specvit import SpecViT
from stellar_nb.recipes.pfs import PRESETS, pfs_config, pfs_learner, pfs_scale, pfs_setup, split_batches
from stellar_nb.train.learner import Fresh, train_cosine


def small():
    return SpecViT(pfs_config(patch=512, width=16, depth=1, heads=2, hidden=32, looks=0, dropout=.1))


class Stop(Callback):
    def __init__(self, epoch): self.at = epoch
    def before_epoch(self):
        if self.epoch == self.at: raise KeyboardInterrupt


def run(path, stop=None, lr=1e-3):
    seed_everything(0)
    net,scale = small(),pfs_scale(n=1000)
    learn = pfs_learner(net, scale, dict(stars=64, batch=16, valid=40))
    if stop is not None: learn.add_cb(Stop(stop))
    return net, train_cosine(learn, 3, lr=lr, checkpoint=path, facts=dict(batch=16))


@pytest.mark.parametrize('stop', [1, 2])
def test_resume(tmp_path, stop):
    whole,history = run(tmp_path/'whole.safetensors')
    with pytest.raises(KeyboardInterrupt): run(tmp_path/'cut.safetensors', stop)
    torch.rand(7)
    again,history2 = run(tmp_path/'cut.safetensors')
    assert all(a.equal(b) for a,b in zip(whole.state_dict().values(), again.state_dict().values()))
    pd.testing.assert_frame_equal(history.drop(columns='seconds'), history2.drop(columns='seconds'))
    third,history3 = run(tmp_path/'cut.safetensors')  # nothing left to do
    assert len(history3) == 3 and all(a.equal(b) for a,b in zip(whole.state_dict().values(), third.state_dict().values()))


def test_foreign_checkpoint(tmp_path):
    with pytest.raises(KeyboardInterrupt): run(tmp_path/'a.safetensors', 1)
    with pytest.raises(BadInput, match='lr is 0.001 there and 0.002 here'): run(tmp_path/'a.safetensors', lr=2e-3)
    whole = (tmp_path/'a.safetensors').read_bytes()
    for bad in (whole[:len(whole)//2], b'', b'not a checkpoint', whole[:40] + b'x'*40 + whole[80:]):
        (tmp_path/'b.safetensors').write_bytes(bad)
        with pytest.raises(BadInput, match='not a readable checkpoint'): run(tmp_path/'b.safetensors')
        assert (tmp_path/'b.safetensors').read_bytes() == bad


def test_input_knows_no_sigma():
    flux,sigma = PfsSplit('valid', n=4).noisy()
    rv = torch.zeros(4)
    a,b = (PfsInput()(PFS_WAVE, flux, s**-2, rv)[0] for s in (sigma, 5*sigma.flip(1)))
    assert a.equal(b)
    unit = PfsInput()(PFS_WAVE, 1e-17*flux, (1e-17*sigma)**-2, rv)[0]
    torch.testing.assert_close(unit, a, atol=1e-4, rtol=1e-4)


def test_published_schedule():
    config,prep = pfs_setup('paper')
    p = PRESETS['paper']
    assert (p['epochs'], p['stars'], p['batch'], p['lr'], p['warm']) == (200, 200_000, 256, 3e-4, 0.)
    assert (config.dropout, config.attn_dropout, config.labels, config.quantiles, config.looks, prep.clip) == (.1, .1, ('logg',), (), 0, True)
    seed_everything(0)
    net = SpecViT(pfs_config(patch=512, width=16, depth=1, heads=2, hidden=32, looks=0, labels=('logg',), quantiles=()))
    learn = pfs_learner(net, pfs_scale(('logg',), 1000), dict(stars=64, batch=32, valid=40), prep)
    x,y = torch.randn(5, 1), torch.randn(5, 1)
    assert learn.loss_func(x, y) == (x - y).abs().mean()
    history = train_cosine(learn, 2, lr=p['lr'], warm=p['warm'])
    assert 1e-5 <= history.lr.iloc[-1] < history.lr.iloc[0] < 3e-4
    group = learn.opt.opt.param_groups[0]
    assert isinstance(learn.opt.opt, torch.optim.AdamW) and group['weight_decay'] == .01 and learn.gradient_clip.max_norm == .5


def test_validation_is_always_the_same():
    loader = split_batches(PfsSplit('valid', n=40), pfs_scale(n=1000), 20)
    for a,b in zip(list(loader), list(loader)): assert all(i.equal(j) for i,j in zip(a, b))


def test_blocks_are_cut_into_batches():
    make = lambda n,gen: ((torch.rand(n, 2, generator=gen),), torch.rand(n, 1, generator=gen))
    one,many = Fresh(make, 6, 4, seed=1), Fresh(make, 6, 4, seed=1, block=4)
    a,b = list(many), list(many)
    assert len(a) == 6 and all(x.shape == (4, 2) and y.shape == (4, 1) for x,y in a)
    assert len({float(x[0, 0]) for x,_ in a+b}) == 12, 'every batch of two epochs is new'
    again = list(Fresh(make, 6, 4, seed=1, block=4))
    assert all((p == q).all() for x,y in zip(a, again) for p,q in zip(x, y))
    assert not torch.equal(one.batch(1)[0], again[1][0])
