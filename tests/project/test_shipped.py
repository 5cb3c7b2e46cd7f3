"""How the default model is asked, row by row, and what is made of the rows."""

import eight_capitals
import numpy as np
import pytest
import shipped

from realm_min.app import default_model
from realm_min.jobs import calibration
from realm_min.text.questions import Question, TrainingQuestion

LEADS = [0, 2, 4, 6]  # blocks of the eight


@pytest.fixture(scope="module")
def models():
    """All blocks, and two halves of them as the two corpora."""
    whole = eight_capitals.open_qa()
    found = {"all": whole}
    for name, numbers in (("leads", LEADS), ("factbook", [1, 3, 5, 7])):
        found[name] = eight_capitals.open_qa()
        found[name].retriever.block_records = [whole.retriever.block_records[i] for i in numbers]
        found[name].block_emb = whole.block_emb[numbers].clone()
    return found


def test_a_row_is_what_the_library_finds(models):
    whole = models["all"]
    for number, (country, city) in enumerate(eight_capitals.CAPITALS.items()):
        question = Question(f"what is the capital of {country.lower()}?", [city])
        own = "leads" if number in LEADS else "factbook"
        row = shipped.measured(models, shipped.Asked(own, "dev", "7", question, "1"))
        assert list(row) == shipped.COLUMNS and [row[name] for name in ("kind", "split", "id", "seen")] == [
            own,
            "dev",
            "7",
            "1",
        ]
        for name, model in (("", whole), ("own ", models[own])):
            ids = model.retrieve(question.question, len(model.block_emb))[1][0].tolist()
            rank = next(i for i, z in enumerate(ids) if city in model.evidence.text(z))
            assert [row[f"{name}R@{k}"] for k in (1, 5, 20)] == [str(int(rank < k)) for k in (1, 5, 20)]
        (answer,) = whole.answer(question.question)
        assert float(row["p"]) == pytest.approx(answer.probability, abs=1e-6)
        assert float(row["marginal p"]) == pytest.approx(answer.marginal_probability, abs=1e-6)
        assert row["EM"] == str(int(answer.text.lower() == city.lower())) and row["EM alone"] in "01"


def test_a_question_without_answers_is_asked_too(models):
    row = shipped.measured(models, shipped.Asked("unanswerable", "", "1", Question("who is the king of peru?", [])))
    assert float(row["p"]) > 0 and {row[name] for name in shipped.COLUMNS if "@" in name or "EM" in name} == {""}


def test_asking_goes_on_where_it_stopped(models, tmp_path, monkeypatch):
    monkeypatch.setattr(default_model, "load", models.get)
    asked = [
        shipped.Asked("leads", "dev", str(i), Question(q.question, q.answers))
        for i, q in enumerate(eight_capitals.QUESTIONS)
    ]
    whole = shipped.measure(asked, tmp_path / "a.csv")
    calls, own = [], shipped.measured

    def stopped(models, each):
        calls.append(each.id)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return own(models, each)

    monkeypatch.setattr(shipped, "measured", stopped)
    with pytest.raises(KeyboardInterrupt):
        shipped.measure(asked, tmp_path / "b.csv")
    assert not (tmp_path / "b.csv").exists()
    assert shipped.measure(asked, tmp_path / "b.csv") == whole
    assert calls == ["0", "1", "2", "3", *"34567"] and len(list(tmp_path.iterdir())) == 2


def rows_of(kind, split, ps, right):
    return [
        {"kind": kind, "split": split, "id": str(i), "p": str(p), "score": str(p * 4 - 2), "EM": em}
        for i, (p, em) in enumerate(zip(ps, right, strict=True))
    ]


def test_what_confidence_is_worth_is_told_by_fits_without_the_question(tmp_path):
    ps = [(i + 0.5) / 400 for i in range(400)]
    drawn = np.random.default_rng(0).random(400) < ps
    dev = rows_of("leads", "dev", ps, [str(int(right)) for right in drawn])
    found = shipped.judge(dev + rows_of("unanswerable", "", [0.01] * 5, [""] * 5), tmp_path / "shipped.csv")
    assert (tmp_path / "shipped-reliability.png").stat().st_size > 1000
    right = [row["EM"] == "1" for row in dev]
    confidences, kept = shipped.held_out_confidences(dev)
    assert len(set(confidences)) > 20  # five fits differ
    errors = [calibration.calibration_error(shipped.held_out_confidences(dev, seed)[0], right) for seed in range(20)]
    assert abs(float(found["calibration error"]) - np.mean(errors)) < 0.01 and np.std(errors) > 0.001
    one = shipped.held_out(dev, 0)
    assert one.sure == sum(c >= 0.9 for c in confidences)
    assert one.sure_and_right == sum(r for c, r in zip(confidences, right, strict=True) if c >= 0.9)
    assert one.lost == sum(r and not k for r, k in zip(right, kept, strict=True))
    means = np.mean([shipped.held_out(dev, seed) for seed in range(shipped.DIVISIONS)], axis=0)
    # Right is as often as is said, so that what error there is comes by chance.
    assert abs(float(found["calibration error"]) - float(found["calibration error by chance"])) < 0.02
    assert found == {
        "answers": "400", "right": str(sum(right)),
        "calibration error": found["calibration error"],
        "calibration error by chance": found["calibration error by chance"],
        "calibration error of p": f"{calibration.calibration_error([float(row['p']) for row in dev], right):.4f}",
        "P(right) at least 0.9": f"{means[2]:.2f}", "of them right": f"{means[3]:.2f}",
        "right, not found": f"{means[4]:.2f}", "unanswerable": "5", "of them not found": "5",
    }  # fmt: skip
    assert 0.05 < float(found["right, not found"]) / sum(right) < 0.2 and float(found["calibration error"]) < 0.08


def test_an_answer_that_stands_in_two_rows_counts_once(tmp_path):
    ps = [(i + 0.5) / 60 for i in range(60)]
    dev = rows_of("leads", "dev", ps, [str(int(i % 3 > 0)) for i in range(60)])
    again = [row | {"id": f"w{row['id']}", "kind": "factbook"} for row in dev[::2]]
    assert shipped.distinct(again[:1] + dev) == [0, *range(2, 61)]
    found = shipped.judge(dev + again, tmp_path / "shipped.csv")
    assert (found["answers"], found["right"]) == ("60", "40")
    assert float(found["P(right) at least 0.9"]) <= 60 and float(found["of them right"]) <= 40


def test_what_was_asked_for_in_training_is_seen():
    (pairs,) = shipped.pairs_of([Question("What money do they use in Kenya?", ["Kenyan shilling"])])
    assert ("Kenya", "kenyan shilling") in pairs


def test_an_answer_that_training_asked_for_of_the_same_article_is_seen(tmp_path, monkeypatch):
    def line(title, answer):
        return f'{{"question": "who?", "answer": ["{answer}", "someone"], "title": "{title}"}}\n'

    written = [("", TrainingQuestion("of which city?", ["the  Rhine"], "Cologne"))]
    written.append(("factbook ", TrainingQuestion("where?", ["Meuse"], "Liege")))  # of the other corpus
    monkeypatch.setattr(shipped, "written_questions", lambda: iter(written))
    (tmp_path / "train.jsonl").write_text(line("Bonn", "Beethoven") * 2)
    asked = [("Cologne", "Rhine!"), ("Bonn", "Rhine"), ("Bonn", "BEETHOVEN"), ("Liege", "Meuse")]
    lines = [line(*each).replace("someone", "anyone") for each in asked]
    (tmp_path / "dev.jsonl").write_text("".join(lines))
    assert [*shipped.seen_in_leads(tmp_path)] == ["1", "0", "1", "0"]


def test_a_question_of_both_kinds_is_in_no_fit_that_judges_it():
    ps = [(i + 0.5) / 60 for i in range(60)]
    right = [str(int(i % 3 > 0)) for i in range(60)]
    again = [row | {"id": f"w{row['id']}", "kind": "factbook"} for row in rows_of("leads", "dev", ps, right)]
    confidences, found = shipped.held_out_confidences(rows_of("leads", "dev", ps, right) + again)
    assert confidences[:60] == confidences[60:] and found[:60] == found[60:]
    assert len({round(c, 12) for c in confidences}) == 60
