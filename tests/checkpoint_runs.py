"""Tiny trainings of every kind, killed with SIGKILL and taken up again; run by test_checkpoint.py, which imports the library once for all.

python checkpoint_runs.py FOLDER SEED TRIES KIND... prints a line of JSON for each kind; each is killed up to TRIES times."""
import json
import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.callback.training import GradientAccumulation
from safetensors.torch import save_file
from torch import nn

from stellar_nb.core import generator, seed_everything
from stellar_nb.data.fields import Fields
from stellar_nb.data.labels import LabelScale
from stellar_nb.data.preprocess import PreprocessConfig
from stellar_nb.data.views import ViewConfig, Views
from stellar_nb.encoders.lightcurve import LightCurveEncoderConfig
from stellar_nb.encoders.spectra import DesaSpectra, SpectraEncoderConfig
from stellar_nb.models.dualformer import DualFormer, DualFormerConfig
from stellar_nb.models.mae import GuidedMAEConfig
from stellar_nb.models.mamba_fusion import StarClassifierConfig, StarClassifierFusion
from stellar_nb.models.specvit import SpecViT, SpecViTConfig
from stellar_nb.models.towers import TwoTowers, TwoTowersConfig
from stellar_nb.objectives.classes import ClassLoss
from stellar_nb.objectives.quantile import pinball
from stellar_nb.recipes.lightcurve import ViewSet, fit_views
from stellar_nb.recipes.spectra import MaskForFilling, desa_loss
from stellar_nb.train.callbacks import NoiseOnTheFly, PreprocessBatch
from stellar_nb.train.checkpoint import Checkpoint
from stellar_nb.train.finetune import HidePatches, Jitter
from stellar_nb.train.heads import HeadConfig, SlowAligner, TransformerHead, Tuned
from stellar_nb.train.learner import Fresh, Repeated, fixed_stars, make_learner, train_cosine
from stellar_nb.train.mae import fit_mae
from stellar_nb.train.momentum import paired_stars, train_aligner

WAVE = torch.linspace(4000., 4100., 64)


def spectra(n, gen, more=()):
    "Fresh noise-free stars"
    flux = 1 + .2*torch.rand(n, 64, generator=gen)
    return (flux, .1*torch.ones(n, 64), torch.zeros(n), *(torch.full((n,), 20.) for _ in more)), torch.randn(n, 3, generator=gen)


def identity(wave, flux, ivar, rv): return flux - 1, ivar > 0


def specvit(path):
    "Fresh stars in blocks, noise, jitter, hidden patches, dropout"
    seed_everything(0)
    net = SpecViT(SpecViTConfig.tiny(dropout=.1, labels=('teff', 'logg', 'feh'), quantiles=(.16, .5, .84)))
    learn = make_learner(net, Fresh(spectra, 6, 16, block=4), Fresh(spectra, 2, 32, 1, fixed=True), lambda q,y: pinball(q, y, (.16, .5, .84)),
                         cbs=(NoiseOnTheFly(), PreprocessBatch(WAVE, identity), HidePatches(.2, 8)))
    return net, train_cosine(learn, 3, checkpoint=path)


class OwnDraws(Callback):
    "Uses the generators of Python and NumPy, and one of its own"
    order,keeps = 12,('gen',)
    def __init__(self): self.gen = generator(5)
    def before_batch(self):
        x,*rest = self.xb
        self.learn.xb = (x + .1*random.random() + .1*np.random.randn() + .1*torch.rand(1, generator=self.gen), *rest)


def jittered(path):
    "Stars in memory, gradients of two batches gathered, a callback that draws by itself"
    seed_everything(0)
    (x,s,rv),y = spectra(70, generator(1))
    net = SpecViT(SpecViTConfig.tiny(labels=('teff', 'logg', 'feh')))
    learn = make_learner(net, fixed_stars((x, s, rv), y, 10), fixed_stars((x, s, rv), y, 64, fixed=True), nn.functional.l1_loss,
                         cbs=(Jitter(), PreprocessBatch(WAVE, identity), OwnDraws(), GradientAccumulation(20)))
    return net, train_cosine(learn, 3, checkpoint=path)


def fusion(path):
    "Classifier of spectra and Gaia columns, one of which is hidden at random; a `make` that draws"
    seed_everything(0)
    c = StarClassifierConfig.tiny(hide=.5, dropout=.1)
    net,g = StarClassifierFusion(c),generator(2)
    x,good,gaia,y = torch.randn(50, 64, generator=g), torch.rand(50, 64, generator=g) > .1, torch.randn(50, 5, generator=g), (torch.rand(50, 3, generator=g) > .5).float()
    train = Repeated(lambda i,_,gen: ((x[i] + .1*torch.randn(len(i), 64, generator=gen), good[i], gaia[i] + .1*torch.randn(len(i), 5), torch.ones(len(i), 5) > 0), y[i]), 50, 8, drawn=True)
    valid = Repeated(lambda i,_: ((x[i] + .1*torch.randn(len(i), 64), good[i], gaia[i], torch.ones(len(i), 5) > 0), y[i]), 20, 8, fixed=True)
    return net, train_cosine(make_learner(net, train, valid, ClassLoss(True), weight_decay=.05), 3, lr=3e-3, checkpoint=path)


def hybrid(path):
    "Spectra encoder with labels and masked filling"
    seed_everything(0)
    net = DesaSpectra(SpectraEncoderConfig.tiny(labels=('teff', 'logg', 'feh'), quantiles=(.1, .25, .5, .75, .9)))
    make = lambda n,gen: spectra(n, gen, ('snr',))
    learn = make_learner(net, Fresh(make, 6, 16), Fresh(make, 2, 32, 1, fixed=True), desa_loss, cbs=(NoiseOnTheFly(), PreprocessBatch(WAVE, identity), MaskForFilling()))
    return net, train_cosine(learn, 3, checkpoint=path)


def lightcurve(path):
    "Two views of each star, batch statistics, the collapse monitor"
    c,g = LightCurveEncoderConfig.tiny(),generator(3)
    view = lambda: Views(torch.randn(40, 2, c.length, generator=g), torch.randn(40, 2, c.grid, generator=g), torch.ones(40, c.length) > 0)
    data = ViewSet(view(), view(), torch.randn(40, 1, generator=g), None)
    return fit_views(data, data, c, LabelScale(('lnprot',), (1.,), (.7,)), 3, (.2, 5.), batch=8, checkpoint=path)


def moco(path):
    "DualFormer with a slow copy and a queue, stars that were visited several times"
    g = generator(4)
    star = torch.arange(40).repeat_interleave(torch.randint(1, 4, (40,), generator=g))
    xb = torch.randn(len(star), 10, generator=g), torch.randn(len(star), 6, generator=g), torch.randn(len(star), 6, generator=g)
    seed_everything(0)
    net = DualFormer(DualFormerConfig.tiny(dropout=.1))
    return net, train_aligner(net, paired_stars(xb, star, 8, unique=True), paired_stars(xb, star, fixed=True), 'moco', 3, momentum=(.9, 30), low=0., names=True, checkpoint=path)


def mae(path):
    "Guided MAE: turned squares, withheld images, random masks"
    c,g = GuidedMAEConfig.tiny(),generator(6)
    def fields(n): return Fields(torch.randn(n, c.bands, c.size, c.size, generator=g), torch.ones(n, c.bands, c.size, c.size) > 0,
                                 {k: torch.randn(n, m, c.size, c.size, generator=g) for k,m in zip(c.modalities, c.channels)}, torch.rand(n, 3, generator=g) > .2)
    return fit_mae(fields(40), fields(10), c, 3, batch=8, checkpoint=path)


def tuned(path):
    "Two groups of parameters with rates of their own"
    seed_everything(0)
    g = generator(7)
    aligner = TwoTowers(TwoTowersConfig.like(DualFormerConfig.tiny()))
    widths = tuple(o.shape[1] for o in aligner(torch.zeros(2, 10), torch.zeros(2, 6), torch.zeros(2, 6))[:2])
    net = Tuned(aligner, TransformerHead(HeadConfig(widths=widths, dim=8, heads=2)))
    xb,y = (torch.randn(40, 10, generator=g), torch.randn(40, 6, generator=g), torch.randn(40, 6, generator=g)), torch.randn(40, 1, generator=g)
    learn = make_learner(net, fixed_stars(xb, y, 8), fixed_stars(xb, y, 40, fixed=True), lambda p,y: (p.reshape(y.shape) - y).abs().mean(), cbs=(SlowAligner(.1),))
    return net, train_cosine(learn, 3, checkpoint=path)


KINDS = dict(specvit=specvit, jittered=jittered, fusion=fusion, hybrid=hybrid, lightcurve=lightcurve, moco=moco, mae=mae, tuned=tuned)
EVENTS = ('before_batch', 'after_pred', 'after_backward', 'after_step', 'after_batch', 'before_validate', 'after_epoch')


def finish(kind, folder, path):
    "Train to the end; weights and history as files"
    net,history = KINDS[kind](path)
    save_file({k: v.contiguous().clone() for k,v in net.state_dict().items()}, folder/'weights.safetensors')
    (folder/'history.json').write_text(history.drop(columns='seconds').to_json(double_precision=15))


def in_a_fork(f, after=None):
    "Exit status of a child that does f; killed after some seconds, or by itself (-9)"
    if not (pid := os.fork()):
        try: f()
        except BaseException as e:
            print(f'{type(e).__name__}: {e}', file=sys.stderr, flush=True); os._exit(1)
        os._exit(0)
    if after is not None: time.sleep(after); os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def dangerous(rng):
    "Checkpoints at random moments, and a SIGKILL at a random event or within the writing of a file"
    left,event,often,within = rng.randint(1, 12), rng.choice(EVENTS), rng.random(), rng.random() < .25
    def die():
        nonlocal left
        left -= 1
        if left <= 0: os.kill(os.getpid(), signal.SIGKILL)
    Checkpoint.due = lambda self: rng.random() < .1 + often
    if not within:
        class Death(Callback):
            order = 99
        setattr(Death, event, lambda self: die())
        import fastai.learner
        fastai.learner.defaults.callbacks = [*fastai.learner.defaults.callbacks, Death]
        return
    import hashlib
    real = hashlib.sha256
    class Deadly: # the digest is updated for each part that is written
        def __init__(self): self.sha = real()
        def update(self, part):
            self.sha.update(part)
            if left <= 1 and rng.random() < .1: os.kill(os.getpid(), signal.SIGKILL)
        def digest(self): die(); return self.sha.digest()
    hashlib.sha256 = Deadly


def trial(kind, folder, seed, most):
    "Undisturbed against killed at random; dict of what happened"
    rng,calm,cut = random.Random(f'{kind} {seed}'),folder/'calm',folder/'cut'
    for o in (calm, cut): o.mkdir(parents=True)
    began = time.perf_counter()
    finish(kind, calm, None) # in this process, so that what is slow the first time is slow once
    took,kills,tries = time.perf_counter() - began,0,0
    while True:
        tries += 1
        wild = tries <= most
        lot = random.Random(rng.random())
        def run():
            if wild: dangerous(lot)
            else: Checkpoint.due = lambda self: lot.random() < .3
            finish(kind, cut, cut/'run.safetensors')
        status = in_a_fork(run, rng.random()*took if wild and rng.random() < .25 else None)
        if status == -9: kills += 1
        elif status == 0: break
        else: raise SystemExit(f'{kind}, seed {seed}: exit status {status}')
    same = {o: (calm/o).read_bytes() == (cut/o).read_bytes() for o in ('weights.safetensors', 'history.json')}
    return dict(kind=kind, seed=seed, kills=kills, **same, left=sorted(o.name for o in cut.iterdir()), seconds=round(time.perf_counter() - began, 1))


if __name__ == '__main__':
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    folder,seed,most,*kinds = sys.argv[1:]
    for k in kinds or KINDS: print(json.dumps(trial(k, Path(folder)/f'{k}{seed}', seed, int(most))), flush=True)
