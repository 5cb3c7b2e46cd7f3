"""The model that ships: unpacked once however many ask, and anew when damaged; small on disk and in memory."""

import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import forked
import processes
import pytest
import ranks
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from realm_min.app import default_model
from realm_min.config import RealmConfig
from realm_min.files.packed import UNREAD, load_packed, pack
from realm_min.interface.open_qa import RealmForOpenQA
from realm_min.ranks import distributed
from realm_min.text.corpus import Document, cut_blocks, record
from realm_min.text.retriever import RealmRetriever
from realm_min.text.tokenizer import RealmTokenizerFast

DOCUMENTS = [
    Document("Uruguay", "Capital - name: Montevideo. " + " ".join(f"Field {i}: {i % 7} km." for i in range(90))),
    Document("São Tomé", "Language: português, 中文."),
    Document("Kenya", "Highest point: Mount Kenya 5,199 m."),
]
OF_CORPUS = {"leads": DOCUMENTS[:1], "factbook": DOCUMENTS[1:]}
QUESTION = "What is the capital of Uruguay?"
WORDS = "realm.embeddings.word_embeddings.weight"


@pytest.fixture(scope="module")
def packed_file(vocabulary, tmp_path_factory):
    """A packed model that is tiny."""
    tokenizer = RealmTokenizerFast(vocab_file=vocabulary)
    config = RealmConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, retriever_proj_size=8,
        span_hidden_size=8, num_block_records=len(list(cut_blocks(DOCUMENTS, tokenizer))), reader_beam_size=2,
    )  # fmt: skip
    model = RealmForOpenQA(config, seed=3).eval()
    model.block_emb.normal_(generator=torch.Generator().manual_seed(0))
    model.reader.p[WORDS].copy_(model.embedder.p[WORDS])
    path = tmp_path_factory.mktemp("packed") / "tiny.realm"
    pack(model, tokenizer, DOCUMENTS, path, corpus="three countries 1", extra_texts=[QUESTION], common_pieces=0)
    return path


@pytest.fixture
def cache(packed_file, tmp_path, monkeypatch):
    """An empty cache, and the tiny model as the default one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(default_model, "PACKED_FILE", packed_file)
    monkeypatch.setattr(default_model, "read_documents", OF_CORPUS.get)
    return tmp_path / "cache" / "realm-min"


def load(corpus="all", **arguments):
    """The default model and what was said meanwhile."""
    said = []
    return default_model.load(corpus, remark=said.append, **arguments), said


# ---- what is loaded


def test_it_is_the_packed_model(cache, packed_file):
    expected = load_packed(packed_file)[0].state_dict()
    for made in (load()[0], load()[0]):  # unpacked, and read from the cache
        assert not made.training and made.config.num_block_records == len(made.block_emb)
        found = made.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in found.items())
        assert not any(tensor.any() for key, tensor in found.items() if UNREAD.fullmatch(key))
        blocks = cut_blocks(DOCUMENTS, made.retriever.tokenizer)
        assert list(made.retriever.block_records) == [record(block) for block in blocks]


def test_a_corpus_of_it_is_searched_alone(cache, tmp_path):
    whole = load()[0]
    blocks = list(cut_blocks(DOCUMENTS, whole.retriever.tokenizer))
    leads = len(list(cut_blocks(OF_CORPUS["leads"], whole.retriever.tokenizer)))
    assert 1 < leads < len(blocks) - 1
    for corpus, numbers in (
        ("leads", range(leads)),
        ("factbook", range(leads, len(blocks))),
        ("all", range(len(blocks))),
    ):
        model, said = load(corpus)
        assert said == [] and torch.equal(model.block_emb, whole.block_emb[list(numbers)])
        assert {part.config.num_block_records for part in (model, model.embedder, model.reader)} == {len(numbers)}
        assert list(model.retriever.block_records) == [record(blocks[i]) for i in numbers]
        assert [model.retriever.title(i) for i in range(len(numbers))] == [blocks[i].title for i in numbers]
        model.save_pretrained(tmp_path / corpus)
        model.retriever.save_pretrained(tmp_path / corpus)
        again = RealmRetriever.from_pretrained(tmp_path / corpus)
        assert [again.document(i) for i in range(len(numbers))] == [whole.retriever.document(i) for i in numbers]
        k = min(2, len(numbers))
        scores, found = model.retrieve([QUESTION], k)
        expected = whole.retrieve([QUESTION], len(blocks))
        best = [(score, i) for score, i in zip(*(row[0].tolist() for row in expected), strict=True) if i in numbers][:k]
        assert [numbers[i] for i in found[0].tolist()] == [i for _, i in best]
        assert scores[0].tolist() == pytest.approx([score for score, _ in best], rel=1e-5)


def test_there_is_no_other_corpus(cache):
    with pytest.raises(ValueError, match="the default model has no corpus 'lead': give all, leads, factbook"):
        load("lead")
    assert not cache.exists()


def test_it_is_unpacked_once(cache, monkeypatch):
    reports = []
    model, said = load(progress=lambda: nullcontext(lambda *report: reports.append(report)))
    (path,) = cache.iterdir()
    assert said == [f"Unpacking the default model, this once, into {path}"]
    total = len(model.block_emb)
    assert reports == [("Cutting documents into blocks", done, total) for done in range(1, total + 1)]
    monkeypatch.setattr(default_model, "read_documents", None)
    again, said = load()
    assert said == [] and again.answer([QUESTION]) == model.answer([QUESTION])


def test_the_file_is_let_go(cache):
    model, _ = load()
    model, _ = load()
    (path,) = cache.iterdir()
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(path) not in maps.read_text(encoding="utf-8")


def test_what_its_parts_share_is_copied_when_written_to(cache):
    model, _ = load()
    before = model.embedder.p[WORDS].clone()
    model.reader.p[WORDS][5] += 1
    assert torch.equal(model.embedder.p[WORDS], before)
    assert torch.equal(model.reader.p[WORDS][5], before[5] + 1)
    model, _ = load()
    model.embedder.p[WORDS].zero_()
    assert torch.equal(model.reader.p[WORDS], before)


def test_a_plain_folder_is_made_of_it(cache, tmp_path):
    model, _ = load()
    folder = tmp_path / "plain"
    model.save_pretrained(folder)
    model.retriever.save_pretrained(folder)
    again = RealmForOpenQA.from_pretrained(folder, retriever=RealmRetriever.from_pretrained(folder))
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in model.state_dict().items())
    assert again.answer([QUESTION]) == model.answer([QUESTION])


def test_another_factbook(cache, monkeypatch):
    monkeypatch.setattr(default_model, "read_documents", {"leads": [], "factbook": DOCUMENTS[1:]}.get)
    with pytest.raises(
        ValueError, match="gives other blocks than three countries 1.*pip install three countries 1 and"
    ):
        load()
    assert list(cache.iterdir()) == []


# ---- damage


def check_made_anew(cache, damage):
    """Damage the file; it is made anew, and one line says so."""
    load()
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    damage(path, whole)
    model, said = load()
    assert said[0].startswith(f"{path} cannot be used (") and said[0].endswith("): it is made anew")
    assert len(said) == 2 and said[1].startswith("Unpacking")
    assert path.read_bytes() == whole and list(cache.iterdir()) == [path]
    return model


@pytest.fixture(scope="module")
def whole(packed_file):
    """The bytes of the file in the cache."""
    return default_model.unpacked(packed_file, OF_CORPUS, "three countries 1")


@settings(deadline=None, derandomize=True, max_examples=300)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_seen(whole, tmp_path_factory, place, bit):
    path, said = tmp_path_factory.getbasetemp() / "flipped.unpacked", []
    path.write_bytes(whole)
    assert default_model._read(path, said.append) is not None and said == []
    changed = bytearray(whole)
    changed[int(place * len(whole))] ^= 1 << bit
    path.write_bytes(changed)
    assert default_model._read(path, said.append) is None and len(said) == 1


def flip(path, whole):
    changed = bytearray(whole)
    changed[-1] ^= 1
    path.write_bytes(changed)


def replace_by_folder(path, whole):
    path.unlink()
    path.mkdir()
    (path / "config.json").write_text("{}", encoding="utf-8")


DAMAGE = {
    "a flipped bit": flip,
    "empty": lambda path, whole: path.write_bytes(b""),
    "cut in the magic": lambda path, whole: path.write_bytes(whole[:9]),
    "cut in the checksum": lambda path, whole: path.write_bytes(whole[: len(default_model.MAGIC) + 2]),
    "cut in the middle": lambda path, whole: path.write_bytes(whole[: len(whole) // 2]),
    "last byte missing": lambda path, whole: path.write_bytes(whole[:-1]),
    "a byte more": lambda path, whole: path.write_bytes(whole + b"\0"),
    "zeros": lambda path, whole: path.write_bytes(bytes(len(whole))),
    "another format": lambda path, whole: path.write_bytes(whole.replace(b"format 3", b"format 0", 1)),
    "an empty folder": lambda path, whole: (path.unlink(), path.mkdir()),
    "a folder": replace_by_folder,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_mended(cache, damage):
    check_made_anew(cache, damage)


def test_a_missing_file_is_made_anew(cache):
    model, _ = load()
    (path,) = cache.iterdir()
    path.unlink()
    again, said = load()
    assert len(said) == 1 and again.answer([QUESTION]) == model.answer([QUESTION])


def test_leftovers_are_removed(cache):
    load()
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    path.unlink()
    (cache / f".{path.name}.123.tmp").write_bytes(b"of a killed process")
    (cache / f"{path.name}.lock").touch()
    (cache / f"{path.name}.owner").write_text("process 123 on another", encoding="utf-8")
    for name in ("factbook-0123456789abcdef", "factbook-0123456789abcdef.partial"):
        (cache / name).mkdir()
        (cache / name / ".model.safetensors.7.tmp").write_bytes(b"of an earlier version")
    (cache / "factbook-0123456789abcdef.unpacked").write_bytes(b"of another version, which may be in use")
    (cache / "notes.txt").write_text("not ours", encoding="utf-8")
    load()
    assert {found.name for found in cache.iterdir()} == {
        path.name, "factbook-0123456789abcdef.unpacked", "notes.txt",
    }  # fmt: skip
    assert path.read_bytes() == whole


def test_a_cache_that_cannot_be_written(cache, tmp_path, monkeypatch):
    expected = load()[0].answer([QUESTION])
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    model, said = load()
    assert model.answer([QUESTION]) == expected and len(said) == 1
    assert "cannot be kept as" in said[0] and "set XDG_CACHE_HOME to a folder that can be written" in said[0]


def test_a_full_disk(cache, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    model, said = load()
    assert model.answer([QUESTION]) and len(said) == 2
    assert "cannot be kept as" in said[1] and "(No space left on device)" in said[1]
    assert list(cache.iterdir()) == []


def test_no_home(cache, monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", home)
    with pytest.raises(FileNotFoundError, match="home directory. Set XDG_CACHE_HOME"):
        load()


# ---- several processes


def ask(signs, name, packed_file):
    """Cutting begins by leaving a sign, and goes on when the test says so."""

    def read_documents(corpus):
        (signs / f"{name} cuts").touch()
        while not (signs / "go on").exists():
            time.sleep(0.05)
        return OF_CORPUS[corpus]

    default_model.PACKED_FILE = packed_file
    default_model.read_documents = read_documents
    forked.command("ask", "--json", QUESTION)


class Process:
    def __init__(self, name, cache, packed_file):
        self.name, self.signs = name, cache.parent
        self.signs.mkdir(parents=True, exist_ok=True)
        self.out, self.said = self.signs / f"{name} prints", self.signs / f"{name} said"
        self.process = forked.start(
            ask, self.signs, name, packed_file,
            files={1: self.out, 2: self.said}, environment={"XDG_CACHE_HOME": str(self.signs)},
        )  # fmt: skip

    def wait_until(self, text):
        """Until it has said `text`, or cuts documents."""

        def is_there():
            said = self.said.read_text(encoding="utf-8") if self.said.exists() else ""
            return text in said or (self.signs / f"{self.name} {text}").exists()

        processes.until(is_there, [self.process.pid], text)

    def answer(self):
        assert forked.finish(self.process) == 0, self.said.read_text(encoding="utf-8")
        return self.out.read_bytes()


def test_the_others_wait_for_the_first(cache, packed_file):
    first = Process("first", cache, packed_file)
    first.wait_until("cuts")
    others = [Process(name, cache, packed_file) for name in ("second", "third")]
    for other in others:
        other.wait_until(f"Waiting for process {first.process.pid} on ")
    (cache.parent / "go on").touch()
    answers = {process.answer() for process in (first, *others)}
    assert len(answers) == 1 and b'"answer"' in answers.pop()
    assert not any((cache.parent / f"{other.name} cuts").exists() for other in others)
    assert [path.suffix for path in cache.iterdir()] == [".unpacked"]


def test_the_next_goes_on_where_the_first_is_killed(cache, packed_file):
    first = Process("first", cache, packed_file)
    first.wait_until("cuts")
    second = Process("second", cache, packed_file)
    second.wait_until("Waiting for process")
    first.process.kill()
    first.process.join()
    second.wait_until("cuts")
    (cache.parent / "go on").touch()
    assert b'"answer"' in second.answer()
    assert [path.suffix for path in cache.iterdir()] == [".unpacked"]


def load_on_rank(cache, packed_file, question):
    os.environ["XDG_CACHE_HOME"] = str(cache.parent)
    default_model.PACKED_FILE = packed_file
    default_model.read_documents = OF_CORPUS.get
    first = distributed.world().is_first
    model, said = load(texts=first, sharded=True)
    answers = model.answer([question]) if first else None
    model.follow()
    return said, answers


@pytest.mark.parametrize("where", ["cache", "file/cache"])
def test_ranks_search_it_together(cache, packed_file, where):
    """Rank 0 unpacks it for all; where nothing can be written, each rank does."""
    expected = load()[0].answer([QUESTION])
    (cache.parent.parent / "file").touch()
    outcomes = ranks.run(load_on_rank, 2, cache.parent.parent / where / "ranks" / "realm-min", packed_file, QUESTION)
    ((first, answers), (second, _)) = outcomes
    assert answers == expected
    if where == "cache":
        assert len(first) == 1 and first[0].startswith("Unpacking") and second == []
    else:
        assert all(len(said) == 1 and "cannot be kept" in said[0] for said in (first, second))


# ---- other platforms

PLAIN = {name: [tuple(each) for each in some] for name, some in OF_CORPUS.items()}
# filelock comes first: on such a platform it has a lock of its own. The answer is asked for twice, and by two ranks.
WITHOUT_POSIX = f"""
import os, signal, sys
from pathlib import Path
import torch, subprocess, multiprocessing, filelock
for name in ("fcntl", "resource", "termios", "pty", "pwd", "grp", "triton"):
    sys.modules[name] = None
for name in ("SIGUSR1", "SIGUSR2", "SIGKILL", "SIGHUP", "SIGALRM", "pthread_kill", "sigwait", "setitimer"):
    delattr(signal, name)
for name in ("fork", "killpg", "getuid", "setsid", "wait4"):
    delattr(os, name)
from realm_min.app import default_model
from realm_min.app.cli import main
from realm_min.text.corpus import Document
default_model.PACKED_FILE = Path(sys.argv[1])
of_corpus = {PLAIN!r}
default_model.read_documents = lambda corpus: [Document(*each) for each in of_corpus[corpus]]
for _ in range(2):
    print(main(["ask", "--json", {QUESTION!r}]))
os.environ |= {{"RANK": "0", "WORLD_SIZE": "2"}}
print(main(["ask", "--json", {QUESTION!r}]))
"""


def test_ask_without_posix(cache, packed_file):
    expected = load()[0].answer([QUESTION])[0]
    for path in cache.iterdir():
        path.unlink()
    [(out, said)] = processes.run([sys.executable, "-c", WITHOUT_POSIX, packed_file])
    unpacked, first_status, read, second_status, status_of_ranks = out.splitlines()
    assert unpacked == read and f'"probability": {expected.probability!r}'[:24] in read
    assert (first_status, second_status, status_of_ranks) == ("0", "0", "2")
    made, _, refused = said.splitlines()  # and the progress
    assert made.startswith("Unpacking the default model")
    assert "WORLD_SIZE=2 asks for several ranks, which need the signals of Linux or macOS" in refused


# ---- memory


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_peak_memory_of_an_answer(default_cache):
    """The real one, beyond what torch alone takes, so that no other version of torch fails the test."""
    program = f"""
import torch
def print_peak():
    print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
print_peak()
from realm_min.app.cli import main
main(["ask", "--json", {QUESTION!r}])
print_peak()
"""
    [(out, said)] = processes.run(
        [sys.executable, "-c", program], env={**os.environ, "XDG_CACHE_HOME": str(default_cache)}
    )
    before, answer, after = out.splitlines()
    assert '"answer": "Montevideo"' in answer and said == ""
    assert (int(after) - int(before)) / 1024 < 250, (before, after)


def test_the_real_file_is_small(default_cache):
    (path,) = (default_cache / "realm-min").iterdir()
    assert path.stat().st_size < 3.2 * default_model.PACKED_FILE.stat().st_size
