"""Arguments of transformers' `from_pretrained` that say how to load, and what they may ask for here."""

from __future__ import annotations

from typing import Any

from .left_out import OF_MODELS

# What asks for nothing that is not so here, and a sentence for what asks for more; None: any value is fine.
_OPTIONS: dict[str, tuple[tuple[Any, ...], str] | None] = {
    "low_cpu_mem_usage": None,  # weights are mapped into memory
    "use_safetensors": None,  # both formats are read, safetensors first
    "offload_folder": None, "offload_state_dict": None, "max_memory": None, "proxies": None, "mirror": None,
    "_fast_init": None, "_from_auto": None, "_commit_hash": None, "commit_hash": None,
    "attn_implementation": ((None, "eager"), "attention has one implementation here; leave it out"),
    "use_flash_attention_2": ((None, False), "attention has one implementation here; leave it out"),
    "device_map": ((None,), "a model is loaded on the CPU; leave it out, then model.to(device)"),
    "from_tf": ((None, False), "convert TensorFlow's files first: realm-min convert FILES --out FOLDER"),
    "from_flax": ((None, False), "weights of Flax are not read; save the model from torch first"),
    "load_in_8bit": ((None, False), "weights are not quantised; give torch_dtype, or compress the index"),
    "load_in_4bit": ((None, False), "weights are not quantised; give torch_dtype, or compress the index"),
    "quantization_config": ((None,), "weights are not quantised; give torch_dtype, or compress the index"),
    "variant": ((None,), "files are read under their usual names; rename them, model.safetensors say"),
    "adapter_kwargs": ((None, {}), "there are no adapters of peft; leave it out"),
    "adapter_name": ((None, "default"), "there are no adapters of peft; leave it out"),
}  # fmt: skip


_OF_SAVING = (
    "token", "use_auth_token", "save_function", "save_peft_format", "variant", "commit_message", "repo_id", "private",
)  # fmt: skip


def take_loading_options(arguments: dict[str, Any]) -> None:
    """Take from the arguments of a `from_pretrained` those above.

    Raises:
        ValueError: one asks for what is not here; it says what to do instead.
    """
    for name in _OPTIONS.keys() & arguments.keys():
        value, option = arguments.pop(name), _OPTIONS[name]
        if option is not None and value not in option[0]:
            raise ValueError(f"{name}={value!r}: {option[1]}")


def take_saving_options(arguments: dict[str, Any]) -> None:
    """Take from the arguments of a `save_pretrained` those that ask for nothing here; ValueError for the hub's."""
    if arguments.pop("push_to_hub", False):
        raise ValueError(f"push_to_hub=True: {OF_MODELS['push_to_hub']}")
    for name in _OF_SAVING:
        arguments.pop(name, None)
