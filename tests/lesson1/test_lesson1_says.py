"""What lesson 1 says in words, checked apart from its own code: with weights, plain hooks and autograd."""

import copy

import pytest
import torch

from helpers import edit, load_model, scale_block, smollm2, trace
from helpers.course import exercise as core
from helpers.course.exercise import tiny_model
from helpers.course.words import Words
from helpers.lesson1.exercises import EXERCISES, PROMPT, WORD
from helpers.lesson1.words import probability, show_next_words, word_finding


@pytest.mark.parametrize("factor", [0.5, 1.5])
def test_scaling_a_block_is_scaling_all_that_comes_after_it_the_other_way(factor):
    """By weights: what later parts add is multiplied by 1 / factor. Only the small constant in the norm makes a difference."""
    lm, ids = tiny_model(3), torch.arange(8)
    with edit(lm, scale_block(1, factor)):
        scaled = trace(lm, ids)
    other = copy.deepcopy(lm)
    with torch.no_grad():
        for block in other.blocks[2:]:
            for projection in (block.attn.c_proj, block.mlp.c_proj):
                projection.weight /= factor
                projection.bias /= factor
    louder = trace(other, ids)
    apart, moved = (float((scaled.logits - run.logits).abs().max()) for run in (louder, trace(lm, ids)))
    assert apart < 1e-3 and moved > 0.1
    assert torch.allclose(scaled.resid[-1], factor * louder.resid[-1], atol=1e-3 * float(scaled.resid[-1].std()))


def test_an_edit_in_place_can_break_autograd():
    lm = tiny_model(3)
    for change, works in ((lambda state: state * 0.5, True), (lambda state: state.mul_(0.5), False)):
        out = lm.model(torch.arange(6)[None], output_hidden_states=True)
        change(out.hidden_states[2])
        if works:
            out.logits.mean().backward()
        else:
            with pytest.raises(RuntimeError, match="inplace"):
                out.logits.mean().backward()


def test_a_probability_is_that_of_softmax(pocket):
    ids = pocket.encode("Berlin is the capital of").ids
    with torch.no_grad():
        expected = pocket.model(ids).logits[0, -1].softmax(-1)[pocket.token_id(" Germany")]
    assert probability(pocket, trace(pocket, ids[0]), " Germany") == pytest.approx(float(expected))


def test_the_table_of_next_words_has_the_top_of_each_run(pocket, capsys):
    clean = trace(pocket, "Berlin is the capital of")
    with edit(pocket, scale_block(2, 0.0)):
        empty = trace(pocket, "Berlin is the capital of")
    show_next_words(pocket, {"as it is": clean, "empty": empty}, most=2)
    shown = capsys.readouterr().out
    for run in (clean, empty):
        for token in run.last_logits[0].topk(2).indices.tolist():
            assert repr(pocket.tokenizer.decode([token])) in shown


@pytest.mark.parametrize(
    ("edited", "said"),
    [
        ([0.5, 0.1], "' a' stays first: 0.9 before, 0.5 after"),
        ([0.1, 0.5], "' a' goes from 0.9 to 0.1, and ' b' is first with 0.5"),
    ],
)
def test_what_becomes_of_the_word(edited, said):
    assert word_finding(Words([" a", " b"], [0.9, 0.05], edited)) == said


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.number)
def test_a_machine_without_the_real_model_sees_a_finding_too(exercise, monkeypatch):
    monkeypatch.setattr(smollm2, "is_here", lambda: False)
    said = core.found(exercise, exercise.solution)
    assert "the pocket model" in said and "cannot be shown" not in said


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.number)
def test_each_exercise_knows_three_other_ways_and_five_mistakes(exercise):
    assert len(exercise.right) >= 3 and len(exercise.wrong) >= 5


def after_scaling(lm, factor):
    """For each block: the probability of the right word when this block is scaled, and the first choice then."""
    found = []
    for block in range(lm.n_blocks):
        with edit(lm, scale_block(block, factor)):
            run = trace(lm, PROMPT)
        found.append((probability(lm, run, WORD), lm.tokenizer.decode([int(run.last_logits[0].argmax())])))
    return found


def test_the_folded_answer_about_the_pocket_model_is_right(pocket):
    """l1-exercise-5-text: no output of the notebook shows these numbers."""
    found = after_scaling(pocket, 1.5)
    block = min(range(pocket.n_blocks), key=lambda one: found[one][0])
    chance, first = found[block]
    assert (block, round(chance, 2), first) == (7, 0.11, " a")
    assert round(probability(pocket, trace(pocket, PROMPT), WORD), 2) == 0.43


@pytest.mark.skipif(not smollm2.is_here(), reason="the real model has not been brought")
def test_the_folded_answer_about_the_real_model_is_right():
    real = load_model("smollm2")
    kept = [block for block, (_, first) in enumerate(after_scaling(real, 0.5)) if first == WORD]
    assert kept == [0, 1, 12, 13, 18, 19, 20, 21, *range(23, 30)]
