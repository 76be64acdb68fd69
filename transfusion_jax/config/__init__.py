"""The configuration: its fields, their checks, and the way to them from a file."""

from transfusion_jax.config.architecture import Architecture
from transfusion_jax.config.autoencoder import AutoencoderRun, ImagesConfig, Losses
from transfusion_jax.config.base import GuardConfig, LoopConfig, MeshConfig, OptimizerConfig, Run
from transfusion_jax.config.checks import ConfigError, nearest, one_of, positive, require
from transfusion_jax.config.data import DataConfig, Phase, SourceConfig
from transfusion_jax.config.experiment import (
    FOLLOWS,
    OF_LATENTS,
    SUITES,
    Config,
    EvaluationConfig,
    SamplingConfig,
)
from transfusion_jax.config.model import SPECIAL_TOKENS, DiffusionConfig, ModelConfig
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

__all__ = [
    "FOLLOWS",
    "OF_LATENTS",
    "SPECIAL_TOKENS",
    "SUITES",
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
