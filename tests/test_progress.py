"""Nothing is silent for long: what begins is named, and long loops say how far they are."""

import logging

import numpy as np
import pytest
import toy_family
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sintrovae_jax import config, main, models, progress


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, "sintrovae_jax.progress")
    return lambda: [record.getMessage() for record in caplog.records]


def test_a_loop_is_quiet_until_it_takes_long(lines, monkeypatch):
    assert list(progress.counted("abc", "letters")) == ["a", "b", "c"]
    assert lines() == []
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    assert list(progress.counted(range(3), "pictures", each=10)) == [0, 1, 2]
    assert list(progress.counted(iter("ab"), "letters")) == ["a", "b"]
    assert list(progress.counted(iter("ab"), "letters", 17, 10)) == ["a", "b"]
    assert lines() == ["pictures: 10 of 30", "pictures: 20 of 30", "letters: 1", "letters: 10 of 17"]


def test_a_line_comes_every_twenty_seconds_at_most(lines, monkeypatch):
    clock = iter(np.arange(0, 1000, 7.0))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    assert len(list(progress.counted(range(40), "steps"))) == 40
    assert 40 * 7 / 30 <= len(lines()) <= 40 * 7 / 20


def test_a_run_says_what_it_does_and_tensorboard_keeps_both_kinds_of_metrics_apart(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(models.FAMILIES, "toy", toy_family.FAMILY)
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    settings = config.override(
        config.read_recipe("digits"),
        {
            **{"model.family": "toy", "data.image_size": "8", "train.steps": "75", "optimizer.milestones": "()"},
            **{"objective.num_vae": "25", "log.every": "75", "log.figures_every": "0", "checkpoint.every": "75"},
            **{"eval.evaluators": "latents", "eval.num_samples": "20", "eval.batch_size": "16"},
        },
    )
    main.run("train", settings, tmp_path)
    said = [line.split(" ", 1)[-1] for line in capsys.readouterr().err.splitlines()]
    expected = [
        *("creating the networks", "compiling the step of the VAE phase", "step 25/75", "compiling the step"),
        *("step 50/75", "evaluating: latents", "examples: 16 of 20", "drawing figures"),
    ]
    places = [said.index(line) for line in expected]
    assert places == sorted(places)

    events = EventAccumulator(str(tmp_path)).Reload()
    names = set(events.Tags()["tensors"])
    assert {"kl_gap", "eval/kl_gap", "kl_real", "eval/kl_real", "loss_encoder", "eval/rec_error"} <= names
    assert not {"eval/loss_encoder", "rec_error"} & names
