"""A dataset repository on the Hub: permissions, files, and commits that are retried when the network fails.

All requests use `huggingface_hub`, which reads HF_TOKEN, HF_ENDPOINT, HF_HOME and offline mode; this module handles no
token.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ..backoff import TRANSIENT, Backoff, retry_after_s
from ..errors import ArgumentError, HubError, quoted
from .retries import NoAnswer, RetryClock, is_of_library


logger = logging.getLogger("magpie_hf")
T = TypeVar("T")
FILES_PER_COMMIT = 50
"""Maximum number of state files per commit; the storage page of the Hub recommends 50 to 100."""
RETRY_TIMEOUT_S = 600.0
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0
_CONFLICT = (409, 412)


class RemoteFile(NamedTuple):
    """An existing file: size in bytes, git object id, and the sha256 of its content if it is stored in LFS."""

    size: int
    oid: str
    sha256: str | None


class Head(NamedTuple):
    """A commit and the files in it, by path."""

    commit: str
    files: dict[str, RemoteFile]


class Remote:
    """A dataset repository to push to.

    `revision`: a branch (created if missing) or "refs/pr/N". `create_pr`: the first commit opens a pull request and
    later ones are added to it; `revision` is then that of the pull request. `resume`: the command that resumes, shown
    in errors. `retry_timeout_s`: for how long failed requests are retried.
    """

    def __init__(
        self,
        repo_id: str,
        *,
        revision: str | None = None,
        create_pr: bool = False,
        resume: str = "",
        retry_timeout_s: float | None = None,
    ) -> None:
        from huggingface_hub import HfApi

        self.repo_id = repo_id
        self.revision = revision
        self.create_pr = create_pr
        self.resume = resume
        self.clock = RetryClock(RETRY_TIMEOUT_S if retry_timeout_s is None else retry_timeout_s)
        self.api = HfApi(library_name="magpie_hf")

    @property
    def url(self) -> str:
        """The page of the repository."""
        return f"{self.api.endpoint}/datasets/{self.repo_id}"

    def open(self, *, private: bool | None = None, gated: str | bool | None = None) -> Remote:
        """Check name and permissions, and create repository and branch if missing; called before any row is generated.

        Raises:
            ArgumentError: the repository name is invalid.
            HubError: you are not logged in, have no write permission, or the Hub cannot be reached.
        """
        check_online(self.resume)
        user = self._who()
        self.repo_id = full_name(self.repo_id, user["name"])
        self._check_rights(user)
        if not self.create_pr:
            self.with_retries(
                lambda: self.api.create_repo(self.repo_id, repo_type="dataset", private=private, exist_ok=True)
            )
            if self.revision and not self.revision.startswith("refs/pr/"):
                branch = self.revision
                self.with_retries(
                    lambda: self.api.create_branch(self.repo_id, branch=branch, repo_type="dataset", exist_ok=True)
                )
        changes: dict[str, Any] = {} if gated is None else {"gated": gated}
        if changes:
            self.with_retries(lambda: self.api.update_repo_settings(self.repo_id, repo_type="dataset", **changes))
        return self

    def _who(self) -> dict[str, Any]:
        from huggingface_hub import get_token

        if not get_token():
            raise HubError(
                "You are not logged in to the Hub.",
                hint=f"Run `hf auth login`, or set HF_TOKEN to a token with write permission.{self._resume_hint()}",
            )
        return self.with_retries(self.api.whoami)

    def _check_rights(self, user: Mapping[str, Any]) -> None:
        namespace = self.repo_id.partition("/")[0]
        role = user.get("auth", {}).get("accessToken", {}).get("role")
        mine = {user["name"], *(org.get("name") for org in user.get("orgs", []))}
        if self.create_pr:
            return
        if role == "read":
            raise HubError(
                "The token only has read permission.",
                where=self.url,
                hint=f"Create one with write permission (Hub settings, Access Tokens).{self._resume_hint()}",
            )
        if namespace not in mine:
            raise HubError(
                f"{quoted(user['name'])} has no write permission in {quoted(namespace)}.",
                where=self.url,
                hint=f"Push to {user['name']}/{self.repo_id.partition('/')[2]}, or add --create-pr.{self._resume_hint()}",
            )

    def head(self) -> Head:
        """Return the latest commit and its files."""

        def look() -> Head:
            info = self.api.repo_info(self.repo_id, repo_type="dataset", revision=self.revision)
            tree = self.api.list_repo_tree(self.repo_id, repo_type="dataset", revision=info.sha, recursive=True)
            return Head(str(info.sha), {entry.path: _remote_file(entry) for entry in tree if hasattr(entry, "size")})

        return self.with_retries(look)

    def read(self, path: str, commit: str) -> bytes:
        """Return the content of a small file."""
        import tempfile

        from huggingface_hub import hf_hub_download

        def load() -> bytes:
            with tempfile.TemporaryDirectory() as cache:
                found = hf_hub_download(self.repo_id, path, repo_type="dataset", revision=commit, cache_dir=cache)
                return Path(found).read_bytes()

        return self.with_retries(load)

    def commit(self, make: Callable[[Head], Changes], message: str) -> str:
        """Make the changes in one commit, and return its id; without changes, nothing is committed.

        `make` is called again if another commit was made in between. Files are uploaded first, without those that the
        Hub already has; the commit is created last.
        """
        with self.clock.limited():
            made = self._committed(make, message)
        self.clock.restart(is_progress=True)
        return made

    def _committed(self, make: Callable[[Head], Changes], message: str) -> str:
        attempt = 0
        while True:
            head = self.head()
            changes = make(head)
            operations = self._operations(changes, head)
            if not operations:
                return head.commit
            self.upload(operations)
            began = time.monotonic()
            try:
                return self._commit(operations, head, message)
            except Exception as error:  # noqa: BLE001 (errors of two libraries; others are raised again)
                attempt += 1
                self.clock.hold(since=began)
                # A commit that timed out may exist: `head` is read again.
                self._wait(error, attempt, may_retry=is_conflict(error) or is_transient(error))

    def _commit(self, operations: Sequence[Any], head: Head, message: str) -> str:
        made = self.api.create_commit(
            self.repo_id,
            operations,
            commit_message=message,
            repo_type="dataset",
            revision=self.revision,
            create_pr=self.create_pr,
            parent_commit=head.commit,
        )
        if self.create_pr:
            self.create_pr, self.revision = False, made.pr_revision
        return str(made.oid)

    def _operations(self, changes: Changes, head: Head) -> list[Any]:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        out: list[Any] = []
        for path, content in changes.add.items():
            source = str(content) if isinstance(content, Path) else content
            operation = CommitOperationAdd(path, source)
            if not _is_same(operation, content, head.files.get(path)):
                out.append(operation)
        return out + [CommitOperationDelete(path) for path in sorted(changes.delete) if path in head.files]

    def upload(self, operations: Iterable[Any]) -> None:
        """Upload the large files of a commit before it is created, one by one, without those that the Hub has."""
        from huggingface_hub import CommitOperationAdd

        for operation in operations:
            if isinstance(operation, CommitOperationAdd):
                self.with_retries(lambda one=operation: self._upload(one), is_progress=True)  # type: ignore[misc]

    def _upload(self, operation: Any) -> None:
        self.api.preupload_lfs_files(
            self.repo_id,
            [operation],
            repo_type="dataset",
            revision=self.revision,
            create_pr=self.create_pr,
            free_memory=False,
            num_threads=1,
        )

    def with_retries(self, action: Callable[[], T], *, is_progress: bool = False) -> T:
        """Send a request to the Hub, and retry it after transient failures.

        `is_progress`: whether a success is progress of the upload (True for uploads and commits, not for reads).

        Raises:
            HubError: the request is rejected, or fails for longer than the retry timeout.
        """
        attempt = 0
        with self.clock.limited():
            while True:
                try:
                    found = action()
                except HubError:
                    raise
                except Exception as error:  # noqa: BLE001 (errors of two libraries; others are raised again)
                    attempt += 1
                    self._wait(error, attempt, may_retry=is_transient(error))
                else:
                    self.clock.restart(is_progress=is_progress)
                    return found

    def once(self, action: Callable[[], T]) -> T:
        """Send a request to the Hub with a time limit, without retries: a second try might repeat its effect."""
        with self.clock.limited():
            return action()

    def _wait(self, error: BaseException, attempt: int, *, may_retry: bool) -> None:
        """Wait before the next try; without another try, raise the error in readable form."""
        error = source_of(error)
        wait = wait_s(attempt, error)
        if not may_retry or wait > self.clock.left_s():
            raise self.readable(error) from None
        logger.info("The Hub: %s; retrying in %.0f s.", _said(error), wait)
        time.sleep(wait)

    def readable(self, error: BaseException) -> Exception:
        """Return an error that describes what was rejected and names the command that resumes."""
        status = status_of(error)
        where, resume = self.url, self._resume_hint()
        if status == 401:
            return HubError("The Hub rejected the token.", where=where, hint=f"Run `hf auth login` again.{resume}")
        if status == 403:
            return HubError(
                "The token has no permission for this.",
                where=where,
                hint=f"Use a token with write permission, or push to your own namespace.{resume}",
            )
        if status == 404:
            return HubError(
                "The dataset repository or revision does not exist, or the token has no access to it.",
                where=where,
                hint=resume.strip() or None,
            )
        if is_transient(error):
            return HubError(
                f"The Hub could not be reached for {self.clock.seconds:.0f} s ({_said(error)}).",
                where=where,
                hint=f"Finished rows are kept, here and on the Hub.{resume}",
            )
        if isinstance(error, OSError) and status is None and not _is_of_the_net(error):
            return error
        said = getattr(error, "server_message", None) or str(error)
        return HubError(f"The Hub refused: {quoted(_no_token(said))}.", where=where, hint=resume.strip() or None)

    def _resume_hint(self) -> str:
        return f" Then resume with: {self.resume}" if self.resume else ""


class Changes(NamedTuple):
    """The changes of a commit: files to add, by path (a local file, or the content), and paths to delete."""

    add: Mapping[str, Path | bytes]
    delete: Sequence[str] = ()


def check_online(resume: str = "") -> None:
    """Raise HubError in offline mode."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        resume = f" Then resume with: {resume}" if resume else ""
        raise HubError("Offline mode is on (HF_HUB_OFFLINE).", hint=f"Unset it to reach the Hub.{resume}")


def full_name(repo_id: str, user: str) -> str:
    """Return the full name of a repository; the default namespace is that of the user.

    Raises:
        ArgumentError: the name is invalid.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    name = repo_id if "/" in repo_id else f"{user}/{repo_id}"
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ArgumentError(
            f"Invalid repository name {quoted(repo_id)}.",
            hint=f"Write it as namespace/name with letters, digits, '-', '_' and '.': {quoted(error)}",
            key="repo_id",
        ) from None
    return name


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status of an error, None if it has none."""
    found = getattr(getattr(error, "response", None), "status_code", None)
    return int(found) if isinstance(found, int) else None


def is_conflict(error: BaseException) -> bool:
    """Whether another commit was made in between."""
    return status_of(error) in _CONFLICT


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    error = source_of(error)
    status = status_of(error)
    return status in TRANSIENT if status is not None else _is_of_the_net(error)


def source_of(error: BaseException) -> BaseException:
    """Return the network error that `huggingface_hub` wrapped in another one, e.g., of an upload; else the error."""
    found: BaseException | None = error
    while found is not None and status_of(found) is None and not _is_of_the_net(found):
        found = found.__cause__
    return found or error


def _is_of_the_net(error: BaseException) -> bool:
    return isinstance(error, (ConnectionError, TimeoutError)) or is_of_library(error)


def wait_s(attempt: int, error: BaseException | None = None) -> float:
    """Return the seconds to wait before the next try: as the Hub requests, else exponential backoff with jitter."""
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    asked_s = retry_after_s(headers.get("Retry-After") or headers.get("retry-after"))
    return asked_s or Backoff(FIRST_WAIT_S, LONGEST_WAIT_S).wait_s(attempt - 1)


def _said(error: BaseException) -> str:
    """Return the kind of an error in a few words, without its full text, which may contain URLs."""
    status = status_of(error)
    if status is not None:
        return f"status {status}"
    return str(error) if isinstance(error, NoAnswer) else type(error).__name__


def _no_token(text: str) -> str:
    return re.sub(r"hf_[A-Za-z0-9]{8,}", "hf_…", text)


def _remote_file(entry: Any) -> RemoteFile:
    lfs = getattr(entry, "lfs", None)
    sha256 = None if lfs is None else getattr(lfs, "sha256", None) or lfs.get("sha256")
    return RemoteFile(int(entry.size), str(entry.blob_id), sha256)


def _is_same(operation: Any, content: Path | bytes, existing: RemoteFile | None) -> bool:
    """Whether the Hub already has a file with this content."""
    info = operation.upload_info
    if existing is None or existing.size != info.size:
        return False
    if existing.sha256 is not None:
        return bool(existing.sha256 == info.sha256.hex())
    data = content.read_bytes() if isinstance(content, Path) else content
    return existing.oid == hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
