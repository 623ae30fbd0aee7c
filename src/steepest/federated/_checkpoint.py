"""Reading and writing runs: what a checkpoint must fit, and how it is kept whole."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from steepest.core.checkpoints import write_checkpoint
from steepest.core.errors import value_error
from steepest.federated.engine import ServerRule

__all__ = ["FORMAT", "plain_arguments", "read_checkpoint", "rule_from", "write_checkpoint"]

FORMAT = 1


def plain_arguments(arguments: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The rule's arguments where all of them can be written down, else None."""
    if arguments is None:
        return None
    kept = {k: v.tolist() if hasattr(v, "tolist") and not isinstance(v, Tensor) else v for k, v in arguments.items()}
    plain = all(v is None or isinstance(v, (bool, int, float, str, list, tuple, Tensor)) for v in kept.values())
    return kept if plain else None


def read_checkpoint(path: str | os.PathLike[str], engine: str, n_clients: int) -> dict[str, Any]:
    """Load a checkpoint and see that it belongs here.

    Raises
    ------
    ValueError
        A newer format, another engine, another number of clients.
    """
    state: dict[str, Any] = torch.load(path, weights_only=True)
    if not isinstance(state, dict) or "format" not in state:
        raise value_error("checkpoint", "a file that a run wrote", str(path))
    if state["format"] > FORMAT:
        raise value_error("format of the checkpoint", f"at most {FORMAT}", state["format"], "update steepest")
    for name, ours in (("engine", engine), ("n_clients", n_clients)):
        if state[name] != ours:
            raise value_error(f"{name} of the checkpoint", f"{ours!r}, this engine's", state[name])
    return state


def rule_from(state: Mapping[str, Any], rule: ServerRule | None) -> ServerRule:
    """The rule to go on with: the caller's, or a new one of the checkpoint's class and arguments."""
    kept = state["rule"]
    if rule is not None:
        if type(rule).__qualname__ != kept["name"]:
            raise value_error("rule", f"of the checkpoint's class {kept['name']}", type(rule).__qualname__)
        return rule
    if not kept["module"].startswith("steepest.") or kept["arguments"] is None:
        raise value_error("rule", f"given, for {kept['name']} cannot be rebuilt from the checkpoint alone", None)
    made = getattr(importlib.import_module(kept["module"]), kept["name"])(**kept["arguments"])
    assert isinstance(made, ServerRule)
    return made
