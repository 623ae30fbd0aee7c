/* Method pages: draws a figure when it comes into view, reads values under the pointer, zooms along x.
   Before that, and without scripts, the page shows the same figure as a picture. */
{
  const bundle = document.currentScript.dataset.bundle;
  let loaded;
  const load = () => loaded ??= new Promise((done, fail) => {
    const script = document.createElement('script');
    script.src = bundle;
    script.onload = done;
    script.onerror = fail;
    document.head.append(script);
  });
  const number = v => {
    const a = Math.abs(v);
    if (a && (a < 1e-3 || a >= 1e5)) return v.toExponential(1).replace('.0e', 'e').replace('e+', 'e');
    return a >= 1000 ? Math.round(v).toString().replace(/(\d)(?=(\d{3})+$)/g, '$1\u202f') : String(+v.toPrecision(3));
  };

  function figure(box) {
    const plot = box.querySelector('.plot'), read = box.querySelector('.read'), reset = box.querySelector('[data-reset]');
    const source = document.getElementById('spec-' + box.dataset.figure).textContent;
    const target = document.createElement('div'), rule = document.createElement('i');
    rule.className = 'rule';
    const names = [...read.querySelectorAll('.nm')], hint = read.querySelector('.hint');
    let view, width = 0, grid = [], lines = new Map(), at = -1, logX = false, title = '';

    async function draw() {
      width = plot.clientWidth;
      const spec = JSON.parse(source), narrow = width - spec.usermeta.right < 300;
      if (narrow) spec.layer = spec.layer.filter(l => !l.name.startsWith('label'));
      box.classList.toggle('narrow', narrow);
      spec.width = width;
      spec.height = plot.clientHeight;
      const curves = spec.layer.filter(l => l.name.startsWith('line_'));
      const rows = layer => spec.datasets[layer.data.name];
      title = curves[0].encoding.x.axis.title;
      logX = curves[0].encoding.x.scale.type === 'log';
      lines = new Map(curves.map(l => [l.description, rows(l).map(r => [r.step, r.value])]));
      grid = [...new Set(curves.flatMap(l => rows(l).map(r => r.step)))].sort((a, b) => a - b);
      view?.finalize();
      ({ view } = await vegaEmbed(target, spec, { renderer: 'svg', actions: false, defaultStyle: false, tooltip: false }));
      plot.append(target, rule);
      plot.classList.add('live');
      plot.tabIndex = 0;
      plot.setAttribute('role', 'application');
      plot.setAttribute('aria-roledescription', 'interactive figure');
      target.firstElementChild?.setAttribute('aria-hidden', 'true');
      view.addSignalListener('zoom_step', (_, value) => { reset.hidden = !value; });
      hint.hidden = false;
      reset.hidden = true;
      show(-1);
    }

    const left = () => view.padding().left + view.origin()[0];
    const x = step => left() + view.scale('x')(step);
    function value(points, step) {
      if (step < points[0][0] || step > points.at(-1)[0]) return null;
      const i = points.findIndex(p => p[0] >= step);
      if (points[i][0] === step || i === 0) return points[i][1];
      const [a, b] = [points[i - 1], points[i]];
      return a[1] + (b[1] - a[1]) * (step - a[0]) / (b[0] - a[0]);
    }
    function show(index) {
      at = index;
      box.classList.toggle('reading', at >= 0);
      rule.hidden = at < 0;
      if (at < 0) { for (const n of names) n.querySelector('b').textContent = ''; return; }
      const px = x(grid[at]);
      rule.style.left = px + 'px';
      rule.hidden = px < left() - 1 || px > left() + view.width() + 1;
      for (const n of names) {
        const points = lines.get(n.dataset.name), v = points ? value(points, grid[at]) : null;
        n.querySelector('b').textContent = v === null ? 'no value' : number(v);
      }
      hint.textContent = (title + ' ' + number(grid[at])).trim();
    }
    function rest() {
      show(-1);
      hint.textContent = 'Point at the figure to read values, drag to zoom.';
    }
    function nearest(px) {
      const step = view.scale('x').invert(px - left());
      let best = 0;
      for (let i = 1; i < grid.length; i++) if (Math.abs(grid[i] - step) < Math.abs(grid[best] - step)) best = i;
      return best;
    }
    function zoom(range) {
      const full = [grid[0], grid.at(-1)];
      view.signal('zoom_step', range && [Math.max(range[0], full[0]), Math.min(range[1], full[1])]);
      view.signal('brush_x', [0, 0]);
      view.runAsync().then(() => { if (at >= 0) show(at); });
    }
    function scaled(factor) {
      const [a, b] = view.scale('x').domain(), c = at >= 0 ? grid[at] : logX ? Math.sqrt(a * b) : (a + b) / 2;
      zoom(logX ? [c * (a / c) ** factor, c * (b / c) ** factor] : [c + (a - c) * factor, c + (b - c) * factor]);
    }
    const within = event => event.clientX - plot.getBoundingClientRect().left;
    plot.addEventListener('pointermove', event => { if (view) show(nearest(within(event))); });
    plot.addEventListener('pointerleave', () => { if (view && document.activeElement !== plot) rest(); });
    plot.addEventListener('blur', () => { if (view) rest(); });
    addEventListener('pointerup', () => setTimeout(() => {
      const range = view?.signal('brush_step');
      if (!range) return;
      const [a, b] = [Math.min(...range), Math.max(...range)];
      Math.abs(x(b) - x(a)) > 12 ? zoom([a, b]) : zoom(view.signal('zoom_step'));
    }));
    plot.addEventListener('keydown', event => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step) show(Math.min(Math.max((at < 0 ? grid.length >> 1 : at) + step * (event.shiftKey ? 10 : 1), 0), grid.length - 1));
      else if (event.key === '+' || event.key === '=') scaled(1 / 1.5);
      else if (event.key === '-') scaled(1.5);
      else if (event.key === 'Escape') { rest(); zoom(null); }
      else return;
      event.preventDefault();
    });
    reset.onclick = () => { zoom(null); plot.focus(); };
    let timer;
    new ResizeObserver(() => {
      if (plot.clientWidth === width) return;
      clearTimeout(timer);
      timer = setTimeout(draw, 120);
    }).observe(plot);
  }

  const seen = new IntersectionObserver(entries => {
    for (const entry of entries) if (entry.isIntersecting) {
      seen.unobserve(entry.target);
      load().then(() => figure(entry.target), () => { /* the picture stays */ });
    }
  }, { rootMargin: '200px' });
  for (const box of document.querySelectorAll('[data-figure]')) if (box.querySelector('.plot')) seen.observe(box);
}
