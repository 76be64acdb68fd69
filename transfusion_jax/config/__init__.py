"""The configuration: its fields, their checks, and the way to them from a file."""

from transfusion_jax.config.architecture import Architecture
from transfusion_jax.config.autoencoder import AutoencoderRun, ImagesConfig, Losses
from transfusion_jax.config.checks import ConfigError, nearest, one_of, positive, require
from transfusion_jax.config.fields import (
    OF_LATENTS,
    SPECIAL_TOKENS,
    Config,
    DataConfig,
    DiffusionConfig,
    EvaluationConfig,
    ModelConfig,
    Phase,
    SamplingConfig,
    SourceConfig,
)
from transfusion_jax.config.parsing import (
    as_model,
    identity,
    identity_changes,
    identity_hash,
    kept,
    load,
    load_run,
    override,
    parse,
    parse_run,
    to_dict,
)
from transfusion_jax.config.run import GuardConfig, LoopConfig, MeshConfig, OptimizerConfig, Run

__all__ = [
    "OF_LATENTS",
    "SPECIAL_TOKENS",
    "Architecture",
    "AutoencoderRun",
    "Config",
    "ConfigError",
    "DataConfig",
    "DiffusionConfig",
    "EvaluationConfig",
    "GuardConfig",
    "ImagesConfig",
    "LoopConfig",
    "Losses",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "Phase",
    "Run",
    "SamplingConfig",
    "SourceConfig",
    "as_model",
    "identity",
    "identity_changes",
    "identity_hash",
    "kept",
    "load",
    "load_run",
    "nearest",
    "one_of",
    "override",
    "parse",
    "parse_run",
    "positive",
    "require",
    "to_dict",
]
