import matplotlib

matplotlib.use('agg')


def pytest_configure(config):
    "Deprecations inside fastai and PyTorch are not ours to mend"
    config.addinivalue_line('filterwarnings', 'ignore::DeprecationWarning:torch')
    config.addinivalue_line('filterwarnings', 'ignore:The .mode.chained_assignment. option')
    config.addinivalue_line('filterwarnings', 'ignore:.torch.jit')
