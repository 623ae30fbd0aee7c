"""Shared by all tests: studies write nowhere but where a test says, torch keeps to one thread, and Ray starts once."""

from __future__ import annotations

import multiprocessing

import pytest
import torch

from tests import processes

torch.set_num_threads(1)
processes.import_once()


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


@pytest.fixture
def forked(monkeypatch):
    """Fork the library's workers from the tests' warm interpreter; tests of the core start them anew."""
    warm = processes.context()
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: warm)


def pytest_collection_modifyitems(items):
    """Put the tests on Ray next to one another and first: one start serves them all."""
    items.sort(key=lambda item: not on_ray(item))


def on_ray(item) -> bool:
    return "ray" in getattr(item, "fixturenames", ())


@pytest.fixture
def ray(request, monkeypatch):
    """A local Ray, which stays for the next test that asks for it."""
    ray = pytest.importorskip("ray")
    if not ray.is_initialized():
        with monkeypatch.context() as patch:
            patch.setenv("PYTHONPATH", str(request.config.rootpath))  # its workers find the tests' functions
            patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
            ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    return ray


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem):
    """Stop Ray if the next test does not use it."""
    if on_ray(item) and not (nextitem and on_ray(nextitem)):
        import ray

        ray.shutdown()
