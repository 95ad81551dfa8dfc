# SPDX-License-Identifier: Apache-2.0
"""Start the app: its arguments, its model, its server."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

from PIL import Image

from ..console.command_line import parse_dataclasses
from .analysis import explain_image, load_model, prepare_image
from .examples import read_examples
from .limits import MAX_WAITING, Limits
from .server import LOCAL_HOSTS, Gate, Listeners, UploadFolder, check_event


__all__ = ["AppArguments", "launch_app", "parse_app_arguments"]


@dataclass
class AppArguments:
    """Model of the app, its address, and limits of its visitors; `--help` explains each."""

    model: str = field(
        default="checkpoints/ice-deit-scenes", metadata={"help": "Folder or Hub id of an ICE checkpoint."}
    )
    examples: str | None = field(
        default=None,
        metadata={"help": "Folder of example images. Default: drawn scenes, if the model knows them."},
    )
    host: str | None = field(
        default=None,
        metadata={"help": "Address to listen on, 0.0.0.0 for all; default: GRADIO_SERVER_NAME, or 127.0.0.1."},
    )
    port: int | None = field(
        default=None, metadata={"help": "Port; default: GRADIO_SERVER_PORT, or the first free one from 7860 on."}
    )
    max_upload_mb: float = field(default=20.0, metadata={"help": "Largest file of a visitor, in MB."})
    max_pixels: int = field(default=40_000_000, metadata={"help": "Largest picture of a visitor, in pixels."})
    timeout_s: float = field(default=30.0, metadata={"help": "Seconds that one request may take."})
    num_threads: int | None = field(default=None, metadata={"help": "Threads on the CPU; default: as torch chooses."})
    fast: bool = field(
        default=False, metadata={"help": "Run the model by the fastest runtime that is installed; needs [export]."}
    )
    allowed_hosts: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Names by which the app may be called, e.g. by a proxy. Default: those of this machine where only "
            "this machine reaches it, else all."
        },
    )

    def __post_init__(self) -> None:
        port = os.environ.get("GRADIO_SERVER_PORT") if self.port is None else self.port
        if port is not None and not (str(port).isdecimal() and 1 <= int(port) <= 65535):
            raise ValueError(f"`port` (or GRADIO_SERVER_PORT) must lie in [1, 65535], got {port}.")
        Limits(self.max_upload_mb, self.max_pixels, self.timeout_s)  # raises where one is not positive
        if self.num_threads is not None and self.num_threads < 1:
            raise ValueError(f"`num_threads` must be at least 1, got {self.num_threads}.")

    @property
    def limits(self) -> Limits:
        """Limits of a request."""
        return Limits(self.max_upload_mb, self.max_pixels, self.timeout_s)


def parse_app_arguments(argv: Sequence[str], description: str | None = None) -> AppArguments:
    """Parse a command line, or one YAML or JSON file followed by options that override it.

    Args:
        argv: The arguments after the script's name; see `parse_dataclasses` for how mistakes end the program.
        description: Text above the list of options in `--help`.
    """
    return cast(AppArguments, parse_dataclasses((AppArguments,), argv, description)[0])


def launch_app(arguments: AppArguments | None = None, block: bool = True) -> Any:
    """Load the model, build the page and serve it.

    Args:
        arguments: Settings; `None` takes the defaults.
        block: Whether to serve until the process is stopped; otherwise the server runs in a thread.

    Returns:
        The `gr.Blocks` that is served; its `close()` ends it.

    Raises:
        ImportError: If gradio is not installed.
        OSError: If there is no such model, or the port is taken.
        ValueError: If the checkpoint holds another kind of model.
    """
    arguments = AppArguments() if arguments is None else arguments
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported: no usage data is sent
    try:
        from gradio import routes

        from .page import build_page
    except ImportError as error:
        raise ImportError(f"The app cannot start ({error}): pip install transformers-ice[app,viz]") from error
    if arguments.num_threads is not None:
        import torch

        torch.set_num_threads(arguments.num_threads)
    loaded = load_model(arguments.model, arguments.fast)
    # a first run: a broken model fails at the start, and the first visitor does not wait for it
    explain_image(loaded, prepare_image(loaded, Image.new("RGB", (64, 64))))
    examples = read_examples(arguments.examples, arguments.limits) if arguments.examples else None
    folder, listeners = UploadFolder(), Listeners()
    # gradio makes a folder of its own there at every start, by a constant that it read when it was imported
    routes.DEFAULT_TEMP_DIR = str(folder.path)
    try:
        page = build_page(loaded, arguments.limits, listeners, examples)
        _serve(page, arguments, folder, listeners, block)
    except BaseException:
        folder.close()
        raise
    return page


def _serve(page: Any, arguments: AppArguments, folder: UploadFolder, listeners: Listeners, block: bool) -> None:
    """Serve a page; see `launch_app`."""
    from .theme import STYLE_SHEET, build_theme

    page.queue(api_open=False)
    host = (arguments.host or os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1").strip("[]")
    hosts = [*arguments.allowed_hosts, *LOCAL_HOSTS] if arguments.allowed_hosts or host in LOCAL_HOSTS else None
    # class, arguments and options, as starlette unpacks them
    gate = (Gate, (), {"listeners": listeners, "hosts": hosts, "check_event": partial(check_event, page)})
    try:
        page.launch(
            server_name=arguments.host,
            server_port=arguments.port,
            share=False,
            prevent_thread_lock=not block,
            max_file_size=int(arguments.max_upload_mb * 2**20),
            state_session_capacity=MAX_WAITING,  # gradio keeps the last answers of this many visitors, some MB each
            allowed_paths=[],  # no file of the machine is served, apart from uploads and examples
            footer_links=[],
            ssr_mode=False,
            pwa=False,
            mcp_server=False,  # no interface for other programs
            enable_monitoring=False,
            show_error=False,  # tracebacks go to the console, not to visitors
            quiet=True,
            app_kwargs={"middleware": [gate], "lifespan": folder.lifespan},
            theme=build_theme(),
            css_paths=[STYLE_SHEET],
        )
    except OSError as error:
        ports = "7860 to 7959" if arguments.port is None else arguments.port
        raise OSError(
            f"The app cannot listen on {host}, port {ports}: the port is taken, or the address is not one of this "
            "machine. Choose another --port or --host."
        ) from error
