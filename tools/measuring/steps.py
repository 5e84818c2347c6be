"""Steps that are kept once they are finished, and what says whether they may be used again: hashes and versions."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import helpers
from helpers import LanguageModel

SEED = 0
EDITION = 1  # one more when a measurement's definition changes: older steps in the cache are then not used


class Steps:
    """Finished steps of one model: `steps("name", inputs, work, *args)` calls `work(*args)` only once.

    work returns a tensor or a dict of tensors; a tensor comes back as {"x": tensor}, and `steps.one` gives it alone.
    """

    def __init__(self, folder: Path, key: dict[str, Any], bar: Callable[[str], object]) -> None:
        self.folder, self.key, self.bar = folder, key, bar
        self.seconds = 0.0

    def __call__(self, name: str, inputs: object, work: Callable[..., Any], *args: Any) -> dict[str, Tensor]:
        self.bar(name)
        path = self.folder / f"{name.replace(' ', '-')}-{sha256_of([self.key, name, inputs])[:16]}.safetensors"
        if path.is_file():
            found = load_file(path)
        else:
            start = time.process_time()
            done = work(*args)
            named = {"x": done} if isinstance(done, Tensor) else done
            found = {key: value.detach().contiguous().clone() for key, value in named.items()}
            found["seconds"] = torch.tensor(time.process_time() - start)
            path.parent.mkdir(parents=True, exist_ok=True)
            half = path.with_suffix(f".{os.getpid()}")
            save_file(found, half)
            os.replace(half, path)  # whole or not there at all
        self.seconds += found.pop("seconds").item()
        return found

    def one(self, name: str, inputs: object, work: Callable[..., Tensor], *args: Any) -> Tensor:
        (found,) = self(name, inputs, work, *args).values()
        return found


def sha256_of(value: object) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def weights_of(lm: LanguageModel) -> str:
    """SHA-256 over the names, shapes and bytes of all parameters, in the order of their names, as float32."""
    digest = hashlib.sha256()
    for name, value in sorted(lm.model.named_parameters()):
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def code_of() -> str:
    """SHA-256 over the modules of the helpers that the numbers pass through, and over this tool, by name."""
    package = Path(helpers.__file__).parent
    names = (
        "applying checks copies countries edits families foreign hooks layout live loading measures metrics models passes plan "
        "positions products readings recording replacements rows sites staircase sweeps tracing"
    )
    here = Path(__file__).resolve().parent
    tool = [here.with_name("measure.py"), *sorted(here.glob("*.py"))]
    digest = hashlib.sha256()
    for path in [*(package / f"{name}.py" for name in names.split()), *tool]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    import transformers

    return {
        "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__,
        "causal-interventions-course": metadata.version("causal-interventions-course"),
    }
