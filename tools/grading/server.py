"""The warm process behind box.py: it imports PyTorch once, and forks a process for each exercise, which is then thrown away.

    server   warm, reads requests, has no grades in it, runs nothing of a learner's; watches the clock
      child  the learner's code and its check, as another user where that is possible, with limits; says one line, and ends

A request is a line of JSON, and so is the reply. The child's line carries a word that the learner's code was not told; a child
that says more than one line, or ends without one, gets no verdict.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import secrets
import selectors
import shutil
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import psutil

from grading import course, linux
from grading.plan import plan

FIRST_USER, USERS = 65520, 8  # numbers that no system gives to a person or a service
LONGEST = {"judge": 16_000, "plan": 8 * 2**20, "probe": 4_000}


class Server:
    """Reads requests from `asked`, writes replies to `told`; `scratch` is a folder where a child may write."""

    def __init__(self, asked: int, told: int, order: dict[str, Any], shut_in: bool) -> None:
        self._asked, self._told = asked, told
        self.scratch, self.limits, self.shut_in = Path(order["scratch"]), order["limits"], shut_in
        self.seal: Any = None
        self.lessons: dict[int, tuple[dict[str, Any], dict[str, tuple[int, str]]]] = {}
        self._home = os.open("/proc/self/ns/pid", os.O_RDONLY) if shut_in else -1
        self._jobs: dict[int, _Job] = {}
        self._ready = selectors.DefaultSelector()

    def serve(self) -> None:
        self._ready.register(self._asked, selectors.EVENT_READ, None)
        waiting = b""
        while True:
            for key, _ in self._ready.select(timeout=self._pause()):
                if key.data is not None:
                    key.data.read()
                    continue
                more = os.read(self._asked, 2**20)
                if not more:  # the grader has ended
                    return self._kill(self._jobs)
                *lines, waiting = (waiting + more).split(b"\n")
                for line in lines:
                    self._start(json.loads(line))
            now = time.monotonic()
            self._kill([child for child, job in self._jobs.items() if job.closed or now > job.latest])
            for job in list(self._jobs.values()):
                if status := job.wait(self.limits):
                    self._finish(job, status)
            if not self.shut_in:
                self._kill_orphans()

    def _pause(self) -> float:
        if not self._jobs:
            return 60.0
        return (
            0.01
            if not hasattr(os, "pidfd_open")
            else max(0.05, min(job.latest for job in self._jobs.values()) - time.monotonic())
        )

    def _start(self, request: dict[str, Any]) -> None:
        if request["kind"] == "judge":
            try:
                self._warm(int(request["number"].split(".")[0]))
            except Exception as error:
                return self._say({"fault": f"{type(error).__name__}: {error}"})
        slot = min(set(range(len(self._jobs) + 1)) - {job.slot for job in self._jobs.values()})
        word = secrets.token_hex(16)
        said, says = os.pipe()
        if not self.shut_in:
            (self.scratch / str(slot)).mkdir(mode=0o700, exist_ok=True)
        child = linux.fork_into_own_processes(self._home) if self.shut_in else os.fork()
        if child == 0:
            _run(self, request, slot, word, says)
        os.close(says)
        self._jobs[child] = _Job(request, child, slot, word, said, time.monotonic() + self.limits["wall"], self._ready)

    def _finish(self, job: _Job, status: dict[str, Any]) -> None:
        del self._jobs[job.child]
        if not self.shut_in:
            shutil.rmtree(self.scratch / str(job.slot), ignore_errors=True)
        self._say({"id": job.request["id"], **job.outcome(status)})

    def _kill(self, children: Iterable[int]) -> None:
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)

    def _kill_orphans(self) -> None:
        """Where a child's own children cannot be shut in with it, those that it left behind have come to this process."""
        for one in psutil.Process().children():
            if one.pid not in self._jobs:
                self._kill([one.pid])
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(one.pid, 0)

    def _say(self, reply: dict[str, Any]) -> None:
        data = json.dumps(reply).encode() + b"\n"
        while data:
            data = data[os.write(self._told, data) :]

    def _warm(self, lesson: int) -> None:
        """Import what the lesson's checks need, run each once, and remember which wrong answer each check refuses fastest."""
        if lesson in self.lessons:
            return
        import torch

        torch.set_num_threads(1)
        from grading.seal import Seal
        from helpers.course.exercise import find, judge

        scope: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(course.setup(lesson), "<setup>", "exec"), scope)
        proofs = {}
        for one in course.asked(lesson):
            exercise = find(one.number)
            judge(exercise, exercise.solution)
            timed = []
            for at, wrong in enumerate(exercise.wrong[:3]):
                start = time.perf_counter()
                said = judge(exercise, wrong).sentence
                timed.append((time.perf_counter() - start, at, said))
            proofs[one.number] = min(timed)[1:]
        self.lessons[lesson] = scope, proofs
        self.seal = Seal()
        gc.freeze()  # or each child would copy what its collector touches


class _Job:
    """One request that a child works on."""

    def __init__(
        self,
        request: dict[str, Any],
        child: int,
        slot: int,
        word: str,
        said: int,
        latest: float,
        ready: selectors.BaseSelector,
    ) -> None:
        self.request, self.child, self.slot, self.latest = request, child, slot, latest
        self.closed = False  # it said far too much
        self._word, self._said, self._ready, self._text, self._late = word, said, ready, b"", False
        self._handle = os.pidfd_open(child) if hasattr(os, "pidfd_open") else -1
        os.set_blocking(said, False)
        ready.register(said, selectors.EVENT_READ, self)
        self._watched = {said}
        if self._handle >= 0:
            ready.register(self._handle, selectors.EVENT_READ, self)
            self._watched.add(self._handle)

    def read(self) -> None:
        """Take what the child has said so far."""
        while self._said in self._watched:
            try:
                more = os.read(self._said, 2**16)
            except BlockingIOError:
                return
            self._text += more
            self.closed = len(self._text) > LONGEST[self.request["kind"]]
            if not more or self.closed:
                self._ready.unregister(self._said)
                self._watched.discard(self._said)

    def wait(self, limits: dict[str, float]) -> dict[str, Any] | None:
        """How the child ended, once it has: nothing of it is left then but what it said."""
        late = time.monotonic() > self.latest
        ended, code, used = os.wait4(self.child, os.WNOHANG)
        if not ended:
            return None
        self.read()
        for pipe in self._watched:
            self._ready.unregister(pipe)
        os.close(self._said)
        if self._handle >= 0:
            os.close(self._handle)
        if os.WIFSIGNALED(code):
            spent, number = used.ru_utime + used.ru_stime, os.WTERMSIG(code)
            if late and spent < limits["cpu"] - 0.2:
                return {"why": "wall", "signal": number}
            # The limit counts ticks of the clock, this sum is exact: on a busy machine it is well below when the limit strikes.
            return {
                "why": "cpu" if number == signal.SIGKILL and spent > limits["cpu"] / 2 else "signal",
                "signal": number,
            }
        return {"why": "done" if os.WEXITSTATUS(code) == 0 else "exit", "code": os.WEXITSTATUS(code)}

    def outcome(self, status: dict[str, Any]) -> dict[str, Any]:
        """{"result": …, "flags": […]} or {"ended": why, "flags": […]}."""
        lines = self._text.split(b"\n")
        if len(lines) == 2 and not lines[1] and status["why"] == "done":
            try:
                reply = json.loads(lines[0])
                if reply.pop("word") == self._word:
                    return {"result": reply, "flags": []}
            except (ValueError, AttributeError, KeyError, RecursionError):
                pass
        return {"ended": status, "flags": ["wrote to the grader's own channel"] if self._text.strip() else []}


# ---- what is shut, once, for all that follow


def enclose(hidden: list[Path], scratch: Path, network: bool = False, also: Sequence[Path] = ()) -> bool:
    """Shut the children of this process in; False where the system forbids it.

    hidden: folders that they cannot read; also: folders that they can, beside Python and the course.
    """
    flags = linux.NEW_MOUNTS | linux.NEW_IPC | linux.NEW_PID | (0 if network else linux.NEW_NET)
    try:
        if os.geteuid() == 0:
            linux.unshare(flags)
        else:
            linux.become_root_of_own_space(flags)
        linux.keep_mounts_to_ourselves()
        if os.geteuid() == 0:
            _let_others_read([course.ROOT, Path(sys.prefix), Path(sys.base_prefix), *map(Path, sys.path), *also])
        linux.everything_read_only()
        linux.mount("tmpfs", scratch, f"size={2**26},mode=711")
        for folder in hidden:
            linux.mount("tmpfs", folder, "size=4k,mode=755", read_only=True)
    except OSError:
        return False
    return True


def measures(shut_in: bool) -> dict[str, list[str]]:
    """What protects the grader from what it grades, in words: {"shut": [...], "open": [...]}."""
    shut = ["processor time, time, memory, processes, files and output of each exercise are limited"]
    if shut_in:
        shut.append(
            "no file outside a scratch folder can be written, the submissions and the grades cannot be read, there is no network"
        )
        shut.append("whatever an exercise has started ends with it")
    if os.geteuid() == 0:
        shut.append("each exercise runs as a user without rights")
    return {"shut": shut, "open": [] if shut_in else ["files and network cannot be shut off"]}


def _let_others_read(folders: Sequence[Path]) -> None:
    """Where Python or the course lies in a folder that only root may enter, /root perhaps, others get to see these alone."""
    needed = {path.resolve() for path in folders if path.is_dir()}
    needed = {path for path in needed if not any(path != other and path.is_relative_to(other) for other in needed)}
    closed: dict[Path, list[Path]] = {}
    for path in sorted(needed):
        for folder in (*reversed(path.parents), path):
            if not folder.stat().st_mode & 0o001:
                closed.setdefault(folder, []).append(path)
                break
    for folder, below in closed.items():
        if folder not in below:
            linux.show_only(folder, below)


# ---- the child


def _run(server: Server, request: dict[str, Any], slot: int, word: str, says: int) -> NoReturn:
    """Runs in the process that is thrown away."""
    me = os.getpid()
    try:
        _shut(server, slot, says)
        work = {"plan": _plan, "judge": _judge, "probe": _probe}[request["kind"]]
        reply = work(server, request)
        if server.shut_in and len([name for name in os.listdir("/proc") if name.isdigit()]) > 1:
            reply["flags"] = [*reply["flags"], "left processes running"]
    except BaseException as error:  # SystemExit and KeyboardInterrupt too: a learner's code can raise them
        if server.seal:
            server.seal.mend()
        reply = {"state": "no verdict", "sentence": f"It ended with {type(error).__name__}.", "flags": []}
    try:
        if os.getpid() == me:  # not a copy that the learner's code has made
            data = json.dumps({"word": word, **reply}).encode() + b"\n"
            while data:
                data = data[os.write(says, data) :]
    finally:
        os._exit(0)


def _shut(server: Server, slot: int, says: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.closerange(3, says)
    os.closerange(says + 1, 1024)
    root, user, limits = os.geteuid() == 0, FIRST_USER + slot % USERS, server.limits
    scratch = server.scratch
    if server.shut_in:
        linux.unshare(linux.NEW_MOUNTS)
        linux.mount(
            "tmpfs", scratch, f"size={int(limits['disk'])},nr_inodes=1000,mode=700,uid={user if root else os.getuid()}"
        )
        with contextlib.suppress(OSError):
            linux.mount("proc", "/proc", read_only=True)
    else:
        scratch = scratch / str(slot)
        if root:
            os.chown(scratch, user, user)
    os.chdir(scratch)
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + int(limits["memory"])
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    cpu, disk = int(limits["cpu"]), int(limits["disk"])
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))
    for kind, most in (("CORE", 0), ("FSIZE", disk), ("NOFILE", 256), ("NPROC", int(limits["processes"]))):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(getattr(resource, f"RLIMIT_{kind}"), (most, most))
    with contextlib.suppress(OSError):
        os.setsid()
    if root:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    for call in (linux.give_up_rights, linux.die_with_parent):
        with contextlib.suppress(OSError):
            call()
    os.environ.update({"HOME": str(scratch), "TMPDIR": str(scratch), "USER": "nobody", "LOGNAME": "nobody"})


def _probe(server: Server, request: dict[str, Any]) -> dict[str, Any]:
    """Can a child read the packages, write into its folder, and nothing else?"""
    import torch

    said: dict[str, Any] = {"state": "right", "flags": [], "user": os.getuid(), "unreadable": "", "writes": []}
    for file in (course.ROOT / "helpers" / "__init__.py", Path(torch.__file__), Path(json.__file__)):
        if not os.access(file, os.R_OK):
            said["unreadable"] = str(file)
    Path("probe").write_text("x")
    for folder in (*request["folders"], str(course.ROOT)):
        with contextlib.suppress(OSError):
            handle = os.open(Path(folder) / ".probe", os.O_CREAT | os.O_WRONLY)
            os.close(handle)
            os.unlink(Path(folder) / ".probe")
            said["writes"].append(folder)
    return said


def _plan(server: Server, request: dict[str, Any]) -> dict[str, Any]:
    plans = []
    for cells, lesson_by_name in request["notebooks"]:
        try:
            plans.append(plan([tuple(cell) for cell in cells], lesson_by_name))
        except (RecursionError, MemoryError, ValueError) as error:
            plans.append(
                {"lessons": [], "answers": {}, "problem": f"The code in it cannot be read ({type(error).__name__})."}
            )
    return {"state": "right", "flags": [], "plans": plans}


def _judge(server: Server, request: dict[str, Any]) -> dict[str, Any]:
    from helpers.course.exercise import find, judge

    seal, flags, number = server.seal, set(request["flags"]), request["number"]
    scope, proofs = server.lessons[int(number.split(".")[0])]
    scope = dict(scope)
    exercise, stopped = find(number), ""
    for code in request["statements"]:
        try:
            exec(compile(code, "<notebook>", "exec"), scope)
        except Exception as error:
            stopped = _told(error)
        for name in [name for name in scope if name.startswith(("check_", "show_", "plot_"))]:
            if getattr(scope[name], "__module__", "").startswith("helpers."):
                scope[name] = _nothing
        scope["hint"] = scope["predict"] = _nothing
    try:
        answer = eval(compile(request["expression"], "<notebook>", "eval"), scope)
    except Exception as error:
        said = f"Your code stops with {stopped or _told(error)}"
        return {"state": "no verdict", "sentence": said[:2000], "flags": []}
    if answer is exercise.solution or getattr(answer, "__code__", 0) is getattr(exercise.solution, "__code__", 1):
        flags.add("is the course's own solution")
    outcome, stop = None, None
    try:
        outcome = judge(exercise, answer)
    except BaseException as error:  # it may come from what the answer has changed
        stop = error
    if changed := seal.mend():
        outcome = judge(exercise, seal.guarded(answer))
        seal.mend()
        flags.add(f"changed {', '.join(changed[:3])}; put back and judged again")
    if outcome is None:
        raise stop or RuntimeError
    state, sentence = str(outcome.state), str(outcome.sentence)
    if state == "right" and flags:
        at, known = proofs[number]
        proof = judge(exercise, exercise.wrong[at]).sentence
        if proof != known or sentence != f"✓ Exercise {number}":
            flags.add("the check no longer tells wrong answers after this one")
            state, sentence = "no verdict", "The check was changed while it ran. Your teacher looks at it."
    return {"state": state, "sentence": sentence[:2000], "flags": sorted(flags)}


def _nothing(*args: Any, **kwargs: Any) -> None:
    """In place of checks, hints and figures in a notebook's own code."""


def _told(error: Exception) -> str:
    try:
        said = str(error).strip().split("\n")[0]
    except Exception:
        said = ""
    return f"{type(error).__name__}: {said}"[:300]


def main() -> None:
    """The protocol has its own pipes: what libraries print must not fall into it."""
    asked, told = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)
    text = b""
    while not text.endswith(b"\n"):
        text += os.read(asked, 1)
    order = json.loads(text)
    scratch = Path(order["scratch"])
    if shut_in := enclose([Path(folder) for folder in order["hidden"]], scratch):
        child = os.fork()  # the first process of its own world: with it everything ends
        if child:
            os.close(asked)
            os.close(told)
            os.waitpid(child, 0)
            os._exit(0)
        with contextlib.suppress(OSError):
            linux.mount("proc", "/proc")
    for call in (linux.adopt_orphans, linux.die_with_parent):
        with contextlib.suppress(OSError):
            call()
    os.write(told, json.dumps(measures(shut_in)).encode() + b"\n")
    import IPython.core.inputtransformer2  # noqa: F401  what each child would read again is read here
    import torch

    torch.set_num_threads(1)
    for lesson in course.notebook_paths():
        course.statements(lesson), course.setup(lesson)
    Server(asked, told, order, shut_in).serve()


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from grading import server  # under its own name, so that its parts are those that others import

    server.main()
