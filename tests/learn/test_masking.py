"""What is hidden: salient spans by rule, random tokens, random spans."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realm_min.learn import masking
from realm_min.learn.masking import MASKINGS, passage, passages, salient_choices, salient_spans
from realm_min.text.tokenizer import RealmTokenizer, RealmTokenizerFast

SALIENT = [
    ("It fell to Rome on 1 March 2024.", ["Rome", "1 March 2024"]),
    ("It fell in March 1901, and again on March 4, 1902.", ["March 1901", "March 4, 1902"]),
    ("Independence: 25 August (1825).", ["25 August (1825)"]),
    ("Independence: 7 July 1978 (from the UK).", ["7 July 1978", "UK"]),
    ("It grew in the 1820s until 1833.", ["1820s", "1833"]),
    # The year of a figure.
    ("Literacy - total: 99.7% (2021 est.). Forest: 57% (2023). Rate: -0.2% (2020-25 est.).", []),
    # A heading, also where the stop before it looks like an initial's.
    ("Real GDP growth rate 2023: 4.3%. Capital - name: Montevideo.", ["Montevideo"]),
    ("Geographic coordinates: 12 30 N, 69 58 W. Map references: Central America.", ["Central America"]),
    # Words that open a sentence.
    ("Tensions grew. In Cyprus they did. The Hague saw it. Britain too.", ["Cyprus", "Hague"]),
    ("Background: A former colony, it fought Spain.", ["Spain"]),
    ("He said (Many do) that Norway's king, J. Smith, met Dr. Jones.", ["Many", "Norway's", "J. Smith", "Dr. Jones"]),
    # Joined words; a joining word at the end of a run belongs to no name.
    ("west of the Bay of Bengal and Rio de Janeiro, of the north", ["Bay of Bengal", "Rio de Janeiro"]),
    ("along Côte d'Ivoire, Guinea-Bissau and the U.S. coast", ["Côte", "Guinea-Bissau", "U.S."]),
    # Centuries and eras, in figures and in words.
    ("In the 19th century, and the late 19th-century novel.", ["19th century", "late 19th-century"]),
    ("From the 16th and 17th centuries to the early 20th century", ["16th and 17th centuries", "early 20th century"]),
    (
        "of the fifth century BC, the Nineteenth century, the 2nd millennium",
        ["fifth century BC", "Nineteenth century", "2nd millennium"],
    ),
    ("killed in 44 BC and in AD 79, before the late 1920s", ["44 BC", "AD 79", "late 1920s"]),
    ("the 14th to the 17th centuries; a century, 20 centuries", ["14th to the 17th centuries"]),
    ("born on 25\u00a0April 1719", ["25\u00a0April 1719"]),
    # One word at a sentence's start: the subject of a verb, an owner, or met inside a sentence.
    (
        "Paris is the capital. Einstein developed it. Italy joined. Beijing won.",
        ["Paris", "Einstein", "Italy", "Beijing"],
    ),
    ("Texas was free. Germany's king left.", ["Texas", "Germany's"]),
    ("Baku, by the sea, is large. They saw Baku.", ["Baku", "Baku"]),
    ("Tensions rose. However, it was. Swimming is good. Physics has laws. Today is one. Education was free.", []),
    ("Scholars believed it. Wolves ended. Located there, it was. Written for him.", []),
    ("Glass is hard. The glass broke. Wolves had to go, and a wolf was. Cats, he said, led.", []),
    # No name: a single letter, part of a formula.
    ("of CO2 by vitamin C in plan B", []),
    ("", []),
    ("nothing here", []),
]


@pytest.mark.parametrize("text, expected", SALIENT)
def test_salient_spans(text, expected):
    assert [text[start:end] for start, end in salient_spans(text)] == expected


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.text(alphabet="aA1É .:,\n(2023)March-of'", max_size=60))
def test_salient_spans_lie_in_the_text_in_order(text):
    spans = salient_spans(text)
    assert all(0 <= start < end <= len(text) for start, end in spans)
    assert all(first[1] <= second[0] for first, second in zip(spans, spans[1:], strict=False))
    assert all(text[start:end].strip() == text[start:end] for start, end in spans)


@pytest.fixture(scope="module")
def tokenizer(vocabulary):
    return RealmTokenizerFast(str(vocabulary))


def words_of(found, positions, tokenizer):
    return tokenizer.convert_ids_to_tokens([found.ids[i] for i in positions])


def test_a_passage_carries_its_title(tokenizer, vocabulary):
    found = passage("Kyrgyzstan", "The capital is Bishkek.", tokenizer)
    assert found.text == "Kyrgyzstan. The capital is Bishkek."
    assert tokenizer.decode(found.ids) == "kyrgyzstan. the capital is bishkek."
    assert found.text[slice(*found.offsets[found.first])] == "The"
    begun = [found.text[slice(*o)] for o, begins in zip(found.offsets, found.begins_word, strict=True) if begins]
    assert begun[-3:] == ["is", "Bis", "."]
    assert passage("Kyrgyzstan", "The capital is Bishkek.", RealmTokenizer(str(vocabulary))) == found
    texts = [("Peru", "The capital is Lima."), ("Kyrgyzstan", "The capital is Bishkek.")]
    assert passages(texts, tokenizer)[1] == found and passages([], tokenizer) == []


def test_a_salient_span_is_masked_whole_and_alone(tokenizer):
    found = passage("Kyrgyzstan", "The capital of it is Bishkek, on the Chuy.", tokenizer)
    seen = set()
    for seed in range(20):
        positions = MASKINGS["salient"](found, np.random.default_rng(seed))
        seen.add(tuple(words_of(found, positions, tokenizer)))
    assert seen == {("bis", "##h", "##ke", "##k"), ("chu", "##y")}


def test_what_the_passage_says_twice_is_not_asked(tokenizer):
    """Neither a name that stands in the title, nor one that stands twice; part of another word is no repetition."""
    found = passage("New Zealand", "The land of New Zealand met Oslo, Oslo and Rom; Rome.", tokenizer)
    choices = [words_of(found, range(*span), tokenizer) for span in salient_choices(found)]
    assert choices == [["rom"], ["rome"]]


def test_a_tagger_takes_the_place_of_the_rules(tokenizer):
    found = passage("Peru", "the llama eats grass", tokenizer)
    assert masking.salient_span(found, np.random.default_rng(0)) == []

    def animals(text):
        assert text == "the llama eats grass"  # not the title
        return [(text.index("llama"), text.index("llama") + 5)]

    positions = masking.salient_span(found, np.random.default_rng(0), animals)
    assert words_of(found, positions, tokenizer) == ["ll", "##ama"]


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    st.lists(st.sampled_from(["Bishkek", "and", "1825", "antidisestablishmentarianism", "a,b", "ß"]), max_size=40),
    st.integers(0, 2**32),
    st.sampled_from(sorted(MASKINGS)),
)
def test_masks_for_any_passage(tokenizer, words, seed, name):
    found = passage("Title", " ".join(words), tokenizer)
    count = len(found.ids) - found.first
    positions = MASKINGS[name](found, np.random.default_rng(seed))
    assert positions == sorted(set(positions)) == MASKINGS[name](found, np.random.default_rng(seed))
    assert all(found.first <= i < len(found.ids) for i in positions)
    if name != "salient":
        assert len(positions) == (min(count, max(1, round(0.15 * count))))
    masked, labels = masking.mask(found.ids, positions, tokenizer.mask_token_id)
    for i, (was, now, label) in enumerate(zip(found.ids, masked, labels, strict=True)):
        assert (now, label) == ((tokenizer.mask_token_id, was) if i in positions else (was, -100))


def test_random_masks_are_spread_as_their_papers_say(tokenizer):
    found = passage("T", "one two three four five six seven eight nine ten " * 20, tokenizer)
    rng = np.random.default_rng(0)
    drawn = {name: [MASKINGS[name](found, rng) for _ in range(300)] for name in ("tokens", "spans")}
    maskable = len(found.ids) - found.first
    for name, draws in drawn.items():
        share = np.bincount(np.concatenate(draws), minlength=len(found.ids))[found.first :] / len(draws)
        assert abs(share.mean() - 0.15) < 1e-9, name
        assert share[20:-20].max() < 0.25 and share[20:-20].min() > 0.07, name  # no place is favoured
        runs = np.concatenate([np.diff(np.flatnonzero(np.diff([-9, *draw, 10**6]) > 1)) for draw in draws])
        # Neighbours by chance: 1 / (1 - 0.15). Spans: mean of min(Geometric(0.2), 10) is 4.46, some merged or cut.
        assert (1.1 < runs.mean() < 1.25) if name == "tokens" else (3.9 < runs.mean() < 5.5), name
    assert maskable == 200
