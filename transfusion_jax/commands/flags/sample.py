"""`transfusion sample`: draws, writes, captions, edits and scores, with any mix of texts and images as prompts."""

from __future__ import annotations

import argparse
from typing import Any

from transfusion_jax.commands.flags.parser import between
from transfusion_jax.commands.flags.shared import add_weights
from transfusion_jax.config import FOLLOWS
from transfusion_jax.storage.paths import place

EXAMPLES = """\
examples, each with --workdir W:
  --prompt "a red circle" -n 8 --output circles.png             eight images on a sheet
  --image photo.png                                             a caption
  --image photo.png --prompt "make it red" --edit --output red.png
  --prompt "once" --follow any --output story                   texts and images, as the model likes
  --prompts prompts.jsonl --output drawn                        a folder: samples.jsonl, samples.html, images
  --prompt "a pond" --size 320x192 --output pond.png            of a model of images of any shape
  --image photo.png --score "a cat" --score "a dog"             how likely each text is
"""
MOST_SAMPLES = 1_000_000  # of one prompt
SEEDS = 2**32
DEFAULTS: dict[str, Any] = dict(
    n=1, seed=0, max_images=8, max_tokens=256, text_temperature=0.0, top_k=0, top_p=1.0, min_p=0.0
)


def declare(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.epilog, parser.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
    add_weights(parser)
    asked = parser.add_argument_group("what stands before")
    asked.add_argument("--prompt", type=str, action="append", default=[], help="a text; repeat it for more prompts")
    asked.add_argument(
        "--image", type=place, nargs="+", default=[], help="image files; each stands before each --prompt"
    )
    asked.add_argument("--prompts", type=place, metavar="FILE", help="prompts, one per line; .jsonl: with images")
    asked.add_argument(
        "--held-out",
        type=between(1),
        metavar="N",
        help="caption N images that were kept from training; --output FILE.png shows them with these captions",
    )
    follows = parser.add_argument_group("what is to follow")
    follows.add_argument("--follow", choices=FOLLOWS, help="default: an image after a text, text after an image")
    follows.add_argument("--edit", action="store_true", help="an image after --image and --prompt")
    follows.add_argument(
        "--score", type=str, action="append", default=[], metavar="TEXT", help="how likely this text is"
    )
    follows.add_argument("-n", type=between(1, MOST_SAMPLES), help="samples per prompt (default: 1)")
    follows.add_argument("--output", type=place, help="where to: FILE.png (a sheet), .html, .jsonl, or a folder")
    follows.add_argument("--seed", type=between(0, SEEDS - 1), help="of noise and draws (default: 0)")
    follows.add_argument("--max-images", type=between(1, 10_000), help="images that one sample draws (default: 8)")
    follows.add_argument(
        "--size",
        metavar="WxH",
        help="of images: width and height in pixels, such as 320x192 (default: of an edit its image's; else the "
        "model's choice where it has model.shape_marks, or that of model.latent_shape)",
    )
    follows.add_argument(
        "--aspect", metavar="W:H", help="in place of --size: the largest images of this proportion, such as 16:9"
    )
    drawing = parser.add_argument_group("how images are drawn (default: the config's)")
    drawing.add_argument("--sampling-steps", dest="steps", type=between(1), help="denoising steps")
    drawing.add_argument("--sampler", help="ancestral, ddim or dpm++; of a flow euler or heun")
    drawing.add_argument("--spacing", help="of timesteps: auto, shifted where training's are, or trailing: even")
    drawing.add_argument("--guidance", type=float, help="guidance scale, 1 for none")
    drawing.add_argument(
        "--guidance-interval", type=float, nargs=2, metavar=("LOW", "HIGH"), help="of t / T, where it acts"
    )
    drawing.add_argument("--guidance-rescale", type=float, help="0 to 1: against what is too saturated")
    drawing.add_argument(
        "--image-guidance", type=float, help="of the images before, apart from the text's: for --edit"
    )
    drawing.add_argument("--temperature", type=float, help="of codes, drawn one by one")
    writing = parser.add_argument_group("how texts are written")
    writing.add_argument("--max-tokens", type=between(1), help="tokens of one sample (default: 256)")
    writing.add_argument("--text-temperature", type=float, help="0, the default, takes the likeliest")
    writing.add_argument("--top-k", type=between(0), help="keep the k most likely tokens")
    writing.add_argument("--top-p", type=float, help="of the likeliest that make up this probability")
    writing.add_argument("--min-p", type=float, help="of those with this share of the likeliest's")
    writing.add_argument(
        "--stop", type=str, action="append", default=[], help="text ends before this; repeat it for more"
    )
    parser.set_defaults(run="sample:run", takes_overrides=False, **DEFAULTS)
