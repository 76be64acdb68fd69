"""How large the pages of a Parquet column are, of which each is unpacked at once: what their headers say.

A column's own sizes are for readers to plan with, and nothing holds a file to them. Headers are structs of Thrift's
compact protocol, <https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md>.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO, Any

DICTIONARY = 2  # the type of a page that holds the values to which others point
LONGEST = 1 << 31  # what a length must be below
_TYPE, _UNPACKED, _PACKED, _ABOUT, _VALUES = 1, 2, 3, (5, 8), 1  # numbers of fields


@dataclass(frozen=True)
class Pages:
    """The pages of a column in a row group."""

    dictionary: int  # bytes, unpacked
    largest: int  # bytes of the largest page of data
    data: int  # bytes of all pages of data
    values: int  # with nulls and empty lists


def pages_of(file: IO[bytes], chunk: Any) -> Pages:
    """What the headers of a column's pages say.

    Args:
        file: the Parquet file.
        chunk: the column in a row group, as pyarrow describes it.

    Raises:
        ValueError: they are no such headers.
    """
    at = chunk.data_page_offset
    if chunk.dictionary_page_offset is not None and 0 < chunk.dictionary_page_offset < at:
        at = chunk.dictionary_page_offset
    end, dictionary, largest, data, values = at + chunk.total_compressed_size, 0, 0, 0, 0
    while at < end and values < chunk.num_values:
        file.seek(at)
        header = _struct(file)
        unpacked = _count(header, _UNPACKED)
        if header.get(_TYPE) == DICTIONARY:
            dictionary = max(dictionary, unpacked)
        else:
            largest, data = max(largest, unpacked), data + unpacked
            values += sum(_count(header[about], _VALUES) for about in _ABOUT if isinstance(header.get(about), dict))
        at = file.tell() + _count(header, _PACKED)
    return Pages(dictionary, largest, data, values)


def claimed_pages(chunk: Any) -> Pages:
    """The bounds that the sizes of a column give, which nothing holds a file to."""
    size = chunk.total_uncompressed_size
    return Pages(size if chunk.has_dictionary_page else 0, size, size, chunk.num_values)


def _count(struct: dict[int, Any], number: int) -> int:
    value = struct.get(number)
    if not isinstance(value, int) or value < 0:
        raise ValueError("a page without a size")
    return value


def _struct(file: IO[bytes], depth: int = 0) -> dict[int, Any]:
    found: dict[int, Any] = {}
    number = 0
    while head := _byte(file):
        number = number + (head >> 4) if head >> 4 else _whole(file)
        found[number] = _value(file, head & 15, depth)
    return found


def _value(file: IO[bytes], kind: int, depth: int) -> Any:
    """A value of one of the kinds that a page's header holds; what a string holds is passed over."""
    if kind in (1, 2):  # a boolean, which the kind itself tells
        return kind == 1
    if kind in (4, 5, 6):
        return _whole(file)
    if kind == 8:
        return file.seek(_length(file), 1)
    if kind == 12 and depth < 4:
        return _struct(file, depth + 1)
    raise ValueError("a page without a header")


def _whole(file: IO[bytes]) -> int:
    """A number whose lowest bit is its sign."""
    number = _length(file)
    return (number >> 1) ^ -(number & 1)


def _length(file: IO[bytes]) -> int:
    number = 0
    for place in range(10):
        byte = _byte(file)
        number |= (byte & 127) << 7 * place
        if byte < 128:
            break
    if number >= 2 * LONGEST:
        raise ValueError("a page of a false size")
    return number


def _byte(file: IO[bytes]) -> int:
    data = file.read(1)
    if not data:
        raise ValueError("a page beyond the file's end")
    return data[0]
