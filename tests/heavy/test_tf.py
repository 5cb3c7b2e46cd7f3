"""Checkpoints that TensorFlow writes with the original names, converted, against transformers' own reading of them.

`make test-tf` runs this; the main suite does not, since it installs no TensorFlow.
"""

import json
import re
import struct
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import torch
import transformers
from transformers.models.realm.modeling_realm import load_tf_weights_in_realm

import realm_min
from realm_min.app.cli import main
from realm_min.files.checkpoint import read_state_dict
from realm_min.files.tensorflow_checkpoint import MODELS, read_tensorflow
from realm_min.files.tensorflow_files import find_checkpoint, read_blocks

HIDDEN, INNER, LAYERS, VOCABULARY, POSITIONS, PROJECTION, SPAN, BLOCKS = 64, 48, 2, 37, 24, 12, 10, 9
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
    "intermediate_size": INNER, "max_position_embeddings": POSITIONS, "retriever_proj_size": PROJECTION,
    "span_hidden_size": SPAN, "num_block_records": BLOCKS,
}  # fmt: skip


def bert_variables(scope: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of Google's BERT: https://arxiv.org/abs/1810.04805, its released checkpoints."""
    found = {
        "bert/embeddings/word_embeddings": (VOCABULARY, HIDDEN),
        "bert/embeddings/position_embeddings": (POSITIONS, HIDDEN),
        "bert/embeddings/token_type_embeddings": (2, HIDDEN),
        "bert/embeddings/LayerNorm/gamma": (HIDDEN,),
        "bert/embeddings/LayerNorm/beta": (HIDDEN,),
        "bert/pooler/dense/kernel": (HIDDEN, HIDDEN),
        "bert/pooler/dense/bias": (HIDDEN,),
        "cls/predictions/transform/dense/kernel": (HIDDEN, HIDDEN),
        "cls/predictions/transform/dense/bias": (HIDDEN,),
        "cls/predictions/transform/LayerNorm/gamma": (HIDDEN,),
        "cls/predictions/transform/LayerNorm/beta": (HIDDEN,),
        "cls/predictions/output_bias": (VOCABULARY,),
    }
    for i in range(LAYERS):
        layer = f"bert/encoder/layer_{i}/"
        for dense, inputs, outputs in (
            ("attention/self/query", HIDDEN, HIDDEN),
            ("attention/self/key", HIDDEN, HIDDEN),
            ("attention/self/value", HIDDEN, HIDDEN),
            ("attention/output/dense", HIDDEN, HIDDEN),
            ("intermediate/dense", HIDDEN, INNER),
            ("output/dense", INNER, HIDDEN),
        ):
            found |= {f"{layer}{dense}/kernel": (inputs, outputs), f"{layer}{dense}/bias": (outputs,)}
        for norm in ("attention/output/LayerNorm", "output/LayerNorm"):
            found |= {f"{layer}{norm}/gamma": (HIDDEN,), f"{layer}{norm}/beta": (HIDDEN,)}
    return {scope + name: shape for name, shape in found.items()}


def embedder_variables(depth: int) -> dict[str, tuple[int, ...]]:
    """`depth`: TensorFlow Hub modules around the embedder, 2 pre-trained, 3 fine-tuned."""
    scope = "module/" * depth
    return {
        **bert_variables(scope + "module/"),
        f"{scope}dense/kernel": (HIDDEN, PROJECTION),
        f"{scope}dense/bias": (PROJECTION,),
        f"{scope}LayerNorm/gamma": (PROJECTION,),
        f"{scope}LayerNorm/beta": (PROJECTION,),
    }


READER = {
    **bert_variables("reader/module/"),
    "reader/dense/kernel": (HIDDEN, 2 * SPAN),
    "reader/dense/bias": (2 * SPAN,),
    "reader/dense_1/kernel": (SPAN, 1),
    "reader/dense_1/bias": (1,),
    "reader/layer_normalization/gamma": (SPAN,),
    "reader/layer_normalization/beta": (SPAN,),
}
BLOCK_EMB = {"block_emb": (BLOCKS, PROJECTION)}
VARIABLES = {
    "embedder": embedder_variables(2),
    "fine-tuned embedder": embedder_variables(3),
    "scorer": embedder_variables(2),
    "fine-tuned scorer": embedder_variables(3),
    "encoder": bert_variables(""),
    "reader": READER,
    "openqa": {**embedder_variables(3), **READER, **BLOCK_EMB},
    "openqa before fine-tuning": {**embedder_variables(2), **bert_variables(""), **BLOCK_EMB},
}
ORACLES = {
    "embedder": transformers.RealmEmbedder,
    "scorer": transformers.RealmScorer,
    "encoder": transformers.RealmKnowledgeAugEncoder,
    "reader": transformers.RealmReader,
    "openqa": transformers.RealmForOpenQA,
}


def write_checkpoint(prefix, variables, seed=0, with_optimizer=True):
    """What a TensorFlow 1 training run leaves: variables, Adam's moments of each, the step."""
    values = np.random.default_rng(seed)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        made = []
        for name, shape in variables.items():
            made.append(tf.compat.v1.Variable(values.standard_normal(shape).astype("float32"), name=name))
            if with_optimizer:
                for moment in ("adam_m", "adam_v"):
                    made.append(tf.compat.v1.Variable(np.zeros(shape, "float32"), name=f"{name}/{moment}"))
        if with_optimizer:
            made.append(tf.compat.v1.Variable(7, name="global_step", dtype="int64"))
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver(made).save(session, str(prefix), write_meta_graph=False)
    return prefix


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "bert_config.json"
    path.write_text(json.dumps({**SIZES, "hidden_act": "gelu"}))
    return path


def oracle_state_dict(kind, prefix):
    config = transformers.RealmConfig(**SIZES)
    model = load_tf_weights_in_realm(ORACLES[kind](config), config, str(prefix))
    return model.state_dict()


@pytest.mark.parametrize("case", VARIABLES)
def test_equals_transformers(case, tmp_path, config_file, capsys):
    prefix = write_checkpoint(tmp_path / "model.ckpt-7", VARIABLES[case])
    kind = next(kind for kind in MODELS if kind in case.split())
    arguments = ["convert", str(prefix), "--out", str(tmp_path / "out"), "--config", str(config_file)]
    arguments += ["--kind", kind] if kind == "scorer" else []
    arguments += ["--initialize-missing"] if "before" in case else []
    assert main(arguments) == 0
    report = capsys.readouterr().out
    assert f"{2 * len(VARIABLES[case]) + 1} variables of the optimizer were left out" in report
    assert "map to no parameter" not in report

    expected = oracle_state_dict(kind, prefix)
    model_class, _ = MODELS[kind]
    model = model_class.from_pretrained(tmp_path / "out")
    found = model.state_dict()
    assert found.keys() == expected.keys()
    unread = {key for key in expected if key.endswith("cls.predictions.decoder.weight") and kind != "encoder"}
    initial = {key for key in expected if "before" in case and "qa_outputs" in key}
    for key in expected.keys() - unread - initial:
        assert torch.equal(found[key], expected[key]), key
    for key in unread:  # transformers leaves this one, which nothing reads, as it was drawn
        words = key.replace("cls.predictions.decoder", "realm.embeddings.word_embeddings")
        assert torch.equal(found[key], found[words])
    for key in initial:
        assert f"  {key}\n" in report
    assert model.config.hidden_act == "gelu_new"  # Google's "gelu" is the approximation

    theirs = ORACLES[kind].from_pretrained(tmp_path / "out").state_dict()  # and transformers reads what was written
    for key, tensor in found.items():
        assert torch.equal(theirs[key], tensor), key


@pytest.mark.parametrize("depth", [1, 4])
def test_other_hub_depths(depth, tmp_path, config_file):
    prefix = write_checkpoint(tmp_path / "ckpt", embedder_variables(depth))
    conversion = read_tensorflow([prefix], config_file=config_file)
    assert (conversion.kind, conversion.unmapped, conversion.missing) == ("embedder", [], [])


def test_sizes_are_told_from_the_shapes(tmp_path):
    prefix = write_checkpoint(tmp_path / "ckpt", VARIABLES["openqa"])
    config = read_tensorflow([prefix]).config
    assert {name: getattr(config, name) for name in SIZES} == {**SIZES, "num_attention_heads": 1}  # 64 wide each


def test_two_checkpoints_blocks_and_vocabulary_make_one_folder(tmp_path, config_file, capsys):
    tuned = write_checkpoint(tmp_path / "orqa/model.ckpt-1", {**embedder_variables(3), **READER})
    encoded = write_checkpoint(tmp_path / "encoded/encoded.ckpt", BLOCK_EMB, seed=1, with_optimizer=False)
    blocks = [f"Block {i}: é".encode() * i for i in range(1, BLOCKS + 1)]
    write_records(tmp_path / "blocks.tfr", blocks)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"piece{i}" for i in range(VOCABULARY - 5))]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
    out = tmp_path / "out"
    assert 0 == main(
        ["convert", str(tuned.parent), str(encoded.parent), "--out", str(out), "--config", str(config_file),
         "--blocks", str(tmp_path / "blocks.tfr"), "--vocab", str(tmp_path / "vocab.txt")]
    )  # fmt: skip
    assert "9 blocks" in capsys.readouterr().out
    retriever = realm_min.RealmRetriever.from_pretrained(out)
    assert list(retriever.block_records) == blocks
    model = realm_min.RealmForOpenQA.from_pretrained(out, retriever=retriever)
    expected = tf.train.load_variable(str(encoded), "block_emb")
    np.testing.assert_array_equal(model.block_emb.numpy(), expected)
    assert retriever.tokenizer.vocab_size == VOCABULARY


def test_what_maps_nowhere_and_what_nothing_fills_are_listed(tmp_path, config_file, capsys):
    variables = {**bert_variables(""), "cls/seq_relationship/output_weights": (2, HIDDEN), "extra/scale": ()}
    del variables["bert/pooler/dense/bias"]
    prefix = write_checkpoint(tmp_path / "ckpt", variables)
    arguments = ["convert", str(prefix), "--out", str(tmp_path / "out"), "--config", str(config_file)]
    assert main(arguments) == 2
    refusal = capsys.readouterr().err
    assert "nothing fills 1 parameters of the encoder model" in refusal
    assert "realm.pooler.dense.bias" in refusal
    assert not (tmp_path / "out").exists()

    assert main([*arguments, "--initialize-missing"]) == 0
    report = capsys.readouterr().out
    assert "2 variables map to no parameter:\n  cls/seq_relationship/output_weights\n  extra/scale\n" in report
    assert "1 parameters were filled by nothing and hold initial values:\n  realm.pooler.dense.bias\n" in report
    assert not read_state_dict(tmp_path / "out")["realm.pooler.dense.bias"].any()


def test_another_parts_variables_are_not_taken(tmp_path, config_file):
    prefix = write_checkpoint(tmp_path / "ckpt", VARIABLES["openqa"])
    conversion = read_tensorflow([prefix], kind="embedder", config_file=config_file)
    assert conversion.unmapped == sorted([*READER, "block_emb"])
    words = tf.train.load_variable(str(prefix), "module/module/module/module/bert/embeddings/word_embeddings")
    np.testing.assert_array_equal(conversion.state_dict["realm.embeddings.word_embeddings.weight"], words)


@pytest.mark.parametrize(
    ("variables", "config", "message"),
    [
        ({**bert_variables(""), "bert/pooler/dense/bias": (3,)}, {}, r"bias is \[3\], realm.pooler.dense.bias is"),
        ({**bert_variables(""), "bert/embeddings/position_embeddings": (9, 63)}, {}, "hidden_size=63|hidden_size=64"),
        (bert_variables(""), {"num_hidden_layers": 3}, "says num_hidden_layers=3, the variables have 2"),
        (BLOCK_EMB, {}, "block_emb alone makes no model"),
        ({"a/b": (1,)}, {}, r"no variable is REALM's, ORQA's or BERT's; the first are \['a/b'\]"),
    ],
)  # fmt: skip
def test_variables_of_no_model(variables, config, message, tmp_path, config_file):
    prefix = write_checkpoint(tmp_path / "ckpt", variables, with_optimizer=False)
    config_file.write_text(json.dumps({**SIZES, **config}))
    with pytest.raises(ValueError, match=message):
        read_tensorflow([prefix], config_file=config_file)


def test_two_variables_for_one_parameter(tmp_path, config_file):
    prefix = write_checkpoint(tmp_path / "ckpt", bert_variables(""))
    with pytest.raises(ValueError, match=r"both are realm\.embeddings.*give the checkpoints of one model"):
        read_tensorflow([prefix, prefix], kind="encoder", config_file=config_file)


def test_unknown_number_of_heads(tmp_path):
    prefix = write_checkpoint(tmp_path / "ckpt", {"bert/embeddings/word_embeddings": (10, 60)})
    with pytest.raises(ValueError, match="hidden_size=60 is no multiple of 64.*give --config"):
        read_tensorflow([prefix])


# --- Damaged files ----------------------------------------------------------------------------------------------------


def test_finding_a_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no TensorFlow checkpoint: give the common start"):
        find_checkpoint(tmp_path / "none")
    prefix = write_checkpoint(tmp_path / "variables" / "model.ckpt-1", BLOCK_EMB)
    for path in (prefix, f"{prefix}.index", prefix.parent, tmp_path):
        assert find_checkpoint(path) == str(prefix)
    write_checkpoint(tmp_path / "variables" / "model.ckpt-2", BLOCK_EMB)
    with pytest.raises(ValueError, match=r"several checkpoints \(.*model.ckpt-1, .*model.ckpt-2\): give one"):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize("suffix", ["index", "data-00000-of-00001"])
@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "remove"])
def test_damaged_checkpoint(suffix, damage, tmp_path, config_file):
    prefix = write_checkpoint(tmp_path / "ckpt", bert_variables(""), with_optimizer=False)
    path = tmp_path / f"ckpt.{suffix}"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes({"cut": data[: len(data) // 3], "flip": data, "empty": b""}[damage])
    with pytest.raises((ValueError, FileNotFoundError), match="damaged, cut short or missing|is no TensorFlow checkp"):
        read_tensorflow([prefix], config_file=config_file)


def write_records(path, records):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)


def test_blocks_equal_the_records(tmp_path):
    records = [b"", "Übergröße".encode(), b"x" * 100_000, *(b"block %d" % i for i in range(3000))]
    write_records(tmp_path / "blocks.tfr", records)
    assert read_blocks(tmp_path / "blocks.tfr") == records


RECORDS = [b"first block", b"the second", b"third"]
# A record is its length (8 bytes), the length's CRC (4), its bytes, and their CRC (4).
ENDS = [0, *np.cumsum([len(record) + 16 for record in RECORDS])]


def test_every_flipped_bit_and_every_cut_of_a_record_file_is_noticed(tmp_path):
    path = tmp_path / "blocks.tfr"
    write_records(path, RECORDS)
    whole = path.read_bytes()
    assert struct.unpack("<Q", whole[:8]) == (11,)
    for place in range(len(whole)):
        for bit in (0, 7):
            data = bytearray(whole)
            data[place] ^= 1 << bit
            path.write_bytes(data)
            with pytest.raises(ValueError, match="blocks.tfr is damaged or cut short .*: fetch it again"):
                read_blocks(path)
    for length in range(1, len(whole)):
        path.write_bytes(whole[:length])
        if length in ENDS:  # a shorter file of whole records, which only its number of blocks tells apart
            assert read_blocks(path) == RECORDS[: ENDS.index(length)]
            continue
        with pytest.raises(ValueError, match="damaged or cut short"):
            read_blocks(path)


def test_records_that_are_no_blocks(tmp_path):
    with pytest.raises(FileNotFoundError, match="give the TFRecord file"):
        read_blocks(tmp_path / "blocks.tfr")
    write_records(tmp_path / "empty.tfr", [])
    with pytest.raises(ValueError, match="holds no record"):
        read_blocks(tmp_path / "empty.tfr")
    write_records(tmp_path / "binary.tfr", [b"text", b"\xff\xfe"])
    with pytest.raises(ValueError, match="record 1 of .* is not UTF-8"):
        read_blocks(tmp_path / "binary.tfr")


def test_number_of_blocks_is_checked(tmp_path, config_file, capsys):
    prefix = write_checkpoint(tmp_path / "ckpt", VARIABLES["openqa"])
    write_records(tmp_path / "blocks.tfr", RECORDS)
    arguments = ["convert", str(prefix), "--blocks", str(tmp_path / "blocks.tfr"), "--config", str(config_file)]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert re.search("holds 3 blocks, block_emb 9", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_without_tensorflow(tmp_path):
    write_checkpoint(tmp_path / "ckpt", BLOCK_EMB)
    script = (
        "import sys; sys.modules['tensorflow'] = None\n"
        "from realm_min.app.cli import main\n"
        f"sys.exit(main(['convert', {str(tmp_path / 'ckpt')!r}, '--out', {str(tmp_path / 'out')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'realm-min[tf]'" in done.stderr


def test_triton_can_still_be_imported():
    """After TensorFlow alone, it ends the process."""
    script = "from realm_min.files.tensorflow_files import import_tensorflow; import_tensorflow(); import triton"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode == 0


def test_what_a_killed_conversion_left_is_removed(tmp_path, config_file):
    out, left = tmp_path / "out", f".config.json.{'0' * 16}.tmp"
    out.mkdir()
    (out / left).write_text("{")
    prefix = write_checkpoint(tmp_path / "ckpt", VARIABLES["embedder"])
    assert main(["convert", str(prefix), "--config", str(config_file), "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {"config.json", "model.safetensors"}
