"""Two processes train as one does: every model, every loss, whole and divided weights; and how a failure ends"""
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from stellar_nb.core import BadInput
from stellar_nb.train.distributed import by_rows, gather, in_parallel, my_rows, processes, rank, world

QUICK = ('specvit:double', 'parts:double', 'spectra:double', 'fusion:double', 'lightcurve:double', 'clip:double', 'moco:resumed', 'cubes:double', 'specvit:shard')
SLOW = ('specvit', 'parts', 'noisy:double', 'noisy', 'spectra', 'fusion', 'lightcurve', 'dual:double', 'dual', 'vicreg:double', 'vicreg', 'simsiam:double', 'simsiam', 'clip', 'cubes', 'few_cubes:double',
        'spectra:shard:double', 'fusion:shard:double', 'dual:shard:double')


def launch(folder, names):
    "Run the job in two processes; what it told, and how both ended"
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    env = os.environ | dict(WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), OMP_NUM_THREADS='1', TORCH_CPP_LOG_LEVEL='ERROR')
    run = lambda r: subprocess.Popen([sys.executable, '-W', 'ignore', str(Path(__file__).parent/'two_processes.py'), str(folder/'told.json'), *names], env=env | dict(RANK=str(r), LOCAL_RANK=str(r)),
                                     stderr=subprocess.PIPE, text=True)
    both = [run(0), run(1)]
    try: errors = [o.communicate(timeout=600)[1] for o in both]
    finally: [o.kill() for o in both]
    assert (folder/'told.json').exists(), errors
    return json.loads((folder/'told.json').read_text()), [o.returncode for o in both], errors


@pytest.fixture(scope='module')
def quick(tmp_path_factory): return launch(tmp_path_factory.mktemp('quick'), QUICK)


@pytest.fixture(scope='module')
def slow(tmp_path_factory): return launch(tmp_path_factory.mktemp('slow'), SLOW)


SHAKY = ('lightcurve', 'simsiam')  # SimSiam with batch normalisation over few stars: weights that differ in the last bit change a single process as much (light curves: steps by 0.001 to 0.009, validation by 0.009 to 0.07)


def check(name, told):
    "Each of ten steps has the loss of a single process, to 1e-10 in double precision and 1e-5 in single; so has validation, and MoCo's queue is the same"
    o = told[name]
    assert o['world'] == 2 and len(o['steps']) == 10 and o['alone'][0] != o['alone'][-1]
    assert max(o['steps']) < (1e-10 if 'double' in name else 1e-2 if name in SHAKY else 1e-5)
    assert o['queue'] < 1e-5
    assert o['history'] < (1e-6 if 'double' in name else 1e-1 if name in SHAKY else 2e-3)  # in single precision running means of batch normalisation follow biases that rounding moves


@pytest.mark.parametrize('name', QUICK)
def test_same_trajectory(quick, name): check(name, quick[0])


def test_two_processes_go_on_where_two_were(quick):
    "With MoCo's slow network and queue; every bit of weights and losses"
    assert quick[0]['moco:resumed']['resumed'] is True


@pytest.mark.slow
@pytest.mark.parametrize('name', SLOW)
def test_same_trajectory_of_the_rest(slow, name): check(name, slow[0])


def test_a_failure_ends_all_and_is_told_once(quick):
    _, codes, errors = quick
    assert codes == [1, 1]
    assert 'star 7: has no flux' in errors[1] and 'Traceback' not in errors[0]


def test_one_process_is_left_alone(monkeypatch):
    monkeypatch.delenv('WORLD_SIZE', raising=False)
    with processes() as number: assert (number, rank(), world()) == (0, 0, 1)
    x = torch.arange(5.)
    assert by_rows(lambda o: o + 1, x).equal(x + 1) and my_rows(5) == (slice(0, 5), True)


def test_outputs_without_a_row_for_each_star():
    with pytest.raises(RuntimeError, match='does not have a row for each of 4 stars'): gather((torch.zeros(4, 2), torch.zeros(())), 4)


@pytest.mark.parametrize('part', [(1, 2), (0, 3), (0, 1)])
def test_parts_of_other_processes_are_refused(monkeypatch, part):
    "The first of two processes would train on stars that are another's, or on stars that nobody completes"
    monkeypatch.setattr('stellar_nb.train.distributed.world', lambda: 2)
    monkeypatch.setattr('stellar_nb.train.distributed.rank', lambda: 0)
    learn = SimpleNamespace(dls=SimpleNamespace(train=SimpleNamespace(part=part), valid=SimpleNamespace(part=(1, 2))))
    with pytest.raises(BadInput, match='a loader hands out part . of .; this is process 0 of 2'):
        with in_parallel(learn): pass
