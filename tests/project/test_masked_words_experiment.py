"""`make realm`: what is masked, which runs follow from which, and the numbers that are reported of them."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import realm
import realm_report
import realm_swap
from eight_capitals import CONFIG

import realm_min
from realm_min.jobs import refresh
from realm_min.jobs.embedding import embed_blocks
from realm_min.jobs.settings import Ict, Pretrain
from realm_min.text.corpus import Block

BLOCKS = [
    Block("Norway", "The capital of Norway is Oslo, near Drammen. It is cold."),
    Block("Oslo", "The city of Oslo lies in the kingdom of Norway. In Oslo it rains."),
    Block("Peru", "The capital of Peru is Lima. The Inca Empire ruled Peru until 1533."),
    Block("Inca Empire", "In 1533 the empire fell to Spain, far from Lima. It was large."),
]


def test_only_what_stands_in_another_lead_is_masked():
    found = {
        (s.block, text): [text[slice(*span)] for span in s.spans]
        for s in realm.find_sentences(BLOCKS)
        for text in [s.text]
    }
    assert found == {
        (0, "The capital of Norway is Oslo, near Drammen."): ["Norway", "Oslo"],
        (1, "The city of Oslo lies in the kingdom of Norway."): ["Oslo", "Norway"],
        (1, "In Oslo it rains."): ["Oslo"],
        (2, "The capital of Peru is Lima."): ["Lima"],
        (2, "The Inca Empire ruled Peru until 1533."): ["Inca Empire", "1533"],
        (3, "In 1533 the empire fell to Spain, far from Lima."): ["1533", "Lima"],
    }


def given(folder: Path) -> realm.Given:
    return realm.Given(folder, None, folder / "work", folder / "runs", folder / "settings.json", "cpu", 1e12)


def test_what_is_recorded_is_not_run_again(tmp_path):
    chosen = given(tmp_path)
    chosen.out.mkdir()
    assert realm.plan(chosen, ["realm-tuned-1", "ict-again-1"]) == [
        "ict-1", "mlm", "copy", "ict-0", "ground", "realm-1", "realm-tuned-1", "ict-again-1",
    ]  # fmt: skip
    for task in ("realm-1", "ict-again-1"):
        (chosen.out / f"{task}.csv").touch()
    assert realm.plan(chosen, ["realm-1", "ict-again-1"]) == []
    for task in ("ict-1", "ground"):
        (chosen.work / task).mkdir(parents=True)
        (chosen.work / task / "done").touch()
    assert realm.plan(chosen, ["ict-tuned-1", "realm-still-1"]) == ["ict-tuned-1", "realm-still-1"]
    assert realm.plan(chosen, ["realm-tuned-1"]) == ["realm-1", "realm-tuned-1"]  # its models are not here
    assert realm.plan(chosen, ["retriever-tuned-1", "realm-stale-tuned-1", "ict-tuned-1"]) == [
        "realm-1", "retriever-tuned-1", "realm-stale-1", "realm-stale-tuned-1", "ict-tuned-1",
    ]  # fmt: skip
    assert realm.leads_to("ict-0", "realm-tuned-1") and not realm.leads_to("ict-0", "ict-again-1")


class BuilderHere:
    """Builds an index at once, in this process."""

    def __init__(self, folder, device):
        self.folder = folder

    def request(self, step):
        embedder = realm_min.RealmEmbedder(realm_min.RealmConfig.from_pretrained(self.folder / "embedder")).eval()
        path = self.folder / f"snapshot-{step}.safetensors"
        embedder.load_state_dict(refresh.read_safetensors(path))
        tokenizer = realm_min.RealmTokenizerFast.from_pretrained(self.folder / "embedder")
        refresh.write_npy(self.folder / f"index-{step}.npy", embed_blocks(embedder, tokenizer, BLOCKS).numpy())

    def check(self):
        pass

    def close(self, failed):
        pass


def test_arms_of_a_tiny_model(tmp_path, monkeypatch):
    """Both arms begin alike and mask the same; a still retriever finds what it found before, bit for bit."""
    config = realm_min.RealmConfig(**CONFIG | dict(vocab_size=30522, hidden_size=8, intermediate_size=8))
    chosen = given(tmp_path)
    for stage, cls in (("ict-0", realm_min.RealmEmbedder), ("ground", realm_min.RealmKnowledgeAugEncoder)):
        part = "embedder" if stage == "ict-0" else "knowledge_encoder"
        cls(config, seed=1).save_pretrained(chosen.work / stage / part)
    few = dict(
        steps=2, batch_size=2, max_passage=24, max_block=40, num_candidates=3, refresh_every=1, learning_rate=0.1
    )
    settings = {"evaluate_every": 1, "held_out": 2, "soften": 0.5, "realm": few}
    settings["ict"] = dict(max_evidence=40)
    settings["ict-again"] = dict(batch_size=2, group=1, learning_rate=0.1)
    chosen.settings.write_text(json.dumps(settings))
    for split, question in (("train", "Where is Oslo?"), ("dev", "Who ruled Peru?")):
        line = {"question": question, "answer": ["Norway" if split == "train" else "Inca Empire"]}
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(line) + "\n")
    monkeypatch.setattr(realm, "lead_blocks", lambda path: BLOCKS)
    monkeypatch.setattr(realm, "HELD_OUT", 2)
    monkeypatch.setattr(realm, "KS", (1, 2))
    monkeypatch.setattr(refresh, "BuilderProcess", BuilderHere)
    chosen.out.mkdir()
    monkeypatch.setattr(realm, "SAVE_EVERY", 1)
    stopping = iter([0.0] * 3 + [2e12] * 99)  # before the third update is reported
    for task in ("realm-still-0", "ict-same-0"):
        realm.perform(chosen, task)
    with monkeypatch.context() as patch, pytest.raises(realm.OutOfTimeError):
        patch.setattr(realm, "time", SimpleNamespace(time=lambda: next(stopping)))
        realm.perform(chosen, "realm-0")
    assert not (chosen.out / "realm-0.csv").exists() and not realm.is_done(chosen, "realm-0")
    realm.perform(chosen, "realm-0")
    curves = realm_report.read_curves(chosen.out)
    still, learnt, same = (curves[arm][0] for arm in ("realm-still", "realm", "ict-same"))
    # The still retriever's three indexes are one, and what the others begin with.
    assert len(list((chosen.work / "embedded").iterdir())) == 1 + 2 + 2
    assert still["step"] == learnt["step"] == same["step"] == [0, 1, 2]
    assert still["all R@1"][0] == still["all R@1"][2] and len(set(still["null probability"])) == 1
    assert learnt["retrieval utility"][0] == still["retrieval utility"][0] != learnt["retrieval utility"][2]
    (chosen.work / "ict-0" / "done").touch()
    rows = list(realm_swap.rows(realm.Lab(chosen), 0))
    swapped = {(row["encoder"], row["retriever"]): float(row["retrieval utility"]) for row in rows}
    assert swapped["realm", "realm"] == pytest.approx(learnt["retrieval utility"][2], rel=1e-4)
    assert swapped["realm-still", "ict"] == pytest.approx(still["retrieval utility"][2], rel=1e-4)
    assert len(set(swapped.values())) == 4
    for task in ("realm-stale-0", "realm-tokens-0"):
        realm.perform(chosen, task)
    curves = realm_report.read_curves(chosen.out)
    stale, tokens = (curves[arm][0]["retrieval utility"] for arm in ("realm-stale", "realm-tokens"))
    assert stale[:2] == learnt["retrieval utility"][:2] and tokens[0] == stale[0] and tokens[1] != stale[1]
    runs = [json.loads((chosen.work / "runs" / f"realm{name}-0" / "run.json").read_text()) for name in ("", "-stale")]
    assert [run["refresh_every"] for run in runs] == [1, 2] and runs[0] | {"refresh_every": 2} == runs[1]
    ranks = [int(n) for n in (chosen.out / "realm-0.ranks").read_text().split()]
    assert 50 * sum(rank == 1 for rank in ranks) == learnt["all R@1"][2] and len(ranks) == 2


def test_lengths_of_relevance_change_and_no_order():
    model = realm_min.RealmEmbedder(realm_min.RealmConfig(**CONFIG), seed=1).eval()
    ids = realm.torch.tensor([[5, 6, 7], [8, 9, 10]])
    before = model(ids).projected_score
    realm.soften_(model, 0.25)
    after = model(ids).projected_score
    realm.torch.testing.assert_close(after @ after.T, before @ before.T * 0.25)


def test_the_report(tmp_path):
    """Means over seeds, Student's interval, differences seed by seed, and redrawn questions."""
    at_last = {"realm": [50.0, 54.0, 55.0], "ict-again": [46.0, 49.0, 52.0], "realm-still": [40.0, 41.0, 42.0]}
    rng = np.random.default_rng(0)
    for arm, values in at_last.items():
        for seed, value in enumerate(values):
            text = "step,all R@5\n" + ("0,30\n" if arm == "realm-still" else "") + f"10,35\n20,{value}\n"
            (tmp_path / f"{arm}-{seed}.csv").write_text(text)
            ranks = np.where(rng.random(200) < value / 100, 3, 0)
            (tmp_path / f"{arm}-{seed}.ranks").write_text(" ".join(map(str, ranks)))
    realm_report.report(tmp_path)
    rows = {
        (row["arm"], row["against"]): row
        for row in realm_report.csv.DictReader((tmp_path / "summary.csv").read_text().splitlines())
    }
    mean, half = 53.0, 4.303 * np.std([50, 54, 55], ddof=1) / 3**0.5
    assert [float(rows["realm", ""][key]) for key in ("mean", "low", "high")] == pytest.approx(
        [mean, mean - half, mean + half], abs=1e-3
    )
    half = 4.303 * np.std([4, 5, 3], ddof=1) / 3**0.5
    paired = rows["realm", "ict-again"]
    assert [float(paired[key]) for key in ("mean", "low", "high")] == pytest.approx([4, 4 - half, 4 + half], abs=1e-3)
    assert float(paired["bootstrap low"]) < float(paired["bootstrap high"]) and paired["seeds"] == "3"
    assert float(rows["ict", ""]["mean"]) == 30 and rows["ict", ""]["low"] == "30.000"
    assert (tmp_path / "recall.png").stat().st_size > 1000
    assert not (tmp_path / "table-2.csv").exists()  # nothing was fine-tuned


def test_retrievers_before_one_encoder_are_compared_seed_by_seed(tmp_path):
    values = {"ict": (5.0, 5.2), "realm": (4.5, 4.9, 9)}
    lines = ["seed,encoder,retriever,held-out loss", "0,realm-still,ict,1"]
    lines += [f"{seed},realm,{name},{loss}" for name in values for seed, loss in enumerate(values[name])]
    (tmp_path / "swap.csv").write_text("\n".join(lines) + "\n")
    found = {(row["arm"], row["against"]): row for row in realm_report.swapped(tmp_path / "swap.csv")}
    assert found["ict before the encoder of realm", ""]["mean"] == "5.100" and len(found) == 4
    difference = found["realm before the encoder of realm", "ict"]
    assert (difference["seeds"], difference["mean"], difference["low"]) == (2, "-0.400", f"{-0.4 - 12.706 * 0.1:.3f}")


def test_settings_are_those_of_the_jobs():
    """Every key of the recorded settings is a setting, and none is out of range."""
    settings = json.loads((Path(realm.__file__).parent / "realm-settings.json").read_text())
    Ict(**settings["ict"]).check(), Pretrain(**settings["realm"]).check(), Pretrain(**settings["ground"]).check()
    assert realm.needs("ground") == ["copy", "ict-0"] and len(settings["seeds"]) >= 3


def test_runs_that_were_stopped_are_compared_where_all_have_been(tmp_path):
    lines = ["arm,seed,step,loss,retrieval_utility,null_probability"]
    for arm, last, level in (("realm", 25, 1.0), ("realm-permuted", 30, 0.25)):
        for seed in (0, 1):
            lines += [f"{arm},{seed},{step},5,{level * (step > 5) + seed},0.1" for step in range(1, last + 1)]
    (tmp_path / realm_report.UNFINISHED).write_text("\n".join(lines) + "\n")
    rows = {
        (row["arm"], row["measure"], row["against"]): row
        for row in realm_report.unfinished(tmp_path / "unfinished.csv")
    }
    measure = "retrieval utility, updates 6 to 25"
    assert float(rows["realm", measure, ""]["mean"]) == 1.5
    found = rows["realm", measure, "realm-permuted"]
    assert (found["seeds"], found["mean"], found["low"], found["high"]) == (2, "0.750", "0.750", "0.750")


def test_the_papers_table_2(tmp_path):
    """Exact match of the fine-tuned, R@5 of what they were fine-tuned from; what is not done is left out."""
    assert set(realm_report.TABLE_2) <= {*realm_report.ROWS_2, *realm_report.VARIANTS, "realm"}
    for arm, text in {
        "ict": "step,all R@5\n20,80\n", "realm": "step,all R@5\n10,70\n20,84\n", "realm-spans": "step,all R@5\n20,79\n",
        "retriever-tuned": "step,official_exact_match\n9,0.25\n", "encoder-tuned": "step,official_exact_match\n9,0.5\n",
    }.items():  # fmt: skip
        for seed in (0, 1):
            (tmp_path / f"{arm}-{seed}.csv").write_text(text)
    realm_report.report(tmp_path)
    rows = {row.pop("run"): row for row in realm_report.csv.DictReader(open(tmp_path / "table-2.csv"))}
    found = {run: (row["EM mean"], row["R@5 before mean"]) for run, row in rows.items()}
    assert found == {
        "realm-tuned": ("", "84.000"), "retriever-tuned": ("25.000", "84.000"), "encoder-tuned": ("50.000", "80.000"),
        "ict-tuned": ("", "80.000"), "realm-spans-tuned": ("", "79.000"),
    }  # fmt: skip
    assert rows["realm-tuned"]["R@5 before seeds"] == "2" and rows["encoder-tuned"]["EM low"] == "50.000"
