"""No file, however hostile, does anything but be read or be refused: see `fuzzing/oracle.py` for what that means.

A seeded sample runs with the other tests; `make slow` runs all. A failure prints its recipe and keeps the file; `python -m fuzzing RECIPE` (in tests/) runs it again."""
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fuzzing import content, oracle, traps
from fuzzing.worker import Worker, name_of

READERS = dict(spectra=(1300, 40), lightcurves=(700, 25), gaia=(600, 20), match=(150, 4), distances=(150, 4), cube=(900, 25), image=(300, 10), model=(300, 5), checkpoint=(300, 8))  # target → cases: all, sample
COMMANDS = {k: 60 for k in oracle.COMMANDS}
CONTENT = dict(spectra=(300, 10), lightcurves=(150, 6), gaia=(120, 5))
quiet = dict(derandomize=True, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))


@pytest.fixture(scope='module')
def worker(tmp_path_factory):
    w = Worker(tmp_path_factory.mktemp('fuzz'))
    yield w
    w.stop()


@pytest.fixture
def judged(worker, record_property, request):
    "The worker; afterwards nothing may have failed"
    worker.forget()
    yield worker
    if request.node.get_closest_marker('slow'): record_property('told', worker.report().splitlines()[0])
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


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('target', CONTENT)
def test_content_sample(judged, target): misfill(judged, target, CONTENT[target][1])


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('target', CONTENT)
def test_content(judged, target): misfill(judged, target, CONTENT[target][0])


@pytest.mark.slow
@pytest.mark.parametrize('target', COMMANDS)
def test_commands(judged, target): spoil(judged, target, COMMANDS[target])


@pytest.mark.slow
@pytest.mark.parametrize('target', [k for k in (*READERS, *COMMANDS) if traps.fitting(k)])
def test_traps(judged, target):
    for name in traps.fitting(target):
        if target in READERS or name in traps.QUICK and name != 'name with nul': judged.run(target, ('trap', name))  # no argument of a command can hold a NUL


# --- what was found: each of these once hung, took gigabytes, read elsewhere, crashed, or spoke in riddles

TRAPS = ('named pipe', 'link to zeros', 'name with nul', 'sparse csv', 'gzip of zeros', 'many empty members', 'gzip of nothing', 'fits of 1e18 axes', 'fits of 1e18 axes in an extension', 'fits table of empty cells', 'fits heap again and again',
         'csv of a million columns', 'csv of commas', 'csv with escapes', 'ecsv of objects', 'ecsv serialized', 'votable with a link', 'votable of many rows', 'votable of nesting', 'parquet of the same text', 'parquet of bad text', 'hdf5 way out',
         'hdf5 of chunks never written', 'hdf5 of 1e15 values', 'mat that lies', 'envi header of zeros', 'model card.md of zeros', 'model config.json a pipe', 'model specvit_xp width 1000000000000', 'model desa_quarter grid 1000000000000')
VALUES = {'gaia ids negative': 'ecsv', 'gaia ids beyond int64': 'ecsv', 'gaia ids half': 'csv', 'lightcurves magnitude infinite': 'csv', 'lightcurves negative errors': 'csv', 'lightcurves wild stars': 'parquet', 'spectra ivar huge, flux huge': 'npz'}


@pytest.mark.parametrize('name', TRAPS)
def test_found(judged, name):
    for target in traps.TRAPS[name].targets: judged.run(target, ('trap', name))


@pytest.mark.parametrize('name', VALUES)
def test_found_values(judged, name):
    target, defects = name.split(' ', 1)
    judged.run(target, ('content', defects.split(', '), VALUES[name]))


def test_found_model_of_nan(judged, tmp_path):
    "Weights that are not finite are no model"
    from shutil import copytree

    from safetensors.torch import load_file, save_file
    from stellar_nb.core import BadInput, package_data
    from stellar_nb.pretrained import load_pretrained
    path = copytree(package_data('models', 'specvit_xp'), tmp_path/'m')
    save_file({k: v*float('nan') if v.is_floating_point() else v for k, v in load_file(path/'model.safetensors').items()}, path/'model.safetensors')
    with pytest.raises(BadInput, match='NaN or infinite'): load_pretrained(path)


@pytest.mark.parametrize('target,name', [*((k, 'named pipe') for k in ('predict', 'period', 'cube_embed', 'prepare_spectra')), ('prepare_lightcurves', 'link to zeros'), ('prepare_gaia', 'sparse csv'),
                                         ('prepare_spectra', 'folder of ways out'), ('period', 'gzip of zeros'), ('period', 'csv of a million columns')])
def test_found_by_commands(judged, target, name): judged.run(target, ('trap', name))


def test_found_escapes_in_options(capsys):
    from stellar_nb.cli import main
    assert main(['predict', 'a.fits', '--\x1b[2J']) == 2 and '\x1b' not in capsys.readouterr().err
