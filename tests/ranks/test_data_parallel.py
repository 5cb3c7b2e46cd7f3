"""Training on several ranks: what they learn is what one learns, and a run outlives the ranks that it began with."""

import os
import shutil
import signal
import time

import numpy as np
import pytest
import ranks
import torch
from eight_capitals import BLOCKS, CONFIG, QUESTIONS, BuilderHere, open_qa, tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from realm_min import RealmConfig, RealmEmbedder, RealmKnowledgeAugEncoder, RealmReader
from realm_min.jobs import loop, refresh, runs
from realm_min.jobs.evaluation import Question
from realm_min.jobs.run_checkpoints import PREVIOUS_FILE, checkpoint_steps
from realm_min.jobs.settings import Finetune, Ict, Mlm, Pretrain, TrainingRun
from realm_min.model import bert
from realm_min.model.parameters import is_constant
from realm_min.ranks import exchange
from realm_min.ranks.distributed import World, world

SIZE = dict(num_hidden_layers=2, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
STEPS = {"float64": 6, "float32": 3}  # the index of step 2 is searched
SIZES = {"float64": (3,), "float32": (2,)}  # of the worlds that are compared with one rank
COMMON = dict(steps=STEPS["float64"], learning_rate=1e-4, freeze_word_embeddings=False, seed=3)


def train_ict(folder, dtype, **values):
    embedder = RealmEmbedder(RealmConfig(**CONFIG | SIZE), seed=2).to(dtype)
    chosen = Ict(batch_size=8, **COMMON)._replace(**values)
    runs.ict(TrainingRun(folder), BLOCKS, embedder, tokenizer(), chosen)
    return {"embedder": embedder}


def train_mlm(folder, dtype, given=None, **values):
    encoder = RealmKnowledgeAugEncoder(RealmConfig(**CONFIG | SIZE), seed=2).to(dtype)
    chosen = Mlm(batch_size=8, **COMMON)._replace(**values)
    runs.mlm(TrainingRun(folder, **(given or {})), BLOCKS, encoder, tokenizer(), chosen)
    return {"encoder": encoder}


def train_pretraining(folder, dtype, refresh_ranks=0, **values):
    """Indexes of steps 0 and 2 are searched; ranks retrieve blocks that others retrieve too."""
    config = RealmConfig(**CONFIG | SIZE)
    embedder, encoder = RealmEmbedder(config, seed=2).to(dtype), RealmKnowledgeAugEncoder(config, seed=3).to(dtype)
    chosen = Pretrain(
        batch_size=4, num_candidates=3, refresh_every=2, max_passage=24, max_block=40, masking="tokens", **COMMON
    )._replace(**values)
    run = TrainingRun(folder, refresh_ranks=refresh_ranks)
    runs.pretrain(run, BLOCKS, embedder, encoder, tokenizer(), chosen)
    return {"embedder": embedder, "encoder": encoder}


def train_finetuning(folder, dtype, refresh_ranks=0, **values):
    model = open_qa(**SIZE).to(dtype)
    chosen = Finetune(batch_size=4, refresh_every=2, **COMMON | dict(learning_rate=5e-5))._replace(**values)
    dev = [Question(question.question, question.answers) for question in QUESTIONS[:5]]
    run = TrainingRun(folder, evaluate_every=4, refresh_ranks=refresh_ranks)
    runs.finetune(run, model, QUESTIONS, chosen, blocks=BLOCKS, dev=dev)
    return {"model": model}


JOBS = {"ict": train_ict, "mlm": train_mlm, "pretrain": train_pretraining, "finetune": train_finetuning}
PRECISIONS = {"float64": 1e-12, "float32": 1e-6}  # and how far several ranks may be from one
# No loss depends on them, since a softmax does not: their gradient is nothing but rounding, which Adam makes larger.
SHIFTS = ("self.key.bias", "qa_outputs.layer_normalization.bias", "qa_outputs.dense_output.bias")
SHIFT_TOLERANCE = 1e-5


def learn(job, folder, precision, given=None, **values):
    """All weights after a run of `job`, as arrays."""
    values |= {"given": given} if given else {}
    models = JOBS[job](folder, getattr(torch, precision), **values)
    return {
        f"{name}.{key}": value.numpy().copy()
        for name, model in models.items()
        for key, value in model.state_dict().items()
    }


def learn_all(folder):
    """Every job in the precisions that this number of ranks is compared in; two have a process that builds indexes."""
    if world().size != 2:
        refresh.BuilderProcess = BuilderHere
    return {
        (job, precision): learn(job, folder / f"{job}-{precision}", precision, steps=STEPS[precision])
        for job in JOBS
        for precision, sizes in SIZES.items()
        if world().size in (1, *sizes)
    }


@pytest.fixture(autouse=True)
def builder_here(monkeypatch):
    """In this process; ranks begin anew."""
    monkeypatch.setattr(refresh, "BuilderProcess", BuilderHere)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """What each rank has after STEPS of every job, by the number of ranks."""
    folder = tmp_path_factory.mktemp("runs")
    return {size: ranks.run(learn_all, size, folder / str(size)) for size in (1, 2, 3)}


def largest_difference(a, b, only=lambda key: True):
    assert a.keys() == b.keys()
    return max(float(np.abs(a[key] - b[key]).max()) for key in a if only(key))


@pytest.mark.parametrize("precision", list(PRECISIONS))
@pytest.mark.parametrize("job", list(JOBS))
def test_any_number_of_ranks_learns_the_same(learnt, job, precision):
    """With dropout 0.1, and of three ranks one with a smaller share of a batch of 8."""
    alone = learnt[1][0][job, precision]
    for size in SIZES[precision]:
        first, *others = (found[job, precision] for found in learnt[size])
        assert largest_difference(first, alone, lambda key: not key.endswith(SHIFTS)) <= PRECISIONS[precision]
        assert largest_difference(first, alone) <= SHIFT_TOLERANCE
        assert all(largest_difference(other, first) == 0 for other in others)


@pytest.mark.parametrize("job", list(JOBS))
def test_the_steps_move_the_weights(tmp_path, learnt, job):
    begun = learn(job, tmp_path / "run", "float64", steps=1)
    assert largest_difference(begun, learnt[1][0][job, "float64"]) > 1e-4


@settings(deadline=None, derandomize=True, max_examples=50)
@given(
    st.sampled_from([RealmKnowledgeAugEncoder, RealmReader]), st.integers(1, 3), st.sampled_from([4, 8, 12]),
    st.booleans(), st.integers(10, 2000),
)  # fmt: skip
def test_buckets_hold_what_is_trained_once_and_last_first(cls, layers, hidden, frozen_words, size):
    model = cls(RealmConfig(**CONFIG | dict(num_hidden_layers=layers, hidden_size=hidden, vocab_size=30)))
    _, trained = loop._trainable({"model": model}, loop.frozen(frozen_words))
    trained = {key: grad for key, grad in trained.items() if not is_constant(grad)}
    found = exchange.buckets(model.own_grads, {grad.data_ptr() for grad in trained.values()}, size)
    assert found == sorted(found, reverse=True)
    for start, stop in found:
        assert 0 < stop - start <= size
        model.own_grads.flat[start:stop] += 1
    for key, grad in model.grads.items():
        assert bool((grad == float(f"model.{key}" in trained)).all()), key


def order_of_events(folder):
    """What a step of the Inverse Cloze Task does: layers that its two backward passes have gone through, and sums."""
    events = []
    exchange.BUCKET = 1000
    start_sum, layer_backward = World.start_sum, bert.layer_backward

    def noted_sum(self, tensor):
        events.append("sum")
        return start_sum(self, tensor)

    def noted_layer(dx, kept, grads):
        _, (*_, norm_name) = kept[0], kept[2]
        events.append(norm_name.split(".")[3])
        return layer_backward(dx, kept, grads)

    World.start_sum, bert.layer_backward = noted_sum, noted_layer
    train_ict(folder, torch.float32, steps=1)
    return events


def test_sums_start_while_the_last_backward_pass_goes_on(tmp_path):
    for events in ranks.run(order_of_events, 2, tmp_path / "run"):
        assert events[:3] == ["1", "0", "1"]
        assert set(events[3 : events.index("0", 3)]) == {"sum"}
        assert events.count("0") == 2 and events[-1] == "sum"


def with_refresh_ranks(folder):
    """Pre-training on two ranks beside one that builds, fine-tuning on one beside two."""
    return (
        learn("pretrain", folder / "pretrain", "float64", refresh_ranks=1),
        learn("finetune", folder / "finetune", "float64", refresh_ranks=2, refresh_blocks=True),
    )


def test_ranks_that_build_the_index_change_nothing(tmp_path, learnt):
    found = ranks.run(with_refresh_ranks, 3, tmp_path)
    for pretrained, _ in found[:2]:
        assert largest_difference(pretrained, learnt[1][0]["pretrain", "float64"]) <= 1e-12
    log = loop.read_log(tmp_path / "pretrain" / loop.LOG_FILE)
    assert log["staleness"] == [0, 1, 2, 3, 2, 3]
    alone = learn("finetune", tmp_path / "alone", "float64", refresh_blocks=True)
    for _, tuned in found:  # in the end the builders have the model too
        assert largest_difference(tuned, alone) <= 1e-6  # block embeddings are float32
    for name in (loop.LOG_FILE, loop.METRICS_FILE):
        expected, log = (loop.read_log(tmp_path / run / name) for run in ("alone", "finetune"))
        for column in expected.keys() - {"seconds", "seconds_waited"}:
            assert log[column] == pytest.approx(expected[column], rel=1e-5), column  # six digits are logged


def test_the_log_is_that_of_one_rank(tmp_path_factory, learnt):
    folder = tmp_path_factory.getbasetemp() / "runs0"
    for job in JOBS:
        for name in (loop.LOG_FILE, loop.METRICS_FILE):
            paths = [folder / str(size) / f"{job}-float64" / name for size in (1, *SIZES["float64"])]
            expected, *others = (loop.read_log(path) if path.is_file() else {} for path in paths)
            for log in others:
                assert log.keys() == expected.keys()
                for column in expected.keys() - {"seconds", "seconds_waited", "tokens_per_second"}:
                    assert log[column] == pytest.approx(expected[column], rel=1e-5), (job, column)


def train_slowly(folder):
    given = dict(save_every=2, report=lambda stage, done, total, note="": time.sleep(0.4))
    return learn("mlm", folder, "float64", given=given)


def test_a_run_outlives_its_ranks(tmp_path, learnt):
    """SIGKILL of one rank of three; meanwhile, no other job may write the folder."""
    folder = tmp_path / "run"
    running = ranks.start(train_slowly, 3, folder, patience=4.0)
    log = folder / loop.LOG_FILE
    ranks.until(running, lambda: log.exists() and log.read_text().count("\n") > 3, "three steps are done")
    with pytest.raises(FileExistsError, match="run is being written by process"):
        learn("mlm", folder, "float64", given={"resume": True})
    os.kill(running[1].process.pid, signal.SIGKILL)
    ranks.finish(running, seconds=60)
    ranks.blame(running, 1, " died")
    files = sorted(path.name for path in folder.iterdir() if path.name != PREVIOUS_FILE)  # there from step 4 on
    assert files == ["checkpoint.safetensors", "log.csv", "metrics.csv", "run.json"]
    assert not folder.with_name("run.lock").exists()
    assert checkpoint_steps(folder)[0] in (2, 4)

    shutil.copytree(folder, tmp_path / "other")
    (expected, *_) = learnt[3]
    expected = expected["mlm", "float64"]
    for found in ranks.run(learn, 3, "mlm", folder, "float64", {"resume": True}):
        assert largest_difference(found, expected) == 0
    with_one = learn("mlm", tmp_path / "other", "float64", {"resume": True})
    assert 0 < largest_difference(with_one, expected) <= 1e-12
    for run in ("run", "other"):
        assert loop.read_log(tmp_path / run / loop.LOG_FILE)["step"] == list(range(1, 1 + STEPS["float64"]))


def train_too_few(folder):
    train_mlm(folder, torch.float32, batch_size=2)


def test_a_batch_that_leaves_a_rank_without_work_is_refused(tmp_path):
    outcomes = ranks.finish(ranks.start(train_too_few, 3, tmp_path / "run"))
    assert outcomes[0].error == (
        "ValueError: batch_size=2 is less than the 3 ranks that train: give more, or start fewer"
    )
    assert [outcome.error for outcome in outcomes[1:]] == ["SystemExit: 2"] * 2
    assert list(tmp_path.iterdir()) == []
