"""Models on the Hugging Face Hub: `hf:USER/NAME`, against a server on this machine that speaks its interface."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import standin_hub
import yaml
from conftest import environment, free_port, here

import sintrovae_jax
from sintrovae_jax import checkpoint, extras, hub, inference, workdirs
from sintrovae_jax import config as configs
from sintrovae_jax.errors import Unavailable, UserError
from sintrovae_jax.tools import compare, export

NAME, TOKEN = "ada/digits-model", "hf_of_ada"


@pytest.fixture
def server():
    with standin_hub.running() as server:
        server.tokens = {TOKEN: "ada", "hf_of_bob": "bob"}
        yield server


@pytest.fixture
def at(server, tmp_path, monkeypatch):
    """The server is the Hub of this process, whose cache is empty; nobody is logged in."""
    constants = pytest.importorskip("huggingface_hub.constants")
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    for name, value in {
        "ENDPOINT": server.address,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_TOKEN_PATH": str(tmp_path / "token"),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_OFFLINE": False,
    }.items():
        monkeypatch.setattr(constants, name, value)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return server


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> dict[str, bytes]:
    """The files of an export."""
    folder = tmp_path_factory.mktemp("hub") / "out"
    export.export("pretrained:digits", folder)
    return contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def stored(at, exported):
    """The export in a repository."""
    at.repositories[NAME] = standin_hub.Repository()
    at.repositories[NAME].add(exported)
    return at.repositories[NAME]


def log_in(monkeypatch, token=TOKEN):
    monkeypatch.setenv("HF_TOKEN", token)


def gone(monkeypatch):
    """The Hub's place is one where nobody answers."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{free_port()}")


def same(path, other="pretrained:digits"):
    """Whether two models have the same variables, and the same kind of averages."""
    a, b = sintrovae_jax.load(path), sintrovae_jax.load(other)
    jax.tree.map(np.testing.assert_array_equal, a.variables, b.variables)
    return a.batch_norm == b.batch_norm == "standing"


# Reading


def test_a_model_on_the_hub_is_the_model_that_was_exported(at, stored, monkeypatch):
    first = stored.refs["main"]
    stored.refs["v1"] = first
    assert same(f"hf:{NAME}")
    assert sintrovae_jax.load(f"hf:{NAME}", 2000).batch_norm == "standing"
    stored.add({"config.json": b"{}"})
    for revision in ("v1", first):
        assert inference.locate(f"hf:{NAME}@{revision}")[0].name == first
        assert sintrovae_jax.load(f"hf:{NAME}@{revision}").step == 2000
    with pytest.raises(UserError, match="no config of this project"):
        sintrovae_jax.load(f"hf:{NAME}")
    assert ("GET", f"/{NAME}/resolve/{first}/checkpoints/2000/ema/_METADATA") in at.asked
    monkeypatch.setattr(checkpoint, "_COMPRESSED", 2)  # links count as the files in the cache that they lead to
    assert sintrovae_jax.load(f"hf:{NAME}@v1").step == 2000


def test_only_the_files_of_an_export_are_downloaded(at, stored, exported):
    """Nothing that could run, nothing that an export does not have, whatever lies beside it."""
    item = "checkpoints/2000/ema"
    strange = {
        *("evil.pkl", "model.pth", "load_model.py", "config.py", "checkpoints/2000/evil.pkl", f"{item}/d/evil.pkl"),
        *(f"{item}/d/{'0' * 32}.pkl", "standing/2000.pkl", "standing/x.npz", "figures/x.svg", "samples.npz"),
        *("checkpoints/2000/training/_METADATA", f"checkpoints/2000/training/d/{'0' * 32}", "data.json", "x.json"),
    }
    welcome = {"README.md": b"card", "figures/samples.png": b"\x89PNG\0"}
    stored.add({name: b"cos\nsystem\n" for name in strange} | welcome)
    folder = inference.locate(f"hf:{NAME}")[0]
    assert contents(folder) == exported | welcome
    assert not [path for _, path in at.asked if "/resolve/" in path and path.partition("/resolve/")[2][41:] in strange]


def test_it_loads_from_the_cache_when_the_hub_is_gone(at, stored, monkeypatch):
    here = inference.locate(f"hf:{NAME}")
    at.down = 503
    assert inference.locate(f"hf:{NAME}") == here
    gone(monkeypatch)
    assert inference.locate(f"hf:{NAME}") == here
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert same(f"hf:{NAME}")
    with pytest.raises(UserError, match=r"^hf:ada/other is not in .*cache, and HF_HUB_OFFLINE forbids to ask the Hub$"):
        sintrovae_jax.load("hf:ada/other")


@pytest.mark.parametrize(
    ("path", "says"),
    [
        *((path, "names no model on the Hub: it is hf:USER/NAME") for path in ("hf:", "hf:digits", "hf://ada/digits")),
        *((path, "names no model on the Hub: it is hf:USER/NAME") for path in ("hf:a/b/c", "hf:a/b@", "hf:a/../b@x y")),
        ("hf:ada/a--b", "^hf:ada/a--b names no model on the Hub: Cannot have -- or .. in repo_id"),
        (
            "hf:ada/none",
            r"^hf:ada/none is not at http://127.0.0.1:\d+, or is private and not yours to read: log in with",
        ),
        (f"hf:{NAME}@v9", f"^hf:{NAME}@v9 is no branch, tag or commit that is there$"),
        ("hf:ada/empty", "^hf:ada/empty has no model of sintrovae_jax: it has no config.json with checkpoints/$"),
        ("hf:ada/bert", "^hf:ada/bert has no model of sintrovae_jax"),
        ("hf:ada/gated", "^hf:ada/gated is open to those alone whom its owner lets in: ask on http"),
    ],
)
def test_what_is_no_model_is_one_line(at, stored, path, says, capfd):
    at.repositories |= {f"ada/{name}": standin_hub.Repository() for name in ("empty", "bert", "gated")}
    at.repositories["ada/bert"].add({"config.json": b'{"model_type": "bert"}', "model.safetensors": b"\0"})
    at.repositories["ada/gated"].gated = True
    with pytest.raises(UserError, match=says) as error:
        sintrovae_jax.load(path)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_a_hub_that_does_not_answer_may_answer_later(at, stored, monkeypatch):
    at.down = 503
    with pytest.raises(Unavailable, match=rf"^hf:{NAME}: http://127.0.0.1:\d+ does not answer \(503\)$"):
        sintrovae_jax.load(f"hf:{NAME}")
    gone(monkeypatch)
    with pytest.raises(Unavailable, match=r"does not answer \(.*refused"):
        sintrovae_jax.load(f"hf:{NAME}")


def test_private_models_need_the_token_of_who_may_read_them(at, stored, monkeypatch):
    stored.private = True
    with pytest.raises(UserError, match="is private and not yours to read"):
        sintrovae_jax.load(f"hf:{NAME}")
    log_in(monkeypatch, "hf_of_bob")
    with pytest.raises(UserError, match="is private and not yours to read"):
        sintrovae_jax.load(f"hf:{NAME}")
    log_in(monkeypatch, "hf_of_nobody")
    with pytest.raises(UserError, match="does not take this token: `hf auth login` again, or set another HF_TOKEN"):
        sintrovae_jax.load(f"hf:{NAME}")
    log_in(monkeypatch)
    assert sintrovae_jax.load(f"hf:{NAME}").step == 2000


def test_files_of_strangers_are_as_strange_on_the_hub(at, stored, tmp_path):
    """Code that a config names is not run, and a link out of the cache does not make a file larger."""
    config = json.loads(stored.files["config.json"])
    config["eval"]["features"] = "antigravity:fly"
    stored.add({"config.json": json.dumps(config).encode()})
    model = sintrovae_jax.load(f"hf:{NAME}")
    assert model.config.eval.features == "antigravity:fly" and "antigravity" not in sys.modules
    step = inference.locate(f"hf:{NAME}")[0] / "checkpoints" / "2000"
    size = checkpoint._size(step)
    assert size == sum(len(x) for name, x in stored.files.items() if name.startswith("checkpoints/"))
    (tmp_path / "large").write_bytes(bytes(10**6))
    (step / "outside").symlink_to(tmp_path / "large")
    assert size < checkpoint._size(step) < size + 1000


def test_modes_do_not_write_into_the_cache(tmp_path):
    out, code = here(["--workdir", f"hf:{NAME}", "--mode", "sample"])
    assert code == 2 and out.count("\n") == 1
    assert f"hf:{NAME} is a model on the Hub, which is only read: export it to a folder first" in out
    for program in (compare.main, export.main):
        with pytest.raises(UserError, match="is a model on the Hub, which is only read"):
            program(["", *(["pretrained:digits"] if program is export.main else []), f"hf:{NAME}"])


def test_without_the_extra_it_is_one_line(monkeypatch):
    find = extras.importlib.util.find_spec
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda n: None if n == "huggingface_hub" else find(n))
    for call in (
        lambda: sintrovae_jax.load(f"hf:{NAME}"),
        lambda: export.push("pretrained:digits", None, f"hf:{NAME}"),
    ):
        with pytest.raises(UserError, match=r"^huggingface_hub is not installed: install the extra `hub`"):
            call()


# Writing


def card(repository) -> tuple[dict, str]:
    """The front matter of README.md, and the rest."""
    _, front, text = repository.files["README.md"].decode().split("---\n", 2)
    return yaml.safe_load(front), text


def test_a_push_is_a_commit_with_a_card_that_loads_again(at, monkeypatch, tmp_path, capsys):
    log_in(monkeypatch)
    arguments = ["", "pretrained:digits", "--push", f"hf:{NAME}", "--data-licence", "CC BY-SA 3.0"]
    export.main(arguments)
    repository = at.repositories[NAME]
    assert capsys.readouterr().out == f"{at.address}/{NAME}/commit/{repository.refs['main']}\n"
    assert not repository.private and repository.messages == ["initial commit", "Step 2000"]
    assert same(f"hf:{NAME}")

    front, text = card(repository)
    results = workdirs.read_results(inference.PRETRAINED / "digits")
    (index,) = front["model-index"]
    ((task,),) = ([result["metrics"] for result in index["results"]],)
    assert {m["type"]: m["value"] for m in task}["frechet_classifier"] == results["frechet_classifier"]
    assert front | {"license": "cc-by-sa-3.0", "library_name": "sintrovae_jax"} == front
    assert {"soft-introvae", "jax"} <= set(front["tags"])
    assert f'sintrovae_jax.load("hf:{NAME}")' in text and "| frechet_classifier | 1.66391 |" in text
    assert "gave it: CC BY-SA 3.0." in text and repository.files["figures/samples.png"].startswith(b"\x89PNG")


def test_a_push_replaces_the_model_of_the_one_before(at, stored, monkeypatch, tmp_path):
    """What an earlier export has is gone, what else is there stays, and what is kept here is what was pushed."""
    stored.private = True
    log_in(monkeypatch)
    monkeypatch.setattr(extras, "_TRAIN", ("no_such_library",))
    others = {"LICENSE": b"mine", "notebook.ipynb": b"{}", ".gitattributes": stored.files[".gitattributes"]}
    old = {"checkpoints/10/ema/d/x": b"\0", "standing/10.npz": b"\0", "figures/old.png": b"\0"}
    stored.add(others | old)
    export.main(["", "pretrained:digits", str(tmp_path / "out"), "--push", f"hf:{NAME}", "--private"])
    assert stored.messages[-1] == "Step 2000"
    assert contents(tmp_path / "out") | others == stored.files
    front, text = card(stored)
    assert front["license"] == "unknown" and "did not give the licence of the data" in text and ".png" not in text
    assert same(f"hf:{NAME}")


def test_a_push_that_cannot_be_is_refused_before_anything_is_written(at, monkeypatch, tmp_path):
    def refused(says, *arguments, to=f"hf:{NAME}", kind=UserError):
        with pytest.raises(kind, match=says):
            export.main(["", "pretrained:digits", str(tmp_path / "out"), "--push", to, *arguments])
        assert not (tmp_path / "out").exists()

    refused("needs a token: log in with `hf auth login`, or set HF_TOKEN")
    log_in(monkeypatch)
    refused("names no model on the Hub", to="ada/digits")
    refused("a push is a commit on the main branch; give hf:ada/digits", to="hf:ada/digits@v1")
    refused("which run no code: not with --stablehlo", "--stablehlo")
    at.repositories |= {NAME: standin_hub.Repository(), "ada/bert": standin_hub.Repository()}
    at.repositories["ada/bert"].add({"config.json": b"{}", "model.safetensors": b"\0"})
    refused("is there and public: --private is for a new one", "--private")
    refused(r"something else than a model of sintrovae_jax \(config.json\): choose another", to="hf:ada/bert")
    at.down = 502
    refused(r"does not answer \(502\)", kind=Unavailable)
    at.down = 0
    for option in (["--private"], ["--data-licence", "MIT"]):
        with pytest.raises(UserError, match=f"^{option[0]} is for --push$"):
            export.main(["", "pretrained:digits", str(tmp_path / "out"), *option])
    assert [repository.messages for repository in at.repositories.values()] == [
        ["initial commit"],
        ["initial commit", "by hand"],
    ]


def test_a_token_that_may_not_write_is_one_line(at, stored, monkeypatch):
    log_in(monkeypatch, "hf_of_bob")
    for name, says in ((NAME, "you cannot write here"), ("ada/new", "You don't have the rights to create a model")):
        with pytest.raises(UserError, match=rf"hf:{name}: this token may not do that at http.*\({says}"):
            hub.push(inference.PRETRAINED / "digits" / "standing", hub.parse(f"hf:{name}"), False, "x")


# What an export says of where it was made


def test_an_export_says_nothing_of_where_it_was_made(tmp_path, monkeypatch):
    """Neither the place of the export, nor those that the config of the run names, nor names of data."""
    secret = tmp_path / "secret"
    run, out = secret / "run", secret / "out"
    shutil.copytree(inference.PRETRAINED / "digits", run)
    values, results = (json.loads((run / name).read_text()) for name in ("config.json", "results.json"))
    values["data"] |= {"source": f"folder:{secret}/pictures/", "dir": "gs://bucket/sets"}
    values["eval"] |= {"cache": f"{secret}/cache", "inception": f"{secret}/x.npz"}
    values["eval"]["ood"]["source"], values["objective"]["vgg"] = "npz:other.npz", "~/vgg.npz"
    results |= {"skipped": 1, "skipped_files": ["secret.png"]}
    (run / "config.json").write_text(json.dumps(values))
    (run / "results.json").write_text(json.dumps(results))
    monkeypatch.chdir(secret)
    export.export("run", "out")
    for name, content in contents(out).items():
        assert b"secret" not in content and str(tmp_path).encode() not in content, name
    config = sintrovae_jax.load(out).config
    assert (config.data.source, config.data.dir) == ("folder:pictures", "gs://bucket/sets")
    assert (config.eval.ood.source, config.objective.vgg) == ("npz:other.npz", "~/vgg.npz")
    assert (config.eval.cache, config.eval.inception) == (configs.default().eval.cache, "")
    assert workdirs.read_results(out)["skipped"] == 1


def test_the_models_of_the_package_say_nothing_of_where_they_were_made():
    for name, content in contents(inference.PRETRAINED).items():
        assert not [place for place in (b"/tmp/", b"/home/", b"/root/", b"/work/") if place in content], name


# The real commands, in processes of their own


@pytest.mark.soak
def test_the_commands_reach_the_hub_that_the_environment_names(server, tmp_path):
    pytest.importorskip("huggingface_hub")
    env = environment() | {
        "HF_ENDPOINT": server.address,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": TOKEN,
    }
    env.pop("HF_HUB_OFFLINE", None)

    def run(*arguments, **extra):
        line = [sys.executable, *arguments]
        done = subprocess.run(line, env=env | extra, cwd=tmp_path, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr.splitlines()

    module = ("-m", "sintrovae_jax.tools.export")
    push, pull = ["pretrained:digits", "--push", f"hf:{NAME}", "--private"], [f"hf:{NAME}", "out"]
    both = f"from sintrovae_jax.tools.export import main; main(['', *{push}]); main(['', *{pull}])"
    code, out, err = run("-c", both)  # one process for both: its imports take most of the time
    pushed = f"{server.address}/{NAME}/commit/{server.repositories[NAME].refs['main']}"
    assert (code, out) == (0, f"{pushed}\nout: step 2000 of hf:{NAME}\n"), err
    program = f"import sintrovae_jax; print(sintrovae_jax.load('hf:{NAME}').step)"
    server.down = 503
    code, out, err = run("-c", program, HF_HUB_OFFLINE="1", HF_ENDPOINT=f"http://127.0.0.1:{free_port()}")
    assert (code, out) == (0, "2000\n"), err
    code, out, err = run(*module, "hf:ada/other", "other")
    assert (code, out) == (74, "") and err[-1].startswith("error: hf:ada/other: http"), err
    assert not (tmp_path / "other").exists()
