"""Compiled programs that are kept on disk: where, and that they compute the same."""

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from sintrovae_jax import compile_cache, config, parallel
from sintrovae_jax.errors import UserError
from sintrovae_jax.tools import bench

SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_enable_compilation_cache",
    "jax_persistent_cache_enable_xla_caches",
    "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture
def unset(tmp_path, monkeypatch):
    """jax without a cache, and with its own settings again afterwards."""
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    yield
    compilation_cache.reset_cache()
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_default_place_is_the_users_cache(unset, tmp_path):
    compile_cache.enable()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "home" / "sintrovae_jax" / "xla")
    assert 2**28 < jax.config.jax_compilation_cache_max_size < 2**33
    assert jax.config.jax_persistent_cache_min_compile_time_secs >= 1


def test_jaxs_own_setting_counts_unless_a_place_is_given(unset, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.25)
    compile_cache.enable()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0.25
    compile_cache.enable(str(tmp_path / "given"))
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "given")


def test_off(unset, tmp_path):
    compile_cache.enable("off")
    assert not jax.config.jax_enable_compilation_cache
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_refused_only_if_it_was_given(unset, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"no compilation cache in .*file/xla"):
        compile_cache.enable(f"{tmp_path}/file/xla")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    compile_cache.enable()
    assert jax.config.jax_compilation_cache_dir is None


def test_a_program_from_the_cache_computes_the_same_bits(unset, tmp_path):
    """So a run that is resumed with one ends with the parameters of a run that was not interrupted."""
    settings = config.override(
        config.read_recipe("gaussians8"),
        {"model.channels": "(8,)", "train.batch_size": "8", "train.substeps": "2", "objective.num_vae": "0"},
    )
    events = []
    jax.monitoring.register_event_listener(lambda event, **_: events.append(event))

    def after_a_dispatch():
        jax.clear_caches()
        events.clear()
        step = bench.prepare(settings)
        state, terms = step.function(*step.arguments)
        hits = events.count("/jax/compilation_cache/cache_hits")
        return jax.tree.map(np.asarray, (parallel.unreplicate(state), terms)), hits

    compile_cache.enable(str(tmp_path / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    fresh, hits = after_a_dispatch()
    entries = sorted((tmp_path / "xla").glob("*-cache"), key=lambda entry: entry.stat().st_size)
    assert not hits and entries[-1].stat().st_size > 50_000, "the step's"

    killed = entries[0]  # while it was written
    killed.write_bytes(killed.read_bytes()[:100])
    killed.with_name(f"{killed.name.removesuffix('-cache')}-atime").unlink()
    compile_cache.enable(str(tmp_path / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    assert not killed.exists()

    kept, hits = after_a_dispatch()
    assert hits >= len(entries) - 1
    jax.tree.map(np.testing.assert_array_equal, fresh, kept)
