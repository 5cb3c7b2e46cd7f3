"""BM25 and sentence encoders, held to their formulas."""

import json
import math

import eight_capitals
import pytest
import torch

from realm_min import RealmEmbedder, RealmRetriever
from realm_min.app import arguments
from realm_min.jobs import baselines
from realm_min.jobs.baselines import baseline
from realm_min.jobs.evaluation import Question, evaluate_retrieval
from realm_min.text.corpus import record

CPU = torch.device("cpu")
TEXTS = [record(block).decode() for block in eight_capitals.BLOCKS]
QUESTIONS = [question.question for question in eight_capitals.QUESTIONS]


def test_bm25():
    """idf(w) tf / (tf + k₁ (1 - b + b length / mean length)), idf(w) = ln(1 + (N - n + ½) / (n + ½))."""
    pytest.importorskip("bm25s")
    assert arguments.BM25 == baselines.BM25
    texts = ["The port of Oslo, Oslo.", "a port", "A warm sea and a port and a lake.", "hills hills", ""]
    words = [["port", "oslo", "oslo"], ["port"], ["warm", "sea", "port", "lake"], ["hills", "hills"], []]
    search, identity = baseline("bm25", texts, CPU)
    assert identity.startswith("bm25s ")
    scores, blocks = search(["The Oslo port?", "of the zzz", "hills"], 4)
    mean = sum(map(len, words)) / 5

    def score(asked, block):
        total = 0.0
        for word in asked:
            tf, n = block.count(word), sum(word in other for other in words)
            total += math.log(1 + (5 - n + 0.5) / (n + 0.5)) * tf / (tf + 1.5 * (0.25 + 0.75 * len(block) / mean))
        return total

    assert blocks.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3], [3, 0, 1, 2]]  # equal scores: by their number
    assert scores[0].tolist() == pytest.approx([score(["oslo", "port"], words[i]) for i in range(4)], rel=1e-5)
    assert scores[1].tolist() == [0.0] * 4 and scores[2, 0] == pytest.approx(score(["hills"], words[3]), rel=1e-5)
    nothing = search([], 2)
    assert [tuple(tensor.shape) for tensor in nothing] == [(0, 2), (0, 2)]


def test_bm25_of_blocks_without_words():
    pytest.importorskip("bm25s")
    with pytest.raises(ValueError, match="none of the 2 blocks holds a word that bm25 reads: index documents"):
        baseline("bm25", ["", "\u200b"], CPU)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A BERT with the vocabulary of eight capitals."""
    return eight_capitals.bert_folder(tmp_path_factory.mktemp("encoder"))


def test_a_baseline_takes_the_place_of_the_model(encoder):
    model = eight_capitals.open_qa()
    search = baseline(str(encoder), TEXTS, CPU).search
    asked = [Question(question.question, question.answers) for question in eight_capitals.QUESTIONS]
    for retrieve in (search, None):
        scores, blocks = (retrieve or model.retrieve)(QUESTIONS, 8)
        results = list(evaluate_retrieval(model, asked, retrieve, ks=(1, 5, 9), batch_size=3))
        for result, row, of_row in zip(results, blocks.tolist(), scores.tolist(), strict=True):
            assert result.answer is None and not result.reason and len(result.retrieved) == 5
            assert [block for block, _ in result.retrieved] == row[:5]
            assert [score for _, score in result.retrieved] == pytest.approx(of_row[:5], abs=1e-5)
            (place,) = (at for at, block in enumerate(row) if result.question.answers[0] in TEXTS[block])
            assert (result.measures["top_1_match"], result.measures["top_5_match"]) == (place < 1, place < 5)
            assert set(result.measures) == {f"top_{k}_{way}match" for k in (1, 5) for way in ("", "word_", "span_")}
    model.retriever = RealmRetriever([b"", *model.retriever.block_records[1:]], model.retriever.tokenizer)
    assert not list(evaluate_retrieval(model, asked[:1], search))[0].reason  # nothing reads the empty block


def test_what_is_no_sentence_encoder_is_refused(encoder, tmp_path):
    RealmEmbedder(eight_capitals.open_qa().config).save_pretrained(tmp_path / "realm")
    eight_capitals.tokenizer().save_pretrained(tmp_path / "realm")
    with pytest.raises(ValueError, match="realm holds a REALM model, or no model: give the folder of a sentence enc"):
        baseline(str(tmp_path / "realm"), TEXTS, CPU)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        baseline(str(tmp_path / "none"), TEXTS, CPU)
    pooling = tmp_path / "cls" / baselines.POOLING_FILE
    pooling.parent.mkdir(parents=True)
    (tmp_path / "cls" / "config.json").write_bytes((encoder / "config.json").read_bytes())
    mean, cls = "pooling_mode_mean_tokens", "pooling_mode_cls_token"
    named = [({mean: True, cls: False}, True), ({mean: False, cls: True}, False), ({mean: True, cls: True}, False)]
    for modes, fits in (*named, ({"pooling_mode": "mean"}, True), ({"pooling_mode": "lasttoken"}, False)):
        pooling.write_text(json.dumps({"word_embedding_dimension": 16, **modes}))
        if fits:
            baselines.check_pooled_by_the_mean(tmp_path / "cls")
        else:
            with pytest.raises(ValueError, match="give an encoder that takes the mean of all tokens"):
                baselines.check_pooled_by_the_mean(tmp_path / "cls")
