"""The paper's comparison (section 4.2): Transfusion, linear and U-Net, Chameleon and Llama, five sizes of each.

Half a trillion elements each, and of Llama the half that is text.

    transfusion scale run --ladder configs/ladders/paper.py --dry-run

Name your data in the config first, or with `changes` below: docs/reproduce.md.
"""

from ml_collections import ConfigDict

ELEMENTS = 250_000 * 512 * 4096  # 0.5T


def get_ladder() -> ConfigDict:
    """The ladder."""
    return ConfigDict(
        dict(
            name="paper",
            families=dict(
                linear=dict(config="configs/paper.py:{size}"),
                unet=dict(config="configs/paper.py:{size},unet"),
                chameleon=dict(config="configs/paper.py:{size},chameleon"),
                llama=dict(config="configs/paper.py:{size},llama", share=0.5),
            ),
            scales=[dict(size=size, elements=ELEMENTS) for size in ("0.16b", "0.37b", "0.76b", "1.4b", "7b")],
            warmup=4000 / 250_000,
            final_rate=0.05,
            # 7B is not whole on one device; the guidance is section 4.2's
            changes=("mesh.fsdp=32", "sampling.guidance=5.0"),
            topology="v5p-512",
        )
    )
