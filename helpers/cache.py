"""The cache: models that this machine prepared once, each in a folder that is whole or not there, mapped by all processes.

All steps of a preparation happen beside its goal, which then appears by one renaming: whoever was killed on the way leaves
nothing that is taken for a model.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from . import errors
from .say import say

WAIT = 1800  # seconds that a process waits for another one that is preparing a model
DISK = 0.9e9  # bytes that bringing the real model takes


def cache_folder() -> Path:
    """The folder that CAUSAL_INTERVENTIONS_CACHE names, or else the user's cache directory."""
    chosen = os.environ.get("CAUSAL_INTERVENTIONS_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("causal-interventions", appauthor=False))


def place_in_float64(folder: Path) -> Path:
    """Where a copy in float64 of a small model's folder is, or would be: mapped from there, all processes hold it once."""
    return cache_folder() / f"{folder.name}-{sha256_of(folder / 'model.safetensors')[:8]}-float64"


def sha256_of(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@contextmanager
def one_at_a_time(tell: Callable[[str], object] = lambda text: None) -> Iterator[None]:
    """Of all processes on this machine one brings the model; the others wait, and then find it."""
    from filelock import FileLock, Timeout

    with storable(cache_folder()):
        cache_folder().mkdir(parents=True, exist_ok=True)
        lock = FileLock(cache_folder() / "smollm2.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            tell(say("another process is bringing the real model: waiting for it …"))
            try:
                lock.acquire(timeout=WAIT)
            except Timeout:
                raise errors.CannotStore(
                    "another process has been bringing the real model for {wait} minutes: stop it, delete "
                    "{lock_file!r}, and try again.",
                    wait=WAIT // 60,
                    lock_file=str(lock.lock_file),
                ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def workshop(goal: Path, bytes_needed: float) -> Iterator[Path]:
    """An empty folder beside the goal, on the same disk; gone afterwards, and so is what killed processes left there."""
    for left in goal.parent.glob(".smollm2-*"):  # only the holder of the lock comes here, so nobody works in it
        shutil.rmtree(left, ignore_errors=True)
    free = shutil.disk_usage(goal.parent).free
    if free < bytes_needed:
        raise errors.CannotStore(
            "the real model needs {bytes_needed} GB while it is prepared, and the disk of {parent!r} has "
            "{free} GB left: free some, or let CAUSAL_INTERVENTIONS_CACHE name a folder on another disk.",
            bytes_needed=f"{bytes_needed / 1e9:.1f}",
            parent=str(goal.parent),
            free=f"{free / 1e9:.1f}",
        )
    with storable(goal.parent):
        work = Path(tempfile.mkdtemp(prefix=".smollm2-", dir=goal.parent))
    try:
        with storable(goal.parent):
            yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def publish(made: Path, goal: Path) -> None:
    """Let a finished folder appear at its place at once, readable for everybody who shares the cache."""
    for path in (made, *made.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)
    made.replace(goal)


@contextmanager
def storable(folder: Path) -> Iterator[None]:
    """Say in one sentence why something cannot be written."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise errors.CannotStore(
                "the disk of {folder!r} is full: free {disk} GB, or let CAUSAL_INTERVENTIONS_CACHE name a folder "
                "on another disk. Nothing half-written is left.",
                folder=str(folder),
                disk=f"{DISK / 1e9:.1f}",
            ) from None
        if isinstance(error, PermissionError) or error.errno in (errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise errors.CannotStore(
                "the folder {folder!r} cannot be written to: let CAUSAL_INTERVENTIONS_CACHE name one that can, "
                "or ask whoever runs this machine to call `make real` once.",
                folder=str(folder),
            ) from None
        raise


def copy_in_float64(single: Path, folder: Path, disk: float) -> None:
    """A copy of a model's folder with its weights in float64; `disk` bytes must be free for it. Raises CannotStore."""
    with one_at_a_time(), workshop(folder, disk) as work:
        if not folder.is_dir():
            from safetensors.torch import load_file, save_file

            copy = work / "model"
            shutil.copytree(single, copy, ignore=shutil.ignore_patterns("*.safetensors", "*.gguf", "README.md"))
            weights = load_file(single / "model.safetensors")
            save_file({k: v.double() for k, v in weights.items()}, copy / "model.safetensors", {"format": "pt"})
            config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
            (copy / "config.json").write_text(json.dumps(config | {"dtype": "float64"}, indent=2), encoding="utf-8")
            publish(copy, folder)
