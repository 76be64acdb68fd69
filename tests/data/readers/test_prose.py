from transfusion_jax.data.readers import input_shards, prose
from transfusion_jax.data.readers.format import ReadOptions

CODE = '''
"""Short."""

def documented():
    """%s

        an indented line
    """

class Also:
    """%s"""
    "%s"
'''


def test_the_standard_library_has_enough_prose():
    (shard,) = input_shards(["prose"], None, ReadOptions())
    found = list(prose.read(shard, ReadOptions()))
    texts = [document.segments[0].text for document in found]
    assert len(texts) > 1000
    assert len(set(texts)) == len(texts)
    assert min(map(len, texts)) >= prose.SHORTEST


def test_docstrings_are_found_cleaned_and_nothing_else_is():
    long, other, string = ("a" * 130, "b" * 130, "c" * 130)
    found = [text for _, text in prose.docstrings_of(CODE % (long, other, string))]
    assert sorted(found) == sorted([f"{long}\n\nan indented line", other])
