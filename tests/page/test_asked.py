"""The Ask view's numbers are the library's: those of `answer`, `score_spans` and the reader's attention."""

import eight_capitals
import numpy as np
import pytest
import torch

from realm_min.app.answer_lines import sentence
from realm_min.interface.inputs import Inputs
from realm_min.model import ops
from realm_min.model.bert import Run
from realm_min.page import asked

QUESTION = "what is the capital of Norway?"


@pytest.fixture(scope="module")
def model():
    return eight_capitals.open_qa()


@pytest.fixture(scope="module")
def found(model):
    return asked.ask(model, QUESTION, 3)


def test_the_answer_is_the_models(model, found):
    (answer,) = model.answer([QUESTION], 3)
    said = found["answer"]
    assert (said["text"], said["probability"], said["block"]) == (answer.text, answer.probability, answer.block_rank)
    assert (said["start"], said["end"]) == (answer.start_char, answer.end_char)
    assert tuple(said["sentence"]) == sentence(answer.blocks[answer.block_rank].text, said["start"], said["end"])
    assert said["sentence"][1] == answer.text and answer.document in said["source"]
    assert [block["id"] for block in found["blocks"]] == [block.id for block in answer.blocks]
    for shown, block in zip(found["blocks"], answer.blocks, strict=True):
        assert (shown["text"], shown["score"], shown["probability"]) == (block.text, block.score, block.probability)
    assert asked.ask(model, QUESTION)["blocks"][:2] == asked.ask(model, QUESTION, 2)["blocks"]  # the model's own number


def test_an_empty_block_is_not_shown(model, found, monkeypatch):
    """In an index that others made."""
    text, empty = model.evidence.text, found["blocks"][1]["id"]
    monkeypatch.setattr(model.evidence, "text", lambda i: "" if i == empty else text(i))
    shown = asked.ask(model, QUESTION, 3)
    assert [block["id"] for block in shown["blocks"]] == [found["blocks"][i]["id"] for i in (0, 2)]
    (answer,) = model.answer([QUESTION], 3)
    assert shown["blocks"][shown["answer"]["block"]]["id"] == answer.blocks[answer.block_rank].id
    assert shown["answer"]["text"] == answer.text


def test_a_block_alone_says_what_it_would_say(model, found):
    for block in found["blocks"]:
        alone = model.answer_from(QUESTION, torch.tensor([block["score"]]), torch.tensor([block["id"]]))
        assert block["alone"]["text"] == alone.text
        assert block["alone"]["probability"] == pytest.approx(alone.probability, abs=1e-5)


def test_equation_1_sums_over_the_blocks(model, found):
    """Σ_z p(y|z,x) p(z|x), with a softmax for the spans of each block, from the table that is drawn."""
    prior, total, texts = [block["probability"] for block in found["blocks"]], 0.0, []
    best = found["blocks"][found["answer"]["block"]]
    first = best["best"]["first"]
    pieces = pieces_of(model, best)[first : first + best["best"]["width"]]
    for block, p in zip(found["blocks"], prior, strict=True):
        own = pieces_of(model, block)
        scores = {(i, w): s for w, row in enumerate(block["spans"]) for i, s in enumerate(row)}
        highest = max(scores.values())
        weights = {span: np.exp(s - highest) for span, s in scores.items()}
        same = [span for span in scores if own[span[0] : span[0] + span[1] + 1] == pieces]
        total += p * sum(weights[span] for span in same) / sum(weights.values())
        texts.append(len(same))
    assert sum(texts) and found["answer"]["mixture"] == pytest.approx(total, abs=1e-4)


def pieces_of(model, block):
    ids = model.retriever.tokenizer(block["text"], add_special_tokens=False)["input_ids"]
    assert len(ids) == len(block["tokens"])
    return ids


def test_the_spans_are_the_readers(model, found):
    texts = [block["text"] for block in found["blocks"]]
    read = model.score_spans(QUESTION, texts, torch.tensor([block["score"] for block in found["blocks"]]))
    for rank, block in enumerate(found["blocks"]):
        prefix = read.in_block[rank].tolist().index(True)
        for start, end, score in zip(read.starts.tolist(), read.ends.tolist(), read.logits[rank].tolist(), strict=True):
            inside = bool(read.in_block[rank, start] and read.in_block[rank, end])
            if inside:
                assert block["spans"][end - start][start - prefix] == pytest.approx(score, abs=6e-5)
        assert sum(map(len, block["spans"])) == int(
            (read.in_block[rank, read.starts] & read.in_block[rank, read.ends]).sum()
        )
        best = block["best"]
        assert best["score"] == max(s for row in block["spans"] for s in row)
        assert block["spans"][best["width"] - 1][best["first"]] == best["score"]


def test_the_question_as_it_is_read(model, found):
    tokenizer = model.retriever.tokenizer
    assert [piece["piece"] for piece in found["wordpieces"]] == ["[CLS]", *tokenizer.tokenize(QUESTION), "[SEP]"]
    assert [QUESTION[p["start"] : p["end"]].lower() for p in found["wordpieces"][1:7]] == QUESTION.lower()[:-1].split()
    inputs = tokenizer([QUESTION], return_tensors="pt")
    x = model.embedder(**inputs).projected_score[0]
    assert found["vector"] == pytest.approx(x.tolist(), rel=1e-5)
    scores = [float(model.block_emb[block["id"]] @ x) for block in found["blocks"]]
    assert scores == pytest.approx([block["score"] for block in found["blocks"]], rel=1e-5)


def test_attention_is_the_readers(model, found):
    block = found["blocks"][0]
    attentions, tokens = asked.attentions_of(model, QUESTION, block["id"])
    inputs = model.retriever.tokenizer([QUESTION], [block["text"]], return_tensors="pt")
    in_block = inputs["token_type_ids"].bool()
    _, encoded = model.reader.span_logits(
        Inputs(inputs["input_ids"], inputs["attention_mask"], inputs["token_type_ids"]), torch.zeros(1), in_block,
        Run(output_attentions=True),
    )  # fmt: skip
    assert np.allclose(attentions, torch.cat(encoded.attentions).numpy(), atol=1e-6)
    said = asked.attention(attentions, tokens, 2, 4)
    assert np.allclose(said["weights"], attentions[:, :, 2:5].mean(2), atol=6e-5)
    assert np.allclose(np.sum(said["weights"], 2), 1, atol=0.01)
    assert [token["piece"] for token in said["tokens"]][:2] == ["[CLS]", "what"]
    assert sum(token["block"] for token in tokens) == len(block["tokens"])


def test_what_cannot_be_asked(model):
    for k in (0, 9, True, 2.0, "2"):
        with pytest.raises(ValueError, match=r"blocks were asked for: give a whole number from 1 to 8"):
            asked.ask(model, QUESTION, k)
    with pytest.raises(ValueError, match="the question is empty: ask something"):
        asked.ask(model, " \n", 1)
    with pytest.raises(ValueError, match="the question has 302 wordpieces, the limit is 128"):
        asked.attentions_of(model, "why " * 300, 0)
    with pytest.raises(ValueError, match="there is no block 8: give a number from 0 to 7"):
        asked.attentions_of(model, QUESTION, 8)
    with pytest.raises(ValueError, match="there are no tokens 1 to 3: give numbers from 0 to 2"):
        asked.attention(np.zeros((1, 1, 3, 3)), [{}] * 3, 1, 3)


def test_p_is_a_softmax(found):
    scores = torch.tensor([block["score"] for block in found["blocks"]])
    assert ops.softmax(scores).tolist() == pytest.approx([block["probability"] for block in found["blocks"]])
