"""The five models against transformers 4.40.2: weights, outputs, tuples, errors, and its documentation's examples."""

import numpy as np
import pytest
import torch
from oracle import transformers
from twins import CONFIGS, assert_close, assert_same, fill, ids_and_mask, twins

import realm_min
from realm_min.interface.inputs import Inputs, checked_batch
from realm_min.model import ops
from realm_min.model.bert import Run
from realm_min.model.realm import embed
from realm_min.text.retriever import RealmRetriever

pytestmark = pytest.mark.filterwarnings("ignore")


def variants(config, ids, mask, types, seed=0):
    """Every way of calling the trunk that the contract names."""
    generator = torch.Generator().manual_seed(seed)
    batch, tokens = ids.shape
    embeds = torch.randn(batch, tokens, config.hidden_size, generator=generator)
    positions = torch.randperm(config.max_position_embeddings, generator=generator)[:tokens]
    heads = torch.rand(config.num_attention_heads, generator=generator)
    layers = torch.rand(config.num_hidden_layers, config.num_attention_heads, generator=generator)
    usual = dict(input_ids=ids, attention_mask=mask, token_type_ids=types)
    if config.hidden_size == 768:  # the same ways, three at a time
        yield usual
        yield usual | dict(head_mask=layers, position_ids=positions[None], output_attentions=True)
        yield dict(inputs_embeds=embeds, token_type_ids=types, output_hidden_states=True)
        return
    yield dict(input_ids=ids, token_type_ids=types)
    yield usual
    yield usual | dict(output_attentions=True, output_hidden_states=True)
    yield usual | dict(head_mask=heads, position_ids=positions[None])
    yield usual | dict(head_mask=layers, output_attentions=True)
    yield usual | dict(attention_mask=mask.flip(1), output_hidden_states=True)  # padding on the left
    yield usual | dict(attention_mask=mask.float() * 0.5)  # no mask of zeros and ones
    yield usual | dict(attention_mask=torch.zeros_like(mask))  # nothing to attend to
    yield dict(inputs_embeds=embeds, attention_mask=mask, token_type_ids=types, position_ids=positions[None])


@pytest.mark.parametrize("name", CONFIGS)
class TestOutputs:
    """Every field of every output, within 1e-5 of its largest value."""

    @torch.no_grad()
    def test_embedder(self, name):
        theirs, ours = twins(name, "RealmEmbedder")
        assert list(ours.state_dict()) == list(theirs.state_dict())
        assert ours.num_parameters() == theirs.num_parameters()
        for inputs in variants(ours.config, *ids_and_mask(ours.config, 3, 13)):
            assert_same(theirs(**inputs), ours(**inputs))
            assert_close(theirs(**inputs, return_dict=False), ours(**inputs, return_dict=False))

    @torch.no_grad()
    @pytest.mark.parametrize("separate", [False, True])
    def test_scorer(self, name, separate):
        if separate and name == "bert-base":
            pytest.skip("a second embedder is the same code at any size")
        theirs, ours = twins(name, "RealmScorer")
        if separate:
            theirs = transformers.RealmScorer(theirs.config, transformers.RealmEmbedder(theirs.config)).eval()
            fill(theirs, seed=1)
            ours.load_state_dict(theirs.state_dict())
            assert ours.query_embedder is not ours.embedder
        assert list(ours.state_dict()) == list(theirs.state_dict())
        assert ours.num_parameters() == theirs.num_parameters()
        candidates = ours.config.num_candidates
        ids, mask, types = ids_and_mask(ours.config, 2, 12)
        cand = [x.view(2, candidates, 12) for x in ids_and_mask(ours.config, 2 * candidates, 12, seed=1)]
        names = ("candidate_input_ids", "candidate_attention_mask", "candidate_token_type_ids")
        asked = dict(input_ids=ids, attention_mask=mask, token_type_ids=types, **dict(zip(names, cand, strict=True)))
        embeds = torch.randn(2 * candidates, 9, ours.config.hidden_size)
        for inputs in (
            asked,
            asked
            | dict(head_mask=torch.rand(ours.config.num_attention_heads), position_ids=torch.arange(12)[None] + 3),
            dict(input_ids=ids, candidate_inputs_embeds=embeds, output_attentions=True, output_hidden_states=True),
            dict(inputs_embeds=embeds[:2], candidate_input_ids=cand[0]),
        ):
            assert_same(theirs(**inputs), ours(**inputs))
            assert_close(theirs(**inputs, return_dict=False), ours(**inputs, return_dict=False))

    @torch.no_grad()
    def test_knowledge_encoder(self, name):
        theirs, ours = twins(name, "RealmKnowledgeAugEncoder")
        assert list(ours.state_dict()) == list(theirs.state_dict())
        assert ours.num_parameters() == theirs.num_parameters()
        config, batch, tokens = ours.config, 2, 13
        ids, mask, types = ids_and_mask(config, batch * config.num_candidates, tokens)
        labels = torch.randint(0, config.vocab_size, (batch, tokens))
        labels[0, 3:5] = -100
        scored = dict(relevance_score=torch.randn(batch, config.num_candidates), labels=labels)
        losses = [
            {},
            scored,
            scored | dict(mlm_mask=torch.randint(0, 2, (batch, tokens))),
            scored | dict(mlm_mask=torch.zeros(batch, tokens)),  # no masked word at all
        ]
        for i, inputs in enumerate(variants(config, ids, mask, types)):
            inputs = inputs | losses[i % len(losses)]
            assert_same(theirs(**inputs), ours(**inputs))
            assert_close(theirs(**inputs, return_dict=False), ours(**inputs, return_dict=False))
        by_candidate = dict(input_ids=ids.view(batch, -1, tokens), attention_mask=mask.view(batch, -1, tokens)) | scored
        assert_same(theirs(**by_candidate), ours(**by_candidate))

    @torch.no_grad()
    def test_reader(self, name):
        theirs, ours = twins(name, "RealmReader")
        assert list(ours.state_dict()) == list(theirs.state_dict())
        assert ours.num_parameters() == theirs.num_parameters()
        config, tokens = ours.config, 17
        beam, searched = config.reader_beam_size, config.searcher_beam_size
        ids, mask, types = ids_and_mask(config, beam, tokens)
        types = (torch.arange(tokens) >= 4).long().expand(beam, -1)
        block_mask = torch.zeros(searched, tokens, dtype=torch.bool)
        block_mask[:beam] = types.bool() & mask.bool()
        scored = dict(relevance_score=torch.randn(searched), block_mask=block_mask)
        starts = torch.randint(-1, tokens, (searched, 2))
        starts[0, 0] = 6
        answers = dict(start_positions=starts, end_positions=starts + 1, has_answers=starts[:, 0] > 0)
        nothing = dict(start_positions=-torch.ones_like(starts), end_positions=-torch.ones_like(starts),
                       has_answers=torch.zeros(searched, dtype=torch.bool))  # fmt: skip
        overlong = dict(start_positions=starts + 40, end_positions=starts + 99, has_answers=starts[:, 0] > 0)
        for i, inputs in enumerate(variants(config, ids, mask, types)):
            for extra in (answers,) if i else ({}, answers, nothing, overlong):
                everything = inputs | scored | extra
                assert_same(theirs(**everything), ours(**everything))
                assert_close(theirs(**everything, return_dict=False), ours(**everything, return_dict=False))
        hidden = dict(input_ids=ids, token_type_ids=types, relevance_score=torch.randn(searched))
        none_allowed = hidden | dict(block_mask=torch.zeros(searched, tokens, dtype=torch.bool))
        assert_same(theirs(**none_allowed), ours(**none_allowed))

    @torch.no_grad()
    @pytest.mark.parametrize("training", [False, True])
    def test_open_qa(self, name, training, vocabulary):
        # In training the searcher's beam is searched; with no dropout the outputs stay comparable.
        values = dict(vocab_size=30522, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, reader_seq_len=40)
        if training and name == "bert-base":
            pytest.skip("the beam is the same code at any size")
        theirs, ours = twins(name, "RealmForOpenQA", **values)
        assert list(ours.state_dict()) == list(theirs.state_dict())
        assert ours.num_parameters() == theirs.num_parameters()
        records = np.array(
            [f"Block {i}: the capital of country {i} is city number {i * 7}.".encode() for i in range(20)], dtype=object
        )[: ours.config.num_block_records]
        theirs.retriever = transformers.RealmRetriever(records, transformers.RealmTokenizerFast(str(vocabulary)))
        tokenizer = realm_min.RealmTokenizerFast(str(vocabulary))
        ours.retriever = RealmRetriever(records, tokenizer)
        theirs.train(training), ours.train(training)
        assert ours.searcher_beam_size == theirs.searcher_beam_size
        question = tokenizer(["What is the capital of country 3?"], return_tensors="pt")
        wordless = dict(add_special_tokens=False, return_token_type_ids=False, return_attention_mask=False)
        for answers in (None, ["city number 21", "14"], ["nowhere"]):
            answer_ids = answers and tokenizer(answers, **wordless).input_ids
            assert_same(theirs(**question, answer_ids=answer_ids), ours(**question, answer_ids=answer_ids))
            pair = dict(answer_ids=answer_ids, return_dict=False)
            assert_close(theirs(**question, **pair), ours(**question, **pair))


@pytest.mark.parametrize("class_name", ["RealmEmbedder", "RealmReader"])
def test_dropout_is_drawn_from_the_seed(class_name):
    config = realm_min.RealmConfig(**CONFIGS["one-layer"])
    ids = torch.arange(12).view(2, 6)

    def run(seed, training=True):
        model = realm_min.RealmEmbedder(config, seed=seed)
        model.load_state_dict(realm_min.RealmEmbedder(config, seed=0).state_dict())
        return model.train(training)(ids).projected_score

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    assert torch.equal(run(1, training=False), run(2, training=False))


def test_a_sequence_has_the_dropout_of_its_seed_whatever_the_batch():
    config = realm_min.RealmConfig(**CONFIGS["one-layer"])
    model = realm_min.RealmEmbedder(config)
    ids, mask = torch.arange(18).view(3, 6), torch.ones(3, 6, dtype=torch.long)
    mask[1, 4:] = 0

    def embedded(seeds, *inputs):
        batch = checked_batch(config, Inputs(*inputs))
        return embed(model.p, config, batch, Run(seeds))[0][0]

    together = embedded([7, 8, 9], ids, mask)
    for row in range(3):
        tokens = int(mask[row].sum())
        assert torch.allclose(embedded([7 + row], ids[row : row + 1, :tokens])[0], together[row], atol=1e-6)
    assert not torch.allclose(embedded([1, 2, 3], ids, mask), together, atol=1e-3)


def test_dropout_keeps_the_mean():
    x = torch.ones(200, 500)
    kept = ops.DropoutStreams([0], 0, 0.1, x.device).mask([x.numel()]).view(x.shape)
    dropped = ops.drop(x, kept, 0.1)
    assert set(dropped.unique().tolist()) == {0.0, x.new_tensor(1 / 0.9).item()}
    assert abs(dropped.mean().item() - 1) < 0.01


def test_new_models_train_and_loaded_ones_evaluate(tmp_path):
    config = realm_min.RealmConfig(**CONFIGS["one-layer"])
    model = realm_min.RealmEmbedder(config)
    assert model.training
    model.save_pretrained(tmp_path)
    loaded = realm_min.RealmEmbedder.from_pretrained(tmp_path, num_candidates=7)
    assert not loaded.training and loaded.config.num_candidates == 7
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    )


def test_initial_weights_follow_bert():
    config = realm_min.RealmConfig(hidden_size=60, num_hidden_layers=2, intermediate_size=99, vocab_size=500)
    state = realm_min.RealmReader(config, seed=3).state_dict()
    same = realm_min.RealmReader(config, seed=3).state_dict()
    for key, tensor in state.items():
        assert torch.equal(tensor, same[key]), key
        if key.endswith("bias"):
            assert not tensor.any(), key
        elif tensor.dim() == 1:
            assert (tensor == 1).all(), key
        elif tensor.numel() > 1000:
            assert abs(tensor.std().item() / config.initializer_range - 1) < 0.1, key
    assert not state["realm.embeddings.word_embeddings.weight"][config.pad_token_id].any()


def test_fused_weights_are_the_state_dict():
    """Writing to a state-dict entry changes what the fused product reads, also after a cast."""
    model = realm_min.RealmEmbedder(realm_min.RealmConfig(**CONFIGS["one-layer"])).eval()
    for dtype in (torch.float32, torch.float64):
        model.to(dtype)
        before = model(torch.arange(6)[None]).projected_score
        model.state_dict()["realm.encoder.layer.0.attention.self.value.weight"].mul_(3)
        assert not torch.allclose(before, model(torch.arange(6)[None]).projected_score)


SMALL = realm_min.RealmConfig(**CONFIGS["one-layer"])


@pytest.mark.parametrize(
    "inputs, message",
    [
        (dict(input_ids=torch.tensor([[5, 101]])), r"input_ids holds 101.*0\.\.100"),
        (dict(input_ids=torch.tensor([[5, -1]])), r"input_ids holds -1"),
        (dict(input_ids=torch.tensor([5, 1])), r"shape \(2,\): expected \[batch, tokens\]"),
        (dict(input_ids=torch.zeros(1, 0, dtype=torch.long)), r"at least one token"),
        (dict(input_ids=torch.zeros(0, 4, dtype=torch.long)), r"at least one sequence"),
        (dict(input_ids=torch.zeros(1, 513, dtype=torch.long)), r"513 tokens.*max_position_embeddings=512"),
        (dict(input_ids=torch.zeros(1, 4)), r"input_ids has dtype torch.float32: expected integers"),
        (dict(), r"neither of input_ids and inputs_embeds"),
        (dict(input_ids=torch.zeros(1, 4, dtype=torch.long), inputs_embeds=torch.zeros(1, 4, 30)), r"both"),
        (dict(inputs_embeds=torch.zeros(1, 4, 31)), r"expected \[batch, tokens, 30\]"),
        (
            dict(input_ids=torch.zeros(1, 4, dtype=torch.long), attention_mask=torch.ones(1, 5)),
            r"attention_mask.*\(1, 5\).*\(1, 4\)",
        ),
        (
            dict(input_ids=torch.zeros(1, 4, dtype=torch.long), token_type_ids=torch.full((1, 4), 2)),
            r"token_type_ids holds 2",
        ),
        (
            dict(input_ids=torch.zeros(1, 4, dtype=torch.long), position_ids=torch.full((1, 4), 512)),
            r"position_ids holds 512",
        ),
        (
            dict(input_ids=torch.zeros(1, 4, dtype=torch.long), token_type_ids=torch.zeros(1, 3, dtype=torch.long)),
            r"token_type_ids has shape \(1, 3\)",
        ),
        (dict(input_ids=torch.zeros(1, 4, dtype=torch.long), head_mask=torch.ones(4)), r"head_mask.*\(4,\)"),
    ],
)
def test_bad_inputs_are_named(inputs, message):
    with pytest.raises(ValueError, match=message):
        realm_min.RealmEmbedder(SMALL)(**inputs)


def test_bad_inputs_of_the_other_models_are_named():
    ids = torch.zeros(3, 5, dtype=torch.long)
    encoder = realm_min.RealmKnowledgeAugEncoder(SMALL)
    with pytest.raises(ValueError, match="labels were given without relevance_score"):
        encoder(ids, labels=ids[:1])
    with pytest.raises(ValueError, match=r"labels has shape \(1, 4\): expected \(1, 5\)"):
        encoder(ids, labels=ids[:1, :4], relevance_score=torch.zeros(1, 3))
    with pytest.raises(ValueError, match="2 sequences are not a multiple of num_candidates=3"):
        encoder(ids[:2], labels=ids[:1], relevance_score=torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"label 101 is out of range"):
        encoder(ids, labels=ids[:1] + 101, relevance_score=torch.zeros(1, 3))
    with pytest.raises(ValueError, match="neither of candidate_input_ids and candidate_inputs_embeds"):
        realm_min.RealmScorer(SMALL)(ids)
    with pytest.raises(ValueError, match="2 candidates for 1 queries: expected num_candidates=3"):
        realm_min.RealmScorer(SMALL)(ids[:1], candidate_input_ids=ids[:2])
    reader, scores, mask = realm_min.RealmReader(SMALL), torch.zeros(2), torch.ones(2, 5, dtype=torch.bool)
    with pytest.raises(ValueError, match="relevance_score was not given"):
        reader(ids[:2], block_mask=mask)
    with pytest.raises(ValueError, match="block_mask was not given"):
        reader(ids[:2], relevance_score=scores)
    with pytest.raises(ValueError, match="2 tokens are fewer than max_span_width=3"):
        reader(ids[:2, :2], relevance_score=scores, block_mask=mask)
    with pytest.raises(ValueError, match=r"block_mask has shape \(2, 5\): expected \(2, 4\)"):
        reader(ids[:2, :4], relevance_score=scores, block_mask=mask)
