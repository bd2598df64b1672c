"""Weights & Biases, offline: what is in the files that a run leaves there."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import conftest
import numpy as np
import pytest

from sintrovae_jax import config, extras
from sintrovae_jax.errors import UserError

BLOCK = 2**15  # bytes of the log in which wandb keeps records, as LevelDB does


def records(path: Path) -> Iterator:
    """The records of a .wandb file, by wandb's own protocol buffers. After 7 bytes of header a log of LevelDB's form:
    (checksum, length, kind) before each part; kinds 1 and 4 end a record.
    """
    from wandb.proto import wandb_internal_pb2

    content, at, part = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        part += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield wandb_internal_pb2.Record.FromString(part)
            part = b""


def rows(path: Path) -> list[dict]:
    """What was logged: {name: value} of each row; of pictures, what is known of them by 'NAME.ATTRIBUTE'."""
    history = [record.history for record in records(path) if record.WhichOneof("record_type") == "history"]
    return [
        {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in row.item} for row in history
    ]


@pytest.mark.soak
def test_a_run_that_is_resumed_goes_on_with_the_same_run_offline(tmp_path):
    pytest.importorskip("wandb")
    workdir, env = tmp_path / "run", {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_X_DISABLE_STATS": "true"}
    values = ["--config.eval.num_samples=50", "--config.log.wandb=team/project", "--config.model.z_dim=2"]
    for steps in (10, 20):
        args = conftest.command("gaussians8", workdir, *conftest.TINY, *values, f"--config.train.steps={steps}")
        process = conftest.Process([*args, "--config.objective.name=vae"], **env)
        out = process.communicate(timeout=300)[0]
        assert process.returncode == 0, out
    files = sorted(workdir.glob("wandb/offline-run-*/*.wandb"))
    (stored,) = json.loads((workdir / "wandb.json").read_text()).values()
    assert len(files) == 2 and {path.stem for path in files} == {f"run-{stored}"}
    logged = conftest.metrics(workdir)
    for path, steps in zip(files, ((5, 10), (15, 20)), strict=True):
        (run,) = [record.run for record in records(path) if record.WhichOneof("record_type") == "run"]
        assert (run.entity, run.project, run.run_id, run.display_name) == ("team", "project", stored, "run")
        losses = {row["step"]: row["loss_encoder"] for row in rows(path) if "loss_encoder" in row}
        assert losses == {int(row["step"]): float(row["loss_encoder"]) for row in logged if int(row["step"]) in steps}
        pictures = [row for row in rows(path) if "samples._type" in row]
        assert [row["step"] for row in pictures] == [steps[-1]]
        updates = [u for r in records(path) if r.WhichOneof("record_type") == "config" for u in r.config.update]
        assert {u.key: u.value_json for u in updates}["train.steps"] == str(steps[-1])


def test_a_failure_is_one_warning_and_ends_nothing(caplog):
    pytest.importorskip("clu")
    from sintrovae_jax import wandb_writer

    class Broken:
        """Stands for a run whose server is gone."""

        def __getattr__(self, name):
            raise ConnectionError("no route to host")

    with caplog.at_level("WARNING", logger="sintrovae_jax"):
        writer = wandb_writer.WandbWriter(Broken())
        writer.write_hparams({"a": 1})
        writer.write_scalars(1, {"loss": 1.0})
        writer.close()
    assert [r.message for r in caplog.records] == [
        "log.wandb: no more is logged to Weights & Biases (no route to host)"
    ]


def test_pictures_keep_their_values():
    pytest.importorskip("clu")
    from sintrovae_jax import wandb_writer

    np.testing.assert_array_equal(wandb_writer._bytes(np.full((2, 2, 1), 0.5, np.float32)), np.full((2, 2), 128))
    grey = np.full((2, 2, 3), 7, np.uint8)
    assert wandb_writer._bytes(grey) is grey


def test_the_id_is_kept_by_project(tmp_path):
    pytest.importorskip("clu")
    from sintrovae_jax import wandb_writer

    first = wandb_writer.run_id(tmp_path, "one")
    assert wandb_writer.run_id(tmp_path, "two") != first == wandb_writer.run_id(tmp_path, "one")


def test_without_wandb_the_extra_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(extras, "_WANDB", ("wandb_that_is_not_installed",))
    out = conftest.run("gaussians8", tmp_path / "run", "--config.log.wandb=mine", code=2)
    assert out.count("\n") == 1 and "install the extra `wandb`" in out
    assert not (tmp_path / "run").exists()


def test_a_project_is_checked():
    settings = config.read_recipe("gaussians8")
    for project in ("", "mine", "team/mine"):
        settings.log.wandb = project
        config.validate(settings)
    for project in ("a/b/c", "a#b", "a/"):
        settings.log.wandb = project
        with pytest.raises(UserError, match="must be PROJECT or ENTITY/PROJECT"):
            config.validate(settings)
