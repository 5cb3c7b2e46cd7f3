"""The settings of `make realm`'s REALM arms, chosen on the development questions before arms are compared.

Each alternative of realm-settings.json's "trials" is tried on a seed that no comparison has, for fewer updates. Taken
is the one whose mean of R@1, R@5 and R@20 on the development questions is highest; no other question is looked at. What
was tried is realm-trials.csv; what was taken replaces the settings, which say so ("taken").
"""

from __future__ import annotations

import csv
import json
import os
import sys
from pathlib import Path
from typing import Any

import realm
from realm_report import read_log

from realm_min.files.atomic import write_atomically

KEYS = [f"dev R@{k}" for k in realm.KS]


def merged(settings: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """Settings with some replaced, those of a stage one by one."""
    return settings | {
        key: settings[key] | value if isinstance(value, dict) else value for key, value in change.items()
    }


def write_settings(path: Path, settings: dict[str, Any]) -> None:
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def trials(given: realm.Given) -> dict[str, realm.Given]:
    """For each alternative what its run is told; its settings and its CSV go to a folder of its name."""
    settings = json.loads(given.settings.read_text(encoding="utf-8"))
    tried = settings["trials"]
    found = {}
    for name, change in tried["alternatives"].items():
        folder = given.out / "trials" / name
        folder.mkdir(parents=True, exist_ok=True)
        shorter = merged(merged(settings, change), {"realm": tried["realm"], "evaluate_every": tried["realm"]["steps"]})
        shorter["realm"] |= {key: value for key, value in change.get("realm", {}).items()}
        write_settings(folder / "settings.json", shorter)
        found[name] = given._replace(out=folder, settings=folder / "settings.json")
    return found


def task(settings: dict[str, Any]) -> str:
    """The run that each alternative is tried by."""
    return f"realm-{settings['trials']['seed']}"


def choose(given: realm.Given) -> str:
    """Take the best of the alternatives that were run: write realm-trials.csv, and replace the settings."""
    settings = json.loads(given.settings.read_text(encoding="utf-8"))
    found = []
    for name in settings["trials"]["alternatives"]:
        path = given.out / "trials" / name / f"{task(settings)}.csv"
        if path.is_file():
            found.append({"alternative": name, **{column: values[-1] for column, values in read_log(path).items()}})
    with write_atomically(given.out / "realm-trials.csv") as temporary, open(temporary, "w", newline="") as file:
        rows = [{key: value for key, value in row.items() if not key.startswith("all ")} for row in found]
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["alternative"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    taken = max(found, key=lambda row: sum(row[key] for key in KEYS))["alternative"] if found else ""
    change = settings["trials"]["alternatives"].get(taken, {})
    write_settings(given.settings, merged(settings, change) | {"taken": taken or "none was run: not tuned"})
    return taken


def main() -> None:
    options, given = realm.read_arguments()
    settings = json.loads(given.settings.read_text(encoding="utf-8"))
    for trial in trials(given).values():
        realm.run_all(trial, [task(settings)], options.processes)
    print(f"taken: {choose(given)}")


if __name__ == "__main__":
    from realm_min.app.cli import status_of

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(status_of(main))
