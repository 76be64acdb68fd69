"""Emoji as captioned images: the colour glyphs of a font and the names that Unicode gives them."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from transfusion_jax.config import ConfigError
from transfusion_jax.data.readers.format import Format, ReadOptions
from transfusion_jax.data.readers.raw import Fault, InputShard, RawDocument, RawImage, RawText

FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
NEEDED = "reading emoji needs more packages: pip install 'transfusion-jax[emoji]'"
WORDINGS = ("{}", "an emoji: {}")  # each a document of its own
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
        ConfigError: the font or the names are not installed, or the font has no pictures.
    """
    path = path or FONT
    _load_font(path)
    count, step = len(_names()), max(1, options.shard_size // len(WORDINGS))
    return [InputShard(path, begin, min(begin + step, count)) for begin in range(0, count, step)]


def read(shard: InputShard, options: ReadOptions) -> Iterator[RawDocument | Fault]:
    """A document for each wording of each emoji, or a fault for an emoji that is not one picture of the font."""
    font = _load_font(shard.path or FONT)
    unknown_flag = _glyphs(NOWHERE, font)
    for sequence, name in _names()[shard.begin : shard.end or None]:
        key = "-".join(f"{ord(character):x}" for character in sequence)
        glyphs = _glyphs(sequence, font)
        if len(glyphs) != 1:
            yield Fault(key, "the font has several glyphs in place of one")
        elif not (png := font.get_glyph_color_png(glyphs[0]).data):
            yield Fault(key, "the font has no such emoji")
        elif glyphs == unknown_flag:
            yield Fault(key, "the font shows its flag of unknown regions")
        elif (pixels := _on_white(png)) is None:
            yield Fault(key, "the font's picture of it is damaged")
        else:
            for number, wording in enumerate(WORDINGS):
                segments = (RawText(wording.format(name)), RawImage(pixels))
                yield RawDocument(f"{key}.{number}", segments, {"emoji": sequence, "name": name})


def caption_of_name(sequence: str, unicode_name: str) -> str:
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
        raise ConfigError(NEEDED) from error
    whole = STATUS["fully_qualified"]
    return sorted(
        (text, caption_of_name(text, entry["en"])) for text, entry in EMOJI_DATA.items() if entry["status"] == whole
    )


def _load_font(path: str) -> Any:
    """HarfBuzz's font of a file."""
    try:
        import uharfbuzz
    except ImportError as error:
        raise ConfigError(NEEDED) from error
    if not Path(path).is_file():
        raise ConfigError(
            f"{path} is missing: apt-get install fonts-noto-color-emoji, or name a font's file as emoji:FILE"
        )
    face = uharfbuzz.Face(uharfbuzz.Blob.from_file_path(path))
    if not face.has_color_png:
        raise ConfigError(
            f"{path} is not a font whose glyphs are PNG pictures, such as Debian's fonts-noto-color-emoji"
        )
    return uharfbuzz.Font(face)


def _glyphs(sequence: str, font: Any) -> list[int]:
    """The glyphs of a text: one where the font joins its code points; 0 stands for a missing glyph."""
    import uharfbuzz

    buffer = uharfbuzz.Buffer()
    buffer.add_str(sequence)
    buffer.guess_segment_properties()
    buffer.flags = uharfbuzz.BufferFlags.REMOVE_DEFAULT_IGNORABLES  # joiners, and which variant is meant
    uharfbuzz.shape(font, buffer)
    return [glyph.codepoint for glyph in buffer.glyph_infos]


def _on_white(png: bytes) -> np.ndarray | None:
    """Pixels `[side, side, 3]` uint8: the picture at the middle of a white square. None where it is damaged."""
    try:
        picture = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA")).astype(np.uint32)
    except (OSError, SyntaxError):
        return None
    colours, opacity = picture[..., :3], picture[..., 3:]
    scaled = (colours * opacity + 127) // 255  # rounded as FreeType rounds, through which fonts are mostly drawn
    colours = scaled * 255 // np.maximum(opacity, 1)
    height, width = picture.shape[:2]
    side = max(width, height)
    canvas = Image.new("RGB", (side, side), "white")
    glyph, mask = (Image.fromarray(values.squeeze().astype(np.uint8)) for values in (colours, opacity))
    canvas.paste(glyph, ((side - width) // 2, (side - height) // 2), mask)
    return np.asarray(canvas)


FORMAT = Format(shards, read, options=("shard_size",), is_set=True)
