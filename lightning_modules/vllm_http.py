"""Requests to a vLLM server, with errors that say which setting names it and what to do."""

from __future__ import annotations

import http.client
import json
import queue
import threading
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

CONNECT_TIMEOUT_S = 10.0
REQUEST_TIMEOUT_S = 1800.0
WATCH_EVERY_S = 5.0
"""Between looks at a server that has not answered yet."""

SERVER_ERROR = 500
ENGINE_DEAD = 503
"""What vLLM's ``/health`` answers then."""


class VLLMClient:
    """Speaks HTTP with one server."""

    def __init__(self, url: str, setting: str) -> None:
        """Connect to nothing yet.

        Args:
            url: address of the server.
            setting: what names it in a config, for errors.
        """
        self.url, self.setting = url.rstrip("/"), setting
        # A proxy of the cluster can't reach this machine by the name that the machine has for itself.
        is_here = urllib.parse.urlsplit(self.url).hostname in ("localhost", "127.0.0.1", "::1")
        self._opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if is_here else []))

    def get(self, path: str) -> Any:
        """What the server answers to a short question, from JSON; see `post` for errors."""
        content, _ = self._open(urllib.request.Request(self.url + path), CONNECT_TIMEOUT_S)
        return json.loads(content)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """What the server answers to `body`: from JSON, None where there is nothing, bytes of any other kind.

        Raises:
            ConnectionError: if no server answers, or one whose engine is dead (out of memory, mostly).
            RuntimeError: if it refuses; with its reason.
        """
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        content, kind = self._open(request, REQUEST_TIMEOUT_S)
        if kind == "application/json":
            return json.loads(content)
        return content or None

    def _open(self, request: urllib.request.Request, timeout_s: float) -> tuple[bytes, str]:
        """Ask in a thread, and look after the server until it answers: one whose engine was killed never does."""
        outcome: queue.SimpleQueue[tuple[bytes, str] | Exception] = queue.SimpleQueue()

        def ask() -> None:
            try:
                with self._opener.open(request, timeout=timeout_s) as response:
                    outcome.put((response.read(), response.headers.get_content_type()))
            except Exception as error:  # raised below
                outcome.put(error)

        threading.Thread(target=ask, daemon=True).start()
        while True:
            try:
                answer = outcome.get(timeout=WATCH_EVERY_S)
            except queue.Empty:
                if self._is_lost():
                    raise self._lost(f"{request.selector} was not answered") from None
                continue
            if isinstance(answer, Exception):
                raise self._explained(answer, request.selector) from answer
            return answer

    def _explained(self, error: Exception, path: str) -> Exception:
        """What a failed request means."""
        if isinstance(error, urllib.error.HTTPError):
            reason = f"{path} answered {error.code}: {error.read().decode(errors='replace')[:500]}"
            return self._lost(reason) if error.code >= SERVER_ERROR and self._is_lost() else RuntimeError(reason)
        if isinstance(error, (OSError, http.client.HTTPException)):  # the second: gone while it answered
            return ConnectionError(
                f"No vLLM server answers at {self.url} ({self.setting}): {error}. Start it first "
                "(docs/engines.md); a run that lost its server continues with --ckpt_path last."
            )
        return error

    def _lost(self, reason: str) -> ConnectionError:
        return ConnectionError(
            f"The vLLM server at {self.url} ({self.setting}) has lost its engine, most likely for want of memory: "
            f"{reason}. Its own output says why. Start it again, with a lower --gpu-memory-utilization, "
            "--max-model-len or --max-num-seqs if it was memory, and continue with --ckpt_path last."
        )

    def _is_lost(self) -> bool:
        """Whether the engine behind the server is dead, or nobody listens any more; slow answers are none of both."""
        try:
            self._opener.open(self.url + "/health", timeout=CONNECT_TIMEOUT_S).close()
        except urllib.error.HTTPError as error:
            return error.code == ENGINE_DEAD
        except urllib.error.URLError as error:
            return isinstance(error.reason, ConnectionError)
        except (OSError, http.client.HTTPException):
            return False
        return False
