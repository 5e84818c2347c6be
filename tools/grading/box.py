"""Ask the server, watch it, start it again if a submission has ended it. Only strings and numbers come back from there."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from grading.course import ROOT

LIMITS = {
    "wall": 30.0,  # seconds
    "cpu": 15.0,  # seconds of processor time: less than wall, so that a loop is told from waiting
    "memory": 2.0 * 2**30,  # bytes, beyond what the warm process has
    "disk": 32.0 * 2**20,  # bytes
    "processes": 32,
}
STATES = {"right", "almost", "not tried", "no verdict"}
_END: Any = object()
ENDED = {
    "wall": "It did not end within {wall:.0f} seconds. Does it wait for something?",
    "cpu": "It computed for more than {cpu:.0f} seconds. Is there a loop without an end?",
    "exit": "It ended the whole process before the check was done, with code {code}.",
    "done": "It ended the whole process before the check was done.",
    "signal": "The process was ended by signal {signal} before the check was done: too much memory, or a crash.",
    "killed": "The process was ended before the check was done.",
}


class Box:
    """A server and what is asked of it. `hidden`: folders that no answer may read. Use in a `with`."""

    def __init__(self, hidden: Sequence[Path], limits: dict[str, float] | None = None) -> None:
        self._hidden, self._limits = [str(folder) for folder in hidden], {**LIMITS, **(limits or {})}
        self._folder = tempfile.TemporaryDirectory(prefix="grading-")
        self._server: subprocess.Popen[bytes] | None = None
        self.measures: dict[str, list[str]] = {}
        self._replies: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def __enter__(self) -> Box:
        os.chmod(self._folder.name, 0o711)
        self._start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()
        self._folder.cleanup()

    def work(
        self, requests: Iterator[tuple[dict[str, Any], Any] | None], at_once: int
    ) -> Iterator[tuple[dict[str, Any], Any, dict[str, Any]]]:
        """Yield (request, what it is about, reply) as they come.

        `requests` gives (request, what it is about); it may be fed from what has been yielded, and gives None while it has none.
        """
        running: dict[int, tuple[dict[str, Any], Any]] = {}
        again: list[tuple[dict[str, Any], Any]] = []
        given, ended = 0, False
        while True:
            while len(running) < (1 if again else at_once):  # after a fall one at a time: so the culprit is found
                pair = again.pop() if again else None if ended else next(requests, _END)
                ended |= pair is _END
                if pair is None or pair is _END:
                    break
                given += 1
                running[given] = pair
                self._ask(given, pair[0])
            if not running:
                if ended:
                    return
                continue
            line = self._replies.get()
            if line is None:
                lost, running = list(running.values()), {}
                self._stop()
                self._start()
                if len(lost) == 1:
                    yield (
                        *lost[0],
                        _no_verdict("The grader's own process was ended.", ["ended the grader's own process"]),
                    )
                else:
                    again += lost
                continue
            reply = json.loads(line)
            if "fault" in reply:
                raise SystemExit(f"the course's own checks do not run here, so nothing was graded: {reply['fault']}")
            yield *running.pop(reply["id"]), self._read(reply)

    def _read(self, reply: dict[str, Any]) -> dict[str, Any]:
        flags = [str(flag) for flag in reply["flags"]]
        if "result" not in reply:
            ended = reply["ended"]
            sentence = ENDED.get(ended["why"], ENDED["killed"]).format(
                **{**self._limits, "code": 0, "signal": 0, **ended}
            )
            return _no_verdict(sentence, flags)
        result = reply["result"]
        if not isinstance(result, dict) or result.get("state") not in STATES:
            return _no_verdict("What came back is no verdict.", [*flags, "wrote to the grader's own channel"])
        return {**result, "flags": [*flags, *(str(flag) for flag in result.get("flags", []))]}

    def _ask(self, number: int, request: dict[str, Any]) -> None:
        assert self._server is not None and self._server.stdin is not None
        with contextlib.suppress(OSError):  # a server that has ended is told by the reader's None
            self._server.stdin.write(json.dumps({"id": number, **request}).encode() + b"\n")
            self._server.stdin.flush()

    def _start(self) -> None:
        errors = Path(self._folder.name) / "errors.txt"
        # Nothing of the teacher's own surroundings reaches what students wrote.
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "SYSTEMROOT") if name in os.environ}
        import helpers

        paths = [str(Path(helpers.__file__).resolve().parents[1]), str(ROOT / "tools")]
        scratch = Path(self._folder.name) / "scratch"
        scratch.mkdir(mode=0o711, exist_ok=True)
        with open(errors, "wb") as file:
            self._server = subprocess.Popen(
                [sys.executable, str(ROOT / "tools" / "grading" / "server.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                start_new_session=True,
                env={
                    **kept,
                    "PYTHONPATH": os.pathsep.join(paths),
                    "PYTHONDONTWRITEBYTECODE": "1",
                    "OMP_NUM_THREADS": "1",
                    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # larger pages: less to copy for each fork
                    "HF_HUB_OFFLINE": "1",
                    "HOME": str(scratch),
                    "TMPDIR": str(scratch),
                    "MPLBACKEND": "agg",
                    "MPLCONFIGDIR": str(scratch),
                },
            )
        assert self._server.stdin is not None and self._server.stdout is not None
        order = {"scratch": str(scratch), "limits": self._limits, "hidden": self._hidden}
        self._server.stdin.write(json.dumps(order).encode() + b"\n")
        self._server.stdin.flush()
        first = self._server.stdout.readline()
        if not first:
            raise SystemExit(f"the grader's process did not start:\n{errors.read_text(errors='replace')[-2000:]}")
        self.measures = json.loads(first)
        self._replies = queue.SimpleQueue()
        threading.Thread(target=_listen, args=(self._server.stdout, self._replies), daemon=True).start()

    def _stop(self) -> None:
        if self._server is not None:
            assert self._server.stdin is not None
            with contextlib.suppress(OSError):
                self._server.stdin.close()
            try:
                self._server.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()


def _listen(pipe: Any, replies: queue.SimpleQueue[bytes | None]) -> None:
    for line in pipe:
        replies.put(line)
    replies.put(None)


def _no_verdict(sentence: str, flags: list[str]) -> dict[str, Any]:
    return {"state": "no verdict", "sentence": sentence, "flags": flags}
