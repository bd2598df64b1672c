"""Models on the Hugging Face Hub: `hf:USER/NAME`, or `hf:USER/NAME@REVISION` with a branch, a tag or a commit.

Only the files of an export (`FILES`) are downloaded, into the cache of huggingface_hub (the extra `hub`). They may come
from anyone and are not trusted. Private models need huggingface_hub's token (`hf auth login`, or HF_TOKEN).
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import sintrovae_jax
from sintrovae_jax import extras, files, workdirs
from sintrovae_jax.errors import Unavailable, UserError
from sintrovae_jax.parallel import first_line

# Patterns of fnmatch, whose * also matches slashes, so each ends with the name, or kind of name, of an export's file.
_HEX = "[0-9a-f]" * 32
_ARRAYS = ("manifest.ocdbt", f"d/{_HEX}")
_ITEM = ("_METADATA", "commit_success.txt", *_ARRAYS, *(f"ocdbt.process_[0-9]*/{name}" for name in _ARRAYS))
_STEP = f"{workdirs.CHECKPOINTS}/[0-9]*"
FILES = (
    *(workdirs.CONFIG, workdirs.RESULTS, "README.md", f"{workdirs.FIGURES}/*.png", f"{workdirs.STANDING}/[0-9]*.npz"),
    *(f"{_STEP}/_CHECKPOINT_METADATA", f"{_STEP}/commit_success.txt"),
    *(f"{_STEP}/{item}/{name}" for item in ("networks", "ema") for name in _ITEM),
)
_OURS = (f"{workdirs.CHECKPOINTS}/", f"{workdirs.STANDING}/", f"{workdirs.FIGURES}/", workdirs.RESULTS)
_CALLER: dict[str, Any] = {"library_name": "sintrovae_jax", "library_version": sintrovae_jax.__version__}


class Repository(NamedTuple):
    """A model on the Hub. name: USER/NAME. revision: '' for its main branch."""

    name: str
    revision: str = ""

    def __str__(self) -> str:
        return files.HUB + self.name + (f"@{self.revision}" if self.revision else "")


def parse(text: str) -> Repository:
    """The repository that `hf:USER/NAME[@REVISION]` names. Raises `UserError` if it names none."""
    found = re.fullmatch(rf"{files.HUB}([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", text, re.ASCII)
    if not found or ".." in text:
        raise UserError(f"{text!r} names no model on the Hub: it is hf:USER/NAME, or hf:USER/NAME@REVISION")
    return Repository(found[1], found[2] or "")


def fetch(text: str) -> Path:
    """The folder in the Hub's cache with the files of a repository's export, downloaded if necessary.

    Uses the files in the cache if the Hub cannot be reached. Raises `UserError` if there is no such repository or
    revision, it may not be read or has no model of this package; `Unavailable` if the Hub or the disk does not answer.
    """
    repository = parse(text)
    extras.need_hub()
    import huggingface_hub

    with _reporting(repository):
        folder = Path(
            huggingface_hub.snapshot_download(
                repository.name, revision=repository.revision or None, allow_patterns=list(FILES), **_CALLER
            )
        )
    if not (folder / workdirs.CONFIG).is_file() or not workdirs.has_checkpoints(folder):
        needed = f"{workdirs.CONFIG} with {workdirs.CHECKPOINTS}/"
        raise UserError(f"{repository} has no model of sintrovae_jax: it has no {needed}")
    return folder


def destination(text: str) -> Repository:
    """The repository to push to. Raises `UserError` for a revision: commits go to the main branch."""
    repository = parse(text)
    if repository.revision:
        raise UserError(f"{text}: a push is a commit on the main branch; give hf:{repository.name}")
    return repository


def check(repository: Repository, private: bool) -> list[str] | None:
    """The names of the files in a repository to push to; None if it does not exist yet.

    Raises `UserError` if nobody is logged in, if the repository is public although a private one is asked for, or if it
    holds something other than a model of this package; `Unavailable` if the Hub does not answer.
    """
    extras.need_hub()
    import huggingface_hub

    if not huggingface_hub.get_token():
        raise UserError(f"pushing to {repository} needs a token: log in with `hf auth login`, or set HF_TOKEN")
    with _reporting(repository):
        try:
            about = huggingface_hub.HfApi(**_CALLER).model_info(repository.name)
        except huggingface_hub.errors.RepositoryNotFoundError as error:
            if isinstance(error, huggingface_hub.errors.GatedRepoError):
                raise
            return None
    if private and not about.private:
        raise UserError(f"{repository} is there and public: --private is for a new one; change it on its page")
    names = [file.rfilename for file in about.siblings or []]
    foreign = [name for name in names if not name.startswith(".") and not name.startswith(("README", "LICENSE"))]
    if foreign and not (workdirs.CONFIG in names and any(name.startswith(_OURS[0]) for name in names)):
        raise UserError(f"{repository} has something else than a model of sintrovae_jax ({foreign[0]}): choose another")
    return names


def push(folder: Path, repository: Repository, private: bool, message: str) -> str:
    """Uploads the files of a folder as one commit, which deletes an earlier export's files. Returns its address.

    Creates the repository if it does not exist. Raises as `check` does, and `UserError` if the token may not write.
    """
    present = check(repository, private)
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(**_CALLER)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    operations: list[Any] = [CommitOperationAdd(name, folder / name) for name in names]
    stale = [name for name in present or () if name.startswith(_OURS) and name not in names]
    operations += [CommitOperationDelete(name) for name in stale]
    with _reporting(repository):
        if present is None:
            api.create_repo(repository.name, private=private)
        return str(api.create_commit(repository.name, operations, commit_message=message).commit_url)


@contextlib.contextmanager
def _reporting(repository: Repository) -> Iterator[None]:
    """For calls of huggingface_hub: turns their errors into one line, and keeps it from printing warnings."""
    from huggingface_hub.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    except (UserError, Unavailable):
        raise
    except Exception as error:  # huggingface_hub's, httpx's, hf_xet's and the disk's
        raise _explained(repository, error) from error
    finally:
        logging.set_verbosity(before)


def _explained(repository: Repository, error: Exception) -> UserError | Unavailable:
    """The error to raise for an error of huggingface_hub."""
    from huggingface_hub import constants, errors

    at, log_in = constants.ENDPOINT, "log in with `hf auth login`, or set HF_TOKEN"
    if isinstance(error, errors.LocalEntryNotFoundError | RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # the reason why a download or an upload failed
    said: dict[type[Exception], str] = {
        errors.GatedRepoError: f"is open to those alone whom its owner lets in: ask on {at}/{repository.name}",
        errors.RepositoryNotFoundError: f"is not at {at}, or is private and not yours to read: {log_in}",
        errors.RevisionNotFoundError: "is no branch, tag or commit that is there",
        errors.HFValidationError: f"names no model on the Hub: {first_line(error)}",
    }
    if constants.HF_HUB_OFFLINE:
        absent = f"is not in {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to ask the Hub"
        said |= {errors.OfflineModeIsEnabled: absent, errors.LocalEntryNotFoundError: absent}
    for kind, text in said.items():
        if isinstance(error, kind):
            return UserError(f"{repository} {text}")
    if isinstance(error, errors.HfHubHTTPError):
        return _refused(repository, at, error)
    if isinstance(error, OSError) and error.filename:
        return Unavailable(f"{repository}: cannot read or write {error.filename}: {error.strerror}")
    return Unavailable(f"{repository}: {at} does not answer ({first_line(error)})")


def _refused(repository: Repository, at: str, error: Any) -> UserError | Unavailable:
    """The error to raise for an HTTP status."""
    status, said = error.response.status_code, " ".join((error.server_message or "").split())
    if status == 401:
        return UserError(f"{repository}: {at} does not take this token: `hf auth login` again, or set another HF_TOKEN")
    if status == 403:
        return UserError(f"{repository}: this token may not do that at {at} ({said or 'forbidden'})")
    if status < 500 and status not in (408, 429):
        return UserError(f"{repository}: {at} refuses it ({status}{said and ': '}{said})")
    return Unavailable(f"{repository}: {at} does not answer ({status}{said and ': '}{said})")
