"""What the benchmark says of the machine: its measured rates, and the head of the file of figures."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import importlib.metadata
import platform
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from .bench_clock import Clock

RATES = ("float32", "tf32", "bfloat16", "int8")  # products: the operands' precision
BEST_OF = 6
LONGEST_PRODUCT = 0.5  # seconds: without instructions for it, a product of bfloat16 takes minutes
PACKAGES = {  # by the names that their distributions have
    "numpy": ("numpy",),
    "triton": ("triton",),
    "faiss": ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu12", "faiss-gpu-cu11", "faiss"),
    "cuvs": ("cuvs-cu13", "cuvs-cu12", "cuvs-cu11", "cuvs"),
    "transformers": ("transformers",),
}
SMI_FIELDS = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "clocks.max.mem", "power.limit")


@contextlib.contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """Let a GPU multiply float32 so: "highest" is float32, "high" TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def measure_device(clock: Clock) -> dict[str, float]:
    """Bytes a second copied (read and written) and read alone, and operations a second of products by arithmetic.

    Each is the best of some runs on random numbers, which cost a GPU more power than equal ones. TF32 and int8 are
    measured on a GPU alone.
    """
    device = clock.device
    source = torch.rand(2**28 if clock.cuda else 2**26, device=device)
    target = torch.empty_like(source)
    measured = {"bandwidth": 2 * source.nbytes / best_of(clock, functools.partial(target.copy_, source))}
    measured["read"] = source.nbytes / best_of(clock, source.sum)
    del source, target
    for arithmetic in RATES if clock.cuda else ("float32", "bfloat16"):
        with contextlib.suppress(RuntimeError, NotImplementedError):  # no such products here: no such rate
            measured[arithmetic] = matrix_rate(clock, arithmetic)
    return measured


def matrix_rate(clock: Clock, arithmetic: str) -> float:
    """Operations a second of square products, as large as this device does in little time."""
    rate = 0.0
    with float32_products("high" if arithmetic == "tf32" else "highest"):
        for n in (256, 2048, 8192) if clock.cuda else (256, 2048):
            if rate and 2 * n**3 / rate > LONGEST_PRODUCT:
                break
            a, b = (torch.randn(n, n, device=clock.device) for _ in range(2))
            rate = max(rate, 2 * n**3 / best_of(clock, product(a, b, arithmetic)))
    return rate


def best_of(clock: Clock, function: Callable) -> float:
    """Seconds of the fastest of some runs, after one to warm up."""
    clock.once(function)
    return min(clock.once(function)[0] for _ in range(BEST_OF))


def product(a: torch.Tensor, b: torch.Tensor, arithmetic: str) -> Callable:
    """The product of two square float32 matrices in an arithmetic."""
    if arithmetic == "int8":
        a, b = ((32 * m).clamp(-127, 127).to(torch.int8) for m in (a, b))
        return functools.partial(torch._int_mm, a, b.t())  # pyright: ignore[reportPrivateImportUsage]
    dtype = torch.bfloat16 if arithmetic == "bfloat16" else torch.float32
    a, b = a.to(dtype), b.to(dtype)
    return functools.partial(torch.matmul, a, b, out=torch.empty_like(a))


def describe(clock: Clock, measured: dict[str, float], options: argparse.Namespace) -> dict[str, object]:
    """What the figures depend on, for the head of the CSV."""
    heading: dict[str, object] = {"device": device_name(clock.device, options.threads)}
    if clock.cuda:
        heading |= gpu_state(clock.device, measured.get("bfloat16", 1e14))
    heading |= {"versions": versions(), "commit": options.commit or commit()}
    heading |= {"date": datetime.date.today().isoformat(), "seed": options.seed}
    heading["copy bandwidth, GB/s read and written"] = f"{measured['bandwidth'] / 1e9:.1f}"
    heading["read bandwidth, GB/s"] = f"{measured['read'] / 1e9:.1f}"
    for arithmetic in RATES:
        if arithmetic in measured:
            heading[f"matrix rate, GFLOP/s {arithmetic}"] = f"{measured[arithmetic] / 1e9:.0f}"
    if clock.cuda:
        heading["clock"] = f"a pair of CUDA events for each call, {clock.flushed.nbytes >> 20} MiB written before it"
    heading["units"] = (
        "seconds: the median, beside the 10th and 90th percentile; share_of_floor: floor / seconds; "
        "against_*: medians of the repeats' ratios"
    )
    return heading


def device_name(device: torch.device, threads: int) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    models = [line for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    name = models[0].split(":")[1].strip() if models else platform.processor()
    return f"{name}, {threads} threads"


def versions() -> str:
    found = {"python": platform.python_version(), "torch": torch.__version__, "CUDA": torch.version.cuda}
    for package, distributions in PACKAGES.items():
        found[package] = installed(distributions)
    return ", ".join(f"{package} {version or 'absent'}" for package, version in found.items())


def installed(distributions: tuple[str, ...]) -> str | None:
    """The version of the first of them that is installed."""
    for name in distributions:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return None


def commit() -> str:
    """Of the working tree these files are in, "-dirty" if it was changed since; "unknown" without git."""
    folder = Path(__file__).resolve().parent
    return answer(["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]) or "unknown"


def gpu_state(device: torch.device, rate: float) -> dict[str, object]:
    """Driver, clocks and power limit, read by nvidia-smi while about a second of products runs."""
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    ask = ["nvidia-smi", f"--query-gpu={','.join(SMI_FIELDS)}", "--format=csv,noheader"]
    a = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    for _ in range(max(1, min(700, int(rate / (2 * 8192**3))))):
        torch.matmul(a, a)
    told = (uuid and answer([*ask, f"--id=GPU-{uuid}"])) or answer(ask)
    torch.cuda.synchronize(device)
    values = (told or "").split("\n")[0].split(", ")
    if len(values) != len(SMI_FIELDS):
        return {"driver": "nvidia-smi did not tell"}
    state = dict(zip(SMI_FIELDS, values, strict=True))
    return {
        "driver": state["driver_version"],
        "clocks while multiplying": f"SM {state['clocks.sm']} of {state['clocks.max.sm']}, "
        f"memory {state['clocks.mem']} of {state['clocks.max.mem']}, power limit {state['power.limit']}",
    }


def answer(command: list[str]) -> str | None:
    """What a program prints; None where it is absent, fails, or takes more than 8 seconds."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=8)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
