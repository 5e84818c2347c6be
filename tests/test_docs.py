"""The pages in docs/ run: their Python blocks, in order, on the model that they name."""

import importlib.util
import os
import re
from pathlib import Path

import pytest
import torch
import transformers

import helpers
from helpers.loading import POCKET_FOLDER

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_the_tour_of_the_helpers_runs(capsys):
    if not (POCKET_FOLDER / "model.safetensors").is_file():
        pytest.skip("helpers/pocket has no weights yet")
    code, names = blocks(DOCS / "helpers.md"), {}
    assert len(code) >= 6
    for number, block in enumerate(code, 1):
        if "study(" in block and not importlib.util.find_spec("h5py") and not os.environ.get("CI"):
            continue  # the extra 'study' is not installed; tests/test_studies.py says so too
        exec(compile(block, f"docs/helpers.md, block {number}", "exec"), names)
    said = capsys.readouterr().out
    assert "live edits: zero_heads(5, [3, 7]), change('mlp', 6, <lambda>)" in said
    r = float(re.search(r"144 patched heads: r = (\S+)", said)[1])
    assert 0.9 < r < 1, "an estimate from one backward pass is near the patches, and not equal to them"
    assert "BlockOutOfRange - block 99 does not exist" in said


def test_the_tour_names_only_what_exists():
    text = (DOCS / "helpers.md").read_text(encoding="utf-8")
    listed = re.findall(r"`(\w+)`", text.split("| --- | --- |")[1].split("\n\n")[0])
    assert len(listed) >= 13 and set(listed) <= set(helpers.__all__)


def test_the_pages_know_how_many_families_there_are():
    for page in (ROOT / "README.md", DOCS / "helpers.md"):
        assert re.findall(r"\[(\d+) families\]", page.read_text(encoding="utf-8")) == [str(len(helpers.FAMILIES))], page


def test_a_word_without_its_space_is_the_token_that_the_page_says():
    text = (DOCS / "errors.md").read_text(encoding="utf-8")
    names = ["pocket", *(["smollm2"] if helpers.smollm2.is_here() else [])]
    told = re.findall(r"(\d+)\s+beside (\d+)[\w `\" ]*on (?:the pocket model|SmolLM2)", text)
    assert len(told) == 2
    for name, ids in zip(names, told, strict=False):
        lm = helpers.load_model(name)
        assert [lm.encode(word).ids.tolist() for word in ("Germany", " Germany")] == [[[int(one)]] for one in ids]


def test_the_readme_quotes_the_models_card():
    readme, card = ((folder / "README.md").read_text(encoding="utf-8") for folder in (ROOT, POCKET_FOLDER))
    rows = [line for line in card.splitlines() if "is the capital of” |" in line or "An old map shows" in line]
    known, _, held_out = (row.split("|")[2].strip() for row in rows)
    honest = readme.split("## The model that ships, honestly")[1].split("\n## ")[0]
    assert re.findall(r"[\d.]+%", honest) == [known, held_out]


def test_the_readmes_findings_are_those_of_the_lessons():
    """Each number of a lesson's row is in the outputs of its notebook, as rounded there."""
    nbformat = pytest.importorskip("nbformat")  # the environment with transformers 4.57 has no notebooks
    from test_notebooks_rules import NAME_BEFORE, NUMBER, stands_in, text_of, values

    rows = re.findall(
        r"^\| (\d) \| \[.*?\]\((.*?)\).*? \| (.*) \|$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M
    )
    assert [row[0] for row in rows] == list("12345")
    for _, path, finding in rows:
        nb = nbformat.read(ROOT / path, as_version=4)
        code = [cell for cell in nb.cells if cell.cell_type == "code"]
        seen = values("\n".join(text_of(out) for cell in code for out in cell.outputs))
        text = finding.replace("SmolLM2", "")
        numbers = [m.group() for m in NUMBER.finditer(text) if not NAME_BEFORE.search(text[: m.start()])]
        assert numbers and not [number for number in numbers if not stands_in(number, seen)]


@pytest.mark.skipif(transformers.__version__ < "5", reason="the README tells what transformers 5 does")
def test_the_hook_that_lies_in_the_readme_lies_by_as_much():
    lm = helpers.load_model()
    prompt, recorded, true = re.search(
        r"\(`(There .*?)`\).*?recorded difference is ([\d.]+)\.\nThe true one is ([\d.]+)\.",
        (ROOT / "README.md").read_text(encoding="utf-8"),
        re.S,
    ).groups()
    ids = lm.encode(prompt).ids
    with torch.no_grad():
        clean = lm.model(ids, output_hidden_states=True).hidden_states[3]
        with lm.model.transformer.h[2].register_forward_hook(lambda module, args, output: output * 0.5):
            said = lm.model(ids, output_hidden_states=True).hidden_states[3]
    assert f"{float((said - clean).norm()):.1f}" == recorded
    assert f"{float((clean * 0.5).norm()):.1f}" == true


def test_what_the_tour_says_of_attribution_patching_on_smollm2():
    """The strongest heads, patched one by one with plain hooks, beside the estimate from one backward pass."""
    if not helpers.smollm2.is_here():
        pytest.skip("the real model is not here: make real")
    lm = helpers.load_model("smollm2")
    berlin, rome = (f"Paris is the capital of France. {city} is the capital of" for city in ("Berlin", "Rome"))
    germany, italy = lm.token_id(" Germany"), lm.token_id(" Italy")
    ahead = lambda logits: logits[germany] - logits[italy]  # noqa: E731
    other = helpers.trace(lm, rome)
    found = helpers.trace(lm, berlin, gradients=lambda seen: ahead(seen.last_logits[0]))
    estimate = ((other.heads - found.heads) * found.gradients.heads)[:, 0, -1].sum(-1)

    def patched(block, head):
        def hook(module, args):
            state = args[0].clone()
            state[:, -1].unflatten(-1, (lm.n_heads, lm.d_head))[:, head] = other.heads[block, 0, -1, head]
            return (state,)

        handle = lm.blocks[block].self_attn.o_proj.register_forward_pre_hook(hook)
        with torch.no_grad():
            logits = lm.model(lm.encode(berlin).ids).logits[0, -1]
        handle.remove()
        return float(ahead(logits) - ahead(found.last_logits[0]))

    text = (DOCS / "helpers.md").read_text(encoding="utf-8")
    guessed, cost = map(
        float, re.search(r"head 23\.4 for ([\d.]+) nats, and the patch costs (\d+\.\d+)", text).groups()
    )
    assert abs(float(estimate[23, 4]) + guessed) < 0.006 and abs(patched(23, 4) + cost) < 0.006
    strongest = [divmod(i, lm.n_heads) for i in estimate.abs().flatten().topk(10).indices.tolist()]
    others = [(23, 0), (0, 4), (1, 4), (12, 0), (16, 4)]
    assert min(abs(patched(*head)) for head in strongest) > max(abs(patched(*head)) for head in others)
