"""Native kernels: plain C, built on first use with the system's compiler, called through `ctypes` on data pointers.

How to write a kernel
---------------------
A kernel is a file ``kernels/<name>.c`` (package data) that defines one function for each precision::

    int NAME(sophia)(int64_t n, void *const *table, const int64_t *sizes, const double *hyper, int threads)

It is compiled twice in one translation unit, after ``kernels/common.h``: with ``real`` = float and ``NAME(f)`` =
``f_f32``, and with ``real`` = double and ``NAME(f)`` = ``f_f64`` (``R(1.5)`` is a constant and ``SQRT FABS FMIN FMAX
POW`` are the functions of that precision). One call updates all `n` tensors of a group:

``table``
    ``table[slot * n + i]`` is the address of the data of tensor i: slot 0 the parameter, 1 the gradient (NULL: skip the
    tensor), from 2 on the state tensors named by `Kernel.state`, in that order. ``step`` (float32) is counted up by
    the kernel. All tensors of the parameter's shape are dense with one order of elements; the others are contiguous.
``sizes``
    ``sizes[j * n + i]``: the j-th of the integers that the optimizer's ``_kernel_sizes(p, state)`` gave (first: numel).
``hyper``
    What ``_kernel_numbers(group)`` gave.
``threads``
    `torch.get_num_threads()`: start no threads for 1. Results must not depend on it: cut sums at fixed places.

It returns 0, or 1 for want of memory (then nothing may have moved). Reductions need ``#pragma omp simd
reduction(+ : s)`` or vector types (no -ffast-math: NaN and infinities keep their meaning). Libraries lie in the user's
cache directory under a hash of source, flags, compiler and processor.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from operator import is_
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from steepest.core.errors import SteepestWarning
from steepest.optim._tensors import is_dense, is_plain, same_layout

__all__ = ["Kernel", "Plan", "build", "cache_directory", "compiler", "native_wanted"]

logger = logging.getLogger("steepest")

FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-std=gnu11")
# tried in this order: with threads, with vector reductions only, without tuning for this processor
VARIANTS = ((*FLAGS, "-fopenmp"), (*FLAGS, "-fopenmp-simd"), tuple(f for f in FLAGS if f != "-march=native"))
SUFFIX = {torch.float32: "f32", torch.float64: "f64"}

_lock = threading.Lock()


def native_wanted(compile: bool | None) -> bool:
    """Whether kernels are asked for: not with ``compile=False`` nor with ``STEEPEST_COMPILE=0``."""
    return compile is not False and os.environ.get("STEEPEST_COMPILE", "1") != "0"


@dataclass
class Kernel:
    """A C function for float32 and float64, built when first asked for.

    Parameters
    ----------
    name : str
        Of the file ``kernels/<name>.c`` and of the function in it.
    state : tuple of str
        Keys of the state tensors it takes, in the order of its table.
    function : str, optional
        Name of the function where a file holds several.

    Examples
    --------
    >>> Kernel("adamp", ("step", "exp_avg")).file
    'adamp.c'
    """

    name: str
    state: tuple[str, ...]
    function: str = ""
    _functions: dict[torch.dtype, Any] | None = field(default=None, repr=False)
    _failed: bool = field(default=False, repr=False)

    @property
    def file(self) -> str:
        """Name of the source file."""
        return f"{self.name}.c"

    def source(self) -> str:
        """Give the whole translation unit: the kernel once for each precision."""
        folder = resources.files("steepest.optim") / "kernels"
        body = (folder / self.file).read_text(encoding="utf-8")
        common = (folder / "common.h").read_text(encoding="utf-8")
        parts = [common]
        for dtype, real in ((torch.float32, 32), (torch.float64, 64)):
            parts += [f"#define STEEPEST_REAL {real} /* {dtype} */", common, f'#line 1 "{self.file}"', body]
        return "\n".join(parts) + "\n"

    def ready(self, compile: bool | None = None) -> bool:
        """Build or load the library if that was not done; False where there is no compiler or it failed.

        A failure is warned about once; a missing compiler only where ``compile=True`` asked for one.
        """
        if self._functions is None and not self._failed:
            with _lock:
                if self._functions is None and not self._failed:
                    self._load(compile)
        return self._functions is not None

    def _load(self, compile: bool | None) -> None:
        cc = compiler()
        problem = None
        if cc is None:
            problem = "no C compiler was found ($CC, cc, gcc, clang)" if compile else None
        else:
            try:
                library = ctypes.CDLL(str(build(cc, self.name, self.source())))
                self._functions = {dtype: self._bind(library, suffix) for dtype, suffix in SUFFIX.items()}
            except (OSError, subprocess.SubprocessError, AttributeError) as error:
                problem = str(error)
        self._failed = self._functions is None
        if problem:
            warnings.warn(
                f"the native kernel {self.name!r} cannot be used and plain tensor operations go on: {problem}",
                SteepestWarning,
                stacklevel=2,
            )

    def _bind(self, library: ctypes.CDLL, suffix: str) -> Any:
        function = getattr(library, f"{self.function or self.name}_{suffix}")
        function.restype = ctypes.c_int
        function.argtypes = [ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]
        return function

    def call(self, dtype: torch.dtype, n: int, table: Any, sizes: Any, hyper: Any) -> None:
        """Update the tensors of one table."""
        assert self._functions is not None
        address = ctypes.addressof
        if self._functions[dtype](n, address(table), address(sizes), address(hyper), torch.get_num_threads()):
            raise MemoryError(f"the native kernel {self.name!r} found no memory for its partial sums")


class Plan:
    """What a kernel needs to know about the tensors of a group, kept between steps while they stay the same.

    Parameters
    ----------
    kernel : Kernel
    params : list of Tensor
    states : list of dict
    sizes_of : callable
        ``sizes_of(p, state)``: the integers for one tensor, or None if the kernel cannot serve it.
    """

    def __init__(
        self,
        kernel: Kernel,
        params: list[Tensor],
        states: list[dict[str, Any]],
        sizes_of: Callable[[Tensor, dict[str, Any]], Sequence[int] | None],
    ) -> None:
        self.kernel = kernel
        self.params = params
        self.values = self._flat(states)
        self.tensors = [*params, *(t for t in self.values if isinstance(t, Tensor))]
        self.addresses = list(map(Tensor.data_ptr, self.tensors))
        chosen: dict[torch.dtype, list[tuple[int, list[Tensor], Sequence[int]]]] = {}
        self.rest: list[int] = []
        for i, (p, state) in enumerate(zip(params, states, strict=True)):
            tensors = [state.get(name) for name in kernel.state]
            sizes = sizes_of(p, state) if _serves(p, tensors) else None
            if sizes is None:
                self.rest.append(i)
            else:
                chosen.setdefault(p.dtype, []).append((i, [p, p, *tensors], sizes))  # type: ignore[list-item]
        self.batches = [_Batch(dtype, params, items) for dtype, items in chosen.items()]

    def _flat(self, states: list[dict[str, Any]]) -> list[Any]:
        names = self.kernel.state
        return [value for state in states for value in map(state.get, names)]

    def fits(self, params: list[Tensor], states: list[dict[str, Any]]) -> bool:
        """Whether these are the tensors the plan was made for, at the same addresses."""
        return (
            len(params) == len(self.params)
            and all(map(is_, params, self.params))
            and all(map(is_, self._flat(states), self.values))
            and list(map(Tensor.data_ptr, self.tensors)) == self.addresses
        )

    def run(self, grads: list[Tensor], numbers: Sequence[float]) -> list[int]:
        """Call the kernel; return the positions of the tensors it could not serve, by layout or kind."""
        hyper = (ctypes.c_double * len(numbers))(*numbers)
        rest = list(self.rest)
        for batch in self.batches:
            rest += batch.run(self.kernel, grads, hyper)
        return sorted(rest)


class _Batch:
    """The tensors of one dtype."""

    def __init__(
        self, dtype: torch.dtype, params: list[Tensor], items: list[tuple[int, list[Tensor], Sequence[int]]]
    ) -> None:
        self.dtype = dtype
        self.positions = [i for i, _, _ in items]
        self.params = [params[i] for i in self.positions]
        self.strides = [p.stride() for p in self.params]
        n = len(items)
        columns = [[t.data_ptr() for t in tensors] for _, tensors, _ in items]
        table = [address for slot in zip(*columns, strict=True) for address in slot]
        sizes = [size for slot in zip(*(s for _, _, s in items), strict=True) for size in slot]
        self.table = (ctypes.c_void_p * len(table))(*table)
        self.sizes = (ctypes.c_int64 * len(sizes))(*sizes)
        self.n = n

    def run(self, kernel: Kernel, grads: list[Tensor], hyper: Any) -> list[int]:
        """Call the kernel for the gradients that fit, and return the positions of the others."""
        gs = [grads[i] for i in self.positions]
        addresses = list(map(Tensor.data_ptr, gs))
        left: list[int] = []
        alike = list(map(Tensor.stride, gs)) == self.strides and not any(map(Tensor.is_neg, gs))
        if not (alike and all(g.dtype is self.dtype for g in gs)):
            for k, (g, p) in enumerate(zip(gs, self.params, strict=True)):
                if g.dtype is not self.dtype or g.is_neg() or not same_layout(g, p):
                    addresses[k] = 0
                    left.append(self.positions[k])
        self.table[self.n : 2 * self.n] = addresses  # type: ignore[assignment]
        kernel.call(self.dtype, self.n, self.table, self.sizes, hyper)
        increment_version(self.params)  # autograd learns that they changed: graphs made before are void
        return left


def _serves(p: Tensor, state: Sequence[Any]) -> bool:
    """Whether parameter and state are plain dense CPU tensors of one precision and order of elements."""
    if not is_plain(p) or p.device.type != "cpu" or p.dtype not in SUFFIX:
        return False
    if not is_dense(p) or p.is_neg():  # is_neg: the memory does not hold the values that the tensor shows
        return False
    for t in state:
        if not isinstance(t, Tensor) or t.device.type != "cpu":
            return False
        shaped = t.shape == p.shape and t.dim() > 0 and t.is_floating_point()
        if shaped and not (t.dtype == p.dtype and same_layout(t, p)):
            return False
        if not shaped and not t.is_contiguous():
            return False
    return True


# ------------------------------------------------------------------------------------------------------------- building


def compiler() -> str | None:
    """Find the C compiler: ``$CC``, else cc, gcc or clang of the path."""
    asked = os.environ.get("CC")
    return next(
        (found for name in ((asked,) if asked else ("cc", "gcc", "clang")) if (found := shutil.which(name))), None
    )


def cache_directory() -> Path:
    """Give the folder where built kernels are kept for this user."""
    if asked := os.environ.get("XDG_CACHE_HOME"):
        base = Path(asked)
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    else:
        base = Path.home() / ".cache"
    return base / "steepest" / "kernels"


def build(cc: str, name: str, source: str) -> Path:
    """Compile a translation unit unless its library is in the cache, and return the library's path.

    Several processes may build the same library at once: each renames its own complete file into place.

    Raises
    ------
    OSError
        The compiler cannot be started, or refuses the source with every set of flags (its message is in the text).
    """
    key = hashlib.sha256("\0".join([source, *map(str, VARIANTS), *_toolchain(cc)]).encode()).hexdigest()[:20]
    file_name = f"{name}-{key}{'.dll' if sys.platform == 'win32' else '.so'}"
    try:
        folder = cache_directory()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if (folder / file_name).is_file():
            return folder / file_name
        with tempfile.TemporaryDirectory(dir=folder, prefix=".build-") as workshop:
            built = _compile(cc, Path(workshop), name, source)
            os.replace(built, folder / file_name)
        return folder / file_name
    except PermissionError:
        pass
    except OSError as error:
        if isinstance(error, _CompilationError):
            raise
    workshop = tempfile.mkdtemp(prefix="steepest-")  # no cache: a private folder, this process only
    return _compile(cc, Path(workshop), name, source)


class _CompilationError(OSError):
    pass


def _compile(cc: str, folder: Path, name: str, source: str) -> Path:
    code, library = folder / f"{name}_kernel.c", folder / f"{name}.so"
    code.write_text(source, encoding="utf-8")
    started, output = time.perf_counter(), ""
    for flags in VARIANTS:
        done = subprocess.run(
            [cc, *flags, str(code), "-o", str(library), "-lm"], capture_output=True, text=True, timeout=300
        )
        if done.returncode == 0:
            logger.info("built the native kernel %s with %s in %.1f s", name, cc, time.perf_counter() - started)
            return library
        output = output or done.stderr.strip()
    raise _CompilationError(f"{cc} failed: {output[:400]}")


def _toolchain(cc: str) -> list[str]:
    """What besides source and flags decides about the machine code: compiler and processor."""
    real = Path(os.path.realpath(cc))
    status = real.stat()
    return [str(real), str(status.st_size), str(int(status.st_mtime)), platform.machine(), _processor()]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
