"""The signs that nobody sees: who refuses, replaces or spells them out takes them from here.

Named by what they do: traces of binary data or of a wrong encoding, which are also orders to a
terminal; marks that turn the direction of text; marks without width; halves of surrogate pairs.
"""

import re
import unicodedata

_CONTROLS = "\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f"  # but the white space among them:
_SPACES = "\t-\r\x85"  # tab, LF, VT, FF, CR and NEL
_TURNING = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_NO_WIDTH = "\xad\u200b-\u200d\u2028\u2029\u2060-\u2065\u206a-\u206f\ufeff"  # or a line's end
_HALVES = "\ud800-\udfff"
_CATEGORIES = ("Cc", "Cf", "Zl", "Zp", "Zs")  # of signs without ink

# No report holds one.
CONTROLS = re.compile(f"[{_CONTROLS}]")
# A terminal obeys them, or shows another text than there is.
UNSEEN = re.compile(f"[{_CONTROLS}{_SPACES}{_TURNING}{_NO_WIDTH}{_HALVES}]")
# What a page may not hold, tab and newline let through; XML (and so an SVG) forbids the last two.
HIDDEN = re.compile(f"[{_CONTROLS}\x0b-\x0d\x85{_TURNING}{_HALVES}\ufffe\uffff]")


def has_ink(text: str) -> bool:
    """Whether there is anything to see: a text of zero-width spaces is as good as empty."""
    if text[:1].isalnum():  # as most texts begin
        return True
    return any(unicodedata.category(sign) not in _CATEGORIES for sign in text)
