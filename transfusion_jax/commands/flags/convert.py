"""`transfusion convert`: weights of others in, ours out; what weights hold, and how two differ."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from transfusion_jax.commands.flags.shared import add_json, add_weights
from transfusion_jax.storage.paths import place


def declare(parser: argparse.ArgumentParser) -> None:
    """Declares what the command can do."""
    parts = parser.add_subparsers(metavar="WHAT", required=True)
    for name, (declare_part, text, description) in PARTS.items():
        part = parts.add_parser(name, aliases=FORMER.get(name, ()), help=text, description=description or text)
        declare_part(part)
        part.set_defaults(run="convert:run", what=name, takes_overrides=name == "from-hf")


def _from_hf(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path",
        type=Path,
        help="a folder with config.json and safetensors, as transformers saves it, or FILE.gguf",
    )
    parser.add_argument("--output", type=place, required=True, help="the run to write: train --init-from reads it")
    parser.add_argument("--config", metavar="FILE[:arg]", help="the config that the model's sizes are put into")


def _writing(parser: argparse.ArgumentParser) -> None:
    add_weights(parser)
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    parser.add_argument("--dtype", default="float32", help="float32 (default), bfloat16 or float16")
    parser.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="largest file (default: 5GB)")


def _from_safetensors(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="a folder that to-safetensors wrote")
    parser.add_argument("--output", type=place, required=True, help="the run to write")


def _inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="RUN[:STEP], a checkpoint's folder, or a safetensors file or folder")
    parser.add_argument("--weights", choices=("ema", "raw"), default="raw", help="of a run (default: raw)")
    add_json(parser)


def _diff(parser: argparse.ArgumentParser) -> None:
    for name in ("first", "second"):
        parser.add_argument(name, help="as of inspect")
    parser.add_argument("--weights", choices=("ema", "raw"), default="raw", help="of runs (default: raw)")
    parser.add_argument("--tolerance", type=float, default=0.0, help="relative, of a leaf's norm (default: 0)")
    add_json(parser)


def _autoencoder_in(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", type=Path, help="a folder of diffusers', a file of weights in it, or a checkpoint (.ckpt)"
    )
    parser.add_argument("--output", type=place, required=True, help="the folder to write")
    parser.add_argument("--name", required=True, help="what data.encoding will call it, such as kl-f8c4")


def _autoencoder_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=place, help="a folder that autoencoder-in, or autoencoder export, wrote")
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")


FORMER = {"from-hf": ("from-llama",), "to-hf": ("to-llama",)}  # names that still work
PARTS: dict[str, tuple[Callable, str, str]] = {  # by name: options, help, and what --help says
    "from-hf": (
        _from_hf,
        "a language model of Hugging Face's as a run to begin from",
        "Reads Llama 2 and 3, SmolLM2, Qwen2, Qwen2.5 and Qwen3.",
    ),
    "to-hf": (_writing, "a run's text path as the language model of transformers that it is", ""),
    "to-safetensors": (_writing, "all parameters of a run as safetensors", ""),
    "from-safetensors": (_from_safetensors, "what to-safetensors wrote, as a run", ""),
    "inspect": (_inspect, "the leaves of weights: shapes, dtypes, sizes", ""),
    "diff": (_diff, "how two sets of weights differ; exit code 1 where they do", ""),
    "autoencoder-in": (
        _autoencoder_in,
        "an image autoencoder of diffusers or CompVis, as a folder for prepare --encode",
        "Reads diffusers' AutoencoderKL or VQModel (a folder), or a CompVis checkpoint.",
    ),
    "autoencoder-out": (
        _autoencoder_out,
        "an image autoencoder as a folder that diffusers reads",
        "Writes a folder for AutoencoderKL.from_pretrained or VQModel.from_pretrained.",
    ),
}
