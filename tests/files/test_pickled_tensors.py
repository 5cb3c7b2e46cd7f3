"""Files of torch.save, of today and of before 1.6, read without their pickle being run, and hostile ones refused."""

import pickle
import struct
import zipfile
from collections import OrderedDict

import pytest
import torch

from realm_min.files.pickled_tensors import MAGIC_NUMBER, PROTOCOL, unpickle_tensors


def contents():
    """What torch.save writes of a model: every dtype, views, tied weights, parameters, modules' versions."""
    table = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    found = OrderedDict(
        table=table,
        tied=table,
        view=table[1:3, ::2],
        transposed=table.t(),
        parameter=torch.nn.Parameter(table[0].clone()),
        empty=torch.empty(0, 3),
        scalar=torch.tensor(2.5),
        **{str(dtype): torch.ones(3).to(dtype) for dtype in (torch.float64, torch.float16, torch.bfloat16)},
        **{str(dtype): torch.ones(3).to(dtype) for dtype in (torch.int64, torch.int32, torch.int16, torch.int8)},
        **{str(dtype): torch.ones(5).to(dtype) for dtype in (torch.uint8, torch.bool)},
    )
    found._metadata = OrderedDict({"": {"version": 1}, "layer.norm": {"version": 2}})
    return found


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_saves_is_read(tmp_path, zipped, protocol):
    path, expected = tmp_path / "weights.bin", contents()
    torch.save(expected, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    whole = path.read_bytes()
    found = unpickle_tensors(path)
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype and torch.equal(found[key], tensor.detach()), key
    found["table"].zero_()
    assert path.read_bytes() == whole


def name(full):
    module, attribute = full.rsplit(".", 1)
    return f"c{module}\n{attribute}\n".encode()


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value):
    return b"\x8a\x10" + value.to_bytes(16, "little", signed=True)


def numbers(values):
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(count, kind="torch.FloatStorage", key="0"):
    return b"(" + text("storage") + name(kind) + text(key) + text("cpu") + number(count) + b"tQ"


def tensor(of, first=0, size=(2,), stride=(1,)):
    hooks = b"\x89" + name("collections.OrderedDict") + b")R"
    return (
        name("torch._utils._rebuild_tensor_v2")
        + b"("
        + of
        + number(first)
        + numbers(size)
        + numbers(stride)
        + hooks
        + b"tR"
    )


def state(*tensors):
    return b"\x80\x02}(" + b"".join(text(f"t{i}") + each for i, each in enumerate(tensors)) + b"u."


def zipped(path, program, parts=(("data/0", bytes(8)), ("version", b"3"))):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", program)
        for part, content in parts:
            archive.writestr(f"x/{part}", content)
    return path


def test_the_programs_below_would_be_read(tmp_path):
    path = zipped(tmp_path / "x.bin", state(tensor(storage(2)), tensor(storage(2), 1, (1,))))
    assert {key: x.shape for key, x in unpickle_tensors(path).items()} == {"t0": (2,), "t1": (1,)}
    assert {key: x.shape for key, x in torch.load(path, weights_only=True).items()} == {"t0": (2,), "t1": (1,)}


LARGE = 2**31


@pytest.mark.parametrize(
    ("program", "complaint"),
    [
        (state(name("torch.FloatStorage") + b"(" + number(LARGE) + b"tR"), "calls torch.FloatStorage in a way"),
        (state(name("torch.Tensor") + b"(" + number(LARGE) + b"tR"), "asks for 'torch.Tensor', which tensors do not"),
        (state(name("builtins.bytearray") + number(LARGE) + b"\x85R"), "asks for 'builtins.bytearray'"),
        (state(tensor(storage(LARGE), size=(LARGE,))), "should have 8,589,934,592"),
        (state(tensor(storage(3), size=(3,))), "storage '0' has 8 bytes, and should have 12"),
        (state(tensor(storage(2, key="1"))), "storage '1' has 0 bytes"),
        (state(tensor(storage(2), size=(LARGE, LARGE), stride=(0, 0))), "is larger than its storage"),
        (state(tensor(storage(2), size=(1, 3), stride=(1, 0))), "is larger than its storage"),
        (state(tensor(storage(2), size=(2,), stride=(LARGE,))), "is larger than its storage"),
        (state(tensor(storage(2), first=LARGE, size=(1,))), "is larger than its storage"),
        (
            state(tensor(storage(2), size=(0, LARGE**2, LARGE**2), stride=(1, 1, 1))),
            "is larger than any machine's memory",
        ),
        (state(tensor(storage(2), size=(0,), stride=(LARGE**2 * 2,))), "is larger than any machine's memory"),
        (state(tensor(storage(2), first=-1)), "truncated or damaged"),
        (state(tensor(storage(2), size=(-1,))), "truncated or damaged"),
        (state(tensor(storage(2), size=(1,) * 65, stride=(1,) * 65)), "truncated or damaged"),
        (state(tensor(storage(-2))), "has -2 numbers"),
        (state(tensor(number(3))), "truncated or damaged"),
        (state(tensor(storage(2)), tensor(storage(3, "torch.HalfStorage"))), "tells of two storages '0'"),
        (b"\x80\x02}r\xff\xff\xff\xff.", "its memo jumps to 4294967295"),
        (b"\x80\x02" + b")" + b"\x85" * 10**5 + b"Q.", "truncated or damaged"),
        (b"\x80\x02}(" + text("a") + b"u.", "truncated or damaged"),
        (b"\x80\x02}}]s.", "truncated or damaged"),
        (b"\x80\x02X\xff\xff\xff\xffabc.", "truncated or damaged"),
        (b"\x80\x02}}.", "leaves more than one object"),
        (b"", "truncated or damaged"),
    ],
)
def test_programs_that_ask_for_more_than_there_is(tmp_path, program, complaint):
    with pytest.raises(ValueError) as error:
        unpickle_tensors(zipped(tmp_path / "x.bin", program))
    assert complaint in str(error.value) and len(str(error.value)) < 300


def test_views_of_one_storage_are_no_larger_than_some_files(tmp_path):
    count = 5_000
    program = state(*[tensor(storage(count), size=(count,))] * 30)
    path = zipped(tmp_path / "x.bin", program, [("data/0", bytes(4 * count))])
    with pytest.raises(ValueError, match="more than 4 times as large as the file"):
        unpickle_tensors(path)


def test_zips_that_torch_does_not_write(tmp_path):
    program, path = state(tensor(storage(2))), tmp_path / "x.bin"
    with pytest.raises(ValueError, match="no data.pkl, or several"):
        unpickle_tensors(zipped(path, program, [("data/0", bytes(8)), ("other/data.pkl", program)]))
    with pytest.raises(ValueError, match="written b'big' end first"):
        unpickle_tensors(zipped(path, program, [("data/0", bytes(8)), ("byteorder", b"big")]))
    whole = zipped(path, program).read_bytes()
    path.write_bytes(whole.replace(bytes(8), bytes(7) + b"x", 1))
    with pytest.raises(ValueError, match="the checksum of its part x/data.* is wrong"):
        unpickle_tensors(path)
    for cut in range(1, len(whole), 7):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError):
            unpickle_tensors(path)


def test_parts_that_share_their_bytes(tmp_path):
    """A thousand parts of the same megabyte would be read a thousand times."""
    path = zipped(tmp_path / "x.bin", state(tensor(storage(2))), [("data/0", bytes(10**6)), ("data/1", b"")])
    whole = path.read_bytes()
    directory = whole.rindex(b"PK\x01\x02", 0, whole.index(b"PK\x05\x06"))  # of the last part
    first = whole.index(b"PK\x01\x02", whole.index(b"PK\x01\x02") + 1)  # of data/0
    entry = whole[first:directory]
    end = bytearray(whole[whole.index(b"PK\x05\x06") :])
    struct.pack_into(
        "<HHI", end, 8, 2 + 1000, 2 + 1000, len(whole[whole.index(b"PK\x01\x02") : first]) + 1001 * len(entry)
    )
    path.write_bytes(whole[:directory] + entry * 1000 + bytes(end))
    with pytest.raises(ValueError, match="its parts overlap"):
        unpickle_tensors(path)


def old(keys, storages, found=None):
    """A file as torch.save wrote it before 1.6."""
    found = state(tensor(storage(2).replace(b"tQ", b"NtQ"))) if found is None else found
    start = [int.from_bytes(MAGIC_NUMBER, "little"), PROTOCOL, {"little_endian": True}]
    return b"".join(pickle.dumps(value, 2) for value in start) + found + pickle.dumps(keys, 2) + storages


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (old(["0"], struct.pack("<q", 3) + bytes(12)), "of another length than the tensor says"),
        (old(["0"], struct.pack("<q", 2) + bytes(4)), "its storages end at byte"),
        (old(["0"], struct.pack("<q", 2) + bytes(12)), "its storages end at byte"),
        (old(["1"], struct.pack("<q", 2) + bytes(8)), "storage '1' is of no tensor"),
        (old([], b""), "storage '0' has 0 bytes"),
        (old({}, b""), "does not say which storages"),
        (old(["0"], b"", state(tensor(storage(LARGE), size=(LARGE,)))), "of another length than the tensor says"),
        (
            old(["0"], struct.pack("<q", LARGE), state(tensor(storage(LARGE), size=(LARGE,)))),
            "its storages end at byte",
        ),
        (old(["0"], struct.pack("<q", 2) + bytes(8)).replace(b"\x88", b"\x89", 1), "for another machine"),
        (old(["0"], struct.pack("<q", 2) + bytes(8)).replace(b"M\xe9\x03", b"M\xea\x03", 1), "as torch.save began"),
    ],
)
def test_old_files_that_are_not_whole(tmp_path, content, complaint):
    path = tmp_path / "x.bin"
    path.write_bytes(old(["0"], struct.pack("<q", 2) + struct.pack("<2f", 1, 2)))
    assert unpickle_tensors(path)["t0"].tolist() == torch.load(path, weights_only=True)["t0"].tolist() == [1, 2]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=complaint):
        unpickle_tensors(path)
