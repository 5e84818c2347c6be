"""A study's prompts are cut into shards, each of which has its file, and put together again as one labelled array."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from torch import Tensor

from . import errors
from .checks import whole
from .encoding import Tokens
from .measures import Measure, Targets, check_alike
from .progress import Progress, bar

if TYPE_CHECKING:
    from xarray import DataArray

    from .worker import Looked, Shard

AXES = {
    "sweep_heads": ("block", "head"),
    "sweep_blocks": ("block",),
    "sweep_block_pairs": ("block", "other_block"),
    "sweep_factors": ("factor",),
    "sweep_edits": ("edit",),
}


def cut(looked: Looked, most: int) -> list[Shard]:
    """Prompts of like length together, since those of one length share a walk."""
    from .worker import Shard

    order = sorted(range(len(looked.rows)), key=lambda number: len(looked.rows[number]))
    found = []
    for start in range(0, len(order), most):
        numbers = order[start : start + most]
        targets = looked.targets
        own = [targets[number] for number in numbers] if isinstance(targets, list) else targets
        found.append(Shard(numbers, [looked.rows[number] for number in numbers], own, looked.model))
    return found


def measured(
    run: Callable[[Sequence[Shard]], Iterator[Any]], shards: Sequence[Shard], files: Sequence[Path], progress: Progress
) -> np.ndarray:
    """(n_prompts, ...): what is kept, and what is missing after it has been measured and kept."""
    total = sum(len(one.numbers) for one in shards)
    found: list[Any] = [None] * total
    missing = []

    first: tuple[int, tuple[int, ...]] | None = None  # a prompt, and the shape of its numbers

    def put(numbers: Sequence[int], values: np.ndarray) -> None:
        nonlocal first
        first = first or (numbers[0], values.shape[1:])
        check_alike(first, (numbers[0], values.shape[1:]))
        for number, value in zip(numbers, values, strict=True):
            found[number] = value

    with bar(total, progress) as done:
        for one, file in zip(shards, files, strict=True):
            kept = _kept(file)
            if kept is None or len(kept) != len(one.numbers):
                missing.append(one)
            else:
                put(one.numbers, kept)
                done(len(kept))
        file_of = {tuple(one.numbers): file for one, file in zip(shards, files, strict=True)}
        for numbers, values in run(missing) if missing else ():
            write_whole(file_of[tuple(numbers)], partial(_save, values))
            put(numbers, values)
            done(len(numbers))
    return np.stack(found)


def _save(values: np.ndarray, part: Path) -> None:
    np.save(part, values, allow_pickle=False)


def _kept(file: Path) -> np.ndarray | None:
    try:
        return np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):  # not there, or damaged: measured again
        return None


def write_whole(file: Path, write: Callable[[Path], object]) -> None:
    """A file that is there is whole, whenever somebody dies."""
    with no_room(file), tempfile.TemporaryDirectory(dir=file.parent) as folder:
        part = Path(folder) / file.name
        write(part)
        os.replace(part, file)


@contextmanager
def no_room(file: Path) -> Iterator[None]:
    """What a disk says that cannot be written to, as CannotStore."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise errors.CannotStore(
            "{file} cannot be written ({error}): make room, or name another folder. What was finished is kept, and the study "
            "goes on from there when you call it again.",
            file=file,
            error=error,
        ) from error


def texts_of(prompts: Sequence[str] | Tensor | Tokens) -> list[str] | None:
    """The prompts' texts, None if they are ids."""
    texts = [] if isinstance(prompts, Tensor | Tokens) else [text for text in prompts if isinstance(text, str)]
    if any("\0" in text for text in texts):
        raise errors.BadPrompt(
            "a prompt holds the character of number 0, which no netCDF file can keep: give the ids instead."
        )
    return texts if texts and len(texts) == len(prompts) else None  # type: ignore[arg-type]


def targets_of(looked: Looked, target: Targets | None) -> list[str] | str:
    """How each prompt's target, or that of all, is called."""
    several: Any = target if isinstance(looked.targets, list) else [target]
    named = [one if isinstance(one, str) else str(whole(one)) for one in several]
    return named if isinstance(looked.targets, list) else named[0]


def labelled(
    values: np.ndarray,
    sweep: str,
    looked: Looked,
    texts: list[str] | None,
    target: list[str] | str,
    measure: Measure | None,
    options: Mapping[str, Any],
) -> DataArray:
    from xarray import DataArray

    names = {
        "block": list(range(looked.n_blocks)) if options.get("blocks") is None else [int(b) for b in options["blocks"]],
        "other_block": list(range(looked.n_blocks)),
        "head": list(range(looked.n_heads)),
        "factor": [float(factor) for factor in options.get("factors", ())],
        "edit": [" and ".join(map(repr, copy)) for copy in options.get("edits", ())],
    }
    axes = ["prompt", *AXES[sweep]]
    coordinates: dict[str, Any] = {"prompt": np.arange(len(values)), **{axis: names[axis] for axis in AXES[sweep]}}
    if measure is not None and measure.columns and values.ndim == len(axes) + 1:
        axes.append("column")
        coordinates["column"] = list(measure.columns)
    axes += [f"value_{axis}" for axis in range(values.ndim - len(axes))]
    if texts is not None:
        coordinates["text"] = "prompt", texts
    if isinstance(target, list):
        coordinates["target"] = "prompt", target
    said = {name: repr(value)[:200] for name, value in options.items() if name != "edits"}
    about = {
        "long_name": "change of log p(target), after - before"
        if measure is None
        else ", ".join(measure.columns) or "measured",
        "sweep": ", ".join([sweep, *(f"{name}={value}" for name, value in said.items())]),
        "model": looked.said,
        "model_fingerprint": looked.model,
    }
    if measure is None:
        about["units"] = "nats"
        about["target"] = "one for each prompt" if isinstance(target, list) else str(target)
    return DataArray(values, coordinates, axes, name=sweep.removeprefix("sweep_"), attrs=about)
