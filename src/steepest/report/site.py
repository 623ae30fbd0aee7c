"""Writes the site: an index of all methods and a page for each, from what is in the store.

The site works from a file and offline. It is written beside its place and swapped in when it is whole.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import jinja2
from markupsafe import Markup

from steepest.core.errors import SteepestWarning
from steepest.core.extras import MissingExtra
from steepest.core.records import RunRecord, Store
from steepest.report import figures, pages

__all__ = ["Renderer", "read_runs", "write_site"]

MARK = ".steepest-site"
log = logging.getLogger("steepest")


def write_site(store: Store, out: Path | None = None) -> Path:
    """Write the report as a static site.

    Parameters
    ----------
    store : Store
        What is reported.
    out : Path, optional
        The site's folder, ``<store>/site`` by default. An earlier site there is replaced.

    Returns
    -------
    Path
        The folder; its ``index.html`` is the place to begin.

    Raises
    ------
    FileExistsError
        `out` holds files that are no earlier site.
    OSError
        It could not be written; what was there before stays.

    Examples
    --------
    >>> import tempfile
    >>> folder = write_site(Store(tempfile.mkdtemp()))
    >>> (folder / "index.html").is_file()
    True
    """
    out = Path(store.root / "site" if out is None else out)
    if out.exists() and not (out / MARK).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise FileExistsError(f"{out} is there and is no site that this command wrote; choose another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=".site-"))
    try:
        _write(store, temporary)
        temporary.chmod(0o755)
        _swap(temporary, out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return out


def _swap(new: Path, place: Path) -> None:
    """Put `new` at `place`; what was there is gone only after that."""
    if not place.exists():
        new.rename(place)
        return
    old = Path(tempfile.mkdtemp(dir=place.parent, prefix=".site-"))
    place.rename(old / "site")
    try:
        new.rename(place)
    except BaseException:
        (old / "site").rename(place)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def read_runs(store: Store) -> tuple[list[RunRecord], list[str]]:
    """Read all runs, and what could not be read."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runs = list(store.runs())
    problems = [str(w.message) for w in caught if issubclass(w.category, SteepestWarning)]
    for problem in problems:
        log.warning(problem)
    return runs, problems


def _write(store: Store, folder: Path) -> None:
    runs, problems = read_runs(store)
    studies = pages.read_studies(store, runs)
    site = Renderer()
    (folder / "method").mkdir()
    (folder / "static").mkdir()
    for name, content in site.assets().items():
        (folder / "static" / name).write_text(content, "utf-8")
    (folder / "index.html").write_text(site.index(studies, problems), "utf-8")
    for i, study in enumerate(studies):
        page = site.method(study, _at(studies, i - 1), _at(studies, i + 1), folder / "pictures")
        (folder / "method" / f"{study.method.key}.html").write_text(page, "utf-8")
    (folder / MARK).write_text("written by `steepest report`, replaced by the next one\n", "utf-8")


def _at(studies: Sequence[pages.Study], i: int) -> pages.Study | None:
    return studies[i] if 0 <= i < len(studies) else None


class Renderer:
    """Turns studies into the texts of pages.

    Parameters
    ----------
    live : bool
        The site is served while studies run: its pages link to the one that shows them.
    """

    def __init__(self, *, live: bool = False) -> None:
        here = files("steepest.report")
        self._read = lambda name: here.joinpath(name).read_text("utf-8")
        self.env = jinja2.Environment(
            loader=jinja2.FunctionLoader(lambda name: self._read(f"templates/{name}")),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.env.globals |= {"script": Markup(self._read("static/site.js")), "live": live}
        try:
            self._bundle, self.missing = figures.bundle(), None
        except MissingExtra as error:
            self._bundle, self.missing = "", error.command

    def assets(self) -> dict[str, str]:
        """Give the files that pages load, by name."""
        found = {name: self._read(f"static/{name}") for name in ("site.css", "figures.js")}
        return found | ({"vega.js": self._bundle} if self._bundle else {})

    def index(self, studies: Sequence[pages.Study], problems: Sequence[str]) -> str:
        """Render the index."""
        script = Markup(self._read("static/index.js"))
        return self._render("index.html", root="", index_script=script, **pages.index(studies, problems))

    def method(self, study: pages.Study, before: pages.Study | None, after: pages.Study | None, pictures: Path) -> str:
        """Render a method's page and draw its pictures into the folder `pictures`."""
        view = pages.method(study, before, after)
        view["figures"] = pages.draw(study)
        view["pictures"] = pages.draw_pictures(study, pictures)
        return self._render("method.html", root="../", **view)

    def live(self) -> str:
        """Render the page that shows studies while they run; its script asks for the state."""
        return self._render("live.html", root="", live_script=Markup(self._read("static/live.js")))

    def _render(self, template: str, **view: object) -> str:
        return self.env.get_template(template).render(missing=self.missing, **view)
