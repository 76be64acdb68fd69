"""From the config to documents: prepared folders and synthetic ones, all coded alike, the held-out ones apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from transfusion_jax import autoencoder as autoencoders
from transfusion_jax.autoencoder import Autoencoder
from transfusion_jax.config import Config, SourceConfig, require
from transfusion_jax.data import tokenizer as tokenizers
from transfusion_jax.data.documents import Corpus, Documents, Source
from transfusion_jax.data.packing.plan import VERSION
from transfusion_jax.data.store.dataset import Prepared, PreparedDocuments
from transfusion_jax.data.store.latent_stats import LatentStatistics, Moments
from transfusion_jax.data.synthetic import SyntheticDocuments
from transfusion_jax.data.tokenizer import ByteTokenizer, Numbers, SpecialTokens, Tokenizer
from transfusion_jax.storage.atomic import DamagedFile
from transfusion_jax.storage.forms import misfit
from transfusion_jax.storage.paths import Place

RESTORED = "run the command that trains again, which restores it, or copy it back from a backup"
CODEC = {  # the form of a manifest's `codec`
    **{"tokenizer": str, "tokenizer_hash?": str, "encoding": str, "autoencoder": str, "autoencoder_hash?": str},
    **{"latents": (None, {"mean": [float], "std": [float]}), "bos_first?": bool},
}


@dataclass(frozen=True)
class Codec:
    """What turns texts and images into what the model sees, and back; a workdir keeps all of it."""

    tokenizer: Tokenizer
    special: SpecialTokens
    autoencoder: Autoencoder
    statistics: LatentStatistics | None  # None where images are codes
    bos_first: bool = True  # whether a prompt begins with BOS; not for an imported model whose tokenizer adds none

    @property
    def ends(self) -> tuple[int, ...]:
        """Tokens that end generation: EOS, and further stop tokens of an imported model."""
        return self.special.eos, *self.tokenizer.stops

    def images(self, latents: np.ndarray) -> np.ndarray:
        """Images `[B, H, W, channels]` in [−1, 1] of normalised latents, or of codes `[B, h, w]`."""
        return np.asarray(self.autoencoder.decode(self.statistics.restore(latents) if self.statistics else latents))

    def latents(self, images: np.ndarray) -> np.ndarray:
        """Normalised latents, or codes `[B, h, w]` int32, of images `[B, H, W, channels]` in [−1, 1]."""
        encoded = self.autoencoder.encode(images)
        if self.statistics is None:
            return np.asarray(encoded.codes, np.int32)
        return self.statistics.normalise(np.asarray(encoded.mean))

    def bounds(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The range of normalised latents, where the autoencoder limits it."""
        if self.autoencoder.bounds is None or self.statistics is None:
            return None
        mean, normalise = self.statistics.mean, self.statistics.normalise
        low, high = (normalise(np.full_like(mean, b)) for b in self.autoencoder.bounds)
        return low, high


def by_shape(convert: Callable[[np.ndarray], np.ndarray], arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What a function of a batch makes of each of these arrays, those of one shape in one batch.

    Args:
        convert: `[B, …] → [B, …]`, such as `Codec.latents` or `Codec.images`.
        arrays: of any shapes.
    """
    found: dict[int, np.ndarray] = {}
    for shape in dict.fromkeys(array.shape for array in arrays):
        places = [place for place, array in enumerate(arrays) if array.shape == shape]
        found |= zip(places, convert(np.stack([arrays[place] for place in places])), strict=True)
    return [found[place] for place in range(len(arrays))]


@dataclass(frozen=True)
class Data:
    """Documents to train on, documents kept out, and how they were coded."""

    train: Corpus
    held_out: Corpus
    codec: Codec
    row_plan: int = VERSION  # version of the row plans

    def keep(self, folder: Place) -> None:
        """Puts what reads a run's texts and images back into its directory."""
        tokenizers.save_tokenizer(self.codec.tokenizer, folder)
        autoencoders.save(self.codec.autoencoder, folder)

    def facts(self, config: Config) -> dict[str, Any]:
        """What a manifest says of the data: its hash, how it was coded, and of images of any shape their sizes."""
        codec = self.codec
        return {
            "data_hash": self.train.hash,
            "row_plan": self.row_plan,
            "codec": {
                "tokenizer": codec.tokenizer.name,
                "tokenizer_hash": tokenizers.hash_of(codec.tokenizer),
                "encoding": config.data.encoding,
                "autoencoder": codec.autoencoder.name,
                "autoencoder_hash": codec.autoencoder.hash(),
                "latents": codec.statistics.to_dict() if codec.statistics else None,  # None: codes
            }
            | ({} if codec.bos_first else {"bos_first": False}),
        } | ({"shapes": shapes} if (shapes := self._trained_shapes(config)) else {})

    def _trained_shapes(self, config: Config) -> dict[str, list[int]]:
        """The least and the greatest side and area of what is trained on, in latent pixels.

        Nothing for a model of images of one size, or data without images.
        """
        read = {name for phase in config.data.mixtures for name in phase.weights}
        shapes = [
            shape for source in self.train.sources if source.name in read for shape in source.documents.shapes
        ]
        if not config.model.max_side or not shapes:
            return {}
        heights, widths = zip(*shapes, strict=True)
        sizes = {"height": heights, "width": widths, "area": [height * width for height, width in shapes]}
        return {name: [min(values), max(values)] for name, values in sizes.items()}


def require_sources(config: Config) -> None:
    """Raises ConfigError where the config names no data."""
    require(
        bool(config.data.sources),
        f"config {config.name!r} names no data: set --config.data.sources.NAME.path to a folder that "
        "`transfusion prepare` wrote, or --config.data.sources=synthetic to try the hardware out",
    )


def load_data(config: Config, statistics: LatentStatistics | None = None, row_plan: int = VERSION) -> Data:
    """Opens every source that the config names; their documents are read when they are asked for.

    Args:
        config: names the sources and the encoding of their images.
        statistics: how a run normalises latents; None takes the training images' own.
        row_plan: the version of its row plan.

    Raises:
        ConfigError: no source, or one that does not fit the model or the others.
    """
    require_sources(config)
    sources = config.data.sources
    prepared = {name: Prepared.open(s.path) for name, s in sources.items() if not _is_synthetic(s)}
    codec = _codec(prepared, config, statistics)
    splits = []
    for split in ("train", "held_out"):
        parts = [Source(name, _documents(sources[name], split, config, codec)) for name in config.data.source_names]
        splits.append(Corpus(tuple(parts)))
    for source in splits[0].sources if config.model.images == "none" else ():
        require(
            not source.pictured,
            f"source {source.name!r} holds images, and with model.images='none' a model reads text alone: name "
            "sources of plain texts",
        )
    return Data(splits[0], splits[1], codec, row_plan)


def plain_statistics(channels: int) -> LatentStatistics:
    """Of latents that are normalised as they are."""
    return LatentStatistics(np.zeros(channels), np.ones(channels))


def _is_synthetic(source: SourceConfig) -> bool:
    return source.path.startswith("synthetic:")


def _documents(source: SourceConfig, split: str, config: Config, codec: Codec) -> Documents:
    if _is_synthetic(source):
        return SyntheticDocuments.of(source.path, split, config)
    path = source.path
    if source.held_out and split == "held_out":
        path, split = source.held_out, "train"
    prepared = Prepared.open(path)
    mine = tokenizers.hash_of(codec.tokenizer)
    require(
        prepared.manifest["tokenizer"]["hash"] == mine,
        f"{path} was prepared with another tokenizer ({prepared.manifest['tokenizer']['name']}, "
        f"{prepared.manifest['tokenizer']['hash']}) than the other sources ({codec.tokenizer.name}, {mine})",
    )
    if path == source.held_out and prepared.manifest["encodings"] and config.model.images != "none":
        _check_shapes(f"the images in {path}", prepared, config)
    return PreparedDocuments(prepared, split, config.data.encoding, codec.statistics).make_ready()


def _codec(prepared: dict[str, Prepared], config: Config, statistics: LatentStatistics | None) -> Codec:
    """One for all sources; those that only later phases read have no say in it, so that no earlier row changes."""
    names = [name for name in config.data.source_names if name in prepared]
    vocabulary = config.model.vocabulary
    synthetic = ByteTokenizer() if vocabulary == ByteTokenizer.size else Numbers(vocabulary)
    tokenizer = prepared[names[0]].tokenizer if names else synthetic
    require(
        tokenizer.size == vocabulary,
        f"tokenizer {tokenizer.name!r} has {tokenizer.size} entries, and model.vocabulary is {vocabulary}: "
        f"add --config.model.vocabulary={tokenizer.size}, or prepare the data with another --tokenizer",
    )
    encoding = config.data.encoding
    pictured = {name: prepared[name] for name in names if prepared[name].manifest["encodings"]}
    if config.model.images == "none":
        pictured = {}
    for name, one in pictured.items():
        kind = "latents" if one.encoding(encoding)["moments"] else "codes"
        require(
            kind == config.model.images,
            f"encoding {encoding!r} of source {name!r} holds {kind}, and model.images is {config.model.images!r}",
        )
        _check_shapes(f"the images of source {name!r}", one, config)
    channels = config.model.latent_shape[2]
    codes = config.model.images == "codes"
    # of synthetic images, or none
    autoencoder: Autoencoder = autoencoders.load_autoencoder(
        f"grey-f8k{config.model.codebook}" if codes else "identity"
    )
    latent = {} if codes else pictured
    phases = [
        sum((latent[name].moments(encoding) for name in phase.weights if name in latent), Moments.none(channels))
        for phase in config.data.mixtures
    ]
    own = [moments.statistics() for moments in phases if moments]
    statistics = None if codes else statistics or (own[0] if own else plain_statistics(channels))
    if pictured:
        first = next(iter(pictured.values()))
        autoencoder = autoencoders.load_saved_autoencoder(first.folder, first.encoding(encoding)["autoencoder"])
        hashes = {name: one.encoding(encoding)["autoencoder_hash"] for name, one in pictured.items()}
        require(
            set(hashes.values()) == {autoencoder.hash()},
            f"the images were encoded with other weights than those of {autoencoder.name!r} "
            f"({autoencoder.hash()}): {hashes}",
        )
        require(
            autoencoder.codebook == config.model.codebook,
            f"autoencoder {autoencoder.name!r} has {autoencoder.codebook} entries, and model.codebook is "
            f"{config.model.codebook}",
        )
    require(
        statistics is None or bool(np.all(statistics.std > 0)),
        "a channel of the images' latents is constant: nothing to normalise by",
    )
    return Codec(tokenizer, SpecialTokens.of(tokenizer), autoencoder, statistics)


def _check_shapes(images: str, prepared: Prepared, config: Config) -> None:
    """Raises ConfigError where a folder's images, which are called so, do not go with the model."""
    encoding, model = config.data.encoding, config.model
    shapes = prepared.shapes(encoding)
    channels = tuple(prepared.encoding(encoding)["shape"][2:])
    what = f"{images} in encoding {encoding!r}"
    require(
        channels in ((), model.latent_shape[2:]),
        f"{what} have channels {list(channels)}, and model.latent_shape is {list(model.latent_shape)}",
    )
    if not model.max_side:
        require(
            set(shapes) <= {model.latent_shape[:2]},
            f"{what} are {_listed(shapes)}, and model.latent_shape is {list(model.latent_shape)}"
            + (f": images of several shapes need model.max_side, {_least_side(shapes)} here" * (len(shapes) > 1)),
        )
        return
    k, area = model.patch_size, model.latent_shape[0] * model.latent_shape[1]
    for height, width in shapes:
        require(
            height % k == 0 and width % k == 0,
            f"{what} include {height}×{width}, which model.patch_size {k} does not divide: prepare them with a "
            "--multiple that it does, or take another patch_size",
        )
    require(
        all(height * width <= area for height, width in shapes),
        f"{what} have up to {max(h * w for h, w in shapes)} places, and model.latent_shape {area}: raise it",
    )
    require(
        _least_side(shapes) <= model.max_side,
        f"{what} have sides of up to {_least_side(shapes)}: set model.max_side to that, not {model.max_side}",
    )


def _least_side(shapes: Mapping[tuple[int, int], int]) -> int:
    return max(max(shape) for shape in shapes)


def _listed(shapes: Mapping[tuple[int, int], int]) -> str:
    commonest = sorted(shapes, key=lambda shape: -shapes[shape])
    more = len(shapes) - 3
    return ", ".join(f"{h}×{w}" for h, w in commonest[:3]) + (f" and {more} other shapes" if more > 0 else "")


def check_codec(folder: Place, values: dict[str, Any]) -> None:
    """Raises DamagedFile where a manifest's `codec` is none."""
    if wrong := misfit(values, CODEC):
        raise DamagedFile(f"how {folder} codes texts and images is damaged ({wrong}): {RESTORED}")


def read_codec(folder: Place, values: dict[str, Any]) -> Codec:
    """What a manifest's `codec` stands for, from the files that are kept beside it.

    Raises:
        UserError: one of them is missing or damaged.
    """
    check_codec(folder, values)
    tokens = tokenizers.load_saved_tokenizer(folder, values["tokenizer"], values.get("tokenizer_hash"), RESTORED)
    return Codec(
        tokens,
        SpecialTokens.of(tokens),
        autoencoders.load_saved_autoencoder(folder, values["autoencoder"], values.get("autoencoder_hash")),
        LatentStatistics.from_dict(values["latents"]) if values["latents"] else None,
        values.get("bos_first", True),
    )
