import dataclasses
import hashlib
import re

import numpy as np
import pytest

from helpers import prepare, tiny_config
from transfusion_jax import autoencoder
from transfusion_jax.autoencoder import Encoding
from transfusion_jax.autoencoder.kinds.dct import CosineBlocks
from transfusion_jax.cli import main
from transfusion_jax.config import ConfigError
from transfusion_jax.data.datasets import load_data
from transfusion_jax.data.prepare import Encoders, PrepareJob
from transfusion_jax.data.prepare.encode import BATCH
from transfusion_jax.data.prepare.finish import finish_folder
from transfusion_jax.data.readers import ReadOptions, input_shards
from transfusion_jax.data.store.dataset import Prepared, PreparedDocuments
from transfusion_jax.storage.atomic import read_json, write_json

pytestmark = pytest.mark.usefixtures("ready_workers")

SHAPES = ["shapes:150", "--image-size", "32", "--shard-size", "90", "--held-out", "0.2"]


@dataclasses.dataclass(frozen=True)
class Uncertain(CosineBlocks):
    """Cosine blocks that are not sure of the high frequencies."""

    def encode(self, images):
        mean = super().encode(images).mean
        return Encoding(mean=mean, log_variance=mean * 0 - np.arange(self.channels, dtype=np.float32))


def test_latents_stand_beside_the_pixels_of_each_document(tmp_path):
    assert main(["prepare", *SHAPES, "--output", str(tmp_path), "--encode", "dct-f4c12"]) == 0
    prepared = Prepared.open(tmp_path)
    assert prepared.encoding("dct-f4c12")["shape"] == [8, 8, 12]
    coder = autoencoder.load_autoencoder("dct-f4c12")
    statistics = {name: prepared.moments(name).statistics() for name in ("pixels", "dct-f4c12")}
    for split in ("train", "held_out"):
        pixels, latents = (PreparedDocuments(prepared, split, name, one) for name, one in statistics.items())
        assert len(pixels.images) > BATCH / 4
        for number in range(len(pixels.images)):
            (caption, image), (same, latent) = pixels[number].segments, latents[number].segments
            np.testing.assert_array_equal(caption.tokens, same.tokens)
            expected = coder.encode(statistics["pixels"].restore(image.latent)[None]).mean[0]
            np.testing.assert_allclose(statistics["dct-f4c12"].restore(latent.latent), expected, atol=2e-3)
    train = PreparedDocuments(prepared, "train", "dct-f4c12", statistics["dct-f4c12"])
    everything = np.stack([train[n].segments[1].latent for n in range(len(train.images))])
    np.testing.assert_allclose(everything.mean((0, 1, 2)), 0, atol=1e-3)
    np.testing.assert_allclose(everything.std((0, 1, 2)), 1, atol=1e-3)


def test_an_encoding_is_added_later_and_again_with_the_same_bytes(tmp_path):
    command = ["prepare", *SHAPES, "--output", str(tmp_path / "later")]
    assert main(command) == 0
    before = Prepared.open(tmp_path / "later").manifest
    assert main([*command, "--encode", "dct-f4c12"]) == 0
    assert main([*command[:-1], str(tmp_path / "once"), "--encode", "dct-f4c12"]) == 0
    assert contents(tmp_path / "later") == contents(tmp_path / "once")
    after = Prepared.open(tmp_path / "later").manifest
    assert after["splits"] == before["splits"]
    assert after["encodings"].keys() == {"pixels", "dct-f4c12"}
    for lost in ("shards/00001.dct-f4c12.json", "dct-f4c12-00001.array_record"):
        (tmp_path / "later" / lost).unlink()
    assert main([*command, "--encode", "dct-f4c12"]) == 0
    assert contents(tmp_path / "later") == contents(tmp_path / "once")


def test_hosts_that_share_the_work_encode_their_own_part(tmp_path):
    command = ["prepare", *SHAPES, "--encode", "dct-f4c12"]
    for host in (1, 0):
        assert main([*command, "--output", str(tmp_path / "two"), "--shard", f"{host}/2"]) == 0
    assert main([*command, "--output", str(tmp_path / "one")]) == 0
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_a_run_trains_on_the_encoding_that_its_config_names(tmp_path):
    assert main(["prepare", *SHAPES, "--output", str(tmp_path), "--encode", "dct-f4c12"]) == 0
    config = tiny_config(
        model__vocabulary=256,
        model__latent_shape=(8, 8, 12),
        data__encoding="dct-f4c12",
        data__context_length=200,
        data__sources={"shapes": {"path": str(tmp_path)}},
    )
    data = load_data(config)
    latent = data.train.sources[0].documents[3].segments[1].latent
    assert data.codec.images(latent[None]).shape == (1, 32, 32, 3)
    path = tmp_path / "data.json"
    manifest = read_json(path, "")
    manifest["encodings"]["dct-f4c12"]["autoencoder_hash"] = "other"
    write_json(path, manifest)
    with pytest.raises(ConfigError, match="were encoded with other weights"):
        load_data(config)


def test_log_variances_are_stored_beside_the_means_if_asked(tmp_path):
    folder, job = shapes(tmp_path)
    with Encoders(folder, job, Uncertain(4, 12), log_variances=True) as encoders:
        encoders.submit(0)
        encoders.finish(print)
    finish_folder(folder, job)
    prepared = Prepared.open(folder)
    one = prepared.moments("dct-f4c12-log-variance").statistics()
    np.testing.assert_allclose(one.mean, -np.arange(12))
    np.testing.assert_allclose(one.std, 0, atol=1e-3)


def test_encoding_says_how_fast_it_is_and_counts_only_what_it_does(tmp_path, capsys):
    command = ["prepare", *SHAPES, "--output", str(tmp_path)]
    assert main(command) == 0
    assert "encoded" not in capsys.readouterr().out
    line = r"(\d)/(\d) shards encoded  (\d+) images  [\d,]+ images/s  0m 00s left"
    assert main([*command, "--encode", "dct-f4c12"]) == 0
    assert re.findall(line, capsys.readouterr().out)[-1] == ("2", "2", "150")
    (tmp_path / "shards/00001.dct-f4c12.json").unlink()
    assert main([*command, "--encode", "dct-f4c12"]) == 0
    assert re.findall(line, capsys.readouterr().out) == [("1", "1", "60")]
    assert main([*command, "--encode", "dct-f4c12"]) == 0
    assert "encoded" not in capsys.readouterr().out


def test_log_variances_that_are_not_there_are_refused(tmp_path, capsys):
    command = ["prepare", *SHAPES, "--output", str(tmp_path), "--encode", "dct-f4c12"]
    assert main([*command, "--log-variances"]) == 2
    assert "'dct-f4c12' has no log-variances" in capsys.readouterr().err
    assert main([*command[:-2], "--log-variances"]) == 2
    assert "--log-variances goes with --encode" in capsys.readouterr().err
    assert main([*command[:-1], "kl-f9"]) == 2


def test_a_second_autoencoder_in_one_command_is_refused(tmp_path, capsys):
    command = ["prepare", *SHAPES, "--output", str(tmp_path), "--encode", "dct-f4c12", "--encode", "dct-f8c8"]
    assert main(command) == 2
    assert "--encode takes one autoencoder at a time" in capsys.readouterr().err


def shapes(tmp_path):
    prepare(tmp_path / "data", ["shapes:20"], image_size=32)
    reading = ReadOptions(image_size=32)
    return tmp_path / "data", PrepareJob(tuple(input_shards(["shapes:20"], None, reading)), reading, held_out=0.0)


def contents(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
