"""How many students a machine holds: python tools/classroom_load.py [--students 1 10] [--lesson 1] [--movers 10] [--moves 10]

For each number of students it starts that many kernels, runs a whole lesson in all of them at once, and then lets `--movers` of
them move a slider of the lesson's panel at once, each step as soon as the last picture is there: first on the pocket model, then
on the real one. Prints one row of a table for each number. Linux only (proportional set sizes: pages that kernels share count once).

The kernels run on this machine without a server or a browser: add 140 MB for each student's server under a hub. It stops by
itself: after --limit seconds, or before it starts what the memory cannot hold. Every kernel ends with the tool.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from queue import Empty
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
from jupyter_client.manager import KernelManager

from helpers.classroom import prepare
from helpers.memory import memory_left

ROOT = Path(__file__).resolve().parent.parent
KERNEL, SHARED = 0.55e9, 2.5e9  # bytes: of a kernel, and of what all of them share, before anything is started
FIND_PANEL = """
import json as _json
_panel = [value for value in Out.values() if type(value).__name__ == "Panel"][-1]
_json.dumps({
    name: {"id": control.model_id, "kind": type(control).__name__, "value": str(control.value),
           "options": [str(option) for option in getattr(control, "options", ())],
           "min": getattr(control, "min", 0), "max": getattr(control, "max", 0)}
    for name, control in _panel.controls.items()
})
"""


class Student:
    """One kernel, and what a browser would send to it."""

    def __init__(self, cells: list[str], until: float, connection: Path) -> None:
        self.cells, self.until = cells, until
        self.manager = KernelManager(kernel_name="python3", transport="ipc", connection_file=str(connection))
        self.manager.start_kernel(cwd=ROOT / "notebooks", env=os.environ | {"OMP_NUM_THREADS": "1"})
        self.client = self.manager.client()
        self.client.start_channels()

    def end(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)
        self.manager.cleanup_resources()

    def wait(self, message: str) -> list[dict[str, Any]]:
        """What the kernel says about one message, until it is idle again."""
        said: list[dict[str, Any]] = []
        while time.monotonic() < self.until:
            try:
                one = self.client.get_iopub_msg(timeout=1)
            except Empty:
                continue
            if one["parent_header"].get("msg_id") != message:
                continue
            if one["msg_type"] == "status" and one["content"]["execution_state"] == "idle":
                return said
            said.append(one)
        raise TimeoutError("the time is over: give more with --limit")

    def run(self, code: str) -> list[dict[str, Any]]:
        said = self.wait(self.client.execute(code))
        for one in said:
            if one["msg_type"] == "error":
                raise RuntimeError(f"{one['content']['ename']}: {one['content']['evalue']}")
        return said

    def run_all(self) -> float:
        """Seconds from the start of the kernel's work to the last cell."""
        began = time.monotonic()
        self.client.wait_for_ready(timeout=max(1, self.until - began))
        for cell in self.cells:
            self.run(cell)
        return time.monotonic() - began

    def controls(self) -> dict[str, dict[str, Any]]:
        said = self.run(FIND_PANEL)
        text = next(one["content"]["data"]["text/plain"] for one in said if one["msg_type"] == "execute_result")
        return json.loads(eval(text))  # the repr of a string of our own

    def set(self, control: str, redraws: bool = True, **state: Any) -> float:
        """Seconds until the panel has drawn what a control's new state asks for; a move that changed nothing is an error."""
        data = {"method": "update", "state": state, "buffer_paths": []}
        message = self.client.session.msg("comm_msg", {"comm_id": control, "data": data})
        began = time.monotonic()
        self.client.shell_channel.send(message)
        said = self.wait(message["header"]["msg_id"])
        if redraws and not any(one["msg_type"] == "comm_msg" and "<img" in str(one["content"]) for one in said):
            raise RuntimeError("a move of a slider brought no new picture")
        return time.monotonic() - began

    def move(self, moves: int, model: str, together: threading.Barrier) -> list[float]:
        """Seconds of each move of the panel's first slider, on the model whose name holds `model`."""
        controls = self.controls()
        options = controls["model"]["options"]
        index = next(i for i, option in enumerate(options) if model in option.lower())
        if controls["model"]["value"] != options[index]:
            self.set(controls["model"]["id"], redraws=False, index=index)
            controls = self.controls()
        slider = next(control for control in controls.values() if "Slider" in control["kind"])
        low, high, value = int(slider["min"]), int(slider["max"]), int(slider["value"])
        together.wait(timeout=max(1, self.until - time.monotonic()))
        times = []
        for _ in range(moves):
            value = random.choice([place for place in range(low, high + 1) if place != value])
            times.append(self.set(slider["id"], value=value))
        return times


def megabytes(pid: int) -> tuple[float, float]:
    """(proportional, private) memory of a process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    found = {name: int(value.split()[0]) / 1024 for name, value in (line.split(":") for line in lines)}
    return found["Pss"], found["Private_Dirty"]  # clean pages are those of a file, which the next process shares


def measure(cells: list[str], students: int, movers: int, moves: int, until: float) -> str:
    """One row of the table."""
    class_: list[Student] = []
    with TemporaryDirectory() as folder, ThreadPoolExecutor(students) as pool:
        try:
            for number in range(students):
                class_.append(Student(cells, until, Path(folder, f"{number}.json")))
            ran = list(pool.map(Student.run_all, class_))
            memory = [megabytes(one.manager.provisioner.pid) for one in class_]  # type: ignore[union-attr]
            busy, columns = class_[:movers], []
            for model in ("pocket", "smollm2"):
                together = threading.Barrier(len(busy))
                each = pool.map(lambda one, model=model, start=together: one.move(moves, model, start), busy)
                times = sorted(chain.from_iterable(each))
                columns.append(f"{statistics.median(times):.2f} / {times[int(0.95 * (len(times) - 1))]:.2f}")
        finally:
            for one in class_:
                one.end()
    private = statistics.median(private for _, private in memory)
    total = sum(pss for pss, _ in memory) / 1024
    return f"| {students} | {statistics.median(ran):.0f} | {private:.0f} | {total:.1f} | {columns[0]} | {columns[1]} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--students", type=int, nargs="+", default=[1, 10], help="numbers of kernels, one row each")
    parser.add_argument("--lesson", type=int, choices=range(1, 6), default=1)
    parser.add_argument("--movers", type=int, default=10, help="how many of them move a slider at once")
    parser.add_argument("--moves", type=int, default=10, help="steps of the slider, for each model")
    parser.add_argument("--limit", type=float, default=900, help="seconds after which it stops, whatever is measured")
    asked = parser.parse_args()
    if not Path("/proc/self/smaps_rollup").exists():
        print("this system does not tell the memory that processes share: run it on Linux", file=sys.stderr)
        return 1
    if min(*asked.students, asked.movers, asked.moves, asked.limit, 1) < 1:
        print("students, movers, moves and limit are numbers from 1 on", file=sys.stderr)
        return 1
    notebook = nbformat.read(next((ROOT / "notebooks").glob(f"0{asked.lesson}_*.ipynb")), as_version=4)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    prepare()  # as `make hub` does: kernels map what one machine makes once
    until = time.monotonic() + asked.limit
    print(f"Lesson {asked.lesson}, {os.cpu_count()} processors, load before {os.getloadavg()[0]:.1f}")
    heads = ["students", "run all, s", "private, MB each", "together, GB"]
    heads += [f"{asked.movers} at once on {model}, s: median / 95 %" for model in ("the pocket model", "SmolLM2")]
    print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}", flush=True)
    for students in asked.students:
        if memory_left() < students * KERNEL + SHARED:
            need = (students * KERNEL + SHARED) / 1e9
            print(
                f"{students} students need about {need:.0f} GB, and {memory_left() / 1e9:.0f} are left", file=sys.stderr
            )
            return 1
        try:
            print(measure(cells, students, asked.movers, asked.moves, until), flush=True)
        except (RuntimeError, TimeoutError) as error:
            print(f"{students} students: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
