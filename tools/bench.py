"""How much sweeps and traces cost, in plain forward passes of the same model in the same run.

    python tools/bench.py                                       # the first table of docs/speed.md
    python tools/bench.py --device cuda --dtype bfloat16        # on a machine that has a GPU (make gpu)

GPT-2 small's size with random weights (no download), float32 unless told otherwise, eager attention and GELU in one
kernel as `load_model` sets them; then the real model, if it is here (`make real` brings it). A prompt of 12 tokens, one
thread. What is compared runs in turns, round by round, and the smallest time of each counts: what others do on the machine
only ever adds. On the CPU the process's own time is read, on another device the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

TOKENS, PROMPTS = 12, 8


def seconds(work: Callable[[], object], device: str, repeats: int = 1) -> float:
    """Processor seconds on the CPU, seconds by the clock on another device."""
    import torch

    wait = torch.cuda.synchronize if device != "cpu" else (lambda: None)
    clock = time.process_time if device == "cpu" else time.perf_counter
    wait()
    start = clock()
    for _ in range(repeats):
        work()
    wait()
    return (clock() - start) / repeats


def ratio(work: Callable[[], object], plain: Callable[[], object], device: str, rounds: int, passes: int = 4) -> float:
    """Cost of `work` in plain passes: the smallest time of each, in `rounds` turns of one `work` and so many passes.

    What costs about one pass is compared with one, since the smallest of more times is smaller.
    """
    costs, plains = [], []
    for _ in range(rounds):
        plains += [seconds(plain, device) for _ in range(passes)]
        costs.append(seconds(work, device))
    return min(costs) / min(plains)


def milliseconds(plain: Callable[[], object], device: str, rounds: int) -> str:
    found = 1000 * min(seconds(plain, device) for _ in range(3 + rounds))
    return f"{found:.0f}" if found > 20 else f"{found:.1f}"


def gpt2_small(device: str, dtype: Any = None) -> Any:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from helpers import wrap

    torch.manual_seed(0)
    config = GPT2Config(activation_function="gelu_pytorch_tanh")
    model: Any = GPT2LMHeadModel._from_config(config, attn_implementation="eager")
    return wrap(model.to(device, dtype or torch.float32))


def prompts(number: int) -> Any:
    import torch

    return torch.randint(0, 50257, (number, TOKENS), generator=torch.Generator().manual_seed(1))


def costs(device: str, dtype: Any, rounds: int) -> Iterator[tuple[str, str]]:
    import torch

    from helpers import edit, log_prob, sweep_block_pairs, sweep_blocks, sweep_heads, trace, wrap, zero_heads

    lm = gpt2_small(device, dtype)
    many = prompts(PROMPTS).to(device)
    one = many[0]

    def plain() -> object:
        return lm.logits(one)

    found: list[float] = []

    def loop() -> None:
        before = log_prob(lm.logits(one)[0, -1].float(), 7)
        found.clear()
        for block in range(lm.n_blocks):
            for head in range(lm.n_heads):
                with edit(lm, zero_heads(block, [head])):
                    found.append((log_prob(lm.logits(one)[0, -1].float(), 7) - before).item())

    def kept_by_hand() -> list[Any]:
        kept: list[Any] = []
        handles = []
        for block in lm.blocks:
            attention, mlp = block.attn, block.mlp
            handles.append(block.register_forward_pre_hook(lambda m, args: kept.append(args[0].clone())))
            handles.append(attention.register_forward_hook(lambda m, args, output: kept.append(output[0].clone())))
            handles.append(mlp.register_forward_hook(lambda m, args, output: kept.append(output.clone())))
            handles.append(attention.c_proj.register_forward_pre_hook(lambda m, args: kept.append(args[0].clone())))
        lm.logits(one)
        for handle in handles:
            handle.remove()
        return kept

    def passes(work: Callable[[], object], by: int = 1, rounds: int = rounds) -> str:
        return f"{ratio(work, plain, device, rounds) / by:.1f}"

    few = max(1, rounds // 3)
    yield "plain pass, ms", milliseconds(plain, device, rounds)
    swept = sweep_heads(lm, one, 7).flatten().tolist()
    yield "all 144 heads, `sweep_heads`", passes(lambda: sweep_heads(lm, one, 7))
    if device == "cpu":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the switch speaks of Intel GPUs
            with torch.backends.mkldnn.flags(enabled=False):
                yield "the same with oneDNN switched off", passes(lambda: sweep_heads(lm, one, 7))
    yield "all 144 heads, the plain loop", passes(loop, rounds=few)
    apart = max(abs(a - b) for a, b in zip(found, swept, strict=True))
    yield "largest difference between the two, in nats", f"{apart:.0e}"
    yield f"144 heads for {PROMPTS} prompts at once, per prompt", passes(lambda: sweep_heads(lm, many, 7), PROMPTS, few)
    yield "12 blocks skipped, `sweep_blocks`", passes(lambda: sweep_blocks(lm, one, 7))
    yield (
        f"12 blocks for {PROMPTS} prompts at once, per prompt",
        passes(lambda: sweep_blocks(lm, many, 7), PROMPTS, few),
    )
    yield "12 blocks and their 66 pairs, `sweep_block_pairs`", passes(lambda: sweep_block_pairs(lm, one, 7))
    yield "full `trace`", f"{ratio(lambda: trace(lm, one), plain, device, 15 * rounds, 1):.2f}"
    yield "the same values kept by PyTorch's own hooks", f"{ratio(kept_by_hand, plain, device, 15 * rounds, 1):.2f}"
    eight = one[:8]
    certified = ratio(lambda: wrap(lm.model), lambda: lm.logits(eight), device, rounds)
    yield "`wrap` with its certificate, in passes of 8 tokens", f"{certified:.1f}"


def real_model(device: str, dtype: Any, rounds: int) -> Iterator[tuple[str, str]]:
    """The same for SmolLM2-135M, on one thread; one row that says so where it is not on this machine."""
    import torch

    from helpers import (
        edit,
        load_model,
        log_prob,
        scale_block,
        sweep_block_pairs,
        sweep_blocks,
        sweep_heads,
        trace,
        zero_heads,
    )
    from helpers.smollm2 import is_here

    if not is_here():
        yield "SmolLM2-135M", "not measured: it is not on this machine; load_model('smollm2') brings it"
        return
    start = time.perf_counter()
    lm = load_model("smollm2", threads=1)
    loading = time.perf_counter() - start
    lm.model.to(device, dtype)
    many = torch.randint(0, lm.vocabulary, (PROMPTS, TOKENS), generator=torch.Generator().manual_seed(1)).to(device)
    one = many[0]
    edited = scale_block(2, 0.5)

    def plain() -> object:
        return lm.logits(one)

    def step() -> object:
        with edit(lm, edited):
            return trace(lm, one).last_logits

    def passes(work: Callable[[], object], by: int = 1, rounds: int = rounds) -> str:
        return f"{ratio(work, plain, device, rounds) / by:.1f}"

    few = max(1, rounds // 3)
    name = "SmolLM2-135M"
    yield f"{name}: loading it, s by the clock", f"{loading:.1f}"
    yield f"{name}: plain pass, ms", milliseconds(plain, device, rounds)
    yield f"{name}: all 270 heads, `sweep_heads`", passes(lambda: sweep_heads(lm, one, 7))
    swept, before = sweep_heads(lm, one, 7), log_prob(lm.logits(one)[0, -1].float(), 7)
    apart = []
    for block, head in ((0, 0), (2, 8), (11, 4), (16, 4), (29, 1)):
        with edit(lm, zero_heads(block, [head])):
            effect = (log_prob(lm.logits(one)[0, -1].float(), 7) - before).item()
            apart.append(abs(effect - swept[block, head].item()))
    yield f"{name}: largest difference to the plain loop in five heads, in nats", f"{max(apart):.0e}"
    eight = passes(lambda: sweep_heads(lm, many, 7), PROMPTS, few)
    yield f"{name}: 270 heads for {PROMPTS} prompts at once, per prompt", eight
    yield f"{name}: 30 blocks skipped, `sweep_blocks`", passes(lambda: sweep_blocks(lm, one, 7), 1, few)
    yield (
        f"{name}: 30 blocks and their 435 pairs, `sweep_block_pairs`",
        passes(lambda: sweep_block_pairs(lm, one, 7), 1, few),
    )
    yield f"{name}: full `trace`", f"{ratio(lambda: trace(lm, one), plain, device, 9 * rounds, 1):.2f}"
    yield f"{name}: a slider's step, one edited trace", f"{ratio(step, plain, device, 9 * rounds, 1):.2f}"


def one_edit(rounds: int) -> Iterator[tuple[str, str]]:
    """Milliseconds that one edit adds to a pass: put on, run, taken off; and a hook by hand that does the same unproven.

    Timed on the one module that it changes, with and without it: whole passes differ by more than an edit costs.
    """
    import torch

    from helpers import edit, load_model, zero_heads

    lm = load_model(threads=1)
    module = lm.part(2, lm.parts.heads_out)
    value = torch.zeros(1, TOKENS, lm.n_heads * lm.d_head, dtype=lm.dtype)
    one = zero_heads(2, [1])

    def edited() -> None:
        with edit(lm, one):
            module(value)

    def zero(_: object, args: tuple[Any, ...]) -> tuple[Any, ...]:
        new = args[0].clone()
        new[..., lm.d_head : 2 * lm.d_head] = 0
        return (new,)

    def by_hand() -> None:
        handle = module.register_forward_pre_hook(zero)
        module(value)
        handle.remove()

    ways = (lambda: module(value)), edited, by_hand
    with torch.no_grad():
        found = [[seconds(way, "cpu", 10) for way in ways] for _ in range(40 * rounds)]
    for name, way in (("one edit on the pocket model, ms more", 1), ("the same by a hook of one's own, ms more", 2)):
        yield name, f"{1000 * median(times[way] - times[0] for times in found):+.2f}"


# ---- what needs a process of its own


def peak_memory() -> None:
    """Print how far `sweep_heads` lifts the memory that is in use above what the model and a pass leave, in MB."""
    import psutil

    from helpers import sweep_heads

    lm = gpt2_small("cpu")
    ids = prompts(PROMPTS)
    lm.logits(ids[0])
    process = psutil.Process()
    found = []
    for given in (ids[0], ids):
        seen, over = [process.memory_info().rss], threading.Event()

        def watch() -> None:
            while not over.wait(0.002):
                seen.append(process.memory_info().rss)

        watcher = threading.Thread(target=watch)
        watcher.start()
        sweep_heads(lm, given, 7)
        over.set()
        watcher.join()
        found.append((max(seen) - seen[0]) / 1e6)
    print(json.dumps(found))


def import_time() -> None:
    """Print the processor seconds that `import helpers` and its sweeps take once torch and transformers are there."""
    import torch  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401

    start = time.process_time()
    import helpers

    alone = time.process_time() - start
    _ = helpers.load_model, helpers.trace, helpers.sweep_heads, helpers.delta_norm, helpers.edit
    print(json.dumps([alone, time.process_time() - start]))


def elsewhere(what: str) -> list[float]:
    here = Path(__file__).resolve()
    # with Python's compiled files, as a learner has them from the second time on
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, str(here), "--only", what],
        check=True,
        capture_output=True,
        text=True,
        cwd=here.parent.parent,
        env=env,
    )
    return json.loads(done.stdout.splitlines()[-1])


def rows(device: str, dtype: Any, rounds: int) -> Iterator[tuple[str, str]]:
    yield from costs(device, dtype, rounds)
    yield from real_model(device, dtype, rounds)
    if device != "cpu":
        return
    one, many = elsewhere("memory")
    yield "peak memory beyond a plain pass, 144 heads, MB", f"{one:.0f}"
    yield f"the same for {PROMPTS} prompts, MB", f"{many:.0f}"
    yield from one_edit(rounds)
    alone, used = (median(values) for values in zip(*(elsewhere("import") for _ in range(3)), strict=True))
    yield "`import helpers` on top of torch and transformers, s", f"{alone:.3f}"
    yield "… and its models, edits, traces, sweeps and metrics, s", f"{used:.3f}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=9, help="turns behind each figure")
    parser.add_argument("--only", choices=["memory", "import"], help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(1)
    if chosen.only:
        {"memory": peak_memory, "import": import_time}[chosen.only]()
        return
    print("| | in plain passes, unless said otherwise |\n| --- | ---: |")
    for name, value in rows(chosen.device, getattr(torch, chosen.dtype), chosen.rounds):
        print(f"| {name} | {value} |", flush=True)


if __name__ == "__main__":
    main()
