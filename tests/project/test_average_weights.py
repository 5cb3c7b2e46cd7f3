import sys

import average_weights
import pytest
import torch
from safetensors.torch import load_file, save_file


def part(path, weights):
    save_file(weights, path)
    return path


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["average_weights.py", *map(str, arguments)])
    average_weights.main()


def test_the_mean_of_two_times(tmp_path, monkeypatch):
    earlier = part(tmp_path / "a.safetensors", {"w": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([0.0])})
    later = part(tmp_path / "b.safetensors", {"w": torch.tensor([[3.0, 0.0]]), "b": torch.tensor([10.0])})
    out = tmp_path / "embedder.safetensors"
    run(monkeypatch, earlier, later, out, "--share", 0.25)
    found = load_file(out)
    assert found.keys() == {"w", "b"}
    torch.testing.assert_close(found["w"], torch.tensor([[1.5, 1.5]]))
    torch.testing.assert_close(found["b"], torch.tensor([2.5]))
    run(monkeypatch, earlier, later, out, "--share", 1)
    assert load_file(out)["w"].tolist() == [[3, 0]]


def test_what_has_no_mean(tmp_path, monkeypatch, capsys):
    earlier = part(tmp_path / "a.safetensors", {"w": torch.zeros(2, 2)})
    other = part(tmp_path / "b.safetensors", {"w": torch.zeros(2, 3), "v": torch.zeros(1)})
    out = tmp_path / "out.safetensors"
    for later, share, said in (
        (other, 0.5, "v differs, one of 2"),
        (earlier, 1.5, "--share 1.5: give a number from 0 to 1"),
    ):
        with pytest.raises(SystemExit):
            run(monkeypatch, earlier, later, out, "--share", share)
        assert said in capsys.readouterr().err
    assert not out.exists()
