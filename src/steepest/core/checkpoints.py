"""Checkpoints: plain state dicts of torch, written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

__all__ = ["write_checkpoint"]


def write_checkpoint(state: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write to a temporary name, then rename, so that a crash leaves the last whole file.

    Parameters
    ----------
    state : mapping
        Tensors and plain values, as ``torch.load(path, weights_only=True)`` reads them.
    path : path

    Raises
    ------
    OSError
        It could not be written; what was there before stays.
    """
    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}-", suffix=".tmp")
    os.close(handle)
    try:
        torch.save(state, temporary)
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
