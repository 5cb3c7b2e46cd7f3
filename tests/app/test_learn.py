"""The experiment in miniature: its task, that it repeats, and that the retriever learns by its gradient alone."""

import csv

import pytest
import torch

from realm_min import RealmEmbedder, RealmKnowledgeAugEncoder, RealmScorer
from realm_min.app import learn
from realm_min.app.learn import DEFAULTS, Record

MINIATURE = DEFAULTS._replace(countries=8, warm_up_steps=100, warm_up_batch=32, steps=80, measure_every=40)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the experiment runs: tensors are too small to share."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def task():
    return learn.make_task(8, seed=0)


@pytest.fixture(scope="module")
def runs():
    """Both runs of seed 0; they begin with the same encoder, so it is warmed up once."""
    warmed = learn.warm_up(learn.make_task(MINIATURE.countries, 0), MINIATURE, 0)

    def warm_up(task, settings, seed):
        encoder = RealmKnowledgeAugEncoder(warmed.config, initialize=False)
        encoder.load_state_dict({key: tensor.clone() for key, tensor in warmed.state_dict().items()})
        return encoder

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learn, "warm_up", warm_up)
        return {(0, with_gradient): learn.run(0, with_gradient, MINIATURE) for with_gradient in (True, False)}


def test_a_text_shares_its_countrys_name_with_its_document_and_nothing_else(task):
    tokenizer = task.tokenizer
    documents = learn.evidence_ids(task)
    title_and_stops = {tokenizer.convert_tokens_to_ids(word) for word in (".", "-", ":")}
    for fact, questions, answer, document in zip(task.facts, task.questions, task.answers, documents, strict=True):
        title = set(tokenizer.encode(fact.block.title, add_special_tokens=False))
        assert document.count(answer) == 1 and tokenizer.unk_token_id not in document
        assert len(set(map(tuple, questions))) == 3
        for question in questions:
            assert question.count(tokenizer.mask_token_id) == 1 and tokenizer.unk_token_id not in question
            assert title <= set(question) and answer not in question
            assert set(question) & set(document) <= title | title_and_stops
    assert sum(answer in document for answer in set(task.answers) for document in documents) == len(task.facts)


def test_every_fact_is_trained_or_held_out(task):
    assert sorted(task.trained + task.held_out) == list(range(24)) and len(task.held_out) == 6
    # Facts lie field by field, in one order of countries, as the dealing relies on.
    titles = [fact.block.title for fact in task.facts]
    assert titles[:8] == titles[8:16] == titles[16:] and len(set(titles)) == 8
    assert [fact.field for fact in task.facts] == [field for field in learn.FIELDS for _ in range(8)]
    assert learn.make_task(8, seed=0)[0] == task.facts != learn.make_task(8, seed=1)[0]


def test_the_retriever_learns_from_its_gradient_alone(runs):
    learned, control = runs[0, True], runs[0, False]
    assert [record.step for record in learned] == [0, 40, 80]
    for before, after in (
        (learned[0].trained_r1, learned[-1].trained_r1),
        (learned[0].trained_r5, learned[-1].trained_r5),
    ):
        assert after >= 2 * before
    assert learned[-1].trained_r1 > 0.5
    assert learned[-1].loss < 0.7 * control[-1].loss
    # Without it the retriever stays as it was, to the bit, while the encoder learns what it can.
    for record in control:
        assert record._replace(loss=0, probabilities=None) == control[0]._replace(
            step=record.step, loss=0, probabilities=None
        )
        assert torch.equal(record.probabilities, control[0].probabilities)
    # Both began alike.
    assert torch.equal(learned[0].probabilities, control[0].probabilities)


def test_a_run_repeats_bit_for_bit():
    settings = MINIATURE._replace(warm_up_steps=2, steps=3, measure_every=2)
    first, second = (learn.run(3, True, settings) for _ in range(2))
    assert [record.step for record in first] == [0, 2, 3]
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.probabilities, b.probabilities) and a[2:-1] == b[2:-1]
    assert first[-1].loss == second[-1].loss != learn.run(4, True, settings)[-1].loss


def test_the_gradient_is_that_of_the_scorer(task):
    """One batch through two products of embeddings is f(x, z) of `RealmScorer`, its gradient too."""
    config = learn.configuration(task, MINIATURE)
    config.num_candidates = len(task.facts)
    scorer = RealmScorer(config, seed=1)
    embedder = RealmEmbedder(config, seed=1)
    embedder.load_state_dict(scorer.embedder.state_dict())
    questions = [task.questions[0][0], task.questions[9][1]]
    inputs = learn.embedder_inputs(task, questions, embedder)
    projected = embedder(**inputs).projected_score
    relevance_score = projected[:2] @ projected[2:].t()
    drelevance = torch.randn(relevance_score.shape, generator=torch.Generator().manual_seed(0))
    embedder.backward(projected_score=torch.cat([drelevance @ projected[2:], drelevance.t() @ projected[:2]]))

    names = ("input_ids", "attention_mask", "token_type_ids")
    queries = {name: inputs[name][:2] for name in names}
    candidates = {f"candidate_{name}": inputs[name][2:].expand(2, -1, -1) for name in names}
    found = scorer(**queries, **candidates).relevance_score
    assert torch.allclose(found, relevance_score, rtol=1e-5, atol=1e-4)
    scorer.backward(relevance_score=drelevance)
    largest = max(float(grad.abs().max()) for grad in scorer.grads.values())
    for key, grad in embedder.grads.items():
        assert (grad - scorer.grads[f"embedder.{key}"]).abs().max() <= 1e-5 * largest, key


def test_it_ends_with_a_table_a_csv_and_a_plot(runs, tmp_path, capsys):
    learn.show(runs)
    shown = capsys.readouterr().out
    assert f"→ {100 * runs[0, True][-1].trained_r1:.0f} %" in shown and f"→ {runs[0, False][-1].loss:.2f}" in shown
    learn.write_csv(runs, tmp_path / "learn.csv")
    with open(tmp_path / "learn.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 and list(rows[0]) == ["seed", "gradient", *Record._fields[:-1]]
    for row, record in zip(rows, runs[0, True] + runs[0, False], strict=True):
        assert int(row["step"]) == record.step and abs(float(row["trained_r1"]) - record.trained_r1) < 1e-4
    learn.plot(runs, tmp_path / "learn.png")
    assert (tmp_path / "learn.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["learn.csv", "learn.png"]


def test_too_many_countries_are_refused():
    with pytest.raises(ValueError, match="countries=1000: the Factbook has 1"):
        learn.make_task(1000, seed=0)
    with pytest.raises(ValueError, match="ask for 2 or more"):
        learn.make_task(1, seed=0)
