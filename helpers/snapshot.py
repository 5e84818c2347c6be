"""What a model computes with at this moment, so that a pass that was kept is not taken for one of another model.

`snapshot(lm)` is equal to an earlier one only if nothing that is named here has changed: the numbers of every weight and
buffer, the modules and their classes' functions, plain attributes (a LoRA's scaling, a norm's epsilon), the config, the
kinds of attention, autocast and its like.

Weights are read in full each time, since PyTorch keeps no record of a change through `.data`, nor of a step of a fused
optimizer; that takes a fifth of a short pass, and less of a long one. Not seen: a change through `.data` that only moves numbers
within a row of one weight, and functions that were replaced outside of the model's own classes and their modules. None
stands for a model of which all this cannot be told: its passes must not be kept.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from . import foreign
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

    None in train mode, under live edits, and with hooks, replaced forwards, own classes or modes that may do anything."""
    modes = torch._C._len_torch_function_stack() + torch._C._len_torch_dispatch_stack()
    if lm.live_edits or modes or foreign.hooks_on_all_modules():
        return None
    modules: list[nn.Module] = [lm.model]
    seen, found = {id(lm.model)}, _settings(lm.device.type)
    classes: dict[type, bool] = {}
    tensors: dict[int, Tensor] = {}
    for module in modules:  # grows on the way
        own = vars(module)
        if own["training"] or "forward" in own or foreign.has_other_hooks(module, set()):
            return None
        if type(module) not in classes:
            if foreign.own_class(module):
                return None
            classes[type(module)] = True
        for one in own["_modules"].values():
            if one is not None and id(one) not in seen:
                seen.add(id(one))
                modules.append(one)
        for table in (own["_parameters"], own["_buffers"]):
            tensors.update((id(one), one) for one in table.values() if one is not None)
        if len(own) > len(_OF_EVERY_MODULE):
            found.append([_plain(value, tensors, seen) for name, value in own.items() if name not in _OF_EVERY_MODULE])
    try:
        numbers = _numbers(list(tensors.values()), weights_of and weights_of[-1])
    except (AttributeError, RuntimeError, TypeError):  # a kind of tensor that has no bytes to read
        return None
    return [[Same(module) for module in modules], [_functions(one) for one in classes], found, numbers]


def _settings(device: str) -> list[Any]:
    """Of the process: what changes the numbers of a pass of the same model."""
    return [
        torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device),
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.mem_efficient_sdp_enabled(),
        torch.backends.cuda.math_sdp_enabled(),
        torch.backends.cuda.cudnn_sdp_enabled(),
        torch.get_float32_matmul_precision(),
        [Same(function) for function in ALL_ATTENTION_FUNCTIONS.values()],
    ]


def _functions(kind: type) -> list[Any]:
    """What a class does: its own attributes and those of its bases, and what the module that it was written in holds."""
    found = [Same(value) for base in kind.__mro__ if issubclass(base, nn.Module) for value in list(vars(base).values())]
    around = sys.modules.get(kind.__module__)
    return found + [Same(value) for value in list(vars(around).values() if around else ())]


def _plain(value: Any, tensors: dict[int, Tensor], seen: set[int]) -> Any:
    """A value to compare by what it holds, as far as it is numbers and containers of them; by identity otherwise."""
    if type(value) in _PLAIN:
        return value
    if id(value) in seen:
        return None  # every module holds the config
    if isinstance(value, Tensor):
        tensors[id(value)] = value
        return None
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
    """Of each tensor: where it lies, and sums over its bytes that change with any one of them."""
    places = [(one.data_ptr(), one.dtype, one.shape, 0 if one.is_inference() else one._version) for one in tensors]
    if known is not None and known[0] == places:
        return known
    odd: dict[tuple[int, torch.device], Tensor] = {}
    with torch.inference_mode():
        sums = [_sum(one, odd) for one in tensors]
        devices = dict.fromkeys(one.device for one in sums)
        together = [torch.stack([one for one in sums if one.device == device]).tolist() for device in devices]
    return [places, together]


def _sum(tensor: Tensor, odd: dict[tuple[int, torch.device], Tensor]) -> Tensor:
    """() int64, exact modulo 2 ** 64: rows are added up and weighted by odd numbers, so that a shuffle shows as well."""
    number, rows = tensor.numel() * tensor.element_size(), tensor.shape[0] if tensor.ndim > 1 else 0
    flat = tensor.detach().contiguous().view(-1)
    if number % 8 or tensor.storage_offset() * tensor.element_size() % 8:
        words = flat.view(torch.uint8).long()
    else:
        words = flat.view(torch.int64)
    if rows and words.numel() % rows == 0:
        words = words.view(rows, -1).sum(1)
    key = words.numel(), words.device
    if key not in odd:
        odd[key] = torch.arange(1, 2 * key[0], 2, device=words.device)
    return (words * odd[key]).sum()
