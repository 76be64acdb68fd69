"""The configuration: its fields, their checks, and the way to them from a file."""

from transfusion_jax.config.checks import ConfigError, nearest, one_of, positive, require
from transfusion_jax.config.fields import (
    SPECIAL_TOKENS,
    Config,
    DataConfig,
    DiffusionConfig,
    EvaluationConfig,
    GuardConfig,
    LoopConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    SamplingConfig,
    SourceConfig,
)
from transfusion_jax.config.parsing import (
    identity,
    identity_changes,
    identity_hash,
    load,
    override,
    parse,
    to_dict,
)

__all__ = [
    "SPECIAL_TOKENS",
    "Config",
    "ConfigError",
    "DataConfig",
    "DiffusionConfig",
    "EvaluationConfig",
    "GuardConfig",
    "LoopConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "SamplingConfig",
    "SourceConfig",
    "identity",
    "identity_changes",
    "identity_hash",
    "load",
    "nearest",
    "one_of",
    "override",
    "parse",
    "positive",
    "require",
    "to_dict",
]
