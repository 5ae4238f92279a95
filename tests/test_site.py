"""The documentation site: complete, without a broken link or a foreign resource, and legible in a real browser in both themes."""
import base64
import functools
import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest
import yaml

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT/'scripts'))
import build_site  # noqa: E402

HAS_ENGINE = sys.version_info >= (3, 11) or shutil.which('quarto')
needs_engine = pytest.mark.skipif(not HAS_ENGINE, reason='the site needs Python 3.11 (smalldocs) or Quarto')
CHROMIUM, DRIVER = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome'), shutil.which('chromedriver')
needs_browser = pytest.mark.skipif(not (CHROMIUM and DRIVER and HAS_ENGINE), reason='needs chromium and chromedriver (apt-get install chromium chromium-driver)')


class Page(HTMLParser):
    "What a page holds: ids, links, pictures, and what it loads"
    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.images, self.loads, self.classes = set(), [], [], [], set()
        self.feed(path.read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.ids |= {a.get('id'), a.get('name')} - {None}
        self.classes |= set((a.get('class') or '').split())
        if tag == 'a' and a.get('href'): self.links.append(a['href'])
        if tag == 'img': self.images.append(a)
        if tag in ('script', 'img', 'iframe') and a.get('src'): self.loads.append(a['src'])
        if tag == 'link' and a.get('href'): self.loads.append(a['href'])


@pytest.fixture(scope='session')
def built(tmp_path_factory):
    "The folder of the finished site, and what its building complained about"
    out, engine = tmp_path_factory.mktemp('site')/'docs', 'smalldocs' if sys.version_info >= (3, 11) else 'quarto'
    done = subprocess.run([sys.executable, ROOT/'scripts'/'build_site.py', '--out', out, '--engine', engine], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return out, done.stderr


@pytest.fixture(scope='session')
def site(built): return built[0]


@pytest.fixture(scope='session')
def pages(site): return {p.relative_to(site).as_posix(): Page(p) for p in sorted(site.rglob('*.html'))}


def test_sidebar_lists_every_page_once():
    listed = build_site.sidebar_pages(yaml.safe_load((ROOT/'_quarto.yml').read_text())['website']['sidebar'])
    assert sorted(listed) == sorted(p.as_posix() for p in build_site.sources())


def test_old_python_is_told_what_to_do(monkeypatch):
    monkeypatch.setattr(build_site.sys, 'version_info', (3, 10, 14))
    with pytest.raises(SystemExit, match=r'Quarto.*Python 3\.11'): build_site.build(engine='smalldocs')


@needs_engine
def test_build_complains_of_nothing(built): assert not [o for o in built[1].splitlines() if o.startswith(('smalldocs:', '_quarto.yml:'))]


@needs_engine
def test_addresses_drop_the_number(pages):
    assert set(pages) == {re.sub(r'(^|/)\d+[a-z]?_', r'\1', p.with_suffix('.html').as_posix()).lower() for p in build_site.sources()}


@needs_engine
def test_no_broken_link(site, pages):
    broken = []
    for name, page in pages.items():
        for href in page.links + page.loads:
            url = urlsplit(urljoin(name, href))
            if url.scheme or url.netloc or not href: continue
            target = unquote(url.path) + ('index.html' if url.path.endswith('/') or not url.path else '')
            if not (site/target).is_file() or href.startswith('/'): broken.append((name, href))
            elif url.fragment and target in pages and unquote(url.fragment) not in pages[target].ids: broken.append((name, href))
    for css in site.rglob('*.css'):
        for ref in re.findall(r'url\(["\']?(?!data:|#)([^)"\']+)', css.read_text(encoding='utf-8')):
            if not (css.parent/re.split('[?#]', ref)[0]).is_file(): broken.append((css.name, ref))
    assert not broken


@needs_engine
def test_nothing_comes_from_the_network(site, pages):
    foreign = [(name, o) for name, page in pages.items() for o in page.loads if re.match(r'(https?:)?//', o)]
    foreign += [(p.name, o) for p in site.rglob('*.css') for o in re.findall(r'(?:@import|url\()\s*["\']?https?://[^"\');]*', p.read_text(encoding='utf-8'))]
    assert not foreign
    assert not [p for p in site.rglob('*.html') if 'cdn.' in re.sub(r'<main.*</main>', '', p.read_text(encoding='utf-8'), flags=re.S)]


@needs_engine
def test_pictures_have_size_and_text(pages):
    poor = [(name, {k: (v or '')[:60] for k, v in i.items()}) for name, page in pages.items() for i in page.images
            if not (re.fullmatch(r'\d+', i.get('width') or '') and re.fullmatch(r'\d+', i.get('height') or '') and (i.get('alt') or '').strip())]
    assert not poor
    assert any(page.images for page in pages.values())


@needs_engine
def test_sizes_are_those_of_the_pictures(pages):
    for i in (i for page in pages.values() for i in page.images if i['src'].startswith('data:image/png')):
        head = base64.b64decode(i['src'].partition(',')[2][:44])
        assert (int(i['width']), int(i['height'])) == (int.from_bytes(head[16:20], 'big'), int.from_bytes(head[20:24], 'big'))


@needs_engine
def test_each_notebook_can_be_downloaded_and_opened_in_colab(site, pages):
    for path in (p for p in build_site.sources() if p.suffix == '.ipynb'):
        page = pages[build_site.page_name(path).removesuffix('.ipynb') + '.html']
        assert f'{build_site.up(path)}notebooks/{path.as_posix()}' in page.links
        assert f'https://colab.research.google.com/github/stellar-nb/stellar_nb/blob/main/nbs/{path.as_posix()}' in page.links
        assert (site/'notebooks'/path).read_bytes() == (build_site.NBS/path).read_bytes()


@needs_engine
def test_gallery_shows_every_figure_notebook(pages):
    figures = [p for p in build_site.sources() if p.parts[0] == 'figures' and p.suffix == '.ipynb']
    shown = {o.partition('#')[0] for o in pages['index.html'].links if '#picture-' in o}
    assert shown == {build_site.page_name(p).removesuffix('.ipynb') + '.html' for p in figures}
    assert len(pages['index.html'].images) >= len(figures)


@needs_engine
def test_text_under_the_title_is_kept(site):
    for path in (p for p in build_site.sources() if p.suffix == '.ipynb'):
        cells = json.loads((build_site.NBS/path).read_text(encoding='utf-8'))['cells']
        text = next(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')
        words = [w for w in re.findall(r'[a-z]{5,}', re.sub(r'`[^`]*`|\$[^$]*\$|\([^)]*\)', '', text.partition('\n')[2]))]
        html = (site/build_site.page_name(path)).with_suffix('.html').read_text(encoding='utf-8')
        assert not [w for w in words if w not in html], path


# ---- in a browser

@pytest.fixture(scope='session')
def address(site):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()


@pytest.fixture(scope='session')
def browser(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ('headless=new', 'no-sandbox', 'disable-gpu', 'disable-quic', 'no-first-run', 'disable-background-networking', 'disable-component-update',
                 'disable-sync', 'disable-dev-shm-usage', 'window-size=1400,1000', f'user-data-dir={tmp_path_factory.mktemp("chromium")}'): options.add_argument(f'--{flag}')
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_page_load_timeout(20)
    yield driver
    driver.quit()


def wait(browser, script, seconds=5):
    "Wait until `script` returns something true, and return it"
    from selenium.webdriver.support.ui import WebDriverWait
    return WebDriverWait(browser, seconds, poll_frequency=.05).until(lambda b: b.execute_script(f'return {script}'))


FACTS = '''
const main = document.querySelector('main').cloneNode(true);
main.querySelectorAll('pre, code, script, .katex').forEach(o => o.remove());
return {
  width: [document.documentElement.scrollWidth, innerWidth],
  foreign: performance.getEntriesByType('resource').map(o => o.name).filter(o => !o.startsWith(location.origin) && !o.startsWith('data:')),
  unloaded: [...document.images].filter(o => { o.loading = 'eager'; return o.complete && !o.naturalWidth; }).map(o => o.src.slice(0, 80)),
  math: document.querySelectorAll('.math').length, typeset: document.querySelectorAll('.math .katex').length,
  errors: [...document.querySelectorAll('.katex-error')].map(o => o.textContent),
  raw: main.textContent.match(/\\\\\\(|\\\\\\[|\\$\\$|\\\\(frac|mathrm|lambda|sigma)/g) || [],
};'''


@needs_browser
def test_every_page_opens(address, browser, pages):
    math = 0
    for name in pages:
        browser.get(address + name)
        wait(browser, 'document.readyState == "complete"')
        facts = browser.execute_script(FACTS)
        assert facts['width'][0] <= facts['width'][1], f'{name} is wider than its window'
        assert not facts['foreign'] + facts['unloaded'] + facts['errors'] + facts['raw'], (name, facts)
        assert facts['typeset'] == facts['math'], name
        assert not browser.get_log('browser'), name
        math += facts['math']
    assert math, 'no equation on the whole site'


@needs_browser
def test_fits_a_phone(address, browser, pages):
    browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', {'width': 390, 'height': 844, 'deviceScaleFactor': 1, 'mobile': True})
    wide = []
    for name in pages:
        browser.get(address + name)
        if browser.execute_script('return document.documentElement.scrollWidth > 390'): wide.append(name)
    browser.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})
    assert not wide


@needs_browser
def test_sidebar_reaches_every_page(address, browser, pages):
    for start in ('index.html', next((p for p in pages if '/' in p), 'index.html')):
        browser.get(address + start)
        links = browser.execute_script("return [...document.querySelectorAll('#quarto-sidebar a.sidebar-link[href]')].filter(o => o.offsetParent).map(o => o.href)")
        assert set(pages) == {o.removeprefix(address).partition('#')[0] for o in links}, start


@needs_browser
@pytest.mark.parametrize('scheme', ['http', 'file'])
def test_search_finds_specvit(address, browser, site, scheme):
    browser.get((address if scheme == 'http' else site.as_uri() + '/') + 'core.html')
    box = browser.find_element('css selector', '#quarto-search input')
    box.send_keys('SpecViT')
    wait(browser, "document.querySelector('.smalldocs-search-results.show .search-result')")
    found = browser.execute_script("return [...document.querySelectorAll('.search-result')].map(o => o.href)")
    assert any('models.specvit.html' in o for o in found[:5]), found
    browser.get(found[0])
    assert 'specvit' in browser.find_element('tag name', 'main').text.lower()
    assert not browser.get_log('browser')


CONTRAST = '''
const rgba = s => { const n = s.match(/[\\d.]+/g).map(Number); return s.startsWith('color(srgb') ? [n[0]*255, n[1]*255, n[2]*255, n[3] ?? 1] : [n[0], n[1], n[2], n[3] ?? 1]; };
const over = (a, b) => [0, 1, 2].map(i => a[i]*a[3] + b[i]*(1 - a[3])).concat(1);
const ground = o => { const layers = []; for (; o; o = o.parentElement) layers.push(rgba(getComputedStyle(o).backgroundColor));
  return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]); };
const light = c => { const [r, g, b] = c.slice(0, 3).map(v => (v /= 255) <= .03928 ? v/12.92 : ((v + .055)/1.055)**2.4); return .2126*r + .7152*g + .0722*b; };
const seen = {};
for (const o of document.querySelectorAll('main p, main li, main h1, main h2, main h3, main a, main td, main th, pre code, pre code span, :not(pre) > code, .katex, figcaption, #TOC a, .sidebar-link, .description')) {
  if (!o.textContent.trim() || !o.offsetParent) continue;
  const g = ground(o), [x, y] = [light(over(rgba(getComputedStyle(o).color), g)), light(g)].sort((a, b) => b - a), ratio = (x + .05)/(y + .05);
  const key = o.tagName + '.' + o.className;
  if (!(key in seen) || ratio < seen[key]) seen[key] = ratio;
}
return [light(ground(document.body)), seen];'''


@needs_browser
@pytest.mark.parametrize('theme', ['light', 'dark'])
def test_themes_are_legible(address, browser, pages, theme):
    browser.execute_cdp_cmd('Emulation.setEmulatedMedia', {'features': [{'name': 'prefers-color-scheme', 'value': theme}]})
    chosen = ['index.html', 'core.html', *[p for p in pages if 'sourceCode' in pages[p].classes and 'math' in pages[p].classes][:3]]
    for name in chosen:
        browser.get(address + name)
        wait(browser, 'document.readyState == "complete"')
        ground, ratios = browser.execute_script(CONTRAST)
        assert ground > .8 if theme == 'light' else ground < .1, (name, ground)
        assert not {k: round(v, 2) for k, v in ratios.items() if v < 4.5}, name
    browser.execute_cdp_cmd('Emulation.setEmulatedMedia', {'features': []})


@needs_browser
def test_theme_can_be_switched(address, browser):
    browser.get(address + 'core.html')
    ground = "getComputedStyle(document.body).backgroundColor"
    before = browser.execute_script(f'return {ground}')
    browser.execute_script("document.querySelector('.quarto-color-scheme-toggle').click()")
    wait(browser, f"{ground} != '{before}'")
    browser.get(address + 'index.html')
    assert browser.execute_script(f'return {ground}') != before, 'the choice is forgotten on the next page'
    browser.execute_script("localStorage.clear()")
