import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.readers.samples import noise, outcomes, pair, photographs, read, segments, tar
from transfusion_jax.config import READERS, ConfigError
from transfusion_jax.data.readers import (
    Fault,
    InputShard,
    RawImage,
    RawText,
    ReadOptions,
    files,
    input_shards,
    parquet,
    records,
)

FILE = {"bytes": b"i", "path": "a.png"}  # as Hugging Face writes it


def write(path, columns, **options):
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), path, **options)
    return path


@pytest.mark.parametrize(
    ("columns", "options", "expected"),
    [
        ({"text": ["a", " b\n"]}, {}, [(RawText("a"),), (RawText(" b\n"),)]),
        ({"body": ["a"]}, {"text_column": "body"}, [(RawText("a"),)]),
        ({"text": pa.array(["a", "a"]).dictionary_encode()}, {}, [(RawText("a"),)] * 2),
        ({"text": pa.array(["a"], pa.large_string())}, {}, [(RawText("a"),)]),
        ({"jpg": [b"i"], "caption": [" c "]}, {}, [pair("c", b"i")]),
        ({"jpg": pa.array([b"i"], pa.large_binary()), "txt": ["c"]}, {}, [pair("c", b"i")]),
        ({"image": [{"bytes": b"i", "path": None}], "text": ["c"]}, {}, [pair("c", b"i")]),
        ({"image": [b"i"], "captions": [["c", "d"]]}, {}, [pair("c", b"i"), pair("d", b"i")]),
        ({"image": [FILE], "mask": [FILE], "text": ["c"]}, {"image_column": "mask"}, [pair("c", b"i")]),
        ({"image": [b"i"], "image_url": ["u"], "hash": [b"h"], "text": ["c"]}, {}, [pair("c", b"i")]),
        (
            {"image": [b"no"], "left": [b"i"], "text": ["no"], "long": ["c"]},
            {"image_column": "left", "text_column": "long"},
            [pair("c", b"i")],
        ),
        ({"image": ["0001.png"], "caption": ["c"]}, {}, [pair("c", photographs()["0001.png"])]),
        ({"image": [{"path": "0001.png"}], "caption": ["c"]}, {}, [pair("c", photographs()["0001.png"])]),
        (
            {"images": [[None, b"i", b"j", None]], "texts": [["a", None, None, "b"]]},
            {},
            [(RawText("a"), RawImage(b"i"), RawImage(b"j"), RawText("b"))],
        ),
        (
            {"images": [[{"bytes": b"i", "path": "x"}, None]], "texts": [["", "b"]]},
            {},
            [(RawImage(b"i"), RawText("b"))],
        ),
    ],
)
def test_rows_are_documents(columns, options, expected, tmp_path):
    (tmp_path / "0001.png").write_bytes(photographs()["0001.png"])
    assert segments(read(write(tmp_path / "a.parquet", columns), **options)) == expected


def test_relative_paths_lie_in_the_folder_of_the_option(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/1.png").write_bytes(b"i")
    path = write(tmp_path / "a.parquet", {"image": ["1.png"], "caption": ["c"]})
    assert segments(read(path, images=str(tmp_path / "pictures"))) == [pair("c", b"i")]
    [fault] = read(path)
    assert fault.reason.startswith("image cannot be read: No such file")


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"image": [b"i", None, b"j"], "caption": ["a", "b", None]}, [pair("a", b"i"), "no image", "no caption"]),
        ({"image": [b"i", b"", b"j"], "caption": ["a", "b", " "]}, [pair("a", b"i"), "no image", "empty caption"]),
        ({"text": ["a", "", None]}, [(RawText("a"),), "empty text", "no text"]),
        ({"text": pa.array([b"a", b"\xff", b"c"])}, [(RawText("a"),), "text is not UTF-8", (RawText("c"),)]),
        (
            {"image": ["https://x.org/1.jpg", "../no.png", "\0"], "caption": ["a", "b", "c"]},
            ["image is a URL", "image lies outside the folder of the input", "image cannot be read"],
        ),
        ({"images": pa.array([None], pa.list_(pa.binary())), "texts": [["b"]]}, ["texts and images are not lists"]),
        ({"images": [[b"i"]], "texts": [["a", "b"]]}, ["lists of unequal length"]),
    ],
)
def test_bad_values_are_faults_of_their_rows(columns, expected, tmp_path):
    found = outcomes(read(write(tmp_path / "a.parquet", columns)))
    assert found == {str(number): outcome for number, outcome in enumerate(expected)}


def test_a_string_column_that_is_not_utf8_loses_that_row_only(tmp_path):
    offsets, data = pa.array([0, 1, 2, 3], pa.int32()).buffers()[1], pa.py_buffer(b"a\xffc")
    path = write(tmp_path / "a.parquet", {"text": pa.Array.from_buffers(pa.string(), 3, [None, offsets, data])})
    assert outcomes(read(path)) == {"0": (RawText("a"),), "1": "text is not UTF-8", "2": (RawText("c"),)}


def test_a_web_page_whose_image_is_only_a_url_keeps_the_rest(tmp_path):
    columns = {"images": [["https://x.org/1.jpg", None], ["https://x.org/2.jpg"]], "texts": [[None, "a"], [None]]}
    assert outcomes(read(write(tmp_path / "a.parquet", columns))) == {
        "0#0": "image is a URL",
        "0": (RawText("a"),),
        "1#0": "image is a URL",
        "1": "no segment that can be used",
    }


def test_a_place_with_both_or_with_nothing_is_a_fault_and_the_page_stays(tmp_path):
    columns = {"images": [[b"i", None], [None]], "texts": [["a", "b"], [None]]}
    assert outcomes(read(write(tmp_path / "a.parquet", columns))) == {
        "0#0": "a place must hold a text or an image",
        "0": (RawText("b"),),
        "1#0": "no text and no image",
        "1": "no segment that can be used",
    }


@pytest.mark.parametrize(
    ("columns", "options", "words"),
    [
        ({"URL": ["u"], "TEXT": ["t"]}, {}, "columns URL, TEXT: name those .*must be fetched first"),
        ({"caption": ["u"]}, {}, "columns caption: name those"),
        ({"image": [b"i"], "label": [3]}, {}, "columns image, label: name those"),
        ({"text": ["t"], "b": [3]}, {"text_column": "c"}, "--text-column is 'c', but .*columns text, b"),
        ({"text": ["t"], "b": [3]}, {"image_column": "c"}, "--image-column is 'c', but .*columns text, b"),
        ({"text": ["t"], "pictures": [b"i"]}, {}, "columns text, pictures: name those"),
        ({"text": [3]}, {}, "column 'text' cannot be used, it is int64"),
        ({"text": ["t"], "image": [3.0]}, {}, "column 'image' cannot be used, it is double"),
        ({"text": [["t"]]}, {}, "lists of images need lists"),
        (pa.table([["t"], ["u"]], ["text", "text"]), {}, "several columns are called 'text'"),
        (pa.table([[b"i"], ["u"], [b"j"]], ["jpg", "a", "jpg"]), {"text_column": "a"}, "are called 'jpg'"),
        (pa.table([["t"], ["u"]], ["a", "a"]), {"text_column": "a"}, "are called 'a'"),
        ({"text": ["t"], "image": [[b"i"]]}, {}, "lists of images need lists"),
        ({"text": ["t"], "jpg": [b"i"], "image": [b"j"]}, {}, "columns may hold images, jpg, image: name one"),
        ({"text": ["t"], "image": [FILE], "mask": [FILE]}, {}, "several columns may hold images, image, mask"),
        ({"text": ["t"], "image": ["a.png"], "source_img": [b"i"]}, {}, "may hold images, image, source_img"),
        ({"texts": [["t"]], "images": [[b"i"]], "photos": [[FILE]]}, {}, "may hold images, images, photos"),
    ],
)
def test_wrong_columns_are_a_sentence_that_names_those_present(columns, options, words, tmp_path):
    path = write(tmp_path / "a.parquet", columns)
    with pytest.raises(ConfigError, match=words):
        input_shards([str(path)], None, ReadOptions(**options))


def test_row_groups_are_shared_out_and_rows_keep_their_numbers(tmp_path):
    path = write(tmp_path / "a.parquet", {"text": [f"t{n}" for n in range(10)]}, row_group_size=2)
    options = ReadOptions(shard_size=3)
    shards = input_shards([str(path)], None, options)
    assert [(s.begin, s.end) for s in shards] == [(0, 2), (2, 4), (4, 5)]
    found = [[r.key for r in READERS["parquet"].read(shard, options)] for shard in shards]
    assert found == [list("0123"), list("4567"), list("89")]


def test_a_damaged_row_group_leaves_the_others(tmp_path):
    path = tmp_path / "a.parquet"
    texts = [f"a text, number {n}" for n in range(6)]
    write(
        path, {"text": texts}, row_group_size=2, compression="zstd", use_dictionary=False, write_page_checksum=True
    )
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset + column.total_compressed_size - 5] ^= 0xFF
    path.write_bytes(data)
    found = read(path)
    assert [r.key for r in found] == ["0", "1", "2", "4", "5"]
    assert found[2].reason.startswith("broken row group: ")


@pytest.mark.parametrize("data", [b"", b"PAR1", b"garbage" * 100, b"PAR1" + b"x" * 100 + b"PAR1"])
def test_a_file_that_is_no_parquet_is_one_fault(data, tmp_path):
    (tmp_path / "a.parquet").write_bytes(data)
    assert [r.reason.partition(":")[0] for r in read(tmp_path / "a.parquet")] == ["broken Parquet file"]
    write(tmp_path / "b.parquet", {"text": ["t"]})
    assert [isinstance(r, Fault) for r in read(tmp_path)] == [True, False]


def test_rows_are_read_in_batches_of_bounded_memory(tmp_path):
    columns = {"image": [bytes([n]) * 1_000_000 for n in range(128)], "text": ["c"] * 128}
    path = write(tmp_path / "a.parquet", columns, write_batch_size=4)  # a page is read whole: one would hold all
    before = pa.total_allocated_bytes()
    for _ in READERS["parquet"].read(InputShard(str(path)), ReadOptions()):
        assert pa.total_allocated_bytes() - before < 60_000_000  # the row group is 128 MB


def test_columns_of_one_name_that_are_not_asked_for_do_no_harm(tmp_path):
    table = pa.table([["t"], [1], [2]], ["text", "a", "a"])
    assert segments(read(write(tmp_path / "a.parquet", table))) == [(RawText("t"),)]


UNFIT = {
    "no text": pa.table({"status": [1]}),
    "numbers": pa.table({"text": [1]}),
    "one name": pa.table([["t"], ["u"]], ["text", "text"]),
    "lists": pa.table({"text": [["t"]]}),
}


@pytest.mark.parametrize("other", ["a.jsonl", "a.tar", "a.parquet"])
@pytest.mark.parametrize("wrong", UNFIT)
def test_a_table_of_other_columns_is_a_line_beside_other_inputs_and_alone_an_error(wrong, other, tmp_path):
    unfit = write(tmp_path / "stats.parquet", UNFIT[wrong])
    for inputs in (tmp_path, unfit, tmp_path / "*.parquet"):
        with pytest.raises(ConfigError, match=r"stats\.parquet has the columns"):
            read(inputs)
    if other == "a.parquet":
        write(tmp_path / other, {"text": ["t"]})
    else:
        (tmp_path / other).write_bytes(b'{"text": "t"}' if other == "a.jsonl" else tar([("0.txt", b"t")]))
    found = outcomes(read(tmp_path))
    assert found.pop("file") == "columns that cannot be used"
    assert list(found.values()) == [(RawText("t"),)]
    with pytest.raises(ConfigError, match=r"stats\.parquet has the columns"):
        read(tmp_path / other, unfit)


LIMITS = {"LARGEST": 1_000_000, "PAGE": 2_000_000, "VALUES": 5000, "PARTS": 2000}


def lists(values, times):
    """A table of pages, of which the second points to values many times, and the others to the first once."""
    texts = pa.DictionaryArray.from_arrays(pa.array([0, *times, 0], pa.int32()), values)
    offsets = [0, 1, 1 + len(times), 2 + len(times)]
    images = pa.ListArray.from_arrays(offsets, pa.nulls(len(texts), pa.binary()))
    return pa.table({"texts": pa.ListArray.from_arrays(offsets, texts), "images": images})


BOMBS = {
    "a text": ({"text": ["a", "x" * 1_500_000, "b"]}, {"use_dictionary": False}, "value too large"),
    "a text in a page that is too large": ({"text": ["a", "x" * 3_000_000]}, {"use_dictionary": False}, None),
    "pages that are too large together": (
        {"jpg": [b"i", b"x" * 1_100_000], "txt": ["a", "x" * 1_100_000]},
        {"use_dictionary": False},
        None,
    ),
    "an image": (
        {"jpg": [b"i", b"x" * 1_500_000, b"i"], "txt": list("abb")},
        {"use_dictionary": False},
        "value too",
    ),
    "an image within": (
        {"image": [{"bytes": b"x" * n, "path": None} for n in (1, 1_500_000, 1)], "text": list("abb")},
        {"use_dictionary": False},
        "value too large",
    ),
    "a dictionary": ({"text": ["a", *["x" * 3_000_000] * 9]}, {}, None),
    "a large dictionary": ({"text": ["a", "x" * 1_500_000, "b"]}, {}, "value too large"),
    "a dictionary of many": ({"text": [f"{n}" for n in range(6000)]}, {"data_page_size": 1 << 30}, None),
    "captions": ({"jpg": [b"i"] * 3, "txt": [["a"], ["a"] * 2001, ["b"]]}, {}, "too many parts"),
    "a list": (lists(pa.array(["a", "b"]), [1] * 2001), {}, "too many parts"),
    "a list of nulls": (lists(pa.array(["a"]), [None] * 2001), {}, "too many parts"),
    "a list with many others": (lists(pa.array(["a", "b"]), [1] * 6000), {}, None),
    "values that repeat each other": (
        {"texts": [["a"], ["x" * 5000] * 1500, ["b"]], "images": [[None], [None] * 1500, [b"i"]]},
        {
            "use_dictionary": False,
            "column_encoding": {"texts.list.element": "DELTA_BYTE_ARRAY", "images.list.element": "PLAIN"},
        },
        None,
    ),
    "a value in a list, many times": (lists(pa.array(["a", "x" * 5000]), [1] * 300), {}, "value too large"),
}


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("bomb", BOMBS)
def test_what_would_fill_the_memory_is_a_fault(bomb, version, tmp_path, monkeypatch):
    for name, value in LIMITS.items():
        monkeypatch.setattr({"LARGEST": files, "PARTS": records}.get(name, parquet), name, value)
    columns, options, reason = BOMBS[bomb]
    options = {"store_schema": False, "dictionary_pagesize_limit": 1 << 30, "compression": "zstd"} | options
    path = write(tmp_path / "a.parquet", columns, data_page_version=version, **options)
    found = read(path)
    if reason is None:
        [fault] = found
        assert fault.reason.startswith("row group too large: ")
        assert fault.key == "0"
    else:
        [fault] = [record for record in found if isinstance(record, Fault) and "#" not in record.key]
        assert fault.key == "1"
        assert fault.reason.startswith(reason)
        assert {record.key[0] for record in found if not isinstance(record, Fault)} == {"0", "2"}


def test_a_value_that_lists_point_to_is_unpacked_for_one_row_at_a_time(tmp_path):
    many = [(n % 3) or None for n in range(4000)]
    columns = lists(pa.array(["a", "x" * 100_000, "y"]), many)
    path = write(tmp_path / "a.parquet", columns, store_schema=False, dictionary_pagesize_limit=1 << 30)
    before = pa.total_allocated_bytes()
    for _ in READERS["parquet"].read(InputShard(str(path)), ReadOptions()):
        assert pa.total_allocated_bytes() - before < 10_000_000  # 130 MB


@pytest.mark.parametrize("dictionary", [False, True])
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_pages_that_are_as_large_on_disk_are_read(compression, dictionary, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGEST", LIMITS["LARGEST"])
    monkeypatch.setattr(parquet, "PAGE", LIMITS["PAGE"])
    images = [noise(300_000, seed=number).tobytes() for number in range(9)]
    columns = {"jpg": images, "txt": ["c"] * 9}
    path = write(tmp_path / "a.parquet", columns, use_dictionary=dictionary, compression=compression)
    assert segments(read(path)) == [pair("c", image) for image in images]
