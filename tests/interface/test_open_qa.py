"""What RealmForOpenQA does beyond transformers: batches, answers as original text, probabilities, errors."""

import unicodedata

import numpy as np
import pytest
import torch

import realm_min
from realm_min import textbook
from realm_min.interface.open_qa import spans_equal_to
from realm_min.jobs.evaluation import exact_match, official_exact_match

CONFIG = realm_min.RealmConfig(
    hidden_size=32, num_attention_heads=4, num_hidden_layers=2, intermediate_size=48, retriever_proj_size=8,
    span_hidden_size=12, max_span_width=4, reader_beam_size=3, searcher_beam_size=5, num_block_records=8,
    reader_seq_len=48, initializer_range=0.2,
)  # fmt: skip
TEXTS = [
    "Uruguay. Capital: Montevideo.",
    "Côte d'Ivoire. The currency is the  West African CFA franc; it costs 655.957 to the euro.",
    "Kenya. Highest point: Mount Kenya 5,199 m.",
    "東京 is the capital of Japan.",
    "Norway. Norway Norway Norway.",
    "Switzerland. Border countries: Austria, France, Italy, Liechtenstein, Germany.",
    "Estonia. It regained its independence on 20 August 1991.",
    "Brazil. Portuguese (official and most widely spoken language).",
]
QUESTIONS = ["What is the capital of Uruguay?", "Which is the highest point?", "Who speaks Portuguese in Brazil today?"]


@pytest.fixture(scope="module")
def model(vocabulary):
    model = realm_min.RealmForOpenQA(CONFIG).eval()
    model.block_emb.normal_(generator=torch.Generator().manual_seed(0))
    records = np.array([text.encode() for text in TEXTS], dtype=object)
    model.retriever = realm_min.RealmRetriever(records, realm_min.RealmTokenizerFast(str(vocabulary)))
    return model


def test_a_batch_gives_what_each_question_gives(model):
    tokenizer = model.retriever.tokenizer
    answers = [["montevideo"], ["kenya", "5"], ["nowhere"]]
    answer_ids = [tokenizer(texts, add_special_tokens=False).input_ids for texts in answers]
    batch = model(**tokenizer(QUESTIONS, padding=True, return_tensors="pt"), answer_ids=answer_ids)
    assert len(batch.reader_output) == len(batch.predicted_answer_ids) == len(QUESTIONS)
    for i, question in enumerate(QUESTIONS):
        alone = model(**tokenizer([question], return_tensors="pt"), answer_ids=answer_ids[i])
        assert torch.equal(alone.predicted_answer_ids, batch.predicted_answer_ids[i])
        assert torch.allclose(alone.reader_output.loss, batch.reader_output[i].loss, rtol=1e-5)
        assert torch.equal(alone.reader_output.block_idx, batch.reader_output[i].block_idx)


@pytest.mark.parametrize("made", [tuple, np.array, torch.tensor, lambda ids: [torch.tensor(ids[0])]])
def test_answers_in_any_form(model, made):
    """One question's, and several questions'; those of transformers' retriever are anything that is iterated over."""
    tokenizer = model.retriever.tokenizer
    answer_ids = tokenizer(["montevideo"], add_special_tokens=False).input_ids
    one, both = (
        tokenizer(questions, padding=True, return_tensors="pt") for questions in (QUESTIONS[:1], QUESTIONS[:2])
    )
    expected, found = (model(**one, answer_ids=ids).reader_output.loss for ids in (answer_ids, made(answer_ids)))
    assert torch.equal(found, expected) and expected > 0
    batch = model(**both, answer_ids=[made(answer_ids)] * 2)
    assert torch.allclose(batch.reader_output[0].loss, expected)
    with pytest.raises(ValueError, match="answer_ids=5 is an int: give a list"):
        model(**one, answer_ids=5)


def test_the_answer_is_the_text_of_the_predicted_wordpieces(model):
    tokenizer = model.retriever.tokenizer
    for question, answer in zip(QUESTIONS, model.answer(QUESTIONS), strict=True):
        predicted = model(**tokenizer([question], return_tensors="pt")).predicted_answer_ids
        block = answer.blocks[answer.block_rank]
        assert block.text == TEXTS[block.id]
        assert block.text[answer.start_char : answer.end_char] == answer.text
        # The wordpieces, widened to whole words.
        assert "".join(tokenizer.decode(predicted).replace("##", "").split()) in "".join(
            tokenizer.decode(tokenizer(answer.text, add_special_tokens=False).input_ids).split()
        )


@pytest.mark.parametrize(
    "block, tokens, answer",
    [
        ("北京是中国的首都。", ["北", "京"], "北京"),
        ("The capital is Bogota\u0301.", ["bogota"], "Bogota\u0301"),
        ("Capital: हिन्दी.", ["##न", "##द"], "हिन्दी"),
        ("It costs $655.957.", ["##5", ".", "95"], "655.957"),
        ("Oslo's port", ["oslo"], "Oslo"),
    ],
)
def test_the_answer_is_cut_at_the_right_places(model, monkeypatch, block, tokens, answer):
    """Whatever span is best: its text holds the whole letters of its words, and no more."""
    wanted = model.retriever.tokenizer.convert_tokens_to_ids(tokens)
    score_spans = model.score_spans

    def best_is_wanted(question, texts, scores):
        read = score_spans(question, texts, scores)
        same = spans_equal_to(read.ids, read.starts, read.ends, torch.tensor(wanted))
        assert (same & read.in_block[:, read.starts]).any()
        return read._replace(logits=read.logits + 1e6 * (same & read.in_block[:, read.starts]))

    monkeypatch.setattr(model, "score_spans", best_is_wanted)
    monkeypatch.setattr(model.retriever, "block_records", [block.encode()])
    found = model.answer_from("why?", torch.ones(1), torch.tensor([0]))
    assert found.text == answer == block[found.start_char : found.end_char]
    tokenize = model.retriever.tokenizer.tokenize
    assert exact_match(found.text, [unicodedata.normalize("NFC", answer)], tokenize)
    assert official_exact_match(found.text, [unicodedata.normalize("NFC", answer)])


def test_probabilities_are_the_books(model):
    for question, answer in zip(QUESTIONS, model.answer(QUESTIONS, num_blocks=4), strict=True):
        scores = np.array([block.score for block in answer.blocks])
        assert np.all(np.diff(scores) <= 0) and len(scores) == 4
        priors = np.array([block.probability for block in answer.blocks])
        assert np.allclose(priors, np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum(), atol=1e-6)

        # Every span's logit again, by the book, then the share of the spans that spell the best one.
        inputs = model.retriever.tokenizer(
            [question] * 4, [block.text for block in answer.blocks], padding=True, truncation=True, max_length=48,
            return_special_tokens_mask=True, return_tensors="np",
        )  # fmt: skip
        block_mask = (inputs["special_tokens_mask"] == 0) & (inputs["token_type_ids"] == 1)
        parameters = {key: tensor.double().numpy() for key, tensor in model.reader.state_dict().items()}
        batch = (inputs["input_ids"], inputs["attention_mask"], inputs["token_type_ids"])
        logits, _ = textbook.read(parameters, CONFIG, batch, block_mask, scores)
        starts, ends = textbook.span_candidates(batch[0].shape[1], CONFIG.max_span_width)
        shares = np.exp(logits - logits.max())
        best_block, best_span = np.unravel_index(logits.argmax(), logits.shape)

        def spelled(block, span, ids=inputs["input_ids"], starts=starts, ends=ends):
            return ids[block, starts[span] : ends[span] + 1].tolist()

        wanted = spelled(best_block, best_span)
        same = np.array([
            sum(
                shares[block, span]
                for span in range(len(starts))
                if spelled(block, span) == wanted and block_mask[block, starts[span]] and block_mask[block, ends[span]]
            )
            for block in range(4)
        ])  # fmt: skip
        assert answer.block_rank == best_block
        assert abs(answer.probability - same.sum() / shares.sum()) < 1e-5
        # Equation 1: each block's softmax on its own, then p(z|x).
        assert abs(answer.marginal_probability - (priors * same / shares.sum(1)).sum()) < 1e-5
        assert abs(answer.score - logits.max()) < 1e-4


def test_retrieval_is_the_largest_inner_products(model):
    scores, ids = model.retrieve(QUESTIONS, 8)
    tokenizer = model.retriever.tokenizer
    for question, found, places in zip(QUESTIONS, scores, ids, strict=True):
        vector = model.embedder(**tokenizer([question], return_tensors="pt")).projected_score[0]
        expected = (model.block_emb.double() @ vector.double()).sort(descending=True)
        assert torch.equal(places, expected.indices)
        assert torch.allclose(found.double(), expected.values, atol=1e-4)


def test_the_index_follows_the_block_embeddings(model):
    kept = model.block_emb.clone()
    best = model.retrieve(QUESTIONS[:1], 1)[1].item()
    model.block_emb[best] = -model.block_emb[best]
    assert model.retrieve(QUESTIONS[:1], 1)[1].item() != best
    model.block_emb.copy_(kept)
    assert model.retrieve(QUESTIONS[:1], 1)[1].item() == best


@pytest.mark.parametrize(
    "questions, blocks, message",
    [
        ([""], None, "the question is empty"),
        (["fine?", " \n"], None, "the question is empty"),
        (["why " * 511], None, "513 wordpieces, the limit is 512: shorten 'why why"),
        (["\u200b"], None, "the question is empty"),
        ("", None, "the question is empty"),
        (["fine?", 3], None, "3 is a int, not a text: give a str, or a list of them"),
        (b"fine?", None, "b'fine\\?' is a bytes, not a text"),
        (["fine?"], 0, "0 blocks were asked for, and there are 8"),
        (["fine?"], 9, "9 blocks were asked for, and there are 8"),
    ],
)
def test_bad_questions_are_named(model, questions, blocks, message):
    with pytest.raises(ValueError, match=message):
        model.answer(questions, num_blocks=blocks)


def test_a_question_as_long_as_the_model_reads_is_answered(model):
    """As transformers answers it: of question and block the longer is cut to what the reader takes, here 48 tokens."""
    question = "why " * 510
    (answer,) = model.answer([question])
    predicted = model(**model.retriever.tokenizer([question], return_tensors="pt")).predicted_answer_ids
    assert model.retriever.tokenizer.decode(predicted).replace(" ", "") in answer.text.lower().replace(" ", "")


def test_a_question_alone_is_a_list_of_one(model):
    (alone,), (listed,) = model.answer(QUESTIONS[0]), model.answer(QUESTIONS[:1])
    assert alone == listed and alone.question == QUESTIONS[0]
    for one, other in zip(model.retrieve(QUESTIONS[0], 3), model.retrieve(QUESTIONS[:1], 3), strict=True):
        assert torch.equal(one, other)
    assert model.score_spans("why?", TEXTS[0], torch.ones(1)).ids.shape[0] == 1
    assert model.answer([]) == [] and model.answer(iter(QUESTIONS[:1])) == [listed]


def test_without_a_retriever_there_is_nothing_to_read():
    model = realm_min.RealmForOpenQA(CONFIG)
    with pytest.raises(ValueError, match="no retriever"):
        model(torch.tensor([[5, 6]]))
    with pytest.raises(ValueError, match="no retriever"):
        model.score_spans("why?", ["so"], torch.ones(1))
