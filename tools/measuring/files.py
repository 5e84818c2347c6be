"""One file for each part: its tensors, and a header that says all about them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from measuring.job import Job
from measuring.steps import EDITION, SEED, code_of, sha256_of, versions

Table = dict[str, tuple[Tensor, list[str], str]]  # name → tensor, its axes, what it holds


def write(
    job: Job, part: str, what: str, table: Table, labels: dict[str, list[Any]], folder: Path, **more: Any
) -> None:
    """One file: the tensors, and a header that says all about them."""
    labels = {"block": list(range(job.lm.n_blocks)), "head": list(range(job.lm.n_heads)), **labels}
    used = {dim for _, dims, _ in table.values() for dim in dims}
    for name, (tensor, dims, _) in table.items():
        sizes = [len(labels[dim]) for dim in dims]
        assert list(tensor.shape) == sizes, f"{part} {name}: shape {tuple(tensor.shape)}, labels {sizes}"
    about = {
        "what": what,
        "model": job.name,
        "dtype": str(job.lm.dtype).removeprefix("torch."),
        "seed": SEED,
        "edition": EDITION,
        "sha256": {**job.weights, "helpers and tool": code_of(), "prompts": sha256_of(more.get("prompts"))},
        "versions": versions(),
        "dims": {name: dims for name, (_, dims, _) in table.items()},
        "labels": {dim: values for dim, values in labels.items() if dim in used},
        "units": {name: unit for name, (_, _, unit) in table.items()},
        **more,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{job.name}-{part}.safetensors"
    half = path.with_suffix(f".{os.getpid()}")
    # One key only: safetensors writes several in no fixed order, and the same results shall make the same bytes.
    save_file(
        {name: tensor.contiguous() for name, (tensor, _, _) in table.items()},
        half,
        {"about": json.dumps(about, ensure_ascii=False, sort_keys=True)},
    )
    os.replace(half, path)


def small(values: Tensor) -> Tensor:
    """As float16, three digits: for numbers of single prompts."""
    return values.to(torch.float16)


def mean_and_error(values: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Mean over prompts and its standard error, float32."""
    error = values.std(dim=dim) / values.shape[dim] ** 0.5
    return values.mean(dim=dim).float(), error.float()
