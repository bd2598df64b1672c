"""The FID network against an implementation in numpy, and the reading of its weights."""

import functools
import hashlib
import importlib.util
import io
import pickle
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, environment, here
from numpy.lib.stride_tricks import sliding_window_view

from sintrovae_jax.errors import UserError
from sintrovae_jax.evaluators import inception, inception_weights

PUBLISHED = "pt_inception-2015-12-05-6726825d"
features = jax.jit(lambda params, x: inception.InceptionV3().apply({"params": params}, x))


# --- the network in numpy ---------------------------------------------------------------------------------------------


def resize(x):
    """[N, H, W, C] -> [N, 299, 299, C]: between the two nearest pixels' centres, the border's beyond them."""
    for axis in (1, 2):
        last = x.shape[axis] - 1
        at = np.clip((np.arange(299) + 0.5) * x.shape[axis] / 299 - 0.5, 0, last)
        low = np.floor(at).astype(int)
        part = (at - low).reshape([-1 if i == axis else 1 for i in range(4)])
        x = x.take(low, axis) * (1 - part) + x.take(np.minimum(low + 1, last), axis) * part
    return x


def windows(x, height, width, stride=1, pad=(0, 0), fill=0.0):
    """[N, H, W, C] -> [N, H', W', C, height, width], of x with `pad` more rows and columns on every side."""
    x = np.pad(x, ((0, 0), (pad[0], pad[0]), (pad[1], pad[1]), (0, 0)), constant_values=fill)
    return sliding_window_view(x, (height, width), (1, 2))[:, ::stride, ::stride]


def maximum(x):
    return windows(x, 3, 3, 1, (1, 1), -np.inf).max((-2, -1))


def average(x):
    counted = windows(np.ones_like(x), 3, 3, 1, (1, 1)).sum((-2, -1))
    return windows(x, 3, 3, 1, (1, 1)).sum((-2, -1)) / counted


def halve(x):
    return windows(x, 3, 3, 2).max((-2, -1))


class Network:
    """float64 and BatchNorm by its definition. Written from pytorch-fid's network, not from the module's table.

    Makes up a convolution's weights, in the published layout, where it meets it first. The running variance is of the
    size of what goes through, which keeps activations in range. The mean is not: a random network that is centred
    everywhere magnifies float32's rounding a hundredfold on its way to the end, and a trained one does not.
    """

    def __init__(self):
        self.arrays, self.scales = {}, {}
        self._rng = np.random.default_rng(0)

    def __call__(self, x):
        """[N, H, W, 1 or 3] in [0, 1] -> [N, 2048]."""
        x = resize(np.repeat(x, 3, -1) if x.shape[-1] == 1 else x).astype(np.float64) * 2 - 1
        x = self.conv(x, "Conv2d_1a_3x3", 32, 3, 3, stride=2, pad=False)
        x = self.conv(x, "Conv2d_2a_3x3", 32, 3, 3, pad=False)
        x = halve(self.conv(x, "Conv2d_2b_3x3", 64, 3, 3))
        x = self.conv(x, "Conv2d_3b_1x1", 80)
        x = halve(self.conv(x, "Conv2d_4a_3x3", 192, 3, 3, pad=False))
        for name, pooled in {"Mixed_5b": 32, "Mixed_5c": 64, "Mixed_5d": 64}.items():
            x = self.a(x, name, pooled)
        x = self.b(x, "Mixed_6a")
        for name, width in {"Mixed_6b": 128, "Mixed_6c": 160, "Mixed_6d": 160, "Mixed_6e": 192}.items():
            x = self.c(x, name, width)
        x = self.d(x, "Mixed_7a")
        x = self.e(x, "Mixed_7b", average)
        x = self.e(x, "Mixed_7c", maximum)
        assert x.shape[1:] == (8, 8, 2048)
        return x.mean((1, 2))

    def conv(self, x, name, outputs, height=1, width=1, *, stride=1, pad=True):
        x = windows(x, height, width, stride, (height // 2, width // 2) if pad else (0, 0))
        shape = x.shape[3:]
        if f"{name}.conv.weight" not in self.arrays:
            kernel = self._rng.normal(0, 0.5 * np.prod(shape) ** -0.5, (outputs, *shape))
            self.arrays[f"{name}.conv.weight"] = kernel.astype(np.float32)
        kernel = self.arrays[f"{name}.conv.weight"].astype(np.float64)
        y = x.reshape(-1, np.prod(shape)) @ kernel.reshape(outputs, -1).T
        y = np.maximum(self.norm(y, f"{name}.bn"), 0).reshape(*x.shape[:3], outputs)
        self.scales[name] = np.sqrt((y**2).mean())
        return y

    def norm(self, y, name):
        if f"{name}.weight" not in self.arrays:
            n, random = y.shape[1], self._rng
            std = np.sqrt(y.var(0) + y.var(0).mean())
            made_up = {
                "weight": random.uniform(0.5, 1.5, n),
                "bias": random.normal(0, 0.3, n),
                "running_mean": random.normal(0, 0.3, n) * std,
                "running_var": random.uniform(0.5, 2, n) * std**2,
            }
            self.arrays |= {f"{name}.{part}": array.astype(np.float32) for part, array in made_up.items()}
        parts = ("weight", "bias", "running_mean", "running_var")
        weight, bias, mean, var = (self.arrays[f"{name}.{part}"].astype(np.float64) for part in parts)
        return (y - mean) / np.sqrt(var + 0.001) * weight + bias

    def a(self, x, name, pooled):
        def conv(x, branch, *args):
            return self.conv(x, f"{name}.{branch}", *args)

        five = conv(conv(x, "branch5x5_1", 48), "branch5x5_2", 64, 5, 5)
        double = conv(conv(x, "branch3x3dbl_1", 64), "branch3x3dbl_2", 96, 3, 3)
        double = conv(double, "branch3x3dbl_3", 96, 3, 3)
        return np.concatenate([conv(x, "branch1x1", 64), five, double, conv(average(x), "branch_pool", pooled)], -1)

    def b(self, x, name):
        double = self.conv(self.conv(x, f"{name}.branch3x3dbl_1", 64), f"{name}.branch3x3dbl_2", 96, 3, 3)
        double = self.conv(double, f"{name}.branch3x3dbl_3", 96, 3, 3, stride=2, pad=False)
        return np.concatenate([self.conv(x, f"{name}.branch3x3", 384, 3, 3, stride=2, pad=False), double, halve(x)], -1)

    def c(self, x, name, width):
        def conv(x, branch, *args):
            return self.conv(x, f"{name}.{branch}", *args)

        seven = conv(conv(x, "branch7x7_1", width), "branch7x7_2", width, 1, 7)
        seven = conv(seven, "branch7x7_3", 192, 7, 1)
        double = conv(conv(x, "branch7x7dbl_1", width), "branch7x7dbl_2", width, 7, 1)
        double = conv(conv(double, "branch7x7dbl_3", width, 1, 7), "branch7x7dbl_4", width, 7, 1)
        double = conv(double, "branch7x7dbl_5", 192, 1, 7)
        return np.concatenate([conv(x, "branch1x1", 192), seven, double, conv(average(x), "branch_pool", 192)], -1)

    def d(self, x, name):
        three = self.conv(x, f"{name}.branch3x3_1", 192)
        three = self.conv(three, f"{name}.branch3x3_2", 320, 3, 3, stride=2, pad=False)
        seven = self.conv(self.conv(x, f"{name}.branch7x7x3_1", 192), f"{name}.branch7x7x3_2", 192, 1, 7)
        seven = self.conv(seven, f"{name}.branch7x7x3_3", 192, 7, 1)
        seven = self.conv(seven, f"{name}.branch7x7x3_4", 192, 3, 3, stride=2, pad=False)
        return np.concatenate([three, seven, halve(x)], -1)

    def e(self, x, name, pool):
        def conv(x, branch, *args):
            return self.conv(x, f"{name}.{branch}", *args)

        three = conv(x, "branch3x3_1", 384)
        double = conv(conv(x, "branch3x3dbl_1", 448), "branch3x3dbl_2", 384, 3, 3)
        branches = [
            conv(x, "branch1x1", 320),
            conv(three, "branch3x3_2a", 384, 1, 3),
            conv(three, "branch3x3_2b", 384, 3, 1),
            conv(double, "branch3x3dbl_3a", 384, 1, 3),
            conv(double, "branch3x3dbl_3b", 384, 3, 1),
            conv(pool(x), "branch_pool", 192),
        ]
        return np.concatenate(branches, -1)


SHAPES = [(2, 32, 32, 3), (1, 8, 8, 1), (1, 40, 24, 3), (1, 350, 310, 3)]  # the first has its weights made up


@functools.cache
def images(shape):
    return np.random.default_rng(shape).random(shape, np.float32)


@functools.cache
def judge():
    """The network in numpy, with its weights made up, and its features of the first of `SHAPES`."""
    network = Network()
    return network, network(images(SHAPES[0]))


def published():
    """The made-up weights, {name: array}, with what else is in the published file."""
    rest = {"fc.weight": np.zeros((1008, 2048), np.float32), "fc.bias": np.zeros(1008, np.float32)}
    count = {"Conv2d_1a_3x3.bn.num_batches_tracked": np.zeros((), np.int64)}
    return judge()[0].arrays | rest | count


def difference(params, shape):
    """The largest one between the module's features and numpy's, by the latter's root mean square."""
    network, first = judge()
    wanted = first if shape == SHAPES[0] else network(images(shape))
    got = np.asarray(features(params, images(shape)))
    assert got.shape == (shape[0], 2048)
    assert got.dtype == np.float32
    return np.abs(got - wanted).max() / np.sqrt((wanted**2).mean())


# --- tests of the network ---------------------------------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_features_are_those_of_numpy(shape):
    assert difference(inception.from_published(published()), shape) < 1e-4


def test_the_made_up_network_is_a_fair_judge():
    network, wanted = judge()
    assert min(network.scales.values()) > 0.1
    assert max(network.scales.values()) < 10
    one, other = wanted
    assert np.linalg.norm(one - other) > 0.01 * np.linalg.norm(one), "it tells no images apart"


def transposed(kernel):
    return kernel.swapaxes(2, 3)


WRONG = {  # {array: (what it is made of instead, how)}
    "Conv2d_2a_3x3.conv.weight": ("Conv2d_2a_3x3.conv.weight", transposed),
    "Mixed_6b.branch7x7_2.conv.weight": ("Mixed_6b.branch7x7dbl_2.conv.weight", transposed),
    "Mixed_6a.branch3x3.bn.running_mean": ("Mixed_6a.branch3x3.bn.bias", np.asarray),
    "Mixed_7c.branch3x3_2a.conv.weight": ("Mixed_7c.branch3x3dbl_3a.conv.weight", np.asarray),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_weight_in_the_wrong_place_shows(name):
    source, change = WRONG[name]
    arrays = published()
    assert difference(inception.from_published(arrays | {name: change(arrays[source])}), SHAPES[0]) > 1e-3


def test_the_size_is_that_of_inception_v3():
    params = jax.eval_shape(inception.InceptionV3().init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]
    assert len(params) == 94
    # What Keras gives as trainable of InceptionV3 without its top, where a BatchNorm has a bias and no scale.
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 21_768_352


def test_all_products_are_of_full_precision():
    text = features.lower(inception.from_published(published()), images(SHAPES[0])).as_text()
    products = [line for line in text.splitlines() if "stablehlo.convolution" in line or "dot_general" in line]
    assert sum("stablehlo.convolution" in line for line in products) == 94
    assert all(line.count("HIGHEST") == 2 for line in products)


# --- tests of the weights ---------------------------------------------------------------------------------------------

NAME = "Mixed_6b.branch7x7_2"


def without(name):
    return {key: array for key, array in published().items() if key != name}


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        (lambda: {}, "470 of 470 arrays are missing or unfit: Conv2d_1a_3x3.conv.weight (32, 3, 3, 3) is missing"),
        (lambda: without(f"{NAME}.bn.bias"), f"1 of 470 arrays are missing or unfit: {NAME}.bn.bias (128,) is missing"),
        (
            lambda: published() | {f"{NAME}.conv.weight": transposed(published()[f"{NAME}.conv.weight"])},
            f"{NAME}.conv.weight is (128, 128, 7, 1), not (128, 128, 1, 7)",
        ),
        (lambda: published() | {f"{NAME}.bn.bias": np.zeros(128, int)}, "bn.bias (128,) is int64, not floating point"),
        (lambda: published() | {f"{NAME}.bn.bias": np.full(128, np.nan)}, f"{NAME}.bn.bias (128,) is not finite"),
        (lambda: published() | {f"{NAME}.bn.running_var": -np.ones(128)}, "running_var (128,) is negative"),
    ],
)
def test_arrays_of_another_network_are_refused(arrays, says):
    with pytest.raises(UserError) as error:
        inception.from_published(arrays())
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "all.npz"
    np.savez(path, **published())
    return path


def same(params, other):
    assert params.keys() == other.keys()
    jax.tree.map(np.testing.assert_array_equal, params, other)


def command(*args):
    line = [sys.executable, "-m", "sintrovae_jax.evaluators.inception_weights", *map(str, args)]
    pipes = {"capture_output": True, "text": True}
    return subprocess.run(line, check=False, cwd=ROOT, env=environment(), timeout=120, **pipes)


def test_converting_keeps_the_networks_arrays_and_reading_gives_its_parameters(npz, tmp_path):
    out = tmp_path / "new" / "inception.npz"
    done = command(npz, out)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    with np.load(out) as arrays:
        assert len(arrays) == 470
        assert all(arrays[name].dtype == np.float32 for name in arrays)
    params, digest = inception_weights.read(out)
    same(params, inception.from_published(published()))
    assert digest == hashlib.sha256(out.read_bytes()).hexdigest()
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    assert [path.name for path in out.parent.iterdir()] == ["inception.npz"]


def test_the_command_answers_mistakes_in_a_line(npz, tmp_path):
    (tmp_path / "other.npz").write_bytes(npz.read_bytes()[:100_000])
    for args in ([], [str(tmp_path / "other.npz"), str(tmp_path / "out.npz")]):
        out, code = here(args, inception_weights.main)
        assert code == 2
        assert out.startswith("error: ")
        assert out.count("\n") == 1
    assert not (tmp_path / "out.npz").exists()
    for target, says in ((tmp_path / "out.pth", "must be named .npz"), (npz / "out.npz", "cannot write")):
        with pytest.raises(UserError, match=says):
            inception_weights.convert(npz, target)


class Code:
    """Makes the file that it is given, if it is unpickled by the careless."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def archive(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@pytest.mark.parametrize(
    ("contents", "says"),
    [
        (lambda whole, mark: whole[: len(whole) // 2], "not an .npz of arrays, or is damaged (BadZipFile)"),
        (lambda whole, mark: whole[:5_000_000] + bytes(1000) + whole[5_001_000:], "damaged (BadZipFile)"),
        (lambda whole, mark: b"", "damaged"),
        (lambda whole, mark: b"<html>Not found</html>", "damaged"),
        (lambda whole, mark: pickle.dumps(Code(mark)), "damaged"),
        (lambda whole, mark: archive(a=np.array([Code(mark)])), "damaged (ValueError)"),
        (lambda whole, mark: archive(a=np.zeros(3)), "470 of 470 arrays are missing"),
    ],
    ids=["truncated", "altered", "empty", "page", "pickle", "object", "other"],
)
def test_a_file_that_is_no_npz_of_the_weights_is_refused(npz, tmp_path, contents, says):
    path, mark = tmp_path / "w.npz", tmp_path / "mark"
    path.write_bytes(contents(npz.read_bytes(), mark))
    with pytest.raises(UserError) as error:
        inception_weights.read(path)
    assert str(path) in str(error.value)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert not mark.exists(), "it ran code"


def test_an_array_file_is_no_npz(tmp_path):
    with (tmp_path / "w.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(UserError, match=r"not an \.npz"):
        inception_weights.read(tmp_path / "w.npz")
    with pytest.raises(UserError, match="No such file"):
        inception_weights.read(tmp_path / "none.npz")


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="torch is installed")
def test_without_torch_a_pth_says_what_to_do(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"anything")
    with pytest.raises(UserError, match=r"install it \(the extra `convert`\), or make an \.npz once") as error:
        inception_weights.read(tmp_path / "w.pth")
    assert "python -m sintrovae_jax.evaluators.inception_weights IN.pth OUT.npz" in str(error.value)


@pytest.mark.parametrize("zipped", [True, False])  # what torch writes now, and what it wrote when this was published
def test_a_pth_gives_what_the_npz_gives(npz, tmp_path, zipped):
    torch = pytest.importorskip("torch")
    path, out = tmp_path / "w.pth", tmp_path / "w.npz"
    tensors = {name: torch.nn.Parameter(torch.tensor(a), a.dtype.kind == "f") for name, a in published().items()}
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    params, digest = inception_weights.read(path)
    same(params, inception_weights.read(npz)[0])
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    inception_weights.convert(path, out)
    same(params, inception_weights.read(out)[0])


@pytest.mark.parametrize("kind", ["truncated", "garbage", "code", "tensor", "numbers", "other"])
def test_a_pth_that_is_not_the_weights_is_refused(tmp_path, kind):
    torch = pytest.importorskip("torch")
    path, mark = tmp_path / "w.pth", tmp_path / "mark"
    things = {"code": {"a": Code(mark)}, "tensor": torch.zeros(3), "numbers": {"a": 1}, "other": {"a": torch.zeros(3)}}
    if kind == "garbage":
        path.write_bytes(b"<html>Not found</html>")
    else:
        torch.save(things.get(kind, things["other"]), path)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(UserError, match="470 of 470" if kind == "other" else "not a .pth of named tensors, or is") as e:
        inception_weights.read(path)
    assert "\n" not in str(e.value)
    assert not mark.exists(), "it ran code"


# --- tests of finding them --------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name in (inception_weights.VARIABLE, "TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"weights")
    return path


def test_where_nothing_is_the_message_says_what_to_get_and_where_to_put_it(home):
    with pytest.raises(UserError) as error:
        inception_weights.find("")
    text = str(error.value)
    url = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{PUBLISHED}.pth"
    for part in (url, "sha256 6726825d", "eval.inception", "$SINTROVAE_INCEPTION", str(home / ".cache/sintrovae_jax")):
        assert part in text
    assert "\n" not in text


def test_the_config_comes_before_the_environment_and_that_before_the_usual_places(home, monkeypatch):
    usual = put(home / f".cache/sintrovae_jax/{PUBLISHED}.npz")
    assert inception_weights.find("") == usual
    named = put(home / "named.npz")
    monkeypatch.setenv(inception_weights.VARIABLE, str(named))
    assert inception_weights.find("") == named
    configured = put(home / "configured.pth")
    assert inception_weights.find(str(configured)) == configured
    assert inception_weights.find("~/configured.pth") == configured


def test_a_path_that_was_given_and_is_not_there_is_named(home, monkeypatch):
    put(home / f".cache/sintrovae_jax/{PUBLISHED}.npz")
    with pytest.raises(UserError, match=r"^eval\.inception=nowhere\.npz: there is no such file"):
        inception_weights.find("nowhere.npz")
    monkeypatch.setenv(inception_weights.VARIABLE, str(home))  # a folder
    with pytest.raises(UserError, match=rf"^\$SINTROVAE_INCEPTION={re.escape(str(home))}: there is no such file"):
        inception_weights.find("")


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({}, f".cache/sintrovae_jax/{PUBLISHED}.pth"),
        ({}, f".cache/torch/hub/checkpoints/{PUBLISHED}.pth"),
        ({}, ".cache/torch/hub/checkpoints/weights-inception-2015-12-05-6726825d.pth"),
        ({"TORCH_HOME": "~/elsewhere"}, f"elsewhere/hub/checkpoints/{PUBLISHED}.pth"),
        ({"XDG_CACHE_HOME": "~/caches"}, f"caches/torch/hub/checkpoints/{PUBLISHED}.pth"),
    ],
)
def test_the_published_file_is_found_where_people_have_it_and_its_checksum_is_checked(
    home, monkeypatch, variables, place
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    path = put(home / place)
    assert inception_weights.find("") == path
    with pytest.raises(UserError) as error:
        inception_weights.read(path)
    assert str(error.value).startswith(f"{path} is truncated or altered: its sha256 is 9a129038")
