"Cubes of one's own: from files to features, reconstructions and models, from Python and by `stellar_nb cube`."
import json, os, subprocess, sys
from dataclasses import replace
from pathlib import Path

import numpy as np, pandas as pd, pytest, scipy.io, torch
from astropy.io import fits
from astropy.wcs import WCS
from matplotlib.image import imread

from stellar_nb.cli import main
from stellar_nb.cli_cube import CUBE_FLAGS, EMBED_TABLE, PRETRAIN_TABLE, RECONSTRUCT_TABLE, bare_name, embed_files, false_colour, find_cubes, image_of, pretrain_files, principal_colour, reconstruct_files
from stellar_nb.core import BadInput, generator, seed_everything
from stellar_nb.cubes import CubeModel, can_reconstruct, cube_config, cut_sheet, fit_bands, pretrain_cubes, put_image, restore_cubes, sheet
from stellar_nb.data.cube import Cube, read_cube, read_image, register
from stellar_nb.data.fields import FieldScale
from stellar_nb.mock.cube import mock_cube, records
from stellar_nb.models.mae import GuidedMAE
from stellar_nb.pretrained import load_pretrained, save_pretrained

SMALL = dict(width=48, hidden=32, depth=1, condition_depth=1, decoder_width=16, aux_width=16, aux_depth=1)
MOCK = mock_cube(6, generator(0), size=16, stars=(15, 35))
LARGE = mock_cube(1, generator(1), size=44, stars=(60, 100))


def make(target='embedding', images=('ir', 'af'), **changes):
    "A small untrained model: these tests are about everything around it"
    seed_everything(0)
    net = GuidedMAE(cube_config(16, 4, 12, {k: 3 for k in images}, target=target, **SMALL | changes)).eval()
    return CubeModel(net, FieldScale.fit(MOCK.cubes, MOCK.good, {k: MOCK.images[k] for k in images}), tuple(MOCK.wave.tolist()), 'a card', 'small')

def field(i=0, mock=MOCK):
    cube, aux = records(mock, i)
    return cube, [o for k in ('ir', 'af') for o in aux if o.name == k]

def cropped(cube, y, x):
    "Part of a cube, with the coordinates of its pixels"
    return replace(cube, data=cube.data[:, y, x], good=cube.good[:, y, x], ivar=None, wcs=cube.wcs[y, x])

def close(a, b, tol=1e-4): torch.testing.assert_close(a, b, rtol=tol, atol=tol, equal_nan=True)


# --- the model on records --------------------------------------------------------------------------------------------------------------------

def test_saved_and_loaded(tmp_path):
    "Weights and scale come back; nothing but plain files"
    model = make()
    again = load_pretrained(save_pretrained(model, tmp_path/'m'))
    assert type(again) is CubeModel and (again.wave, again.card, again.name) == (model.wave, 'a card', 'm') and again.labels == ()
    assert {o.suffix for o in (tmp_path/'m').iterdir()} == {'.json', '.md', '.safetensors'}
    cube, aux = field()
    close(again.embed(cube, aux).features, model.embed(cube, aux).features, 1e-5)
    half = load_pretrained(save_pretrained(model, tmp_path/'h', half=True))
    assert (half.embed(cube).features - model.embed(cube).features).abs().max() < .05
    assert restore_cubes(model.model, json.loads(json.dumps(replace(model, wave=None).saved()))).wave is None

def test_a_broken_folder_is_named(tmp_path):
    save_pretrained(make(), tmp_path/'m')
    (tmp_path/'m'/'preprocessing.json').write_text('{"kind": "cube"}')
    with pytest.raises(BadInput, match='not a readable model'): load_pretrained(tmp_path/'m')

def test_one_tile_is_the_encoder():
    model = make()
    for i in range(3):
        cube, aux = field(i)
        f = model.scale(MOCK.cubes[i:i+1], MOCK.good[i:i+1])
        with torch.no_grad(): tokens, pooled = (model.model.encoder.features(f.cubes, f.good, pool=o) for o in (False, True))
        out, every = model.embed(cube), model.embed(cube, groups=True)
        bad = every.features.isnan().any(0)
        close(out.pooled, pooled[0])
        close(every.features[:, ~bad], tokens[0].view(4, 16, 48).transpose(1, 2).reshape(192, 4, 4)[:, ~bad])
        assert out.tiles == 1 and out.features.shape == (48, 4, 4)
        with torch.no_grad(): guided = model.model.represent(f.cubes, model.scale(MOCK.cubes[i:i+1], MOCK.good[i:i+1], {o.name: put_image(cube, o)[None] for o in aux}).images, good=f.good)
        close(model.embed(cube, aux).features, torch.nan_to_num(guided[0].view(4, 16, 48).mean(0).T.reshape(48, 4, 4)), 1e-3) if not bad.any() else None

def test_units_do_not_matter():
    cube, aux = field(1)
    model = make()
    for factor in (1e-17, 1e6):
        other = replace(cube, data=cube.data*np.float32(factor))
        close(model.embed(other, aux).features, model.embed(cube, aux).features, 1e-3)
        a, b = (model.reconstruct(o, aux, seed=3) for o in (other, cube))
        assert torch.equal(a.visible, b.visible)
        close(a.reconstruction/factor, b.reconstruction, 1e-2)

def test_tiles_side_by_side_are_alone():
    "Without overlap each tile is what it would be alone, at the level of the whole; what overlaps is averaged; places coincide"
    model, (cube, _) = make(), field(0, LARGE)
    cube = cropped(cube, slice(0, 32), slice(0, 32))
    whole = model.embed(cube, step=16)
    s = model.prepare(cube)
    f, at = cut_sheet(s, model.model.config, 16)
    assert at == [(0, 0), (0, 16), (16, 0), (16, 16)]
    with torch.no_grad(): tokens = model.model.encoder(f.cubes, f.good)
    for x, (i, j) in zip(tokens, at): 
        part, want = whole.features[:, i//4:i//4+4, j//4:j//4+4], x.view(4, 16, 48).mean(0).T.reshape(48, 4, 4)
        ok = s.good[:, i:i+16, j:j+16].view(12, 4, 4, 4, 4).any(4).any(2).all(0)
        close(part[:, ok], want[:, ok])
    with pytest.raises(ValueError, match='do not begin with patches'): model.embed(cube, step=6)

def test_cut_differently():
    "A cube that begins elsewhere: the same places to within what their surroundings say"
    model, (cube, _) = make(), field(0, LARGE)
    a = model.embed(cube).features
    b = model.embed(cropped(cube, slice(4, 44), slice(8, 44))).features
    c = np.corrcoef(a[:, 3:9, 4:9].flatten(), b[:, 2:8, 2:7].flatten())[0, 1]
    assert c > .95, c

@pytest.mark.parametrize('shape', [(9, 18), (2, 3), (16, 16), (17, 16), (44, 20), (31, 44)])
def test_any_shape(shape):
    cube, aux = field(0, LARGE)
    cube = cropped(cube, slice(shape[0]), slice(shape[1]))
    model = make()
    for images in ([], aux):
        out = model.embed(cube, images)
        assert out.features.shape == (48, *(-(-o//4) for o in shape)) and out.pooled.isfinite().all()
        back = model.reconstruct(cube, images)
        assert back.original.shape == back.reconstruction.shape == (12, *shape) and torch.equal(back.reconstruction.isfinite(), torch.from_numpy(cube.good))

def test_images_by_the_sky_or_by_their_edges():
    "On a square cube as `register` does it; and a part of the cube finds its part of the image"
    cube, (ir, _) = field(0, LARGE)
    want = register(cube, [ir], 44).images['ir']
    got = put_image(cube, ir)
    close(got.nan_to_num(), torch.from_numpy(want.data), 1e-2); assert torch.equal(got.isfinite(), torch.from_numpy(want.good))
    part = cropped(cube, slice(10, 30), slice(5, 44))
    close(put_image(part, ir)[:, 1:-1, 1:-1], got[:, 11:29, 6:43], 1e-2)
    plain = register(replace(cube, wcs=None), [ir], 44).images['ir']
    assert np.corrcoef(put_image(replace(cube, wcs=None), ir).flatten(), plain.data.flatten())[0, 1] > .99
    away = replace(ir, wcs=ir.wcs.deepcopy()); away.wcs.wcs.crval = [10., -40.]
    model = make()
    assert put_image(cube, away).isnan().all()
    close(model.embed(cube, [away]).features, model.embed(cube).features)

def test_bad_values_are_nowhere():
    cube, aux = field(2)
    model = make()
    cube.good[:, :4, :4] = False; cube.data[~cube.good] = 0
    other = replace(cube, data=np.where(cube.good, cube.data, 1e9).astype('f4'))
    a, b = model.embed(cube), model.embed(other)
    assert a.features[:, 0, 0].isnan().all() and a.features.isfinite().sum() == 15*48
    close(a.features, b.features)
    for o in (model.reconstruct(cube), model.reconstruct(other)): assert o.reconstruction[:, :4, :4].isnan().all() and not o.visible[:, :4, :4].any()
    close(model.reconstruct(cube).reconstruction, model.reconstruct(other).reconstruction)
    seen = replace(aux[0], good=aux[0].good.copy()); seen.good[:, :2] = False
    hole = replace(seen, data=np.where(seen.good, seen.data, np.nan).astype('f4'))
    close(model.embed(cube, [seen]).features, model.embed(cube, [hole]).features)

@pytest.mark.parametrize('target', ['embedding', 'pixels'])
def test_a_perfect_predictor_gives_the_cube_back(target, monkeypatch):
    model, (cube, aux) = make(target), field(0, LARGE)
    forward = GuidedMAE.forward
    def perfect(self, *args, **kwargs):
        out = forward(self, *args, **kwargs)
        return out._replace(pred=out.target)
    monkeypatch.setattr(GuidedMAE, 'forward', perfect)
    out = model.reconstruct(cube, aux)
    close(out.reconstruction, torch.from_numpy(np.where(cube.good, cube.data, np.nan)), 1e-3)
    assert out.r2.min() > .99999 and out.r2_box.min() > .99999
    assert abs((~out.visible).sum()/out.visible.numel() - .75) < .01

def test_visible_is_untouched_and_hidden_is_predicted():
    model, (cube, _) = make(), field(0, LARGE)
    a, b, c = model.reconstruct(cube), model.reconstruct(cube), model.reconstruct(cube, seed=1)
    assert torch.equal(a.reconstruction[a.visible], a.original[a.visible]) and (a.reconstruction != a.original)[~a.visible & a.original.isfinite()].float().mean() > .99
    assert torch.equal(a.visible, b.visible) and not torch.equal(a.visible, c.visible)
    few = model.reconstruct(cube, share=.25)
    assert abs((~few.visible).float().mean() - .25) < .01

def test_what_was_hidden_does_not_leak():
    "With the embedding as target and one level, hidden values change nothing; with pixels, mean and scatter do"
    cube, _ = field(0)
    for target, same in (('embedding', True), ('pixels', False)):
        model = make(target)
        s = model.prepare(cube)
        from stellar_nb.cubes import fill_tiles
        f, _ = cut_sheet(s, model.model.config)
        a, hidden = fill_tiles(model.model, f, .75, generator(0))
        other = replace(f, cubes=torch.where(hidden, 7*f.cubes + 1, f.cubes))
        b, again = fill_tiles(model.model, other, .75, generator(0))
        assert torch.equal(hidden, again) and torch.allclose(a[hidden & f.good], b[hidden & f.good], atol=1e-4) is same

def test_boxes_too_large_for_their_tokens():
    model = make(width=24, heads=4)
    with pytest.raises(BadInput, match='predicts 24 features of a box of 48 pixels'): model.reconstruct(field()[0])
    can_reconstruct(make('pixels', width=24, heads=4))

def test_bands():
    "By wavelength where both sides know it; evenly else; refused in one sentence"
    model, (cube, _) = make(), field()
    fine = replace(cube, data=np.repeat(cube.data, 5, 0), good=np.repeat(cube.good, 5, 0), wave=np.linspace(4040, 8760, 60), ivar=None)
    close(model.embed(fine).features, model.embed(cube).features); close(model.embed(replace(fine, wave=None)).features, model.embed(cube).features)
    wide = replace(fine, data=np.concatenate([fine.data, fine.data]), good=np.concatenate([fine.good, fine.good]), wave=np.concatenate([fine.wave, fine.wave + 6000]))
    close(model.embed(wide).features, model.embed(cube).features)
    assert fit_bands(replace(fine, wave=fine.wave + 900), 12, model.wave).good.any((1, 2)).sum() == 10
    for o, words in ((replace(fine, wave=fine.wave + 3000), 'fill 5 of the 12 bands'), (replace(fine, wave=fine.wave + 10000), 'fill 0 of'), (replace(cube, data=cube.data[:8], good=cube.good[:8], wave=None), '8 bands, and the model needs at least 12'),
                     (replace(cube, data=cube.data[::2], good=cube.good[::2], wave=cube.wave[::2]), '6 bands at 4200–8200 Å fill 6 of the 12')):
        with pytest.raises(BadInput, match=words): model.embed(o)

def test_nothing_to_see():
    model, (cube, aux) = make(), field()
    flat = lambda shape, value=1.: Cube(np.full(shape, value, 'f4'), np.ones(shape, bool), name='x')
    for o, words in ((flat((12, 16, 16)), 'all values are the same'), (flat((12, 1, 40)), 'at least 2 along each axis'), (replace(cube, good=0*cube.good), 'no good pixel'), (replace(cube, data=cube.data*(np.arange(16) < 5), good=cube.good | True, ivar=None), 'more than half of the values'), (flat((3, 16, 16)), '3 bands, and the model needs')):
        with pytest.raises(BadInput, match=words): model.embed(o)
    with pytest.raises(BadInput, match='uv is none of the images that the model knows: ir, af'): model.embed(cube, [replace(aux[0], name='uv')])
    with pytest.raises(BadInput, match='1 channel, and the ir of the model has 3'): model.embed(cube, [replace(aux[0], data=aux[0].data[:1])])

@pytest.mark.parametrize('n', [1, 3, 6])
def test_pretraining_learns_and_does_not_share_pixels(n):
    mock = mock_cube(n, generator(2), size=32, stars=(20, 50))
    cubes = [field(i, mock) for i in range(n)]
    if n > 1: cubes[1][1].pop()
    model, history, facts = pretrain_cubes(cubes, 16, 4, 12, 4, batch=16, **SMALL)
    assert np.isfinite(history).all(axis=None) and (n < 6 or history.train_loss.iloc[-1] < history.train_loss.iloc[0]) and facts['train'] >= facts['valid'] > 0 and facts['images'] == ['ir', 'af'] and np.isfinite(facts['r2'])
    assert model.wave == tuple(MOCK.wave.tolist()) and model.embed(cubes[0][0], cubes[0][1]).features.isfinite().any()
    again, *_ = pretrain_cubes(cubes, 16, 4, 12, 4, batch=16, **SMALL)
    close(again.embed(cubes[0][0]).features, model.embed(cubes[0][0]).features, 0)

def test_pretraining_by_blocks_shares_no_pixel():
    from stellar_nb.cubes import _split
    cube, aux = field(0, LARGE)
    c = cube_config(16, 4, 12)
    for o in (cube, cropped(cube, slice(44), slice(21)), cropped(cube, slice(13), slice(40))):
        s = sheet(o, [], 16, 4)
        (a,), (b,) = _split([s], c, 0)
        axis = int(o.data.shape[2] > o.data.shape[1])
        assert a.shape[axis] + b.shape[axis] == o.data.shape[1+axis] and a.good.sum() + b.good.sum() == s.good.sum() and min(*a.shape, *b.shape) >= 4
    with pytest.raises(BadInput): pretrain_cubes([(cropped(cube, slice(4), slice(4)), [])], 16, 4, 12, 1, **SMALL)


# --- files -----------------------------------------------------------------------------------------------------------------------------------

def write_cube(path, cube):
    data = np.where(cube.good, cube.data, np.nan)
    if path.endswith('.npy'): np.save(path, data)
    elif path.endswith('.npz'): np.savez(path, cube=data, wave=cube.wave)
    elif path.endswith('.mat'): scipy.io.savemat(path, dict(cube=data.transpose(1, 2, 0), wave_nm=cube.wave/10))
    elif path.endswith('.hdr'):
        b, h, w = data.shape
        Path(path).write_text(f'ENVI\nsamples = {w}\nlines = {h}\nbands = {b}\ndata type = 4\ninterleave = bsq\nwavelength units = Angstroms\nwavelength = {{{", ".join(map(str, cube.wave))}}}\n')
        data.astype('<f4').tofile(path[:-4] + '.img')
    else:
        head = cube.wcs.to_header(); head['BUNIT'] = 'electron'
        fits.HDUList([fits.PrimaryHDU(data.astype('f4'), head), fits.ImageHDU(cube.wave, fits.Header(dict(BUNIT='Angstrom')), name='WAVE')]).writeto(path)
    return path

def write_all(n=3, start=0):
    "FITS cubes with coordinates and their images, which are out of place"
    for k in ('cubes', 'ir', 'af'): os.makedirs(k, exist_ok=True)
    for i in range(start, start+n):
        cube, aux = field(i)
        write_cube(f'cubes/f{i}.fits', cube)
        for o in aux: fits.writeto(f'{o.name}/f{i}.fits', o.data, o.wcs.to_header())

@pytest.fixture(scope='session')
def saved(tmp_path_factory):
    "Models to be read"
    folder = tmp_path_factory.mktemp('models')
    for k in ('embedding', 'pixels'): save_pretrained(make(k), folder/k)
    save_pretrained(make(images=()), folder/'bare')
    return folder

@pytest.fixture
def run(capsys, saved, monkeypatch):
    "The command in this process; exit status, stdout, lines of stderr"
    monkeypatch.setenv('STELLAR_NB_MODELS', str(saved))
    def run(*args):
        status = main(['cube', *map(str, args)])
        out, err = capsys.readouterr()
        return status, out, [o for o in err.splitlines() if o.strip() and '%|' not in o]
    return run

def table(path='out/embed.csv'): return pd.read_csv(path, keep_default_na=False)

IMAGES = ('--image', 'ir=ir', '--image', 'af=af')

def test_embed(here, run, saved):
    "The numbers are those of Python; coordinates belong to patches; the table says what went in"
    write_all(); os.remove('af/f1.fits')
    status, out, err = run('embed', 'cubes', *IMAGES, '--model', 'embedding', '-o', 'out')
    t = table()
    assert status == 0 and out == '' and err == ['cubes: 3, embedded: 3, failed: 0, written to out/embed.csv'] and list(t.columns) == list(EMBED_TABLE)
    assert t.file.tolist() == [f'cubes/f{i}.fits' for i in range(3)] and t.images.tolist() == ['ir,af', 'ir', 'ir,af'] and t['flags'].tolist() == ['', 'no_af', ''] and set(t.unit) == {'electron'} and set(t.model) == {'embedding'} and t.channels.tolist() == [48]*3
    assert sorted(os.listdir('out')) == ['embed.csv'] + [f'f{i}_features.{e}' for i in range(3) for e in ('fits', 'png')]
    model = load_pretrained(saved/'embedding')
    for i in (0, 1):
        cube = read_cube(f'cubes/f{i}.fits')
        want = model.embed(cube, [read_image(f'{k}/f{i}.fits', name=k) for k in ('ir', 'af')[:2-i]])
        with fits.open(f'out/f{i}_features.fits') as f:
            np.testing.assert_allclose(f[0].data, want.features, rtol=1e-4, atol=1e-4); np.testing.assert_allclose(f['POOLED'].data, want.pooled, rtol=1e-4, atol=1e-4)
            sky = WCS(f[0].header).celestial
            np.testing.assert_allclose(sky.pixel_to_world_values(1, 2), cube.wcs.pixel_to_world_values(5.5, 9.5))
            assert 'guided by ir' in str(f[0].header['HISTORY']) and f[0].header['MODEL'] == 'embedding' and f[0].header['PATCH'] == 4
        assert imread(f'out/f{i}_features.png')[..., :3].std() > .02
    assert run('embed', 'cubes', '--model', 'embedding', '--groups', '--quiet', '-o', 'out')[::2] == (0, []) and fits.getdata('out/f0_features.fits').shape == (192, 4, 4), 'its own results are replaced'

@pytest.mark.parametrize('model', ['embedding', 'pixels'])
def test_reconstruct(here, run, saved, model):
    write_all(2)
    status, _, err = run('reconstruct', 'cubes', *IMAGES, '--model', model, '-o', 'out', '--share', '.5', '--seed', 3)
    t = table('out/reconstruct.csv')
    assert status == 0 and list(t.columns) == list(RECONSTRUCT_TABLE) and 'cubes: 2, reconstructed: 2, failed: 0, R² ' in err[0] and ('with mean and scatter' in err[0]) is (model == 'pixels')
    assert (abs(t.hidden - .5) < .05).all() and np.isfinite(t[['r2', 'r2_box']].astype(float)).all(axis=None) and t['flags'].tolist() == ['given_level' if model == 'pixels' else '']*2
    cube = read_cube('cubes/f1.fits')
    want = load_pretrained(saved/model).reconstruct(cube, [read_image(f'{k}/f1.fits', name=k) for k in ('ir', 'af')], .5, 3)
    with fits.open('out/f1_reconstruction.fits') as f:
        assert [o.name for o in f[1:]] == ['ORIGINAL', 'VISIBLE', 'RECONSTRUCTION', 'R2', 'R2_BOX', 'WAVE'] and f['RECONSTRUCTION'].header['BUNIT'] == 'electron'
        np.testing.assert_allclose(f['RECONSTRUCTION'].data, want.reconstruction, rtol=1e-3, atol=1e-2); assert (f['VISIBLE'].data == want.visible.numpy()).all()
        np.testing.assert_array_equal(f['ORIGINAL'].data, np.where(cube.good, cube.data, np.nan)); np.testing.assert_allclose(f['R2'].data, want.r2, rtol=1e-3)
        assert ('mean and scatter of each hidden box' in str(f[0].header['HISTORY'])) is (model == 'pixels') and '50% of the boxes hidden, seed 3' in str(f[0].header['HISTORY'])
    back = read_cube('out/f1_reconstruction.fits', key='RECONSTRUCTION')
    np.testing.assert_allclose(back.wave, cube.wave); np.testing.assert_allclose(back.wcs.pixel_to_world_values(3, 4), cube.wcs.pixel_to_world_values(3, 4))
    assert imread('out/f1_reconstruction.png').shape[1] > 700

def test_pretrain_then_use(here, run):
    "A model from files, by the command and from Python; then it reads"
    write_all(6); os.remove('ir/f2.fits'); Path('cubes/words.fits').write_text('nothing'); np.save('cubes/few.npy', np.random.default_rng(0).normal(size=(5, 16, 16)))
    words = ('--size', 8, '--patch', 4, '--epochs', 2, '--width', 48, '--depth', 1)
    status, _, err = run('pretrain', 'cubes', *IMAGES, '-o', 'mine', *words)
    assert status == 1 and 'cubes: 8, used: 6, failed: 2; 45 tiles trained, 9 kept back; images ir, af; loss ' in err[-1] and err[-1].endswith('model in mine')
    assert err[:2] == ['cubes/few.npy: 5 bands, and the model needs at least 12', 'cubes/words.fits: not a FITS, ENVI, NumPy or MATLAB file']
    t = table('mine/pretrain.csv')
    assert list(t.columns) == list(PRETRAIN_TABLE) and t.status.tolist() == ['ok']*6 + ['failed']*2 and t['flags'][2] == 'no_ir'
    assert {'card.md', 'config.json', 'history.csv', 'training.json', 'model.safetensors', 'pretrain.csv'} <= set(os.listdir('mine')) and len(pd.read_csv('mine/history.csv')) == 2
    card, facts = Path('mine/card.md').read_text(), json.loads(Path('mine/training.json').read_text())
    assert card.startswith('# mine') and f"R² within boxes {facts['r2_box']:.2f}" in card and '4000–8800 Å' in card and facts['images'] == ['ir', 'af']
    assert run('embed', 'cubes/f0.fits', *IMAGES, '--model', './mine', '-o', 'out')[0] == 0 and run('reconstruct', 'cubes/f0.fits', '--model', './mine', '-o', 'out')[0] == 0
    model, facts, rows = pretrain_files('cubes', 'twin', dict(ir='ir', af='af'), 8, 4, epochs=2, width=48, depth=1, batch=64, seed=42)
    assert rows.status.tolist() == t.status.tolist() and facts['r2'] == json.loads(Path('mine/training.json').read_text())['r2']

def test_one_cube_without_images(here, run):
    write_all(1)
    status, _, err = run('pretrain', 'cubes/f0.fits', '-o', 'mine', '--size', 8, '--epochs', 1, '--width', 48, '--depth', 1)
    assert status == 0 and 'cubes: 1, used: 1' in err[-1] and 'images: none' in Path('mine/card.md').read_text()
    assert run('embed', 'cubes/f0.fits', '--model', './mine', '-o', 'out')[0] == 0
    assert run('embed', 'cubes/f0.fits', '--model', './mine', '--image', 'ir=ir', '-o', 'out')[2] == ['stellar_nb cube embed: --image ir: the model ./mine knows no images']

def test_formats_agree(here, run):
    cube, _ = field(1)
    os.mkdir('c')
    files = [write_cube(f'c/{e[1:]}{e}', replace(cube)) for e in ('.fits', '.hdr', '.mat', '.npy', '.npz')]
    status, _, err = run('embed', 'c', '--model', 'embedding', '-o', 'out', '--axis', 0)
    assert status == 1 and 'mat.mat' in err[0], 'the spectral axis of the MATLAB file is another'
    status, _, err = run('embed', *[o for o in files if '.np' not in o], '--model', 'embedding', '-o', 'out')
    assert status == 0 and run('embed', 'c/npy.npy', 'c/npz.npz', '--axis', 0, '--model', 'embedding', '-o', 'out')[0] == 0
    want = fits.getdata('out/fits_features.fits')
    for k in ('hdr', 'mat', 'npy', 'npz'): np.testing.assert_allclose(fits.getdata(f'out/{k}_features.fits'), want, rtol=1e-3, atol=1e-3, err_msg=k)
    assert [o.name for o in find_cubes('c')] == ['fits.fits', 'hdr.hdr', 'mat.mat', 'npy.npy', 'npz.npz'] and table().set_index('file')['flags']['c/npy.npy'] == 'no_wavelengths'

def test_wave_unit(here, run):
    cube, _ = field(1)
    np.savez('nm.npz', cube=np.where(cube.good, cube.data, np.nan), wave=cube.wave/1e4)
    status, _, err = run('embed', 'nm.npz', '--axis', 0, '--model', 'embedding', '-o', 'out')
    assert status == 2 and 'name their unit' in err[0]
    assert run('embed', 'nm.npz', '--axis', 0, '--wave-unit', 'um', '--model', 'embedding', '-o', 'out')[0] == 0 and table().wave_max[0] == pytest.approx(8600)

def test_names(here):
    "Images are found by the name of the cube"
    for o in ('a.fits', 'a_ir.png', 'b.fits', 'c.fits', 'c.png', 'd.npy'): Path(o).touch()
    os.mkdir('i')
    for o in ('b.png', 'c.png', 'c.tif', 'd.fits.gz', '.a.png'): (Path('i')/o).touch()
    assert [bare_name(o) for o in ('x/a.b.fits.gz', 'c.img.hdr', 'd')] == ['a.b', 'c', 'd']
    assert image_of('a.fits', 'ir', '.') == './a_ir.png' and image_of('a.fits', 'af', '.') is None and image_of('c.fits', 'ir', '.') == './c.png'
    assert image_of('b.fits', 'ir', 'i') == 'i/b.png' and image_of('d.npy', 'ir', 'i') == 'i/d.fits.gz' and image_of('a.fits', 'ir', 'i') is None and image_of('a.fits', 'ir', 'e.png') == 'e.png'
    with pytest.raises(BadInput, match='several images could be the ir of c: c.png, c.tif'): image_of('c.fits', 'ir', 'i')

def test_images_among_the_cubes(here, run):
    "They are no cubes; and results are no cubes either"
    cube, aux = field()
    os.mkdir('all'); write_cube('all/a.fits', cube)
    fits.writeto('all/a_ir.fits', aux[0].data, aux[0].wcs.to_header())
    assert run('embed', 'all', '--image', 'ir=all', '--model', 'embedding', '-o', 'all')[0] == 0
    assert table('all/embed.csv').file.tolist() == ['all/a.fits']
    assert run('embed', 'all', '--image', 'ir=all', '--model', 'embedding', '-o', 'all')[0] == 0 and table('all/embed.csv').file.tolist() == ['all/a.fits']
    status, _, err = run('embed', 'all/a_features.fits', '--model', 'embedding', '-o', 'o2')
    assert status == 2 and err[0] == 'all/a_features.fits: a result of stellar_nb cube, not a cube'

def bad_files():
    "{file: part of the reason}"
    cube, _ = field()
    Path('words.txt').write_text('nothing at all'); Path('words.fits').write_text('nothing at all'); Path('empty.fits').touch(); Path('empty.npy').touch(); os.mkdir('folder'); os.mkdir('locked.fits')
    fits.writeto('image.fits', np.ones((9, 9))); np.save('image.npy', np.ones((9, 9))); np.save('nan.npy', np.full((12, 16, 16), np.nan)); np.save('flat.npy', np.ones((12, 16, 16))); np.save('four.npy', np.ones((2, 12, 16, 16)))
    np.save('few.npy', np.random.default_rng(0).normal(size=(5, 16, 16))); np.save('text.npy', np.array(['a'])); np.save('complex.npy', np.ones((12, 4, 4))*1j)
    write_cube('whole.fits', cube); Path('cut.fits').write_bytes(Path('whole.fits').read_bytes()[:6000]); os.remove('whole.fits')
    write_cube('red.fits', replace(cube, wave=cube.wave + 9000))
    np.savez('two.npz', a=cube.data, b=cube.data); write_cube('alone.hdr', cube); os.remove('alone.img')
    pd.DataFrame(dict(time=[1, 2])).to_csv('curve.csv')
    return {'words.txt': 'not a FITS, ENVI', 'words.fits': 'not a FITS', 'empty.fits': 'empty', 'empty.npy': 'empty', 'folder': 'no cube in it', 'locked.fits': 'no cube in it', 'image.fits': 'no image with 3 axes, only with 2', 'image.npy': 'no array with 3 axes',
            'nan.npy': 'no value in it is finite', 'flat.npy': 'all values are the same', 'four.npy': 'no array with 3 axes', 'few.npy': '5 bands, and the model needs at least 12', 'text.npy': '', 'complex.npy': '', 'cut.fits': '', 'red.fits': 'fill 0 of the 12 bands that the model has at 4000–8800 Å',
            'two.npz': 'several arrays', 'alone.hdr': 'no raw file', 'curve.csv': 'not a FITS', 'nowhere.fits': 'no such file'}

@pytest.mark.parametrize('part', ['embed', 'reconstruct'])
def test_bad_files(here, run, part):
    "Each is named, explained, skipped and counted; the others go on, and in order"
    bad = bad_files(); write_all(2)
    status, _, err = run(part, 'cubes/f0.fits', *bad, 'cubes/f1.fits', '--model', 'embedding', '-o', 'out')
    t = table(f'out/{part}.csv')
    assert status == 1 and t.file.tolist() == ['cubes/f0.fits', *bad, 'cubes/f1.fits'] and t.status.tolist() == ['ok'] + ['failed']*len(bad) + ['ok'] and 'Traceback' not in ''.join(err)
    for f, r in zip(t.file[1:-1], t.reason[1:-1]): assert r and bad[f] in r and '\n' not in r and len(r) < 220, (f, r)
    assert err[:-1] == [f'{f}: {r}' for f, r in zip(t.file[1:-1], t.reason[1:-1])] and f'cubes: {len(bad)+2}, ' in err[-1] and f'failed: {len(bad)}' in err[-1]
    assert len(os.listdir('out')) == 5
    status, _, err = run(part, *bad, '--model', 'embedding', '-o', 'none')
    assert status == 2 and err[-1] == f'stellar_nb cube {part}: no usable cube' and os.listdir('none') == [f'{part}.csv']

def test_bad_images_are_left_out(here, run):
    write_all(3); Path('ir/f0.fits').write_text('no image'); fits.writeto('ir/f1.fits', np.ones((2, 9, 9)), overwrite=True); Path('ir/f2.png').touch()
    status, _, err = run('embed', 'cubes', *IMAGES, '--model', 'embedding', '-o', 'out')
    t = table()
    assert status == 0 and t['flags'].tolist() == ['bad_ir']*3 and t.images.tolist() == ['af']*3
    assert [o.split(':')[0] for o in err[:3]] == t.file.tolist() and 'without ir, since f0.fits: not a FITS' in err[0] and '2 channels, and the ir of the model has 3' in err[1] and 'several images' in err[2]

def test_refused(here, run):
    "At once, with one sentence, and nothing is left behind"
    write_all(2); Path('file').touch(); os.mkdir('shut'); Path('full').mkdir(); Path('full/thesis.txt').touch()
    good = ('cubes', '--model', 'embedding')
    bad = {('embed', *good, '-o', 'o', '--image', 'uv=ir'): '--image uv: the model embedding knows ir, af', ('embed', *good, '-o', 'o', '--image', 'ir=nowhere'): 'no such file or folder',
           ('embed', *good, '-o', 'o', '--image', 'ir=ir/f0.fits'): 'one image for 2 cubes', ('embed', *good, '-o', 'o', '--image', 'ir=ir', '--image', 'ir=af'): 'given twice', ('embed', *good, '-o', 'file'): 'cannot be written', ('embed', *good, '-o', 'file/o'): 'cannot be written',
           ('embed', 'cubes', '-o', 'o'): '--model guided_mae: no such model', ('embed', 'cubes', '-o', 'o', '--model', 'nowhere'): 'no such model', ('embed', 'cubes', '-o', 'o', '--model', 'desa_quarter'): 'reads no cubes; it reads light curves',
           ('pretrain', 'cubes', '-o', 'full'): 'is there already and is no model', ('pretrain', 'cubes', '-o', 'file'): 'is there already', ('pretrain', 'cubes', '-o', 'm', '--patch', '5'): '5 does not divide 32', ('pretrain', 'cubes', '-o', 'm', '--image', 'ir=nowhere'): 'no such file'}
    if (ROOT_MODEL := Path(__file__).parents[1]/'stellar_nb'/'data'/'models'/'guided_mae').exists(): bad.pop(('embed', 'cubes', '-o', 'o'))
    for args, words in bad.items():
        status, _, err = run(*args)
        assert status == 2 and len(err) == 1 and words in err[0] and err[0].startswith(f'stellar_nb cube {args[0]}: '), (args, err)
    for args in ([], ['embed'], ['embed', 'cubes'], ['embed', *good, '-o', 'o', '--image', 'ir'], ['reconstruct', *good, '-o', 'o', '--share', '1'], ['pretrain', 'cubes', '-o', 'o', '--epochs', '0'], ['reshape', 'cubes']): assert run(*args)[0] == 2
    assert not {'o', 'm'} & set(os.listdir('.')) and os.listdir('full') == ['thesis.txt']
    if os.getuid():
        os.chmod('shut', 0o500)
        assert 'cannot be written' in run('embed', *good, '-o', 'shut/o')[2][0]

def test_foreign_files_stay(here, run):
    write_all(1); os.mkdir('out'); Path('out/f0_features.fits').write_text('mine')
    status, _, err = run('embed', 'cubes', '--model', 'embedding', '-o', 'out')
    assert status == 2 and 'is there already and is not of this command' in err[0] and Path('out/f0_features.fits').read_text() == 'mine' and sorted(os.listdir('out')) == ['embed.csv', 'f0_features.fits']

def test_models_of_cubes_are_none_of_others(here, run, capsys, saved):
    for command in ('predict', 'period', 'classify'):
        assert main([command, 'x.fits', '--model', 'embedding']) == 2
        assert 'it reads cubes: stellar_nb cube' in capsys.readouterr().err

def test_same_names_in_two_folders(here, run):
    for k in 'ab': os.mkdir(k); write_cube(f'{k}/f.fits', field()[0])
    write_cube('恒 星$.fits', field()[0])
    assert run('embed', 'a/f.fits', 'b/f.fits', '恒 星$.fits', '--model', 'embedding', '-o', 'out')[0] == 0
    assert len(set(table().output)) == 3 and all(map(os.path.exists, table().output)) and table().file[2] == '恒 星$.fits'

def test_interrupted(here, run, monkeypatch):
    "Nothing half-written: what was done stays whole, and there is no table"
    write_all(2)
    before = CubeModel.embed
    def press(self, cube, *args, **kwargs):
        if cube.name == 'f1.fits': raise KeyboardInterrupt
        return before(self, cube, *args, **kwargs)
    monkeypatch.setattr(CubeModel, 'embed', press)
    status, _, err = run('embed', 'cubes', '--model', 'embedding', '-o', 'out')
    assert status == 130 and 'interrupted, no table was written' in err[-1] and sorted(os.listdir('out')) == ['f0_features.fits', 'f0_features.png']

def test_an_odd_cube_stays_alone(here, run, monkeypatch):
    write_all(2)
    before = CubeModel.embed
    def explode(self, cube, *args, **kwargs):
        if cube.name == 'f0.fits': raise RuntimeError('odd\nindeed')
        return before(self, cube, *args, **kwargs)
    monkeypatch.setattr(CubeModel, 'embed', explode)
    status, _, err = run('embed', 'cubes', '--model', 'embedding', '-o', 'out')
    assert status == 1 and err[0] == 'cubes/f0.fits: cannot be used (RuntimeError: odd)'

def test_python_twin(here, run, saved):
    write_all(2)
    run('embed', 'cubes', *IMAGES, '--model', 'embedding', '-o', 'out'); run('reconstruct', 'cubes', '--model', 'embedding', '-o', 'out')
    a = embed_files('cubes', 'twin', saved/'embedding', dict(ir='ir', af='af'))
    b = reconstruct_files(['cubes/f0.fits', 'cubes/f1.fits'], 'twin', load_pretrained(saved/'embedding'))
    assert a.file.tolist() == table().file.tolist() and (fits.getdata('twin/f1_features.fits') == fits.getdata('out/f1_features.fits')).all()
    np.testing.assert_allclose(b.r2, table('out/reconstruct.csv').r2)
    with pytest.raises(BadInput, match='knows no image uv'): embed_files('cubes', 'twin', saved/'embedding', dict(uv='ir'))

def test_help_from_outside(here):
    go = lambda *a: subprocess.run([sys.executable, '-c', 'import sys; from stellar_nb.cli import main; s = main(); assert "numpy" not in sys.modules; sys.exit(s)', *a], capture_output=True, text=True)
    outs = {k: go('cube', *k, '--help') for k in ((), ('pretrain',), ('embed',), ('reconstruct',))}
    for o in outs.values(): assert o.returncode == 0 and max(map(len, o.stdout.splitlines())) <= 100 and 'example' in o.stdout, o.stderr
    assert all(k in outs[()].stdout for k in ('pretrain', 'embed', 'reconstruct', 'exit status'))
    for k, columns in (('embed', EMBED_TABLE), ('reconstruct', RECONSTRUCT_TABLE)): assert all(o in outs[k,].stdout for o in (*columns, '--image', '--axis', '--wave-unit', '--model', 'guided_mae'))
    assert all(k in outs['embed',].stdout for k in CUBE_FLAGS if k != 'given_level') and 'given_level' in outs['reconstruct',].stdout and '--patch' in outs['pretrain',].stdout

def test_pictures_of_odd_cubes():
    "One band, nothing known, few places"
    assert false_colour(np.ones((1, 3, 3))).shape == (3, 3, 3) and (false_colour(np.full((5, 3, 3), np.nan)) == .85).all()
    x = np.random.default_rng(0).normal(size=(5, 4, 4)); x[:, 0, 0] = np.nan
    rgb, share = principal_colour(x)
    assert rgb.shape == (4, 4, 3) and (rgb[0, 0] == .85).all() and 0 < share <= 1
    for shape in ((2, 3, 3), (6, 1, 1)): assert np.isfinite(principal_colour(np.ones(shape))[0]).all()
