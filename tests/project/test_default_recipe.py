"""The default model's recipe: questions made from leads, the file that is learnt from, the two steps' gradients."""

import numpy as np
import pytest
import torch
import train_default as recipe
from default_data import KINDS, Data, Places, Ragged, as_letters, load, part_of, save
from lead_questions import lead_questions, resolved, subject_of

from realm_min import RealmConfig
from realm_min.interface.embedder import RealmEmbedder
from realm_min.interface.reader import RealmReader
from realm_min.text.corpus import Document

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


def test_where_wordpieces_occur():
    places = Places([as_letters(row) for row in ([5, 6, 7], [6, 7, 6, 7], [], [60000, 5])])
    assert [*places.blocks_with(as_letters([6, 7]))] == [0, 1]
    assert [*places.blocks_with(as_letters([7, 6]))] == [1]  # and not from one block into the next
    assert [*places.blocks_with(as_letters([60000]))] == [3]


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
    pool, right = np.array([0, 2]), torch.tensor([[True, True], [False, False]])  # the second has the teacher alone
    settings, progress = recipe.Retriever(), 0.5

    def step():
        model.zero_grads()
        return recipe.retriever_step(model, DATA, taught, [0, 1], pool, right, settings, progress, CPU)

    def loss():
        """To the target as it stands, which is no function of the weights, and the squared distances."""
        x, _ = recipe.embed_rows(model, recipe.question_rows(DATA, [0, 1]), 64, CPU, False)
        z, _ = recipe.embed_rows(model, recipe.block_rows(DATA, pool), 200, CPU, False)
        log_p = torch.log_softmax(x @ z.t(), 1)
        opinion = torch.softmax(recipe.SCALE * taught.questions[[0, 1]] @ taught.blocks[[0, 2]].t(), 1)
        t = settings.teacher
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
        return recipe.reader_step(model, DATA, reading, relevance, 60, CPU)[0]

    # By hand: the first question's answer is [24], in block 1 alone; the second's [22] and [22, 23], in both of its.
    def loss():
        total = torch.zeros(2, dtype=torch.float64)
        for scored in recipe.score_pairs(model, DATA, reading, relevance, 60, CPU, False, 1):
            tokens = scored.tokens.types.shape[1]
            starts, ends = recipe.span_candidates(tokens, 3)
            for i, answers in enumerate(([[24]], [[22], [22, 23]])):
                mine = [row for row, pair in enumerate(scored.pairs) if pair // 2 == i]
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
    model = RealmReader(CONFIG, seed=0)
    for scored in recipe.score_pairs(model, data, reading, torch.zeros(1, 2), 60, CPU, False, 1):
        right, neither = recipe.answer_spans(data, reading, scored, 60)
        (row,), (other,) = right.nonzero()[:, 0].tolist(), neither.nonzero()[:, 0].tolist()
        assert reading.blocks.reshape(-1)[scored.pairs[[row, other]]].tolist() == [1, 0]


def test_turning_keeps_inner_products_and_suits_a_layer_norm():
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(40, 6, generator=generator) @ torch.randn(6, 32, generator=generator)
    low = low / low.norm(dim=1, keepdim=True)
    x, z = recipe.turned(low[:20], low[20:], 8)
    assert torch.allclose(x @ z.t(), recipe.SCALE * low[:20] @ low[20:].t(), atol=1e-3)
    assert float(x.mean(1).abs().max()) < 1e-5


def test_weights_come_back_in_parts(tmp_path, monkeypatch):
    models = RealmEmbedder(CONFIG, seed=0), RealmReader(CONFIG, seed=1)
    monkeypatch.setattr(recipe, "PART_BYTES", 5000)
    monkeypatch.setattr(recipe, "new_models", lambda *_: models)
    for name, model in zip(("embedder", "reader"), models, strict=True):
        recipe.write_weights(model, tmp_path / f"{name}.safetensors")
    for name in ("log.txt", "dev.csv", "settings.json"):
        (tmp_path / name).write_text("")
    recipe.write_parts(tmp_path, tmp_path / "parts")
    assert len([*(tmp_path / "parts").glob("weights.*")]) > 2
    (tmp_path / "again").mkdir()
    recipe.join_parts(tmp_path / "parts", tmp_path, tmp_path / "again")
    again = RealmReader(CONFIG, seed=5)
    recipe.read_weights(again, tmp_path / "again" / "reader.safetensors")
    for key in recipe.own_keys(again):
        assert torch.allclose(again.p[key], models[1].p[key], rtol=1e-3, atol=1e-6), key
