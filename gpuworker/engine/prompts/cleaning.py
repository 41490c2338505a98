"""What text becomes before it is tokenised: typographic characters as the plain ones the vocabulary was learnt with.

A1111's tokenizers pass every text through ``ftfy.fix_text``. Of its rules all but one are here: it also repairs text decoded
with the wrong character set, which a request's UTF-8 body is not.

Source: the documented rules of ftfy 6 (``ftfy.TextFixerConfig``).
"""

from __future__ import annotations

import html
import re
import unicodedata
from html.entities import html5

_QUOTES = dict.fromkeys((0x02BC, *range(0x2018, 0x201C)), "'") | dict.fromkeys(range(0x201C, 0x2020), '"')
_LIGATURES = {
    "Ĳ": "IJ", "ĳ": "ij", "ŉ": "'n", "Ǆ": "DŽ", "ǅ": "Dž", "ǆ": "dž", "Ǉ": "LJ", "ǈ": "Lj", "ǉ": "lj", "Ǌ": "NJ", "ǋ": "Nj",
    "ǌ": "nj", "Ǳ": "DZ", "ǲ": "Dz", "ǳ": "dz", "ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "ſt", "ﬆ": "st",
}  # fmt: skip
_WIDTHS = {code: unicodedata.normalize("NFKC", chr(code)) for code in (0x3000, *range(0xFF01, 0xFFF0))}
_REMOVED = dict.fromkeys(
    (*range(0x09), 0x0B, *range(0x0E, 0x20), 0x7F, *range(0x206A, 0x2070), 0xFEFF, *range(0xFFF9, 0xFFFD))
)
_PLAIN = _QUOTES | {ord(letter): plain for letter, plain in _LIGATURES.items()} | _WIDTHS | _REMOVED
_TERMINAL_ESCAPE = re.compile(r"\x1b\[\d*(?:;\d+)*[a-zA-Z]")
_ENTITY = re.compile(r"&#?[0-9A-Za-z]{1,24};")


def cleaned(text: str) -> str:
    """The text as the tokenizer reads it."""
    if text.isascii() and text.isprintable() and "&" not in text:
        return text
    # JSON can hold halves of characters: pairs become one, single ones the replacement character.
    text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if "<" not in text:
        text = _ENTITY.sub(_entity, text)
    return unicodedata.normalize("NFC", _TERMINAL_ESCAPE.sub("", text).translate(_PLAIN))


def _entity(match: re.Match[str]) -> str:
    entity = match[0]
    return html.unescape(entity) if entity.startswith("&#") else html5.get(entity[1:], entity)
