"""Where a result comes from: the machine, the libraries, and a fingerprint of the code it stands on."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import resource
import subprocess
import sys
from pathlib import Path

import torch

from steepest.core.records import Environment

__all__ = ["code_fingerprint", "cores", "environment", "peak_memory"]


def cores() -> int:
    """Count the processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory() -> int:
    """Most bytes that this process has held."""
    try:  # getrusage would count what the parent held when it started this process
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return 1024 * int(re.search(r"VmHWM:\s*(\d+)", status)[1])  # type: ignore[index]
    except (OSError, TypeError):
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@functools.cache
def environment() -> Environment:
    """Describe this machine and what is installed."""
    libraries = {}
    for name in ("steepest", "torch", "numpy", "scipy", "scikit-learn"):
        libraries[name] = importlib.metadata.version(name)
    return Environment(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()}",
        processor=_processor(),
        cores=cores(),
        threads=torch.get_num_threads(),
        accelerator=torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        libraries=libraries,
        revision=_revision(),
    )


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _revision() -> str | None:
    try:
        out = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return out.stdout.strip() or None if out.returncode == 0 else None


@functools.cache
def code_fingerprint(key: str) -> str:
    """Hash the sources that a study stands on: its own file and all that it imports of this package.

    An import of a room counts as an import of all its files, so a change in the room makes results stale.
    """
    root, seen = Path(__file__).parent.parent, set[Path]()
    spec = importlib.util.find_spec(f"steepest.studies.{key.replace('-', '_')}")
    todo = {Path(spec.origin)} if spec and spec.origin else set[Path]()
    while todo:
        path = todo.pop()
        if path in seen or not path.is_file():
            continue
        seen.add(path)
        if path.suffix == ".py":
            todo |= {file for name in _imports(path.read_text(encoding="utf-8")) for file in _files(root, name)}
    digest = hashlib.sha256()
    for path in sorted(seen):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


@functools.cache
def _imports(source: str) -> tuple[str, ...]:
    """Name what a file of this package imports of it; many studies stand on the same files."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("steepest"):
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.startswith("steepest")]
    return tuple(found)


def _files(root: Path, module: str) -> list[Path]:
    parts = module.split(".")[1:]
    if not parts or parts == ["studies"]:
        return []
    place = root.joinpath(*parts)
    if place.is_dir():
        return [p for p in place.rglob("*") if p.suffix in {".py", ".c", ".h"}]
    return [place.with_suffix(".py")]
