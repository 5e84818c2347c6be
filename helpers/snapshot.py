"""What a model computes with at this moment, so that a pass that was kept is not taken for one of another model.

`snapshot(lm)` is equal to an earlier one only if nothing that is named here has changed: the numbers of every weight and
buffer, the modules and their classes' functions, plain attributes (a LoRA's scaling, a norm's epsilon), the config, the
kind of attention, autocast and its like.

Weights are read in full each time, since PyTorch keeps no record of a change through `.data`, nor of a step of a fused
optimizer; that takes half of a short pass, and less of a long one. Not seen: functions that were replaced outside of the
model's own classes and their modules. None stands for a model of which all this cannot be told, also since a function of
somebody's own, which may go by anything, is where a library's was: its passes must not be kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from . import foreign
from .live import live_here
from .models import LanguageModel

_OF_EVERY_MODULE = frozenset(vars(nn.Module())) - {"training"}
_PLAIN = frozenset((int, float, complex, bool, str, bytes, type(None)))


class Same:
    """Something that is equal to itself alone, and lives as long as this: an id by itself may be given away again."""

    __slots__ = ("what",)

    def __init__(self, what: object) -> None:
        self.what = what

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.what is other.what

    __hash__ = None  # type: ignore[assignment]


def snapshot(lm: LanguageModel, weights_of: list[Any] | None = None) -> list[Any] | None:
    """weights_of: an earlier snapshot since which nobody wrote into a weight, whose sums are taken where they were.

    None in train mode, under live edits, and with hooks, functions, classes or modes of one's own that may do anything."""
    modes = torch._C._len_torch_function_stack() + torch._C._len_torch_dispatch_stack()
    if live_here(lm) or modes or foreign.runs_everywhere(lm.config):
        return None
    modules: list[nn.Module] = [lm.model]
    seen, found = {id(lm.model)}, of_process([lm.device.type])
    attentions = [lm.config._attn_implementation]
    order: dict[int, int] = {}
    classes: dict[type, list[Any]] = {}
    others = {handle.id for handle in list(lm.edit_handles)}  # of sweeps in other threads, which do nothing in this one
    tensors: dict[int, Tensor] = {}
    for module in modules:  # grows on the way
        own = vars(module)
        if own["training"] or "forward" in own or foreign.has_other_hooks(module, others):
            return None
        if type(module) not in classes:
            if not foreign.of_a_library(type(module)):
                return None
            classes[type(module)] = foreign.computes_with(type(module))
        attentions.append(foreign.attention_of(module))
        for one in own["_modules"].values():
            if one is not None and id(one) not in seen:
                seen.add(id(one))
                modules.append(one)
        for table in (own["_parameters"], own["_buffers"]):
            tensors.update((id(one), one) for one in table.values() if one is not None)
        # What stands at several places may stand at others since: each place counts, not only the first.
        places = (one for table in ("_modules", "_parameters", "_buffers") for one in own[table].values())
        found += [type(module), [order.setdefault(id(one), len(order)) for one in places]]
        if len(own) > len(_OF_EVERY_MODULE):
            if foreign.own_method(module):
                return None
            found.append([_plain(value, tensors, seen) for name, value in own.items() if name not in _OF_EVERY_MODULE])
    values = [value for one in classes.values() for value in one]
    values += [value for kind in dict.fromkeys(attentions) for value in foreign.attention_functions(kind)]
    if any(map(foreign.own_function, {id(value): value for value in values}.values())):
        return None
    try:
        numbers = _numbers(list(tensors.values()), weights_of and weights_of[-1])
    except (AttributeError, RuntimeError, TypeError):  # a kind of tensor that has no bytes to read
        return None
    return [[Same(module) for module in modules], [Same(value) for value in values], found, numbers]


def of_process(devices: Iterable[str] = ("cpu", "cuda")) -> list[Any]:
    """What is set for the whole process and changes the numbers of the same code; autocast on these devices."""
    cuda = torch.backends.cuda
    return [
        torch.get_default_dtype(),
        [torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) for device in devices],
        [cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled(), cuda.cudnn_sdp_enabled()],
        _float32_products(),
    ]


def _float32_products() -> list[str]:
    """How exact they are. PyTorch 2.9 has other settings for that, and will not tell the old one once they were used."""
    if not hasattr(torch.backends, "fp32_precision"):
        return [torch.get_float32_matmul_precision()]
    backends: Any = torch.backends
    return [one.fp32_precision for one in (backends, backends.cuda.matmul, backends.mkldnn.matmul)]


def _plain(value: Any, tensors: dict[int, Tensor], seen: set[int]) -> Any:
    """A value to compare by what it holds, as far as it is numbers and containers of them; by identity otherwise."""
    if type(value) in _PLAIN:
        return value
    if id(value) in seen:
        return Same(value)  # every module holds the config
    if isinstance(value, Tensor):
        tensors[id(value)] = value
        return Same(value)
    if isinstance(value, PretrainedConfig):
        seen.add(id(value))
        value = vars(value)
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple | set | frozenset):
        seen.add(id(value))
        return [_plain(one, tensors, seen) for one in value]
    return Same(value)


def _numbers(tensors: list[Tensor], known: list[Any] | None) -> list[Any]:
    """Of each tensor where it lies, and of all together two kinds of sums, each of which shows what the other may miss.

    The sums of their bits are exact modulo 2 ** 64: columns are added up and weighted by odd numbers, so that any one number
    shows, and a move within rows. Half, twice or minus some numbers may be a multiple of 2 ** 64 away: these show, as a shuffle
    of rows does, in the sums of the numbers themselves, rows added up and weighted.
    """
    places = [(one.data_ptr(), one.dtype, one.shape, 0 if one.is_inference() else one._version) for one in tensors]
    if known is not None and known[0] == places:
        return known
    sums: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    with torch.inference_mode():
        for one in tensors:
            for found in (_bits(one), _values(one)):
                sums.setdefault((found.device, found.dtype), []).append(found)
        return [places, [_weighted(torch.cat(some)).item() for some in sums.values()]]


def _bits(tensor: Tensor) -> Tensor:
    """(words of a row,) int64: all rows added up; and all columns, (rows,), of numbers that are summed here alone."""
    words = tensor.detach().contiguous().view(-1)
    odd = tensor.numel() * tensor.element_size() % 8 or tensor.storage_offset() * tensor.element_size() % 8
    words = words.view(torch.uint8).long() if odd else words.view(torch.int64)
    rows = tensor.shape[0] if tensor.ndim > 1 else 0
    if rows and words.numel() % rows == 0:
        words = words.view(rows, -1)
        words = words.sum(0) if _summed(tensor) else torch.cat([words.sum(0), words.sum(1)])
    return words if len(words) < 2**16 else _weighted(words)  # the sums of all lie in memory together


def _values(tensor: Tensor) -> Tensor:
    """(rows,) in float32 or float64: all columns added up; of what cannot be added up (0,)."""
    if not _summed(tensor):
        return torch.empty(0, device=tensor.device)
    wide = torch.promote_types(tensor.dtype, torch.float32)
    return tensor.detach().sum(-1, dtype=wide).flatten() if tensor.ndim > 1 else tensor.detach().to(wide).reshape(-1)


def _summed(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.element_size() > 1


def _weighted(sums: Tensor) -> Tensor:
    """(1,): each number times an odd one of its own; in float64, since in float32 the sum of all would round one's move away."""
    if sums.is_floating_point():  # on the CPU: some devices have no float64
        sums = sums.cpu().double().nan_to_num(0, posinf=0, neginf=0)
    weights = 2 * torch.arange(len(sums), device=sums.device) + 1
    return (sums * weights.to(sums.dtype)).sum()[None]
