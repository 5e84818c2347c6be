"""What lesson 1 says in words, checked apart from its own code: with weights, plain hooks and autograd."""

import copy
import re
from pathlib import Path

import nbformat
import pytest
import torch

from helpers import edit, load_model, measured, scale_block, smollm2, trace
from helpers.course import exercise as core
from helpers.course.exercise import tiny_model
from helpers.course.words import Words
from helpers.lesson1.exercises import EXERCISES, PROMPT, WORD
from helpers.lesson1.stored import at_the_end, show_first_token
from helpers.lesson1.words import probability, show_next_words, word_finding

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
on_the_real_model = pytest.mark.skipif(not smollm2.is_here(), reason="the real model has not been brought")


def cells(lesson="01_downstream_scaling"):
    return {cell.id: cell for cell in nbformat.read(NOTEBOOKS / f"{lesson}.ipynb", as_version=4).cells}


def signed(value):
    return f"{value:.2f}".replace("-", "−")


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


@on_the_real_model
def test_where_a_halving_lets_the_word_stay_is_said_right():
    found = after_scaling(load_model("smollm2"), 0.5)
    kept = [block for block, (_, first) in enumerate(found) if first == WORD]
    assert kept == [0, 1, 12, 13, 18, 19, 20, 21, *range(23, 30)]
    stay = (
        f"block 0 or 1 × 0.5 leaves ` Germany` first ({found[0][0]:.2f} and {found[1][0]:.2f}), blocks 2 to 11 do not."
    )
    assert stay in cells()["l1-exercise-5-text"].source


def test_how_much_of_an_error_lasts_is_said_right():
    """Exercise 1.3's answer over 60 prompts, which stands before section 4."""

    def along(measure, first):
        where = {"scaled": 2, "factor": 0.5, "along": measure, "first token": first, "point": [*range(3, 31)]}
        return measured("smollm2", "factors").at("stream", **where)

    share, delta = along("survival", "without"), along("delta", "without")
    longer = float(delta[-2] / delta[0])
    text = cells()["l1-first-token-text"].source
    assert f"the share lies between {share[:-1].min():.2f} and {share[:-1].max():.2f} up to the last block" in text
    assert f"the whole error is then {longer:.1f} times as long" in text and float(share[-2]) / longer < 0.1
    assert f"the share from {signed(share[-2])} to {signed(share[-1])}." in text
    assert f"With the first token it ends at {along('survival', 'with')[-1]:.2f}." in text
    assert f"{share[-2]:.2f} is there before the last block, {signed(share[-1])} after it" in cells()["l1-recap"].source


@pytest.mark.parametrize("factor", [0.5, 1.5])
def test_the_end_of_a_stored_stream_is_that_of_its_cells(factor):
    stored = measured("smollm2", "factors")
    labels, dims = stored.labels, stored.dims["stream"]
    at = {"along": "relative error", "scaled": 2, "factor": factor, "first token": "without"}
    where = tuple(slice(None) if dim == "point" else labels[dim].index(at[dim]) for dim in dims)
    before, after = stored["stream"][where][[labels["point"].index(point) for point in (29, 30)]].tolist()
    assert at_the_end(stored, "relative error", 2, factor).tolist() == pytest.approx([before, after])


@on_the_real_model
def test_the_first_token_is_long_twice_and_the_norm_makes_a_dip_too():
    """By PyTorch's own hooks: how long tokens are after blocks 2, 10 and 11, and Δ of × 1.5 before and after the final norm."""
    real = load_model("smollm2", dtype=torch.float64)
    runs = []
    for factor in (1.0, 1.5):
        states = {}

        def keep(module, args, output, name, factor=factor, states=states):
            state = output[0] if isinstance(output, tuple) else output
            changed = state * factor if name == 2 else state
            states[name] = changed[0]
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        hooks = [
            module.register_forward_hook(lambda *given, name=name, keep=keep: keep(*given, name))
            for name, module in [*enumerate(real.blocks), ("norm", real.model.model.norm)]
        ]
        with torch.no_grad():
            real.model(real.encode(PROMPT).ids)
        for hook in hooks:
            hook.remove()
        runs.append(states)
    clean, longer = runs
    text = cells()["l1-writer-finding"].source

    def pair(block):
        length = clean[block].norm(dim=1)
        return f"{length[0]:.0f}", f"{length[1:].median():.0f}"

    assert "after block 2 this token is already {} long beside {}.".format(*pair(2)) in text
    assert "Blocks 8 to 10 erase that, to {} beside {};".format(*pair(10)) in text
    moved = {name: (longer[name] - clean[name]).norm(dim=1) for name in clean}
    without = {name: float(one[1:].norm()) for name, one in moved.items()}
    ratio = {block: float(moved[block].norm()) / without[block] for block in range(2, 30)}
    assert min(ratio, key=ratio.get) == 10 and f"there Δ with it is only {ratio[10]:.2f} times as large" in text
    assert f"Δ rises from {without[27]:.0f} to {without[29]:.0f}." in text
    assert f"a dip too: from {without[29]:.0f} to {without['norm']:.1f}." in text


def test_the_hump_of_the_figure_is_said_right():
    """The figure's own words hold the attention of every block; blocks 3 to 8 are those where it is above 0.7 the first time."""
    shown = "".join(str(output) for output in cells()["l1-sink"].outputs)
    clean = [float(one) for one in re.search(r"as it is: ([\d., ]+);", shown)[1].split(", ")]
    hump = clean[3:9]
    assert min(hump) > max(clean[:3] + clean[9:12])
    said = f"blocks 3 to 8 give it {min(hump):.2f} to {max(hump):.2f}, block 11, after the erasing, {clean[11]:.2f}."
    assert said in cells()["l1-sink-finding"].source


def test_what_the_recap_says_of_lesson_2_stands_there():
    assert "lesson 2 shows that this is not the whole reason" in cells()["l1-recap"].source
    assert "attention is not the whole reason" in cells("02_hooks_vs_hidden_states")["l2-mask-finding"].source


def test_the_table_of_the_first_token_has_the_stored_means(capsys):
    stored = measured("smollm2", "factors")
    show_first_token(stored, 2, (0.5, 1.5))
    shown = capsys.readouterr().out.splitlines()
    assert "60 prompts, block 2 scaled" in shown[0] and shown[1].split() == ["×", "0.5", "×", "1.5"]
    labels, stream, dims = stored.labels, stored["stream"], stored.dims["stream"]
    assert labels["point"][-2:] == [30, "norm"]

    def one(first, factor, point):
        at = {"along": "delta", "scaled": 2, "factor": factor, "first token": first, "point": point}
        return float(stream[tuple(labels[dim].index(at[dim]) for dim in dims)])

    for column, factor in ((-2, 0.5), (-1, 1.5)):
        ratio = max(one("with", factor, point) / one("without", factor, point) for point in range(3, 31))
        expected = [ratio, one("with", factor, 29), one("with", factor, 30)]
        assert [float(line.split()[column]) for line in shown[2:5]] == pytest.approx(expected, rel=1e-3)
