import io
from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfusion_jax.data.readers.parquet_pages import claimed_pages, pages_of

TABLES = {
    "texts": {"text": [f"a text, number {n}" for n in range(5000)]},
    "few": {"text": ["a", "b", None] * 999},
    "lists": {"text": [["a", None], [], None, ["b"] * 500] * 99},
    "bytes": {"text": [bytes(n) for n in range(500)]},
}


def written(columns, **options):
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, data_page_size=1000, write_batch_size=50, **options)
    return file, pq.ParquetFile(file).metadata.row_group(0).column(0)


@pytest.mark.parametrize("checksums", [False, True])
@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("dictionary", [False, True])
@pytest.mark.parametrize("table", TABLES)
def test_pages_are_counted_to_the_end(table, dictionary, version, compression, checksums, tmp_path):
    options = {"data_page_version": version, "compression": compression, "write_page_checksum": checksums}
    file, chunk = written(TABLES[table], use_dictionary=dictionary, dictionary_pagesize_limit=9000, **options)
    found, bounds = pages_of(file, chunk), claimed_pages(chunk)
    assert found.values == chunk.num_values
    assert (found.dictionary > 0) == dictionary
    assert 0.6 * bounds.data < found.dictionary + found.data < bounds.data  # headers are the rest
    assert found.largest <= found.data
    assert found.dictionary <= bounds.dictionary


WHOLE, CHUNK = written(TABLES["few"])


@given(st.data())
def test_damaged_headers_are_found_or_read_to_an_end(data):
    damaged = bytearray(WHOLE.getvalue())
    for place in data.draw(st.lists(st.integers(4, 80), min_size=1, max_size=9)):
        damaged[place] = data.draw(st.integers(0, 255))
    with suppress(ValueError):
        assert pages_of(io.BytesIO(damaged), CHUNK).values >= 0


@pytest.mark.parametrize(
    "header", [b"", b"\x1c" * 999, b"\x15" + b"\xff" * 99, b"\x18" + b"\xff" * 9, b"\0", b"\x19"]
)
def test_what_is_no_header_is_a_sentence(header):
    with pytest.raises(ValueError, match="a page"):
        pages_of(io.BytesIO(b"PAR1" + header), CHUNK)


@pytest.mark.parametrize("header", [b"\x15\x02" * 999, b"\x1c" + b"\x15\x02" * 999])
def test_a_header_of_many_fields_is_not_held(header):
    with pytest.raises(ValueError, match="a page's header without an end"):
        pages_of(io.BytesIO(b"PAR1" + header), CHUNK)
