# SPDX-License-Identifier: Apache-2.0
"""Upload of a checked folder to a repository of the Hub."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard, set_client_factory
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,  # that of the HTTP client, the parent of all refusals and failures
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from huggingface_hub.utils._http import default_client_factory

from ..console.redaction import known_secrets, redact_text
from .card import for_repository
from .checks import check_folder
from .fresh_process import compare_without_package
from .published_files import sort_files


__all__ = ["TIMEOUT_S", "Publication", "hub_errors", "prepare_publication", "upload_publication"]

TIMEOUT_S = 60.0
"""Seconds without an answer after which a request to the Hub ends."""


@dataclass(frozen=True)
class Publication:
    """Folder that is ready to be uploaded.

    Attributes:
        folder: Copies of the files that go to the Hub, and nothing else.
        repo_id: The repository.
        sizes: Bytes of each file, by name.
        left_out: Files of the original folder that are not uploaded.
    """

    folder: Path
    repo_id: str
    sizes: Mapping[str, int]
    left_out: tuple[str, ...]


def prepare_publication(folder: Path, repo_id: str, staging: Path) -> Publication:
    """Check a folder, copy what is to be published, and load the copy in a fresh process. No network.

    Args:
        folder: A saved model with image processor and card.
        repo_id: Repository on the Hub, `owner/name`.
        staging: An empty folder that gets the copies. The card's snippets load the repository there.

    Raises:
        ValueError: If the id is none, or the folder must not be published; names every reason.
    """
    _check_repo_id(repo_id)
    _raise_if(check_folder(folder), folder)
    contents = sort_files(folder)
    for name in contents.published:
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, staging / name)
    card = staging / "README.md"
    card.write_text(for_repository(card.read_text(encoding="utf-8"), repo_id), encoding="utf-8")
    _raise_if(compare_without_package(staging), folder)
    sizes = {name: (staging / name).stat().st_size for name in contents.published}
    return Publication(staging, repo_id, sizes, tuple(contents.left_out))


def _check_repo_id(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
        is_complete = repo_id.count("/") == 1
    except HFValidationError as error:
        raise ValueError(f"REPO_ID must be the id of a repository, owner/name, got {repo_id!r}: {error}") from error
    if not is_complete:
        raise ValueError(f"REPO_ID must be owner/name, got {repo_id!r}. `hf auth whoami` prints your user name.")


def _raise_if(problems: list[str], folder: Path) -> None:
    if problems:
        raise ValueError(f"{folder} is not published:\n" + "\n".join(f"- {problem}." for problem in problems))


def upload_publication(
    publication: Publication,
    private: bool = False,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    api: HfApi | None = None,
) -> str:
    """Upload a prepared folder. An interrupted upload resumes when it is called again.

    Args:
        publication: What `prepare_publication` returned.
        private: Whether a new repository is private; an existing one is not changed.
        revision: Branch to commit to, made if missing; None: main.
        commit_message: First line of the commit.
        create_pr: Whether to open a pull request on an existing repository instead.
        api: Client of the Hub.

    Returns:
        Address of the commit, or of the pull request.

    Raises:
        ValueError: If the card is not valid to the Hub, or `create_pr` and `revision` are both given.
        ConnectionError: If the Hub cannot be reached or refuses; with the way out.
    """
    if create_pr and revision is not None:  # the Hub opens pull requests on main only
        raise ValueError(f"Give either `--create_pr` or `--revision {revision}`: a pull request goes to main only.")
    api = HfApi() if api is None else api
    where: dict[str, Any] = {"repo_id": publication.repo_id, "repo_type": "model"}
    with hub_errors(publication.repo_id, "Nothing is lost: the same command resumes the upload."):
        # the Hub's own check, which it would also make of the commit
        ModelCard.load(publication.folder / "README.md").validate()
        if not create_pr:
            # None: the Hub's default, which an organization may have set to private
            api.create_repo(**where, private=private or None, exist_ok=True)
        if revision is not None:
            api.create_branch(**where, branch=revision, exist_ok=True)
        commit: Any = api.upload_folder(
            **where,
            folder_path=str(publication.folder),
            commit_message=redact_text(commit_message or "", known_secrets())
            or f"Upload {publication.repo_id.split('/')[-1]}",
            revision=revision,
            create_pr=create_pr,
        )
    return str(commit.pr_url or commit.commit_url)


@contextmanager
def hub_errors(repo_id: str, again: str) -> Iterator[None]:
    """Turn failures of the Hub into a `ConnectionError` with a sentence; a Hub that does not answer is one.

    Args:
        repo_id: The repository.
        again: A sentence on what is not lost, and how to try again.
    """
    # for the whole process: uploads of a run are sent by other threads
    set_client_factory(_make_client)
    try:
        yield
    except (OSError, RuntimeError, HTTPError, JSONDecodeError, KeyError) as error:
        raise ConnectionError(_describe(error, repo_id, again)) from error


def _make_client() -> Any:
    client = default_client_factory()
    client.timeout = TIMEOUT_S  # by default it waits for ever
    return client


def _describe(error: Exception, repo_id: str, again: str) -> str:
    """Return what went wrong with the Hub, and the way out."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, (JSONDecodeError, KeyError)):
        return f"What answered is not the Hub (a login page of the network, or a proxy?). {again}"
    if type(error).__name__.endswith("Timeout"):  # those of the HTTP client
        return f"The Hub did not answer within {TIMEOUT_S:g} s. {again}"
    if isinstance(error, OfflineModeIsEnabled):
        return f"The Hub is switched off by HF_HUB_OFFLINE=1. Run `HF_HUB_OFFLINE=0 python ...`. {again}"
    if isinstance(error, LocalTokenNotFoundError) or status == 401:
        return f"You are not logged in to the Hub. Run `hf auth login`, with a token that may write. {again}"
    if status == 403:
        return f"Your token may not write to {repo_id!r}. Take a token with write access, or another owner. {again}"
    if isinstance(error, (RepositoryNotFoundError, RevisionNotFoundError)) or status == 404:
        return f"There is no repository {repo_id!r}, or your token has no access to it. {again}"
    return f"The Hub could not be reached, or refused: {' '.join(str(error).split())}. {again}"
