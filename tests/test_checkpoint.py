"Checkpoints from outside: killed runs, damaged and foreign files, full disks, whatever holds state; and nothing is ever unpickled"
import ast
import errno
import json
import os
import re
import resource
import signal
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from fastai.callback.core import Callback
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from stellar_nb import core
from stellar_nb.core import BadInput, atomic_path, leftovers, seed_everything
from stellar_nb.train import checkpoint
from stellar_nb.train.callbacks import NoiseOnTheFly
from stellar_nb.train.checkpoint import Checkpoint, read_state, write_state
from stellar_nb.train.learner import Fresh, make_learner, train_cosine
from stellar_nb.train.momentum import Momentum

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT/'stellar_nb').rglob('*.py'))
KINDS = ('specvit', 'jittered', 'fusion', 'hybrid', 'lightcurve', 'moco', 'mae', 'tuned')


# killed runs

def killed(tmp_path, seed, tries):
    env = dict(os.environ, OMP_NUM_THREADS='1', IN_TEST='1', PYTHONPATH=str(ROOT))
    out = subprocess.run([sys.executable, Path(__file__).with_name('checkpoint_runs.py'), tmp_path, str(seed), str(tries)], capture_output=True, text=True, env=env, timeout=900)
    assert out.returncode == 0, out.stderr
    rows = [json.loads(o) for o in out.stdout.splitlines()]
    assert tuple(r['kind'] for r in rows) == KINDS and sum(r['kills'] for r in rows) >= len(KINDS)
    for r in rows: assert r['weights.safetensors'] and r['history.json'] and r['left'] == ['history.json', 'run.safetensors', 'weights.safetensors'], r


def test_killed_at_random_and_taken_up_is_the_run_without_a_kill(tmp_path): killed(tmp_path, 0, 2)


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(1, 9))
def test_killed_again_and_again(tmp_path, seed): killed(tmp_path, seed, 6)


# a small training

def stars(n, g): return torch.randn(n, 3, generator=g), torch.randn(n, 1, generator=g)


def train(path=None, cbs=(), steps=1, hidden=8, lr=.01, n=10, make=stars, **kw):
    seed_everything(0)
    net = nn.Sequential(nn.Linear(3, hidden), nn.Dropout(.2), nn.Linear(hidden, 1))
    learn = make_learner(net, Fresh(make, n, 8), Fresh(stars, 2, 16, 1, fixed=True), nn.functional.mse_loss, cbs=cbs, **kw)
    return net, train_cosine(learn, 3, lr=lr, checkpoint=path, steps=steps)


class StopAt(Callback):
    def __init__(self, epoch, batch): self.at = epoch,batch
    def after_backward(self):
        if (self.epoch, self.iter) == self.at: raise KeyboardInterrupt


def cut(path, epoch=1, batch=4, **kw):
    with pytest.raises(KeyboardInterrupt): train(path, (StopAt(epoch, batch), *kw.pop('cbs', ())), **kw)
    return path.read_bytes()


@pytest.fixture
def path(tmp_path): return tmp_path/'run.safetensors'


def test_what_is_done_is_not_made_again(path):
    made = []
    def make(n, g): made.append(1); return stars(n, g)
    cut(path, 1, 4, make=make)
    assert len(made) == 15
    made.clear(); train(path, make=make)
    assert len(made) == 30 - 14, 'the batch that was cut off, and those after it'
    made.clear(); _,history = train(path, make=make)
    assert not made and len(history) == 3


def test_counters(path):
    seen = []
    class See(Callback):
        def before_batch(self):
            if self.training: seen.append((self.epoch, self.iter, self.n_iter, self.train_iter, self.pct_train, self.opt.hypers[-1]['lr'], getattr(self.learn, 'smooth_loss', None)))
    train(cbs=(See(),)); whole = seen.copy()
    seen.clear(); cut(path, cbs=(See(),)); train(path, (See(),))
    assert seen[:14] == whole[:14] and [o[:6] for o in seen[15:]] == [o[:6] for o in whole[14:]] and [o[6] for o in seen[16:]] == [o[6] for o in whole[15:]]


def test_readable_by_others(path):
    cut(path)
    with safe_open(path, 'pt') as f: assert f.get_tensor('model.0.weight').shape == (8, 3) and f.get_tensor('sha256').shape == (32,)


# damaged and foreign files

def refused(path, words):
    before = path.read_bytes()
    with pytest.raises(BadInput) as e: train(path)
    assert str(e.value).startswith(f'{path}: ') and re.search(words, str(e.value)) and '\n' not in str(e.value), str(e.value)
    assert path.read_bytes() == before and not leftovers(path)


def test_truncated_anywhere(path):
    whole = cut(path)
    head = 8 + struct.unpack('<Q', whole[:8])[0]
    for n in (0, 1, 7, 8, 9, 100, head//2, head - 1, head, head + 1, (head + len(whole))//2, len(whole) - 33, len(whole) - 32, len(whole) - 1):
        path.write_bytes(whole[:n]); refused(path, 'not a readable checkpoint')
    path.write_bytes(whole + b'x'); refused(path, 'not a readable checkpoint')


def test_one_bit_anywhere(path):
    whole = cut(path)
    for i in range(0, len(whole), max(1, len(whole)//150)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 1 << i % 8]) + whole[i+1:])
        with pytest.raises(BadInput, match='checkpoint'): read_state(path)
    refused(path, 'checkpoint')


@pytest.mark.parametrize('n', [2**63 + 5, 2**40, 99_000_000])
def test_absurd_header_takes_no_memory(path, n):
    path.write_bytes(struct.pack('<Q', n) + b'{"a":' + b' '*1000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(path, 'not a readable checkpoint')
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40_000, 'kB'


class Trap:
    def __init__(self, path): self.path = path
    def __reduce__(self): return Path.touch, (self.path,)


@pytest.mark.parametrize('zipped', [True, False])
def test_pickle(path, tmp_path, zipped):
    torch.save(dict(model=Trap(tmp_path/'sprung')), path, _use_new_zipfile_serialization=zipped)
    refused(path, 'a pickle, which could run code and is never opened')
    assert not (tmp_path/'sprung').exists()


def test_other_safetensors(path):
    save_file({'model.0.weight': torch.zeros(8, 3)}, path); refused(path, 'no checkpoint of this version')
    save_file({'model.0.weight': torch.zeros(8, 3)}, path, {checkpoint.FORMAT: '{}'}); refused(path, 'not a readable checkpoint')
    write_state(path, dict(a=1)); refused(path, 'the checkpoint of another run')


def test_forged(path):
    "Right digest, wrong content: one sentence all the same"
    for state in ({}, dict(at=3), dict(at=(0, 1), loader=0)):
        path.unlink(missing_ok=True); cut(path)
        facts = read_state(path)[1]
        write_state(path, state, facts); refused(path, 'the checkpoint of another run|not a readable checkpoint')


def test_a_folder_in_its_place(tmp_path):
    with pytest.raises(BadInput, match='not a readable checkpoint'): train(tmp_path)


def test_another_run(path, monkeypatch):
    cut(path, cbs=(NoFlux(),))
    for words,change in {'lr is 0.01 there and 0.02 here': dict(lr=.02), 'network.0.weight is .8, 3. there and .9, 3. here': dict(hidden=9), 'batches is 10 there and 11 here': dict(n=11),
                         'optimizer.0.weight_decay is 0.01 there and 0.5 here': dict(weight_decay=.5)}.items():
        with pytest.raises(BadInput) as e: train(path, **{**dict(cbs=(NoFlux(),)), **change})
        assert re.search(f'the checkpoint of another run: {words}; delete it', str(e.value)) and '\n' not in str(e.value), str(e.value)
    with pytest.raises(BadInput, match='no_flux on one side only'): train(path)
    monkeypatch.setattr('stellar_nb.__version__', '99.0')
    with pytest.raises(BadInput, match='stellar_nb is .* there and 99.0 here'): train(path, (NoFlux(),))


class NoFlux(Callback):
    keeps = ('count',)
    def __init__(self): self.count = 0
    def after_batch(self): self.count += 1


# full disks

class Quota(Callback):
    "From one batch to another no file may be longer than some bytes"
    def __init__(self, first, last, size=2000): self.between,self.size = (first, last),size
    def before_batch(self): limit(self.size if self.between[0] <= self.train_iter < self.between[1] else None)


def limit(size):
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if size is None else size, hard))


def test_full_disk_in_the_middle(path):
    whole,history = train()
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            with pytest.raises(KeyboardInterrupt): train(path, (Quota(5, 99), StopAt(2, 0)))
    finally: limit(None)
    said = [str(o.message) for o in said if 'checkpoint' in str(o.message)]
    assert len(said) == 1 and said[0] == f'{path}: the checkpoint cannot be written (File too large); the last good one is kept, and training goes on'
    assert read_state(path)[0]['at'] == (0, 5) and not leftovers(path)
    again,history2 = train(path)
    assert all(a.equal(b) for a,b in zip(whole.parameters(), again.parameters()))
    assert history.drop(columns='seconds').equals(history2.drop(columns='seconds'))


def test_full_disk_at_the_start(path):
    limit(2000)
    try:
        with pytest.raises(BadInput) as e: train(path)
    finally: limit(None)
    assert str(e.value) == f'{path}: the checkpoint cannot be written (File too large)' and not list(path.parent.iterdir())


def test_tiny_disk(tmp_path):
    disk = tmp_path/'disk'; disk.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', disk], capture_output=True).returncode: pytest.skip('may not mount')
    try:
        path = disk/'run.safetensors'
        old = cut(path, 0, 3)
        (disk/'junk').write_bytes(b'x'*(64*1024 - 2*len(old)//4096*4096 - 8192)) if len(old) < 28_000 else None
        while True:
            try:
                with open(disk/'more', 'ab') as f: f.write(b'x'*4096)
            except OSError as e: assert e.errno == errno.ENOSPC; break
        with pytest.raises(BadInput, match=re.escape('the checkpoint cannot be written (No space left on device); the last good one is kept')): train(path)
        assert path.read_bytes() == old and not leftovers(path)
        for o in ('junk', 'more'): (disk/o).unlink(missing_ok=True)
        assert len(train(path)[1]) == 3
    finally: subprocess.run(['umount', disk], check=True)


def test_no_permission_is_one_sentence(tmp_path):
    (tmp_path/'file').write_text('')
    with pytest.raises(BadInput, match='the checkpoint cannot be written'): train(tmp_path/'file'/'run.safetensors')


def test_killed_within_the_write(path):
    old = cut(path)
    if not (pid := os.fork()):
        checkpoint._raw = lambda t: os.kill(os.getpid(), signal.SIGKILL) if t.numel() == 8 else torch.zeros(1).numpy()
        try: write_state(path, read_state(path)[0])
        finally: os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert path.read_bytes() == old and len(leftovers(path)) == 1
    train(path)
    assert not leftovers(path)


def test_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    did = []
    for name in ('fsync', 'replace'):
        monkeypatch.setattr(core.os, name, lambda *a, name=name, f=getattr(os, name): (did.append(name), f(*a))[1])
    with atomic_path(tmp_path/'a') as p: p.write_text('a')
    assert did == ['fsync', 'replace', 'fsync']


def test_interval(path, monkeypatch):
    written = []
    monkeypatch.setattr(checkpoint, 'write_state', lambda path,state,facts: written.append(state['at']))
    train(path, steps=None)
    assert written == [(0, 0), (3, 0)], 'at the start and at the end of a short training'
    cb = Checkpoint(path, {})
    cb.wrote,cb.last,cb.took = True,checkpoint.time.monotonic() - 90,1.5
    assert not cb.due(), 'a write of 1.5 s waits 150 s'
    cb.took = .1
    assert cb.due()


# whatever holds state

FLEETING = { # made anew for each batch, each validation or each fit
    'NoiseOnTheFly': {'gen'}, 'MaskForFilling': {'gen'}, 'TrainingLog': {'bar', 'began'}, 'CollapseMonitor': {'kept'}, 'Momentum': {'keys'},
    'Checkpoint': {'state', 'facts', 'last', 'took', 'wrote', 'failing'}}
CHANGES = {'append', 'extend', 'add', 'update', 'push', 'pop', 'insert', 'clear', 'setdefault', 'popleft', 'appendleft'}


def callbacks():
    for p in MODULES:
        for node in ast.walk(ast.parse(p.read_text())):
            if isinstance(node, ast.ClassDef) and any(getattr(b, 'id', '') == 'Callback' for b in node.bases): yield p,node


def changed(node):
    "Attributes that a callback changes after it was made, or that are a generator"
    def own(o): return o.attr if isinstance(o, ast.Attribute) and isinstance(o.value, ast.Name) and o.value.id == 'self' else None
    def flat(o): return [x for e in o.elts for x in flat(e)] if isinstance(o, (ast.Tuple, ast.List)) else [o.value if isinstance(o, (ast.Subscript, ast.Starred)) else o]
    out = set()
    for f in (o for o in node.body if isinstance(o, ast.FunctionDef)):
        for n in ast.walk(f):
            targets = [t for o in getattr(n, 'targets', [getattr(n, 'target', None)]) if o is not None for t in flat(o)] if isinstance(n, (ast.Assign, ast.AugAssign, ast.AnnAssign)) else []
            if f.name != '__init__': out |= {own(t) for t in targets}
            elif isinstance(n, ast.Call) and getattr(n.func, 'id', getattr(n.func, 'attr', '')) in ('generator', 'Generator', 'default_rng'):
                out |= {own(t) for s in f.body if n in ast.walk(s) for t in (x for o in getattr(s, 'targets', []) for x in flat(o))}
            if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute) and n.func.attr in CHANGES: out.add(own(n.func.value))
    return out - {None}


def pairs(o): # the parts of an assignment
    t,v = o.targets[0],o.value
    return zip(t.elts, v.elts) if isinstance(t, ast.Tuple) and isinstance(v, ast.Tuple) else [(t, v)]


@pytest.mark.parametrize('path, node', list(callbacks()), ids=lambda o: getattr(o, 'name', ''))
def test_no_state_is_forgotten(path, node):
    "A callback that remembers something says so in `keeps`; what lasts no longer than a batch or a validation stands above"
    keeps = {n.split('.')[0] for o in node.body if isinstance(o, ast.Assign) for t,v in pairs(o) if getattr(t, 'id', '') == 'keeps' for n in ast.literal_eval(v)}
    assert changed(node) <= keeps | FLEETING.get(node.name, set()), f'{path.name}, {node.name}: put {changed(node) - keeps - FLEETING.get(node.name, set())} into keeps'


def test_that_test():
    forgetful = ast.parse('class A(Callback):\n def __init__(self): self.gen = generator(1)\n def after_batch(self): self.n += 1; self.seen.append(2); self.a,self.b[0] = 1,2').body[0]
    assert changed(forgetful) == {'gen', 'n', 'seen', 'a', 'b'} and {n.name for _,n in callbacks()} >= {'TrainingLog', 'Momentum', 'CollapseMonitor', 'Checkpoint', 'SlowAligner'}
    assert Momentum.keeps == ('slow', 'queue.kept') and not hasattr(NoiseOnTheFly, 'keeps')


# nothing is unpickled

def name_of(f): return f'{name_of(f.value)}.{f.attr}' if isinstance(f, ast.Attribute) else getattr(f, 'id', '')


@pytest.mark.parametrize('path', MODULES, ids=lambda p: str(p.relative_to(ROOT/'stellar_nb')))
def test_nothing_is_unpickled_or_run(path):
    tree = ast.parse(path.read_text())
    modules = {n.split('.')[0] for o in ast.walk(tree) for n in ([a.name for a in o.names] if isinstance(o, ast.Import) else [o.module or ''] if isinstance(o, ast.ImportFrom) and not o.level else [])}
    assert not modules & {'pickle', '_pickle', 'dill', 'cloudpickle', 'joblib', 'shelve', 'marshal', 'yaml', 'jsonpickle', 'code'}
    for call in (o for o in ast.walk(tree) if isinstance(o, ast.Call)):
        name = name_of(call.func)
        assert name not in ('eval', 'exec', 'compile', 'torch.load', 'torch.jit.load', 'torch.hub.load', 'load_learner', 'pd.eval', 'os.system'), name
        assert name.split('.')[-1] not in ('read_pickle', 'to_pickle', 'read_hdf', 'to_hdf', 'unsafe_load', 'full_load', 'load_learner'), name
        keys = {k.arg: k.value for k in call.keywords}
        if name in ('np.load', 'numpy.load', 'np.lib.format.read_array'): assert isinstance(keys.get('allow_pickle'), ast.Constant), f'line {call.lineno}: say allow_pickle=False'
        if 'allow_pickle' in keys: assert keys['allow_pickle'].value is False, f'line {call.lineno}'
