"""The kernel in which nbgrader runs what students handed in, shut in like the grader's own processes: see deploy/nbgrader_config.py.

    python tools/grading/kernel.py --hide COURSE_DIRECTORY -f CONNECTION_FILE

Nothing but a scratch folder can be written, the hidden folder with the gradebook cannot be read, and all that the kernel
starts ends with it. The network stays: nbgrader talks to its kernels by it. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import sys
import tempfile
from pathlib import Path

MEMORY, SECONDS, PROCESSES = 12 * 2**30, 600, 128  # address space; processor time of the whole notebook


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--hide", type=Path, required=True)
    parser.add_argument("-f", dest="connection", type=Path, required=True)
    args, rest = parser.parse_known_args()
    from helpers.smollm2 import cache_folder

    cache = cache_folder()  # the real model, where it has been brought
    connection = args.connection.read_text()
    # One place for all kernels, which each see files of their own there: nbgrader kills them, so nobody could clear up.
    scratch = Path(tempfile.gettempdir()) / f"kernels-of-{os.geteuid()}"
    scratch.mkdir(mode=0o700, exist_ok=True)
    if scratch.is_symlink() or scratch.stat().st_uid != os.geteuid():
        sys.exit(f"{scratch} belongs to somebody else: remove it.")
    root = os.geteuid() == 0
    user = server.FIRST_USER + server.USERS if root else os.getuid()
    if not server.enclose([args.hide.resolve()], scratch, network=True, also=[cache]):
        sys.exit("the kernel cannot be shut in here: on this system nbgrader's ordinary kernel is all there is.")
    child = os.fork()
    if child:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # meant for the kernel, which gets it too
        _, code = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(code) & 255)
    with contextlib.suppress(OSError):
        linux.mount("proc", "/proc")
    linux.mount("tmpfs", scratch, f"size={2**28},nr_inodes=4000,mode=700,uid={user}")
    os.chdir(scratch)
    for kind, most in (("CORE", 0), ("AS", MEMORY), ("CPU", SECONDS), ("NPROC", PROCESSES)):
        resource.setrlimit(getattr(resource, f"RLIMIT_{kind}"), (most, most))
    if root:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    linux.give_up_rights()
    linux.die_with_parent()
    file = scratch / "connection.json"
    file.write_text(json.dumps(json.loads(connection)))
    home = {
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "USER": "nobody",
        "IPYTHONDIR": str(scratch),
        "MPLCONFIGDIR": str(scratch),
    }
    runtime = {
        "JUPYTER_RUNTIME_DIR": str(scratch),
        "JUPYTER_DATA_DIR": str(scratch),
        "CAUSAL_INTERVENTIONS_CACHE": str(cache),
    }
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "PYTHONPATH") if name in os.environ}
    os.execve(
        sys.executable,
        [sys.executable, "-m", "ipykernel_launcher", "-f", str(file), *rest],
        {**kept, **home, **runtime},
    )


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from grading import linux, server

    main()
