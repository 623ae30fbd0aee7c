from __future__ import annotations

import subprocess
import sys
import types

import pytest

from steepest.core.extras import MissingExtra, attach, extras, installed, require


def test_require_imports_what_is_there():
    assert require("json").loads("[1]") == [1]


def test_a_missing_package_says_the_command():
    with pytest.raises(ImportError, match=r'HARPG needs no_such_package: pip install "steepest\[rl\]"') as caught:
        require("no_such_package", "rl", what="HARPG")
    assert isinstance(caught.value, MissingExtra)
    assert caught.value.command == 'pip install "steepest[rl]"'
    with pytest.raises(ImportError, match="pip install no_such_package"):
        require("no_such_package")


def test_a_package_that_is_there_but_broken_keeps_its_own_message(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import something_it_needs\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="something_it_needs"):
        require("half_installed", "rl")


def test_installed_does_not_import():
    assert installed("json")
    assert not installed("no_such_package")
    assert not installed("no_such_package.part")


def test_extras_are_read_from_the_metadata():
    table = extras()
    assert "stable-baselines3" in table["rl"]
    assert "torch" not in {p for packages in table.values() for p in packages}


def test_attached_names_load_when_asked_for(tmp_path, monkeypatch):
    room = tmp_path / "a_room"
    room.mkdir()
    (room / "__init__.py").write_text(
        "from steepest.core.extras import attach\n"
        "__getattr__, __dir__, __all__ = attach(__name__, {'method': ['Method'], 'broken': ['Other']})\n"
    )
    (room / "method.py").write_text("class Method: ...\n")
    (room / "broken.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    import a_room

    assert dir(a_room) == ["Method", "Other"]
    assert "a_room.method" not in sys.modules
    assert a_room.Method.__name__ == "Method"
    assert isinstance(a_room.method, types.ModuleType)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = a_room.nothing
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        _ = a_room.Other
    assert attach("x", {})[2] == []


HEAVY = {"scipy", "sklearn", "matplotlib", "altair", "pydantic", "rich", "typer", "jinja2", "pandas", "ray", "cvxpy"}


def test_importing_the_package_and_the_floor_pulls_in_nothing_heavy():
    code = "import sys, steepest, steepest.curvature, steepest.optim; print(*{m.split('.')[0] for m in sys.modules})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before = subprocess.run(
        [sys.executable, "-c", "import sys, torch; print(*{m.split('.')[0] for m in sys.modules})"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not (set(out.stdout.split()) - set(before.stdout.split())) & HEAVY


def test_importing_the_package_costs_little_beyond_torch():
    code = (
        "import torch, time; t = time.perf_counter(); import steepest; from steepest.optim import AdamP;"
        "print(time.perf_counter() - t)"
    )
    seconds = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(2)
    ]
    assert min(seconds) < 0.3
