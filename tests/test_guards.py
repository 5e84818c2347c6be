"""The comparison of stored outputs, tested itself: it finds a planted fault, and only faults.

Every cell of every notebook is compared here in a fresh process, in one thread and without vector instructions, where every
printed digit must stay; and with a wrong line in a copy of the package, where some must not. (tests/test_run_again.py
compares with AVX2 and two threads. What is stored was computed with the instructions of a newer processor.)
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LESSONS = sorted((ROOT / "notebooks").glob("*.ipynb"))
VARIANTS = {
    "no vector instructions, one thread": {"ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1"},
}
SURROUNDINGS = """import torch, helpers
helpers.load_model()
print(torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())"""
FAULTS = {  # what is wrong: the file, a line of it, the same line with a fault
    "a measure is 1 % too large": (
        "metrics.py",
        "    return (a - b).flatten(1).norm(dim=1)\n",
        "    return (a - b).flatten(1).norm(dim=1) * 1.01\n",
    ),
    "an edit scales a little too much": (
        "edits.py",
        '    by = real_number(factor, "factor")\n',
        '    by = real_number(factor, "factor") + 0.001\n',
    ),
}


def compare(notebooks, folder, *options, **env):
    """Run nbval on copies of `notebooks` in a fresh process; return it finished, its report in `stdout`."""
    copies = folder / "notebooks"
    copies.mkdir()
    for notebook in notebooks:
        shutil.copy(notebook, copies)
    (folder / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-c", str(folder / "pytest.ini"), *options]
    command += ["--nbval", "--nbval-current-env", "--nbval-cell-timeout=300", str(copies)]
    return subprocess.run(command, cwd=folder, env={**os.environ, **env}, capture_output=True, text=True)


@pytest.mark.parametrize("env", VARIANTS.values(), ids=VARIANTS)
def test_outputs_are_the_same_to_the_last_printed_digit(env, tmp_path):
    found = subprocess.run(
        [sys.executable, "-c", SURROUNDINGS], env={**os.environ, **env}, capture_output=True, text=True
    )
    capability, threads = found.stdout.split()
    assert threads == env["OMP_NUM_THREADS"], "the surroundings did not take effect"
    assert capability in ("DEFAULT", env["ATEN_CPU_CAPABILITY"].upper()), "the surroundings did not take effect"
    finished = compare(LESSONS, tmp_path, **env)
    assert finished.returncode == 0, finished.stdout


@pytest.mark.parametrize(("file", "line", "fault"), FAULTS.values(), ids=FAULTS)
def test_a_planted_fault_turns_the_comparison_red(file, line, fault, tmp_path):
    package = shutil.copytree(ROOT / "helpers", tmp_path / "planted" / "helpers")
    source = (package / file).read_text(encoding="utf-8")
    assert source.count(line) == 1, f"choose another line of {file} for the fault"
    (package / file).write_text(source.replace(line, fault), encoding="utf-8")
    finished = compare(LESSONS[:1], tmp_path, "-x", PYTHONPATH=str(package.parent))
    assert finished.returncode == pytest.ExitCode.TESTS_FAILED, finished.stdout
    assert " passed" in finished.stdout, f"red for another reason: the first cells must still pass\n{finished.stdout}"
