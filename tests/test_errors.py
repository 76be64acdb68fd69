import json

import pytest

from transfusion_jax.errors import STEERING, ConfigError, encodable, printable
from transfusion_jax.storage.atomic import json_text

STEERS = [
    *map(chr, (*range(9), *range(0xB, 0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))),
    *("\u061c", "\u200e", "\u200f", "\u2028", "\u2029", "\ud800", "\udbff", "\udc00", "\udce9", "\udfff"),
]
PLAIN = ["a line\n\tand an indent", "ça va, 日本語 👩\u200d🚀 e\u0301", "\\x1b"]


@pytest.mark.parametrize("character", STEERS, ids=ascii)
def test_what_steers_a_terminal_is_shown_and_not_sent(character):
    shown = printable(f"a{character}b")
    assert shown.isascii()
    assert shown.isprintable()
    assert len(shown) > 3
    assert str(ConfigError(f"a{character}b")) == shown


@pytest.mark.parametrize("text", PLAIN)
def test_other_texts_are_printed_as_they_are(text):
    assert printable(text) == encodable(text) == str(ConfigError(text)) == text


def test_bytes_of_a_name_are_shown_as_bytes_and_other_halves_by_number():
    assert printable("caf\udce9.png") == encodable("caf\udce9.png") == r"caf\xe9.png"
    assert printable("\ud83d") == encodable("\ud83d") == r"\ud83d"
    assert encodable("\x1b[31m\u202e") == "\x1b[31m\u202e"


@pytest.mark.parametrize("text", [*STEERS, *PLAIN], ids=ascii)
def test_json_holds_every_text_and_steers_nothing(text):
    written = json_text({text: [text]})
    assert not STEERING.search(written)
    assert json.loads(written.encode()) == {text: [text]}
