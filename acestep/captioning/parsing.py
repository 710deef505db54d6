"""Answers of language models → labels: captions with metadata lines, transcripts, the 5 Hz LM's notes, JSON.

Models ramble, repeat themselves, echo their instructions or refuse. What such an answer does not say is absent, and
`notes` tell what is doubtful about the rest. Nothing in an answer is ever obeyed: it is text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from acestep.captioning.contract import FIELDS, Field
from acestep.captioning.finding import FINDERS, LABEL_LINE, LONGEST, find_genre, find_key, plain
from acestep.captioning.refusals import is_refusal
from acestep.dataset import spelling
from acestep.dataset.labels import read_labels
from acestep.dataset.text import clean, is_error_text, one_line
from acestep.model.facts import INSTRUMENTAL, UNKNOWN_LANGUAGE

_TEMPLATE_TOKEN = re.compile(r"<\|[a-z0-9_]{1,40}\|>", re.IGNORECASE)
_ROLE = re.compile(r"\s*(?:assistant|model|system|user)\s*[:\n]", re.IGNORECASE)
_CAPTION_LABEL = re.compile(r"[ \t>#*_•+-]{0,8}(?:caption|description)[*_ ]{0,4}:[*_ ]{0,4}", re.IGNORECASE)
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)[\w-]{0,20}[ \t]*$", re.MULTILINE)
_BOLD = re.compile(r"(\*\*|__)(?=\S)([^*_\n]{1,400}?)(?<=\S)\1")
_INSTRUCTION = re.compile(
    r"\b(?:ignore|disregard|forget) (?:\w+ ){0,3}(?:instructions?|prompts?|messages?)\b|\bsystem prompt\b",
    re.IGNORECASE,
)
_ENGLISH = frozenset(("the", "a", "an", "and", "with", "of", "in", "is", "this", "it", "to", "by", "song", "music"))
_SECTION = re.compile(r"\[[^\[\]\n]{1,60}\]")
_TAGGED_PART = re.compile(
    r"^[ \t]*\[(?:verse|chorus|bridge|intro|outro|pre-?chorus|post-?chorus|hook|refrain|instrumental|spoken|guitar"
    r"|piano|interlude|solo|break)\b[^\[\]\n]{0,40}\]",
    re.IGNORECASE | re.MULTILINE,
)
_LANGUAGES = re.compile(r"^[ \t#*]{0,8}languages?[ \t*]{0,4}:?[ \t*]{0,4}", re.IGNORECASE | re.MULTILINE)
_LYRICS = re.compile(r"^[ \t#*]{0,8}lyrics?[ \t*]{0,4}(?::[ \t*]{0,4}|$)", re.IGNORECASE | re.MULTILINE)
_THINK = re.compile(r"<(think|reasoning)>", re.IGNORECASE)
_AUDIO_CODE = "<|audio_code_"
_NO_VOICE = re.compile(
    r"\W*(?:no (?:lyrics|vocals|voice|singing)|instrumental)\W*(?:track|music|piece|only)?\W*", re.IGNORECASE
)

_REFUSED_WITHIN = 400  # characters; what comes later is about music or are lyrics
_MOST_ALIKE = 8  # lines or words in a row that singers do repeat; beyond it is a model that hangs
_LONGEST_CYCLE = 12
_FEWEST_WORDS = 4  # of a caption that is left when endless repetition is taken out


@dataclass
class Parsed:
    """The values that an answer gives, as sidecars spell them, and sentences about what is doubtful."""

    values: dict[Field, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def put(self, name: Field, value: Any) -> None:
        """Keep a value that says something."""
        if value not in (None, "", UNKNOWN_LANGUAGE):
            self.values[name] = value


def parse_caption(text: object) -> Parsed:
    """A free description, with or without lines such as "**Key:** A minor" in it."""
    parsed = Parsed()
    words = _without_template(text)
    if not words.strip():
        parsed.notes.append("The model answered nothing.")
        return parsed
    if words.lstrip().startswith(("{", "```json")) and (told := parse_json(text)).values:
        return told
    if is_refusal(words, within=_REFUSED_WITHIN):
        parsed.notes.append("The model refused to describe the song.")
        return parsed
    words, hangs = without_loops(words)
    if hangs:
        parsed.notes.append("The model repeated itself without end; the repetition is left out.")
    for name, find in FINDERS.items():
        parsed.put(name, find(words))
    caption = _prose(words)
    if _INSTRUCTION.search(caption):
        parsed.values.clear()
        parsed.notes.append("The answer speaks of instructions and not of music, so it is not used.")
    elif not hangs or len(caption.split()) >= _FEWEST_WORDS:
        parsed.put("caption", caption)
        parsed.notes += _doubts_about(caption)
    return parsed


def parse_transcript(text: object) -> Parsed:
    """Lyrics under a heading, after a language under another; or lyrics with section tags; or lyrics alone."""
    parsed = Parsed()
    words = _without_template(text)
    if not words.strip():
        parsed.notes.append("The model answered nothing.")
        return parsed
    if is_refusal(words, within=_REFUSED_WITHIN) and not _TAGGED_PART.search(words):
        parsed.notes.append("The model refused to transcribe the song.")
        return parsed
    heading, lyrics_heading = _LANGUAGES.search(words), _LYRICS.search(words)
    told = ""
    if heading and (lyrics_heading is None or heading.start() < lyrics_heading.start()):
        end = lyrics_heading.start() if lyrics_heading else len(words)
        found = re.search(r"[^\W\d_][\w-]*", words[heading.end() : end])
        told = found[0] if found else ""
        parsed.put("language", spelling.language(told).value)
    if lyrics_heading:
        lyrics = words[lyrics_heading.end() :]
    elif tagged := _TAGGED_PART.search(words):
        lyrics = words[tagged.start() :]
    else:
        lyrics = "" if heading else words
    _put_lyrics(parsed, lyrics, says_instrumental=spelling.means_instrumental(told))
    return parsed


def parse_think(text: object) -> Parsed:
    """What the 5 Hz LM writes: fields between think tags, lyrics after them. Without the closing tag no lyrics."""
    parsed = Parsed()
    if not isinstance(text, str) or not text.strip():
        parsed.notes.append("The model answered nothing.")
        return parsed
    text = clean(text[:LONGEST])
    opening = _THINK.search(text)
    block = text[opening.end() :] if opening else text.partition(_AUDIO_CODE)[0]
    rest = ""
    if opening:
        closing = re.search(rf"</{opening[1]}>", block, re.IGNORECASE)
        if closing:
            block, rest = block[: closing.start()], block[closing.end() :].partition(_AUDIO_CODE)[0]
        else:
            parsed.notes.append("The answer is cut off, so its lyrics are not used.")
    raw: dict[str, Any] = _think_fields(block)
    labels = read_labels(raw, "")
    for name in FIELDS:
        if name != "lyrics":
            parsed.put(name, labels.values.get(name))
    if caption := parsed.values.get("caption"):
        shortened, hangs = without_loops(caption)
        parsed.values["caption"] = shortened
        parsed.notes += ["The model repeated itself without end; the repetition is left out."] if hangs else []
    lyrics = _LYRICS.sub("", _TEMPLATE_TOKEN.sub("", rest), count=1)
    if lyrics.strip():
        _put_lyrics(parsed, lyrics)
    return parsed


def parse_json(text: object) -> Parsed:
    """A JSON object with fields as sidecars name them, in a fence or among other words. Nothing else is a caption."""
    parsed = Parsed()
    words = _FENCE.sub("", text[: 4 * LONGEST]) if isinstance(text, str) else ""
    start, end = words.find("{"), words.rfind("}")
    try:
        content = json.loads(words[start : end + 1]) if 0 <= start < end else None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        parsed.notes.append("The answer is not the JSON object that was asked for.")
        return parsed
    labels = read_labels(content, "")
    parsed.notes += labels.warnings
    for name in FIELDS:
        if name != "lyrics":
            parsed.put(name, labels.values.get(name))
    for name, find in (("keyscale", find_key), ("genre", find_genre)):
        if name not in parsed.values and name in content:  # "A minor (relative major C)"
            parsed.put(name, find(f"{name}: {content[name]}" if isinstance(content[name], str) else ""))  # type: ignore[arg-type]
    if "caption" in parsed.values:
        caption, hangs = without_loops(parsed.values["caption"])
        if is_refusal(caption) or _INSTRUCTION.search(caption):
            del parsed.values["caption"]
            parsed.notes.append("The caption does not describe music, so it is not used.")
        else:
            parsed.values["caption"] = caption
            parsed.notes += ["The model repeated itself without end; the repetition is left out."] if hangs else []
            parsed.notes += _doubts_about(caption)
    if lyrics := labels.values.get("lyrics"):
        _put_lyrics(parsed, lyrics)
    elif labels.values.get("is_instrumental") is True:
        parsed.put("lyrics", INSTRUMENTAL)
    return parsed


def without_loops(text: str) -> tuple[str, bool]:
    """`text` with everything that a model repeated without end said once, and whether there was such a thing."""
    lines, looped_lines = _once(text.split("\n"), lambda line: one_line(line).casefold(), _LONGEST_CYCLE)
    looped_words = False
    for number, line in enumerate(lines):
        if len(line) > 40:
            words, looped = _once(line.split(" "), str.casefold, 4 * _LONGEST_CYCLE)
            if looped:
                lines[number] = " ".join(words)
                looped_words = True
    return "\n".join(lines), looped_lines or looped_words


def _once(items: list[str], same: Callable[[str], str], longest_cycle: int) -> tuple[list[str], bool]:
    """Items without cycles of up to `longest_cycle` items that come back more than _MOST_ALIKE times in a row."""
    keys = [same(item) for item in items]
    looped = False
    for cycle in range(1, min(longest_cycle, len(items) // _MOST_ALIKE) + 1):
        kept: list[int] = []
        position = 0
        while position < len(keys):
            end = position
            while end + cycle < len(keys) and keys[end] == keys[end + cycle]:
                end += 1
            alike = (end - position) // cycle + 1
            if alike > _MOST_ALIKE and any(keys[position : position + cycle]):
                kept += range(position, position + cycle)
                position += alike * cycle
                looped = True
            else:
                step = max(1, end - position - cycle + 1)
                kept += range(position, min(position + step, len(keys)))
                position += step
        if len(kept) < len(keys):
            items, keys = [items[index] for index in kept], [keys[index] for index in kept]
    return items, looped


def _put_lyrics(parsed: Parsed, text: str, says_instrumental: bool = False) -> None:
    lines = [line.strip() for line in clean(_FENCE.sub("", text)).split("\n")]
    lyrics = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
    words = _SECTION.sub("", lyrics).strip()
    tags = [tag.lower() for tag in _SECTION.findall(lyrics)]
    if _NO_VOICE.fullmatch(words) or (
        not words and (says_instrumental or any(tag.startswith("[inst") for tag in tags))
    ):
        parsed.put("lyrics", INSTRUMENTAL)
        return
    if not words:
        parsed.notes.append("The answer holds no lyrics.")
        return
    if is_error_text(words):
        parsed.notes.append("The answer is an error message and no lyrics.")
        return
    lyrics, hangs = without_loops(lyrics)
    if hangs:
        left = [line for line in lyrics.split("\n") if line and not _SECTION.fullmatch(line)]
        if len(left) < 2:
            parsed.notes.append("The lyrics are one line without end, so they are not used.")
            return
        parsed.notes.append("The lyrics repeated themselves without end; the repetition is left out. Check them.")
    parsed.put("lyrics", lyrics if _TAGGED_PART.search(lyrics) else f"[Verse]\n{lyrics}")


def _without_template(text: object) -> str:
    """The words of an answer without control characters, template tokens, role word and thinking."""
    if not isinstance(text, str):
        return ""
    words = _TEMPLATE_TOKEN.sub("", clean(text[:LONGEST]))
    for name in ("think", "reasoning"):
        if f"</{name}>" in words:
            words = words.rpartition(f"</{name}>")[2]
    return _ROLE.sub("", words, count=1) if _ROLE.match(words) else words


def _prose(words: str) -> str:
    """The description alone, on one line: without the lines of metadata and without markup."""
    lines = []
    for line in _FENCE.sub("", words).split("\n"):
        if not line.strip(" \t*_#=-"):
            continue
        if (match := LABEL_LINE.match(plain(line))) and _is_metadata(plain(line), match):
            continue
        line = _CAPTION_LABEL.sub("", line, count=1) if _CAPTION_LABEL.match(line) else line
        line = re.sub(r"^[ \t]{0,20}(?:#{1,6}[ \t]|>[ \t]?)", "", line)
        lines.append(_BOLD.sub(r"\2", line))
    text = one_line(" ".join(lines))
    return text[1:-1].strip() if len(text) > 2 and text[0] == text[-1] == '"' else text


def _is_metadata(line: str, label: re.Match[str]) -> bool:
    """A label and its value, and not a sentence that begins with such a word ("Tempo: it drags at first, then …")."""
    value = line[label.end() :].strip(" *_`\"'")
    name = next((name for name in FINDERS if label[name]), None)
    return len(value) <= 40 or (name is not None and bool(FINDERS[name](line)) and len(value) <= 200)


def _doubts_about(caption: str) -> list[str]:
    letters = [letter for letter in caption if letter.isalpha()]
    words = re.findall(r"[a-z]+", caption.lower())
    foreign = sum(not letter.isascii() for letter in letters) > len(letters) / 2
    if foreign or (len(words) >= 12 and _ENGLISH.isdisjoint(words)):
        return ["The caption seems not to be in English."]
    return []


def _think_fields(block: str) -> dict[str, str]:
    fields: dict[str, list[str]] = {}
    current: list[str] = []
    for line in block.split("\n"):
        if line.lstrip().startswith("<"):
            continue
        if line[:1].strip() and ":" in line:
            name, _, value = line.partition(":")
            current = fields.setdefault(name.strip().lower(), [])
            current.append(value.strip())
        else:
            current.append(line.strip())
    return {name: _yaml_text(" ".join(part for part in parts if part)) for name, parts in fields.items()}


def _yaml_text(value: str) -> str:
    value = re.sub(r"^[|>][+-]?(?: |$)", "", value)
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return value[1:-1] if quoted else value
