"""The request for `spade serve`: which artifacts, where it listens, and what it bears."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from spade_deploy.engines.base import parse_backend, parse_graph_choice
from spade_deploy.errors import ConfigError
from spade_deploy.settings import check_ranges, setting
from spade_deploy.spec import MAX_BATCH, Backend, Precision, PrecisionChoice
from spade_deploy.tuning.wish import parse_precision

_NETWORK, _LIMITS = "Network", "Limits"


@dataclass(frozen=True, kw_only=True)
class ServeRequest:
    """Which artifacts are served, on which address, in which engine, within which limits."""

    artifacts: tuple[str, ...] = setting(
        (), help="Artifacts or runs, or NAME=PATH; default: the newest artifact.", argument=True
    )
    host: str = setting("127.0.0.1", help="Address to listen on; 0.0.0.0 listens on all networks.", group=_NETWORK)
    port: int = setting(8000, help="Port to listen on; 0 picks a free one.", group=_NETWORK, least=0, most=65535)
    token_file: Path | None = setting(
        None, help="File whose first line is a token that every request must send.", group=_NETWORK
    )
    insecure: bool = setting(False, help="Accept requests from other machines without a token.", group=_NETWORK)
    cors: tuple[str, ...] = setting(
        (), help="An origin whose pages may use the server; may be repeated.", metavar="ORIGIN", group=_NETWORK
    )
    backend: Backend | str = setting(
        Backend.AUTO, help="auto: a TensorRT engine that fits, else CUDA, else what is fastest on this CPU."
    )
    precision: PrecisionChoice | Precision | str | None = setting(
        None, help="Precision; default: fp16 on a GPU, fp32 on a CPU. bf16 needs OpenVINO. fastest: see `min_psnr_db`."
    )
    min_psnr_db: float | None = setting(
        None, help="Minimum PSNR in dB against the reference, for `precision` fastest; default: 45.", flag="min-psnr"
    )
    graph: str = setting("auto", help="dense, lookup, or auto: lookup where it was measured to be faster.")
    threads: int | None = setting(None, help="CPU threads of each process; default: one per core.")
    workers: int = setting(1, help="Number of processes; each one loads all models.", least=1, most=64)
    max_batch: int = setting(
        4, help="Largest batch of waiting requests; used where it was measured to help.", least=1, most=MAX_BATCH
    )
    max_delay_ms: float = setting(
        2.0, help="Milliseconds that a request waits for others to share its batch.", least=0, most=1000
    )
    queue: int = setting(
        32,
        help="Maximum number of waiting requests; further ones get status 429.",
        group=_LIMITS,
        least=1,
        most=100_000,
    )
    timeout: float = setting(
        60.0, help="Maximum seconds per request, waiting included.", group=_LIMITS, least=0.1, most=3600
    )
    max_pixels: int = setting(
        2048 * 2048, help="Maximum number of pixels of a label map or photo.", group=_LIMITS, least=64 * 64, most=2**26
    )
    max_bytes: int = setting(
        16 << 20, help="Maximum size of a request in bytes.", group=_LIMITS, least=1 << 10, most=1 << 30
    )
    max_row_bytes: int = setting(
        512 << 20,
        help="Maximum bytes of table rows kept between the edits of drawings; 0 keeps none, and holds no second copy"
        " of the weights.",
        group=_LIMITS,
        least=0,
        most=1 << 36,
    )
    json_logs: bool = setting(False, help="Write the log as JSON, one object per line, with the request's id.")

    def __post_init__(self) -> None:
        check_ranges(self)
        parse_precision(self.precision, self.min_psnr_db)
        parse_backend(str(self.backend))
        parse_graph_choice(str(self.graph))
        for origin in self.cors:
            if origin != "*" and origin != (sent := _as_browsers_send(origin)):
                raise ConfigError(
                    f"`cors`: {origin!r} is not an origin such as https://example.org",
                    hint=f"browsers send {sent}"
                    if sent
                    else "give scheme, host and port as in a browser's address bar; * allows every page",
                )
        if not self.is_local and self.token_file is None and not self.insecure:
            raise ConfigError(
                f"`host`: everyone who can reach {self.host} could use the server",
                hint="give a `token_file`, or `insecure` if you trust the network",
            )

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the address."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def _as_browsers_send(origin: str) -> str:
    """An origin as it stands in the header that a browser sends: no path, small letters, no usual port; '' for none."""
    try:
        parts = urlsplit(origin)
        scheme, host, port = parts.scheme.lower(), (parts.hostname or "").encode("idna").decode(), parts.port
    except ValueError:  # a port that is none, a host that cannot be encoded
        return ""
    if scheme not in ("http", "https") or not host:
        return ""
    host = f"[{host}]" if ":" in host else host
    return f"{scheme}://{host}" + ("" if port in (None, {"http": 80, "https": 443}[scheme]) else f":{port}")
