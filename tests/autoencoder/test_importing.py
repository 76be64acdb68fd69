"""Files of tensors that are no autoencoder end in one sentence."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from transfusion_jax.autoencoder.importing import read_autoencoder
from transfusion_jax.config import ConfigError

NAMES = [
    "encoder.foo",
    "encoder.conv_in.weight",
    "encoder.down.x.y",
    "encoder.down.99999999999999999.block.0.conv1.weight",
    "encoder.down_blocks.0.resnets.0.conv1.weight",
    "decoder.up_blocks.0.x",
    "quant_conv.weight",
    "other.weight",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(), (3,), (4, 3, 3, 3)])
def test_what_is_no_autoencoder_is_refused(name, shape, tmp_path):
    path = tmp_path / "weights.safetensors"
    for others in ((), ("encoder.conv_out.weight",), ("encoder.conv_out.weight", NAMES[4])):
        save_file({each: np.zeros(shape, np.float32) for each in (name, *others)}, path)
        with pytest.raises(ConfigError):
            read_autoencoder(path, "x")
