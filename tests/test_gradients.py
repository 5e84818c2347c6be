"""Gradients: of tensors that are given to edits, and of one number with respect to everything that a trace records."""

import pytest
import torch
from reference import far
from test_trace import DROPOUT, FAMILIES, some_ids
from tiny import tiny

from helpers import (
    add_to_block,
    edit,
    patch_block,
    replace_heads,
    scale_attention,
    scale_block,
    scale_mlp,
    skip_block,
    trace,
    zero_heads,
)  # fmt: skip
from helpers.errors import BadValue

IDS = some_ids(2)


def draw(*shape, seed=3):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def number_of(logits):
    """One number from logits (batch, pos, vocabulary), with every position in it."""
    return (logits * draw(*logits.shape, seed=8)).sum()


def sharp(family):
    """(model, step, tolerance) for finite differences.

    Three families compute everything in float64, with attention by sdpa. In the others a norm or softmax runs in float32
    whatever the model's dtype is, so that a small step would only measure its rounding.
    """
    if family in ("gpt2", "gpt_neox", "opt"):
        return tiny(family, attention="sdpa"), 1e-6, 1e-5
    return tiny(family), 1e-3, 2e-2


def loss(lm, *edits):
    with edit(lm, *edits):
        return number_of(lm.model(input_ids=IDS, use_cache=False).logits)


LEARNED = {
    "steering vector": (lambda v: add_to_block(1, v), draw(24)),
    "steering vector at positions": (lambda v: add_to_block(1, v, slice(2, 5)), draw(24)),
    "patch": (lambda v: patch_block(1, v, [3]), draw(24)),
    "heads": (lambda v: replace_heads(2, [1, 3], v), draw(2, 1)),
    "factor of a block": (lambda v: scale_block(1, v), torch.tensor(0.7, dtype=torch.float64)),
    "factor of attention": (lambda v: scale_attention(1, v), torch.tensor([0.7], dtype=torch.float64)),
    "factor of an MLP": (lambda v: scale_mlp(1, v), torch.tensor(-0.7, dtype=torch.float64)),
}


@pytest.mark.parametrize("case", LEARNED)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_given_to_an_edit_keeps_its_gradient(family, case):
    """Against central differences: the edit is made anew from numbers without a graph."""
    lm, step, bound = sharp(family)
    make, start = LEARNED[case]
    learned = start.clone().requires_grad_()
    loss(lm, make(learned)).backward()
    direction = draw(*start.shape, seed=5)
    with torch.no_grad():
        up, down = (loss(lm, make(start + sign * step * direction)) for sign in (1, -1))
    slope = ((up - down) / (2 * step)).item()
    assert learned.grad.abs().max() > 0
    assert abs((learned.grad * direction).sum().item() - slope) < bound * max(1.0, abs(slope))


def test_a_steering_vector_can_be_learned_in_a_loop():
    """One edit, made before the loop: each pass uses the vector as it is then, as a hook by hand does."""
    lm = tiny("llama")
    for parameter in lm.model.parameters():
        parameter.requires_grad_(False)

    def learn(step):
        vector = torch.zeros(24, dtype=torch.float64, requires_grad=True)
        one, optimizer, losses = add_to_block(1, vector), torch.optim.SGD([vector], lr=1e-5), []
        for _ in range(5):
            optimizer.zero_grad()
            losses.append(step(one, vector))
            losses[-1].backward()
            optimizer.step()
        return torch.stack(losses).detach(), vector.detach()

    def by_hook(_, vector):
        add = lambda m, i, o: (o[0] + vector, *o[1:]) if isinstance(o, tuple) else o + vector  # noqa: E731
        handle = lm.blocks[1].register_forward_hook(add)
        found = number_of(lm.model(input_ids=IDS, use_cache=False).logits)
        handle.remove()
        return found

    losses, vector = learn(lambda one, _: loss(lm, one))
    expected, by_hand = learn(by_hook)
    assert losses.equal(expected) and vector.equal(by_hand) and losses[-1] < losses[0]


def by_plain_hooks(lm):
    """The same gradients with raw hooks and retain_grad, at the streams and at the input of the output projection."""
    kept = {}

    def entered(name):
        def hook(module, args, kwargs):
            kept[name] = args[0] if args else kwargs["hidden_states"]
            kept[name].retain_grad()

        return hook

    handles = []
    for number, block in enumerate(lm.blocks):
        handles.append(block.register_forward_pre_hook(entered(("resid", number)), with_kwargs=True))
        projection = lm.part(number, lm.parts.heads_out)
        handles.append(projection.register_forward_pre_hook(entered(("heads", number)), with_kwargs=True))
    handles.append(lm.final_norm.register_forward_pre_hook(entered(("resid", lm.n_blocks)), with_kwargs=True))
    number_of(lm.model(input_ids=IDS, use_cache=False).logits).backward()
    for handle in handles:
        handle.remove()
    lm.model.zero_grad()
    resid = torch.stack([kept["resid", number].grad for number in range(lm.n_blocks + 1)])
    heads = torch.stack([kept["heads", number].grad for number in range(lm.n_blocks)])
    return resid, heads.unflatten(-1, (lm.n_heads, lm.d_head))


@pytest.mark.parametrize("frozen", [False, True], ids=["parameters learn", "frozen"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_a_trace_are_those_of_autograd_by_plain_hooks(family, frozen):
    lm = tiny(family)
    resid, heads = by_plain_hooks(lm)
    for parameter in lm.model.parameters():
        parameter.requires_grad_(not frozen)
    plain = trace(lm, IDS)
    with torch.no_grad():  # it makes its own graph, whatever surrounds it
        found = trace(lm, IDS, gradients=lambda seen: number_of(seen.logits))
    slopes = found.gradients
    assert far(slopes.resid, resid) < 1e-12 and far(slopes.heads, heads) < 1e-12
    assert slopes.value == number_of(plain.logits).item()
    for field in ("resid", "attn", "mlp", "heads", "final", "logits"):
        value = getattr(found, field)
        assert value.equal(getattr(plain, field)) and not value.requires_grad
    assert all(parameter.grad is None for parameter in lm.model.parameters())
    assert not [hook for module in lm.model.modules() for hook in module._forward_hooks]


def slopes_by_pushing(lm, field, step):
    """(gradients' answer, finite difference) for each block: a small push at attention's or the MLP's delta, by a raw hook."""
    slopes = trace(lm, IDS, gradients=lambda seen: number_of(seen.logits)).gradients
    path = {"attn": lm.parts.attention_delta, "mlp": lm.parts.mlp_delta}[field]
    for block in range(lm.n_blocks):
        direction = draw(*IDS.shape, lm.d_model, seed=block)

        def pushed(sign):
            def hook(module, args, output):
                value = output[0] if isinstance(output, tuple) else output
                # Granite multiplies what its modules return on the way into the stream.
                new = value + sign * step * direction.reshape(value.shape) / lm.delta_factor(block)
                return (new, *output[1:]) if isinstance(output, tuple) else new

            handle = lm.part(block, path).register_forward_hook(hook)
            with torch.no_grad():
                found = number_of(lm.model(input_ids=IDS, use_cache=False).logits).item()
            handle.remove()
            return found

        yield (getattr(slopes, field)[block] * direction).sum().item(), (pushed(1) - pushed(-1)) / (2 * step)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_deltas_agree_with_finite_differences(family):
    lm, step, bound = sharp(family)
    for field in ("attn", "mlp"):
        for found, slope in slopes_by_pushing(lm, field, step):
            assert abs(found - slope) < bound * max(1, abs(slope))


def test_gradients_see_edits_and_stop_where_the_trace_stops():
    lm = tiny("llama")
    score = lambda seen: number_of(seen.logits)  # noqa: E731
    with edit(lm, skip_block(1), zero_heads(2, 3)):
        slopes = trace(lm, IDS, gradients=score).gradients
    assert not slopes.attn[1].any() and not slopes.mlp[1].any() and slopes.resid[1].equal(slopes.resid[2])
    assert slopes.heads[2][:, :, 3].any()  # recorded after the edit: what a head would do there if it said something
    half = trace(lm, IDS, stop_after=1, gradients=lambda seen: (seen.resid[-1] * draw(24)).sum())
    assert half.logits is None and half.gradients.resid[-1].equal(draw(24).expand(2, 11, 24))


def test_attribution_patching_is_near_patching_for_a_small_change():
    """Nanda 2023: the sum of (other − clean) · gradient approximates what patching a head does."""
    lm = tiny("gpt2")
    clean = trace(lm, IDS, gradients=lambda seen: number_of(seen.logits))
    other = clean.heads + 1e-4 * draw(*clean.heads.shape)
    estimate = ((other - clean.heads) * clean.gradients.heads).sum((1, 2, 4))  # (n_blocks, n_heads)
    for block in range(lm.n_blocks):
        for head in range(lm.n_heads):
            with edit(lm, replace_heads(block, head, other[block][:, :, [head]])):
                patched = number_of(lm.logits(IDS)).item() - clean.gradients.value
            assert abs(patched - estimate[block, head].item()) < 1e-2 * max(1e-3, abs(patched))


def test_gradients_of_no_number_are_refused():
    lm = tiny("opt", **DROPOUT["opt"])
    for bad, sentence in (
        (5, "must be a function"), (lambda seen: seen.logits, r"a tensor of shape \(2, 11, 97\): sum it"),
        (lambda seen: 3.0, "a float"), (lambda seen: seen.logits.detach().sum(), "does not depend on the pass"),
    ):  # fmt: skip
        with pytest.raises(BadValue, match=sentence):
            trace(lm, IDS, gradients=bad)
    with torch.inference_mode(), pytest.raises(BadValue, match="inference_mode"):
        trace(lm, IDS, gradients=lambda seen: seen.logits.sum())
    lm.model.train()
    with pytest.raises(BadValue, match=r"train mode.*lm\.model\.eval\(\)"):
        trace(lm, IDS, gradients=lambda seen: seen.logits.sum())
    assert not [hook for module in lm.model.modules() for hook in (*module._forward_hooks, *module._forward_pre_hooks)]
