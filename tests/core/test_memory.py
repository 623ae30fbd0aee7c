"""Bytes that a call holds at once."""

from __future__ import annotations

import os

import pytest
import torch

from steepest.core.memory import peak_tensor_bytes


def test_peak_counts_what_is_held_at_once_beyond_what_was_there(capfd):
    before = torch.zeros(5000, dtype=torch.float64)

    def task():
        a = torch.zeros(1000, dtype=torch.float64)
        del a
        b = torch.zeros(2000, dtype=torch.float64)
        return b + before[:2000]

    assert peak_tensor_bytes(task) == 32_000
    assert capfd.readouterr() == ("", "")


def test_an_error_passes_through_and_the_error_stream_comes_back(capfd):
    def task():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        peak_tensor_bytes(task)

    os.write(2, b"heard")
    assert capfd.readouterr().err == "heard"
