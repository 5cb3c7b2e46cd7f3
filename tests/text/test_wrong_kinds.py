"""What tokenizers, encodings and retrievers are given in other classes than lists: taken, or named in one sentence."""

import eight_capitals
import numpy as np
import pytest
import torch

from realm_min import RealmRetriever, RealmTokenizer, RealmTokenizerFast
from realm_min.text.batch_encoding import BatchEncoding


@pytest.fixture(params=[RealmTokenizerFast, RealmTokenizer])
def tokenizer(request, tmp_path):
    eight_capitals.tokenizer().save_pretrained(tmp_path)
    return request.param.from_pretrained(tmp_path)


NEITHER = [3, {"a": 1}, torch.tensor(1.0), np.float32(2), [3], [None], torch.zeros(2)]
NONE = [None, [], np.array([]), torch.tensor([]), ()]
SEVERAL = [["<one>", "<two>"], np.array(["<one>", "<two>"]), np.array(["<one>", "<two>"], dtype=object)]


@pytest.mark.parametrize("tokens", NEITHER, ids=repr)
def test_what_is_no_list_of_tokens_is_named(tokenizer, tokens):
    before = tokenizer.get_added_vocab(), tokenizer.all_special_tokens
    with pytest.raises(ValueError, match="new_tokens is .*: give a token|is no added token"):
        tokenizer.add_tokens(tokens)
    with pytest.raises(ValueError, match="additional_special_tokens must be a list of tokens, not"):
        tokenizer.additional_special_tokens = tokens
    assert (tokenizer.get_added_vocab(), tokenizer.all_special_tokens) == before


@pytest.mark.parametrize("tokens", NONE + SEVERAL, ids=repr)
def test_an_array_of_tokens_is_a_list_of_them(tokenizer, tokens, tmp_path):
    count = 0 if tokens is None else len(tokens)
    assert tokenizer.add_tokens(tokens) == count
    tokenizer.additional_special_tokens = tokens
    assert len(tokenizer.additional_special_tokens) == count
    made = type(tokenizer)(tmp_path / "vocab.txt", additional_special_tokens=tokens)
    assert made.additional_special_tokens == ["<one>", "<two>"][:count]


@pytest.mark.parametrize("tokens", [[1], ["a", None], [b"a"]], ids=repr)
def test_what_an_iterator_holds_is_looked_at(tokenizer, tokens):
    assert tokenizer.convert_tokens_to_string(iter(["lima", "##s"])) == "limas"
    for given in (tokens, iter(tokens)):
        with pytest.raises(ValueError, match=r"tokens=.* is a list: give a list of str|tokens\[[01]\]=.*: give a str"):
            tokenizer.convert_tokens_to_string(given)


NO_RECORDS = [3, "a", b"a", {"a": b"a"}, np.int64(3), torch.tensor(1), np.array(b"a"), iter([]), {b"a"}]


@pytest.mark.parametrize("records", NO_RECORDS)
def test_what_is_no_list_of_records_is_named(records):
    with pytest.raises(TypeError, match="block_records is an? .*: give a list, or an object array, of bytes"):
        RealmRetriever(records, eight_capitals.tokenizer())


@pytest.mark.parametrize("row", [torch.tensor(1.0), np.float32(2), 3, None, "ab", [1, 2, 3], np.arange(3)], ids=repr)
def test_rows_that_make_no_tensor_are_named(row):
    with pytest.raises(ValueError, match="'mask' holds texts of different lengths .* which make no tensor"):
        BatchEncoding({"mask": [[1, 1], row]}, tensor_type="pt")


META = torch.zeros(2, dtype=torch.long, device="meta")


@pytest.mark.parametrize("field", [META, [META, META], [[1, 1], META]], ids=["alone", "rows", "a row"])
@pytest.mark.parametrize("kind", ["pt", "np"])
def test_a_field_without_numbers_is_named(field, kind):
    with pytest.raises(ValueError, match="mask is on meta: give a tensor that holds its numbers"):
        BatchEncoding({"mask": field}, tensor_type=kind)


def test_answers_without_numbers_are_named():
    model = eight_capitals.open_qa()
    asked = eight_capitals.tokenizer()("the capital of peru", return_tensors="pt")
    for answers in (META, [META], [[20, 21], META]):
        with pytest.raises(ValueError, match="answer_ids is on meta: give a tensor that holds its numbers"):
            model(**asked, answer_ids=answers)
    plain = model(**asked, answer_ids=[[20, 21], [22]]).reader_output.loss
    for answers in ([torch.tensor([20, 21]), [22]], [np.array([20, 21]), np.array([22])]):
        assert torch.equal(model(**asked, answer_ids=answers).reader_output.loss, plain)
