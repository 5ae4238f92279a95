"""Compute one spectrum of the grid from public packages and compare it with the shipped emulator.

    python scripts/grid/compute_node.py --software FOLDER --teff 5772 --logg 4.44 --feh 0 --alpha 0 -o node.npz

FOLDER is what setup.sh made. Where data/stellar_grid is at hand and has a node at these labels, that is compared too.
"""
import argparse
import tempfile
import time

import numpy as np

from synth import WAVE_CONT, WAVE_LR, WAVE_MR, products, synth


def compare(name, a, b):
    e = np.abs(a-b)
    print(f'{name:44s} median {np.median(e):.5f}  95% {np.quantile(e, .95):.5f}  largest {e.max():.5f}')


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    for name, unit in (('teff', 'K'), ('logg', 'cgs'), ('feh', 'dex'), ('alpha', '[α/M], dex')): p.add_argument(f'--{name}', type=float, required=True, help=unit)
    p.add_argument('--software', required=True, help='folder made by setup.sh')
    p.add_argument('-o', '--output', default='node.npz', help='where the spectrum goes')
    a = p.parse_args()
    label, start = (a.teff, a.logg, a.feh, a.alpha), time.time()
    with tempfile.TemporaryDirectory() as work: lr, mr, cont = products(synth(*label, a.software, work))
    np.savez_compressed(a.output, label=label, wave_lr=WAVE_LR, norm_lr=lr, wave_mr=WAVE_MR, norm_mr=mr, wave_cont=WAVE_CONT, logcont=cont)
    print(f'{a.output}: {time.time()-start:.0f} s')

    import torch
    from stellar_nb.core import data_dir
    from stellar_nb.mock.emulator import Emulator
    if grid := data_dir('stellar_grid', 'stellar_grid.npz'):
        with np.load(grid) as d:
            i = np.flatnonzero(np.isclose(d['label'], label, rtol=1e-5, atol=1e-4).all(1))
            if len(i):
                compare('R=1800, this - stored node', lr, d['norm_lr'][i[0]]/5e4)
                compare('R=5000, this - stored node', mr, d['norm_mr'][i[0]]/5e4)
                compare('log10 continuum, this - stored node', cont, d['logcont'][i[0]])
    for arm, norm in (('lamost', lr), ('pfs', mr)):
        emu, l = Emulator.load(arm), torch.tensor([label], dtype=torch.float64)
        if emu.inside(l).all(): compare(f'{arm}, this - shipped emulator', norm, emu(l)[0].double().numpy())
        else: print(f'{arm}: outside the hull of the emulator')


if __name__ == '__main__': main()
