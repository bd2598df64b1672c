"""Which checkpoint `load` takes, and the models that come with the package or were exported."""

import dataclasses
import json
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request

import jax
import numpy as np
import pytest
from conftest import FULL, TINY, environment, free_port, is_free, run

import sintrovae_jax
from sintrovae_jax import checkpoint, config, data, export, inference, state, step
from sintrovae_jax.errors import UserError


def same(a, b) -> bool:
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a.variables, b.variables)))


def test_the_best_is_the_one_with_the_best_figure(tmp_path):
    """Saved in the order of their figures 3, 1, 2: the newest is not the best, nor is the first."""
    for mode, best in (("min", 20), ("max", 10)):
        settings = tiny(tmp_path / mode, **{"checkpoint.best": "fid", "checkpoint.best_mode": mode})
        for at, figures in ((10, {"fid": 3.0}), (20, {"fid": 1.0}), (30, {"fid": 2.0}), (40, {})):
            save(tmp_path / mode, settings, at, figures)
        assert sintrovae_jax.load(tmp_path / mode, "best").step == best
        assert sintrovae_jax.load(tmp_path / mode).step == 40
        assert sintrovae_jax.load(tmp_path / mode, 30).step == 30
    with pytest.raises(UserError, match=r"no checkpoint of step 11 in .*; there are 10, 20, 30, 40"):
        sintrovae_jax.load(tmp_path / "min", 11)


def test_no_best_is_one_line(tmp_path):
    save(tmp_path / "a", tiny(tmp_path / "a", **{"checkpoint.best": ""}), 10)
    with pytest.raises(UserError, match=r"its config has no checkpoint\.best; there are 10"):
        sintrovae_jax.load(tmp_path / "a", "best")
    save(tmp_path / "b", tiny(tmp_path / "b", **{"checkpoint.best": "fid"}), 10)
    with pytest.raises(UserError, match="none was evaluated for fid"):
        sintrovae_jax.load(tmp_path / "b", "best")


def test_averaged_networks_or_those_that_were_trained(tmp_path):
    host = save(tmp_path, tiny(tmp_path, **{"train.ema": 0.5}), 10)
    for ema, variables in ((True, host.ema), (False, host.variables)):
        jax.tree.map(np.testing.assert_array_equal, sintrovae_jax.load(tmp_path, ema=ema).variables, variables)
    assert not same(sintrovae_jax.load(tmp_path), sintrovae_jax.load(tmp_path, ema=False))
    host = save(tmp_path / "raw", tiny(tmp_path / "raw"), 10)
    jax.tree.map(np.testing.assert_array_equal, sintrovae_jax.load(tmp_path / "raw").variables, host.variables)


def tiny(workdir, **values):
    settings = config.read_recipe("configs/gaussians8.py")
    with settings.ignore_type():
        settings.update_from_flattened_dict({"model.channels": (4,), **values})
    workdir.mkdir(exist_ok=True)
    config.write(settings, workdir)
    return settings


def save(workdir, settings, at, figures=None) -> state.TrainState:
    """Saves a state whose numbers say which it is."""
    host = jax.device_get(step.from_config(settings)[2]())
    moved = jax.tree.map(lambda leaf: leaf + at, host.encoder.params)
    host = host.replace(step=np.int32(at), encoder=host.encoder.replace(params=moved))
    c = settings.checkpoint
    checkpoints = checkpoint.Checkpoints(workdir, 10, c.best, c.best_mode)
    checkpoints.save(host, figures)
    checkpoints.close()
    return host


def test_an_export_is_the_same_model_and_smaller(trained, tmp_path, capsys):
    export.main(["export", str(trained), str(tmp_path / "out"), "--step", "40"])
    assert "step 40" in capsys.readouterr().out
    model = sintrovae_jax.load(tmp_path / "out")
    assert model.step == 40
    assert same(model, sintrovae_jax.load(trained, 40))
    assert not (tmp_path / "out" / "results.json").exists(), "its figures are of step 60"
    export.export(trained, tmp_path / "newest")
    assert json.loads((tmp_path / "newest" / "results.json").read_text())["step"] == 60
    assert size(tmp_path / "newest") < 0.7 * size(trained / "checkpoints" / "60")
    with pytest.raises(UserError, match="exists already"):
        export.export(trained, tmp_path / "out")
    # Nothing is lost by trying to train on.
    out = run("gaussians8", tmp_path / "newest", *TINY, *FULL, "--config.train.steps=80", code=2)
    assert out.count("error:") == 1
    assert same(sintrovae_jax.load(tmp_path / "newest"), sintrovae_jax.load(trained))


def size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*"))


def test_the_models_of_the_package():
    """They reconstruct test images as well as their results.json says, and find them likelier than noise."""
    assert size(inference.PRETRAINED) < 5_000_000
    for name in ("digits", "digits_style"):
        model = sintrovae_jax.load(f"pretrained:{name}")
        x = data.build(model.config.data).test(297, 0)
        wanted = json.loads((inference.PRETRAINED / name / "results.json").read_text())["rec_error"]
        posterior = model.encode(x)
        z = posterior.sample(np.random.default_rng(1).normal(size=posterior.mean.shape))
        error = np.square(np.asarray(model.decode(z)) - x).sum((1, 2, 3)).mean()
        assert error == pytest.approx(wanted, rel=0.1), "with BatchNorm's running averages here, standing ones there"
        noise = np.random.default_rng(0).random((8, 16, 16, 1), np.float32)
        assert model.log_likelihood(x[:8], 10).min() > model.log_likelihood(noise, 10).max()
    with pytest.raises(UserError, match="there are digits, digits_style"):
        sintrovae_jax.load("pretrained:cats")


def test_a_path_is_what_people_write(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "run")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for path in ("~/run", "run", "run/checkpoints", "./run/checkpoints/40", tmp_path / "run"):
        assert sintrovae_jax.load(path).step == (40 if "40" in str(path) else 60)
    with pytest.raises(UserError, match="it is no workdir"):
        sintrovae_jax.load("nowhere")
    with pytest.raises(UserError, match="no paths of the kind nosuchscheme://"):
        sintrovae_jax.load("nosuchscheme://bucket/run")


def test_a_model_cannot_be_changed():
    model = sintrovae_jax.load("pretrained:digits")
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.step = 0


FROM_BUCKET = """
import sys
sys.modules["tensorflow"] = None  # gcsfs reads the bucket
import numpy as np
import sintrovae_jax
wanted = sintrovae_jax.load("pretrained:digits").sample(0, 4)
for path in ("gs://bucket/run", "gs://bucket/run/checkpoints/9600"):
    np.testing.assert_array_equal(sintrovae_jax.load(path).sample(0, 4), wanted)
try:
    sintrovae_jax.load("gs://bucket/nothing")
except sintrovae_jax.errors.UserError as error:
    print(error)
"""


def test_from_a_bucket(tmp_path):
    """A server of Google's storage interface on this machine; nothing of Google's is reached."""
    pytest.importorskip("gcsfs")
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    serve = f"from gcp_storage_emulator.server import create_server as s; s('127.0.0.1', {port}, True, 'bucket').run()"
    env = environment(STORAGE_EMULATOR_HOST=address, TENSORSTORE_GCS_HTTP_URL=address)
    server = subprocess.Popen([sys.executable, "-c", serve], env=env, stderr=subprocess.DEVNULL)
    try:
        while is_free(port):
            assert server.poll() is None
            time.sleep(0.1)
        upload(inference.PRETRAINED / "digits", address)
        done = subprocess.run(
            [sys.executable, "-c", FROM_BUCKET], env=env, cwd=tmp_path, capture_output=True, text=True, check=False
        )
    finally:
        server.terminate()
        server.wait()
    assert done.returncode == 0, done.stderr
    assert "no checkpoint in gs://bucket/nothing" in done.stdout


def upload(folder, address):
    for path in folder.rglob("*"):
        if path.is_file():
            name = urllib.parse.quote(f"run/{path.relative_to(folder)}", safe="")
            url = f"{address}/upload/storage/v1/b/bucket/o?uploadType=media&name={name}"
            urllib.request.urlopen(urllib.request.Request(url, data=path.read_bytes(), method="POST")).close()
