"""`transfusion prepare`: files, folders, tables and data sets into document shards to train on."""

from __future__ import annotations

import argparse

from transfusion_jax.commands.flags.parser import between
from transfusion_jax.commands.flags.shared import add_extend, table
from transfusion_jax.config import READERS
from transfusion_jax.storage.paths import place

INPUTS = """inputs:
  a.tar 'shards/*.tar' gs://bucket/shards    WebDataset, as img2dataset writes it
  a.parquet                                  images and captions, texts, or interleaved lists of both
  a.jsonl a.json a.jsonl.gz                  texts, captioned images, interleaved documents, or "segments"
  photos/                                    images with NAME.txt, metadata.jsonl or metadata.csv beside them
  captions.json --format coco                COCO's captions, or Karpathy's split of them (--split)
  tfds:coco_captions:train                   a data set of TFDS
  stamps clipart stamps:FOLDER               Debian's packages of drawings, installed or unpacked in a folder
  emoji shapes:20000 digits prose            sets that need no download

The same command goes on where it was stopped, and ends with the same bytes. Where no document is found, it exits
with 2; quarantine.jsonl says why."""


def declare(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.epilog = f"{INPUTS}\n\nformats and sets:\n{table(READERS)}"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="see below")
    parser.add_argument(
        "--output", type=place, required=True, help="a folder for the documents, or gs://…; it goes on there"
    )
    parser.add_argument(
        "--tokenizer",
        default="bytes",
        help="bytes, a SentencePiece .model, a tokenizer.json, or bpe:SIZE to train one on the inputs",
    )
    add_extend(parser)
    parser.add_argument(
        "--aspect",
        choices=("square", "native"),
        default="square",
        help="crop images to squares of one size (default), or keep their proportions within an area",
    )
    parser.add_argument(
        "--image-size",
        type=between(1, 16_384),
        help="of squares: the side of the cropped images, pixels (256)",
    )
    parser.add_argument(
        "--area",
        metavar="HxW",
        help="of native: so many pixels at most, of whatever proportions (256x256)",
    )
    parser.add_argument(
        "--multiple",
        type=between(1, 16_384),
        help="of native: both sides are multiples of this many pixels: the autoencoder's factor times the model's "
        "patch size (16)",
    )
    parser.add_argument(
        "--enlarge",
        action="store_true",
        default=None,
        help="of native: enlarge smaller images to the area (default: leave them as they are)",
    )
    parser.add_argument(
        "--max-aspect",
        type=float,
        help="of native: images whose longer side is more than so many times the shorter are left out (4)",
    )
    parser.add_argument("--channels", type=int, choices=(1, 3), default=3, help="3: colour (default), 1: grey")
    parser.add_argument(
        "--min-size", type=between(0), default=0, help="images with a shorter side are left out, pixels (0)"
    )
    parser.add_argument("--held-out", type=float, default=0.01, help="share kept from training (0.01)")
    parser.add_argument(
        "--limit", type=between(0), default=0, help="records of each input shard: to try things out"
    )
    encoding = parser.add_argument_group("encoding", "Pixels are always stored; encodings can be added later.")
    encoding.add_argument(
        "--encode",
        action="append",
        metavar="AUTOENCODER",
        help="also store latents: dct-f8c8, or a trained one's folder; for another, give the command again",
    )
    encoding.add_argument("--log-variances", action="store_true", help="of --encode: store them beside the means")
    reading = parser.add_argument_group("reading")
    reading.add_argument("--format", metavar="NAME", help="of the inputs, see below (default: by their names)")
    reading.add_argument("--image-column", help="column, field or extension of the images (default: by name)")
    reading.add_argument("--text-column", help="the same of captions and texts")
    reading.add_argument("--images", help="the folder of relative image paths (default: the input's own)")
    reading.add_argument(
        "--allow-paths",
        action="store_true",
        help="read images that the data names outside that folder or in buckets: only if you trust it",
    )
    reading.add_argument("--split", help="of a Karpathy file, such as train,restval")
    reading.add_argument(
        "--languages", default="en", help="of the stamps' captions: such as en,fr,pt_BR, or all (en)"
    )
    reading.add_argument("--data-dir", help="where TFDS keeps its data sets")
    reading.add_argument("--shard-size", type=between(1), default=4096, help="records per shard, about (4096)")
    running = parser.add_argument_group("running")
    running.add_argument(
        "--runner", choices=("local", "ray"), default="local", help="processes here, or a Ray cluster"
    )
    running.add_argument(
        "--workers", type=between(1, 10_000), help="processes of --runner local (default: one per core)"
    )
    running.add_argument(
        "--shard", metavar="I/N", help="this host's part, I from 0 (default: as Slurm, a JobSet or a TPU VM says)"
    )
    running.add_argument("--dry-run", action="store_true", help="show what would be read, and stop")
    running.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.set_defaults(run="prepare:run", takes_overrides=False)
