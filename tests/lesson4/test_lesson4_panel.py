import pytest
import torch

from helpers import capital_prompts, edit, load_model, log_prob, replace_heads, sweep_heads, trace, zero_heads
from helpers.errors import BadPrompt, BadValue, TargetIsNotOneToken
from helpers.lesson4 import panel as lesson4
from helpers.lesson4.panel import head_map, head_panel

PROMPT, TARGET, CONTRAST = "Berlin is the capital of", " Germany", " France"


@pytest.fixture(scope="module")
def lm():
    return load_model()


def test_the_map_is_the_sweep(lm):
    assert torch.allclose(head_map(lm, PROMPT, TARGET), sweep_heads(lm, PROMPT, TARGET), atol=1e-10)


@pytest.mark.parametrize("kind", ["zero", "mean", "resample"])
def test_the_chosen_head_agrees_with_the_map(lm, kind):
    found = head_map(lm, PROMPT, TARGET, kind)
    panel = head_panel(lm, PROMPT, TARGET, CONTRAST, block=2, head=7)
    panel.controls["replacement"].value = kind
    assert panel.result.on_target == pytest.approx(found[2, 7].item(), abs=1e-10)
    zero = head_map(lm, PROMPT, TARGET)
    assert torch.allclose(found, zero) == (kind == "zero")


def test_zero_is_zero(lm):
    with edit(lm, zero_heads(4, 3)):
        logits = trace(lm, PROMPT).last_logits[0]
    change = log_prob(logits, lm.token_id(TARGET)) - log_prob(lm.logits(PROMPT)[0, -1], lm.token_id(TARGET))
    assert head_map(lm, PROMPT, TARGET)[4, 3].item() == pytest.approx(change.item(), abs=1e-10)


@pytest.mark.parametrize("front", ["It is well known that ", "Paris is the capital of France. "])
def test_resample_takes_another_prompt_of_the_same_form(lm, front):
    """The other prompt has the same words in front and the same length, so that each position means the same."""
    prompt = front + PROMPT
    length = len(lm.token_ids(prompt))
    same = [front + one.prompt for one in capital_prompts(lm) if one.prompt != PROMPT]
    same = [text for text in same if len(lm.token_ids(text)) == length][: lesson4.REFERENCE]
    other = trace(lm, same[len(same) // 2]).heads[1, 0]
    with edit(lm, replace_heads(1, 5, other[:, 5:6])):
        logits = trace(lm, prompt).last_logits[0]
    expected = log_prob(logits, lm.token_id(TARGET)) - log_prob(lm.logits(prompt)[0, -1], lm.token_id(TARGET))
    assert head_map(lm, prompt, TARGET, "resample")[1, 5].item() == pytest.approx(expected.item(), abs=1e-10)


def test_other_forms_meet_at_the_last_token(lm):
    prompt = "Hello, my name is Anna and I live in a small town"
    facts = [fact.prompt for fact in capital_prompts(lm)][: lesson4.REFERENCE]
    other = trace(lm, facts[len(facts) // 2]).heads[1, 0]
    length = len(lm.token_ids(prompt))
    aligned = torch.cat([other[:1].expand(length - len(other), -1, -1), other])
    with edit(lm, replace_heads(1, 5, aligned[:, 5:6])):
        logits = trace(lm, prompt).last_logits[0]
    expected = log_prob(logits, lm.token_id(TARGET)) - log_prob(lm.logits(prompt)[0, -1], lm.token_id(TARGET))
    assert head_map(lm, prompt, TARGET, "resample")[1, 5].item() == pytest.approx(expected.item(), abs=1e-10)


def test_every_control_changes_the_picture(lm):
    panel = head_panel(lm, PROMPT, TARGET, CONTRAST)
    seen = {panel.image + panel.words}
    for name, value in {
        "block": 1, "head": 4, "replacement": "mean", "prompt": "Paris is the capital of", "target": " Spain",
        "contrast": " Kenya",
    }.items():  # fmt: skip
        panel.controls[name].value = value
        assert panel.image + panel.words not in seen, name
        seen.add(panel.image + panel.words)
    assert panel.text.startswith("With the mean in place of head 4 of block 1: log p(' Spain') changes by ")
    assert "log p(' Kenya')" in panel.text
    assert "In the frame: head 4 of block 1" in panel.image
    assert "its attention: the last token looks most at" in panel.image


def test_a_map_is_computed_once_for_each_question_and_kept_in_its_panel(lm, monkeypatch):
    asked = []

    def counted(lm, *question, progress):
        asked.append(question)
        return head_map(lm, *question, progress=progress)

    monkeypatch.setattr(lesson4, "head_map", counted)
    panel = head_panel(lm, PROMPT, TARGET, CONTRAST)
    for head in (1, 2, 3):
        panel.controls["head"].value = head
    panel.controls["replacement"].value = "mean"
    panel.controls["replacement"].value = "zero"
    assert len(asked) == 2
    head_panel(lm, PROMPT, TARGET, CONTRAST)
    assert len(asked) == 3


def test_a_map_of_a_model_that_has_changed_is_computed_anew(lm):
    panel = head_panel(lm, PROMPT, TARGET, CONTRAST)
    before = panel.result.map
    handle = lm.blocks[3].register_forward_hook(
        lambda m, a, out: (out[0] * 2, *out[1:]) if isinstance(out, tuple) else out * 2
    )
    try:
        panel.controls["head"].value = 1
        during = panel.result.map
    finally:
        handle.remove()
    panel.controls["head"].value = 2
    assert not torch.allclose(before, during)
    assert torch.allclose(panel.result.map, before, atol=1e-12)


def test_a_larger_models_map_waits_for_the_button_and_tells_how_it_goes(lm, monkeypatch):
    monkeypatch.setattr(lesson4, "SMALL", 0)
    panel = head_panel(lm, PROMPT, TARGET, CONTRAST, block=8, head=4)
    button = next(child for child in panel.widget.children if getattr(child, "description", "") == "map all heads")
    assert panel.result.map is None and "No map of the 12 blocks by 12 heads yet" in panel.image
    assert panel.text.startswith("Without head 4 of block 8: log p(' Germany') changes by")  # one head at once
    assert not button.disabled
    said = []
    panel.say = lambda text, plain=panel.say: (said.append(text), plain(text))
    button.click()
    assert button.disabled
    assert said[0].startswith("Mapping 12 × 12 heads: ") and said[-2] == "Mapping 12 × 12 heads: 100 % …"
    assert said[-1] == panel.text
    assert torch.allclose(panel.result.map, sweep_heads(lm, PROMPT, TARGET), atol=1e-10)
    assert panel.result.on_target == pytest.approx(float(panel.result.map[8, 4]), abs=1e-10)
    panel.controls["prompt"].value = "Paris is the capital of"
    assert panel.result.map is None and not button.disabled
    panel.controls["prompt"].value = PROMPT
    assert panel.result.map is not None and button.disabled


def test_the_button_explains_a_bad_question(lm, monkeypatch):
    monkeypatch.setattr(lesson4, "SMALL", 0)
    panel = head_panel(lm, PROMPT, TARGET, CONTRAST)
    panel.controls["target"].value = " East Germany"
    next(child for child in panel.widget.children if getattr(child, "description", "") == "map all heads").click()
    assert panel.text.startswith("' East Germany' is 2 tokens here")


def test_the_attention_is_the_heads_own(lm):
    panel = head_panel(lm, PROMPT, TARGET, CONTRAST, block=8, head=4)
    weights = lm.model(lm.encode(PROMPT).ids, output_attentions=True).attentions[8][0, 4]
    assert torch.allclose(panel.result.pattern, weights)
    most = int(weights[-1].argmax())
    assert f"the last token looks most at {lm.token_strings(PROMPT)[most]!r}" in panel.text


def test_a_model_that_does_not_tell_its_attention_says_so(lm, monkeypatch):
    def refuse(lm, prompt):
        raise BadValue("this model's attention does not write its patterns down.")

    monkeypatch.setattr(lesson4, "attention_patterns", refuse)
    panel = head_panel(lm, PROMPT, TARGET, CONTRAST)
    assert panel.result.pattern is None and "<img" in panel.image and "looks most" not in panel.text


@pytest.mark.parametrize("name", ["target", "contrast"])
def test_a_target_of_several_tokens_is_told_with_its_pieces(lm, name):
    panel = head_panel(lm, PROMPT, TARGET, CONTRAST)
    good = panel.text
    panel.controls[name].value = " East Germany"
    assert panel.text.startswith("' East Germany' is 2 tokens here (' East', ' Germany')")
    assert panel.image == ""
    panel.controls["head"].value = 1
    assert panel.text.startswith("' East Germany' is 2 tokens here")
    panel.controls[name].value = {"target": TARGET, "contrast": CONTRAST}[name]
    panel.controls["head"].value = 0
    assert panel.text == good


@pytest.mark.parametrize("prompt", ["", "water " * 500])
def test_a_bad_prompt_is_told_and_the_panel_lives_on(lm, prompt):
    panel = head_panel(lm, PROMPT, TARGET, CONTRAST)
    good = panel.text
    panel.controls["prompt"].value = prompt
    assert "prompt" in panel.text and panel.image == ""
    panel.controls["prompt"].value = PROMPT
    assert panel.text == good


def test_the_sliders_cover_the_model(lm):
    panel = head_panel(lm, PROMPT, TARGET, CONTRAST)
    assert (panel.controls["block"].min, panel.controls["block"].max) == (0, lm.n_blocks - 1)
    assert (panel.controls["head"].min, panel.controls["head"].max) == (0, lm.n_heads - 1)
    assert [value for _, value in panel.controls["replacement"].options] == ["zero", "mean", "resample"]


def test_mistakes_have_their_own_class(lm):
    with pytest.raises(TargetIsNotOneToken):
        head_map(lm, PROMPT, " Atlantis")
    with pytest.raises(BadPrompt):
        head_map(lm, "", TARGET)
    with pytest.raises(BadValue, match="replacement 'median' is unknown"):
        head_map(lm, PROMPT, TARGET, "median")


def test_the_panel_leaves_no_hook_behind(lm):
    before = trace(lm, PROMPT).logits
    panel = head_panel(lm, PROMPT, TARGET, CONTRAST)
    panel.controls["head"].value = 5
    assert torch.equal(trace(lm, PROMPT).logits, before)
