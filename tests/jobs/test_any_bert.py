"""Any BERT is a start: folders of transformers' own classes, whole or without what only some of them have."""

import json
import re
import warnings

import eight_capitals
import pytest
import torch
from oracle import transformers

import realm_min
from realm_min.app import indexing
from realm_min.app.cli import main
from realm_min.jobs import baselines, warm_start
from realm_min.text.corpus import Document

SIZES = dict(
    vocab_size=160, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
    max_position_embeddings=128, hidden_act="gelu", initializer_range=0.2,
)  # fmt: skip
IDS, MASK = torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
NO_POOLER = ("BertForMaskedLM", "BertForTokenClassification", "BertForQuestionAnswering", "BertLMHeadModel")
NO_HEAD = ("BertModel", "BertForSequenceClassification", "BertForTokenClassification", "BertForQuestionAnswering")
CLASSES = sorted({*NO_POOLER, *NO_HEAD, "BertForPreTraining", "BertForNextSentencePrediction"})


def bert(name, **values):
    torch.manual_seed(2)
    return getattr(transformers, name)(transformers.BertConfig(**SIZES | values)).eval()


def trunk_of(model):
    return getattr(model, "bert", model)


def started(make, folder, **values):
    """A model and what was said of it."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = make(folder, 4, **values).eval()
    return model, [str(each.message) for each in said]


@pytest.mark.parametrize("safe_serialization", [True, False])
@pytest.mark.parametrize("name", CLASSES)
def test_folders_of_every_class(tmp_path, name, safe_serialization):
    theirs = bert(name)
    theirs.save_pretrained(tmp_path, safe_serialization=safe_serialization)
    with torch.no_grad():
        expected = trunk_of(theirs)(IDS, MASK)
    pooler = f"{tmp_path} has no pooler: it is drawn from the seed, and means nothing before it is trained"
    head = pooler.replace("pooler", "masked-language-model head")

    embedder, said = started(warm_start.embedder, tmp_path)
    found = embedder.realm(IDS, MASK)
    assert torch.allclose(found.last_hidden_state, expected.last_hidden_state, atol=1e-5)
    assert said == ([pooler] if name in NO_POOLER else [])
    if name not in NO_POOLER:
        assert torch.allclose(found.pooler_output, expected.pooler_output, atol=1e-5)

    encoder, said = started(warm_start.knowledge_encoder, tmp_path)
    assert said == ([head] if name in (*NO_HEAD, "BertForNextSentencePrediction") else [])
    if not said:
        with torch.no_grad():
            logits = theirs(IDS, MASK)
        logits = logits.get("logits", logits.get("prediction_logits"))
        assert torch.allclose(encoder(IDS, MASK).logits, logits, atol=1e-4)

    reader, said = started(warm_start.reader, tmp_path)
    assert torch.allclose(reader.realm(IDS, MASK).last_hidden_state, expected.last_hidden_state, atol=1e-5)
    assert said == []


def save(theirs, folder, change=dict, **given):
    theirs.config.save_pretrained(folder)
    torch.save(change(theirs.state_dict()), folder / "pytorch_model.bin", **given)


@pytest.mark.parametrize(
    ("change", "given"),
    [
        (dict, dict(_use_new_zipfile_serialization=False)),
        (lambda state: {key: x.half() for key, x in state.items()}, {}),
        (lambda state: {key: x.bfloat16() for key, x in state.items()}, dict(_use_new_zipfile_serialization=False)),
        (lambda state: {f"module.{key}": x for key, x in state.items()}, {}),
        (lambda state: {f"model.{key}": x for key, x in state.items()}, {}),
        (lambda state: {f"module.model.{key}": x for key, x in state.items()}, {}),
        (lambda state: {re.sub("LayerNorm.weight$", "LayerNorm.gamma", key): x for key, x in state.items()}, {}),
        (lambda state: {re.sub("LayerNorm.bias$", "LayerNorm.beta", key): x for key, x in state.items()}, {}),
        (lambda state: state | {"bert.embeddings.position_ids": torch.arange(128)[None]}, {}),
        (lambda state: {key: x for key, x in state.items() if key != "cls.predictions.bias"}, {}),
        (lambda state: {key: x for key, x in state.items() if "decoder" not in key}, {}),
    ],
)  # fmt: skip
def test_weights_as_others_wrote_them(tmp_path, change, given):
    theirs = bert("BertForMaskedLM")
    torch.nn.init.normal_(theirs.cls.predictions.bias)
    save(theirs, tmp_path, change, **given)
    encoder, said = started(warm_start.knowledge_encoder, tmp_path)
    with torch.no_grad():
        expected = theirs(IDS, MASK).logits
    tolerance = 1e-4 if change(theirs.state_dict()).popitem()[1].dtype == torch.float32 else 0.1
    assert said == [] and torch.allclose(encoder(IDS, MASK).logits, expected, atol=tolerance)


def test_a_question_encoder_of_dpr(tmp_path):
    config = transformers.DPRConfig(**SIZES, projection_dim=0)
    theirs = transformers.DPRQuestionEncoder(config).eval()
    theirs.save_pretrained(tmp_path)
    embedder, _ = started(warm_start.embedder, tmp_path)
    with torch.no_grad():
        expected = theirs(IDS, MASK).pooler_output  # of DPR the first position
    assert torch.allclose(embedder.realm(IDS, MASK).last_hidden_state[:, 0], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("values", "ours"), [(dict(hidden_act="swish"), "silu"), (dict(hidden_act="gelu_pytorch_tanh"), "gelu_new")]
)
def test_activations_under_other_names(tmp_path, values, ours):
    theirs = bert("BertModel", **values)
    theirs.save_pretrained(tmp_path)
    embedder, _ = started(warm_start.embedder, tmp_path)
    with torch.no_grad():
        expected = theirs(IDS, MASK).last_hidden_state
    assert embedder.config.hidden_act == ours
    assert torch.allclose(embedder.realm(IDS, MASK).last_hidden_state, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(model_type="roberta"), "describes a model of type 'roberta': give the folder of a BERT"),
        (dict(is_decoder=True), "is_decoder=True: REALM's encoder reads both ways"),
        (dict(position_embedding_type="relative_key"), "position_embedding_type='relative_key'"),
        (dict(num_hidden_layers=1), r"holds realm\.encoder\.layer\.1\..*, which its config.json does not tell of"),
        (dict(num_hidden_layers=3), r"holds no whole BERT trunk, realm\.encoder\.layer\.2\."),
        (dict(hidden_act="quick_gelu"), "hidden_act='quick_gelu' is unknown"),
    ],
)
def test_what_is_another_model_is_refused(tmp_path, change, message):
    bert("BertModel").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        warm_start.embedder(tmp_path)


def test_two_trunks_are_refused(tmp_path):
    theirs = bert("BertModel")
    save(theirs, tmp_path, lambda state: {f"{part}.{key}": x for part in ("a", "b") for key, x in state.items()})
    with pytest.raises(ValueError, match=r"holds 2 trunks, a\. and b\.: give the folder of one BERT"):
        warm_start.embedder(tmp_path)


@pytest.fixture
def folder(tmp_path):
    """A BertForMaskedLM with the vocabulary of eight capitals."""
    bert("BertForMaskedLM").save_pretrained(tmp_path / "bert")
    eight_capitals.tokenizer().save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def test_indexing_with_a_bert(folder, tmp_path):
    with pytest.warns(UserWarning) as said:
        model, tokenizer = indexing.load_unindexed(folder)
    assert "has no pooler: it is drawn" in str(said[0].message)
    assert "is a BERT, which no one has taught to retrieve or to read" in str(said[1].message)
    blocks = [Document(block.title, block.text) for block in eight_capitals.BLOCKS]
    ready = indexing.index(blocks, tmp_path / "ready", model, tokenizer)
    asked = realm_min.RealmForOpenQA.from_pretrained(ready, realm_min.RealmRetriever.from_pretrained(ready))
    (answer,) = asked.answer(["What is the capital of Peru?"])
    assert answer.text and asked.config.num_block_records == 8


@pytest.mark.parametrize("command", ["ict", "mlm"])
def test_training_from_a_bert(folder, tmp_path, capsys, command):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(block._asdict()) + "\n" for block in eight_capitals.BLOCKS))
    out = ["--out", str(tmp_path / "out"), "--steps", "1", "--batch-size", "4"]
    assert main([command, str(corpus), "--model", str(folder), *out]) == 0
    said = capsys.readouterr().err
    assert ("has no pooler: it is drawn from the seed" in said) == (command == "ict")


def test_sentences_are_means_of_tokens(folder, recwarn):
    """As sentence-transformers has it: the mean over all tokens, as long as the positions are, and the cosine."""
    tokenizer, trunk = eight_capitals.tokenizer(), bert("BertForMaskedLM").bert
    texts = [f"{block.title}. {block.text}" for block in eight_capitals.BLOCKS]
    texts.append("Capital: Lima. " * 40)  # more than 128 positions: cut
    questions = [question.question for question in eight_capitals.QUESTIONS]

    def embed(texts):
        with torch.no_grad():
            read = [tokenizer(text, truncation=True, max_length=128, return_tensors="pt") for text in texts]
            means = torch.stack([trunk(**inputs).last_hidden_state[0].mean(0) for inputs in read])
        return means / means.norm(dim=1, keepdim=True)

    counts = []
    report = lambda stage, done, total: counts.append((done, total))  # noqa: E731
    search, identity = baselines.baseline(str(folder), texts, torch.device("cpu"), report)
    assert counts == [(9, 9)] and not [said for said in recwarn if "pooler" in str(said.message)]
    scores, blocks = search(questions, 9)
    expected = embed(questions) @ embed(texts).T
    assert torch.allclose(scores, expected.gather(1, blocks), atol=1e-5)
    assert torch.equal(blocks.sort(dim=1).values, torch.arange(9).expand(8, 9))
    assert identity != baselines.baseline(str(folder), texts[:8], torch.device("cpu")).identity
    assert [tuple(tensor.shape) for tensor in search([], 2)] == [(0, 2), (0, 2)]
