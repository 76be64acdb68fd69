"""Both families on two CPU cores, about three hours in as many sittings as it takes; data as in configs/scaling.py.

transfusion scale run --ladder configs/ladders/cpu.py --workdir runs/cpu-ladder --jobs 2
"""

from ml_collections import ConfigDict


def get_ladder() -> ConfigDict:
    """The ladder."""
    return ConfigDict(
        dict(
            name="cpu",
            families={name: dict(config=f"configs/scaling.py:{{size}},{name}") for name in ("linear", "chameleon")},
            scales=[
                dict(size=size, elements=8e6, seeds=seeds) for size, seeds in dict(xs=3, s=3, m=1, l=1).items()
            ],
            sweep=dict(rates=(2e-3, 4e-3, 8e-3, 1.6e-2), size="m", elements=2e6),
        )
    )
