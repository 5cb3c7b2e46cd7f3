"""transformers' model and ours with the same weights, what they read, and whether they say the same."""

import torch
from oracle import transformers

import realm_min

TOLERANCE = 1e-5  # relative to the largest value of an output

CONFIGS = {
    "one-layer": dict(
        hidden_size=30, num_attention_heads=3, num_hidden_layers=1, intermediate_size=41, vocab_size=101,
        retriever_proj_size=8, span_hidden_size=7, max_span_width=3, num_candidates=3, reader_beam_size=2,
        num_block_records=9, searcher_beam_size=4, initializer_range=0.3, hidden_act="relu",
    ),
    "three-layers": dict(
        hidden_size=64, num_attention_heads=4, num_hidden_layers=3, intermediate_size=130, vocab_size=203,
        retriever_proj_size=16, span_hidden_size=32, max_span_width=5, num_candidates=2, reader_beam_size=3,
        num_block_records=11, searcher_beam_size=7, initializer_range=0.1, hidden_act="gelu",
    ),
    # All widths of BERT-base; its twelve layers are compared by `make verify-base`.
    "bert-base": dict(
        num_hidden_layers=2, num_candidates=2, reader_beam_size=2, num_block_records=20, searcher_beam_size=5,
    ),
}  # fmt: skip


def twins(name, class_name, **values):
    """transformers' model with random weights and ours with the same, both in evaluation mode."""
    values = CONFIGS[name] | values
    with transformers.modeling_utils.no_init_weights():
        theirs = getattr(transformers, class_name)(transformers.RealmConfig(**values)).eval()
    theirs.tie_weights()
    fill(theirs)
    ours = getattr(realm_min, class_name)(realm_min.RealmConfig(**values), initialize=False).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def fill(model, seed=0):
    """Random weights, with biases and LayerNorms that do something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            is_norm = tensor.dim() == 1 and key.endswith("weight")
            # Blocks that keep the scores near 1: a loss is a difference of scores, and as exact as the largest of them.
            std = 0.1 if key == "block_emb" else model.config.initializer_range if tensor.dim() > 1 else 0.1
            tensor.normal_(float(is_norm), std, generator=generator)


def assert_same(theirs, ours, tolerance=TOLERANCE):
    assert type(ours).__name__ == type(theirs).__name__
    assert list(ours.keys()) == list(theirs.keys())
    for key in theirs.keys():
        assert_close(theirs[key], ours[key], tolerance, key)


def assert_close(theirs, ours, tolerance=TOLERANCE, key=""):
    if isinstance(theirs, tuple):
        assert isinstance(ours, tuple) and len(ours) == len(theirs), key
        for i, pair in enumerate(zip(theirs, ours, strict=True)):
            assert_close(*pair, tolerance, f"{key}[{i}]")
    elif not isinstance(theirs, torch.Tensor):
        assert_same(theirs, ours, tolerance)
    else:
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype, key
        if theirs.is_floating_point():
            error = (ours.double() - theirs.double()).abs().max() / theirs.double().abs().max().clamp(min=1e-30)
            assert error <= tolerance, f"{key}: {error}"
        else:
            assert torch.equal(ours, theirs), key


def ids_and_mask(config, batch, tokens, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, config.vocab_size, (batch, tokens), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(1, batch):
        mask[row, tokens - 2 * row :] = 0
    types = torch.randint(0, 2, (batch, tokens), generator=generator)
    return ids, mask, types
