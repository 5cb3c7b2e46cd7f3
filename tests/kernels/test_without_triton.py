"""Triton is for GPUs: without it everything runs on the CPU, and a kernel says what it needs."""

import os
import subprocess
import sys

import pytest
from realm_min.kernels.triton_language import check_version

PROGRAM = """
import sys
sys.modules["triton"] = None  # as where it is not installed
import torch
import realm_min, realm_min.kernels, realm_min.app.cli
from realm_min.model import spans
from realm_min.search import mips
queries, blocks = torch.randn(2, 8), torch.randn(50, 8)
scores, ids = mips.mips_topk(queries, blocks, 3)
assert torch.equal(ids[:, 0], (queries @ blocks.T).argmax(1))
for module in ("mips_topk", "span_logits"):
    try:
        __import__(f"realm_min.kernels.{module}")
    except ModuleNotFoundError as error:
        print(error)
"""


def test_the_cpu_needs_no_triton():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    message = 'need triton 3.6 or newer, and none is installed: pip install "triton>=3.6"'
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and all(message in line for line in lines)


@pytest.mark.parametrize("version", ["3.6.0", "3.6.0+git1234", "3.10.1", "4.0"])
def test_versions_that_do(version):
    check_version(version)


@pytest.mark.parametrize("version", ["3.5.1", "2.9.0", "3", "unknown"])
def test_versions_that_are_too_old(version):
    with pytest.raises(ModuleNotFoundError, match=rf"need triton 3\.6 or newer, and triton {version} is installed"):
        check_version(version)
