"""`transfusion serve`: a page and an API on a trained model, on this machine alone unless told otherwise."""

from __future__ import annotations

import argparse

from transfusion_jax.commands.flags.parser import between
from transfusion_jax.commands.flags.shared import add_weights


def declare(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    add_weights(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine alone)")
    parser.add_argument("--port", type=between(0, 65535), default=8000, help="port (8000; 0 takes a free one)")
    parser.add_argument("--waiting", type=between(1), default=64, help="requests that may wait (default: 64)")
    parser.add_argument(
        "--token",
        help="what clients must show, and other machines may connect with; TRANSFUSION_TOKEN in the environment "
        "keeps it from lists of processes (default: none)",
    )
    parser.add_argument("--no-token", action="store_true", help="let other machines connect without a token")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME[:PORT]",
        help="another name that the server answers to, such as that of a proxy before it; repeatable",
    )
    parser.set_defaults(run="serve:run", takes_overrides=False)
