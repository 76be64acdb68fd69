"""Emoji of a small font that is made here; and, slow, of Debian's Noto Color Emoji."""

import io
import sys

import numpy as np
import pytest
from fontTools.feaLib.builder import addOpenTypeFeaturesFromString
from fontTools.fontBuilder import FontBuilder
from fontTools.ttLib import newTable
from fontTools.ttLib.tables import _g_l_y_f, sbixGlyph
from fontTools.ttLib.tables.sbixStrike import Strike
from PIL import Image, ImageColor, ImageFont

from transfusion_jax.config import ConfigError
from transfusion_jax.data.readers import emoji
from transfusion_jax.data.readers.format import ReadOptions
from transfusion_jax.data.readers.raw import Fault, InputShard

COLOURS = {  # of the font's pictures, and their glyphs' names: sequences of one colour share a glyph
    "😀": "yellow",
    "🌭": "brown",
    "❤": "red",
    "👯": "pink",
    "🏻": "tan",
    "👋": "gold",
    "👋🏻": "beige",
    "👩": "orchid",
    "💻": "grey",
    "👩‍💻": "purple",
    "🇫🇷": "blue",
    emoji.NOWHERE: "black",
    "🇽🇽": "black",
    "🌒": "damaged",
}


@pytest.mark.parametrize(
    ("sequence", "caption"),
    [
        ("😀", "grinning face"),
        ("🆗", "ok button"),
        ("👋🏽", "waving hand, medium skin tone"),
        ("👩🏾‍🤝‍👩🏼", "women holding hands, medium-dark skin tone, medium-light skin tone"),
        ("👨🏿‍🦳", "man with white hair, dark skin tone"),
        ("👨‍🦲", "bald man"),
        ("🧔🏻‍♀️", "woman with a beard, light skin tone"),
        ("👨‍👩‍👧‍👦", "family: man, woman, girl, boy"),
        ("💏", "kiss"),
        ("👩🏻‍❤️‍👨🏿", "couple with heart: woman, man, light skin tone, dark skin tone"),
        ("💋", "kiss mark"),
        ("🇫🇷", "flag of france"),
        ("🏴󠁧󠁢󠁷󠁬󠁳󠁿", "flag of wales"),
        ("🏴‍☠️", "pirate flag"),
        ("#️⃣", "keycap #"),
    ],
)
def test_names_read_as_plain_english(sequence, caption):
    assert dict(emoji._names())[sequence] == caption


def test_no_two_emoji_share_a_name():
    names = [name for _, name in emoji._names()]
    assert len(names) > 3900
    assert len(set(names)) == len(names)
    assert all(name == name.lower().strip() and "_" not in name for name in names)


@pytest.fixture(scope="module")
def font(tmp_path_factory):
    """The path of a font that joins the sequences above, and has a picture for each."""
    single = {character: f"u{ord(character):X}" for character in dict.fromkeys("".join(COLOURS))}
    single |= {text: colour for text, colour in COLOURS.items() if len(text) == 1}
    builder = FontBuilder(64, isTTF=True)
    builder.setupGlyphOrder(list(dict.fromkeys([".notdef", *single.values(), *COLOURS.values()])))
    builder.setupCharacterMap({ord(character): glyph for character, glyph in single.items()})
    builder.setupGlyf({glyph: _g_l_y_f.Glyph() for glyph in builder.font.getGlyphOrder()})
    builder.setupHorizontalMetrics(dict.fromkeys(builder.font.getGlyphOrder(), (64, 0)))
    builder.setupHorizontalHeader()
    builder.setupPost()
    joined = [
        f"sub {' '.join(single[character] for character in text)} by {colour};"
        for text, colour in COLOURS.items()
        if len(text) > 1
    ]
    addOpenTypeFeaturesFromString(builder.font, f"feature ccmp {{ {' '.join(joined)} }} ccmp;")
    strike = Strike(ppem=4)
    for colour in dict.fromkeys(COLOURS.values()):
        strike.glyphs[colour] = sbixGlyph.Glyph(glyphName=colour, graphicType="png ", imageData=picture(colour))
    builder.font["sbix"] = newTable("sbix")
    builder.font["sbix"].strikes = {4: strike}
    path = tmp_path_factory.mktemp("font") / "small.ttf"
    builder.save(path)
    return str(path)


def picture(colour):
    """A PNG, 6 wide and 4 high: the left of it coloured, then a column half so, the right of it clear."""
    if colour == "damaged":
        return picture("black")[:40]
    pixels = np.zeros((4, 6, 4), np.uint8)
    pixels[..., :3] = ImageColor.getrgb(colour)
    pixels[:, :3, 3], pixels[:, 3, 3] = 255, 128
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "colour"),
    [
        ("grinning face", "yellow"),
        ("red heart", "red"),  # with a code point that says: in colour
        ("waving hand", "gold"),
        ("waving hand, light skin tone", "beige"),
        ("woman technologist", "purple"),
        ("flag of france", "blue"),
    ],
)
def test_the_picture_is_the_one_that_is_named_centred_on_white(font, name, colour):
    pixels = first(name, font).segments[1].data
    assert pixels.shape == (6, 6, 3)
    assert pixels.dtype == np.uint8
    expected = np.full((6, 6, 3), 255)
    expected[1:5, :3] = ImageColor.getrgb(colour)
    expected[1:5, 3] = (expected[1:5, 2] + 255) / 2
    np.testing.assert_allclose(pixels, expected, atol=1)


def test_each_wording_is_a_document_with_the_same_picture(font):
    plain, other = read_named("hot dog", font)
    assert [d.segments[0].text for d in (plain, other)] == ["hot dog", "an emoji: hot dog"]
    assert plain.key != other.key
    assert plain.meta == other.meta == {"emoji": "🌭", "name": "hot dog"}
    np.testing.assert_array_equal(plain.segments[1].data, other.segments[1].data)


UNDRAWN = [
    ("\U0010fffd", "10fffd", "the font has no such emoji"),
    ("😀‍🌭", "1f600-200d-1f32d", "several glyphs"),
    ("👯🏻", "1f46f-1f3fb", "several glyphs"),
    ("🇽🇽", "1f1fd-1f1fd", "flag of unknown regions"),
]


@pytest.mark.parametrize(("sequence", "key", "reason"), [*UNDRAWN, ("🌒", "1f312", "picture of it is damaged")])
def test_what_the_font_cannot_draw_is_a_fault(monkeypatch, font, sequence, key, reason):
    monkeypatch.setattr(emoji, "_names", lambda: [(sequence, "no such thing")])
    (fault,) = emoji.read(InputShard(font), None)
    assert isinstance(fault, Fault)
    assert fault.key == key
    assert reason in fault.reason


@pytest.mark.parametrize("size", [1, 7, 1000, 10**6])
def test_shards_cover_every_emoji_once(font, size):
    parts = emoji.shards(font, ReadOptions(shard_size=size))
    assert [place for part in parts for place in range(part.begin, part.end)] == list(range(len(emoji._names())))
    assert all((part.end - part.begin) * len(emoji.WORDINGS) <= max(size, len(emoji.WORDINGS)) for part in parts)


def test_a_missing_font_is_named_with_its_package(tmp_path):
    with pytest.raises(ConfigError, match="apt-get install fonts-noto-color-emoji"):
        emoji.shards(str(tmp_path / "none.ttf"), ReadOptions(shard_size=100))


def test_a_file_that_is_no_font_is_refused(tmp_path):
    (tmp_path / "text.ttf").write_text("not a font")
    with pytest.raises(ConfigError, match="not a font whose glyphs"):
        emoji.shards(str(tmp_path / "text.ttf"), ReadOptions(shard_size=100))


def test_a_font_without_pictures_is_refused(tmp_path):
    (tmp_path / "plain.ttf").write_bytes(ImageFont.load_default(10).font_bytes)
    with pytest.raises(ConfigError, match="not a font whose glyphs"):
        emoji.shards(str(tmp_path / "plain.ttf"), ReadOptions(shard_size=100))


@pytest.mark.parametrize("package", ["emoji", "uharfbuzz"])
def test_missing_packages_say_what_to_install(monkeypatch, font, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=r"transfusion-jax\[emoji\]"):
        emoji.shards(font, ReadOptions(shard_size=100))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "colour"),
    [
        ("red square", (220, 50, 50)),
        ("green square", (100, 170, 60)),
        ("blue square", (50, 120, 220)),
        ("yellow circle", (250, 200, 40)),
        ("black large square", (50, 50, 50)),
        ("purple circle", (170, 70, 190)),
        ("orange circle", (245, 130, 20)),
    ],
)
def test_noto_has_the_glyph_that_is_named(name, colour):
    pixels = first(name).segments[1].data
    np.testing.assert_allclose(pixels[48:88, 48:88].mean((0, 1)), colour, atol=40)


@pytest.mark.slow
def test_notos_flags_are_whole_and_the_right_way_round():
    pixels = first("flag of france").segments[1].data.astype(int)
    left, middle, right = (pixels[40:96, columns].mean((0, 1)) for columns in np.s_[16:36, 58:78, 100:120])
    assert left[2] > left[0] + 50
    assert middle.min() > 200
    assert right[0] > right[2] + 50


@pytest.mark.slow
@pytest.mark.parametrize("name", ["keycap 1", "grinning face", "family: man, woman, girl, boy", "flag of wales"])
def test_notos_pictures_are_centred_on_white(name):
    pixels = first(name).segments[1].data
    assert pixels.shape == (136, 136, 3)
    assert pixels.dtype == np.uint8
    assert (pixels[:4] == 255).all()
    assert (pixels[-4:] == 255).all()
    rows, columns = np.nonzero((pixels < 255).any(-1))
    assert rows.min() + rows.max() == pytest.approx(135, abs=8)
    assert columns.min() + columns.max() == pytest.approx(135, abs=8)


@pytest.mark.slow
@pytest.mark.parametrize(("sequence", "key", "reason"), UNDRAWN)
def test_what_noto_cannot_draw_is_a_fault(monkeypatch, sequence, key, reason):
    test_what_the_font_cannot_draw_is_a_fault(monkeypatch, "", sequence, key, reason)


@pytest.mark.slow
def test_every_emoji_of_noto_is_drawn_or_told_of():
    (part,) = emoji.shards("", ReadOptions(shard_size=10**6))
    found = list(emoji.read(part, None))
    faults = [record for record in found if isinstance(record, Fault)]
    documents = [record for record in found if not isinstance(record, Fault)]
    assert len(documents) // len(emoji.WORDINGS) + len(faults) == len(emoji._names())
    assert len(documents) > 7000
    assert len({record.key for record in found}) == len(found)
    assert len({document.segments[0].text for document in documents}) == len(documents)


def read_named(name, font=""):
    place = [known for _, known in emoji._names()].index(name)
    return list(emoji.read(InputShard(font, place, place + 1), None))


def first(name, font=""):
    return read_named(name, font)[0]
