"""`transfusion convert`: weights of others in, ours out; what weights hold, and how two differ."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from transfusion_jax import autoencoder as autoencoders
from transfusion_jax import config as configs
from transfusion_jax.autoencoder import importing
from transfusion_jax.autoencoder.kinds import trained as trained_autoencoders
from transfusion_jax.commands.common.load_model import choose_weights
from transfusion_jax.config import Config, one_of, require
from transfusion_jax.conversion import exported, foreign, shards
from transfusion_jax.conversion.architectures import config_json, text_architecture
from transfusion_jax.conversion.hugging_face import write_tokenizer
from transfusion_jax.conversion.language_models import (
    tensor_parts,
    tensor_shapes,
)
from transfusion_jax.conversion.shards import give_back
from transfusion_jax.conversion.trees import Tree, describe_leaves, differences, open_tree, saved_tree
from transfusion_jax.data import tokenizer as tokenizers
from transfusion_jax.errors import printable
from transfusion_jax.storage.atomic import write_whole
from transfusion_jax.storage.outputs import check_output_folder
from transfusion_jax.storage.paths import remove
from transfusion_jax.training.checkpoint.manager import Checkpoints
from transfusion_jax.training.facts import codec_of
from transfusion_jax.training.run_dir import Workdir

DIFFERENT = 1  # exit code of diff
CARD = """---
library_name: {library}
---

{title}

Made by `transfusion convert` of the run `{run}` ({which}).
{left_out}

```{language}
{usage}
```

Its config:

```json
{config}
```
"""
OUR_USAGE = """transfusion convert from-safetensors . --output run
transfusion sample --workdir run --prompt PROMPT {follow}
transfusion train --config CONFIG --workdir more --init-from run"""
THEIR_USAGE = """from transformers import {name}{tokenizer}

model = {name}.from_pretrained(".")"""
WITH_TOKENIZER = """
tokenizer = AutoTokenizer.from_pretrained(".")
inputs = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=30)[0]))"""


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Converts, shows or compares; returns the exit code."""
    give_back()
    if "output" in arguments:
        check_output_folder(arguments.output)
    return CONVERSIONS[arguments.what](arguments, overrides)


def _from_hf(arguments: argparse.Namespace, overrides: list[str]) -> int:
    source = foreign.open_model(arguments.path, print)
    config = source.config(configs.load(arguments.config) if arguments.config else None, overrides)
    found = source.imported(config)
    found.write(arguments.output)
    print("\n".join(found.notes))
    print(f"written to {arguments.output}; transfusion train --init-from {arguments.output} …")
    return 0


def _to_hf(arguments: argparse.Namespace, overrides: list[str]) -> int:
    del overrides
    workdir, config, tree, which = _weights(arguments)
    kind = text_architecture(config.model)
    codec = codec_of(workdir)
    longest = max(config.data.context_length, workdir.longest_context() or 0)
    about = config_json(config.model, longest, codec, arguments.dtype)
    begin_conversion(arguments, tensor_shapes(about), tensor_parts(tree, config.model))
    special = {name: about[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(arguments.output / "config.json", about)
    _write_json(arguments.output / "generation_config.json", special)
    write_tokenizer(codec, longest, arguments.output, workdir.imported().get("chat_template"))
    left_out = (
        "Text alone: the patch coder and what draws images are left out. BOI, EOI and PAD are the last entries."
    )
    has_tokenizer = (arguments.output / "tokenizer_config.json").is_file()
    usage = THEIR_USAGE.format(name=kind.name, tokenizer=", AutoTokenizer" if has_tokenizer else "")
    usage += WITH_TOKENIZER if has_tokenizer else ""
    about_run = {"title": f"# A {kind.name}", "run": workdir.path, "which": which, "left_out": left_out}
    end_folder(arguments.output, config, library="transformers", language="python", usage=usage, **about_run)
    print(f"written to {arguments.output}; transformers.{kind.name}.from_pretrained reads it")
    return 0


def _to_safetensors(arguments: argparse.Namespace, overrides: list[str]) -> int:
    del overrides
    workdir, config, tree, which = _weights(arguments)
    shapes = {name: leaf.shape for name, leaf in tree.items()}
    begin_conversion(arguments, shapes, ((name, *piece) for name, leaf in tree.items() for piece in leaf.pieces()))
    _write_json(arguments.output / "config.json", configs.to_dict(config))
    codec = codec_of(workdir)
    tokenizers.save_tokenizer(codec.tokenizer, arguments.output)
    autoencoders.save(codec.autoencoder, arguments.output)
    _write_json(arguments.output / exported.CODEC, workdir.manifest()["codec"])
    if imported := workdir.imported():
        _write_json(arguments.output / exported.ABOUT, imported)
    usage = OUR_USAGE.format(follow="--follow text" if config.model.images == "none" else "-n 4 --output drawn.png")
    about_run = {"title": "# A Transfusion model", "run": workdir.path, "which": which, "left_out": "All of it."}
    end_folder(arguments.output, config, library="transfusion_jax", language="sh", usage=usage, **about_run)
    print(f"written to {arguments.output}; transfusion convert from-safetensors reads it back")
    return 0


def _from_safetensors(arguments: argparse.Namespace, overrides: list[str]) -> int:
    del overrides
    path: Path = arguments.path
    require(
        (path / exported.CODEC).is_file(), f"{path} was not written by to-safetensors: it has no {exported.CODEC}"
    )
    exported.open_exported(path).write(arguments.output)
    print(f"written to {arguments.output}")
    return 0


def _inspect(arguments: argparse.Namespace, overrides: list[str]) -> int:
    del overrides
    rows = describe_leaves(open_tree(arguments.path, arguments.weights))
    total = sum(row["values"] for row in rows)
    if arguments.json:
        print(json.dumps({"path": arguments.path, "parameters": total, "leaves": rows}))
        return 0
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        shape = "×".join(map(str, row["shape"])) or "scalar"
        odd = "" if row["finite"] else "  NOT FINITE"
        print(printable(f"{row['name']:<{width}}  {row['dtype']:<8}  {shape:<18}  rms {row['rms']:<10.4g}{odd}"))
    print(f"{len(rows)} leaves, {total:,} parameters")
    return 0


def _diff(arguments: argparse.Namespace, overrides: list[str]) -> int:
    del overrides
    require(0 <= arguments.tolerance < math.inf, f"--tolerance must not be negative, not {arguments.tolerance}")
    trees: list[Tree] = [open_tree(spec, arguments.weights) for spec in (arguments.first, arguments.second)]
    found = differences(trees[0], trees[1], arguments.tolerance)
    if arguments.json:
        print(json.dumps({"differences": [vars(difference) for difference in found]}))
    else:
        for difference in found:
            print(printable(f"{difference.name}: {difference.what}"))
        print(f"{len(found)} of {len(trees[0].keys() | trees[1].keys())} leaves differ")
    return DIFFERENT if found else 0


def _autoencoder_in(arguments: argparse.Namespace, overrides: list[str]) -> int:
    del overrides
    found = importing.read_autoencoder(arguments.path, arguments.name)
    found.save(arguments.output)
    a = found.architecture
    millions = sum(math.prod(leaf.shape) for leaf in trained_autoencoders.flat(found.params).values()) / 1e6
    what = (
        f"codes of {a.codebook:,} entries of {a.latent_channels}"
        if a.codebook
        else f"latents of {a.latent_channels}"
    )
    print(f"{found.name}: {a.kind}, {millions:.1f}M parameters, {a.factor}×{a.factor} pixels to {what} channels")
    print(f"written to {arguments.output}; transfusion prepare … --encode {arguments.output}")
    return 0


def _autoencoder_out(arguments: argparse.Namespace, overrides: list[str]) -> int:
    del overrides
    importing.write_diffusers(trained_autoencoders.open_folder(arguments.path), arguments.output)
    print(f"written to {arguments.output}")
    return 0


CONVERSIONS: dict[str, Callable[[argparse.Namespace, list[str]], int]] = {
    "from-hf": _from_hf,
    "to-hf": _to_hf,
    "to-safetensors": _to_safetensors,
    "from-safetensors": _from_safetensors,
    "inspect": _inspect,
    "diff": _diff,
    "autoencoder-in": _autoencoder_in,
    "autoencoder-out": _autoencoder_out,
}


def _weights(arguments: argparse.Namespace) -> tuple[Workdir, Config, Tree, str]:
    """A run, its config, the parameters that the flags choose, read leaf by leaf, and which they are."""
    one_of("--dtype", arguments.dtype, shards.DTYPES)
    shards.parse_bytes(arguments.max_shard_size)
    workdir, config, weights = choose_weights(arguments)
    checkpoints = Checkpoints(workdir.checkpoints)
    step, tree = checkpoints.read(arguments.step, lambda step: (step, saved_tree(checkpoints, step, weights)))
    return workdir, config, tree, f"step {step}, {weights} weights"


def begin_conversion(
    arguments: argparse.Namespace, shapes: Mapping[str, tuple[int, ...]], parts: Iterator[shards.Part]
) -> None:
    """Begins a folder, with its tensors; what an interrupted conversion left there goes first.

    Raises:
        ConfigError: the folder holds something else.
    """
    output: Path = arguments.output
    there = list(output.iterdir()) if output.is_dir() else []
    begun = [path for path in there if path.name.startswith(shards.BEGUN)]
    require(bool(begun) or not there, f"{output} is not empty: choose another --output")
    for path in sorted(there, key=lambda path: path in begun):  # the mark goes last
        remove(path) if path.is_dir() else path.unlink()
    write_whole(output / shards.BEGUN, "A conversion has not ended here: the same command begins it again.\n")
    shards.write_tensors(output, shapes, parts, arguments.dtype, shards.parse_bytes(arguments.max_shard_size))


def _write_json(path: Path, values: dict[str, Any]) -> None:
    write_whole(path, json.dumps(values, indent=2) + "\n")


def end_folder(folder: Path, config: Config, **about: Any) -> None:
    """Ends a folder, with its card.

    Args:
        folder: with all else that belongs into it.
        config: of the run that it is from.
        about: the other fields of `CARD`.
    """
    write_whole(folder / "README.md", CARD.format(config=json.dumps(configs.to_dict(config), indent=2), **about))
    (folder / shards.BEGUN).unlink()
