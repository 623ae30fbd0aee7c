/* The live page: draws the state that the server sends; every text goes in as text, never as markup. */
{
  const $ = s => document.querySelector(s), svgNS = 'http://www.w3.org/2000/svg';
  const WORDS = { ok: 'finished', running: 'running', error: 'error', skipped: 'skipped', waiting: 'waiting' };
  const CELLS = { ok: 'done', running: 'run', error: 'err', skipped: 'skp', waiting: '' };

  /* make('li', { class: 'x' }, 'text', child) */
  const make = (tag, attributes = {}, ...children) => {
    const node = ['svg', 'use', 'path'].includes(tag) ? document.createElementNS(svgNS, tag) : document.createElement(tag);
    for (const [k, v] of Object.entries(attributes)) node.setAttribute(k, v);
    node.append(...children.filter(c => c !== null && c !== undefined));
    return node;
  };
  const mark = slot => make('svg', { class: 'mk', style: `--c:var(--s${slot})`, 'aria-hidden': 'true' }, make('use', { href: '#m' + slot }));
  const verdict = (name, word) => make('span', { class: 'v ' + name }, make('svg', { 'aria-hidden': 'true' }, make('use', { href: '#i-' + name })), word);
  const meter = m => make('svg', { class: 'meter', width: m.width, height: m.height, 'aria-hidden': 'true' }, ...m.paths.map(([c, d]) => make('path', { class: c, d })));
  const named = s => [mark(s.slot), make('a', { href: `method/${s.key}.html` }, s.key)];
  const value = (id, big, small = '') => $(id).replaceChildren(big, ...(small ? [' ', make('small', {}, small)] : []));

  const card = s => {
    const percent = Math.round(100 * s.fraction) + '%';
    const curve = make('svg', { class: 'spark live', style: `--c:var(--s${s.slot})`, viewBox: '0 0 300 64', preserveAspectRatio: 'none', 'aria-hidden': 'true' },
      make('path', { class: 'x', 'vector-effect': 'non-scaling-stroke', d: 'M0 63H300' }),
      make('path', { class: 'o', 'vector-effect': 'non-scaling-stroke', d: s.curve }));
    const values = [...s.numbers.slice(0, 2), ['claims measured', String(s.measured)]];
    return [
      make('div', { class: 'ttl' }, ...named(s), verdict('running', 'running'), make('span', { class: 'el' }, s.elapsed)),
      make('p', { class: 'stage' }, `${parseInt(percent)} % done` + s.numbers.slice(2).map(([k, v]) => `, ${k} ${v}`).join('')),
      make('div', { class: 'pbar', role: 'progressbar', 'aria-label': s.key, 'aria-valuemin': 0, 'aria-valuemax': 100, 'aria-valuenow': parseInt(percent) },
        make('i', { style: '--p:' + percent })),
      curve,
      make('div', { class: 'vals' }, ...values.map(([k, v]) => make('div', {}, make('span', { class: 'lab' }, k), make('b', {}, v)))),
    ];
  };

  const finishedRow = (s, fresh) => {
    const name = make('span', { class: 'nm' }, ...named(s)), time = make('span', { class: 'tm' }, s.wall || '');
    const row = make('li', fresh ? { class: 'fade' } : {}, name);
    if (s.trouble) {
      const t = s.trouble;
      row.append(make('span', { class: 'cl' }, verdict(s.state, s.state), make('span', {}, s.state === 'error' ? make('code', {}, t.name) : t.reason)),
        make('span', { class: 'rt' }), time);
      if (t.command) row.append(make('span', { class: 'wide' }, make('span', { class: 'cmdline' }, make('code', {}, t.command), make('button', { class: 'btn', 'data-copy': '' }, 'Copy'))));
      if (t.traceback) row.append(make('details', { class: 'wide' }, make('summary', {}, 'Traceback of ' + s.key), make('div', { class: 'log', tabindex: 0 }, t.traceback)));
      return row;
    }
    row.append(make('span', { class: 'cl' }, s.meter && meter(s.meter), make('span', { class: 'num' }, s.head || 'result is gone')), make('span', { class: 'rt' }, s.ratio || ''), time);
    return row;
  };

  let shown = '', known = null, paused = false, last = Date.now(), latest = null;

  const lists = (run, finished, waiting) => {
    const signature = run.id + finished.map(s => s.key + s.state).join() + '|' + waiting.length;
    if (signature === shown) return;
    const keys = new Set(finished.map(s => s.key)), fresh = known && finished.filter(s => !known.has(s.key));
    shown = signature;
    known = keys;
    finished.sort((a, b) => (b.order || 0) - (a.order || 0));
    $('#done').replaceChildren(...finished.map(s => finishedRow(s, fresh && fresh.includes(s))));
    $('#wait').replaceChildren(...waiting.map(s => make('li', {}, mark(s.slot), s.key)));
    $('#wait-section').hidden = !waiting.length;
    if (fresh && fresh.length) $('#status').textContent = fresh.map(s => `${s.key} ${s.trouble ? s.state : 'finished: ' + s.head}`).join('; ');
  };

  const draw = run => {
    const idle = run.state === 'idle';
    $('#idle').hidden = !idle;
    $('#body').hidden = idle;
    $('#others').hidden = !run.others;
    if (run.others) $('#others-text').textContent = run.others === 1 ? 'Another run writes to this store too; the newer one is shown.' : `${run.others} other runs write to this store too; the newest is shown.`;
    if (idle) {
      $('#head').textContent = 'Live';
      $('#prov').replaceChildren();
      document.title = 'Live · steepest';
      $('#idle-last').replaceChildren(...(run.last ? [`The last run began on ${run.last}. `, make('a', { href: 'index.html' }, 'See its results'), '.'] : []));
      return;
    }
    const of = state => run.studies.filter(s => s.state === state), now = of('running'), waiting = of('waiting');
    const finished = run.studies.filter(s => !['running', 'waiting'].includes(s.state)), n = run.studies.length;
    const all = n === 1 ? 'The study' : `All ${n} studies`;
    const heads = {
      running: `${finished.length} of ${n} ${n === 1 ? 'study' : 'studies'} finished`, silent: `${finished.length} of ${n} studies finished`,
      finished: `${all} finished`, interrupted: `Interrupted after ${finished.length} of ${n}`, killed: `Killed after ${finished.length} of ${n}`,
    };
    const open = ['running', 'silent'].includes(run.state);
    $('#head').textContent = heads[run.state];
    document.title = (open ? `${finished.length}/${n}` : run.state === 'finished' ? 'Done' : 'Stopped') + ' · steepest';
    $('#prov').replaceChildren(...run.provenance.map(p => make('span', {}, p)));
    $('#pause').hidden = !open;
    if ($('#prog').children.length !== n) $('#prog').replaceChildren(...run.studies.map(() => make('i')));
    run.studies.forEach((s, i) => {
      const cell = $('#prog').children[i];
      cell.className = CELLS[s.state];
      cell.title = `${s.key}: ${WORDS[s.state]}`;
      cell.style.setProperty('--p', Math.round(100 * (s.fraction || 0)) + '%');
    });
    $('#prog').setAttribute('aria-label', `${finished.length} of ${n} studies finished, ${now.length} running, ${waiting.length} waiting`);
    value('#t-finished', String(finished.length), `of ${n}`);
    value('#t-claims', String(run.claims[0]), `of ${run.claims[1]} hold`);
    value('#t-elapsed', run.elapsed);
    value('#t-left', run.left || (run.state === 'finished' ? 'nothing' : 'stopped'));
    value('#t-memory', run.memory || 'not known yet');
    $('#now-section').hidden = !now.length;
    now.forEach((s, i) => {
      const box = $('#now').children[i] || $('#now').appendChild(make('div', { class: 'card' }));
      if (!box.contains(document.activeElement)) box.replaceChildren(...card(s));
    });
    while ($('#now').children.length > now.length) $('#now').lastChild.remove();
    lists(run, finished, waiting);
    const log = $('#log'), atEnd = log.scrollTop + log.clientHeight > log.scrollHeight - 8;
    log.textContent = run.log.join('\n');
    if (atEnd) log.scrollTop = log.scrollHeight;
  };

  const worry = () => {
    const page = Math.round((Date.now() - last) / 1000), silent = latest && latest.state === 'silent', gone = page > 9;
    $('#lost').hidden = paused || document.hidden || !(gone || silent);
    if (gone) {
      $('#lost-what').textContent = `No word from the server for ${page} s.`;
      $('#lost-more').textContent = `What you see is the state${latest && latest.seen ? ` at ${latest.seen} UTC` : ' before that'}. Studies go on without this page. Trying again every few seconds.`;
    } else if (silent) {
      $('#lost-what').textContent = `No word from the run for ${latest.silent}.`;
      $('#lost-more').textContent = `What you see is the state at ${latest.seen} UTC.`;
    }
    $('#retry').hidden = !gone;
  };

  let source = null;
  const stop = () => { if (source) source.close(); source = null; };
  const start = () => {
    stop();
    if (paused || document.hidden) return;
    source = new EventSource('events');
    source.onopen = () => { last = Date.now(); };
    source.onmessage = event => { last = Date.now(); latest = JSON.parse(event.data); draw(latest); worry(); };
    source.addEventListener('beat', () => { last = Date.now(); });
  };
  $('#pause').onclick = event => {
    paused = !paused;
    event.target.setAttribute('aria-pressed', paused);
    event.target.textContent = paused ? 'Resume updates' : 'Pause updates';
    last = Date.now();
    if (paused) stop(); else start();
  };
  $('#retry').onclick = start;
  document.addEventListener('visibilitychange', () => { last = Date.now(); if (document.hidden) stop(); else start(); });
  setInterval(worry, 1000);
  start();
}
