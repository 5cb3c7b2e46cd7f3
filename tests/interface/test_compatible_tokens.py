"""What the documentation of transformers' tokenizers says of tokens, decoding and folders: ours beside theirs.

Each case is one behaviour, in its name; `test_compatible_tokenizers.py` begins with calls.
"""

from pathlib import Path

import numpy as np
import pytest
import tokenizers_side_by_side as sides
import torch
from oracle import needs_oracle
from tokenizers import AddedToken

BOTH = ("by hand", "fast")
TEXT = "Where is the <ent> of peru, unaffable brandnew NewWord [MASK]? <ENT> newword"
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def state(t):
    """All that tells how tokens are cut, named and numbered."""
    return [
        t.tokenize(TEXT), t(TEXT, TEXT, padding="max_length", truncation=True, max_length=24),
        [(getattr(t, name), getattr(t, name + "_id")) for name in NAMES], t.additional_special_tokens,
        t.additional_special_tokens_ids, t.special_tokens_map, sorted(t.all_special_tokens), sorted(t.all_special_ids),
        t.get_added_vocab(), t.added_tokens_encoder, t.added_tokens_decoder, t.get_vocab(), len(t), t.vocab_size,
        t.decode([*range(12), *range(len(t) - 3, len(t))], skip_special_tokens=True),
        t.get_special_tokens_mask([*range(12), len(t) - 1], already_has_special_tokens=True),
    ]  # fmt: skip


def after(change):
    return lambda t: (change(t), state(t))


def named(**tokens):
    def change(t):
        for name, value in tokens.items():
            setattr(t, name, value)

    return after(change)


TOKENS = {
    "a new tokenizer": state,
    "add a token": after(lambda t: t.add_tokens("newword")),
    "add tokens": after(lambda t: t.add_tokens(["newword", "brandnew", "newword", "the", ""])),
    "add a token with capitals": after(lambda t: t.add_tokens(["NewWord"])),
    "add a token twice": after(lambda t: (t.add_tokens(["newword"]), t.add_tokens(["newword", "brandnew"]))),
    "add no tokens": after(lambda t: (t.add_tokens([]), t.add_tokens(""))),
    "add an AddedToken": after(lambda t: t.add_tokens(AddedToken("newword", lstrip=True, rstrip=True))),
    "add an AddedToken as it is written": after(lambda t: t.add_tokens([AddedToken("NewWord", normalized=False)])),
    "add special tokens by add_tokens": lambda t: (t.add_tokens(["<ent>"], special_tokens=True), t.tokenize(TEXT)),
    "add_special_tokens": after(lambda t: t.add_special_tokens({"additional_special_tokens": ["<ent>", "<ENT>"]})),
    "add_special_tokens by name": after(lambda t: t.add_special_tokens({"pad_token": "<pad>", "bos_token": "<s>"})),
    "add_special_tokens in the given order": after(
        lambda t: t.add_special_tokens({"additional_special_tokens": ["<ent>"], "cls_token": "<c>", "eos_token": "the"})
    ),
    "add_special_tokens of AddedToken": after(
        lambda t: t.add_special_tokens({"mask_token": AddedToken("<m>", lstrip=True, normalized=False)})
    ),
    "add_special_tokens replaces": after(
        lambda t: [t.add_special_tokens({"additional_special_tokens": [x]}) for x in ("<ent>", "<ENT>")]
    ),
    "add_special_tokens beside those that there are": after(
        lambda t: [
            t.add_special_tokens({"additional_special_tokens": x}, replace_additional_special_tokens=False)
            for x in (["<ent>"], ["<ent>", "<ENT>"])
        ]
    ),
    "add_special_tokens of nothing": after(lambda t: t.add_special_tokens({})),
    "set pad_token": named(pad_token="[UNK]"),
    "set pad_token_id": named(pad_token_id=3),
    "set pad_token_id of NumPy": lambda t: setattr(t, "pad_token_id", 2) or (t.pad_token, t.pad_token_id),
    "set pad_token to None": lambda t: (
        setattr(t, "pad_token", None) or (t.pad_token, t.pad_token_id, t.all_special_ids)
    ),
    "set unk_token": named(unk_token="the"),
    "set sep_token_id": named(sep_token_id=2),
    "set cls_token": named(cls_token="the"),
    "set mask_token": named(mask_token="<ent>"),
    "set bos and eos": named(bos_token="[CLS]", eos_token="[SEP]"),
    "set additional_special_tokens": named(additional_special_tokens=["peru", "where"]),
    "set additional_special_tokens_ids": named(additional_special_tokens_ids=[1, 7]),
    "bos and eos are none": lambda t: (t.bos_token, t.bos_token_id, t.eos_token, t.eos_token_id),
    "pad_token_type_id": lambda t: t.pad_token_type_id,
    "special_tokens_map_extended": lambda t: {
        name: str(value) for name, value in t.special_tokens_map_extended.items()
    },
    "all_special_tokens_extended": lambda t: sorted(map(str, t.all_special_tokens_extended)),
    "SPECIAL_TOKENS_ATTRIBUTES": lambda t: list(t.SPECIAL_TOKENS_ATTRIBUTES),
    "order of added tokens": lambda t: (t.add_tokens(["newword"]), list(t.added_tokens_encoder.items())),
    "vocab": lambda t: (t.add_tokens(["newword"]), dict(t.vocab)),
    "convert_tokens_to_ids": lambda t: [
        t.convert_tokens_to_ids(x) for x in ("peru", "nowhere", None, ["the", "x1"], [])
    ],
    "convert_ids_to_tokens": lambda t: (t.convert_ids_to_tokens(7), t.convert_ids_to_tokens([4, 7], True)),
    "convert_ids_to_tokens of arrays": lambda t: [
        t.convert_ids_to_tokens(ids) for ids in (np.array([4, 7]), torch.tensor([4, 7]), [np.int64(7)])
    ],
    "convert_tokens_to_string": lambda t: t.convert_tokens_to_string(["un", "##aff", "##able", "peru"]),
    "num_special_tokens_to_add": lambda t: (t.num_special_tokens_to_add(), t.num_special_tokens_to_add(True)),
    "max_len_single_sentence": lambda t: (
        setattr(t, "model_max_length", 9) or (t.max_len_single_sentence, t.max_len_sentences_pair)
    ),
    "model_max_length of none": lambda t: t.model_max_length,
    "names of fields and files": lambda t: (t.model_input_names, dict(t.vocab_files_names), t.padding_side),
    "tokenize": lambda t: t.tokenize("Don't"),
    "build_inputs_with_special_tokens": lambda t: t.build_inputs_with_special_tokens([7], [8, 9]),
    "create_token_type_ids_from_sequences": lambda t: t.create_token_type_ids_from_sequences([7], [8, 9]),
    "clean_up_tokenization": lambda t: t.clean_up_tokenization("is n't it ? yes , it 's ."),
}
IDS = [4, 13, 11, 14, 15, 16, 5, 0, 0]
DECODING = {
    "decode": lambda t: t.decode(IDS),
    "decode, special tokens skipped": lambda t: t.decode(IDS, skip_special_tokens=True),
    "decode by place": lambda t: t.decode(IDS, True, False),
    "decode a tensor": lambda t: t.decode(torch.tensor(IDS)),
    "decode an array": lambda t: t.decode(np.array(IDS)),
    "decode one letter's id": lambda t: t.decode(t.convert_tokens_to_ids("a")),
    "decode what encode gives": lambda t: t.decode(t.encode("Where is Lima, Peru?"), skip_special_tokens=True),
    "batch_decode": lambda t: t.batch_decode([IDS, IDS[:3]], skip_special_tokens=True),
    "batch_decode a tensor": lambda t: t.batch_decode(torch.tensor([IDS, IDS])),
    "clean_up_tokenization_spaces": lambda t: [
        t.decode(t.encode("is n't it?"), clean_up_tokenization_spaces=clean) for clean in (True, False, None)
    ],
    "clean_up_tokenization_spaces set later": lambda t: (
        setattr(t, "clean_up_tokenization_spaces", False) or t.decode(t.encode("is it?"))
    ),
    "spaces_between_special_tokens": lambda t: (
        t.add_tokens(["newword"]),
        t.decode([7, len(t) - 1, 8, len(t) - 1], spaces_between_special_tokens=False),
    ),
    "added tokens stand apart": lambda t: (t.add_tokens(["newword"]), t.decode([7, len(t) - 1, 15])),
    "a name given up is skipped no longer": lambda t: (
        setattr(t, "pad_token", "the") or t.decode([0, 7, 8], skip_special_tokens=True)
    ),
}


def written(change, **options):
    """What a tokenizer is after a folder, and which files that has."""

    def behaviour(t):
        change(t)
        folder = written.folder / f"{type(t).__module__}-{type(t).__name__}-{len(list(written.folder.iterdir()))}"
        paths = t.save_pretrained(folder, **options)
        reread = None if options.get("filename_prefix") else state(type(t).from_pretrained(folder))
        assert {Path(path).name for path in paths} >= {path.name for path in folder.iterdir()}
        return sorted(path.name for path in folder.iterdir()), reread

    return behaviour


FOLDERS = {
    "a new tokenizer": written(lambda t: None),
    "added tokens": written(lambda t: t.add_tokens(["newword", AddedToken("brandnew", lstrip=True)])),
    "special tokens": written(
        lambda t: t.add_special_tokens({"additional_special_tokens": ["<ent>"], "pad_token": "<p>"})
    ),
    "names set later": written(lambda t: setattr(t, "pad_token", "[UNK]")),
    "sides and lengths": written(lambda t: t.__dict__.update(padding_side="left", model_max_length=7)),
    "with a prefix": written(lambda t: t.add_tokens(["newword"]), filename_prefix="my"),
    "legacy_format=True": written(lambda t: t.add_tokens(["newword"]), legacy_format=True),
    "save_vocabulary": lambda t: Path(t.save_vocabulary(str(written.folder), "v")[0]).read_text(),
}


OF_LIBRARY = {
    "legacy_format=False": written(lambda t: t.add_tokens(["newword"]), legacy_format=False),
    "decode one id": lambda t: t.decode(7),
    "decoder": lambda t: t.decoder.decode(["un", "##aff", "##able"]),
    "backend_tokenizer": lambda t: t.backend_tokenizer.get_vocab_size(),
}


def cases(kinds=BOTH, **groups):
    return [
        pytest.param(kind, behaviour, id=f"{group}: {name} ({kind})")
        for group, behaviours in groups.items()
        for name, behaviour in behaviours.items()
        for kind in kinds
    ]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    written.folder = tmp_path_factory.mktemp("written")
    return sides.write_vocabulary(tmp_path_factory.mktemp("small"))


@needs_oracle
@pytest.mark.parametrize(
    ("kind", "behaviour"),
    cases(tokens=TOKENS, decoding=DECODING, folders=FOLDERS) + cases(["fast"], of_the_library=OF_LIBRARY),
)
def test_as_transformers_does(small, kind, behaviour):
    ours, theirs = sides.side_by_side(kind, small, behaviour)
    assert ours == theirs
