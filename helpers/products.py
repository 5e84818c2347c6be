"""The matrix products of a sweep, by the faster of two libraries that PyTorch carries.

PyTorch gives float32 products on a CPU to MKL, which leaves half the speed of an AMD processor with AVX-512 unused. oneDNN,
which it brings along for other types, does not; on AMD's processors without AVX-512 and on Intel's own MKL is the faster of
the two. tools/bench.py measures what that is worth. Inside `with quick_products():` plain float32 products go to oneDNN where
it was measured to be faster, equal up to rounding, and everything else goes its usual way. No model is touched: a function
mode sees `linear` and `addmm` as they are called, in this thread alone.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from . import foreign

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # of x (…, in), weight (out, in) and a bias (out,)


def quick_products() -> AbstractContextManager[Any]:
    """Inside, products of float32 tensors on the CPU run on oneDNN, where PyTorch has it and MKL is not as fast."""
    if foreign.own_modes():
        return nullcontext()  # a mode of the user's would not see a product that went another way
    product = _by_onednn() if torch.backends.cpu.get_cpu_capability() == "AVX512" and not _is_intel() else None
    return _Quick(product) if product and torch.backends.mkldnn.enabled else nullcontext()


class _Quick(TorchFunctionMode):
    def __init__(self, product: Product) -> None:
        super().__init__()
        self.product = product

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear and len(args) == 3 - len(kwargs):
            x, weight, bias = args if len(args) == 3 else (*args, kwargs.get("bias"))
        elif func is torch.addmm and len(args) == 3 and not kwargs:
            bias, x, weight = args[0], args[1], args[2].t()
        else:
            return func(*args, **kwargs)
        return self.product(x, weight, bias) if _plain(x, weight, bias) else func(*args, **kwargs)


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Nothing but numbers: float32 on the CPU, no gradients, no autocast, no subclass that means something else."""
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    given = [x, weight] if bias is None else [x, weight, bias]
    fits = weight.ndim == 2 and (bias is None or bias.shape == weight.shape[:1])
    return fits and all(
        type(one) in (Tensor, torch.nn.Parameter) and one.dtype == torch.float32 and one.device.type == "cpu"
        for one in given
    )


@cache
def _is_intel() -> bool:
    """By its maker's name and not by a measurement: the same machine shall always print the same digits."""
    try:
        name = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:  # Windows and macOS have no such file; Windows tells the maker here
        name = platform.processor()
    return "GenuineIntel" in name


@cache
def _by_onednn() -> Product | None:
    """oneDNN's product if this PyTorch has it and it is right; the operator is not public, so it may change or go."""

    def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")

    x, weight, bias = (torch.arange(float(n)) for n in (12, 8, 2))
    x, weight = x.view(3, 4), weight.view(2, 4)
    try:
        with torch.no_grad():
            ok = all(
                torch.equal(product(x, w, b), F.linear(x, w, b)) for w in (weight, weight.flip(0)) for b in (bias, None)
            )
    except Exception:  # gone, renamed, called in another way, or a build without oneDNN
        return None
    return product if ok else None
