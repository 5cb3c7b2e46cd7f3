"""Documents added to an index and taken out of it: the index that all of them at once would make, to the byte."""

import json
import os
import re
import shutil

import eight_capitals
import numpy as np
import pytest
import ranks
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from realm_min import RealmConfig, RealmForOpenQA, RealmRetriever
from realm_min.app import arguments, ask, default_model, indexing, merging, ready_folder
from realm_min.app.cli import main
from realm_min.files.packed import pack
from realm_min.jobs import embedding
from realm_min.text.corpus import Block, Document, Source, cut_blocks

TEXTS = [
    f"Capital: {city}. {'Its people like music and food. ' * n}" for n, city in enumerate(("Oslo", "Lima", "Paris"))
]
LIMIT = 24  # wordpieces: the last text takes two blocks


def tiny(seed=0, **values):
    config = RealmConfig(**eight_capitals.CONFIG | values, num_block_records=1, searcher_beam_size=9)
    return RealmForOpenQA(config, seed=seed).eval(), eight_capitals.tokenizer()


def index(documents, folder):
    return indexing.index(documents, folder, *tiny(), max_wordpieces=LIMIT)


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def counted(monkeypatch):
    """The blocks that are embedded, as they are."""
    blocks = []
    embed = indexing.embed_blocks

    def counting(embedder, tokenizer, new, *rest):
        blocks.extend(new)
        return embed(embedder, tokenizer, new, *rest)

    monkeypatch.setattr(indexing, "embed_blocks", counting)
    return blocks


# ---- the same bits


def test_a_block_has_the_same_bits_alone_and_in_company():
    """At sizes where a product of 16 blocks has others than one of a single block."""
    model, tokenizer = tiny(hidden_size=128, num_hidden_layers=2, intermediate_size=512)
    blocks = [Block("Norway", "Its people like music and food. " * (1 + i % 5)) for i in range(9)]
    together = embedding.embed_blocks(model.embedder, tokenizer, blocks)
    alone = torch.cat([embedding.embed_blocks(model.embedder, tokenizer, [block]) for block in blocks[::-1]])
    assert torch.equal(together, alone.flip(0))


drawn_documents = st.dictionaries(st.sampled_from("a b2 b10 c/d e".split()), st.sampled_from(TEXTS), max_size=3)


@settings(deadline=None, derandomize=True, max_examples=6)
@given(drawn_documents, st.lists(st.tuples(drawn_documents, st.sets(st.sampled_from("a b2 b10".split()))), max_size=3))
def test_added_and_removed_in_any_order_is_made_at_once(tmp_path_factory, first, steps):
    folder, held = tmp_path_factory.mktemp("any") / "ix", first | {"z": TEXTS[2]}
    index([Document("", text, name) for name, text in held.items()], folder)
    for given_documents, gone in steps:
        gone = sorted(gone & held.keys())
        if not given_documents and not gone:
            continue
        changes = indexing.add(
            [Document("", text, name) for name, text in given_documents.items()], folder, remove=gone
        )
        left = {name: text for name, text in held.items() if name not in gone}
        assert changes[:4] == (
            len(given_documents.keys() - left.keys()),
            sum(left.get(name, text) != text for name, text in given_documents.items()),
            sum(left.get(name) == text for name, text in given_documents.items()),
            len(gone),
        )  # fmt: skip
        held = left | given_documents
    at_once = [Document("", text, name) for name, text in sorted(held.items(), reverse=True)]
    assert files_of(folder) == files_of(index(at_once, folder.with_name("at once")))
    assert [path.name for path in sorted(folder.parent.iterdir())] == ["at once", "ix"]


def test_only_what_is_new_is_embedded(tmp_path, counted):
    folder = index([Document("", TEXTS[2], "a"), Document("", TEXTS[1], "b")], tmp_path / "ix")
    held = len(counted)
    changes = indexing.add([Document("", TEXTS[0], "c"), Document("", TEXTS[1], "b")], folder)
    assert changes == (1, 0, 1, 0, 1) and [block.text for block in counted[held:]] == [TEXTS[0].strip()]
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert indexing.add([Document("", TEXTS[1], "b")], folder) == (0, 0, 1, 0, 0)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before  # nothing was written
    assert indexing.add([], folder, remove=["a", "c"]) == (0, 0, 0, 2, 0) and len(counted) == held + 1
    model = RealmForOpenQA.from_pretrained(folder)
    assert model.config.searcher_beam_size == model.config.reader_beam_size == len(model.block_emb) == 1
    indexing.add([Document("", f"{TEXTS[0]} {i}", f"{i}") for i in range(12)], folder)
    config = RealmConfig.from_pretrained(folder)  # of so many blocks the model's own numbers are read again
    assert (config.num_block_records, config.searcher_beam_size, config.reader_beam_size) == (13, 9, 5)


# ---- stopped


def stopped(after):
    def report(stage, done, total):
        if stage == "Embedding blocks" and done >= after:
            raise KeyboardInterrupt

    return report


def test_interrupted_it_goes_on(tmp_path, monkeypatch, counted):
    monkeypatch.setattr(embedding, "SHARD_SIZE", 2)
    folder = index([Document("", TEXTS[0], "a")], tmp_path / "ix")
    before = files_of(folder)
    more = [Document("", f"{TEXTS[0]} {i}", f"{i}") for i in range(7)]
    with pytest.raises(KeyboardInterrupt, match=r"^4 of 7 blocks are embedded and kept in .*ix\.partial\. The same"):
        indexing.add(more, folder, report=stopped(5))
    assert files_of(folder) == before
    del counted[:]
    indexing.add(more, folder)
    assert len(counted) == 3
    assert files_of(folder) == files_of(index([Document("", TEXTS[0], "a"), *more], tmp_path / "at once"))


@pytest.mark.parametrize("renames", [1, 2])
def test_killed_between_the_renames_it_goes_on(tmp_path, monkeypatch, renames):
    """The folder is whole or as it was; the same command again ends what was begun."""
    folder = index([Document("", TEXTS[0], "a")], tmp_path / "ix")
    more, replace, done = [Document("", TEXTS[1], "b")], os.replace, []

    def killed(source, target):
        if folder in (source, target):
            if len(done) == renames:
                raise KeyboardInterrupt
            done.append(source)
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    if renames == 2:
        monkeypatch.setattr(shutil, "rmtree", lambda path, **rest: None if "ready" in str(path) else killed(folder, 0))
    with pytest.raises(KeyboardInterrupt):
        indexing.add(more, folder)
    assert folder.exists() == (renames == 2)
    monkeypatch.undo()
    text = tmp_path / "more.txt"
    assert main(["index", str(text), "--add-to", str(folder)]) == 2  # there is no such file; nothing was touched
    indexing.add(more, folder)
    assert files_of(folder) == files_of(index([Document("", TEXTS[0], "a"), *more], tmp_path / "at once"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["at once", "ix"]


def test_ctrl_c_on_700_blocks_keeps_what_was_done(tmp_path):
    documents = [Document("", f"Capital: Oslo. {i}", f"{i}") for i in range(700)]
    with pytest.raises(KeyboardInterrupt, match="^192 of 700 blocks are embedded and kept in "):
        indexing.index(documents, tmp_path / "ix", *tiny(), report=stopped(200))


# ---- what cannot be done


def fails(capsys, *words):
    assert main([str(word) for word in words]) == 2
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if line.startswith("realm-min: ")]
    return line


def test_what_cannot_be_added_or_removed(tmp_path, capsys):
    folder, texts = (
        index([Document("", TEXTS[0], "a.txt"), Document("", TEXTS[1], "b.txt")], tmp_path / "ix"),
        tmp_path / "c",
    )
    texts.mkdir()
    (texts / "b.txt").write_text(TEXTS[2])
    before = files_of(folder)
    add = ("--add-to", folder)
    assert "ix has no document 'a.text': did you mean a.txt?" in fails(capsys, "index", *add, "--remove", "a.text")
    assert "nothing would be left in" in fails(capsys, "index", *add, "--remove", "a.txt", "b.txt")
    assert "there is nothing to index: name a CORPUS" in fails(capsys, "index", *add)
    assert "has a model already: leave out --model m" in fails(capsys, "index", texts, *add, "--model", "m")
    assert "there is no folder" in fails(capsys, "index", texts, "--add-to", tmp_path / "none")
    assert "--remove takes documents out" in fails(capsys, "index", texts, "--remove", "a", "--out", tmp_path / "o")
    (tmp_path / "empty").mkdir()
    assert "the corpus has no text" in fails(capsys, "index", tmp_path / "empty", *add)
    assert "corpus='' is blank: give the name of" in fails(capsys, "index", "", *add)
    assert "holds a model, an index or a run" in fails(capsys, "index", folder, *add)
    assert files_of(folder) == before
    model = RealmForOpenQA.from_pretrained(folder)
    model.embedder.p["cls.dense.bias"] += 1
    model.save_pretrained(folder)
    assert "ix holds another model than the one that its blocks belong to" in fails(capsys, "index", texts, *add)


def test_documents_of_one_id(tmp_path):
    said = []
    same = [Document("", TEXTS[0], "a"), Document("", TEXTS[1], "b"), Document("", TEXTS[0], "a")]
    indexing.index(same, tmp_path / "ix", *tiny(), remark=said.append)
    assert said == ["1 documents came more than once, with the same text: a"]
    assert len(RealmRetriever.from_pretrained(tmp_path / "ix").block_records) == 2
    with pytest.raises(ValueError, match="two documents have the id 'a' and different texts"):
        index([*same, Document("b", TEXTS[0], "a")], tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ix"]


@given(st.lists(st.text(st.sampled_from("a/.019x\u0663")), max_size=9))
@settings(derandomize=True, max_examples=60)
def test_ids_are_sorted_with_numbers_by_value(ids):
    assert sorted("c2 c10 c1 b c01 ".split(" "), key=merging.order) == ["", "b", "c01", "c1", "c2", "c10"]
    assert sorted(set(ids), key=merging.order) == sorted(sorted(set(ids), reverse=True), key=merging.order)


# ---- ranks


def add_and_remove(folder):
    return indexing.add([Document("", TEXTS[2], "c"), Document("", TEXTS[1], "a")], folder, remove=["b"])


def test_ranks_add_what_one_process_adds(tmp_path):
    for name in ("ranks", "one"):
        index([Document("", TEXTS[0], "a"), Document("", TEXTS[0], "b")], tmp_path / name)
    changes = ranks.run(add_and_remove, 2, tmp_path / "ranks")
    assert changes == [add_and_remove(tmp_path / "one")] * 2 and changes[0].embedded == 2
    assert files_of(tmp_path / "ranks") == files_of(tmp_path / "one")
    said = ranks.finish(ranks.start(add_and_remove, 2, tmp_path / "one"))
    assert [outcome.error for outcome in said][1] == "SystemExit: 2" and "has no document 'b'" in said[0].error


# ---- folders of earlier versions


def test_a_folder_without_sources_is_read_and_added_to(tmp_path, capsys):
    documents = [Document("Norway", TEXTS[2], "a"), Document("", TEXTS[1], "b")]
    folder = index(documents, tmp_path / "ix")
    blocks = ready_folder.read_blocks(folder)
    (folder / "block_sources.jsonl").unlink()
    (folder / "manifest.json").write_text('{"format": 1, "model": "another hash"}')
    retriever = RealmRetriever.from_pretrained(folder)
    model = RealmForOpenQA.from_pretrained(folder, retriever=retriever)
    (answer,) = model.answer(["what is the capital of norway?"], 2)
    assert answer.document == str(answer.blocks[answer.block_rank].id) and answer.document_start is None
    assert answer.blocks[0].title in ("Norway", "") and answer.blocks[0].document_end is None
    with pytest.raises(ValueError, match="calls its blocks by their numbers, and a document is called '1'"):
        indexing.add([Document("", TEXTS[0], "1")], folder)
    indexing.add([Document("Peru", TEXTS[0], "new")], folder)
    retriever = RealmRetriever.from_pretrained(folder)
    assert [retriever.document(i) for i in range(len(retriever.block_records))] == [
        *map(str, range(len(blocks))),
        "new",
    ]
    assert ready_folder.read_blocks(folder)[:-1] == blocks
    assert torch.equal(RealmForOpenQA.from_pretrained(folder).block_emb[:-1], model.block_emb)
    (folder / "block_titles.txt").unlink()  # a folder of transformers' has neither
    (folder / "block_sources.jsonl").unlink()
    assert indexing.add([], folder, remove=["0"]).removed == 1
    assert len(RealmRetriever.from_pretrained(folder).block_records) == len(blocks)


def swapped(data, draw):
    lines = data.splitlines(keepends=True)
    first, second = draw(st.lists(st.integers(0, len(lines) - 1), min_size=2, max_size=2, unique=True))
    lines[first], lines[second] = lines[second], lines[first]
    return b"".join(lines)


def moved(data, draw):
    return data.replace(b'"start": 0', b'"start": %d' % draw(st.integers(1, 9)), 1)


def far(data, draw):
    return re.sub(
        rb'"end": (\d+)', lambda match: b'"end": %d' % draw(st.sampled_from([int(match[1]) + 1, 99_999])), data
    )


def flipped(data, draw):
    """One letter of a name for another."""
    places = [at for at, byte in enumerate(data) if byte in b"abcdwxyz"]
    at = draw(st.sampled_from(places))
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DAMAGED = {"block_sources.jsonl": (swapped, moved, far, flipped), "block_titles.txt": (swapped, flipped)}


@pytest.fixture(scope="module")
def indexed(tmp_path_factory):
    documents = [Document(f"city {'abcdwxyz'[i]}", text, f"doc {'abcdwxyz'[i]}") for i, text in enumerate(TEXTS)]
    return index(documents, tmp_path_factory.mktemp("indexed") / "ix")


@pytest.mark.parametrize(("name", "damage"), [(name, each) for name in DAMAGED for each in DAMAGED[name]])
@settings(deadline=None, derandomize=True, max_examples=4)
@given(data=st.data())
def test_damage_that_no_line_tells_is_seen(tmp_path_factory, indexed, name, damage, data):
    folder = tmp_path_factory.mktemp("damaged") / "ix"
    shutil.copytree(indexed, folder)
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(damage(whole, data.draw))
    assume((folder / name).read_bytes() != whole)
    before = files_of(folder)
    for read in (
        lambda: RealmRetriever.from_pretrained(folder),
        lambda: ready_folder.read_indexed(folder),
        lambda: indexing.add([Document("", TEXTS[0], "new")], folder),
    ):
        with pytest.raises(ValueError, match=rf"{name} is damaged \(its checksum is not that of manifest.json\)"):
            read()
    assert files_of(folder) == before
    (folder / "manifest.json").write_text(json.dumps({"format": 1}))  # an earlier version's
    retriever = RealmRetriever.from_pretrained(folder)
    if name == "block_titles.txt":
        numbers = range(len(retriever.block_records))
        with pytest.raises(ValueError, match="its title is '.*': index the corpus anew"):
            print([retriever.title(number) for number in numbers])


def test_blocks_that_the_manifest_does_not_know_are_not_added_to(tmp_path, indexed):
    folder = tmp_path / "ix"
    shutil.copytree(indexed, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"corpus": "0" * 64}))
    with pytest.raises(ValueError, match="holds other blocks than its manifest.json says: index the corpus anew"):
        indexing.add([Document("", TEXTS[0], "new")], folder)
    (folder / "manifest.json").write_text(json.dumps(manifest | {"crc32": [1]}))
    with pytest.raises(ValueError, match=r"manifest.json says crc32=\[1\], which are no checksums"):
        RealmRetriever.from_pretrained(folder)


def test_another_retriever_that_is_saved_in_its_place_is_whole(tmp_path, indexed):
    folder = tmp_path / "ix"
    shutil.copytree(indexed, folder)
    before, retriever = files_of(folder), RealmRetriever.from_pretrained(folder)
    retriever.save_pretrained(folder)
    assert files_of(folder) == before
    for sources in (retriever.sources.part(slice(0, 1)), None):
        other = RealmRetriever(retriever.block_records[:1], retriever.tokenizer, None, sources)
        other.save_pretrained(folder)
        assert RealmRetriever.from_pretrained(folder).document(0) == other.document(0)


@pytest.mark.parametrize("value", ["a", 0, -5, 1e999, True, None, [64]])
@pytest.mark.parametrize("name", ["max_wordpieces", "blocks", "searcher_beam_size"])
def test_a_damaged_manifest_is_named(tmp_path, name, value):
    (tmp_path / "manifest.json").write_text(json.dumps({"format": ready_folder.FORMAT, name: value}))
    with pytest.raises(
        ValueError, match=f"manifest.json says {name}=.*, which must be a number above 0: index it anew"
    ):
        ready_folder.read_manifest(tmp_path)


@pytest.mark.parametrize(
    "line", ["", "[1]", '{"document": 3, "start": 0, "end": 1}', '{"document": "a", "start": 0}', "[" * 99_999,
             '{"document": "a", "start": 0, "end": 1, "shifts": [1]}', '{"document": "a", "start": 0, "end": 1e999}',
             '{"document": "a", "start": NaN, "end": 1}', '{"document": "a", "start": "0", "end": 1}',
             '{"document": "a", "start": 0.5, "end": 1}', '{"document": "a", "start": false, "end": 1}',
             '{"document": "a", "start": 1, "end": 0}', '{"document": "a", "start": -1, "end": 0}',
             '{"document": "a", "start": 0, "end": 1, "shifts": [[0, Infinity]]}',
             '{"document": "\\ud800", "start": 0, "end": 1}', f'{{"document": "a", "start": 0, "end": {10**30}}}'],
)  # fmt: skip
def test_damaged_sources_are_named(tmp_path, line):
    retriever = RealmRetriever([b"a", b"b"], eight_capitals.tokenizer())
    retriever.save_pretrained(tmp_path)
    (tmp_path / "block_sources.jsonl").write_text(f'{{"document": "a", "start": 0, "end": 1}}\n{line}\n')
    retriever = RealmRetriever.from_pretrained(tmp_path)
    assert retriever.document(0) == "a" and retriever.sources[0] == Source("a", 0, 1)
    with pytest.raises(ValueError, match=r"block_sources.jsonl line 2 is damaged \(.*\): index the corpus anew"):
        retriever.document(1)
    (tmp_path / "block_sources.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="block_sources.jsonl has 1 lines for 2 blocks"):
        RealmRetriever.from_pretrained(tmp_path)


# ---- the Factbook and the model that ships


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A tiny model in place of the one that ships, whose block embeddings are not those that its embedder makes."""
    countries = [Document(block.title, block.text, f"xx/{i:02d}") for i, block in enumerate(eight_capitals.BLOCKS)]
    model, tokenizer = tiny()
    model = RealmForOpenQA(
        RealmConfig.from_dict(
            model.config.to_dict() | {"num_block_records": len(list(cut_blocks(countries, tokenizer)))}
        )
    )
    model.eval().block_emb.normal_(generator=torch.Generator().manual_seed(0))
    file = tmp_path / "tiny.realm"
    pack(model, tokenizer, countries, file, corpus="eight countries", extra_texts=ask.EXAMPLES, common_pieces=0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(default_model, "PACKED_FILE", file)
    monkeypatch.setattr(default_model, "read_documents", lambda corpus: countries if corpus == "factbook" else [])
    return countries


def test_the_factbook_and_one_document_embed_one_block(tmp_path, shipped, counted, capsys):
    (tmp_path / "chile.txt").write_text("Capital: Lima. Its people like music.")
    both = ["index", "factbook", str(tmp_path / "chile.txt"), "--out", str(tmp_path / "both")]
    assert main(both) == 0 and [block.title for block in counted] == ["chile"]
    assert main(["index", "factbook", "--out", str(tmp_path / "ix")]) == 0 and len(counted) == 1
    capsys.readouterr()
    assert main(["index", str(tmp_path / "chile.txt"), "--add-to", str(tmp_path / "ix")]) == 0 and len(counted) == 2
    assert "1 documents added, 0 replaced, 0 left as they were, 0 removed; 1 blocks embedded" in capsys.readouterr().err
    assert files_of(tmp_path / "ix") == files_of(tmp_path / "both")
    model = default_model.load()
    model.save_pretrained(tmp_path / "plain")
    model.retriever.save_pretrained(tmp_path / "plain")
    assert main(["index", str(tmp_path / "chile.txt"), "--add-to", str(tmp_path / "plain")]) == 0 and len(counted) == 3
    assert files_of(tmp_path / "plain") == files_of(tmp_path / "ix")
    found = RealmForOpenQA.from_pretrained(tmp_path / "ix").block_emb
    assert np.array_equal(found[1:], model.block_emb)  # "chile.txt" comes before "xx/00"
    retriever = RealmRetriever.from_pretrained(tmp_path / "ix")
    assert [retriever.document(i) for i in (0, 1, 8)] == ["chile.txt", "xx/00", "xx/07"]


def test_each_corpus_that_ships_is_embedded_already(tmp_path, shipped, counted, monkeypatch, capsys):
    of_corpus = {"leads": shipped[:3], "factbook": shipped[3:]}
    monkeypatch.setattr(default_model, "read_documents", of_corpus.get)
    monkeypatch.setattr(arguments, "read_documents", lambda corpus: None)
    for names, titles in ((("factbook",), shipped[3:]), (("leads",), shipped[:3]), (("factbook", "leads"), shipped)):
        out = tmp_path / "-".join(names)
        assert main(["index", *names, "--out", str(out)]) == 0 and not counted
        retriever = RealmRetriever.from_pretrained(out)
        assert [retriever.title(i) for i in range(len(retriever.block_records))] == [each.title for each in titles]
        assert len(RealmForOpenQA.from_pretrained(out).block_emb) == len(titles)


def test_another_factbook_is_embedded(tmp_path, shipped, counted, monkeypatch, capsys):
    monkeypatch.setattr(default_model, "read_documents", lambda corpus: shipped[1:] if corpus == "factbook" else [])
    monkeypatch.setattr(indexing, "read_documents", lambda corpus, skip: iter(shipped[1:]))
    assert main(["index", "factbook", "--out", str(tmp_path / "ix")]) == 0
    assert len(counted) == 7 and "here all of it is embedded" in capsys.readouterr().err


@pytest.mark.parametrize("name", [".", "../ix", "sub/.."])
def test_an_index_by_a_path_without_its_name(tmp_path, monkeypatch, name):
    documents = [Document(f"t{i}", text, f"d{i}") for i, text in enumerate(TEXTS)]
    index(documents[:2], tmp_path / "ix")
    index(documents, tmp_path / "whole")
    (tmp_path / "more.jsonl").write_text(json.dumps({"_id": "d2", "title": "t2", "text": TEXTS[2]}))
    (tmp_path / "ix" / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "ix")
    assert main(["index", "../more.jsonl", "--add-to", name]) == 0
    assert files_of(tmp_path / "ix") == files_of(tmp_path / "whole")
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"ix", "whole"}


def test_the_root_is_no_index(tmp_path, capsys):
    (tmp_path / "more.txt").write_text("Capital: Oslo.")
    assert main(["index", str(tmp_path / "more.txt"), "--add-to", "/"]) == 2
    assert "/ is no folder to write, since nothing can stand beside it: name one in it" in capsys.readouterr().err
