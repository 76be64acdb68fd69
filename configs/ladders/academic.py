"""Both families within 1e21 FLOPs, evaluation included: five sizes, 5 and 20 elements per parameter.

    transfusion scale run --ladder configs/ladders/academic.py --dry-run

For public data, such as CC12M and FineWeb (docs/data.md has their commands): docs/reproduce.md.
"""

from ml_collections import ConfigDict

PARAMETERS = {"0.07b": 0.074e9, "0.16b": 0.16e9, "0.37b": 0.37e9, "0.76b": 0.76e9, "1.4b": 1.4e9}


def get_ladder() -> ConfigDict:
    """The ladder."""
    return ConfigDict(
        dict(
            name="academic",
            families=dict(
                linear=dict(config="configs/paper.py:{size}"),
                chameleon=dict(config="configs/paper.py:{size},chameleon"),
            ),
            scales=[
                dict(size=size, elements=n * per_parameter, seeds=3 if size == "0.07b" else 1)
                for per_parameter in (5, 20)
                for size, n in PARAMETERS.items()
            ],
            warmup=0.02,
            changes=("batch_rows=128", "mesh.fsdp=8"),  # half a million elements: the smallest budget is 700 steps
            topology="v5e-64",
        )
    )
