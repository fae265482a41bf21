"""`channelwise serve`: a model behind OpenAI's interface."""

import sys
from typing import Annotated

import typer

from channelwise.cli.options import Debug, Device, Model

Host = Annotated[str, typer.Option("--host", metavar="H", help="Address to listen at; there is no authentication.")]
Port = Annotated[int, typer.Option("--port", metavar="P", help="0 takes a free one.", min=0, max=65535)]
Name = Annotated[str | None, typer.Option("--name", metavar="NAME", help="What clients call it. Default: DIR's name.")]
DType = Annotated[
    str, typer.Option("--dtype", metavar="T", help="Of what is not quantized: auto, float32, bfloat16 or float16.")
]


def serve(
    model: Model,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    name: Name = None,
    dtype: DType = "auto",
    device: Device = "cpu",
    debug: Debug = False,
) -> None:
    """Serve a model to OpenAI clients.

    Answers POST /v1/chat/completions and /v1/completions, streamed or whole, and GET /v1/models, until Ctrl-C. Requests
    are answered one after the other. Needs `pip install "channelwise[serve]"`.
    """
    _require_extra()
    from channelwise.serving.listening import listening, url

    with listening(host, port) as bound:
        from channelwise.cli.output import quiet_libraries

        quiet_libraries()
        from channelwise.serving.served import open_served
        from channelwise.serving.server import run

        served = open_served(model, name=name, device=device, dtype=dtype)
        _say(_introduction(served.name, url(bound), served.plain_chat))
        run(served, bound, _say)
    _say("stopped")


def _require_extra() -> None:
    """Raises InputError if the packages of the extra are not there; before anything heavy is imported."""
    from importlib.util import find_spec

    from channelwise.errors import InputError

    missing = [package for package in ("fastapi", "openai", "starlette", "uvicorn") if find_spec(package) is None]
    if missing:
        raise InputError(f'serving needs {", ".join(missing)}; `pip install "channelwise[serve]"`')


def _introduction(name: str, url: str, plain_chat: bool) -> str:
    """What is served where, and a first request to copy."""
    import json

    message = {"role": "user", "content": "Hello"}
    body = json.dumps({"model": name, "messages": [message], "max_tokens": 32}, ensure_ascii=False)
    quoted = body.replace("'", "'\\''")
    lines = [
        f"{name} at {url} until Ctrl-C",
        f"  curl {url}/chat/completions -H 'Content-Type: application/json' -d '{quoted}'",
    ]
    if plain_chat:
        lines.append("note: the tokenizer has no chat template; chat becomes plain lines, `user: Hello`")
    return "\n".join(lines)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
