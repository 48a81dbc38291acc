"""Start the page on this machine alone, and clean up behind it."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from segaware.demo.page import CSS, build_page
from segaware.entries import DEFAULT_MODEL, shipped_names
from segaware.errors import InputError
from segaware.inference.engine import Engine
from segaware.zoo.load import list_models

__all__ = ["HOST", "PORT", "choices", "free_port", "load_gradio", "serving"]

HOST, PORT = "127.0.0.1", 7860
#: Everything the page needs comes from here; whatever Gradio would fetch from elsewhere is not fetched.
_POLICY = (
    b"default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:;"
    b" style-src 'self' 'unsafe-inline'; frame-ancestors 'self'"
)
_LARGEST_FILE = "1gb"
_REPAIR = 'install it: pip install "segaware[demo]"'


def load_gradio() -> Any:
    """The module, told not to phone home.

    Raises:
        InputError: not installed, or broken.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        return importlib.import_module("gradio")
    except ModuleNotFoundError as error:
        what = "gradio, which is not installed" if error.name == "gradio" else f"gradio, which misses {error.name}"
        raise InputError(f"the page needs {what}; {_REPAIR}") from error
    except (ImportError, RuntimeError) as error:
        raise InputError(f"gradio is installed but cannot be imported ({error}); {_REPAIR}") from error


def free_port(port: int) -> int:
    """``port`` if nobody uses it; any free one for 0.

    Raises:
        InputError: in use, not allowed, or no port.
    """
    if not 0 <= port <= 65535:
        raise InputError(f"port {port}: give a number from 1024 to 65535, or 0 for any free one")
    with socket.socket() as probe:
        if os.name != "nt":  # a port that was just given back is free, as it is for the server
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise InputError(
                f"port {port} is in use or not allowed ({error.strerror}); choose another one, --port {port + 1 if 1024 <= port < 65535 else PORT},"
                " or --port 0 for any free one"
            ) from error
        return int(probe.getsockname()[1])


def choices(extra: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """Names of denoisers, ``extra`` and the default before the rest, and of segmenters, judges first."""
    records = list_models() if shipped_names() else []
    known = [record.name for record in records if record.kind == "denoiser"]
    first = [*extra, DEFAULT_MODEL] if DEFAULT_MODEL in known else list(extra)
    segmenters = [record.name for record in records if record.kind == "segmenter"]
    return list(dict.fromkeys([*first, *known])), sorted(segmenters, key=lambda name: (not name.startswith("hrnet"), name))


@contextlib.contextmanager
def serving(
    port: int = PORT, *, models: Sequence[str] = (), device: str = "auto", browser: bool = False, opened: Callable[[str], Engine] | None = None
) -> Iterator[str]:
    """Within: the page is there, under the address that is given. Uploads and results are deleted at the end.

    Args:
        models: to choose from beside the shipped ones: folders, or repositories of the Hub. The first one is chosen.
        browser: open it in the browser.
        opened: how a model is opened, for tests.

    Raises:
        InputError: Gradio is missing, or the port in use.
        Others: of a model that cannot be opened.
    """
    gradio = load_gradio()
    port = free_port(port)
    with tempfile.TemporaryDirectory(prefix="segaware-demo-", ignore_cleanup_errors=True) as folder, _environment(folder):
        names, segmenters = choices(models)
        page = build_page(gradio, names, segmenters, folder=Path(folder), device=device, opened=opened)
        page.queue(default_concurrency_limit=1, max_size=8, api_open=False)
        try:
            _, address, _ = page.launch(**_options(gradio, page, port, browser))
        except OSError as error:  # somebody was quicker
            raise InputError(f"port {port} cannot be used ({error}); choose another one with --port") from error
        try:
            yield str(address)
        finally:
            page.close(verbose=False)


def _options(gradio: Any, page: Any, port: int, browser: bool) -> dict[str, Any]:
    middleware = importlib.import_module("starlette.middleware")
    wanted = {
        "server_name": HOST,
        "server_port": port,
        "share": False,
        "inbrowser": browser,
        "prevent_thread_lock": True,
        "quiet": True,
        "show_error": True,
        "max_file_size": _LARGEST_FILE,
        "footer_links": [],
        "run_history": False,
        "pwa": False,
        "ssr_mode": False,
        "mcp_server": False,
        "enable_monitoring": False,
        "css": CSS,
        "theme": gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        "app_kwargs": {"middleware": [middleware.Middleware(_Policy)], "docs_url": None, "redoc_url": None},
    }
    known = inspect.signature(page.launch).parameters
    return {name: value for name, value in wanted.items() if name in known}


class _Policy:
    """Adds the policy to every answer, so that the browser fetches nothing from another host."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def tell(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"content-security-policy", _POLICY)]
            await send(message)

        await self.app(scope, receive, tell if scope["type"] == "http" else send)


@contextlib.contextmanager
def _environment(folder: str) -> Iterator[None]:
    """Gradio keeps its files in ``folder``, and does not ask a proxy for this machine."""
    around = [part for part in os.environ.get("NO_PROXY", os.environ.get("no_proxy", "")).split(",") if part]
    values = {"GRADIO_TEMP_DIR": folder, "NO_PROXY": ",".join([*around, HOST, "localhost"])}
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
