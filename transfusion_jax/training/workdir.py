"""A run's directory: config, manifest, metrics, checkpoints. It holds all that a reader of the run needs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transfusion_jax import autoencoder, config
from transfusion_jax.config import Config, ConfigError
from transfusion_jax.data import tokenizer
from transfusion_jax.data.load import Codec, Data, LatentStatistics
from transfusion_jax.data.tokenizer import SpecialTokens
from transfusion_jax.flops import count_parameters

PACKAGES = ("transfusion-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


@dataclass(frozen=True)
class Workdir:
    """Names of a run's files, and the reading and writing of the small ones."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Orbax's directory."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One JSON object per logged step."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's events."""
        return self.path / "tensorboard"

    @property
    def samples(self) -> Path:
        """Images drawn during training."""
        return self.path / "samples"

    @property
    def evaluation(self) -> Path:
        """The last results of `transfusion evaluate`."""
        return self.path / "evaluation.json"

    def exists(self) -> bool:
        """Whether a run was started here."""
        return (self.path / "config.json").is_file()

    def begin(self, new: Config, data: Data) -> None:
        """Writes config and manifest, or holds a resumed run to those that are here.

        Raises:
            ConfigError: an identity field or the data changed; the message lists every difference.
        """
        manifest = _manifest(new, data)
        if self.exists():
            changes = config.identity_changes(self.config(), new)
            kept = self.manifest()
            changes += [
                f"{name}: {kept[name]} -> {manifest[name]}"
                for name in ("data_hash", "codec")
                if kept[name] != manifest[name]
            ]
            if changes:
                raise ConfigError(
                    f"{self.path} was started with another recipe, and a resume keeps it:\n  "
                    + "\n  ".join(changes)
                    + "\nchange these back, or train in a new --workdir"
                )
        self.path.mkdir(parents=True, exist_ok=True)
        _write_json(self.path / "manifest.json", manifest)
        _write_json(self.path / "config.json", config.to_dict(new))  # last: a run exists once this does

    def config(self) -> Config:
        """The run's config.

        Raises:
            ConfigError: there is no run here.
        """
        if not self.exists():
            raise ConfigError(f"no run in {self.path}: start one with transfusion train --workdir {self.path}")
        return config.parse(json.loads((self.path / "config.json").read_text()))

    def manifest(self) -> dict[str, Any]:
        """The run's manifest."""
        values: dict[str, Any] = json.loads((self.path / "manifest.json").read_text())
        return values

    def codec(self) -> Codec:
        """How the run coded texts and images; needs none of its data."""
        values = self.manifest()["codec"]
        tokens = tokenizer.load(values["tokenizer"])
        return Codec(
            tokens,
            SpecialTokens.after(tokens.size),
            autoencoder.load(values["autoencoder"]),
            LatentStatistics.from_dict(values["latents"]),
        )


def _manifest(new: Config, data: Data) -> dict[str, Any]:
    return {
        "versions": {package: version(package) for package in PACKAGES},
        "identity_hash": config.identity_hash(new),
        "data_hash": data.train.hash,
        "parameters": count_parameters(new.model).total,
        "codec": {
            "tokenizer": data.codec.tokenizer.name,
            "autoencoder": data.codec.autoencoder.name,
            "autoencoder_hash": data.codec.autoencoder.hash(),
            "latents": data.codec.statistics.to_dict(),
        },
    }


def _write_json(path: Path, values: Any) -> None:
    """Writes the file whole or not at all."""
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(values, indent=2) + "\n")
    beside.replace(path)
