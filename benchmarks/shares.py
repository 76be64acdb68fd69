"""Parameters and operations of the patch coders at the paper's five sizes: writes docs/patch_coders.md.

    python benchmarks/shares.py --output docs/patch_coders.md

Counted from the models' own trees; nothing is allocated.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from transfusion_jax import config as configs
from transfusion_jax.config import ModelConfig
from transfusion_jax.config.model import UNET_CHANNELS
from transfusion_jax.flops import count_parameters
from transfusion_jax.model.transfusion import Model

CONFIG = Path(__file__).parents[1] / "configs/paper.py"
PAPER = {  # table 7: linear and U-Net, in percent of the model
    "0.16b": (0.5, 106.1),
    "0.37b": (0.4, 71.3),
    "0.76b": (0.4, 35.5),
    "1.4b": (0.4, 19.3),
    "7b": (0.3, 3.8),
}
HEAD = """# Patch coders

What they add to the paper's five sizes, counted from the models' trees by

```
{command}
```

`transfusion train --config configs/paper.py:7b --config.model.patch_coder=unet --dry-run` prints one of them.
"""
NOTE = """
The paper gives its U-Net 0.27B parameters "across all configurations", and its table 7 other numbers: 106.1 % of
0.16B are 0.17B, where 0.27B would be 169 %. No U-Net of one size can have all five shares, so ours is held to
one, that of 7B with 2×2 patches, and its own widths are the same beside every trunk; only the two maps between the
trunk's width and its own grow with the model. Widths and blocks are ours (docs/decisions.md): the paper gives none.
"""


def main() -> None:
    """Counts and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the page")
    arguments = parser.parse_args()
    command = f"python benchmarks/shares.py --output {arguments.output}"
    arguments.output.write_text("\n".join([HEAD.format(command=command), *shares(), NOTE, *sizes()]) + "\n")


def shares() -> list[str]:
    """With 2×2 patches, beside the paper's."""
    lines = ["## Beside the paper's table 7 (2×2 patches)", ""]
    lines += ["| size | linear | paper | U-Net | | paper |", "|---|---|---|---|---|---|"]
    for size, (linear, unet) in PAPER.items():
        ours = [count_parameters(model(size, coder)) for coder in ("linear", "unet")]
        percent = [100 * one.patch_coder / one.paper for one in ours]
        millions = ours[1].patch_coder / 1e6
        lines.append(
            f"| {size} | {percent[0]:.1f} % | {linear} % | {percent[1]:.1f} % | {millions:.0f}M | {unet} % |"
        )
    return lines


def sizes() -> list[str]:
    """Of every patch size at 7B."""
    lines = ["## Every patch size, at 7B", ""]
    lines += ["| k | patches | linear | U-Net | its channels | GFLOP per image, linear | U-Net | trunk |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for size, widths in UNET_CHANNELS.items():
        pair = [model("7b", coder, size) for coder in ("linear", "unet")]
        millions = [f"{count_parameters(one).patch_coder / 1e6:.1f}M" for one in pair]
        giga = [f"{Model(one).coder_flops() / 1e9:,.1f}" for one in pair]
        patches = pair[0].patches
        trunk = f"{2 * count_parameters(pair[0]).trunk * patches / 1e9:,.0f}"
        lines.append(
            f"| {size} | {patches:,} | {millions[0]} | {millions[1]} | {', '.join(map(str, widths))} | "
            f"{giga[0]} | {giga[1]} | {trunk} |"
        )
    return [*lines, "", "Operations are those of one forward pass of one image; the trunk's leave attention out."]


def model(size: str, coder: str, patch_size: int = 2) -> ModelConfig:
    """One of the paper's models with another patch coder."""
    overrides = [f"model.patch_coder={coder}", f"model.patch_size={patch_size}"]
    return configs.load(f"{CONFIG}:{size}", overrides).model


if __name__ == "__main__":
    main()
