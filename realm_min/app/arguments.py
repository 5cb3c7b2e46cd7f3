"""The arguments of the commands that do not train, and what is refused of them before torch is imported.

For each command `add_COMMAND` declares its arguments and `check_COMMAND` refuses what no model is needed to refuse. The
commands that train have theirs in `training_arguments.py`.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

from ..config import check_indexed, check_open_qa
from ..files.causes import check_readable
from ..files.hub import find_folder
from ..files.output import PARTIAL, check_apart, check_file, check_folder, partial_of, refuse_existing
from ..files.tensorflow_files import check_tensorflow, find_checkpoint
from ..jobs.per_question import read_sides, shared_measures
from ..jobs.ranking import read_judgements
from ..jobs.settings import COUNT, NATURAL, SHARE
from ..ranks.devices import add_device, check_device
from ..text.corpus import FACTBOOK, factbook
from ..text.documents import read_documents
from ..text.leads import LEADS, leads_file
from ..text.lines import GZIPPED
from ..text.questions import rows_to_ask
from .training_arguments import CORPUS_HELP, file_name

KINDS = ("embedder", "scorer", "encoder", "reader", "openqa")  # of model that `convert` makes
BM25 = "bm25"  # a --baseline that is no folder
LAST_PORT = 65535
KNOWN = (  # published checkpoints, to whose values `verify` compares
    "realm-cc-news-pretrained-embedder",
    "realm-cc-news-pretrained-encoder",
    "realm-cc-news-pretrained-scorer",
    "realm-orqa-nq-reader",
    "realm-orqa-nq-openqa",
)


def add_model(parser: argparse.ArgumentParser) -> None:
    """The option --model."""
    parser.add_argument("--model", metavar="FOLDER", help="a model's folder or hub name (default: the one that ships)")


def add_indexed_model(parser: argparse.ArgumentParser) -> None:
    """The options --model and --corpus."""
    add_model(parser)
    parser.add_argument(
        "--corpus", choices=(LEADS, FACTBOOK),
        help="let the model that ships search one of its two corpora: ten thousand Wikipedia leads, or the CIA World "
        "Factbook (default: both)",
    )  # fmt: skip


def add_reading(parser: argparse.ArgumentParser) -> None:
    """The options -k and --threshold."""
    parser.add_argument("-k", type=COUNT.read, metavar="N", help="blocks to read for a question (default: the model's)")
    parser.add_argument(
        "--threshold", type=SHARE.read, metavar="P",
        help="say that nothing was found where p(y|x), or P(right) of a model with a calibration, is below P (default: "
        "the model's; 0 for one of your own without a calibration)",
    )  # fmt: skip


# ---- index


def add_index(parser: argparse.ArgumentParser) -> None:
    """The arguments of `realm-min index`."""
    parser.add_argument("corpora", nargs="*", metavar="CORPUS", help=CORPUS_HELP)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, metavar="FOLDER", help="the folder to write")
    where.add_argument(
        "--add-to", type=Path, metavar="FOLDER", help="a folder that realm-min index wrote: add to it what is new"
    )
    parser.add_argument(
        "--remove", nargs="+", action="extend", default=[], metavar="ID",
        help="with --add-to: documents to take out, by their ids",
    )  # fmt: skip
    add_model(parser)
    add_device(parser)
    parser.add_argument("--restart", action="store_true", help="forget what an interrupted run left in FOLDER.partial")


def check_index(options: argparse.Namespace) -> None:
    """Refuse what `realm-min index` cannot do.

    Raises:
        ValueError, FileNotFoundError, FileExistsError, ModuleNotFoundError: an argument is at fault; the message names
            it and says what to give.
    """
    check_device(options.device)
    if not options.corpora and not options.remove:
        raise ValueError("there is nothing to index: name a CORPUS")
    for corpus in options.corpora:
        read_documents(corpus)
    if options.add_to:
        if options.model:
            raise ValueError(f"{options.add_to} has a model already: leave out --model {options.model}")
        partial = partial_of(options.add_to)
        if options.add_to.is_dir():
            check_indexed(options.add_to)
        elif not partial.is_dir():  # in which a killed job left it
            raise FileNotFoundError(f"there is no folder {options.add_to}: make it with --out, then add to it")
        check_folder(partial)
        return
    if options.remove:
        raise ValueError("--remove takes documents out of a folder: name it with --add-to, in place of --out")
    check_folder(options.out)
    refuse_existing(options.out)
    folder = _folder(options.model)
    if folder:
        check_open_qa(folder)


# ---- ask


def add_ask(parser: argparse.ArgumentParser) -> None:
    """The arguments of `realm-min ask`."""
    parser.add_argument(
        "questions", nargs="*", metavar="QUESTION",
        help="none, or a hyphen: those of the standard input, a line each, or at a prompt on a terminal",
    )  # fmt: skip
    parser.add_argument("--examples", action="store_true", help="ask five questions")
    add_indexed_model(parser)
    add_device(parser)
    add_reading(parser)
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--blocks", action="store_true", help="show each block that was read, too")
    shown.add_argument("--json", action="store_true", help="print one JSON object a question")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE.png",
        help="draw what was retrieved, scored and attended to for one question (needs matplotlib)",
    )  # fmt: skip


def check_ask(options: argparse.Namespace) -> None:
    """As `check_index`, of `realm-min ask`."""
    check_device(options.device)
    for question in options.questions:
        if not question.strip():
            raise ValueError("the question is empty: ask something")
    if options.examples and options.questions:
        raise ValueError(f"--examples asks five questions of its own: leave it out, or {options.questions[0]!r}")
    if options.plot:
        if len(options.questions) != 1:
            raise ValueError(f"--plot draws one question, and {len(options.questions)} were given: give one")
        check_plot(options.plot)
    _check_indexed_model(options.model, options.corpus)
    check_apart({"--plot": options.plot}, {"--model": _folder(options.model)})


# ---- page


def add_page(parser: argparse.ArgumentParser) -> None:
    """The arguments of `realm-min page`."""
    parser.add_argument("question", nargs="?", metavar="QUESTION", help="what the page asks first")
    add_indexed_model(parser)
    add_device(parser)
    add_reading(parser)
    parser.add_argument(
        "--port", type=NATURAL.read, default=0, metavar="N", help="of 127.0.0.1 (default: any free one)"
    )
    parser.add_argument("--no-browser", action="store_true", help="only say where the page is")
    parser.add_argument(
        "--save", type=Path, metavar="FILE.html", help="write the answer to QUESTION as one file, and serve nothing"
    )


def check_page(options: argparse.Namespace) -> None:
    """As `check_index`, of `realm-min page`."""
    check_device(options.device)
    if options.question is not None and not options.question.strip():
        raise ValueError("the question is empty: ask something")
    if options.port > LAST_PORT:
        raise ValueError(f"--port {options.port} is no port: give a number up to {LAST_PORT}, or leave it out")
    if options.save:
        if options.question is None:
            raise ValueError("--save writes the answer to a question: give one")
        if options.save.suffix.lower() not in (".html", ".htm"):
            raise ValueError(f"--save writes HTML: {options.save} should end in .html")
        check_file("--save", options.save)
    elif any(find_spec(package) is None for package in ("starlette", "uvicorn")):
        raise ModuleNotFoundError("the page needs starlette and uvicorn: pip install 'realm-min[page]'")
    _check_indexed_model(options.model, options.corpus)
    check_apart({"--save": options.save}, {"--model": _folder(options.model)})


# ---- evaluate


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    """The arguments of `realm-min evaluate`."""
    parser.add_argument(
        "questions", type=file_name, metavar="QUESTIONS",
        help='each line {"question": "…", "answer": ["…", …]}; or DPR\'s .tsv, .csv or .json, or BEIR\'s queries',
    )  # fmt: skip
    add_indexed_model(parser)
    add_device(parser)
    parser.add_argument(
        "--predictions", type=Path, metavar="FILE",
        help="write what each question gave: a row of a table where FILE ends in .csv, a JSON line else",
    )  # fmt: skip
    parser.add_argument("--run", type=Path, metavar="FILE", help="write the documents found, as a run of TREC's")
    parser.add_argument("--qrels", type=Path, metavar="FILE", help="measure the documents found by these judgements")
    parser.add_argument("--regex", action="store_true", help="answers are regular expressions, as CuratedTrec's are")
    parser.add_argument("--limit", type=COUNT.read, metavar="N", help="only the first N questions")
    parser.add_argument("--json", action="store_true", help="print the measures as one JSON object")


def check_evaluate(options: argparse.Namespace) -> None:
    """As `check_index`, of `realm-min evaluate`."""
    check_device(options.device)
    if options.qrels:
        read_judgements(options.qrels)
    rows = list(islice(rows_to_ask(options.questions, bool(options.run or options.qrels)), options.limit))
    if not rows:
        raise ValueError(f"{options.questions} holds no question")
    if not any(row.question for row in rows):
        raise ValueError(f"{options.questions} holds no question to ask: line {rows[0].line} {rows[0].reason}")
    outputs = {"--predictions": options.predictions, "--run": options.run}
    for option, path in outputs.items():
        if path:
            check_file(option, path)
            if path.name.lower().endswith(GZIPPED):
                raise ValueError(f"{option} {path} would be plain text under a name of gzip's: leave out {GZIPPED}")
    _check_indexed_model(options.model, options.corpus)
    first = options.predictions or options.run
    journal = {"the unfinished": first and first.with_name(first.name + PARTIAL)}
    inputs = {"QUESTIONS": options.questions, "--qrels": options.qrels, "--model": _folder(options.model)}
    check_apart(outputs | journal, inputs)


# ---- retrieve


def add_retrieve(parser: argparse.ArgumentParser) -> None:
    """The arguments of `realm-min retrieve`."""
    add_evaluate(parser)
    parser.add_argument(
        "--baseline", metavar="NAME",
        help='measure another retriever over the model\'s blocks: "bm25" (needs bm25s), or the folder or hub name of a '
        "sentence encoder, any BERT whose tokens are averaged",
    )  # fmt: skip


def check_retrieve(options: argparse.Namespace) -> None:
    """As `check_index`, of `realm-min retrieve`."""
    check_evaluate(options)
    if options.baseline == BM25:
        if find_spec("bm25s") is None:
            raise ModuleNotFoundError("--baseline bm25 needs bm25s: pip install 'realm-min[baselines]'")
    elif options.baseline:
        try:
            folder = find_folder(options.baseline)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"--baseline {options.baseline} is not {BM25}, and {error}") from None
        check_apart({"--predictions": options.predictions, "--run": options.run}, {"--baseline": folder})


# ---- compare


def add_compare(parser: argparse.ArgumentParser) -> None:
    """The arguments of `realm-min compare`."""
    parser.add_argument(
        "files", nargs="+", type=file_name, metavar="FILE",
        help="what evaluate or retrieve wrote with --predictions: A and B; or, before --against, A's, one a seed",
    )  # fmt: skip
    parser.add_argument(
        "--against", nargs="+", type=file_name, metavar="FILE",
        help="B's, one a seed; as many as A's are paired with them in their order",
    )  # fmt: skip
    parser.add_argument(
        "--measure", nargs="+", action="extend", metavar="NAME", help="compare by these alone (default: all)"
    )
    parser.add_argument(
        "--resamples", type=COUNT.read, default=10_000, metavar="N", help="draws of the bootstrap (default: 10,000)"
    )
    parser.add_argument("--seed", type=NATURAL.read, default=0, metavar="N", help="of the draws (default: 0)")
    parser.add_argument("--json", action="store_true", help="print every figure as one JSON object")


def check_compare(options: argparse.Namespace) -> None:
    """As `check_index`, of `realm-min compare`."""
    if options.against is None and len(options.files) != 2:
        given = "1 file was" if len(options.files) == 1 else f"{len(options.files)} files were"
        raise ValueError(f"{given} given: give two, A and B; or the files of A, --against and those of B")
    shared_measures(*read_sides(options.files, options.against), options.measure)


# ---- verify


def add_verify(parser: argparse.ArgumentParser) -> None:
    """The arguments of `realm-min verify`."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a model's folder, or its name on the hub")
    parser.add_argument("--text", metavar="TEXT", help="read this too, through the folder's tokenizer")
    parser.add_argument(
        "--against", metavar="OTHER", help="another copy of the same model, to be held against this one"
    )
    parser.add_argument(
        "--known", metavar="NAME", choices=KNOWN,
        help=f"compare with the published values of NAME (default: by the folder's name): {', '.join(KNOWN)}",
    )  # fmt: skip
    parser.add_argument("--seed", type=NATURAL.read, default=0, metavar="N", help="draws the inputs (default: 0)")
    parser.add_argument("--json", action="store_true", help="print every figure as one JSON object")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the error by depth (needs matplotlib)")


def check_verify(options: argparse.Namespace) -> None:
    """As `check_index`, of `realm-min verify`."""
    folders = {"CHECKPOINT": find_folder(options.checkpoint), "--against": _folder(options.against)}
    if options.plot:
        check_plot(options.plot)
    check_apart({"--plot": options.plot}, folders)


# ---- convert


def add_convert(parser: argparse.ArgumentParser) -> None:
    """The arguments of `realm-min convert`."""
    parser.add_argument(
        "checkpoints", nargs="*", type=file_name, metavar="CHECKPOINT",
        help="model.ckpt-N, its folder, or encoded.ckpt; one or more",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="the folder to write")
    parser.add_argument("--kind", choices=KINDS, help="the model to make (default: told from the variables' names)")
    parser.add_argument("--config", type=Path, metavar="FILE", help="config.json or bert_config.json")
    parser.add_argument("--blocks", type=Path, metavar="FILE", help="TFRecords of the blocks' texts: blocks.tfr")
    parser.add_argument("--vocab", type=Path, metavar="FILE", help="vocab.txt, for the tokenizer (uncased)")
    parser.add_argument(
        "--initialize-missing", action="store_true", help="draw parameters that nothing fills instead of refusing"
    )
    parser.add_argument("--seed", type=NATURAL.read, metavar="N", default=0, help="of that draw (default: 0)")


def check_convert(options: argparse.Namespace) -> None:
    """As `check_index`, of `realm-min convert`."""
    if not options.checkpoints and not options.blocks:
        raise ValueError("nothing to convert: give a TensorFlow checkpoint, --blocks, or both")
    for checkpoint in options.checkpoints:
        find_checkpoint(checkpoint)
    for option, path in (("--config", options.config), ("--blocks", options.blocks), ("--vocab", options.vocab)):
        if path is not None:
            check_readable(path, f"{option} {path} does not exist: give a file, or leave it out")
    check_folder(options.out)
    check_tensorflow()


# ---- what several commands refuse


def check_plot(path: Path) -> None:
    """Refuse a --plot that cannot be drawn."""
    if path.suffix.lower() != ".png":
        raise ValueError(f"--plot writes a PNG: {path} should end in .png")
    check_file("--plot", path)
    if find_spec("matplotlib") is None:
        raise ModuleNotFoundError("--plot needs matplotlib: pip install 'realm-min[plot]'")


def _folder(name: str | None) -> Path | None:
    """The folder of a model that is an option's; None where it is left out, or a hub name."""
    return None if name is None else find_folder(name)


def _check_indexed_model(name: str | None, corpus: str | None) -> None:
    """Refuse a --model that cannot be asked; a hub name is looked up later, the default needs its corpora's text."""
    if name is None:
        factbook()
        leads_file()
        return
    if corpus:
        raise ValueError(
            f"--corpus {corpus} is of the model that ships, and --model {name} has blocks of its own: "
            "leave out one of them"
        )
    folder = find_folder(name)
    if folder:
        check_indexed(folder)
