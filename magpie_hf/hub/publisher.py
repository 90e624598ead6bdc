"""Publish a run while it is running: finished rows at intervals, configs as soon as they are complete.

One thread sends all requests. If it fails, the generation continues: the failure is logged once and retried. If it
persists, it is raised at the end of the run, when all rows are finished and saved.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from ..errors import HubError, MagpieError
from ..storage.rundir import RunDir
from ..storage.state import Published
from .download import download_run
from .manifest import closed_segments, run_name, run_root, state_files
from .push import ConfigFiles, push_config
from .remote import FILES_PER_COMMIT, Changes, Head, Remote
from .settings import PushSettings


logger = logging.getLogger("magpie_hf")
LAST_TRY_S = 20.0
SLOWEST_FILE_S = 3600.0
"""Additional seconds, after the retry timeout, that `finish` waits for the thread: it may still be sending a file."""


class Publisher:
    """Publishes a run directory: call `open` first, then `finish` at the end, or `stop` if the run stopped."""

    def __init__(self, run_dir: RunDir, settings: PushSettings, *, resume: str = "") -> None:
        self.run_dir = run_dir
        self.settings = settings
        known = run_dir.state.published
        is_same = known is not None and known.repo_asked == settings.repo
        pull_request = known.revision if known is not None and is_same and settings.create_pr else None
        self.remote = Remote(
            settings.repo,
            revision=pull_request or settings.revision,
            create_pr=settings.create_pr and pull_request is None,
            resume=resume,
            retry_timeout_s=settings.retry_timeout_s,
        )
        self._todo: queue.Queue[ConfigFiles] = queue.Queue()
        self._wake = threading.Event()
        self._ending = False
        self._abandoned = False
        self._error: MagpieError | None = None
        self._thread: threading.Thread | None = None
        self._sent: set[str] = set()

    def open(self) -> Publisher:
        """Check login and permissions, create the repository, and start the thread.

        Raises:
            ArgumentError: the repository name is invalid.
            HubError: you are not logged in, have no write permission, or the Hub cannot be reached; raised before any row
            is generated.
        """
        self.remote.open(private=self.settings.private, gated=self.settings.gated)
        self._adopt()
        small = state_files(self.run_dir)
        self.remote.commit(lambda head: Changes(small), "Start a run")
        self._remember()
        self.run_dir.save()  # a killed run resumes with the same pull request
        self._thread = threading.Thread(target=self._work, name="magpie-hub", daemon=True)
        self._thread.start()
        return self

    def _adopt(self) -> None:
        """Download the rows of this run that another machine finished, so that the same command resumes it anywhere."""
        root = self.run_dir.path
        if not self.settings.state or self.remote.create_pr or any(root.glob("stages/*/journal/*.jnl")):
            return
        head, mine = self.remote.head(), self.run_dir.state
        if f"{run_root(mine)}/run.json" not in head.files:
            return
        theirs = download_run(self.remote, run_name(mine), head, root)
        logger.info("Resuming with the finished rows of this run from %s.", self.remote.url)
        mine.pins = theirs.pins.updated(mine.pins)
        for key, stage in theirs.stages.items():
            mine.stages.setdefault(key, stage)
        self.run_dir.save()

    def _remember(self) -> None:
        self.run_dir.state.published = Published(self.settings.repo, self.remote.repo_id, self.remote.revision)

    def ready(self, config: ConfigFiles) -> None:
        """Add a complete config to the queue; the thread publishes it as soon as possible."""
        self._todo.put(config)
        self._wake.set()

    def _work(self) -> None:
        last = time.monotonic()
        is_last = False
        while not is_last:
            self._wake.wait(timeout=max(0.0, last + self.settings.every_s - time.monotonic()))
            self._wake.clear()
            if self._abandoned:
                return
            is_last = self._ending  # configs that were ready before the end are published in this round
            is_due = time.monotonic() >= last + self.settings.every_s or is_last
            try:
                if is_due:
                    self._push_state(all_closed=is_last)
                self._push_ready()
                self._error = None
            except MagpieError as error:
                if self._error is None and not is_last:
                    logger.warning("Publishing is delayed: %s", error.message)
                self._error = error
                is_due = True
            except Exception as error:
                self._error = HubError(f"Publishing failed: {type(error).__name__}.", where=self.remote.url)
                logger.debug("publishing failed", exc_info=True)
                is_due = True
            last = time.monotonic() if is_due else last

    def _push_ready(self) -> None:
        while not self._todo.empty():
            config = self._todo.queue[0]
            push_config(self.remote, config, state_files(self.run_dir))
            self._todo.get_nowait()

    def _push_state(self, *, all_closed: bool) -> None:
        """Upload finished rows that the Hub does not have, a few files per commit; the last commit includes the state."""
        waiting: dict[str, Path] = {}
        if self.settings.state:
            segments = closed_segments(self.run_dir, all_closed=all_closed)
            waiting = {path: file for path, file in segments if path not in self._sent}
        while True:
            batch = dict(list(waiting.items())[:FILES_PER_COMMIT])
            waiting = {path: file for path, file in waiting.items() if path not in batch}
            small = {} if waiting else state_files(self.run_dir)
            self.remote.commit(lambda head, b=batch, s=small: _new(head, b, s), "Finished rows")  # type: ignore[misc]
            self._sent |= set(batch)
            if not waiting:
                return

    def finish(self) -> str:
        """Publish all remaining files, wait for the upload, and return the URL of the repository.

        Raises:
            HubError: files could not be uploaded; the hint has the command that resumes.
        """
        self.remote.clock.last_round()
        self._end(SLOWEST_FILE_S)
        if self._error is not None:
            raise self._error
        self._remember()
        return self.remote.url

    def stop(self) -> None:
        """Try for a short time to upload finished rows. Errors are only logged, because the run raises its own error."""
        clock = self.remote.clock
        clock.seconds = min(clock.seconds, LAST_TRY_S)
        clock.last_round()
        self._end(LAST_TRY_S)
        if self._error is not None:
            logger.warning("Some finished rows were not published: %s", self._error.message)

    def abandon(self) -> None:
        """Stop sending without waiting for the current request."""
        self._abandoned = True
        self._wake.set()

    def _end(self, grace_s: float) -> None:
        """Wait for the thread, at most `grace_s` longer than the retry timeout."""
        if self._thread is None:
            return
        self._ending = True
        self._wake.set()
        left = 1.0
        while self._thread.is_alive() and left > 0:
            left = (
                self.remote.clock.left_s() + grace_s
            )  # computed again after each wait, because each uploaded file restarts the clock
            self._thread.join(max(0.0, left))
        if self._thread.is_alive():
            self.abandon()
            self._error = HubError(
                "The last upload to the Hub did not finish in time and was canceled.",
                where=self.remote.url,
                hint=f"All finished rows are kept. Resume with: {self.remote.resume or 'the same command'}",
            )
        self._thread = None


def _new(head: Head, segments: Mapping[str, Path], small: Mapping[str, bytes]) -> Changes:
    """Return the files that the Hub does not have: a segment never changes, so path and size identify it."""
    missing = {
        path: file
        for path, file in segments.items()
        if path not in head.files or head.files[path].size != file.stat().st_size
    }
    return Changes({**missing, **small})
