"""The tensors of official PyTorch checkpoints, by name: conversion to this project's variables and back.

For a config, `table` lists the official tensors, our arrays, and the official layouts: convolutions [out, in, h, w],
transposed convolutions [in, out, h, w], dense layers [out, in], feature maps flattened channel by channel. An array has
the same meaning on both sides, including BatchNorm's running averages and equalised learning rates, so only the layout
changes, and a round trip preserves a tensor bit for bit. This module does not need PyTorch.

Style-based files hold one dictionary per network; this module prefixes names with the network: 'generator.const'.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from sintrovae_jax import dispatch, train_state
from sintrovae_jax.arrays import Tree
from sintrovae_jax.errors import UserError
from sintrovae_jax.models.layers import ROLES

_FUSED = 128  # pixels: from this size up, the release doubles the image by a transposed convolution
AVERAGE = ("decoder", "averages", "style")  # where we keep the average of styles
_BLUR = np.outer([1, 2, 1], [1, 2, 1]).astype(np.float32) / 16


Path = tuple[str, ...]  # the path of one of our arrays


class Layout(NamedTuple):
    """Functions from the official layout of an array to ours, and back."""

    ours: Callable[[np.ndarray], np.ndarray]
    theirs: Callable[[np.ndarray], np.ndarray]


SAME = Layout(lambda x: x, lambda x: x)


class Entry(NamedTuple):
    """An official tensor: our array at `path`; or, if we have none, a constant `value`, verified if `checked`.

    part: (number, count) if the tensor is one of several equal parts of our array, along its last axis.
    """

    name: str
    path: Path = ()
    layout: Layout = SAME
    value: np.ndarray | None = None
    checked: bool = False
    part: tuple[int, int] = (0, 1)

    def theirs(self, ours: np.ndarray) -> np.ndarray:
        """The official tensor for our array."""
        number, count = self.part
        return self.layout.theirs(np.split(ours, count, -1)[number])


DENSE = Layout(np.transpose, np.transpose)
POINTWISE = Layout(lambda x: x[:, :, 0].T, lambda x: x.T[:, :, None])  # a pointwise convolution
CONV = Layout(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))
# The kernel of a transposed convolution, mirrored for a convolution of the doubled image.
CONV_UP = Layout(lambda x: x[:, :, ::-1, ::-1].transpose(2, 3, 0, 1), lambda x: x[::-1, ::-1].transpose(2, 3, 0, 1))
# BatchNorm's averages: the release has one set, we have one for each role.
AVERAGES = Layout(lambda x: x[None], lambda x: x[0])
AVERAGES_OF_DECODER = Layout(lambda x: np.stack([x] * len(ROLES)), lambda x: x.mean(0))
CHANNELS = Layout(np.ravel, lambda x: x.reshape(1, -1, 1, 1))
IMAGE = Layout(lambda x: x[0].transpose(1, 2, 0), lambda x: x.transpose(2, 0, 1)[None])


def _from_image(h: int, w: int, c: int, classes: int = 0) -> Layout:
    """The weights of a dense layer after a feature map: theirs [out, c·h·w], ours [h·w·c, out]; labels come last."""
    size = h * w * c
    features = Layout(
        lambda x: x.reshape(-1, c, h, w).transpose(2, 3, 1, 0).reshape(size, -1),
        lambda x: x.reshape(h, w, c, -1).transpose(3, 2, 0, 1).reshape(-1, size),
    )
    if not classes:
        return features
    return Layout(
        lambda x: np.concatenate([features.ours(x[:, :size]), x[:, size:].T]),
        lambda x: np.concatenate([features.theirs(x[:size]), x[size:].T], 1),
    )


def _to_image(h: int, w: int, c: int) -> Layout:
    """The weights of a dense layer before a feature map: theirs [c·h·w, in], ours [in, h·w·c]."""
    return Layout(
        lambda x: x.reshape(c, h, w, -1).transpose(3, 1, 2, 0).reshape(-1, h * w * c),
        lambda x: x.reshape(-1, h, w, c).transpose(3, 1, 2, 0).reshape(c * h * w, -1),
    )


def _bias_to_image(h: int, w: int, c: int) -> Layout:
    """The bias of a dense layer before a feature map: theirs [c·h·w], ours [h·w·c]."""
    return Layout(
        lambda x: x.reshape(c, h, w).transpose(1, 2, 0).ravel(), lambda x: x.reshape(h, w, c).transpose(2, 0, 1).ravel()
    )


def _layer(name: str, path: Path, weight: Layout, bias: Layout | None = SAME) -> Iterator[Entry]:
    yield Entry(f"{name}.weight", (*path, "kernel"), weight)
    if bias is not None:
        yield Entry(f"{name}.bias", (*path, "bias"), bias)


# --- 2D densities -----------------------------------------------------------------------------------------------------


def _mlp(config: ConfigDict) -> Iterator[Entry]:
    count = len(config.model.channels)
    layers = [*["input", *(f"hidden_{i}" for i in range(1, count))][:count], "output"]
    for network in ("encoder", "decoder"):
        for i, layer in enumerate(layers):
            yield from _layer(f"{network}.main.{layer}", (network, "params", f"Dense_{i}", "dense"), DENSE)
    yield Entry("decoder.loggamma", value=np.zeros((), np.float32))  # unused


# --- images -----------------------------------------------------------------------------------------------------------


def _norm(name: str, root: Path, *path: str) -> Iterator[Entry]:
    averages = AVERAGES if root[-1] == "encoder" else AVERAGES_OF_DECODER
    for theirs, collection, ours, layout in (
        ("weight", "params", "scale", SAME),
        ("bias", "params", "bias", SAME),
        ("running_mean", "batch_stats", "mean", averages),
        ("running_var", "batch_stats", "var", averages),
    ):
        yield Entry(f"{name}.{theirs}", (*root, collection, *path, ours), layout)
    # PyTorch only uses this count for averages without momentum.
    yield Entry(f"{name}.num_batches_tracked", value=np.zeros((), np.int64))


def _block(name: str, root: Path, block: str, changes: bool) -> Iterator[Entry]:
    """A residual block. changes: whether the number of channels changes, so that the shortcut has weights."""
    if changes:
        yield from _layer(f"{name}.conv_expand", (*root, "params", block, "shortcut"), CONV, None)
    for i in (1, 2):
        yield from _layer(f"{name}.conv{i}", (*root, "params", block, f"conv{i}"), CONV, None)
        yield from _norm(f"{name}.bn{i}", root, block, f"norm{i}")


def _conv(config: ConfigDict) -> Iterator[Entry]:
    yield from _conv_encoder(config)
    yield from _conv_decoder(config, "decoder", ("decoder",))
    if config.objective.target_period:
        yield from _conv_decoder(config, "target_decoder", ("target",))


def _final(config: ConfigDict) -> tuple[int, int, int]:
    """The last feature map's height, width and channels."""
    side = config.data.image_size // 2 ** len(config.model.channels)
    return side, side, config.model.channels[-1]


def _conv_encoder(config: ConfigDict) -> Iterator[Entry]:
    size, channels, root = config.data.image_size, config.model.channels, ("encoder",)
    yield from _layer("encoder.main.0", (*root, "params", "conv"), CONV, None)
    yield from _norm("encoder.main.1", root, "norm")
    for i, (inputs, width) in enumerate(itertools.pairwise(channels)):
        yield from _block(f"encoder.main.res_in_{size // 2 ** (i + 1)}", root, f"block{i}", inputs != width)
    yield from _block(f"encoder.main.res_in_{size // 2 ** len(channels)}", root, "last", False)
    layout = _from_image(*_final(config), config.model.classes)
    yield from _layer("encoder.fc", (*root, "params", "posterior", "dense"), layout)


def _conv_decoder(config: ConfigDict, name: str, root: Path) -> Iterator[Entry]:
    widths, final = tuple(reversed(config.model.channels)), _final(config)
    dense = (*root, "params", "latent", "dense")
    yield from _layer(f"{name}.fc.0", dense, _to_image(*final), _bias_to_image(*final))
    for i, (inputs, width) in enumerate(itertools.pairwise((widths[0], *widths))):
        # The names assume that the first feature map has 4 pixels per side.
        yield from _block(f"{name}.main.res_in_{4 * 2**i}", root, f"block{i}", inputs != width)
    yield from _block(f"{name}.main.res_in_{4 * 2 ** len(widths)}", root, "last", False)
    yield from _layer(f"{name}.main.predict", (*root, "params", "conv"), CONV)


# --- style-based ------------------------------------------------------------------------------------------------------


def _style(config: ConfigDict) -> Iterator[Entry]:
    layers = 2 * len(config.model.channels)
    # The official average style has one row per layer, all equal, because it is computed before styles are mixed.
    average = Layout(lambda x: x[0], lambda x: np.tile(x, (layers, 1)))
    yield Entry("dlatent_avg.buff", AVERAGE, average)
    for suffix, root in (("", ()), ("_s", ("ema",)))[: 1 + train_state.has_ema(config)]:
        yield from _style_encoder(config.model.channels, suffix, (*root, "encoder", "params"))
        yield from _style_decoder(config.model.channels, suffix, (*root, "decoder", "params"))
        yield from _mapping(f"mapping_tl{suffix}", 3, (*root, "encoder", "params"))
        yield from _mapping(f"mapping_fl{suffix}", 8, (*root, "decoder", "params"))


def _mapping(name: str, count: int, root: Path) -> Iterator[Entry]:
    for i in range(count):
        yield from _layer(f"{name}.map_blocks.{i}.fc", (*root, f"mapping{i}"), DENSE)


def _blur(name: str, channels: int) -> Entry:
    return Entry(f"{name}.blur.weight", value=np.tile(_BLUR, (channels, 1, 1, 1)), checked=True)


def _style_encoder(channels: Sequence[int], suffix: str, root: Path) -> Iterator[Entry]:
    for i, width in enumerate(channels):
        rgb = f"discriminator{suffix}.from_rgb.{i}.from_rgb"  # theirs are counted from the finest, ours by level
        yield from _layer(rgb, (*root, f"from_rgb{len(channels) - 1 - i}"), CONV)
        name, block = f"discriminator{suffix}.encode_block.{i}", (*root, f"block{i}")
        yield _blur(name, width)
        for k in (1, 2):
            yield Entry(f"{name}.bias_{k}", (*block, f"bias{k}"), CHANNELS)
            yield from _layer(f"{name}.conv_{k}", (*block, f"conv{k}"), CONV, None)
            yield from _layer(f"{name}.style_{k}", (*block, f"style{k}"), DENSE)


def _style_decoder(channels: Sequence[int], suffix: str, root: Path) -> Iterator[Entry]:
    yield Entry(f"generator{suffix}.const", (*root, "constant"), IMAGE)
    for i, width in enumerate(reversed(channels)):
        yield from _layer(f"generator{suffix}.to_rgb.{i}.to_rgb", (*root, f"to_rgb{i}"), CONV)
        name, block = f"generator{suffix}.decode_block.{i}", (*root, f"block{i}")
        yield _blur(name, width)
        if i > 0:
            layout = CONV_UP if 4 * 2**i >= _FUSED else CONV
            yield from _layer(f"{name}.conv_1", (*block, "conv1"), layout, None)
        yield from _layer(f"{name}.conv_2", (*block, "conv2"), CONV, None)
        for k in (1, 2):
            yield Entry(f"{name}.noise_weight_{k}", (*block, f"noise{k}"), CHANNELS)
            yield Entry(f"{name}.bias_{k}", (*block, f"bias{k}"), CHANNELS)
            yield from _layer(f"{name}.style_{k}", (*block, f"modulation{k}"), DENSE)


# --- point clouds -----------------------------------------------------------------------------------------------------


def _point_cloud(config: ConfigDict) -> Iterator[Entry]:
    encoder, decoder = ("encoder", "params"), ("decoder", "params")
    for i in range(len(config.model.channels)):  # convolution, ReLU, BatchNorm
        yield from _layer(f"encoder.conv.{3 * i}", (*encoder, f"point{i}"), POINTWISE, None)
        yield from _norm(f"encoder.conv.{3 * i + 2}", ("encoder",), f"norm{i}")
    yield from _layer("encoder.fc.0", (*encoder, "hidden", "dense"), DENSE)
    for number, name in enumerate(("mu", "std")):  # "std" is the logvar
        for entry in _layer(f"encoder.{name}_layer", (*encoder, "posterior", "dense"), DENSE):
            yield entry._replace(part=(number, 2))
    layers = [*(f"hidden{i}" for i in range(len(config.model.decoder_channels))), "points"]
    for i, layer in enumerate(layers):  # dense, ReLU
        yield from _layer(f"decoder.model.{2 * i}", (*decoder, layer, "dense"), DENSE)


# --- both ways --------------------------------------------------------------------------------------------------------

_FAMILIES = {"mlp": _mlp, "conv": _conv, "style": _style, "point_cloud": _point_cloud}
_COPIES = {"target_decoder": "target", "_s": "ema"}  # the suffixes of networks that are copies
_HINTS = {
    "target": "a target decoder needs objective.target_period above 0",
    "ema": "averaged copies (_s) need growth.ema_images or train.ema above 0",
}


def _copy_of(name: str) -> str:
    """'target' or 'ema' if an official name belongs to a copy, otherwise ''."""
    network = name.split(".", 1)[0]
    return next((copy for mark, copy in _COPIES.items() if network.endswith(mark)), "")


def table(config: ConfigDict) -> list[Entry]:
    """Every tensor of the official checkpoint of a config's networks. Raises `UserError` if the release has none."""
    family = config.model.family
    if family not in _FAMILIES or (family == "mlp" and config.data.image_size):
        networks = f"model.family={family}" + (" for images" if family in _FAMILIES else "")
        raise UserError(f"the official release has no networks of {networks}; choose another --config")
    if config.model.prior != "normal":
        raise UserError(f"the official networks have no learnt prior, and model.prior={config.model.prior}")
    if config.model.classes and family != "conv":
        raise UserError(f"the official networks of model.family={family} take no labels: set model.classes=0")
    if config.model.output != "linear":
        raise UserError(f"the official networks have no model.output={config.model.output}: set it to linear")
    return list(_FAMILIES[family](config))


def abstract_variables(config: ConfigDict) -> dict[str, Tree]:
    """The shapes of our variables: {'encoder', 'decoder', and if the config has them 'target' and 'ema'}."""
    fresh = jax.eval_shape(dispatch.from_config(config)[2])
    copies = {"target": fresh.target, "ema": fresh.ema}
    return fresh.variables | {name: tree for name, tree in copies.items() if tree is not None}


def from_official(config: ConfigDict, tensors: dict[str, np.ndarray]) -> dict[str, Tree]:
    """An official checkpoint's tensors as our variables, float32: {'encoder', 'decoder'[, 'target'][, 'ema']}.

    A target decoder or averaged networks that the config has but the file lacks start as copies, as in a fresh run.
    Raises `UserError`, listing every name or shape that does not fit.
    """
    expected, shapes = table(config), flatten_dict(abstract_variables(config))
    stored = {_copy_of(name) for name in tensors} | {""}
    expected = [entry for entry in expected if _copy_of(entry.name) in stored]
    _refuse(expected, shapes, tensors)
    parts: dict[Path, list[np.ndarray]] = {}
    for entry in expected:  # parts come in order
        if entry.path:
            parts.setdefault(entry.path, []).append(entry.layout.ours(tensors[entry.name]))
    variables = {path: np.array(np.concatenate(part, -1), np.float32, order="C") for path, part in parts.items()}
    return _completed(shapes, variables)


def _completed(shapes: dict[Path, Any], variables: dict[Path, np.ndarray]) -> dict[str, Tree]:
    """Adds missing copies, and missing parts of copies: the release saves no average style for averaged networks."""
    for path in shapes:
        if path not in variables:
            origin = ("decoder", *path[1:]) if path[0] == "target" else path[1:]
            variables[path] = variables[origin].copy()
    return unflatten_dict(variables)


def copies_made(config: ConfigDict, tensors: dict[str, np.ndarray]) -> list[str]:
    """The copies, 'target' or 'ema', that the config has and the file lacks."""
    stored = {_copy_of(name) for name in tensors}
    return [name for name in _HINTS if name in abstract_variables(config) and name not in stored]


def unused(config: ConfigDict, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors that no network uses and for which we have no array, to be passed to `to_official` later."""
    return {e.name: tensors[e.name] for e in table(config) if not e.path and not e.checked and e.name in tensors}


def to_official(
    config: ConfigDict, variables: dict[str, Tree], unused: Mapping[str, np.ndarray] = {}
) -> dict[str, np.ndarray]:
    """Our variables as the official checkpoint's tensors, C-contiguous.

    If the config has averaged networks, which the release does not have, they are written as the release's networks.
    """
    if config.model.family != "style" and "ema" in variables:
        variables = variables | variables["ema"]
    leaves = flatten_dict(variables)
    return {
        entry.name: np.array(
            entry.theirs(np.asarray(leaves[entry.path])) if entry.path else unused.get(entry.name, entry.value),
            order="C",
        )
        for entry in table(config)
    }


def _refuse(expected: list[Entry], shapes: dict[Path, Any], tensors: dict[str, np.ndarray]) -> None:
    """Raises `UserError`, listing everything that does not fit."""
    known = {entry.name for entry in expected}
    unknown = [name for name in tensors if name not in known]
    missing = [e.name for e in expected if e.name not in tensors and (e.path or e.checked)]
    misshapen = [
        f"{entry.name} ({tuple(tensors[entry.name].shape)} there, {shape} here)"
        for entry in expected
        if entry.name in tensors and tensors[entry.name].shape != (shape := _shape(entry, shapes))
    ]
    problems = {"missing": missing, "unknown": unknown, "of another shape": misshapen}
    if not misshapen:
        used = [entry.name for entry in expected if entry.path and entry.name in tensors]
        problems["not of floating point"] = [name for name in used if tensors[name].dtype.kind != "f"]
        problems["not finite"] = [name for name in used if not np.isfinite(tensors[name]).all()]
        problems["of other values than these networks are made for"] = _other_values(expected, tensors)
    hints = {_HINTS[copy] for name in unknown if (copy := _copy_of(name))}
    lines = [f"{len(names)} {kind}: {', '.join(map(_printable, names))}" for kind, names in problems.items() if names]
    if lines:
        hint = "; ".join([*sorted(hints), "give the --config that it was trained as"])
        raise UserError(f"the tensors do not fit the config; {'; '.join(lines)}; {hint}")


def _printable(name: str) -> str:
    return name.encode("unicode_escape").decode()


def _shape(entry: Entry, shapes: dict[Path, Any]) -> tuple[int, ...]:
    """The official shape of an entry, computed with an array that takes no memory."""
    if entry.value is not None:
        return entry.value.shape
    return entry.theirs(np.broadcast_to(np.float32(0), shapes[entry.path].shape)).shape


def _other_values(expected: list[Entry], tensors: dict[str, Any]) -> list[str]:
    """The tensors with unexpected values: checked constants, and average styles that differ between layers."""
    out = [
        e.name
        for e in expected
        if e.value is not None and e.checked and e.name in tensors and not np.allclose(tensors[e.name], e.value)
    ]
    for entry in expected:
        if entry.path == AVERAGE and entry.name in tensors:
            rows = tensors[entry.name]
            out += [] if np.allclose(rows, rows[:1], atol=1e-4) else [entry.name]
    return out
