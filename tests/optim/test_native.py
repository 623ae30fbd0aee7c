"""The native path: when it starts, what it serves, where its libraries lie, and how it gives up."""

from __future__ import annotations

import os
import stat
import subprocess
import threading

import pytest
import torch
from torch import nn

from steepest.core.errors import SteepestWarning
from steepest.optim import AdamP
from steepest.optim import _native as native
from steepest.optim._tensors import is_dense
from tests.optim.check_optimizer import loss_of, parameters, same, values

needs_compiler = pytest.mark.skipif(native.compiler() is None, reason="no C compiler")
SOURCE = "int NAME(toy)(int64_t n, void *const *t, const int64_t *s, const double *h, int threads) { return 0; }"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "steepest" / "kernels"


@pytest.fixture
def fresh_kernel(monkeypatch):
    """AdamP with a kernel that was neither built nor loaded."""
    kernel = native.Kernel(AdamP.KERNEL.name, AdamP.KERNEL.state)
    monkeypatch.setattr(AdamP, "KERNEL", kernel)
    return kernel


def step(opt, params, k=0):
    opt.zero_grad()
    loss_of(params, k).backward()
    opt.step()


def steps(opt, params, n):
    for k in range(n):
        step(opt, params, k)


@needs_compiler
def test_starts_after_the_given_steps(fresh_kernel):
    params = parameters()
    opt = AdamP(params, compile_after=2)
    for k in range(4):
        step(opt, params, k)
        assert (fresh_kernel._functions is not None) == (k >= 2)
    assert len(opt._plans) == 1


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_can_be_switched_off(how, fresh_kernel, monkeypatch):
    if how == "environment":
        monkeypatch.setenv("STEEPEST_COMPILE", "0")
    params = parameters()
    opt = AdamP(params, compile=False if how == "argument" else None, compile_after=0)
    step(opt, params)
    assert fresh_kernel._functions is None
    assert not opt._plans


def test_without_a_compiler_plain_operations_go_on(fresh_kernel, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    params = parameters()
    step(AdamP(params, compile_after=0), params)  # silent: nobody asked
    fresh_kernel._failed = False
    opt = AdamP(params, compile=True, compile_after=0)
    with pytest.warns(SteepestWarning, match="no C compiler was found") as caught:
        steps(opt, params, 2)
    assert len(caught) == 1


def test_a_failed_compilation_is_warned_about_once(fresh_kernel, cache, tmp_path, monkeypatch):
    broken = tmp_path / "broken-cc"
    broken.write_text("#!/bin/sh\necho 'internal error' >&2\nexit 1\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CC", str(broken))
    params, twin = parameters(), parameters()
    opt, plain = AdamP(params, compile_after=0), AdamP(twin, compile=False)
    with pytest.warns(SteepestWarning, match="internal error") as caught:
        steps(opt, params, 2)
    assert len(caught) == 1
    for k in range(2):
        step(plain, twin, k)
    assert same(params, twin)
    assert not list(cache.iterdir())


@needs_compiler
def test_library_is_kept_under_a_name_made_of_all_that_decides(cache):
    kernel = native.Kernel("adamp", ())
    first = native.build(native.compiler(), "toy", SOURCE_OF(SOURCE))
    stamp = first.stat().st_mtime_ns
    assert first.parent == cache
    assert native.build(native.compiler(), "toy", SOURCE_OF(SOURCE)) == first
    assert first.stat().st_mtime_ns == stamp
    assert native.build(native.compiler(), "toy", SOURCE_OF(SOURCE) + "\n") != first
    assert [p.name for p in cache.iterdir() if p.name.startswith(".")] == []
    assert "f_f32" in kernel.source() or "_f32" in kernel.source()


def SOURCE_OF(body: str) -> str:
    return "#include <stdint.h>\n#define NAME(f) f##_f32\n" + body


@needs_compiler
def test_a_native_step_makes_graphs_from_before_it_stale():
    """The kernel writes behind autograd's back; a cached Hessian of the old weights must not be used afterwards."""
    w = torch.nn.Parameter(torch.ones(3))
    opt = AdamP([w], compile_after=0)
    loss = (w**3).sum()
    w.grad = torch.ones(3)
    version = w._version
    opt.step()
    assert opt.KERNEL._functions is not None
    assert w._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@needs_compiler
def test_several_builders_at_once(cache):
    found, errors = [], []

    def build():
        try:
            found.append(native.build(native.compiler(), "toy", SOURCE_OF(SOURCE)))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=build) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors
    assert len(set(found)) == 1
    assert os.listdir(cache) == [found[0].name]


@needs_compiler
def test_an_unwritable_cache_gives_way_to_a_temporary_folder(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    library = native.build(native.compiler(), "toy", SOURCE_OF(SOURCE))
    assert library.is_file()
    assert tmp_path / "file" not in library.parents


@needs_compiler
def test_plan_follows_tensors_that_are_replaced():
    """Other storage behind a parameter or a state, other gradients present: never a stale address."""
    params, twin = parameters(), parameters()
    opt, plain = AdamP(params, lr=0.02, compile_after=0), AdamP(twin, lr=0.02, compile=False)
    for k in range(6):
        for o, ps in ((opt, params), (plain, twin)):
            if k == 2:
                ps[0].data = ps[0].data.clone(memory_format=torch.channels_last)
            if k == 3:
                o.state[ps[1]]["exp_avg"] = o.state[ps[1]]["exp_avg"].clone()
            if k == 4:
                o.state[ps[1]]["exp_avg_sq"].data = o.state[ps[1]]["exp_avg_sq"].data.clone()
            o.zero_grad()
            loss_of(ps, k).backward()
            if k == 5:
                ps[2].grad = None
            o.step()
        assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(values(params), values(twin)))


@needs_compiler
def test_results_do_not_depend_on_the_number_of_threads():
    shapes = [(300, 700), (1, 150_000), (40_000,), (64, 9), (3, 70_001)]
    results = []
    before = torch.get_num_threads()
    for n in (1, 2, 3):
        params = parameters(dtype=torch.float32, shapes=shapes)
        opt = AdamP(params, lr=0.01, compile_after=0)
        torch.set_num_threads(n)
        try:
            for k in range(2):
                g = torch.Generator().manual_seed(k)
                for p in params:
                    p.grad = torch.randn(p.shape, generator=g)
                opt.step()
        finally:
            torch.set_num_threads(before)
        results.append(values(params))
    assert same(results[0], results[1])
    assert same(results[0], results[2])


@needs_compiler
@pytest.mark.parametrize(
    "tensor",
    [
        lambda: torch.zeros(4, 6).T,
        lambda: torch.zeros(4, 6)[:, ::2],
        lambda: torch.zeros(2, 3, dtype=torch.bfloat16),
        lambda: torch.zeros(1, 3).expand(2, 3),
    ],
    ids=["transposed", "gaps", "bfloat16", "expanded"],
)
def test_tensors_that_the_kernel_cannot_serve_go_the_plain_way(tensor):
    t = tensor()
    p = nn.Parameter(t)
    state = {"step": torch.zeros(()), "exp_avg": torch.zeros_like(t), "exp_avg_sq": torch.zeros_like(t)}
    state["projection"] = torch.zeros((), dtype=torch.int8)
    opt = AdamP([p])
    assert native.Plan(AdamP.KERNEL, [p], [state], opt._kernel_sizes).rest == [0]


def test_dense_means_no_gaps_and_no_overlaps():
    x = torch.zeros(2, 3, 4, 5)
    assert is_dense(x)
    assert is_dense(x.to(memory_format=torch.channels_last))
    assert is_dense(x.permute(2, 0, 3, 1))
    assert is_dense(torch.zeros(3, 1, 2).transpose(0, 1))
    assert not is_dense(x[:, :2])
    assert not is_dense(torch.zeros(3, 1).expand(3, 2))


@needs_compiler
def test_no_compiler_warnings():
    flags = [f for f in native.VARIANTS[0] if f not in ("-shared", "-fPIC")]
    command = [native.compiler(), *flags, "-Wall", "-Wextra", "-fsyntax-only", "-x", "c", "-"]
    done = subprocess.run(command, input=AdamP.KERNEL.source(), capture_output=True, text=True)
    assert done.stderr == ""
