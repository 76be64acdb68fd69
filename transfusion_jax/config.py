"""The configuration: frozen dataclasses that check themselves, and the way from a file to them.

A config file defines `get_config(arg)` and returns an `ml_collections.ConfigDict`. `load` parses it once.
Every field is *identity* (part of what is being trained: a resume refuses a change) or *execution* (how it is
run: free to change). Identity is the default; execution fields are declared with `execution(default)`.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import hashlib
import importlib.util
import json
import math
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from transfusion_jax.errors import UserError

VOCABULARY_MULTIPLE = 128
SPECIAL_TOKENS = 5  # BOS, EOS, BOI, EOI, PAD


class ConfigError(UserError, ValueError):
    """A config, or an option, that cannot be honoured."""


def execution(default: Any) -> Any:
    """A field that says how a run is executed, not what is trained."""
    return field(default=default, metadata={"execution": True})


@dataclass(frozen=True)
class ModelConfig:
    """The transformer and its patch coder (paper, table 2 and section 3.1)."""

    width: int
    layers: int
    heads: int
    mlp_width: int  # hidden size of the SwiGLU
    vocabulary: int  # entries of the tokenizer; the special tokens and the padding come on top
    latent_shape: tuple[int, int, int]  # height, width, channels of an image after the autoencoder
    patch_size: int  # k: a patch is k×k latent pixels
    patch_coder: str = "linear"
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-5
    init_std: float = 0.02  # of every matrix; small widths learn faster with about 1/√width
    attention: str = execution("auto")  # "auto", "blocked" or "reference"
    remat: str = execution("none")  # what the backward pass recomputes: "none", "full" or "dots"
    compute_dtype: str = execution("auto")  # "auto": bfloat16 on accelerators, float32 on CPU

    def __post_init__(self) -> None:
        positive(self, "model.", "width", "layers", "heads", "mlp_width", "vocabulary", "patch_size", "init_std")
        require(self.width % self.heads == 0, f"model.width {self.width} must be a multiple of heads {self.heads}")
        require(self.head_dim % 2 == 0, f"model.width / heads is {self.head_dim}: rotary embeddings need it even")
        require(min(self.latent_shape) > 0, f"model.latent_shape must be positive, not {list(self.latent_shape)}")
        height, width, _ = self.latent_shape
        require(
            height % self.patch_size == 0 and width % self.patch_size == 0,
            f"model.patch_size {self.patch_size} must divide the latent's {height}×{width}",
        )
        one_of("model.patch_coder", self.patch_coder, ("linear",))
        one_of("model.attention", self.attention, ("auto", "blocked", "reference"))
        one_of("model.remat", self.remat, ("none", "full", "dots"))
        one_of("model.compute_dtype", self.compute_dtype, ("auto", "float32", "bfloat16"))

    @property
    def head_dim(self) -> int:
        """Channels per attention head."""
        return self.width // self.heads

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Rows and columns of patches in one image."""
        height, width, _ = self.latent_shape
        return height // self.patch_size, width // self.patch_size

    @property
    def patches(self) -> int:
        """Elements that one image takes."""
        rows, columns = self.patch_grid
        return rows * columns

    @property
    def patch_channels(self) -> int:
        """Latent values that one patch carries."""
        return self.patch_size**2 * self.latent_shape[2]

    @property
    def padded_vocabulary(self) -> int:
        """Rows of the embedding table: tokenizer, special tokens, and padding to a multiple of 128."""
        multiple = VOCABULARY_MULTIPLE
        return -(-(self.vocabulary + SPECIAL_TOKENS) // multiple) * multiple


@dataclass(frozen=True)
class SourceConfig:
    """One source of documents and its share of the training elements."""

    kind: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        one_of("data.sources.*.kind", self.kind, ("digits", "prose"))
        require(self.weight > 0, f"data.sources.*.weight must be positive, not {self.weight}")


@dataclass(frozen=True)
class DataConfig:
    """Which documents are read and how rows are made of them."""

    sources: Mapping[str, SourceConfig] = field(default_factory=dict)
    tokenizer: str = "bytes"
    autoencoder: str = "identity"
    context_length: int = 4096
    max_images: int = 8  # images per row, a static shape
    max_text: int = 0  # text elements with a loss per row, a static shape; 0: context_length
    image_first: float = 0.2  # share of image-caption pairs whose image comes first (paper, section 4.1)
    caption_dropout: float = 0.1  # share of caption-first pairs that lose their caption, for guidance
    held_out: float = 0.05  # share of each source kept from training
    workers: int = execution(0)  # loader processes; 0 reads in threads of this one

    def __post_init__(self) -> None:
        positive(self, "data.", "context_length", "max_images")
        for name in ("image_first", "caption_dropout", "held_out"):
            require(0 <= getattr(self, name) <= 1, f"data.{name} must be between 0 and 1")
        require(self.held_out < 1, "data.held_out of 1 leaves nothing to train on")
        require(0 <= self.max_text <= self.context_length, "data.max_text must lie between 0 and context_length")
        require(self.workers >= 0, "data.workers must not be negative")
        one_of("data.tokenizer", self.tokenizer, ("bytes", "llama2"))
        one_of("data.autoencoder", self.autoencoder, ("identity", "kl-f8c8"))

    @property
    def text_capacity(self) -> int:
        """`max_text` with its default resolved."""
        return self.max_text or self.context_length


@dataclass(frozen=True)
class DiffusionConfig:
    """The noise (paper, section 2.2): cosine schedule, ε objective."""

    timesteps: int = 1000
    image_first_limit: int = 1000  # highest t for an image that precedes its caption; the paper's switch is 500

    def __post_init__(self) -> None:
        positive(self, "diffusion.", "timesteps")
        require(
            1 <= self.image_first_limit <= self.timesteps,
            f"diffusion.image_first_limit must lie between 1 and timesteps ({self.timesteps})",
        )


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay (paper, section 4.1)."""

    learning_rate: float = 3e-4
    final_learning_rate: float = 1.5e-5
    warmup_steps: int = 4000
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1  # on matrices only
    gradient_clip: float = 1.0  # largest global norm; 0 turns clipping off
    ema_decay: float = 0.0  # 0 keeps no average of the weights

    def __post_init__(self) -> None:
        positive(self, "optimizer.", "learning_rate", "epsilon")
        require(self.warmup_steps >= 0, "optimizer.warmup_steps must not be negative")
        require(
            0 <= self.final_learning_rate <= self.learning_rate,
            "optimizer.final_learning_rate must lie between 0 and learning_rate",
        )
        for name in ("beta1", "beta2", "ema_decay"):
            require(0 <= getattr(self, name) < 1, f"optimizer.{name} must lie in [0, 1)")
        require(self.weight_decay >= 0, "optimizer.weight_decay must not be negative")
        require(self.gradient_clip >= 0, "optimizer.gradient_clip must not be negative")


@dataclass(frozen=True)
class GuardConfig:
    """Steps that are not taken: where loss or gradients are not finite, or jump."""

    max_in_a_row: int = execution(5)  # so many bad steps in a row stop the run
    spikes: str = "ignore"  # "ignore", "skip" or "stop"
    spike_sigmas: float = 6.0  # a spike is so many standard deviations above the recent mean
    spike_window: int = 128  # accepted steps that mean and deviation are taken over

    def __post_init__(self) -> None:
        positive(self, "guard.", "max_in_a_row", "spike_sigmas")
        one_of("guard.spikes", self.spikes, ("ignore", "skip", "stop"))
        require(self.spike_window >= 2, f"guard.spike_window must be at least 2, not {self.spike_window}")


@dataclass(frozen=True)
class SamplingConfig:
    """How images are drawn; commands can override it."""

    steps: int = execution(250)
    guidance: float = execution(3.0)

    def __post_init__(self) -> None:
        positive(self, "sampling.", "steps")
        require(self.guidance >= 0, "sampling.guidance must not be negative")


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured, and on how much."""

    suites: tuple[str, ...] = execution(("loss",))  # of `transfusion evaluate`
    during_training: tuple[str, ...] = execution(("loss",))  # every loop.evaluate_every steps
    rows: int = execution(128)  # held-out rows of the loss suite
    images: int = execution(200)  # images drawn by a suite that judges them

    def __post_init__(self) -> None:
        positive(self, "evaluation.", "rows", "images")
        for name in ("suites", "during_training"):
            for suite in getattr(self, name):
                one_of(f"evaluation.{name}", suite, ("loss", "digits"))


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; -1, on one axis at most, takes what is left."""

    data: int = execution(-1)
    fsdp: int = execution(1)
    tensor: int = execution(1)

    def __post_init__(self) -> None:
        sizes = dataclasses.astuple(self)
        require(all(n == -1 or n > 0 for n in sizes), "mesh axes must be positive, or -1 for what is left")
        require(sizes.count(-1) <= 1, "only one mesh axis can be -1")


@dataclass(frozen=True)
class LoopConfig:
    """Cadence of the training loop, in steps; 0 turns a thing off."""

    log_every: int = execution(10)
    save_every: int = execution(1000)
    keep: int = execution(3)  # newest checkpoints kept, beside the best one
    keep_every: int = execution(0)  # checkpoints at multiples of this step are kept for good
    evaluate_every: int = execution(1000)
    sample_every: int = execution(0)

    def __post_init__(self) -> None:
        positive(self, "loop.", "log_every", "save_every", "keep")
        for name in ("keep_every", "evaluate_every", "sample_every"):
            require(getattr(self, name) >= 0, f"loop.{name} must not be negative")
        require(
            self.keep_every % self.save_every == 0,
            f"loop.keep_every {self.keep_every} must be a multiple of save_every {self.save_every}",
        )


@dataclass(frozen=True)
class Config:
    """Everything that a run is made of."""

    name: str = field(metadata={"execution": True})
    seed: int
    steps: int
    batch_rows: int  # rows per step, over all devices
    model: ModelConfig
    data: DataConfig
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    image_loss_weight: float = 5.0  # λ
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    accumulation: int = execution(1)  # parts that a batch is computed in, one after the other
    mesh: MeshConfig = field(default_factory=MeshConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        positive(self, "", "steps", "batch_rows", "accumulation")
        require(self.seed >= 0, "seed must not be negative")
        require(self.image_loss_weight >= 0, "image_loss_weight must not be negative")
        require(
            self.batch_rows % self.accumulation == 0,
            f"accumulation {self.accumulation} must divide batch_rows {self.batch_rows}",
        )
        require(
            self.sampling.steps <= self.diffusion.timesteps,
            f"sampling.steps {self.sampling.steps} must not exceed diffusion.timesteps {self.diffusion.timesteps}",
        )
        smallest = self.model.patches + 3  # BOS BOI … EOI
        require(
            smallest <= self.data.context_length,
            f"an image takes {smallest} elements with its marks, and data.context_length is "
            f"{self.data.context_length}: raise it, or model.patch_size",
        )

    @property
    def elements_per_step(self) -> int:
        """Sequence positions in one optimizer step."""
        return self.batch_rows * self.data.context_length


def load(spec: str, overrides: Iterable[str] = ()) -> Config:
    """Reads `FILE[:arg]`, applies `a.b=value` overrides, and parses.

    Raises:
        ConfigError: the file, an override, a key or a value is not valid.
    """
    path, _, argument = spec.partition(":")
    values = _run_config_file(Path(path), argument)
    for entry in overrides:
        _apply_override(values, entry)
    return parse(values)


def override(config: Config, overrides: Iterable[str]) -> Config:
    """The config with `a.b=value` overrides applied.

    Raises:
        ConfigError: an override is not valid.
    """
    values = to_dict(config)
    for entry in overrides:
        _apply_override(values, entry)
    return parse(values)


def parse(values: Mapping[str, Any]) -> Config:
    """A `Config` from nested plain values, as a config file or `config.json` holds them."""
    config = _parse(Config, values, "")
    assert isinstance(config, Config)
    return config


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain values (JSON types) that `parse` reads back to the same config."""
    result: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return result


def identity(config: Config) -> dict[str, Any]:
    """The identity fields alone, as `{dotted name: value}`."""
    return dict(_identity(config, ""))


def identity_hash(config: Config) -> str:
    """A short hash of the identity fields."""
    text = json.dumps(identity(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def identity_changes(old: Config, new: Config) -> dict[str, str]:
    """Each identity field that differs, as `{dotted name: "old -> new"}`."""
    before, after = identity(old), identity(new)
    return {
        name: f"{before.get(name, 'absent')} -> {after.get(name, 'absent')}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    }


def require(condition: bool, message: str) -> None:
    """Raises `ConfigError(message)` unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def positive(config: Any, section: str, *names: str) -> None:
    """Requires the named fields to be above zero, and finite; `section` is their dotted prefix."""
    for name in names:
        value = getattr(config, name)
        require(0 < value < math.inf, f"{section}{name} must be positive, not {value}")


def one_of(name: str, value: str, choices: Iterable[str]) -> None:
    """Requires a value from the list, and names the nearest one otherwise."""
    choices = tuple(choices)
    require(value in choices, f"{name} is {value!r}; {nearest(value, choices)}")


def nearest(wrong: str, valid: Iterable[str]) -> str:
    """`did you mean …?` where something is near, the whole list otherwise."""
    valid = sorted(valid)
    close = difflib.get_close_matches(wrong, valid, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(valid)}"


def _run_config_file(path: Path, argument: str) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"no config file {path}: pass one such as configs/digits.py")
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"{path} defines no get_config(arg)")
    try:
        result = module.get_config(argument)
    except ValueError as error:  # what a config file raises for an argument that it does not know
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(result, ConfigDict):
        raise ConfigError(f"get_config of {path} must return an ml_collections.ConfigDict")
    values: dict[str, Any] = result.to_dict()
    return values


def _apply_override(values: dict[str, Any], entry: str) -> None:
    name, equals, text = entry.partition("=")
    require(bool(equals), f"--config.{name} needs a value: --config.{name}=VALUE")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = {"true": True, "false": False}.get(text.lower(), text)
    *parents, leaf = name.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        require(isinstance(values, dict), f"--config.{name}: {parent!r} holds no further fields")
    values[leaf] = value


def _parse(kind: Any, value: Any, name: str) -> Any:
    """`value` as the annotated type `kind`; `name` is its dotted path, for messages."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _parse_dataclass(kind, value, name)
    if origin is tuple:
        require(isinstance(value, list | tuple), f"{name} must be a list, not {value!r}")
        inner = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        require(len(inner) == len(value), f"{name} must have {len(inner)} entries, not {len(value)}")
        return tuple(_parse(k, v, name) for k, v in zip(inner, value, strict=True))
    if origin is Mapping:
        require(isinstance(value, dict), f"{name} must hold named entries, not {value!r}")
        return {key: _parse(arguments[1], entry, f"{name}.{key}") for key, entry in sorted(value.items())}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    matches = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    require(matches, f"{name} must be of type {kind.__name__}, not {value!r}")
    return value


def _parse_dataclass(kind: Any, value: Any, name: str) -> Any:
    require(isinstance(value, Mapping), f"{name or 'the config'} must hold named fields, not {value!r}")
    hints = typing.get_type_hints(kind)
    prefix = f"{name}." if name else ""
    for key in value:
        require(key in hints, f"unknown config key {prefix}{key}: {nearest(key, hints)}")
    parsed = {key: _parse(hints[key], entry, prefix + key) for key, entry in value.items()}
    for f in dataclasses.fields(kind):
        optional = f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING
        require(f.name in parsed or optional, f"config key {prefix}{f.name} is missing")
    return kind(**parsed)


def _identity(config: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for f in dataclasses.fields(config):
        if f.metadata.get("execution"):
            continue
        value = getattr(config, f.name)
        entries = value.items() if isinstance(value, dict) else [(None, value)]
        for key, entry in entries:
            name = f"{prefix}{f.name}" + (f".{key}" if key else "")
            if dataclasses.is_dataclass(entry):
                yield from _identity(entry, f"{name}.")
            else:
                yield name, list(entry) if isinstance(entry, tuple) else entry
