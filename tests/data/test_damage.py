"""Every file of prepared data, harmed in every way: what is read is as it was, or refused; and it is mended."""

import json
import re
import shutil
from contextlib import suppress

import jax
import numpy as np
import pytest

from harms import HARMS, contents, names
from transfusion_jax import autoencoder as autoencoders
from transfusion_jax.autoencoder.kinds.trained import Trained
from transfusion_jax.autoencoder.network import Network
from transfusion_jax.config.autoencoder import Architecture
from transfusion_jax.data.prepare import Encoders, PrepareJob, begin_job, encode, run_job, shard
from transfusion_jax.data.prepare.run import RUNNERS
from transfusion_jax.data.readers import ReadOptions, input_shards
from transfusion_jax.data.readers.proportions import Proportions
from transfusion_jax.data.store import inspect
from transfusion_jax.data.store.dataset import SPLITS, DamagedData, Prepared, PreparedDocuments
from transfusion_jax.data.tokenizer_files import train_byte_pairs
from transfusion_jax.errors import UserError

NATIVE = Proportions(area=64, multiple=4)
SMALL = Architecture("kl", channels=8, multipliers=(1, 2), blocks=1, groups=4, latent_channels=3)
UNVERIFIED = {"remove": r"job\.json|shards/[\d.a-z]*json", "replace": r"job\.json"}  # prepare sees to them
UNREAD = r"job\.json|quarantine\.jsonl|shards/.*"  # in training


def here(folder, job, todo, workers):
    """The runner of this process."""
    for number in todo:
        yield shard.prepare_shard(folder, job, number)


@pytest.fixture(scope="module")
def coder():
    return Trained("small", SMALL, jax.jit(Network(SMALL).init)(jax.random.key(0)))


@pytest.fixture
def prepare(coder, monkeypatch):
    """Prepares a folder of two shards with captions, pixels, latents and a tokenizer, or goes on there."""
    monkeypatch.setitem(RUNNERS, "here", here)
    tokenizer = train_byte_pairs(["a red circle", "two blue squares"], 300)

    def prepare(folder, inputs="shapes:12", native=None):
        reading = ReadOptions(image_size=8, shard_size=6, native=native)
        job = PrepareJob(tuple(input_shards([inputs], None, reading)), reading, tokenizer.name, held_out=0.3)
        begin_job(job, tokenizer, folder)
        autoencoders.save(coder, folder)
        with Encoders(folder, job, coder, log_variances=False) as encoders:
            assert run_job(folder, job, range(len(job.shards)), "here", 1, lambda progress: None, encoders)

    return prepare


def read(folder):
    """All that a run reads of it."""
    prepared = Prepared.open(folder)
    about = prepared.encoding("small")
    found = [
        prepared.tokenizer.content,
        autoencoders.load_saved_autoencoder(folder, "small", about["autoencoder_hash"]).hash(),
    ]
    for split in SPLITS:
        for encoding in ("pixels", "small"):
            statistics = prepared.moments(encoding).statistics()
            documents = PreparedDocuments(prepared, split, encoding, statistics).make_ready()
            for number in range(len(documents.images)):
                document, origin = documents[number], documents.origin(number)
                parts = [getattr(s, "tokens", getattr(s, "latent", None)).tobytes() for s in document.segments]
                sizes = int(documents.text_lengths[number]), int(documents.areas(slice(None))[number])
                found.append((split, encoding, origin, parts, *sizes))
    return found


@pytest.mark.parametrize(
    ("harm", "native"), [*((harm, None) for harm in HARMS), ("flip", NATIVE), ("replace", NATIVE)]
)
def test_each_file_is_read_as_it_was_or_refused_and_mended(harm, native, prepare, tmp_path, capsys):
    whole, other, damaged = (tmp_path / name for name in ("whole", "other", "damaged"))
    prepare(whole, native=native)
    prepare(other, "shapes:12:1", native)
    expected, bytes_of = read(whole), contents(whole)
    assert len(bytes_of) > 20
    wrong = []
    for name in names(whole):
        shutil.copytree(whole, damaged)
        HARMS[harm](damaged / name, other / name)
        if contents(damaged) == bytes_of:  # the other folder's is the same
            shutil.rmtree(damaged)
            continue
        same, said = False, ""
        try:
            same = read(damaged) == expected
        except UserError as error:
            said = str(error)
        if not same and not said:
            wrong.append(f"{name} is read otherwise")
        if said and name.partition("/")[0] not in said and name != "data.json":
            wrong.append(f"{name} is not named: {said}")
        spare = same and name.endswith(".array_record")  # a bit between the records
        if not said and not spare and not re.fullmatch(UNREAD, name):
            wrong.append(f"{name} is not refused")
        found = []
        with suppress(UserError):
            found = inspect.damaged_shards(Prepared.open(damaged))
            if not found and not re.fullmatch(UNVERIFIED.get(harm, ""), name):
                wrong.append(f"{name} is not found by doctor --verify")
        for line in found:
            if asked := re.search(r"delete (shards/\S+\.json)", line):
                (damaged / asked[1]).unlink(missing_ok=True)
        if name == "job.json":
            with pytest.raises(
                UserError, match=r"job\.json is damaged|was begun with other inputs|holds other files"
            ):
                prepare(damaged, native=native)
        else:
            prepare(damaged, native=native)
            if contents(damaged) != bytes_of:
                wrong.append(f"{name} is not mended")
        shutil.rmtree(damaged)
    assert not wrong


def test_each_flipped_bit_of_a_record_is_found(prepare, tmp_path):
    """Bits of the first records and of what says where they are, on a disk."""
    prepare(tmp_path)
    expected, random = read(tmp_path), np.random.default_rng(0)
    for kind in ("documents", "pixels", "small"):
        path = tmp_path / f"{kind}-00000.array_record"
        whole, refused = path.read_bytes(), 0
        for place in [*random.integers(64, 600, 12), *random.integers(65_536, len(whole), 4)]:
            data = bytearray(whole)
            data[place] ^= 1 << random.integers(8)
            path.write_bytes(data)
            try:
                assert read(tmp_path) == expected
            except DamagedData:
                refused += 1
        assert refused >= 10
        path.write_bytes(whole)


def test_shards_that_change_places_are_refused(prepare, tmp_path):
    prepare(tmp_path)
    for kind in ("documents", "pixels", "small"):
        a, b = (tmp_path / f"{kind}-0000{number}.array_record" for number in range(2))
        for one, two in ((a, "kept"), (b, a.name), (tmp_path / "kept", b.name)):
            one.rename(tmp_path / two)
        with pytest.raises(DamagedData, match=rf"{kind}-0000.\.array_record is damaged.*is not what was written"):
            read(tmp_path)
        for one, two in ((a, "kept"), (b, a.name), (tmp_path / "kept", b.name)):
            one.rename(tmp_path / two)
    read(tmp_path)


def test_a_document_that_is_not_there_is_named(prepare, tmp_path):
    prepare(tmp_path)
    documents = PreparedDocuments(Prepared.open(tmp_path), "train", "pixels", None)
    for number in (len(documents.images), 2**40, -1):
        with pytest.raises(
            DamagedData, match=rf"document {number} was requested, but .* holds {len(documents.images)}"
        ):
            documents.first_record(number)


@pytest.fixture
def former(prepare, tmp_path, monkeypatch):
    """Data that a former version prepared: without hashes but those of large files."""
    monkeypatch.setattr(shard, "sealed_record", lambda data, belongs, number: data)
    monkeypatch.setattr(encode, "unseal", lambda data, belongs, number: data)
    prepare(tmp_path / "former")
    monkeypatch.undo()
    for path in (tmp_path / "former").rglob("*.json"):
        values = json.loads(path.read_text())
        for name in ("digest", "index", "quarantine_hash", "sealed", "hashes", "bytes", "tokenizer_hash"):
            values.pop(name, None)
        for about in values.get("shards", ()) if path.name == "data.json" else ():
            del about["sealed"]
        if path.name != "tokenizer.json":
            path.write_text(json.dumps(values))
    return tmp_path / "former"


def test_what_a_former_version_prepared_is_read_and_checked_as_far_as_can_be(former, prepare, tmp_path):
    expected = read(former)
    assert inspect.damaged_shards(Prepared.open(former)) == []
    for column in ("record", "text_lengths", "images"):
        path = former / f"index/train/{column}.npy"
        whole = path.read_bytes()
        data = np.load(path)
        data[1] += 1000
        np.save(path, data)
        with pytest.raises(DamagedData, match=rf"index of .* is damaged .*{column}\.npy"):
            read(former)
        path.write_bytes(whole)
    assert read(former) == expected
