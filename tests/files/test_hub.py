"""Hub names in place of folders. No test downloads: `snapshot_download` is replaced, or the hub is offline."""

import fnmatch
import shutil
import sys
from pathlib import Path

import huggingface_hub
import huggingface_hub.errors
import pytest
import torch

from realm_min import AutoTokenizer, RealmConfig, RealmEmbedder, RealmRetriever, RealmTokenizer, RealmTokenizerFast
from realm_min.files.hub import FILES, find_folder, resolve_folder
from realm_min.jobs import warm_start

NAME = "google/realm-test"


class FakeHub:
    """A repository is a folder; downloading copies what the patterns match into another."""

    def __init__(self, repository: Path, cache: Path):
        self.repository, self.cache, self.fetched = repository, cache, []

    def snapshot_download(self, name: str, allow_patterns: list[str]) -> str:
        assert name == NAME
        self.cache.mkdir(exist_ok=True)
        for path in sorted(self.repository.iterdir()):
            if any(fnmatch.fnmatch(path.name, pattern) for pattern in allow_patterns):
                shutil.copy(path, self.cache)
                self.fetched.append(path.name)
        return str(self.cache)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    (tmp_path / "repository").mkdir()
    fake = FakeHub(tmp_path / "repository", tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    return fake


def test_folder_stays_as_it_is(tmp_path, hub):
    assert resolve_folder(tmp_path) == find_folder(tmp_path) == tmp_path
    assert resolve_folder(str(tmp_path), "config") == tmp_path
    assert hub.fetched == []


def test_folder_comes_before_a_hub_name(tmp_path, hub, monkeypatch):
    (tmp_path / NAME).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_folder(NAME) == Path(NAME)
    assert hub.fetched == []


SHARDED = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "pytorch_model.bin.index.json"]


@pytest.mark.parametrize(
    ("held", "parts", "fetched"),
    [
        (["config.json", "model.safetensors", "pytorch_model.bin", "tf_model.h5", "vocab.txt"], ("config", "weights"),
         ["config.json", "model.safetensors"]),
        (["config.json", "pytorch_model.bin", "README.md"], ("weights",), ["pytorch_model.bin"]),
        (["config.json", *SHARDED], ("config", "weights"), ["config.json", *SHARDED]),
        (["vocab.txt", "tokenizer.json", "block_records.npy", "pytorch_model.bin"], ("tokenizer", "blocks"),
         ["block_records.npy", "tokenizer.json", "vocab.txt"]),
        (["vocab.txt", "block_records.npy", "pytorch_model.bin", "config.json"], (),
         ["block_records.npy", "config.json", "vocab.txt", "pytorch_model.bin"]),
    ],
)  # fmt: skip
def test_only_the_files_needed_are_fetched(hub, held, parts, fetched):
    for name in held:
        (hub.repository / name).write_text(name)
    assert resolve_folder(NAME, *parts) == hub.cache
    assert hub.fetched == fetched


@pytest.mark.parametrize("safe_serialization", [True, False])
def test_model_and_config_from_a_hub_name(hub, safe_serialization):
    config = RealmConfig(
        vocab_size=31, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12,
        max_position_embeddings=16, retriever_proj_size=4,
    )  # fmt: skip
    model = RealmEmbedder(config, seed=3).eval()
    model.save_pretrained(hub.repository, safe_serialization=safe_serialization)
    assert RealmConfig.from_pretrained(NAME).vocab_size == 31
    loaded = RealmEmbedder.from_pretrained(NAME)
    ids = torch.arange(6)[None]
    assert torch.equal(loaded(ids).projected_score, model(ids).projected_score)
    assert set(hub.fetched) == {"config.json", "model.safetensors" if safe_serialization else "pytorch_model.bin"}


def test_training_starts_from_a_hub_name(hub):
    """As its --model may be: a part of a stage's folder comes first, then a folder, then the hub."""
    model = RealmEmbedder(RealmConfig(vocab_size=31, hidden_size=8, num_hidden_layers=1, num_attention_heads=2), seed=3)
    model.save_pretrained(hub.repository)
    ours = warm_start.embedder(NAME, seed=4).state_dict()
    assert all(torch.equal(tensor, ours[key]) for key, tensor in model.state_dict().items())
    assert "model.safetensors" in hub.fetched


@pytest.mark.parametrize("tokenizer_class", [RealmTokenizer, RealmTokenizerFast])
def test_tokenizer_and_retriever_from_a_hub_name(hub, tokenizer_class, vocabulary):
    RealmRetriever([b"one block", b"another"], tokenizer_class(vocabulary)).save_pretrained(hub.repository)
    assert tokenizer_class.from_pretrained(NAME).tokenize("Hello World") == ["hello", "world"]
    assert "block_records.npy" not in hub.fetched
    assert list(RealmRetriever.from_pretrained(NAME).block_records) == [b"one block", b"another"]


def test_names_of_bert_have_no_owner(tmp_path, monkeypatch, vocabulary):
    """Of the names without one these alone are asked for: "none" is a folder that is not there."""
    (tmp_path / "vocab.txt").write_bytes(vocabulary.read_bytes())
    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **options: asked.append((name, options)) or str(tmp_path)
    )
    for reader in (RealmTokenizer, RealmTokenizerFast, AutoTokenizer):
        tokenizer = reader.from_pretrained("bert-base-uncased", revision="main", token="hf_SECRET", proxies={})
        assert len(tokenizer) == 30522 and tokenizer.name_or_path == "bert-base-uncased"
    wanted = {"allow_patterns": FILES["tokenizer"][0], "revision": "main", "token": "hf_SECRET"}
    assert asked == [("bert-base-uncased", wanted)] * 3
    with pytest.raises(ValueError, match="proxies= is not passed on to the hub: set HTTPS_PROXY"):
        RealmConfig.from_pretrained("bert-base-uncased", proxies={"https": "https://proxy"})


@pytest.mark.parametrize("name", ["", "realm", "a/b/c", "../x", "google/", "/no/such/folder", "google/realm x"])
def test_neither_folder_nor_hub_name(hub, name, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for find in (find_folder, resolve_folder):
        with pytest.raises(FileNotFoundError, match="no folder .*: give the folder"):
            find(name)
    assert find_folder(NAME) is None and hub.fetched == []  # it can be one of the hub; nobody has asked there yet


def test_a_path_is_never_a_hub_name(hub):
    with pytest.raises(FileNotFoundError, match="no folder"):
        resolve_folder(Path(NAME))


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # an import of it now fails
    with pytest.raises(FileNotFoundError, match=r"pip install 'realm-min\[hub\]', or give the folder"):
        RealmConfig.from_pretrained(NAME)


@pytest.mark.parametrize(
    "error",
    [
        huggingface_hub.errors.LocalEntryNotFoundError("no connection\nsecond line"),
        huggingface_hub.errors.OfflineModeIsEnabled("offline mode"),
        huggingface_hub.errors.HFValidationError("bad name"),
        ConnectionError(),
    ],
)
def test_offline(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(FileNotFoundError, match=f"no folder '{NAME}'.*{type(error).__name__}.*give the folder") as info:
        RealmEmbedder.from_pretrained(NAME)
    assert "\n" not in str(info.value)


def test_every_part_names_files():
    assert set(FILES) == {"config", "weights", "tokenizer", "blocks"}
    with pytest.raises(KeyError):
        resolve_folder("google/none", "weight")
