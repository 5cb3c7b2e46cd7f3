"""The picture of an answer: what is drawn are the numbers that the models gave."""

import sys
from types import SimpleNamespace

import matplotlib.image
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Text

from realm_min import RealmConfig, RealmForOpenQA, RealmRetriever, RealmTokenizerFast
from realm_min.app import indexing, plots
from realm_min.app.cli import main
from realm_min.app.figures import DPI, POINTS
from realm_min.interface.inputs import Inputs
from realm_min.jobs.calibration import Bin
from realm_min.jobs.statistics import wilson
from realm_min.model import ops
from realm_min.model.bert import Run
from realm_min.model.spans import span_candidates
from realm_min.text.corpus import Document

DOCUMENTS = [
    Document(name, f"Capital - name: {capital}. Budget: $5 and $6. Field {i} of {name} is 国.")
    for i, (name, capital) in enumerate({"Uruguay": "Montevideo", "Norway": "Oslo", "Kenya": "Nairobi"}.items())
]
QUESTION = "What is the $capital$ of Norway?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, vocabulary):
    config = RealmConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32, retriever_proj_size=16,
        span_hidden_size=16, num_block_records=1, reader_beam_size=3,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("plots") / "model"
    tokenizer = RealmTokenizerFast(vocab_file=str(vocabulary))
    return indexing.index(iter(DOCUMENTS), path, RealmForOpenQA(config, seed=3).eval(), tokenizer)


@pytest.fixture(scope="module")
def model(folder):
    return RealmForOpenQA.from_pretrained(folder, retriever=RealmRetriever.from_pretrained(folder))


def test_ask_draws_a_png(folder, tmp_path, capsys):
    path = tmp_path / "answer.png"
    assert main(["ask", QUESTION, "--model", str(folder), "--plot", str(path)]) == 0
    image = matplotlib.image.imread(path)
    assert image.shape[1] == plots.WIDTH * DPI and image.shape[0] > 800
    assert image[..., :3].std() > 0.05  # something is on it
    assert [found.name for found in tmp_path.iterdir()] == ["answer.png"]
    captured = capsys.readouterr()
    assert captured.out.startswith(QUESTION) and "answer.png" in captured.err and "Glyph" not in captured.err


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["a?", "b?", "--plot", "x.png"], "2 were given"),
        (["--plot", "x.png"], "0 were given"),
        (["a?", "--plot", "x.jpg"], "x.jpg should end in .png"),
    ],
)
def test_ask_refuses_what_it_cannot_draw(arguments, expected, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["ask", *arguments, "--model", str(folder)]) == 2
    captured = capsys.readouterr()
    assert expected in captured.err and captured.out == "" and not list(tmp_path.iterdir())


def test_ask_says_what_to_install(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["ask", QUESTION, "--model", str(folder), "--plot", str(tmp_path / "x.png")]) == 2
    assert "pip install 'realm-min[plot]'" in capsys.readouterr().err


def test_the_figure_holds_the_models_numbers(model, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: (figures.append(figure), path.touch()))
    (answer,) = model.answer([QUESTION])
    plots.plot_answer(model, answer, tmp_path / "x.png")
    figures[0].canvas.draw()
    sizes = [found.get_fontsize() for found in figures[0].findobj(Text) if found.get_text()]
    assert len(sizes) > 100 and min(sizes) >= POINTS
    bars, near, whole, heads, text = [axes for axes in figures[0].axes if axes.get_label() != "<colorbar>"]
    block = answer.blocks[answer.block_rank]
    assert [bar.get_width() for bar in bars.patches] == [found.probability for found in answer.blocks]
    assert sum(bar.get_width() for bar in bars.patches) == pytest.approx(1)

    # Every span's score, by hand from the reader's own call on this block.
    inputs = model.retriever.tokenizer([QUESTION], [block.text], return_tensors="pt", return_special_tokens_mask=True)
    in_block = inputs.token_type_ids.bool() & ~inputs.special_tokens_mask.bool()
    relevance = torch.tensor([block.score])
    logits, encoded = model.reader.span_logits(
        Inputs(inputs.input_ids, inputs.attention_mask, inputs.token_type_ids),
        relevance,
        in_block,
        Run(output_attentions=True),
    )
    drawn = np.ma.filled(whole.images[0].get_array(), np.nan)  # [widths, tokens]
    assert np.count_nonzero(~np.isnan(drawn)) == (logits > -1e30).sum()
    starts, ends = span_candidates(in_block.shape[1], model.config.max_span_width)
    best = int(logits.argmax())
    start, end = int(starts[best]), int(ends[best])
    assert np.nanmax(drawn) == pytest.approx(logits.max().item(), abs=1e-5)
    assert np.unravel_index(np.nanargmax(drawn), drawn.shape) == (end - start, start)
    assert np.nanmax(near.images[0].get_array()) == np.nanmax(drawn)
    scales = [axes.get_ylabel() for axes in figures[0].axes if axes.get_label() == "<colorbar>"]
    assert scales == ["S_retr + S_read", "S_retr + S_read", "attention"]  # the relevance is in what is drawn

    attention = np.asarray(heads.images[0].get_array())  # [heads, tokens]
    expected = encoded.attentions[-1][0, :, start : end + 1].mean(1)
    np.testing.assert_allclose(attention, expected, atol=1e-6)
    np.testing.assert_allclose(attention.sum(1), 1, atol=1e-5)
    pieces = model.retriever.tokenizer.convert_ids_to_tokens(inputs.input_ids[0].tolist())
    written = [label.get_text().replace(r"\$", "$") for label in text.texts]
    assert written == [piece.removeprefix("##") for piece in pieces]
    bold = [i for i, label in enumerate(text.texts) if label.get_weight() == "bold"]
    assert bold == list(range(start, end + 1))
    of_figure = figures[0].get_suptitle()
    assert answer.text.replace("$", r"\$") in of_figure and QUESTION.replace("$", r"\$") in of_figure


def test_many_blocks_are_cut_to_the_best_and_the_answers():
    blocks = [
        SimpleNamespace(text=f"block {i}", probability=p)
        for i, p in enumerate(ops.softmax(torch.arange(30.0)).tolist())
    ]
    axes = Figure().subplots()
    plots.draw_retrieval(axes, SimpleNamespace(blocks=blocks, block_rank=27))
    widths = [bar.get_width() for bar in axes.patches]
    assert widths == [block.probability for block in [*blocks[: plots.BARS - 1], blocks[27]]]
    assert axes.get_title(loc="left").endswith("20 of 30")
    assert axes.get_yticklabels()[-1].get_text() == "28. block 27"


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.data(), st.integers(1, 12), st.integers(1, 12))
def test_span_table_puts_every_span_in_its_place(data, tokens, max_span_width):
    inside = data.draw(st.lists(st.booleans(), min_size=tokens, max_size=tokens))
    starts, ends = span_candidates(tokens, max_span_width)
    logits = torch.arange(len(starts), dtype=torch.float32)
    read = SimpleNamespace(starts=starts, ends=ends, in_block=torch.tensor([inside]), logits=logits[None])
    table = plots.span_table(read)
    assert table.shape == (min(tokens, max_span_width), tokens)
    seen = 0
    for score, start, end in zip(logits.tolist(), starts.tolist(), ends.tolist(), strict=True):
        if inside[start] and inside[end]:
            assert table[end - start, start] == score
            seen += 1
        else:
            assert np.isnan(table[end - start, start])
    assert np.count_nonzero(~np.isnan(table)) == seen


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.lists(st.sampled_from(["the", "##ing", "[SEP]", "a" * 40, "##" + "b" * 60, ".", r"\$"]), min_size=1))
def test_text_is_laid_out_in_lines_that_do_not_overlap(tokens):
    places = plots.laid_out(tokens)
    widths = [len(plots.shown(token)) for token in tokens]
    for i in range(1, len(tokens)):
        (line, column), (next_line, next_column) = places[i - 1], places[i]
        if next_line == line:
            assert next_column == column + widths[i - 1] + (not tokens[i].startswith("##"))
        else:
            assert (next_line, next_column) == (line + 1, 0)
            assert column + widths[i - 1] + widths[i] + 1 > plots.LINE
    assert all(column + width <= plots.LINE for (_, column), width in zip(places, widths, strict=True))


def test_reliability_shows_each_bin_with_its_interval(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: (figures.append(figure), path.touch()))
    plots.plot_reliability([Bin(0.25, 0.5, 8), Bin(0.9, 1.0, 3)], tmp_path / "x.png")
    (axes,) = figures[0].axes
    points = axes.containers[0].lines[0]
    assert (points.get_xdata().tolist(), points.get_ydata().tolist()) == ([0.25, 0.9], [0.5, 1.0])
    (segments,) = axes.containers[0].lines[2]
    ends = [segment[:, 1].tolist() for segment in segments.get_segments()]
    assert np.allclose(ends, [wilson(0.5, 8), wilson(1.0, 3)])
    assert [text.get_text() for text in axes.texts] == ["8", "3"]
