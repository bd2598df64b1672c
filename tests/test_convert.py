"""Official checkpoints: every tensor there and back, what the networks compute, and what is refused."""

import functools
import io
import json
import pickle
import re
import sys
import types
import zipfile
from pathlib import Path

import jax
import numpy as np
import official_networks as theirs
import pytest
from conftest import TINY, run
from flax.traverse_util import flatten_dict, unflatten_dict

from sintrovae_jax import checkpoint, dispatch, inference, models, parallel, schedule
from sintrovae_jax import config as configs
from sintrovae_jax.data import examples
from sintrovae_jax.errors import UserError
from sintrovae_jax.models import Stage
from sintrovae_jax.official import convert, layouts

BATCH = 2
FUSED = (2, 3, 4, 4, 5, 5)  # channels of 128×128, where the release's convolutions resample
STYLE = (3, 4, 4)
OVERRIDES = {
    "gaussians8": {"model.channels": (7, 7, 7, 7)},
    "cifar10": {"model.channels": (4, 6), "model.z_dim": 5, "data.image_size": 16},
    "cifar10_bootstrap": {"model.channels": (4, 4), "model.z_dim": 5, "data.image_size": 16},
    "mnist": {"model.channels": (4, 6), "model.z_dim": 3},
    "digits_style": {"model.channels": STYLE, "model.z_dim": 5, "data.image_channels": 3},
    "shapenet": {
        "model.channels": (4, 6),
        "model.hidden": 7,
        "model.decoder_channels": (5, 8),
        "model.z_dim": 3,
        "data.points": 16,
    },
    "digits_conditional": {"model.channels": (4, 6), "model.z_dim": 5, "model.classes": 7, "train.ema": 0.0},
}
SHAPES = {
    "gaussians8": theirs.mlp_shapes(),
    "cifar10": theirs.conv_shapes(4, 6, size=16, colours=3, z=5),
    "cifar10_bootstrap": theirs.conv_shapes(4, 4, size=16, colours=3, z=5, target=True),
    "mnist": theirs.conv_shapes(4, 6, size=28, colours=1, z=3),
    "digits_style": theirs.style_shapes(STYLE, 5),
    "shapenet": theirs.cloud_shapes((4, 6), 7, (5, 8), points=16, z=3),
    "digits_conditional": theirs.conv_shapes(4, 6, size=16, colours=1, z=5, cond_dim=7),
}


def tiny(name, **values):
    config = configs.read_recipe(f"configs/{name}.py")
    with config.ignore_type():
        config.update_from_flattened_dict(OVERRIDES[name] | values)
    configs.validate(config)
    return config


def fused_style():
    whole = {"growth.steps": (), "growth.batch_sizes": ()}
    return tiny("digits_style", **{"model.channels": FUSED, "data.image_size": 128}, **whole)


CASES = {name: (lambda name=name: tiny(name), shapes) for name, shapes in SHAPES.items()}
CASES["fused style"] = (fused_style, theirs.style_shapes(FUSED, 5))


# --- there and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_there_and_back(case):
    config, tensors = CASES[case][0](), theirs.random(CASES[case][1])
    variables = layouts.from_official(config, tensors)
    fitting = layouts.abstract_variables(config)
    assert jax.tree.map(np.shape, variables) == jax.tree.map(lambda leaf: leaf.shape, fitting)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {"float32"}
    back = layouts.to_official(config, variables, layouts.unused(config, tensors))
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (back[name].dtype, back[name].shape) == (tensor.dtype, tensor.shape), name
        assert back[name].flags.c_contiguous
        assert back[name].tobytes() == tensor.tobytes(), name


@pytest.mark.parametrize("case", CASES)
def test_our_variables_there_and_back(case):
    config = CASES[case][0]()
    leaves, rng = flatten_dict(layouts.abstract_variables(config)), np.random.default_rng(0)
    ours = {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in leaves.items()}
    back = flatten_dict(layouts.from_official(config, layouts.to_official(config, unflatten_dict(ours))))
    for path, leaf in ours.items():
        if path[1] == "batch_stats" and path[0] != "encoder":  # of which the release has one set: the roles' mean
            np.testing.assert_array_equal(back[path], np.stack([leaf.mean(0)] * 2))
        elif path != ("ema", *layouts.AVERAGE):  # which the release does not save
            assert back[path].tobytes() == leaf.tobytes(), path
        else:
            assert back[path].tobytes() == ours[layouts.AVERAGE].tobytes()


@pytest.mark.parametrize(
    "name", ["gaussians8", "cifar10", "mnist", "celebahq1024", "cifar10_bootstrap", "ffhq_style", "shapenet"]
)
def test_every_array_of_a_recipe_has_its_tensor(name):
    config = configs.read_recipe(f"configs/{name}.py")
    entries = [entry for entry in layouts.table(config) if entry.path]
    paths = [entry.path for entry in entries]
    assert len({(entry.path, entry.part) for entry in entries}) == len(paths)
    assert len(set(paths)) == sum(1 / entry.part[1] for entry in entries)
    unsaved = {("ema", *layouts.AVERAGE)} if name == "ffhq_style" else set()
    assert set(paths) == flatten_dict(layouts.abstract_variables(config)).keys() - unsaved


# --- what the networks compute ----------------------------------------------------------------------------------------


def check(got, wanted):
    np.testing.assert_allclose(np.asarray(got), wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


def nchw(x):
    return np.asarray(x).transpose(0, 3, 1, 2)


def built(config):
    return models.build(config.model, examples.of(config.data).shape)


@functools.partial(jax.jit, static_argnames=("module", "level", "train"))
def apply(module, variables, inputs, level=None, blend=1.0, train=None, labels=None):
    """What a network computes on one device. level, blend: of networks that grow. labels: of conditional ones."""
    options = ({} if level is None else {"stage": Stage(level, blend)}) | ({} if train is None else {"train": train})
    options |= {} if labels is None else {"labels": labels}

    def run(inputs):  # with the axis over which training takes BatchNorm's means
        out = module.apply(variables, inputs, mutable=["batch_stats"] if train else False, **options)
        return out[0] if train else out

    return jax.tree.map(lambda y: y[0], jax.vmap(run, axis_name=parallel.AXIS)(inputs[None]))


def posterior(got):
    return np.concatenate([got.mean, got.logvar], 1)


def normal(*shape):
    return np.random.default_rng(7).normal(size=shape).astype(np.float32)


def uniform(*shape):
    return np.random.default_rng(8).random(shape, np.float32)


def test_mlp_computes_what_the_official_one_does():
    config, tensors = tiny("gaussians8"), theirs.random(SHAPES["gaussians8"])
    variables, (encoder, decoder) = layouts.from_official(config, tensors), built(config)
    check(
        posterior(apply(encoder, variables["encoder"], normal(9, 2))),
        theirs.Networks(tensors).mlp("encoder", normal(9, 2)),
    )
    check(apply(decoder, variables["decoder"], normal(9, 2)), theirs.Networks(tensors).mlp("decoder", normal(9, 2)))


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", ["cifar10", "cifar10_bootstrap", "mnist", "digits_conditional"])
def test_conv_computes_what_the_official_one_does(name, train):
    config, tensors = tiny(name), theirs.random(SHAPES[name])
    variables, (encoder, decoder) = layouts.from_official(config, tensors), built(config)
    networks, side = theirs.Networks(tensors, train=train), config.data.image_size
    labels, one_hot = None, None
    if config.model.classes:
        labels, one_hot = np.array([2, 6]), np.float64([[0, 0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1]])

    x, z = uniform(BATCH, side, side, config.data.image_channels), normal(BATCH, config.model.z_dim)
    got = apply(encoder, variables["encoder"], x, train=train, labels=labels)
    check(posterior(got), networks.conv_encode(nchw(x), one_hot))
    shape = (config.model.channels[-1], side // 4, side // 4)
    got = apply(decoder, variables["decoder"], z, train=train, labels=labels)
    check(nchw(got), networks.conv_decode(z, shape, one_hot=one_hot))
    if "target" in variables:
        got = nchw(apply(decoder, variables["target"], z, train=train))
        check(got, networks.conv_decode(z, shape, "target_decoder"))


@pytest.mark.parametrize("train", [False, True])
def test_clouds_are_encoded_and_decoded_as_by_the_official_ones(train):
    config, tensors = tiny("shapenet"), theirs.random(SHAPES["shapenet"])
    variables, (encoder, decoder) = layouts.from_official(config, tensors), built(config)
    networks, x, z = theirs.Networks(tensors, train=train), normal(BATCH, 16, 3), normal(BATCH, 3)
    got = apply(encoder, variables["encoder"], x, train=train)
    check(posterior(got), np.concatenate(networks.cloud_encode(x.swapaxes(1, 2), 2), 1))
    check(apply(decoder, variables["decoder"], z).swapaxes(1, 2), networks.cloud_decode(z, 2))


@pytest.mark.parametrize(
    ("case", "level", "blend"),
    [
        *[("digits_style", 0, 1.0), ("digits_style", 1, 0.3), ("digits_style", 2, 1.0)],
        *[("fused style", 3, 1.0), ("fused style", 4, 0.6), ("fused style", 5, 0.6), ("fused style", 5, 1.0)],
    ],
)
@pytest.mark.parametrize("suffix", ["", "_s"])
def test_style_computes_what_the_official_one_does_without_noise(case, level, blend, suffix):
    config, tensors = CASES[case][0](), theirs.random(CASES[case][1])
    variables, (encoder, decoder) = layouts.from_official(config, tensors), built(config)
    variables, networks = variables["ema"] if suffix else variables, theirs.Networks(tensors, suffix)
    x, z = uniform(BATCH, 4 * 2**level, 4 * 2**level, 3), normal(BATCH, config.model.z_dim)

    wanted = networks.style_encode(2 * nchw(x).astype(np.float64) - 1, level, blend, len(config.model.channels))
    check(posterior(apply(encoder, variables["encoder"], x, level, blend)), wanted)
    got = nchw(apply(decoder, variables["decoder"], z, level, blend))
    check(got, (networks.style_decode(z, level, blend) + 1) / 2)


# --- what does not fit ------------------------------------------------------------------------------------------------


def refused(config, tensors) -> str:
    with pytest.raises(UserError) as error:
        layouts.from_official(config, tensors)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_all_that_does_not_fit_is_listed():
    tensors = theirs.random(SHAPES["cifar10"])
    del tensors["encoder.fc.bias"], tensors["decoder.main.res_in_8.bn1.running_var"]
    tensors |= {"encoder.extra": np.zeros(3), "spare": np.zeros(())}
    tensors["decoder.main.predict.weight"] = np.zeros((1, 4, 5, 5), np.float32)
    tensors["decoder.fc.0.weight"] = tensors["decoder.fc.0.weight"].T
    said = refused(tiny("cifar10"), tensors)
    for words in (
        "2 missing: encoder.fc.bias, decoder.main.res_in_8.bn1.running_var",
        "2 unknown: encoder.extra, spare",
        "2 of another shape: decoder.fc.0.weight ((5, 96) there, (96, 5) here), "
        "decoder.main.predict.weight ((1, 4, 5, 5) there, (3, 4, 5, 5) here)",
    ):
        assert words in said


def test_what_official_files_may_lack():
    tensors = theirs.random(SHAPES["cifar10"])
    old = {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
    layouts.from_official(tiny("cifar10"), old)
    no_target = layouts.from_official(tiny("cifar10", **{"objective.target_period": 5}), tensors)
    jax.tree.map(np.testing.assert_array_equal, no_target["target"], no_target["decoder"])
    averaged = layouts.from_official(tiny("cifar10", **{"train.ema": 0.9}), tensors)
    jax.tree.map(np.testing.assert_array_equal, averaged["ema"]["encoder"], averaged["encoder"])


def test_copies_that_the_config_has_not_are_not_dropped():
    said = refused(
        tiny("cifar10_bootstrap", **{"objective.target_period": 0}), theirs.random(SHAPES["cifar10_bootstrap"])
    )
    assert "objective.target_period" in said
    assert "target_decoder.main.predict.bias" in said
    said = refused(tiny("digits_style", **{"growth.ema_images": 0.0}), theirs.random(SHAPES["digits_style"]))
    assert "growth.ema_images" in said


def test_values_that_our_networks_could_not_take_over_are_refused():
    tensors = theirs.random(SHAPES["digits_style"])
    tensors["generator.decode_block.1.blur.weight"] *= 2
    tensors["dlatent_avg.buff"][3] += 1
    said = refused(tiny("digits_style"), tensors)
    assert "generator.decode_block.1.blur.weight, dlatent_avg.buff" in said


def test_networks_that_the_release_has_not():
    assert "model.output=sigmoid" in refused(tiny("cifar10", **{"model.output": "sigmoid"}), {})
    points = tiny("gaussians8")
    points.data.image_size = 8
    assert "for images" in refused(points, {})
    labelled = tiny("gaussians8")
    labelled.model.classes = 3
    assert "model.family=mlp take no labels" in refused(labelled, {})


def test_labels_that_only_the_file_or_the_config_has():
    said = refused(tiny("digits_conditional", **{"model.classes": 0}), theirs.random(SHAPES["digits_conditional"]))
    assert "encoder.fc.weight ((10, 103) there, (10, 96) here), decoder.fc.0.weight ((96, 12) there" in said
    said = refused(tiny("mnist", **{"model.classes": 10}), theirs.random(SHAPES["mnist"]))
    assert "decoder.fc.0.weight ((294, 3) there, (294, 13) here)" in said


def test_averaged_networks_are_what_the_release_gets_where_it_has_no_place_for_both():
    config = tiny("cifar10", **{"train.ema": 0.9})
    variables = layouts.from_official(config, theirs.random(SHAPES["cifar10"]))
    variables["ema"] = jax.tree.map(lambda leaf: leaf + 1, variables["ema"])
    back = layouts.to_official(config, variables)
    np.testing.assert_array_equal(
        back["decoder.main.predict.bias"], variables["ema"]["decoder"]["params"]["conv"]["bias"]
    )


# --- files ------------------------------------------------------------------------------------------------------------


def test_without_torch_it_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "a.pth").write_bytes(b"")
    with pytest.raises(UserError, match="install the extra `convert`"):
        convert.read(tmp_path / "a.pth")
    old = types.ModuleType("torch")
    old.__version__ = "2.9.1+cpu"
    monkeypatch.setitem(sys.modules, "torch", old)
    with pytest.raises(UserError, match=r"torch 2\.9\.1\+cpu may run code that a file holds: install torch 2\.10"):
        convert.read(tmp_path / "a.pth")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match="No such file"):
        convert.read(tmp_path / "b.pth")


@pytest.mark.parametrize("name", ["gaussians8", "cifar10_bootstrap", "digits_style"])
def test_a_state_of_the_variables_can_be_saved_and_restored(name, tmp_path):
    config = tiny(name)
    variables = layouts.from_official(config, theirs.random(SHAPES[name]))
    host = convert.fresh_state(config, variables, 50)
    networks, _, create = dispatch.from_config(config)
    assert jax.tree.structure(host) == jax.tree.structure(jax.eval_shape(create))
    fresh = jax.jit(networks.encoder_tx.init)(host.encoder.params)
    jax.tree.map(np.testing.assert_array_equal, host.encoder.opt_state, fresh)
    convert._save(config, host, tmp_path)
    restored = checkpoint.Checkpoints(tmp_path).restore(jax.eval_shape(create))
    jax.tree.map(np.testing.assert_array_equal, restored, host)
    model = inference.load(tmp_path)
    best = variables.get("ema", variables)
    jax.tree.map(np.testing.assert_array_equal, model.variables, {n: best[n] for n in ("encoder", "decoder")})


def test_where_a_run_goes_on():
    def at(config, epoch, style):
        return convert._step(config, convert.Official({}, epoch, style))

    assert at(tiny("gaussians8"), 12_345, False) == 12_300
    assert at(tiny("gaussians8"), 99_999, False) == 30_000
    assert at(tiny("cifar10"), 200, False) == 0
    config = tiny("digits_style")
    assert at(config, 0, True) == 200 + 1_000 + 1_100
    assert schedule.stage_at(config, 2_300) == Stage(2, 1.0)
    assert at(fused_style(), 0, True) == 0


def weights(name: str) -> dict:
    import torch

    return {n: torch.from_numpy(t) for n, t in theirs.random(SHAPES[name]).items()}


def saved(path: Path, name: str, epoch: int = 0) -> dict:
    """An official file of random tensors, with all that the release saves beside them."""
    import torch

    tensors = weights(name)
    if not name.endswith("style"):
        torch.save(tensors if name == "shapenet" else {"epoch": epoch, "model": tensors}, path)
        return tensors
    models = {}
    for n, t in tensors.items():
        model, rest = n.split(".", 1)
        models.setdefault(model, {})[rest] = t
    weight = torch.nn.Parameter(torch.ones(2))
    adam = torch.optim.Adam([weight])
    weight.sum().backward()
    adam.step()
    # Objects of the release's own class, which a file names and we do not have.
    track = type("RunningMeanTorch", (), {"__module__": "tracker"})
    module = type(sys)("tracker")
    module.RunningMeanTorch = track
    sys.modules["tracker"] = module
    one = track()
    one.values = [torch.ones(1)]
    tracker = {"tracks": {"loss": one}, "epochs": [0], "means_over_epochs": {"loss": [1.0]}}
    auxiliary = {"encoder_optimizer": adam.state_dict(), "scheduler": {"last_epoch": 9}, "tracker": tracker}
    try:
        torch.save({"models": models, "auxiliary": auxiliary}, path)
    finally:
        del sys.modules["tracker"]
    return tensors


def flags(name):
    values = {key: re.sub(r"\s", "", str(value)) for key, value in OVERRIDES[name].items()}
    return [f"--config.{key}={value}" for key, value in values.items()]


@pytest.mark.soak
@pytest.mark.parametrize("name", ["gaussians8", "cifar10_bootstrap", "digits_style", "shapenet"])
def test_the_command_there_and_back(name, tmp_path):
    torch = pytest.importorskip("torch")
    tensors = saved(tmp_path / "in.pth", name, epoch=20)
    given = [*flags(name), *(["--config.train.substeps=5", "--config.log.every=5"] if name == "gaussians8" else [])]
    out = run(name, tmp_path / "run", str(tmp_path / "in.pth"), *given, program=convert.main)
    at = {"gaussians8": 20, "cifar10_bootstrap": 0, "digits_style": 2_300, "shapenet": 0}[name]
    assert out.strip().splitlines() == [f"{tmp_path}/run: {tmp_path}/in.pth, at step {at} of {steps(tmp_path)}"]
    convert.to_torch(tmp_path / "run", tmp_path / "out.pth")
    content = torch.load(tmp_path / "out.pth", weights_only=True)
    if name == "digits_style":
        back = {f"{model}.{n}": t for model, named in content["models"].items() for n, t in named.items()}
    elif name == "shapenet":
        back = content
    else:
        back = content["model"]
        assert content["epoch"] == at
    assert back.keys() == tensors.keys()
    for n, tensor in tensors.items():
        assert torch.equal(back[n], tensor), n
    with pytest.raises(UserError, match="run exists already"):
        convert.from_torch(tmp_path / "in.pth", tiny(name), tmp_path / "run")
    with pytest.raises(UserError, match=r"out\.pth exists already"):
        convert.to_torch(tmp_path / "run", tmp_path / "out.pth")
    # Reading a damaged checkpoint leaves it where it is.
    for file in (tmp_path / "run" / "checkpoints" / str(at) / "networks").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="cannot be read"):
        convert.to_torch(tmp_path / "run", tmp_path / "again.pth")
    assert sorted(tmp_path.rglob("*")) == before


def steps(tmp_path):
    return json.loads((tmp_path / "run" / "config.json").read_text())["train"]["steps"]


@pytest.mark.soak
def test_a_converted_run_trains_on(tmp_path):
    pytest.importorskip("torch")
    saved(tmp_path / "in.pth", "gaussians8", epoch=20)
    given = [
        *TINY[1:],
        *flags("gaussians8"),
        "--config.train.steps=40",
        "--config.objective.num_vae=30",
    ]  # TINY[0]: channels
    run("gaussians8", tmp_path / "run", str(tmp_path / "in.pth"), *given, program=convert.main)
    out = run("gaussians8", tmp_path / "run", *given)
    assert "resuming from step 20" in out
    assert inference.load(tmp_path / "run").step == 40


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_other_files_are_refused_and_run_nothing(tmp_path):
    torch = pytest.importorskip("torch")
    path, config, witness = tmp_path / "a.pth", tiny("cifar10"), tmp_path / "ran"
    pickle.loads(pickle.dumps(Harmful(witness)))
    witness.unlink()  # so it does harm where it is let
    for content, says in (
        ({"model": Harmful(witness)}, "is no file of tensors alone"),
        ({"weights": {}}, "is no official checkpoint"),
        ([1, 2], "is no official checkpoint"),
        ({"model": {"encoder.fc.bias": "text"}}, "is no official checkpoint"),
        ({"models": {}}, "is of a style-based model"),
        ({"model": {3: torch.zeros(3)}}, "is no official checkpoint"),
        (torch.zeros(3), "is no official checkpoint"),
        ({"model": {"encoder.fc.bias": torch.zeros(1).expand(10**6, 10**6)}}, "is no official checkpoint"),
        ({"model": {"encoder.fc.bias": torch.zeros(3, dtype=torch.complex64)}}, "is no official checkpoint"),
        ({"model": weights("cifar10") | {"encoder.fc.bias": torch.full((10,), torch.nan)}}, "1 not finite: encoder.fc"),
        ({"model": weights("cifar10") | {"encoder.fc.bias": torch.zeros(10, dtype=torch.int32)}}, "1 not of floating"),
        ({"model": weights("cifar10") | {"a\nb": torch.zeros(1)}}, r"1 unknown: a\nb"),
        ({"model": {}, "epoch": 1}, "missing: encoder.main.0.weight"),
        ({"model": weights("gaussians8")}, "21 unknown: decoder.loggamma, encoder.main.input.weight"),
        ({"model": weights("mnist")}, "encoder.main.0.weight ((4, 1, 5, 5) there, (4, 3, 5, 5) here)"),
    ):
        torch.save(content, path)
        with pytest.raises(UserError, match=re.escape(says)) as error:
            convert.from_torch(path, config, tmp_path / "run")
        assert "\n" not in str(error.value)
    torch.save({"model": {"encoder.fc.bias": torch.zeros(1000)}}, path)
    whole, other = path.read_bytes(), io.BytesIO()
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("letter.txt", "a zip of something else")
    for data in (
        b"",
        b"not a file of tensors",
        whole[: len(whole) // 2],
        whole[:-1],
        other.getvalue(),
        pickle.dumps({"model": Harmful(witness)}),
    ):
        path.write_bytes(data)
        with pytest.raises(UserError, match="is no file of tensors alone") as error:
            convert.from_torch(path, config, tmp_path / "run")
        assert "\n" not in str(error.value)
    assert not witness.exists()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "name one official.pth"),
        (["--to-torch", "only"], "name one official.pth"),
        (["--to-torch", "nowhere", "out.pth"], "it is no workdir"),
        (["--to-torch", "nowhere", "out.pth", "--step", "3"], "the config is the workdir's"),
        (["in.pth"], "no recipe given"),
        (["in.pth", "--step", "three"], "invalid int value: 'three'"),
        (["in.pth", "--config", "configs/gaussians8.py"], "in.pth: No such file"),
        (["in.pth", "--config", "configs/gaussians8.py", "--config.model.z_dims=3"], "unknown config key model.z_dims"),
    ],
)
def test_the_command_line_says_what_is_wrong(args, says, tmp_path, monkeypatch):
    if args and args[0] == "in.pth" and "--config" in args:
        args = [*args, "--workdir", str(tmp_path / "run")]
    with pytest.raises(UserError, match=re.escape(says)):
        convert.main(["convert", *args])
