"""JupyterHub 6 for a class on one Linux machine: make hub (as root). docs/teaching.md tells the steps.

COURSE_HUB_FOLDER (/srv/course-hub) holds what a teacher writes and what the hub keeps:

    names.txt       who may log in, one name a line (a-z, 0-9 and -), for example student01
    teachers.txt    names with the hub's control panel; may be missing
    password.txt    if it is there, everybody logs in with this one password; a second line is the teachers' own
    cert.pem, key.pem    for https; needed as soon as the address is not this machine's own
    hub/            the hub's database and secrets          homes/  the students' folders
    models/         the real model, once for all

COURSE_HUB_ADDRESS (http://127.0.0.1:8000) is where the page is. The two ports above it must be free as well.

Which login? Without password.txt each student chooses a password at the first login, and it is theirs from then on: take this
for a course of several weeks. Let teachers log in first, since whoever uses a name first owns it. With password.txt any student
can log in under any student's name: take it for an afternoon in which nothing is graded.

What keeps students apart: each name is a Unix account of its own (course-NAME, made at the first login), with a folder that
nobody else can enter. Limits on memory, file size and open files are limits of one process, so a student who tries can still fill
the machine's memory with several. COURSE_HUB_SPAWNER=systemd sets one limit for all of a student's processes; it needs a machine
that systemd has started, and is the one part of this file that no test runs.
"""

import asyncio
import os
import pwd
import re
import resource
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from jupyterhub.spawner import LocalProcessSpawner, set_user_setuid

c = get_config()  # noqa: F821

COURSE = Path(__file__).resolve().parent.parent
FOLDER = Path(os.environ.get("COURSE_HUB_FOLDER", "/srv/course-hub"))
ADDRESS = urlsplit(os.environ.get("COURSE_HUB_ADDRESS", "http://127.0.0.1:8000"))
HOMES, KEPT, MODELS = FOLDER / "homes", FOLDER / "hub", FOLDER / "models"
PREFIX = "course-"  # of the Unix accounts, so that a student called root is not root
MEMORY = 3 * 2**30  # bytes of data for a process: a lesson with both models takes 1.5 GB, most of it shared
PER_STUDENT = 0.6e9  # bytes of the machine's memory: a server 0.14 GB, a kernel 0.46 GB (tools/classroom_load.py)
MACHINE = 3e9  # bytes that stay free for the system, the hub, and the real model's files, which all students share


def stop(sentence):
    sys.exit(f"The hub does not start: {sentence}")


def lines(name):
    """The lines of a file in the hub's folder, without comments; none if it is not there."""
    file = FOLDER / name
    texts = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [text.strip() for text in texts if text.strip() and not text.startswith("#")]


def account(name):
    """The Unix account of a student: a name, not one that this machine already uses for something else."""
    return PREFIX + name


# ---- what must be so before anything starts

if os.geteuid() != 0:
    stop("it gives each student an account of this machine, so it must run as root: sudo make hub.")
names, teachers = lines("names.txt"), lines("teachers.txt")
if not names:
    stop(f"write who may log in into {FOLDER / 'names.txt'}, one name a line, for example student01.")
for name in names + teachers:
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,20}", name):
        stop(f"{name!r} is no name for a login: use a to z, 0 to 9 and -, at most 21 of them, a letter first.")
if ADDRESS.scheme not in ("http", "https") or not ADDRESS.hostname or not ADDRESS.port:
    stop(f"COURSE_HUB_ADDRESS is {ADDRESS.geturl()!r}; write it as http://127.0.0.1:8000, with its port.")
certificate = [FOLDER / name for name in ("cert.pem", "key.pem")]
secure = all(file.is_file() for file in certificate)
if ADDRESS.scheme == "https" and not secure:
    stop(f"{ADDRESS.geturl()} needs cert.pem and key.pem in {FOLDER}.")
if ADDRESS.scheme == "http" and ADDRESS.hostname not in ("127.0.0.1", "localhost", "::1"):
    stop(
        "passwords must not cross a network in the clear: give COURSE_HUB_ADDRESS as https://…, with cert.pem and key.pem."
    )

FOLDER.mkdir(parents=True, exist_ok=True)
for folder, mode in ((FOLDER, 0o711), (KEPT, 0o700), (HOMES, 0o711), (MODELS, 0o755)):
    folder.mkdir(exist_ok=True)
    folder.chmod(mode)
seen = subprocess.run(  # by way of env, which says in one line that a Python may not be started
    ["env", sys.executable, "-c", "import helpers, jupyterlab"], cwd="/", user="nobody", group="nogroup", extra_groups=[],
    capture_output=True, text=True,
)  # fmt: skip
if seen.returncode:
    why = (seen.stderr.strip().splitlines() or ["it cannot be run"])[-1]
    stop(
        f"students cannot use {sys.executable} ({why}): put the course and its Python where everybody may read, for example "
        "into /opt, not into a home folder."
    )

# ---- the hub and its proxy

port = ADDRESS.port
c.JupyterHub.bind_url = ADDRESS.geturl()
if secure:
    c.JupyterHub.ssl_cert, c.JupyterHub.ssl_key = map(str, certificate)
c.JupyterHub.hub_bind_url = f"http://127.0.0.1:{port + 2}"
c.ConfigurableHTTPProxy.api_url = f"http://127.0.0.1:{port + 1}"
c.ConfigurableHTTPProxy.command = [str(COURSE / "deploy/node_modules/.bin/configurable-http-proxy")]
c.ConfigurableHTTPProxy.pid_file = str(KEPT / "proxy.pid")
c.JupyterHub.db_url = f"sqlite:///{KEPT / 'hub.sqlite'}"
c.JupyterHub.cookie_secret_file = str(KEPT / "cookie_secret")
c.JupyterHub.cleanup_servers = False  # a hub that is stopped or killed comes back to running lessons
c.JupyterHub.active_server_limit = max(1, int((psutil.virtual_memory().total - MACHINE) / PER_STUDENT))

# ---- who may log in

c.Authenticator.allowed_users = set(names) | set(teachers)
c.Authenticator.admin_users = set(teachers)
c.Authenticator.allow_existing_users = False  # who is taken out of names.txt is out
passwords = lines("password.txt")
if passwords:
    (FOLDER / "password.txt").chmod(0o600)
    c.JupyterHub.authenticator_class = "shared-password"
    c.SharedPasswordAuthenticator.user_password = passwords[0]
    if len(passwords) > 1:
        c.SharedPasswordAuthenticator.admin_password = passwords[1]
else:
    c.JupyterHub.authenticator_class = "firstuse"
    c.FirstUseAuthenticator.dbm_path = str(KEPT / "passwords.dbm")
    c.FirstUseAuthenticator.create_users = False  # only names that stand in the files
    c.FirstUseAuthenticator.min_password_length = 8
    c.JupyterHub.template_vars = {  # the page itself asks for a password as if there were one already
        "announcement_login": "Your first login? The password that you type becomes yours: 8 characters or more."
    }

# ---- a student's server


def provide(name):
    """The account and the folder of a student, and in it the lessons that are not there yet."""
    home = HOMES / name
    try:
        known = pwd.getpwnam(account(name))
    except KeyError:
        command = ["useradd", "--no-create-home", "--home-dir", str(home), "--shell", "/bin/bash", account(name)]
        subprocess.run(command, check=True, capture_output=True)
        known = pwd.getpwnam(account(name))
    if known.pw_dir != str(home):
        raise RuntimeError(f"the account {account(name)} belongs to {known.pw_dir}, not to this hub")
    home.mkdir(exist_ok=True)
    os.chown(home, known.pw_uid, known.pw_gid)
    home.chmod(0o700)
    # As the student: root must not write where a student can lay a link.
    subprocess.run(
        [sys.executable, str(COURSE / "deploy/hand_out.py"), str(COURSE), str(home / "course")], check=True, cwd=home,
        user=known.pw_uid, group=known.pw_gid, extra_groups=[],
    )  # fmt: skip


async def before_start(spawner):
    await asyncio.to_thread(provide, spawner.user.name)


class StudentSpawner(LocalProcessSpawner):
    """A process of the student's own account, with limits that its kernels inherit."""

    def make_preexec_fn(self, name):
        become = set_user_setuid(account(name))
        limits = {
            resource.RLIMIT_DATA: MEMORY,  # too much is a MemoryError in a cell, and the class goes on
            resource.RLIMIT_NPROC: 400,  # processes and threads of this account
            resource.RLIMIT_FSIZE: 2**30,
            resource.RLIMIT_NOFILE: 4096,
            resource.RLIMIT_CORE: 0,
        }

        def start():
            for kind, most in limits.items():
                resource.setrlimit(kind, (most, most))
            os.umask(0o077)
            become()

        return start

    def user_env(self, env):
        name = account(self.user.name)
        return env | {"USER": name, "LOGNAME": name, "HOME": str(HOMES / self.user.name), "SHELL": "/bin/bash"}


if os.environ.get("COURSE_HUB_SPAWNER") == "systemd":
    c.JupyterHub.spawner_class = "systemd"
    c.SystemdSpawner.username_template = PREFIX + "{USERNAME}"
    c.SystemdSpawner.user_workingdir = str(HOMES / "{USERNAME}")
    c.SystemdSpawner.isolate_tmp = c.SystemdSpawner.disable_user_sudo = True
    c.SystemdSpawner.mem_limit = MEMORY
else:
    c.JupyterHub.spawner_class = StudentSpawner

c.Spawner.pre_spawn_hook = before_start
c.Spawner.cmd = [sys.executable, "-m", "jupyterhub.singleuser"]
c.Spawner.default_url = "/lab/tree/course/notebooks/01_downstream_scaling.ipynb"
c.Spawner.environment = {
    "CAUSAL_INTERVENTIONS_CACHE": str(MODELS),
    "OMP_NUM_THREADS": "1",  # thirty kernels share the cores
    "PYTHONNOUSERSITE": "1",  # what a student installs must not stand before the course
}
c.Spawner.args = ["--MappingKernelManager.cull_idle_timeout=5400"]  # kernels of lessons that were left open
c.Spawner.start_timeout = c.Spawner.http_timeout = 120  # thirty start at once
c.JupyterHub.concurrent_spawn_limit = 30

# ---- a server that nobody has used for an hour ends; its files stay

c.JupyterHub.services = [
    {"name": "idle-culler", "command": [sys.executable, "-m", "jupyterhub_idle_culler", "--timeout=3600"]}
]
c.JupyterHub.load_roles = [
    {
        "name": "idle-culler",
        "scopes": ["list:users", "read:users:activity", "read:servers", "delete:servers"],
        "services": ["idle-culler"],
    }
]
