"""start.py does what `make lab` does, in the same order, and tells what went wrong."""

import importlib.util
import re
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
Version = namedtuple("Version", "major minor micro")


@pytest.fixture
def start(tmp_path, monkeypatch):
    """The script as it stands in an empty folder with the pins; commands are noted, none is run."""
    spec = importlib.util.spec_from_file_location("start", ROOT / "start.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in module.PINS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "ENVIRONMENT", tmp_path / ".venv")
    monkeypatch.setattr(module.sys, "argv", ["start.py"])
    monkeypatch.setattr(module.sys, "version_info", Version(3, 11, 0))

    def create(folder, with_pip):
        assert with_pip
        Path(module.python()).parent.mkdir(parents=True)
        Path(module.python()).touch()

    monkeypatch.setattr(module.venv, "create", create)
    module.commands, module.fails = [], ()

    def run(*command, folder=None):
        module.commands.append(" ".join(command[1:]))
        return int(any(word in module.commands[-1] for word in module.fails))

    monkeypatch.setattr(module, "run", run)
    return module


def test_it_does_what_make_lab_does(start):
    assert start.main() == 0
    makefile = (ROOT / "Makefile").read_text()
    pattern = r"^\t@?\$\(PY\) (-m (?:pip install.*lab.*|helpers\.smollm2))"
    theirs = [line.replace("'", "") for line in re.findall(pattern, makefile, re.M)]
    install, model, lab = start.commands
    assert install in theirs and any(line.startswith(model) for line in theirs)
    assert lab.startswith("-m jupyterlab") and lab.endswith("notebooks/01_downstream_scaling.ipynb")
    assert (start.ENVIRONMENT / "share/jupyter/lab/settings/overrides.json").exists()


def test_a_second_start_installs_nothing_until_the_pins_change(start):
    start.main()
    start.commands.clear()
    start.main()
    assert not any("pip" in command for command in start.commands)
    (start.ROOT / "constraints.txt").write_text("torch==0\n")
    start.main()
    assert any("pip" in command for command in start.commands)


def test_without_the_real_model_the_lab_opens(start, capsys):
    start.fails = ("helpers.smollm2",)
    assert start.main() == 0
    assert "Going on without the real model" in capsys.readouterr().out and "jupyterlab" in start.commands[-1]


def test_a_failed_installation_is_told_and_tried_again(start):
    start.fails = ("pip",)
    with pytest.raises(SystemExit, match="could not be installed"):
        start.main()
    assert len(start.commands) == 1
    start.fails = ()
    assert start.main() == 0


@pytest.mark.parametrize("version", [Version(3, 10, 1), Version(3, 14, 0)])
def test_another_python_is_told(start, monkeypatch, version):
    monkeypatch.setattr(start.sys, "version_info", version)
    with pytest.raises(SystemExit, match=rf"needs Python 3.11, 3.12 or 3.13, and this is 3.{version.minor}"):
        start.main()
