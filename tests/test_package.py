"""The package as others install it, and the pages that describe it."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "helpers" / "pocket" / "README.md"])
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def test_import_is_light():
    code = "import sys, helpers; print(*sorted({'matplotlib', 'ipywidgets', 'seaborn', 'IPython'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip() == ""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The names in a wheel built from a copy of what the package is made of (building in place leaves files behind)."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    copy = "import shutil, sys; shutil.copytree(sys.argv[1], sys.argv[2], ignore=shutil.ignore_patterns('__pycache__'))"
    subprocess.run([sys.executable, "-c", copy, ROOT / "helpers", source / "helpers"], check=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", str(out), str(source)], check=True)
    (built,) = out.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        return archive.namelist()


def test_wheel_holds_everything(wheel):
    kept = [path for path in (ROOT / "helpers").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {path.relative_to(ROOT).as_posix() for path in kept} <= set(wheel)
    assert "helpers/pocket/model.safetensors" in wheel
    assert "helpers/data/countries.tsv" in wheel


def test_wheel_holds_nothing_else(wheel):
    assert {name.split("/")[0].split("-")[0] for name in wheel} == {"helpers", "causal_interventions_course"}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page):
    links = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]
    links = [link for link in links if not link.startswith("../../actions/")]  # the badge: a page of the code host
    missing = [link for link in links if not link.startswith("#") and not (page.parent / link.split("#")[0]).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_headings_that_are_linked_to_exist(page):
    text = page.read_text(encoding="utf-8")
    headings = {
        re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in re.findall(r"^#+ (.*)$", text, re.M)
    }
    assert {link[1:] for link in LINK.findall(text) if link.startswith("#")} <= headings


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_pages_name_no_machine(page):
    text = page.read_text(encoding="utf-8")
    assert (
        re.findall(r"(?<![\w.])/(?:home|root|Users|tmp|work|opt|mnt)/\w+|\b\d+\.\d+\.\d+\.\d+\b|://[^/\s]*:\d+", text)
        == []
    )


def test_pins_are_in_the_ranges():
    """The tested versions satisfy what pyproject asks for, and every dependency is pinned."""
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.lower().replace("_", "-").split("==") for line in lines if not line.startswith("#"))
    for requirement in map(Requirement, wanted):
        if requirement.name != project["name"]:
            assert requirement.specifier.contains(pins[requirement.name.lower().replace("_", "-")]), requirement


def test_conda_installs_the_same_package():
    """environment.yml keeps no list of its own."""
    import yaml

    wanted = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    assert [item.split("=")[0] for item in wanted[:-1]] == ["python", "pip"]
    assert wanted[-1] == {"pip": ["-c constraints.txt", "-e .[lab]"]}
