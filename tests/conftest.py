import matplotlib
import pytest

matplotlib.use('agg')


def pytest_configure(config):
    "Deprecations inside fastai and PyTorch are not ours to mend"
    config.addinivalue_line('filterwarnings', 'ignore::DeprecationWarning:torch')
    config.addinivalue_line('filterwarnings', 'ignore:The .mode.chained_assignment. option')
    config.addinivalue_line('filterwarnings', 'ignore:.torch.jit')


@pytest.fixture
def here(tmp_path, monkeypatch):
    "An empty working directory"
    monkeypatch.chdir(tmp_path)
    return tmp_path
