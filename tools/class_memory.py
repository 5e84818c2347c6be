"""What a class costs in memory: python tools/class_memory.py [--students 30]

Starts that many processes, each with the pocket model alone; then with the real model beside it, in float32 and in float64,
after a trace; and after a sweep over its heads. Prints what all of them take together: proportional set sizes, so that pages which
processes share count once. Linux only (/proc/PID/smaps_rollup). Every process ends with the tool.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from helpers.memory import memory_left
from helpers.smollm2 import bring, bring_double

ROOT = Path(__file__).resolve().parent.parent
POCKET = "from helpers import *; import torch; pocket = load_model(); trace(pocket, 'Berlin is the capital of')"
REAL = (
    "real = load_model('smollm2', threads=1{}); trace(real, 'Paris is the capital of France. Berlin is the capital of')"
)
SWEEP = "sweep_heads(real, 'Paris is the capital of France. Berlin is the capital of', ' Germany')"
DOUBLE = ", dtype=torch.float64"
BESIDE = REAL.replace("real", "double", 1).replace("(real", "(double").format(DOUBLE)
KINDS: dict[
    str, tuple[list[str], int]
] = {  # what each process runs, and how many times the float32 file's bytes they share
    "the pocket model alone": ([POCKET], 0),
    "and the real model, float32": ([POCKET, REAL.format("")], 1),
    "and a sweep of its 270 heads": ([POCKET, REAL.format(""), SWEEP], 1),
    "and the real model, float64": ([POCKET, REAL.format(DOUBLE)], 2),
    "and the real model in both": ([POCKET, REAL.format(""), BESIDE], 3),
}


def megabytes(pid: int) -> tuple[float, float]:
    """(proportional, private) memory of a process."""
    fields = dict(
        line.split(":") for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:] if ":" in line
    )
    kilobytes = {name: int(value.split()[0]) for name, value in fields.items()}
    return kilobytes["Pss"] / 1024, (kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]) / 1024


def measure(lines: list[str], students: int) -> tuple[float, float]:
    """(all together, median private) megabytes of `students` processes that have run these lines."""
    code = "\n".join([*lines, "print('ready', flush=True)", "input()"])
    running: list[subprocess.Popen[str]] = []
    try:
        for _ in range(students):
            one = subprocess.Popen(
                [sys.executable, "-c", code], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            running.append(one)
            if len(running) > 1:  # two at a time: one starts while the one before it gets ready
                _wait(running[-2])
        _wait(running[-1])
        found = [megabytes(one.pid) for one in running]
    finally:
        for one in running:
            one.kill()
            one.communicate()
    return sum(pss for pss, _ in found), sorted(private for _, private in found)[students // 2]


def _wait(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    if "ready" not in process.stdout.readline():
        raise SystemExit("a process ended before it was ready: its error stands above")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--students", type=int, default=30)
    students = parser.parse_args().students
    if not Path("/proc/self/smaps_rollup").exists():
        print("this system does not tell the memory that processes share: run it on Linux", file=sys.stderr)
        return 1
    copy = (bring() / "model.safetensors").stat().st_size / 2**20
    bring_double()
    if memory_left() < students * 0.5e9 + 2e9:
        print(
            f"{students} processes need about {students * 0.5 + 2:.0f} GB: choose fewer with --students",
            file=sys.stderr,
        )
        return 1
    alone = 0.0
    print(
        f"| {students} processes with … | all together, MB | private each, MB | shared weights, once | beyond both, MB each |"
    )
    print("| --- | --- | --- | --- | --- |")
    for name, (lines, copies) in KINDS.items():
        together, private = measure(lines, students)
        alone = alone or together
        more = (together - alone - copies * copy) / students
        print(f"| {name} | {together:.0f} | {private:.0f} | {copies * copy:.0f} | {more:.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
