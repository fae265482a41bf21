"""Where the server listens; importing this costs nothing, so that a port in use is told at once."""

import socket

from channelwise.errors import InputError


def listening(host: str, port: int) -> socket.socket:
    """A socket bound to the address; port 0 takes a free one. Raises InputError if the address cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InputError(f"--host {host} is no address of this machine ({error.strerror})") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen()
    except OSError as error:
        bound.close()
        raise InputError(
            f"port {port} of {host} cannot be had ({error.strerror}); give another --port, or 0 for any free one"
        ) from error
    return bound


def url(bound: socket.socket) -> str:
    """Where clients find the server: what OpenAI's call base_url."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"
