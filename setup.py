"""Packaging: everything that can change stands in settings.ini."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
ini = ConfigParser(delimiters=['='], comment_prefixes=['#'], interpolation=None, default_section=None)
ini.read(here / 'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']


def lines(text): return [o.strip() for o in text.splitlines() if o.strip()]


extras = {name: lines(reqs) for name, reqs in ini['extras'].items()}
extras['dev'] = lines(ini['dev']['requirements']) + [o for k, reqs in extras.items() if k != 'cuda' for o in reqs]

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], license=cfg['license'],
    long_description=(here / 'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    author=cfg['author'], author_email=cfg['author_email'], keywords=cfg['keywords'],
    url=cfg['git_url'], project_urls={'Documentation': cfg['doc_url'], 'Repository': cfg['git_url']},
    classifiers=['Intended Audience :: Science/Research', 'Topic :: Scientific/Engineering :: Astronomy']
                + [f'Programming Language :: Python :: 3.{minor}' for minor in range(10, 14)],
    packages=find_packages(include=['stellar_nb', 'stellar_nb.*']),
    package_data={'stellar_nb.data': ['README.md', 'emulator/*', 'instrument/*', 'templates/*', 'stars/*', 'models/*/*', 'results/*']}, include_package_data=False,
    python_requires=f">={cfg['min_python']}",
    install_requires=lines(cfg['requirements']), extras_require=extras,
    entry_points={'console_scripts': [f'{k} = {v}' for k, v in ini['scripts'].items()],
                  'nbdev': [f"{cfg['lib_name']} = {cfg['lib_name']}._modidx:d"]},
    zip_safe=False,
)
