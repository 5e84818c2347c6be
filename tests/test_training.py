"""The pocket model's tools, on a corpus of a few lines: same result after a kill, with two workers, and usable exports."""

import json
import lzma
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from helpers import load_model

TOOLS = Path(__file__).resolve().parent.parent / "tools"
sys.path.insert(0, str(TOOLS))
import pocket_corpus  # noqa: E402
import train_pocket  # noqa: E402

RECIPE = train_pocket.Recipe(layers=2, heads=2, width=16, context=16, windows=8, warmup=2)
TINY = [f"--{name}={getattr(RECIPE, name)}" for name in ("layers", "heads", "width", "context", "windows", "warmup")]


def command(data: Path, run: Path, *more: str) -> list[str]:
    return [sys.executable, str(TOOLS / "train_pocket.py"), "--data", str(data), "--run", str(run), *TINY, *more]


def run_here(monkeypatch, words: list[str]) -> None:
    """What `command` says, without the seconds that a process of its own takes to begin."""
    monkeypatch.setattr(sys, "argv", words[1:])
    train_pocket.main()


def train_here(data: Path, run: Path, steps: int, recipe: train_pocket.Recipe = RECIPE) -> dict[str, torch.Tensor]:
    run.mkdir(exist_ok=True)
    train_pocket.train(
        0, SimpleNamespace(data=data, run=run, workers=1, every=2, port=0, steps=steps, start=None), recipe
    )
    return load_file(run / "checkpoint.safetensors")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    corpus, out = tmp_path_factory.mktemp("corpus"), tmp_path_factory.mktemp("build")
    words = ["the", "old", "house", "stood", "by", "a", "river", "and", "nobody", "knew", "who", "had", "built", "it"]
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(words, 12)) + "." for _ in range(1400)]
    books = "\n\n".join("\n".join(lines[i : i + 25]) for i in range(0, 1400, 25))
    with lzma.open(corpus / "books.txt.xz", "wt", encoding="utf-8") as file:
        file.write(books)
    with lzma.open(corpus / "world.txt.xz", "wt", encoding="utf-8") as file:
        file.write("\n".join(f"Norway. {line}" for line in lines[:90]))
    pocket_corpus.build(corpus, out, vocabulary=3000, fact_count=300)
    return out


def test_names_become_single_tokens_and_held_out_text_stays_out(data):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(data / "tokenizer.json"))
    assert len(tokenizer.encode(" Germany").ids) == len(tokenizer.encode("Germany").ids) == 1
    sizes = json.loads((data / "sizes.json").read_text())
    assert sizes["world"]["documents"] + sizes["world_unseen"]["documents"] == 90
    facts = tokenizer.decode(np.load(data / "facts.npy").tolist())
    assert "is the capital of" in facts
    for template in pocket_corpus.HELD_OUT_TEMPLATES:
        before, after = template.split("{c}")
        for row in pocket_corpus.read_countries():
            assert f"{before}{row['capital']}{after.split('{k}')[0]}" not in facts


def test_fact_sentences_are_true_and_well_formed():
    rows = {row["country"]: row for row in pocket_corpus.read_countries()}
    text = "\n".join(pocket_corpus.fact_documents(3, 400, {"France": 50}))
    assert text == "\n".join(pocket_corpus.fact_documents(3, 400, {"France": 50})), (
        "the same seed must write the same text"
    )
    plain = pocket_corpus.fill("{c} is the capital of {k}.", rows["the Netherlands"], rows["Germany"])
    assert plain == "Amsterdam is the capital of the Netherlands."
    asked = pocket_corpus.fill("Which country has {c} as its capital? {k}.", rows["the Netherlands"], rows["Germany"])
    assert asked.endswith("? The Netherlands.")
    assert not any(line[0].islower() or "{" in line for line in text.splitlines())


def test_the_levers_of_the_trials_do_what_they_say(data, tmp_path):
    long = replace(RECIPE, context=32)
    for micro in range(6):
        plain = train_pocket.Windows(data, long).draw(3, micro)
        ended = train_pocket.Windows(data, replace(long, boundary=1)).draw(3, micro)
        assert torch.equal(ended[:, 1:], plain[:, :-1]) and bool((ended[:, 0] == train_pocket.END).all())
        for row in train_pocket.Windows(data, replace(long, repeats=1.0)).draw(3, micro).tolist():
            assert any(row[period:] == row[:-period] for period in range(8, 17))
    logits, ids = torch.randn(3, 4, 50), torch.randint(50, (3, 5))
    by_hand = torch.stack([-logits.log_softmax(-1)[w, p, ids[w, p + 1]] for w in range(3) for p in range(2, 4)])
    torch.testing.assert_close(train_pocket.mean_loss(logits, ids, first_free=2), by_hand.mean())
    levers = replace(RECIPE, repeats=0.5, first_free=1, boundary=1)
    assert all(torch.isfinite(p).all() for p in train_here(data, tmp_path, 2, levers).values())


def test_a_killed_run_resumes_to_the_same_weights(data, tmp_path, monkeypatch):
    whole = train_here(data, tmp_path / "whole", 40)
    interrupted = command(data, tmp_path / "killed", "--steps", "40", "--every", "2")
    process = subprocess.Popen(interrupted)
    checkpoint = tmp_path / "killed" / "checkpoint.safetensors"
    until = time.time() + 120
    while not checkpoint.exists() and time.time() < until:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 2 <= int(train_pocket.read_about(checkpoint)["step"]) < 40
    run_here(monkeypatch, interrupted)
    resumed = load_file(checkpoint)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_resuming_is_exact_with_muon_too(data, tmp_path):
    muon = replace(RECIPE, optimizer="muon", decay=1e-9)
    whole = train_here(data, tmp_path / "whole", 6, muon)
    train_here(data, tmp_path / "halves", 2, muon)
    halves = train_here(data, tmp_path / "halves", 6, muon)
    assert all(torch.equal(whole[name], halves[name]) for name in whole)


def test_two_workers_share_the_work_and_agree_with_one(data, tmp_path):
    one = train_here(data, tmp_path / "one", 4)
    subprocess.run(command(data, tmp_path / "two", "--steps", "4", "--workers", "2", "--port", "29631"), check=True)
    two = load_file(tmp_path / "two" / "checkpoint.safetensors")
    for name in (name for name in one if name.startswith("model.")):
        assert torch.allclose(one[name], two[name], atol=2e-4), name


def test_another_recipe_is_refused_and_the_export_loads(data, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    run_here(monkeypatch, command(data, run, "--steps", "2", "--every", "1"))
    with pytest.raises(SystemExit):
        run_here(monkeypatch, command(data, run, "--steps", "3", "--rate", "0.5"))
    assert "another recipe" in capsys.readouterr().err
    run_here(monkeypatch, command(data, run, "--export", str(tmp_path / "model")))
    lm = load_model(tmp_path / "model", dtype=torch.float64)
    assert (lm.n_blocks, lm.n_heads, lm.d_model, lm.context) == (2, 2, 16, 16)
    trained = load_file(run / "checkpoint.safetensors")["model.transformer.h.1.mlp.c_fc.weight"]
    assert torch.equal(lm.mlp(1).c_fc.weight, trained.half().double())
    assert lm.token_strings("Berlin is the capital")[0] == "Berlin"
    longer = [*TINY, "--context=24", "--warmup=1000000", "--weight-decay=0"]  # a rate so small that nothing moves
    going_on = [
        sys.executable,
        str(TOOLS / "train_pocket.py"),
        "--data",
        str(data),
        "--run",
        str(tmp_path / "on"),
        *longer,
    ]
    run_here(monkeypatch, [*going_on, "--steps=1", "--start", str(tmp_path / "model")])
    on, finished = (
        load_file(tmp_path / "on" / "checkpoint.safetensors"),
        load_file(tmp_path / "model" / "model.safetensors"),
    )
    torch.testing.assert_close(on["model.transformer.wpe.weight"][:16], finished["transformer.wpe.weight"].float())
    for name in set(finished) - {"transformer.wpe.weight"}:
        torch.testing.assert_close(on[f"model.{name}"], finished[name].float())
