"""Finding one's way in the house: where a method's files are, and the skeleton of a new one."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from steepest.core.errors import check, one_of, value_error
from steepest.studies import bibliography, registry

__all__ = ["Place", "new_method", "places", "public_name"]


@dataclass(frozen=True)
class Place:
    """One file of a method: what it is, and where; `line` where a single name was asked for."""

    what: str
    path: Path
    line: int | None = None

    def __str__(self) -> str:
        return f"{self.path}" + (f":{self.line}" if self.line else "")


def places(key: str) -> list[Place]:
    """List the files of a method that are there: source, tests, study, page, example, benchmark.

    The sources are those of the names that the study's snippet imports. Outside a checkout only the installed files
    are found.

    Examples
    --------
    >>> [place.what for place in places("adamp")][:2]
    ['source', 'study']
    """
    method, package = registry.find(key), Path(__file__).parent
    name, root = method.key.replace("-", "_"), package.parents[1]
    sources = _sources(method.key) if registry.has_study(method.key) else []
    wanted = [("source", path) for path in sources]
    wanted += [("study", path) for path in sorted((package / "studies").glob(f"{name}*.py")) if _own(path, name)]
    wanted += [("test", _test_of(path, package, root)) for path in sources]
    wanted += [
        ("test", root / "tests" / "studies" / f"test_{name}.py"),
        ("page", root / "docs" / "methods" / f"{method.key}.md"),
        ("example", root / "docs" / "examples" / f"plot_{name}.py"),
        ("benchmark", root / "benchmarks" / f"{name}.py"),
    ]
    return [Place(what, path) for what, path in dict.fromkeys(wanted) if path.is_file()]


def _own(path: Path, name: str) -> bool:
    """Whether a study's file belongs to `name`, not to a method whose key only begins alike."""
    longer = (k.replace("-", "_") for k in registry.METHODS)
    return not any(path.stem.startswith(k) for k in longer if k.startswith(f"{name}_"))


def _test_of(source: Path, package: Path, root: Path) -> Path:
    inside = source.relative_to(package)
    return root / "tests" / inside.parent / f"test_{inside.stem.lstrip('_')}.py"


def _sources(key: str) -> list[Path]:
    """The files that hold what the method's snippet imports from this package."""
    found = []
    for node in ast.walk(ast.parse(registry.load_study(key).SNIPPET)):
        parts = (node.module or "").split(".") if isinstance(node, ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom) and parts[0] == "steepest" and parts[1:2] != ["studies"]:
            room = importlib.import_module(".".join(parts))
            found += [_place(getattr(room, alias.name), alias.name).path for alias in node.names]
    return list(dict.fromkeys(found))


def _place(thing: Any, name: str) -> Place:
    """Where a public name is defined; for an object that is no class or function, where its class is."""
    thing = inspect.unwrap(thing)
    if not (inspect.isclass(thing) or inspect.isroutine(thing) or inspect.ismodule(thing)):
        thing = type(thing)
    line = None if inspect.ismodule(thing) else inspect.getsourcelines(thing)[1]
    return Place(name, Path(inspect.getfile(thing)), line)


def public_name(word: str) -> tuple[Place, list[str]] | None:
    """Find a public class or function of any room: where it is defined, and the methods whose studies use it.

    Examples
    --------
    >>> public_name("minimize_cbo")[1]
    ['cbo']
    """
    for room in _rooms():
        module = importlib.import_module(f"steepest.{room}")
        match = next((n for n in module.__all__ if n.lower() == word.strip().lower()), None)
        if match is None:
            continue
        name = re.compile(rf"\b{re.escape(match)}\b")
        studies = Path(__file__).parent / "studies"
        users = [
            key
            for key in registry.METHODS
            for path in studies.glob(f"{key.replace('-', '_')}*.py")
            if _own(path, key.replace("-", "_")) and name.search(path.read_text("utf-8"))
        ]
        return _place(getattr(module, match), match), list(dict.fromkeys(users))
    return None


def _rooms() -> Iterator[str]:
    for folder in sorted(Path(__file__).parent.iterdir()):
        if (folder / "__init__.py").is_file() and folder.name not in ("core", "report", "studies"):
            yield folder.name


# ------------------------------------------------------------------------------------------------------- a new method

FILES = {
    "method.py.txt": "src/steepest/{area}/{module}.py",
    "test_method.py.txt": "tests/{area}/test_{function}.py",
    "study.py.txt": "src/steepest/studies/{function}.py",
    "test_study.py.txt": "tests/studies/test_{function}.py",
    "benchmark.py.txt": "benchmarks/{function}.py",
    "page.md.txt": "docs/methods/{key}.md",
}


def new_method(key: str, area: str, name: str, root: Path) -> list[Path]:
    """Write the skeleton of a method: source, study, tests, benchmark and page, which pass their tests as they stand.

    Parameters
    ----------
    key : str
        Words of small letters and digits, joined by hyphens.
    area : str
        The room.
    name : str
        The method's name in texts.
    root : path
        A checkout of the source.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    ValueError
        A bad key, a room that is not there, or no checkout at `root`.
    FileExistsError
        One of the files is there; nothing is written.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", key):
        raise value_error("key", "words of small letters and digits joined by hyphens", key)
    if not (root / "src" / "steepest").is_dir():
        raise value_error("root", "a checkout of the source, with src/steepest in it", str(root))
    rooms = sorted({m.area for m in registry.METHODS.values()})
    check("area", area, one_of(*rooms))
    words = _words(key, area, name)
    texts = {root / where.format(**words): _filled(template, words) for template, where in FILES.items()}
    for path in texts:
        if path.exists():
            raise FileExistsError(f"{path} is there already; nothing was written")
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return list(texts)


def _words(key: str, area: str, name: str) -> dict[str, str]:
    """What the skeleton says of the paper, where the registry knows it."""
    function = key.replace("-", "_")
    words = {"key": key, "area": area, "name": name, "function": function, "module": f"_{function}"}
    if key in registry.METHODS:
        entry = bibliography.entry(registry.METHODS[key].bib)
        paper = f"{entry.authors}. {entry.title}. {entry.venue} {entry.year}."
        return words | {"paper": paper, "title": entry.title, "authors": entry.authors, "venue": entry.venue,
                        "year": entry.year, "url": entry.url}  # fmt: skip
    return words | {"paper": "authors, title, venue, year.", "title": "The paper's title", "authors": "The authors",
                    "venue": "The venue", "year": "2026", "url": "https://"}  # fmt: skip


def _filled(template: str, words: Mapping[str, str]) -> str:
    text = files("steepest").joinpath(f"skeleton/{template}").read_text("utf-8")
    return re.sub(r"\{\{ (\w+) \}\}", lambda found: words[found[1]], text)
