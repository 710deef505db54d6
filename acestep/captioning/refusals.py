"""Telling a model's refusal from words about music, which may well quote a singer who is sorry or cannot help it."""

from __future__ import annotations

import re

_LOOKED_AT = 4000  # characters; a model that has written so much does not begin to refuse
_DOUBLE = dict.fromkeys(map(ord, "“”„‟«»"), '"')
_SINGLE = dict.fromkeys(map(ord, "‘’‚‛`´"), "'")
_QUOTED = re.compile(r"\"[^\"]{1,400}\"|(?<!\w)'(?=\S)(?:[^'\n]|'(?=\w)){1,400}'(?!\w)")
"""A single mark opens a quotation where no letter is before it and closes it where none follows: not so in "I'm"."""

_BEGINS = (
    r"(?:^[ \t>#*_•+-]{0,8}(?:(?:caption|description|answer|response|lyrics?)[*_ ]{0,4}:)?|[.!?…][)*_]{0,3}\s)"
    r"[\s*_]{0,4}(?:(?:unfortunately|regrettably|sorry|apologies|my apologies|sure|okay|well|oh|but|however)\b,? ){0,3}"
)
_CANNOT = (
    r"\bi(?: can(?:no|')t| can not|(?: am|'m) (?:unable|not able) to| do(?: not|n't) have the ability to) "
    r"(?:\w+ ){0,3}?(?:listen|hear|access|process|analy[sz]e|assist|transcribe|provide|describe"
    r"|help(?! (?:\w+ing|but|it|myself)\b))\b"
)
_REFUSAL = re.compile(
    rf"{_BEGINS}(?:as an? (?:[\w-]+ ){{0,2}}(?:ai|language model)\b(?![ -](?:generated|made))"
    r"|i(?:'m| am) (?:(?:so|very|truly|really) )?sorry(?=[ \t]*(?:[,.;:!…–—-]|but\b|for\b|that\b|i\b|$))"
    rf"|{_CANNOT}"
    rf"|(?:(?:while|although|though) )?i\b[^.!?\n]{{1,120}}, (?:but |however,? |unfortunately,? )?{_CANNOT})",
    re.IGNORECASE | re.MULTILINE,
)


def is_refusal(text: str, within: int = _LOOKED_AT) -> bool:
    """Does the answer, or a sentence in its first `within` characters, begin as models begin a refusal?

    What stands in quotation marks is what somebody sings, except where the whole answer does.
    """
    plain = text[: 2 * within].translate(_DOUBLE | _SINGLE)
    said = _QUOTED.sub("Q", plain)
    if said.strip(" \n.Q") == "":
        said = plain.strip(" \n.\"'")
    return _REFUSAL.search(said[:within]) is not None
