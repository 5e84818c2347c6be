"""Studies against a plain loop over forward passes by hand: in one process, in several, on a cluster, killed and called again."""

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from reference import reference
from tiny import tiny

from helpers import (
    Tokens,
    add_to_block,
    change,
    errors,
    load_model,
    noise_neurons,
    patch_block,
    scale_block,
    skip_block,
    sweep_block_pairs,
    sweep_blocks,
    sweep_edits,
    sweep_factors,
    sweep_heads,
    wrap,
    zero_heads,
)
from helpers.fingerprint import of_model, of_value
from helpers.measures import Measure, predictions
from helpers.studies import study

NEEDED = ("joblib", "cloudpickle", "xarray", "h5netcdf", "h5py")
LACKING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(
    bool(LACKING) and not os.environ.get("CI"), reason=f"studies need the extra 'study': {', '.join(LACKING)} not here"
)

LENGTHS = (6, 4, 6, 9, 4, 4, 7)


@pytest.fixture(scope="module")
def lm():
    return tiny("gpt2")  # transformers computes all of it in float64


@pytest.fixture(scope="module")
def prompts():
    """Of several lengths, as a Tokens."""
    return some_prompts(LENGTHS)


def some_prompts(lengths, seed=3):
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(2, 97, (length,), generator=generator) for length in lengths]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return Tokens(ids, torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None])


TARGETS = [7, 8, 9, 10, 11, 12, 13]


def by_hand(lm, prompts, targets, interventions):
    """(prompts, interventions): log p(target) after − before, one pass after the other, without hooks and without helpers.

    An intervention is a function of the prompt's number that gives a function `at` for `reference`.
    """
    found = []
    for number, (ids, mask) in enumerate(zip(prompts.ids, prompts.mask, strict=True)):
        said = lambda **at: reference(lm.model, ids[mask][None], **at).logits[0, -1].log_softmax(-1)[targets[number]]  # noqa: E731
        clean = said()
        found.append([(said(at=intervention(number)) - clean).item() for intervention in interventions])
    return torch.tensor(found, dtype=torch.float64)


def head_becomes(block, head, values):
    def at(site, index, value, stream):
        if (site, index) == ("heads", block):
            value = value.clone()
            value[:, :, head] = values[-value.shape[1] :] if values.ndim else values
        return value

    return lambda number: at


def zero(block, head):
    return head_becomes(block, head, torch.zeros((), dtype=torch.float64))


ALL_HEADS = [zero(block, head) for block in range(4) for head in range(4)]


@pytest.fixture(scope="module")
def expected(lm, prompts):
    return by_hand(lm, prompts, TARGETS, ALL_HEADS).view(7, 4, 4)


def close(found, expected, atol=1e-12):
    return torch.allclose(torch.from_numpy(found.values), expected, rtol=0, atol=atol)


def shards_in(folder):
    return {file.name: file.stat().st_mtime_ns for file in (folder / "shards").iterdir()}


# ---- the numbers, and their labels


def test_a_study_gives_the_numbers_of_a_plain_loop_with_labels_and_a_file(lm, prompts, expected, tmp_path):
    import xarray

    told = []
    found = study(
        sweep_heads,
        lm,
        prompts,
        TARGETS,
        folder=tmp_path,
        shard=3,
        progress=lambda done, total: told.append((done, total)),
    )
    assert close(found, expected) and found.dtype == "float64"
    assert found.dims == ("prompt", "block", "head") and list(found.block) == list(found["head"]) == [0, 1, 2, 3]
    assert list(found.target.values) == [str(target) for target in TARGETS] and found.attrs["units"] == "nats"
    assert found.attrs["model_fingerprint"] == of_model(lm) and "gpt2" in found.attrs["model"]
    assert told == [(3, 7), (6, 7), (7, 7)]
    (file,) = tmp_path.glob("*.nc")
    with xarray.open_dataarray(file, engine="h5netcdf") as stored:
        assert stored.identical(found)
    assert len(shards_in(tmp_path)) == 3 and sorted(os.listdir(tmp_path)) == sorted([file.name, "shards"])


def test_heads_at_some_positions(lm, prompts, expected, tmp_path):
    def zero_last(block, head):
        def at(site, index, value, stream):
            if (site, index) == ("heads", block):
                value = value.clone()
                value[:, -1, head] = 0
            return value

        return lambda number: at

    last = by_hand(lm, prompts, TARGETS, [zero_last(block, head) for block in range(4) for head in range(4)])
    found = study(sweep_heads, lm, prompts, TARGETS, folder=tmp_path, shard=3, positions=-1)
    assert close(found, last.view(7, 4, 4)) and found.attrs["sweep"] == "sweep_heads, positions=-1"
    everywhere = study(sweep_heads, lm, prompts, TARGETS, folder=tmp_path, shard=3, positions=slice(0, None))
    assert close(everywhere, expected), "its shards are others"


def test_texts_are_coordinates(tmp_path):
    texts = ["Berlin is the capital of", "Rome is the capital of", "The capital of"]
    found = study(sweep_blocks, "pocket", texts, " Germany", folder=tmp_path, jobs=1)
    assert (
        list(found.text.values) == texts and found.dims == ("prompt", "block") and found.attrs["target"] == " Germany"
    )
    assert found.sel(block=3).shape == (3,)


def test_texts_are_coordinates_also_after_their_ids(tmp_path):
    lm, texts = load_model(), ["The capital of France is", "The capital of Italy is"]
    run = partial(study, sweep_blocks, lm, folder=tmp_path)
    found = run(lm.encode(texts), lm.token_id(" Italy"))
    assert "text" not in found.coords
    named = run(texts, " Italy")
    assert list(named.text.values) == texts and named.attrs["target"] == " Italy" != found.attrs["target"]
    assert (named.values == found.values).all() and len(shards_in(tmp_path)) == 1


def test_blocks_pairs_factors_and_a_few_blocks_keep_their_labels(lm, prompts, tmp_path):
    def skip(*blocks):
        return lambda number: (
            lambda site, index, value, stream: stream if site == "block" and index in blocks else value
        )

    def scaled(factor):
        return lambda number: (
            lambda site, index, value, stream: value * (factor if (site, index) == ("block", 1) else 1)
        )

    run = partial(study, model=lm, prompts=prompts, target=TARGETS, folder=tmp_path, shard=2)
    some = run(sweep_heads, blocks=[2, 0])
    assert list(some.block) == [2, 0]
    hand = by_hand(lm, prompts, TARGETS, [zero(block, head) for block in (2, 0) for head in range(4)])
    assert close(some, hand.view(7, 2, 4))
    pairs = run(sweep_block_pairs)
    assert pairs.dims == ("prompt", "block", "other_block")
    assert close(pairs.sel(block=1, other_block=3), by_hand(lm, prompts, TARGETS, [skip(1, 3)])[:, 0])
    factors = run(sweep_factors, block=1, factors=[0.5, 2.0])
    assert list(factors.factor) == [0.5, 2.0]
    assert close(factors, by_hand(lm, prompts, TARGETS, [scaled(0.5), scaled(2.0)]))


def test_what_belongs_to_a_prompt_goes_with_it_into_its_shard(lm, tmp_path):
    prompts = some_prompts([5] * 7)
    patches = torch.randn(7, 5, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    shift = torch.randn(24, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def hand(number):
        def at(site, index, value, stream):
            value = value + shift if (site, index) == ("block", 0) else value
            return patches[number][None] if (site, index) == ("block", 2) else value

        return at

    edits = [[patch_block(2, patches), add_to_block(0, shift)], skip_block(1)]
    found = study(sweep_edits, lm, prompts, TARGETS, folder=tmp_path, shard=3, edits=edits)
    assert close(found[:, 0], by_hand(lm, prompts, TARGETS, [hand])[:, 0])
    assert found.edit.values[1] == "skip_block(1)"
    contrasts = TARGETS[::-1]
    wide = study(
        sweep_edits, lm, prompts, measure=predictions(lm, TARGETS, contrasts), folder=tmp_path, shard=3, edits=edits
    )
    assert wide.dims == ("prompt", "edit", "column") and wide.sel(column="kl").min() >= 0
    assert close(wide.sel(column="target")[:, 0], by_hand(lm, prompts, TARGETS, [hand])[:, 0])
    assert close(wide.sel(column="contrast")[:, 0], by_hand(lm, prompts, contrasts, [hand])[:, 0])
    numbers = Measure(lambda outcome: outcome.edited[:, 0] * 0 + outcome.prompt)
    assert study(sweep_edits, lm, prompts, measure=numbers, folder=tmp_path, shard=3, edits=edits)[
        :, 1
    ].values.tolist() == [*range(7)]


def test_values_for_prompts_of_several_lengths_go_into_shards_whose_longest_is_shorter(lm, prompts, tmp_path):
    patches = torch.randn(7, 9, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def hand(number):
        return lambda site, index, value, stream: (
            patches[number : number + 1, : value.shape[1]] if (site, index) == ("block", 2) else value
        )

    for shard in (1, 3):
        found = study(sweep_edits, lm, prompts, [patch_block(2, patches)], TARGETS, folder=tmp_path, shard=shard)
        assert close(found, by_hand(lm, prompts, TARGETS, [hand]))


@pytest.mark.parametrize("of", ["the swept prompts", "others"])
def test_means_are_taken_over_the_whole_list(lm, prompts, of, tmp_path):
    pool = prompts if of == "the swept prompts" else some_prompts((3, 9), seed=8)
    heads = [
        reference(lm.model, ids[mask][None]).heads[2][0, :, 1] for ids, mask in zip(pool.ids, pool.mask, strict=True)
    ]  # (pos, d_head)
    mean = torch.stack([torch.cat([one[:1].expand(9 - len(one), -1), one]) for one in heads]).mean(0)
    run = partial(study, sweep_heads, lm, folder=tmp_path, shard=2, replacement="mean")
    two = prompts.ids[[1, 4]], prompts.mask[[1, 4]]  # the first shard's, with a mean of their own
    before = run(
        Tokens(*two), [TARGETS[1], TARGETS[4]], **({} if of == "the swept prompts" else {"reference": prompts})
    )
    found = run(prompts, TARGETS, **({} if of == "the swept prompts" else {"reference": pool}))
    assert abs(found.values[[1, 4]] - before.values).max() > 1e-3
    assert close(found[:, 2, 1], by_hand(lm, prompts, TARGETS, [head_becomes(2, 1, mean)])[:, 0])


# ---- killed, and called again


def test_a_killed_study_goes_on_where_it_was(lm, prompts, expected, tmp_path):
    class Killed(BaseException):
        pass

    def kill(done, total):
        if done >= 4:
            raise Killed

    run = partial(study, sweep_heads, lm, prompts, TARGETS, folder=tmp_path, shard=2)
    with pytest.raises(Killed):
        run(progress=kill)
    first = shards_in(tmp_path)
    assert len(first) == 2 and not list(tmp_path.glob("*.nc"))
    ran = []
    watch = lm.model.register_forward_hook(lambda *_: ran.append(1))
    try:
        with pytest.raises(errors.BadValue, match="a hook hangs on"):
            run()
    finally:
        watch.remove()
    told = []
    found = run(progress=lambda done, total: told.append(done))
    assert close(found, expected) and told == [2, 4, 6, 7]
    second = shards_in(tmp_path)
    assert first.items() <= second.items() and len(second) == 4, "what was kept is not measured again"
    (file,) = tmp_path.glob("*.nc")
    before = file.stat().st_mtime_ns
    assert run(progress=lambda *_: pytest.fail("all is there")).identical(found) and file.stat().st_mtime_ns == before


def test_a_damaged_shard_is_measured_again(lm, prompts, expected, tmp_path):
    run = partial(study, sweep_heads, lm, prompts, TARGETS, folder=tmp_path, shard=3)
    run()
    one, other, _ = sorted((tmp_path / "shards").iterdir())
    one.write_bytes(one.read_bytes()[:100])
    other.write_bytes(b"")
    (whole,) = tmp_path.glob("*.nc")
    for damaged in (whole.read_bytes()[:300], b""):
        whole.write_bytes(damaged)
        assert close(run(), expected)
    assert close(run(progress=lambda *_: pytest.fail("all is there")), expected)


def test_a_study_that_ran_out_of_memory_goes_on_with_a_smaller_chunk(lm, prompts, expected, tmp_path):
    run = partial(study, sweep_heads, lm, prompts, TARGETS, folder=tmp_path, shard=2)
    run(chunk=1000)
    before = shards_in(tmp_path)
    next(tmp_path.glob("*.nc")).unlink()
    (tmp_path / "shards" / min(before)).unlink()
    assert close(run(chunk=9), expected)
    after = shards_in(tmp_path)
    assert after.keys() == before.keys() and sum(after[name] == before[name] for name in after) == 3


def test_a_full_disk_is_a_sentence_and_what_was_finished_is_kept(lm, prompts, expected, tmp_path, monkeypatch):
    import numpy as np

    run = partial(study, sweep_heads, lm, prompts, TARGETS, folder=tmp_path, shard=2)
    save = np.save

    def full(file, values, **options):
        if len(shards_in(tmp_path)) > 2:  # two, and the folder that the third is written in
            raise OSError(28, "No space left on device")
        save(file, values, **options)

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        with pytest.raises(errors.CannotStore, match=r"No space left on device.*make room"):
            run()
    assert len(shards_in(tmp_path)) == 2
    told = []
    assert close(run(progress=lambda done, total: told.append(done)), expected) and told == [2, 4, 6, 7]


def test_two_studies_in_one_folder_may_save_the_same_model(lm, tmp_path, monkeypatch):
    from helpers import studies, worker

    save, key = worker.save, of_model(lm)

    def slow(model, folder):
        save(model, folder)
        monkeypatch.setattr(worker, "save", save)
        studies._loader(lm, tmp_path, key)  # the other study is quicker

    monkeypatch.setattr(worker, "save", slow)
    assert of_model(studies._loader(lm, tmp_path, key)()) == key
    assert [one.name for one in tmp_path.iterdir()] == [f"model-{key[:16]}"]


def test_more_prompts_use_what_is_there(lm, tmp_path):
    few, many = some_prompts([5] * 4), some_prompts([5] * 6)
    study(sweep_blocks, lm, few, 7, folder=tmp_path, shard=2)
    first = shards_in(tmp_path)
    found = study(sweep_blocks, lm, many, 7, folder=tmp_path, shard=2)
    second = shards_in(tmp_path)
    assert len(found) == 6 and len(first) == 2 and len(second) == 3 and first.items() <= second.items()


def test_another_question_never_reads_the_answers_of_this_one(lm, prompts, tmp_path):
    """Each of these differs from all others in one thing; none may find a file of another."""

    def measure(factor):
        return Measure(lambda outcome: outcome.edited[:, 0] * factor)

    other = tiny("gpt2", seed=1)
    scale, double = 1.0, {"by": 2.0}
    by_value = [
        {"edits": [change("block", 1, lambda v: v * scale)]}, {"edits": [change("block", 1, lambda v: v + scale)]},
        {"edits": [change("block", 1, lambda v: v * double["by"])]}, {"edits": [scale_block(1, 2.0)]},
        {"edits": [scale_block(1, 2.5)]}, {"edits": [scale_block(2, 2.0)]}, {"edits": [scale_block(1, 2.0, positions=0)]},
        {"edits": [add_to_block(1, torch.ones(24))]}, {"edits": [add_to_block(1, -torch.ones(24))]},
        {"edits": [add_to_block(1, torch.ones(24).double())]}, {"edits": [zero_heads(1, [0])]},
        {"edits": [zero_heads(1, [1])]},
    ]  # fmt: skip
    keys = {of_value(("sweep_edits", options)) for options in by_value}
    assert len(keys) == len(by_value) and of_value(("sweep_edits", by_value[0])) in keys
    assert of_value(measure(1.0)) != of_value(measure(2.0)) and of_value(measure(1.0)) == of_value(measure(1.0))
    run = partial(study, folder=tmp_path, shard=7)
    run(sweep_blocks, lm, prompts, 7)
    for n, (model, given, more) in enumerate([
        (other, prompts, {"target": 7}), (lm, prompts, {"target": 8}), (lm, prompts, {"target": TARGETS}),
        (lm, some_prompts(LENGTHS, seed=4), {"target": 7}), (lm, prompts, {"target": 7, "part": "mlp"}),
        (lm, prompts, {"measure": measure(1.0)}), (lm, prompts, {"measure": measure(2.0)}),
    ], 2):  # fmt: skip
        run(sweep_blocks, model, given, **more)
        assert len(shards_in(tmp_path)) == n == len(list(tmp_path.glob("*.nc")))
    with torch.no_grad():
        other.unembed.weight[3, 2] += 1e-9
    assert of_model(other) != of_model(tiny("gpt2", seed=1)) and of_model(tiny("gpt2", seed=1)) != of_model(lm)


def test_the_same_question_in_another_order_or_with_defaults_reads_what_is_there(lm, prompts, tmp_path):
    run = partial(study, sweep_heads, lm, prompts, 7, folder=tmp_path, shard=7)
    first = run(positions=-1, replacement="pooled mean")
    for options in (
        {"replacement": "pooled mean", "positions": -1},
        {"blocks": None, "replacement": "pooled mean", "positions": -1},
    ):
        found = run(**options, progress=lambda *_: pytest.fail("all is there"))
        assert (found.values == first.values).all()


def test_what_is_set_for_the_process_is_never_read_without_it(tmp_path):
    from torch.nn.modules.module import register_module_forward_hook

    ids = torch.arange(12).reshape(4, 3)
    run = partial(study, sweep_blocks, "pocket", ids, 7, folder=tmp_path, jobs=1)
    hook = register_module_forward_hook(
        lambda module, given, out: out * 2 if isinstance(module, torch.nn.Linear) else None
    )
    try:
        with pytest.raises(errors.BadValue, match="edits or hooks are on this model"):
            run()
    finally:
        hook.remove()
    lm = tiny("llama", dtype=torch.float32)
    run = partial(study, sweep_blocks, lm, ids, 7, folder=tmp_path)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = run(jobs=1)
        with pytest.raises(errors.BadValue, match=r"autocast, the default dtype, .* set otherwise"):
            run(jobs=2, shard=2)
    fine = run(jobs=1)
    torch.testing.assert_close(torch.from_numpy(fine.values), sweep_blocks(lm, ids, 7), rtol=0, atol=1e-5)
    assert abs(fine.values - rough.values).max() > 1e-4


def test_results_that_one_array_cannot_hold_are_a_sentence(lm, prompts, tmp_path):
    every = Measure(lambda outcome: outcome.edited[..., 0], every_position=True)
    with pytest.raises(errors.BadValue, match="this measure gives numbers of shape"):
        study(sweep_blocks, lm, prompts, measure=every, folder=tmp_path, shard=1)
    with pytest.raises(errors.BadPrompt, match="the character of number 0"):
        study(sweep_blocks, "pocket", ["a\0", "b"], 7, folder=tmp_path, jobs=1)
    rough = study(sweep_blocks, lm, prompts, measure=lambda o: o.edited[:, 0].bfloat16(), folder=tmp_path)
    assert rough.dtype == "float32"


def test_targets_as_tensors_have_names(lm, prompts, tmp_path):
    found = study(sweep_blocks, lm, prompts, torch.tensor(TARGETS), folder=tmp_path)
    assert list(found.target.values) == [str(target) for target in TARGETS]
    assert study(sweep_blocks, lm, prompts, torch.tensor(7), folder=tmp_path).attrs["target"] == "7"


def test_a_model_that_a_full_disk_cannot_keep_is_a_sentence(lm, tmp_path, monkeypatch):
    from safetensors import SafetensorError

    from helpers import studies, worker

    for error in (OSError(28, "No space left on device"), SafetensorError("No space left on device")):

        def full(model, folder, error=error):
            raise error

        monkeypatch.setattr(worker, "save", full)
        with pytest.raises(errors.CannotStore, match=r"No space left on device.*make room"):
            studies._loader(lm, tmp_path, "f" * 64)


# ---- other processes


def kills_its_process_once(marker: Path, numbers: set[int]):
    """A measure that ends the process that first computes it for one of these prompts, as a system short of memory does."""

    def compute(outcome):
        if outcome.prompt in numbers and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return outcome.edited.log_softmax(-1)[:, 5]

    return Measure(compute)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL to send")
def test_processes_of_this_machine_and_one_of_them_killed(lm, prompts, tmp_path):
    measure = kills_its_process_once(tmp_path / "died", {3})
    run = partial(study, sweep_heads, lm, prompts, measure=measure, shard=1, jobs=2, folder=tmp_path / "two")
    with pytest.raises(errors.WorkerDied, match="killed, most often because memory ran out"):
        run()
    kept = shards_in(tmp_path / "two")
    assert 0 < len(kept) < 7
    found = run(jobs=1)
    assert kept.items() <= shards_in(tmp_path / "two").items() and len(shards_in(tmp_path / "two")) == 7
    alone = run(jobs=1, folder=tmp_path / "one")
    assert found.identical(alone)
    for file in (tmp_path / "one" / "shards").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / "shards" / file.name).read_bytes(), "to the last bit"
    assert [file.suffix for file in next((tmp_path / "two").glob("model-*")).iterdir() if "model" in file.name] == [
        ".safetensors"
    ]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL to send")
def test_a_dask_cluster_loses_a_worker_and_nothing_else(lm, prompts, tmp_path):
    distributed = pytest.importorskip("distributed", reason="the cluster's test needs Dask: pip install distributed")
    import dask
    import joblib

    measure = kills_its_process_once(tmp_path / "died", {4})
    told = []
    with (
        dask.config.set({"distributed.worker.daemon": True}),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, local_directory=str(tmp_path)
        ) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        found = study(
            sweep_heads, lm, prompts, measure=measure, shard=1, folder=tmp_path / "two",
            progress=lambda done, total: told.append((done, total)),
        )  # fmt: skip
    assert (tmp_path / "died").exists() and told == [(n, 7) for n in range(1, 8)], "each shard counted once"
    alone = study(sweep_heads, lm, prompts, measure=measure, shard=1, folder=tmp_path / "one")
    assert found.identical(alone), "to the last bit"
    assert shards_in(tmp_path / "one").keys() == shards_in(tmp_path / "two").keys()


# ---- models that one device cannot hold


@pytest.mark.parametrize("where", ["cpu", "disk", "some blocks"])
def test_models_that_accelerate_spreads_give_the_same_numbers(where, prompts, tmp_path):
    whole = tiny("llama")
    accelerate = pytest.importorskip("accelerate")

    def load():
        model = tiny("llama").model
        if where == "cpu":
            accelerate.cpu_offload(model, execution_device="cpu")
        elif where == "disk":
            accelerate.disk_offload(model, str(tmp_path / "weights"), execution_device="cpu")
        else:
            places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
            places |= {f"model.layers.{block}": "disk" if block in (1, 2) else "cpu" for block in range(4)}
            offload = str(tmp_path / "weights")
            accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=offload, force_hooks=True)
        assert any(weight.is_meta for weight in model.parameters())
        return wrap(model)

    spread = load()
    assert of_model(spread) == of_model(whole), "the same weights, wherever they are"
    assert any(weight.is_meta for weight in spread.model.parameters()), "and they stay where they were"
    found = study(sweep_heads, spread, prompts, TARGETS, folder=tmp_path, shard=4)
    expected = by_hand(whole, prompts, TARGETS, ALL_HEADS).view(7, 4, 4)
    assert close(found, expected, atol=2e-6), "Llama's softmax and norms run in float32"


def test_tensor_parallel_models_are_refused():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor

    model = tiny("llama").model
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        attention = model.model.layers[1].self_attn
        split = distribute_tensor(attention.q_proj.weight.data, init_device_mesh("cpu", (1,)))
        attention.q_proj.weight = torch.nn.Parameter(split)
        with pytest.raises(errors.BadValue, match=r"split by tensor parallelism.*without tp_plan.*device_map"):
            wrap(model)
    finally:
        torch.distributed.destroy_process_group()


# ---- mistakes

MISTAKES = {
    "another function": ({"sweep": len}, "BadValue", r"runs one of sweep_heads, .* and not <built-in function len>"),
    "one prompt": ({"prompts": "one"}, "BadPrompt", r"takes several prompts: give a list"),
    "one row of ids": ({"prompts": torch.arange(4)}, "BadPrompt", r"takes several prompts"),
    "no target": ({"target": None}, "BadValue", r"give a target, .* or a measure, and not both"),
    "both": ({"measure": len}, "BadValue", r"and not both"),
    "shards of nothing": ({"shard": 0}, "BadValue", r"shard 0 cannot be used"),
    "an unknown option": ({"replaced": "zero"}, "BadValue", r"no option 'replaced': choose from blocks, measure, repl"),
    "no jobs": ({"jobs": 0}, "BadValue", r"jobs 0 cannot be used"),
    "half a job": ({"jobs": 0.5}, "BadValue", r"jobs 0.5 cannot be used"),
    "too few targets": ({"target": [1, 2]}, "BadValue", r"there are 7 prompts and 2 targets"),
    "resample": ({"replacement": "resample"}, "BadValue", r"resample draws from one stream of random numbers"),
    "resample, its generator": (
        {"replacement": "resample", "generator": torch.Generator()}, "BadValue", r"resample draws from one stream of random numbers",
    ),
    "no factors": ({"sweep": sweep_factors}, "BadValue", r"sweep_factors needs block and factors: pass block=… by name"),
    "no edits": ({"sweep": sweep_edits, "edits": [7]}, "BadEdit", r"7 is not an edit"),
    "one edit": ({"sweep": sweep_edits, "edits": skip_block(0)}, "BadEdit", r"give a list of edits"),
    "a number for edits": ({"sweep": sweep_edits, "edits": 7}, "BadEdit", r"give a list of edits"),
    "one factor": ({"sweep": sweep_factors, "block": 1, "factors": 0.5}, "BadValue", r"factors 0.5 cannot be used"),
    "a measure that is none": ({"target": None, "measure": 3}, "BadValue", r"a measure must be .* and not 3"),
    "several parts": ({"sweep": sweep_blocks, "part": ["mlp"]}, "BadValue", r"part \['mlp'\] is unknown"),
    "noise": (
        {"sweep": sweep_edits, "edits": [noise_neurons(1, 0, 0.0, 1.0, torch.Generator())]}, "BadEdit", r"noise_neurons.*one stream",
    ),
    "a function that draws": (
        {"sweep": sweep_edits, "edits": [change("block", 0, partial(torch.normal, generator=torch.Generator()))]}, "BadValue",
        r"cannot tell whether a value of type Generator has changed",
    ),
    "patches for others": (
        {"sweep": sweep_edits, "edits": [patch_block(0, torch.ones(3, 4, 24))]}, "BadValue", r"has values for 3 prompts, and 7",
    ),
    "no model": ({"model": 7}, "BadValue", r"the model must be a name, a folder, .* and not 7"),
    "a model of transformers": ({"model": torch.nn.Linear(1, 1)}, "BadValue", r"such as wrap\(model, tokenizer\).* not "),
    "an unknown model": ({"model": "no/such/model/here"}, "UnknownModel", r"there is no folder"),
    "a function without a model": ({"model": lambda: 7}, "BadValue", r"must return a model of the helpers, not a int"),
    "a file as folder": ({"folder": __file__}, "BadValue", r"cannot be made"),
    "a block too many": ({"blocks": [9]}, "BlockOutOfRange", r"block 9 does not exist"),
}  # fmt: skip


@pytest.mark.parametrize(("given", "kind", "says"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_sentences_and_leave_no_result(given, kind, says, lm, prompts, tmp_path):
    arguments = dict(sweep=sweep_heads, model=lm, prompts=prompts, target=TARGETS, folder=tmp_path, **{}) | given
    with pytest.raises(errors.HelpersError, match=says) as found:
        study(**arguments)
    assert type(found.value).__name__ == kind
    assert not [*tmp_path.glob("*.nc"), *tmp_path.glob("shards/*")]


def test_what_follows_the_prompts_stands_in_the_sweeps_own_order(lm, prompts, tmp_path):
    """Edits at some positions too, against a pass by hand: called as one calls the sweep itself."""
    edits = [scale_block(1, 0.5, positions=slice(1, None)), scale_block(2, 2.0, positions=[0, -1])]

    def scaled(block, factor, positions):
        def at(site, index, value, stream):
            if (site, index) == ("block", block):
                value = value.clone()
                value[:, positions] = factor * value[:, positions]
            return value

        return lambda number: at

    expected = by_hand(lm, prompts, TARGETS, [scaled(1, 0.5, slice(1, None)), scaled(2, 2.0, [0, -1])])
    found = study(sweep_edits, lm, prompts, edits, TARGETS, folder=tmp_path, shard=3)
    assert close(found, expected)
    for again in (
        study(sweep_edits, lm, prompts, edits, target=TARGETS, folder=tmp_path, shard=3),
        study(sweep_edits, lm, prompts, TARGETS, edits=edits, folder=tmp_path, shard=3),
        study(sweep_edits, lm, prompts, iter(TARGETS), edits=edits, folder=tmp_path, shard=3),
    ):
        assert again.identical(found)
    factors = study(sweep_factors, lm, prompts, 1, [0.5, 2.0], TARGETS, folder=tmp_path)
    every = slice(None)
    assert close(factors, by_hand(lm, prompts, TARGETS, [scaled(1, 0.5, every), scaled(1, 2.0, every)]))
    with pytest.raises(errors.BadValue, match=r"takes target without a name, and 2 values stand there"):
        study(sweep_heads, lm, prompts, TARGETS, "zero", folder=tmp_path)
    with pytest.raises(errors.BadEdit, match="give a list of edits"):
        study(sweep_edits, lm, prompts, 7, folder=tmp_path)
    with pytest.raises(errors.BadValue, match="sweep_factors needs factors: pass factors=… by name"):
        study(sweep_factors, lm, prompts, 7, folder=tmp_path)


def test_a_model_with_edits_or_hooks_is_refused_and_a_function_that_hangs_them_is_not(lm, prompts, tmp_path):
    from helpers import edit

    with edit(lm, skip_block(1)):
        with pytest.raises(errors.BadValue, match="edits or hooks are on this model"):
            study(sweep_heads, lm, prompts, TARGETS, folder=tmp_path)

    def load():
        loaded = tiny("gpt2")

        def skip(module, args, output):  # transformers 4 has tuples
            return (args[0], *output[1:]) if isinstance(output, tuple) else args[0]

        loaded.blocks[1].register_forward_hook(skip)
        return loaded

    def skip_too(block):
        return lambda number: (
            lambda site, index, value, stream: stream if site == "block" and index in (1, block) else value
        )

    found = study(sweep_blocks, load, prompts, TARGETS, folder=tmp_path)
    alone = by_hand(lm, prompts, TARGETS, [skip_too(1)])
    assert close(found[:, 3], (by_hand(lm, prompts, TARGETS, [skip_too(3)]) - alone)[:, 0])


def test_a_model_that_its_weights_do_not_make_again_is_refused_in_other_processes(lm, tmp_path):
    from helpers.worker import Saved, Shard, Work, loaded, run, save

    save(lm, tmp_path)
    load = Saved(tmp_path, "GPT2LMHeadModel", torch.float32, "eager", lm.parts)
    again, model = loaded(load)
    assert again.dtype == torch.float32
    with pytest.raises(errors.BadValue, match=r"is not the one that the study began with.*or use jobs=1"):
        run(
            again,
            model,
            Work("", b"", "sweep_heads", 1, None, {}),
            Shard([0], [torch.arange(4).numpy()], 7, of_model(lm)),
        )


def test_a_worker_that_lives_on_loads_a_changed_model_again(lm, tmp_path):
    import cloudpickle

    from helpers import worker

    load = cloudpickle.dumps(worker.Saved(tmp_path, "GPT2LMHeadModel", torch.float64, "eager", lm.parts))

    def seen_by(study):
        work = worker.Work(study, load, "sweep_blocks", 2, None, {})
        ids = torch.tensor([[3, 4], [5, 6]])
        return worker.there("look", cloudpickle.dumps(work), cloudpickle.dumps((ids, 7))).model

    try:
        worker.save(lm, tmp_path)
        first = seen_by("first")
        other = tiny("gpt2", seed=1)
        worker.save(other, tmp_path)
        assert seen_by("first") == first == of_model(lm), "once for all shards of a study"
        assert seen_by("second") == of_model(other) != first
    finally:
        worker._kept.clear()


def test_the_file_says_what_was_asked_and_which_numbers_it_holds(lm, prompts, tmp_path):
    found = study(sweep_heads, lm, prompts, TARGETS, folder=tmp_path, replacement="mean")
    assert found.attrs["sweep"] == "sweep_heads, replacement='mean'"
    found = study(sweep_blocks, lm, prompts, folder=tmp_path, measure=predictions(lm, 3))
    assert found.attrs["long_name"] == "target, kl, same top-1, target is top-1" == ", ".join(found.column.values)


def doubled():
    """As people do it: a config in float32, and buffers that `.double()` has turned, which a loading in float64 would not make."""
    return wrap(tiny("llama", torch.float32).model.double())


def experts():
    return wrap(tiny("olmoe").model)


@pytest.mark.parametrize("make", [doubled, experts])
def test_a_live_model_goes_into_other_processes_as_it_is(make, prompts, tmp_path):
    lm = make()
    found = study(sweep_blocks, lm, prompts, TARGETS, jobs=2, shard=4, folder=tmp_path)
    here = study(sweep_blocks, lm, prompts, TARGETS, folder=tmp_path / "here")
    assert found.attrs["model_fingerprint"] == here.attrs["model_fingerprint"]
    assert abs(found.values - here.values).max() < 1e-12 and abs(here.values).max() > 0.01


def test_processes_compute_with_the_code_that_this_one_has(tmp_path, monkeypatch):
    """joblib's processes outlive a study, with the modules that they once imported."""
    import importlib

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    file, ids = tmp_path / "myscore.py", torch.arange(2, 18).reshape(4, 4)
    file.write_text("SCALE = 1.0\ndef score(outcome): return outcome.edited[:, 5] * SCALE\n")
    import myscore

    lm = tiny("gpt2")
    run = partial(
        study, sweep_blocks, lm, ids, measure=lambda outcome: myscore.score(outcome), folder=tmp_path, shard=2
    )
    once = run(jobs=2)
    file.write_text("SCALE = 2.0\ndef score(outcome): return outcome.edited[:, 5] * SCALE\n")
    importlib.reload(myscore)
    twice = run(jobs=2)
    plain = sweep_blocks(lm, ids, measure=lambda outcome: outcome.edited[:, 5])
    assert close(once, plain) and close(twice, 2 * plain)
    myscore.SCALE = 3.0
    with pytest.raises(errors.BadValue, match="your code in myscore is not the same in a worker process"):
        run(jobs=2)
    assert close(run(), 3 * plain)
    monkeypatch.delitem(sys.modules, "myscore")


def test_a_changed_attribute_is_another_model_which_processes_cannot_make_again(prompts, tmp_path):
    lm = wrap(tiny("llama").model)
    before = study(sweep_blocks, lm, prompts, TARGETS, folder=tmp_path)
    for block in lm.blocks:
        block.input_layernorm.variance_epsilon = 0.5
    after = study(sweep_blocks, lm, prompts, TARGETS, folder=tmp_path)
    plain = sweep_blocks(lm, prompts, TARGETS)
    assert close(after, plain) and not close(before, plain, 1e-3), "nothing is read that was measured before the change"
    with pytest.raises(errors.BadValue, match=r"is not the one that the study began with.*or use jobs=1"):
        study(sweep_blocks, lm, prompts, TARGETS, jobs=2, folder=tmp_path / "two")


@pytest.mark.skipif(os.name != "posix", reason="elsewhere a process does not learn that its parent has gone")
def test_a_process_that_works_ends_with_a_study_that_was_killed(tmp_path):
    """joblib's processes would wait for ever for one that was killed, each with its model in memory."""
    script = tmp_path / "killed.py"
    script.write_text(
        "import os, time, threading\n"
        "from helpers import worker\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    threading.Thread(target=worker._end_with_the_study, args=(os.getppid(),), daemon=True).start()\n"
        "    time.sleep(60)\n"
        "print(child, flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    os.kill(child, 0)
    process.kill()
    process.wait()
    for _ in range(100):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, os.WNOHANG)
        if Path(f"/proc/{child}/stat").exists() and ") Z " in Path(f"/proc/{child}/stat").read_text():
            return
        time.sleep(0.2)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the process goes on")
