"""Fetching from the archives, against a stand-in server that fails on demand."""
import contextlib
import io
import json
import os
import re
import signal
import time

import numpy as np
import pandas as pd
import pytest
from astropy.table import Table

pytest.importorskip('astroquery')
from stellar_nb.cli import main
from stellar_nb.core import BadInput
from stellar_nb.data.fetch import *
from stellar_nb.data.fetch import GAIA_FETCHED, RECORD, _asked_to_wait
from stellar_nb.data.gaia import GAIA_COLUMNS, read_gaia
from stellar_nb.data.lightcurve import read_lightcurves
from stellar_nb.data.spectra import read_spectra
from stellar_nb.mock.archive import MockArchive, kepler_file, tess_file

NAME, CONTENT = kepler_file(8462852, 2)
SHA = __import__('hashlib').sha256(CONTENT).hexdigest()


def offer(archive, name=NAME, size=len(CONTENT), **kwargs):
    return Wanted(f'{archive.url}/api/v0.1/Download/file?uri=mast:x/{NAME}', name, size, **kwargs)


def quick(tries=3, **kwargs): return open_session(tries, .01, **kwargs)


@pytest.fixture
def served():
    "A server with one file; faults are given to it"
    with MockArchive([(NAME, CONTENT)]) as archive: yield archive


def command(*words):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err): status = main(['fetch', *map(str, words)])
    return status, out.getvalue(), err.getvalue()


# A file

@pytest.mark.parametrize('faults', [[], ['503', '503'], ['429'], ['drop'], ['drop', 'drop', 'drop'], ['reset'], ['drop', '503', 'drop'], ['drop', 'whole'], ['drop', 'reset']])
def test_it_arrives_whole(served, tmp_path, faults):
    served.faults[NAME] = faults
    got = fetch_file(quick(), offer(served), tmp_path)
    assert (tmp_path/NAME).read_bytes() == CONTENT and os.listdir(tmp_path) == [NAME]
    assert (got['bytes'], got['sha256']) == (len(CONTENT), SHA)


def test_the_rest_alone_is_asked_for(served, tmp_path):
    served.faults[NAME] = ['drop']
    seen = []
    fetch_file(quick(), offer(served), tmp_path, seen.append)
    assert [o[2] for o in served.asked] == ['', f'bytes={len(CONTENT)//2}-'] and sum(seen) == len(CONTENT)


def test_resumed_by_another_run(served, tmp_path):
    served.faults[NAME] = ['drop']
    with pytest.raises(BadInput, match='broke the connection 1 times'): fetch_file(quick(0), offer(served), tmp_path)
    assert not (tmp_path/NAME).exists() and (tmp_path/f'.{NAME}.part').stat().st_size == len(CONTENT)//2
    fetch_file(quick(0), offer(served), tmp_path)
    assert served.asked[-1][2] and (tmp_path/NAME).read_bytes() == CONTENT


def test_a_file_that_changed_starts_anew(served, tmp_path):
    served.faults[NAME] = ['drop']
    with pytest.raises(BadInput): fetch_file(quick(0), offer(served), tmp_path)
    served.curves[NAME] = new = CONTENT[::-1]
    fetch_file(quick(0), offer(served), tmp_path)
    assert (tmp_path/NAME).read_bytes() == new


def test_a_part_longer_than_the_file_starts_anew(served, tmp_path):
    (tmp_path/f'.{NAME}.part').write_bytes(bytes(2*len(CONTENT)))
    (tmp_path/f'.{NAME}.tag').write_text(json.dumps(dict(tag='', total=2*len(CONTENT))))
    fetch_file(quick(0), offer(served), tmp_path)
    assert (tmp_path/NAME).read_bytes() == CONTENT


@pytest.mark.parametrize('faults,why', [
    (['404'], 'says 404 Not Found'), (['503']*9, 'says 503 Service Unavailable, 4 times'), (['reset']*9, 'broke the connection 4 times'),
    (['endless'], f'sends more than the {len(CONTENT):,} bytes'), (['to:file:///etc/passwd'], 'not the address of a web server'), (['to:ftp://127.0.0.1/'], 'not the address of a web server')])
def test_it_fails_with_a_reason(served, tmp_path, faults, why):
    served.faults[NAME] = faults
    with pytest.raises(BadInput, match=why): fetch_file(quick(), offer(served), tmp_path)
    assert not (tmp_path/NAME).exists()


def test_silence(served, tmp_path):
    served.faults[NAME] = ['slow']
    session = quick(read=.2)
    start = time.perf_counter()
    with pytest.raises(BadInput, match='does not answer in time'): fetch_file(session, offer(served), tmp_path)
    assert time.perf_counter() - start < 1.5


def test_damage_is_seen(served, tmp_path):
    served.faults[NAME] = ['corrupt']
    with pytest.raises(BadInput, match='arrived damaged'): fetch_file(quick(), offer(served, sha256=SHA), tmp_path)
    assert not os.listdir(tmp_path)
    fetch_file(quick(), offer(served, sha256=SHA), tmp_path)


@pytest.mark.parametrize('size,sha,why', [(len(CONTENT) + 1, SHA, 'the archive lists'), (1, '', None), (2, SHA, 'the archive lists')])
def test_length_of_the_list(served, tmp_path, size, sha, why):
    if why is None: fetch_file(quick(), offer(served, size=size), tmp_path)
    else:
        with pytest.raises(BadInput, match=why): fetch_file(quick(), offer(served, size=size, sha256=sha), tmp_path)


def test_much_more_than_listed_is_refused(tmp_path):
    with MockArchive([(NAME, bytes(2**21))]) as archive:
        with pytest.raises(BadInput, match='much more than the 1,000'): fetch_file(quick(), offer(archive, size=1000), tmp_path)


@pytest.mark.parametrize('name', ['../x.fits', '/tmp/x', 'a/../../x', '..', 'C:\\x', 'nul', 'COM1.fits', 'a\n', '.hidden', 'x\u202e', RECORD.upper(), 'x'*300, '~/x:y', 'a/', ''])
def test_unsafe_names(served, tmp_path, name):
    with pytest.raises(BadInput, match='not safe to write'): fetch_file(quick(), offer(served, name=name), tmp_path/'in')
    assert not served.asked and not (tmp_path/'in').exists()


def test_retry_after():
    class Answer: headers = {}
    for text, low, high in (('3', 3, 3), ('Wed, 21 Oct 2015 07:28:00 GMT', 0, 0)):
        Answer.headers = {'Retry-After': text}
        assert low <= _asked_to_wait(Answer) <= high
    for Answer.headers in ({}, {'Retry-After': 'soon'}): assert _asked_to_wait(Answer) is None


# Many files

def test_one_of_many_fails(tmp_path):
    curves = [kepler_file(k, 1) for k in range(1, 7)]
    bad = curves[2][0]
    with MockArchive(curves, faults={bad: ['404']}) as archive:
        files = [Wanted(f'{archive.url}/api/v0.1/Download/file?uri=x/{k}', k, len(v)) for k, v in curves]
        files.insert(1, files[0]._replace(name='../evil.fits'))
        first = fetch_files(quick(), files, tmp_path)
        asked = len(archive.asked)
        second = fetch_files(quick(), files, tmp_path)
        assert len(archive.asked) == asked + 1
    assert [o.name for o in first if o.status == 'failed'] == ['../evil.fits', bad]
    assert [o.status for o in second] == ['there', 'failed', 'there', 'fetched', 'there', 'there', 'there']
    assert not (tmp_path.parent/'evil.fits').exists() and read_record(tmp_path).keys() == {k for k, _ in curves}


def test_a_file_cut_short_is_fetched_again(served, tmp_path):
    fetch_files(quick(), [offer(served)], tmp_path)
    (tmp_path/NAME).write_bytes(CONTENT[:-1])
    with open(tmp_path/RECORD, 'a') as f: f.write('{"name": "half a li')
    assert [o.status for o in fetch_files(quick(), [offer(served)], tmp_path)] == ['fetched']
    assert (tmp_path/NAME).read_bytes() == CONTENT


def test_a_server_that_goes_away_ends_it(tmp_path):
    with MockArchive([(NAME, CONTENT)]) as archive: files = [offer(archive, f'{k}.fits') for k in range(50)]
    start = time.perf_counter()
    with pytest.raises(Unreachable, match='cannot be reached: check the network'): fetch_files(quick(), files, tmp_path)
    assert time.perf_counter() - start < 2


# The archives

def sky(n=5):
    rows = pd.DataFrame({k: np.full(n, 1.) for k in GAIA_FETCHED})
    return rows.assign(ra=10 + np.arange(n)/3600, dec=0., source_id=3338040968345126912 + np.arange(n))


def test_quarters_and_cadence():
    with MockArchive([kepler_file(1, q) for q in (1, 2, 3)] + [kepler_file(2, 1), tess_file(3, 1), tess_file(3, 2)], faults=dict(portal=['503', 'reset'])) as archive:
        names = lambda *a, **k: [o.what for o in list_lightcurves(quick(), *a, server=archive.url, **k)]
        assert names('kepler', [1], [1, 3]) == ['KIC 1, quarter 1', 'KIC 1, quarter 3']
        assert names('kepler', [2, 1], [1]) == ['KIC 1, quarter 1', 'KIC 2, quarter 1']
        assert names('tess', [3], [2]) == ['TIC 3, sector 2'] and not names('tess', [3], cadence=20) and not names('kepler', [9])


def test_gaia_in_pieces(tmp_path):
    with MockArchive(gaia=sky(), faults=dict(tap=['503', 'reset'])) as archive:
        rows = fetch_gaia(quick(), sky()[['source_id']], tmp_path, size=3, server=archive.url)
        jobs = len(archive.jobs)
        again = fetch_gaia(quick(), sky()[['source_id']], tmp_path, size=3, server=archive.url)
        assert len(archive.jobs) == jobs
    pd.testing.assert_frame_equal(rows, again)
    assert rows.source_id.tolist() == sky().source_id.tolist() and list(rows) == GAIA_FETCHED


def test_xp_spectra(tmp_path):
    out = io.BytesIO()
    Table(dict(source_id=np.array([5, 7]), flux=np.ones((2, 343), 'f4'), flux_error=np.full((2, 343), .1, 'f4'))).write(out, format='fits')
    with MockArchive([('xp.fits', out.getvalue())], gaia=sky()) as archive:
        files = list_xp(range(250), server=archive.url)
        assert [o.status for o in fetch_files(quick(), files, tmp_path)] == ['fetched']*2 and all(len(o.url) < 8000 for o in files)
        assert command('gaia', *sky().source_id[:2], '--xp', '-o', tmp_path/'g', '--server', archive.url, '--quiet')[0] == 0
    assert [o.id for o in read_spectra(tmp_path/files[0].name)] == ['5', '7'] and len(list((tmp_path/'g').glob('xp-*.fits'))) == 1


def test_gaia_query_is_adql():
    assert {*re.findall(r'g\.(\w+)', gaia_query().split('FROM')[0])} == {*GAIA_FETCHED} >= {k for k in GAIA_COLUMNS if 'flag' not in k}
    assert '< 0.000833333 ' in gaia_query(3.) + ' '


def test_light_curves_and_catalogues_of_the_hub(tmp_path):
    write_curves([dict(lightcurve=dict(time=np.arange(99.), flux=np.ones(99)), object_id='7'), dict(lightcurve=[dict(time=float(i), flux=2.) for i in range(99)], object_id='8')], tmp_path/'a.parquet', 'tic')
    assert [o.star for o in read_lightcurves(tmp_path/'a.parquet')] == ['TIC 7', 'TIC 8']
    rows = sky(3).to_dict('records')
    rows[1]['source_id'] = None
    part = lambda row, f: {k: np.float32(v) if k == 'ruwe' else v for k, v in row.items() if f(k)}
    write_catalog([dict(astrometry=part(o, lambda k: 'phot' not in k), photometry=part(o, lambda k: 'phot' in k), coefficients=[1., 2.]) for o in rows], tmp_path/'b.parquet')
    assert pd.read_parquet(tmp_path/'b.parquet', dtype_backend='pyarrow').source_id.dropna().tolist() == sky(3).source_id.tolist()[::2]
    write_catalog([dict(o) for o in sky(3).to_dict('records')], tmp_path/'c.parquet')
    assert read_gaia(tmp_path/'c.parquet').source_id.tolist() == sky(3).source_id.tolist()


def test_spectra_of_unequal_length(tmp_path):
    one = lambda n: dict(spectrum=dict(flux=np.arange(n) + 1., ivar=np.ones(n), mask=np.arange(n) == 3, **{'lambda': 4000. + np.arange(n)}), object_id=str(n), source_id=2**62 + n if n == 80 else None)
    write_spectra([one(80), one(100)], tmp_path/'a.h5')
    a, b = read_spectra(tmp_path/'a.h5')
    assert a.id == str(2**62 + 80) and (np.asarray(a.ivar) > 0).sum() == 79 and (np.asarray(b.ivar) > 0).sum() == 99


# The command

def test_kepler_command(tmp_path):
    curves = [kepler_file(11, 1), kepler_file(11, 2), kepler_file(12, 1)]
    with MockArchive(curves, faults={curves[1][0]: ['drop']}) as archive:
        words = ['kepler', 11, 'KIC 12', '-o', tmp_path/'c', '--server', archive.url + '/', '--wait', .01]
        status, out, err = command(*words, '--dry-run')
        assert status == 0 and curves[1][0] in out and '3 files' in err and not (tmp_path/'c').exists()
        assert command(*words)[0] == 0 and command(*words)[2].startswith('files: 3, fetched: 0')
        status, _, err = command(*words[:3], 13, *words[3:])
        assert status == 1 and 'KIC 13: MAST offers no light curve of 1800 s' in err
        assert command('kepler', 13, *words[3:])[0] == 2
    assert main(['period', str(tmp_path/'c'), '-o', str(tmp_path/'p.csv'), '--quiet']) == 0
    assert sorted(pd.read_csv(tmp_path/'p.csv').star) == ['KIC 11', 'KIC 12']


def test_evil_name_from_the_portal(tmp_path):
    with MockArchive([kepler_file(11, 1), kepler_file(12, 1)], repos=dict(names={kepler_file(11, 1)[0]: '../../evil_llc.fits'})) as archive:
        status, _, err = command('kepler', 11, 12, '-o', tmp_path/'a'/'b', '--server', archive.url)
    assert status == 1 and 'not safe to write' in err and 'evil' in err
    assert not list(tmp_path.rglob('evil*'))


def test_gaia_command(tmp_path):
    (tmp_path/'ids.txt').write_text('source_id\n' + '\n'.join(map(str, sky().source_id)) + '\n99\n')
    sky()[['ra', 'dec']].to_csv(tmp_path/'at.csv', index=False)
    with MockArchive(gaia=sky()) as archive:
        status, _, err = command('gaia', tmp_path/'ids.txt', '-o', tmp_path/'g', '--server', archive.url)
        assert status == 1 and 'Gaia 99: not in the archive' in err and os.listdir(tmp_path/'g') == ['gaia.parquet']
        assert command('gaia', tmp_path/'at.csv', '--radius', .5, '-o', tmp_path/'h', '--server', archive.url, '--quiet')[::2] == (0, '')
    assert read_gaia(tmp_path/'g'/'gaia.parquet').source_id.tolist() == sky().source_id.tolist()
    assert read_gaia(tmp_path/'h'/'gaia.parquet').source_id.tolist() == sky().source_id.tolist()


def test_no_surprise(tmp_path, monkeypatch):
    import stellar_nb.cli_fetch as c
    monkeypatch.setattr(c, 'MUCH', 1000)
    with MockArchive(repos={'a/b': {'x.parquet': bytes(3000)}}) as archive:
        words = ['mmu', 'a/b', '-o', tmp_path/'m', '--server', archive.url]
        status, _, err = command(*words)
        assert status == 2 and '3.0 kB in 1 files would be fetched; add --yes' in err and not (tmp_path/'m').exists()
        assert command(*words, '--yes')[0] == 0 and (tmp_path/'m'/'x.parquet').stat().st_size == 3000
        monkeypatch.setattr(c, '_room', lambda _: 10)
        assert 'has room for 10 bytes' in command(*words[:2], '-o', tmp_path/'n', *words[4:], '--yes')[2]


@pytest.mark.parametrize('words', [['kepler', '1'], ['tess', '1'], ['gaia', '1'], ['mmu', 'sdss'], ['mmu', 'sdss', '--rows', '3']])
def test_without_a_network(tmp_path, words):
    start = time.perf_counter()
    status, out, err = command(*words, '-o', tmp_path/'x', '--server', 'http://127.0.0.1:9')
    assert (status, out, err) == (2, '', 'stellar_nb fetch: 127.0.0.1:9 cannot be reached: check the network; nothing was downloaded\n')
    assert time.perf_counter() - start < 5 and not (tmp_path/'x').exists()


@pytest.mark.parametrize('words,why', [
    (['kepler', 'TIC 1'], 'not a number of the KIC'), (['gaia'], 'no star is named'), (['gaia', '3.3e18'], 'not a Gaia source_id'), (['mmu', '../x'], 'not the name of a data set'),
    (['kepler', '1', '--server', 'file:///etc'], 'not the address of a web server'), (['mmu', 'a/nothing'], 'no public data set')])
def test_refused(tmp_path, words, why):
    with MockArchive() as archive:
        more = [] if '--server' in words else ['--server', archive.url]
        status, _, err = command(*words, '-o', tmp_path/'x', *more)
    assert status == 2 and why in err and err.count('\n') == 1 and not (tmp_path/'x').exists()


def test_interrupted(tmp_path, monkeypatch):
    curves = [kepler_file(k, 1) for k in range(1, 9)]
    with MockArchive(curves, faults={k: ['slow'] for k, _ in curves}) as archive:
        words = ['kepler', *range(1, 9), '-o', tmp_path/'x', '--server', archive.url]
        press = lambda got: os.kill(os.getpid(), signal.SIGINT)  # after the first file
        old = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what runs in its background
        with monkeypatch.context() as m:
            m.setattr('stellar_nb.data.fetch.fetch_files', lambda session, wanted, folder, tick, after: fetch_files(session, wanted, folder, tick, press))
            assert command(*words)[0] == 130
        signal.signal(signal.SIGINT, old)
        assert len(list(tmp_path.rglob('*.fits'))) < 8
        archive.faults.clear()
        assert command(*words)[0] == 0 and len(list(tmp_path.rglob('*.fits'))) == 8


def test_missing_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'astroquery', None)
    status, _, err = command('kepler', 1, '-o', tmp_path/'x')
    assert status == 2 and err == "stellar_nb fetch: fetch needs astroquery: pip install 'stellar_nb[fetch]'\n"


def test_one_run_at_a_time(tmp_path):
    from stellar_nb.core import locked
    curve = kepler_file(11, 1)
    with MockArchive([curve]) as archive:
        words = ['kepler', '11', '-o', tmp_path/'x', '--server', archive.url]
        with locked(tmp_path/'x'): assert command(*words)[::2] == (2, f'stellar_nb fetch: {tmp_path}/x: another run is writing there\n')
        assert command(*words)[0] == 0 and (tmp_path/'x'/curve[0]).read_bytes() == curve[1]


def test_positions_on_the_sky(tmp_path):
    pd.DataFrame(dict(ra=[1., 2.], dec=[3., -91.])).to_csv(tmp_path/'t.csv', index=False)
    assert '--at: dec = 200 in row 0 is not from -90 to 90 deg' in command('gaia', '--at', '10', '200', '-o', tmp_path/'x')[2]
    assert 't.csv: dec = -91 in row 1' in command('gaia', tmp_path/'t.csv', '--radius', '2', '-o', tmp_path/'x')[2]


def test_column_of_numbers_with_a_gap(tmp_path):
    from stellar_nb.cli_fetch import listed
    (tmp_path/'t.csv').write_text('kic,mag\n8462852,1\n,2\n11,3\n')
    assert listed([str(tmp_path/'t.csv')], ('kic',)) == [8462852, 11]
