"""The job of tests/test_distributed.py: each case is trained by the first process alone, then by both together, and at last the second one fails; `python two_processes.py OUT CASE…` writes what they saw"""
import json
import os
import sys
from functools import partial
from pathlib import Path

import torch
from fastai.callback.core import CancelFitException, Callback

from stellar_nb.core import BadInput, generator, seed_everything
from stellar_nb.data.fields import Fields
from stellar_nb.data.loaders import EveryRow, Loader
from stellar_nb.encoders.lightcurve import DesaLightCurve, LightCurveEncoderConfig
from stellar_nb.encoders.spectra import DesaSpectra, SpectraEncoderConfig
from stellar_nb.models.dualformer import DualFormer, DualFormerConfig
from stellar_nb.models.mae import GuidedMAE, GuidedMAEConfig
from stellar_nb.models.mamba_fusion import StarClassifierConfig, StarClassifierFusion
from stellar_nb.models.specvit import SpecViT, SpecViTConfig
from stellar_nb.models.towers import TwoTowers, TwoTowersConfig
from stellar_nb.objectives.classes import ClassLoss
from stellar_nb.objectives.mae import Guided, guided_loss
from stellar_nb.objectives.quantile import pinball
from stellar_nb.recipes.lightcurve import TwoViews, pair_loss
from stellar_nb.recipes.spectra import MaskForFilling, desa_loss
from stellar_nb.train.callbacks import NoiseOnTheFly
from stellar_nb.train.distributed import processes, rank, world
from stellar_nb.train.learner import fixed_stars, make_learner, train_cosine
from stellar_nb.train.mae import FieldNet, field_batches
from stellar_nb.train.momentum import Momentum, aligner_loss, paired_stars
from stellar_nb.train.monitor import CollapseMonitor

N, BATCH, EPOCHS = 49, 11, 2  # batches of 11, 11, 11, 11, 5: the shares of two processes are never equal
LEVELS = (.1, .25, .5, .75, .9)


def real(*shape, seed=0): return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)
def coin(*shape, p=.5, seed=1): return torch.rand(*shape, generator=generator(seed)) < p
def holes(y, p=.3): return y.masked_fill(coin(*y.shape, p=p, seed=9), torch.nan)


class Floats(Callback):
    "Everything in one precision"
    order = 1
    def __init__(self, dtype): self.dtype = dtype
    def before_batch(self): self.learn.xb, self.learn.yb = (tuple(o.to(self.dtype) if isinstance(o, torch.Tensor) and o.is_floating_point() else o for o in b) for b in (self.xb, self.yb))


class EachLoss(Callback):
    "The loss of each step"
    def before_fit(self): self.found = []
    def after_loss(self):
        if self.training: self.found.append(self.loss.item())
        self.learn.loss = self.loss.float()  # fastai's running mean is in single precision


def specvit():
    net = SpecViT(SpecViTConfig.tiny(labels=('teff', 'logg', 'feh'), quantiles=LEVELS, dropout=.1))
    xb = (real(N, 64), coin(N, 64, p=.9))
    return net, fixed_stars(xb, holes(real(N, 3, seed=2)), BATCH), fixed_stars(xb, real(N, 3, seed=2), 16, fixed=True), partial(pinball, levels=LEVELS), ()


def noisy():
    "Noise on the fly, then SpecViT"
    net, _, _, loss, _ = specvit()
    xb = (real(N, 64), .1 + real(N, 64, seed=3).abs())
    class Inputs(Callback):
        order = 20
        def before_batch(self): self.learn.xb = self.xb[:1]
    return net, fixed_stars(xb, real(N, 3, seed=2), BATCH), fixed_stars(xb, real(N, 3, seed=2), 16, fixed=True), loss, (NoiseOnTheFly(), Inputs())


def parts():
    "The same, each process making its own rows"
    net, _, valid, loss, cbs = noisy()
    flux, sigma, y = real(N, 64), .1 + real(N, 64, seed=3).abs(), real(N, 3, seed=2)
    def fetch(rows, gen):
        if world() > 1 and len(rows) > 6: raise BadInput('rows', 'are too many for one of two processes')
        return flux[rows], sigma[rows], y[rows]
    load = lambda **kw: Loader(fetch, EveryRow(N), BATCH, device='cpu', part=(rank(), world()), **kw)
    return net, load(), load(fixed=True), loss, cbs


def spectra():
    net = DesaSpectra(SpectraEncoderConfig.tiny(dropout=.2))
    xb = (real(N, 64), coin(N, 64, p=.9), real(N, seed=4).abs()*30)
    return net, fixed_stars(xb, holes(real(N, 3, seed=2)), BATCH), fixed_stars(xb, real(N, 3, seed=2), 16, fixed=True), desa_loss, (MaskForFilling(),)


def lightcurve():
    config = LightCurveEncoderConfig.tiny(axis=False)
    xb = (real(N, 2, 80), real(N, 2, 64).abs(), coin(N, 80, p=.9), real(N, 2, 80, seed=5), real(N, 2, 64, seed=6).abs(), coin(N, 80, p=.9, seed=7))
    y = holes(real(N, 1, seed=2))
    return TwoViews(DesaLightCurve(config)), fixed_stars(xb, y, BATCH), fixed_stars(xb, y, 16, fixed=True), partial(pair_loss, levels=config.quantiles), (CollapseMonitor(lambda p: p[2], 0),)


def fusion(**changes):
    net = StarClassifierFusion(StarClassifierConfig.tiny(hide=.4, dropout=.1, **changes))
    xb = (real(N, 64), coin(N, 64, p=.9), real(N, 5, seed=3), coin(N, 5, p=.9, seed=4))
    y = holes(coin(N, 3).double())
    return net, fixed_stars(xb, y, BATCH), fixed_stars(xb, y, 16, fixed=True), ClassLoss(True, torch.tensor([1., 5., 2.])), ()


def pairs(method, seed=0, **options):
    config = DualFormerConfig.tiny()
    net = DualFormer(config) if method == 'dual' else TwoTowers(TwoTowersConfig.like(config, predictor=method == 'simsiam'))
    star = torch.arange(N)//2
    xb = (real(N, 10), real(N, 6, seed=3), holes(real(N, 6, seed=4)))
    cbs = (Momentum(.9, 30),) if method == 'moco' else ()
    return net, paired_stars(xb, star, BATCH), paired_stars(xb, star, 16, fixed=True), aligner_loss(method, **options), (CollapseMonitor(lambda o: torch.cat([o.p1, o.p2], 1), 0), *cbs)


def cubes(p=.5, bad=.995):
    config = GuidedMAEConfig.tiny()
    size = config.size
    f = Fields(real(N, config.bands, size, size).float(), coin(N, config.bands, size, size, p=bad), {k: real(N, c, size, size, seed=i).float() for i, (k, c) in enumerate(zip(config.modalities, config.channels))},
               coin(N, len(config.modalities), p=p))
    loss = lambda out, _: guided_loss(Guided(*out)).total
    return FieldNet(GuidedMAE(config), tuple(f.images)), field_batches(f, BATCH, withhold=.3 if p < 1 else 0), field_batches(f, 16, fixed=True), loss, ()


CASES = dict(specvit=specvit, noisy=noisy, parts=parts, spectra=spectra, lightcurve=lightcurve, fusion=fusion, dual=partial(pairs, 'dual', variance=1.), vicreg=partial(pairs, 'vicreg'), simsiam=partial(pairs, 'simsiam'),
             clip=partial(pairs, 'clip', names=True), moco=partial(pairs, 'moco', names=True), cubes=cubes, few_cubes=partial(cubes, .08), whole_cubes=partial(cubes, 1., 1.))


class Stop(Callback):
    "Ends the training after some batches, between two checkpoints"
    order = 95
    def __init__(self, batches): self.batches = batches
    def after_batch(self):
        if self.training and self.train_iter == self.batches: raise CancelFitException


def train(case, dtype, epochs=EPOCHS, checkpoint=None, stop=None, **learner):
    "Losses of all steps, history, weights"
    seed_everything(0)
    net, load, valid, loss, cbs = CASES[case]()
    seed_everything(1)
    losses = EachLoss()
    learn = make_learner(net.to(dtype), load, valid, loss.to(dtype) if isinstance(loss, torch.nn.Module) else loss, (Floats(dtype), losses, *cbs, *([Stop(stop)] if stop else [])), **learner)
    history = train_cosine(learn, epochs, lr=3e-3, checkpoint=checkpoint, steps=2)
    moco = [o for o in cbs if isinstance(o, Momentum)]
    queue = [o.double() for o in moco[0].queue.kept] if moco else []
    return losses.found, history.drop(columns='seconds').to_dict('list'), {k: v.detach().clone() for k, v in net.state_dict().items()}, queue


def far(a, b): return max(((x.double() - y.double()).abs().max()/y.double().abs().max().clamp(min=1e-3)).item() for x, y in zip(a, b))


def resumed(case, dtype, path):
    "History and weights of a training that stopped after seven batches and was taken up from its checkpoint of the sixth"
    train(case, dtype, checkpoint=path, stop=7)
    losses, *rest = train(case, dtype, checkpoint=path)
    return rest if len(losses) == 4 else None


def main(out, *asked):
    jobs = [(o.split(':')[0], torch.float64 if 'double' in o else torch.float32, 'shard' in o) for o in asked]
    size = os.environ.pop('WORLD_SIZE')
    alone = {job[:2]: train(*job[:2]) for job in jobs} if os.environ['RANK'] == '0' else {}
    told, os.environ['WORLD_SIZE'] = {}, size
    with processes():
        for name, (case, dtype, shard) in zip(asked, jobs):
            os.environ['ACCELERATE_USE_FSDP'] = str(shard)
            losses, history, state, queue = train(case, dtype)
            again = resumed(case, dtype, Path(out).with_name(f'{case}.checkpoint')) if 'resumed' in name else None
            if rank(): continue
            l0, h0, s0, q0 = alone[case, dtype]
            told[name] = dict(resumed=again and history == again[0] and all(a.equal(b) for a, b in zip([*state.values(), *queue], [*again[1].values(), *again[2]])), alone=l0, together=losses, history=far(map(torch.tensor, history.values()), map(torch.tensor, h0.values())), weights=far(state.values(), s0.values()),
                              steps=[abs(a - b)/abs(b) for a, b in zip(losses, l0)], queue=far(queue, q0) if q0 else 0., world=world())
        if told: Path(out).write_text(json.dumps(told))
        if rank(): raise BadInput('star 7', 'has no flux')  # while the first process waits
        torch.distributed.barrier()


if __name__ == '__main__': main(*sys.argv[1:])
