"""No file, however hostile, does anything but be read or be refused: see `fuzzing/oracle.py` for what that means.

A seeded sample runs with the other tests; `make slow` runs all. A failure prints its recipe and keeps the file; `python -m fuzzing RECIPE` (in tests/) runs it again."""
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fuzzing import content, oracle, traps
from fuzzing.worker import Worker, name_of

READERS = dict(spectra=(1300, 60), lightcurves=(700, 35), gaia=(600, 25), match=(150, 5), distances=(150, 5), cube=(900, 40), image=(300, 12), model=(300, 6))  # target → cases: all, sample
COMMANDS = {k: 40 for k in oracle.COMMANDS}
CONTENT = dict(spectra=(300, 15), lightcurves=(150, 10), gaia=(120, 8))
quiet = dict(derandomize=True, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))


@pytest.fixture(scope='module')
def worker(tmp_path_factory):
    w = Worker(tmp_path_factory.mktemp('fuzz'))
    yield w
    w.stop()


@pytest.fixture
def judged(worker, capsys, request):
    "The worker; afterwards nothing may have failed"
    worker.forget()
    yield worker
    with capsys.disabled(): print(f'\n{worker.report()}' if request.node.get_closest_marker('slow') else '', end='')
    if worker.failures: pytest.fail(worker.report(), pytrace=False)


def spoil(worker, target, n):
    "n files that were good, spoiled by one to four mutations"
    good = worker.good[oracle.OF.get(target, target)]

    @settings(max_examples=n, **quiet)
    @given(st.sampled_from(sorted(good)), st.lists(st.integers(0, 2**32-1), min_size=1, max_size=4), st.sampled_from(['']*3*len(name_of) + sorted(name_of)))
    def each(seed, steps, name): worker.run(target, ('spoil', seed, steps, name))
    each()


def misfill(worker, target, n):
    "n files in good form whose values make no sense"
    @settings(max_examples=n, **quiet)
    @given(st.lists(st.sampled_from(sorted(content.DEFECTS[target])), min_size=1, max_size=3), st.sampled_from(content.ENDINGS[target]))
    def each(defects, ending): worker.run(target, ('content', defects, ending))
    each()


@pytest.mark.parametrize('target', READERS)
def test_spoiled_sample(judged, target): spoil(judged, target, READERS[target][1])


@pytest.mark.slow
@pytest.mark.parametrize('target', READERS)
def test_spoiled(judged, target): spoil(judged, target, READERS[target][0])


@pytest.mark.parametrize('target', CONTENT)
def test_content_sample(judged, target): misfill(judged, target, CONTENT[target][1])


@pytest.mark.slow
@pytest.mark.parametrize('target', CONTENT)
def test_content(judged, target): misfill(judged, target, CONTENT[target][0])


@pytest.mark.slow
@pytest.mark.parametrize('target', COMMANDS)
def test_commands(judged, target): spoil(judged, target, COMMANDS[target])


@pytest.mark.slow
@pytest.mark.parametrize('target', [*READERS, *COMMANDS])
def test_traps(judged, target):
    for name in traps.fitting(target):
        if target in READERS or name in traps.QUICK: judged.run(target, ('trap', name))


@pytest.mark.parametrize('target', READERS)
def test_traps_sample(judged, target):
    for name in traps.fitting(target):
        if name in traps.QUICK: judged.run(target, ('trap', name))
