"""Train the pocket model: GPT-2's anatomy in miniature, from the token files that tools/pocket_corpus.py wrote.

    python tools/train_pocket.py --data BUILD --run RUN --steps 8000 --workers 2
    python tools/train_pocket.py --data BUILD --run RUN --steps 8000 --workers 2      (again: resumes)
    python tools/train_pocket.py --data BUILD --run RUN --export helpers/pocket
    python tools/train_pocket.py --data BUILD --run TRIAL --start helpers/pocket --repeats 0.5 (goes on from a finished model)

RUN receives `checkpoint.safetensors` (weights, optimizer state and step: all that a resumed run needs, since every
batch is drawn from the seed and the step alone) and `log.tsv`. A GPU is used where there is one, in bfloat16 and
compiled; otherwise each worker is one process with one thread, which shares the micro-batches of a step with the others. On a CPU
with bfloat16 instructions `--precision bfloat16` more than doubles the speed.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AttentionInterface, GPT2Config, GPT2LMHeadModel

MICRO_BATCH = 4  # windows that one worker takes at a time
END = 0  # the token that ends a text, <|endoftext|>


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result of a run, apart from the number of steps."""

    seed: int = 7
    layers: int = 12
    heads: int = 12
    width: int = 192
    context: int = 128
    windows: int = 16  # windows in a step
    optimizer: str = "adamw"  # "muon": Muon for the blocks' matrices; "mixed": only for those that read from the stream
    precision: str = "float32"  # "bfloat16": matrix products in bfloat16 (weights and optimizer stay in float32)
    rate: float = 3e-3
    final_rate: float = 0.05  # fraction of `rate` at the last step
    warmup: int = 200
    decay: float = 0.35  # fraction of the steps in which the rate falls
    weight_decay: float = 0.1
    books: float = 0.70  # shares of the windows
    world: float = 0.18
    facts: float = 0.12
    from_start: float = 0.6  # share of the windows that begin where a paragraph begins
    # Levers of the trials on the first token; the model that ships leaves them at 0.
    repeats: float = 0.0  # share of the windows that say a stretch of 8 to 64 tokens again and again
    first_free: int = 0  # so many first positions of a window do not count in the loss
    boundary: int = 0  # 1: every window begins with the token that ends a text


class Windows:
    """Windows of `context` + 1 tokens, a function of (seed, step, micro-batch): nothing to store, nothing to restore."""

    def __init__(self, folder: Path, recipe: Recipe):
        self.recipe = recipe
        self.parts = ("books", "world", "facts")
        self.ids = {name: np.load(folder / f"{name}.npy") for name in self.parts}
        self.starts = {name: np.load(folder / f"{name}.starts.npy") for name in self.parts}

    def draw(self, step: int, micro: int) -> torch.Tensor:
        r = self.recipe
        random = np.random.default_rng([r.seed, step, micro])
        rows = []
        for _ in range(MICRO_BATCH):
            name = self.parts[random.choice(3, p=[r.books, r.world, r.facts])]
            ids, starts = self.ids[name], self.starts[name]
            if name == "facts" or random.random() < r.from_start:
                at = int(starts[random.integers(len(starts))])
            else:
                at = int(random.integers(len(ids)))
            row = ids[min(at, len(ids) - r.context - 1) :][: r.context + 1]
            if r.repeats and random.random() < r.repeats:
                row = np.resize(row[: random.integers(8, r.context // 2 + 1)], r.context + 1)
            rows.append(np.concatenate([np.full(r.boundary, END), row])[: r.context + 1])
        return torch.from_numpy(np.stack(rows).astype(np.int64))


def attention_in_float32(module, query, key, value, attention_mask, scaling=None, **_):
    """Causal attention in float32 inside a bfloat16 pass: its bfloat16 backward pass is several times slower on CPUs."""
    with torch.autocast(query.device.type, enabled=False):
        mixed = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), is_causal=True, scale=scaling)
    return mixed.transpose(1, 2).contiguous().to(query.dtype), None


AttentionInterface.register("float32", attention_in_float32)


def new_model(recipe: Recipe, vocabulary: int) -> GPT2LMHeadModel:
    torch.manual_seed(recipe.seed)
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=recipe.context, n_embd=recipe.width, n_layer=recipe.layers,
        n_head=recipe.heads, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        use_cache=False,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def make_optimizers(model: GPT2LMHeadModel, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon for those matrices that the recipe gives to it."""
    by_muon = {"adamw": (), "muon": ("c_attn", "c_fc", "c_proj"), "mixed": ("c_attn", "c_fc")}[recipe.optimizer]
    named = {name: p for name, p in model.named_parameters() if p.ndim == 2}
    for_muon = [p for name, p in named.items() if name.split(".")[-2] in by_muon]
    for_adam = [p for name, p in named.items() if name.split(".")[-2] not in by_muon]
    groups = [
        {"params": for_adam, "weight_decay": recipe.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.95), fused=True)]
    if for_muon:
        optimizers.append(
            torch.optim.Muon(for_muon, lr=recipe.rate, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw")
        )
    return optimizers


def rate_at(step: int, steps: int, recipe: Recipe) -> float:
    """Warm up, stay, and fall in a straight line at the end: the stay can be prolonged by resuming with more steps."""
    falling = max(1, int(steps * recipe.decay))
    left = (steps - step) / falling
    factor = min(1.0, (step + 1) / recipe.warmup, recipe.final_rate + (1 - recipe.final_rate) * left)
    return recipe.rate * factor


def save_checkpoint(path: Path, model, optimizers, step: int, recipe: Recipe, tokens: int) -> None:
    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    for o, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            tensors.update({f"optimizer.{o}.{index}.{key}": torch.as_tensor(v) for key, v in state.items()})
    about = {"step": str(step), "tokens": str(tokens), "recipe": json.dumps(asdict(recipe))}
    partial = path.with_suffix(".partial")
    save_file({k: t.cpu().contiguous().clone() for k, t in tensors.items()}, partial, metadata=about)
    os.replace(partial, path)  # a kill while writing leaves the old checkpoint whole


def read_about(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata()


def load_checkpoint(path: Path, model, optimizers) -> tuple[int, int]:
    tensors = load_file(path)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(tensors[f"model.{name}"])
    for o, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, tensor in tensors.items():
            if key.startswith(f"optimizer.{o}."):
                _, _, index, field = key.split(".")
                state.setdefault(int(index), {})[field] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    about = read_about(path)
    return int(about["step"]), int(about["tokens"])


def start_from(folder: Path, model) -> None:
    """Copy the weights of a finished model; positions that it does not have stay as they are."""
    found = load_file(folder / "model.safetensors")
    with torch.no_grad():
        for name, p in model.named_parameters():
            p[: len(found[name])] = found[name]


def mean_loss(logits: torch.Tensor, batch: torch.Tensor, first_free: int = 0) -> torch.Tensor:
    """Nats per token of the next tokens; logits: (windows, pos, vocabulary), batch: (windows, pos + 1)."""
    return F.cross_entropy(logits[:, first_free:].float().flatten(0, 1), batch[:, 1 + first_free :].flatten())


@torch.no_grad()
def probe(model, data: Path, recipe: Recipe, device) -> dict[str, float]:
    """A quick look for the log: held-out loss per token, and the first token's norm over the others' in the middle blocks."""
    found = {}
    for name in ("books_unseen", "world_unseen"):
        ids, starts = np.load(data / f"{name}.npy"), np.load(data / f"{name}.starts.npy")
        usable = starts[starts < len(ids) - recipe.context - 1]
        chosen = usable[:: max(1, len(usable) // 48)][:48]
        rows = np.stack([ids[s : s + recipe.context + 1] for s in chosen]).astype(np.int64)
        if recipe.boundary:
            rows = np.pad(rows[:, :-1], ((0, 0), (1, 0)), constant_values=END)
        batch = torch.from_numpy(rows).to(device)
        found[name] = mean_loss(model(batch[:, :-1]).logits, batch).item()
    streams = []
    handles = [
        model.transformer.h[layer].register_forward_pre_hook(lambda m, args: streams.append(args[0].detach()))
        for layer in range(recipe.layers // 3, 2 * recipe.layers // 3)
    ]
    model(batch[:, :-1])
    for handle in handles:
        handle.remove()
    norms = torch.stack(streams).float().norm(dim=-1)
    found["first_norm"] = (norms[:, :, 0].mean() / norms[:, :, 1:].mean()).item()
    return found


def train(rank: int, args, recipe: Recipe) -> None:
    torch.set_num_threads(1)
    workers = args.workers
    device = "cuda" if torch.cuda.is_available() else "cpu"
    on_gpu = device == "cuda"
    if workers > 1:
        store = dist.TCPStore("127.0.0.1", args.port, workers, rank == 0, timeout=timedelta(hours=2))
        dist.init_process_group("gloo", store=store, rank=rank, world_size=workers, timeout=timedelta(hours=2))
    windows = Windows(args.data, recipe)
    vocabulary = 1 + max(int(ids.max()) for ids in windows.ids.values())
    vocabulary = max(vocabulary, json.loads((args.data / "tokenizer.json").read_text())["model"]["vocab"].__len__())
    model: Any = new_model(recipe, vocabulary)
    model.to(device)
    optimizers = make_optimizers(model, recipe)
    half = on_gpu or recipe.precision == "bfloat16"
    if half and not on_gpu:
        model.set_attn_implementation("float32")
    for block in model.transformer.h:
        block.mlp.act = torch.nn.GELU(approximate="tanh")  # GPT-2's own function in one kernel instead of six
    run = torch.compile(model) if on_gpu else model
    checkpoint, log = args.run / "checkpoint.safetensors", args.run / "log.tsv"
    step, tokens = load_checkpoint(checkpoint, model, optimizers) if checkpoint.exists() else (0, 0)
    if args.start and not checkpoint.exists():
        start_from(args.start, model)
    if rank == 0 and not log.exists():
        log.write_text("step\ttokens\tloss\trate\tbooks_unseen\tworld_unseen\tfirst_norm\ttokens_per_second\n")
    micros = recipe.windows // MICRO_BATCH
    losses, began, began_tokens = [], time.time(), tokens
    first_step = step
    while step < args.steps:
        rate = rate_at(step, args.steps, recipe)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=False)
            for group in optimizer.param_groups:
                group["lr"] = rate
        total, taken = 0.0, 0
        while True:
            # Workers take micro-batches from one counter, so that a worker whose core is busy elsewhere just takes fewer.
            micro = store.add(f"step {step}", 1) - 1 if workers > 1 else taken
            if micro >= micros:
                break
            batch = windows.draw(step, micro).to(device)
            with torch.autocast(device, torch.bfloat16, enabled=half):
                logits = run(batch[:, :-1]).logits
            loss = mean_loss(logits, batch, recipe.first_free) / micros
            loss.backward()
            total, taken = total + loss.item(), taken + 1
        if workers > 1:
            grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in model.parameters()]
            flat = torch.cat([g.flatten() for g in grads] + [torch.tensor([total])])
            dist.all_reduce(flat)
            total = flat[-1].item()
            at = 0
            for p in model.parameters():
                p.grad = flat[at : at + p.numel()].view_as(p)
                at += p.numel()
            if rank == 0 and step > first_step:
                store.delete_key(f"step {step - 1}")
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        step, tokens = step + 1, tokens + recipe.windows * recipe.context
        losses.append(total)
        if rank == 0 and (step % args.every == 0 or step == args.steps):
            seen = probe(model, args.data, recipe, device)
            speed = (tokens - began_tokens) / (time.time() - began)
            began, began_tokens = time.time(), tokens
            row = [step, tokens, f"{np.mean(losses):.4f}", f"{rate:.2e}"]
            row += [f"{seen[k]:.4f}" for k in ("books_unseen", "world_unseen", "first_norm")] + [f"{speed:.0f}"]
            line = "\t".join(map(str, row))
            with log.open("a") as file:
                file.write(line + "\n")
            print(line, flush=True)
            losses = []
            save_checkpoint(checkpoint, model, optimizers, step, recipe, tokens)
    if workers > 1:
        dist.barrier()
        dist.destroy_process_group()


def export(args) -> None:
    """Write the trained weights in fp16 with tokenizer and config, as `from_pretrained` expects them."""
    from transformers import PreTrainedTokenizerFast

    about = read_about(args.run / "checkpoint.safetensors")
    recipe = Recipe(**json.loads(about["recipe"]))
    tensors = load_file(args.run / "checkpoint.safetensors")
    model = new_model(recipe, tensors["model.transformer.wte.weight"].shape[0])
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(tensors[f"model.{name}"])
    model.config.use_cache = True
    model.half().save_pretrained(args.export)
    PreTrainedTokenizerFast(
        tokenizer_file=str(args.data / "tokenizer.json"),
        bos_token="<|endoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>",
        model_max_length=recipe.context, clean_up_tokenization_spaces=False,
    ).save_pretrained(args.export)  # fmt: skip
    # transformers 5 writes a class name that 4.57 does not know; this one loads in both.
    config = args.export / "tokenizer_config.json"
    about_tokenizer = json.loads(config.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    config.write_text(json.dumps(about_tokenizer, indent=2, sort_keys=True) + "\n")
    print(f"step {about['step']}, {int(about['tokens']) / 1e6:.1f}M tokens -> {args.export}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--every", type=int, default=250, help="steps between log lines and checkpoints")
    parser.add_argument("--port", type=int, default=29517)
    parser.add_argument("--start", type=Path, help="folder of a finished model: begin with its weights, at step 0")
    parser.add_argument("--export", type=Path, help="write the model of the last checkpoint here, and train nothing")
    for name, value in asdict(Recipe()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    args = parser.parse_args()
    if args.export:
        return export(args)
    args.run.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(**{name: getattr(args, name) for name in asdict(Recipe())})
    checkpoint = args.run / "checkpoint.safetensors"
    if checkpoint.exists() and Recipe(**json.loads(read_about(checkpoint)["recipe"])) != recipe:
        parser.error(f"{checkpoint} was made with another recipe: {read_about(checkpoint)['recipe']}")
    if args.workers == 1:
        return train(0, args, recipe)
    torch.multiprocessing.spawn(train, (args, recipe), nprocs=args.workers)


if __name__ == "__main__":
    main()
