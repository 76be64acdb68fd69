"""What a JSON text holds, however it is cut into chunks, counted beside an independent count."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.exceptions import HTTPException

from transfusion_jax.serving.json_meter import JsonMeter
from transfusion_jax.serving.limits import ServerLimits

TEXTS = st.text(st.sampled_from('ab\\"{}[],: \n\t\u00e9\U0001f600/'), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
UNBOUNDED = ServerLimits(marks=10**9, depth=10**9, escapes=10**9)


@given(value=VALUES, indent=st.sampled_from([None, 3]), ascii_only=st.booleans(), cuts=st.sets(st.integers(0, 300)))
def test_each_bound_is_exact_however_the_text_is_cut(value, indent, ascii_only, cuts):
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    chunks = cut(text.encode(), cuts)
    bounds = {"marks": marks_of(value), "depth": depth_of(value), "escapes": text.count("\\")}
    taken(chunks, **bounds)
    for name, count in bounds.items():
        if count:
            with pytest.raises(HTTPException) as refused:
                taken(chunks, **bounds | {name: count - 1})
            assert refused.value.status_code == 413
            assert str(count - 1) in refused.value.detail


@given(chunks=st.lists(st.binary(max_size=30)))
def test_what_is_no_json_is_counted_too(chunks):
    taken(chunks, marks=2 * sum(map(len, chunks)), depth=10**9, escapes=10**9)


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 10**6,
        b'{"":' * 10**6,
        b"9" * 10**6,
        b"\x00" * 10**6,
        b'"\\\\"' * 10**6,
        b'{"a":0,' * 10**6,
        b'"' * 10**6,
        '"ab"'.encode("utf-16") * 10**5,
    ],
)
def test_what_would_be_long_work_is_refused_in_the_first_chunk(text):
    with pytest.raises(HTTPException):
        JsonMeter(ServerLimits()).take(text[: 2**16])


def test_long_strings_are_no_work():
    meter = JsonMeter(ServerLimits())
    for chunk in (b'{"image": "', *[b"iVBORw0KGgo" * 5000] * 100, b'"}'):
        meter.take(chunk)


def taken(chunks, **bounds):
    meter = JsonMeter(ServerLimits(**bounds))
    for chunk in chunks:
        meter.take(chunk)


def cut(text, cuts):
    ends = sorted({min(end, len(text)) for end in cuts} | {0, len(text)})
    return [text[begin:end] for begin, end in itertools.pairwise(ends)]


def marks_of(value):
    """Characters outside strings: brackets, commas, colons, quotes, numbers and words."""
    if isinstance(value, str):
        return 2
    if isinstance(value, dict):
        return 2 + max(0, len(value) - 1) + sum(2 + 1 + marks_of(v) for v in value.values())
    if isinstance(value, list):
        return 2 + max(0, len(value) - 1) + sum(map(marks_of, value))
    return len(json.dumps(value))


def depth_of(value):
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return 1 + max(map(depth_of, inner), default=0)
    return 0
