"""The training loop: batches, checkpoints, resumption after a kill, a loss that is no number."""

import json
import os
import shutil
import signal
import sys
import time

import numpy as np
import pytest
import ranks
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from realm_min import RealmConfig, RealmEmbedder
from realm_min.jobs import loop
from realm_min.jobs.run_checkpoints import (
    CHECKPOINT_FILE,
    DAMAGED_FILE,
    PREVIOUS_FILE,
    checkpoint_steps,
)
from realm_min.jobs.settings import RUN_FILE, TrainingRun, differences, silent, unheard
from realm_min.learn.optimizer import AdamW
from realm_min.learn.steps import Sum

TINY = dict(
    hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, retriever_proj_size=4,
    vocab_size=50, max_position_embeddings=16,
)  # fmt: skip


def job(
    folder, steps=12, resume=False, hurt_at=None, interrupt_at=None, grow_at=None, save_every=5, report=silent,
    heard=None, weights=3,
):  # fmt: skip
    """Pull random texts' embeddings to 0, with dropout; returns the trained embedder."""
    embedder = RealmEmbedder(RealmConfig(**TINY), seed=weights)

    def step(number):
        if number == interrupt_at:
            raise KeyboardInterrupt
        generator = torch.Generator().manual_seed(loop.step_seed(7, number))
        ids = torch.randint(1, 50, (4, 6), generator=generator)
        x = embedder(input_ids=ids, return_dict=True).projected_score
        embedder.backward(projected_score=2 * x / x.numel())
        if number == grow_at:
            embedder.p["cls.dense.bias"][1] = float("inf")
        return {"loss": Sum(float("nan") if number == hurt_at else float((x * x).mean()), 1)}

    def evaluate():
        return {"norm": float(embedder.p["cls.dense.weight"].norm())}

    optimizer = AdamW(1e-2, steps, warmup_steps=2)
    remark = unheard if heard is None else heard.append
    run = TrainingRun(folder, resume, save_every, evaluate, evaluate_every=4, report=report, remark=remark)
    loop.train(run, loop.Job("Training", {"embedder": embedder}, optimizer, step, settings={"steps": steps}, seed=7))
    return embedder


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_the_loss_falls_and_the_log_has_a_row_a_step(tmp_path):
    seen = []
    job(tmp_path / "run", report=lambda stage, done, total, note="": seen.append((done, total)))
    log = loop.read_log(tmp_path / "run" / loop.LOG_FILE)
    assert log["step"] == list(range(1, 13))
    assert log["loss"][-1] < log["loss"][0]
    assert log["learning_rate"][:3] == pytest.approx([5e-3, 1e-2, 1e-2])
    assert loop.read_log(tmp_path / "run" / loop.METRICS_FILE)["step"] == [4, 8, 12]
    assert seen == [(done, 12) for done in range(13)]
    assert checkpoint_steps(tmp_path / "run") == [12, 10]


def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path):
    whole = job(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt, match="7 of 12 steps are done"):
        job(tmp_path / "cut", interrupt_at=7)
    assert checkpoint_steps(tmp_path / "cut") == [7, 5]
    assert same_weights(job(tmp_path / "cut", resume=True), whole)
    for name in (loop.LOG_FILE, loop.METRICS_FILE):
        cut, complete = (loop.read_log(tmp_path / folder / name) for folder in ("cut", "whole"))
        cut.pop("seconds", None), complete.pop("seconds", None)
        assert cut == complete


def work_until_killed(folder):
    """Never takes its last step, so that the kill comes before."""
    job(folder, 30, save_every=4, report=lambda stage, done, *_: time.sleep(0.02 if done < 29 else 10_000))


@pytest.mark.parametrize("rows", [1, 9, 20])
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, rows):
    whole = job(tmp_path / "whole", steps=30)
    running, log = ranks.start(work_until_killed, 1, tmp_path / "cut"), tmp_path / "cut" / loop.LOG_FILE
    ranks.until(running, lambda: log.exists() and log.read_text().count("\n") > rows, f"{rows} steps are done")
    time.sleep(0.01 * (rows % 4))  # anywhere in a step
    running[0].process.kill()
    assert ranks.finish(running) == [ranks.Outcome()] and running[0].process.exitcode == -signal.SIGKILL
    assert same_weights(job(tmp_path / "cut", steps=30, save_every=4, resume=True), whole)
    assert loop.read_log(tmp_path / "cut" / loop.LOG_FILE)["step"] == list(range(1, 31))


def test_nan_stops_the_run_and_names_step_seed_and_checkpoint(tmp_path):
    with pytest.raises(loop.DivergedError) as error:
        job(tmp_path / "run", hurt_at=8)
    for part in ("step 9", str(loop.step_seed(7, 8)), CHECKPOINT_FILE, "(step 5)", "nan"):
        assert part in str(error.value)
    assert checkpoint_steps(tmp_path / "run") == [5]
    with pytest.raises(loop.DivergedError, match="none: it came before the first"):
        job(tmp_path / "other", hurt_at=2)


@pytest.mark.parametrize("interrupt_at", [None, 12])
def test_weights_that_are_no_numbers_are_not_kept(tmp_path, interrupt_at):
    """The loss of the step was one: what followed it was too large. An interrupt does not keep them either."""
    with pytest.raises(
        loop.DivergedError, match=r"step 12, .*: embedder.cls.dense.bias holds inf after it.*\(step 10\)"
    ):
        job(tmp_path / "run", steps=12 if interrupt_at is None else 20, grow_at=11, interrupt_at=interrupt_at)
    assert checkpoint_steps(tmp_path / "run") == [10, 5]


def test_a_run_is_neither_overwritten_nor_resumed_as_another(tmp_path):
    job(tmp_path / "run")
    with pytest.raises(FileExistsError, match="--resume"):
        job(tmp_path / "run")
    with pytest.raises(ValueError, match="steps=12, not 13"):
        job(tmp_path / "run", steps=13, resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_a_checkpoint_without_its_settings_is_nobodys(tmp_path, resume):
    """It was taken up by a run of any settings, which then said that it was its own."""
    job(tmp_path / "run")
    (tmp_path / "run" / RUN_FILE).unlink()
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(FileExistsError, match="run holds checkpoint-previous.safetensors and no run.json: name a fold"):
        job(tmp_path / "run", steps=13, resume=resume)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_a_run_goes_on_with_the_weights_it_began_with(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        job(tmp_path / "run", interrupt_at=7)
    begun = json.loads((tmp_path / "run" / RUN_FILE).read_text())
    assert begun.keys() == {"steps", "weights"} and len(begun["weights"]) == 8
    with pytest.raises(
        ValueError, match=f"with weights='{begun['weights']}', not '[0-9a-f]{{8}}': .* same model to st"
    ):
        job(tmp_path / "run", resume=True, weights=4)
    (tmp_path / "run" / RUN_FILE).write_text(json.dumps({"steps": 12}))  # as earlier versions wrote it
    assert same_weights(job(tmp_path / "run", resume=True), job(tmp_path / "whole"))


def test_where_settings_differ_the_key_is_named():
    before = {"config": {"layers": 1, "sizes": {"hidden": 8}}, "steps": 3, "old": 1}
    after = {"config": {"layers": 1, "sizes": {"hidden": 16}}, "steps": 4}
    assert list(differences(before, before)) == []
    assert list(differences(before, after)) == [("config.sizes.hidden", 8, 16), ("old", 1, None), ("steps", 3, 4)]


def test_a_run_that_is_refused_leaves_its_folder_empty(tmp_path, monkeypatch):
    """Before its first step is done; a run that had begun before stays, whatever it is refused for."""
    run = tmp_path / "run"
    with pytest.raises(loop.DivergedError, match="none: it came before the first"):
        job(run, hurt_at=0)
    assert list(run.iterdir()) == []

    def full(folder, size):
        raise OSError(f"{size} bytes are to be written")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="bytes are to be written"):
        patch.setattr(loop, "check_room", full)
        job(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with pytest.raises(KeyboardInterrupt):
        job(run, interrupt_at=0)
    with pytest.raises(loop.DivergedError):
        job(run, hurt_at=0, resume=True)
    assert (run / RUN_FILE).is_file()
    with pytest.raises(loop.DivergedError):
        job(tmp_path / "later", hurt_at=1)
    assert (tmp_path / "later" / RUN_FILE).is_file() and (tmp_path / "later" / loop.LOG_FILE).stat().st_size


def test_a_folder_with_what_a_kill_left_is_empty(tmp_path):
    (tmp_path / f".run.json.{'a' * 16}.tmp").write_text("{")
    assert same_weights(job(tmp_path, resume=True), job(tmp_path / "whole"))


def flip(path, place=-9):
    """Flip a bit of the tensors' bytes, which stand at the end."""
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was stopped at step 11, with checkpoints of steps 11 and 10; and the weights it should end with."""
    folder = tmp_path_factory.mktemp("stopped")
    whole = job(folder / "whole")
    with pytest.raises(KeyboardInterrupt, match="11 of 12 steps"):
        job(folder / "run", interrupt_at=11)
    assert checkpoint_steps(folder / "run") == [11, 10]
    return folder / "run", whole


@pytest.mark.parametrize("damage", ["flipped", "cut", "step", "gone"])
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(stopped, tmp_path, damage):
    run, heard = shutil.copytree(stopped[0], tmp_path / "run"), []
    path = run / CHECKPOINT_FILE
    if damage == "flipped":
        flip(path)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "step":  # the metadata is under the checksum too
        path.write_bytes(path.read_bytes().replace(b'"done": "11"', b'"done": "12"'))
    else:
        path.unlink()
    assert same_weights(job(run, resume=True, heard=heard), stopped[1])
    assert loop.read_log(run / loop.LOG_FILE)["step"] == list(range(1, 13))
    assert checkpoint_steps(run) == [12, 10]
    if damage == "gone":  # as a kill between two renamings leaves it
        assert heard == []
    else:
        [sentence] = heard
        assert sentence.startswith(f"{path} cannot be read (")
        assert sentence.endswith("; the run goes on from the checkpoint before it, step 10")
        assert (run / DAMAGED_FILE).is_file()


def test_a_run_whose_checkpoints_are_all_damaged_is_refused(stopped, tmp_path):
    run = shutil.copytree(stopped[0], tmp_path / "run")
    flip(run / CHECKPOINT_FILE), flip(run / PREVIOUS_FILE)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(ValueError, match="checkpoint.safetensors cannot be read .* so is the one before it .*previous"):
        job(run, resume=True)
    (run / PREVIOUS_FILE).unlink(), before.pop(PREVIOUS_FILE)
    with pytest.raises(ValueError, match="checkpoint.safetensors cannot be read .* there is no checkpoint before it"):
        job(run, resume=True)
    after = {path.name: path.read_bytes() for path in run.iterdir() if not path.name.endswith((".lock", ".owner"))}
    assert after == before


def test_a_checkpoint_of_an_earlier_version_is_read(stopped, tmp_path):
    """They had no checksum, and none before them."""
    run = shutil.copytree(stopped[0], tmp_path / "run")
    (run / PREVIOUS_FILE).unlink()
    tensors = load_file(run / CHECKPOINT_FILE)
    save_file(tensors, run / CHECKPOINT_FILE, metadata={"done": "11"})
    assert same_weights(job(run, resume=True), stopped[1])
    save_file(tensors, run / CHECKPOINT_FILE)
    (run / PREVIOUS_FILE).unlink(missing_ok=True)
    with pytest.raises(ValueError, match="does not say how many steps are done"):
        job(run, resume=True)


@pytest.mark.parametrize("content", [b"nul", b"[1]", b"[" * 3_000, b'{"steps": ' + b"[" * 3_000, b"\xff", b""])
def test_a_damaged_run_file_is_named(stopped, tmp_path, content):
    run = shutil.copytree(stopped[0], tmp_path / "run")
    (run / RUN_FILE).write_bytes(content)
    with pytest.raises(ValueError, match="run.json .*: restore it, or remove"):
        job(run, resume=True)


@pytest.mark.parametrize("content", [b"step,loss\nx,1\n", b"\xff\n", b"loss\n1\n"])
def test_a_damaged_log_is_named(stopped, tmp_path, content):
    run = shutil.copytree(stopped[0], tmp_path / "run")
    (run / loop.LOG_FILE).write_bytes(content)
    with pytest.raises(ValueError, match=r"log.csv is damaged \(.*: move it away"):
        job(run, resume=True)
    (run / loop.LOG_FILE).write_bytes(b"step,lost\n1,2\n")
    with pytest.raises(ValueError, match="log.csv has other columns than this run's: move it away"):
        job(run, resume=True)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other pipes")
def test_a_log_that_is_a_pipe_is_not_waited_for(stopped, tmp_path):
    run = shutil.copytree(stopped[0], tmp_path / "run")
    (run / loop.LOG_FILE).unlink()
    os.mkfifo(run / loop.LOG_FILE)
    with pytest.raises(FileExistsError, match="log.csv is no file: move it away, and the run goes on with a new one"):
        job(run, resume=True)


def test_half_a_row_in_the_log_is_dropped(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        job(tmp_path / "run", interrupt_at=7)
    with open(tmp_path / "run" / loop.LOG_FILE, "a") as file:
        file.write("8,0.1")
    job(tmp_path / "run", resume=True)
    assert loop.read_log(tmp_path / "run" / loop.LOG_FILE)["step"] == list(range(1, 13))


def test_a_frozen_tensor_stays_under_all_of_its_names(tmp_path):
    from realm_min import RealmKnowledgeAugEncoder

    encoder = RealmKnowledgeAugEncoder(RealmConfig(**TINY, num_candidates=1))
    before = {key: tensor.clone() for key, tensor in encoder.state_dict().items()}

    def step(number):
        ids = torch.arange(1, 7)[None]
        logits = encoder(input_ids=ids, return_dict=True).logits
        encoder.backward(logits=torch.ones_like(logits))
        return {"loss": Sum(1.0, 1)}

    optimizer = AdamW(1e-2, 2)
    job = loop.Job("Training", {"encoder": encoder}, optimizer, step, {}, 0, frozen=loop.freeze_word_embeddings)
    loop.train(TrainingRun(tmp_path), job)
    for key in ("realm.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"):
        assert torch.equal(encoder.state_dict()[key], before[key])
    changed = "realm.encoder.layer.0.intermediate.dense.weight"
    assert not torch.equal(encoder.state_dict()[changed], before[changed])
    assert not any("word_embeddings" in key or "decoder.weight" in key for key in optimizer.mean)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 2**32))
def test_every_epoch_sees_every_example_once(count, size, seed):
    steps = -(-3 * count // size)
    drawn = np.concatenate([loop.batch(number, size, count, seed) for number in range(steps)])[: 3 * count]
    for epoch in drawn.reshape(3, count):
        assert sorted(epoch) == list(range(count))


def test_no_example_is_an_error():
    with pytest.raises(ValueError, match="no example"):
        loop.batch(0, 4, 0, 0)


def test_a_run_keeps_its_folder_as_a_path(tmp_path):
    assert TrainingRun(str(tmp_path)) == TrainingRun(tmp_path)
