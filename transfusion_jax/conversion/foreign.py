"""Language models of Hugging Face's and llama.cpp's as runs of ours to begin from."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from transfusion_jax import config as configs
from transfusion_jax.autoencoder.kinds.identity import Identity
from transfusion_jax.config import Config, ConfigError, ModelConfig, require
from transfusion_jax.conversion import gguf_files
from transfusion_jax.conversion.architectures import text_architecture
from transfusion_jax.conversion.hugging_face import read_chat_template, read_tokenizer
from transfusion_jax.conversion.language_models import LanguageModel, language_model_leaves
from transfusion_jax.conversion.runs import Imported
from transfusion_jax.conversion.shards import Tensors
from transfusion_jax.data.datasets import Codec
from transfusion_jax.data.tokenizer import SpecialTokens, Tokenizer
from transfusion_jax.model.transfusion import Model
from transfusion_jax.parallel.tree import leaf_names
from transfusion_jax.training.checkpoint.chunks import Leaf
from transfusion_jax.training.checkpoint.partial_load import FUNCTION, other_functions

RECIPE: dict[str, Any] = {  # the paper's
    "name": "language-model",
    "seed": 0,
    "steps": 250_000,
    "batch_rows": 512,
    "model": {"latent_shape": (32, 32, 8), "patch_size": 2, "remat": "full"},
    "data": {"encoding": "kl-f8c8"},
    "sampling": {"steps": 250},
}
ANY_SIZES = {"width": 32, "layers": 1, "heads": 2, "mlp_width": 32, "vocabulary": 256}  # they are replaced
# A run of imported weights has no average of them, and no weights of patches alone: these may be copied later.
ALONE = ["optimizer.ema_decay=0.0", "optimizer.frozen=none", "model.modality_weights=shared"]


@dataclass(frozen=True)
class OpenedModel:
    """A language model whose weights have not been read yet."""

    path: Path
    model: LanguageModel
    tokenizer: Tokenizer
    bos_first: bool  # whether texts begin with BOS
    chat_template: str | None

    @property
    def sizes(self) -> dict[str, Any]:
        """The fields of a `ModelConfig` that it gives."""
        return self.model.model | {"vocabulary": self.tokenizer.size}

    def config(self, base: Config | None, overrides: list[str]) -> Config:
        """A config with the model's sizes.

        Args:
            base: the rest; None: the paper's recipe, its context cut to the longest that the model learnt from.
            overrides: of fields, as `a.b=value`.
        """
        start = base or configs.parse({**RECIPE, "model": {**ANY_SIZES, **RECIPE["model"]}})
        values = configs.to_dict(start)
        values["model"] |= self.sizes
        values["optimizer"]["ema_decay"] = 0.0  # the run holds one set of weights
        context = min(start.data.context_length, self.model.longest)
        cut = [] if base else [f"data.context_length={context}"]
        return configs.override(configs.parse(values), [*cut, *overrides])

    def imported(self, config: Config) -> Imported:
        """Its weights under our names, and a fresh patch coder.

        Args:
            config: of the model that they are for.

        Raises:
            ConfigError: the config gives weights another meaning, or leaves some out.
        """
        config = configs.override(config, ALONE)
        for name, value in self.sizes.items():
            found = getattr(config.model, name)
            may_differ = name in FUNCTION or (name == "tied_embeddings" and value)
            require(
                may_differ or found == value,
                f"model.{name} is {found!r}, but {value!r} in {self.path}: leave it out",
            )
        text_architecture(config.model)
        codec = Codec(self.tokenizer, SpecialTokens.of(self.tokenizer), Identity(), None, self.bos_first)
        about = {"longest_context": self.model.longest, "chat_template": self.chat_template}
        origin = f"{self.model.architecture.name}, {self.path.name}"
        return Imported(config, codec, self._leaves(config), origin, about, self._notes(config))

    def _leaves(self, config: Config) -> dict[str, Leaf]:
        known = language_model_leaves()
        fresh = Model(config.model)
        abstract = fresh.abstract_params()
        shapes = dict(zip(leaf_names(abstract), (leaf.shape for leaf in jax.tree.leaves(abstract)), strict=True))
        leaves = {name: self.model.leaf(name, shapes[name], config.model) for name in shapes if name in known}
        if "patch_coder" in abstract:
            coder = jax.jit(lambda key: {"patch_coder": fresh.init(key)["patch_coder"]})(
                jax.random.key(config.seed)
            )
            leaves |= {
                name: Leaf.of(np.asarray(leaf))
                for name, leaf in zip(leaf_names(coder), jax.tree.leaves(coder), strict=True)
            }
        return leaves

    def _notes(self, config: Config) -> tuple[str, ...]:
        model, kind, context = config.model, self.model.architecture.name, config.data.context_length
        notes = [
            f"{self.path}: {kind} of {model.layers} layers, width {model.width}, {model.heads} heads of "
            f"{model.head_channels} channels, {model.key_value_heads} of keys and values, {self.tokenizer.size} "
            "entries"
        ]
        if not self.bos_first:
            notes.append(
                "its tokenizer puts no BOS before a text, and neither do sample, serve and judge; training does"
            )
        if unknown := self.model.unknown:
            notes.append(f"not used, since no {kind} has them: {', '.join(unknown)} of config.json")
        learnt = replace(model, **{name: getattr(ModelConfig, name) for name in FUNCTION} | self.sizes)
        learnt = replace(learnt, rope_sections=model.rope_sections)  # texts have one position on all axes
        notes += other_functions(learnt, model)
        if context > self.model.longest:
            notes.append(
                f"it was trained on at most {self.model.longest} elements, and data.context_length is {context}"
            )
        return *notes, "entries that are new have the mean of the others; the patch coder is fresh"


def open_model(path: Path, log: Callable[[str], None]) -> OpenedModel:
    """Opens a folder as transformers saves it, or a GGUF file.

    Args:
        path: of either.
        log: where the tokenizer's special tokens are said.

    Raises:
        ConfigError: it is of no known kind, or cannot be represented exactly.
    """
    with tempfile.TemporaryDirectory() as name:
        if path.suffix != gguf_files.SUFFIX:
            return _open(path, path, None, log)
        tensors = gguf_files.GGUFFile.open(path)
        gguf_files.write_metadata(tensors, Path(name))
        try:
            return _open(
                path, Path(name), tensors, lambda line: log(line.replace(f"{name}/tokenizer.json", str(path)))
            )
        except ConfigError as error:  # which names the temporary folder
            raise ConfigError(str(error).replace(name, str(path))) from error


def _open(path: Path, folder: Path, tensors: Tensors | None, log: Callable[[str], None]) -> OpenedModel:
    """The model whose config.json and tokenizer lie in a folder."""
    model = LanguageModel.open(folder, tensors)
    tokenizer, bos_first = read_tokenizer(folder, model.config["vocab_size"], log)
    return OpenedModel(path, model, tokenizer, bos_first, read_chat_template(folder))
