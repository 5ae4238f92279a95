// Read from the disk, a page may not fetch the search index: it comes as a script instead.
if (location.protocol === 'file:') {
  const plain = window.fetch;
  window.fetch = (url, ...rest) => String(url).endsWith('search.json') ? new Promise((done, fail) => {
    const script = document.createElement('script');
    script.src = String(url).replace(/json$/, 'js');
    script.onload = () => done(new Response(JSON.stringify(window.searchIndex)));
    script.onerror = fail;
    document.head.append(script);
  }) : plain(url, ...rest);
}
// Long lists of pages: the current one is in sight.
document.querySelector('#quarto-sidebar .sidebar-link.active')?.scrollIntoView({block: 'nearest'});
