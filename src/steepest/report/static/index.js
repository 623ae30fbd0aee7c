/* The index: search, filters, order. The state lives in the address, so that a view can be sent to somebody. */
{
  const $ = s => document.querySelector(s), $$ = s => [...document.querySelectorAll(s)];
  const list = $('.list'), q = $('#q'), sort = $('#sort'), rows = $$('.row'), groups = $$('tbody[data-group]');
  const home = new Map(rows.map(r => [r, r.parentNode])), flat = document.createElement('tbody');
  flat.setAttribute('role', 'rowgroup');
  list.append(flat);
  const orders = {
    area: null,
    r: (a, b) => (+b.dataset.r || -1) - (+a.dataset.r || -1),
    h: (a, b) => (+b.dataset.h || -1) - (+a.dataset.h || -1),
    name: (a, b) => (a.dataset.text < b.dataset.text ? -1 : 1),
  };
  let verdict = '', areas = new Set(), order = 'area';

  const fits = r => (!areas.size || areas.has(r.dataset.area))
    && (!verdict || (verdict === 'state' ? r.dataset.state : verdict === 'loses' ? r.dataset.w === 'loses' : r.dataset.v === verdict))
    && q.value.toLowerCase().split(/\s+/).every(word => r.dataset.text.includes(word));

  function draw() {
    for (const r of rows) r.hidden = !fits(r);
    const n = rows.filter(r => !r.hidden).length;
    if (order !== sort.value) {
      order = sort.value;
      if (order === 'area') rows.forEach(r => home.get(r).append(r)); else flat.append(...rows.toSorted(orders[order]));
    }
    for (const g of groups) g.hidden = order !== 'area' || !g.querySelector('.row:not([hidden])');
    $('#count').textContent = n === rows.length ? `${n} methods` : `${n} of ${rows.length} methods`;
    list.hidden = !n;
    $('#nomatch').hidden = n > 0;
    const words = id => $$(`${id} [aria-pressed="true"]`).map(b => '“' + b.dataset.says + '”').join(' or ');
    for (const b of $$('#fv .chip')) b.setAttribute('aria-pressed', b.dataset.v === verdict);
    for (const b of $$('#fa .chip')) b.setAttribute('aria-pressed', areas.has(b.dataset.area));
    $('#asked').textContent = 'Nothing fits ' + [q.value.trim() && '“' + q.value.trim() + '”', words('#fv'), words('#fa')].filter(Boolean).join(' with ') + '.';
  }
  function changed() {
    draw();
    const p = new URLSearchParams(Object.entries({ q: q.value.trim(), v: verdict, area: [...areas].join(), sort: order === 'area' ? '' : order }).filter(([, v]) => v));
    history.replaceState(null, '', '#' + p);
    $('#status').textContent = $('#count').textContent;
  }
  function load() {
    if (location.hash && document.getElementById(location.hash.slice(1))) return;
    const p = new URLSearchParams(location.hash.slice(1)), asked = p.get('sort');
    q.value = p.get('q') || '';
    verdict = p.get('v') || '';
    areas = new Set((p.get('area') || '').split(',').filter(Boolean));
    sort.value = asked in orders ? asked : 'area';
    draw();
  }
  q.oninput = sort.onchange = changed;
  $('#fv').onclick = event => {
    const chip = event.target.closest('.chip');
    if (chip) { verdict = verdict === chip.dataset.v ? '' : chip.dataset.v; changed(); }
  };
  $('#fa').onclick = event => {
    const area = event.target.closest('.chip')?.dataset.area;
    if (area) { if (!areas.delete(area)) areas.add(area); changed(); }
  };
  $('#clear').onclick = () => { q.value = verdict = ''; areas.clear(); changed(); q.focus(); };
  document.addEventListener('keydown', event => {
    const at = event.target, step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (event.key === '/' && !/^(INPUT|SELECT)$/.test(at.tagName)) { event.preventDefault(); q.focus(); q.select(); }
    if (event.key === 'Escape' && at === q) { event.preventDefault(); q.value = ''; changed(); }
    if (step && (at === q || at.matches('.row .ttl a'))) {
      const links = $$('.row:not([hidden]) .ttl a'), i = links.indexOf(at) + step;
      event.preventDefault();
      (i < 0 ? q : links[Math.min(i, links.length - 1)])?.focus();
    }
  });
  for (const dot of $$('.swarm .dot')) dot.onclick = () => { location.href = `method/${dot.title.split(':')[0]}.html`; };
  addEventListener('hashchange', load);
  load();
}
