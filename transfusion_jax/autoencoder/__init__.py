"""Image autoencoders behind one interface."""

from transfusion_jax.autoencoder import trained
from transfusion_jax.autoencoder.dct import CosineBlocks, from_name
from transfusion_jax.autoencoder.grey import Grey
from transfusion_jax.autoencoder.grey import from_name as grey_from_name
from transfusion_jax.autoencoder.identity import Identity
from transfusion_jax.autoencoder.interface import Autoencoder, Encoding
from transfusion_jax.autoencoder.trained import Trained
from transfusion_jax.config import ConfigError, require
from transfusion_jax.storage.paths import Place, place

__all__ = ["Autoencoder", "CosineBlocks", "Encoding", "Grey", "Identity", "Trained", "keep", "load", "load_saved"]


def load(name: str) -> Autoencoder:
    """The autoencoder `identity`, `dct-fBcC` such as `dct-f8c8`, `grey-fBkK`, or that of a folder with weights.

    Raises:
        ConfigError: there is none.
    """
    found = without_weights(name)
    if found is not None:
        return found
    if not (place(name) / trained.ABOUT).is_file():
        raise ConfigError(f"autoencoder {name!r}: give a folder with {trained.ABOUT}, or a name such as dct-f8c8")
    return trained.open_folder(place(name))


def without_weights(name: str) -> Autoencoder | None:
    """The autoencoder that is known by its name alone."""
    return Identity() if name == "identity" else from_name(name) or grey_from_name(name)


def keep(autoencoder: Autoencoder, folder: Place) -> None:
    """Writes the autoencoder into prepared data or a workdir, if it has weights; `load_saved` reads it back."""
    if isinstance(autoencoder, Trained):
        trained.save(_kept(folder, autoencoder.name), autoencoder)


def load_saved(folder: Place, name: str, expected: str | None = None) -> Autoencoder:
    """The autoencoder that `keep` left in a folder.

    Args:
        folder: the folder.
        name: the autoencoder's.
        expected: its hash; None where a former version has not kept it.

    Raises:
        ConfigError: it is missing, damaged, or another one.
    """
    found = without_weights(name) or trained.open_folder(_kept(folder, name))
    require(
        expected in (None, found.hash()),
        f"the autoencoder {name!r} in {folder} ({found.hash()}) is not the one that was saved there ({expected}): "
        "copy it back from a backup",
    )
    return found


def _kept(folder: Place, name: str) -> Place:
    return folder / f"autoencoder-{name}"
