"""What the user got wrong: exit code 2, one line, no traceback, nothing half written."""

import shutil

import pytest
from conftest import FULL, TINY, here, run


@pytest.mark.parametrize(
    ("recipe", "args", "says"),
    [
        ("gausians8", [], "no such config file: configs/gausians8.py; did you mean configs/gaussians8.py?"),
        ("gaussians8", ["--config.train.stepz=5"], "unknown config key train.stepz; the nearest is train.steps"),
        ("gaussians8", ["--config.objective.beta_negg=5"], "the nearest is objective.beta_neg"),
        ("gaussians8", ["--mode", "dance"], "--mode dance is none of train, eval"),
        ("gaussians8", ["--mode", "eval"], "no checkpoint in"),
        ("gaussians8", ["--config.objective.beta_kl=nan"], "objective.beta_kl=nan is not a finite number"),
        ("gaussians8", ["--config.objective.scale=inf"], "objective.scale=inf is not a finite number"),
        ("gaussians8", ["--config.train.steps=many"], "many"),
        ("gaussians8", ["--config.train.steps=1001"], "train.steps=1001 is not a multiple of train.substeps=50"),
        ("gaussians8", ["--config.objective.name=gan"], "objective.name='gan' is none of"),
        ("gaussians8", ["--config.objective.reconstruction=bce"], "set model.output=sigmoid"),
        ("gaussians8", ["--config.objective.kl_weights=(1.0,)"], "objective.kl_weights has 1 values"),
        ("digits", ["--config.data.source=dgits"], "data.source='dgits' is none of"),
        ("gaussians8", ["--config.model.family=vit"], "model.family='vit' is none of"),
        ("gaussians8", ["--config.eval.evaluators=('mmd',)"], "'mmd' is none of density, clouds, latents"),
        ("gaussians8", ["--config.eval.evaluators=fid"], "the fid evaluator scores images"),
        ("digits", ["--config.eval.evaluators=latents,ood"], "the ood evaluator needs eval.ood.source"),
        ("digits", ["--config.eval.evaluators=kid"], "eval.kid.subset_size=1000 needs as many samples"),
        ("digits", ["--config.eval.reference=both"], "eval.reference='both' is none of train, test"),
        ("digits", ["--config.eval.likelihood.observation_std=-1.0"], "observation_std=-1.0 must be above 0"),
        ("gaussians8", ["--config.distributed=here"], "distributed='here' is none of auto, on, off or HOST:PORT"),
        ("gaussians8", ["--config.optimizer.milestones=early"], "optimizer.milestones=['early'] must be whole numbers"),
        ("gaussians8", ["--config.model.channels=(0,)"], "model.channels=[0] must be whole numbers of at least 1"),
        ("gaussians8", ["--config.objective.gamma_r=-1"], "objective.gamma_r=-1.0 must be at least 0"),
        ("gaussians8", ["--config.checkpoint.best=jds"], "checkpoint.best='jds' is no metric of eval.evaluators"),
        ("digits", ["--config.eval.evaluators=('density',)"], "the density evaluator scores gaussians8"),
        ("density", [], "no such config file: configs/density.py"),
        ("gaussians8", ["--colour=red"], "colour"),
        ("gaussians8", ["eval"], "unexpected argument 'eval'"),
        ("digits", ["--config.data.image_size=0"], "data.source='digits' needs data.image_size of 1 or more"),
        ("gaussians8", ["--config.model.family=conv"], "model.family=conv is for images: set data.image_size"),
        ("digits", ["--config.data.image_size=18"], "data.image_size=18 is not a multiple of 4"),
        ("digits", ["--config.data.image_channels=2"], "data.image_channels=2 is none of 1, 3"),
        ("digits", ["--config.data.hue=0.5"], "data.hue turns colours: it needs data.image_channels=3"),
        ("digits", ["--config.data.source=folder:/nowhere"], "data.source=folder:/nowhere is no folder"),
        ("digits", ["--a", "3"], "--a and --b go together"),
        ("gaussians8", ["--config.data.flip=True"], "are for images"),
        ("digits", ["--mode", "translate"], "--mode translate is for model.family=two_encoder, not conv"),
        ("digits", ["--config.eval.evaluators=transfer"], "the transfer evaluator is for model.family=two_encoder"),
        ("sprites", ["--config.data.source=npz:/nowhere.npz"], "npz:/nowhere.npz cannot be read"),
        ("sprites", ["--config.data.source=cars3d:/nowhere"], "cars3d:/nowhere cannot be read"),
        ("sprites", ["--config.data.source=kth:/nowhere"], "kth:/nowhere is no folder"),
        ("sprites", ["--config.data.image_channels=1"], "sprites is in colour: set data.image_channels=3"),
        ("sprites", ["--config.model.class_dim=99"], "model.class_dim=99 must be at least 1 and leave some"),
        ("gaussians8", ["--config.train.ema=1.0"], "train.ema=1.0 must be at least 0 and below 1"),
        ("rings", ["--config.objective.target_period=5", "--config.objective.name=vae"], "bootstrap variant"),
    ],
)
def test_one_line(tmp_path, recipe, args, says):
    is_one_line(tmp_path / "run", recipe, args, says)


@pytest.mark.parametrize(
    ("recipe", "args", "says"),
    [
        ("gaussians8", ["--config.train.batch_size=30"], "train.batch_size: 30 does not divide by the 4 devices"),
        ("digits_style", ["--config.growth.batch_sizes=(64,62,32)"], "growth.batch_sizes: 62 does not divide by the 4"),
        ("gaussians8", ["--config.distributed=on"], "give HOST:PORT,COUNT,INDEX"),
    ],
)
def test_one_line_from_a_process_with_four_devices(tmp_path, recipe, args, says):
    is_one_line(tmp_path / "run", recipe, args, says, devices=4)


def is_one_line(workdir, recipe, args, says, **options):
    out = run(recipe, workdir, *args, code=2, **options)
    lines = out.strip().splitlines()
    assert len(lines) == 1, out
    assert lines[0].startswith("error: ")
    assert says in lines[0]
    assert not (workdir / "config.json").exists()


def test_a_workdir_of_another_config_is_refused(trained, tmp_path):
    before = (trained / "config.json").read_bytes()
    out = run("gaussians8", trained, *TINY, *FULL, "--config.objective.beta_kl=0.9", "--config.seed=1", code=2)
    assert "objective.beta_kl (0.3 there, 0.9 here)" in out
    assert "seed (92 there, 1 here)" in out
    assert "train.steps" not in out
    assert (trained / "config.json").read_bytes() == before


def test_fewer_steps_than_there_are(trained):
    out = run("gaussians8", trained, *TINY, *FULL, "--config.train.steps=40", code=2)
    assert "is already at step 60: train.steps=40 is behind it" in out


@pytest.mark.parametrize("make", ["file", "proc"])
def test_a_workdir_that_cannot_be_written(tmp_path, make):
    (tmp_path / "file").write_text("not a folder")
    workdir = {"file": tmp_path / "file" / "run", "proc": "/proc/run"}[make]
    out = run("gaussians8", workdir, code=2)
    assert "error: cannot write to the workdir" in out
    assert len(out.strip().splitlines()) == 1


@pytest.mark.soak
def test_a_checkpoint_of_another_model_is_refused_and_kept(trained, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    path = workdir / "config.json"
    path.write_text(path.read_text().replace('"z_dim": 2', '"z_dim": 3'))
    out = run("gaussians8", workdir, *TINY, *FULL, "--config.model.z_dim=3", code=2)
    assert "holds another model" in out
    assert (workdir / "checkpoints" / "60").is_dir()


def test_a_damaged_config_json_is_refused(trained, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    (workdir / "config.json").write_text("{")
    assert "config.json cannot be read" in run("gaussians8", workdir, *TINY, *FULL, code=2)


def test_no_recipe_at_all():
    out, code = here([])
    assert code == 2
    assert out.startswith("error: no recipe given: add --config NAME") and out.count("\n") == 1
