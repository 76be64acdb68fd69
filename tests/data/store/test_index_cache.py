import pickle

import jax
import numpy as np
import pytest
from PIL import Image as Picture

from harms import HARMS, names
from helpers import digits_config, prepare
from transfusion_jax.data import datasets as data_loading
from transfusion_jax.data.document_rows import make_rows
from transfusion_jax.data.documents import Image
from transfusion_jax.data.readers.proportions import Proportions
from transfusion_jax.data.store.dataset import DamagedData, Prepared, PreparedDocuments
from transfusion_jax.data.stream import batches
from transfusion_jax.storage.paths import place


def upload(folder, to):
    for path in folder.rglob("*"):
        if path.is_file():
            (to / str(path.relative_to(folder))).upload(path)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRANSFUSION_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_rows_from_a_bucket_are_those_from_a_disk(digits_folder, remote, cache):
    upload(digits_folder, remote)
    found = []
    for folder, workers in ((digits_folder, 0), (remote, 0), (remote, 1)):
        config = digits_config(folder)
        data = data_loading.load_data(config)
        assert data.train.remote == (folder == remote)
        rows = make_rows(data.train, config, data.codec.special, lambda line: None)
        with batches(rows, 0, 4, slice(0, 4), workers) as stream:
            found.append([next(stream) for _ in range(3)])
    for batch in zip(*found, strict=True):
        for other in batch[1:]:
            jax.tree.map(np.testing.assert_array_equal, other, batch[0])
    assert len(list((cache / "buckets").rglob("*.npy"))) == 6 + 2


def test_long_texts_and_plain_documents_come_from_a_bucket(remote, tmp_path, cache):
    lines = [
        f'{{"text": "{word * count}"}}\n' for word, count in (("short ", 3), ("long text ", 20_000), ("x", 70))
    ]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    local = prepare(tmp_path / "data", [str(tmp_path / "a.jsonl")])
    upload(local.folder, remote)
    statistics = data_loading.plain_statistics(1)
    here, there = (
        PreparedDocuments(prepared, "train", "pixels", statistics)
        for prepared in (local, Prepared.open(str(remote)))
    )
    there = pickle.loads(pickle.dumps(there.make_ready()))
    assert [there.origin(n) for n in range(3)] == [here.origin(n) for n in range(3)]
    for number in range(3):
        np.testing.assert_array_equal(there[number].segments[0].tokens, here[number].segments[0].tokens)
    np.testing.assert_array_equal(there.text(1, 65_000, 66_000), here.text(1, 65_000, 66_000))
    assert not any(isinstance(segment, Image) for segment in there[0].segments)


def test_a_flipped_bit_of_a_record_in_a_bucket_is_found(digits_folder, remote, cache):
    upload(digits_folder, remote)
    statistics = data_loading.plain_statistics(1)
    documents = PreparedDocuments(Prepared.open(remote), "train", "pixels", statistics).make_ready()
    for kind, read in (("documents", documents.record), ("pixels", documents.latents)):
        path = remote / f"{kind}-00000.array_record"
        whole, (begin, end) = path.read_bytes(), documents._place(kind)[7].tolist()
        for at in range(begin + 40, end, (end - begin) // 7):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
            with pytest.raises(DamagedData, match=rf"{kind}-00000\.array_record is damaged"):
                read(7)
        path.write_bytes(whole)
        read(7)


def test_images_of_their_own_proportions_come_from_a_bucket(remote, tmp_path, cache):
    for name, shape in (("a", (4, 8)), ("b", (8, 4)), ("c", (8, 8))):
        Picture.fromarray(np.full(shape, len(name), np.uint8)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(name)
    options = dict(native=Proportions(area=64, multiple=4), channels=1)
    local = prepare(tmp_path / "data", [str(tmp_path)], **options)
    upload(local.folder, remote)
    statistics = data_loading.plain_statistics(1)
    here, there = (
        PreparedDocuments(prepared, "train", "pixels", statistics).make_ready()
        for prepared in (local, Prepared.open(str(remote)))
    )
    assert there.areas(slice(None)).tolist() == here.areas(slice(None)).tolist() == [32, 32, 64]
    for number in range(3):
        np.testing.assert_array_equal(there.latents(number)[0], here.latents(number)[0])
    assert len(list((cache / "buckets").rglob("*.npy"))) == 8 + 2  # columns, and places of documents and of pixels


@pytest.mark.parametrize("harm", HARMS)
def test_what_a_host_keeps_is_fetched_again_where_it_is_damaged(harm, digits_folder, remote, cache):
    upload(digits_folder, remote)
    statistics = data_loading.plain_statistics(1)

    def read():
        documents = PreparedDocuments(Prepared.open(remote), "train", "pixels", statistics).make_ready()
        return [documents.images.tobytes(), documents.first_record(9), np.stack(documents.latents(9)).tobytes()]

    expected = read()
    for name in names(cache):
        HARMS[harm](cache / name, cache / "none")
        assert read() == expected
        assert len(names(cache)) == 6 + 2 + 3


def test_an_index_that_is_damaged_in_the_bucket_is_refused(digits_folder, remote, cache):
    upload(digits_folder, remote)
    path = remote / "index/train/text_lengths.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    with pytest.raises(DamagedData, match=r"text_lengths\.npy: its hash is not the one in data\.json"):
        PreparedDocuments(Prepared.open(remote), "train", "pixels", None).make_ready()


def test_what_is_missing_or_damaged_in_a_bucket_is_named(digits_folder, remote, cache):
    upload(digits_folder, remote)
    statistics = data_loading.plain_statistics(1)
    documents = PreparedDocuments(Prepared.open(remote), "train", "pixels", statistics).make_ready()
    pixels = remote / "pixels-00000.array_record"
    whole = pixels.read_bytes()
    pixels.write_bytes(b"\0" * len(whole))
    with pytest.raises(DamagedData, match=r"pixels-00000\.array_record is damaged: delete shards/00000\.json"):
        documents.latents(0)
    pixels.unlink()
    with pytest.raises(DamagedData, match=r"pixels-00000\.array_record is damaged"):
        documents.latents(0)
    (remote / "data.json").write_text((remote / "data.json").read_text() + " \n")  # the same manifest
    (remote / "index/train/record.npy").unlink()
    manifest = Prepared.open(remote).manifest | {"schema": 1, "anew": True}
    with pytest.raises(DamagedData, match=r"record\.npy is missing: copy or prepare the data again"):
        _ = Prepared(remote, manifest).index
    with pytest.raises(DamagedData, match=r"pixels-00000\.array_record is missing"):
        PreparedDocuments(Prepared(place(str(remote)), manifest), "train", "pixels", statistics).latents(0)
