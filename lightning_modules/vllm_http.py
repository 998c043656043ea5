"""Requests to a vLLM server, with errors that say which setting names it and what to do."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

CONNECT_TIMEOUT_S = 10.0
REQUEST_TIMEOUT_S = 1800.0


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
            ConnectionError: if no server answers.
            RuntimeError: if it refuses; with its reason.
        """
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        content, kind = self._open(request, REQUEST_TIMEOUT_S)
        if kind == "application/json":
            return json.loads(content)
        return content or None

    def _open(self, request: urllib.request.Request, timeout_s: float) -> tuple[bytes, str]:
        try:
            with self._opener.open(request, timeout=timeout_s) as response:
                return response.read(), response.headers.get_content_type()
        except urllib.error.HTTPError as error:
            reason = error.read().decode(errors="replace")[:500]
            raise RuntimeError(f"{request.selector} answered {error.code}: {reason}") from error
        except (OSError, http.client.HTTPException) as error:  # the second: gone while it answered
            raise ConnectionError(
                f"No vLLM server answers at {self.url} ({self.setting}): {error}. Start it first "
                "(docs/engines.md); a run that lost its server continues with --ckpt_path last."
            ) from error
