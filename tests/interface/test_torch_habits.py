"""What programs do around a model with torch, and with transformers' arguments: it computes what it would without."""

import copy
import gc
import json
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor

import eight_capitals
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import realm_min
from realm_min.jobs.embedding import embed_blocks
from realm_min.search.mips import BlockIndex
from realm_min.text.corpus import Block

CONFIG = dict(
    vocab_size=31, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
    max_position_embeddings=16, retriever_proj_size=4, num_candidates=2,
)  # fmt: skip
IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])


def new_embedder(seed=3):
    return realm_min.RealmEmbedder(realm_min.RealmConfig(**CONFIG), seed=seed).eval()


@pytest.fixture(scope="module")
def asked():
    """A model that answers, and the questions of all its blocks."""
    model = eight_capitals.open_qa().eval()
    return model, [f"What is the capital of {block.title}?" for block in eight_capitals.BLOCKS]


@pytest.fixture
def default_dtype():
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


@pytest.fixture
def default_device():
    yield torch.set_default_device
    torch.set_default_device(None)


# ---- masks


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.int32, torch.float16, torch.float32, torch.float64])
def test_masks_of_any_dtype(dtype):
    expected = new_embedder()(IDS, MASK)
    for mask in (MASK.to(dtype), MASK[:, None].expand(-1, 4, -1).to(dtype)):
        assert torch.allclose(new_embedder()(IDS, mask).projected_score, expected.projected_score, atol=1e-6)
    assert torch.equal(new_embedder()(IDS, MASK.to(dtype)).projected_score, expected.projected_score)


def test_masks_of_any_dtype_in_the_other_models():
    config = realm_min.RealmConfig(**CONFIG | dict(reader_beam_size=2, max_span_width=2))
    scorer, reader, encoder = (
        getattr(realm_min, name)(config).eval() for name in ("RealmScorer", "RealmReader", "RealmKnowledgeAugEncoder")
    )
    pairs, masks = IDS[:, None].expand(-1, 2, -1), MASK[:, None].expand(-1, 2, -1)
    relevance, labels = torch.tensor([[0.3, 0.7], [1.0, -1.0]]), torch.tensor([[1, -100, 2, -100]] * 2)
    block = torch.tensor([[False, True, True, False]] * 2)

    def numbers(dtype):
        m, n = MASK.to(dtype), masks.to(dtype)
        return [
            scorer(IDS, m, candidate_input_ids=pairs, candidate_attention_mask=n).relevance_score,
            encoder(pairs, n, relevance_score=relevance, labels=labels, mlm_mask=m).loss,
            reader(IDS, m, relevance_score=relevance[0], block_mask=block.to(dtype)).candidate,
        ]

    for dtype in (torch.bool, torch.float16, torch.float64):
        for found, expected in zip(numbers(dtype), numbers(torch.long), strict=True):
            assert torch.equal(found, expected)


UNSIGNED = (torch.uint8, torch.uint16, torch.uint32, torch.uint64)
BYTES = [getattr(torch, name) for name in dir(torch) if name.startswith("float8_")]
MASKS = [dtype for dtype in BYTES if dtype != torch.float8_e8m0fnu]  # which has no 0
SMALL = dict(reader_beam_size=2, searcher_beam_size=3, max_span_width=2, span_hidden_size=4, initializer_range=0.3)


def every_output(of_ids, of_masks):
    """Numbers of each model and of an index, with ids and masks of other dtypes than usual."""
    config = realm_min.RealmConfig(**CONFIG | SMALL)
    embedder, scorer, encoder, reader = (
        getattr(realm_min, f"Realm{name}")(config, seed=1).eval()
        for name in ("Embedder", "Scorer", "KnowledgeAugEncoder", "Reader")
    )
    ids, mask, heads = IDS.to(of_ids), MASK.float().to(of_masks), torch.ones(2).to(of_masks)
    masks = MASK[:, None].expand(-1, 2, -1)
    pairs, places, relevance = torch.stack([ids, ids], 1), torch.ones(2, 1).to(of_ids), torch.tensor([[0.25, 0.5]] * 2)
    yield embedder(ids, mask, MASK.to(of_ids), MASK.to(of_ids), head_mask=heads).projected_score
    yield embedder.forward(ids, mask, MASK.to(of_ids), MASK.to(of_ids)).projected_score
    yield scorer(ids, mask, candidate_input_ids=pairs, candidate_token_type_ids=masks.to(of_ids)).relevance_score
    yield encoder(pairs, relevance_score=relevance, labels=ids, mlm_mask=mask).loss
    answers = dict(start_positions=places, end_positions=places, has_answers=torch.ones(2).to(of_ids))
    yield reader(ids, mask, relevance_score=relevance[0], block_mask=mask, **answers).loss
    yield BlockIndex(torch.eye(16)).rows(ids)


@pytest.mark.parametrize(
    ("of_ids", "of_masks"), [*((dtype, dtype) for dtype in UNSIGNED), *((torch.int64, dtype) for dtype in MASKS)]
)
def test_unsigned_integers_and_floats_of_a_byte(of_ids, of_masks):
    for found, expected in zip(every_output(of_ids, of_masks), every_output(torch.int64, torch.int64), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", BYTES)
def test_embeddings_of_a_byte(dtype):
    model, embeds = new_embedder(), torch.tensor([[[0.5, 1, 2, 4] * 2] * 3])
    expected = model(inputs_embeds=embeds).projected_score
    assert torch.equal(model(inputs_embeds=embeds.to(dtype)).projected_score, expected)


@settings(deadline=None, derandomize=True, max_examples=10)
@given(st.integers(2**63, 2**64 - 1))
def test_an_id_that_no_integer_of_torch_holds(number):
    ids = torch.tensor([[1, number]], dtype=torch.uint64)
    for call in (new_embedder(), BlockIndex(torch.eye(16)).rows):
        with pytest.raises(ValueError, match=f"ids holds {number}, which is out of range: give numbers of int64"):
            call(ids)


def test_a_quantized_tensor_is_refused():
    codes = torch.quantize_per_tensor(torch.ones(2, 4), 0.1, 0, torch.quint8)
    model = new_embedder()
    for call in (
        lambda: model(codes), lambda: model(IDS, codes), lambda: model(inputs_embeds=codes),
        lambda: BlockIndex(torch.eye(4)).rows(codes),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"is quantized, torch.quint8: give a tensor that holds its numbers"):
            call()
    with pytest.raises(ValueError, match="no tensor of numbers: a is a quantized tensor"):
        model.load_state_dict({"a": codes})


FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("whole_span", [False, True])
@pytest.mark.parametrize("of_relevance", FLOATS)
@pytest.mark.parametrize("of_model", FLOATS)
def test_relevance_of_another_dtype_than_the_model(of_model, of_relevance, whole_span):
    """An embedder of another dtype, or NumPy, may have made it: the gradients are those of doubles all the same."""
    config = realm_min.RealmConfig(**CONFIG, initializer_range=0.3)
    model = realm_min.RealmKnowledgeAugEncoder(config, seed=1).eval().to(of_model)
    pairs, labels = torch.stack([IDS, IDS + 9], 1), torch.tensor([[1, -100, 2, -100]] * 2)
    relevance = torch.tensor([[0.25, 0.75], [1.0, -1.0]])
    given = dict(input_ids=pairs, labels=labels, whole_span=whole_span)
    loss = model(**given, relevance_score=relevance.to(of_relevance)).loss
    found = model.backward()
    exact = copy.deepcopy(model).double()
    exact.zero_grads()
    expected_loss = exact(**given, relevance_score=relevance.double()).loss
    expected = exact.backward()
    assert (found["relevance_score"].dtype, found["inputs_embeds"].dtype) == (of_relevance, of_model)
    near = 30 * max(torch.finfo(dtype).eps for dtype in (of_model, of_relevance))
    assert torch.allclose(loss.double(), expected_loss, rtol=near)
    for name in found:
        error = (found[name].double() - expected[name]).abs().max()
        assert error < near * max(0.1, expected[name].abs().max()), name  # differences of probabilities
    for name, grad in model.grads.items():
        assert (grad.double() - exact.grads[name]).abs().max() <= near * max(1, exact.grads[name].abs().max()), name


@pytest.mark.parametrize("wrong", [[2, 0], [0, -1]])
def test_has_answers_is_true_or_false(wrong):
    config = realm_min.RealmConfig(**CONFIG | dict(reader_beam_size=2, max_span_width=2))
    places = torch.tensor([[1], [1]])
    with pytest.raises(ValueError, match=f"has_answers holds {next(filter(lambda n: n not in (0, 1), wrong))}"):
        realm_min.RealmReader(config)(
            IDS, relevance_score=torch.zeros(2), block_mask=MASK.bool(), start_positions=places, end_positions=places,
            has_answers=torch.tensor(wrong),
        )  # fmt: skip


@pytest.mark.parametrize("name", ["start_positions", "end_positions", "has_answers"])
@pytest.mark.parametrize(
    "wrong",
    [[[1], [1, 2]], ["x"], [None], {}, "1", [[1], "x"], [torch.ones(1), torch.ones(2)], [torch.ones(1), "x"],
     [2**70], [torch.zeros(1, device="meta")] * 2, torch.zeros(2, device="meta")],
    ids=repr,
)  # fmt: skip
def test_positions_that_make_no_tensor_are_named(name, wrong):
    config = realm_min.RealmConfig(**CONFIG | dict(reader_beam_size=2, max_span_width=2))
    answers = {"start_positions": [[1], [1]], "end_positions": [[1], [1]], "has_answers": [True, False]}
    with pytest.raises(ValueError, match=f"^{name}.*: give"):
        realm_min.RealmReader(config)(
            IDS, relevance_score=torch.zeros(2), block_mask=MASK.bool(), **{**answers, name: wrong}
        )


def test_a_scorer_says_whose_input_is_wrong():
    scorer, four = realm_min.RealmScorer(realm_min.RealmConfig(**CONFIG), seed=1), torch.cat((IDS, IDS))
    for wrong, why in (
        ({}, "neither of candidate_input_ids and candidate_inputs_embeds were given"),
        ({"candidate_inputs_embeds": torch.zeros(4, 4)}, r"candidate_inputs_embeds has shape \(4, 4\)"),
        ({"candidate_input_ids": torch.tensor([5, 6])}, r"candidate_input_ids has shape \(2,\)"),
        ({"candidate_input_ids": -four}, "candidate_input_ids holds -12, which is out of range"),
        (
            {"candidate_input_ids": four, "candidate_inputs_embeds": torch.zeros(4, 4, 8)},
            "both of candidate_input_ids and candidate_inputs_embeds were given",
        ),
        (
            {"candidate_input_ids": four, "candidate_attention_mask": MASK[:, :3]},
            r"candidate_attention_mask has shape \(2, 3\)",
        ),
        ({"candidate_input_ids": four, "candidate_token_type_ids": four}, "candidate_token_type_ids holds 12"),
        ({"candidate_input_ids": four, "position_ids": four[:, :3]}, r"^position_ids has shape \(4, 3\)"),
    ):
        with pytest.raises(ValueError, match=f"^{why}"):
            scorer(IDS, **wrong)
    with pytest.raises(ValueError, match=r"^input_ids has shape \(4,\)"):
        scorer(IDS[0], candidate_input_ids=four)


@pytest.mark.parametrize("value", ["no", np.zeros(2), torch.zeros(2), 2])
def test_whether_to_initialize_is_a_bool(value):
    with pytest.raises(ValueError, match="^initialize=.*give a bool"):
        realm_min.RealmEmbedder(realm_min.RealmConfig(**CONFIG), initialize=value)


# ---- contexts


CONTEXTS = [torch.inference_mode(), torch.no_grad(), torch.enable_grad(), torch.autocast("cpu", torch.bfloat16)]


@pytest.mark.parametrize("context", CONTEXTS, ids=lambda context: type(context).__name__)
def test_a_model_computes_the_same_in_any_context(context, asked):
    model, questions = asked
    expected, answers = new_embedder()(IDS, MASK).projected_score, model.answer(questions[:2])
    with context:
        loaded = new_embedder()
        found = loaded(IDS, MASK)
        gradient = loaded.backward(found, projected_score=torch.ones_like(expected))["inputs_embeds"]
        assert model.answer(questions[:2]) == answers
        again = copy.deepcopy(model)  # whose weights were made in here
        assert again.answer(questions[:2]) == answers
    assert torch.equal(found.projected_score, expected) and found.projected_score.dtype == torch.float32
    other = new_embedder()
    output = other(IDS, MASK)
    assert torch.equal(gradient, other.backward(output, projected_score=torch.ones_like(expected))["inputs_embeds"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_default_dtype_changes_nothing(default_dtype, asked, dtype):
    model, questions = asked
    expected, vectors = model.answer(questions), embed_blocks(model.embedder, eight_capitals.tokenizer(), blocks())
    searched = model.index.search(vectors, 3)
    default_dtype(dtype)
    fresh = copy.deepcopy(model)
    fresh.block_emb = fresh.block_emb.clone()  # its index is built in here
    assert fresh.answer(questions) == expected
    assert torch.equal(embed_blocks(model.embedder, eight_capitals.tokenizer(), blocks()), vectors)
    for found, wanted in zip(fresh.index.search(vectors, 3), searched, strict=True):
        assert torch.equal(found, wanted) and found.dtype == wanted.dtype
    assert new_embedder()(IDS).projected_score.dtype == torch.float32


PAIRS, ONES, ROWS = IDS[:, None].expand(-1, 2, -1), torch.ones(2, 2), torch.randn(200, 8)


def everything_computed():
    """What each model returns, every gradient of it, and what every kind of index finds."""
    config, found = realm_min.RealmConfig(**CONFIG | dict(reader_beam_size=2, max_span_width=2)), []

    def differentiate(model, output, **cotangents):
        inputs = model.backward(output, **cotangents).values()
        found.extend([x for x in [*output.values(), *inputs, *model.grads.values()] if isinstance(x, torch.Tensor)])

    torch.manual_seed(0)  # which draws weights and dropout
    model = realm_min.RealmEmbedder(config)
    differentiate(model, model(IDS, return_dict=True), projected_score=[[1.0] * 4] * 2)
    model = realm_min.RealmScorer(config)
    differentiate(model, model(IDS, candidate_input_ids=PAIRS), relevance_score=[[1.0, 2.0]] * 2)
    model = realm_min.RealmKnowledgeAugEncoder(config)
    differentiate(model, model(PAIRS, relevance_score=ONES, labels=IDS))
    model, read = realm_min.RealmReader(config), dict(relevance_score=ONES[0], block_mask=MASK.bool())
    found += model(IDS, **read).values()
    places = dict(start_positions=[[1], [1]], end_positions=[[1], [2]], has_answers=[True, False])
    differentiate(model, model(IDS, **read, **places))
    model, answers = eight_capitals.open_qa(hidden_dropout_prob=0.1).train(), [[7, 8], [9]]
    question = eight_capitals.tokenizer()("the capital of peru", return_tensors="pt")
    output = model(**question, answer_ids=answers)
    found += output.reader_output.values()
    differentiate(model, output)
    for compression in (None, "int8", "bfloat16"):
        found += BlockIndex(ROWS, compression).search(ROWS[:3], 4)
    return found


def test_another_default_device_changes_nothing(default_device, asked, tmp_path):
    """On "meta" nothing has numbers: what is made there by mistake is found out at once."""
    model, questions = asked
    tokenizer, parts = model.retriever.tokenizer, model.embedder.state_dict()
    expected, computed = model.answer(questions), everything_computed()
    ids = tokenizer(questions, return_tensors="pt")["input_ids"]
    default_device("meta")
    assert model.answer(questions) == expected
    for found, wanted in zip(everything_computed(), computed, strict=True):
        assert found.device.type == "cpu" and torch.equal(found, wanted)
    assert torch.equal(tokenizer(questions, return_tensors="pt")["input_ids"], ids)
    model.save_pretrained(tmp_path)
    model.retriever.save_pretrained(tmp_path)
    loaded = realm_min.RealmForOpenQA.from_pretrained(tmp_path, realm_min.RealmRetriever.from_pretrained(tmp_path))
    assert pickle.loads(pickle.dumps(copy.deepcopy(loaded))).answer(questions) == expected
    model.embedder.save_pretrained(tmp_path / "bin", safe_serialization=False)
    loaded = realm_min.RealmEmbedder.from_pretrained(tmp_path / "bin", ignore_mismatched_sizes=True).state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in parts.items())


def blocks():
    return [Block("Peru", "Capital: Lima."), Block("Kenya", "Capital: Nairobi.")]


def test_inputs_and_weights_that_require_a_gradient():
    source, model = new_embedder(seed=4), new_embedder()
    parameters = {name: torch.nn.Parameter(tensor.clone()) for name, tensor in source.state_dict().items()}
    model.load_state_dict(parameters)
    embeds = torch.randn(2, 4, 8, requires_grad=True)
    found = model(inputs_embeds=embeds, attention_mask=MASK)
    assert torch.equal(
        found.projected_score, source(inputs_embeds=embeds.detach(), attention_mask=MASK).projected_score
    )
    assert not found.projected_score.requires_grad
    assert not any(tensor.requires_grad for tensor in model.state_dict().values())
    model.backward(projected_score=torch.ones(2, 4))
    model.load_state_dict(source.state_dict())  # again, and nothing is left of the first time


# ---- transformers' arguments


@pytest.mark.parametrize("given", ["float16", "torch.bfloat16", torch.float64])
@pytest.mark.parametrize("name", ["torch_dtype", "dtype"])
def test_the_dtype_of_a_loaded_model(tmp_path, given, name):
    new_embedder().save_pretrained(tmp_path)
    model = realm_min.RealmEmbedder.from_pretrained(tmp_path, **{name: given})
    expected = getattr(torch, given.removeprefix("torch.")) if isinstance(given, str) else given
    assert {tensor.dtype for tensor in model.state_dict().values()} == {expected}
    assert model(IDS).projected_score.dtype == expected
    model.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["torch_dtype"] == str(expected)[6:]
    assert realm_min.RealmEmbedder.from_pretrained(tmp_path / "again", torch_dtype="auto").dtype == expected
    assert realm_min.RealmEmbedder.from_pretrained(tmp_path / "again").dtype == torch.float32


@pytest.mark.parametrize("wrong", ["float17", "int8", torch.int32, 16])
def test_what_is_no_floating_dtype_is_refused(tmp_path, wrong):
    new_embedder().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"torch_dtype=.* is (no floating dtype|an int): give"):
        realm_min.RealmEmbedder.from_pretrained(tmp_path, torch_dtype=wrong)


def test_a_models_own_arguments_by_place(tmp_path, asked):
    model, questions = asked
    model.save_pretrained(tmp_path)
    loaded = realm_min.RealmForOpenQA.from_pretrained(tmp_path, model.retriever)
    assert loaded.answer(questions) == model.answer(questions)
    with pytest.raises(TypeError, match="RealmForOpenQA has 2 arguments of its own"):
        realm_min.RealmForOpenQA.from_pretrained(tmp_path, model.retriever, False, 1)


def test_a_configuration_is_checked_again_when_a_model_is_built():
    config = realm_min.RealmConfig(**CONFIG)
    config.position_embedding_type = "relative_key"
    with pytest.raises(ValueError, match="position_embedding_type='relative_key'"):
        realm_min.RealmEmbedder(config)
    config = realm_min.RealmConfig(**CONFIG)
    config.num_attention_heads = 3
    with pytest.raises(ValueError, match="not divisible by num_attention_heads=3"):
        realm_min.RealmReader(config)


def test_what_is_meant_for_the_hub_is_never_saved(tmp_path, asked):
    model, _ = asked
    folder, secret = tmp_path / "deep" / "model", "hf_SECRET"
    model.save_pretrained(folder)
    model.retriever.save_pretrained(folder)
    options = dict(token=secret, revision="main", cache_dir=str(tmp_path), local_files_only=True, subfolder="model")
    options |= dict(use_auth_token=secret, trust_remote_code=False)
    readers = (
        realm_min.RealmForOpenQA, realm_min.RealmConfig, realm_min.RealmRetriever, realm_min.RealmTokenizer,
        realm_min.AutoTokenizer,
    )  # fmt: skip
    for number, reader in enumerate(readers):
        found = reader.from_pretrained(tmp_path / "deep", **options)
        found.save_pretrained(tmp_path / str(number))
        for file in (tmp_path / str(number)).iterdir():
            assert secret.encode() not in file.read_bytes() and b"local_files_only" not in file.read_bytes(), file
    with pytest.raises(FileNotFoundError, match="no folder 'other' in .*: leave subfolder out"):
        realm_min.RealmConfig.from_pretrained(tmp_path / "deep", subfolder="other")


def test_auto_tokenizer(tmp_path):
    eight_capitals.tokenizer().save_pretrained(tmp_path)
    assert type(realm_min.AutoTokenizer.from_pretrained(tmp_path)) is realm_min.RealmTokenizerFast
    by_hand = realm_min.AutoTokenizer.from_pretrained(tmp_path, use_fast=False, do_lower_case=False)
    assert type(by_hand) is realm_min.RealmTokenizer and by_hand.do_lower_case is False
    with pytest.raises(TypeError, match="call AutoTokenizer.from_pretrained"):
        realm_min.AutoTokenizer()


# ---- threads


def calls():
    """A model of each class, and a call of it."""
    config = realm_min.RealmConfig(**CONFIG | dict(reader_beam_size=2, max_span_width=2))
    pairs, block = IDS[:, None].expand(-1, 2, -1), torch.tensor([[False, True, True, False]] * 2)
    words = dict(relevance_score=torch.ones(1, 2), labels=IDS[:1], mlm_mask=torch.ones(1, 4))
    yield realm_min.RealmEmbedder(config), lambda model: model(IDS)
    yield realm_min.RealmScorer(config), lambda model: model(IDS, candidate_input_ids=pairs)
    yield realm_min.RealmKnowledgeAugEncoder(config), lambda model: model(pairs[:1], **words)
    yield realm_min.RealmReader(config), lambda model: model(IDS, relevance_score=torch.ones(2), block_mask=block)
    yield (
        eight_capitals.open_qa(),
        lambda model: model(**model.retriever.tokenizer("the capital of peru", return_tensors="pt")),
    )


def test_a_model_that_was_called_is_freed_at_once():
    """By its last reference: Python looks for circles late, and by then a next model may not have found room."""
    gc.disable()
    try:
        for model, call in calls():
            for training in (False, True):
                call(model.train(training))
            name, weights = type(model).__name__, [weakref.ref(tensor) for tensor in model.state_dict().values()]
            freed = weakref.ref(model)
            del model
            assert freed() is None and all(weight() is None for weight in weights), name
    finally:
        gc.enable()


def test_threads_share_a_model_and_its_tokenizer(asked):
    model, questions = asked
    expected = {question: model.answer([question]) for question in questions}
    work = questions * 12
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda question: model.answer([question]), work))
    assert found == [expected[question] for question in work]
    tokenizer = model.retriever.tokenizer
    with ThreadPoolExecutor(8) as pool:  # encode and decode at once, of different lengths
        calls = range(400)
        lengths = list(
            pool.map(
                lambda i: len(tokenizer("one two three", max_length=3 + i % 3, truncation=True)["input_ids"]), calls
            )
        )
        decoded = pool.map(lambda i: tokenizer.decode([5 + i % 7]), calls)
    assert lengths == [3 + i % 3 for i in calls] and len(list(decoded)) == 400
