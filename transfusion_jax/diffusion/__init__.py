"""The noise schedule, the objective and the sampler."""
