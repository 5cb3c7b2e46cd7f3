"""What a tokenizer call returns: a dict of token ids and masks whose keys are also attributes.

`BatchEncoding` holds `input_ids`, `token_type_ids`, `attention_mask` and, when asked for, `special_tokens_mask` and
`offset_mapping`: Python lists at first, tensors `[batch, tokens]` int64 after `convert_to_tensors`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


class BatchEncoding(dict):
    """A dict with attribute access (`encoding.input_ids`), whose values are lists, arrays or tensors.

    Args:
        data: field name to a list of ids, or to a list of such lists, one for each text.
        encodings: the `tokenizers.Encoding` of each text; only the fast tokenizer has them.
        tensor_type: "pt", "np" or None, see `convert_to_tensors`.
    """

    def __init__(
        self,
        data: dict[str, Any] | None = None,
        encodings: list | None = None,
        tensor_type: str | None = None,
        prepend_batch_axis: bool = False,
    ):
        super().__init__(data or {})
        self.encodings = encodings
        self.convert_to_tensors(tensor_type, prepend_batch_axis)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"this encoding has no field {name!r}, only {list(self)}") from None

    @property
    def is_fast(self) -> bool:
        """Whether the fast tokenizer made this encoding."""
        return self.encodings is not None

    def convert_to_tensors(self, tensor_type: str | None = None, prepend_batch_axis: bool = False) -> BatchEncoding:
        """Turn every field into an int64 tensor ("pt") or array ("np"), in place; None changes nothing.

        Raises ValueError for another type, and for texts of different lengths.
        """
        if tensor_type is None:
            return self
        if tensor_type not in ("pt", "np"):
            raise ValueError(f"return_tensors={tensor_type!r} is unknown: use 'pt', 'np' or None")
        tensors = {}
        for name, value in self.items():
            if isinstance(value, (torch.Tensor, np.ndarray)):
                array = np.asarray(value)
            else:
                try:
                    array = np.asarray([value] if prepend_batch_axis else value, dtype=np.int64)
                except ValueError:
                    lengths = sorted({len(row) for row in value})
                    raise ValueError(
                        f"{name!r} holds texts of different lengths {lengths}, which make no tensor: "
                        "pass padding=True (and truncation=True with max_length to bound the length)"
                    ) from None
            tensors[name] = torch.from_numpy(array) if tensor_type == "pt" else array
        self.update(tensors)
        return self

    def to(self, device: str | int | torch.device) -> BatchEncoding:
        """Move every tensor to `device`, in place. Raises ValueError while the fields are still lists."""
        for name, value in self.items():
            if not isinstance(value, torch.Tensor):
                raise ValueError(
                    f"{name!r} is a {type(value).__name__}, not a tensor: "
                    "pass return_tensors='pt' or call convert_to_tensors('pt') before to()"
                )
        self.update({name: value.to(device) for name, value in self.items()})
        return self

    def tokens(self, batch_index: int = 0) -> list[str]:
        """The tokens of one text, special tokens and padding included (fast tokenizer only)."""
        return self._encoding(batch_index).tokens

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token 0 or 1, the sequence it comes from, or None for a special token (fast tokenizer only)."""
        return self._encoding(batch_index).sequence_ids

    def _encoding(self, batch_index: int):
        if self.encodings is None:
            raise ValueError("tokens() and sequence_ids() need an encoding made by RealmTokenizerFast")
        return self.encodings[batch_index]
