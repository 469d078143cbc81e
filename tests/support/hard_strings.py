"""Five hundred texts on which tokenizers differ where anything is wrong: the same ones on every machine."""

# ruff: noqa: RUF001, E501 (foreign letters are the point; a kind is a line)
from __future__ import annotations

import random
from collections.abc import Iterator

# By what they try; each stands alone and in the mixtures below.
BY_KIND: dict[str, tuple[str, ...]] = {
    "latin": ("Hello, world!", "naïve café", "Ünïcödé", "ﬁne ﬂow", "Ǆ ǅ ǆ", "ſharp ẞ ß", "İstanbul ısı", "Œuvre æsc"),
    "greek, cyrillic": ("Ελληνικά και άλλα", "ΣΊΣΥΦΟΣ σίσυφος", "Съешь ещё этих мягких булок", "Ђорђе", "Й й и\u0306"),
    "right to left": ("שלום עולם", "שָׁלוֹם", "مرحبا بالعالم", "اَلْعَرَبِيَّةُ", "لا إله", "abc שלום def", "\u202bעברית\u202c"),
    "south asia": ("नमस्ते दुनिया", "क्षत्रिय", "বাংলা ভাষা", "தமிழ் மொழி", "ಕನ್ನಡ", "മലയാളം", "สวัสดีชาวโลก", "ຂໍ້ຄວາມ", "မြန်မာ"),
    "east asia": ("你好，世界", "繁體中文測試", "日本語のテスト", "カタカナ ｶﾀｶﾅ", "한국어 시험", "\u1112\u1161\u11ab\u1100\u1173\u11af", "𠀀𠀁 㐀", "ㄅㄆㄇ"),
    "elsewhere": ("ქართული", "Հայերեն", "አማርኛ", "ᏣᎳᎩ", "ᠮᠣᠩᠭᠣᠯ", "ℌ𝔢𝔩𝔩𝔬 𝕎𝕠𝕣𝕝𝕕", "𐍈𐌰𐌽", "ⵜⴰⵎⴰⵣⵉⵖⵜ"),
    "combining": ("e\u0301", "é", "a\u0328\u0301", "o\u0308\u0323", "Z\u0351\u036bA\u0334L\u0321G\u0322O", "\u0301lone", "가\u0301"),
    "emoji": ("😀", "👩‍👩‍👧‍👦", "👍🏽", "🏳️‍🌈", "🇩🇪🇫🇷", "❤️ ❤", "1️⃣", "🧑🏿‍🚀 go", "☃\ufe0e", "\U0001f9ff\U0001fae0"),
    "space": ("a b", "a  b", "a   b", " lead", "  lead", "trail ", "trail  ", " ", "  ", " " * 7, " " * 33, "a\u00a0b", "a\u3000b", "a\u2009b"),
    "lines": ("a\nb", "a\r\nb", "a\n\nb", "\n", "\n\n\n", "a \n b", "a\n  b\n    c", "\t", "\t\tx", "a\tb", "x\u2028y\u2029z", "a\x0bb\x0cc\x85d"),
    "digits": ("1", "12", "123", "1234", "12345", "123456789012345678901234567890", "3.14159", "1,000,000", "0x1F", "1e-10", "١٢٣", "१२३", "½ Ⅻ ①", "2²", "v1.2.3", "10:30"),
    "marks": ("...", "!?", "—–-", "“quoted” ‘single’", "«a»", "$5 €6 ¥7", "50%", "a_b-c", "#tag @user", "http://a.b/c?d=e&f=g#h", "me@example.org", "~~~", "\\n \\", "(((x)))"),
    "contractions": ("I'll we've IT'S don't", "'s 't 're", "’s it’s", "o'clock", "Y'ALL'D", "'Tis", "rock 'n' roll"),
    "code": ("def f(x):\n    return x**2\n", "if (a) {\n\tb();\n}", "for(;;){}", "SELECT * FROM t WHERE a='b';", "<div class=\"x\">y</div>", "a->b::c", "x=1;y=2", "#!/bin/sh", "{\"k\": [1, null]}", "i++ + ++i"),
    "case": ("camelCaseWords", "PascalCase", "SCREAMING_SNAKE", "mIxEd", "HTTPServer2Go", "aB", "XMLHttpRequest"),
    "control": ("a\x00b", "\x01\x02", "a\x1bb", "\x7f", "\ufeffbom", "a\u200bb", "a\u200db", "a\u00adb", "\ufffd", "\ue000", "\U0010fffd", "a\u2060b"),
    "long": ("a" * 40, "ab" * 30, "0" * 50, "字" * 20, "🙂" * 12, "-" * 70, "x y " * 20, "Donaudampfschifffahrtsgesellschaftskapitän"),
    "special": ("<|endoftext|>", "<s>", "</s>", "<unk>", "<pad>", "[CLS]", "[MASK]", "<|im_start|>user", "<0x0A>", "▁", "▁a", "Ġ", "##ing", "<mask>"),
}  # fmt: skip
COUNT = 500


def hard_strings(special: bool = True) -> list[str]:
    """Each text once, and seeded mixtures of them up to five hundred; without those that name special tokens if asked."""
    kinds = [kind for kind in BY_KIND if special or kind != "special"]
    single = [text for kind in kinds for text in BY_KIND[kind]]
    return [*single, *_mixtures(single, COUNT - len(single))]


def _mixtures(single: list[str], count: int) -> Iterator[str]:
    rng = random.Random(500)
    for _ in range(count):
        yield rng.choice(("", " ", "", "\n")).join(rng.choice(single) for _ in range(rng.randint(2, 5)))
