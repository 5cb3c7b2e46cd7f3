"""Where words begin and end in the text of any script, and that answers are cut there and keep every character."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realm_min import RealmTokenizerFast
from realm_min.text.words import whole_words, words

# Pieces of text whose parts belong together or do not; each with the words that it is.
SAMPLES = {
    "北京是中国的首都。": "北|京|是|中|国|的|首|都|。",
    "Bogota\u0301 is NFD": "Bogota\u0301|is|NFD",
    "हिन्दी भाषा": "हिन्दी|भाषा",
    "مُحَمَّد شَمْس": "مُحَمَّد|شَمْس",
    "שָׁלוֹם": "שָׁלוֹם",
    "กรุงเทพ": "ก|รุ|ง|เ|ท|พ",
    "น้ำ": "น้ำ",  # SARA AM is a mark, though Unicode calls it a letter
    "\u1112\u1161\u11ab\u1100\u116e\u11a8은": "\u1112\u1161\u11ab|\u1100\u116e\u11a8|은",
    "2000년 カナです": "2000|년|カ|ナ|で|す",
    "ភ្នំពេញ": "ភ្នំ|ពេ|ញ",  # the coeng binds ន below ភ
    "ရန်ကုန်": "ရ|န်|ကု|န်",  # the asat binds nothing
    "👩\u200d👩\u200d👧 family 👍🏽": "👩\u200d👩\u200d👧|family|👍🏽",
    "#\ufe0f\u20e3 ❤\ufe0f": "#\ufe0f\u20e3|❤\ufe0f",
    "ﬁne km²": "ﬁne|km²",
    "a\u200bb\u200b c\u00add": "a\u200bb|c\u00add",  # what the tokenizer drops parts no word, and ends none
    "a\x00b\u200e.": "a\x00b|.",
    "京\u0301abc \u0301def": "京\u0301|abc|def",
    "Oslo's well-known $5,000": "Oslo|'|s|well|-|known|$|5|,|000",
    "€5": "€5",
    "": "",
}
parts = [*SAMPLES, " ", "\n", "\u0301", "\u200d", "é", "𠮷", "🇳🇴", "İ"]
letters = st.integers(0x20, 0x2FFF) | st.integers(0xFE00, 0xFFEF) | st.integers(0x1F000, 0x1FAFF)
mixed = (st.lists(st.sampled_from(parts), max_size=6) | st.lists(letters.map(chr), max_size=12)).map("".join)
check = settings(deadline=None, derandomize=True, max_examples=60)


@pytest.fixture(scope="module")
def tokenizer(vocabulary):
    return RealmTokenizerFast(vocabulary)


@pytest.mark.parametrize("text, expected", SAMPLES.items(), ids=range(len(SAMPLES)))
def test_words(text, expected):
    assert "|".join(text[start:end] for start, end in words(text)) == expected


@pytest.mark.parametrize(
    "text, part, whole",
    [
        ("Area: 37,249 sq km (São Tomé).", "7,24", "37,249"),
        ("Area: 37,249 sq km (São Tomé).", "ão", "São"),
        ("Area: 37,249 sq km (São Tomé).", "(", "("),
        ("Oslo's port", "Oslo", "Oslo"),
        ("北京是中国的首都。", "北京", "北京"),
        ("Bogota\u0301.", "Bogota", "Bogota\u0301"),
        ("서울은 수도이다", "서울", "서울"),
        (" . ", " ", " "),  # no word at all
    ],
)
def test_a_span_is_widened_to_its_words(text, part, whole):
    first = text.index(part)
    start, end = whole_words(text, first, first + len(part))
    assert text[start:end] == whole


@check
@given(mixed)
def test_words_are_whole_clusters_of_every_letter(text):
    regex = pytest.importorskip("regex")  # an independent reading of the rules of clusters
    bounds = {0, *(match.end() for match in regex.finditer(r"\X", text))}
    found = words(text)
    assert all(start < end for start, end in found)
    assert all(end <= start for (_, end), (start, _) in zip(found, found[1:], strict=False))
    assert {bound for word in found for bound in word} <= bounds
    inside = {place for start, end in found for place in range(start, end)}
    assert not [char for i, char in enumerate(text) if char.isalnum() and i not in inside]


@check
@given(mixed, st.data())
def test_the_words_of_a_span_have_its_wordpieces(tokenizer, text, data):
    """The pieces of the widened text are those of the words it touches, and the span's are among them."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    offsets, tokens = encoded["offset_mapping"], encoded.tokens()
    if not tokens:
        return
    first = data.draw(st.integers(0, len(tokens) - 1))
    last = data.draw(st.integers(first, min(first + 9, len(tokens) - 1)))
    start, end = whole_words(text, offsets[first][0], offsets[last][1])
    assert start <= offsets[first][0] and offsets[last][1] <= end

    assert (start, end) == whole_words(text, start, end)
    inside = [i for i, (a, b) in enumerate(offsets) if start <= a and b <= end]
    if "[UNK]" not in tokens:  # a word that is cut out of another may be known
        expected = [tokens[i].removeprefix("##") for i in inside]
        assert [token.removeprefix("##") for token in tokenizer.tokenize(text[start:end])] == expected
    assert inside[0] <= first and last <= inside[-1]
