"""The paper's ablations (tables 4, 5, 6 and 8) at one small size: mask, patch size, patch coder, noise limit.

And what images cost text, the objective, and the weight of the images' loss; data as in configs/scaling.py.

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
    "light",
    "chameleon",
    "chameleon-own",
    "text",
    "text-own",
)
SHARE = {"text": 0.5, "text-own": 0.5}  # of the elements, as many texts as the others see


def get_ladder() -> ConfigDict:
    """The ladder."""
    return ConfigDict(
        dict(
            name="ablations",
            families={
                name: dict(
                    config=f"configs/scaling.py:{{size}},{name}", learning_rate=4e-3, share=SHARE.get(name, 1.0)
                )
                for name in FAMILIES
            },
            scales=[dict(size="s", elements=4e6, seeds=2)],
        )
    )
