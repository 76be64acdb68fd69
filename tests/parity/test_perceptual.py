"""The losses of autoencoders beside torchmetrics' LPIPS, transformers' ResNet, and a codebook in PyTorch."""

import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.torch import save_file

from transfusion_jax import config as configs
from transfusion_jax.autoencoder import perceptual
from transfusion_jax.data.image_stream import ImageBatch
from transfusion_jax.tasks.autoencoder import AutoencoderTask

pytestmark = pytest.mark.parity

torch = pytest.importorskip("torch")
lpips = pytest.importorskip("torchmetrics.functional.image.lpips")
transformers = pytest.importorskip("transformers")
CONFIGURATION_D = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


def images(seed, size=32):
    return np.random.default_rng(seed).uniform(-1, 1, (2, size, size, 3)).astype(np.float32)


def channels_first(x):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(x), -1, 1)))


def vgg16(**options):
    """torchvision's VGG16 by its paper's table (arXiv 1409.1556), for torchvision itself is not installed."""
    del options
    layers, before = [], 3
    for width in CONFIGURATION_D:
        if width == "M":
            layers.append(torch.nn.MaxPool2d(2, 2))
        else:
            layers += [torch.nn.Conv2d(before, width, 3, padding=1), torch.nn.ReLU(inplace=True)]
            before = width
    for layer in layers:
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight)
            torch.nn.init.normal_(layer.bias, std=0.1)
    return types.SimpleNamespace(features=torch.nn.Sequential(*layers))


@pytest.fixture
def lpips_beside(monkeypatch, tmp_path):
    """torchmetrics' LPIPS with random features and its own linear weights, and the files of both."""
    torchvision = types.ModuleType("torchvision")
    torchvision.models = types.SimpleNamespace(vgg16=vgg16)
    monkeypatch.setitem(sys.modules, "torchvision", torchvision)
    monkeypatch.setitem(sys.modules, "torchvision.models", torchvision.models)
    monkeypatch.setattr(lpips, "_TORCHVISION_AVAILABLE", True)
    torch.manual_seed(0)
    model = lpips._LPIPS(net="vgg", pnet_rand=True)
    slices = (model.net.slice1, model.net.slice2, model.net.slice3, model.net.slice4, model.net.slice5)
    features = {
        f"features.{number}.{part}": getattr(layer, part)
        for one in slices
        for number, layer in one.named_children()
        if isinstance(layer, torch.nn.Conv2d)
        for part in ("weight", "bias")
    }
    save_file(features, tmp_path / "vgg16.safetensors")
    linear = Path(lpips.__file__).parent / "lpips_models/vgg.pth"
    return model, (str(tmp_path / "vgg16.safetensors"), str(linear))


def test_lpips_is_torchmetrics(lpips_beside):
    model, files = lpips_beside
    arrays = perceptual.load_lpips(files)
    first, second = images(0), images(1)
    ours = jax.jit(perceptual.lpips)(arrays, first, second)
    theirs = model(channels_first(first), channels_first(second)).flatten()
    assert float(theirs.min()) > 1e-3  # there is something to compare
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4)


def test_the_gradient_of_lpips_is_torchmetrics(lpips_beside):
    model, files = lpips_beside
    arrays = perceptual.load_lpips(files)
    first, second = images(0), images(1)
    ours = jax.jit(jax.grad(lambda x: perceptual.lpips(arrays, x, second).sum()))(first)
    x = channels_first(first).requires_grad_()
    model(x, channels_first(second)).sum().backward()
    theirs = np.moveaxis(x.grad.numpy(), 1, -1)
    np.testing.assert_allclose(ours, theirs, atol=1e-3 * np.abs(theirs).max())


def test_resnet_stages_are_transformers(tmp_path):
    torch.manual_seed(0)
    config = transformers.ResNetConfig(downsample_in_bottleneck=False)  # ResNet-50 v1.5
    model = transformers.ResNetModel(config).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():  # norms that are not ones and zeros
            if name.endswith("normalization.running_var"):
                tensor.uniform_(0.5, 1.5)
            elif "normalization" in name and tensor.is_floating_point():
                tensor.add_(0.1 * torch.randn_like(tensor))
    tensors = {f"module.encoder_q.{theirs_to_torchvision(n)}": t for n, t in model.state_dict().items()}
    torch.save({"state_dict": tensors}, tmp_path / "moco.pth.tar")
    arrays = perceptual.load_identity((str(tmp_path / "moco.pth.tar"),))
    image = images(0, 64)
    ours = jax.jit(perceptual.resnet_stages)(arrays, image)
    mean, std = perceptual.IMAGENET
    with torch.no_grad():
        theirs = model(channels_first(((image + 1) / 2 - mean) / std), output_hidden_states=True).hidden_states[1:]
    assert [x.shape[-1] for x in ours] == [256, 512, 1024, 2048]
    for mine, other in zip(ours, theirs, strict=True):
        other = np.moveaxis(other.numpy(), 1, -1)
        np.testing.assert_allclose(mine, other, atol=1e-4 * np.abs(other).max())


def theirs_to_torchvision(name):
    """transformers' name of a tensor of ResNet-50 as torchvision's, which MoCo takes too."""
    name = name.replace("embedder.embedder.convolution", "conv1").replace("embedder.embedder.normalization", "bn1")
    parts = name.split(".")
    if parts[0] != "encoder":
        return name
    stage, block, rest = int(parts[2]) + 1, parts[4], parts[5:]
    kind = {"convolution": "conv", "normalization": "bn"}
    if rest[0] == "shortcut":
        place = f"downsample.{'0' if rest[1] == 'convolution' else '1'}"
        return f"layer{stage}.{block}.{place}.{rest[-1]}"
    return f"layer{stage}.{block}.{kind[rest[2]]}{int(rest[1]) + 1}.{rest[-1]}"


def test_the_codebook_learns_as_published():
    """VQ-VAE's loss (arXiv 1711.00937, equation 3) and its straight-through gradient, by plain PyTorch."""
    config = configs.parse_run(
        dict(
            name="vq",
            seed=0,
            steps=1,
            batch_rows=2,
            image_size=8,
            architecture=dict(
                kind="vq", channels=8, multipliers=(1, 2), blocks=1, groups=4, latent_channels=3, codebook=16
            ),
            data=dict(sources=dict(none="none")),
            losses=dict(lpips=0.0, gan=0.0, identity=0.0),
        )
    )
    task = AutoencoderTask(config)
    network, key = task.network, jax.random.key(0)
    params = jax.jit(network.init)(key)
    params["quantize"]["entries"] = jax.random.normal(key, (16, 3))
    batch = ImageBatch(images(0, 8), np.arange(2, dtype=np.int32))
    gradients, metrics = jax.jit(task.gradients)({"network": params}, batch, key, 0)

    vectors = np.asarray(network.encode(params, batch.image).mean)
    entries = torch.from_numpy(np.array(params["quantize"]["entries"])).requires_grad_()
    z = torch.from_numpy(vectors.copy()).requires_grad_()
    codes = torch.cdist(z.detach().reshape(-1, 3), entries.detach()).argmin(1)
    quantised = entries[codes].reshape(z.shape)
    codebook = ((quantised - z.detach()) ** 2).mean() + 0.25 * ((z - quantised.detach()) ** 2).mean()
    total, count = metrics.sums["loss_codebook"]
    np.testing.assert_allclose(total / count, codebook.item(), rtol=1e-4)

    def of_decoder(latents):
        return abs(network.decode(params, latents) - batch.image).mean()

    through = np.asarray(jax.grad(of_decoder)(quantised.detach().numpy()))  # what reaches the quantised vectors
    passed = z + (quantised - z).detach()
    (codebook + (passed * torch.from_numpy(through.copy())).sum()).backward()
    np.testing.assert_allclose(
        gradients["network"]["quantize"]["entries"], entries.grad.numpy(), rtol=1e-3, atol=1e-6
    )
    _, back = jax.vjp(lambda p: network.encode(p, batch.image).mean, params)
    (expected,) = back(z.grad.numpy())
    for name in ("encoder", "quant_conv"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-5),
            gradients["network"][name],
            expected[name],
        )
