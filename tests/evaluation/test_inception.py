"""Inception's features beside torch-fidelity's, which golden/inception.json holds: it needs torchvision.

`python tests/evaluation/test_inception.py` writes them anew where torch-fidelity is installed.
"""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from inceptions import GOLDEN, random_network, random_tensor
from transfusion_jax.config import ConfigError
from transfusion_jax.evaluation import inception

EVERY = 32  # the features that are kept
SIZE = 107  # in place of 299, to save time: every layer sees more than one place
IMAGES = np.random.default_rng(0).integers(0, 256, (1, SIZE, SIZE, 3)).astype(np.float32)
IMAGES[0, :50] = 255


def test_features_are_torch_fidelitys(tmp_path):
    save_file(random_network() | {"fc.weight": np.zeros((1008, 2048))}, tmp_path / "inception.safetensors")
    arrays = inception.load_tensors(tmp_path / "inception.safetensors")
    assert len(arrays) == 94 * 5
    found = np.asarray(jax.jit(inception.inception_features)(arrays, IMAGES))
    expected = np.array(json.loads(GOLDEN.read_text())["features"])
    assert found.shape == (1, inception.FEATURES)
    assert expected.std() > 0.1 * np.abs(expected).max()
    np.testing.assert_allclose(found[:, ::EVERY], expected, atol=1e-4 * np.abs(expected).max())


def test_a_file_that_lacks_a_tensor_is_refused(tmp_path):
    network = random_network()
    del network["Mixed_7c.branch_pool.bn.bias"]
    save_file(network, tmp_path / "inception.safetensors")
    with pytest.raises(ConfigError, match=r"lacks 1 tensors .* Mixed_7c.branch_pool.bn.bias"):
        inception.load_tensors(tmp_path / "inception.safetensors")


def write_golden(empty):
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Network(FeatureExtractorInceptionV3):
        INPUT_IMAGE_SIZE = SIZE

        def load_state_dict(self, tensors):
            wanted = set(inception.tensor_names())
            self.shapes = {name: list(x.shape) for name, x in self.state_dict().items() if name in wanted}
            random = {name: torch.from_numpy(random_tensor(name, shape)) for name, shape in self.shapes.items()}
            super().load_state_dict(tensors | random, strict=False)

    torch.save({}, empty)
    network = Network("inception", ["2048"], feature_extractor_weights_path=empty)
    (features,) = network(torch.from_numpy(IMAGES.astype(np.uint8)).permute(0, 3, 1, 2))
    kept = [[round(x, 6) for x in row] for row in features[:, ::EVERY].tolist()]
    GOLDEN.write_text(json.dumps({"features": kept, "shapes": network.shapes}) + "\n")


if __name__ == "__main__":
    write_golden("/tmp/empty.pth")
