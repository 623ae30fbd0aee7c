"""Uses an installed steepest: rooms, a method, the command, a study and the site; with an extra, what it brings."""

import importlib
import importlib.metadata
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import steepest
from steepest.core.extras import extras
from steepest.optim import AdamP

assert Path.cwd() not in Path(steepest.__file__).parents, "this is the checkout, not what was installed"
for room in (name for name in steepest.__all__ if not name.startswith("_")):
    importlib.import_module(f"steepest.{room}")

model = torch.nn.Linear(3, 1)
optimizer = AdamP(model.parameters())
model(torch.ones(2, 3)).sum().backward()
optimizer.step()


def command(*words: str, allowed: tuple[int, ...] = (0,)) -> str:
    """What the command prints; it must be installed beside this Python."""
    done = subprocess.run([Path(sys.executable).parent / "steepest", *words], capture_output=True, text=True)
    assert done.returncode in allowed, (words, done.stdout, done.stderr)
    return done.stdout


def plain(distribution: str) -> str:
    """A distribution's name as all spellings of it have it."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


with tempfile.TemporaryDirectory() as store:
    assert command("list").count("\n") == 32
    assert "@inproceedings" in command("cite", "sophia")
    assert "adamp.py" in command("where", "AdamP")
    printed = command("run", "sgd-stability", "--scale", "tiny", "--json", "--out", store, allowed=(0, 1))
    assert json.loads(printed)["status"] == "ok"
    command("report", "--out", store)
    assert (Path(store) / "site" / "method" / "sgd-stability.html").stat().st_size > 10_000

for extra in sys.argv[1:]:
    top_level = importlib.metadata.packages_distributions()
    for distribution in extras()[extra]:
        names = [m for m, found in top_level.items() if plain(distribution) in map(plain, found)]
        assert names, f"{extra} does not bring {distribution}"
        importlib.import_module(min(names, key=len))
print(f"steepest {importlib.metadata.version('steepest')} works" + "".join(f" with [{e}]" for e in sys.argv[1:]))
