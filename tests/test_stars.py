"""Mock stars: the shipped catalogue, the stated mix, the box's moments, and the hull."""
import numpy as np
import pandas as pd
import pytest
import torch

from stellar_nb.core import BadInput, data_dir, generator, package_data
from stellar_nb.mock import stars as st
from stellar_nb.mock.emulator import Emulator

SOURCE = data_dir('kepler_stars', 'kepler_stars_merged.csv.gz')
needs_source = pytest.mark.skipif(SOURCE is None, reason='the merged table is not at hand (data/kepler_stars)')
DRAWS = dict(catalogue=st.draw_catalogue, box=st.draw_box)


def test_table():
    d = st.catalogue()
    assert package_data('stars', 'kepler.parquet').stat().st_size <= 2.5e6
    assert list(d) == list(st.COLUMNS) and len(d) == 69_316 and d.kic.is_unique
    kinds = {k: str(v) for k, v in d.dtypes.items()}
    assert kinds.pop('kic') == 'int32' and {kinds.pop(k) for k in ('age_poor', 'norot', 'eb')} == {'bool'} and set(kinds.values()) == {'float32'}
    assert d[['teff', 'logg', 'feh', 'mass', 'radius', 'distance']].notna().all().all() and d.prot.isna().any()


def test_physics():
    "Columns are what their units say: surface gravity and Stefan-Boltzmann hold between them"
    d = st.catalogue()
    assert (d.logg - 4.438 - np.log10(d.mass/d.radius**2)).abs().median() < .01
    assert (d.loglum - 2*np.log10(d.radius) - 4*np.log10(d.teff/5772)).abs().median() < .01
    both = d[d.prot.notna() & d.prot_mcq.notna()]
    assert ((both.prot/both.prot_mcq-1).abs() < .15).mean() > .9


def test_catalogue_is_a_copy():
    d = st.catalogue()
    d.loc[0, 'teff'] = -1
    assert st.catalogue().teff[0] > 0


@needs_source
def test_missing_and_rounding(tmp_path):
    "The file can be made again; NaN where the source has NaN, and nowhere off by more than the digits kept"
    d = pd.read_parquet(st.save_catalogue(tmp_path, SOURCE))
    pd.testing.assert_frame_equal(d, st.catalogue())
    raw = pd.read_csv(SOURCE, low_memory=False).dropna(subset='teff').sort_values('kic', ignore_index=True)
    for k, (source, digits, *_) in st.COLUMNS.items():
        if not digits: continue
        x, y = raw[source].to_numpy('f8'), d[k].to_numpy('f8')
        assert (np.isnan(x) == np.isnan(y)).all(), k
        assert np.nanmax(np.abs(x-y)/np.maximum(np.abs(x), 1e-9)) <= .501*10**(1-digits), k
    assert d.age_poor.sum() == raw.iso_age_unreliable.notna().sum() and d.eb.sum() == raw.kebc_eb.sum()


def test_save_refuses(tmp_path):
    (p := tmp_path/'a.csv').write_text('kic,teff\n1,2\n')
    with pytest.raises(BadInput, match='a.csv: no column'): st.save_catalogue(tmp_path, p)
    assert not (tmp_path/'kepler.parquet').exists()


@pytest.mark.parametrize('draw', DRAWS.values(), ids=DRAWS)
def test_deterministic(draw):
    a, b, c = draw(500, generator(1)), draw(500, generator(1)), draw(500, generator(2))
    pd.testing.assert_frame_equal(a, b)
    assert a.attrs == b.attrs and not np.array_equal(a.teff, c.teff)


@pytest.mark.parametrize('draw', DRAWS.values(), ids=DRAWS)
def test_inside_hull(draw):
    d = draw(4000, generator(3))
    assert len(d) == 4000 and Emulator.load('lamost').inside(st.to_labels(d)).all()
    assert d.attrs['rejected'] > 0 and 0 < st.rejected_share(d) < .6
    assert len(draw(0, generator(0))) == 0


@pytest.mark.parametrize('mix', [st.MIX, dict(dwarf=1, subgiant=1, giant=2), dict(giant=1)])
def test_mix(mix):
    n, d = 6000, st.draw_catalogue(6000, generator(4), mix)
    assert (st.kind_of(d.logg) == d.kind).all()
    for k in st.MIX:
        p = mix.get(k, 0)/sum(mix.values())
        assert abs((d.kind == k).mean()-p) <= 4*(p*(1-p)/n)**.5, k


@pytest.mark.parametrize('mix', [dict(dwarf=-1, giant=2), dict(), dict(dwarf=1, nova=1), dict(dwarf=float('nan'))])
def test_mix_refused(mix):
    with pytest.raises(ValueError, match='shares'): st.draw_catalogue(5, generator(0), mix)


def test_rows_are_real():
    "Every value of a draw, missing ones too, is that of the star in the catalogue; the order carries no class"
    d = st.draw_catalogue(3000, generator(5))
    ref = st.catalogue().set_index('kic').loc[d.kic].reset_index()
    pd.testing.assert_frame_equal(d[ref.columns], ref, check_dtype=True)
    np.testing.assert_allclose(d.alpha, st.alpha_of(d.feh), atol=1e-6)
    assert abs((d.kind[:1500] == 'giant').mean()-(d.kind[1500:] == 'giant').mean()) < .08


def test_jitter():
    d = st.draw_catalogue(5000, generator(6), jitter=.5)
    ref = st.catalogue().set_index('kic').loc[d.kic].reset_index()
    for k in ('teff', 'logg', 'feh'):
        pull = (d[k]-ref[k])/ref[f'{k}_err']
        assert abs(pull.mean()) < .05 and abs(pull.std()-.5) < .05, k
    pd.testing.assert_series_equal(d.mass, ref.mass)


def test_beta_moments():
    "The published mean and standard deviation before rejection; after it those of the part inside the hull"
    n, d = 100_000, st.propose_box(100_000, generator(7))
    a, b = st.beta_shape()
    assert abs(a-.97) < .01 and abs(b-.97) < .01
    z = (d.logg.to_numpy('f8')-2.9975)/1.1683
    assert abs(z.mean()) < 4/n**.5 and abs(z.std()-1) < 4*((z**4).mean()-1)**.5/2/n**.5
    kept, drawn = d[st.inside(d)], st.draw_box(20_000, generator(8))
    assert kept.logg.mean() > d.logg.mean() + .005
    assert (drawn[['teff', 'logg', 'feh']].mean()-kept[['teff', 'logg', 'feh']].mean()).abs().lt(4.5*kept[['teff', 'logg', 'feh']].std()/20_000**.5).all()


def test_box_ranges():
    d = st.propose_box(20_000, generator(9))
    for k, (low, high) in dict(teff=(3750, 6000), logg=(1, 5), feh=(-1, 0), imag=(20.5, 22.5), alpha=(0, .4)).items():
        assert low <= d[k].min() < low+.01*(high-low) and high-.01*(high-low) < d[k].max() <= high, k
    assert abs(d.imag.mean()-21.5) < .02 and np.abs(np.corrcoef(d[['teff', 'logg', 'feh', 'imag']].T)-np.eye(4)).max() < .03
    with pytest.raises(ValueError, match='no Beta'): st.beta_shape(3, 2.5)


def test_rejection_is_counted():
    "The share of rejected draws is that of free draws outside"
    share = 1-Emulator.load('lamost').inside(st.to_labels(st.propose_box(20_000, generator(10)))).float().mean().item()
    d = st.draw_box(20_000, generator(11))
    assert abs(st.rejected_share(d)-share) < 5*(share*(1-share)/20_000)**.5


def test_does_not_touch_global_state():
    state = torch.get_rng_state()
    st.draw_catalogue(50, generator(0)), st.draw_box(50, generator(0))
    assert torch.equal(state, torch.get_rng_state())
