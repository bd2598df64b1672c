"""Damaged checkpoints: every file of one in turn is removed, emptied or cut short."""

import functools
import logging
import shutil
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from sintrovae_jax import checkpoint, train_state
from sintrovae_jax.errors import UserError
from sintrovae_jax.models import mlp

NETWORKS = train_state.Networks(
    mlp.Encoder((8,), 2), mlp.Decoder((8,), (2,)), optax.scale_by_adam(), optax.scale_by_adam()
)


@functools.cache
def at(step: int) -> train_state.TrainState:
    """A state whose every number tells its step."""
    fresh = jax.eval_shape(lambda: train_state.create(NETWORKS, 0, (2,), 2))
    rng = np.random.default_rng(step)
    filled = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), fresh)
    return filled.replace(step=np.array(step, np.int32))


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("sound")
    checkpoints = checkpoint.Checkpoints(workdir, keep=2)
    for step in (10, 20):
        checkpoints.save(at(step))
    checkpoints.close()
    return workdir


def restore(workdir: Path):
    checkpoints = checkpoint.Checkpoints(workdir, keep=2)
    restored = checkpoints.restore(jax.eval_shape(lambda: at(0)))
    checkpoints.close()
    return restored


def files(workdir: Path) -> list[str]:
    top = workdir / "checkpoints" / "20"
    return sorted(str(p.relative_to(top)) for p in top.rglob("*") if p.is_file())


def test_round_trip(sound):
    jax.tree.map(np.testing.assert_array_equal, restore(sound), at(20))


def damage(path: Path, how: str) -> None:
    size = path.stat().st_size
    if how == "removed":
        path.unlink()
    elif how == "emptied":
        path.write_bytes(b"")
    else:
        path.write_bytes(path.read_bytes()[: size // 2])


@pytest.mark.parametrize("how", ["removed", "emptied", "truncated"])
def test_damage_is_set_aside_and_the_one_before_is_used(sound, tmp_path, how, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("sintrovae_jax"), "propagate", True)
    set_aside = []
    for number, name in enumerate(files(sound)):
        workdir = tmp_path / str(number)
        shutil.copytree(sound, workdir)
        damage(workdir / "checkpoints" / "20" / name, how)
        restored = restore(workdir)
        # Orbax does without some files; then nothing may be lost. It must never give other numbers.
        step = int(restored.step)
        jax.tree.map(np.testing.assert_array_equal, restored, at(step))
        assert (workdir / "damaged" / "20").is_dir() == (step == 10), name
        if step == 10:
            set_aside.append(name)
            assert "checkpoint 20 is damaged" in caplog.text
            jax.tree.map(np.testing.assert_array_equal, restore(workdir), at(10))
        caplog.clear()
    for item in ("networks", "training"):
        assert any(name.startswith(f"{item}/d/") for name in set_aside), "the arrays themselves were damaged"
        assert any(name.startswith(f"{item}/manifest") for name in set_aside)


@pytest.mark.parametrize("item", ["networks", "training", "."])
def test_a_whole_item_missing(sound, tmp_path, item):
    workdir = tmp_path / "run"
    shutil.copytree(sound, workdir)
    shutil.rmtree(workdir / "checkpoints" / "20" / item)
    if item == ".":
        (workdir / "checkpoints" / "20").mkdir()
    jax.tree.map(np.testing.assert_array_equal, restore(workdir), at(10))


def test_where_none_can_be_read_all_stay(sound, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(sound, workdir)
    for step in ("10", "20"):
        shutil.rmtree(workdir / "checkpoints" / step / "networks")
    with pytest.raises(UserError, match=r"none of the 2 checkpoints .* can be read"):
        restore(workdir)
    assert {p.name for p in (workdir / "checkpoints").iterdir()} == {"10", "20"}
    assert not (workdir / "damaged").exists()


def test_a_save_cut_short_is_not_a_checkpoint(sound, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(sound, workdir)
    half = workdir / "checkpoints" / "30.orbax-checkpoint-tmp"
    shutil.copytree(workdir / "checkpoints" / "20" / "networks", half / "networks")
    assert int(restore(workdir).step) == 20


def test_newest_and_best_are_kept(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=2, best="score", best_mode="max")
    for step, score in ((1, 0.1), (2, 0.9), (3, 0.5), (4, None), (5, float("nan")), (6, 0.2)):
        checkpoints.save(at(step), None if score is None else {"score": score, "other": 1.0})
    checkpoints.close()
    assert checkpoint.Checkpoints(tmp_path, read_only=True).steps() == [2, 5, 6]
