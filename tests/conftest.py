"""Shared by all tests: studies write nowhere but where a test says, and torch keeps to one thread."""

from __future__ import annotations

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    """Run every test in a folder of its own, so that nothing is read from or left in the checkout."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)  # make sets it


@pytest.fixture(autouse=True)
def _global_random_state_is_neither_read_nor_advanced():
    """The library draws from explicit generators only."""
    before = torch.random.get_rng_state()
    torch.manual_seed(20_261_124)
    yield
    torch.random.set_rng_state(before)
