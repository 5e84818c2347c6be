"""Convert a Llama model's GGUF file to what transformers reads. helpers/smollm2.py runs this once, in a process of its own.

convert(Path("model.gguf"), Path("folder"))      # needs the packages gguf and accelerate
"""

from __future__ import annotations

import json
from pathlib import Path


def convert(file: Path, folder: Path) -> None:
    """Write a Llama model's GGUF file as config.json, model.safetensors in float32 and tokenizer, for transformers 4.57 and 5.

    Left out: the chat template (the lessons give plain text, and no token of a chat), and a start mark.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    for owner, name in ((model.config, "quantization_config"), (model, "hf_quantizer")):  # transformers 5 has them
        if hasattr(owner, name):
            delattr(owner, name)  # the weights are plain numbers now; save_pretrained would refuse
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.pop("_model_name_or_path", None)
    rope = config.get("rope_parameters") or {"rope_type": "default", "rope_theta": config["rope_theta"]}
    config |= {
        "dtype": "float32",
        "rope_theta": rope["rope_theta"],
        "rope_parameters": rope,
    }  # 4.57 and 5 read one each
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    _convert_tokenizer(file, folder, config["max_position_embeddings"])


def _convert_tokenizer(file: Path, folder: Path, length: int) -> None:
    """From the file's own lists: what transformers makes of them differs from version to version (4.57 adds a start mark)."""
    from gguf import GGUFReader
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    fields = GGUFReader(file).fields
    tokens, kinds, merges = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type", "merges"))
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[tuple(merge.split(" ")) for merge in merges]))
    # GGUF calls this way of splitting "smollm": each digit alone, then as GPT-2 does.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": length, "clean_up_tokenization_spaces": False,
        "eos_token": tokens[fields["tokenizer.ggml.eos_token_id"].contents()],
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(about, indent=2), encoding="utf-8")
