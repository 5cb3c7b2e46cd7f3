"""The Search view's bounds hold, its threshold rules out no answer, and what it finds is what the index finds."""

import eight_capitals
import pytest
import torch

from realm_min import RealmRetriever
from realm_min.page import searched
from realm_min.search.mips import COMPRESSIONS
from realm_min.text.corpus import record

BLOCKS = 300  # 19 groups, the last of 12
QUESTION = "where is oslo?"


@pytest.fixture(scope="module")
def model():
    model = eight_capitals.open_qa()
    model.block_emb = torch.randn(BLOCKS, 8, generator=torch.Generator().manual_seed(2))
    records = [record(block) for block in eight_capitals.BLOCKS] * (BLOCKS // 8 + 1)
    model.retriever = RealmRetriever(records[:BLOCKS], eight_capitals.tokenizer())
    return model


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("k", [1, 5, 20])
def test_bounds_threshold_and_answers(model, compression, k):
    found = searched.search(model, searched.codes_of(model, compression), QUESTION, k)
    scores, ids = model.retrieve([QUESTION], k)
    assert [block["id"] for block in found["found"]] == ids[0].tolist()
    assert [block["score"] for block in found["found"]] == scores[0].tolist()
    assert (found["groups"], found["group"], found["blocks"]) == (19, 16, BLOCKS)
    assert found["bytes"] == {None: 4, "bfloat16": 2, "int8": 1}[compression]
    drawn = found["drawn"]
    assert drawn["group"] == list(range(19)) and sum(drawn["rescored"]) == found["rescored"]
    x = model.embedder(**model.retriever.tokenizer([QUESTION], return_tensors="pt")).projected_score[0]
    truth = (model.block_emb.double() @ x.double()).float()
    for i in range(19):
        assert drawn["exact"][i] == pytest.approx(float(truth[16 * i : 16 * (i + 1)].max()), rel=1e-5)
        assert drawn["lower"][i] - 1e-4 <= drawn["exact"][i] <= drawn["upper"][i] + 1e-4
        assert drawn["lower"][i] - 1e-4 <= drawn["maximum"][i] <= drawn["upper"][i] + 1e-4
        assert drawn["rescored"][i] == (k > 19 or drawn["upper"][i] >= found["threshold"])
    least = sorted(drawn["lower"])[-k] if k <= 19 else None
    assert found["threshold"] == (least and pytest.approx(least, rel=1e-5))
    assert all(drawn["rescored"][block["group"]] for block in found["found"])
    assert found["report"] == {
        "groups": model.index.last_search.rescored_groups[0], "rows": model.index.last_search.rescored_rows[0]
    }  # fmt: skip


def test_the_nearest_groups_alone_are_drawn(model, monkeypatch):
    monkeypatch.setattr(searched, "MOST_GROUPS", 4)
    found = searched.search(model, searched.codes_of(model, "int8"), QUESTION, 2)
    drawn = found["drawn"]
    assert len(drawn["group"]) == 4 and sorted(drawn["group"]) == drawn["group"]
    assert {block["group"] for block in found["found"]} <= set(drawn["group"])


def test_what_cannot_be_drawn(model, monkeypatch):
    with pytest.raises(ValueError, match="'int4' is no way to store the blocks: choose one of"):
        searched.codes_of(model, "int4")
    monkeypatch.setattr(searched, "MOST_BLOCKS", BLOCKS - 1)
    with pytest.raises(ValueError, match="at most 299 blocks, and here are 300"):
        searched.codes_of(model, None)
