"""Public names of transformers' classes that are not here: each ends in one sentence, which says what to do instead.

`docs/differences.md` lists them, and a test holds both to `dir()` of transformers' classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Class = TypeVar("Class", bound=type)


class LeftOut:
    """Stands in a class under a name that the class does not have."""

    def __init__(self, sentence: str) -> None:
        self.sentence = sentence

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: object, owner: type) -> object:
        raise AttributeError(f"{owner.__name__}.{self.name}: {self.sentence}")


def leaves_out(sentences: dict[str, str]) -> Callable[[Class], Class]:
    """Class decorator: each of the names raises AttributeError with its sentence, so that `hasattr` is False."""

    def decorate(cls: Class) -> Class:
        for name, sentence in sentences.items():
            left_out = LeftOut(sentence)
            left_out.__set_name__(cls, name)
            setattr(cls, name, left_out)
        return cls

    return decorate


def names(words: str, sentence: str) -> dict[str, str]:
    """The same sentence for several names."""
    return dict.fromkeys(words.split(), sentence)


_HUB = names("push_to_hub", "nothing is sent to the hub; save_pretrained(folder), then huggingface_hub's upload_folder")
_AUTO = names("register_for_auto_class", "there are no Auto classes for models; name the class itself")

OF_CONFIGURATIONS = _HUB | _AUTO

# Of `from transformers import …`.
OF_THE_PACKAGE = {
    **names("AutoConfig AutoModel", "there are no Auto classes but AutoTokenizer; name the class itself"),
    **names(
        "REALM_PRETRAINED_CONFIG_ARCHIVE_MAP REALM_PRETRAINED_MODEL_ARCHIVE_LIST",
        "names of the hub are given to from_pretrained; google/realm-orqa-nq-openqa is one",
    ),
    **names("load_tf_weights_in_realm", "convert TensorFlow's files first: realm-min convert FILES --out FOLDER"),
}

# Of the five models, from `PreTrainedModel` and `torch.nn.Module`.
OF_MODELS = {
    **_HUB,
    **_AUTO,
    **names(
        "generate assisted_decoding beam_sample beam_search constrained_beam_search contrastive_search greedy_search "
        "group_beam_search sample compute_transition_scores prepare_inputs_for_generation generation_config",
        "REALM generates no text, it reads answers out of blocks; call RealmForOpenQA's answer([question])",
    ),
    **names(
        "add_adapter active_adapter active_adapters disable_adapters enable_adapters get_adapter_state_dict "
        "load_adapter set_adapter",
        "there are no adapters of peft; train the weights themselves: model.backward(), then model.grads",
    ),
    **names(
        "register_forward_hook register_forward_pre_hook",
        "layers are functions on plain tensors, without hooks; ask for output_hidden_states=True or "
        "output_attentions=True",
    ),
    **names(
        "register_backward_hook register_full_backward_hook register_full_backward_pre_hook",
        "gradients are written by hand, without hooks; call model.backward(), then read model.grads",
    ),
    **names(
        "register_load_state_dict_post_hook register_load_state_dict_pre_hook register_state_dict_post_hook "
        "register_state_dict_pre_hook get_extra_state set_extra_state",
        "state dicts have no hooks; change the dict itself, before load_state_dict or after state_dict",
    ),
    **names(
        "add_module register_module register_parameter register_buffer set_submodule",
        "a model's parts follow from its configuration; keep what is yours beside the model",
    ),
    **names("prune_heads", "heads are not cut out; pass head_mask to the call"),
    **names(
        "resize_token_embeddings resize_position_embeddings",
        "tables have the size of the configuration; build a model of another vocab_size or max_position_embeddings "
        "and load_state_dict the rows that it keeps",
    ),
    **names(
        "set_input_embeddings set_output_embeddings",
        "the weights stay where they are; write into them: model.get_input_embeddings().weight.copy_(weight)",
    ),
    **names("get_position_embeddings", "there is no module; read model.realm.embeddings.position_embeddings.weight"),
    **names(
        "gradient_checkpointing_enable gradient_checkpointing_disable",
        "set model.checkpoint_layers = True, or False: backward() then computes each layer once more",
    ),
    **names(
        "enable_input_require_grads disable_input_require_grads",
        "autograd does not follow a call; model.backward() returns the gradient of inputs_embeds",
    ),
    **names(
        "init_weights post_init apply",
        "a new model is initialised, Model(config, seed=…); write into model.parameters()",
    ),
    **names("load_tf_weights", "convert TensorFlow's files first: realm-min convert FILES --out FOLDER"),
    **names("compile", "torch.compile has no graph to follow here; call the model as it is"),
    **names(
        "ipu mtia xpu share_memory to_empty",
        "models compute on a CPU or a CUDA GPU, each with tensors of its own; call model.to(device)",
    ),
    **names(
        "to_bettertransformer reverse_bettertransformer",
        "attention has one implementation here, which model/fast.py makes fast; call the model as it is",
    ),
    **names(
        "create_extended_attention_mask_for_decoder get_extended_attention_mask invert_attention_mask get_head_mask "
        "warn_if_padding_and_no_attention_mask",
        "the encoder prepares masks itself; pass attention_mask and head_mask to the call",
    ),
    **names(
        "add_memory_hooks reset_memory_hooks_state estimate_tokens floating_point_ops",
        "nothing is counted while a model computes; measure with torch.profiler",
    ),
    **names("add_model_tags model_tags", "tags are the hub's; write them into the model card"),
    **names("dummy_inputs", "give ids of your own, such as torch.tensor([[5, 6, 7]])"),
    **names(
        "T_destination call_super_init dump_patches extra_repr retrieve_modules_from_names warnings_issued",
        "it belongs to the machinery of torch.nn.Module, which a model here is none of; leave it out",
    ),
    # Private, but what torch.nn.DataParallel asks for where there are several GPUs.
    **names("_replicate_for_data_parallel", "one model computes on one device; start the program with torchrun"),
}  # fmt: skip
