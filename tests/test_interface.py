"""Networks that break the interface of `models` are refused where a run begins, not scored wrongly at its end."""

import contextlib
import dataclasses

import flax.linen as nn
import pytest
import toy_family

from sintrovae_jax import config, dispatch, models, train_state
from sintrovae_jax.errors import UserError


class WithFlaxsBatchNorm(toy_family.Encoder):
    @nn.compact
    def __call__(self, x, train=False, groups=1):
        return super().__call__(nn.BatchNorm(use_running_average=not train)(x))


class WithoutSize(nn.Module):
    size: int


def settings(monkeypatch, encoder):
    def build(model, shape, dtype):
        return encoder, toy_family.Decoder(shape)

    family = dataclasses.replace(toy_family.FAMILY, build=build)
    monkeypatch.setitem(models.FAMILIES, "toy", family)
    values = config.read_recipe("configs/digits.py")
    values.model.family = "toy"
    return values


def test_batch_norm_that_knows_no_groups_and_roles(monkeypatch):
    _, _, create = dispatch.from_config(settings(monkeypatch, WithFlaxsBatchNorm(10)))
    with pytest.raises(TypeError, match="WithFlaxsBatchNorm has batch_stats that"):
        train_state.initial(create)


@pytest.mark.parametrize(("recipe", "refused"), [("gaussians8", True), ("shapes", True), ("digits", False)])
def test_rematerialisation_is_refused_by_families_without_it(recipe, refused):
    values = config.read_recipe(f"configs/{recipe}.py")
    values.model.remat = True
    with pytest.raises(UserError, match=r"set model\.remat=False") if refused else contextlib.nullcontext():
        dispatch.from_config(values)


def test_an_encoder_without_the_size_of_its_latents(monkeypatch):
    with pytest.raises(TypeError, match=r"model\.family=toy has no field z_dim"):
        dispatch.from_config(settings(monkeypatch, WithoutSize(10)))
