"""Images that keep their proportions beside the same ones cropped to squares, on Tux Paint's stamps.

    python benchmarks/native.py --stamps /usr/share/tuxpaint/stamps --folder runs/native
    python benchmarks/native.py --folder runs/native --steps 1000

configs/stamps.py is trained twice, with squares and with proportions, for as many elements. A tenth of the stamps
is kept from both, and both are judged on these pictures and captions: how likely a caption is after its picture,
and how often it is the one of 16 captions that the picture makes more likely than the others, relative to how
likely each is without a picture. Losses on pixels are over other pixels, and do not compare. What is there is not
made again.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import math
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import harness
from transfusion_jax.commands.common.load_model import read_model
from transfusion_jax.data.documents import Document
from transfusion_jax.data.readers.stamps import PLACE
from transfusion_jax.generation.scoring import score_continuations
from transfusion_jax.training.facts import codec_of, data_of
from transfusion_jax.training.monitoring.metrics import record_of

CONFIG = Path(__file__).parents[1] / "configs" / "stamps.py"
ASPECTS = {
    "square": ["--image-size", "48"],
    "native": ["--aspect", "native", "--area", "48x48", "--multiple", "8", "--max-aspect", "8"],
}
HELD_OUT, CHOICES = 10, 16  # one stamp in so many, and captions to choose from


@dataclass(frozen=True)
class Judged:
    """One run on the stamps that were kept from training."""

    aspect: str
    images: int
    shapes: int
    patches: float  # of an image, on average
    elements: int  # trained on
    caption_nats: float  # per token, after the picture
    blind_nats: float  # without it
    chosen: float  # share of pictures whose own caption is chosen
    error: float  # its standard error
    losses: dict[str, float]  # held out, as training logged them last


def main() -> None:
    """Prepares, trains, judges and prints."""
    parser = harness.parser(__doc__, timed=False)
    parser.add_argument("--stamps", type=Path, default=Path("/", PLACE), help="(default: %(default)s)")
    parser.add_argument("--folder", type=Path, required=True, help="of data and runs")
    parser.add_argument("--steps", type=int, default=4000, help="of each run (default: %(default)s)")
    arguments = parser.parse_args()
    separate(arguments.stamps, arguments.folder / "stamps")
    for aspect in ASPECTS:
        prepare(arguments.folder, aspect)
        train(arguments.folder, aspect, arguments.steps)
    found = [judge(arguments.folder / "runs" / aspect, aspect) for aspect in ASPECTS]
    result = {"steps": arguments.steps, "runs": [dataclasses.asdict(one) for one in found]}
    harness.deliver(result | {"machine": harness.machine()}, table(found), arguments.json)


def separate(stamps: Path, into: Path) -> None:
    """Copies the stamps into two folders by their names, so that both runs are kept from the same ones."""
    if into.exists():
        return
    for path in sorted(stamps.rglob("*.png")):
        name = path.relative_to(stamps)
        chosen = int(hashlib.sha256(str(name).encode()).hexdigest(), 16) % HELD_OUT == 0
        folder = into / ("held_out" if chosen else "train") / name.parent
        folder.mkdir(parents=True, exist_ok=True)
        for file in (path, path.with_suffix(".txt")):
            if file.is_file():
                shutil.copy(file, folder)


def prepare(folder: Path, aspect: str) -> None:
    """Both parts, with the tokenizer of the first that is prepared."""
    for part in ("train", "held_out"):
        output = folder / "data" / aspect / part
        if (output / "data.json").is_file():
            continue
        first = folder / "data" / next(iter(ASPECTS)) / "train"
        tokenizer = "bpe:512" if output == first else str(next(first.glob("tokenizer.*")))
        words = ["--held-out", "0", "--encode", "dct-f4c12", "--tokenizer", tokenizer, "--output", str(output)]
        run("prepare", f"stamps:{folder / 'stamps' / part}", *ASPECTS[aspect], *words)


def train(folder: Path, aspect: str, steps: int) -> None:
    """Trains, or goes on."""
    data, variant = folder / "data" / aspect, "" if aspect == "square" else f":{aspect}"
    source = "--config.data.sources.stamps"
    sizes = [f"--config.steps={steps}", f"--config.optimizer.warmup_steps={min(200, steps // 10)}"]
    names = [f"{source}.path={data / 'train'}", f"{source}.held_out={data / 'held_out'}"]
    quiet = ["--config.loop.sample_every=0", f"--config.loop.evaluate_every={max(1, steps // 4)}"]
    run(
        "train",
        "--config",
        f"{CONFIG}{variant}",
        "--workdir",
        str(folder / "runs" / aspect),
        *sizes,
        *names,
        *quiet,
    )


def run(*words: str) -> None:
    """A command of the package."""
    subprocess.run([sys.executable, "-m", "transfusion_jax.cli", *words], check=True)


def judge(workdir: Path, aspect: str) -> Judged:
    """Both measures of the held-out captions."""
    flags = argparse.Namespace(workdir=workdir, weights=None, step="latest")
    task, params, run, step, _ = read_model(flags, print)
    codec, held_out = codec_of(run), data_of(run, task.config).held_out
    pairs = [document.pair for document in held_out.sources[0]]
    captions, images = [text.tokens for text, _ in pairs], [image for _, image in pairs]
    random, count = np.random.default_rng(0), len(pairs)
    others = [np.delete(np.arange(count), own) for own in range(count)]
    offered = np.array([[own, *random.choice(rest, CHOICES - 1, False)] for own, rest in enumerate(others)])

    def nats(before: Sequence[Document], numbers: Sequence[int]) -> np.ndarray:
        scores = score_continuations(task, params, codec, before, [captions[number] for number in numbers])
        return np.array([-score.log_likelihood for score in scores])

    blind = nats([Document(())] * count, range(count))
    behind = [Document((image,)) for image in images for _ in range(CHOICES)]
    seen = nats(behind, offered.ravel().tolist()).reshape(offered.shape)
    chosen = np.argmin(seen - blind[offered], axis=1) == 0
    tokens = sum(map(len, captions))
    sizes = [document.area // task.config.model.patch_area for document in held_out.sources[0]]
    record = record_of(run.metrics, step)
    return Judged(
        aspect,
        count,
        len({image.latent.shape for image in images}),
        float(np.mean(sizes)),
        step * task.config.elements_per_step,
        float(seen[:, 0].sum() / tokens),
        float(blind.sum() / tokens),
        float(chosen.mean()),
        math.sqrt(chosen.mean() * (1 - chosen.mean()) / count),
        {name: value for name, value in record.items() if name.startswith("held_out/") and "/noise" not in name},
    )


def table(found: Sequence[Judged]) -> str:
    """The runs for reading."""
    lines = [["", *(one.aspect for one in found)]]
    rows = {
        "held-out pictures": lambda j: f"{j.images}",
        "their shapes": lambda j: f"{j.shapes}",
        "patches of a picture": lambda j: f"{j.patches:.1f}",
        "elements trained on": lambda j: f"{j.elements:,}",
        "nats per token of a caption": lambda j: f"{j.caption_nats:.3f}",
        "… without its picture": lambda j: f"{j.blind_nats:.3f}",
        f"own caption chosen of {CHOICES}": lambda j: f"{j.chosen:.1%} ± {j.error:.1%}",
    }
    lines += [[name, *(show(one) for one in found)] for name, show in rows.items()]
    return "\n".join(harness.align(lines))


if __name__ == "__main__":
    main()
