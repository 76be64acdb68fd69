"""Image autoencoders behind one interface."""

from transfusion_jax.autoencoder.dct import CosineBlocks, from_name
from transfusion_jax.autoencoder.grey import Grey
from transfusion_jax.autoencoder.grey import from_name as grey_from_name
from transfusion_jax.autoencoder.identity import Identity
from transfusion_jax.autoencoder.interface import Autoencoder, Encoding
from transfusion_jax.config import ConfigError

__all__ = ["Autoencoder", "CosineBlocks", "Encoding", "Grey", "Identity", "load"]


def load(name: str) -> Autoencoder:
    """The autoencoder of a name: `identity`, `dct-fBcC` such as `dct-f8c8`, or `grey-fBkK` such as `grey-f8k512`.

    Raises:
        ConfigError: there is none of that name in this version.
    """
    found = Identity() if name == "identity" else from_name(name) or grey_from_name(name)
    if found is None:
        raise ConfigError(
            f"autoencoder {name!r} is not available in this version: use identity, dct-f8c8 or grey-f8k512"
        )
    return found
