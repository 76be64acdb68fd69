import pytest

from transfusion_jax.data import prose

CODE = '''
"""Short."""

def documented():
    """%s

        an indented line
    """

async def twice():
    """%s

        an indented line
    """

class Also:
    """%s"""
    "%s"
'''


def test_the_standard_library_has_enough_prose():
    train, out = prose.load(0.05)
    texts = train + out
    assert len(texts) > 1000
    assert len(set(texts)) == len(texts)
    assert set(train).isdisjoint(out)
    assert min(map(len, texts)) >= prose.SHORTEST
    assert len(out) / len(texts) == pytest.approx(0.05, abs=0.02)


def test_docstrings_are_found_cleaned_and_nothing_else_is():
    long, other, string = ("a" * 130, "b" * 130, "c" * 130)
    found = list(prose._docstrings_of(CODE % (long, long, other, string)))
    assert sorted(found) == sorted([f"{long}\n\nan indented line"] * 2 + [other])


def test_the_split_keeps_each_text_where_it_is(monkeypatch):
    texts = [f"text number {n}" for n in range(2000)]
    before = split(monkeypatch, texts, 0.1)
    assert len(before[1]) == pytest.approx(200, abs=45)
    after = split(monkeypatch, texts[::-1][:1000] + ["new"] * 3, 0.1)
    kept = set(texts[1000:])
    assert set(after[0]) - {"new"} == kept & set(before[0])
    assert set(after[1]) - {"new"} == kept & set(before[1])
    assert (after[0] + after[1]).count("new") == 1
    assert set(before[1]) < set(split(monkeypatch, texts, 0.3)[1])  # a larger share holds out what the smaller did
    assert split(monkeypatch, texts, 0.0)[1] == []


def split(monkeypatch, texts, held_out):
    monkeypatch.setattr(prose, "_docstrings", lambda: iter(texts))
    return prose.load(held_out)
