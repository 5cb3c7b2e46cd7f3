"""The examples of transformers' documentation, read from the installed classes, run with the import line changed."""

import operator
import re
import textwrap
import warnings

import numpy as np
import pytest
import torch
from oracle import transformers

import realm_min

SIZES = dict(
    hidden_size=30, num_attention_heads=3, num_hidden_layers=1, intermediate_size=41, vocab_size=30522,
    retriever_proj_size=8, span_hidden_size=7, max_span_width=3, num_candidates=3, reader_beam_size=2,
    num_block_records=5, searcher_beam_size=4, reader_seq_len=60,
)  # fmt: skip
CLASSES = dict(
    embedder="RealmEmbedder", scorer="RealmScorer", encoder="RealmKnowledgeAugEncoder", openqa="RealmForOpenQA"
)
# What has an example of its own on REALM's page, and what it inherits one from, for which its class stands here.
DOCUMENTED = (
    "RealmConfig",
    "RealmTokenizer.batch_encode_candidates",
    "RealmTokenizerFast.batch_encode_candidates",
    "RealmEmbedder.forward",
    "RealmScorer.forward",
    "RealmKnowledgeAugEncoder.forward",
    "RealmForOpenQA.forward",
)
INHERITED = {"RealmConfig.from_pretrained": "RealmConfig", "RealmEmbedder.from_pretrained": "RealmEmbedder"}


def example_of(name):
    """The code of the one Python example in a docstring."""
    documented = operator.attrgetter(name)(transformers)
    if not documented.__doc__:
        documented()  # the oracle is absent
    (example,) = re.findall(r"```python\n(.*?)```", documented.__doc__, re.DOTALL)
    lines = textwrap.dedent(example).splitlines()
    if any(line.startswith(">>> ") for line in lines):
        lines = [line[4:] for line in lines if line[:4] in (">>> ", "... ")]
    return "\n".join(lines)


@pytest.fixture(scope="module")
def hub(tmp_path_factory, vocabulary):
    """A folder in which the names of the hub that the examples use are folders, of small random weights."""
    hub = tmp_path_factory.mktemp("hub")
    tokenizer = realm_min.RealmTokenizerFast(str(vocabulary))
    blocks = [b"Alan Mathison Turing was a pioneer of computer science.", b"Grace Hopper wrote a compiler."]
    retriever = realm_min.RealmRetriever(np.array((blocks * 3)[:5], dtype=object), tokenizer)
    for name in sorted({name for each in DOCUMENTED for name in re.findall(r'"(google/[\w-]+)"', example_of(each))}):
        model = getattr(realm_min, CLASSES[name.rpartition("-")[2]])(realm_min.RealmConfig(**SIZES), seed=1)
        if hasattr(model, "block_emb"):
            model.block_emb.copy_(torch.randn(5, 8, generator=torch.Generator().manual_seed(0)))
        model.save_pretrained(hub / name)
        retriever.save_pretrained(hub / name)
    for name in ("google-bert/bert-base-uncased", "test/saved_model"):
        realm_min.RealmEmbedder(realm_min.RealmConfig(**SIZES | dict(vocab_size=9)), seed=1).save_pretrained(hub / name)
    realm_min.RealmConfig(**SIZES).to_json_file(hub / "test" / "saved_model" / "my_configuration.json")
    return hub


def run(code, names):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of keywords that the examples give to show what becomes of them
        exec(code, names)
    return names


@pytest.mark.parametrize("name", DOCUMENTED)
def test_examples_run_with_only_the_import_changed(name, hub, monkeypatch):
    monkeypatch.chdir(hub)
    found = run(re.sub(r"^from transformers import", "from realm_min import", example_of(name), flags=re.M), {})
    if "projected_score" in found:
        assert found["projected_score"].shape == (1, 8)
    if "relevance_score" in found:
        assert found["relevance_score"].shape == (2, 2)
    if "logits" in found:
        assert found["logits"].shape == (4, 10, 30522)
    if "predicted_answer" in found:
        assert found["loss"].isfinite() and isinstance(found["predicted_answer"], str)
    if "tokenized_text" in found:
        assert len(found["tokenized_text"].input_ids) == 2
    if "configuration" in found:
        assert found["configuration"] is found["model"].config


@pytest.mark.parametrize("name", INHERITED)
def test_inherited_examples_run(name, hub, monkeypatch):
    """They are written for BERT, and go on to what TensorFlow and Flax are needed for."""
    monkeypatch.chdir(hub)
    code = re.sub(r"^from transformers import.*", "", example_of(name), flags=re.M).partition("# Loading from a TF")[0]
    found = run(code, {"BertConfig": realm_min.RealmConfig, "BertModel": realm_min.RealmEmbedder})
    config = found["config"] if "config" in found else found["model"].config
    assert config.output_attentions is True and config.vocab_size == 9
    assert found.get("unused_kwargs", {"foo": False}) == {"foo": False}


@pytest.mark.parametrize("method", ["from_pretrained", "add_tokens", "add_special_tokens"])
def test_inherited_examples_of_tokenizers_run(method, tmp_path, monkeypatch, vocabulary):
    """They are written for BERT and GPT-2, and make its tables larger, which a model here says that it does not do."""
    monkeypatch.chdir(tmp_path)
    words = vocabulary.read_text(encoding="utf-8") + "<unk>\n"
    code = example_of(f"RealmTokenizer.{method}").replace("model.resize_token_embeddings(len(tokenizer))", "")
    assert code.count("tokenizer = ") >= 1
    for name in {*re.findall(r"from_pretrained\(\"([\w./-]+)\"", code)}:
        path = tmp_path / name
        (path.parent if path.suffix else path).mkdir(parents=True, exist_ok=True)
        (path if path.suffix else path / "vocab.txt").write_text(words, encoding="utf-8")
        if not path.suffix:
            realm_min.RealmEmbedder(realm_min.RealmConfig(**SIZES | dict(vocab_size=9)), seed=1).save_pretrained(path)
    for tokenizer in (realm_min.RealmTokenizer, realm_min.RealmTokenizerFast):
        names = dict.fromkeys(("BertTokenizer", "BertTokenizerFast", "GPT2Tokenizer"), tokenizer)
        found = run(code, names | dict.fromkeys(("BertModel", "GPT2Model"), realm_min.RealmEmbedder))
        assert len(found["tokenizer"]) == words.count("\n") + found.get("num_added_toks", 0)


def test_the_example_of_auto_tokenizer_runs(tmp_path, monkeypatch, vocabulary):
    """But for its last line, which asks for RoBERTa's tokenizer."""
    monkeypatch.chdir(tmp_path)
    code = example_of("AutoTokenizer.from_pretrained").replace("from transformers import", "from realm_min import")
    code = code.partition("# Download vocabulary from huggingface.co and define")[0]
    for name in re.findall(r"^tokenizer = .*from_pretrained\(\"([\w/-]+)\"", code, re.M):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "vocab.txt").write_bytes(vocabulary.read_bytes())
    assert len(run(code, {})["tokenizer"]("Peru")["input_ids"]) == 3


# That of the scorer stops in transformers' own tokenizer: its two questions are not of one length.
@pytest.mark.parametrize("name", ["RealmEmbedder", "RealmKnowledgeAugEncoder", "RealmForOpenQA"])
def test_an_example_gives_transformers_numbers(name, hub, monkeypatch):
    """The example of each model once more, with transformers itself."""
    monkeypatch.chdir(hub)
    code = example_of(f"{name}.forward")
    torch.manual_seed(0)
    if name == "RealmForOpenQA":  # its retriever's file is read by a pickle, which is to be asked for
        code = code.replace("RealmRetriever.from_pretrained", "trusted")
    theirs = run(code, {"trusted": trusted})
    ours = run(code.replace("from transformers import", "from realm_min import"), {"trusted": trusted_by_us})
    for key in ("projected_score", "relevance_score", "logits", "loss"):
        if key in theirs:
            assert torch.allclose(ours[key], theirs[key], atol=1e-4), key
    assert ours.get("predicted_answer") == theirs.get("predicted_answer")


def trusted_by_us(folder):
    return realm_min.RealmRetriever.from_pretrained(folder)


def trusted(folder):
    return transformers.RealmRetriever(
        realm_min.RealmRetriever.from_pretrained(folder).block_records,
        transformers.RealmTokenizerFast.from_pretrained(folder),
    )
