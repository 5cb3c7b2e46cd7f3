"""Corpora as people have them: every kind is read, every document keeps its id, and what is left out is named."""

import codecs
import gzip
import json
import os
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from realm_min.text import lines
from realm_min.text.corpus import Document, cut_documents, factbook_documents
from realm_min.text.documents import read_documents
from realm_min.text.html_text import title_and_text
from realm_min.text.lines import json_lines
from realm_min.text.tokenizer import RealmTokenizerFast


def read(corpus):
    """The documents of a corpus, and what was skipped, as (why, which)."""
    skipped = []
    return list(read_documents(corpus, lambda *why: skipped.append(why))), skipped


# ---- one file


@pytest.mark.parametrize(
    "name, data, document",
    [
        ("a.txt", "ä".encode(), Document("a", "ä", "a.txt")),
        ("Rio.TXT", b"river", Document("Rio", "river", "Rio.TXT")),
        ("b.c.md", b"# B\n\nbee", Document("b.c", "# B\n\nbee", "b.c.md")),
        ("bom.txt", codecs.BOM_UTF8 + b"a", Document("bom", "a", "bom.txt")),
        ("le.txt", codecs.BOM_UTF16_LE + "ä\n".encode("utf-16-le"), Document("le", "ä\n", "le.txt")),
        ("be.txt", codecs.BOM_UTF16_BE + "ä\n".encode("utf-16-be"), Document("be", "ä\n", "be.txt")),
        ("32.txt", codecs.BOM_UTF32_LE + "ä".encode("utf-32-le"), Document("32", "ä", "32.txt")),
        ("crlf.txt", b"a\r\nb\rc", Document("crlf", "a\r\nb\rc", "crlf.txt")),
        ("a.txt.gz", gzip.compress(b"zipped", mtime=0), Document("a", "zipped", "a.txt.gz")),
        ("z.txt", gzip.compress(b"zipped", mtime=0), Document("z", "zipped", "z.txt")),
    ],
)
def test_a_file_of_text(tmp_path, name, data, document):
    (tmp_path / name).write_bytes(data)
    assert read(tmp_path / name) == ([document], [])
    assert read(tmp_path) == ([document], [])


PAGE = """<!DOCTYPE html><html><head><title>Oslo &amp; more</title><style>p {color: red}</style>
<script>var a = "<p>no</p>";</script></head><body><h1>Oslo</h1><p>It is the
capital of <b>Nor</b>way.<br>Cold.</p><noscript>no</noscript><!-- no --><ul><li>one</li><li>two</li></ul>
<table><tr><td>a</td><td>b</td></tr></table><script/><svg><title>no</title></svg></body></html>"""


@pytest.mark.parametrize(
    "part",
    [
        "<a ", "<!--", "<!", "<?", "</", "<![CDATA[", "<![CDATA[ > ", "<!-- > ", "<p a='", '<p a="', "<a ='> <a =\"> ",
        "<", "<title>", "<script>", "</script", "&", "&#9", "<a =", "<a " + "=" * 50, "<td></td", "<svg><svg/>",
    ],
)  # fmt: skip
def test_a_broken_page_is_read_once(part):
    """Not anew from each of its tags on: that would take hours for this one."""
    title_and_text(part * (100_000 // len(part)))
    title_and_text("&#" + "9" * 100_000)


@pytest.mark.parametrize(
    "page, title, text",
    [
        ("a < b<c", "", "a < b<c"),
        ("<p>1 <!-- > 2", "", "1 2"),
        ("<!-- a > b --> c <!", "", "c <!"),
        ("<a title='x>y'>z</a><a href=x/>w", "", "zw"),
        ("<title>a</title><title>b</TITLE><p/>c</p>", "ab", "c"),
        ("<style>a</stylex></style>b<script>a", "", "b"),
        ("&#99999999999;&#x41;&lt;p&gt;", "", "&#99999999999;A<p>"),
    ],
)
def test_what_a_broken_page_says(page, title, text):
    assert title_and_text(page) == (title, text)


@pytest.mark.parametrize(
    "name", "undefined hex rot13 base64 zlib punycode utf_8_sig utf-7 utf-16 utf-32 unicode_escape raw_unicode_escape x"
            " cp037".split(),
)  # fmt: skip
def test_an_encoding_that_is_none_of_a_page(tmp_path, name):
    """Python knows more of them than pages are written in."""
    path = tmp_path / "a.html"
    path.write_bytes(f"<meta charset='{name}'><p>+AGg- \\x41 \\ud800 é".encode())
    assert read(path) == ([Document("a", "+AGg- \\x41 \\ud800 é", "a.html")], [])


def test_a_page(tmp_path):
    path = tmp_path / "page.HTML"
    text = "Oslo\nIt is the capital of Norway.\nCold.\none\ntwo\na b"
    path.write_text(PAGE.replace("<script/>", ""), encoding="utf-8")
    assert read(path) == ([Document("Oslo & more", text, "page.HTML")], [])
    path.write_bytes(b"<meta charset='iso-8859-1'><p>K\xf8benhavn")
    assert read(path) == ([Document("page", "København", "page.HTML")], [])
    path.write_bytes(b"<meta charset='no-such'><p>a<script>x")
    assert read(path) == ([Document("page", "a", "page.HTML")], [])


# ---- records

A_AND_B = [Document("A", "a", "7"), Document("", "b b", "x/9")]


@pytest.mark.parametrize(
    "name, text",
    [
        ("jsonl.jsonl", '{"title": "A", "text": "a", "id": 7}\n\n{"text": "b b", "id": "x/9", "other": [1]}\n'),
        ("beir.jsonl", '{"_id": "7", "title": "A", "text": "a", "metadata": {}}\n{"_id": "x/9", "text": "b b"}'),
        ("pyserini.jsonl", '{"id": 7, "title": "A", "contents": "a"}\n{"id": "x/9", "title": null, "contents": "b b"}'),
        ("trec.ndjson", '{"docid": 7, "title": "A", "text": "a"}\n{"doc_id": "x/9", "text": "b b"}'),
        ("passages.jsonl", '{"pid": 7, "title": "A", "text": "a"}\n{"_id": null, "id": "x/9", "text": "b b"}'),
        ("pyserini.json", '[{"id": 7, "title": "A", "contents": "a"}, {"id": "x/9", "contents": "b b"}]'),
        ("psgs_w100.tsv", 'id\ttext\ttitle\n7\t"a"\tA\nx/9\tb b\t\n'),
        ("crlf.tsv", "id\ttext\ttitle\r\n7\ta\tA\r\nx/9\tb b\t\r\n"),
        ("other.tsv", "title\t_id\ttext\nA\t7\ta\n\tx/9\tb b\n"),
        ("bare.tsv", "7\ta\tA\nx/9\tb b\t\n"),
    ],
)
@pytest.mark.parametrize("form", ["utf-8", "utf-8-sig", "utf-16", "gz"])
def test_records(tmp_path, name, text, form):
    path = tmp_path / (name + ".gz" if form == "gz" else name)
    path.write_bytes(gzip.compress(text.encode(), mtime=0) if form == "gz" else text.encode(form))
    assert read(path) == (A_AND_B, [])
    assert read(tmp_path) == (A_AND_B, [])


def test_cells(tmp_path):
    """DPR's quotes are taken away, MS MARCO's stay; two columns have no title."""
    (tmp_path / "c.tsv").write_text('1\t"He said ""no"" twice."\n2\t"yes" and "no"\n3\tsay "a"\n', encoding="utf-8")
    assert read(tmp_path)[0] == [
        Document("", 'He said "no" twice.', "1"), Document("", '"yes" and "no"', "2"), Document("", 'say "a"', "3"),
    ]  # fmt: skip


def test_records_without_an_id_are_named_by_their_place(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.jsonl").write_text('{"text": "a"}\n\n{"text": "b", "id": ""}\n{"text": " ", "title": "C"}\n')
    (tmp_path / "sub" / "d.json").write_text('{"text": "d"}')
    documents = [
        Document("", "a", "sub/c.jsonl:1"),
        Document("", "b", "sub/c.jsonl:3"),
        Document("", "d", "sub/d.json:1"),
    ]
    assert read(tmp_path) == (documents, [("has no text", "sub/c.jsonl:4")])
    assert read(tmp_path / "sub" / "c.jsonl")[0][0].id == "c.jsonl:1"


@pytest.mark.parametrize("unseen", ["\u200b\u200d", "\u2060 \u00ad", "\ufe0f", "\x07\u2028"])
def test_what_is_not_seen_is_no_text(tmp_path, unseen):
    (tmp_path / "a.txt").write_text(f"a{unseen}", encoding="utf-8")
    (tmp_path / "b.txt").write_text(f"{unseen}\n", encoding="utf-8")
    documents, skipped = read(tmp_path)
    assert [document.id for document in documents] == ["a.txt"] and skipped == [("has no text", "b.txt")]


@pytest.mark.parametrize(
    "name, data, message",
    [
        ("c.jsonl", b'{"title": "A", "text": ', "line 2 is not valid JSON"),
        ("c.jsonl", b"[" * 100_000, "line 2 is not valid JSON"),
        ("c.jsonl", b"[1]", "line 2 is a list"),
        ("c.jsonl", b'{"title": "A"}', 'line 2 has no string "text"'),
        ("c.jsonl", b'{"title": 3, "text": "a"}', 'line 2 has no string "title"'),
        ("c.jsonl", b'{"title": "A", "text": "\xff"}', "line 2 is not valid JSON"),
        ("c.jsonl", b'{"title": "A", "text": "\\ud800"}', "line 2 holds half a surrogate pair"),
        ("c.jsonl", b'{"text": "a", "id": [1]}', "line 2 has an id that is neither text nor a whole number"),
        ("c.tsv", b"2", "line 2 has 1 columns, not id and text alone"),
        ("c.tsv", b"2\ta\tb\tc", "line 2 has 4 columns"),
        ("c.tsv", b"2\t\xff", "line 2 is not UTF-8 text"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes((b'{"text": "a", "id": 1}\n' if name == "c.jsonl" else b"1\ta\n") + data + b"\n")
    documents = read_documents(path)
    assert next(documents) == Document("", "a", "1")
    with pytest.raises(ValueError, match=message):
        next(documents)


# ---- folders


def test_what_is_no_document_is_named(tmp_path):
    files = {
        "a.txt": b"a", "b.md": b"b", "c.TXT": b"c", "sub/a.txt": b"d", "sub/deeper/e.htm": b"<p>e",  # documents
        "._a.txt": b"\0\xff", ".git/a.txt": b"no", ".ipynb_checkpoints/a.txt": b"no",
        "f.pdf": b"%PDF", "Makefile": b"all:", "sub/g.csv": b"a,b",
        "null.txt": b"a\0b", "latin.txt": b"caf\xe9", "package.json": b'{"name": "x"}', "half.json": b'{"text": ',
        "empty.txt": b"", "blank.md": b" \n",
        "ix/config.json": b'{"model_type": "realm"}', "ix/vocab.txt": b"[PAD]", "ix.lock": b"", "ix.owner": b"me",
        "next.partial/manifest.json": b'{"corpus": "0"}', "run/run.json": b'{"seed": 0}', "run/log.jsonl": b"{}",
        "beir/corpus.jsonl": b'{"_id": "B", "text": "b"}', "beir/queries.jsonl": b'{"_id": "B", "text": "no"}',
        "beir/qrels/test.tsv": b"query-id\tcorpus-id\tscore\n1\tB\t1\n",
    }  # fmt: skip
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "up").symlink_to(tmp_path)
    documents, skipped = read(tmp_path)
    assert [document.id for document in documents] == [
        "a.txt", "b.md", "B", "c.TXT", "sub/a.txt", "sub/deeper/e.htm"
    ]  # fmt: skip
    reasons = {}
    for why, which in skipped:
        reasons.setdefault(why, []).append(which)
    assert reasons == {
        "is hidden": ["._a.txt", ".git", ".ipynb_checkpoints"],
        "is of a kind that is not read": ["Makefile", "f.pdf", "sub/g.csv"],
        "is not text (it holds NUL bytes)": ["null.txt"],
        "is not UTF-8 text": ["latin.txt"],
        "is not valid JSON": ["half.json"],
        "holds no documents": ["package.json"],
        "has no text": ["blank.md", "empty.txt"],
        "holds a model, an index or a run": ["ix/", "next.partial/", "run/"],
        "holds BEIR's questions": ["beir/queries.jsonl"],
        "holds BEIR's judgements": ["beir/qrels/test.tsv"],
        "is no file": ["gone.txt"],
        "is a link to a folder": ["up/"],
    }


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_are_not_utf8(tmp_path):
    with open(os.fsencode(tmp_path) + b"/Bogot\xe1.txt", "wb") as file:
        file.write(b"a")
    assert read(tmp_path)[0] == [Document("Bogotá", "a", "Bogot\\xe1.txt")]


def test_what_may_not_be_read_is_named(tmp_path, monkeypatch):
    """Root may read all, and so the answer is changed here, not the file."""
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("a")
    monkeypatch.setattr(os, "access", lambda path, mode: path.name != "b.txt")
    documents, skipped = read(tmp_path)
    assert len(documents) == 1 and skipped == [("may not be read", "b.txt")]


def test_without_a_listener_what_is_skipped_is_warned_of(tmp_path):
    (tmp_path / "a.pdf").touch()
    with pytest.warns(UserWarning, match=r"a\.pdf is of a kind that is not read: it is skipped"):
        assert list(read_documents(tmp_path)) == []


def test_what_is_no_corpus_is_refused(tmp_path):
    with pytest.raises(
        FileNotFoundError, match='missing.jsonl does not exist: give "factbook", "leads", a folder, or a file'
    ):
        read_documents(tmp_path / "missing.jsonl")
    for name in ("text.pdf", "text", ".txt", "text.gz"):
        (tmp_path / name).touch()
        with pytest.raises(ValueError, match="is no corpus: give"):
            read_documents(tmp_path / name)
    for name in ("", " "):
        with pytest.raises(ValueError, match="is blank: give the name of a folder or a file"):
            read_documents(name)
    (tmp_path / "ix").mkdir()
    (tmp_path / "ix" / "config.json").write_text('{"model_type": "realm"}')
    with pytest.raises(ValueError, match="ix holds a model, an index or a run, no documents"):
        read_documents(tmp_path / "ix")
    for name, data, message in (
        ("n.txt", b"\0", r"n.txt is not text \(it holds NUL bytes\): take it out"),
        ("l.txt", b"\xff", r"l.txt is not UTF-8 text: convert it or take it out"),
        ("o.json", b"{}", r'o.json holds no documents: each needs a "text" or "contents"'),
        ("z.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 99, mtime=0)[:-9], "z.jsonl.gz is damaged or not gzipped"),
        (
            "l.json",
            b'{"text": "a"}\n{"text": "b"}\n',
            r"l.json is not valid JSON: name it .jsonl if each line is a rec",
        ),
        ("y.txt.gz", b"plain", "y.txt.gz is damaged or not gzipped"),
        ("u.jsonl", codecs.BOM_UTF16_LE + b"a", "u.jsonl is not the utf-16 that it begins as"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=message):
            list(read_documents(tmp_path / name))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other pipes")
def test_no_pipe_is_waited_for(tmp_path):
    """Nor is a device read that never ends, under whichever name it stands in a folder."""
    for name in ("config.json", "c.txt", "lines.jsonl"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "run.json").symlink_to("/dev/zero")
    (tmp_path / "a.txt").write_text("a")
    documents, skipped = read(tmp_path)
    assert documents == [Document("a", "a", "a.txt")]
    assert skipped == [("is no file", name) for name in ("c.txt", "config.json", "lines.jsonl", "run.json")]
    with pytest.raises(FileNotFoundError, match=r"c\.txt is a device or a pipe, where a file is to be read"):
        read_documents(tmp_path / "c.txt")


@pytest.mark.parametrize("name", ["bomb.txt.gz", "bomb.jsonl.gz", "bomb.json.gz", "bomb.html.gz", "bomb.tsv.gz"])
def test_what_unzips_to_far_more_than_text_is_refused(tmp_path, monkeypatch, name):
    """Not after it has filled the memory."""
    monkeypatch.setattr(lines, "ROOM", 1000)
    path, size = tmp_path / name, 1 << 20
    path.write_bytes(gzip.compress(b'{"text": "' + b"a" * size, mtime=0))
    assert path.stat().st_size * lines.MOST_UNZIPPED < size // 4
    with pytest.raises(ValueError, match=f"{name} unzips to more than 100 times its size, as no text does: unzip it"):
        list(read_documents(path))


def test_records_stream(tmp_path):
    """A file with a fault at its end gives what stands before it."""
    path = tmp_path / "c.jsonl.gz"
    path.write_bytes(
        gzip.compress(json.dumps({"text": "word " * 1000}).encode() + b"\n") * 2 + gzip.compress(b"{", mtime=0)
    )
    records = json_lines(path)
    assert [next(records)[0], next(records)[0]] == [1, 2]
    with pytest.raises(ValueError, match="line 3 is not valid JSON"):
        next(records)


def test_the_factbook_has_ids():
    first = next(factbook_documents())
    assert first.id.split("/")[0] == "aa" and first.id.count("/") == 1


# ---- where blocks stand in their documents


@pytest.fixture(scope="module")
def tokenizer(vocabulary):
    return RealmTokenizerFast(vocab_file=str(vocabulary))


prose = st.text(st.sampled_from('ab Zé.!?,;:1 \r\n\t(")’U.S\u2028\x1c中가\u0301'), max_size=200)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(prose, max_size=3), st.integers(20, 50))
@example([" \n  One.  Two,\r\n\r\nthree. " + "x" * 90 + "\t\tFour five. " * 9], 20)
@example(["가" * 99 + "  中" * 99], 20)
def test_every_character_of_a_block_is_found_in_its_document(tokenizer, texts, limit):
    documents = [Document("Uruguay", text, f"{i}") for i, text in enumerate(texts)]
    covered = {i: "" for i in range(len(texts))}
    for block, source in cut_documents(documents, tokenizer, limit):
        text = texts[int(source.document)]
        for i, letter in enumerate(block.text):
            assert letter == " " or text[source.place(i)] == letter
        assert source.start == source.place(0) and source.end == source.place(len(block.text) - 1) + 1
        assert source.shifts == tuple(sorted(source.shifts))
        covered[int(source.document)] += text[source.start : source.end]
    for i, text in enumerate(texts):
        assert "".join(covered[i].split()) == "".join(text.split())


def test_text_of_single_spaces_has_no_shifts(tokenizer):
    document = Document("Uruguay", "One two three.\nFour five. " * 40, "u.txt")
    cut = list(cut_documents([document], tokenizer, 40))
    assert len(cut) > 5 and all(source.shifts == () for _, source in cut)
    assert all(document.text[each.start : each.end].replace("\n", " ") == block.text for block, each in cut)
