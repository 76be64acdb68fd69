"""The training step in plain PyTorch: the model, losses and update of `transfusion_jax`.

Eager and in float32 unless it is told otherwise. Parameters have the same names, and the transposed matrices that
`nn.Linear` takes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pytorch_attention import ATTENTIONS
from transfusion_jax.config import Config, ModelConfig, OptimizerConfig
from transfusion_jax.data.batch import Batch
from transfusion_jax.diffusion.noise_schedules import cosine
from transfusion_jax.model.media import unpatchify

TIMESTEP_FEATURES = 256


@dataclass(frozen=True)
class TorchBatch:
    """The fields of a `Batch` that the losses read, as tensors."""

    tokens: Tensor  # [B, T]
    targets: Tensor  # [B, T]
    predicted: Tensor  # [B, T] bool, where the next token bears a loss
    positions: Tensor  # [B, T]
    mask: Any  # the spans, as the attention takes them
    is_patch: Tensor  # [B, T] bool
    latents: Tensor  # [images, h, w, c], in the order of their patches

    @classmethod
    def of(cls, batch: Batch, model: ModelConfig, attention: str = "sdpa", device: str = "cpu") -> TorchBatch:
        """From a batch of NumPy arrays with as many images as there is room for, for one of `ATTENTIONS`."""
        patches = batch.media["images"].patches.reshape(-1, model.patches, model.patch_channels)

        def tensor(array: Any) -> Tensor:
            return torch.tensor(array, device=device)

        return cls(
            tokens=tensor(batch.tokens).long(),
            targets=tensor(batch.targets).long(),
            predicted=tensor(batch.token_weight) > 0,
            positions=tensor(batch.positions),
            mask=ATTENTIONS[attention].mask(tensor(batch.span_start), tensor(batch.span_end)),
            is_patch=tensor(batch.patch) >= 0,
            latents=tensor(unpatchify(patches, model.patch_size, model.patch_grid)),
        )


def make_step(
    config: Config, batch: Batch, attention: str = "sdpa", device: str = "cpu", compiled: bool = False
) -> Callable[[], float]:
    """A training step on one batch again and again: noise, losses, gradients, clipping, update.

    Args:
        config: of the model, the losses and the optimizer; a compute dtype of bfloat16 is taken by autocasting.
        batch: see `TorchBatch.of`.
        attention: one of `ATTENTIONS`.
        device: where it runs.
        compiled: each layer by torch.compile, which FlexAttention needs in order to be fast; else eager.
    """
    tensors = TorchBatch.of(batch, config.model, attention, device)
    model = Transfusion(config.model, attention).to(device)
    optimizer = make_optimizer(model, config.optimizer)
    if compiled:
        for layer in model.layers:
            layer.compile()
    coarse = config.model.compute_dtype == "bfloat16"

    def step() -> float:
        noise = torch.randn_like(tensors.latents)
        timesteps = torch.randint(1, config.diffusion.timesteps + 1, (len(noise),), device=device)
        with torch.autocast(device, torch.bfloat16, enabled=coarse):
            loss = total_loss(model, config, tensors, noise, timesteps)
        update(model, optimizer, loss, config.optimizer.gradient_clip)
        return loss.item()

    return step


def total_loss(model: Transfusion, config: Config, batch: TorchBatch, noise: Tensor, timesteps: Tensor) -> Tensor:
    """`L_text + λ · L_image` at given noise `[images, h, w, c]` and timesteps `[images]`."""
    schedule = torch.tensor(cosine(config.diffusion.timesteps).alpha_bar, device=noise.device)
    alpha_bar = schedule[timesteps][:, None, None, None]
    noised = alpha_bar.sqrt().float() * batch.latents + (1 - alpha_bar).sqrt().float() * noise
    logits, denoised = model(batch, noised, timesteps)
    text = F.cross_entropy(logits, batch.targets[batch.predicted])
    return text + config.image_loss_weight * F.mse_loss(denoised, patchify(noise, config.model.patch_size))


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW that decays matrices only."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    return torch.optim.AdamW(
        [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        fused=True,
    )


def update(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, clip: float) -> Tensor:
    """Gradients of the loss, clipped, and one step of the optimizer; returns the norm before clipping."""
    optimizer.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return norm


class Transfusion(nn.Module):
    """The whole model."""

    def __init__(self, config: ModelConfig, attention: str = "sdpa") -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.padded_vocabulary, config.width)
        self.layers = nn.ModuleList(Layer(config, attention) for _ in range(config.layers))
        self.final_norm = nn.RMSNorm(config.width, config.norm_epsilon)
        self.text_head = nn.Linear(config.width, config.padded_vocabulary, bias=False)
        self.timestep_in = nn.Linear(TIMESTEP_FEATURES, config.width)
        self.timestep_out = nn.Linear(config.width, config.width)
        self.patch_in = nn.Linear(config.patch_channels, config.width)
        self.patch_out = nn.Linear(config.width, config.patch_channels)

    def forward(self, batch: TorchBatch, noised: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `[predicted tokens, vocabulary]`, and the predicted noise `[images, patches, channels]`."""
        timestep = self.timestep_out(F.silu(self.timestep_in(sinusoids(timesteps, TIMESTEP_FEATURES))))
        patches = self.patch_in(patchify(noised, self.config.patch_size)) + timestep[:, None]
        x = self.embedding(batch.tokens).to(patches.dtype)
        x = x.masked_scatter(batch.is_patch[..., None], patches)
        rotation = rotary(batch.positions, self.config.head_channels, self.config.rope_theta)
        for layer in self.layers:
            x = layer(x, batch.mask, rotation)
        x = self.final_norm(x)
        return self.text_head(x[batch.predicted]), self.patch_out(x[batch.is_patch]).unflatten(0, (len(noised), -1))


class Layer(nn.Module):
    """One transformer block: attention, then SwiGLU, each after a norm and added to its input."""

    def __init__(self, config: ModelConfig, attention: str) -> None:
        super().__init__()
        self.attend = ATTENTIONS[attention].attend
        width, hidden = config.width, config.mlp_width
        self.heads = config.heads
        self.attention_norm = nn.RMSNorm(width, config.norm_epsilon)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.RMSNorm(width, config.norm_epsilon)
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, mask: Any, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """`[B, T, width]` to the same."""
        normed = self.attention_norm(x)
        projected = (linear(normed) for linear in (self.query, self.key, self.value))
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in projected)
        mixed = self.attend(rotate(q, rotation), rotate(k, rotation), v, mask)
        x = x + self.output(mixed.transpose(1, 2).flatten(2))
        normed = self.mlp_norm(x)
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed))


def rotary(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines `[B, 1, T, head_dim]` of rotary embeddings."""
    frequency = theta ** (-torch.arange(0, head_dim, 2, device=positions.device) / head_dim)
    angle = (positions[:, None, :, None] * frequency).repeat(1, 1, 1, 2)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turns the pairs (i, i + head_dim / 2) of `[B, heads, T, head_dim]`."""
    cos, sin = rotation
    first, second = x.chunk(2, -1)
    return (x * cos + torch.cat([-second, first], -1) * sin).to(x.dtype)


def sinusoids(timesteps: Tensor, features: int) -> Tensor:
    """Sinusoidal features `[images, features]` of timesteps."""
    frequency = 10_000.0 ** (-torch.arange(features // 2, device=timesteps.device) / (features // 2))
    angle = timesteps[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], -1)


def patchify(latents: Tensor, size: int) -> Tensor:
    """`[images, h, w, c]` to `[images, patches, size·size·c]`."""
    grid = latents.unflatten(2, (-1, size)).unflatten(1, (-1, size))
    return grid.transpose(2, 3).flatten(3).flatten(1, 2)


def matmul_flops(size: int, rounds: int = 5) -> float:
    """FLOP/s of a float32 product of square matrices, the best of a few rounds."""
    x = torch.ones(size, size)
    best = math.inf
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        x @ x
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best
