"""What the package offers: every public name is there, documented, and means what it says."""

import importlib
import inspect
import subprocess
import sys

import pytest

import helpers


@pytest.mark.parametrize("name", helpers.__all__)
def test_every_public_name_is_documented(name):
    value = getattr(helpers, name)
    if not (inspect.isclass(value) or inspect.isfunction(value)):
        return  # a table such as FAMILIES: its module documents it
    text = inspect.getdoc(value) or ""
    assert len(text) > 30, f"{name} needs a docstring"
    assert not text.startswith(f"{name}("), f"{name} needs a docstring of its own, not dataclass's"


@pytest.mark.parametrize("name", [n for m in ("edits", "metrics", "tracing") for n in helpers._WHERE[m]])
def test_core_docstrings_say_shapes_or_errors(name):
    text = inspect.getdoc(getattr(helpers, name))
    assert any(word in text for word in ("Raises", "raises", "(batch", "(n_points", "(…", "pos", "shapes as in")), name


def test_all_is_complete():
    assert sorted(helpers.__all__) == dir(helpers) and len(set(helpers.__all__)) == len(helpers.__all__)
    public = lambda module: {  # noqa: E731
        name for name, value in vars(module).items()
        if (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__ == module.__name__ and name[0] != "_"
    }  # fmt: skip
    inner = {
        "check_indices",
        "check_model",
        "whole",
        "whole_numbers",
        "applied",
        "Family",
        "finite_tensor",
        "put_heads",
        "check_mask",
    }
    for module in ("models", "edits", "tracing", "metrics"):
        missing = public(importlib.import_module(f"helpers.{module}")) - set(helpers._WHERE[module]) - inner
        assert not missing, f"{module} has public names that helpers does not offer: {missing}"


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(AttributeError, match=r"no attribute 'tracee'; it offers .*trace"):
        _ = helpers.tracee


def test_trace_is_the_function_whatever_was_imported():
    code = "import helpers.tracing, helpers.edits\nfrom helpers import trace, edit\nassert callable(trace) and callable(edit)"
    more = (
        "\nimport helpers, sys\nassert helpers.trace is helpers.tracing.trace\nassert 'matplotlib' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", code + more + "\nassert 'ipywidgets' not in sys.modules"], check=True, timeout=300
    )


def test_importing_helpers_alone_imports_nothing_heavy():
    code = "import helpers, sys\nassert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_using_the_names_imports_no_model_code_of_transformers():
    """Two seconds, torch's compiler among them: only who has a model pays that, and has paid it."""
    code = (
        "import sys, torch\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\nimport helpers\n"
        "before = 'transformers.modeling_utils' in sys.modules\n"
        "_ = helpers.load_model, helpers.trace, helpers.sweep_heads, helpers.delta_norm, helpers.edit\n"
        "assert before or 'transformers.modeling_utils' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
