"""Small made-up studies under the keys of real methods, seen by this process and by the workers it starts."""

from __future__ import annotations

import importlib
import os
import sys
import textwrap

import pytest

import steepest.studies
from steepest.studies import provenance

HEAD = '''
"""A study made up for a test.

It measures nothing of interest.
"""
import os, time
import numpy as np, torch
from steepest.core.extras import require
from steepest.studies.claim import Claim, Figure, Paper, Peer
from steepest.studies.context import Unavailable

PAPER = Paper("T", "A", "V", 2024, "u")
AREA, SNIPPET, WHEN_NOT, REASONS = "x", "print(1)", ["never"], {}
PEERS = [Peer("AdamW"), Peer("Nobody", "no_such_package")]
OPTIONS = {"size": "how large"}
FIGURES = [Figure("loss", "It falls", "loss", "step", "loss")]
CLAIMS = [
    Claim("small", "It is small.", "1, Table 1", "<= 2", unit="s"),
    Claim("large", "It is large.", "3, Table 2", ">= 3", scales="quick"),
    Claim("later", "It is real.", "9, Table 9", ">= 3", scales="paper"),
]

def measure(ctx, large=4.0):
    ctx.progress(0.5, loss=1.0)
    ctx.series("loss", [(k, 1 / (k + 1)) for k in range(5)], method="ours", seed=ctx.seeds[0])
    ctx.measured("small", ctx.timed("draw", lambda: float(torch.rand(1, generator=ctx.generator))), (0.0, 1.5))
    ctx.measured("large", large)
    ctx.note("nothing was cut")
    ctx.against("AdamW", 1.2, (1.1, 1.3))
'''

STUDIES = {
    "cbo": "def run(ctx):\n    measure(ctx)\n",
    "mdpo": "def run(ctx):\n    measure(ctx, large=1.0)\n",
    "dadao": "def run(ctx):\n    ctx.measured('small', 1.0)\n    raise ZeroDivisionError('by design')\n",
    "diff2": "def run(ctx):\n    ctx.progress(0.1)\n    os._exit(9)\n",
    "fzoos": "def run(ctx):\n    require('no_such_package', 'rl', what='fzoos')\n",
    "harpg": "def run(ctx):\n    ctx.need_cuda()\n",
    "rvgp": "def run(ctx):\n    ctx.progress(0.2)\n    time.sleep(60)\n",
}

SITE = """
import steepest.studies
steepest.studies.__path__.insert(0, {folder!r})
"""


@pytest.fixture
def made_up_studies(tmp_path, monkeypatch):
    """Put the made-up studies before the real ones; returns their folder."""
    folder = tmp_path / "made_up"
    folder.mkdir()
    for key, body in STUDIES.items():
        (folder / f"{key}.py").write_text(textwrap.dedent(HEAD) + "\n" + body)
    (folder / "sitecustomize.py").write_text(SITE.format(folder=str(folder)))
    old = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", str(folder) + (os.pathsep + old if old else ""))
    monkeypatch.setattr(steepest.studies, "__path__", [str(folder), *steepest.studies.__path__])
    saved = {k: sys.modules.pop(f"steepest.studies.{k}", None) for k in STUDIES}
    for key in STUDIES:
        monkeypatch.delattr(steepest.studies, key, raising=False)
    importlib.invalidate_caches()
    provenance.code_fingerprint.cache_clear()
    yield folder
    for key, module in saved.items():
        sys.modules.pop(f"steepest.studies.{key}", None)
        if module is not None:
            sys.modules[f"steepest.studies.{key}"] = module
    provenance.code_fingerprint.cache_clear()
