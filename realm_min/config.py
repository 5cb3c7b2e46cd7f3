"""The numbers that define a REALM model. Everything else in the package takes one `RealmConfig`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .compatible.configuration import INHERITED, UNWRITTEN, Configuration
from .compatible.left_out import OF_CONFIGURATIONS, leaves_out
from .compatible.loading import take_saving_options
from .files.atomic import write_atomically
from .files.causes import check_readable
from .files.hub import BLOCK_RECORDS_FILE, resolve_folder, take_hub_options
from .files.json_file import read_json_object
from .files.unknown_names import warn_of_unknown
from .kinds import checked

ACTIVATIONS = ("gelu", "gelu_new", "relu", "selu", "silu")

CONFIG_FILE = "config.json"

_POSITIVE_INTEGERS = (
    "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size max_position_embeddings "
    "type_vocab_size retriever_proj_size num_candidates num_block_records searcher_beam_size span_hidden_size "
    "max_span_width reader_beam_size reader_seq_len"
).split()
_PROBABILITIES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "projection_dropout_prob")
_FLAGS = ("output_attentions", "output_hidden_states", "return_dict")
_POSITIVE_NUMBERS = ("initializer_range", "layer_norm_eps", "reader_layer_norm_eps")
# What transformers' `RealmConfig` takes by place.
_BY_PLACE = (
    "vocab_size hidden_size retriever_proj_size num_hidden_layers num_attention_heads num_candidates intermediate_size "
    "hidden_act hidden_dropout_prob attention_probs_dropout_prob max_position_embeddings type_vocab_size "
    "initializer_range layer_norm_eps span_hidden_size max_span_width reader_layer_norm_eps reader_beam_size "
    "reader_seq_len num_block_records searcher_beam_size pad_token_id bos_token_id eos_token_id"
).split()
# Under another name, or of no effect: what older configurations of BERT say.
_UNDERSTOOD = ("name_or_path", "attn_implementation", "use_cache", "gradient_checkpointing", "model_type", *UNWRITTEN)
LARGEST_NUMBER = 3e38  # about what float32 holds


@leaves_out(OF_CONFIGURATIONS)
class RealmConfig(Configuration):
    """Every parameter of transformers' `RealmConfig`, with its name and default, as attributes of the instance.

    Keys that REALM does not use are kept, so that a foreign `config.json` survives a round trip.

    Raises:
        ValueError: a value no model can have, such as a hidden size that the heads do not divide.
    """

    model_type = "realm"
    # Beside transformers' values, written where it is another: dropout of Embed(x) in training, 0.1 in ORQA's code.
    projection_dropout_prob = 0.0

    # The encoder: BERT-base (Devlin et al. 2018, section 3).
    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu_new"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    position_embedding_type: str = "absolute"
    # The retriever (REALM section 3.2): the dimension of Embed_input and Embed_doc.
    retriever_proj_size: int = 128
    num_candidates: int = 8
    num_block_records: int = 13353718
    searcher_beam_size: int = 5000
    # The reader (ORQA, Lee et al. 2019, section 3).
    span_hidden_size: int = 256
    max_span_width: int = 10
    reader_layer_norm_eps: float = 1e-3
    reader_beam_size: int = 5
    reader_seq_len: int = 320  # 288 wordpieces of evidence, 32 of question
    # Token ids as in transformers. As an input, `pad_token_id` gives its word embedding no gradient.
    pad_token_id: int = 1
    bos_token_id: int = 0
    eos_token_id: int = 2
    # Which outputs a forward returns when its arguments do not say.
    output_attentions: bool = False
    output_hidden_states: bool = False
    return_dict: bool = True

    def __init__(self, /, *by_place: Any, **values: Any) -> None:
        if len(by_place) > len(_BY_PLACE):
            raise TypeError(
                f"RealmConfig takes at most {len(_BY_PLACE)} values by place, and {len(by_place)} were given"
            )
        values = dict(zip(_BY_PLACE, by_place, strict=False)) | values
        warn_of_unknown(values, KNOWN | {*dir(self)}, "RealmConfig")
        self._fill(values)

    def _fill(self, values: dict[str, Any]) -> None:
        values = {name: value for name, value in values.items() if name != "model_type"}
        if "use_return_dict" in values:
            raise ValueError("use_return_dict is read-only in RealmConfig; give return_dict instead")
        for old, new in (("name_or_path", "_name_or_path"), ("attn_implementation", "_attn_implementation_internal")):
            if old in values:
                values[new] = values.pop(old)
        for name in values:
            if name not in {*DEFAULTS, *INHERITED, *OWN} and hasattr(RealmConfig, name):
                raise ValueError(f"{name!r} names a part of RealmConfig itself, no configuration value: leave it out")
        self.__dict__.update(DEFAULTS | values)
        self.check()

    def check(self) -> None:
        """Raise the ValueError that names a value which no model can have: values can be set after construction.

        Numbers of NumPy become Python's, which a file can hold.
        """
        for name, value in vars(self).items():
            if type(value).__module__ == "numpy" and hasattr(value, "tolist") and value.shape == ():
                self.__dict__[name] = value.tolist()
        self._check_values()

    def _check_values(self) -> None:
        for name in _POSITIVE_INTEGERS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
                raise ValueError(f"{name}={value!r} must be an integer of at least 1, and below 2 ** 31")
        for name in _PROBABILITIES:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
                raise ValueError(f"{name}={value!r} must be a probability in [0, 1)")
        for name in _POSITIVE_NUMBERS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < LARGEST_NUMBER:
                raise ValueError(f"{name}={value!r} must be a number above 0")
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r} must be true or false")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not divisible by num_attention_heads={self.num_attention_heads}: "
                "every head needs the same width"
            )
        pad, size = self.pad_token_id, self.vocab_size
        if pad is not None and (not isinstance(pad, int) or not -size <= pad < size):
            raise ValueError(f"pad_token_id={pad!r} is no id of vocab_size={size} words: give one of them, or None")
        if not isinstance(self.hidden_act, str) or self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act={self.hidden_act!r} is unknown: choose one of {', '.join(ACTIVATIONS)}")
        if self.position_embedding_type not in ("absolute",):
            raise ValueError(
                f"position_embedding_type={self.position_embedding_type!r}: REALM's checkpoints have absolute "
                'positions only; use "absolute"'
            )
        self._check_what_others_say()

    def _check_what_others_say(self) -> None:
        """`check` of values that all of transformers' configurations have."""
        names = getattr(self, "architectures", None)
        if names is not None and not (
            isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
        ):
            raise ValueError(f"architectures={names!r} must be a list of names of classes, or null")
        number, labels = (self.__dict__.get(name) for name in ("num_labels", "id2label"))
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 0):
            raise ValueError(f"num_labels={number!r} must be an integer of at least 0")
        if labels is not None and not isinstance(labels, dict):
            raise ValueError(f"id2label={labels!r} must be a dict of numbers to labels, or null")
        for name in ("is_decoder", "add_cross_attention"):
            if getattr(self, name, False):
                raise ValueError(f"{name}=True: REALM's encoder reads both ways; leave it False")
        if getattr(self, "pruned_heads", None):
            raise ValueError("pruned_heads is not empty: heads are not cut out; pass head_mask to the call")
        if self.__dict__.get("_attn_implementation_internal") not in (None, "eager"):
            raise ValueError("attn_implementation: attention has one implementation here; leave it out")

    @classmethod
    @checked
    def from_dict(
        cls, config_dict: dict[str, Any], return_unused_kwargs: bool = False, **overrides: Any
    ) -> RealmConfig:
        """The configuration that a dict describes, whose keys may be of any model; `overrides` replace its values.

        An override that is no configuration value is left out, and said so; with `return_unused_kwargs` the result is
        (configuration, what was left out), without a word.
        """
        known = KNOWN | config_dict.keys()
        unused = {name: value for name, value in overrides.items() if name not in known}
        if not return_unused_kwargs:
            warn_of_unknown(unused, known, "RealmConfig")
        config = cls.__new__(cls)
        config._fill({**config_dict, **{name: value for name, value in overrides.items() if name in known}})
        found: Any = (config, unused) if return_unused_kwargs else config
        return found

    @checked
    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **options: Any) -> None:
        """Write `save_directory/config.json`; ValueError where it is to be sent to the hub, too."""
        options["push_to_hub"] = push_to_hub
        take_saving_options(options)
        warn_of_unknown(options, ("push_to_hub",), "save_pretrained")
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        with write_atomically(folder / CONFIG_FILE) as temporary:
            temporary.write_text(self.to_json_string(use_diff=False), encoding="utf-8")

    @classmethod
    @checked
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, *, return_unused_kwargs: bool = False, **overrides: Any
    ) -> RealmConfig:
        """Read the config.json of a folder or hub name; `overrides` replace what it says, as in `from_dict`.

        Raises:
            FileNotFoundError: the folder or its config.json is missing.
            ValueError: it is not JSON, is another model's, or holds impossible values.
        """
        values, overrides = cls.get_config_dict(pretrained_model_name_or_path, **overrides)
        found = values.get("model_type", cls.model_type)
        if found != cls.model_type:
            raise ValueError(
                f'{pretrained_model_name_or_path} describes a model of type {found!r}; a REALM checkpoint has "realm"'
            )
        return cls.from_dict(values, return_unused_kwargs, **overrides)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike, **overrides: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the config.json of a folder or hub name says, or that file itself; and `overrides` but the hub's."""
        options = take_hub_options(overrides)
        path = Path(pretrained_model_name_or_path)
        if not path.is_file():
            path = resolve_folder(pretrained_model_name_or_path, "config", **options) / CONFIG_FILE
        check_readable(path, f"{path} does not exist: give the folder of a REALM checkpoint")
        return read_json_object(path, "restore it from the checkpoint's source"), overrides


# What the class declares: a configuration value is a name, a type and a default in one line above.
DEFAULTS: dict[str, Any] = {name: getattr(RealmConfig, name) for name in RealmConfig.__annotations__}
OWN = ("projection_dropout_prob",)
KNOWN = frozenset((*DEFAULTS, *INHERITED, *OWN, *_UNDERSTOOD))  # keywords that are no slips of the pen


def check_open_qa(folder: Path) -> None:
    """ValueError if the folder's configuration says that it holds another model than a RealmForOpenQA."""
    architectures = getattr(RealmConfig.from_pretrained(folder), "architectures", None)
    if architectures and "RealmForOpenQA" not in architectures:
        raise ValueError(f"{folder} holds a {architectures[0]}: give the folder of a RealmForOpenQA")


def check_indexed(folder: Path) -> None:
    """As `check_open_qa`, and FileNotFoundError if no blocks stand beside the model."""
    check_open_qa(folder)
    command = f"realm-min index CORPUS --model {folder} --out FOLDER"
    missing = f"{folder} holds a model without blocks: give it some with {command}"
    check_readable(folder / BLOCK_RECORDS_FILE, missing)
