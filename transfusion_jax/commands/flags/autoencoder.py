"""`transfusion autoencoder`: trains an image autoencoder, shows what it does, exports it for `prepare --encode`."""

from __future__ import annotations

import argparse

from transfusion_jax.commands.flags.shared import add_accept_changes, add_training, add_weights
from transfusion_jax.storage.paths import place


def declare(parser: argparse.ArgumentParser) -> None:
    """Declares what the command can do."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    training = actions.add_parser("train", help="train or resume in a workdir")
    add_training(training, dry_run="autoencoder:dry_run")
    add_accept_changes(training)
    training.set_defaults(run="autoencoder:run", takes_overrides=True)
    showing = actions.add_parser("reconstruct", help="draw held-out images above their reconstructions")
    add_weights(showing)
    showing.add_argument("--output", type=place, required=True, help="PNG to write")
    showing.set_defaults(run="autoencoder:reconstruct_images", takes_overrides=False)
    exporting = actions.add_parser("export", help="write a folder for prepare --encode")
    add_weights(exporting)
    exporting.add_argument("--name", required=True, help="what data.encoding will call it, such as kl-f8c8")
    exporting.add_argument("--output", type=place, required=True, help="the folder to write")
    exporting.set_defaults(run="autoencoder:export", takes_overrides=False)
