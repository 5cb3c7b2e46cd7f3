"""The constraints files: made by `make lock`, resolved for every supported Python and platform by `make check-install`.

Both ask the public registry alone, through uv, which needs none of those Pythons: no local wheels, no configuration of
pip or uv. `check` ends with 1 on a conflict, a missing wheel or a package that the file does not pin; where no registry
answers it says so and ends with 0.
"""

from __future__ import annotations

import argparse
import configparser
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
USERS, ORACLE = "constraints.txt", "constraints-oracle.txt"
USERS_EXTRAS = ("demo", "page", "test", "browser", "notebooks", "docs", "hub", "tf", "plot", "check")
ORACLE_EXTRAS = ("oracle", "weights", "realm", "ablation", "bench")
# What is installed beside the oracle is pinned with it.
EXTRAS = {USERS: USERS_EXTRAS, ORACLE: (*USERS_EXTRAS, *ORACLE_EXTRAS)}
# What does not follow from the newest of everything: the torch that CI has a CPU build of, and the oracle's own.
CHOSEN = {
    USERS: ["torch==2.13.0"],
    ORACLE: [
        "torch==2.13.0",
        'transformers==4.40.2; python_version < "3.13"',
        'tokenizers==0.19.1; python_version < "3.13"',
    ],
}
HEADS = {
    USERS: """\
# Exact versions of everything that `make` installs and of all that it brings along, for Python 3.10 to 3.14, on Linux
# and macOS. Made by `make lock`; `make check-install` resolves it. The oracle has a file of its own.
""",
    ORACLE: """\
# Exact versions for what compares with transformers 4.40.2, the oracle: the tests that need it, the benchmarks, the
# training of the default model. Of what constraints.txt has too, tokenizers and huggingface-hub alone differ.
# Made by `make lock`. For Python 3.13 and later, where that transformers has no wheels, its newest stands here.
""",
}
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
ORACLE_PYTHONS = ("3.10", "3.11", "3.12")
PLATFORMS = ("x86_64-manylinux_2_28", "aarch64-manylinux_2_28", "aarch64-apple-darwin")


class Case(NamedTuple):
    """One question to the resolver."""

    extra: str
    constraints: str
    python: str
    platform: str

    def __str__(self) -> str:
        return f"[{self.extra}] with {self.constraints} on Python {self.python}, {self.platform}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = {"lock": lock, "check": check, "oldest": oldest}
    parser.add_argument("command", choices=commands)
    return commands[parser.parse_args().command]()


def uv(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run `uv pip compile` with nothing of this machine's own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_"))}
    environment |= {"PIP_CONFIG_FILE": os.devnull, "MACOSX_DEPLOYMENT_TARGET": "14.0"}  # as torch's wheels ask
    command = [sys.executable, "-m", "uv", "pip", "compile", "--no-config", "--no-header", "--no-annotate", "--quiet"]
    return subprocess.run(
        [*command, *arguments], cwd=ROOT, env=environment, input=stdin, capture_output=True, text=True, check=False
    )


def lock() -> int:
    """Write both files anew; a pin that still fits stays, so remove a line to have its newest version."""
    for name, extras in EXTRAS.items():
        path = ROOT / name
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        if name == ORACLE:  # as constraints.txt has it, where the oracle leaves the choice
            users = (ROOT / USERS).read_text(encoding="utf-8").splitlines()
            users = [line for line in users if pinned(line) not in ("tokenizers", "huggingface-hub")]
            shared = {pinned(line) for line in users}
            lines = users + [line for line in lines if pinned(line) not in shared]
        path.write_text("\n".join(lines), encoding="utf-8")
        result = uv(
            "--universal", "--python-version", PYTHONS[0], "--no-strip-markers", "--output-file", name,
            *(f"--extra={extra}" for extra in extras), "--constraint", "-", "setup.cfg", stdin="\n".join(CHOSEN[name]),
        )  # fmt: skip
        if result.returncode:
            print(result.stderr, file=sys.stderr)
            return 1
        path.write_text(HEADS[name] + path.read_text(encoding="utf-8"), encoding="utf-8")
    return 0


def check() -> int:
    """Resolve every extra that users and the tests install, wherever it is to be installed."""
    cases = [Case(extra, USERS, *where) for extra in ("demo", "test") for where in product(PYTHONS, PLATFORMS)]
    extras = ("test", *ORACLE_EXTRAS)
    cases += [Case(extra, ORACLE, python, PLATFORMS[0]) for extra in extras for python in ORACLE_PYTHONS]
    with ThreadPoolExecutor(8) as pool:
        problems = list(pool.map(problem, cases))
    if UNREACHABLE in problems:
        print("SKIPPED: no package registry answers, so nothing was resolved")
        return 0
    for case, found in zip(cases, problems, strict=True):
        print(f"{'CONFLICT' if found else 'ok':8}  {case}" + (f"\n{found}" if found else ""))
    print(f"{len(cases) - sum(map(bool, problems))} of {len(cases)} resolve from the public registry alone")
    return 1 if any(problems) else 0


def oldest() -> int:
    """Print the lower bounds of setup.cfg as pins."""
    for requirement in requirements():
        print(requirement.replace(">=", "=="))
    return 0


def requirements(*extras: str) -> list[str]:
    """What setup.cfg asks for, with extras: the project itself, which would have to be built, is not asked for."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    found = setup["options"]["install_requires"].split("\n")
    for extra in extras:
        for line in setup["options.extras_require"][extra].split("\n"):
            own = re.fullmatch(r"realm-min\[(.*)\]", line)
            found += requirements(*own[1].split(",")) if own else [line]
    return [line for line in found if line]


UNREACHABLE = "unreachable"


def problem(case: Case) -> str:
    """Why wheels for the case cannot be had at the pinned versions, or nothing."""
    result = uv(
        "--only-binary", ":all:", "--python-version", case.python, "--python-platform", case.platform,
        "--constraint", case.constraints, "-", stdin="\n".join(requirements(case.extra)),
    )  # fmt: skip
    if re.search("Failed to fetch|error sending request|Could not connect|dns error", result.stderr):
        return UNREACHABLE
    if result.returncode:
        return result.stderr.strip()
    held = {pinned(line) for line in (ROOT / case.constraints).read_text(encoding="utf-8").splitlines()}
    return "\n".join(
        f"{line} is not pinned: make lock" for line in result.stdout.split("\n") if pinned(line) not in held
    )


def pinned(line: str) -> str:
    """The package that a line of a constraints file is about; of a comment or nothing, nothing."""
    return re.split(r"[=<>!~;\[ #]", line, maxsplit=1)[0]


if __name__ == "__main__":
    sys.exit(main())
