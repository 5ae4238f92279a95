#!/usr/bin/env python3
"""Reproduce the site from scratch: train at the laptop preset, execute copies of the notebooks that hold results, build the pages.

The git tree stays as it is: models and executed copies go to .cache/, the site to _docs/. A step whose inputs have not changed since it last
succeeded is not repeated. With --store the notebooks are executed in place instead, with the models that are shipped."""
import argparse, hashlib, os, shutil, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from stellar_nb.core import data_dir
from stellar_nb.recipes.alignment import ABLATIONS, ALIGNERS, PLAIN

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT/'.cache'
NBS = CACHE/'nbs'
TRAINED = 'desa_lightcurve', 'specvit_pfs', 'specvit_lamost', 'desa_spectra', 'fusion_sky', 'desa_quarter', 'specvit_xp', 'guided_mae'  # at the laptop preset; minutes on one core each
FEATURES,RESULTS = CACHE/'features', CACHE/'results'  # of DESA's experiments
QUICK = tuple(k for k in (*ALIGNERS, *ABLATIONS, *PLAIN) if k != 'DESA, scalar tokens')  # these tokens alone take as long as all others
WORKERS = 2  # steps at a time, one thread each: small batches gain nothing from a second thread


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


def run(*cmd, log=None, **env):
    "Run Python; with `log` its output goes to that file, and to the terminal only if it fails"
    if log: log.parent.mkdir(parents=True, exist_ok=True)
    out = dict(stdout=log.open('w'), stderr=subprocess.STDOUT) if log else {}
    done = subprocess.run([sys.executable, *map(str, cmd)], cwd=ROOT, env={**os.environ, **env}, **out)
    if done.returncode and log: print(f'\n{log.name}:', *log.read_text(errors='replace').replace('\r', '\n').splitlines()[-25:], sep='\n  ', flush=True)
    done.check_returncode()


def together(jobs):
    "Do jobs, a few at a time, in order; after a failure nothing new is begun"
    with ThreadPoolExecutor(WORKERS) as pool:
        try:
            for f in [pool.submit(job) for job in jobs]: f.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def results(base):
    "The notebooks that hold results, below `base`"
    return [p for d in ('figures', 'tutorials') for p in sorted((base/d).glob('*.ipynb')) if not p.name.startswith(('_', '.'))]


def execute(nb, **env):
    "Run a notebook and store its outputs in it"
    log = CACHE/'logs'/f'{nb.stem}.log'
    run('-c', 'import sys; from nbdev.test import test_nb; sys.exit(not test_nb(sys.argv[1], skip_flags=["slow", "cuda", "notest"], save=True)[0])', nb, log=log, OMP_NUM_THREADS='1', **env)
    run('-c', 'import sys; from nbdev.clean import nbdev_clean; nbdev_clean(sys.argv[1])', nb, log=CACHE/'logs'/f'clean-{nb.stem}.log')


def desa(preset, features, out, seeds, methods, log=None, **env):
    "Frozen features, one line a run, tables for the figures; what is there is kept"
    run('-m', 'stellar_nb.recipes.alignment', '--preset', preset, '--features', features, '--out', out, '--seeds', seeds, '--workers', WORKERS, '--methods', *methods, log=log, OMP_NUM_THREADS='1', **env)


def cubes(preset, out, seeds, log=None):
    "Variants of the guided autoencoder on mock cubes, and real cubes with few labels where they are at hand; what is there is kept"
    run('-m', 'stellar_nb.recipes.cube_experiments', '--preset', preset, '--out', out, '--seeds', seeds, '--workers', WORKERS, log=log, OMP_NUM_THREADS='1')
    if real := data_dir('hsi'): run('-m', 'stellar_nb.recipes.cube_real', '--preset', preset, '--data', real, '--out', out, '--workers', WORKERS, log=log and log.with_stem('cubes-real'), OMP_NUM_THREADS='1')
    for o in out.glob('cube_*'): shutil.copy(o, RESULTS)


def reproduce_full():
    "The stored tables: three seeds of every method with the shipped encoders"
    features,out = CACHE/'features-full', CACHE/'results-full'
    print('This takes hours on two cores. It can be stopped and started again: what is done is kept.', flush=True)
    desa('full', features, out, 3, (*ALIGNERS, *PLAIN))
    desa('ablation', features, out, 3, ('DESA', 'untrained', *ABLATIONS))
    RESULTS.mkdir(parents=True, exist_ok=True)
    cubes('full', CACHE/'cubes-full', 3)
    print(f'\nThe tables: {out} and {CACHE/"cubes-full"}. Copy desa_* and cube_* to stellar_nb/data/results to ship them.')


def reproduce():
    if sys.version_info < (3, 11) and not shutil.which('quarto'): sys.exit('the site needs Python 3.11 or Quarto: make reproduce PYTHON=python3.12')
    lib = digest(ROOT/'stellar_nb')
    print('This takes about an hour on two cores; a second run only repeats what has changed.', flush=True)
    together([lambda name=name: step(f'train {name}', lib + str(data_dir()), CACHE/'models'/name, lambda: run('-m', 'stellar_nb.recipes', name, '--preset', 'laptop', '--out', CACHE/'models',
                                                                                           log=CACHE/'logs'/f'train-{name}.log', OMP_NUM_THREADS='1')) for name in TRAINED])
    def experiments():
        for o in (FEATURES, RESULTS): shutil.rmtree(o, ignore_errors=True)
        desa('laptop', FEATURES, RESULTS, 1, QUICK, CACHE/'logs'/'desa.log', STELLAR_NB_MODELS=str(CACHE/'models'))
    def cube_experiments():
        shutil.rmtree(CACHE/'cubes', ignore_errors=True)
        cubes('laptop', CACHE/'cubes', 1, CACHE/'logs'/'cubes.log')
    step('DESA and its rivals', lib + digest(*(CACHE/'models'/k for k in ('desa_spectra', 'desa_lightcurve'))), RESULTS/'desa_runs.csv', experiments)
    step('cubes, guided and not', lib + str(data_dir()), RESULTS/'cube_scores.csv', cube_experiments)
    def figure(nb):
        copy = NBS/nb.relative_to(ROOT/'nbs')
        def work():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(nb, copy)
            execute(copy, STELLAR_NB_MODELS=str(CACHE/'models'), STELLAR_NB_RESULTS=str(RESULTS))
        step(f'execute {nb.relative_to(ROOT/"nbs")}', lib + digest(nb) + os.environ.get('STELLAR_NB_SMOKE', '') + str(data_dir()), copy, work)
    together([lambda nb=nb: figure(nb) for nb in results(ROOT/'nbs')])
    step('build the site', lib + digest(ROOT/'nbs', NBS, ROOT/'_quarto.yml', ROOT/'scripts'/'build_site.py'), ROOT/'_docs'/'index.html', lambda: run('scripts/build_site.py', '--executed', NBS))
    print(f'\nThe site: {ROOT/"_docs"/"index.html"}')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--store', action='store_true', help='execute the notebooks in place, with the shipped models')
    parser.add_argument('--full', action='store_true', help='make the stored tables of DESA, its rivals and the cubes over three seeds instead')
    o = parser.parse_args()
    try: together([lambda nb=nb: execute(nb) for nb in results(ROOT/'nbs')]) if o.store else reproduce_full() if o.full else reproduce()
    except subprocess.CalledProcessError as e: sys.exit(f'stopped: {" ".join(map(str, e.cmd[1:4]))} failed')
