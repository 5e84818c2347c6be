"""How much memory is left before it is taken, and what is given back after it was used."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

from . import errors


def memory_left() -> float:
    """Bytes that this process may still take: what the machine has left, or its container if that has less."""
    import psutil

    left = float(psutil.virtual_memory().available)
    try:  # a server that gives each student a share does it with Linux control groups
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            # Files that were read and can be dropped again count as used there; they are free for who needs memory.
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            used = float((group / "memory.current").read_text()) - float(stat["inactive_file"])
            left = min(left, float(limit) - used)
    except (OSError, ValueError, KeyError):
        pass
    return left


def need_memory(amount: float, what: str) -> None:
    """Raises NotEnoughMemory unless `amount` bytes are left for `what`."""
    left = memory_left()
    if left < amount:
        raise errors.NotEnoughMemory(
            "{what} needs {amount} GB of memory, and {left} GB are left: close other notebooks and programs, "
            "then try again. The pocket model, load_model(), needs 0.1 GB.",
            what=what,
            amount=f"{amount / 1e9:.1f}",
            left=f"{max(left, 0) / 1e9:.1f}",
        )


def give_back() -> None:
    """Return to the system what this process has freed: reading a tokenizer leaves some 25 MB. Linux's C library alone can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
