"""The warm process behind box.py: it imports PyTorch once, and forks a process for each exercise, which is then thrown away.

    server    warm, reads requests, has no learner's code and no grades in it
      keeper  one per request: sets the wall clock, and kills whatever is left
        child the learner's code and its check, as another user where that is possible, with limits; says one line, and ends

A request is a line of JSON, and so is the reply. The child's line carries a word that the learner's code was not told; a child that says more
than one line, or ends without one, gets no verdict.
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
from pathlib import Path
from typing import Any, NoReturn

import psutil

from grading import course, linux
from grading.plan import plan

FIRST_USER, USERS = 65520, 8  # numbers that no system gives to a person or a service
LONGEST = {"judge": 16_000, "plan": 8 * 2**20, "probe": 4_000}


class Server:
    """Reads requests from `asked`, writes replies to `told`; `scratch` is a folder where a child may write."""

    def __init__(self, asked: int, told: int, order: dict[str, Any]) -> None:
        self._asked, self._told = asked, told
        self._scratch, self._limits = Path(order["scratch"]), order["limits"]
        self._measures = enclose([Path(folder) for folder in order["hidden"]], self._scratch)
        self._lessons: dict[int, tuple[dict[str, Any], dict[str, tuple[int, str]]]] = {}
        self._seal: Any = None
        self._jobs: dict[int, _Job] = {}
        self._ready = selectors.DefaultSelector()

    def serve(self) -> None:
        self._say({"ready": True, **self._measures})
        self._ready.register(self._asked, selectors.EVENT_READ, None)
        waiting = b""
        while True:
            for key, _ in self._ready.select(timeout=1.0):
                if key.data is None:
                    more = os.read(self._asked, 2**20)
                    if not more:  # the grader has ended
                        for job in self._jobs.values():
                            os.kill(job.keeper, signal.SIGKILL)
                        return
                    *lines, waiting = (waiting + more).split(b"\n")
                    for line in lines:
                        self._start(json.loads(line))
                elif not key.data.read(key.fd):
                    self._ready.unregister(key.fd)
                    if key.data.ended:
                        self._finish(key.data)
            for job in list(self._jobs.values()):
                if time.monotonic() > job.latest:  # the keeper itself hangs
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(job.keeper, signal.SIGKILL)

    def _start(self, request: dict[str, Any]) -> None:
        if request["kind"] == "judge":
            try:
                self._warm(int(request["number"].split(".")[0]))
            except Exception as error:
                return self._say({"fault": f"{type(error).__name__}: {error}"})
        slot = next(slot for slot in range(len(self._jobs) + 1) if all(slot != job.slot for job in self._jobs.values()))
        word = secrets.token_hex(16)
        said, says = os.pipe()
        status, tells = os.pipe()
        gc.freeze()
        keeper = os.fork()
        if keeper == 0:
            os.close(said)
            os.close(status)
            _keep(self, request, slot, word, says, tells)
        os.close(says)
        os.close(tells)
        job = _Job(request, keeper, slot, word, said, status, time.monotonic() + self._limits["wall"] + 10)
        self._jobs[keeper] = job
        for pipe in (said, status):
            os.set_blocking(pipe, False)
            self._ready.register(pipe, selectors.EVENT_READ, job)

    def _finish(self, job: _Job) -> None:
        os.waitpid(job.keeper, 0)
        job.close(self._ready)
        del self._jobs[job.keeper]
        self._say({"id": job.request["id"], **job.outcome()})

    def _say(self, reply: dict[str, Any]) -> None:
        data = json.dumps(reply).encode() + b"\n"
        while data:
            data = data[os.write(self._told, data) :]

    def _warm(self, lesson: int) -> None:
        """Import what the lesson's checks need, run each once, and remember which wrong answer each check refuses fastest."""
        if lesson in self._lessons:
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
        self._lessons[lesson] = scope, proofs
        self._seal = Seal()


class _Job:
    """One request that is being worked on."""

    def __init__(
        self, request: dict[str, Any], keeper: int, slot: int, word: str, said: int, status: int, latest: float
    ) -> None:
        self.request, self.keeper, self.slot, self.latest = request, keeper, slot, latest
        self._word, self._pipes = word, {said: b"", status: b""}
        self._said, self._status = said, status
        self._open = {said, status}

    @property
    def ended(self) -> bool:
        """The keeper's own pipe is closed by its end; the child's could be held open by what it left behind."""
        return self._status not in self._open

    def read(self, pipe: int) -> bool:
        """Take what is there; False at the end, or when a child says far too much."""
        try:
            more = os.read(pipe, 2**16)
        except BlockingIOError:
            return True
        self._pipes[pipe] += more
        if not more or len(self._pipes[pipe]) > LONGEST[self.request["kind"]]:
            self._open.discard(pipe)
            return False
        return True

    def close(self, ready: selectors.BaseSelector) -> None:
        while self._said in self._open and self._pipe_has_more():
            pass
        for pipe in (self._said, self._status):
            if pipe in self._open:
                ready.unregister(pipe)
                self._open.discard(pipe)
            os.close(pipe)

    def _pipe_has_more(self) -> bool:
        before = len(self._pipes[self._said])
        if not self.read(self._said):
            self._open.add(self._said)  # close() unregisters it
            return False
        return len(self._pipes[self._said]) > before

    def outcome(self) -> dict[str, Any]:
        """{"result": …, "flags": […]} or {"ended": why, "flags": […]}."""
        try:
            status = json.loads(self._pipes[self._status])
        except ValueError:
            status = {"why": "killed", "left": 0}
        flags = ["left processes running"] if status.get("left") else []
        lines = self._pipes[self._said].split(b"\n")
        if len(lines) == 2 and not lines[1] and status["why"] == "done":
            try:
                reply = json.loads(lines[0])
                if reply.pop("word") == self._word:
                    return {"result": reply, "flags": flags}
            except (ValueError, AttributeError, KeyError, RecursionError):
                pass
        if self._pipes[self._said].strip():
            flags.append("wrote to the grader's own channel")
        return {"ended": status, "flags": flags}


# ---- what is shut, once, for all that follow


def enclose(hidden: list[Path], scratch: Path) -> dict[str, Any]:
    """Shut this process and its children in as far as the system allows. Returns {"shut": [...], "open": [...]} in words."""
    shut, left = ["processor time, memory, processes and files are limited"], []
    try:
        if os.geteuid() == 0:
            linux.unshare(linux.NEW_MOUNTS | linux.NEW_NET | linux.NEW_IPC)
        else:
            linux.become_root_of_own_space()
        linux.keep_mounts_to_ourselves()
        if os.geteuid() == 0:
            _let_others_read_the_course()
        linux.everything_read_only()
        linux.mount("tmpfs", scratch, f"size={2**26},mode=711")
        for folder in hidden:
            linux.mount("tmpfs", folder, "size=4k,mode=755", read_only=True)
        shut.append("no file outside a scratch folder can be written, the submissions and the grades cannot be read, there is no network")
    except OSError:
        left.append("files and network are not shut off")
    if os.geteuid() == 0:
        shut.append("each exercise runs as a user without rights")
    return {"shut": shut, "open": left}


def _let_others_read_the_course() -> None:
    """Where Python or the course lies in a folder that only root may enter, /root perhaps, others get to see these alone."""
    needed = {Path(path).resolve() for path in (course.ROOT, sys.prefix, sys.base_prefix, *sys.path) if Path(path).is_dir()}
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


# ---- the keeper


def _keep(server: Server, request: dict[str, Any], slot: int, word: str, says: int, tells: int) -> NoReturn:
    """Runs in a process of its own: start the child, wait, kill what is left, tell how it ended."""
    status: dict[str, Any] = {"why": "killed", "left": 0}
    try:
        os.setsid()
        for call in (linux.adopt_orphans, linux.die_with_parent):
            with contextlib.suppress(OSError):
                call()
        own_mounts = own_pids = False
        with contextlib.suppress(OSError):
            linux.unshare(linux.NEW_MOUNTS)
            own_mounts = True
            linux.unshare(linux.NEW_PID)
            own_pids = True
        scratch = server._scratch / str(slot)
        scratch.mkdir(mode=0o700, exist_ok=True)
        child = os.fork()
        if child == 0:
            os.close(tells)
            _run(server, request, slot, word, says, scratch, own_mounts, own_pids)
        os.close(says)
        status = _wait(child, server._limits)
        status["left"] = _kill_the_rest(slot)
        if not own_mounts:
            shutil.rmtree(scratch, ignore_errors=True)
    finally:
        os.write(tells, json.dumps(status).encode())
        os._exit(0)


def _wait(child: int, limits: dict[str, float]) -> dict[str, Any]:
    end = time.monotonic() + limits["wall"]
    late = False
    if hasattr(os, "pidfd_open"):
        handle = os.pidfd_open(child)
        with selectors.DefaultSelector() as ready:
            ready.register(handle, selectors.EVENT_READ)
            late = not ready.select(timeout=limits["wall"])
    else:
        while not (late := time.monotonic() > end):
            if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                break
            time.sleep(0.01)
    if late:
        os.kill(child, signal.SIGKILL)
    _, code, used = os.wait4(child, 0)
    if late:
        return {"why": "wall"}
    if os.WIFSIGNALED(code):
        spent = used.ru_utime + used.ru_stime >= limits["cpu"] - 0.2
        return {"why": "cpu" if spent else "signal", "signal": os.WTERMSIG(code)}
    return {"why": "done" if os.WEXITSTATUS(code) == 0 else "exit", "code": os.WEXITSTATUS(code)}


def _kill_the_rest(slot: int) -> int:
    """Whatever the child started is a descendant of this process, or runs as the child's user. Returns how many were found."""
    found = 0
    for _ in range(200):
        rest = psutil.Process().children(recursive=True)
        alive = [one for one in rest if one.status() != psutil.STATUS_ZOMBIE]
        found = max(found, len(alive))
        for one in alive:
            with contextlib.suppress(psutil.Error):
                one.kill()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not alive:
            break
    return found


# ---- the child


def _run(
    server: Server, request: dict[str, Any], slot: int, word: str, says: int, scratch: Path, own_mounts: bool, own_pids: bool
) -> NoReturn:
    """Runs in the process that is thrown away."""
    me = os.getpid()
    try:
        _shut(server, slot, says, scratch, own_mounts, own_pids)
        work = {"plan": _plan, "judge": _judge, "probe": _probe}[request["kind"]]
        reply = work(server, request)
    except BaseException as error:  # SystemExit and KeyboardInterrupt too: a learner's code can raise them
        reply = {"state": "no verdict", "sentence": f"It ended with {type(error).__name__}.", "flags": []}
    try:
        if os.getpid() == me:  # not a copy that the learner's code has made
            data = json.dumps({"word": word, **reply}).encode() + b"\n"
            while data:
                data = data[os.write(says, data) :]
    finally:
        os._exit(0)


def _shut(server: Server, slot: int, says: int, scratch: Path, own_mounts: bool, own_pids: bool) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.closerange(3, says)
    os.closerange(says + 1, 4096)
    root, user = os.geteuid() == 0, FIRST_USER + slot % USERS
    limits = server._limits
    if own_mounts:
        owner = f",uid={user}" if root else f",uid={os.getuid()}"
        linux.mount("tmpfs", scratch, f"size={int(limits['disk'])},nr_inodes=1000,mode=700{owner}")
        if own_pids:
            with contextlib.suppress(OSError):
                linux.mount("proc", "/proc")
    elif root:
        os.chown(scratch, user, user)
    os.chdir(scratch)
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + int(limits["memory"])
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    cpu = int(limits["cpu"])
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))
    for kind, most in (("CORE", 0), ("FSIZE", int(limits["disk"])), ("NOFILE", 256), ("NPROC", int(limits["processes"]))):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(getattr(resource, f"RLIMIT_{kind}"), (most, most))
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

    said: dict[str, Any] = {"state": "right", "user": os.getuid(), "unreadable": "", "writes": []}
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
    try:
        return {"state": "right", "plan": plan([tuple(cell) for cell in request["cells"]], request["lesson_by_name"])}
    except (RecursionError, MemoryError, ValueError) as error:
        return {"state": "no verdict", "sentence": f"The notebook's code cannot be read ({type(error).__name__}).", "flags": []}


def _judge(server: Server, request: dict[str, Any]) -> dict[str, Any]:
    from helpers.course.exercise import find, judge

    seal, flags, number = server._seal, set(), request["number"]
    scope, proofs = server._lessons[int(number.split(".")[0])]
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
    before = seal.mend()
    if answer is exercise.solution or getattr(answer, "__code__", 0) is getattr(exercise.solution, "__code__", 1):
        flags.add("is the course's own solution")
    outcome = judge(exercise, answer)
    during = seal.mend()
    if during:
        outcome = judge(exercise, seal.guarded(answer))
        seal.mend()
    if before or during:
        flags.add(f"changed {', '.join([*before, *during][:3])}; put back and judged again")
    state, sentence = str(outcome.state), str(outcome.sentence)
    if state == "right":
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
    order = b""
    while not order.endswith(b"\n"):
        order += os.read(asked, 1)
    import torch

    torch.set_num_threads(1)
    Server(asked, told, json.loads(order)).serve()


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from grading import server  # under its own name, so that its parts are those that others import

    server.main()
