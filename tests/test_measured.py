"""The stored measurements: whole, labelled, of these weights and prompts, and equal to what plain PyTorch computes now."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import tiny

from helpers import (
    CapitalPrompt,
    load_model,
    measured,
    predictions,
    replace_heads,
    smollm2,
    sweep_edits,
    sweep_heads,
    trace,
)
from helpers.errors import BadValue
from helpers.measurements import MEASURED_FOLDER, read, stored

MODELS = ("pocket", "smollm2")
PARTS = ("blocks", "factors", "heads", "pairs", "phrasings", "prices", "sink")
FILES = [(model, part) for model in MODELS for part in PARTS]
TOOLS = Path(__file__).resolve().parent.parent / "tools"
# float16 keeps 11 bits; float32 passes differ between machines in the fifth digit.
CLOSE = {"rtol": 2e-3, "atol": 2e-4}


@pytest.fixture(scope="module")
def tool():
    """`tool("measure")` is the command, `tool("measuring.steps")` one of the files behind it."""
    sys.path.insert(0, str(TOOLS))
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(str(TOOLS))


@pytest.fixture(scope="module")
def models():
    """The two models; a test that needs the real one is skipped where it has not been brought."""
    loaded = {}

    def get(name):
        if name == "smollm2" and not smollm2.is_here():
            pytest.skip("the real model is not in the cache: `make real` brings it")
        if name not in loaded:
            loaded[name] = load_model(name)
        return loaded[name]

    return get


# ---- the files


def test_both_models_have_every_part():
    assert stored() == FILES


def test_all_files_together_are_small():
    assert sum(path.stat().st_size for path in MEASURED_FOLDER.iterdir()) <= 2_000_000


@pytest.mark.parametrize(("model", "part"), FILES)
def test_every_axis_is_named_and_labelled(model, part):
    found = measured(model, part)
    assert set(found.tensors) == set(found.dims) == set(found.units)
    for name, tensor in found.tensors.items():
        assert list(tensor.shape) == [len(found.labels[dim]) for dim in found.dims[name]], name
        assert len(found.units[name]) > 5
        assert f"  {name} (" in repr(found)
    for name, tensor in found.tensors.items():
        if (
            tensor.is_floating_point()
            and not name.startswith("stream")
            and "right" not in str(found.labels.get("prompts"))
        ):
            assert tensor.isfinite().all(), name


@pytest.mark.parametrize(("model", "part"), FILES)
def test_the_origin_is_told(model, part, tool):
    about = measured(model, part).about
    assert about["model"] == model and about["seed"] == 0
    assert about["dtype"] == {"pocket": "float64", "smollm2": "float32"}[model]
    assert set(about["versions"]) == {"torch", "transformers", "causal-interventions-course"}
    assert about["sha256"]["prompts"] == tool("measuring.steps").sha256_of(about["prompts"])
    assert len(about["sha256"]["helpers and tool"]) == 64


@pytest.mark.parametrize("model", MODELS)
def test_the_weights_are_those_that_were_measured(model, models, tool):
    now = tool("measuring.steps").weights_of(models(model))
    assert {measured(model, part).about["sha256"]["weights"] for part in PARTS} == {now}


def test_nothing_but_the_header_tells_of_the_file():
    with safe_open(MEASURED_FOLDER / "pocket-heads.safetensors", "pt") as file:
        assert list(file.metadata()) == ["about"]
        assert json.loads(file.metadata()["about"])["edition"] == 1


# ---- the reader


def test_labels_choose_and_lists_keep_the_axis():
    found = measured("pocket", "heads")
    whole = found["mean"]
    kinds, measures = found.labels["replacement"], found.labels["measure"]
    one = found.at("mean", prompts="all", replacement="mean", measure="KL", block=8, head=4)
    assert one == whole[0, kinds.index("mean"), 8, 4, measures.index("KL")]
    some = found.at("mean", prompts="right", block=[8, 3], replacement="zero", measure="log p")
    assert torch.equal(some, whole[1, kinds.index("zero")][[8, 3]][..., measures.index("log p")])


def test_flags_are_bool_and_numbers_float32():
    found = measured("pocket", "heads")
    assert found["flags"].dtype == torch.bool and found["change"].dtype == torch.float32


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        (lambda: measured("gpt2", "heads"), r"nothing is stored for model 'gpt2', part 'heads'; there is \('pocket'"),
        (lambda: measured("pocket", "neurons"), "part 'neurons'"),
        (lambda: measured("pocket", "heads")["meen"], "has no 'meen': choose one of"),
        (lambda: measured("pocket", "heads").at("mean", layer=3), "has no axis 'layer': its axes are prompts"),
        (lambda: measured("pocket", "heads").at("mean", block=12), "no label 12: its labels are 0, 1"),
    ],
)
def test_what_is_not_there_is_told(ask, sentence):
    with pytest.raises(BadValue, match=sentence):
        ask()


def test_a_damaged_file_is_told(tmp_path):
    whole = (MEASURED_FOLDER / "pocket-sink.safetensors").read_bytes()
    (tmp_path / "pocket-sink.safetensors").write_bytes(whole[: len(whole) // 2])
    save_file({"x": torch.zeros(1)}, tmp_path / "pocket-heads.safetensors")
    for part in ("sink", "heads"):
        with pytest.raises(BadValue, match="cannot be read"):
            read(tmp_path, "pocket", part)


# ---- a sample, computed again with plain PyTorch


def logits(lm, text, hooks=()):
    """(pos, vocabulary) of a pass with plain hooks: (module, pre or forward, function)."""
    handles = [
        module.register_forward_pre_hook(function) if pre else module.register_forward_hook(function)
        for module, pre, function in hooks
    ]
    ids = torch.tensor([lm.token_ids(text)]) if isinstance(text, str) else text[None]
    try:
        with torch.no_grad():
            return lm.model(ids).logits[0]
    finally:
        for handle in handles:
            handle.remove()


def output_projection(lm, block):
    layers = lm.model.transformer.h if hasattr(lm.model, "transformer") else lm.model.model.layers
    return layers[block].attn.c_proj if hasattr(layers[block], "attn") else layers[block].self_attn.o_proj


def layer(lm, block):
    return (lm.model.transformer.h if hasattr(lm.model, "transformer") else lm.model.model.layers)[block]


def heads_of(lm, text, block):
    """(pos, heads × d_head): what the output projection reads."""
    seen = []
    logits(lm, text, [(output_projection(lm, block), True, lambda m, args: seen.append(args[0][0].clone()))])
    return seen[0]


def with_head(lm, head, value):
    """A pre-hook that puts `value`, (pos, d_head) or 0, in a head's place."""
    width = lm.model.config.hidden_size // lm.model.config.num_attention_heads

    def hook(module, args):
        new = args[0].clone()
        new[..., head * width : (head + 1) * width] = value
        return (new, *args[1:])

    return hook


def judged(lm, clean, edited, fact):
    """Change of log p(target), of the logit difference, KL, and the two flags, from logits of the last token."""
    target = lm.tokenizer(fact["target"], add_special_tokens=False)["input_ids"][0]
    contrast = lm.tokenizer(fact["contrast"], add_special_tokens=False)["input_ids"][0]
    p, q = clean.log_softmax(-1), edited.log_softmax(-1)
    difference = (edited[target] - edited[contrast]) - (clean[target] - clean[contrast])
    numbers = torch.stack([q[target] - p[target], difference, (p.exp() * (p - q)).sum()])
    return numbers.float(), [bool(edited.argmax() == clean.argmax()), bool(edited.argmax() == target)]


@pytest.mark.parametrize(
    ("model", "samples"), [("pocket", [(0, 8, 4), (31, 6, 8), (59, 0, 0)]), ("smollm2", [(0, 16, 4)])]
)
def test_heads_set_to_zero(model, samples, models):
    lm, found = models(model), measured(model, "heads")
    for prompt, block, head in samples:
        fact = found.about["prompts"][prompt]
        clean = logits(lm, fact["prompt"])[-1]
        hook = (output_projection(lm, block), True, with_head(lm, head, 0.0))
        numbers, flags = judged(lm, clean, logits(lm, fact["prompt"], [hook])[-1], fact)
        at = {"replacement": "zero", "block": block, "head": head}
        torch.testing.assert_close(found.at("change", **at)[prompt], numbers, **CLOSE)
        assert found.at("flags", **at)[prompt].tolist() == flags


def test_heads_set_to_their_mean_at_each_position_and_to_another_prompts():
    lm, found = load_model(), measured("pocket", "heads")
    facts, block, head, prompt = found.about["prompts"], 8, 4, 12
    outputs = torch.stack([heads_of(lm, fact["prompt"], block) for fact in facts])  # all of one length
    width = lm.d_head
    mine = outputs[:, :, head * width : (head + 1) * width]
    drawn = torch.randint(1, len(facts), (len(facts),), generator=torch.Generator().manual_seed(0))
    values = {"mean": mine.mean(0), "resample": mine[(prompt + int(drawn[prompt])) % len(facts)]}
    clean = logits(lm, facts[prompt]["prompt"])[-1]
    for kind, value in values.items():
        hook = (output_projection(lm, block), True, with_head(lm, head, value))
        numbers, _ = judged(lm, clean, logits(lm, facts[prompt]["prompt"], [hook])[-1], facts[prompt])
        torch.testing.assert_close(
            found.at("change", replacement=kind, block=block, head=head)[prompt], numbers, **CLOSE
        )


@pytest.mark.parametrize("model", MODELS)
def test_means_are_means_of_what_is_stored_for_each_prompt(model):
    found = measured(model, "heads")
    torch.testing.assert_close(found["mean"][0], found["change"].mean(1), **CLOSE)
    torch.testing.assert_close(found["mean"][1], found["change"][:, found["right"]].mean(1), **CLOSE)
    error = found["change"].std(1) / len(found["right"]) ** 0.5
    torch.testing.assert_close(found["standard error"][0], error, **CLOSE)


@pytest.mark.parametrize("model", MODELS)
def test_who_is_right_and_how_sure(model, models):
    lm, found = models(model), measured(model, "heads")
    for prompt in (0, 41):
        fact = found.about["prompts"][prompt]
        last = logits(lm, fact["prompt"])[-1].log_softmax(-1)
        target = lm.token_id(fact["target"])
        assert bool(found["right"][prompt]) == (int(last.argmax()) == target)
        torch.testing.assert_close(found["clean log p"][prompt], last[target].float(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("model", MODELS)
def test_the_parts_of_the_logit_difference_add_up(model):
    found = measured(model, "heads")
    total = found["direct"].sum((1, 2)) + found["direct of MLPs"].sum(1) + found["direct of the rest"]
    torch.testing.assert_close(total, found["clean logit difference"], rtol=0, atol=0.05)


def test_one_head_writes_what_is_stored():
    lm, found = load_model(), measured("pocket", "heads")
    fact, block, head = found.about["prompts"][3], 8, 4
    seen = []
    norm = lm.model.transformer.ln_f
    out = logits(lm, fact["prompt"], [(norm, True, lambda m, args: seen.append(args[0][0, -1]))])[-1]
    stream = seen[0]
    weight = output_projection(lm, block).weight[head * lm.d_head : (head + 1) * lm.d_head]  # Conv1D: (in, out)
    written = heads_of(lm, fact["prompt"], block)[-1, head * lm.d_head : (head + 1) * lm.d_head] @ weight
    aim = lm.model.lm_head.weight[lm.token_id(fact["target"])] - lm.model.lm_head.weight[lm.token_id(fact["contrast"])]
    deviation = (stream.var(unbiased=False) + norm.eps).sqrt()
    expected = ((written - written.mean()) / deviation * norm.weight) @ aim
    torch.testing.assert_close(found["direct"][3, block, head], expected.detach().float(), **CLOSE)
    torch.testing.assert_close(
        found["clean logit difference"][3],
        (out[lm.token_id(fact["target"])] - out[lm.token_id(fact["contrast"])]).float(),
        **CLOSE,
    )


@pytest.mark.parametrize("model", MODELS)
def test_attention_sums_to_one_and_is_the_models_own(model, models):
    lm, found = models(model), measured(model, "heads")
    torch.testing.assert_close(found["attention"].sum(-1), torch.ones(lm.n_blocks, lm.n_heads), rtol=0, atol=1e-4)
    fact = found.about["prompts"][5]
    with torch.no_grad():
        patterns = lm.model(torch.tensor([lm.token_ids(fact["prompt"])]), output_attentions=True).attentions
    tokens = [lm.tokenizer.decode([i]) for i in lm.token_ids(fact["prompt"])]
    begin = len(tokens) - next(
        k for k in range(1, len(tokens) + 1) if fact["capital"] in "".join(tokens[-k:])
    )  # the shortest end of the prompt that holds the capital
    last = begin + next(k for k in range(1, 9) if fact["capital"] in "".join(tokens[begin : begin + k]))
    for block in (2, lm.n_blocks - 2):
        expected = patterns[block][0, :, -1, begin:last].sum(-1).float()
        torch.testing.assert_close(found["attention to capital"][5, block], expected, **CLOSE)


@pytest.mark.parametrize(("model", "blocks"), [("pocket", [0, 5, 11]), ("smollm2", [11])])
def test_blocks_skipped_over_text(model, blocks, models):
    lm, found = models(model), measured(model, "blocks")
    ids = torch.tensor(found.about["prompts"][4])
    clean = logits(lm, ids).log_softmax(-1)
    loss = -clean[:-1].gather(1, ids[1:, None]).mean()
    torch.testing.assert_close(found["clean loss"][4], loss.float(), rtol=1e-3, atol=1e-3)
    for block in blocks:

        def skip(module, args, output):
            return (args[0], *output[1:]) if isinstance(output, tuple) else args[0]

        edited = logits(lm, ids, [(layer(lm, block), False, skip)]).log_softmax(-1)
        rise = -edited[:-1].gather(1, ids[1:, None]).mean() - loss
        divergence = (clean.exp() * (clean - edited)).sum(-1).mean()
        kept = (clean.argmax(-1) == edited.argmax(-1)).float().mean()
        stored_here = found.at("damage", part="block", block=block)[4]
        torch.testing.assert_close(stored_here, torch.stack([rise, divergence, kept]).float(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("model", MODELS)
def test_pairs_are_symmetric_and_greedy_starts_with_the_cheapest(model):
    found = measured(model, "pairs")
    loss = found.at("mean", measure="loss")
    torch.testing.assert_close(loss, loss.T)
    order = found["greedy order"].tolist()
    assert len(set(order)) == len(order) and order[0] == int(loss.diagonal().argmin())
    assert found["greedy"][0] == pytest.approx(float(loss.diagonal().min()), abs=1e-5)
    with_first = loss[order[0]].clone()
    with_first[order[0]] = float("inf")
    assert order[1] == int(with_first.argmin())
    assert found["greedy"][1] == pytest.approx(float(with_first.min()), abs=1e-5)


def test_the_best_sets_are_never_worse_than_greedy_and_one_is_computed_again():
    lm, found = load_model(), measured("pocket", "pairs")
    assert (found["best"] <= found["greedy"] + 1e-5).all()
    chosen = found["best set"][2].nonzero().flatten().tolist()
    assert [int(one.sum()) for one in found["best set"]] == found.labels["removed"]
    texts = torch.tensor(found.about["prompts"])
    skip = lambda module, args, output: (args[0], *output[1:]) if isinstance(output, tuple) else args[0]  # noqa: E731
    hooks = [(layer(lm, block), False, skip) for block in chosen]

    def loss(hooks):
        return torch.stack(
            [-logits(lm, ids, hooks).log_softmax(-1)[:-1].gather(1, ids[1:, None]).mean() for ids in texts]
        ).mean()

    assert found["best"][2] == pytest.approx(float(loss(hooks) - loss([])), abs=1e-4)


@pytest.mark.parametrize("model", MODELS)
def test_what_a_few_texts_chose_is_priced_on_all_of_them(model, models):
    """The sums come from part "blocks", so both parts must have the same texts; one set is computed again on one of them."""
    lm, found = models(model), measured(model, "pairs")
    assert found.about["all_text"] == measured(model, "blocks").about["prompts"]
    ids, removed = torch.tensor(found.about["all_text"][7]), found["cheapest singles"].tolist()[:5]
    skip = lambda module, args, output: (args[0], *output[1:]) if isinstance(output, tuple) else args[0]  # noqa: E731

    def loss(hooks):
        return -logits(lm, ids, hooks).log_softmax(-1)[:-1].gather(1, ids[1:, None]).mean()

    rise = float(loss([(layer(lm, block), False, skip) for block in removed]) - loss([]))
    assert found.at("cheapest on all text", window=7, removed=5, measure="loss") == pytest.approx(rise, abs=1e-3)
    if "best set" in found.tensors:
        first = measured(model, "blocks").at("damage", part="block", measure="loss")[:, found["best set"][0].bool()]
        torch.testing.assert_close(found.at("best on all text", removed=1, measure="loss"), first[:, 0])


@pytest.mark.parametrize("model", MODELS)
def test_a_block_times_a_factor(model, models):
    lm, found = models(model), measured(model, "factors")
    fact, block, factor = found.about["prompts"][7], 2, 1.5

    def scale(module, args, output):
        return (output[0] * factor, *output[1:]) if isinstance(output, tuple) else output * factor

    clean = logits(lm, fact["prompt"])[-1]
    numbers, flags = judged(lm, clean, logits(lm, fact["prompt"], [(layer(lm, block), False, scale)])[-1], fact)
    torch.testing.assert_close(found.at("change", scaled=2, factor=1.5)[7], numbers, **CLOSE)
    assert found.at("flags", scaled=2, factor=1.5)[7].tolist() == flags


@pytest.mark.parametrize("model", MODELS)
def test_before_the_scaled_block_nothing_differs_and_there_the_factor_shows(model):
    found = measured(model, "factors")
    for block in found.labels["scaled"]:
        along = found.at("stream", scaled=block, factor=1.5)
        assert not along[:, :2, : block + 1].any()
        torch.testing.assert_close(along[:, 1, block + 1], torch.tensor([0.5, 0.5]), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(along[:, 2, block + 1], torch.ones(2), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("model", MODELS)
def test_the_first_tokens_length_and_who_looks_at_it(model, models):
    lm, found = models(model), measured(model, "sink")
    prompt = 1
    seen = []
    hooks = [
        (layer(lm, b), False, lambda m, a, out: seen.append((out[0] if isinstance(out, tuple) else out)[0]))
        for b in (2, 11)
    ]
    ids = torch.tensor([lm.token_ids(found.labels["prompt"][prompt])])
    logits(lm, ids[0], hooks)
    for point, stream in zip((3, 12), seen, strict=True):
        if point == 12 and model == "pocket":
            continue  # the last block's output is read elsewhere
        lengths = stream.norm(dim=-1).float()
        torch.testing.assert_close(found["first token's length"][prompt, point], lengths[0], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(found["others' length"][prompt, point], lengths[1:].median(), rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        patterns = lm.model(ids, output_attentions=True).attentions
    expected = patterns[5][0, :, 1:, 0].mean(-1).float()
    torch.testing.assert_close(found["attention to first"][prompt, 5], expected, **CLOSE)


@pytest.mark.parametrize("model", MODELS)
def test_phrasings_ask_the_same_and_correlations_are_of_the_maps(model):
    found = measured(model, "phrasings")
    for name, prompts in found.about["prompts"].items():
        assert [fact["target"].strip() for fact in prompts] == found.labels["country"], name
    maps = found.at("mean", measure="logit difference").flatten(1)
    torch.testing.assert_close(
        torch.corrcoef(maps), found.at("correlation", measure="logit difference"), rtol=0, atol=1e-3
    )
    assert not any(fact["target"].strip() in fact["capital"] for one in found.about["prompts"].values() for fact in one)


# ---- the tool


def test_prompts_in_one_row_give_what_each_gives_alone(tool):
    lm = tiny("llama")
    ids = torch.randint(0, 97, (5, 9), generator=torch.Generator().manual_seed(3))
    ids[:, :4] = ids[0, :4]
    row = tool("measuring.packed").Packed(lm, ids.tolist())
    assert len(row.ids) == 4 + 5 * 5
    measure = predictions(lm, [1, 2, 3, 4, 5], [9, 8, 7, 6, 10])
    values = trace(lm, ids).heads.transpose(0, 1).roll(1, 0)  # each prompt's heads from the one before it
    sites = [(block, head) for block in range(lm.n_blocks) for head in range(lm.n_heads)]
    laid = row.laid_out(list(values))
    edits = [replace_heads(b, h, laid[b][:, h : h + 1]) for b, h in sites]
    together = sweep_edits(row, row.ids, edits, measure=row.measure(measure))
    for p in range(5):
        alone = [replace_heads(b, h, values[p][b][:, h : h + 1]) for b, h in sites]
        one = predictions(lm, [p + 1], [[9, 8, 7, 6, 10][p]])
        # transformers computes this family's softmax in float32
        expected = sweep_edits(lm, ids[p : p + 1], alone, measure=one)[0]
        torch.testing.assert_close(together[:, p], expected, rtol=1e-5, atol=1e-5)


def test_zero_and_resample_are_those_of_sweep_heads(tool, models):
    lm = models("pocket")
    facts = [CapitalPrompt(**fact) for fact in measured("pocket", "heads").about["prompts"][:4]]
    capitals, heads = tool("measuring.capitals"), tool("measuring.heads")
    measure, columns = capitals.changes(lm, facts)
    for kind in ("zero", "resample"):
        expected = columns(
            sweep_heads(
                lm,
                capitals.ids_of(lm, facts),
                measure=measure,
                replacement=kind,
                generator=torch.Generator().manual_seed(0),
            )
        )
        torch.testing.assert_close(heads.head_map(lm, facts, kind), expected)


def test_a_finished_step_is_not_computed_again_and_another_input_is_another_step(tool, tmp_path):
    calls = []

    def work(value):
        calls.append(value)
        return torch.tensor([value])

    for key in ({"weights": "a"}, {"weights": "a"}, {"weights": "b"}):
        steps = tool("measuring.steps").Steps(tmp_path, key, lambda name: None)
        assert steps.one("one", [1], work, 1.0).tolist() == [1.0]
        assert steps.one("one", [2], work, 2.0).tolist() == [2.0]
    assert calls == [1.0, 2.0, 1.0, 2.0]
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".safetensors"]


def test_a_killed_step_leaves_nothing_that_counts_as_finished(tool, tmp_path):
    def killed():
        raise KeyboardInterrupt

    steps = tool("measuring.steps").Steps(tmp_path, {}, lambda name: None)
    with pytest.raises(KeyboardInterrupt):
        steps("one", [], killed)
    assert steps.one("one", [], lambda: torch.ones(1)).tolist() == [1.0]


def test_the_same_results_make_the_same_bytes(tool, tmp_path):
    lm = tiny("gpt2")
    steps = tool("measuring.steps").Steps(tmp_path, {}, lambda name: None)
    job = tool("measuring.job").Job("tiny", lm, tool("measuring.job").POCKET, steps, {"weights": "w"})
    table = {"a": (torch.ones(4), ["block"], "ones"), "b": (torch.zeros(4, 4), ["block", "head"], "zeros")}
    for folder in (tmp_path / "1", tmp_path / "2"):
        tool("measuring.files").write(job, "part", "what", table, {}, folder, prompts=["x"])
    first, second = (tmp_path / name / "tiny-part.safetensors" for name in "12")
    assert first.read_bytes() == second.read_bytes()
    assert read(tmp_path / "1", "tiny", "part")["b"].shape == (4, 4)


def test_the_hash_of_the_code_covers_every_file_of_the_tool_in_one_order(tool, monkeypatch):
    seen = []
    monkeypatch.setattr(Path, "read_bytes", lambda path: seen.append(path.name) or b"")
    assert len(tool("measuring.steps").code_of()) == 64
    of_the_tool = ["measure.py", *sorted(path.name for path in (TOOLS / "measuring").glob("*.py"))]
    assert seen[-len(of_the_tool) :] == of_the_tool and "heads.py" in of_the_tool


def test_the_findings_of_the_stored_files_are_printed(tool, capsys):
    for model in MODELS:
        assert tool("measure").main(["--model", model, "--show"]) == 0
    said = capsys.readouterr().out
    assert said.count("\n- ") > 60 and "nan" not in said


def test_an_unknown_model_is_told_in_one_sentence(tool, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    assert tool("measure").main(["--model", str(tmp_path / "empty"), "--out", str(tmp_path)]) == 1
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(("model", "block", "head"), [("pocket", 8, 4), ("smollm2", 23, 4)])
def test_the_price_of_a_head_and_of_its_attention(model, block, head, models):
    lm, found = models(model), measured(model, "prices")
    ids = torch.tensor(found.about["prompts"][2])
    clean = logits(lm, ids).log_softmax(-1)
    loss = -clean[:-1].gather(1, ids[1:, None]).mean()

    def damage(hook):
        edited = logits(lm, ids, [hook]).log_softmax(-1)
        rise = -edited[:-1].gather(1, ids[1:, None]).mean() - loss
        return torch.stack([rise, (clean.exp() * (clean - edited)).sum(-1).mean()]).float()

    projection = output_projection(lm, block)
    without_head = damage((projection, True, with_head(lm, head, 0.0)))
    torch.testing.assert_close(found["damage of heads"][2, block, head], without_head, rtol=1e-3, atol=1e-4)
    silent = damage((projection, False, lambda module, args, output: torch.zeros_like(output)))
    torch.testing.assert_close(found.at("damage", part="attention")[2, block], silent, rtol=1e-3, atol=1e-4)
    assert found["parameters"][0, block] == sum(p.numel() for p in layer(lm, block).parameters())
    sizes = found.at("parameters", part="attention")
    torch.testing.assert_close(found["parameters of a head"], sizes / lm.n_heads, rtol=1e-6, atol=0)
