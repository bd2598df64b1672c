"""What an installed package offers: its metadata, its commands, and how little importing it costs."""

import json
import re
import subprocess
import sys
import tomllib

import pytest
from conftest import ROOT, environment

import sintrovae_jax

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def python(*args, cwd=ROOT) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *args], cwd=cwd, env=environment(), **pipes)


def test_importing_the_package_imports_nothing_heavy_and_shows_what_it_has():
    code = """if True:
        import json, sys
        import sintrovae_jax
        shown = dir(sintrovae_jax)
        heavy = {"jax", "flax", "orbax", "tensorflow", "matplotlib", "jinja2", "wandb"} & set(sys.modules)
        names = {}
        exec("from sintrovae_jax import *", names)
        print(json.dumps([sorted(heavy), shown, sorted(set(names) - {"__builtins__"})]))
    """
    out, err = python("-c", code).communicate(timeout=120)
    heavy, shown, names = json.loads(out) if out else pytest.fail(err)
    assert heavy == []
    assert names == sorted(sintrovae_jax.__all__) == ["Model", "__version__", "load"]
    assert {"load", "Model", "__version__"} <= set(shown)
    with pytest.raises(AttributeError, match="has no attribute 'laod'"):
        _ = sintrovae_jax.laod


def relative_links(text: str) -> list[str]:
    return [link for link in re.findall(r"\]\(([^)]*)\)", text) if not link.startswith(("https://", "#"))]


def test_the_version_is_the_packages_and_the_readme_has_no_relative_link():
    pytest.importorskip("setuptools")
    out, err = python("setup.py", "--quiet", "--name", "--version", "--long-description").communicate(timeout=120)
    assert out.startswith(f"sintrovae-jax\n{sintrovae_jax.__version__}\n"), err
    repository = PROJECT["urls"]["Repository"]
    raw = repository.replace("github.com", "raw.githubusercontent.com")
    readme = (ROOT / "README.md").read_text()
    local = relative_links(readme)
    pictures = [link for link in local if link.endswith(".png")]
    assert pictures and len(pictures) < len(local)
    assert relative_links(out) == []
    for link in local:
        assert (ROOT / link.split("#")[0]).exists(), link
        assert (f"]({raw}/main/{link})" if link in pictures else f"]({repository}/blob/main/{link})") in out


def test_every_link_to_the_repository_names_the_owner_that_pyproject_names():
    owner = PROJECT["urls"]["Repository"].split("/")[3]
    files = [ROOT / "README.md", ROOT / "pyproject.toml", *(ROOT / "launch").rglob("*.ipynb"), *ROOT.glob("tests/*.py")]
    link = re.compile(r"github(?:\.com)?/(\w[\w-]*)/sintrovae_jax")
    assert {name for file in files for name in link.findall(file.read_text())} == {owner}


# A mistake for each command, some of which are seen only once the recipe has been read, and what it must name.
COMMANDS = {
    "sintrovae-jax": (["--config", "RECIPE", "--mode", "dream"], "--mode dream"),
    "sintrovae-jax-bench": (["--config", "RECIPE", "--config.seeed=1"], "seeed"),
    "sintrovae-jax-compare": ([], "WORKDIR"),
    "sintrovae-jax-export": (["WORKDIR"], "OUT"),
    "sintrovae-jax-convert": (["--config", "RECIPE", "a", "b", "c"], "official.pth"),
    "sintrovae-jax-explore": ([], "MODEL"),
}


def test_every_command_starts_and_finds_what_lies_where_it_is_started(tmp_path):
    here, recipes = tmp_path / "here", tmp_path / "recipes"
    here.mkdir()
    recipes.mkdir()
    (here / "lies_here.py").write_text("SEED = 3\n")
    recipe = recipes / "mine.py"
    recipe.write_text("import lies_here\nfrom configs.digits import get_config\n\nassert lies_here.SEED == 3\n")
    assert PROJECT["scripts"].keys() == COMMANDS.keys()
    processes = {}
    for name, place in PROJECT["scripts"].items():  # as installers write them
        module, function = place.split(":")
        script = tmp_path / name
        script.write_text(f"import sys\nfrom {module} import {function}\n\nsys.exit({function}())\n")
        args = [str(recipe) if a == "RECIPE" else a for a in COMMANDS[name][0]]
        processes[name] = python(str(script), *args, cwd=here)
    for name, process in processes.items():
        out, err = process.communicate(timeout=300)
        assert (process.returncode, out) == (2, ""), err
        assert err.startswith("error: ") and COMMANDS[name][1] in err and err.count("\n") == 1, err


def test_a_command_without_the_extra_that_it_needs_names_the_extra(tmp_path):
    """Nothing on the way to the message imports what is missing."""
    names = ("PIL", "clu", "matplotlib", "sklearn", "tensorflow", "tensorflow_datasets", "tqdm")
    code = f"import sys; sys.modules.update(dict.fromkeys({names})); from sintrovae_jax.commands import main; main()"
    process = python("-c", code, "--config", "digits", "--workdir", str(tmp_path / "run"))
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (2, "")
    assert err.startswith("error: clu, matplotlib, PIL, sklearn, ") and "install the extra `train`" in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_recipes_come_with_the_package(tmp_path):
    pytest.importorskip("setuptools")
    lib = tmp_path / "lib"
    _, err = python(
        "setup.py", "--quiet", "build", "--build-base", str(tmp_path), "--build-lib", str(lib)
    ).communicate()
    assert {path.name for path in (lib / "sintrovae_jax" / "recipes").glob("*.py")} == {
        path.name for path in (ROOT / "configs").glob("*.py")
    }, err
    templates = "sintrovae_jax/reports/templates"
    assert {path.name for path in (lib / templates).iterdir()} == {path.name for path in (ROOT / templates).iterdir()}
    code = "from sintrovae_jax import config; print(config.__file__, config.read_recipe('digits').model.channels)"
    environ = environment() | {"PYTHONPATH": str(lib)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{lib / 'sintrovae_jax' / 'config.py'} (16, 32)\n"
