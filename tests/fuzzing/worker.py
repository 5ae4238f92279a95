"Cases run in a forked process, which is killed when it hangs; libraries are imported once, by the parent"
import collections
import contextlib
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from . import content, mutate, oracle, seeds, traps

with contextlib.suppress(ImportError): import specutils  # noqa: F401 - once, by the parent

CHUNK = 300  # cases of a process
SPARE = 3*2**30  # address space of a process beyond what it has at the start


def _serve(conn, good, home):
    "Runs the cases that come down the pipe"
    import torch
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(k, 'w', closefd=False), 'utf-8', 'backslashreplace', write_through=True) for k in (1, 2))  # not those of pytest
    os.environ.update(HOME=str(home), XDG_CACHE_HOME=str(home), MPLBACKEND='agg', COLUMNS='120', IN_TEST='1')
    os.environ.pop('STELLAR_NB_MODELS', None)
    get, _ = os.pipe()
    os.dup2(get, 0)  # whoever reads from the keyboard hangs
    with open('/proc/self/statm') as f: limit = int(f.read().split()[0])*resource.getpagesize() + SPARE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while (case := conn.recv()) is not None:
        target, path, base, size = case
        os.chdir(base/'cwd')
        tempfile.tempdir = str(base/'tmp')
        try: conn.send(oracle.judge(target, path, good, base, size))
        except BaseException as e: conn.send(dict(outcome='judge', problems=[f'the judge itself failed: {type(e).__name__}: {e}'], said='', mega=0, seconds=0))


class Worker:
    "A process that runs cases, and another one when it dies"
    def __init__(self, folder):
        self.folder, self.process, self.n = Path(folder), None, 0
        (self.folder/'home').mkdir(parents=True)
        self.good = seeds.make(self.folder/'good')
        self.forget()

    def forget(self): self.counts, self.failures, self.mega, self.slowest = collections.Counter(), [], 0., 0.

    def start(self):
        here, there = multiprocessing.Pipe()
        self.process = multiprocessing.get_context('fork').Process(target=_serve, args=(there, self.good, self.folder/'home'), daemon=True)
        self.process.start()
        there.close()
        self.pipe = here

    def stop(self):
        if self.process is None: return
        self.process.kill()
        self.process.join()
        self.pipe.close()
        self.process = None

    def run(self, target, recipe):
        "What happens to the file of a recipe"
        base = self.folder/f'case-{self.n}'
        self.n += 1
        for k in ('in', 'out', 'cwd', 'tmp'): (base/k).mkdir(parents=True)
        path = build(self.good, target, recipe, base/'in')
        size = sum(os.lstat(os.path.join(d, f)).st_size for d, _, files in os.walk(base/'in') for f in files)
        if self.n % CHUNK == 0: self.stop()
        if self.process is None: self.start()
        found = self._answer(target, path, base, size)
        self.counts[target, found['outcome']] += 1
        self.mega, self.slowest = max(self.mega, found['mega']), max(self.slowest, found['seconds'])
        if found['problems']: self._keep(target, path, base, recipe, found)
        else: shutil.rmtree(base)
        return found

    def _answer(self, target, path, base, size):
        self.pipe.send((target, str(path), base, size))
        try:
            if self.pipe.poll(oracle.PATIENCE): return self.pipe.recv()
            why = f'no answer within {oracle.PATIENCE} s'
        except EOFError:
            self.process.join()
            why = f'the process died ({self.process.exitcode})'
        self.stop()
        return dict(outcome='lost', problems=[why], said='', mega=0., seconds=0.)

    def _keep(self, target, path, base, recipe, found):
        self.failures.append(dict(target=target, recipe=recipe, file=str(path), problems=found['problems'], said=found['said']))

    def report(self):
        "Counts and failures in words"
        counts = ', '.join(f'{t} {n} {o}' for (t, o), n in sorted(self.counts.items()))
        return '\n'.join([f'{counts}; highest growth {self.mega:.0f} MB, slowest {self.slowest:.1f} s'] + [f"{json.dumps([f['target'], *f['recipe']])}\n    {'; '.join(f['problems'])}\n    file kept: {f['file']}" for f in self.failures])


NAMES = ('a b', "quo'te", 'quo"te', 'new\nline', 'tab\tand\r', '\x1b[2J\x1b[31mred', '-o', '--help', '-', '*', 'a[0]', '$(touch sprung)', '☃🔭', '\u202egnp', 'bytes\udcff\udcfe', '.hidden', '..', '%s%n', 'CON', 'x'*200, '\\', ' ', 'ra=1', 'é'*60)
name_of = {f'name {i}': o for i, o in enumerate(NAMES)}


def _spoil(good, seed, steps, name, folder):
    "A copy of a good file, spoiled step by step; each step is a number that seeds its choices"
    good = good[seed]
    copy = folder/((name_of[name] if name else good.stem) + good.suffix + '_'*(name == 'name 16'))
    if good.is_dir(): shutil.copytree(good, copy)
    else: shutil.copyfile(good, copy)
    for i, step in enumerate(steps):
        rng = random.Random(f'{seed} {i} {step}')
        part = copy if copy.is_file() else _member(copy, rng)
        data = part.read_bytes()
        part.write_bytes(mutate.KINDS[rng.choice(mutate.fitting(data))](data, rng))
    return copy/'c.hdr' if (copy/'c.hdr').exists() else copy


def _member(folder, rng):
    "A file of a folder: rather its header than its numbers"
    files = sorted(o for o in folder.iterdir() if o.name not in ('history.csv', 'training.json'))
    small = [o for o in files if o.suffix in ('.hdr', '.json')]
    return rng.choice(small if rng.random() < .7 else files)


def build(good, target, recipe, folder):
    "Write the file of a recipe; returns its path"
    kind, *rest = recipe
    if kind == 'spoil': return _spoil(good[oracle.OF.get(target, target)], *rest, folder)
    if kind == 'content': return content.write(target, tuple(rest[0]), rest[1], folder)
    return traps.TRAPS[rest[0]].build(folder)
