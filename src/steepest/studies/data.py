"""Data sets for studies: what scikit-learn and the standard library bundle, and folders that a user points to.

Nothing is downloaded. Sets too large to ship lie in the folder named by the environment variable ``STEEPEST_DATA``
or are given by ``--data``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from steepest.core.errors import value_error
from steepest.studies.context import Unavailable

__all__ = ["load"]

BUNDLED = {"digits": "load_digits", "breast_cancer": "load_breast_cancer", "diabetes": "load_diabetes"}
FOLDERS = {"single_cell": "single_cell", "eegmmidb_s001": "eegmmidb_s001"}


def load(name: str, given: str | None = None) -> Any:
    """Load a data set by name.

    Parameters
    ----------
    name : str
        ``"digits"``, ``"breast_cancer"``, ``"diabetes"``: a pair ``(X, y)`` of arrays. ``"single_cell"``,
        ``"eegmmidb_s001"``: the folder of that name below ``STEEPEST_DATA`` (or `given`). ``"path"``: what the user
        gave with ``--data``.
    given : str, optional
        The value of ``--data``.

    Raises
    ------
    Unavailable
        The set is not on this machine.
    ValueError
        No set has this name.
    """
    if name in BUNDLED:
        from sklearn import datasets

        return getattr(datasets, BUNDLED[name])(return_X_y=True)
    if name == "path":
        if given is None:
            raise Unavailable("this needs data that are not bundled: give their place with --data PATH")
        path = Path(given).expanduser()
        if not path.exists():
            raise Unavailable(f"--data {given}: there is nothing at that path")
        return path
    if name in FOLDERS:
        for base in (given, os.environ.get("STEEPEST_DATA")):
            for folder in (Path(base), Path(base) / FOLDERS[name]) if base else ():
                if folder.name == FOLDERS[name] and folder.is_dir():
                    return folder
        raise Unavailable(f"the data set {name} is not here: set STEEPEST_DATA to the folder that holds {name}/")
    raise value_error("name", f"one of {', '.join([*BUNDLED, *FOLDERS, 'path'])}", name)
