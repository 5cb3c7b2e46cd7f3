"""Documents to evidence blocks: nothing is lost, nothing is too long, the Factbook reads well."""

from itertools import islice

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sizes import LONG, cases

from realm_min.text.corpus import (
    Block,
    Document,
    _plain_lines,
    corpus_hash,
    cut_blocks,
    factbook_documents,
    from_record,
    record,
    split_sentences,
)
from realm_min.text.tokenizer import RealmTokenizerFast


@pytest.fixture(scope="module")
def tokenizer(vocabulary):
    return RealmTokenizerFast(vocab_file=str(vocabulary))


@pytest.fixture(scope="module")
def factbook():
    return list(factbook_documents())


def words(text):
    return " ".join(text.split())


# ---- sentences


@pytest.mark.parametrize(
    "text, sentences",
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("It rose 3.5 percent. Then 2.", ["It rose 3.5 percent.", "Then 2."]),
        ("The U.S. Army and J. R. R. Tolkien met.", ["The U.S. Army and J. R. R. Tolkien met."]),
        ("Dr. Lee met St. Paul at No. 5 Elm. He left.", ["Dr. Lee met St. Paul at No. 5 Elm.", "He left."]),
        ("War ended in 1945. Peace came.", ["War ended in 1945.", "Peace came."]),
        ("rank: 1. France 2. Spain", ["rank: 1. France 2. Spain"]),
        ('He said "no." She left (early.) They stayed.', ['He said "no."', "She left (early.)", "They stayed."]),
        ("e.g. this one, approx. 5 km", ["e.g. this one, approx. 5 km"]),
        ("18% (2025 est.). Area: 5", ["18% (2025 est.).", "Area: 5"]),
        ("no end. of sentence", ["no end. of sentence"]),
        ("Capital: Montevideo\nArea:  5\tsq km\r\n\n", ["Capital: Montevideo", "Area: 5 sq km"]),
        ("Élan vital. Über alles. «Oui»", ["Élan vital.", "Über alles. «Oui»"]),
        ("", []),
        (" \n\t ", []),
    ],
)
def test_sentences(text, sentences):
    assert split_sentences(text) == sentences


prose = st.text(st.sampled_from('ab Zé.!?,;:1 \n\t(")’U.S\u2028\x1c中가\u0301'), max_size=300)


@settings(deadline=None, derandomize=True, max_examples=cases(70))
@given(st.one_of(prose, st.text(max_size=200)))
def test_sentences_lose_nothing(text):
    sentences = split_sentences(text)
    assert " ".join(sentences) == words(text)
    assert all(sentence == words(sentence) != "" for sentence in sentences)


# ---- blocks


@settings(deadline=None, derandomize=True, max_examples=cases(50))
@given(
    st.lists(st.tuples(st.sampled_from(["", "Uruguay", "New  Zealand\n", "São Tomé"]), prose), max_size=5),
    st.integers(20, 60),
)
@example([("Uruguay", "word, " * 100 + "x" * 90 + "." * 200)], 20)
@example([("Uruguay", "가" * 99 + " 中" * 99)], 20)
@example([("", "a" * 101)], 20)
@example([("", "\u0301"), ("Uruguay", "\u0301"), ("", "a \u0301")], 20)
def test_blocks_fit_and_lose_nothing(tokenizer, pairs, limit):
    blocks = list(cut_blocks([Document(*pair) for pair in pairs], tokenizer, limit))
    for block in blocks:
        assert len(tokenizer(block.title, block.text)["input_ids"]) <= limit
    for title in {words(title) for title, _ in pairs}:
        texts = "".join(block.text for block in blocks if block.title == title)
        # A text without wordpieces, such as an accent alone, gives no block.
        read = [text for other, text in pairs if words(other) == title and tokenizer.tokenize(text)]
        expected = "".join(read)
        assert "".join(texts.split()) == "".join(expected.split())


@settings(deadline=None, derandomize=True, max_examples=cases(40))
@given(st.lists(st.sampled_from("one two, three; Four five. Six. Montevideo 3,449,444".split()), max_size=120))
def test_blocks_are_whole_words_greedily_filled(tokenizer, drawn):
    text = " ".join(drawn)
    blocks = list(cut_blocks([Document("Uruguay", text)], tokenizer, 30))
    assert " ".join(block.text for block in blocks) == text
    for block, following in zip(blocks, blocks[1:], strict=False):
        # What did not fit: the next sentence after a whole one; else a clause ends, or the next word did not fit.
        ends_sentence = block.text[-1] in ".!?"
        more = split_sentences(following.text)[0] if ends_sentence else following.text.split(" ")[0]
        together = len(tokenizer("Uruguay", f"{block.text} {more}")["input_ids"])
        assert together > 30 or (block.text[-1] in ",;" and not ends_sentence)


def test_limit_is_met_exactly(tokenizer):
    # [CLS] uruguay [SEP] + 25 times "word" + [SEP]: the title and the special tokens leave 25 of 29.
    (block,) = cut_blocks([Document("Uruguay", "word " * 25)], tokenizer, 29)
    assert block == Block("Uruguay", " ".join(["word"] * 25))
    assert [len(b.text.split()) for b in cut_blocks([Document("Uruguay", "word " * 26)], tokenizer, 29)] == [25, 1]


def test_long_sentence_is_cut_at_a_clause(tokenizer):
    text = "divisions: " + ", ".join(f"West Virginia {i}" for i in range(40))
    blocks = list(cut_blocks([Document("United States", text)], tokenizer, 40))
    assert len(blocks) > 3 and all(block.text.endswith(",") for block in blocks[:-1])
    assert " ".join(block.text for block in blocks) == text


def test_title_that_fills_the_block_is_refused(tokenizer):
    with pytest.raises(ValueError, match="title 'long long.*leaves no room .* 288: shorten the title"):
        list(cut_blocks([Document("long " * 278, "text")], tokenizer))
    with pytest.raises(ValueError, match="of document 'a/b.html' takes 278 wordpieces"):
        list(cut_blocks([Document("long " * 278, "text", "a/b.html")], tokenizer))
    assert len(list(cut_blocks([Document("long " * 277, "text")], tokenizer))) == 1


@pytest.mark.parametrize("limit", [1, 11])
def test_blocks_too_short_for_a_title_are_named(tokenizer, limit):
    message = f"title 'Bern' takes 1 wordpieces and leaves no room for text in a block of {limit}: allow 12 or more"
    with pytest.raises(ValueError, match=message):
        list(cut_blocks([Document("Bern", "text")], tokenizer, limit))
    assert len(list(cut_blocks([Document("Bern", "text")], tokenizer, 12))) == 1


def test_documents_without_text_give_no_block(tokenizer):
    assert list(cut_blocks([Document("Uruguay", " \n"), Document("", "")], tokenizer)) == []
    assert list(cut_blocks([Document("Uruguay", "\u200b\u200d\n\ufeff"), Document("", "\x07")], tokenizer)) == []
    assert len(list(cut_blocks([Document("Uruguay", "\u200b\nMontevideo")], tokenizer))) == 1


def test_cutting_streams(tokenizer):
    read = []

    def documents():
        for i in range(2000):
            read.append(i)
            yield Document(f"{i}", "text")

    next(cut_blocks(documents(), tokenizer))
    assert len(read) < 300


def test_record_and_hash():
    block = Block("Côte d'Ivoire", "Capital: Yamoussoukro.")
    assert record(block) == "Côte d'Ivoire. Capital: Yamoussoukro.".encode()
    assert record(Block("", "Capital: Lima.")) == b"Capital: Lima."
    for each in (block, Block("", ". Lima"), Block("A. B", "c")):
        assert from_record(record(each), each.title) == each
    assert from_record(record(block), "Peru") is None
    assert corpus_hash([block]) == corpus_hash(iter([Block(*block)]))
    hashes = {corpus_hash(blocks) for blocks in ([], [block], [block] * 2, [Block("a", "bc")], [Block("ab", "c")])}
    assert len(hashes) == 5


# ---- the Factbook


def test_plain_lines():
    html = '<p>The <em>World</em> &lt;1% &amp;&nbsp;C&ocirc;te</p><br><br /><!-- x\n<b>y --><a href="z">link</a> '
    assert _plain_lines(html) == ["The World <1% & Côte", "link"]


def test_factbook_titles(factbook):
    titles = {document.title for document in factbook}
    assert len(titles) == 256
    assert {
        "Uruguay",
        "United States",
        "Côte d'Ivoire",
        "Central African Republic",
        "European Union",
        "World",
    } <= titles
    assert {"Falkland Islands", "Cocos (Keeling) Islands", "Svalbard", "Vatican City", "Gaza Strip"} <= titles
    assert {"Dominican Republic", "Dominica", "Republic of the Congo", "Micronesia"} - titles == {"Micronesia"}


def test_factbook_reads_well(factbook):
    text = "\n".join(document.text for document in factbook)
    lines = set(text.split("\n"))
    assert {
        "Capital - name: Montevideo.",
        "Capital - name: Washington, D.C.",
        "Drinking water source - improved: urban: 99.7% of population (2022 est.).",
        "Real GDP growth rate 2024: 2.8% (2024 est.).",
        "Real GDP growth rate - note: annual GDP % growth based on constant local currency.",
    } <= lines
    assert "" not in lines - {document.text for document in factbook}
    for left_over in ("<p>", "<br", "</", "&nbsp;", "&lt;", "&amp;", "note: note:", "  "):
        assert left_over not in text
    assert all(line[-1] in ".!?:;" for line in lines if line)


def test_factbook_blocks(factbook, tokenizer):
    """One page in twelve; at length, all."""
    factbook = factbook if LONG else factbook[::12]
    blocks = list(cut_blocks(factbook, tokenizer))
    assert {block.title for block in blocks} == {document.title for document in factbook if document.text.strip()}
    pairs = [block.title for block in blocks], [block.text for block in blocks]
    encoded = tokenizer(*pairs, return_token_type_ids=False, return_attention_mask=False)
    assert max(map(len, encoded["input_ids"])) == 288
    cut = " ".join(block.text for block in blocks)
    assert cut == words(" ".join(document.text for document in factbook))
    assert corpus_hash(blocks[:50]) == corpus_hash(islice(cut_blocks(iter(factbook[:30]), tokenizer), 50))
