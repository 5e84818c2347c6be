"""Export the pocket model to ONNX for the page: a pass whose edits are inputs.

    python tools/export_page.py dist/model.onnx

The model is the ordinary GPT2LMHeadModel of `load_model()`, in float32. Plain PyTorch forward hooks hang on it, as a
learner would write them, and read their factors from the pass's inputs; torch.export follows the hooks and writes the
multiplications into the graph. So the page and the package run one model, and every edit of the page is one of the
package's: docs/page.md has the table. Weights are stored in 16 bits, as they ship, and computed in 32.

inputs   ids (batch, pos) int64; factors, 1 where nothing is changed: block, attention, mlp (batch, n_blocks, pos),
         heads, keys (batch, n_blocks, n_heads, pos); add (batch, n_blocks, pos, d_model), added to the stream after each
         block, after the factor
outputs  logits (batch, vocabulary) at the last position; resid (batch, n_blocks + 1, pos, d_model), before the final
         norm; attention_delta, mlp_delta (batch, n_blocks, pos, d_model), what the two parts add to the stream; patterns
         (batch, n_blocks, n_heads, pos, pos), each row the shares of one token's attention
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from helpers import LanguageModel, load_model

INPUTS = ("ids", "block", "attention", "mlp", "heads", "keys", "add")
OUTPUTS = ("logits", "resid", "attention_delta", "mlp_delta", "patterns")
SMALL = 1024  # numbers: what is smaller stays in 32 bits


class Editable(nn.Module):
    """A GPT-2 whose edits are inputs of the pass."""

    def __init__(self, lm: LanguageModel) -> None:
        super().__init__()
        self.model = lm.model
        self.n_heads = lm.n_heads
        self.inputs: dict[str, Tensor] = {}
        self.seen: dict[str, list[Tensor]] = {}
        for index, block in enumerate(self.model.transformer.h):
            block.register_forward_pre_hook(self.entering)
            block.attn.c_attn.register_forward_hook(self.keys_of(index))
            block.attn.c_proj.register_forward_pre_hook(self.heads_of(index))
            block.attn.register_forward_hook(self.attention_of(index))
            block.mlp.register_forward_hook(self.mlp_of(index))
            block.register_forward_hook(self.block_of(index))
        self.model.transformer.ln_f.register_forward_pre_hook(self.entering)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        self.inputs = dict(zip(INPUTS, inputs, strict=True))
        self.seen = {name: [] for name in OUTPUTS[1:]}
        state = self.model.transformer(input_ids=self.inputs["ids"], use_cache=False).last_hidden_state
        logits = self.model.lm_head(state[:, -1])
        return (logits, *(torch.stack(self.seen[name], dim=1) for name in OUTPUTS[1:]))

    def entering(self, module: nn.Module, args: tuple) -> None:
        self.seen["resid"].append(args[0])

    def keys_of(self, index: int) -> Any:
        def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            query, keys, values = output.chunk(3, dim=-1)  # columns q | k | v, each n_heads × d_head
            keys = keys.unflatten(-1, (self.n_heads, -1)) * self.per_head("keys", index)
            return torch.cat([query, keys.flatten(-2), values], dim=-1)

        return hook

    def heads_of(self, index: int) -> Any:
        def hook(module: nn.Module, args: tuple) -> tuple:
            heads = args[0].unflatten(-1, (self.n_heads, -1)) * self.per_head("heads", index)
            return (heads.flatten(-2),)

        return hook

    def attention_of(self, index: int) -> Any:
        def hook(module: nn.Module, args: tuple, output: tuple) -> tuple:
            delta = output[0] * self.inputs["attention"][:, index, :, None]
            self.seen["attention_delta"].append(delta)
            self.seen["patterns"].append(output[1])
            return (delta, *output[1:])

        return hook

    def mlp_of(self, index: int) -> Any:
        def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            delta = output * self.inputs["mlp"][:, index, :, None]
            self.seen["mlp_delta"].append(delta)
            return delta

        return hook

    def block_of(self, index: int) -> Any:
        def hook(module: nn.Module, args: tuple, output: Any) -> Any:
            stream = output[0] if isinstance(output, tuple) else output  # a tuple on transformers 4
            stream = stream * self.inputs["block"][:, index, :, None] + self.inputs["add"][:, index]
            return (stream, *output[1:]) if isinstance(output, tuple) else stream

        return hook

    def per_head(self, name: str, index: int) -> Tensor:
        """(batch, pos, n_heads, 1): a head's factor at each position."""
        return self.inputs[name][:, index].transpose(1, 2)[..., None]


def neutral(lm: LanguageModel, ids: Tensor) -> tuple[Tensor, ...]:
    """The inputs of a pass that changes nothing. No two are one tensor: the exporter would make one input of them."""
    batch, length = ids.shape
    per_block = [torch.ones(batch, lm.n_blocks, length) for _ in ("block", "attention", "mlp")]
    per_head = [torch.ones(batch, lm.n_blocks, lm.n_heads, length) for _ in ("heads", "keys")]
    return ids, *per_block, *per_head, torch.zeros(batch, lm.n_blocks, length, lm.d_model)


def export(path: Path) -> None:
    lm = load_model(dtype=torch.float32)
    ids = torch.arange(10).reshape(2, 5)
    batch, pos = torch.export.Dim("batch", min=1, max=144), torch.export.Dim("pos", min=1, max=lm.context)
    along = {"ids": 1, "block": 2, "attention": 2, "mlp": 2, "heads": 3, "keys": 3, "add": 2}  # the axis of positions
    shapes = tuple({0: batch, axis: pos} for axis in along.values())
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own parts, about each other
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            Editable(lm).eval(), neutral(lm, ids), dynamo=True, dynamic_shapes=(shapes,), verbose=False,
            input_names=list(INPUTS), output_names=list(OUTPUTS),
        )  # fmt: skip
    assert program is not None
    graph = halved(program.model_proto)
    onnx.checker.check_model(graph)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(graph.SerializeToString())


def halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with its large weights in 16 bits, each widened to 32 by a cast when the model is loaded.

    Raises ValueError where that would change a weight: those of the pocket model ship in 16 bits.
    """
    graph = model.graph
    for node in graph.node:
        del node.metadata_props[:]  # where in the Python code each came from
    del graph.value_info[:]
    casts = []
    for weight in graph.initializer:
        values = numpy_helper.to_array(weight)
        if weight.data_type != TensorProto.FLOAT or values.size < SMALL:
            continue
        half = values.astype("float16")
        if (half != values).any():
            raise ValueError(f"{weight.name} does not fit into 16 bits: its numbers would change.")
        wide = weight.name
        weight.CopyFrom(numpy_helper.from_array(half, f"{wide}.half"))
        casts.append(helper.make_node("Cast", [f"{wide}.half"], [wide], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="the .onnx file to write")
    export(parser.parse_args().path)
