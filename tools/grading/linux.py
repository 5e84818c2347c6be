"""What Linux offers to shut a process in, for the server and the processes that it throws away. Elsewhere each call says no."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

NEW_MOUNTS, NEW_IPC, NEW_USER, NEW_PID, NEW_NET = 0x00020000, 0x08000000, 0x10000000, 0x20000000, 0x40000000
_RECURSIVE, _READ_ONLY, _PRIVATE, _REC, _BIND = 0x8000, 1, 1 << 18, 1 << 14, 1 << 12
_NO_SUID, _NO_DEV = 2, 4
_MOUNT_SETATTR = 442  # the same number on every processor
_DEATH_SIGNAL, _SUBREAPER, _NO_NEW_PRIVILEGES = 1, 36, 38


def _libc() -> ctypes.CDLL:
    if sys.platform != "linux":
        raise OSError("not on this system")
    return ctypes.CDLL(None, use_errno=True)


def _tried(result: int) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def unshare(flags: int) -> None:
    """Leave what is shared with other processes. Raises OSError where the system forbids it."""
    _tried(_libc().unshare(flags))


def become_root_of_own_space(flags: int) -> None:
    """An ordinary user gets namespaces by owning them. The user stays who they are."""
    user, group = os.getuid(), os.getgid()
    unshare(NEW_USER | flags)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")


def fork_into_own_processes(home: int) -> int:
    """Fork a child that sees no process but its own; when it ends, so do all that it has started. home: /proc/self/ns/pid, opened."""
    unshare(NEW_PID)
    child = os.fork()
    if child:
        _tried(_libc().setns(home, NEW_PID))
    return child


def keep_mounts_to_ourselves() -> None:
    """What is mounted from now on is seen by this process and its children alone."""
    _tried(_libc().mount(b"none", b"/", None, _REC | _PRIVATE, None))


def mount(kind: str, target: str | Path, data: str = "", read_only: bool = False) -> None:
    """A file system of its own at this folder."""
    flags = _NO_SUID | _NO_DEV | (_READ_ONLY if read_only else 0)
    _tried(_libc().mount(kind.encode(), os.fsencode(target), kind.encode(), flags, data.encode()))


def show_only(hidden: Path, needed: list[Path]) -> None:
    """In place of the folder `hidden` stands one that everybody may enter, with nothing in it but the folders `needed` below it."""
    handles = [os.open(path, os.O_PATH | os.O_DIRECTORY) for path in needed]
    mount("tmpfs", hidden, "size=1m,mode=755")
    for path, handle in zip(needed, handles, strict=True):
        path.mkdir(parents=True, exist_ok=True)
        _tried(_libc().mount(f"/proc/self/fd/{handle}".encode(), os.fsencode(path), None, _BIND | _REC, None))
        os.close(handle)


def everything_read_only() -> None:
    """No file anywhere can be written from now on; what is mounted later can."""
    libc = _libc()
    attributes = (ctypes.c_uint64 * 4)(_READ_ONLY, 0, 0, 0)
    _tried(libc.syscall(_MOUNT_SETATTR, -100, b"/", _RECURSIVE, attributes, ctypes.sizeof(attributes)))


def adopt_orphans() -> None:
    """Processes whose parents have ended become children of this one, so that they can be found."""
    _tried(_libc().prctl(_SUBREAPER, 1, 0, 0, 0))


def die_with_parent() -> None:
    _tried(_libc().prctl(_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0))


def give_up_rights() -> None:
    """No capability, and none to be had from a file."""
    libc = _libc()
    _tried(libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    head, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    _tried(libc.capset(head, none))
