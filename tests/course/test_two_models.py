"""Every lesson's panel on two models at once. The other model has grouped-query attention: 4 heads, 2 key heads, 4 blocks."""

import pytest
import torch

from helpers.lesson1.panel import scaling_panel
from helpers.lesson2.panel import hidden_states_panel
from helpers.lesson3.panel import components_panel
from helpers.lesson4.panel import head_panel
from helpers.lesson5.panel import skipping_panel

PROMPT = "Berlin is the capital of"
PANELS = {
    "lesson 1": scaling_panel,
    "lesson 2": hidden_states_panel,
    "lesson 3": components_panel,
    "lesson 4": lambda models, prompt: head_panel(models, prompt, " Germany", " France"),
    "lesson 5": skipping_panel,
}


def plain(lm, scale=None, skip=()):
    """(n_blocks + 1, pos, d_model) and the last token's logits, by hooks of PyTorch alone."""
    states, handles = [], []

    def hook(block):
        def see(module, args, kwargs, output):
            entered = args[0] if args else kwargs["hidden_states"]
            state = output[0] if isinstance(output, tuple) else output
            state = entered if block in skip else state * (scale or {}).get(block, 1)
            if not states:
                states.append(entered)
            states.append(state)
            return (state, *output[1:]) if isinstance(output, tuple) else state

        return see

    for block, module in enumerate(lm.model.get_submodule(lm.parts.blocks)):
        handles.append(module.register_forward_hook(hook(block), with_kwargs=True))
    try:
        with torch.no_grad():
            logits = lm.model(lm.encode(PROMPT).ids, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(states)[:, 0], logits[0, -1]


@pytest.mark.parametrize("lesson", PANELS)
def test_there_and_back(pocket, llama, lesson):
    panel = PANELS[lesson]({"pocket": pocket, "llama": llama}, PROMPT)
    alone, other = PANELS[lesson](pocket, PROMPT), PANELS[lesson](llama, PROMPT)
    assert next(iter(panel.controls)) == "model"
    assert (panel.text, panel.image, panel.words) == (alone.text, alone.image, alone.words)
    panel.controls["model"].value = "llama"
    if lesson == "lesson 5":  # block 5 is gone
        assert panel.text.startswith("Nothing is skipped.")
        assert len(panel.controls["blocks"].boxes) == llama.n_blocks
    else:
        assert panel.controls["block"].max == panel.controls["block"].value or lesson == "lesson 1"
        assert panel.controls["block"].max == llama.n_blocks - 1
        assert (panel.text, panel.image, panel.words) == (other.text, other.image, other.words)
    panel.controls["model"].value = "pocket"
    if lesson == "lesson 5":
        panel.controls["blocks"].value = (5,)
    else:
        assert panel.controls["block"].max == pocket.n_blocks - 1
        panel.controls["block"].value = alone.controls["block"].value
        if "head" in panel.controls:
            panel.controls["head"].value = alone.controls["head"].value
    assert (panel.text, panel.image, panel.words) == (alone.text, alone.image, alone.words)


@pytest.mark.parametrize("lesson", PANELS)
def test_a_panel_shows_itself_as_the_same_text_each_time(llama, lesson):
    first, second = (repr(PANELS[lesson](llama, PROMPT)) for _ in range(2))
    assert first == second and "<" not in first


def test_lesson_1_by_hand(llama):
    panel = scaling_panel({"llama": llama}, PROMPT, block=1, factor=2.0)
    clean, scaled = plain(llama)[0], plain(llama, {1: 2.0})[0]
    expected = (scaled - clean)[:, 1:].flatten(1).norm(dim=1)
    assert torch.allclose(panel.result.values, expected, atol=1e-11)


def test_lesson_3_zeroes_one_key_head_which_serves_two_heads(llama):
    panel = components_panel({"llama": llama}, PROMPT, "K of a head", block=2)
    assert panel.controls["head"].max == 1  # key heads
    panel.controls["head"].value = 1
    assert "K of head 1 → 0 (serves heads 2 and 3)" in panel.text
    weight = llama.blocks[2].self_attn.k_proj.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[llama.d_head :] = 0  # the rows of key head 1
    try:
        states, logits = plain(llama)
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    assert torch.allclose(panel.result.edited, states[:, 1:].flatten(1).std(dim=1), atol=1e-11)
    best = llama.tokenizer.decode([int(logits.argmax())])
    assert panel.result.top[1][0] == best
    assert panel.result.tokens[best][1] == pytest.approx(float(logits.softmax(-1).max()))


def test_lesson_3_names_the_models_own_activation_function(pocket, llama):
    panel = components_panel({"pocket": pocket, "llama": llama}, PROMPT, "MLP neurons")
    assert "after GELU" in panel.text
    panel.controls["model"].value = "llama"
    assert "after SiLU" in panel.text


def test_lesson_4_switches_off_one_query_head(llama):
    panel = head_panel({"llama": llama}, PROMPT, " Germany", " France", block=1, head=3)
    assert panel.controls["head"].max == 3
    target = llama.token_id(" Germany")
    before = plain(llama)[1].log_softmax(-1)[target]
    weight = llama.blocks[1].self_attn.o_proj.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[:, 3 * llama.d_head : 4 * llama.d_head] = 0  # what reads head 3
    try:
        after = plain(llama)[1].log_softmax(-1)[target]
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    assert panel.result.on_target == pytest.approx(float(after - before), abs=1e-11)
    assert float(panel.result.map[1, 3]) == pytest.approx(float(after - before), abs=1e-9)


def test_lesson_5_skips_any_set(llama):
    panel = skipping_panel({"llama": llama}, PROMPT, blocks=(0, 3))
    clean, _ = plain(llama)
    states, logits = plain(llama, skip=(0, 3))
    assert torch.allclose(panel.result.steps, states.diff(dim=0).flatten(1).norm(dim=1), atol=1e-11)
    assert torch.allclose(panel.result.clean_steps, clean.diff(dim=0).flatten(1).norm(dim=1), atol=1e-11)
    assert max(panel.result.after) == pytest.approx(float(logits.softmax(-1).max()))
