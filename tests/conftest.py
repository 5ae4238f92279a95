import matplotlib
import pytest

matplotlib.use('agg')


LONG = ('test_fuzz', 'test_site', 'test_distributed', 'test_checkpoint', 'test_crossmatch')


def pytest_addoption(parser):
    parser.addoption('--slow', action='store_true', help='also run what takes minutes')


def pytest_configure(config):
    "Deprecations inside fastai and PyTorch are not ours to mend"
    config.addinivalue_line('filterwarnings', 'ignore::DeprecationWarning:torch')
    config.addinivalue_line('filterwarnings', 'ignore:The .mode.chained_assignment. option')
    config.addinivalue_line('filterwarnings', 'ignore:.torch.jit')
    config.addinivalue_line('markers', 'slow: takes minutes; runs with --slow alone')


def pytest_collection_modifyitems(config, items):
    "Long files first, so that no process is left with one at the end; slow tests are left out unless they are asked for"
    items.sort(key=lambda o: LONG.index(o.path.stem) if o.path.stem in LONG else len(LONG))
    if config.getoption('--slow'): return
    slow = [o for o in items if o.get_closest_marker('slow')]
    config.hook.pytest_deselected(items=slow)
    items[:] = [o for o in items if o not in slow]


def pytest_terminal_summary(terminalreporter):
    "What slow tests have counted"
    told = [v for k in ('', 'error') for o in terminalreporter.getreports(k) for name, v in o.user_properties if name == 'told' and o.when == 'teardown']
    if told: terminalreporter.section('told'); terminalreporter.write_line('\n'.join(told))


@pytest.fixture
def here(tmp_path, monkeypatch):
    "An empty working directory"
    monkeypatch.chdir(tmp_path)
    return tmp_path
