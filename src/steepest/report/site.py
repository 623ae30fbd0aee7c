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

__all__ = ["write_site"]

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


def _read(store: Store) -> tuple[list[RunRecord], list[str]]:
    """Read all runs, and what could not be read."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runs = list(store.runs())
    problems = [str(w.message) for w in caught if issubclass(w.category, SteepestWarning)]
    for problem in problems:
        log.warning(problem)
    return runs, problems


def _write(store: Store, folder: Path) -> None:
    runs, problems = _read(store)
    studies = pages.read_studies(store, runs)
    (folder / "method").mkdir()
    (folder / "static").mkdir()
    here = files("steepest.report")
    for name in ("site.css", "figures.js"):
        (folder / "static" / name).write_text(here.joinpath(f"static/{name}").read_text("utf-8"), "utf-8")
    try:
        (folder / "static" / "vega.js").write_text(figures.bundle(), "utf-8")
        missing = None
    except MissingExtra as error:
        missing = error.command
    templates = _templates()
    page = templates.get_template("index.html")
    (folder / "index.html").write_text(page.render(root="", missing=missing, **pages.index(studies, problems)), "utf-8")
    page = templates.get_template("method.html")
    for i, study in enumerate(studies):
        view = pages.method(study, _at(studies, i - 1), _at(studies, i + 1))
        view["figures"] = pages.draw(study)
        view["pictures"] = pages.draw_pictures(study, folder / "pictures")
        text = page.render(root="../", missing=missing, **view)
        (folder / "method" / f"{study.method.key}.html").write_text(text, "utf-8")
    (folder / MARK).write_text("written by `steepest report`, replaced by the next one\n", "utf-8")


def _at(studies: Sequence[pages.Study], i: int) -> pages.Study | None:
    return studies[i] if 0 <= i < len(studies) else None


def _templates() -> jinja2.Environment:
    here = files("steepest.report")
    env = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: here.joinpath(f"templates/{name}").read_text("utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.globals["script"] = Markup(here.joinpath("static/site.js").read_text("utf-8"))
    return env
