"""Nothing leaks: whatever happens in whatever order, the model is afterwards what it was.

The first test makes random sequences of edits, traces, sweeps, failures and interrupts; the second interrupts one `with`
and one trace at each line of our code in turn.
"""

import contextlib
import linecache
import sys

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from tiny import tiny

from helpers import (
    add_to_block,
    applying,
    change,
    edit,
    edits,
    hooks,
    live,
    noise_neurons,
    passes,
    positions,
    recording,
    replay,
    scale_block,
    scale_mlp,
    sites,
    skip_attention,
    skip_block,
    staircase,
    sweeps,
    trace,
    tracing,
    zero_heads,
    zero_keys,
)  # fmt: skip
from helpers.errors import BadEdit

IDS = torch.arange(2, 12).reshape(2, 5)
SEQUENCES = 1000
LMS = {
    family: tiny(family, n_layer=2) if family == "gpt2" else tiny(family, num_hidden_layers=2)
    for family in ("gpt2", "opt")
}
CLEAN = {family: trace(lm, IDS) for family, lm in LMS.items()}
PARAMETERS = {family: [p.clone() for p in lm.model.parameters()] for family, lm in LMS.items()}


class Mistake(Exception):
    """What a learner's own function raises."""


def hooks_of(lm):
    return [
        (name, list(module._forward_hooks), list(module._forward_pre_hooks))
        for name, module in lm.model.named_modules()
    ]


def raising(error):
    def function(value):
        raise error

    return function


blocks, factors = st.integers(0, 1), st.sampled_from([0.0, 0.5, -2.0])
some_edits = st.one_of(
    st.builds(scale_block, blocks, factors, st.sampled_from([None, 0, slice(1, 3), [1, -1]])),
    st.builds(scale_mlp, blocks, factors),
    st.builds(skip_block, blocks),
    st.builds(skip_attention, blocks),
    st.builds(zero_heads, blocks, st.lists(st.integers(0, 3), min_size=1, unique=True)),
    st.builds(zero_keys, blocks, st.integers(0, 3)),
    st.builds(lambda block: add_to_block(block, torch.ones(24)), blocks),
    st.builds(lambda block: noise_neurons(block, [0, 1], 0, 1, torch.Generator().manual_seed(0)), blocks),
    st.builds(lambda site, block: change(site, block, torch.Tensor.neg_), st.sampled_from(sites.SITES), blocks),
)
failing = st.builds(
    lambda site, block, error: change(site, block, raising(error)),
    st.sampled_from(sites.SITES), blocks, st.sampled_from([Mistake, KeyboardInterrupt, MemoryError]),
)  # fmt: skip


class Life(RuleBasedStateMachine):
    """What learners do with a model in an afternoon."""

    @initialize(family=st.sampled_from(list(LMS)), hooks=st.integers(0, 2))
    def start(self, family, hooks):
        self.family, self.lm = family, LMS[family]
        self.open, self.generators, self.own = [], [], []
        for _ in range(hooks):
            self.hang(0)

    @rule(block=blocks)
    def hang(self, block):
        """A learner's own hook that only looks."""
        self.own.append(self.lm.blocks[block].register_forward_hook(lambda *_: None))

    @rule()
    def take_off(self):
        if self.own:
            self.own.pop(0).remove()

    @rule(chosen=st.lists(some_edits, max_size=2))
    def enter(self, chosen):
        one = edit(self.lm, *chosen)
        one.__enter__()
        self.open.append(one)

    @rule()
    def leave(self):
        if self.open:
            self.open.pop().__exit__(None, None, None)

    @rule(chosen=some_edits, stop=st.sampled_from([None, 0, 1]))
    def look(self, chosen, stop):
        with edit(self.lm, chosen):
            trace(self.lm, IDS, stop_after=stop)

    @rule(chosen=some_edits, bad=failing)
    def fail(self, chosen, bad):
        with pytest.raises((Mistake, KeyboardInterrupt, MemoryError)):
            with edit(self.lm, chosen), edit(self.lm, bad, chosen):
                trace(self.lm, IDS)

    @rule(bad=st.sampled_from([skip_block(9), zero_heads(0, 9), scale_block(0, 2, 77)]))
    def mistake(self, bad):
        with pytest.raises(ValueError, match="does not exist"):
            with edit(self.lm, skip_block(1), bad):
                trace(self.lm, IDS)

    @rule(block=blocks)
    def interrupt(self, block):
        """Control-C in the middle of a forward: raised by a hook that is not ours."""
        handle = self.lm.blocks[block].register_forward_pre_hook(lambda *_: raising(KeyboardInterrupt)(None))
        with pytest.raises(KeyboardInterrupt):
            with edit(self.lm, skip_block(0)):
                trace(self.lm, IDS)
        handle.remove()

    @rule(chosen=some_edits, steps=st.integers(0, 2))
    def generate(self, chosen, steps):
        """A generator that stops in the middle of its `with`; it is closed by some later step, or at the end."""

        def edited():
            with edit(self.lm, chosen):
                while True:
                    yield trace(self.lm, IDS)

        self.generators.append(edited())
        for _ in range(steps):
            next(self.generators[-1])

    @rule()
    def close_the_oldest_generator(self):
        if self.generators:
            self.generators.pop(0).close()

    @rule(bad=st.booleans())
    def sweep(self, bad):
        if any(one.name.startswith("noise_neurons") for group in self.lm.live_edits for one in group):
            with pytest.raises(BadEdit, match="draws anew"):
                sweeps.sweep_heads(self.lm, IDS, target=5)
        elif bad:
            handle = self.lm.blocks[1].register_forward_hook(lambda *_: raising(KeyboardInterrupt)(None))
            with pytest.raises(KeyboardInterrupt):
                sweeps.sweep_heads(self.lm, IDS, target=5)
            handle.remove()
        else:
            sweeps.sweep_heads(self.lm, IDS, target=5)

    @invariant()
    def only_live_edits_hang(self):
        if hasattr(self, "lm"):
            assert len(self.lm.live_edits) == len(self.open) + sum(g.gi_suspended for g in self.generators)

    def teardown(self):
        if not hasattr(self, "lm"):
            return
        for generator in self.generators:
            generator.close()
        for one in self.open:  # outermost first: the wrong way round, as generators may do
            one.__exit__(None, None, None)
        assert self.lm.live_edits == [] and self.lm.edit_handles == [] and self.lm.passes == {}
        # Every hook that was there is there, and no other.
        found = [key for _, after, before in hooks_of(self.lm) for key in (*after, *before)]
        assert sorted(found) == sorted(handle.id for handle in self.own)
        found, clean = trace(self.lm, IDS), CLEAN[self.family]
        assert found.resid.equal(clean.resid) and found.heads.equal(clean.heads) and found.logits.equal(clean.logits)
        assert not self.lm.model.training
        parameters = zip(self.lm.model.parameters(), PARAMETERS[self.family], strict=True)
        assert all(now.equal(then) and now.grad is None for now, then in parameters)
        for handle in self.own:
            handle.remove()


def test_nothing_leaks_in_a_thousand_random_sequences():
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=SEQUENCES, stateful_step_count=6, deadline=None, derandomize=True, database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip


def first_of_exit(frame):
    """The first two lines of `__exit__`: an interrupt there comes before any `try` of ours, in every context manager."""
    code = frame.f_code
    return code.co_name == "__exit__" and frame.f_lineno - code.co_firstlineno < 3


def leaves_a_with(frame):
    """A line that starts `with …` is run again when it is left, before `__exit__`: no one could protect that moment.

    Only a tracer stops there. A signal is looked at after a call, and then `__exit__` has run.
    """
    return linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith("with ")


def edits_and_a_trace(lm):
    with edit(lm, skip_block(0), zero_heads(1, 2)):
        with edit(lm, change("mlp", 1, torch.neg)):
            trace(lm, IDS)


def a_sweep(lm):
    with edit(lm, skip_block(0)):
        sweeps.sweep_blocks(lm, IDS[0], 7, progress=False)


def a_panels_pass(lm):
    replay.Replay(lm)(IDS[0], scale_block(1, 2))


@pytest.mark.parametrize("family", LMS)
@pytest.mark.parametrize("work", [edits_and_a_trace, a_sweep, a_panels_pass])
def test_an_interrupt_at_any_line_of_ours_leaves_nothing_behind(work, family):
    lm = LMS[family]
    rooms = {
        edits_and_a_trace: (applying, edits, hooks, passes, positions, sites, tracing),
        a_sweep: (hooks, live, recording, staircase),
        a_panels_pass: (hooks, live, replay),
    }[work]
    ours = {module.__file__ for module in rooms}
    start = hooks_of(lm)

    def interrupt_at(line):
        count = 0

        def watch(frame, event, _):
            nonlocal count
            if frame.f_code.co_filename not in ours:
                return None
            if event == "line" and not first_of_exit(frame) and not leaves_a_with(frame):
                count += 1
                if count == line:
                    raise KeyboardInterrupt
            return watch

        sys.settrace(watch)
        try:
            work(lm)
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(None)
        return False

    line, reached = 1, True
    while reached:
        reached = interrupt_at(line)
        assert lm.live_edits == [] and lm.edit_handles == [], line
        assert hooks_of(lm) == start, line
        assert torch.is_grad_enabled(), line
        line += 3 if line > 60 else 1
    assert line > 100
    assert trace(lm, IDS).logits.equal(CLEAN[family].logits)


def test_an_interrupt_as_a_context_ends_leaves_no_hook_of_a_sweep(monkeypatch):
    """Python looks at signals as `__exit__` begins, ahead of any `try` in it, and a notebook keeps what was raised."""
    lm, calls, kept = LMS["gpt2"], 0, []
    start, leave = hooks_of(lm), contextlib._GeneratorContextManager.__exit__

    def interrupted(self, *how):
        nonlocal calls
        calls += "helpers" in self.gen.gi_code.co_filename
        if calls == number:
            calls += 1
            raise KeyboardInterrupt
        return leave(self, *how)

    monkeypatch.setattr(contextlib._GeneratorContextManager, "__exit__", interrupted)
    for number in range(1, 9):
        calls = 0
        try:
            a_sweep(lm)
        except KeyboardInterrupt as error:
            kept.append(error)
        assert hooks_of(lm) == start, number
    assert kept and lm.live_edits == []
