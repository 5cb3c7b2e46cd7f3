"""The default model's recipe: questions made from leads, the file that is learnt from, the two steps' gradients."""

import multiprocessing

import numpy as np
import pytest
import torch
import train_default as recipe
from default_data import (
    KINDS,
    Data,
    Places,
    Ragged,
    as_letters,
    evidence_in,
    load,
    part_of,
    save,
    written_questions,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from lead_questions import lead_questions, resolved, subject_of

from realm_min import RealmConfig
from realm_min.interface.embedder import RealmEmbedder
from realm_min.interface.reader import RealmReader
from realm_min.jobs.evaluation import has_answer_words
from realm_min.text.corpus import Document, factbook_documents
from realm_min.text.leads import lead_documents

PISA = Document(
    "Pisa", "Pisa is a coastal city in Tuscany, Italy. The city was founded in 180 BC. It has 90,834 people."
)
PUSHKIN = Document(
    "Aleksandr Pushkin",
    "Aleksandr Pushkin was a Russian poet, playwright, and novelist. He was born in Moscow in 1799.",
)


def test_what_a_lead_is_about():
    subject = subject_of(PUSHKIN.title, PUSHKIN.text.split(". "))
    assert subject.person and subject.verb == "was" and subject.phrases == ["Russian poet", "playwright", "novelist"]
    pisa = subject_of(PISA.title, PISA.text.split(". "))
    assert not pisa.person and pisa.noun == "city"
    assert resolved("The city was founded in 180 BC.", pisa) == "Pisa was founded in 180 BC."
    assert resolved("Its tower leans.", pisa) == "Pisa's tower leans."
    assert resolved("The tower leans.", pisa) == "The tower leans."


def test_questions_made_from_leads_have_their_answers_there_and_do_not_give_them_away():
    made = lead_questions([PISA, PUSHKIN], seed=3, per_sentence=6)
    texts = {document.title: f"{document.title}. {document.text}" for document in (PISA, PUSHKIN)}
    assert len(made) > 15 and made == lead_questions([PISA, PUSHKIN], seed=3, per_sentence=6)
    assert {question.title for question in made} == texts.keys()
    for question in made:
        assert all(answer in texts[str(question.title)] for answer in question.answers), question
        assert question.answers[0].lower() not in question.question.lower()
        assert question.question.endswith("?") and question.question.count("?") == 1
    asked = {answer for question in made for answer in question.answers}
    assert {"1799", "Moscow", "Tuscany", "Russian poet", "poet", "Aleksandr Pushkin"} <= asked


def test_written_questions_have_their_answers_where_they_say_and_do_not_give_them_away():
    texts = {"": {document.title: f"{document.title}. {document.text}" for document in lead_documents()}}
    texts["factbook "] = {}
    for document in factbook_documents():  # several of a country
        texts["factbook "][document.title] = f"{texts['factbook '].get(document.title, '')}\n{document.text}"
    written = list(written_questions())
    assert len(written) == 31_713  # as MODEL_CARD.md says
    assert len({(corpus, question.question.lower()) for corpus, question in written}) == len(written)
    for corpus, question in written:
        text = texts[corpus][str(question.title)]
        for answer in question.answers:
            assert has_answer_words(text, [answer]) and answer.lower() in text.lower(), question
            assert f" {answer.lower()} " not in f" {question.question.lower()} ", question


def test_where_wordpieces_occur():
    places = Places([as_letters(row) for row in ([5, 6, 7], [6, 7, 6, 7], [], [60000, 5])])
    assert [*places.blocks_with(as_letters([6, 7]))] == [0, 1]
    assert [*places.blocks_with(as_letters([7, 6]))] == [1]  # and not from one block into the next
    assert [*places.blocks_with(as_letters([60000]))] == [3]


@pytest.mark.parametrize(
    "kind, told, answers, expected",
    [
        ("lead", None, [[6, 7]], [0, 1]),
        ("lead", None, [[9]], [*range(3, 25)]),
        ("web", None, [[9]], [*range(3, 25)]),
        ("field", [0, 2], [[6, 7]], [0]),  # what it was made from, and nothing else
        ("written", [0], [[6, 7]], [0, 1]),
        ("written", [0], [[5, 6], [7, 6]], [0, 1]),  # any of its answers
        ("written", [3], [[9]], [3]),  # 22 blocks hold it: what it was written from alone
        ("written", [4], [[10]], [*range(4, 24)]),  # 20
        ("written", [2], [[6, 7]], []),
        ("sentence", [2], [], [2]),
    ],
)
def test_what_is_evidence(kind, told, answers, expected):
    places = Places([as_letters(row) for row in ([5, 6, 7], [6, 7, 6, 7], [], [9], *[[9, 10]] * 20, [9])])
    assert evidence_in(kind, told, [as_letters(row) for row in answers], places, {}) == expected


DATA = Data(
    2,
    Ragged.of([[11], [12], [13, 14]], "uint16"),  # titles
    Ragged.of([[21, 22, 23], [24, 22, 25, 26], [27, 22, 23, 21, 28]], "uint16"),
    np.array([KINDS.index(kind) for kind in ("lead", "made", "dev")], np.uint8),
    Ragged.of([[31, 32], [33], [34, 35]], "uint16"),
    Ragged.of([[22], [22, 23], [24], [27]], "uint16"),  # answers: two of the first question
    np.array([2, 3, 4]),
    Ragged.of([[0, 1, 2], [1], [2]], "uint16"),
)


def test_data_is_kept_as_it_is(tmp_path):
    save(DATA, tmp_path / "data.npz")
    found = load(tmp_path / "data.npz")
    assert found.num_leads == 2
    for name in ("titles", "texts", "questions", "answers", "evidence"):
        for one, other in zip(getattr(found, name), getattr(DATA, name), strict=True):
            np.testing.assert_array_equal(one, other)
    assert [row.tolist() for row in found.answers_of(0)] == [[22], [22, 23]]
    assert [row.tolist() for row in found.answers_of(2)] == [[27]]


def test_a_part_numbers_its_blocks_anew():
    part = part_of(DATA, 1, 1)
    assert part.num_leads == 1 and [part.texts[i].tolist() for i in range(2)] == [[21, 22, 23], [27, 22, 23, 21, 28]]
    assert part.kinds.tolist() == [KINDS.index("lead"), KINDS.index("dev")]
    assert [part.evidence[i].tolist() for i in range(2)] == [[0, 1], [1]]
    assert [row.tolist() for row in part.answers_of(1)] == [[27]]


# ---- the steps


CONFIG = RealmConfig(
    vocab_size=2000, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
    max_position_embeddings=64, retriever_proj_size=8, span_hidden_size=8, max_span_width=3, hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)  # fmt: skip
CPU = torch.device("cpu")


def wide(model, seed):
    """Weights far from 0, so that every term of a gradient counts."""
    generator = torch.Generator().manual_seed(seed)
    for key, tensor in model.p.items():
        if not key.startswith("cls.predictions"):
            tensor.normal_(0.5 if "LayerNorm.weight" in key else 0, 0.3, generator=generator)
    return model.double()


def slope(model, key, loss):
    """∂loss/∂(a place of a parameter) by central differences: the gradient's oracle."""
    tensor, step = model.p[key], 1e-5
    place = (1,) * tensor.dim()
    values = []
    for by in (step, -2 * step):
        tensor[place] += by
        values.append(float(loss()))
    tensor[place] += step
    return (values[0] - values[1]) / (2 * step), place


def test_gradient_of_the_retriever():
    model = wide(RealmEmbedder(CONFIG, seed=0), 1)
    random = torch.Generator().manual_seed(2)
    taught = recipe.Taught(
        *(torch.randn(rows, size, generator=random, dtype=torch.float64) for size in (4, 8) for rows in (3, 3)),
        np.array([[0, 1, 2]] * 3),
    )
    questions, blocks = recipe.question_rows(DATA, [0, 1]), recipe.block_rows(DATA, [0, 2])
    batch = recipe.Asked(
        [0, 1], np.array([0, 2]), np.array([[True, True], [False, False]]),  # the second has the teacher alone
        recipe.portioned(*questions, 64), recipe.portioned(*blocks, 200, 2),
    )  # fmt: skip
    chosen, progress = recipe.Retriever(), 0.5

    def step():
        model.zero_grads()
        return recipe.retriever_step(model, taught, batch, chosen, progress, CPU)

    def loss():
        """To the target as it stands, which is no function of the weights, and the squared distances."""
        x, _ = recipe.embed_rows(model, batch.questions, CPU, False)
        z, _ = recipe.embed_rows(model, batch.blocks, CPU, False)
        log_p = torch.log_softmax(x @ z.t(), 1)
        opinion = torch.softmax(recipe.SCALE * taught.questions[[0, 1]] @ taught.blocks[[0, 2]].t(), 1)
        t = chosen.teacher
        found = -t * (opinion[0] * log_p[0]).sum() - (1 - t) * torch.logsumexp(log_p[0], 0)
        found -= (opinion[1] * log_p[1]).sum()
        off = (x - taught.turned_questions[:2]).square().sum() + (z - taught.turned_blocks[[0, 2]]).square().sum()
        return found + (1 - 1.6 * progress) / 2 * off

    step()
    for key in ("cls.dense.weight", "realm.encoder.layer.0.output.dense.weight", "cls.LayerNorm.bias"):
        wanted, place = slope(model, key, loss)
        assert float(model.own_grads[key][place]) == pytest.approx(wanted, rel=1e-4, abs=1e-7), key


@pytest.mark.parametrize("answerable", [True, False])
def test_gradient_of_the_reader_with_its_null_span(answerable):
    model = wide(RealmReader(CONFIG, seed=0), 3)
    evidence = [np.array([1]), np.array([0, 2])] if answerable else [np.array([], int)] * 2
    reading = recipe.Reading([1, 0], np.array([[1, 0], [2, 0]]), evidence, [True, False])
    relevance = torch.tensor([[0.3, -0.2], [0.1, 0.4]], dtype=torch.float64)

    def step():
        model.zero_grads()
        return recipe.reader_step(model, reading, recipe.pairs_of(DATA, reading, 60, 2), relevance, CPU)[0]

    # By hand: the first question's answer is [24], in block 1 alone; the second's [22] and [22, 23], in both of its.
    def loss():
        total = torch.zeros(2, dtype=torch.float64)
        for scored in recipe.score_pairs(model, recipe.pairs_of(DATA, reading, 60, 1), relevance, CPU, False):
            tokens = scored.tokens.types.shape[1]
            starts, ends = recipe.span_candidates(tokens, 3)
            for i, answers in enumerate(([[24]], [[22], [22, 23]])):
                mine = [row for row, pair in enumerate(scored.places.tolist()) if pair // 2 == i]
                every = torch.cat([scored.scores[mine].reshape(-1), torch.zeros(1, dtype=torch.float64)])
                right = [
                    scored.scores[row, span]
                    for row in mine
                    for span in range(len(starts))
                    if scored.scores[row, span] > -1e30
                    and scored.tokens.words[row, starts[span] : ends[span] + 1].tolist() in answers
                ]
                assert len(right) == (1, 4)[i]
                held = torch.logsumexp(torch.stack(right), 0) if answerable else torch.zeros(())
                total[i] = torch.logsumexp(every, 0) - held
        return total.sum()

    assert float(step()) == pytest.approx(float(loss()), rel=1e-9)
    for key in ("qa_outputs.dense_output.bias", "realm.encoder.layer.0.output.dense.weight"):
        wanted, place = slope(model, key, loss) if model.p[key].numel() > 1 else (None, None)
        if wanted is not None:
            assert float(model.own_grads[key][place]) == pytest.approx(wanted, rel=1e-4, abs=1e-8), key


def test_words_of_an_answer_elsewhere_count_neither_way_where_the_evidence_is_known():
    reading = recipe.Reading([1], np.array([[1, 0]]), [np.array([1])], [True])
    data = DATA._replace(answers=Ragged.of([[22], [22, 23], [22], [27]], "uint16"))
    (pairs,) = recipe.pairs_of(data, reading, 60, 1)
    (row,), (other,) = {*pairs.right[0].tolist()}, {*pairs.neither[0].tolist()}
    assert reading.blocks.reshape(-1)[pairs.rows.places[[row, other]]].tolist() == [1, 0]
    assert pairs.right.shape == (2, 1) and pairs.neither.shape == (2, 1)


def double(number, progress):
    return 2 * number, progress


@pytest.mark.parametrize("workers", [0, 2] if "fork" in multiprocessing.get_all_start_methods() else [0])
def test_what_is_made_ahead_is_what_the_step_asks_for(workers):
    with recipe.Ahead(double, workers) as ahead:
        assert [ahead.take(number, 0.5) for number in range(1, 30)] == [(2 * number, 0.5) for number in range(1, 30)]


def test_turning_keeps_inner_products_and_suits_a_layer_norm():
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(40, 6, generator=generator) @ torch.randn(6, 32, generator=generator)
    low = low / low.norm(dim=1, keepdim=True)
    x, z = recipe.turned(low[:20], low[20:], 8)
    assert torch.allclose(x @ z.t(), recipe.SCALE * low[:20] @ low[20:].t(), atol=1e-3)
    assert float(x.mean(1).abs().max()) < 1e-5


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_what_is_read_is_of_one_shape_whatever_was_ranked(drawn):
    """Questions of which every ranked block holds the answer, or none; fewer blocks than are to be read."""
    blocks = drawn.draw(st.integers(2, 7))
    numbered = st.integers(0, blocks - 1)
    evidence = [drawn.draw(st.frozensets(numbered, min_size=least)) for least in (0, 1)] + [frozenset()]
    data = DATA._replace(evidence=Ragged.of([sorted(row) for row in evidence], "uint16"))
    ranked = np.array([drawn.draw(st.permutations(range(blocks))) for _ in range(3)])
    numbers = [i for i in (0, 1) if len(recipe.evidence_of(data, i, ranked[i]))]
    rng, chosen = np.random.default_rng(drawn.draw(st.integers(0, 99))), recipe.Reader(unanswerable=0.5)
    for _ in range(6):
        found = recipe.readings(data, ranked, numbers, rng, chosen)
        assert len(found.evidence) == len(found.ignored) == len(numbers)
        for number, read, known in zip(numbers, found.blocks, found.evidence, strict=True):
            assert len(read) == 4 and {*read.tolist()} <= {*range(blocks)}
            holding = {*read.tolist()} & {*evidence[number]}
            assert bool(len(known)) == bool(holding)  # where there is no evidence, none is read


def test_weights_come_back_in_parts(tmp_path, monkeypatch):
    models = RealmEmbedder(CONFIG, seed=0), RealmReader(CONFIG, seed=1)
    monkeypatch.setattr(recipe, "PART_BYTES", 5000)
    monkeypatch.setattr(recipe, "new_models", lambda *_: models)
    (tmp_path / "dev.csv").write_text("")
    recipe.write_parts(tmp_path, dict(zip(("embedder", "reader"), models, strict=True)), tmp_path / "parts")
    assert len([*(tmp_path / "parts").glob("weights.*")]) > 2
    (tmp_path / "again").mkdir()
    recipe.join_parts(tmp_path / "parts", tmp_path, tmp_path / "again")
    again = RealmReader(CONFIG, seed=5)
    recipe.read_weights(again, tmp_path / "again" / "reader.safetensors")
    for key in recipe.own_keys(again):
        assert torch.allclose(again.p[key], models[1].p[key], rtol=1e-3, atol=1e-6), key
