"Files made by hand to hurt: bombs, lies about sizes, ways out of the folder, things that are no files. `TRAPS[name].build(folder)` gives the path to read."
import functools
import gzip
import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Callable, NamedTuple

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.io
from astropy.io import fits
from safetensors.numpy import save_file

from stellar_nb.data.gaia import GAIA_COLUMNS

from . import seeds

SPECTRA, TABLES, CUBES, MODELS = ('spectra', 'lightcurves'), ('gaia', 'match', 'distances'), ('cube', 'image'), ('model',)
FILES = SPECTRA + TABLES + CUBES


class Trap(NamedTuple):
    build: Callable  # folder → path
    targets: tuple  # readers that may be lured


TRAPS, QUICK = {}, set()


def trap(*targets, quick=True):
    "Enter a function of a folder that returns a path"
    def enter(f):
        name = f.__name__.replace('_', ' ')
        TRAPS[name] = Trap(f, targets)
        if quick: QUICK.add(name)
        return f
    return enter


def fitting(target):
    "Names of traps for a reader or a command"
    from .oracle import OF
    kind = OF.get(target, target)
    return [k for k, o in TRAPS.items() if kind in o.targets]


def put(path, data):
    "Write bytes"
    path.write_bytes(data)
    return path


def block(*cards): return ''.join(o.ljust(80) for o in (*cards, 'END')).encode().ljust(-(-80*(len(cards)+1)//2880)*2880)


@functools.cache
def zeros(n, level=1):
    "n zeros in gzip, quickly: one member of 64 MB many times"
    part = gzip.compress(bytes(2**26), level, mtime=0)
    return part*(n >> 26)


@functools.cache
def one_stream(n, head=b''):
    "head and n zeros in one gzip member, written piece by piece"
    out, c = bytearray(), zlib.compressobj(1, zlib.DEFLATED, 31)
    out += c.compress(head)
    for _ in range(n >> 24): out += c.compress(bytes(2**24))
    return bytes(out + c.flush())


# --- no regular files

@trap(*FILES)
def named_pipe(d): os.mkfifo(d/'pipe.fits'); return d/'pipe.fits'
@trap(*FILES)
def named_pipe_csv(d): os.mkfifo(d/'pipe.csv'); return d/'pipe.csv'
@trap(*FILES)
def link_to_zeros(d): (d/'zero.fits').symlink_to('/dev/zero'); return d/'zero.fits'
@trap(*FILES)
def link_to_zeros_csv(d): (d/'zero.csv').symlink_to('/dev/zero'); return d/'zero.csv'
@trap(*FILES)
def keyboard(d): (d/'stdin.fits').symlink_to('/dev/stdin'); return d/'stdin.fits'
@trap(*FILES)
def randomness(d): (d/'random.csv').symlink_to('/dev/urandom'); return d/'random.csv'
@trap(*FILES, *MODELS)
def folder_with_a_files_name(d): (d/'dir.fits').mkdir(); return d/'dir.fits'
@trap(*FILES, *MODELS)
def link_to_itself(d): (d/'loop.fits').symlink_to('loop.fits'); return d/'loop.fits'
@trap(*FILES, *MODELS)
def link_to_nothing(d): (d/'gone.csv').symlink_to('nowhere'); return d/'gone.csv'
@trap(*FILES, *MODELS)
def missing(d): return d/'missing.fits'
@trap(*FILES, *MODELS)
def name_too_long(d): return d/('n'*300 + '.fits')
@trap(*FILES, *MODELS)
def name_with_nul(d): return d/'nul\0.fits'
@trap(*FILES, *MODELS)
def a_file_as_folder(d): put(d/'a.fits', b'x'); return d/'a.fits'/'b.fits'
@trap(*FILES, *MODELS)
def empty_file(d): return put(d/'empty.fits', b'')
@trap(*FILES)
def one_byte(d): return put(d/'one.csv', b'\xff')
@trap(*FILES)
def blank_lines(d): return put(d/'blank.csv', b'\n'*10000)
@trap(*FILES)
def only_comments(d): return put(d/'comments.csv', b'# no\n'*100)
@trap(*FILES)
def pickled(d): return put(d/'trap.pkl', pickle.dumps(Sprung(d/'sprung')))
@trap(*FILES)
def sparse(d):
    with open(d/'sparse.fits', 'wb') as f: f.truncate(2**40)
    return d/'sparse.fits'
@trap(*FILES)
def sparse_csv(d):
    with open(d/'sparse.csv', 'wb') as f: f.write(b'time,flux\n'); f.truncate(2**36)
    return d/'sparse.csv'


class Sprung:
    "Makes a file when it is unpickled"
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.mkdir, (str(self.path),)


# --- folders

@trap('spectra', 'lightcurves', 'cube')
def folder_of_ways_out(d):
    (d/'tree').mkdir()
    (d/'secret').mkdir()
    seeds.archive(d/'secret'/'s.fits', 'Kepler')
    (d/'tree'/'a.fits').symlink_to('../secret/s.fits')
    (d/'tree'/'up').symlink_to('..')
    (d/'tree'/'self').symlink_to('.')
    (d/'tree'/'passwd.csv').symlink_to('/etc/passwd')
    os.mkfifo(d/'tree'/'pipe.fits')
    (d/'tree'/'loop.csv').symlink_to('loop.csv')
    (d/'tree'/'\x1b[2J.csv').write_text('x')
    return d/'tree'
@trap('spectra', 'lightcurves', 'cube')
def deep_folder(d):
    path = d/'deep'
    for _ in range(60): path = path/'x'
    path.mkdir(parents=True)
    put(path/'a.fits', b'SIMPLE')
    return d/'deep'


# --- gzip, zip

@trap(*FILES)
def gzip_of_zeros(d): return put(d/'zeros.fits.gz', zeros(2**29))
@trap(*FILES)
def gzip_of_a_header_and_zeros(d): return put(d/'stream.fits.gz', one_stream(2**29, b'SIMPLE  =                    T'.ljust(80)))
@trap(*FILES, quick=False)
def gzip_of_a_table_of_zeros(d): return put(d/'table.csv.gz', one_stream(2**29, b'time,flux\n' + b'1,2\n'*50))
@trap(*FILES)
def gzip_in_gzip(d):
    data = gzip.compress(b'time,flux\n1,2\n')
    for _ in range(30): data = gzip.compress(data)
    return put(d/'nested.csv.gz', data)
@trap(*FILES)
def many_empty_members(d): return put(d/'members.csv.gz', gzip.compress(b'')*20000)
@trap(*FILES)
def gzip_of_nothing(d): return put(d/'nothing.fits.gz', gzip.compress(b''))
@trap('spectra', 'cube', 'image')
def zip_of_zeros(d):
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, dict(descr='<f4', fortran_order=False, shape=(8, 4096, 4096)))
    with zipfile.ZipFile(d/'zeros.npz', 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as z:
        with z.open('cube.npy', 'w') as f:
            f.write(head.getvalue())
            for _ in range(32): f.write(bytes(2**24))
    return d/'zeros.npz'
@trap('spectra', 'cube', 'image')
def zip_that_lies(d):
    with zipfile.ZipFile(d/'lie.npz', 'w', zipfile.ZIP_DEFLATED) as z:
        for k in ('wave', 'flux'): z.writestr(f'{k}.npy', npy((10**9, 2**20)) + bytes(100))
    return d/'lie.npz'
@trap('spectra', 'cube', 'image')
def zip_of_objects(d): np.savez(d/'objects.npz', wave=np.arange(20.), flux=np.array([Sprung(d/'sprung')]*20, object), cube=np.array([[[Sprung(d/'sprung')]]], object)); return d/'objects.npz'
@trap('spectra', 'cube', 'image')
def zip_with_many_members(d):
    with zipfile.ZipFile(d/'many.npz', 'w') as z:
        for i in range(5000): z.writestr(f'../../up{i}.npy', npy((1, 1, 1)) + bytes(8))
    return d/'many.npz'
@trap('spectra', 'cube', 'image')
def zip_with_a_password(d):
    data = io.BytesIO()
    np.savez(data, cube=np.ones((3, 4, 5)), wave=np.arange(20.), flux=np.arange(20.))
    return put(d/'locked.npz', data.getvalue().replace(b'PK\x01\x02\x2d\x03\x2d\0\0\0', b'PK\x01\x02\x2d\x03\x2d\0\x01\0').replace(b'PK\x01\x02\x14\x03\x14\0\0\0', b'PK\x01\x02\x14\x03\x14\0\x01\0'))


def npy(shape, descr='<f8'):
    "Header of an .npy file"
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, dict(descr=descr, fortran_order=False, shape=shape))
    return out.getvalue()


@trap('spectra', 'cube', 'image')
def npy_that_lies(d): return put(d/'lie.npy', npy((10**6, 10**6, 10**6)) + bytes(64))
@trap('cube', 'image')
def npy_negative(d): return put(d/'negative.npy', npy((-3, 4, 5)) + bytes(8*60))
@trap('cube', 'image')
def npy_without_values(d): return put(d/'none.npy', npy((2**40, 0, 5)))
@trap('cube', 'image')
def npy_of_records(d): return put(d/'records.npy', npy((2, 2, 2), [('a', '<f8'), ('b', '<U9')]) + bytes(8*44))
@trap('cube', 'image')
def npy_of_objects(d): np.save(d/'objects.npy', np.array([[[Sprung(d/'sprung')]]], object), allow_pickle=True); return d/'objects.npy'
@trap('cube', 'image')
def npy_with_a_long_header(d): return put(d/'long.npy', b'\x93NUMPY\x02\0' + struct.pack('<I', 2**31-1) + b'{' + b' '*1000)
@trap('cube', 'image')
def npy_with_nesting(d):
    head = ("{'descr': '<f8', 'fortran_order': False, 'shape': " + '('*3000 + ')'*3000 + '}').encode()
    return put(d/'nested.npy', b'\x93NUMPY\x02\0' + struct.pack('<I', len(head)) + head)


# --- FITS

def image(*axes, bitpix=-32, more=()): return block('SIMPLE  =                    T', f'BITPIX  = {bitpix:20d}', f'NAXIS   = {len(axes):20d}', *(f'NAXIS{i:<3d}= {n:20d}' for i, n in enumerate(axes, 1)), *more)


@trap(*FILES)
def fits_of_1e18_pixels(d): return put(d/'huge.fits', image(10**6, 10**6, 10**6))
@trap(*FILES)
def fits_beyond_int64(d): return put(d/'beyond.fits', image(10**19, 10**19, 2))
@trap(*FILES)
def fits_with_999_axes(d): return put(d/'axes.fits', image(*[2]*999))
@trap(*FILES)
def fits_of_4_gb(d): return put(d/'large.fits', image(1024, 1024, 1024))
@trap(*FILES)
def fits_negative_axis(d): return put(d/'negative.fits', image(-5, 10, 10))
@trap(*FILES)
def fits_zero_axis(d): return put(d/'zero.fits', image(0, 10, 10))
@trap(*FILES)
def fits_without_axes(d): return put(d/'none.fits', image())
@trap(*FILES)
def fits_without_end(d): return put(d/'endless.fits', b'SIMPLE  =                    T'.ljust(80) + b'COMMENT x'.ljust(80)*20000)
@trap(*FILES)
def fits_of_many_extensions(d): return put(d/'many.fits', image() + block("XTENSION= 'IMAGE   '", 'BITPIX  =                    8', 'NAXIS   =                    0', 'PCOUNT  =                    0', 'GCOUNT  =                    1')*5000)
@trap(*FILES)
def fits_of_wild_numbers(d): return put(d/'wild.fits', image(4, 4, 4, more=('BSCALE  =                  NaN', 'BZERO   =              1E999999', 'CRVAL3  =                  INF', "CTYPE3  = 'WAVE    '", 'CDELT3  =                  NaN', "CUNIT3  = 'm       '")) + bytes(2880))
@trap(*FILES)
def fits_of_1e18_axes(d): return put(d/'axes.fits', block('SIMPLE  =                    T', 'BITPIX  =                    8', 'NAXIS   =  9223372036854775807'))
@trap(*FILES)
def fits_of_1e18_axes_in_an_extension(d): return put(d/'axes.fits', image() + block("XTENSION= 'IMAGE   '", 'BITPIX  =                    8', 'NAXIS   =  9223372036854775807'))
@trap('cube', 'image', 'spectra')
def fits_scaled_to_infinity(d): return put(d/'scaled.fits', image(6, 5, 4, bitpix=16, more=('BSCALE  =              1E308', 'BZERO   =              1E308')) + b'\x7f\xff'*1440)
@trap('cube')
def fits_blank_everywhere(d): return put(d/'blank.fits', image(6, 5, 4, bitpix=16, more=('BLANK   =                    0',)) + bytes(2880))
@trap('cube', 'image')
def fits_with_a_broken_sky(d): return put(d/'sky.fits', image(6, 5, 4, more=("CTYPE1  = 'RA---TAN-SIP'", "CTYPE2  = 'DEC--TAN-SIP'", 'A_ORDER =                99999', 'B_ORDER =                99999', 'CRVAL1  =              1E300', 'CD1_1   =                 0.0', 'CD2_2   =                 0.0')) + struct.pack('>f', 1.5)*720)
@trap('cube', 'image')
def fits_of_a_great_tile(d):
    "1e9 compressed pixels in a tile of a hundred bytes"
    x = fits.CompImageHDU(np.zeros((4, 4, 4), 'i4'), compression_type='GZIP_1', tile_shape=(4, 4, 4))
    fits.HDUList([fits.PrimaryHDU(), x]).writeto(d/'tile.fits')
    data = (d/'tile.fits').read_bytes()
    for k in range(1, 4): data = data.replace(f'ZNAXIS{k} =                    4'.encode(), f'ZNAXIS{k} =                 1000'.encode()).replace(f'ZTILE{k}  =                    4'.encode(), f'ZTILE{k}  =                 1000'.encode())
    return put(d/'tile.fits', data)
@trap('cube', 'image', quick=False)
def fits_of_true_great_tiles(d):
    "400 MB of zeros, compressed as FITS does"
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(np.zeros((100, 1000, 1000), 'f4'), compression_type='GZIP_1', tile_shape=(1, 1000, 1000))]).writeto(d/'tiles.fits')
    return d/'tiles.fits'
@trap('cube', 'image', quick=False)
def fits_gzipped_great_cube(d): return put(d/'cube.fits.gz', one_stream(2**29, image(512, 512, 512) + struct.pack('>f', 1.)*99))


def table(rows, width, form, names=('time', 'flux', 'wave', 'spectrum', 'curve'), pcount=0, more=()):
    cards = ["XTENSION= 'BINTABLE'", 'BITPIX  =                    8', 'NAXIS   =                    2', f'NAXIS1  = {width:20d}', f'NAXIS2  = {rows:20d}', f'PCOUNT  = {pcount:20d}', 'GCOUNT  =                    1', f'TFIELDS = {len(names):20d}']
    for i, k in enumerate(names, 1): cards += [f"TTYPE{i:<3d}= '{k:8s}'", f"TFORM{i:<3d}= '{form:8s}'"]
    return image() + block(*cards, *more)


@trap('spectra', 'lightcurves', 'gaia', 'match', 'distances')
def fits_table_of_1e12_rows(d): return put(d/'rows.fits', table(10**12, 20, 'E') + bytes(2880))
@trap('spectra', 'lightcurves', 'gaia', 'match', 'distances')
def fits_table_of_empty_cells(d): return put(d/'cells.fits', table(10**9, 0, '0E') + bytes(2880))
@trap('spectra', 'lightcurves', 'gaia', 'match', 'distances')
def fits_table_of_empty_text(d): return put(d/'text.fits', table(10**8, 0, '0A') + bytes(2880))
@trap('spectra', 'lightcurves', 'gaia', 'match', 'distances')
def fits_heap_again_and_again(d):
    "5000 rows that all point to the same 100,000 numbers"
    cell = struct.pack('>ii', 100000, 0)*5
    return put(d/'heap.fits', table(5000, 40, '1PE(9)', pcount=400000) + cell*5000 + struct.pack('>f', 1.)*100000 + bytes(2880))
@trap('spectra', 'lightcurves', 'gaia', 'match', 'distances')
def fits_heap_outside(d): return put(d/'outside.fits', table(20, 40, '1PE(9)', pcount=400, more=('THEAP   =          99999999999',)) + struct.pack('>ii', 2**30, 2**31-1)*100 + bytes(2880))
@trap('spectra', 'lightcurves', 'gaia', 'match', 'distances')
def fits_cells_of_1e9(d): return put(d/'cells.fits', table(1, 20, '999999999E') + bytes(2880))
@trap('spectra', 'lightcurves', 'gaia', 'match', 'distances')
def fits_dimensions_that_lie(d): return put(d/'dims.fits', table(20, 20, '1E', more=("TDIM1   = '(9999,9999)'", "TDIM2   = '(-1)'", 'TSCAL2  =                  NaN', 'TNULL1  = 7')) + bytes(2880))


# --- text

@trap(*SPECTRA, *TABLES)
def csv_of_a_million_columns(d): return put(d/'wide.csv', b','.join(b'c%d' % i for i in range(10**6)) + b'\n' + b'1,'*(10**6-1) + b'1\n')
@trap(*SPECTRA, *TABLES)
def csv_of_a_long_line(d): return put(d/'long.csv', b'time,flux\n' + b'1'*10**7 + b',2\n')
@trap(*SPECTRA, *TABLES)
def csv_of_commas(d): return put(d/'commas.csv', b'wave,flux\n' + b','*5*10**6)
@trap(*SPECTRA, *TABLES, quick=False)
def csv_of_short_lines(d): return put(d/'short.csv', b'wave,flux\n' + b'1\n'*4*10**6)
@trap(*SPECTRA, *TABLES)
def csv_with_open_quote(d): return put(d/'quote.csv', b'time,flux,spectrum,curve\n"' + b'1,2,3,4\n'*10**5)
@trap(*SPECTRA, *TABLES)
def csv_utf16(d): return put(d/'utf16.csv', 'time,flux\n1,2\n'.encode('utf-16'))
@trap(*SPECTRA, *TABLES)
def csv_with_nul(d): return put(d/'nul.csv', b'time,flux,spectrum,curve\n' + b'1,\0,a,b\n'*50)
@trap(*SPECTRA, *TABLES)
def csv_with_escapes(d): return put(d/'escape.csv', b'\x1b[2Jtime,\x1b]0;owned\x07flux,spectrum,curve\n' + b'1,\x1b[31mred,\r,\x08\n'*50)
@trap(*SPECTRA, *TABLES)
def csv_with_the_same_name(d): return put(d/'same.csv', b'time,time,flux,flux,flux,wave,spectrum,spectrum,curve,kic,kic,distance\n' + b'1,2,3,4,5,6,7,8,9,10,11,12\n'*50)
@trap(*SPECTRA, *TABLES)
def csv_of_huge_numbers(d): return put(d/'numbers.csv', b'wave,flux,time,kic,distance,spectrum,curve,source_id\n' + b''.join(b'1e%d,%s,1e999,9%s,-1e999,a,b,%s\n' % (i, b'9'*400, b'0'*400, b'9'*50) for i in range(50)))
@trap(*SPECTRA, *TABLES)
def numbers_in_other_scripts(d): return put(d/'script.csv', 'wave,flux,time,kic,distance,spectrum,curve\n'.encode() + '５０００,١,²,½,Ⅷ,a,b\n'.encode()*50)


ECSV = '# %ECSV 1.0\n# ---\n'
@trap(*SPECTRA, *TABLES)
def ecsv_that_runs_code(d): return put(d/'run.ecsv', (ECSV + '# datatype:\n# - {name: time, datatype: float64}\n# - !!python/object/apply:os.mkdir ["sprung"]\n# meta: !!python/object/apply:os.system ["mkdir sprung"]\n# schema: astropy-2.0\ntime flux\n1 2\n').encode())
@trap(*SPECTRA, *TABLES)
def ecsv_of_laughs(d):
    laughs = ''.join(f'# a{i}: &a{i} [{", ".join([f"*a{i-1}"]*9)}]\n' if i else '# a0: &a0 [lol, lol]\n' for i in range(12))
    return put(d/'lol.ecsv', (ECSV + laughs + '# datatype:\n# - {name: time, datatype: float64}\n# - {name: flux, datatype: float64}\n# schema: astropy-2.0\ntime flux\n' + '1 2\n'*50).encode())
@trap(*SPECTRA, *TABLES)
def ecsv_of_nesting(d): return put(d/'nest.ecsv', (ECSV + '# meta: ' + '['*20000 + '\n# datatype:\n# - {name: time, datatype: float64}\ntime\n1\n').encode())
@trap(*SPECTRA, *TABLES)
def ecsv_of_objects(d): return put(d/'object.ecsv', (ECSV + '# datatype:\n# - {name: time, datatype: object}\n# - {name: flux, datatype: string, subtype: "float64[999999,99999]"}\n# schema: astropy-2.0\ntime flux\n' + '"{}" "[1]"\n'*50).encode())
@trap(*SPECTRA, *TABLES)
def ecsv_serialized(d): return put(d/'serial.ecsv', (ECSV + '# datatype:\n# - {name: time, datatype: float64}\n# meta: !!omap\n# - __serialized_columns__:\n#     time: {__class__: os.mkdir, path: sprung}\n#     flux: {__class__: subprocess.Popen, args: [mkdir, sprung]}\n# schema: astropy-2.0\ntime\n1\n').encode())
@trap('spectra', 'lightcurves')
def ecsv_of_a_false_record(d):
    meta = json.dumps(dict(wave='x', flux=3, __class__='os', rv='\x1b', meta=[]))
    return put(d/'record.ecsv', (ECSV + f"# datatype:\n# - {{name: time, datatype: float64}}\n# - {{name: flux, datatype: float64}}\n# meta: {{SPECTRUM: '{meta}', LIGHTCURVE: '[]'}}\n# schema: astropy-2.0\ntime flux\n" + '1 2\n'*50).encode())


VOT = '<?xml version="1.0"?>\n'
@trap(*TABLES)
def votable_of_laughs(d):
    lol = ''.join(f'<!ENTITY l{i} "{f"&l{i-1};"*10}">' if i else '<!ENTITY l0 "lol">' for i in range(12))
    return put(d/'lol.vot', (VOT + f'<!DOCTYPE VOTABLE [{lol}]>\n<VOTABLE version="1.4"><RESOURCE><DESCRIPTION>&l11;</DESCRIPTION></RESOURCE></VOTABLE>').encode())
@trap(*TABLES)
def votable_of_a_long_entity(d): return put(d/'long.vot', (VOT + f'<!DOCTYPE VOTABLE [<!ENTITY a "{"x"*100000}">]>\n<VOTABLE version="1.4"><DESCRIPTION>{"&a;"*20000}</DESCRIPTION></VOTABLE>').encode())
@trap(*TABLES)
def votable_that_fetches(d):
    put(d/'secret.txt', b'secret')
    return put(d/'fetch.vot', (VOT + f'<!DOCTYPE VOTABLE [<!ENTITY s SYSTEM "file://{d}/secret.txt">]>\n<VOTABLE version="1.4"><RESOURCE><TABLE><FIELD name="spectrum" datatype="char" arraysize="*"/><FIELD name="curve" datatype="char" arraysize="*"/>'
                                     '<DATA><TABLEDATA><TR><TD>&s;</TD><TD>a</TD></TR></TABLEDATA></DATA></TABLE></RESOURCE></VOTABLE>').encode())
@trap(*TABLES)
def votable_with_a_link(d): return put(d/'link.vot', (VOT + '<VOTABLE version="1.4"><RESOURCE><TABLE><FIELD name="ra" datatype="double"/><DATA><BINARY><STREAM href="file:///dev/zero"/></BINARY></DATA></TABLE></RESOURCE></VOTABLE>').encode())
@trap(*TABLES)
def votable_with_a_fits_link(d): return put(d/'fits.vot', (VOT + '<VOTABLE version="1.4"><RESOURCE><TABLE><FIELD name="ra" datatype="double"/><DATA><FITS extnum="1"><STREAM encoding="gzip" href="http://127.0.0.1:9/x.fits"/></FITS></DATA></TABLE></RESOURCE></VOTABLE>').encode())
@trap(*TABLES)
def votable_of_many_rows(d): return put(d/'rows.vot', (VOT + '<VOTABLE version="1.4"><RESOURCE><TABLE nrows="2000000000"><FIELD name="spectrum" datatype="double" arraysize="999999"/><FIELD name="curve" datatype="char" arraysize="99999999"/><DATA><TABLEDATA><TR><TD>1</TD><TD>a</TD></TR></TABLEDATA></DATA></TABLE></RESOURCE></VOTABLE>').encode())
@trap(*TABLES)
def votable_of_nesting(d): return put(d/'nest.vot', (VOT + '<VOTABLE version="1.4">' + '<RESOURCE>'*50000).encode())


# --- Parquet, HDF5, MATLAB, ENVI, pictures

@trap(*SPECTRA, *TABLES)
def parquet_of_the_same_number(d):
    n = 3*10**7
    pq.write_table(pa.table({k: pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, 'i4')), pa.array([5000.])) for k in ('wave', 'flux', 'time')}), d/'same.parquet')
    return d/'same.parquet'
@trap(*SPECTRA, *TABLES)
def parquet_of_the_same_text(d):
    n = 20000
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, 'i4')), pa.array(['x'*10**6]))
    pq.write_table(pa.table(dict(time=np.arange(n)*1., flux=np.ones(n), wave=np.linspace(4000, 9000, n), star=text, id=text, spectrum=text, curve=text)), d/'text.parquet')
    return d/'text.parquet'
@trap(*SPECTRA, *TABLES)
def parquet_of_bad_text(d):
    text = pa.StringArray.from_buffers(20, pa.py_buffer(np.arange(21, dtype='i4').tobytes()), pa.py_buffer(b'\xff'*20))
    pq.write_table(pa.table(dict(wave=np.linspace(4000., 9000, 20), flux=np.ones(20), time=np.arange(20.), star=text, kic=text, distance=np.ones(20), id=text, spectrum=text, curve=text)), d/'text.parquet')
    return d/'text.parquet'
@trap(*SPECTRA, *TABLES)
def parquet_of_lists(d):
    pq.write_table(pa.table(dict(wave=[[1., 2.]]*20, flux=[[1.], None]*10, time=[{'a': 1}]*20, kic=[b'\xff']*20, distance=[[None]]*20, spectrum=[['a']]*20, curve=[None]*20)), d/'lists.parquet')
    return d/'lists.parquet'
@trap(*SPECTRA, *TABLES)
def parquet_of_pandas_lies(d):
    t = pa.table(dict(wave=np.arange(20.)+5000, flux=np.arange(20.), time=np.arange(20.))).replace_schema_metadata({b'pandas': b'{"index_columns": [{"kind": "range", "start": 0, "stop": 99999999999, "step": 0}], "columns": [{"numpy_type": "os.system"}]}', b'table_meta_yaml': b'- !!python/object/apply:os.mkdir ["sprung"]'})
    pq.write_table(t, d/'lies.parquet')
    return d/'lies.parquet'
@trap(*SPECTRA, *TABLES)
def parquet_without_rows(d): pq.write_table(pa.table(dict(wave=pa.array([], 'f8'), flux=pa.array([], 'f8'), time=pa.array([], 'f8'))), d/'none.parquet'); return d/'none.parquet'
@trap(*SPECTRA, *TABLES)
def parquet_of_many_columns(d): pq.write_table(pa.table({f'c{i}': [1.] for i in range(3000)}), d/'many.parquet'); return d/'many.parquet'


def h5(d, fill, name='trap.h5'):
    with h5py.File(d/name, 'w') as f: fill(f)
    return d/name


@trap('spectra', 'cube', 'image')
def hdf5_way_out(d):
    h5(d, lambda f: [f.create_dataset('flux', data=np.arange(5000., 5040)), f.create_dataset('cube', data=np.ones((3, 4, 5)))], 'secret.h5')
    def fill(f): f['wave'] = np.arange(5000., 5040); f['flux'], f['cube'] = h5py.ExternalLink('secret.h5', '/flux'), h5py.ExternalLink('secret.h5', '/cube')
    return h5(d, fill)
@trap('spectra', 'cube', 'image')
def hdf5_raw_way_out(d):
    put(d/'secret.raw', np.arange(60.).tobytes())
    def fill(f): f['wave'] = np.arange(5000., 5060); [f.create_dataset(k, s, 'f8', external=[(str(d/'secret.raw'), 0, 480)]) for k, s in (('flux', (60,)), ('cube', (3, 4, 5)))]
    return h5(d, fill)
@trap('spectra', 'cube', 'image')
def hdf5_virtual(d):
    h5(d, lambda f: f.create_dataset('x', data=np.ones((3, 4, 5))), 'secret.h5')
    layout = h5py.VirtualLayout((3, 4, 5), 'f8')
    layout[:] = h5py.VirtualSource(str(d/'secret.h5'), 'x', (3, 4, 5))
    return h5(d, lambda f: f.create_virtual_dataset('cube', layout))
@trap('spectra', 'cube', 'image')
def hdf5_links_in_a_ring(d):
    def fill(f): f['a'], f['b'] = h5py.SoftLink('/b'), h5py.SoftLink('/a'); f['g/h'] = 1.; f['g/up'] = f['/']; f['dataset'] = f['/']; f['spectrumdataset'] = h5py.SoftLink('/spectrumdataset')
    return h5(d, fill)
@trap('spectra', 'cube', 'image')
def hdf5_of_chunks_never_written(d):
    def fill(f): [f.create_dataset(k, (3000, 20000), 'f8', chunks=(1, 20000)) for k in ('flux', 'wave', 'ivar')]; f.create_dataset('cube', (400, 1000, 1000), 'f4', chunks=(1, 1000, 1000))
    return h5(d, fill)
@trap('spectra', 'cube', 'image')
def hdf5_of_1e15_values(d):
    def fill(f): [f.create_dataset(k, (10**5, 10**5, 10**5), 'f8', chunks=(1, 10, 10)) for k in ('flux', 'cube')]; f['wave'] = np.arange(5000., 5040)
    return h5(d, fill)
@trap('spectra', 'cube', 'image', quick=False)
def hdf5_of_packed_zeros(d):
    def fill(f): f.create_dataset('cube', data=np.zeros((60, 1000, 1000), 'f4'), compression='gzip', compression_opts=1, chunks=(10, 1000, 1000)); f.create_dataset('flux', data=np.zeros((1000, 20000)), compression='gzip', compression_opts=1); f['wave'] = np.linspace(4000, 9000, 20000)
    return h5(d, fill)
@trap('spectra', 'cube', 'image')
def hdf5_of_odd_kinds(d):
    def fill(f): f['flux'] = np.array([b'x']*20, 'O') if False else np.array(['x']*20, h5py.string_dtype()); f['wave'] = h5py.Empty('f8'); f['cube'] = np.zeros((2, 2, 2), [('a', 'f8')]); f['ref'] = f.ref; f.create_dataset('ivar', (), 'f8')
    return h5(d, fill)
@trap('spectra', 'cube', 'image')
def hdf5_of_deep_groups(d): return h5(d, lambda f: f.create_dataset('/'.join(['dataset']*400), data=1.))
@trap('spectra')
def hdf5_table_of_lies(d):
    def fill(f):
        f['spectrumdataset/wave'] = np.linspace(7100, 8850, 40)
        f['dataset/arrays/flux/value'] = np.ones((2, 40))
        f['dataset/params/axis0'], f['dataset/params/block0_items'], f['dataset/params/block0_values'] = [b'\x1b[2J'], np.array([b'id', b'redshift', b'\xff']), [[1.], [np.inf], [3.]]
    return h5(d, fill)


@trap('cube', 'image')
def mat_of_zeros(d): scipy.io.savemat(d/'zeros.mat', dict(cube=np.zeros((100, 1000, 1000), 'f4')), do_compression=True); return d/'zeros.mat'
@trap('cube', 'image')
def mat_that_lies(d):
    scipy.io.savemat(d/'lie.mat', dict(cube=np.zeros((3, 4, 5))))
    data = (d/'lie.mat').read_bytes()
    return put(d/'lie.mat', data.replace(struct.pack('<iii', 3, 4, 5), struct.pack('<iii', 30000, 40000, 50000)))
@trap('cube', 'image')
def mat_of_objects(d): scipy.io.savemat(d/'objects.mat', dict(cube=np.array([[1, 'a', {'b': [1]}]], object), s=dict(a=dict(b=dict(c=1))))); return d/'objects.mat'
@trap('cube', 'image')
def mat_packed_header_bomb(d): return put(d/'bomb.mat', b'MATLAB 5.0 MAT-file'.ljust(116) + bytes(8) + b'\0\x01IM' + (lambda z: struct.pack('<II', 15, len(z)) + z)(zlib.compress(bytes(2**28), 1)))


def envi(d, **fields):
    head = {'samples': 4, 'lines': 3, 'bands': 2, 'data type': 4, 'interleave': 'bsq', 'byte order': 0, 'header offset': 0} | fields
    put(d/'e.img', bytes(96))
    (d/'e.hdr').write_text('ENVI\n' + ''.join(f'{k} = {v}\n' for k, v in head.items()))
    return d/'e.hdr'


for _name, _fields in {'huge': {'samples': 10**12, 'lines': 10**12}, 'negative': {'samples': -4, 'lines': -3}, 'float': {'bands': '2.5'}, 'digits': {'samples': '9'*5000}, 'offset': {'header offset': 2**62}, 'minus offset': {'header offset': -96}, 'kind': {'data type': 6}, 'list': {'wavelength': '{' + '1,'*10**6 + '1}'},
                       'names': {'data file': '/etc/passwd', 'file': '../../secret'}, 'escape': {'data units': '\x1b[2Jerg', 'wavelength units': '\x1b[31m', 'interleave': '\x1b'}, 'braces': {'wavelength': '{'*10**5}, 'hole': {'data ignore value': 'nan', 'bbl': '{0,0}'}, 'nan': {'wavelength': '{nan, inf}'}}.items():
    TRAPS[f'envi {_name}'] = Trap(lambda d, f=_fields: envi(d, **f), ('cube',))
    QUICK.add(f'envi {_name}')


@trap('cube')
def envi_raw_outside(d):
    envi(d)
    (d/'e.img').unlink()
    (d/'e.img').symlink_to('/dev/zero')
    return d/'e.hdr'
@trap('cube')
def envi_header_of_zeros(d): (d/'z.hdr').symlink_to('/dev/zero'); return d/'z.hdr'
@trap('cube')
def envi_of_equal_signs(d): return put(d/'eq.hdr', b'ENVI\n' + b'a '*200000 + b'= {')


def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


@trap('image')
def picture_of_zeros(d):
    "12,000 x 12,000 pixels in 140 kB"
    return put(d/'zeros.png', b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', 12000, 12000, 8, 0, 0, 0, 0)) + chunk(b'IDAT', zlib.compress(bytes(12001*12000), 9)) + chunk(b'IEND', b''))
@trap('image')
def picture_of_4e18_pixels(d): return put(d/'huge.png', b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', 2**31-1, 2**31-1, 16, 6, 0, 0, 0)) + chunk(b'IDAT', zlib.compress(b'')) + chunk(b'IEND', b''))
@trap('image')
def picture_with_much_text(d): return put(d/'text.png', b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', 1, 1, 8, 0, 0, 0, 0)) + chunk(b'zTXt', b'a\0\0' + zlib.compress(bytes(2**28), 1)) + chunk(b'IDAT', zlib.compress(b'\0\0')) + chunk(b'IEND', b''))
@trap('image')
def tiff_in_a_ring(d): return put(d/'ring.tif', b'II*\0' + struct.pack('<I', 8) + struct.pack('<H', 2) + struct.pack('<HHII', 256, 4, 1, 10**9) + struct.pack('<HHII', 257, 4, 1, 10**9) + struct.pack('<I', 8))


# --- folders of models

def model(d, edit, kind='desa_quarter'):
    from shutil import copytree
    from stellar_nb.core import package_data
    path = Path(copytree(package_data('models', kind), d/'m'))
    edit(path)
    return path


def configure(path, file='config.json', **values):
    o = json.loads((path/file).read_text())
    (o['config'] if file == 'config.json' else o).update(values)
    (path/file).write_text(json.dumps(o))


SIZES = dict(desa_quarter=('length', 'grid', 'width', 'depth', 'stem', 'patch', 'channels', 'projection', 'hidden', 'heads'), specvit_xp=('length', 'patch', 'width', 'depth', 'heads', 'hidden', 'labels', 'quantiles'), fusion_sky=('width', 'depth', 'heads', 'classes'), guided_mae=('size', 'pixels', 'bands', 'group', 'width', 'depth', 'heads'),
             desa_aligned=('spectra', 'curve', 'token', 'width', 'depth', 'heads', 'hidden'), desa_spectra=('length', 'stem', 'kernel', 'depth', 'channels', 'heads', 'ffn', 'hidden'))
for _kind, _keys in SIZES.items():
    for _key in _keys:
        for _value in (10**12, 10**5, 0, -3, 2.5, '7', None, [10**9]*3):
            def _build(d, kind=_kind, key=_key, value=_value): return model(d, lambda p: configure(p, **{key: value}), kind)
            TRAPS[f'model {_kind} {_key} {json.dumps(_value)}'] = Trap(_build, MODELS)
QUICK |= {'model specvit_xp width 1000000000000', 'model specvit_xp depth 100000', 'model desa_quarter grid 1000000000000', 'model fusion_sky width 100000'}


def _model_trap(name, edit):
    TRAPS[f'model {name}'] = Trap(lambda d: model(d, edit), MODELS)
    QUICK.add(f'model {name}')


def _link(path, file, to): (path/file).unlink(); (path/file).symlink_to(to)
def _pipe(path, file): (path/file).unlink(); os.mkfifo(path/file)


for _file in ('config.json', 'preprocessing.json', 'card.md', 'model.safetensors'):
    _model_trap(f'{_file} of zeros', lambda p, f=_file: _link(p, f, '/dev/zero'))
    _model_trap(f'{_file} a pipe', lambda p, f=_file: _pipe(p, f))
    _model_trap(f'{_file} empty', lambda p, f=_file: (p/f).write_bytes(b''))
    _model_trap(f'{_file} missing', lambda p, f=_file: (p/f).unlink())
    _model_trap(f'{_file} noise', lambda p, f=_file: (p/f).write_bytes(b'\xff\xfe'*99))
_model_trap('deep json', lambda p: (p/'config.json').write_text('['*10**5))
_model_trap('json list', lambda p: (p/'config.json').write_text('[1, 2]'))
_model_trap('json number', lambda p: (p/'config.json').write_text('7'))
_model_trap('escape in its kind', lambda p: (p/'config.json').write_text('{"model": "\\u001b[2J\\nx", "config": {}}'))
_model_trap('other kind', lambda p: configure(p, 'preprocessing.json', kind='cube'))
_model_trap('weights of NaN', lambda p: save_file({'a': np.full(3, np.nan)}, p/'model.safetensors'))
_model_trap('header of 1e15 bytes', lambda p: (p/'model.safetensors').write_bytes((10**15).to_bytes(8, 'little') + b'{}'))
_model_trap('tensor of 1e15 values', lambda p: (p/'model.safetensors').write_bytes((lambda h: len(h).to_bytes(8, 'little') + h)(json.dumps({'a': dict(dtype='F32', shape=[10**15], data_offsets=[0, 4*10**15])}).encode())))
_model_trap('pickled weights', lambda p: (p/'model.safetensors').write_bytes(pickle.dumps(Sprung(p/'sprung'))))


# --- tables with the right columns and wrong contents

@trap('gaia', 'classify_gaia')
def gaia_of_the_same_id(d): pd.DataFrame({k: [1.]*5 for k in GAIA_COLUMNS} | dict(source_id=[7]*5)).to_csv(d/'ids.csv', index=False); return d/'ids.csv'
@trap('match')
def match_twice(d): return put(d/'twice.csv', b'spectrum,curve\na.fits,b\na.fits,c\n')
@trap('match')
def match_of_numbers(d): return put(d/'numbers.csv', b'spectrum,curve\n1,2\n,\nnan,inf\n')
@trap('distances')
def distances_twice(d): return put(d/'twice.csv', b'kic,distance\n7,10\n7,11\n')
@trap('distances')
def distances_odd(d): return put(d/'odd.csv', b'kic,distance,mag\n7,0,1\n8,-5,inf\n9,nan,\n10,1e400,x\n,1,1\n')
