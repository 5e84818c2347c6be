"""Loading, wrapping and encoding: what a learner gets, and the sentence when it cannot be had."""

import contextlib
import copy
import json
import math
import os
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import CONFIGS, tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from helpers import errors, load_model, trace, wrap
from helpers.loading import POCKET_FOLDER
from helpers.models import Tokens

WORDS = [
    "<s>",
    "Berlin",
    "is",
    "the",
    "capital",
    "of",
    "ĠBerlin",
    "Ġis",
    "Ġthe",
    "Ġcapital",
    "Ġof",
    "ĠGermany",
    "ĠLie",
    "chten",
]


def words_tokenizer(bos=False, mark="Ġ"):
    """Whole words with the space in front, as GPT-2 writes them (Ġ) or as Llama does (▁), with or without a first token."""
    words = [word.replace("Ġ", mark) for word in WORDS]
    pieces = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<s>", ignore_merges=True))
    if mark == "▁":
        pieces.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        pieces.decoder = decoders.Metaspace(prepend_scheme="never")
    else:
        pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        pieces.decoder = decoders.ByteLevel()
    if bos:
        pieces.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=pieces, bos_token="<s>", unk_token="<s>")


def save(folder, family="gpt2", dtype=torch.float32, **changes):
    lm = tiny(family, dtype, **changes)
    lm.model.save_pretrained(folder)
    words_tokenizer().save_pretrained(folder)
    return lm


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(autouse=True)
def same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_gpt2s_gelu_runs_as_one_kernel_and_is_the_same_function(tmp_path):
    saved, lm = save(tmp_path, "gpt2", torch.float64), load_model(tmp_path)
    assert saved.model.config.activation_function == "gelu_new"
    assert lm.model.config.activation_function == "gelu_pytorch_tanh"
    x = torch.linspace(-20, 20, 4001, dtype=torch.float64)
    by_hand = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    for model in (saved, lm):
        torch.testing.assert_close(model.mlp(0).act(x), by_hand, rtol=0, atol=1e-14)
    assert not torch.allclose(torch.nn.functional.gelu(x), by_hand, rtol=0, atol=1e-5)  # the other GELU would be seen


@pytest.mark.parametrize("family", CONFIGS)
def test_a_saved_model_of_every_family_comes_back_the_same(tmp_path, family):
    saved = save(tmp_path, family)
    lm = load_model(tmp_path)
    assert lm.dtype == torch.float32 and not lm.model.training and lm.model.config._attn_implementation == "eager"
    ids = torch.arange(2, 24).reshape(2, 11)
    if (
        getattr(saved.model.config, "activation_function", "") == "gelu_new"
    ):  # one kernel now: the last digit may differ
        torch.testing.assert_close(lm.logits(ids), saved.logits(ids), rtol=1e-5, atol=1e-6)
    else:
        assert lm.logits(ids).equal(saved.logits(ids))
    shared = dict.fromkeys(
        ("n_blocks", "n_heads", "n_key_heads", "d_model", "d_head", "d_mlp", "context", "vocabulary")
    )
    assert all(getattr(lm, name) == getattr(saved, name) > 0 for name in shared)


def test_a_model_keeps_its_own_dtype_unless_asked(tmp_path):
    save(tmp_path, dtype=torch.bfloat16)
    assert load_model(tmp_path).dtype == torch.bfloat16
    assert load_model(str(tmp_path), dtype=torch.float64).dtype == torch.float64


def test_the_pocket_model_is_float64_on_one_thread_and_needs_nobody(monkeypatch):
    if not (POCKET_FOLDER / "model.safetensors").is_file():
        pytest.skip("helpers/pocket has no weights yet")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(2)
    lm = load_model()
    assert lm.dtype == torch.float64 and lm.family == "gpt2" and (lm.n_blocks, lm.n_heads, lm.d_model) == (12, 12, 192)
    assert torch.get_num_threads() == 1 and lm.model.config._attn_implementation == "eager"
    assert lm.token_strings("Berlin is the capital of")[-1] == " of"
    assert lm.token_id(" Germany") == lm.encode("Berlin is the capital of Germany").ids[0, -1]


def test_threads_are_one_for_a_small_model_and_as_asked_otherwise(folder, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(2)
    load_model(folder, threads=2)
    assert torch.get_num_threads() == 2
    load_model(folder)
    assert torch.get_num_threads() == 1
    torch.set_num_threads(2)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    load_model(folder)
    assert torch.get_num_threads() == 2


def test_loading_prints_nothing_and_gives_the_learners_settings_back(folder, capfd):
    from transformers.utils import logging

    logging.set_verbosity_info()
    try:
        load_model(folder)
        assert capfd.readouterr() == ("", "")
        assert logging.get_verbosity() == logging.INFO and logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity_warning()


def rewrite(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def drop_tensors(folder, part):
    file = folder / "model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if part not in k}, file, metadata={"format": "pt"})


def replace_tensor(folder):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["transformer.h.1.ln_1.weight"] = torch.zeros(7)
    save_file(tensors, file, metadata={"format": "pt"})


DAMAGES = {
    "cut off": (lambda f, w: w.write_bytes(w.read_bytes()[:-100]), "DamagedWeights", "damaged or was cut off.*Fetch it again"),
    "header only": (lambda f, w: w.write_bytes(w.read_bytes()[:20]), "DamagedWeights", "damaged or was cut off"),
    "empty": (lambda f, w: w.write_bytes(b""), "DamagedWeights", "damaged or was cut off"),
    "noise": (lambda f, w: w.write_bytes(b"\xff" * 999), "DamagedWeights", "damaged or was cut off"),
    "a web page": (lambda f, w: w.write_text("<html>log in</html>" * 9), "DamagedWeights", "damaged or was cut off"),
    "a pointer": (lambda f, w: w.write_text("version https://git-lfs\noid 1"), "DamagedWeights", "damaged or was cut off"),
    "missing tensors": (lambda f, w: drop_tensors(f, "h.2.mlp"), "DamagedWeights", r"lack 4 tensors \(transformer.h.2.mlp"),
    "another shape": (lambda f, w: replace_tensor(f), "DamagedWeights", "do not belong together. Copy it again"),
    "more blocks": (
        lambda f, w: rewrite(f / "config.json", lambda c: c.update(n_layer=2)), "DamagedWeights", "more than the 2 blocks",
    ),
    "fewer blocks": (
        lambda f, w: rewrite(f / "config.json", lambda c: c.update(n_layer=6)), "DamagedWeights", "lack 24 tensors",
    ),
    "heads that do not divide": (
        lambda f, w: rewrite(f / "config.json", lambda c: c.update(n_head=5)), "DamagedWeights", "do not belong together",
    ),
    "config of no JSON": (lambda f, w: (f / "config.json").write_text("{"), "DamagedWeights", "do not belong together"),
    "another family": (
        lambda f, w: rewrite(f / "config.json", lambda c: c.update(model_type="mpt")), "UnsupportedFamily",
        "'mpt' models are not in the table.*gpt2, gpt_neo, .*llama, .*gpt_oss. If .*family='llama'.*family=Family",
    ),
    "an encoder": (
        lambda f, w: rewrite(f / "config.json", lambda c: c.update(model_type="bert")), "UnsupportedFamily",
        "'bert' is an encoder, and the helpers work on decoder-only transformers",
    ),
    "no family": (lambda f, w: (f / "config.json").write_text("{}"), "UnsupportedFamily", "it has gpt2, gpt_neo"),
    "broken tokenizer": (lambda f, w: (f / "tokenizer.json").write_text("{}"), "DamagedWeights", "do not belong together"),
    "no config": (lambda f, w: (f / "config.json").unlink(), "UnknownModel", r"no config.json\): save one there"),
    "no weights": (lambda f, w: w.unlink(), "UnknownModel", "holds no model.safetensors.*save it again"),
    "weights of another format": (
        lambda f, w: w.rename(f / "pytorch_model.bin"), "UnknownModel", "holds no model.safetensors.*can run code",
    ),
    "no tokenizer": (lambda f, w: (f / "tokenizer.json").unlink(), "UnknownModel", "no tokenizer.*tokenizer.save_pretrained"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_gets_its_sentence(folder, damage, capfd):
    harm, kind, sentence = DAMAGES[damage]
    harm(folder, folder / "model.safetensors")
    threads = torch.get_num_threads()
    with pytest.raises(getattr(errors, kind), match=f"(?s){sentence}") as caught:
        load_model(folder)
    assert type(caught.value) is getattr(errors, kind) and "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "") and torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("./nowhere", "no folder './nowhere': check the path"), ("/nowhere/at/all", "no folder"), ("~/nowhere-at-all", "no folder"),
        ("a/b/c", "no folder 'a/b/c'"), ("back\\slash", "no folder"), (Path("nowhere"), "no folder 'nowhere'"),
        ("two words", "'two words' is not the name of a model: hub names look like 'gpt2'"),
        (__file__, "is a file: pass the folder"),
    ],
)  # fmt: skip
def test_a_name_that_cannot_be_a_model_gets_its_sentence_without_a_network(name, sentence):
    with pytest.raises(errors.UnknownModel) as caught:
        load_model(name)
    assert sentence in str(caught.value)


def test_the_courses_own_models_may_be_written_as_people_write_them(tmp_path, monkeypatch):
    assert load_model("Pocket").model.num_parameters() == load_model().model.num_parameters()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Pocket").mkdir()  # a folder of one's own comes first
    with pytest.raises(errors.HelpersError, match="Pocket"):
        load_model("Pocket")


def test_code_that_comes_with_a_model_is_never_run_nor_asked_about(folder, monkeypatch):
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    auto = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M", "AutoTokenizer": ["evil.T", "evil.T"]}
    rewrite(folder / "config.json", lambda c: c.update(auto_map=auto))
    rewrite(folder / "tokenizer_config.json", lambda c: c.update(auto_map=auto))
    # Some versions refuse a tokenizer with code of its own: fine, as long as none ran.
    with contextlib.suppress(errors.DamagedWeights):
        assert type(load_model(folder).model).__name__ == "GPT2LMHeadModel"
    assert "evil" not in " ".join(sys.modules)


HUB = """
    import os, sys, threading, time
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Hub(BaseHTTPRequestHandler):  # a hub that knows no model
        def do_HEAD(self):
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
        do_GET = do_HEAD
        def log_message(self, *_): pass

    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "*"
    import huggingface_hub, transformers
    from helpers import load_model

    def attempt(name):
        start = time.monotonic()
        try:
            print("loaded", load_model(name).n_blocks)
        except Exception as error:
            print(type(error).__name__, error)
        assert time.monotonic() - start < 40, "too long"

    attempt("nobody/nothing")
    server.shutdown(); server.server_close()
    attempt("nobody/nothing")
    attempt("somebody/tiny")
"""


def test_hub_names_without_a_hub_with_an_empty_one_and_from_the_cache(tmp_path):
    """In processes of their own, since the hub's address and cache are read once, at import. No real hub is asked."""
    snapshot = tmp_path / "hub" / "models--somebody--tiny" / "snapshots" / ("0" * 40)
    save(snapshot)
    (tmp_path / "hub" / "models--somebody--tiny" / "refs").mkdir()
    (tmp_path / "hub" / "models--somebody--tiny" / "refs" / "main").write_text("0" * 40)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGINGFACE_"))}
    env |= {"HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub"), "PYTHONPATH": os.pathsep.join(sys.path)}
    for offline in ("0", "1"):
        env["HF_HUB_OFFLINE"] = offline
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(HUB)],
            env=env,
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        )
        unknown, unreachable, cached = done.stdout.splitlines()
        if offline == "0":
            assert unknown.startswith("UnknownModel the hub has no public model 'nobody/nothing': check the spelling")
        sentence = "NoNetwork 'nobody/nothing' is not on this machine and the model hub does not answer: connect once"
        assert unreachable.startswith(sentence) and "load_model()" in unreachable
        assert cached == "loaded 4"
        assert "Retrying" not in done.stderr


# ---- wrapping and encoding


def test_a_wrapped_model_is_the_same_object_in_eval_mode():
    model = tiny("gpt2").model.train()
    lm = wrap(model)
    assert lm.model is model and not model.training
    assert lm.attention(1) is model.transformer.h[1].attn and lm.mlp(2) is model.transformer.h[2].mlp
    assert lm.blocks[3] is model.transformer.h[3] and lm.final_norm is model.transformer.ln_f
    assert lm.unembed is model.lm_head


def test_an_opt_model_that_normalises_afterwards_is_refused():
    with pytest.raises(errors.UnsupportedFamily, match="do_layer_norm_before=False"):
        tiny("opt", do_layer_norm_before=False)


@pytest.fixture
def words():
    return wrap(tiny("gpt2").model, words_tokenizer())


def test_prompts_become_ids_and_a_mask(words):
    one = words.encode("Berlin is the capital of")
    assert one.ids.tolist() == [[1, 7, 8, 9, 10]] and one.mask.all() and not one.padded and one.last.tolist() == [4]
    two = words.encode(["Berlin is", "Berlin is the capital"])
    assert two.ids.shape == (2, 4) and two.mask.tolist() == [[True, True, False, False], [True] * 4]
    assert two.padded and two.last.tolist() == [1, 3]
    left = words.encode(["Berlin is", "Berlin is the capital"], padding="left")
    assert left.mask.tolist() == [[False, False, True, True], [True] * 4] and left.last.tolist() == [3, 3]
    assert words.encode(torch.tensor([5, 6], dtype=torch.int32)).ids.tolist() == [[5, 6]]
    assert words.encode(two).ids.equal(two.ids)
    assert words.token_strings("Berlin is the") == ["Berlin", " is", " the"]


def test_prompts_that_cannot_be_used_say_why(words):
    for empty in ("", ["Berlin", ""]):
        with pytest.raises(errors.BadPrompt, match="the prompt is empty: type at least one word"):
            words.encode(empty)
    with pytest.raises(
        errors.PromptTooLong, match="has 40 tokens, but this model has 32 positions: shorten it by at least 8"
    ):
        words.encode("Berlin" + " is" * 39)
    with pytest.raises(errors.BadPrompt, match="reads one prompt, but these are 2"):
        words.token_strings(["Berlin", "Berlin"])
    small = wrap(tiny("gpt2", vocab_size=9).model, words_tokenizer())
    with pytest.raises(
        errors.BadPrompt, match=r"the tokenizer made token 10, but this model has tokens 0 to 8.*another model"
    ):
        small.encode("Berlin is the capital of")


def test_targets_are_one_token(words):
    assert words.token_id(" Germany") == 11
    sentence = r"' Berlin Germany' is 2 tokens here \(' Berlin', ' Germany'\); choose a target of one token.*' Germany'\.(\n|$)"
    with pytest.raises(errors.TargetIsNotOneToken, match=sentence):
        words.token_id(" Berlin Germany")
    with pytest.raises(errors.TargetIsNotOneToken, match=r"A word inside a sentence begins with a space\."):
        words.token_id("Germany Germany")
    unknown = copy.copy(words)
    unknown.tokenizer = copy.deepcopy(words.tokenizer)
    unknown.tokenizer.unk_token = words.tokenizer.convert_ids_to_tokens(words.token_id(" Germany"))
    with pytest.raises(errors.TargetIsNotOneToken, match=r"does not know ' Germany'.*choose another target"):
        unknown.token_id(" Germany")
    with pytest.raises(errors.TargetIsNotOneToken, match=r"'' is 0 tokens here \(none\)"):
        words.token_id("")
    with pytest.raises(errors.BadPrompt, match="without a tokenizer"):
        tiny("gpt2").token_id(" Germany")


def test_a_tokenizer_that_puts_a_token_first():
    lm = wrap(tiny("llama").model, words_tokenizer(bos=True))
    assert lm.encode("Berlin is").ids.tolist() == [[0, 1, 7]]
    assert lm.token_id(" Germany") == 11
    with pytest.raises(errors.BadPrompt, match="the prompt is empty"):
        lm.encode("")


def test_a_text_that_begins_with_the_first_token_does_not_get_it_twice():
    """As texts from a chat template do."""
    lm = wrap(tiny("llama").model, words_tokenizer(bos=True))
    lm.tokenizer.chat_template = "{{ bos_token }}{{ messages[0]['content'] }}"
    text = lm.tokenizer.apply_chat_template([{"role": "user", "content": "Berlin is"}], tokenize=False)
    assert text == "<s>Berlin is" and lm.tokenizer(text)["input_ids"] == [0, 0, 1, 7]
    assert lm.encode(text).ids.tolist() == lm.encode("Berlin is").ids.tolist() == [[0, 1, 7]]
    assert lm.encode("<s><s>Berlin").ids.tolist() == [[0, 0, 1]]  # two that somebody wrote stay two
    plain = wrap(tiny("llama").model, words_tokenizer())
    assert plain.encode("<s>Berlin is").ids.tolist() == [[0, 1, 7]]


def test_a_tokenizer_that_puts_a_space_in_front_by_itself():
    lm = wrap(tiny("llama").model, words_tokenizer(mark="▁"))
    assert (
        lm.encode("Berlin is the capital of Germany").ids[0, -1]
        == lm.token_id(" Germany")
        == lm.token_id("Germany")
        == 11
    )


def test_the_last_real_token_is_found_under_any_padding():
    mask = torch.tensor([[True, True, False], [False, True, True], [True, False, False]])
    assert Tokens(torch.zeros(3, 3, dtype=torch.long), mask).last.tolist() == [1, 2, 0]


def test_a_target_without_its_space_is_told_of_the_other_token():
    class Spaced:
        unk_token = None

        def __call__(self, text, **_):
            return {
                "input_ids": {"Germany": [3], " Germany": [4], "(": [5], " (": [6], "ing": [7], " ing": [8, 9]}[text]
            }

    lm = tiny("gpt2")
    lm.tokenizer = Spaced()
    with pytest.warns(UserWarning, match=r"'Germany' is token 3.*' Germany', which is token 4.*if not, give the id"):
        assert lm.token_id("Germany") == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [lm.token_id(text) for text in (" Germany", "(", " (", "ing")] == [4, 5, 6, 7]


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3"])
def test_padding_on_the_left_that_would_be_nan_is_refused_where_it_is_made(family):
    """lm.inputs refuses it too, but generate is called without."""
    lm = wrap(tiny(family).model, words_tokenizer())
    texts = ["Berlin is the capital of Germany", "Berlin is"]
    with pytest.raises(errors.BadValue, match=r"gives NaN in float64.*load the model in float32"):
        lm.encode(texts, padding="left")
    assert lm.encode(texts[:1], padding="left").mask.all()
    lm = wrap(tiny(family, torch.float32).model, words_tokenizer())
    tokens = lm.encode(texts, padding="left")
    assert not tokens.mask.all() and trace(lm, tokens).logits.isfinite().all()
