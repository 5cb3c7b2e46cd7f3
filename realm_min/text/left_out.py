"""What transformers' tokenizers have and these have not, each with what to use in its place.

A program that asks for one of these names or arguments reads the sentence; `docs/differences.md` lists them.
"""

from __future__ import annotations

LEFT_OUT = {
    "apply_chat_template": "REALM answers single questions, it has no chat: give the text itself to the tokenizer",
    "as_target_tokenizer": "questions and answers are tokenized alike: call the tokenizer, or give it text_target=",
    "basic_tokenizer": "cutting into words is a few functions: see split_words and those after it in text/wordpiece.py",
    "chat_template": "REALM answers single questions, it has no chat: give the text itself to the tokenizer",
    "convert_added_tokens": "added tokens are tokenizers.AddedToken everywhere: give those, or plain strings",
    "default_chat_template": "REALM answers single questions, it has no chat: give the text itself to the tokenizer",
    "deprecation_warnings": "Python's own filters silence a warning: warnings.filterwarnings",
    "init_inputs": "a tokenizer keeps what it was made of as attributes: read do_lower_case and the like",
    "init_kwargs": "a tokenizer keeps what it was made of as attributes: read do_lower_case and the like",
    "prepare_for_tokenization": "nothing is done to a text before tokenize: change the text before the call",
    "prepare_seq2seq_batch": "REALM reads spans and writes no text: call the tokenizer, or give it text_target=",
    "pretrained_vocab_files_map": "the hub's names are read at once: give one to from_pretrained",
    "push_to_hub": "nothing is published from here: save_pretrained(folder), then huggingface_hub's upload_folder",
    "register_for_auto_class": "AutoTokenizer knows the two tokenizers already: use its from_pretrained",
    "sanitize_special_tokens": "every special token has its id from the start: give new ones to add_special_tokens",
    "set_truncation_and_padding": "no call changes the next: give padding and truncation to each",
    "slow_tokenizer_class": "neither tokenizer is made of the other: name RealmTokenizer or RealmTokenizerFast",
    "split_special_tokens": "a special token in a text is that token: write it otherwise where it is meant as text",
    "tokens_trie": "tokens are found in a text by find_tokens in text/wordpiece.py: add some with add_tokens",
    "train_new_from_iterator": "REALM keeps BERT's vocabulary: train another with the tokenizers library",
    "verbose": "a call is told how much to say: give it verbose=False",
    "wordpiece_tokenizer": "spelling a word is one function: see wordpiece in text/wordpiece.py",
}

LEFT_OUT_ARGUMENTS = {
    "chat_template": LEFT_OUT["chat_template"],
    "from_slow": "neither tokenizer is made of the other: give vocab_file or tokenizer_file",
    "push_to_hub": LEFT_OUT["push_to_hub"],
    "return_overflowing_tokens": "REALM reads blocks cut beforehand: see cut_blocks in text/corpus.py",
    "split_special_tokens": LEFT_OUT["split_special_tokens"],
    "stride": "REALM reads blocks cut beforehand: see cut_blocks in text/corpus.py",
    "tokenizer_object": "a tokenizer is read from files: save the object, and give the file as tokenizer_file",
}


class LeftOut:
    """Names of `LEFT_OUT` end in its sentence; `hasattr` is False for them, as for any name that there is not."""

    def __getattr__(self, name: str) -> object:
        if name in LEFT_OUT:
            raise AttributeError(f"{type(self).__name__} leaves {name} out: {LEFT_OUT[name]}")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: object) -> None:
        if name in LEFT_OUT and value:  # None and False ask for nothing
            raise AttributeError(f"{type(self).__name__} leaves {name} out: {LEFT_OUT[name]}")
        super().__setattr__(name, value)
