"""The paper's four ablations (tables 5, 6 and 8) at one small size: mask, patch size, patch coder, noise limit.

And its objective against what the small models of configs/scaling.py predict, data as there.

    transfusion scale run --ladder configs/ladders/ablations.py --workdir runs/ablations --jobs 2
    transfusion scale table --workdir runs/ablations
"""

from ml_collections import ConfigDict

FAMILIES = (
    "linear",
    "causal",
    "unet",
    "unet-causal",
    "none-1x1",
    "linear-4x4",
    "unet-4x4",
    "unet-limit",
    "epsilon",
)


def get_ladder() -> ConfigDict:
    """The ladder."""
    return ConfigDict(
        dict(
            name="ablations",
            families={name: dict(config=f"configs/scaling.py:{{size}},{name}") for name in FAMILIES},
            scales=[dict(size="s", elements=4e6, seeds=2)],
        )
    )
