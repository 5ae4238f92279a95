#!/usr/bin/env python3
"""Reproduce the site from scratch: train at the laptop preset, execute copies of the notebooks that hold results, build the pages.

The git tree stays as it is: models and executed copies go to .cache/, the site to _docs/. A step whose inputs have not changed since it last
succeeded is not repeated. With --store the notebooks are executed in place instead, with the models that are shipped."""
import argparse, hashlib, os, shutil, subprocess, sys, time
from pathlib import Path

from stellar_nb.core import data_dir

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT/'.cache'
NBS = CACHE/'nbs'
TRAINED = {'specvit_lamost': 5}  # model → minutes on two cores at the laptop preset


def digest(*paths):
    "A fingerprint of files and folders"
    h = hashlib.sha256()
    for p in sorted(f for o in paths for f in (o.rglob('*') if o.is_dir() else [o]) if f.is_file() and '__pycache__' not in f.parts):
        h.update(str(p.relative_to(ROOT)).encode()+p.read_bytes())
    return h.hexdigest()


def step(name, key, done, work):
    "Do `work` unless the step `name` last succeeded with the same `key` and what it made, `done`, is still there"
    stamp,start = CACHE/'stamps'/name.replace('/', '_'),time.time()
    if done.exists() and stamp.exists() and stamp.read_text() == key: return print(f'  {name}: unchanged, kept', flush=True)
    print(f'  {name} ...', flush=True)
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    work()
    stamp.write_text(key)
    print(f'  {name}: {time.time()-start:.0f} s', flush=True)


def run(*cmd, **env): subprocess.run([sys.executable, *map(str, cmd)], check=True, cwd=ROOT, env={**os.environ, **env})


def results(base):
    "The notebooks that hold results, below `base`"
    return [p for d in ('figures', 'tutorials') for p in sorted((base/d).glob('*.ipynb')) if not p.name.startswith(('_', '.'))]


def execute(nb, **env):
    "Run a notebook and store its outputs in it"
    run('-c', 'import sys; from nbdev.test import test_nb; sys.exit(not test_nb(sys.argv[1], skip_flags=["slow", "cuda", "notest"], save=True)[0])', nb, **env)
    run('-c', 'import sys; from nbdev.clean import nbdev_clean; nbdev_clean(sys.argv[1])', nb)


def reproduce():
    if sys.version_info < (3, 11) and not shutil.which('quarto'): sys.exit('the site needs Python 3.11 or Quarto: make reproduce PYTHON=python3.12')
    lib = digest(ROOT/'stellar_nb')
    print(f'This takes about {sum(TRAINED.values()) + len(results(ROOT/"nbs"))//2 + 2} minutes on two cores; a second run only repeats what has changed.', flush=True)
    for name in TRAINED:
        step(f'train {name}', lib, CACHE/'models'/name, 
             lambda: run('-m', 'stellar_nb.recipes', name, '--preset', 'laptop', '--out', CACHE/'models', OMP_NUM_THREADS='1'))  # small batches: a second thread costs more than it gives
    for nb in results(ROOT/'nbs'):
        copy = NBS/nb.relative_to(ROOT/'nbs')
        def work():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(nb, copy)
            execute(copy, STELLAR_NB_MODELS=str(CACHE/'models'))
        step(f'execute {nb.relative_to(ROOT/"nbs")}', lib + digest(nb) + os.environ.get('STELLAR_NB_SMOKE', '') + str(data_dir()), copy, work)
    step('build the site', lib + digest(ROOT/'nbs', NBS, ROOT/'_quarto.yml', ROOT/'scripts'/'build_site.py'), ROOT/'_docs'/'index.html', lambda: run('scripts/build_site.py', '--executed', NBS))
    print(f'\nThe site: {ROOT/"_docs"/"index.html"}')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--store', action='store_true', help='execute the notebooks in place, with the shipped models')
    try: [execute(nb) for nb in results(ROOT/'nbs')] if parser.parse_args().store else reproduce()
    except subprocess.CalledProcessError as e: sys.exit(f'stopped: {" ".join(map(str, e.cmd[1:4]))} failed')
