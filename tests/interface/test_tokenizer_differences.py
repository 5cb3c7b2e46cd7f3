"""Where tokenizers differ from transformers', they say so: names left out, unknown keywords, what is never written."""

import json
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tokenizers_side_by_side as sides
from oracle import needs_oracle
from tokenizers import AddedToken

import realm_min
from realm_min.text.left_out import LEFT_OUT, LEFT_OUT_ARGUMENTS
from realm_min.text.tokenizer import MOST_ADDED

OURS = (realm_min.RealmTokenizer, realm_min.RealmTokenizerFast)
PAGE = Path(__file__).parents[2] / "docs" / "differences.md"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return sides.write_vocabulary(tmp_path_factory.mktemp("small"))


@pytest.fixture(params=OURS)
def tokenizer(request, small):
    return request.param(small)


# ---- left out


@pytest.mark.parametrize("name", LEFT_OUT)
def test_a_name_left_out_ends_in_its_sentence(tokenizer, name):
    sentence = re.escape(f"{type(tokenizer).__name__} leaves {name} out: {LEFT_OUT[name]}")
    with pytest.raises(AttributeError, match=f"^{sentence}$"):
        getattr(tokenizer, name)
    with pytest.raises(AttributeError, match=f"^{sentence}$"):
        setattr(tokenizer, name, {"anything": True})
    setattr(tokenizer, name, None)  # asks for nothing
    assert not hasattr(realm_min.RealmTokenizer, name)


def test_a_name_that_there_is_not(tokenizer):
    with pytest.raises(AttributeError, match="object has no attribute 'paddding_side'$"):
        _ = tokenizer.paddding_side


@needs_oracle
@pytest.mark.parametrize("kind", sorted(sides.PAIRS))
def test_the_list_of_names_is_complete(small, kind):
    """Every public name of transformers' two tokenizers is here, or on the list; and nothing else is on it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours, theirs = [tokenizer_class(str(small)) for tokenizer_class in sides.PAIRS[kind]]
        names = {name for name in dir(theirs) if not name.startswith("_")}
    assert {name for name in names if not hasattr(ours, name)} == names & LEFT_OUT.keys()
    found = {name for name in dir(theirs("a")) if not name.startswith("_")}
    assert [name for name in found if not hasattr(ours("a"), name)] == []
    both = {name for pair in sides.PAIRS.values() for name in dir(pair[1](str(small)))}
    assert LEFT_OUT.keys() <= both


def test_the_page_lists_what_is_left_out():
    section = PAGE.read_text(encoding="utf-8").split("## Tokenizers")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", section, re.M)
    assert rows == [*LEFT_OUT.items(), *LEFT_OUT_ARGUMENTS.items()]
    assert f"{MOST_ADDED:,} added tokens" in section


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda t: t("a", stride=2), "stride"),
        (lambda t: t("a", None, None, None, True, True, True, 9, 2), "stride"),
        (lambda t: t.encode("a", None, True, False, True, 9, 2), "stride"),
        (lambda t: t.encode_plus("a", return_overflowing_tokens=True), "return_overflowing_tokens"),
        (lambda t: t.batch_encode_candidates([["a"]], max_length=5, stride=1), "stride"),
        (lambda t: t.truncate_sequences([1], stride=1), "stride"),
        (lambda t: t.tokenize("a", split_special_tokens=True), "split_special_tokens"),
        (lambda t: t.save_pretrained("never", push_to_hub=True), "push_to_hub"),
        (lambda t: type(t)("vocab.txt", tokenizer_object=t), "tokenizer_object"),
        (lambda t: type(t)("vocab.txt", from_slow=True), "from_slow"),
        (lambda t: type(t)("vocab.txt", chat_template="{{ x }}"), "chat_template"),
    ],
)
def test_an_argument_left_out_ends_in_its_sentence(tokenizer, small, monkeypatch, call, name):
    monkeypatch.chdir(small.parent)
    with pytest.raises(ValueError, match=re.escape(f"leaves {name} out: {LEFT_OUT_ARGUMENTS[name]}")):
        call(tokenizer)
    assert not Path("never").exists()


def test_arguments_left_out_that_ask_for_nothing(tokenizer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tokenizer("a", stride=0, return_overflowing_tokens=False) == tokenizer("a")
        assert tokenizer.tokenize("a", split_special_tokens=False) == ["a"]


# ---- unknown keywords


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t("a", max_lenght=2), "has no 'max_lenght', which has no effect: did you mean 'max_length'?"),
        (lambda t: t.encode("a", pading=True), "encode has no 'pading', which has no effect: did you mean 'padding'?"),
        (lambda t: t.encode_plus("a", return_tensor="pt"), "did you mean 'return_tensors'?"),
        (lambda t: t.batch_encode_plus(["a"], trunctation=True), "did you mean 'truncation'?"),
        (lambda t: t.batch_encode_candidates([["a"]], max_length=5, num_candidates=1), "has no 'num_candidates'"),
        (lambda t: t.prepare_for_model([1], paddings=True), "did you mean 'padding'?"),
        (lambda t: t.tokenize("a", add_special_token=True), "has no 'add_special_token'"),
        (lambda t: t.decode([7], spaces_between_special_token=False), "mean 'spaces_between_special_tokens'?"),
        (lambda t: t.batch_decode([[7]], skip_special_token=True), "has no 'skip_special_token'"),
        (lambda t: type(t)("vocab.txt", do_lowercase=True), "has no 'do_lowercase', which has no effect: did you"),
        (lambda t: type(t).from_pretrained(".", do_lowercase=True), "did you mean 'do_lower_case'?"),
        (lambda t: realm_min.AutoTokenizer.from_pretrained(".", strip_accent=True), "did you mean 'strip_accents'?"),
        (lambda t: t.save_pretrained("saved", file_name_prefix="x"), "did you mean 'filename_prefix'?"),
        (lambda t: setattr(t, "pad_token", "<none>"), "the vocabulary lacks pad_token='<none>', which has"),
    ],
)  # fmt: skip
def test_what_is_unknown_is_named(tokenizer, small, monkeypatch, call, message):
    monkeypatch.chdir(small.parent)
    with pytest.warns(UserWarning, match=re.escape(message)) as warned:
        call(tokenizer)
    assert len(warned) == 1 and warned[0].filename == __file__


def test_what_folders_hold_is_known(tokenizer, tmp_path):
    """Keys that a saved configuration has, transformers' newer versions' too, are no slips of a program."""
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config |= {"note": "kept", "name_or_path": "elsewhere", "chat_template": None, "split_special_tokens": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reread = type(tokenizer).from_pretrained(tmp_path)
    reread.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())["note"] == "kept"


def test_options_twice_or_too_many(tokenizer):
    with pytest.raises(TypeError, match="was given 'add_special_tokens' twice"):
        tokenizer("a", None, None, None, True, add_special_tokens=False)
    with pytest.raises(TypeError, match="takes at most 15 options by place, not 16: name them"):
        tokenizer("a", None, None, None, *[None] * 16)


# ---- never on disk


def test_a_secret_is_never_written(tokenizer, small, tmp_path):
    options = dict(
        token="hf_SECRET", use_auth_token="hf_SECRET", revision="main", cache_dir="c", local_files_only=True, mirror="",
        force_download=False, proxies={"https": "hf_SECRET"}, resume_download=True, trust_remote_code=False,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = type(tokenizer)(small, **options)
        made.save_pretrained(tmp_path / "made", token="hf_SECRET", commit_message="x")
        read = [
            reader.from_pretrained(tmp_path / "made", **options)
            for reader in (type(tokenizer), realm_min.AutoTokenizer)
        ]
        read.append(type(tokenizer).from_pretrained(small, **options))
    # As a version of before wrote it.
    config = json.loads((tmp_path / "made" / "tokenizer_config.json").read_text())
    (tmp_path / "made" / "tokenizer_config.json").write_text(json.dumps(config | {"token": "hf_SECRET"}))
    read.append(type(tokenizer).from_pretrained(tmp_path / "made"))
    with pytest.warns(UserWarning, match="has no 'api_key', which has no effect"):
        read.append(type(tokenizer).from_pretrained(tmp_path / "made", api_key="hf_SECRET"))
    for number, one in enumerate([made, *read]):
        one.save_pretrained(tmp_path / str(number))
        for file in (tmp_path / str(number)).iterdir():
            text = file.read_text(encoding="utf-8")
            assert "SECRET" not in text and "revision" not in text and "cache_dir" not in text, file


# ---- many and odd


def test_twenty_thousand_added_tokens(small):
    """By hand their number is no matter, neither in adding nor in a text; the library's square of time is refused."""
    words = [f"word{i}x" for i in range(20_000)]
    by_hand, fast = [tokenizer_class(small) for tokenizer_class in OURS]
    assert by_hand.add_tokens(words) == 20_000 and by_hand.add_tokens(words) == 0
    assert by_hand.tokenize("word7x word19999x") == ["word7x", "word19999x"]
    reread = realm_min.RealmTokenizer(small, added_tokens_decoder=by_hand.added_tokens_decoder)
    assert reread.convert_tokens_to_ids("word19999x") == by_hand.vocab_size + 19_999 and len(reread) == len(by_hand)
    message = r"added tokens: RealmTokenizerFast takes at most 5000, since .* Use RealmTokenizer, or write them"
    with pytest.raises(ValueError, match=message):
        fast.add_tokens(words)
    with pytest.raises(ValueError, match=message):
        realm_min.RealmTokenizerFast(small, added_tokens_decoder=by_hand.added_tokens_decoder)
    assert len(fast) == fast.vocab_size  # nothing was added


def test_kinds_in_turn_are_added_at_once(small):
    """A call of the library for each would make its tables anew a thousand times."""
    size = realm_min.RealmTokenizer(small).vocab_size
    added = {
        size + i: AddedToken(f"w{i}x", special=i % 2 == 1, normalized=i % 2 == 0, lstrip=i % 3 == 0)
        for i in range(1000)
    }
    fast, by_hand = [tokenizer_class(small, added_tokens_decoder=added) for tokenizer_class in reversed(OURS)]
    library = fast.backend_tokenizer.get_added_tokens_decoder()
    assert sides.plain({i: library[i] for i in added}) == sides.plain(added)
    assert fast("w7x a w8x ").input_ids == by_hand("w7x a w8x ").input_ids


def test_threads_that_ask_differently_and_add_tokens(tokenizer):
    """Eight threads on one tokenizer: each gets what it gets alone, while others pad otherwise and add tokens."""
    texts = ["where is lima, peru?", "unaffable", "the capital of peru is lima " * 3]
    options = [
        dict(padding="max_length", truncation=True, max_length=6 + i) if i % 3 else dict(padding=i % 2 == 1)
        for i in range(9)
    ]
    alone = [dict(tokenizer(texts, **given)) for given in options]
    decoded = [tokenizer.decode(row, skip_special_tokens=True) for row in alone[0]["input_ids"]]
    size = len(tokenizer)

    def work(i):
        if i % 10 == 9:
            return tokenizer.add_tokens([f"newword{i}"])
        if i % 10 == 8:
            return [tokenizer.decode(row, skip_special_tokens=True) for row in alone[0]["input_ids"]] == decoded
        return dict(tokenizer(texts, **options[i % 9])) == alone[i % 9]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, range(160)))
    assert [i for i, right in enumerate(found) if right != 1] == []
    assert len(tokenizer) == size + 16
    new = [f"newword{i}" for i in range(9, 160, 10)]
    assert sorted(tokenizer.convert_tokens_to_ids(new)) == list(range(size, size + 16))
    assert tokenizer.tokenize("the newword99 of") == ["the", "newword99", "of"]


@pytest.mark.parametrize("token", [5, None, ["a"], b"a", AddedToken("")])
def test_what_is_no_token(tokenizer, token):
    before = len(tokenizer), tokenizer.special_tokens_map
    for add in (
        lambda: tokenizer.add_tokens(["newword", token]),
        lambda: tokenizer.add_special_tokens({"bos_token": "<s>", "pad_token": token}),
        lambda: tokenizer.add_special_tokens({"pad_tokens": "a"}),
    ):
        with pytest.raises(ValueError, match="is no added token|is no name of a special token"):
            add()
    assert (len(tokenizer), tokenizer.special_tokens_map) == before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], r"takes an encoding or a list of encodings, mappings of fields, not \[\]"),
        ([[4, 5]], "takes an encoding or a list of encodings"),
        ({"labels": [1]}, r"needs the field 'input_ids', and was given \['labels'\]"),
        ([{"input_ids": [4]}, {"input_ids": [4], "labels": 1}], "encodings of different fields"),
        (
            {"input_ids": [[4], [5]], "labels": [1]},
            "fields of different numbers of texts: {'input_ids': 2, 'labels': 1}",
        ),
    ],
)
def test_what_cannot_be_padded(tokenizer, given, message):
    with pytest.raises(ValueError, match=message):
        tokenizer.pad(given)


def test_other_values_are_refused(tokenizer):
    for call, message in (
        (lambda: tokenizer(["a", 1], is_split_into_words=True), "must be a list of words, since is_split"),
        (lambda: tokenizer("a b", is_split_into_words=True), "must be a list of words"),
        (lambda: tokenizer(["a"], "b", is_split_into_words=True), "text is a list of words and text_pair a str"),
        (lambda: tokenizer.batch_encode_plus("a"), "takes a list of texts or of pairs, not 'a'"),
        (lambda: tokenizer.batch_encode_plus([None]), "takes one str.*, not a NoneType"),
        (lambda: tokenizer.encode_plus(None), "takes one str.*, not a NoneType"),
        (lambda: tokenizer.encode(["a", 1]), "takes one str.*, not a list"),
        (lambda: setattr(tokenizer, "pad_token", 5), "pad_token must be a token or None, not a int: 5"),
        (lambda: setattr(tokenizer, "pad_token_id", 10**6), "token id 1000000 is out of range"),
        (lambda: setattr(tokenizer, "additional_special_tokens", "ab"), "must be a list of tokens, not 'ab'"),
        (lambda: (setattr(tokenizer, "padding_side", "middle"), tokenizer("a")), "padding_side='middle' is unknown"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            call()
