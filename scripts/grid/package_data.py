"""Write stellar_nb/data/{emulator,instrument,templates} from the grid, the LAMOST spectra and the templates in `data/`.

    python scripts/grid/package_data.py [emulator] [instrument] [templates]

Without arguments all three are written. The folder of data is the one named by STELLAR_NB_DATA, else `data/`.
"""
import sys
from pathlib import Path

import stellar_nb
from stellar_nb.core import data_dir
from stellar_nb.mock import emulator, spectra

OUT = Path(stellar_nb.__file__).parent/'data'
SPLITS = range(42, 47)  # the first one is the reported one; the others show its scatter


def fit_emulator():
    for arm in emulator.ARMS:
        grid = emulator.read_grid(data_dir('stellar_grid', 'stellar_grid.npz'), arm)
        held = {seed: emulator.evaluate(grid, seed) for seed in SPLITS}
        emu = emulator.Emulator.fit(grid)
        emu.info = dict(fitted_to='all nodes; heldout: the same settings fitted to nine tenths of them', heldout=held[42],
                        splits={s: {k: v['flux']['all'][k] for k in ('median', 'p95')} for s, v in held.items()})
        emu.save(OUT/'emulator', arm)


def instrument(): spectra.save_noise(OUT/'instrument', data_dir('lamost_dr10', 'spectra.npz'))
def templates(): spectra.save_templates(OUT/'templates', data_dir('pyhammer_templates'))


if __name__ == '__main__':
    jobs = dict(emulator=fit_emulator, instrument=instrument, templates=templates)
    for name in sys.argv[1:] or jobs:
        jobs[name]()
        print(name, sum(o.stat().st_size for o in (OUT/name).iterdir())/1e6, 'MB')
