"""Every link of the documents leads somewhere, every symbol they name is defined there, no module is left out."""

import ast
import importlib
import inspect
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from realm_min.app.cli import parser

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
# What the documents tell readers to write, or what a run leaves: no files of this repository.
NOT_HERE = {"block_records.npy"}


def prose(path):
    """The text without fenced code."""
    return re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def links(path):
    """(text, target) of every link and picture."""
    return re.findall(r"\[((?:[^][]|\\.)*)\]\(([^)\s]+)\)", prose(path))


def relative_links():
    return [
        (path, text, target)
        for path in DOCUMENTS
        for text, target in links(path)
        if not target.startswith(("http://", "https://"))
    ]


def anchors(path):
    """The anchors that a Markdown viewer gives the headings."""
    headings = re.findall(r"^#+ (.+)$", prose(path), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def definitions(body):
    """Names that a module's or a class's statements define, with those of classes as CLASS.NAME."""
    found = set()
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{name}" for name in definitions(node.body)}
        for target in node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]:
            found |= {name.id for name in ast.walk(target) if isinstance(name, ast.Name)} if target else set()
    return found


def module_name(path):
    """`realm_min/learn/ict.py` -> realm_min.learn.ict; what is not in the package has none."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] == "kernels":
        parts = ("realm_min", *parts)
    return ".".join(parts) if parts[0] == "realm_min" else None


def modules():
    """Every module of the package, its packages' own files aside."""
    found = [*ROOT.glob("realm_min/**/*.py"), *ROOT.glob("kernels/*.py")]
    return sorted(path.relative_to(ROOT) for path in found if not path.name.startswith("__"))


def test_relative_links_lead_to_files_and_headings():
    found = relative_links()
    assert len(found) > 100
    for path, _, target in found:
        file, _, anchor = target.partition("#")
        goal = (path.parent / file).resolve() if file else path
        assert goal.exists() and goal.is_relative_to(ROOT), f"{path.name} links to {target}, which is not there"
        assert not anchor or anchor in anchors(goal), f"{path.name} links to {target}: no such heading"


def test_symbols_are_defined_in_the_file_their_link_leads_to():
    checked = 0
    for path, text, target in relative_links():
        if not target.endswith(".py"):
            continue
        goal = (path.parent / target).resolve()
        symbol = text.strip("`")
        assert text == f"`{symbol}`", f"{path.name} links to {target} without naming a symbol: {text}"
        if symbol == goal.name or symbol == goal.relative_to(ROOT).as_posix():
            continue  # the file itself
        defined = definitions(ast.parse(goal.read_text(encoding="utf-8")).body)
        short = symbol.split(".", 1)[1] if symbol.startswith(f"{goal.stem}.") else symbol
        assert short in defined, f"{path.name}: {symbol} is not defined in {target}"
        if name := module_name(goal):
            value = importlib.import_module(name)
            for part in short.split("."):
                value = getattr(value, part) if hasattr(value, part) else value.__annotations__[part]
        checked += 1
    assert checked > 100


def test_pictures_name_modules_that_exist():
    names = {path.name for path in (*modules(), *(ROOT / "benchmarks").glob("*.py"))}
    for picture in (ROOT / "docs").glob("*.svg"):
        text = " ".join(ElementTree.parse(picture).getroot().itertext())
        found = set(re.findall(r"\b(\w+\.py)\b", text))
        assert len(found) > 30 and found <= names, f"{picture.name} names {sorted(found - names)}"


def reading_path():
    """The README's section, as its text."""
    text = prose(ROOT / "README.md")
    return text[text.index("\n## Read") : text.index("\n## ", text.index("\n## Read") + 1)]


def test_a_reader_is_led_to_every_module():
    """Those of the paper are in the README or docs/layout.md, once; the others lie in a folder that this one names."""
    layout, listed = ROOT / "docs" / "layout.md", []
    for path, text in ((ROOT / "README.md", reading_path()), (layout, prose(layout))):
        found = re.findall(r"\[(`[^`]+`)\]\(([^)]+\.py)\)", text)
        listed += [(path.parent / target).resolve().relative_to(ROOT) for _, target in found]
    assert len(listed) == len(set(listed)) and set(listed) <= set(modules())
    folders = re.findall(r"^\| `(\w+)/` \|", prose(layout), flags=re.MULTILINE)
    missing = set(modules()) - set(listed)
    assert not [path for path in missing if path.parent.name not in folders or path.parent.name in ("model", "learn")]


def test_equation_1_is_met_within_300_lines():
    """By who reads from the README's first line, and goes to the book where the reading path begins with it."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    book = (ROOT / "realm_min" / "textbook.py").read_text(encoding="utf-8")
    to_the_book = readme[: readme.index("[`textbook.py`]", readme.index("\n## Read"))].count("\n")
    to_the_gradient = book[: book.index("This line is what REALM is.")].count("\n")
    assert "(equation 1)" in book[: book.index("def marginal_log_likelihood_backward")]
    assert to_the_book + to_the_gradient < 300


def test_every_page_begins_with_the_question_that_it_answers():
    for path in (ROOT / "docs").glob("*.md"):
        first = path.read_text(encoding="utf-8").split("\n", 1)[0]
        assert re.fullmatch(r"# [^?]+\?", first), f"{path.name} begins with {first!r}"


def test_twelve_questions_are_answered_where_it_says():
    """Links are followed by the tests above; here parts of the book, heads of modules, and sections of notebooks."""
    path = ROOT / "docs" / "questions.md"
    cell = r"((?:[^|\\]|\\.)+)"
    rows = re.findall(
        rf"^\| (\d+) \| {cell}\? \| {cell} \| {cell} \|$", path.read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert [int(number) for number, *_ in rows] == list(range(1, 13))
    book = (ROOT / "realm_min" / "textbook.py").read_text(encoding="utf-8")
    for _, question, _, places in rows:
        sections = re.findall(r'\[notebook \d\]\(([^)]+)\), "([^"]+)"', places)
        parts = re.findall(r"book, part (\d), \[`(\w+)`\]", places)
        heads = re.findall(r"the head of \[`\w+\.py`\]\(([^)]+)\)", places)
        assert sections or parts or heads, question
        for notebook, section in sections:
            source = (path.parent / notebook).with_suffix(".py").read_text(encoding="utf-8")
            assert re.search(rf"^# ##+ {re.escape(section)}$", source, flags=re.MULTILINE), (question, section)
        for part, symbol in parts:
            text = book[book.index(f"# ---- {part}. ") :]
            assert f"\ndef {symbol}(" in text[: text.find("\n# ---- ")], (question, symbol)
        for module in heads:
            head = ast.get_docstring(ast.parse((path.parent / module).read_text(encoding="utf-8")))
            assert head and len(head) > 300, (question, module)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_files_and_commands_named_in_text_exist(path):
    text = path.read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, flags=re.MULTILINE))
    for target in re.findall(r"(?:^|`)make ([\w-]+)", text, flags=re.MULTILINE):
        assert target in targets, f"{path.name} names make {target}"
    (commands,) = [action.choices for action in parser()._actions if getattr(action, "choices", None)]
    for command in re.findall(r"(?:^|`)realm-min (\w+)", text, flags=re.MULTILINE):
        assert command in commands, f"{path.name} names realm-min {command}"
    for name in re.findall(r"`((?:tests|benchmarks|notebooks|docs|kernels|realm_min)/[\w./-]*)`", text):
        assert (ROOT / name).exists(), f"{path.name} names {name}"
    known = {found.name for folder in (".ci", "realm_min", "kernels", "tests", "benchmarks", "notebooks", "docs")
             for found in (ROOT / folder).rglob("*.py")}  # fmt: skip
    for name in re.findall(r"`(\w+\.(?:py|npy))`", text):
        assert name in known | NOT_HERE, f"{path.name} names {name}"


def test_every_make_target_runs_whatever_is_in_the_folder():
    """One that is not phony stops running once a file or folder has its name, as train-demo's own results had."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([\w-]+):", makefile, flags=re.MULTILINE)
    (phony,) = re.findall(r"^\.PHONY:((?:.*\\\n)*.*)", makefile, flags=re.MULTILINE)
    assert sorted(targets) == sorted(phony.replace("\\\n", " ").split()) and len(targets) > 15


def test_options_named_in_text_exist():
    (commands,) = [action.choices for action in parser()._actions if getattr(action, "choices", None)]
    options = {option for command in commands.values() for option in command._option_string_actions}
    checked = 0
    for path in DOCUMENTS:
        for line in re.findall(r"(?:^|`)(?:realm-min |finetune|pretrain|ict|ask)[^`\n#]*", path.read_text("utf-8"),
                               flags=re.MULTILINE):  # fmt: skip
            for option in re.findall(r"(?<!\S)(--[\w-]+)", line):
                assert option in options, f"{path.name} names {option}: {line}"
                checked += 1
    assert checked > 5


PROGRAMS = [path for folder in ("benchmarks", "notebooks") for path in sorted((ROOT / folder).glob("*.py"))]


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_what_programs_take_from_the_package_is_there(path):
    """Benchmarks and the recipe run for hours, and are not run here: each name they import, each module's they use."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules, missing = {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            missing.append(f"{'.' * node.level}{node.module}")  # a program has no package to be relative to
        elif isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "realm_min":
            module = importlib.import_module(node.module)
            for name in node.names:
                try:
                    found = getattr(module, name.name, None) or importlib.import_module(f"{node.module}.{name.name}")
                except ImportError:
                    missing.append(f"{node.module}.{name.name}")
                    continue
                if inspect.ismodule(found):
                    modules[name.asname or name.name] = found
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            if not hasattr(modules[node.value.id], node.attr):
                missing.append(f"{node.value.id}.{node.attr}")
    assert not missing
