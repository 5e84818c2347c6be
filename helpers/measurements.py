"""Results that take minutes, measured once by tools/measure.py and stored beside the package.

    found = measured("smollm2", "heads")
    found                                                       # lists every tensor, its axes and its unit
    found["mean"]                                               # one tensor; found.dims["mean"] names its axes
    found.at("mean", prompts="right", replacement="zero", measure="KL")     # (n_blocks, n_heads), chosen by labels
    found.labels["replacement"], found.about["versions"], found.about["sha256"]

A part is one safetensors file in helpers/data/measured; a file is read when it is asked for, and kept nowhere.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import errors

MEASURED_FOLDER = Path(__file__).resolve().parent / "data" / "measured"


@dataclass(frozen=True, repr=False)
class Measured:
    """One part of what was measured on one model: named tensors, the names and labels of their axes, and their origin.

    Numbers come as float32 (per-prompt values are stored in float16: three digits), flags as bool. about holds seeds,
    the prompts, the SHA-256 of the weights and of the prompts, and the versions of the software.
    """

    model: str
    part: str
    tensors: dict[str, Tensor]
    dims: dict[str, list[str]]  # for each tensor, a name for each axis
    labels: dict[str, list[Any]]  # for each of these names, what stands at each index
    units: dict[str, str]  # for each tensor, what it holds
    about: dict[str, Any]

    def __getitem__(self, name: str) -> Tensor:
        """The tensor of this name. Raises BadValue."""
        if name not in self.tensors:
            raise errors.BadValue(
                "{model} {part} has no {name!r}: choose one of {known}.",
                model=self.model,
                part=self.part,
                name=name,
                known=", ".join(sorted(self.tensors)),
            )
        return self.tensors[name]

    def at(self, name: str, **where: Any) -> Tensor:
        """Part of a tensor, chosen by labels: `at("mean", measure="KL", block=8)`. A list of labels keeps the axis.

        Raises BadValue for an axis or a label that is not there.
        """
        tensor, dims = self[name], self.dims[name]
        for dim in where:
            if dim not in dims:
                raise errors.BadValue(
                    "{name!r} has no axis {dim!r}: its axes are {known}.", name=name, dim=dim, known=", ".join(dims)
                )
        for axis in reversed(range(len(dims))):  # from the last, so that a dropped axis moves no other
            if dims[axis] not in where:
                continue
            wanted, labels = where[dims[axis]], self.labels[dims[axis]]
            several = isinstance(wanted, list | tuple)
            for label in wanted if several else [wanted]:
                if label not in labels:
                    shown = ", ".join(map(repr, labels[:12])) + (", …" if len(labels) > 12 else "")
                    raise errors.BadValue(
                        "the axis {dim!r} has no label {label!r}: its labels are {shown}.",
                        dim=dims[axis],
                        label=label,
                        shown=shown,
                    )
            if several:
                tensor = tensor.index_select(axis, torch.tensor([labels.index(one) for one in wanted]))
            else:
                tensor = tensor.select(axis, labels.index(wanted))
        return tensor

    def __repr__(self) -> str:
        lines = [f"Measured({self.model!r}, {self.part!r}): {self.about['what']}"]
        for name, tensor in self.tensors.items():
            axes = ", ".join(f"{dim} {n}" for dim, n in zip(self.dims[name], tensor.shape, strict=True))
            lines.append(f"  {name} ({axes}): {self.units[name]}")
        return "\n".join(lines)


def measured(model: str = "pocket", part: str = "heads") -> Measured:
    """Return stored results: model "pocket" or "smollm2", part "heads", "phrasings", "blocks", "pairs", "prices",
    "factors" or "sink".

    Shapes and axes are in `dims` and `labels`, units in `units`; printing the result lists them. `python tools/measure.py`
    measures again. Raises BadValue when there is no such part, or when its file is damaged.
    """
    return read(MEASURED_FOLDER, model, part)


def read(folder: Path, model: str, part: str) -> Measured:
    """The same from another folder, such as one that the tool wrote with `--out`. Raises BadValue."""
    from safetensors import SafetensorError, safe_open

    here = stored(folder)
    if (model, part) not in here:
        pairs = ", ".join(f"({m!r}, {p!r})" for m, p in here) or "none"
        raise errors.BadValue(
            "nothing is stored for model {model!r}, part {part!r}; there is {pairs}. Choose one of these, or "
            "measure with tools/measure.py.",
            model=model,
            part=part,
            pairs=pairs,
        )
    try:
        with safe_open(folder / f"{model}-{part}.safetensors", "pt") as file:
            about = json.loads(file.metadata()["about"])
            tensors = {name: _as_numbers(file.get_tensor(name)) for name in about["dims"]}
            dims, labels, units = about.pop("dims"), about.pop("labels"), about.pop("units")
    except (SafetensorError, KeyError, TypeError, ValueError) as mistake:
        raise errors.BadValue(
            "the stored results of {model!r}, part {part!r} cannot be read ({mistake}): install the package "
            "again, or measure again with tools/measure.py.",
            model=model,
            part=part,
            mistake=mistake,
        ) from None
    return Measured(model, part, tensors, dims, labels, units, about)


def stored(folder: Path = MEASURED_FOLDER) -> list[tuple[str, str]]:
    """Return every (model, part) that is stored, in alphabetical order."""
    found = sorted(folder.glob("*-*.safetensors"))
    return [(path.stem.rsplit("-", 1)[0], path.stem.rsplit("-", 1)[1]) for path in found]


def _as_numbers(value: Tensor) -> Tensor:
    """Flags are stored as uint8 and become bool; float16 becomes float32; whole numbers stay."""
    return value.bool() if value.dtype == torch.uint8 else value.float() if value.is_floating_point() else value
