"""Names of the languages the model knows, as people and programs write them."""

from __future__ import annotations

import unicodedata
from types import MappingProxyType

# code: English names, own names and three-letter codes (ISO 639-2 and 639-3), all in lower case
_NAMES = {
    "ar": "arabic ara arb العربية",
    "az": "azerbaijani azeri aze azj azərbaycan",
    "bg": "bulgarian bul български",
    "bn": "bengali bangla ben বাংলা",
    "ca": "catalan valencian cat català",
    "cs": "czech ces cze čeština",
    "da": "danish dan dansk",
    "de": "german deu ger deutsch",
    "el": "greek ell gre ελληνικά",
    "en": "english eng",
    "es": "spanish castilian spa español",
    "fa": "persian farsi fas per pes فارسی",
    "fi": "finnish fin suomi",
    "fr": "french fra fre français francais",
    "he": "hebrew heb iw עברית",
    "hi": "hindi hin हिन्दी",
    "hr": "croatian hrv hrvatski",
    "ht": "haitian haitian_creole hat",
    "hu": "hungarian hun magyar",
    "id": "indonesian ind in bahasa_indonesia",
    "is": "icelandic isl ice íslenska",
    "it": "italian ita italiano",
    "ja": "japanese jpn 日本語",
    "ko": "korean kor 한국어",
    "la": "latin lat",
    "lt": "lithuanian lit lietuvių",
    "ms": "malay msa may zsm bahasa_melayu",
    "ne": "nepali nep npi नेपाली",
    "nl": "dutch flemish nld dut nederlands",
    "no": "norwegian nor norsk nb nn nob nno bokmål bokmal nynorsk norwegian_bokmål norwegian_bokmal norwegian_nynorsk",
    "pa": "punjabi panjabi pan ਪੰਜਾਬੀ",
    "pl": "polish pol polski",
    "pt": "portuguese por português portugues",
    "ro": "romanian moldavian ron rum mo română",
    "ru": "russian rus русский",
    "sa": "sanskrit san",
    "sk": "slovak slk slo slovenčina",
    "sr": "serbian srp српски srpski",
    "sv": "swedish swe svenska",
    "sw": "swahili swa swh kiswahili",
    "ta": "tamil tam தமிழ்",
    "te": "telugu tel తెలుగు",
    "th": "thai tha ไทย",
    "tl": "tagalog filipino fil tgl",
    "tr": "turkish tur türkçe turkce",
    "uk": "ukrainian ukr українська",
    "ur": "urdu urd اردو",
    "vi": "vietnamese vie tiếng_việt",
    "yue": "cantonese 粤语 粵語 廣東話 广东话",
    "zh": "chinese mandarin mandarin_chinese zho chi cmn 中文 普通话 汉语 国语",
    "unknown": "und",
}

LANGUAGE_CODES: MappingProxyType[str, str] = MappingProxyType(
    {
        unicodedata.normalize("NFKC", name.replace("_", " ")): code
        for code, names in _NAMES.items()
        for name in [code, *names.split()]
    }
)
"""Every accepted name and code, in lower case and Unicode form NFKC → one of the model's 51 codes."""

LANGUAGE_NAMES: MappingProxyType[str, str] = MappingProxyType(
    {code: names.split()[0].capitalize() for code, names in _NAMES.items() if code != "unknown"}
)
"""Code → English name of each language the model knows."""

CANTONESE_REGIONS = frozenset({"hk", "mo", "yue", "hongkong", "macau", "macao"})
"""Regions and subtags with which zh means Cantonese."""
