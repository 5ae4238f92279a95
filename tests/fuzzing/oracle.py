"""What a reader or a command may do with a hostile file.

A reader returns sane records, or raises BadInput with one printable line that names the file and speaks no Python. A command ends with status 0, 1 or 2, says why,
and shows no traceback and no control characters. Neither takes longer than `SECONDS` of the processor's time, needs more memory than `allowed`, changes a file, or writes outside the output folder."""
import contextlib
import hashlib
import json
import os
import re
import stat
import sys
import time
from pathlib import Path

import numpy as np
import torch

from stellar_nb.core import BadInput

SECONDS, PATIENCE = 10, 40  # of the processor; by the clock, on a machine that is busy
MEGA = 2**20
PYTHONESE = re.compile(r"Traceback|NoneType|has no attribute|list index|out of range|out of bounds|unexpected keyword|positional argument|not subscriptable|not iterable|unsupported operand|could not (be )?broadcast|cannot unpack|to unpack|"
                       r"invalid literal|<class|\bat 0x|object of type|unhashable|has no len|'numpy|dtype\(|not supported between|must be str|must be real|must be an integer|cannot convert|could not convert|setting an array|truth value|cannot reshape|"
                       r"(Value|Type|Key|Index|Attribute|Assertion|Unicode\w*|Recursion|Overflow|ZeroDivision|Runtime|NotImplemented|UnboundLocal|Memory|Verify)Error|codec can't|recursion depth|referenced before|torch\.|ndarray|__\w+__|lambda|argument \d|\bself\b")


def allowed(size, command=False):
    "Bytes that may be needed beyond what was held before, for files of `size` bytes; commands also hold models"
    return max((1024 if command else 512)*MEGA, 50*size)


def one_line(text, path):
    "Problems of a message"
    name = os.path.basename(path)
    if not text.isprintable(): yield f'the message is not one printable line: {text[:300]!r}'
    if len(text) > 400 + 2*len(str(path)): yield f'the message has {len(text)} characters: {text[:300]!r}'
    printable = ''.join(o if o.isprintable() else repr(o)[1:-1] for o in name)
    if name and printable not in text.replace('\\\\', '\\') and printable.removesuffix('.hdr') not in text: yield f'the message does not name the file: {text[:300]!r}'
    reason = text.replace(str(path), '').replace(printable, '')
    if m := PYTHONESE.search(reason): yield f'the message speaks Python ({m[0]}): {text[:300]!r}'
    if 'than there is memory' in reason or 'Unable to allocate' in reason: yield f'only the memory limit stopped it: {text[:300]!r}'


def check(ok, what):
    if not ok: raise AssertionError(what)


def sane_spectra(found):
    check(isinstance(found, list) and found, 'an empty list')
    for s in found:
        s.check()
        check(len(s.wave) >= 16 and s.wave[0] > 0, 'wavelengths that make no sense')
        check(np.array_equal(s.mask, s.ivar == 0), 'mask and ivar disagree')
        check(np.isfinite(s.snr) and not np.isinf(s.rv), f'snr {s.snr}, rv {s.rv}')
        check(isinstance(s.id, str) and s.rv_source == ('header' if np.isfinite(s.rv) else ''), 'id or rv_source')
        json.dumps(s.meta, allow_nan=False)
        check(repr(s).isprintable(), 'its repr is not printable')
    check(any(not s.mask.all() for s in found), 'nothing usable')


def sane_lightcurves(found):
    check(isinstance(found, list) and found, 'an empty list')
    for c in found:
        n = len(c.time)
        check(n >= 16 and c.time.dtype == np.float64 and np.isfinite(c.time).all() and (np.diff(c.time) > 0).all(), 'times')
        check(all(len(getattr(c, k)) == n for k in ('flux', 'flux_err', 'quality', 'segment')), 'lengths')
        check(not np.isinf(c.flux).any() and not np.isinf(c.flux_err).any() and np.isfinite(c.flux).any(), 'flux')
        check(not (c.flux_err < 0).any(), 'negative errors')
        check(isinstance(c.star, str) and c.cadence > 0 and not np.isinf(c.magnitude), f'star {c.star!r}, cadence {c.cadence}, magnitude {c.magnitude}')
        json.dumps(c.meta, allow_nan=False)
        c.usable()
        check(repr(c).isprintable(), 'its repr is not printable')


def sane_gaia(t):
    from stellar_nb.data.gaia import GAIA_COLUMNS, fill_missing
    check(len(t) > 0, 'no rows')
    v = t[list(GAIA_COLUMNS)]
    check((v.dtypes == 'float64').all() and not np.isinf(v.to_numpy()).any(), 'infinity among the columns')
    check(np.isfinite(fill_missing(t)).all(), 'fill_missing leaves something')
    if 'source_id' in t: check(t.source_id.dtype == np.int64 and (t.source_id >= 0).all(), 'source_id')
    check((t[[k for k in GAIA_COLUMNS if k.endswith('error')]].fillna(1) > 0).all(axis=None), 'an error that is not positive')


def sane_cube(c):
    from stellar_nb.data.cube import register
    from stellar_nb.data.fields import level, one_field
    check(c.data.ndim == 3 and c.data.dtype == np.float32 and c.good.shape == c.data.shape and c.good.any(), 'shapes')
    check(np.isfinite(c.data).all() and not c.data[~c.good].any(), 'values')
    if c.wave is not None: check(c.wave.shape == (len(c.data),) and np.isfinite(c.wave).all() and (c.wave > 0).all() and (np.diff(c.wave) >= 0).all(), f'wavelengths {c.wave}')
    if c.ivar is not None: check(np.isfinite(c.ivar).all() and (c.ivar >= 0).all() and not c.ivar[~c.good].any(), 'ivar')
    repr(c)
    if c.data.size > 10**6: return
    with contextlib.suppress(BadInput, ValueError):
        x, good, _, _ = one_field(register(c, [], 16))
        check(bool(x.isfinite().all()) and bool(level(x, good).isfinite().all()), 'fields')


def sane_image(o):
    check(o.data.ndim == 3 and o.data.dtype == np.float32 and o.good.shape == o.data.shape and o.good.any(), 'shapes')
    check(np.isfinite(o.data).all() and not o.data[~o.good].any(), 'values')


def readers():
    "target → (function of a path, check of what it returns)"
    from stellar_nb.cli_embed import read_match
    from stellar_nb.cli_period import StarTable
    from stellar_nb.data.cube import read_cube, read_image
    from stellar_nb.data.gaia import read_gaia
    from stellar_nb.data.lightcurve import read_lightcurves
    from stellar_nb.data.spectra import read_spectra
    from stellar_nb.pretrained import load_pretrained
    from stellar_nb.train.checkpoint import read_state
    text = lambda o: check(all(isinstance(k, str) and isinstance(v, str) for k, v in o.items()), 'no text')
    numbers = lambda o: check(all(len(v) == 2 for v in o.rows.values()), 'rows')
    loaded = lambda m: check(all(p.isfinite().all() for p in m.model.parameters()) if m is not None else False, 'weights that are not finite')
    return dict(spectra=(read_spectra, sane_spectra), lightcurves=(read_lightcurves, sane_lightcurves), gaia=(read_gaia, sane_gaia), match=(read_match, text), distances=(StarTable, numbers),
                cube=(read_cube, sane_cube), image=(read_image, sane_image), model=(load_pretrained, loaded), checkpoint=(read_state, lambda o: check(len(o) == 2, 'no state')))


def read(target, path):
    "(outcome, problems) of a reader"
    function, sane = readers()[target]
    try: out = function(path)
    except BadInput as e: return 'refused', list(one_line(str(e), path)), str(e)
    except BaseException as e: return 'raised', [f'{type(e).__name__}: {str(e)[:300]!r} instead of BadInput'], ''
    try: sane(out)
    except Exception as e: return 'read', [f'not sane: {type(e).__name__}: {str(e)[:300]}'], ''
    return 'read', [], ''


COMMANDS = dict(
    predict=lambda f, good, out: ['predict', f, '--quiet', '-o', f'{out}/t.csv'], predict_screen=lambda f, good, out: ['predict', f, good['spectra']['sdss-coadd']],
    classify=lambda f, good, out: ['classify', f, '--gaia', good['gaia']['csv'], '-o', f'{out}/t.fits'], classify_gaia=lambda f, good, out: ['classify', '--gaia', f, '-o', f'{out}/t.ecsv'],
    period=lambda f, good, out: ['period', f, '-o', f'{out}/t.parquet'], period_table=lambda f, good, out: ['period', good['lightcurves']['kepler'], '--table', f],
    embed=lambda f, good, out: ['embed', f, '-o', f'{out}/t.csv'], embed_curves=lambda f, good, out: ['embed', good['spectra']['sdss-coadd'], '--curves', f, '-o', f'{out}/t.ecsv'],
    embed_match=lambda f, good, out: ['embed', '--curves', good['lightcurves']['kepler'], '--match', f, '-o', f'{out}/t.csv'],
    cube_embed=lambda f, good, out: ['cube', 'embed', f, '-o', f'{out}'], cube_reconstruct=lambda f, good, out: ['cube', 'reconstruct', f, '-o', f'{out}', '--quiet'],
    cube_image=lambda f, good, out: ['cube', 'embed', good['cube']['fits'], '--image', f'ir={f}', '-o', f'{out}'],
    predict_model=lambda f, good, out: ['predict', good['spectra']['sdss-coadd'], '--model', f, '-o', f'{out}/t.csv'],
    **{f'prepare_{k}': lambda f, good, out, k=k: ['prepare', f, '--kind', k, '-o', f'{out}/store', '--workers', '0', '--quiet'] for k in ('spectra', 'lightcurves', 'gaia')})
OF = dict(predict='spectra', predict_screen='spectra', classify='spectra', classify_gaia='gaia', period='lightcurves', period_table='distances', embed='spectra', embed_curves='lightcurves', embed_match='match',
          cube_embed='cube', cube_reconstruct='cube', cube_image='image', predict_model='model', prepare_spectra='spectra', prepare_lightcurves='lightcurves', prepare_gaia='gaia')  # whose files a command is given


def command(target, path, good, base):
    "(outcome, problems, what was said) of a command that runs in this process"
    from stellar_nb.cli import main
    out, name = base/'out', os.path.basename(path)
    argv = [str(o) for o in COMMANDS[target](path, good, out)]
    with open(base/'.stdout', 'w+b') as o, open(base/'.stderr', 'w+b') as e:
        saved = [os.dup(k) for k in (1, 2)]
        os.dup2(o.fileno(), 1), os.dup2(e.fileno(), 2)
        raised = ''
        try: status = main(argv)
        except BaseException as error: status, raised = -1, f'{type(error).__name__}: {error}'
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            for k, fd in zip((1, 2), saved): os.dup2(fd, k), os.close(fd)
        texts = []
        for f in (o, e): f.seek(0); texts.append(f.read().decode('utf-8', 'replace'))
    for k in ('.stdout', '.stderr'): (base/k).unlink()
    said = re.sub(r'\r[^\n]*\r', '', texts[1])
    bar = [o for o in said.split('\n') if '%|' not in o and 'it/s' not in o]
    problems = [f'{raised} was raised'] if raised else []
    if status not in (0, 1, 2): problems.append(f'exit status {status}')
    if any(not c.isprintable() and c not in '\n\u3000\t' for c in ''.join(bar) + texts[0]): problems.append(f'control characters reach the terminal: {said[:200]!r} {texts[0][:200]!r}')
    printable = ''.join(c if c.isprintable() else repr(c)[1:-1] for c in name)
    names = [name] + [o for _, _, files in os.walk(path) for o in files]  # of a folder a file below it will do
    if status != 0 and not any(''.join(c if c.isprintable() else repr(c)[1:-1] for c in o)[-40:].removesuffix('.hdr') in said.replace('\\\\', '\\') for o in names): problems.append(f'the file that failed is not named: {said[:400]!r}')
    if status != 0 and (m := PYTHONESE.search(re.sub(re.escape(printable), '', said))): problems.append(f'speaks Python ({m[0]}): {said[:400]!r}')
    if 'Traceback' in said + texts[0]: problems.append('a traceback')
    if 'than there is memory' in said or 'Unable to allocate' in said: problems.append(f'only the memory limit stopped it: {said[:300]!r}')
    return f'status {status}', problems, said


def snapshot(base):
    "path → what it is, of all that lies below the folder of a case"
    out = {}
    for here, dirs, files in os.walk(base):
        for name in (*dirs, *files):
            path = os.path.join(here, name)
            info = os.lstat(path)
            if stat.S_ISREG(info.st_mode):
                digest = '' if info.st_size > 64*MEGA else hashlib.blake2b(Path(path).read_bytes()).hexdigest()
                out[path] = (info.st_size, info.st_mtime_ns, digest)
            else: out[path] = os.readlink(path) if stat.S_ISLNK(info.st_mode) else stat.S_IFMT(info.st_mode)
    return out


def memory():
    "(resident, of it files, highest resident) bytes"
    with open('/proc/self/status') as f: found = dict(o.split(':', 1) for o in f)
    return [int(found[k].split()[0])*1024 for k in ('VmRSS', 'RssFile', 'VmHWM')]


def judge(target, path, good, base, size):
    "Run a case in this process: a dict with `outcome`, `problems`, `said`, `mega`, `seconds`"
    before = snapshot(base)
    with open('/proc/self/clear_refs', 'w') as f: f.write('5')  # the highest so far is forgotten
    resident, files, _ = memory()
    start = time.process_time()
    outcome, problems, said = command(target, path, good, base) if target in COMMANDS else read(target, path)
    seconds = time.process_time() - start
    _, files_now, highest = memory()
    grown = highest - resident - max(0, files_now - files)
    if seconds > SECONDS: problems.append(f'{seconds:.0f} s of the processor')
    if grown > allowed(size, target in COMMANDS): problems.append(f'{grown >> 20} MB for {size:,} bytes')
    after = {k: v for k, v in snapshot(base).items() if target not in COMMANDS or not k.startswith(f'{base}/out')}
    if changed := [k for k in before.keys() | after.keys() if before.get(k) != after.get(k) and k != f'{base}/out']: problems.append(f'changed outside the output folder: {[os.path.relpath(o, base) for o in changed[:3]]}')
    return dict(outcome=outcome, problems=problems, said=said[:500], mega=grown/MEGA, seconds=seconds)
