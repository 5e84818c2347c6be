"""What the cells of lesson 3 run, against plain hooks and plain arithmetic."""

import re
from contextlib import contextmanager

import pytest
import torch
from tiny import tiny

from helpers import edit, spread, trace, zero_keys
from helpers.course.words import words_side_by_side
from helpers.lesson3 import runs
from helpers.plots.style import description

IDS = torch.arange(7)


class Words:
    """A tokenizer of one token per word, word0 to word96."""

    def __call__(self, text, **options):
        return {"input_ids": [int(word.removeprefix("word")) for word in text.split()]}

    def decode(self, ids):
        return f" word{ids[0]}"


@pytest.fixture
def lm():
    model = tiny("gpt2")
    model.tokenizer = Words()
    return model


@contextmanager
def plain(*handles):
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def neurons_hook(lm, block, make):
    """A plain pre-hook that replaces the even neurons by make(neurons)."""

    def hook(module, args):
        new = args[0].clone()
        new[..., ::2] = make(args[0])[..., ::2]
        return (new,)

    return lm.blocks[block].mlp.c_proj.register_forward_pre_hook(hook)


def logits(lm):
    with torch.no_grad():
        return lm.model(IDS[None]).logits


def kl(clean, edited):
    p, q = clean.log_softmax(-1), edited.log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_later_blocks_scale_what_each_later_part_writes(lm):
    later = [lm.blocks[b].attn.c_proj for b in range(2, lm.n_blocks)] + [
        lm.blocks[b].mlp.c_proj for b in range(2, lm.n_blocks)
    ]
    with plain(*(part.register_forward_hook(lambda m, a, out: 0.1 * out) for part in later)):
        expected = logits(lm)
    with edit(lm, *runs.later_blocks(lm, 1, 0.1)):
        assert torch.allclose(lm.logits(IDS), expected, atol=1e-12)


def test_a_factor_on_the_stream_is_its_inverse_on_what_follows(lm):
    """The lesson's third finding, by plain hooks: the norm at each entrance removes the length."""
    with plain(
        lm.blocks[1].register_forward_hook(lambda m, a, out: 10 * out[0] if isinstance(out, tuple) else 10 * out)
    ):
        louder = logits(lm)
    with edit(lm, *runs.later_blocks(lm, 1, 0.1)):
        quieter = lm.logits(IDS)
    assert (louder - logits(lm)).abs().max() > 0.1
    assert torch.allclose(louder.log_softmax(-1), quieter.log_softmax(-1), atol=1e-3)  # the norm's epsilon


def test_noise_like_the_neurons_has_each_neurons_mean_and_width(lm):
    def fair(neurons):
        drawn = torch.randn(neurons.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        flat = neurons.flatten(0, 1)
        return flat.mean(0) + flat.std(0) * drawn

    with plain(neurons_hook(lm, 2, fair)):
        expected = logits(lm)
    with edit(lm, runs.natural_noise(2, seed=3)):
        assert torch.allclose(lm.logits(IDS), expected, atol=1e-12)


def test_another_tokens_value_is_its_own_neurons(lm):
    with plain(neurons_hook(lm, 2, lambda neurons: torch.cat([neurons[:, 4:], neurons[:, :4]], dim=1))):
        expected = logits(lm)
    with edit(lm, runs.other_token(2)):
        assert torch.allclose(lm.logits(IDS), expected, atol=1e-12)


def test_what_replacements_cost(lm):
    costs = runs.replacements(lm, IDS, 2)
    clean = logits(lm)
    for name, value in (("10 exactly", 10.0),):
        with plain(neurons_hook(lm, 2, lambda neurons, value=value: torch.full_like(neurons, value))):
            assert costs[name] == pytest.approx(kl(clean, logits(lm)))
    with plain(neurons_hook(lm, 2, lambda neurons: torch.cat([neurons[:, 4:], neurons[:, :4]], dim=1))):
        assert costs["own value at another token"] == pytest.approx(kl(clean, logits(lm)))
    assert next(iter(costs)) == "noise of mean 10" and costs == runs.replacements(lm, IDS, 2)  # seeded


def test_the_share_that_is_the_same_at_each_token():
    vector = torch.randn(1, 1, 8, generator=torch.Generator().manual_seed(0))
    assert runs.same_at_each_token(vector.expand(2, 5, 8)) == pytest.approx(1)
    assert runs.same_at_each_token(torch.cat([vector, -vector], dim=1)) == pytest.approx(0)
    half = torch.cat([vector, torch.zeros_like(vector)], dim=1)
    assert runs.same_at_each_token(half) == pytest.approx(0.5)


def test_noise_facts_are_those_that_a_hook_sees(lm):
    seen, streams = [], []
    spy = lm.blocks[2].mlp.c_proj.register_forward_pre_hook(lambda m, a: seen.append(a[0].detach()))
    with plain(spy):
        logits(lm)
    natural = seen[0].flatten()

    def stream(module, args, output):
        streams.append((output[0] if isinstance(output, tuple) else output).detach())

    def noise(neurons):
        drawn = torch.randn(neurons[..., ::2].shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        new = neurons.clone()
        new[..., ::2] = 10 + drawn
        return new

    with plain(lm.blocks[2].register_forward_hook(stream)):
        logits(lm)
        with plain(neurons_hook(lm, 2, noise)):
            logits(lm)
    change = streams[1] - streams[0]
    share = change.mean(1).pow(2).sum() * change.shape[1] / change.pow(2).sum()
    below, _zero, mean, far, same = map(float, re.findall(r"\d+", runs.noise_facts(lm, IDS, 2)))
    assert below == round(float((natural <= 0).double().mean() * 100)) and mean == 10
    assert far == round(float((10 - natural.mean()) / natural.std())) and same == round(float(share * 100))


def test_what_heads_write_is_their_part_of_the_projections_input(lm):
    rows = runs.what_heads_write(lm, IDS, 1, [1, 2], {"clean": None, "keys": zero_keys(1, [1])})
    seen = []
    with plain(lm.blocks[1].attn.c_proj.register_forward_pre_hook(lambda m, a: seen.append(a[0].detach()))):
        clean = logits(lm)
        with edit(lm, zero_keys(1, [1])):
            edited = logits(lm)
    for label, value, after in zip(rows, seen, (clean, edited), strict=True):
        part = value.view(1, 7, lm.n_heads, lm.d_head)[:, 1:, 1:3]
        assert rows[label] == pytest.approx([float(part.norm()), kl(clean[:, -1], after[:, -1])], abs=1e-12)
    assert not lm.live_edits


def test_lengths_are_exchanged_and_directions_kept():
    a, b = torch.randn(2, 1, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    new = runs.with_lengths_of(a, b)
    assert torch.allclose(new.norm(dim=-1), b.norm(dim=-1))
    assert torch.allclose(torch.cosine_similarity(new, a, dim=-1), torch.ones(1, 5, dtype=torch.float64))


def test_words_stand_side_by_side(lm):
    clean = logits(lm)[:, -1]
    table = words_side_by_side(lm, {"clean": clean[0], "other": -clean[0]}, "Words", most=2)
    best = [*clean[0].topk(2).indices.tolist(), *(-clean[0]).topk(2).indices.tolist()]
    assert [row[0] for row in table.rows] == [f"' word{i}'" for i in best]
    assert table.header == ("next word", "clean", "other")
    assert float(table.rows[0][1]) == pytest.approx(float(clean.softmax(-1).max()), rel=1e-2)


def test_the_top_word_is_that_of_the_edited_run(lm):
    text = "word3 word1 word4 word15"
    with edit(lm, runs.natural_noise(1)):
        best = int(lm.logits(text)[0, -1].argmax())
    assert runs.top_word(lm, text, runs.natural_noise(1)) == f" word{best}"
    assert runs.top_word(lm, text) == f" word{int(lm.logits(text)[0, -1].argmax())}"


def test_a_figure_of_runs_draws_their_spread_and_says_their_words(lm):
    ids = torch.tensor([3, 1, 4, 15])
    clean = trace(lm, ids)
    with edit(lm, *runs.later_blocks(lm, 1, 10)):
        louder = trace(lm, ids)
    ax = runs.plot_runs(lm, {"clean": clean, "× 10": louder}, 1)
    assert list(ax.lines[0].get_ydata()) == pytest.approx(spread(clean.resid[:, :, 1:]).tolist())
    assert list(ax.lines[1].get_ydata()) == pytest.approx([float(clean.final[:, 1:].std())])
    assert "without the first token" in ax.get_ylabel() and "without the first token" in description(ax)
    word = f"' word{int(clean.last_logits[0].argmax())}'"
    assert word in description(ax) and ax.get_legend().get_texts()[0].get_text() == f"clean: {word}"


def test_the_end_of_a_stream_is_told_by_spreads_and_by_lengths():
    class Run:
        resid = torch.zeros(15, 1, 3, 2, dtype=torch.float64)

    class Model:
        def token_strings(self, prompt):
            return prompt.split()

    Run.resid[12, 0, 1] = torch.tensor([3000.0, 4000.0])
    Run.resid[13, 0, 1:] = torch.tensor([[1.0, -1.0], [2.0, -2.0]])
    Run.resid[14, 0] = torch.tensor([[60.0, 80.0], [3.0, 4.0], [0.0, 1.0]])
    facts = dict(zip(runs.END_FACTS, runs.end_facts(Model(), "a b c", Run), strict=True))
    assert facts["median length of a token"] == "5" and facts["longest after block 11"] == "'b' 5,000"
    spreads = [facts[name] for name in list(facts)[:3]]
    expected = [Run.resid[-1].std(), Run.resid[-1, :, 1:].std(), (10 / 3) ** 0.5]
    assert spreads == pytest.approx([float(one) for one in expected])


def test_hooks_are_tried_on_each_form():
    def both(module, args, output):
        return (output[0] * 0.1, *output[1:]) if isinstance(output, tuple) else output * 0.1

    assert runs.on_each_form(both, 0.1) == ["right", "right"]
    assert runs.on_each_form(lambda m, a, out: (out[0].mul(0.1),) + out[1:], 0.1) == ["right", "TypeError"]  # noqa: RUF005
    assert runs.on_each_form(lambda m, a, out: _in_place(out), 0.1) == [
        "right",
        "scales 1 of 3 prompts",
    ]
    assert runs.on_each_form(lambda m, a, out: out[0] * 0.1, 0.1) == ["a tensor goes out", "shape (5, 4) goes out"]
    assert runs.on_each_form(lambda m, a, out: None, 0.1) == ["scales 0 of 3 prompts"] * 2


def _in_place(output):
    output[0].mul_(0.1)


def test_the_form_of_a_block_is_what_a_hook_sees():
    from helpers import load_model

    lm, seen = load_model(), []
    with plain(lm.blocks[0].register_forward_hook(lambda m, a, out: seen.append(out))):
        lm.logits(runs.WATER)
    assert runs.block_form(lm) == (f"a tuple of {len(seen[0])}" if isinstance(seen[0], tuple) else "a tensor")


def test_the_lengths_of_values_are_those_of_the_fused_projection(lm):
    seen = []
    with plain(lm.blocks[1].attn.c_attn.register_forward_hook(lambda module, args, output: seen.append(output))):
        logits(lm)
    values = seen[0][0, :, 2 * lm.d_model :].unflatten(-1, (lm.n_heads, lm.d_head))[:, 1]
    assert torch.allclose(runs.value_lengths(lm, IDS, 1, 1), values.norm(dim=-1))


def test_logits_are_those_of_the_last_token_while_the_edits_are_on(lm):
    one, other = zero_keys(0, [1]), zero_keys(1, [0])
    with edit(lm, one, other):
        expected = lm.logits(IDS)[:, -1]
    assert torch.equal(runs.logits_with(lm, IDS, one, other), expected)
    assert not torch.equal(runs.logits_with(lm, IDS), expected)
