"""Every public class and function, called with drawn wrong arguments: a right value, or an error of ours."""

from __future__ import annotations

import os

import numpy as np
import pytest
from misuse import fault_of, misused
from misuse_cases import all_cases

SEED = 18
CALLS = int(os.environ.get("MISUSED_CALLS", 5000 if "LONG" in os.environ else 500))

# Of these the arguments are good but for the file: none is made for them.
REFUSED = {"order of calls", "load_packed", "indexing.read_blocks"}


@pytest.mark.filterwarnings("ignore")
def test_a_call_with_wrong_arguments_is_refused_or_right(tmp_path, monkeypatch):
    """One with good arguments is right first, or this would see nothing but refusals."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    every = all_cases(tmp_path)
    for case in every:
        arguments = case.arguments()
        if case.name not in REFUSED:
            assert case.right(case.call(**arguments), arguments), case.name
    cases = [case for case in every for _ in range(case.share)]
    faults: dict[str, list[str]] = {}
    for number in range(CALLS):
        rng = np.random.default_rng([SEED, number])
        case = cases[number % len(cases)]
        arguments = misused(rng, case.arguments())
        shown = str(arguments)[:600]
        fault = fault_of(case, arguments)
        if fault:
            faults.setdefault(f"{case.name}: {fault}", []).append(f"call {number}: {shown}")
    assert not faults, "\n".join(f"{fault}\n    {calls[0]}" for fault, calls in sorted(faults.items()))
