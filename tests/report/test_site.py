from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from steepest.core.extras import MissingExtra
from steepest.core.records import Store
from steepest.report import figures, pages
from steepest.report.drawing import Drawing, Line
from steepest.report.markup import highlight, prose, script_json
from steepest.report.site import write_site
from steepest.report.sketch import Tally, gauge, meter, octave, sparkline, tally, telling
from steepest.report.theme import marks
from steepest.studies import registry
from steepest.studies.claim import Figure
from tests.report import sample

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Tree(HTMLParser):
    """Counts elements, gathers ids, links and text, and finds what is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.nodes, self.ids, self.links, self.open, self.words = 0, [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.nodes += 1
        values = dict(attrs)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values[k] for k in ("href", "src") if k in values]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))


def row(index: str, key: str) -> str:
    found = re.search(rf'<tr class="row"[^>]*>(?:(?!<tr ).)*method/{key}\.html.*?</tr>', index, re.S)
    assert found, key
    return Tree(found[0]).text


def test_every_method_has_a_row_and_a_page(page, site):
    index = page("index")
    for key, method in registry.METHODS.items():
        assert method.sentence in row(index, key)
        assert method.name in Tree(page(key)).text
    assert len(list((site / "method").iterdir())) == 31


def test_the_index_shows_every_state(page):
    index = page("index")
    assert "3 of 5 hold, 1 falls short, 1 undecided, 1 reported, 2 not measured" in row(index, "adamp")
    assert "2.5× fewer steps than AdamW2.3 to 2.8" in row(index, "adamp")
    assert "stale" in row(index, "adahessian")
    assert "1.35× more steps than AdamW" in row(index, "adahessian")
    assert "the study raised FloatingPointError after 14 s, 0 of 8 claims measured" in row(index, "sophia")
    assert "last good run 23 Nov 2026, 3 of 5 held" in row(index, "sophia")
    assert 'skipped · M-FAC needs pyriemannpip install "steepest[eeg]"Copy' in row(index, "mfac")
    assert "not run yetsteepest run harpgCopy" in row(index, "harpg")
    assert "no study yet" in row(index, "fedfix")
    assert "broken-run" in index
    assert "One result could not be read and was left out. The other 17 are shown." in Tree(index).text


def test_the_summary_counts_what_the_rows_show(page):
    text = Tree(page("index")).text
    assert "12 of 20 measured claims hold" in text
    assert "2 ahead, 1 too close to call, 1 behind" in text
    assert "5 methods · 9 of 15 hold" in text


def test_the_peer_that_wins_has_an_open_mark(page):
    index = page("index")
    assert len(re.findall(r'class="dot loses"', index)) == 1
    assert len(re.findall(r'class="strip loses"', index)) == 1


def test_the_page_of_a_method_says_everything(page):
    text = Tree(page("adamp")).text
    for part in (
        "Byeongho Heo",
        "AdamP: Slowing Down",
        "1 falls short, 1 undecided, 1 reported, 2 not measured at this scale",
        "2.5× fewer stepsthan AdamW, 2.3 to 2.8",
        "The loss falls in half the steps",
        "You train a network",
        "2.35× (2.10 to 2.60)",
        "Two seeds in three stop at a saddle: see the loss.",
        "paper scale only",
        "no_such_package is not installed",
        "not installed",
        "must hold: falling short is a bug",
        "When not to use it",
        "The batch is small: AdamW is as good.",
        "steepest run adamp --scale quick --seed 0 --seeds 3 --fresh",
        "412 MiB",
        "Seeds were cut from 5 to 3.",
        "Show the other 2",
        "adahessian →",
    ):
        assert part in text, part
    assert page("adamp").count('class="nb num run"') == 12


def test_verdicts_are_an_icon_and_a_word(page):
    for icon, word in (
        ("holds", "holds"),
        ("short", "falls short"),
        ("undecided", "undecided"),
        ("reported", "reported"),
        ("unmeasured", "not measured"),
    ):
        assert f'<use href="#i-{icon}"/></svg>{word}</span>' in page("adamp")
        assert f'id="i-{icon}"' in page("adamp")


def test_a_failed_run_shows_why_and_the_last_good_numbers(page):
    text = Tree(page("sophia")).text
    assert (
        "The last run failed after 14 s on 24 Nov 2026, 12:02: FloatingPointError: loss is not finite <at> step 3"
        in text
    )
    assert "Shown below: the last complete run, 23 Nov 2026, 08:02" in text
    assert "Traceback (most recent call last)" in text
    assert "no clear difference" in text
    assert "1.05× (0.91 to 1.21)" in text


def test_a_stale_run_names_both_codes(page):
    text = Tree(page("adahessian")).text
    assert "measured with 0000000, now " in text
    assert "Stale" not in Tree(page("adamp")).text


def test_skipped_unrun_and_missing_studies_have_pages(page):
    assert "The last run was skipped on 24 Nov 2026, 13:02: M-FAC needs pyriemann." in Tree(page("mfac")).text
    assert "Not run yet." in Tree(page("harpg")).text
    assert "no run yet" in Tree(page("harpg")).text
    assert "No study yet." in Tree(page("fedfix")).text


def test_text_is_escaped_everywhere(page, site):
    for path in [site / "index.html", *sorted((site / "method").iterdir())]:
        text = path.read_text("utf-8")
        assert "<script>alert" not in text
        assert "<b>diverged" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; &#34;holds&#34;" in page("adamp")


def test_pages_are_well_formed_with_unique_ids_and_links_that_lead_somewhere(site):
    for path in [site / "index.html", *sorted((site / "method").iterdir())]:
        tree = Tree(path.read_text("utf-8"))
        assert len(tree.ids) == len(set(tree.ids)), path.name
        for link in tree.links:
            if link.startswith("#"):
                assert link[1:] in tree.ids, (path.name, link)
            elif not link.startswith(("https://", "data:")):
                file, _, anchor = link.partition("#")
                target = (path.parent / file).resolve()
                assert target.is_file(), (path.name, link)
                assert not anchor or f'id="{anchor}"' in target.read_text("utf-8"), (path.name, link)


def test_nothing_is_loaded_from_outside(site):
    for path in (site / "static" / "site.css", site / "static" / "figures.js", site / "index.html"):
        assert not re.search(r"""(?:src|import|url)\s*[=(]\s*["']?https?:""", path.read_text("utf-8"))


def test_the_same_store_gives_the_same_site(store, site, tmp_path):
    again = write_site(store, tmp_path / "again")
    for path in sorted(p for p in site.rglob("*") if p.is_file()):
        assert (again / path.relative_to(site)).read_bytes() == path.read_bytes(), path


def test_only_pages_with_figures_load_the_script(page, site):
    assert "static/figures.js" in page("adamp")
    for key in ("index", "fedfix", "harpg"):
        assert "figures.js" not in page(key)
    assert "window.vegaEmbed" in (site / "static" / "vega.js").read_text("utf-8")


def test_a_figure_stands_in_its_page_without_scripts(page):
    text = page("adamp")
    figure = re.search(r'<figure class="figbox" id="fig-loss".*?</figure>', text, re.S)
    assert figure
    assert figure[0].count("<svg xmlns") == 2
    assert "--h:400px;--hs:320px" in figure[0]
    assert "Show the numbers" in figure[0]
    assert "var(--s1)" in figure[0]


def test_an_empty_store_says_what_to_run(studies, tmp_path):
    text = (write_site(Store(tmp_path / "nothing")) / "index.html").read_text("utf-8")
    assert "No results yet" in text
    assert "<code>steepest run</code>" in text
    assert 'class="swarm"' not in text


def test_without_the_extra_the_site_says_what_to_install(store, tmp_path, monkeypatch):
    def absent(package, extra, *, what):
        raise MissingExtra(what, package, extra)

    monkeypatch.setattr(figures, "require", absent)
    out = write_site(store, tmp_path / "plain")
    text = (out / "method" / "adamp.html").read_text("utf-8")
    assert 'pip install "steepest[report]"' in Tree(text).text
    assert "figures.js" not in text
    assert "<details open><summary>Show the numbers" in text
    assert not (out / "static" / "vega.js").exists()
    Tree(text)


def test_a_study_that_cannot_be_loaded_costs_only_its_own_words(store, tmp_path, monkeypatch):
    def broken(key):
        if key in ("adamp", "harpg"):
            raise SyntaxError("invalid <syntax>")
        return sample.study(key)

    monkeypatch.setattr(registry, "load_study", broken)
    out = write_site(store, tmp_path / "site")
    index, text = ((out / name).read_text("utf-8") for name in ("index.html", "method/adamp.html"))
    assert "the study cannot be loaded: SyntaxError: invalid <syntax>" in row(index, "harpg")
    assert "2.5× fewer steps than AdamW" in row(index, "adamp")
    assert "The study cannot be loaded" in Tree(text).text
    assert "2.35× (2.10 to 2.60)" in Tree(text).text


def test_a_foreign_folder_is_never_replaced(store, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_text("x")
    with pytest.raises(FileExistsError, match="no site that this command wrote"):
        write_site(store, tmp_path / "photos")
    assert (tmp_path / "photos" / "one.jpg").read_text() == "x"


def test_a_failure_leaves_the_old_site_and_no_litter(studies, tmp_path, monkeypatch):
    store = Store(tmp_path / "store")
    out = write_site(store)
    before = (out / "index.html").read_bytes()

    def fail(*args):
        raise RuntimeError("disk")

    monkeypatch.setattr(pages, "method", fail)
    with pytest.raises(RuntimeError, match="disk"):
        write_site(store)
    assert (out / "index.html").read_bytes() == before
    assert [p.name for p in store.root.iterdir()] == ["site"]
    monkeypatch.undo()


def test_a_new_site_replaces_the_old_one(studies, tmp_path):
    store = Store(tmp_path / "store")
    write_site(store)
    store.write(sample.record("adamp"), sample.series("adamp", n=30))
    out = write_site(store)
    assert "2.1× fewer steps" in (out / "index.html").read_text("utf-8")
    assert [p.name for p in store.root.iterdir() if p.name.startswith(".")] == []


def claim(bound: str, value: float, unit: str = "", paper: str = "none", interval=None):
    return sample.claims("adamp")[0].model_copy(
        update={"bound": bound, "value": value, "unit": unit, "paper": paper, "interval": interval}
    )


def test_gauges_place_the_bound_the_paper_and_the_measurement():
    g = gauge(claim("<= 15", 8.0, "steps", "9 steps, Fig. 3", (7.0, 9.0)))
    assert g is not None
    assert g.ok == (0.0, g.bounds[0])
    assert g.spread is not None
    assert g.spread[0] < g.at < g.spread[1] < g.bounds[0]
    assert g.paper == g.spread[1]
    log = gauge(claim(">= 10", 1240.0, "x"))
    assert log is not None
    assert log.paper is None
    assert log.ok == (log.bounds[0], 100.0)
    inside = gauge(claim("between(-2, -1)", -1.5))
    assert inside is not None
    assert inside.ok == (inside.bounds[0], inside.bounds[1])
    assert gauge(claim("reported", 1.0)) is None
    assert gauge(claim("<= 1", float("nan"))) is None


@pytest.mark.parametrize("paper", ["SGD 92.1, AdamP 93.0", "24 GiB", "see Fig. 3", "2 of 3"])
def test_a_gauge_never_guesses_the_papers_number(paper):
    g = gauge(claim("<= 15", 8.0, "steps", paper))
    assert g is not None
    assert g.paper is None


def test_tallies():
    t = tally(sample.claims("adamp"))
    assert t == Tally(3, 1, 1, 1, 2)
    assert t.cells == "hhhsdruu"
    assert Tally(unmeasured=2).head == "no verdict"
    assert (octave(0.25), octave(1), octave(16), octave(0)) == (0.0, 25.0, 75.0, 0.0)


def test_a_meter_has_a_cell_a_claim_and_a_path_a_verdict():
    m = meter("h" * 18 + "sdru")
    assert [code for code, _ in m.paths] == list("hsdru")
    assert [d.count("M") for _, d in m.paths] == [18, 1, 1, 1, 1]
    assert m.paths[4][1] == "M24 26h6"
    assert (m.width, m.height) == (142, 27)


def test_the_figure_of_a_row_is_the_first_that_shows_the_method_as_a_curve():
    def drawing(title, kind, *lines):
        made = [Line(n, marks([n])[n], own, np.arange(k), *[np.ones(k)] * 3, np.ones(1), 0, 1, False)
                for n, own, k in lines]  # fmt: skip
        return Drawing(Figure(title, title, "s", "x", "y", kind=kind), made)

    peers, dots, curve = (
        drawing("peers", "line", ("SGD", False, 9)),
        drawing("dots", "dots", ("AdamP", True, 1)),
        drawing("curve", "line", ("SGD", False, 9), ("AdamP, short", True, 1), ("AdamP", True, 9)),
    )
    assert telling([peers, dots, curve]) is curve
    assert telling([peers, dots]) is dots
    assert telling([peers]) is peers
    assert 'class="o"' in sparkline(curve, None, 1)


def test_code_is_marked_and_escaped():
    code = 'import x\n\nif a < b:  # <b>\n    print("a & b",\n          1e-3)\n'
    marked = str(highlight(code))
    assert re.sub(r"</?span[^>]*>", "", marked) == code.strip().replace("&", "&amp;").replace("<", "&lt;").replace(
        ">", "&gt;"
    )
    assert '<span class="k">import</span>' in marked
    assert '<span class="c"># &lt;b&gt;</span>' in marked
    assert highlight("def f(:\n '''") == "def f(:\n '''"
    assert prose("``<i>`` and `b`") == "<code>&lt;i&gt;</code> and <code>b</code>"
    assert "</script>" not in script_json({"a": "</script>"})


def test_tiny_runs_count_only_where_there_is_nothing_else(studies):
    method = registry.METHODS["adamp"]
    quick, tiny = sample.record("adamp", ago=5), sample.record("adamp", ago=1, scale="tiny")
    assert pages.Study(method, None, [quick, tiny]).latest is quick
    assert pages.Study(method, None, [tiny]).latest is tiny


def test_the_site_of_a_store_that_is_not_there_yet(studies, tmp_path):
    assert write_site(Store(tmp_path / "a" / "b")) == Path(tmp_path / "a" / "b" / "site")
