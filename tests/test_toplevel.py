"The names at the top of the package: where they are from, and that asking for one does not pay for all."
import ast, configparser, importlib, subprocess, sys
from pathlib import Path

import pytest

import stellar_nb

HEAVY = ('torch', 'numpy', 'pandas', 'astropy', 'matplotlib', 'fastai', 'IPython')


def fresh(code): return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip()


def test_thirteen_names():
    assert len(stellar_nb.__all__) == 13 and stellar_nb.__all__ == list(stellar_nb._where)


@pytest.mark.parametrize('name', stellar_nb.__all__)
def test_each_is_the_one_of_its_module(name):
    module = importlib.import_module(f'stellar_nb.{stellar_nb._where[name]}')
    assert getattr(stellar_nb, name) is getattr(module, name) and getattr(stellar_nb, name).__module__ == module.__name__
    assert name in dir(stellar_nb) and name in vars(stellar_nb)


def test_import_is_light():
    assert fresh(f'import sys, stellar_nb; print([o for o in {HEAVY} if o in sys.modules])') == '[]'
    assert fresh(f'import sys; from stellar_nb import predict; print([o for o in {HEAVY} if o in sys.modules])') == '[]', 'the command line imports what it needs when it runs'
    assert not {'matplotlib', 'sklearn', 'fastai'} & set(fresh('import sys; from stellar_nb import read_spectra; import stellar_nb.pretrained, stellar_nb.data.store; print(*sys.modules)').split())


def test_star_and_unknown_names():
    assert fresh('from stellar_nb import *; print(SpecViT.__name__, callable(predict))') == 'SpecViT True'
    with pytest.raises(AttributeError, match="module 'stellar_nb' has no attribute 'nothing'"): stellar_nb.nothing
    with pytest.raises(ImportError): exec('from stellar_nb import nothing')
    assert not hasattr(stellar_nb, '__path') and stellar_nb.__path__


def test_submodules_are_still_modules():
    "A lazy name never hides a module"
    assert fresh('import stellar_nb.plot, stellar_nb; print(stellar_nb.plot.__name__, stellar_nb.plot_spectrum.__module__)') == 'stellar_nb.plot stellar_nb.plot'
    root = Path(stellar_nb.__file__).parent
    assert not {o.stem for o in root.iterdir()} & set(stellar_nb.__all__)


def test_what_editors_see():
    "The branch for type checkers names the same things from the same modules"
    tree = ast.parse(Path(stellar_nb.__file__).read_text(encoding='utf-8'))
    branch = next(o for o in tree.body if isinstance(o, ast.If) and o.test.id == 'TYPE_CHECKING')
    seen = {a.name: o.module.removeprefix('stellar_nb.') for o in branch.body for a in o.names}
    assert seen == stellar_nb._where
    assert ast.literal_eval(next(o.value for o in tree.body if isinstance(o, ast.Assign) and o.targets[0].id == '__all__')) == stellar_nb.__all__


def test_version():
    ini = configparser.ConfigParser(delimiters=['='], interpolation=None)
    ini.read(Path(__file__).parent.parent/'settings.ini', encoding='utf-8')
    assert stellar_nb.__version__ == ini['DEFAULT']['version']


def test_a_user_s_first_lines(tmp_path):
    "Files to labels, and the same from arrays"
    import numpy as np, torch
    from stellar_nb import fill_rv, from_arrays, load_pretrained, mock_lamost, plot_spectrum, predict
    from stellar_nb.core import generator
    from stellar_nb.mock.spectra import LAMOST_WAVE
    one = torch.ones(1)
    flux, ivar = mock_lamost(torch.tensor([[5777., 4.44, 0., 0.]]), 80*one, 20*one, generator=generator(3))
    stars = fill_rv(from_arrays('sun', LAMOST_WAVE.numpy(), flux[0].numpy(), ivar=ivar[0].numpy(), rv=20.))
    labels = load_pretrained('specvit_lamost').predict(stars)
    stars[0].to_table().write(tmp_path/'sun.ecsv')
    table = predict(tmp_path)
    assert table.status.tolist() == ['ok'] and table.model.tolist() == ['specvit_lamost'] and abs(labels.teff[0] - 5777) < 300
    np.testing.assert_allclose(table.teff, labels.teff, atol=.5)
    assert plot_spectrum(stars[0].wave, stars[0].flux).lines
