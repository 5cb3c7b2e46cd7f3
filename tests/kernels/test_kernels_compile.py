"""Every kernel variant that a launch can choose, compiled ahead of time for a GPU architecture, without a GPU.

The suite compiles every sixth variant for Hopper: some of each kernel and of each dtype. `make test-kernels` compiles
all for what ARCHITECTURES names: each takes a second.

Compilation runs in processes of its own: in this one Triton may be interpreting. This file is also their program:
`python test_kernels_compile.py SHARD SHARDS` compiles each SHARDS-th variant and prints what it needs, one JSON a line.
"""

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import processes
import pytest

MODULES = ("mips_topk", "span_logits")
SHARED_LIMIT = {
    80: 163 * 1024,
    90: 227 * 1024,
}  # bytes a block may use (CUDA C++ programming guide, compute capabilities)
WHOLE = "ARCHITECTURES" in os.environ
ARCHITECTURES = [int(arch) for arch in os.environ.get("ARCHITECTURES", "90").split()]
SHARDS = 2 if WHOLE else 1
EACH = 1 if WHOLE else 6


def compile_shard(shard: int, shards: int) -> None:
    import importlib
    import itertools

    variants = itertools.chain.from_iterable(
        ((module, *variant) for variant in importlib.import_module(f"realm_min.kernels.{module}").compile_variants())
        for module in MODULES
    )
    some = itertools.islice(variants, 0, None, EACH)
    for module, name, kernel, signature, constexprs, options in itertools.islice(some, shard, None, shards):
        for arch in ARCHITECTURES:
            print(json.dumps({"module": module, "name": name} | needs(kernel, signature, constexprs, options, arch)))


def needs(kernel, signature, constexprs, options, arch) -> dict:
    """Compile one variant: its registers, stack and local memory (bytes a thread), shared memory (bytes a block)."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    assert set(signature) | set(constexprs) == set(kernel.arg_names), f"{kernel}: arguments and signature differ"
    types = {name: signature[name].partition(":")[0] if name in signature else "constexpr" for name in kernel.arg_names}
    divisors = {
        (kernel.arg_names.index(name),): [["tt.divisibility", int(kind.partition(":")[2])]]
        for name, kind in signature.items()
        if ":" in kind
    }
    source = ASTSource(kernel, types, constexprs, divisors)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    cubin = Path(f"{os.environ['TRITON_CACHE_DIR']}/{os.getpid()}.cubin")
    cubin.write_bytes(compiled.asm["cubin"])
    tool = Path(inspect.getfile(triton)).parent / "backends/nvidia/bin/cuobjdump"
    usage = subprocess.run([tool, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True).stdout
    [line] = re.findall(rf"Function {compiled.metadata.name}:\s*(.*)", usage)
    numbers = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", line)}
    return {"arch": arch, "shared": compiled.metadata.shared} | numbers


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> list[dict]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.path.dirname(processes.__file__)
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    commands = [[sys.executable, __file__, shard, SHARDS] for shard in range(SHARDS)]
    written = processes.run(*commands, env=environment, seconds=600)
    return [json.loads(line) for out, _ in written for line in out.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("module", MODULES)
def test_every_variant_compiles(compiled, module):
    for arch in ARCHITECTURES:
        names = [r["name"] for r in compiled if (r["module"], r["arch"]) == (module, arch)]
        assert len(names) == len(set(names)) >= 28 // EACH, "too few, or two share a name"
    assert len([r for r in compiled if r["module"] == module]) == len(ARCHITECTURES) * len(names)


def test_nothing_spills_to_local_memory(compiled):
    # ptxas counts what it spills as stack; LOCAL is for arrays that are indexed at run time.
    spilled = [r for r in compiled if r["STACK"] or r["LOCAL"]]
    assert not spilled, spilled
    assert all(0 < r["REG"] <= 255 for r in compiled)


def test_shared_memory_fits_the_architecture(compiled):
    too_large = [r for r in compiled if r["shared"] > SHARED_LIMIT[r["arch"]]]
    assert not too_large, too_large


if __name__ == "__main__":
    compile_shard(int(sys.argv[1]), int(sys.argv[2]))
