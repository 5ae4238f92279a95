"Ways to spoil a file: each takes its bytes and a `random.Random`, and returns other bytes. To add one, write it and enter it in `KINDS`."
import gzip
import io
import json
import re
import struct
import zipfile
import zlib

NUMBERS = ['0', '-1', '1', '3', '0.5', '-0.0', 'nan', 'inf', '-inf', '1e308', '1e-320', '1e999', '2147483647', '-2147483648', '4294967296', '9223372036854775807', '9223372036854775808', '9'*40, '']
WORDS = [*NUMBERS, '""', '"', "'", ',', '\0', '\ufeff', '\x1b[2J\x1b]0;owned\x07', 'a\rb', '\u202egpj', '☃'*9, 'x'*5000, '=1+1', '../../../etc/passwd', '/dev/zero', '9999-12-31T23:59:59', 'null', 'True', '{', ']', '%s%n', '${HOME}', '<!-- -->', '\\',
         '!!python/object/apply:os.mkdir ["sprung"]', '&a [*a, *a]', 'int128', 'object', '?', 'Angstrom', 'parsec', 'O8', 'float64']
CARDS = ('SIMPLE XTENSION BITPIX NAXIS NAXIS1 NAXIS2 NAXIS3 NAXIS4 PCOUNT GCOUNT TFIELDS THEAP EXTEND END EXTNAME BSCALE BZERO BLANK BUNIT TFORM1 TFORM2 TFORM3 TTYPE1 TTYPE2 TUNIT1 TDIM1 TDIM2 TSCAL1 TZERO1 TNULL1 '
         'CTYPE1 CTYPE3 CUNIT1 CUNIT3 CRVAL1 CRVAL2 CRVAL3 CRPIX3 CDELT1 CDELT3 CD1_1 CD2_2 CD3_3 PC1_1 LONPOLE WCSAXES A_ORDER DC-FLAG COEFF0 COEFF1 VACUUM TELESCOP OBJECT MISSION QUARTER KEPMAG Z RA DEC MJD SNRG SPECTYPE '
         'ZIMAGE ZCMPTYPE ZNAXIS ZNAXIS1 ZTILE1 ZBITPIX CONTINUE HIERARCH INHERIT GROUPS').split()
FORMATS = ["'1PE(100)'", "'1QD'", "'0A'", "'99999999999E'", "'1000000D'", "'X'", "'-1E'", "'3C'", "'A'", "'1L'", "'(2,3)E'", "'(99999,99999)'", "'(0)'", "'LOG'", "'WAVE-TAB'", "'RA---TAN-SIP'", "'\x1b[31m'", 'T', 'F', "''", '(1.0, 2.0)']


def place(data, rng): return rng.randrange(len(data)) if data else 0


def flip(data, rng):
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 30))):
        if data: data[place(data, rng)] ^= 1 << rng.randrange(8)
    return bytes(data)


def head(data, rng):
    "A byte of the first thousands, where headers are"
    data = bytearray(data)
    for _ in range(rng.choice((1, 2, 8))):
        if data: data[rng.randrange(min(len(data), rng.choice((64, 600, 6000))))] = rng.randrange(256)
    return bytes(data)


def cut(data, rng): return data[:rng.choice((place(data, rng), rng.randrange(1, 100), max(0, len(data) - rng.randrange(1, 3000)), len(data)//2880*2880//2))]


def drop(data, rng):
    i = place(data, rng)
    return data[:i] + data[i + rng.choice((1, 7, 80, 2880, rng.randrange(1, 5000))):]


def repeat(data, rng):
    i, n = place(data, rng), rng.choice((1, 80, 2880, rng.randrange(1, 5000)))
    return data[:i+n] + data[i:i+n]*rng.choice((1, 2, 9)) + data[i+n:]


def insert(data, rng):
    i = place(data, rng)
    return data[:i] + rng.randbytes(rng.choice((1, 3, 80, 400))) + data[i:]


def noise(data, rng):
    i, n = place(data, rng), rng.choice((4, 40, 400))
    return data[:i] + rng.choice((rng.randbytes(n), bytes(n), b'\xff'*n, b' '*n, b'9'*n))[:max(0, len(data)-i)] + data[i+n:]


def swap(data, rng):
    i, j = sorted((place(data, rng), place(data, rng)))
    n = min(j-i, rng.choice((80, 512, 2880)), len(data)-j)
    return data[:i] + data[j:j+n] + data[i+n:j] + data[i:i+n] + data[j+n:] if n > 0 else data[::-1]


def integer(data, rng):
    "A binary number of a header: lengths, counts, offsets"
    i = place(data[:rng.choice((200, 4000, len(data)))], rng)//4*4
    raw = struct.pack(rng.choice('<>') + rng.choice('iqIQ'.replace('I', 'i').replace('Q', 'q')), rng.choice((0, 1, -1, 2, 255, 65536, 2**31-1, -2**31, 2**30, 10**6)))
    return data[:i] + raw + data[i+len(raw):]


def floats(data, rng):
    "A run of NaN, infinity, negative, tiny or huge values"
    i, n = place(data, rng)//8*8, rng.choice((1, 3, 100, 5000))
    raw = struct.pack(rng.choice('<>') + rng.choice('fd'), rng.choice((float('nan'), float('inf'), -float('inf'), -1., 0., 1e-38, 3e38)))*n
    return data[:i] + raw[:max(0, len(data)-i)] + data[i+len(raw):]


def number(data, rng):
    "A number that stands in text"
    found = list(re.finditer(rb'[-+]?\d+(\.\d*)?([eE][-+]?\d+)?', data[:rng.choice((300, 3000, 60000))]))
    if not found: return flip(data, rng)
    m = rng.choice(found)
    return data[:m.start()] + rng.choice(NUMBERS).encode() + data[m.end():]


def word(data, rng):
    "A word of a text"
    found = list(re.finditer(rb'[^\s,;"=<>{}\[\]]+', data[:rng.choice((300, 3000, 60000))]))
    if not found: return flip(data, rng)
    m = rng.choice(found)
    return data[:m.start()] + rng.choice(WORDS).encode() + data[m.end():]


def line(data, rng):
    "Lines lost, repeated, moved or joined"
    lines = data[:2**20].split(b'\n')
    i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
    how = rng.randrange(7)
    if how == 0: del lines[i]
    if how == 1: lines[i:i] = [lines[j]]*rng.choice((1, 50))
    if how == 2: lines[i], lines[j] = lines[j], lines[i]
    if how == 3: lines[i] += b','*rng.choice((1, 1000))
    if how == 4: lines[i] = b''
    if how == 5: lines = lines[:i] + [b'#'*rng.choice((1, 300))] + lines[i:]
    return (b'' if how == 6 else b'\n').join(lines)


def encoding(data, rng):
    "Another encoding, or other ends of lines"
    text = data.decode('latin-1')
    return rng.choice((lambda: text.encode('utf-16'), lambda: b'\xef\xbb\xbf'*2 + data, lambda: data.replace(b'\n', b'\r\n'), lambda: data.replace(b'\n', b'\r'), lambda: b'\0' + data, lambda: data + b'\0'*99,
                       lambda: text.encode('utf-8'), lambda: text.encode('utf-32-be'), lambda: data.upper(), lambda: data.lower(), lambda: data.replace(b',', b'\t', 50), lambda: b'\n'*99 + data, lambda: data*2))()


def card(data, rng):
    "A card of a FITS header: another value, gone, or there twice"
    starts = [i for i in range(0, min(len(data), 2**20), 80) if re.match(rb'[A-Z0-9_-]{1,8} *= ', data[i:i+10])]
    if data[:6] != b'SIMPLE' or not starts: return number(data, rng)
    i, key = rng.choice(starts), rng.choice(CARDS)
    old = data[i:i+8].decode()
    value = rng.choice((*NUMBERS, *FORMATS, "'\x00'", "'" + 'x'*68))
    new = f'{rng.choice((old, old, old, key)):8s}= {value[:70]:>20s}'.encode('utf-8')[:80].ljust(80)
    at = rng.choice([o for o in starts if data[o:o+8].strip() in (b'NAXIS', b'NAXIS1', b'NAXIS2', b'BITPIX', b'PCOUNT', b'TFIELDS')] or starts) if rng.random() < .3 else i
    if rng.random() < .15: return data[:at] + new + data[at:]  # shifts what follows by 80 bytes
    if rng.random() < .1: return data[:at] + data[at+80:]
    if at != i: new = data[at:at+8] + new[8:]
    return data[:at] + new + data[at+80:]


def _json_places(o, path=()):
    yield path
    for k, v in o.items() if isinstance(o, dict) else enumerate(o) if isinstance(o, list) else (): yield from _json_places(v, (*path, k))


def json_value(data, rng):
    "A value of a JSON text"
    try: o = json.loads(data)
    except ValueError: return word(data, rng)
    path = rng.choice([p for p in _json_places(o) if p] or [()])
    value = rng.choice((0, -1, 1, 10**6, 10**12, 2**63, 1e308, float('nan'), float('inf'), None, True, '', 'x', 'x'*999, '\x1b[2J', [], {}, [[]], [1e12], 10**400, {'a': 1}, '../../x', [0]*3000))
    if not path: return json.dumps(value).encode()
    at = o
    for k in path[:-1]: at = at[k]
    if rng.random() < .2: del at[path[-1]]
    elif rng.random() < .1 and isinstance(at, dict): at[rng.choice(('', 'self', '__class__', 'x', 'config'))] = value
    else: at[path[-1]] = value
    return json.dumps(o).encode()


def tensors(data, rng):
    "The header of a safetensors file"
    n = int.from_bytes(data[:8], 'little')
    if n > len(data): return integer(data, rng)
    new = rng.choice((json_value, word, number, flip))(data[8:8+n], rng)
    size = rng.choice((len(new), len(new), len(new), 2**40, 0, len(new)+8))
    return size.to_bytes(8, 'little') + new + data[8+n:]


def member(data, rng):
    "A member of a zip archive: spoiled, twice, renamed; written anew, so that its checksum is right"
    try: names = {o.filename: (z := zipfile.ZipFile(io.BytesIO(data))).read(o) for o in zipfile.ZipFile(io.BytesIO(data)).infolist()}
    except Exception: return flip(data, rng)
    z.close()
    key = rng.choice(sorted(names))
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w', rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)), strict_timestamps=False) as z:
        for k, v in names.items():
            if k == key: v = rng.choice((number, number, word, head, cut, floats, integer))(v, rng)
            z.writestr(rng.choice((f'../{k}', '/abs.npy', k.upper(), 'wave.npy', '\x1b[2J.npy')) if k == key and rng.random() < .2 else k, v)
            if k == key and rng.random() < .1: z.writestr(k + 'x.npy', v)
    return out.getvalue()


def inside(data, rng):
    "What a gzip or zlib stream holds"
    for unpack, pack in ((gzip.decompress, lambda o: gzip.compress(o, 1)), (zlib.decompress, zlib.compress)):
        try: whole = unpack(data)
        except Exception: continue
        return pack(rng.choice([v for k, v in KINDS.items() if k not in ('inside', 'encoding')])(whole, rng))
    return rng.choice((flip, head))(data, rng)


KINDS = dict(flip=flip, head=head, cut=cut, drop=drop, repeat=repeat, insert=insert, noise=noise, swap=swap, integer=integer, floats=floats, number=number, word=word, line=line, encoding=encoding, card=card, json=json_value, tensors=tensors, member=member, inside=inside)
ANY = ('flip', 'head', 'cut', 'drop', 'repeat', 'insert', 'noise', 'swap', 'integer', 'floats')
FITTING = {b'SIMPLE': ('card', 'card', 'card', 'card', 'floats'), b'PK\x03\x04': ('member', 'member', 'member'), b'\x1f\x8b': ('inside', 'inside', 'inside'), b'{': ('json', 'json', 'json', 'word')}


def fitting(data):
    "The kinds that make sense for these bytes, as often as they should be drawn"
    for magic, kinds in FITTING.items():
        if data.startswith(magic): return (*ANY, *kinds*2)
    if data[8:9] == b'{': return (*ANY, *('tensors',)*10)
    text = b'\0' not in data[:2000] and max(data[:300] or b'x') < 128
    return (*ANY, *('number', 'word', 'line', 'encoding')*3) if text else (*ANY, 'number', 'word', 'integer', 'integer', 'floats')
