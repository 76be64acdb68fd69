"""Image autoencoders behind one interface, each found by its name."""

from transfusion_jax.autoencoder.interface import Autoencoder, Encoding
from transfusion_jax.config import AUTOENCODERS, ConfigError, require
from transfusion_jax.storage.paths import Place

__all__ = ["Autoencoder", "Encoding", "load", "load_saved", "save", "without_weights"]

WITH_WEIGHTS = "trained"  # the kind whose names are folders


def load_autoencoder(name: str) -> Autoencoder:
    """The autoencoder `identity`, `dct-fBcC` such as `dct-f8c8`, `grey-fBkK`, or that of a folder with weights.

    Raises:
        ConfigError: there is none.
    """
    found = without_weights(name) or AUTOENCODERS[WITH_WEIGHTS](name)
    if found is None:
        raise ConfigError(
            f"autoencoder {name!r}: give a folder with autoencoder.json, or a name such as dct-f8c8 (f2, f4, f16)"
        )
    return found


def without_weights(name: str) -> Autoencoder | None:
    """The autoencoder that is known by its name alone."""
    finders = (find for kind, find in AUTOENCODERS.items() if kind != WITH_WEIGHTS)
    return next((found for find in finders if (found := find(name)) is not None), None)


def save(autoencoder: Autoencoder, folder: Place) -> None:
    """Writes the autoencoder into prepared data or a workdir, if it has weights; see `load_saved_autoencoder`."""
    autoencoder.save(_kept(folder, autoencoder.name))


def load_saved_autoencoder(folder: Place, name: str, expected: str | None = None) -> Autoencoder:
    """The autoencoder that `save` left in a folder.

    Args:
        folder: the folder.
        name: the autoencoder's.
        expected: its hash; None where a former version has not kept it.

    Raises:
        ConfigError: it is missing, damaged, or another one.
    """
    found = without_weights(name) or AUTOENCODERS[WITH_WEIGHTS](str(_kept(folder, name)))
    require(found is not None, f"{_kept(folder, name)} holds no autoencoder: copy it back from a backup")
    assert found is not None
    require(
        expected in (None, found.hash()),
        f"the autoencoder {name!r} in {folder} ({found.hash()}) is not the one that was saved there ({expected}): "
        "copy it back from a backup",
    )
    return found


def _kept(folder: Place, name: str) -> Place:
    return folder / f"autoencoder-{name}"
