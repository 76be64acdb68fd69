"""Image autoencoders behind one interface."""

from transfusion_jax.autoencoder.identity import Identity
from transfusion_jax.autoencoder.interface import Autoencoder, Encoding
from transfusion_jax.config import ConfigError

__all__ = ["Autoencoder", "Encoding", "Identity", "load"]


def load(name: str) -> Autoencoder:
    """The autoencoder that a config names.

    Raises:
        ConfigError: there is none of that name in this version.
    """
    if name != "identity":
        raise ConfigError(f"autoencoder {name!r} is not available in this version: use 'identity' (pixels)")
    return Identity()
