"""`transfusion train --dry-run`: the resolved config, and how large it is."""

from __future__ import annotations

import argparse
import json
import sys

from transfusion_jax import config as configs
from transfusion_jax import flops
from transfusion_jax.commands.train import config_of, start_of
from transfusion_jax.config import Config
from transfusion_jax.generation.guidance import untrained_branch
from transfusion_jax.parallel import flags


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Prints, and returns the exit code."""
    config = config_of(arguments, start_of(arguments), overrides)
    print_summary(config, arguments.json)
    for line in untrained_branch(config):
        print(line, file=sys.stderr)
    return 0


def print_summary(config: Config, as_json: bool) -> None:
    """Prints the config, parameters by part, elements and FLOPs."""
    parameters = flops.count_parameters(config.model)
    elements = config.steps * config.elements_per_step
    summary = {
        "parameters": {
            "trunk": parameters.trunk,
            "patch_trunk": parameters.patch_trunk,
            "embedding": parameters.embedding,
            "text_head": parameters.text_head,
            "paper_count": parameters.paper,
            "patch_coder": parameters.patch_coder,
            "image_entries": parameters.image_entries,
            "vocabulary_padding": parameters.padding,
            "total": parameters.total,
        },
        "elements_per_step": config.elements_per_step,
        "steps": config.steps,
        "elements": elements,
        "flops_6nd": flops.six_nd(config.model, elements),
        "flags": flags.in_force(),
    }
    if as_json:
        print(json.dumps({"config": configs.to_dict(config), **summary}, indent=2))
        return
    print(json.dumps(configs.to_dict(config), indent=2))
    print(f"""
parameters
  trunk                 {parameters.trunk / 1e6:10,.1f}M
  trunk for patches     {parameters.patch_trunk / 1e6:10,.1f}M
  token embeddings      {parameters.embedding / 1e6:10,.1f}M  ({config.model.vocabulary:,} entries)
  text head             {parameters.text_head / 1e6:10,.1f}M
  as the paper counts   {parameters.paper / 1e6:10,.1f}M
  patch coder           {parameters.patch_coder / 1e6:10,.1f}M  ({parameters.patch_coder / parameters.paper:.1%})
  codes of images       {parameters.image_entries / 1e6:10,.1f}M  ({config.model.codebook:,} entries)
  vocabulary padding    {parameters.padding / 1e6:10,.1f}M  (to {config.model.padded_vocabulary:,} entries)
  total                 {parameters.total / 1e6:10,.1f}M
elements per step       {config.elements_per_step:11,}  ({config.batch_rows} rows of {config.data.context_length})
steps                   {config.steps:11,}
elements                {elements:11.3e}
training FLOPs, 6ND     {summary["flops_6nd"]:11.3e}""")
    for variable, words in flags.in_force().items():
        print(f"{variable}\n  " + "\n  ".join(words.split()))
