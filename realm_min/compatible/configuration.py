"""What every configuration of transformers has beside the model's own values: `PretrainedConfig`'s names.

`RealmConfig` adds REALM's values, and what can be wrong with them.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files.atomic import write_atomically
from ..files.json_file import read_json_object
from ..kinds import checked

if TYPE_CHECKING:
    from typing_extensions import Self  # of the standard library from Python 3.11 on

# What an attribute is that nobody has set; `to_dict` leaves it out. REALM reads the first line alone.
INHERITED: dict[str, Any] = {
    "tie_word_embeddings": True, "torchscript": False, "torch_dtype": None, "architectures": None,
    # of other models
    "add_cross_attention": False, "chunk_size_feed_forward": 0, "cross_attention_hidden_size": None,
    "decoder_start_token_id": None, "finetuning_task": None, "id2label": None, "is_decoder": False,
    "is_encoder_decoder": False, "label2id": None, "num_labels": 2, "prefix": None, "problem_type": None,
    "pruned_heads": {}, "sep_token_id": None, "task_specific_params": None, "tf_legacy_loss": False,
    "tie_encoder_decoder": False, "tokenizer_class": None, "transformers_version": None, "use_bfloat16": False,
    # of text generation
    "bad_words_ids": None, "begin_suppress_tokens": None, "diversity_penalty": 0.0, "do_sample": False,
    "early_stopping": False, "encoder_no_repeat_ngram_size": 0, "exponential_decay_length_penalty": None,
    "forced_bos_token_id": None, "forced_eos_token_id": None, "length_penalty": 1.0, "max_length": 20, "min_length": 0,
    "no_repeat_ngram_size": 0, "num_beam_groups": 1, "num_beams": 1, "num_return_sequences": 1, "output_scores": False,
    "remove_invalid_values": False, "repetition_penalty": 1.0, "return_dict_in_generate": False,
    "suppress_tokens": None, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "typical_p": 1.0,
}  # fmt: skip
# Names under which a configuration is given something that is written nowhere: where it was read from, a secret.
UNWRITTEN = ("_name_or_path", "_commit_hash", "_attn_implementation_internal", "token", "use_auth_token")
_OF_OUTPUTS = {"return_dict": True, "output_hidden_states": False, "output_attentions": False}


class Configuration:
    """Values as attributes; files and dicts of them."""

    model_type = ""
    is_composition = False
    attribute_map = {}

    if TYPE_CHECKING:
        return_dict: bool
        torchscript: bool

    # Values that stand under another name, or in another form

    @property
    def name_or_path(self) -> str:
        return self.__dict__.get("_name_or_path", "")

    @name_or_path.setter
    def name_or_path(self, name: object) -> None:
        self.__dict__["_name_or_path"] = str(name)

    @property
    def use_return_dict(self) -> bool:
        return self.return_dict and not self.torchscript

    @property
    def torch_dtype(self) -> Any:
        """A torch.dtype, or None; its name is what is stored and written."""
        import torch

        found = self.__dict__.get("torch_dtype")
        return getattr(torch, found, found) if isinstance(found, str) else found

    @torch_dtype.setter
    def torch_dtype(self, dtype: Any) -> None:
        self.__dict__["torch_dtype"] = dtype

    @property
    def num_labels(self) -> int:
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, number: int) -> None:
        if number != self.num_labels:
            self.__dict__["num_labels"] = number
            for name in ("id2label", "label2id"):
                self.__dict__.pop(name, None)

    @property
    def id2label(self) -> dict[int, str]:
        """Set it whole: where nobody has, it is made anew each time."""
        found = self.__dict__.get("id2label")
        if found is not None:  # JSON's keys are texts
            return {int(key) if str(key).isdecimal() else key: found[key] for key in found}
        return {i: f"LABEL_{i}" for i in range(self.__dict__.get("num_labels", INHERITED["num_labels"]))}

    @id2label.setter
    def id2label(self, labels: dict[int, str]) -> None:
        self.__dict__["id2label"] = dict(labels)

    @property
    def label2id(self) -> dict[str, int]:
        found = self.__dict__.get("label2id")
        return {label: number for number, label in self.id2label.items()} if found is None else found

    @label2id.setter
    def label2id(self, numbers: dict[str, int]) -> None:
        self.__dict__["label2id"] = numbers

    # Dicts and files of values

    def to_dict(self) -> dict[str, Any]:
        """All values as plain data, `model_type` included; of `INHERITED` those that were set."""
        values = {name: value for name, value in self.__dict__.items() if name not in UNWRITTEN}
        found = copy.deepcopy({"model_type": self.model_type, **values})
        self.dict_torch_dtype_to_str(found)
        return found

    def to_diff_dict(self) -> dict[str, Any]:
        """`to_dict` without what every configuration of transformers has, where it has its default."""
        usual = INHERITED | _OF_OUTPUTS
        return {name: value for name, value in self.to_dict().items() if name not in usual or usual[name] != value}

    def dict_torch_dtype_to_str(self, d: dict[str, Any]) -> None:
        """Write the dtype in a dict, or in one within it, as text: "float16"."""
        if not isinstance(d.get("torch_dtype"), (str, type(None))):
            d["torch_dtype"] = str(d["torch_dtype"]).removeprefix("torch.")
        for value in d.values():
            if isinstance(value, dict):
                self.dict_torch_dtype_to_str(value)

    def to_json_string(self, use_diff: bool = True) -> str:
        values = self.to_diff_dict() if use_diff else self.to_dict()
        try:
            return json.dumps(values, indent=2, sort_keys=True) + "\n"
        except (TypeError, ValueError) as error:
            raise ValueError(f"the configuration holds what JSON cannot say ({error}): give plain values") from None

    @checked
    def to_json_file(self, json_file_path: str | os.PathLike, use_diff: bool = True) -> None:
        with write_atomically(Path(json_file_path)) as temporary:
            temporary.write_text(self.to_json_string(use_diff), encoding="utf-8")

    def update(self, config_dict: dict[str, Any]) -> None:
        """Set attributes; they are checked when a model is built."""
        for name, value in config_dict.items():
            setattr(self, name, value)

    def update_from_string(self, update_str: str) -> None:
        """Set attributes from "hidden_size=64,output_attentions=true".

        Raises:
            ValueError: no such attribute, or no text of its type.
        """
        for name, _, text in (part.partition("=") for part in update_str.split(",")):
            if not hasattr(self, name):
                raise ValueError(f"update_from_string: there is no configuration value {name!r}")
            kind = type(getattr(self, name))
            if kind not in (bool, int, float, str):
                raise ValueError(f"update_from_string: {name} is a {kind.__name__}; set it as an attribute")
            if kind is bool and text.lower() not in ("true", "1", "y", "yes", "false", "0", "n", "no"):
                raise ValueError(f"update_from_string: {name}={text!r} must be true or false")
            try:
                setattr(self, name, text.lower() in ("true", "1", "y", "yes") if kind is bool else kind(text))
            except ValueError:
                raise ValueError(f"update_from_string: {name}={text!r} is no {kind.__name__}: give one") from None

    @classmethod
    @checked
    def from_json_file(cls, json_file: str | os.PathLike) -> Self:
        return cls(**read_json_object(json_file, "give the path of a configuration"))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self.to_dict() == other.to_dict()

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"


for _name, _value in INHERITED.items():
    if not hasattr(Configuration, _name):  # some are properties
        setattr(Configuration, _name, _value)
