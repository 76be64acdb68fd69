"""Both families on one large GPU, about half an hour; data as in configs/scaling.py.

transfusion scale run --ladder configs/ladders/gpu.py --workdir runs/gpu-ladder
"""

from ml_collections import ConfigDict


def get_ladder() -> ConfigDict:
    """The ladder."""
    return ConfigDict(
        dict(
            name="gpu",
            families={name: dict(config=f"configs/scaling.py:{{size}},{name}") for name in ("linear", "chameleon")},
            scales=[dict(size=size, elements=64e6) for size in ("m", "l", "xl", "2xl", "3xl")],
            changes=("batch_rows=128",),
            sweep=dict(rates=(5e-4, 1e-3, 2e-3, 4e-3), size="l", elements=16e6),
            topology="h100:1x1",
        )
    )
