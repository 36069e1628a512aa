"""What a node is told before it starts: flags, environment and a TOML file, resolved into one frozen value.

Each setting is looked for in four places, and the first that has it wins: the command line's flags, `ISOCHRONE_*` environment
variables, the TOML file, the default. `SETTINGS` lists every setting once, with its parser; flags, variables and file keys are
derived from it. A key nobody knows is refused, with the nearest known one as a suggestion, because a misspelt setting that is
ignored costs more than a node that does not start. Every refusal is a `ConfigError` that names the key, the value, where it was
found and what to do.

Spec: docs/configuration.md.
"""

import ipaddress
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import urlsplit

from mesh.settingvalues import (
    BUSY_POLL_US,
    FABRIC_WORDS,
    busy_poll,
    degrees,
    fabrics,
    node_number,
    one_of,
    rdma_device,
    seconds,
    suggestion,
    switch,
)
from protocol.errors import ProtocolError
from protocol.multiaddr import Multiaddr, parse_multiaddr

DEFAULT_NETWORK = "isochrone-main"
"""Id of the open network that a node with --open belongs to unless told otherwise."""
DEFAULT_PORT = 4001
"""UDP port: the one libp2p nodes use by habit, so that firewalls which know libp2p already let it through."""
DEFAULT_LISTEN = (f"/ip4/0.0.0.0/udp/{DEFAULT_PORT}/quic-v1", f"/ip6/::/udp/{DEFAULT_PORT}/quic-v1")
DEFAULT_GATEWAY = "127.0.0.1:8421"
NO_SOCKET = "none"
"""What `client_socket` is set to where a node is to have no such door."""
DEFAULT_GRACE_S = 30.0
"""Seconds for streams to finish after the first SIGTERM; half of what Kubernetes and systemd allow at least (30 s and 90 s)."""
ADDRESSES_MAX = 16
"""Listen or announce addresses of one node: several uplinks in two families, and still a card of about 500 bytes."""
BOOTSTRAP_MAX = 64
"""Bootstrap addresses; gossip needs one that answers, more only cost start-up time."""
ENGINES_MAX = 16
"""Engines beside one node; each is polled, so the number is bounded."""
GATEWAY_HOSTS_MAX = 16
"""Names of one gateway; a host has a handful."""
HOST_NAME_LENGTH_MAX = 253
"""Characters of a host name (RFC 1035, section 2.3.4)."""
NETWORK_LENGTH_MAX = 64
"""Characters of a network id; it travels in every record."""
CONFIG_FILE_BYTES_MAX = 1 << 20
"""Bytes of a configuration file; a larger one is not a configuration file."""
ENVIRONMENT_PREFIX = "ISOCHRONE_"
CONFIG_VARIABLE = "ISOCHRONE_CONFIG"
OTHER_VARIABLES = ("ISOCHRONE_ENGINE_API_KEY",)
"""Variables with our prefix that are no settings: what is secret stands in no file of settings and is not told in messages."""
ENGINE_KINDS = ("onnx", "echo", "none")
"""Engines of our own; `onnx:text` and `onnx:embeddings` serve one model each of the two that `onnx` has."""
CXL_POOLS_MAX = 4
"""Pools that a node may be in, a count: what an advert holds (`protocol.fabric.adverts.POOLS_MAX`). It stands here again because
the protocol takes longer to load than the command line may."""
RDMA_DEVICES_MAX = 16
"""RDMA devices named, a count: twice as many as are told on the card."""

QUIC_ENGINES = ("auto", "aioquic", "qh3")
LOG_LEVELS = ("debug", "info", "warning", "error")

# Kubernetes and Docker put such variables into every container near a service that happens to be called "isochrone".
_SERVICE_LINK = re.compile(r"ISOCHRONE(_\w+)?_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP)(_\w+)?)?)|ISOCHRONE_PORT")
_ENGINE_PART = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|[0-9A-Fa-f:.]+", re.ASCII)
_NETWORK = re.compile(r"[a-z0-9][a-z0-9._-]*")

T = TypeVar("T")


class StartError(Exception):
    """The node cannot start; the text says why, with which value, and what to do."""


class ConfigError(StartError):
    """A setting that cannot be used: which, its value, where it stands and what to do."""

    def __init__(self, key: str, value: object, source: str, advice: str) -> None:
        shown = "" if value is None else f" = {value!r}"
        super().__init__(f"{source}: {key}{shown}: {advice}")
        self.key = key
        self.value = value
        self.source = source
        self.advice = advice


@dataclass(frozen=True, slots=True)
class HostPort:
    """A TCP address to listen on; port 0 lets the system choose."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """Everything `isochrone up` is told.

    Attributes:
        state_dir: where the key, the sequence reservation and the known peers are kept; one node only.
        network: the id of an open network; records of another network are refused. A private network has its own id.
        listen: addresses to bind; port 0 lets the system choose.
        listen_default: whether `listen` is the default, so that an address family the machine lacks is skipped and not an error.
        announce: addresses told to others instead of the bound ones; empty tells the bound ones.
        bootstrap: where to ask for the first peers, with or without their peer ids.
        gateway: where the HTTP gateway listens.
        engines: kinds (`onnx`, `onnx:text`, `echo`, `none`) or base URLs of OpenAI-compatible servers; empty looks for a
            server on the usual ports and falls back to onnx.
        quic_engine: `auto`, `aioquic` or `qh3`.
        relay: whether sealed requests of others are passed on to peers that they cannot reach.
        grace_s: seconds streams may take to finish after the first stop signal.
        log_level: `debug`, `info`, `warning` or `error`.
        gateway_key_file: keys of those who may call the gateway; None asks nobody for a key.
        gateway_tls_cert: certificate in PEM with which the gateway serves HTTPS; None serves HTTP.
        gateway_tls_key: the certificate's key in PEM.
        gateway_hosts: names in `Host` and `Origin` that are the gateway's, besides those of the loopback and its own address.
        gateway_insecure_remote: lets the gateway listen for other machines without a key or without TLS.
        fabric: `auto` lets tensors take every kind of fabric that is there but RDMA, `none` lets all of them take the stream; or
            the kinds that may be used, with commas between them.
        busy_poll_us: how long the node may look whether something has come before it sleeps, in microseconds; 0 for not at all.
        memory_node: the NUMA node from which the memory of large tensors is to be; None leaves it to the system.
        cxl_pools: the pools of memory that the node is a member of: each a device-DAX or a file.
        rdma_devices: the RDMA devices that may be used, where `fabric` names RDMA; empty for all.
        client_socket: where the socket for this user's own programs stands; None takes `client.sock` in `state_dir`.
        client_door: whether there is one.
        is_open: anybody may join; otherwise the node belongs to a private network.
        network_dir: where the private network of this user is kept; None takes the default place.
        latitude: where the machine stands, in degrees, for maps; told to everybody, rounded; None tells nothing.
        longitude: the same.
    """

    state_dir: Path
    network: str
    listen: tuple[Multiaddr, ...]
    listen_default: bool
    announce: tuple[Multiaddr, ...]
    bootstrap: tuple[Multiaddr, ...]
    gateway: HostPort
    engines: tuple[str, ...]
    quic_engine: str
    grace_s: float
    log_level: str
    gateway_key_file: Path | None = None
    gateway_tls_cert: Path | None = None
    gateway_tls_key: Path | None = None
    gateway_hosts: tuple[str, ...] = ()
    gateway_insecure_remote: bool = False
    client_socket: Path | None = None
    client_door: bool = True
    is_open: bool = False
    network_dir: Path | None = None
    relay: bool = True
    fabric: str = "auto"
    cxl_pools: tuple[Path, ...] = ()
    rdma_devices: tuple[str, ...] = ()
    busy_poll_us: int = BUSY_POLL_US
    memory_node: int | None = None
    latitude: float | None = None
    longitude: float | None = None


@dataclass(frozen=True, slots=True)
class Ready:
    """What a node says once it can be used.

    Attributes:
        peer_id: its peer id as text (`12D3KooW…`).
        addresses: multiaddrs others can dial, each with `/p2p/` and the peer id.
        gateway: base URL of the gateway, without a slash at the end.
        client_socket: where programs of the same user find the node; empty where there is no such door.
    """

    peer_id: str
    addresses: tuple[str, ...]
    gateway: str
    client_socket: str = ""


def _path(text: str) -> Path:
    if not text:
        raise ValueError("give the path of a directory")
    return Path(text).expanduser().absolute()


def _path_or_none_at_all(text: str) -> Path | str:
    return NO_SOCKET if text == NO_SOCKET else _path(text)


def _network(text: str) -> str:
    if len(text) > NETWORK_LENGTH_MAX or not _NETWORK.fullmatch(text):
        raise ValueError(f"use 1 to {NETWORK_LENGTH_MAX} of a-z, 0-9, '.', '_', '-', beginning with a letter or digit")
    return text


def _multiaddr(text: str) -> Multiaddr:
    try:
        return parse_multiaddr(text)
    except ProtocolError as error:
        raise ValueError(f"write an address such as /ip4/192.0.2.7/udp/4001/quic-v1 ({error.detail or error})") from error


def _bindable(text: str) -> Multiaddr:
    address = _multiaddr(text)
    if address.protocol not in {"ip4", "ip6"}:
        raise ValueError("listen on an IP address (/ip4/… or /ip6/…); a name can be told to others with --announce")
    if address.peer_id is not None:
        raise ValueError("leave /p2p/… out of a listen address; the node adds its own peer id")
    return address


def _dialable(text: str) -> Multiaddr:
    address = _multiaddr(text)
    if address.port == 0:
        raise ValueError("others cannot dial port 0; give the real port")
    if address.protocol in {"ip4", "ip6"} and ipaddress.ip_address(address.host).is_unspecified:
        raise ValueError(f"others cannot dial {address.host}; give an address that reaches the node from outside")
    return address


def parse_host_port(text: str) -> HostPort:
    """Parse `HOST:PORT`, with IPv6 hosts in brackets.

    Raises:
        ValueError: with what to write instead.
    """
    host, separator, port_text = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not separator or not host or not (port_text.isascii() and port_text.isdigit()) or int(port_text) > 0xFFFF:
        raise ValueError("write HOST:PORT such as 127.0.0.1:8421 or [::1]:8421; port 0 lets the system choose")
    if host != "localhost":
        try:
            ipaddress.ip_address(host)
        except ValueError:
            raise ValueError("listen on an IP address or localhost; names by which it is called go to --gateway-hosts") from None
    return HostPort(host, int(port_text))


def is_loopback(address: HostPort) -> bool:
    """Whether only this machine can reach what listens there."""
    return address.host == "localhost" or ipaddress.ip_address(address.host).is_loopback


def parse_engine(text: str) -> str:
    """Check one engine: a kind, a kind with a part, or the base URL of a server.

    Raises:
        ValueError: with what to write instead.
    """
    if "://" not in text:
        kind, _, part = text.partition(":")
        if kind not in ENGINE_KINDS or (text != kind and (kind == "none" or not _ENGINE_PART.fullmatch(part))):
            raise ValueError(
                f"choose one of {', '.join(ENGINE_KINDS)}, or give the URL of an OpenAI-compatible server such as http://127.0.0.1:8000"
                f"{suggestion(text, ENGINE_KINDS)}"
            )
        return text
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(
            "give the base URL of an OpenAI-compatible server, such as http://127.0.0.1:8000 or https://gpu.example/v1"
        )
    if parts.username is not None or parts.password is not None:
        raise ValueError("leave the password out of the URL")
    return text.rstrip("/")


def _host_name(text: str) -> str:
    if len(text) > HOST_NAME_LENGTH_MAX or not _HOST_NAME.fullmatch(text):
        raise ValueError("write the name alone, such as mesh.example or 192.0.2.7: no scheme, no port, no path, no wildcard")
    return text.lower()


@dataclass(frozen=True, slots=True)
class _Setting:
    """How one setting is read: `count_max` is None for a single value, otherwise the bound of a list."""

    parse: Callable[[str], object]
    count_max: int | None = None
    count_min: int = 0
    numeric: bool = False
    boolean: bool = False


SETTINGS: Final[Mapping[str, _Setting]] = {
    "state_dir": _Setting(_path),
    "network": _Setting(_network),
    "listen": _Setting(_bindable, ADDRESSES_MAX, count_min=1),
    "announce": _Setting(_dialable, ADDRESSES_MAX),
    "bootstrap": _Setting(_dialable, BOOTSTRAP_MAX),
    "gateway": _Setting(parse_host_port),
    "engine": _Setting(parse_engine, ENGINES_MAX),
    "quic_engine": _Setting(one_of(QUIC_ENGINES)),
    "grace_s": _Setting(seconds, numeric=True),
    "relay": _Setting(switch, boolean=True),
    "fabric": _Setting(fabrics),
    "cxl_pool": _Setting(_path, CXL_POOLS_MAX),
    "rdma_device": _Setting(rdma_device, RDMA_DEVICES_MAX),
    "busy_poll_us": _Setting(busy_poll, numeric=True),
    "memory_node": _Setting(node_number, numeric=True),
    "log_level": _Setting(one_of(LOG_LEVELS)),
    "gateway_key_file": _Setting(_path),
    "gateway_tls_cert": _Setting(_path),
    "gateway_tls_key": _Setting(_path),
    "gateway_hosts": _Setting(_host_name, GATEWAY_HOSTS_MAX),
    "gateway_insecure_remote": _Setting(switch, boolean=True),
    "client_socket": _Setting(_path_or_none_at_all),
    "open": _Setting(switch, boolean=True),
    "network_dir": _Setting(_path),
    "latitude": _Setting(degrees(90.0), numeric=True),
    "longitude": _Setting(degrees(180.0), numeric=True),
}
"""Every setting by its file key; the flag is `--` with dashes, the variable `ISOCHRONE_` in capitals."""


@dataclass(frozen=True, slots=True)
class _Found:
    """A raw value and where it stood, in words for a message."""

    key: str
    source: str
    value: object


def resolve(flags: Mapping[str, object], environment: Mapping[str, str], config_file: Path | None = None) -> NodeConfig:
    """Resolve the configuration of a node.

    Args:
        flags: what the command line gave, by setting name; None means "not given".
        environment: the process environment.
        config_file: the TOML file of `--config`; None takes `ISOCHRONE_CONFIG` or the default place, where it may be absent.

    Raises:
        ConfigError: if any key is unknown, any value unusable, or the file unreadable.
    """
    found = _from_file(environment, config_file)
    found.update(_from_environment(environment))
    for name, value in flags.items():
        assert name in SETTINGS, name
        if value is not None:
            found[name] = _Found(f"--{name.replace('_', '-')}", "command line", value)
    values = {name: _parsed(SETTINGS[name], item) for name, item in found.items()}
    listen, client_socket = values.get("listen"), values.get("client_socket")
    config = NodeConfig(
        state_dir=_typed(values.get("state_dir", default_state_dir(environment)), Path),
        network=_typed(values.get("network", DEFAULT_NETWORK), str),
        listen=_all(listen if listen is not None else tuple(parse_multiaddr(text) for text in DEFAULT_LISTEN), Multiaddr),
        listen_default=listen is None,
        announce=_all(values.get("announce", ()), Multiaddr),
        bootstrap=_all(values.get("bootstrap", ()), Multiaddr),
        gateway=_typed(values.get("gateway", parse_host_port(DEFAULT_GATEWAY)), HostPort),
        engines=_all(values.get("engine", ()), str),
        quic_engine=_typed(values.get("quic_engine", "auto"), str),
        grace_s=_typed(values.get("grace_s", DEFAULT_GRACE_S), float),
        log_level=_typed(values.get("log_level", "info"), str),
        gateway_key_file=_path_or_none(values.get("gateway_key_file")),
        gateway_tls_cert=_path_or_none(values.get("gateway_tls_cert")),
        gateway_tls_key=_path_or_none(values.get("gateway_tls_key")),
        gateway_hosts=_all(values.get("gateway_hosts", ()), str),
        gateway_insecure_remote=_typed(values.get("gateway_insecure_remote", False), bool),
        client_socket=_path_or_none(None if client_socket == NO_SOCKET else client_socket),
        client_door=client_socket != NO_SOCKET,
        is_open=_typed(values.get("open", False), bool),
        network_dir=_typed(values.get("network_dir", default_network_dir(environment)), Path),
        relay=_typed(values.get("relay", not values.get("open", False)), bool),
        fabric=_typed(values.get("fabric", "auto"), str),
        cxl_pools=_all(values.get("cxl_pool", ()), Path),
        rdma_devices=_all(values.get("rdma_device", ()), str),
        busy_poll_us=_typed(values.get("busy_poll_us", BUSY_POLL_US), int),
        memory_node=_int_or_none(values.get("memory_node")),
        latitude=_degrees_or_none(values.get("latitude")),
        longitude=_degrees_or_none(values.get("longitude")),
    )
    _check_gateway(config, found)
    if "network" in found and not config.is_open:
        item = found["network"]
        raise ConfigError(
            item.key,
            item.value,
            item.source,
            "a name alone keeps nobody out, so it is for open networks: add --open; or leave it out, and enter a private network "
            "with `isochrone join TOKEN` (docs/networks.md)",
        )
    _check_place(config, found)
    _check_fabric(config, found)
    if "none" in config.engines and len(config.engines) > 1:
        item = found["engine"]
        raise ConfigError(
            item.key,
            list(config.engines),
            item.source,
            '"none" means a node without engines; leave it out or leave the others out',
        )
    return config


def _check_place(config: NodeConfig, found: "Mapping[str, _Found]") -> None:
    """Refuse half a place.

    Raises:
        ConfigError: one of latitude and longitude is given.
    """
    if (config.latitude is None) != (config.longitude is None):
        item = found["longitude" if config.latitude is None else "latitude"]
        other = "latitude" if config.latitude is None else "longitude"
        raise ConfigError(item.key, item.value, item.source, f"give {other} too, or leave both out")


def _check_fabric(config: NodeConfig, found: "Mapping[str, _Found]") -> None:
    """Refuse a pool that the fabrics leave out.

    Raises:
        ConfigError: they do.
    """
    if config.cxl_pools and config.fabric not in FABRIC_WORDS and "cxl" not in config.fabric.split(","):
        item = found["cxl_pool"]
        raise ConfigError(item.key, item.value, item.source, f"fabric is {config.fabric}, which leaves pools out; add cxl to it")


def _check_gateway(config: NodeConfig, found: "Mapping[str, _Found]") -> None:
    """Refuse a gateway that other machines reach without a key or without TLS, unless the owner said so.

    Raises:
        ConfigError: naming what is missing.
    """
    if (config.gateway_tls_cert is None) != (config.gateway_tls_key is None):
        given = "gateway_tls_cert" if config.gateway_tls_key is None else "gateway_tls_key"
        item = found[given]
        other = {"gateway_tls_cert": "gateway_tls_key", "gateway_tls_key": "gateway_tls_cert"}[given]
        raise ConfigError(item.key, item.value, item.source, f"give {other} too: TLS needs the certificate and its key")
    needed = {"gateway_key_file": config.gateway_key_file, "gateway_tls_cert": config.gateway_tls_cert}
    missing = [f"--{name.replace('_', '-')}" for name, value in needed.items() if value is None]
    if is_loopback(config.gateway) or not missing or config.gateway_insecure_remote:
        return
    item = found["gateway"]
    advice = (
        f"other machines can reach this address, so the gateway wants {' and '.join(missing)} too; or use 127.0.0.1 and a tunnel "
        "(ssh -L 8421:127.0.0.1:8421 …); or, where the network in front of it decides who may call, say --gateway-insecure-remote"
    )
    raise ConfigError(item.key, str(config.gateway), item.source, advice)


def _int_or_none(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _degrees_or_none(value: object) -> float | None:
    return None if value is None else _typed(value, float)


def _path_or_none(value: object) -> Path | None:
    return None if value is None else _typed(value, Path)


def default_cache_dir(environment: Mapping[str, str]) -> Path:
    """Return `$XDG_CACHE_HOME/isochrone`, or `~/.cache/isochrone`: what is there can be made again, and nodes share it."""
    return _xdg(environment, "XDG_CACHE_HOME", ".cache") / "isochrone"


def default_state_dir(environment: Mapping[str, str]) -> Path:
    """Return `$XDG_STATE_HOME/isochrone`, or `~/.local/state/isochrone`."""
    return _xdg(environment, "XDG_STATE_HOME", ".local/state") / "isochrone"


def default_network_dir(environment: Mapping[str, str]) -> Path:
    """Return `$XDG_DATA_HOME/isochrone/network`, or the same under `~/.local/share`."""
    return _xdg(environment, "XDG_DATA_HOME", ".local/share") / "isochrone" / "network"


def default_config_file(environment: Mapping[str, str]) -> Path:
    """Return `$XDG_CONFIG_HOME/isochrone/config.toml`, or the same under `~/.config`."""
    return _xdg(environment, "XDG_CONFIG_HOME", ".config") / "isochrone" / "config.toml"


def _xdg(environment: Mapping[str, str], variable: str, fallback: str) -> Path:
    """Return an XDG base directory; the specification says that a relative one is ignored."""
    text = environment.get(variable, "")
    return Path(text) if os.path.isabs(text) else Path(environment.get("HOME") or Path.home()) / fallback  # noqa: PTH117  # "" is no Path


def _from_file(environment: Mapping[str, str], config_file: Path | None) -> dict[str, _Found]:
    named = config_file or (Path(environment[CONFIG_VARIABLE]) if environment.get(CONFIG_VARIABLE) else None)
    path = named or default_config_file(environment)
    try:
        with path.open("rb") as file:
            content = file.read(CONFIG_FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        if named is None:
            return {}
        raise ConfigError(
            "--config", str(path), "command line", "there is no such file; create it or leave --config out"
        ) from None
    except OSError as error:
        raise ConfigError("--config", str(path), "command line", f"the file cannot be read ({error.strerror})") from error
    if len(content) > CONFIG_FILE_BYTES_MAX:
        raise ConfigError("--config", str(path), "command line", f"the file is larger than {CONFIG_FILE_BYTES_MAX} bytes")
    try:
        table = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError("--config", str(path), "command line", f"the file is not valid TOML ({error})") from error
    for key, value in table.items():
        if key not in SETTINGS:
            raise ConfigError(
                key, value, str(path), f"there is no such setting{suggestion(key, SETTINGS)}; remove or correct the line"
            )
    return {key: _Found(key, str(path), value) for key, value in table.items()}


def _from_environment(environment: Mapping[str, str]) -> dict[str, _Found]:
    variables = {f"{ENVIRONMENT_PREFIX}{name.upper()}": name for name in SETTINGS}
    found = {}
    for key in sorted(environment):
        if (
            not key.startswith(ENVIRONMENT_PREFIX)
            or key in (CONFIG_VARIABLE, *OTHER_VARIABLES)
            or not environment[key]
            or _SERVICE_LINK.fullmatch(key)
        ):
            continue
        if key not in variables:
            advice = f"there is no such variable{suggestion(key, [*variables, CONFIG_VARIABLE])}; unset or correct it"
            # Its value is not told: a misspelt name of a variable with a key in it would put the key into a log.
            raise ConfigError(key, None, "environment", advice)
        name, text = variables[key], environment[key]
        several = [part for part in re.split(r"[,\s]+", text) if part]
        found[name] = _Found(key, "environment", several if SETTINGS[name].count_max is not None else text)
    return found


def _parsed(setting: _Setting, item: _Found) -> object:
    def _one(value: object) -> object:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if setting.boolean and not isinstance(value, bool | str):
            raise ConfigError(item.key, value, item.source, "write true or false, without quotes")
        if not isinstance(value, str | Path) and not (setting.numeric and is_number) and not setting.boolean:
            raise ConfigError(item.key, value, item.source, "give a number" if setting.numeric else "give text in quotes")
        try:
            return setting.parse(str(value))
        except ValueError as error:
            raise ConfigError(item.key, value, item.source, str(error)) from error

    if setting.count_max is None:
        return _one(item.value)
    values = list(item.value) if isinstance(item.value, list | tuple) else [item.value]
    if len(values) < setting.count_min:
        raise ConfigError(
            item.key, values, item.source, f"give at least {setting.count_min}, or leave the key out for the default"
        )
    if len(values) > setting.count_max:
        raise ConfigError(item.key, f"{len(values)} values", item.source, f"give at most {setting.count_max}")
    return tuple(dict.fromkeys(_one(value) for value in values))


def _typed(value: object, kind: type[T]) -> T:
    assert isinstance(value, kind), value
    return value


def _all(values: object, kind: type[T]) -> tuple[T, ...]:
    assert isinstance(values, tuple), values
    return tuple(_typed(value, kind) for value in values)
