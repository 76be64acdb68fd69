"""How large the pages of a Parquet column are, of which each is unpacked at once: what their headers say.

A column's own sizes are for readers to plan with, and nothing holds a file to them. Headers are structs of Thrift's
compact protocol, <https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md>.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO, Any

DICTIONARY = 2  # the type of a page that holds the values to which others point
SWELLS = 4  # times: a page of images, however large it is, takes no more memory than disk
FIELDS = 64  # of a header and of each of its parts, which have 8 at most today
LONGEST = 1 << 31  # what a length must be below
_TYPE, _UNPACKED, _PACKED, _ABOUT, _ENTRIES, _VALUES = 1, 2, 3, (5, 8), (7,), 1  # numbers of fields


_ENCODINGS = {5: 2, 8: 4}  # by the field about a page of data: its encoding
_DELTA_BYTE_ARRAY = 7  # of the encodings


@dataclass(frozen=True)
class Pages:
    """The pages of a column in a row group."""

    dictionary: int  # bytes, unpacked
    largest: int  # bytes of the largest page of data
    data: int  # bytes of all pages of data
    values: int  # with nulls and empty lists
    entries: int  # of the dictionary
    shared: int  # bytes that values may have at most which repeat the beginnings of those before them
    swollen: (
        int  # bytes of the dictionary and the largest page of data, where they are `SWELLS` times what is stored
    )


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
    end = at + chunk.total_compressed_size
    dictionary = largest = data = values = entries = shared = 0
    swollen = {True: 0, False: 0}  # by whether it is the dictionary
    while at < end and values < chunk.num_values:
        file.seek(at)
        header = _struct(file)
        unpacked, packed, points = (
            _count(header, _UNPACKED),
            _count(header, _PACKED),
            header.get(_TYPE) == DICTIONARY,
        )
        if points:
            dictionary, entries = max(dictionary, unpacked), entries + _values(header, _ENTRIES)
        else:
            count = _values(header, _ABOUT)
            largest, data, values = max(largest, unpacked), data + unpacked, values + count
            shared += count * unpacked * _repeats(header)
        if unpacked > SWELLS * packed:
            swollen[points] = max(swollen[points], unpacked)
        at = file.tell() + packed
    return Pages(dictionary, largest, data, values, entries, shared, sum(swollen.values()))


def claimed_pages(chunk: Any) -> Pages:
    """The bounds that the sizes of a column give, which nothing holds a file to."""
    size = chunk.total_uncompressed_size
    return Pages(size if chunk.has_dictionary_page else 0, size, size, chunk.num_values, 0, 0, swollen=size)


def _repeats(header: dict[int, Any]) -> bool:
    """Whether the values of a page repeat the beginnings of those before them."""
    about = [(header.get(field), encoding) for field, encoding in _ENCODINGS.items()]
    return any(isinstance(page, dict) and page.get(number) == _DELTA_BYTE_ARRAY for page, number in about)


def _values(header: dict[int, Any], about: tuple[int, ...]) -> int:
    return sum(_count(header[field], _VALUES) for field in about if isinstance(header.get(field), dict))


def _count(struct: dict[int, Any], number: int) -> int:
    value = struct.get(number)
    if not isinstance(value, int) or value < 0:
        raise ValueError("a page without a size")
    return value


def _struct(file: IO[bytes], depth: int = 0) -> dict[int, Any]:
    found: dict[int, Any] = {}
    number = 0
    for _ in range(FIELDS):
        if not (head := _byte(file)):
            return found
        number = number + (head >> 4) if head >> 4 else _whole(file)
        found[number] = _value(file, head & 15, depth)
    raise ValueError("a page's header without an end")


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
