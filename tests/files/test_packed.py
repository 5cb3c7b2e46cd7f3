"""Packed models: what is stored comes back, within the rounding that the format promises, or one error says why not."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from realm_min.config import RealmConfig
from realm_min.files.packed import (
    UNREAD,
    _largest_within,
    is_quantized,
    levels_of,
    load_packed,
    pack,
    pieces_that_stay,
)
from realm_min.files.packed import _tokenizer as pruned_tokenizer
from realm_min.files.quantization import dequantize, feedback_factor, quantize, round_with_feedback
from realm_min.interface.inputs import Inputs
from realm_min.interface.open_qa import RealmForOpenQA
from realm_min.text.corpus import Document, corpus_hash, cut_blocks
from realm_min.text.tokenizer import RealmTokenizerFast

DOCUMENTS = [
    Document("Uruguay", "Capital - name: Montevideo. " + " ".join(f"Field {i}: {i % 7} km." for i in range(90))),
    Document("São Tomé", "Language: português, 中文. Unspellable: \U0001f600."),
    Document("Kenya", "Highest point: Mount Kenya 5,199 m."),
]
QUESTIONS = ["Who governs Zanzibar?", "What is the capital of Uruguay?"]
OPTIONS = {"corpus": "three countries 1", "budget": 70_000, "extra_texts": QUESTIONS, "common_pieces": 0}


@pytest.fixture(scope="module")
def tokenizer(vocabulary):
    return RealmTokenizerFast(vocab_file=vocabulary)


@pytest.fixture(scope="module")
def blocks(tokenizer):
    return list(cut_blocks(DOCUMENTS, tokenizer))


@pytest.fixture(scope="module")
def model(blocks):
    config = RealmConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        retriever_proj_size=8,
        span_hidden_size=8,
        num_block_records=len(blocks),
        searcher_beam_size=3,
        reader_beam_size=2,
    )
    model = RealmForOpenQA(config, seed=3).eval()
    state = model.state_dict()
    state["reader.realm.embeddings.word_embeddings.weight"].copy_(
        state["embedder.realm.embeddings.word_embeddings.weight"]
    )
    generator = torch.Generator().manual_seed(0)
    model.block_emb.normal_(generator=generator)
    for tensor in state.values():
        if tensor.dim() == 1:
            tensor.normal_(generator=generator)
    return model


@pytest.fixture(scope="module")
def path(model, tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "model.bin"
    pack(model, tokenizer, DOCUMENTS, path, **OPTIONS)
    return path


@pytest.fixture(scope="module")
def loaded(path):
    return load_packed(path)


# ---- weights


@settings(deadline=None, derandomize=True)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 40)),
    levels=st.floats(1, 32),
    scale=st.sampled_from([1e-6, 1e-3, 1.0, 1e3]),
    seed=st.integers(0, 2**32 - 1),
)
def test_quantize_rounds_to_the_nearest_multiple(shape, levels, scale, seed):
    random = np.random.default_rng(seed)
    matrix = (random.standard_t(2, shape) * scale).astype(np.float32)
    matrix[0] = 0
    codes, rows, columns = quantize(matrix, levels)
    assert codes.dtype == np.int8 and rows.dtype == columns.dtype == np.float16
    assert rows.shape == shape[:1] and (columns == 1).all()
    restored = dequantize(codes, rows, columns).numpy()
    assert restored.dtype == np.float32 and not restored[0].any()
    wanted = np.maximum(matrix.std(1) / levels, np.abs(matrix).max(1) / 127)
    # float16 keeps 11 bits of a step, and its own smallest steps are 2^-24.
    assert (np.abs(rows - wanted) <= wanted * 2**-11 + 2**-25).all()
    assert (np.abs(restored - matrix) <= rows.astype(np.float32)[:, None] * 0.5001 + 127 * 2**-25).all()


def test_one_outlier_is_not_clipped():
    matrix = np.full((1, 400), 0.01, np.float32)
    matrix[0, 7] = 5.0
    restored = dequantize(*quantize(matrix, 32)).numpy()
    assert abs(restored[0, 7] - 5) < 5e-3


@settings(deadline=None, derandomize=True)
@given(
    inputs=st.integers(1, 40),
    outputs=st.integers(1, 20),
    at_once=st.integers(1, 50),
    seed=st.integers(0, 2**32 - 1),
)
def test_feedback_moves_later_inputs(inputs, outputs, at_once, seed):
    """Against the plain loop: after each rounding, the inputs left are those that serve the output best."""
    random = np.random.default_rng(seed)
    weights = random.standard_normal((inputs, outputs)).astype(np.float32)
    steps = random.uniform(0.05, 0.5, (inputs, outputs)).astype(np.float32)
    x = random.standard_normal((3 * inputs, inputs)) @ random.standard_normal((inputs, inputs))
    moment = x.T @ x / len(x) + 0.1 * inputs * np.eye(inputs)
    feedback = np.linalg.cholesky(np.linalg.inv(moment)).T
    rest, expected = weights.astype(np.float64), np.empty((inputs, outputs))
    for j in range(inputs):
        expected[j] = np.clip(np.rint(rest[j] / steps[j]), -127, 127)
        error = rest[j] - expected[j] * steps[j]
        if j + 1 < inputs:  # the least-squares answer to the error so far: solve H_rr d = H_rj e
            later = slice(j + 1, None)
            rest[later] += np.linalg.solve(moment[later, later], moment[later, j : j + 1]) @ error[None]
    codes = round_with_feedback(weights, steps, feedback.astype(np.float32), at_once)
    assert codes.dtype == np.float32 and np.abs(codes).max() <= 127
    # Where float32 and float64 round a tie apart, both are right, and what follows differs.
    assert (codes != expected).any(0).sum() <= 1 + outputs // 10


@settings(deadline=None, derandomize=True, max_examples=25)
@given(rank=st.integers(1, 30), levels=st.floats(1.5, 8), seed=st.integers(0, 2**32 - 1))
def test_feedback_serves_the_output(rank, levels, seed):
    """On correlated inputs W x is nearer than rounding to the nearest brings it, in no more bits."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((2000, rank)) @ random.standard_normal((rank, 96))
    x += 0.3 * random.standard_normal((2000, 96))
    matrix = random.standard_normal((64, 96)).astype(np.float32)
    feedback = feedback_factor((x.T @ x / len(x)).astype(np.float32))
    fed, plain = quantize(matrix, levels, feedback), quantize(matrix, levels)
    error = [np.square(x @ (dequantize(*found).numpy() - matrix).T).mean() for found in (fed, plain)]
    assert error[0] < 0.8 * error[1]
    bits = [np.log2(4.13 * np.maximum(found[0].std(0), 0.25)).sum() for found in (fed, plain)]
    assert bits[0] < 1.1 * bits[1]


def test_feedback_factor():
    moment = np.array([[4.0, 1.0], [1.0, 2.0]])
    factor = feedback_factor(moment).astype(np.float64)
    assert factor[1, 0] == 0
    inverse = np.linalg.inv(moment + 0.03 * 3.0 * np.eye(2))
    np.testing.assert_allclose(factor.T @ factor, inverse, rtol=1e-6)
    assert np.isfinite(feedback_factor(np.ones((5, 5), np.float32))).all()  # of rank 1


def test_weights_come_back(model, tokenizer, loaded):
    restored, pruned, manifest = loaded
    kept = torch.tensor([tokenizer.vocab[piece] for piece in pruned.vocab])
    new, old = restored.state_dict(), model.state_dict()
    assert new.keys() == old.keys() and not restored.training
    for key, tensor in old.items():
        if UNREAD.fullmatch(key):
            continue
        if "word_embeddings" in key:
            tensor = tensor[kept]
        assert new[key].dtype == torch.float32 and new[key].shape == tensor.shape
        if is_quantized(key, tuple(tensor.shape)):
            steps = torch.maximum(
                tensor.std(1, correction=0) / levels_of(key, manifest["levels"]), tensor.abs().amax(1) / 127
            )
            most = 20 if "encoder" in key else 0.502  # feedback moves single weights further
            assert ((new[key] - tensor).abs().amax(1) <= most * steps).all(), key
            assert (new[key] - tensor).abs().max() > 0 or steps.max() == 0, key
        else:
            assert torch.equal(new[key], tensor.half().float()), key
    assert not any(tensor.any() for key, tensor in new.items() if UNREAD.fullmatch(key))
    assert (
        manifest["weights"]
        == sum(
            tensor.numel()
            for key, tensor in new.items()
            if is_quantized(key, tuple(tensor.shape)) and not UNREAD.fullmatch(key)
        )
        - len(kept) * 16
    )  # the word embeddings that both parts share are stored once


def test_nothing_reads_what_is_left_out(model):
    """Other values in the tensors that a packed model lacks change no output."""
    inputs = {"input_ids": torch.arange(5, 45)[None]}
    read = {**inputs, "relevance_score": torch.zeros(1), "block_mask": torch.ones(1, 40, dtype=torch.bool)}
    changed = RealmForOpenQA(model.config, initialize=False).eval()
    changed.load_state_dict(
        {key: tensor + 1 if UNREAD.fullmatch(key) else tensor for key, tensor in model.state_dict().items()}
    )
    one, two = model.embedder(**inputs).projected_score, changed.embedder(**inputs).projected_score
    assert torch.equal(one, two)
    ids, *blocks = read.values()
    one, two = (part.reader.span_logits(Inputs(ids), *blocks)[0] for part in (model, changed))
    assert torch.equal(one, two)


def test_embeddings_stay_near(model, tokenizer, loaded, blocks):
    restored, pruned, _ = loaded
    texts = [block.text for block in blocks] + QUESTIONS
    one = model.embedder(**tokenizer(texts, padding=True, return_tensors="pt")).projected_score
    two = restored.embedder(**pruned(texts, padding=True, return_tensors="pt")).projected_score
    cosine = (one * two).sum(1) / (one.norm(dim=1) * two.norm(dim=1))
    assert cosine.min() > 0.98


# ---- vocabulary


def test_texts_are_spelt_as_before(tokenizer, loaded, blocks):
    pruned = loaded[1]
    assert len(pruned) < 3000 < len(tokenizer)
    for text in [text for block in blocks for text in block] + QUESTIONS:
        assert pruned.tokenize(text) == tokenizer.tokenize(text)
    assert list(cut_blocks(DOCUMENTS, pruned)) == blocks
    unseen = "Antarctica's glaciers, 中国!"
    assert "".join(pruned.tokenize(unseen)).replace("##", "") == "antarctica'sglaciers,中国!"


def test_common_pieces_stay(model, tokenizer, tmp_path):
    options = OPTIONS | {"budget": 300_000, "common_pieces": 5000}
    pack(model, tokenizer, DOCUMENTS, tmp_path / "model.bin", **options)
    pruned = load_packed(tmp_path / "model.bin")[1]
    pieces = list(tokenizer.vocab)
    assert set(pieces[999:5000]) <= pruned.vocab.keys() and "[unused500]" not in pruned.vocab
    assert len(pruned) < 7000


def test_special_tokens_keep_their_parts(model, tokenizer, loaded):
    restored, pruned, _ = loaded
    pieces = list(pruned.vocab)
    assert [tokenizer.vocab[piece] for piece in pieces] == sorted(tokenizer.vocab[piece] for piece in pieces)
    for name in ("pad", "unk", "cls", "sep", "mask"):
        token = getattr(tokenizer, f"{name}_token")
        assert pieces[getattr(pruned, f"{name}_token_id")] == token
    assert restored.config.vocab_size == len(pruned)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        assert pieces[getattr(restored.config, name)] == list(tokenizer.vocab)[getattr(model.config, name)]
    changed = {"vocab_size", "pad_token_id", "bos_token_id", "eos_token_id"}
    assert {k: v for k, v in restored.config.to_dict().items() if k not in changed} == {
        k: v for k, v in model.config.to_dict().items() if k not in changed
    }


@settings(deadline=None, derandomize=True, max_examples=30)
@given(
    words=st.lists(
        st.text(alphabet="abcdefinorstu", min_size=1, max_size=14) | st.text(max_size=6), min_size=1, max_size=8
    )
)
def test_any_text_is_spelt_as_before(tokenizer, words):
    text = " ".join(words).encode("utf-8", "ignore").decode()
    pieces = list(tokenizer.vocab)
    pruned = pruned_tokenizer([pieces[i] for i in pieces_that_stay(tokenizer, [text], [], [])], {})
    assert pruned.tokenize(text) == tokenizer.tokenize(text)


# ---- the file


def test_budget_is_used(model, tokenizer, path, tmp_path):
    manifests = {}
    for budget in (60_000, 66_000):
        out = tmp_path / f"{budget}.bin"
        manifests[budget] = pack(model, tokenizer, DOCUMENTS, out, corpus="c", budget=budget, common_pieces=0)
        assert 0.97 * budget < out.stat().st_size <= budget
    assert manifests[60_000]["levels"] < manifests[66_000]["levels"]
    with pytest.raises(ValueError, match="the budget is 1,000: raise it"):
        pack(model, tokenizer, DOCUMENTS, tmp_path / "none.bin", corpus="c", budget=1000)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["60000.bin", "66000.bin"]


def test_largest_within_finds_the_last_that_fits():
    asked = []
    data = _largest_within(1000, lambda levels, draft: asked.append(levels) or bytes(int(100 * levels)))
    assert 950 < len(data) <= 1000 and len(asked) < 11
    assert len(_largest_within(10**6, lambda levels, draft: bytes(int(100 * levels)))) == 3200


def test_same_input_same_bytes(model, tokenizer, path, tmp_path):
    pack(model, tokenizer, DOCUMENTS, tmp_path / "again.bin", **OPTIONS)
    assert (tmp_path / "again.bin").read_bytes() == path.read_bytes()


def test_manifest(loaded, blocks):
    manifest = loaded[2]
    assert manifest["corpus"] == corpus_hash(blocks) and manifest["corpus_name"] == "three countries 1"
    assert manifest["blocks"] == len(blocks) and manifest["max_wordpieces"] == 288


def test_damage_is_told(path, tmp_path):
    data = path.read_bytes()
    broken = tmp_path / "broken.bin"
    random = np.random.default_rng(0)
    places = [0, 40, len(data) - 1, *random.integers(0, len(data), 40).tolist()]
    variants = [data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :] for place in places]
    variants += [data[:cut] for cut in (0, 10, 60, 1000, len(data) - 1)] + [data + b"\0", b"PK\3\4" + data[4:]]
    for variant in variants:
        broken.write_bytes(variant)
        with pytest.raises(ValueError, match="broken.bin cannot be read .* fetch it again"):
            load_packed(broken)
    with pytest.raises(FileNotFoundError, match="none.bin does not exist"):
        load_packed(tmp_path / "none.bin")


def test_what_cannot_be_packed(model, tokenizer, vocabulary, tmp_path):
    out = tmp_path / "out.bin"
    with pytest.raises(ValueError, match="give the documents that it was indexed with"):
        pack(model, tokenizer, DOCUMENTS[:1], out, corpus="c")
    added = RealmTokenizerFast(vocab_file=vocabulary, additional_special_tokens=["<Q>"])
    with pytest.raises(ValueError, match="added tokens"):
        pack(model, added, DOCUMENTS, out, corpus="c")
    weight = model.state_dict()["embedder.cls.dense.bias"]
    kept = weight.clone()
    try:
        weight[0] = float("nan")
        with pytest.raises(ValueError, match="embedder.cls.dense.bias holds values that are not finite"):
            pack(model, tokenizer, DOCUMENTS, out, corpus="c")
    finally:
        weight.copy_(kept)
    assert not list(tmp_path.iterdir())
