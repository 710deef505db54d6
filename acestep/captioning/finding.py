"""Key, tempo, metre, genre and language in free text, as language models write about music.

Every finder takes any text, never raises and never guesses: it gives a value only where the words say it. A label
("Key: …") decides; what stands behind it and cannot be read is absent, whatever the rest of the text says.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import Any

from acestep.captioning.contract import Field
from acestep.dataset import spelling
from acestep.model.facts import BPM_RANGE, UNKNOWN_LANGUAGE

LONGEST = 100_000
"""Characters that are read; no answer of a model is longer."""

_LABELS: dict[Field, str] = {
    "keyscale": r"(?:musical )?key(?: ?signature| ?scale| and mode|scale)?|key_scale|scale|tonality",
    "timesignature": r"time[ _-]?signatures?|met(?:er|re)|signature",
    "bpm": r"bpm|tempo(?: \(bpm\))?|beats per minute",
    "genre": r"(?:main |primary |musical )?genres?(?:/style| and style)?",
    "language": r"(?:vocal[ _]|lyrics?[ _])?languages?",
}
_DECORATION = r"[ \t>#*_•·+–-]{0,12}(?:[0-9]{1,2}[.)][ \t*_]{0,4})?"
_LABEL = {
    field: re.compile(rf"(?<![\w-])(?:{names})[*_`\" ]{{0,4}}[:=][ \t*_`\"]{{0,8}}([^\n;|]{{0,200}})", re.IGNORECASE)
    for field, names in _LABELS.items()
}
LABEL_LINE = re.compile(
    rf"{_DECORATION}(?P<label>{'|'.join(f'(?P<{field}>{names})' for field, names in _LABELS.items())})"
    r"[*_`\" ]{0,4}[:=]",
    re.IGNORECASE,
)
"""A line that begins with the label of one field, whatever decorates it."""

_NEXT_LABEL = re.compile(
    rf"[,.;/ ]{{0,3}}[*_]{{0,2}}(?<![\w-])(?:{'|'.join(_LABELS.values())})[*_]{{0,2}}[:=]", re.IGNORECASE
)

_ACCIDENTAL = r"(?:#|b(?=(?:m|maj|major|min|minor)?(?![A-Za-z]))|[ -]?(?:sharp|flat)\b)"
_MODE = r"(?:major|minor|maj|min)\b"
_OTHER_MODES = re.compile(r"[ -]?(?:dorian|phrygian|lydian|mixolydian|locrian|blues|pentatonic)", re.IGNORECASE)
_NAMED_KEY = re.compile(
    rf"(?<![\w#/'-])(?P<note>[A-H])(?:-?(?P<accidental>{_ACCIDENTAL}))?(?: ?/ ?[A-H](?:{_ACCIDENTAL})?)?"
    rf"(?: natural)?[ -]{{0,3}}(?P<mode>(?i:{_MODE}))"
)
_SHORT_KEY = re.compile(rf"(?<![\w#/'-])(?P<note>[A-H])(?P<accidental>{_ACCIDENTAL})?(?P<mode>m)(?![\w'#-])")
_GERMAN_KEY = re.compile(
    r"(?<![\w#-])(?P<note>[a-h])(?P<accidental>is|es|s)?[ -]{0,2}(?P<mode>dur|moll)\b", re.IGNORECASE
)
_BARE_KEY = re.compile(
    rf"(?P<note>[A-Ha-h])(?P<accidental>{_ACCIDENTAL})?(?: natural)?(?=[ \t*_`\"]{{0,4}}(?:$|[,.(\n]))"
)
_LABELLED_KEY = re.compile(
    rf"(?:in )?(?:the key of )?(?P<note>[A-Ha-h])(?:-?(?P<accidental>{_ACCIDENTAL}))?(?: ?/ ?[A-H](?:{_ACCIDENTAL})?)?"
    rf"(?: natural)?(?:[ -]{{0,3}}(?P<mode>(?i:{_MODE}))|(?P<short>m|M)(?!\w))"
)
_KEY_OF = re.compile(
    rf"\b(?:key|scale|tonality|pitched|tuned)(?: signature)? (?:of|is|in|at|to)(?: in)?(?: the key of)? "
    rf"(?P<note>[A-Ha-h])(?P<accidental>{_ACCIDENTAL})?(?=[ \t]{{0,2}}(?:$|[,.;)\n]))",
)
_FOLLOWS_A = re.compile(r"[ \t]{0,3}(?:$|[^\w\s-]|\n|key\b|scale\b|chord|tonality|at [0-9]|with\b|and\b)")
_BEFORE_A = re.compile(r"(?:\b[Ii]n|\bof|\bis|:|\() {0,2}$")

_NUMBER = r"[0-9]{2,3}(?:[.,][0-9]{1,3})?"
_RANGE = rf"(?P<low>{_NUMBER})(?: ?(?:-|to|and) ?(?P<high>{_NUMBER}))?"
_TEMPO = re.compile(rf"(?<![\w.,/⁄#-]){_RANGE}(?: |-)?(?:bpm\b|beats (?:per|a) minute\b)", re.IGNORECASE)
_LABELLED_TEMPO = re.compile(rf"[^0-9\n]{{0,30}}?(?<![\w.,/⁄]){_RANGE}(?![\w/⁄%]|[.,][0-9])", re.IGNORECASE)
_TEMPO_OF = re.compile(
    rf"\b(?:tempo|bpm)(?: of| is| at| around| about| approximately| roughly){{0,3}} {_RANGE}(?![\w/⁄%]|[.,][0-9])",
    re.IGNORECASE,
)

_METRE = re.compile(r"(?<![\w/⁄.,-])([0-9]{1,2}) ?/ ?(2|4|8|16)(?![\w/⁄%]|[.,][0-9])")
_METRE_WORDS = re.compile(r"\b(?:common|cut) time\b|\balla breve\b", re.IGNORECASE)
_AFTER_METRE = re.compile(
    r"[ -]?(?:time|met(?:er|re)|beat|groove|feel|waltz|signature|rhythm|swing|shuffle)", re.IGNORECASE
)
_PLAIN_METRES = frozenset({"4/4", "6/8", "12/8", "7/8", "5/4", "9/8"})  # as fractions of something they are rare

_COMPOUND_GENRES = (
    "synth-pop|trip-hop|hip-hop|lo-fi|r&b|indie-rock|indie-pop|post-punk|post-rock|city-pop|bossa-nova|heavy-metal|"
    "death-metal|black-metal|hard-rock|progressive-rock|psychedelic-rock|alternative-rock|punk-rock|folk-rock|new-wave|"
    "deep-house|tech-house|k-pop|j-pop|dream-pop|electro-swing"
)
_CLEAR_GENRES = (
    "synthwave|vaporwave|dubstep|techno|trance|reggaeton|reggae|jazz|bluegrass|flamenco|samba|salsa|afrobeat|dancehall|"
    "shoegaze|grunge|phonk|disco|funk|electronica|edm|ska|hyperpop|breakbeat|hardstyle|ambient"
)
_WORDS_TOO = (  # of other meanings: only before "music", "song" and the like
    "pop|rock|metal|punk|rap|folk|blues|soul|country|classical|orchestral|electronic|house|gospel|latin|industrial|"
    "trap|drill|garage|dance|world"
)
_MUSIC_WORD = (
    r"(?:music|songs?|tracks?|ballads?|anthems?|tunes?|beats?|pieces?|genre|style|instrumentals?|band|numbers?)\b"
)


_COMPOUND = re.compile(
    rf"(?<![\w-])(?:{_COMPOUND_GENRES.replace('-', '[ -]?')}|drum[ -]?(?:and|&|n)[ -]?bass)(?![\w-])"
)
_CLEAR = re.compile(rf"(?<![\w-])(?:{_CLEAR_GENRES})(?![\w-])")
_COMMON = re.compile(rf"(?<![\w-])(?:{_WORDS_TOO})(?=[ -]{_MUSIC_WORD})")
_LIST_ITEM = re.compile(r"[^\W_][\w &/'+.-]{0,39}")
_TRAILING = re.compile(r"[ -](?:music|style|song|track)$", re.IGNORECASE)

_SUNG_IN = re.compile(
    r"\b(?:sung|sings?|singing|rapped|rapping|raps|performed|vocals?|lyrics) (?:are |is )?(?:sung )?in "
    r"(?P<language>[A-Z][a-z]{2,20}|[^\W\d_a-zA-Z]{2,12})"
)
_LANGUAGE_VOCALS = re.compile(
    r"\b(?P<language>[A-Z][a-z]{3,20})(?:[ -]language)? (?:[a-z]{1,12} )?(?:lyrics|vocals?|singing|rap)\b"
)


def plain(text: object) -> str:
    """Text in Unicode form NFKC with ASCII accidentals and hyphens, cut to LONGEST; empty for anything else."""
    if not isinstance(text, str):
        return ""
    text = unicodedata.normalize("NFKC", text[:LONGEST])[:LONGEST]
    text = text.replace("♯", "#").replace("♭", "b").replace("♮", "")
    return re.sub(r"[\u2010-\u2015\u2212]", "-", text).replace("\r\n", "\n").replace("\r", "\n")


def find_key(text: object) -> str:
    """The key that a text names, as prompts spell it ("F# minor"); empty where it names none."""
    words = plain(text)
    labelled = _labelled(words, "keyscale")
    if labelled is not None:
        return _key_behind_label(labelled)
    for pattern in (_NAMED_KEY, _GERMAN_KEY, _SHORT_KEY, _KEY_OF):
        for match in pattern.finditer(words):
            if _is_key(match, words):
                return _spelled_key(match)
    return ""


def find_bpm(text: object) -> int | None:
    """The tempo that a text names, if models know it (30 to 300); a range gives its middle."""
    words = plain(text)
    labelled = _labelled(words, "bpm")
    if labelled is not None:
        match = _LABELLED_TEMPO.match(labelled)
    else:
        match = _TEMPO.search(words) or _TEMPO_OF.search(words)
    if match is None:
        return None
    ends = [float(number.replace(",", ".")) for number in (match["low"], match["high"]) if number]
    value = round(sum(ends) / len(ends))
    return value if BPM_RANGE[0] <= value <= BPM_RANGE[1] else None


def find_time_signature(text: object) -> str:
    """The metre that a text names, as prompts spell it; empty where there is none or the model does not know it."""
    words = plain(text)
    labelled = _labelled(words, "timesignature")
    if labelled is not None:
        said = re.match(r"[^0-9\n]{0,20}?([0-9]{1,2}(?: ?/ ?[0-9]{1,2})?)(?![\w/⁄])", labelled)
        word = _METRE_WORDS.match(labelled)
        value = said[1] if said else word[0] if word else ""
        return spelling.time_signature(value).value or ""
    for match in _METRE.finditer(words):
        value = f"{match[1]}/{match[2]}"
        if words[match.end() : match.end() + 4].lstrip().startswith("of"):
            continue  # three quarters of something
        before = words[max(0, match.start() - 12) : match.start()].lower()
        if value in _PLAIN_METRES or _AFTER_METRE.match(words, match.end()) or re.search(r"\b(?:in|time of) $", before):
            return spelling.time_signature(value).value or ""
    word = _METRE_WORDS.search(words)
    return (spelling.time_signature(word[0]).value or "") if word else ""


def find_genre(text: object) -> str:
    """The genres behind a label, or the first genre that the words name beyond doubt; in lower case."""
    words = plain(text)
    labelled = _labelled(words, "genre")
    if labelled is not None:
        items = [_TRAILING.sub("", item.strip(" *_`\"'.[]").lower()) for item in re.split(r"[,/]", labelled)[:6]]
        kept = [item for item in items if _LIST_ITEM.fullmatch(item) and not _says_nothing(item)]
        return ", ".join(dict.fromkeys(kept))
    lowered = words.lower()
    for pattern in (_COMPOUND, _CLEAR, _COMMON):
        if match := pattern.search(lowered):
            return match[0]
    return ""


def find_language(text: object) -> str:
    """The code of the language that a text says is sung; empty where it does not say."""
    words = plain(text)
    labelled = _labelled(words, "language")
    candidates = [labelled] if labelled is not None else []
    if labelled is None:
        for pattern in (_SUNG_IN, _LANGUAGE_VOCALS):
            candidates += [match["language"] for match in pattern.finditer(words)]
    for candidate in candidates:
        first = re.split(r"[,;/&.\n]| and ", candidate.strip(" *_`\"'[]"))[0]
        code = spelling.language(first).value
        if code and code != UNKNOWN_LANGUAGE:
            return code
    return ""


FINDERS: dict[Field, Callable[[object], Any]] = {
    "keyscale": find_key,
    "bpm": find_bpm,
    "timesignature": find_time_signature,
    "genre": find_genre,
    "language": find_language,
}


def _labelled(words: str, field: Field) -> str | None:
    """What stands behind the first label of a field, up to the next label; None without a label that says anything."""
    for match in _LABEL[field].finditer(words):
        value = match[1]
        following = _NEXT_LABEL.search(value)
        value = (value[: following.start()] if following else value).strip(" \t*_`\"',.")
        if value:
            return value
    return None


def _key_behind_label(value: str) -> str:
    if match := _LABELLED_KEY.match(value) or _GERMAN_KEY.match(value):
        return _spelled_key(match)
    if (match := _BARE_KEY.match(value)) and not _OTHER_MODES.search(value):
        said = re.match(r"[ \t*_(,]{0,6}(min|maj)", value[match.end() :], re.IGNORECASE)
        mode = {"min": " minor", "maj": " major"}[said[1].lower()] if said else " major"
        return _spelled(match["note"], match["accidental"], mode)
    if re.fullmatch(r"0?(?:[1-9]|1[0-2]) ?[ABab]", value):  # Camelot
        return spelling.key_scale(value).value or ""
    return ""


def _is_key(match: re.Match[str], words: str) -> bool:
    """Is this a key and no ordinary words? "A major hit" is none, "in A major" and "A major." are."""
    groups = match.groupdict()
    accidental = groups.get("accidental")
    mode = groups.get("mode")
    before = words[max(0, match.start() - 12) : match.start()]
    if mode == "m":  # Am, F#m
        return bool(accidental) or re.search(r"\b(?:in|[Kk]ey(?: is| of)?:?) $", before) is not None
    if mode is not None and match["note"] == "A" and not accidental and mode.lower() not in ("dur", "moll"):
        return _BEFORE_A.search(before) is not None or _FOLLOWS_A.match(words, match.end()) is not None
    return True


def _spelled_key(match: re.Match[str]) -> str:
    groups = match.groupdict()
    mode = groups.get("mode") or groups.get("short") or ""
    if mode.lower() in ("dur", "moll"):
        return _german(match["note"], groups.get("accidental") or "", mode)
    minor = mode == "m" or mode.lower().startswith("min")
    return _spelled(match["note"], groups.get("accidental"), " minor" if minor else " major")


def _german(note: str, accidental: str, mode: str) -> str:
    """German names: H is B, B is B flat, -is raises and -(e)s lowers ("fis-Moll", "Es-Dur")."""
    sign = {"": "", "is": "#", "es": "b", "s": "b"}[accidental.lower()]
    if accidental.lower() == "s" and note.lower() not in "ae":
        return ""
    if note.lower() == "b" and not sign:
        sign = "b"
    return _spelled(note, sign, " minor" if mode.lower() == "moll" else " major")


def _spelled(note: str, accidental: str | None, mode: str) -> str:
    sign = (accidental or "").strip(" -").lower()
    letter = "B" if note.upper() == "H" else note.upper()
    return spelling.key_scale(f"{letter}{ {'sharp': '#', 'flat': 'b'}.get(sign, sign) }{mode}").value or ""


def _says_nothing(value: str) -> bool:
    return value.lower() in ("n/a", "na", "none", "unknown", "null", "-", "n", "a")
