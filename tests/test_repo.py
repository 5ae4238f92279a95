"""The repository itself: the library is what the notebooks export, and the rules of the contributor's page hold."""
import ast
import json
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if not any(s.startswith(('.', '_')) for s in p.relative_to(ROOT).parts))
MODULES = sorted((ROOT/'stellar_nb').rglob('*.py'))


def cells(nb): return json.loads(nb.read_text(encoding='utf-8'))['cells']
def source(cell): return ''.join(cell['source'])


def test_export_is_clean(tmp_path):
    for name in ('nbs', 'stellar_nb'): shutil.copytree(ROOT/name, tmp_path/name, symlinks=True, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('pyproject.toml', 'settings.ini', '_quarto.yml', 'README.md'): shutil.copy(ROOT/name, tmp_path/name)
    subprocess.run([sys.executable, '-c', 'from nbdev.doclinks import nbdev_export; nbdev_export()'], cwd=tmp_path, check=True)
    changed = [str(p.relative_to(ROOT)) for p in MODULES if (tmp_path/p.relative_to(ROOT)).read_text() != p.read_text()]
    assert not changed, f'run nbdev-export: {changed}'
    assert {p.relative_to(tmp_path) for p in (tmp_path/'stellar_nb').rglob('*.py')} == {p.relative_to(ROOT) for p in MODULES}


def test_no_module_hides_a_package():
    assert not [p for p in MODULES if p.with_suffix('').is_dir()]


@pytest.mark.parametrize('path', MODULES, ids=lambda p: p.stem)
def test_imports(path):
    "Nothing needs torchvision, and nothing unpickles"
    names = {n for node in ast.walk(ast.parse(path.read_text())) for n in
             ([a.name for a in node.names] if isinstance(node, ast.Import) else [f'{node.module}'] if isinstance(node, ast.ImportFrom) else [])}
    assert not {n for n in names if n.startswith(('torchvision', 'fastai.vision', 'pickle', 'dill'))}
    assert not re.search(r'torch\.load\(|allow_pickle=True|read_pickle', path.read_text())


@pytest.mark.parametrize('nb', NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_presentable(nb):
    for c in cells(nb):
        for o in c.get('outputs', []):
            text = json.dumps({k: v for k, v in o.items() if k != 'data'} | {k: v for k, v in o.get('data', {}).items() if not k.startswith('image')})
            assert o['output_type'] != 'error', source(c)
            assert o.get('name') != 'stderr', text
            assert not re.search(r'(?<![\w.])/(root|home|tmp|work|Users)/\w', text), text
    if nb.parent.name == 'figures':
        assert any(k.startswith('image/') for c in cells(nb) for o in c.get('outputs', []) for k in o.get('data', {})), 'no stored picture'


def test_cells_are_small():
    exported = [s for nb in NOTEBOOKS for c in cells(nb) if re.search(r'^#\|\s*export', s := source(c), re.M)]
    sizes = sorted(sum(bool(o.strip()) and not o.lstrip().startswith('#') for o in s.splitlines()) for s in exported)
    assert statistics.median(sizes) <= 8
    assert sizes[int(.9*(len(sizes)-1))] <= 25
    assert sizes[-1] <= 60


def test_readme_is_the_home_page(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT/'scripts'))
    import build_site
    cfg = build_site.settings()
    monkeypatch.setattr(build_site, 'settings', lambda: cfg)
    monkeypatch.setattr(build_site, 'ROOT', tmp_path)
    build_site.readme()
    assert (tmp_path/'README.md').read_text() == (ROOT/'README.md').read_text(), 'run make export'


def test_model_is_shipped(monkeypatch):
    monkeypatch.delenv('STELLAR_NB_MODELS', raising=False)
    from stellar_nb.pretrained import find_model
    assert find_model('specvit_lamost') == ROOT/'stellar_nb'/'data'/'models'/'specvit_lamost'
