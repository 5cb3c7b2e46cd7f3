"""`realm-min convert`: Google's original files in, Hugging Face folders out."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..config import RealmConfig
from ..files.atomic import only_writer, remove_temporaries
from ..files.block_records import write_block_records
from ..files.checkpoint import write_folder
from ..files.hub import BLOCK_RECORDS_FILE
from ..files.tensorflow_checkpoint import MODELS, Conversion, read_tensorflow
from ..files.tensorflow_files import read_blocks
from ..text.tokenizer import RealmTokenizer
from .printable import say


def run(options: argparse.Namespace) -> None:
    """Run `realm-min convert`."""
    with only_writer(options.out):
        remove_temporaries(options.out)
        convert(options)


def convert(options: argparse.Namespace) -> None:
    """Write what `options` name as a Hugging Face folder, everything read and checked first."""
    conversion = None
    if options.checkpoints:
        conversion = read_tensorflow(
            options.checkpoints, options.kind, options.config, options.initialize_missing, options.seed
        )
    blocks = read_blocks(options.blocks) if options.blocks else None
    tokenizer = RealmTokenizer(options.vocab) if options.vocab else None
    if conversion and blocks and conversion.kind == "openqa" and len(blocks) != conversion.config.num_block_records:
        raise ValueError(
            f"{options.blocks} holds {len(blocks)} blocks, block_emb {conversion.config.num_block_records}: "
            "give the two that belong together"
        )
    if conversion and tokenizer and len(tokenizer) != conversion.config.vocab_size:
        raise ValueError(
            f"{options.vocab} holds {len(tokenizer)} wordpieces, the model {conversion.config.vocab_size}: "
            "give the vocabulary that it was trained with"
        )

    options.out.mkdir(parents=True, exist_ok=True)
    if blocks:
        write_block_records(options.out / BLOCK_RECORDS_FILE, blocks)
        say(f"{len(blocks)} blocks -> {options.out / BLOCK_RECORDS_FILE}")
    if tokenizer:
        tokenizer.save_pretrained(options.out)
        say(f"tokenizer of {len(tokenizer)} wordpieces -> {options.out}")
    if conversion:
        write_conversion(conversion, options.out)


def write_conversion(conversion: Conversion, folder: Path) -> None:
    """Write configuration and weights into `folder`, and print what became of everything."""
    model_class, _ = MODELS[conversion.kind]
    config = conversion.config.to_dict() | {"architectures": [model_class.__name__], "torch_dtype": "float32"}
    write_folder(folder, RealmConfig.from_dict(config), conversion.state_dict)
    numbers = sum(tensor.numel() for tensor in conversion.state_dict.values())
    say(f"{model_class.__name__}, {numbers:,} numbers in {len(conversion.state_dict)} tensors -> {folder}")
    for remark in conversion.remarks:
        say(f"Assumed {remark}")
    for title, names in (
        ("variables map to no parameter", conversion.unmapped),
        ("parameters were filled by nothing and hold initial values", conversion.missing),
        ("parameters copy the word embeddings, to which BERT ties them", conversion.tied),
    ):
        if names:
            say(f"{len(names)} {title}:")
            for name in names:
                say(f"  {name}")
    if conversion.optimizer:
        say(f"{conversion.optimizer} variables of the optimizer were left out")
