import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

CONFIG = Path(__file__).resolve().parents[2] / "tools/ipython_config.py"


def test_after_each_cell_what_it_freed_is_given_back(tmp_path, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    cells = [
        "import helpers.course.tidy",
        "helpers.course.tidy.give_back = lambda: print('given back')",  # seen after this cell already
        "1 / 0",
        "print('a cell')",
    ]
    command = [sys.executable, "-m", "IPython", "--colors=nocolor", "--ext=helpers.course.tidy", "--no-banner"]
    ran = subprocess.run(command, input="\n".join(cells), capture_output=True, text=True, timeout=120)
    assert ran.stdout.count("given back") == 3, ran.stdout + ran.stderr
    assert "given back" in ran.stdout.split("a cell")[1]


def test_a_kernel_of_the_course_loads_what_is_there():
    config = SimpleNamespace(InteractiveShellApp=SimpleNamespace())
    exec(CONFIG.read_text(), {"c": config})
    assert "helpers.course.tidy" in config.InteractiveShellApp.extensions
    assert all(callable(import_module(name).load_ipython_extension) for name in config.InteractiveShellApp.extensions)
