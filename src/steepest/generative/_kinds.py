"""NumPy in, NumPy out; tensors in, tensors out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["as_tensor", "like"]


def as_tensor(x: Any) -> Tensor:
    """`x` itself when it is a floating-point tensor; else a float64 tensor (float32 from such an array)."""
    if isinstance(x, Tensor):
        return x if x.is_floating_point() else x.double()
    array = np.asarray(x)
    if array.dtype != np.float32:
        array = array.astype(np.float64, copy=False)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def like(result: Tensor, x: Any) -> Any:
    """`result` as the kind that `x` is."""
    return result if isinstance(x, Tensor) else result.numpy()
