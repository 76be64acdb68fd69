"""A ladder file of two models that train in seconds, with a sweep."""

CONFIG = """
from ml_collections import ConfigDict

def get_config(arg):
    return ConfigDict(dict(
        name="tiny", seed=0, steps=1, batch_rows=4,
        model=dict(
            width=int(arg), layers=1, heads=2, mlp_width=32, vocabulary=256, latent_shape=(4, 4, 1), patch_size=2
        ),
        data=dict(sources="synthetic", context_length=128, max_images=4),
        optimizer=dict(learning_rate=1e-3),
        sampling=dict(steps=2),
        evaluation=dict(rows=4),
        loop=dict(log_every=1, save_every=1),
    ))
"""
LADDER = """
from ml_collections import ConfigDict

def get_ladder():
    return ConfigDict(dict(
        name="tiny",
        families=dict(tiny=dict(config="{config}:{{size}}")),
        scales=[dict(size="16", elements=128 * 4 * {steps}), dict(size="32", elements=128 * 4 * {steps})],
        sweep=dict(rates=(1e-3, 1e-2), size="16", elements=128 * 4 * 2),
    ))
"""


def make_ladder(folder, steps=3):
    """The file of a new one, beside that of its config."""
    (folder / "tiny.py").write_text(CONFIG)
    (folder / "ladder.py").write_text(LADDER.format(config=folder / "tiny.py", steps=steps))
    return folder / "ladder.py"
