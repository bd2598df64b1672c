"""Which checkpoint `load` takes, and the models that come with the package or were exported."""

import dataclasses
import json
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request

import jax
import numpy as np
import pytest
from conftest import FULL, TINY, environment, run

import sintrovae_jax
from sintrovae_jax import checkpoint, config, dispatch, inference, objectives, train_state
from sintrovae_jax.data import pipeline
from sintrovae_jax.errors import UserError
from sintrovae_jax.tools import export


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


def save(workdir, settings, at, figures=None) -> train_state.TrainState:
    """Saves a state whose numbers say which it is."""
    host = jax.device_get(dispatch.from_config(settings)[2]())
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
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(UserError, match="exists already"):
        export.export(trained, tmp_path / "link")
    with pytest.raises(UserError, match="write to a local folder"):
        export.export(trained, "gs://bucket/out")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "newest", "link"}
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
        x = pipeline.build(model.config.data).test(297, 0)
        wanted = json.loads((inference.PRETRAINED / name / "results.json").read_text())["rec_error"]
        error = np.square(np.asarray(model.reconstruct(x)) - x).sum((1, 2, 3)).mean()  # of the posterior's mean
        assert error == pytest.approx(wanted, rel=1e-3), "with the BatchNorm averages that it was scored with"
        noise = np.random.default_rng(0).random((8, 16, 16, 1), np.float32)
        assert model.log_likelihood(x[:8], 10).min() > model.log_likelihood(noise, 10).max()
    model = sintrovae_jax.load("pretrained:mnist5k")  # its data do not come with the package
    samples = model.sample(0, 500)  # as many as there were test images
    kl = np.asarray(objectives.kl(*model.encode(samples)))
    wanted = json.loads((inference.PRETRAINED / "mnist5k" / "results.json").read_text())["kl_fake"]
    assert kl.mean() == pytest.approx(wanted, rel=1e-3)
    assert model.log_likelihood(samples[:8], 10).min() > model.log_likelihood(np.full_like(samples[:8], 0.5), 10).max()
    model = sintrovae_jax.load("pretrained:digits_conditional")
    source = pipeline.build(model.config.data)
    x, labels = source.test(297, 0), source.labels[1]
    error = np.square(np.asarray(model.reconstruct(x, labels)) - x).sum((1, 2, 3))
    results = json.loads((inference.PRETRAINED / "digits_conditional" / "results.json").read_text())
    assert error.mean() == pytest.approx(results["rec_error"], rel=1e-3)
    other = np.square(np.asarray(model.reconstruct(x, (labels + 1) % 10)) - x).sum((1, 2, 3))
    assert (other > error).mean() > 0.95  # with the label of another digit
    with pytest.raises(UserError, match="there are digits, digits_conditional, digits_mixture, digits_style, mnist5k"):
        sintrovae_jax.load("pretrained:cats")


def test_a_path_is_what_people_write(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "run")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for path in ("~/run", "run", "run/checkpoints", tmp_path / "run"):
        assert sintrovae_jax.load(path).step == 60
    assert sintrovae_jax.load("./run/checkpoints/40").step == 40
    with pytest.raises(UserError, match="it is no workdir"):
        sintrovae_jax.load("nowhere")
    with pytest.raises(UserError, match="no paths of the kind nosuchscheme://"):
        sintrovae_jax.load("nosuchscheme://bucket/run")


def test_workdirs_with_the_names_of_checkpoints(trained, tmp_path):
    for place in ("checkpoints", "checkpoints/7"):
        shutil.copytree(trained, tmp_path / place, dirs_exist_ok=True)
    assert sintrovae_jax.load(tmp_path / "checkpoints").step == 60
    assert sintrovae_jax.load(tmp_path / "checkpoints" / "7", 40).step == 40
    with pytest.raises(UserError, match="is step 40, not 60"):
        sintrovae_jax.load(trained / "checkpoints" / "40", 60)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{}", "is no config of this project"),
        ('{"model": 3}', "is no config of this project"),
        ("[1]", "cannot be read"),
        ("{", "cannot be read"),
    ],
)
def test_a_damaged_config_is_one_line(trained, tmp_path, text, says):
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text(text)
    with pytest.raises(UserError, match=says) as error:
        sintrovae_jax.load(tmp_path / "run")
    assert "\n" not in str(error.value)


def test_a_config_of_another_model_is_refused(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    values = json.loads(path.read_text())
    values["model"]["channels"] = [8, 9]
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"holds another model than the config\.json beside it says"):
        sintrovae_jax.load(tmp_path / "run")


def test_damaged_metadata_is_one_line(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "40" / "metrics" / "metrics").write_text("{")
    for which in (None, "best"):
        with pytest.raises(UserError, match=r"the checkpoints of .* cannot be read") as error:
            sintrovae_jax.load(tmp_path / "run", which)
        assert "\n" not in str(error.value)


def test_an_export_says_what_it_does_not_hold():
    with pytest.raises(UserError, match="has no networks: ema alone, as an export has"):
        sintrovae_jax.load("pretrained:digits", ema=False)


@pytest.mark.parametrize("step", ["2000", 2000.0, "newest"])
def test_a_step_is_a_number_or_best(step):
    with pytest.raises(UserError, match="a step is a whole number, 'best' or 'latest'"):
        sintrovae_jax.load("pretrained:digits", step)


def test_numbers_of_all_kinds_and_edges():
    model = sintrovae_jax.load("pretrained:digits", np.int64(2000))
    np.testing.assert_array_equal(model.sample(np.int32(3), 2), model.sample(3, 2))
    assert model.sample(0, 0).shape == (0, 16, 16, 1)
    x = np.zeros((3, 16, 16, 1))
    for call, says in (
        (lambda: model.sample(0, -1), "cannot be negative: -1"),
        (lambda: model.encode(x[:0]), "x has no examples"),
        (lambda: model.log_likelihood(x, samples=0), "at least one importance sample"),
        (lambda: model.interpolate(x[:3], x[:1]), "a and b are of different shapes"),
        (lambda: sintrovae_jax.load(""), "an empty path"),
    ):
        with pytest.raises(UserError, match=says):
            call()


def test_a_model_cannot_be_changed():
    model = sintrovae_jax.load("pretrained:digits")
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.step = 0


def test_an_export_needs_no_more_than_loading(trained, tmp_path):
    without = "import sys; sys.modules.update(dict.fromkeys(('tensorflow', 'matplotlib', 'clu', 'PIL', 'scipy')))\n"
    code = f"{without}from sintrovae_jax.tools import export; export.export(sys.argv[1], sys.argv[2])"
    subprocess.run([sys.executable, "-c", code, str(trained), str(tmp_path / "out")], env=environment(), check=True)
    assert same(sintrovae_jax.load(tmp_path / "out"), sintrovae_jax.load(trained))


FROM_BUCKET = """
import sys
sys.modules["tensorflow"] = None  # gcsfs reads the bucket
import jax, numpy as np
import sintrovae_jax
wanted = sintrovae_jax.load("pretrained:digits").variables
for path in ("gs://bucket/run", "gs://bucket/run/checkpoints/2000"):
    jax.tree.map(np.testing.assert_array_equal, sintrovae_jax.load(path).variables, wanted)
try:
    sintrovae_jax.load("gs://bucket/nothing")
except sintrovae_jax.errors.UserError as error:
    print(error)
"""


def test_from_a_bucket(bucket, tmp_path):
    upload(inference.PRETRAINED / "digits", bucket["STORAGE_EMULATOR_HOST"])
    env, python = environment(**bucket), [sys.executable, "-c", FROM_BUCKET]
    done = subprocess.run(python, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "no checkpoint in gs://bucket/nothing" in done.stdout


def upload(folder, address):
    for path in folder.rglob("*"):
        if path.is_file():
            name = urllib.parse.quote(f"run/{path.relative_to(folder)}", safe="")
            url = f"{address}/upload/storage/v1/b/bucket/o?uploadType=media&name={name}"
            urllib.request.urlopen(urllib.request.Request(url, data=path.read_bytes(), method="POST")).close()
