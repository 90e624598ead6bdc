"""A dataset repository on the Hub: who may write, what is there, and commits that survive a bad network.

Everything goes through `huggingface_hub`, which knows HF_TOKEN and the login, HF_ENDPOINT, HF_HOME and offline mode; no
token passes through here.
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
from .patience import NoAnswer, Patience, is_of_library


logger = logging.getLogger("magpie_hf")
T = TypeVar("T")
FILES_PER_COMMIT = 50
"""Most files of a commit that adds state: the Hub's storage page recommends 50 to 100."""
PATIENCE_S = 600.0
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0
_CONFLICT = (409, 412)


class RemoteFile(NamedTuple):
    """A file that is there: bytes, git's id of it, and the sha256 of its content if it lies in LFS."""

    size: int
    oid: str
    sha256: str | None


class Head(NamedTuple):
    """A commit and the files in it, by path."""

    commit: str
    files: dict[str, RemoteFile]


class Remote:
    """A dataset repository to push to.

    `revision`: a branch (made if it is not there) or "refs/pr/N". `create_pr`: the first commit opens a pull request and
    later ones go to it; `revision` is then the pull request's. `resume`: the command that goes on, shown in errors.
    """

    def __init__(
        self,
        repo_id: str,
        *,
        revision: str | None = None,
        create_pr: bool = False,
        resume: str = "",
        patience_s: float | None = None,
    ) -> None:
        from huggingface_hub import HfApi

        self.repo_id = repo_id
        self.revision = revision
        self.create_pr = create_pr
        self.resume = resume
        self.patience = Patience(PATIENCE_S if patience_s is None else patience_s)
        self.api = HfApi(library_name="magpie_hf")

    @property
    def url(self) -> str:
        """The repository's page."""
        return f"{self.api.endpoint}/datasets/{self.repo_id}"

    def open(self, *, private: bool | None = None, gated: str | bool | None = None) -> Remote:
        """Check name and rights and create what is missing: asked before anything is paid for.

        Raises:
            ArgumentError: the name cannot be one of a repository.
            HubError: no login, no right to write, or the Hub cannot be reached.
        """
        check_online(self.resume)
        user = self._who()
        self.repo_id = full_name(self.repo_id, user["name"])
        self._check_rights(user)
        if not self.create_pr:
            self.patiently(
                lambda: self.api.create_repo(self.repo_id, repo_type="dataset", private=private, exist_ok=True)
            )
            if self.revision and not self.revision.startswith("refs/pr/"):
                branch = self.revision
                self.patiently(
                    lambda: self.api.create_branch(self.repo_id, branch=branch, repo_type="dataset", exist_ok=True)
                )
        changes: dict[str, Any] = {} if gated is None else {"gated": gated}
        if changes:
            self.patiently(lambda: self.api.update_repo_settings(self.repo_id, repo_type="dataset", **changes))
        return self

    def _who(self) -> dict[str, Any]:
        from huggingface_hub import get_token

        if not get_token():
            raise HubError(
                "There is no login for the Hub.",
                hint=f"`hf auth login`, or set HF_TOKEN to a token with the right to write.{self._go_on()}",
            )
        return self.patiently(self.api.whoami)

    def _check_rights(self, user: Mapping[str, Any]) -> None:
        namespace = self.repo_id.partition("/")[0]
        role = user.get("auth", {}).get("accessToken", {}).get("role")
        mine = {user["name"], *(org.get("name") for org in user.get("orgs", []))}
        if self.create_pr:
            return
        if role == "read":
            raise HubError(
                "The token may only read.",
                where=self.url,
                hint=f"Make one with the right to write (the Hub's settings, Access Tokens).{self._go_on()}",
            )
        if namespace not in mine:
            raise HubError(
                f"{quoted(user['name'])} has no right to write in {quoted(namespace)}.",
                where=self.url,
                hint=f"Push to {user['name']}/{self.repo_id.partition('/')[2]}, or add --create-pr.{self._go_on()}",
            )

    def head(self) -> Head:
        """Return the newest commit and its files."""

        def look() -> Head:
            info = self.api.repo_info(self.repo_id, repo_type="dataset", revision=self.revision)
            tree = self.api.list_repo_tree(self.repo_id, repo_type="dataset", revision=info.sha, recursive=True)
            return Head(str(info.sha), {entry.path: _remote_file(entry) for entry in tree if hasattr(entry, "size")})

        return self.patiently(look)

    def read(self, path: str, commit: str) -> bytes:
        """Return a small file's content."""
        import tempfile

        from huggingface_hub import hf_hub_download

        def load() -> bytes:
            with tempfile.TemporaryDirectory() as cache:
                found = hf_hub_download(self.repo_id, path, repo_type="dataset", revision=commit, cache_dir=cache)
                return Path(found).read_bytes()

        return self.patiently(load)

    def commit(self, make: Callable[[Head], Changes], message: str) -> str:
        """Make the changes one commit, and return its id; nothing to change makes none.

        `make` is asked again when somebody else's commit came between. Bytes go up first, each object that the Hub has
        already not at all; the commit that shows them comes last.
        """
        with self.patience.asking():
            made = self._committed(make, message)
        self.patience.answered(is_progress=True)
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
            except Exception as error:  # noqa: BLE001 (two libraries' errors; unknown ones are raised again)
                attempt += 1
                self.patience.hold(since=began)
                # A commit that timed out may have been made: `head` is looked at again.
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
        """Send the large files of a commit to come, one by one; what the Hub has is not sent."""
        from huggingface_hub import CommitOperationAdd

        for operation in operations:
            if isinstance(operation, CommitOperationAdd):
                self.patiently(lambda one=operation: self._upload(one), is_progress=True)  # type: ignore[misc]

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

    def patiently(self, action: Callable[[], T], *, is_progress: bool = False) -> T:
        """Do something on the Hub, again and again while the trouble looks transient.

        `is_progress`: it brings a publication nearer to its end, as looking does not.

        Raises:
            HubError: it is refused, or the trouble lasts longer than the patience.
        """
        attempt = 0
        with self.patience.asking():
            while True:
                try:
                    found = action()
                except HubError:
                    raise
                except Exception as error:  # noqa: BLE001 (two libraries' errors; unknown ones are raised again)
                    attempt += 1
                    self._wait(error, attempt, may_retry=is_transient(error))
                else:
                    self.patience.answered(is_progress=is_progress)
                    return found

    def once(self, action: Callable[[], T]) -> T:
        """Do something on the Hub under its time limit, and not again: what a second try might do twice."""
        with self.patience.asking():
            return action()

    def _wait(self, error: BaseException, attempt: int, *, may_retry: bool) -> None:
        """Wait before the next try; raise what the error means where there is to be none."""
        error = source_of(error)
        wait = wait_s(attempt, error)
        if not may_retry or wait > self.patience.left_s():
            raise self.readable(error) from None
        logger.info("The Hub: %s; trying again in %.0f s.", _said(error), wait)
        time.sleep(wait)

    def readable(self, error: BaseException) -> Exception:
        """Return an error that says what was refused and which command goes on."""
        status = status_of(error)
        where, go_on = self.url, self._go_on()
        if status == 401:
            return HubError("The Hub does not accept the login.", where=where, hint=f"`hf auth login` again.{go_on}")
        if status == 403:
            return HubError(
                "The login has no right to do this.",
                where=where,
                hint=f"Use a token that may write there, or push to a repository of yours.{go_on}",
            )
        if status == 404:
            return HubError(
                "There is no such dataset repository or revision, or the login may not see it.",
                where=where,
                hint=go_on,
            )
        if is_transient(error):
            return HubError(
                f"The Hub could not be reached for {self.patience.seconds:.0f} s ({_said(error)}).",
                where=where,
                hint=f"All that is finished is kept, here and there.{go_on}",
            )
        if isinstance(error, OSError) and status is None and not _is_of_the_net(error):
            return error
        said = getattr(error, "server_message", None) or str(error)
        return HubError(f"The Hub refused: {quoted(_no_token(said))}.", where=where, hint=go_on.strip() or None)

    def _go_on(self) -> str:
        return f" Then go on with: {self.resume}" if self.resume else ""


class Changes(NamedTuple):
    """What a commit shall hold: files to add, by path (a local file, or the content), and paths to delete."""

    add: Mapping[str, Path | bytes]
    delete: Sequence[str] = ()


def check_online(resume: str = "") -> None:
    """Raise HubError in offline mode."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        go_on = f" Then go on with: {resume}" if resume else ""
        raise HubError("Offline mode is on (HF_HUB_OFFLINE).", hint=f"Unset it to reach the Hub.{go_on}")


def full_name(repo_id: str, user: str) -> str:
    """Return the repository's name with its namespace: the user's where none is given.

    Raises:
        ArgumentError: this can be no repository's name.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    name = repo_id if "/" in repo_id else f"{user}/{repo_id}"
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ArgumentError(
            f"{quoted(repo_id)} can be no repository's name.",
            hint=f"Write it as namespace/name with letters, digits, '-', '_' and '.': {quoted(error)}",
            key="repo_id",
        ) from None
    return name


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status of an error, if it has one."""
    found = getattr(getattr(error, "response", None), "status_code", None)
    return int(found) if isinstance(found, int) else None


def is_conflict(error: BaseException) -> bool:
    """Whether somebody else's commit came between."""
    return status_of(error) in _CONFLICT


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed a little later."""
    error = source_of(error)
    status = status_of(error)
    return status in TRANSIENT if status is not None else _is_of_the_net(error)


def source_of(error: BaseException) -> BaseException:
    """Return the trouble that `huggingface_hub` wrapped into another error, e.g., of an upload; else the error."""
    found: BaseException | None = error
    while found is not None and status_of(found) is None and not _is_of_the_net(found):
        found = found.__cause__
    return found or error


def _is_of_the_net(error: BaseException) -> bool:
    return isinstance(error, (ConnectionError, TimeoutError)) or is_of_library(error)


def wait_s(attempt: int, error: BaseException | None = None) -> float:
    """Return how long to wait before trying again: doubling with jitter, or as long as the Hub says."""
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    asked_s = retry_after_s(headers.get("Retry-After") or headers.get("retry-after"))
    return Backoff(FIRST_WAIT_S, LONGEST_WAIT_S).wait_s(attempt - 1) if asked_s is None else asked_s


def _said(error: BaseException) -> str:
    """Return what kind of trouble an error is, in few words: whole texts may hold addresses."""
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


def _is_same(operation: Any, content: Path | bytes, there: RemoteFile | None) -> bool:
    """Whether the Hub's file has this content already."""
    info = operation.upload_info
    if there is None or there.size != info.size:
        return False
    if there.sha256 is not None:
        return bool(there.sha256 == info.sha256.hex())
    data = content.read_bytes() if isinstance(content, Path) else content
    return there.oid == hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
