"""The file of an index: what is written comes back, and what was damaged, moved or forged is refused."""

import json

import pytest
import safetensors.torch
import torch

from realm_min.files.safetensors_file import read_with_metadata, write_safetensors
from realm_min.search import mips
from realm_min.search.mips import BlockIndex


@pytest.mark.parametrize("compression", mips.COMPRESSIONS)
def test_an_index_comes_back_from_its_file(compression, tmp_path):
    blocks, queries = torch.randn(77, 16), torch.randn(3, 16)
    index = BlockIndex(blocks, compression)
    index.save(tmp_path / "index.safetensors")
    again = BlockIndex.load(tmp_path / "index.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["index.safetensors"]
    assert (len(again), again.compression, again.nbytes, again.device) == (77, compression, index.nbytes, index.device)
    for ours, theirs in zip(again.search(queries, 9), index.search(queries, 9), strict=True):
        assert torch.equal(ours, theirs)
    assert again.to("cpu") is again


@pytest.fixture
def saved(tmp_path):
    """An index file, and its blocks."""
    blocks, path = torch.randn(64, 16), tmp_path / "index.safetensors"
    BlockIndex(blocks, "int8").save(path)
    return path, blocks


def test_damaged_files_are_refused(saved):
    path, _ = saved
    whole = path.read_bytes()
    for damaged in (b"", whole[:7], whole[:100], whole[:-1], b"\xff" * 100):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"index.safetensors cannot be read \("):
            BlockIndex.load(path)
    for position in range(len(whole) - 5_000, len(whole), 700):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        with pytest.raises(ValueError, match="its checksum is [0-9a-f]{8}, not the stored"):
            BlockIndex.load(path)
    with pytest.raises(FileNotFoundError, match="no block index"):
        BlockIndex.load(path.with_name("absent"))


def test_what_has_changed_places_is_seen(saved):
    """A sum of words is the same after any of these."""
    path, blocks = saved
    whole = path.read_bytes()
    start = whole.index(blocks.numpy().tobytes())
    end = start + blocks.nbytes
    rows = blocks.clone()
    rows[[3, 40]] = rows[[40, 3]]
    for damaged in (
        rows.numpy().tobytes(),
        blocks.roll(1, 0).numpy().tobytes(),
        blocks.roll(8, 1).numpy().tobytes(),
        blocks.view(torch.int64).flip(0).numpy().tobytes(),
    ):
        path.write_bytes(whole[:start] + damaged + whole[end:])
        with pytest.raises(ValueError, match="its checksum is"):
            BlockIndex.load(path)


def test_a_checksum_whose_name_is_damaged_hides_nothing(saved):
    path, _ = saved
    whole = path.read_bytes()
    for name in (b'"crc32"', b'"metadata_and_tensors_crc32"'):
        assert whole.count(name) == 1
        path.write_bytes(whole[:-1].replace(name, name.replace(b"crc", b"crd")) + bytes([whole[-1] ^ 1]))
        with pytest.raises(ValueError, match="its checksum is"):
            BlockIndex.load(path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (None, "a safetensors file of something else"),
        ("nul", "is not valid JSON"),
        ("[1]", "holds a list, not a JSON object"),
        ('{"format":' * 3_000, "is not valid JSON"),
        ("{}", "its format is None, this version reads"),
        ({"format": "other"}, "its format is 'other'"),
        ({"format": ["realm-min block index 2"]}, "its format is"),
        ({"compression": "zip"}, "its compression is 'zip'"),
        ({"compression": {}}, "its compression is {}"),
        ({"compression": None}, "of such blocks they are"),
        ({"exponent": 0.5}, "its exponent is 0.5"),
        ({"exponent": True}, "its exponent is True"),
        ({"exponent": 10**9}, "its exponent is 1000000000"),
        ({"exponent": float("nan")}, "its exponent is nan"),
        ({"exponent": None}, "its exponent is None"),
        ({"format": "realm-min block index 1"}, "the checksum of 'blocks' does not match"),
        ({"format": "realm-min block index 1", "checksums": [1]}, "the checksum of 'blocks' does not match"),
        ({"format": "realm-min block index 1", "checksums": {"blocks": 1}}, "the checksum of 'blocks' does not match"),
    ],
)
def test_headers_that_say_something_else_are_refused(saved, header, message):
    path, _ = saved
    tensors, metadata = read_with_metadata(path)
    if isinstance(header, dict):
        header = json.dumps(json.loads(metadata["index"]) | header)
    write_safetensors(path.with_name("other"), tensors, {} if header is None else {"index": header})
    with pytest.raises(ValueError, match="other is not a whole block index ") as error:
        BlockIndex.load(path.with_name("other"))
    assert message in str(error.value)


@pytest.mark.parametrize("change", ["blocks", "norm", "shape", "dtype", "more"])
def test_tensors_that_do_not_fit_each_other_are_refused(saved, change):
    path, _ = saved
    tensors, metadata = read_with_metadata(path)
    if change in tensors:
        del tensors[change]
    elif change == "shape":
        tensors["scale"] = tensors["scale"][:-1]
    elif change == "dtype":
        tensors["blocks"] = tensors["blocks"].int()
    else:
        tensors["more"] = tensors["norm"]
    write_safetensors(path.with_name("other"), tensors, metadata)
    with pytest.raises(ValueError, match="other is not a whole block index "):
        BlockIndex.load(path.with_name("other"))


def sum_of_words(data):
    """As earlier versions wrote it: words of 8 bytes, with overflow, and the bytes left."""
    whole = len(data) // 8 * 8
    words = sum(int.from_bytes(data[i : i + 8], "little", signed=True) for i in range(0, whole, 8))
    return (words + 2**63) % 2**64 - 2**63 + sum(data[whole:])


@pytest.mark.parametrize("compression", mips.COMPRESSIONS)
def test_an_earlier_file_is_read_and_its_sums_are_compared(tmp_path, compression):
    index = BlockIndex(torch.randn(40, 16), compression)
    index.save(tmp_path / "new")
    tensors, metadata = read_with_metadata(tmp_path / "new")
    header = json.loads(metadata["index"]) | {"format": "realm-min block index 1"}
    sums = {
        name: sum_of_words(tensor.contiguous().view(torch.uint8).numpy().tobytes()) for name, tensor in tensors.items()
    }
    safetensors.torch.save_file(tensors, tmp_path / "old", metadata={"index": json.dumps(header | {"checksums": sums})})
    query = torch.randn(1, 16)
    for ours, theirs in zip(BlockIndex.load(tmp_path / "old").search(query, 3), index.search(query, 3), strict=True):
        assert torch.equal(ours, theirs)
    whole = (tmp_path / "old").read_bytes()
    (tmp_path / "old").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match="does not match"):
        BlockIndex.load(tmp_path / "old")
