/* Every page: theme, copy buttons, where one is on the page. */
{
  const $ = s => document.querySelector(s), root = document.documentElement, button = $('#theme');
  const themes = ['system', 'light', 'dark'];
  let now = root.dataset.theme || 'system';
  const show = () => {
    if (now === 'system') delete root.dataset.theme; else root.dataset.theme = now;
    button.querySelector('span').textContent = now;
    button.setAttribute('aria-label', 'Theme: ' + now);
  };
  show();
  button.onclick = () => {
    now = themes[(themes.indexOf(now) + 1) % 3];
    try { localStorage.setItem('theme', now); } catch { /* kept for this page only */ }
    show();
  };

  document.addEventListener('click', async event => {
    const b = event.target.closest('[data-copy]');
    if (!b) return;
    const text = b.closest('.cmdline, .code').querySelector('pre, code').innerText;
    let ok = true;
    try { await navigator.clipboard.writeText(text); } catch {
      const area = document.createElement('textarea');
      area.value = text;
      document.body.append(area);
      area.select();
      try { ok = document.execCommand('copy'); } catch { ok = false; }
      area.remove();
      b.focus();
    }
    b.textContent = ok ? 'Copied' : 'Press Ctrl+C';
    $('#status').textContent = ok ? 'Copied' : 'Not copied: press Ctrl+C';
    setTimeout(() => { b.textContent = 'Copy'; $('#status').textContent = ''; }, 1600);
  });

  const links = [...document.querySelectorAll('.toc a')];
  if (links.length) {
    const sections = links.map(a => $(a.getAttribute('href')));
    const mark = () => {
      let at = sections.findLastIndex(s => s.getBoundingClientRect().top < innerHeight * .3);
      if (innerHeight + scrollY > document.body.scrollHeight - 40) at = sections.length - 1;
      links.forEach((a, i) => i === Math.max(at, 0) ? a.setAttribute('aria-current', 'true') : a.removeAttribute('aria-current'));
    };
    addEventListener('scroll', mark, { passive: true });
    mark();
  }
}
