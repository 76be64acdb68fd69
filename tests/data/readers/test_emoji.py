import sys

import numpy as np
import pytest
from PIL import ImageFont, features

from transfusion_jax.config import ConfigError
from transfusion_jax.data.readers import emoji
from transfusion_jax.data.readers.format import ReadOptions
from transfusion_jax.data.readers.raw import Fault, InputShard


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
def test_the_glyph_is_the_one_that_is_named(name, colour):
    pixels = first(name).segments[1].data
    np.testing.assert_allclose(pixels[48:88, 48:88].mean((0, 1)), colour, atol=40)


def test_a_flag_is_drawn_whole_and_the_right_way_round():
    pixels = first("flag of france").segments[1].data.astype(int)
    left, middle, right = (pixels[40:96, columns].mean((0, 1)) for columns in np.s_[16:36, 58:78, 100:120])
    assert left[2] > left[0] + 50
    assert middle.min() > 200
    assert right[0] > right[2] + 50


@pytest.mark.parametrize("name", ["keycap 1", "grinning face", "family: man, woman, girl, boy", "flag of wales"])
def test_a_picture_is_a_centred_glyph_on_white(name):
    pixels = first(name).segments[1].data
    assert pixels.shape == (136, 136, 3)
    assert pixels.dtype == np.uint8
    assert (pixels[:4] == 255).all()
    assert (pixels[-4:] == 255).all()
    rows, columns = np.nonzero((pixels < 255).any(-1))
    assert rows.min() + rows.max() == pytest.approx(135, abs=8)
    assert columns.min() + columns.max() == pytest.approx(135, abs=8)


def test_each_wording_is_a_document_with_the_same_picture():
    plain, other = read_named("hot dog")
    assert [d.segments[0].text for d in (plain, other)] == ["hot dog", "an emoji: hot dog"]
    assert plain.key != other.key
    assert plain.meta == other.meta == {"emoji": "🌭", "name": "hot dog"}
    np.testing.assert_array_equal(plain.segments[1].data, other.segments[1].data)


@pytest.mark.parametrize(
    ("sequence", "key", "reason"),
    [
        ("\U0010fffd", "10fffd", "the font has no such emoji"),
        ("😀‍🌭", "1f600-200d-1f32d", "several glyphs"),
        ("👯🏻", "1f46f-1f3fb", "several glyphs"),
        ("🇽🇽", "1f1fd-1f1fd", "flag of unknown places"),
    ],
)
def test_what_the_font_cannot_draw_is_a_fault(monkeypatch, sequence, key, reason):
    monkeypatch.setattr(emoji, "_names", lambda: [(sequence, "no such thing")])
    (fault,) = emoji.read(InputShard("emoji", ""), None)
    assert isinstance(fault, Fault)
    assert fault.key == key
    assert reason in fault.reason


@pytest.mark.parametrize("size", [1, 7, 1000, 10**6])
def test_shards_cover_every_emoji_once(size):
    parts = emoji.shards("", ReadOptions(shard_size=size))
    assert [place for part in parts for place in range(part.begin, part.end)] == list(range(len(emoji._names())))
    assert all((part.end - part.begin) * len(emoji.WORDINGS) <= max(size, len(emoji.WORDINGS)) for part in parts)


@pytest.mark.slow
def test_every_emoji_is_drawn_or_told_of():
    (part,) = emoji.shards("", ReadOptions(shard_size=10**6))
    found = list(emoji.read(part, None))
    faults = [record for record in found if isinstance(record, Fault)]
    documents = [record for record in found if not isinstance(record, Fault)]
    assert len(documents) // len(emoji.WORDINGS) + len(faults) == len(emoji._names())
    assert len(documents) > 7000
    assert len({record.key for record in found}) == len(found)
    assert len({document.segments[0].text for document in documents}) == len(documents)


def test_a_missing_font_is_named_with_its_package(tmp_path):
    with pytest.raises(ConfigError, match="apt-get install fonts-noto-color-emoji"):
        emoji.shards(str(tmp_path / "none.ttf"), ReadOptions(shard_size=100))


def test_a_file_that_is_no_font_is_refused(tmp_path):
    (tmp_path / "text.ttf").write_text("not a font")
    with pytest.raises(ConfigError, match="no font with colour bitmaps"):
        emoji.shards(str(tmp_path / "text.ttf"), ReadOptions(shard_size=100))


def test_a_font_without_colours_is_refused(tmp_path):
    (tmp_path / "plain.ttf").write_bytes(ImageFont.load_default(10).font_bytes)
    with pytest.raises(ConfigError, match="no colours"):
        emoji.shards(str(tmp_path / "plain.ttf"), ReadOptions(shard_size=100))


def test_a_pillow_that_joins_no_code_points_is_refused(monkeypatch):
    monkeypatch.setattr(features, "check", lambda name: False)
    with pytest.raises(ConfigError, match="libfribidi0"):
        emoji.shards("", ReadOptions(shard_size=100))


def test_missing_names_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "emoji", None)
    with pytest.raises(ConfigError, match=r"transfusion-jax\[emoji\]"):
        emoji.shards("", ReadOptions(shard_size=100))


def read_named(name):
    place = [known for _, known in emoji._names()].index(name)
    return list(emoji.read(InputShard("emoji", "", place, place + 1), None))


def first(name):
    return read_named(name)[0]
