"""Emoji as captioned images: the colour glyphs of a font and the names that Unicode gives them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from transfusion_jax.config import ConfigError
from transfusion_jax.data.readers.format import Format, ReadOptions
from transfusion_jax.data.readers.raw import Fault, InputShard, RawDocument, RawImage, RawText

FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
SIZE = 109  # the one size of Noto Color Emoji's bitmaps, which are 136 pixels wide and 128 high
WORDINGS = ("{}", "an emoji: {}")  # each a document of its own
SAMPLE = "\N{GRINNING FACE}"  # a glyph of the common width
NOWHERE = "\U0001f1e6\U0001f1e6"  # a flag that no place has

_TONE = re.compile(r" ((?:medium-)?(?:light|medium|dark)) skin tone")
_FLAG = re.compile("[\U0001f1e6-\U0001f1ff]{2}|\U0001f3f4[\U000e0020-\U000e007f]+")  # two letters, or tags
_PHRASES = (  # what the names lose with their punctuation
    (re.compile(r"(man|woman|person) (\w+ hair)"), r"\1 with \2"),
    (re.compile(r"(man|woman|person) beard"), r"\1 with a beard"),
    (re.compile(r"(man|woman|person) bald"), r"bald \1"),
)
_PEOPLE = re.compile(r"(family|kiss|couple with heart)((?: (?:man|woman|person|adult|boy|girl|child))+)")


def shards(path: str, options: ReadOptions) -> list[InputShard]:
    """Ranges of the emoji; `path` is a font's file, or empty for Debian's Noto Color Emoji.

    Raises:
        ConfigError: the font or the names are not installed, or the font's emoji cannot be drawn.
    """
    path = path or FONT
    _load_font(path)
    count, step = len(_names()), max(1, options.shard_size // len(WORDINGS))
    return [InputShard("emoji", path, begin, min(begin + step, count)) for begin in range(0, count, step)]


def read(shard: InputShard, options: ReadOptions) -> Iterator[RawDocument | Fault]:
    """A document for each wording of each emoji, or a fault for an emoji that is not one glyph of the font."""
    font = _load_font(shard.path or FONT)
    width, unknown_flag = font.getlength(SAMPLE), _draw(NOWHERE, font)
    for sequence, name in _names()[shard.begin : shard.end or None]:
        key = "-".join(f"{ord(character):x}" for character in sequence)
        left, top, right, bottom = font.getbbox(sequence)
        if top == bottom or left == right:
            yield Fault(key, "the font has no such emoji")
        elif font.getlength(sequence) != width:
            yield Fault(key, "the font draws several glyphs in place of one")
        elif np.array_equal(pixels := _draw(sequence, font), unknown_flag):
            yield Fault(key, "the font draws its flag of unknown places")
        else:
            for number, wording in enumerate(WORDINGS):
                segments = (RawText(wording.format(name)), RawImage(pixels))
                yield RawDocument(f"{key}.{number}", segments, {"emoji": sequence, "name": name})


def caption(sequence: str, unicode_name: str) -> str:
    """A plain lower-case caption from a name such as `:waving_hand_medium_skin_tone:`."""
    words = unicode_name.strip(":").replace("_", " ").lower()
    tones, words = _TONE.findall(words), _TONE.sub("", words)
    for pattern, wording in _PHRASES:
        if found := pattern.fullmatch(words):
            words = found.expand(wording)
    if found := _PEOPLE.fullmatch(words):
        words = f"{found[1]}: {', '.join(found[2].split())}"
    if _FLAG.fullmatch(sequence):
        words = f"flag of {words}"
    return ", ".join([words, *(f"{tone} skin tone" for tone in tones)])


def _names() -> list[tuple[str, str]]:
    """Every emoji that Unicode recommends for interchange, with its caption, in the order of code points."""
    try:
        from emoji import EMOJI_DATA, STATUS
    except ImportError as error:
        raise ConfigError("the names of emoji need a package: pip install 'transfusion-jax[emoji]'") from error
    whole = STATUS["fully_qualified"]
    return sorted(
        (text, caption(text, entry["en"])) for text, entry in EMOJI_DATA.items() if entry["status"] == whole
    )


def _load_font(path: str) -> ImageFont.FreeTypeFont:
    if not Path(path).is_file():
        raise ConfigError(
            f"{path} is missing: apt-get install fonts-noto-color-emoji, or name a font's file as emoji:FILE"
        )
    try:
        font = ImageFont.truetype(path, SIZE)
    except OSError as error:
        raise ConfigError(f"{path} is no font with colour bitmaps of size {SIZE}: {error}") from error
    if not np.ptp(_draw(SAMPLE, font), axis=-1).any():
        raise ConfigError(
            f"{path} draws no colours: a colour font is needed, such as Debian's fonts-noto-color-emoji"
        )
    if not features.check("raqm"):
        raise ConfigError("Pillow cannot join emoji of several code points: apt-get install libfribidi0")
    return font


def _draw(sequence: str, font: ImageFont.FreeTypeFont) -> np.ndarray:
    """Pixels `[side, side, 3]` uint8: the glyph at the middle of a white square."""
    left, top, right, bottom = font.getbbox(sequence)
    width, height = int(right - left), int(bottom - top)
    side = max(width, height)
    canvas = Image.new("RGB", (side, side), "white")
    corner = ((side - width) // 2 - left, (side - height) // 2 - top)
    ImageDraw.Draw(canvas).text(corner, sequence, font=font, embedded_color=True)
    return np.asarray(canvas)


FORMAT = Format("emoji", shards, read, options=("shard_size",))
