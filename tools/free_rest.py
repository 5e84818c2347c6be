"""Would the heads of the pocket model rest, if resting were free?

    python tools/free_rest.py --data BUILD
    python tools/free_rest.py --data BUILD --everything

In many trained models a head with nothing to do attends to the first token, which grows large there (an attention
sink). The pocket model's hardly do. This gives every head a place to rest that no training has to build first: one more
entry in its softmax, with a score of its own (a learned vector times the query, and a learned constant) and a value of
zero. The model stays as it is, and only these scores are trained; with `--everything` the model goes on learning with
them. If the entries take little attention and the loss hardly falls, then the heads had little use for a sink; if they
take much, then the model wanted one and did not find it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from evaluate_pocket import held_out_loss, passages
from torch import Tensor, nn
from train_pocket import Recipe, Windows, mean_loss
from transformers import AttentionInterface

from helpers import LanguageModel, load_model

SHIPPED = Recipe(seed=8, books=0.66, world=0.16, facts=0.18)  # the mixture of the shipped model, other windows


class Rest(nn.Module):
    """The free entry of one block's heads: a score for each query, (batch, head, pos, 1)."""

    def __init__(self, heads: int, d_head: int, start: float):
        super().__init__()
        self.direction = nn.Parameter(torch.zeros(heads, d_head))
        self.constant = nn.Parameter(torch.full((heads,), start))
        self.share = torch.zeros(heads)  # of each head's attention in the last pass

    def forward(self, query: Tensor, scaling: float) -> Tensor:
        return (torch.einsum("bhpd,hd->bhp", query, self.direction) * scaling + self.constant[:, None]).unsqueeze(-1)


def attention_with_rest(module, query, key, value, attention_mask, scaling=None, **_):
    """Causal attention whose softmax has one entry more; what goes there adds nothing to the mix."""
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = query @ key.transpose(2, 3) * scaling
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    scores = torch.cat([scores.masked_fill(future, -torch.inf), module.rest(query, scaling)], dim=-1)
    weights = scores.softmax(-1)
    module.rest.share = weights[:, :, 1:, -1].detach().mean((0, 2))
    return (weights[..., :-1] @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register("with_rest", attention_with_rest)


def give_rest(lm: LanguageModel, start: float = -2.0) -> list[Rest]:
    """Give each head a free entry, whose score is `start` before training."""
    rests = []
    for block in lm.model.transformer.h:
        block.attn.rest = Rest(lm.n_heads, lm.d_model // lm.n_heads, start).to(lm.dtype)
        rests.append(block.attn.rest)
    lm.model.set_attn_implementation("with_rest")
    return rests


def shares(lm: LanguageModel, rests: list[Rest], texts: Tensor) -> Tensor:
    """Mean share of attention that rests, (block, head), over the query positions from 1 on."""
    lm.logits(texts)
    return torch.stack([rest.share for rest in rests])


def train_rests(lm: LanguageModel, rests: list[Rest], windows: Windows, args) -> None:
    scores = [p for rest in rests for p in rest.parameters()]
    groups = [{"params": scores, "weight_decay": 0.0, "rate": args.rate}]
    of_model = [p for name, p in lm.model.named_parameters() if ".rest." not in name]
    if args.everything:
        decayed = [p for p in of_model if p.ndim == 2]
        groups.append({"params": decayed, "weight_decay": SHIPPED.weight_decay, "rate": SHIPPED.rate})
        plain = [p for p in of_model if p.ndim < 2]
        groups.append({"params": plain, "weight_decay": 0.0, "rate": SHIPPED.rate})
    for p in of_model:
        p.requires_grad_(args.everything)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    losses, steps, every = [], args.steps, 50
    for step in range(steps):
        factor = min(1.0, (step + 1) / 100, 2 * (1 - step / steps))  # rises, stays, and falls in the second half
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * factor
        optimizer.zero_grad()
        total = 0.0
        for micro in range(4):
            batch = windows.draw(step, micro)
            loss = mean_loss(lm.model(batch[:, :-1]).logits, batch) / 4
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(of_model, 1.0)
        optimizer.step()
        losses.append(total)
        if (step + 1) % every == 0 or step + 1 == steps:
            rested = torch.stack([rest.share for rest in rests]).mean().item()
            print(
                f"step {step + 1}: loss {np.mean(losses[-every:]):.4f}, resting in the last windows {rested:.3f}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder that tools/pocket_corpus.py wrote")
    parser.add_argument("--model", default="pocket", help="or the folder of another model of this vocabulary")
    parser.add_argument("--steps", type=int, default=400, help="of 16 windows")
    parser.add_argument("--everything", action="store_true", help="train the model's own weights as well")
    parser.add_argument("--rate", type=float, default=0.03)
    parser.add_argument("--windows", type=int, default=400, help="held-out windows of each kind")
    args = parser.parse_args()
    torch.set_num_threads(1)
    lm = load_model(args.model, dtype=torch.float32)
    before = held_out_loss(lm, args.data, args.windows)
    rests = give_rest(lm)
    train_rests(lm, rests, Windows(args.data, SHIPPED), args)
    after = held_out_loss(lm, args.data, args.windows)
    for name in before:
        print(f"{name}: {before[name][0]:.4f} nats per token without a free entry, {after[name][0]:.4f} with it")
    per_head = shares(lm, rests, passages(args.data))
    print("share of attention that rests, mean of each block:", " ".join(f"{x:.2f}" for x in per_head.mean(1).tolist()))
    print(
        f"all heads: mean {per_head.mean():.3f}; heads that rest more than half the time: {int((per_head > 0.5).sum())}"
    )


if __name__ == "__main__":
    main()
