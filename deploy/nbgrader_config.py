"""nbgrader's settings for this course: `make assignment` copies this file into the course directory that it makes.

nbgrader runs what students hand in. By its own settings one odd submission can change the gradebook, go on running for ever,
or stop a whole batch. So: a kernel that is shut in, short times, and one process for each student (docs/grading.md has the
lines of shell). The simpler way is `make grade`, which needs no nbgrader and notices more.
"""

import json
import os
import sys
from pathlib import Path

c = get_config()  # noqa: F821  nbgrader gives it
c.CourseDirectory.course_id = "causal-interventions"
HERE = Path(__file__).resolve().parent if "__file__" in globals() else Path.cwd()

# nbgrader calls a program of its own environment by name, also where the environment is not activated.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])

# The stub that students see stands in the cell already: nothing has to take the solution's place but a word of what to do.
c.ClearSolutions.code_stub = {"python": "# Your answer takes the place of the three dots."}

# A cell that hangs is interrupted after a minute, and the exercises below it are still graded. An answer that swallows the
# interrupt costs this student's notebook: the loop of shell in docs/grading.md ends it, and goes on with the next.
c.Execute.timeout = 60
c.Execute.interrupt_on_timeout = True
c.Execute.startup_timeout = 120  # importing PyTorch on a busy machine
c.Execute.iopub_timeout = 10
c.Execute.raise_on_iopub_timeout = False  # much output: graded by what has arrived
c.LimitOutput.max_lines = 200
c.LimitOutput.max_traceback = 40

# A file of another name, or one that is missing, is that student's alone.
c.ZipCollectApp.strict = False
c.Autograde.create_student = True

# The kernel that can neither read the gradebook nor write any file: tools/grading/kernel.py. Linux only; elsewhere nbgrader's
# ordinary kernel runs with all your rights, so grade there in a container, or with `make grade`.
if sys.platform == "linux" and not os.environ.get("PLAIN_KERNEL"):
    import helpers

    root = Path(helpers.__file__).resolve().parents[1]
    wrapper = root / "tools" / "grading" / "kernel.py"
    if not wrapper.exists():
        raise SystemExit(f"{wrapper} is missing: install the course from its repository, with pip install -e .")
    folder = HERE / ".kernels"
    spec = folder / "kernels" / "boxed"
    spec.mkdir(parents=True, exist_ok=True)
    argv = [sys.executable, str(wrapper), "--hide", str(HERE), "-f", "{connection_file}"]
    (spec / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "shut in", "language": "python"}))
    os.environ["JUPYTER_PATH"] = os.pathsep.join([str(folder), os.environ.get("JUPYTER_PATH", "")])
    c.Execute.kernel_name = "boxed"
