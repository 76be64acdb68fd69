"""How much memory `transfusion convert` takes beside the size of the weights that it converts.

    python benchmarks/conversion.py

A Llama of random weights goes into a run, the run into a Llama and into safetensors and back, each by its command.
Counted is the process's own memory at its peak, without pages of files, less what a tiny model's conversion takes.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np

from transfusion_jax.conversion import llama, shards

POLL = 0.01  # seconds
SHARD = "200MB"
COMMANDS = {
    "from-llama": ["from-llama", "llama", "--output", "run"],
    "to-llama": ["to-llama", "--workdir", "run", "--output", "back", "--max-shard-size", SHARD],
    "to-safetensors": ["to-safetensors", "--workdir", "run", "--output", "all", "--max-shard-size", SHARD],
    "from-safetensors": ["from-safetensors", "all", "--output", "again"],
}
TINY = dict(width=128, layers=2, mlp_width=256, vocabulary=512)


def main() -> None:
    """Converts twice, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    sizes = dict(
        width=arguments.width,
        layers=arguments.layers,
        mlp_width=arguments.width * 11 // 4,
        vocabulary=arguments.vocabulary,
    )
    tiny, large = peaks(**TINY), peaks(**sizes)
    whole = sum(4 * value.size for _, value in tensors(**sizes))
    stacked = 4 * sizes["width"] * max(sizes["vocabulary"], sizes["layers"] * sizes["mlp_width"])
    result = {"weights": whole, "largest_leaf": stacked, "peaks": {k: large[k] - tiny[k] for k in COMMANDS}}
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"weights {whole / 1e6:,.0f} MB in float32, the largest leaf {stacked / 1e6:,.0f} MB, files of {SHARD}")
    for name, peak in result["peaks"].items():
        print(
            f"{name:<17} {peak / 1e6:6,.0f} MB, {peak / stacked:.1f} of the leaf, {peak / whole:.2f} of the weights"
        )


def peaks(width: int, layers: int, mlp_width: int, vocabulary: int) -> dict[str, int]:
    """Bytes of each command at its peak."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shards.write(root / "llama", tensors(width, layers, mlp_width, vocabulary), shards.parse_size(SHARD))
        sizes = (width, layers, width // 64, mlp_width, vocabulary)
        (root / "llama/config.json").write_text(json.dumps(dict(zip(llama.SIZES, sizes, strict=True))))
        return {name: peak(words, root) for name, words in COMMANDS.items()}


def tensors(width: int, layers: int, mlp_width: int, vocabulary: int) -> Iterator[tuple[str, np.ndarray]]:
    """A Llama's, bfloat16."""
    rng = np.random.default_rng(0)
    shapes = {"mlp/gate": (mlp_width, width), "mlp/up": (mlp_width, width), "mlp/down": (width, mlp_width)}
    for ours, theirs in llama.LAYER.items():
        for layer in range(layers):
            shape = (width,) if "norm" in ours else shapes.get(ours, (width, width))
            yield f"model.layers.{layer}.{theirs}.weight", _random(rng, shape)
    yield "model.norm.weight", _random(rng, (width,))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        yield name, _random(rng, (vocabulary, width))


def peak(words: list[str], root: Path) -> int:
    """The most bytes of its own that a command held."""
    command = [sys.executable, "-m", "transfusion_jax.cli", "convert", *words]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL) as process:
        most, status = 0, Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            found = re.search(r"RssAnon:\s+(\d+) kB", status.read_text())
            most = max(most, 1024 * int(found[1])) if found else most
            time.sleep(POLL)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} failed")
    return most


def _random(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return (0.02 * rng.standard_normal(shape, np.float32)).astype(ml_dtypes.bfloat16)


if __name__ == "__main__":
    main()
