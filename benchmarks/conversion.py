"""How much memory `transfusion convert` takes beside the size of the weights that it converts.

    python benchmarks/conversion.py

A Llama of random weights goes into a run, the run into a Llama and into safetensors and back, each by its command.
Counted is the process's own memory at its peak, without pages of files, beyond a baseline: the peak of the same
command on a tiny model.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from transfusion_jax.conversion import architectures, language_models, shards

POLL = 0.01  # seconds
SHARD = "200MB"
COMMANDS = {
    "from-hf": ["from-hf", "llama", "--output", "run"],
    "to-hf": ["to-hf", "--workdir", "run", "--output", "back", "--max-shard-size", SHARD],
    "to-safetensors": ["to-safetensors", "--workdir", "run", "--output", "all", "--max-shard-size", SHARD],
    "from-safetensors": ["from-safetensors", "all", "--output", "again"],
}
TINY: dict[str, Any] = dict(width=128, layers=2, mlp_width=256, vocabulary=512)


def main() -> None:
    """Converts twice, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    sizes: dict[str, Any] = dict(
        width=arguments.width,
        layers=arguments.layers,
        mlp_width=arguments.width * 11 // 4,
        vocabulary=arguments.vocabulary,
    )
    baseline, large = peaks(**TINY), peaks(**sizes)
    shapes = language_models.tensor_shapes(config_json(**sizes))
    matrices = {name: 4 * math.prod(shape) for name, shape in shapes.items()}
    layer = max(size for name, size in matrices.items() if "layers" in name)
    whole = sum(matrices.values())
    result = {
        "weights": whole,
        "leaf": max(matrices[language_models.HEAD], arguments.layers * layer),
        "shard": shards.parse_bytes(SHARD),
        "matrix": layer,
        "baseline": baseline,
        "peak": {name: large[name] - baseline[name] for name in COMMANDS},
    }
    if arguments.json:
        print(json.dumps(result))
        return
    print(
        f"weights {whole / 1e6:,.0f} MB in float32, the largest leaf {result['leaf'] / 1e6:,.0f} MB, "
        f"files of {SHARD}, a layer's largest matrix {layer / 1e6:,.1f} MB"
    )
    for name, peak in result["peak"].items():
        print(f"{name:<17} {peak / 1e6:6,.0f} MB beyond a baseline of {baseline[name] / 1e6:,.0f} MB")


def peaks(
    width: int, layers: int, mlp_width: int, vocabulary: int, commands: Collection[str] = tuple(COMMANDS)
) -> dict[str, int]:
    """Bytes of each command at its peak; they are run in this order."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        config = config_json(width, layers, mlp_width, vocabulary)
        shapes, rng = language_models.tensor_shapes(config), np.random.default_rng(0)
        parts = ((name, (), 0.02 * rng.standard_normal(shape, np.float32)) for name, shape in shapes.items())
        shards.write_tensors(root / "llama", shapes, parts, "bfloat16", shards.parse_bytes(SHARD))
        (root / "llama/config.json").write_text(json.dumps(config))
        return {name: peak(COMMANDS[name], root) for name in commands}


def config_json(width: int, layers: int, mlp_width: int, vocabulary: int) -> dict[str, int]:
    """A Llama of these sizes."""
    return dict(zip(architectures.SIZES, (width, layers, width // 64, mlp_width, vocabulary), strict=True))


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


if __name__ == "__main__":
    main()
