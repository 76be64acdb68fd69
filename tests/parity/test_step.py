"""The training step against the one in plain PyTorch that the benchmark compares it with."""

import dataclasses

import jax
import numpy as np
import pytest
import torch

import pytorch_step
import training
from helpers import as_latents, latents, media_of
from transfusion_jax.config import ModelConfig, OptimizerConfig
from transfusion_jax.diffusion import objective
from transfusion_jax.parallel.mesh import make_mesh
from transfusion_jax.tasks.transfusion import TransfusionTask
from transfusion_jax.training.step.state import RunContext, create_state
from transfusion_jax.training.step.step import make_step

pytestmark = pytest.mark.parity

MODEL = ModelConfig(
    width=64,
    layers=3,
    heads=4,
    mlp_width=176,
    vocabulary=251,
    latent_shape=(32, 32, 8),
    patch_size=2,
    compute_dtype="float32",
)
OPTIMIZER = OptimizerConfig(
    learning_rate=1e-2,
    warmup_steps=0,
    epsilon=1e-3,  # so large that the update is a smooth function of the gradient
    gradient_clip=0.5,
)
CONFIG = dataclasses.replace(training.make_config(MODEL, rows=2, context=768), optimizer=OPTIMIZER)


def test_losses_gradient_norms_and_updated_parameters_equal_pytorchs(monkeypatch):
    random = np.random.default_rng(0)
    batch = training.make_batch(CONFIG)
    noise = random.normal(size=latents(batch, CONFIG).shape).astype(np.float32)
    timesteps = np.array([[1, 300], [700, 1000]])

    def corrupt(keys, media, model, diffusion, schedule):
        noised = schedule.add_noise(as_latents(media.patches, model), noise, timesteps)
        return dataclasses.replace(media, patches=media_of(noised, model).patches), noise, timesteps

    monkeypatch.setattr(objective, "corrupt", corrupt)
    task, mesh = TransfusionTask(CONFIG), make_mesh(CONFIG.mesh, jax.devices()[:1])
    step = make_step(RunContext(task, CONFIG, mesh))
    state = create_state(RunContext(task, CONFIG, mesh))
    params = jax.tree.map(lambda p: p + 0.1 * random.normal(size=p.shape).astype(np.float32), state.params)
    state = dataclasses.replace(state, params=params)

    model = pytorch_step.Transfusion(MODEL)
    model.load_state_dict(to_pytorch(params))
    optimizer = pytorch_step.make_optimizer(model, OPTIMIZER)
    their_batch = pytorch_step.TorchBatch.of(batch, MODEL)
    drawn = torch.tensor(noise).flatten(0, 1), torch.tensor(timesteps).flatten()

    for _ in range(2):  # the first step of Adam does not depend on its decay rates
        state, report = step(state, batch)
        reported = report.values
        loss = reported["loss"]
        expected_loss = pytorch_step.total_loss(model, CONFIG, their_batch, *drawn)
        expected_norm = pytorch_step.update(model, optimizer, expected_loss, OPTIMIZER.gradient_clip)
        np.testing.assert_allclose(loss, expected_loss.item(), rtol=1e-5)
        assert expected_norm > OPTIMIZER.gradient_clip
        np.testing.assert_allclose(reported["grad_norm"], expected_norm, rtol=1e-4)
    found = to_pytorch(state.params)
    for name, expected in model.named_parameters():
        np.testing.assert_allclose(found[name], expected.detach(), atol=1e-5, err_msg=name)


def to_pytorch(params):
    """Our parameters as the state dict of `pytorch_step.Transfusion`."""
    coder, layers = params["patch_coder"], params["trunk"]["layers"]
    tensors = {
        "embedding.weight": params["embedding"],
        "final_norm.weight": params["trunk"]["final_norm"]["scale"],
        "text_head.weight": params["text_head"].T,
    }
    for name in ("timestep_in", "timestep_out", "patch_in", "patch_out"):
        tensors |= {f"{name}.weight": coder[name].T, f"{name}.bias": coder[f"{name}_bias"]}
    matrices = layers["attention"] | layers["mlp"]
    for i in range(MODEL.layers):
        tensors |= {f"layers.{i}.{name}.weight": matrix[i].T for name, matrix in matrices.items()}
        for name in ("attention_norm", "mlp_norm"):
            tensors[f"layers.{i}.{name}.weight"] = layers[name]["scale"][i]
    return {name: torch.tensor(np.asarray(tensor)) for name, tensor in tensors.items()}
