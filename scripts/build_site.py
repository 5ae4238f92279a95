"""Build the documentation site into `_docs/`.

The notebooks go through nbdev's processors (documentation of every exported name, links between names) into `_proc/`, where
they take the names of their pages; Quarto, where it is installed, else smalldocs, then turns `_proc/` into HTML by the same
`_quarto.yml`. The finished site asks nothing of the network and can be read from the disk.
"""
import argparse, ast, base64, builtins, configparser, hashlib, html, io, json, os, re, shutil, subprocess, sys, time
from functools import lru_cache
from pathlib import Path, PurePosixPath

import yaml
from fastcore.basics import AttrDict
from fastcore.nbio import mk_cell, read_nb, write_nb
from nbdev.config import nbpath2html
from nbdev.processors import FilterDefaults
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
NBS, PROC = ROOT/'nbs', ROOT/'_proc'
PAGES = ('.ipynb', '.md', '.qmd')
GALLERY = '<!-- gallery -->' # stands in index.ipynb where the thumbnails go


def settings():
    "The addresses of the repository and of the published site"
    ini = configparser.ConfigParser(delimiters='=', interpolation=None)
    ini.read(ROOT/'settings.ini', encoding='utf-8')
    return ini['DEFAULT']


def sources():
    "Every page's source, relative to `nbs/`"
    found = (p.relative_to(NBS) for p in sorted(NBS.rglob('*')) if p.suffix in PAGES)
    return [p for p in found if not any(o[0] in '._' for o in p.parts) and p.parts[0] != 'assets']


def page_name(path):
    "The page's source under the name of its page: `20_data.spectra.ipynb` becomes `data.spectra.ipynb`"
    path = PurePosixPath(path)
    return nbpath2html(path).as_posix().removesuffix('.html') + path.suffix


def up(path):
    "The way from a page to the site's root"
    return '../' * (len(PurePosixPath(path).parts) - 1)


def sidebar_pages(node):
    "Every page that a sidebar lists"
    if isinstance(node, str): return [node] if PurePosixPath(node).suffix in PAGES else []
    if isinstance(node, list): return [p for o in node for p in sidebar_pages(o)]
    return sidebar_pages([node.get('href', ''), node.get('contents', [])])


# ---- from a notebook to a page's source

def name_links(cfg):
    "Let nbdev link names in backticks to their page, and to their source on GitHub"
    from stellar_nb._modidx import d
    host, base = re.fullmatch(r'(https?://[^/]+)(/.*?)/?', cfg['doc_url']).groups()
    d['settings'].update(doc_host=host, doc_baseurl=base, git_url=cfg['git_url'], branch=cfg['branch'])
    d['syms']['short'] = {name.removeprefix(mod + '.'): o for mod, syms in d['syms'].items() for name, o in syms.items()}


def split_title(nb):
    "Give the text under the title a cell of its own: nbdev keeps nothing else of the cell that holds the title"
    for i, cell in enumerate(nb.cells):
        if cell.cell_type == 'markdown' and (m := re.match(r'\s*# .+\n+((?:>.*\n?)*)', cell.source + '\n')):
            lead = ' '.join(o.lstrip('> ') for o in m[1].splitlines())
            rest = cell.source[m.end():].strip()
            cell.source = cell.source.strip().splitlines()[0] + (f'\n> {lead}' if lead else '')
            if rest: nb.cells.insert(i + 1, mk_cell(rest, 'markdown'))
            return


NOT_RUN = '#| eval: false\n'

def stand_ins(code):
    "Classes for the names that stand quoted in annotations, since what they mean is imported late: nbdev looks each of them up"
    notes = [n for node in ast.walk(ast.parse(code)) for n in (getattr(node, 'annotation', None), getattr(node, 'returns', None))]
    names = {o.id for n in notes if isinstance(n, ast.Constant) and isinstance(n.value, str) for o in ast.walk(ast.parse(n.value)) if isinstance(o, ast.Name)}
    return '#| exec_doc\n#| hide\n' + '\n'.join(f'class {o}: __class_getitem__ = classmethod(lambda cls, _: cls)' for o in sorted(names - set(dir(builtins))))


def document(nb):
    "Let nbdev run the exported cells and document what they define; the other cells show their stored outputs"
    exported = [c.source for c in nb.cells if c.cell_type == 'code' and re.search(r'^#\|\s*export', c.source, re.M)]
    for cell in nb.cells:
        if cell.cell_type == 'code' and cell.source not in exported and 'show_doc(' not in cell.source: cell.source = NOT_RUN + cell.source
    if exported: nb.cells.insert(1, mk_cell(stand_ins('\n'.join(exported)), 'code', metadata=AttrDict()))
    FilterDefaults()(nb)
    for cell in nb.cells: cell.source = (cell.source or '').removeprefix(NOT_RUN)


def pictures(cell):
    "The PNG images among a cell's stored outputs"
    return [''.join(d['image/png']) for o in cell.get('outputs', []) if 'image/png' in (d := o.get('data', {}))]


def plain(md):
    "Markdown as one line of text for a screen reader"
    md = re.sub(r'!?\[([^]]*)\]\([^)]*\)', r'\1', md)
    return re.sub(r'\s+', ' ', re.sub(r'[`*$#>|]+|\\(?=\W)|:::.*', '', md)).strip()


def describe_figures(nb, title):
    "Mark each picture with an anchor and, from the text above it, an alternative text; return (number, heading, picture) of each"
    text, heading, found, out = title, title, [], []
    for cell in nb.cells:
        if cell.cell_type == 'markdown' and cell.source:
            if heads := re.findall(r'^#+ (.*)', cell.source, re.M): heading = plain(heads[-1])
            text = plain(re.split(r'\n\s*\n', cell.source.strip())[-1]) or text
        elif pngs := pictures(cell) if cell.cell_type == 'code' else None:
            if not re.search(r'^#\| *fig-alt:', cell.source, re.M):
                cell.source = f'#| fig-alt: {json.dumps(text[:300], ensure_ascii=False)}\n{cell.source}'
            found.append((len(found) + 1, heading, pngs[0]))
            out.append(mk_cell(f'::: {{#picture-{len(found)}}}\n:::', 'markdown'))
        out.append(cell)
    nb.cells[:] = out
    return found


def source_links(path, cfg):
    "The row of links under a notebook's title"
    nb, repo = path.as_posix(), cfg['git_url'].removeprefix('https://github.com/')
    return (f'```{{=html}}\n<p class="nb-links"><a href="{up(path)}notebooks/{nb}" download><i class="bi bi-download"></i> Download notebook</a> '
            f'<a href="https://colab.research.google.com/github/{repo}/blob/{cfg["branch"]}/nbs/{nb}"><i class="bi bi-play-circle"></i> Open in Colab</a> '
            f'<a href="{cfg["git_url"]}/blob/{cfg["branch"]}/nbs/{nb}"><i class="bi bi-code-slash"></i> Source</a></p>\n```')


def local_links(text, path, cfg):
    "Links to the published site and to numbered notebooks become links between the pages of this site"
    text = re.sub(rf'\]\({re.escape(cfg["doc_url"])}([^)\s]*)', lambda m: f']({up(path)}{m[1] or "index.html"}', text)
    return re.sub(r'\]\(([\w./-]+\.ipynb)(?=[)#])', lambda m: f']({page_name(m[1])}', text)


def process(path, origins, cfg):
    "Write one page's source into `_proc/`"
    dest, origin = PROC/page_name(path), origins[path]
    dest.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix != '.ipynb': return dest.write_text(local_links(origin.read_text(encoding='utf-8'), path, cfg), encoding='utf-8')
    nb = read_nb(origin)
    nb.path_ = NBS/path
    split_title(nb)
    document(nb)
    nb.metadata.pop('widgets', None) # Quarto would fetch a widget manager from the network
    describe_figures(nb, nb.frontmatter_['title'])
    for cell in nb.cells:
        if cell.cell_type == 'markdown': cell.source = local_links(cell.source or '', path, cfg)
        if GALLERY in (cell.source or ''): cell.source = cell.source.replace(GALLERY, f'```{{=html}}\n{gallery(origins)}\n```')
        for d in (o.data for o in cell.get('outputs', []) if 'text/markdown' in o.get('data', {})):
            d['text/markdown'] = local_links(''.join(d['text/markdown']).replace('__main__.', ''), path, cfg)
    nb.cells[0].source = re.sub(r'^output-file:.*\n', '', nb.cells[0].source, flags=re.M) # the page has that name already
    nb.cells.insert(1, mk_cell(source_links(path, cfg), 'markdown'))
    write_nb(nb, dest)


# ---- the gallery of figures

def thumbnail(png, dest):
    "Write a small copy of a picture and return its size"
    im = Image.open(io.BytesIO(base64.b64decode(png))).convert('RGB')
    im.thumbnail((560, 420), Image.LANCZOS)
    dest.parent.mkdir(parents=True, exist_ok=True)
    im.quantize(128).save(dest)
    return im.size


def gallery(paths):
    "HTML with a thumbnail of every picture in the figure notebooks, which are in `_proc/` before the home page"
    cards = []
    for path in paths:
        if path.parts[0] != 'figures' or path.suffix != '.ipynb': continue
        nb = read_nb(PROC/page_name(path))
        title = plain(yaml.safe_load(nb.cells[0].source.strip().strip('-'))['title'])
        for n, heading, png in describe_figures(nb, title):
            src = f'assets/gallery/{path.stem}-{n}.png'
            w, h = thumbnail(png, PROC/src)
            page, text = page_name(path).removesuffix('.ipynb'), html.escape(heading)
            cards.append(f'<a href="{page}.html#picture-{n}" title="{html.escape(title)}"><img src="{src}" width="{w}" height="{h}" alt="{text}"><span>{text}</span></a>')
    return '\n'.join(['<div class="gallery">', *cards, '</div>'])


# ---- from the sources to HTML

def stage(origins, cfg):
    "Bring `_proc/` up to date; a page whose source has not changed is kept"
    keys, old = PROC/'.keys.json', {}
    shutil.rmtree(PROC/'assets', ignore_errors=True)
    if keys.exists(): old = json.loads(keys.read_text())
    for p in [p for p in PROC.rglob('*') if p.is_file() and p.suffix in PAGES and p.relative_to(PROC).as_posix() not in map(page_name, origins)]: p.unlink()
    common = Path(__file__).read_bytes() + (ROOT/'stellar_nb'/'_modidx.py').read_bytes()
    new = {path.as_posix(): hashlib.sha256(common + origin.read_bytes()).hexdigest() for path, origin in origins.items()}
    name_links(cfg)
    for path in sorted(origins, key=lambda o: o.stem == 'index'):
        if old.get(path.as_posix()) != new[path.as_posix()] or not (PROC/page_name(path)).exists() or path.stem == 'index': process(path, origins, cfg)
    shutil.copytree(NBS/'assets', PROC/'assets', dirs_exist_ok=True)
    shutil.copy(NBS/'styles.css', PROC)
    write_config(list(origins))
    keys.write_text(json.dumps(new))


def write_config(pages):
    "`_quarto.yml` with the pages' names; a page that the sidebar lacks, or lists in vain, is reported"
    config = yaml.safe_load((ROOT/'_quarto.yml').read_text(encoding='utf-8'))
    sidebar, have = config['website']['sidebar'], {p.as_posix() for p in pages}
    listed = sidebar_pages(sidebar)
    for p in sorted(have - set(listed)): print(f'_quarto.yml: the sidebar does not list {p}', file=sys.stderr)
    for p in sorted(set(listed) - have): print(f'_quarto.yml: the sidebar lists {p}, which does not exist', file=sys.stderr)
    def rename(node):
        if isinstance(node, str): return page_name(node) if node in have else node
        if isinstance(node, list): return [rename(o) for o in node if not set(sidebar_pages(o)) or set(sidebar_pages(o)) & have]
        return {k: rename(v) if k in ('href', 'contents') else v for k, v in node.items()}
    sidebar['contents'] = rename(sidebar['contents'])
    (PROC/'_quarto.yml').write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding='utf-8')


def render(out, engine):
    "HTML by Quarto or by smalldocs, from the same folder and the same settings"
    if engine == 'quarto':
        if (out/'site_libs').is_dir(): shutil.rmtree(out)
        return subprocess.run(['quarto', 'render', PROC, '--no-cache', '--no-execute', '--output-dir', out], check=True)
    from smalldocs import highlight
    from smalldocs.config import load
    from smalldocs.site import Site
    highlight.css_class = lru_cache(2**16)(highlight.css_class) # the same few words again and again
    site = Site(load(PROC), quiet=True)
    site.out = out
    site.build()
    for w in site.warnings:
        if 'html-math-method' not in w: print(f'smalldocs: {w}', file=sys.stderr)


def sized(tag, page, out):
    "An <img> tag with the picture's width and height in pixels"
    src = re.search(r'src="([^"]*)"', tag)
    if re.search(r'\swidth=', tag) or not src: return tag
    if src[1].startswith('data:'): data = io.BytesIO(base64.b64decode(src[1].partition(',')[2]))
    else: data = page.parent/src[1]
    if str(data).endswith('.svg') or src[1].startswith(('http', 'data:image/svg')): return tag
    w, h = Image.open(data).size
    return tag.replace('<img', f'<img width="{w}" height="{h}" loading="lazy"', 1)


def finish(out, origins):
    "What both engines leave to do: local KaTeX, sizes of pictures, a search that works without a server, notebooks to download"
    katex = re.compile(r'(href|src)="(?:https://cdn\.jsdelivr\.net/npm/katex@[^/"]*/dist/|(?:\.\./|\./|/)*assets/katex/)')
    for page in out.rglob('*.html'):
        root = up(page.relative_to(out))
        text = katex.sub(lambda m: f'{m[1]}="{root}assets/katex/', page.read_text(encoding='utf-8'))
        text = re.sub(r'href="((?:\./|(?:\.\./)+))"', r'href="\1index.html"', text) # a folder is no page without a server
        text = re.sub(r'<img\b[^>]*>', lambda m: sized(m[0], page, out), text)
        text = re.sub(r'<(script|link)\b[^>]*(?:src|href)="https?://[^"]*(?:polyfill|require(?:\.min)?\.js|jquery)[^>]*>(?:</script>)?', '', text)
        text = text.replace('</head>', f'<script src="{root}assets/site.js" defer></script></head>', 1)
        page.write_text(text, encoding='utf-8')
    for css in out.rglob('*.css'):
        text = css.read_text(encoding='utf-8')
        if (local := re.sub(r'@import\s*(?:url\()?["\']?https?://[^;]*;', '', text)) != text: css.write_text(local, encoding='utf-8')
    if (index := out/'search.json').exists(): (out/'search.js').write_text(f'window.searchIndex = {index.read_text(encoding="utf-8")};', encoding='utf-8')
    for path, origin in origins.items():
        if path.suffix != '.ipynb': continue
        (dest := out/'notebooks'/path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(origin, dest)


def build(out=ROOT/'_docs', # folder of the finished site; it is emptied first
          executed=None, # folder of freshly executed notebooks, which take the place of the stored ones
          engine='auto', # 'quarto', 'smalldocs', or 'auto' for Quarto where it is installed
         ): # the folder
    "Build the site"
    out, cfg, start = Path(out).resolve(), settings(), time.time()
    origins = {p: next(d/p for d in map(Path.resolve, map(Path, filter(None, (executed, NBS)))) if (d/p).exists()) for p in sources()}
    if engine == 'auto': engine = 'quarto' if shutil.which('quarto') else 'smalldocs'
    if engine == 'smalldocs' and sys.version_info < (3, 11):
        raise SystemExit(f'The site needs Quarto (https://quarto.org), or Python 3.11 for smalldocs; this is Python {sys.version.split()[0]} without Quarto.')
    os.chdir(ROOT)
    os.environ['IN_TEST'] = '1' # as nbdev does while it documents
    stage(origins, cfg)
    render(out, engine)
    finish(out, origins)
    print(f'{len(origins)} pages by {engine} in {time.time() - start:.0f} s: {out/"index.html"}')
    return out


def readme():
    "Write README.md from the home page's notebook, without its gallery"
    cfg, text = settings(), []
    for cell in read_nb(NBS/'index.ipynb').cells:
        if cell.cell_type == 'markdown' and GALLERY not in cell.source: text.append(cell.source)
        elif cell.cell_type == 'code' and not re.search(r'^#\|\s*hide', cell.source, re.M):
            shown = re.sub(r'^#\|.*\n', '', cell.source, flags=re.M)
            printed = ''.join(''.join(o.get('text') or o.get('data', {}).get('text/plain', '')) for o in cell.get('outputs', []))
            text += [f'```python\n{shown}\n```'] + [f'```\n{printed.rstrip()}\n```'] * bool(printed)
    page = lambda m: f']({cfg["doc_url"]}{page_name(m[1]).rpartition(".")[0]}.html'
    (ROOT/'README.md').write_text(re.sub(r'\]\(([\w./-]+\.(?:ipynb|qmd))(?=[)#])', page, '\n\n'.join(text)) + '\n', encoding='utf-8')


if __name__ == '__main__':
    args = argparse.ArgumentParser(description='Build the documentation site.')
    args.add_argument('--out', default=ROOT/'_docs', help='folder of the finished site (_docs)')
    args.add_argument('--executed', help='folder of executed notebooks, which take the place of the stored ones')
    args.add_argument('--engine', default='auto', choices=['auto', 'quarto', 'smalldocs'], help='what renders it (Quarto where it is installed)')
    args.add_argument('--readme', action='store_true', help='only write README.md, from index.ipynb')
    args = vars(args.parse_args())
    if args.pop('readme'): readme()
    else: build(**args)
