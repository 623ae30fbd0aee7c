"""Optional packages: which extra brings what, and how a missing one is said.

Rooms load their public names when asked for (`attach`), so that a room can be imported without its extra.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

__all__ = ["MissingExtra", "attach", "extras", "installed", "require"]


class MissingExtra(ImportError):
    """A package of an extra is not installed; the text holds the command that adds it."""

    def __init__(self, what: str, package: str, extra: str | None) -> None:
        target = f'"steepest[{extra}]"' if extra else package
        self.command = f"pip install {target}"
        super().__init__(f"{what} needs {package}: {self.command}", name=package)


def require(package: str, extra: str | None = None, *, what: str = "this") -> ModuleType:
    """Import an optional package, or say which command adds it.

    Parameters
    ----------
    package : str
        Name to import, e.g. ``"stable_baselines3"``.
    extra : str or None
        The extra of ``steepest`` that brings it; None for a package that is in no extra.
    what : str
        Who needs it, the subject of the message.

    Returns
    -------
    module

    Raises
    ------
    MissingExtra
        An `ImportError` such as ``HARPG needs stable_baselines3: pip install "steepest[rl]"``.

    Examples
    --------
    >>> require("json").dumps(1)
    '1'
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != package.split(".")[0]:
            raise  # the package is there, something that it needs is not: its own message says more
        raise MissingExtra(what, package, extra) from None


def installed(package: str) -> bool:
    """Whether `package` can be found, without importing it."""
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def extras() -> dict[str, list[str]]:
    """Map each extra of the installed ``steepest`` to the distributions it names, from the package's metadata."""
    found: dict[str, list[str]] = {}
    for line in importlib.metadata.requires("steepest") or []:
        match = re.match(r"([A-Za-z0-9_.-]+).*extra\s*==\s*['\"]([^'\"]+)['\"]", line)
        if match and match[1] != "steepest":
            found.setdefault(match[2], []).append(match[1])
    return found


def attach(
    package: str, names: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Make the ``__getattr__``, ``__dir__`` and ``__all__`` of a room whose names load when asked for.

    Parameters
    ----------
    package : str
        The room's ``__name__``.
    names : mapping
        Submodule to the public names it defines.
    """
    where = {name: module for module, public in names.items() for name in public}

    def load(name: str) -> Any:
        if name in where:
            return getattr(importlib.import_module(f"{package}.{where[name]}"), name)
        try:
            return importlib.import_module(f"{package}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{package}.{name}":
                raise
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return load, lambda: sorted(where), sorted(where)
