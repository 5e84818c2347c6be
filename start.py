"""Open the course where there is no make, on Windows, macOS or Linux:

    python start.py                # makes .venv, installs the tested versions, brings the real model, opens lesson 1

A second start takes seconds. It does what `make lab` does. Python 3.11, 3.12 or 3.13; nothing else is needed before.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
ENVIRONMENT = ROOT / ".venv"
PINS = ("pyproject.toml", "constraints.txt", "tools/lab-overrides.json", "tools/ipython_config.py")


def python() -> str:
    """The environment's own interpreter."""
    inside = "Scripts/python.exe" if os.name == "nt" else "bin/python"
    return str(ENVIRONMENT / inside)


def run(*command: str, folder: Path = ROOT) -> int:
    return subprocess.run(command, cwd=folder).returncode


def install() -> None:
    """Make the environment if it is not there, and renew it when the pins have changed."""
    stamp = ENVIRONMENT / ".start"
    pins = hashlib.sha256(b"".join((ROOT / name).read_bytes() for name in PINS)).hexdigest()
    if stamp.exists() and stamp.read_text() == pins and Path(python()).exists():
        return
    if not Path(python()).exists():
        venv.create(ENVIRONMENT, with_pip=True)
    print("Installing the tested versions into .venv: minutes the first time, seconds later.", flush=True)
    if run(python(), "-m", "pip", "install", "--quiet", "-c", "constraints.txt", "-e", ".[lab]"):
        sys.exit(
            "The packages could not be installed: read pip's message above, see to the network or the disk, and start again."
        )
    for source, goal in (
        ("lab-overrides.json", "share/jupyter/lab/settings/overrides.json"),
        ("ipython_config.py", "etc/ipython/ipython_config.py"),
    ):
        (ENVIRONMENT / goal).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "tools" / source, ENVIRONMENT / goal)
    stamp.write_text(pins)


def main() -> int:
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        found = ".".join(map(str, sys.version_info[:2]))
        sys.exit(f"The course needs Python 3.11, 3.12 or 3.13, and this is {found}: start it with one of them.")
    install()
    if any(ROOT.glob("helpers/locale/*/LC_MESSAGES/helpers.po")):
        run(python(), "tools/messages.py", "--compile")
    if run(python(), "-m", "helpers.smollm2"):
        print("Going on without the real model: the lessons' cells that use it will say so.", flush=True)
    as_root = ["--allow-root"] if hasattr(os, "getuid") and os.getuid() == 0 else []
    lab = [python(), "-m", "jupyterlab", *as_root, *sys.argv[1:], "notebooks/01_downstream_scaling.ipynb"]
    return run(*lab)


if __name__ == "__main__":
    sys.exit(main())
