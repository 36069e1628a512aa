from pathlib import Path

import pytest

from mesh.config import (
    ADDRESSES_MAX,
    BOOTSTRAP_MAX,
    CXL_POOLS_MAX,
    ConfigError,
    HostPort,
    default_config_file,
    default_state_dir,
    resolve,
)
from protocol.fabric.adverts import POOLS_MAX

LISTEN_A = "/ip4/127.0.0.1/udp/1000/quic-v1"
LISTEN_B = "/ip4/127.0.0.1/udp/2000/quic-v1"
LISTEN_C = "/ip6/::1/udp/0/quic-v1"


def environment_in(tmp_path: Path, **variables: str) -> dict[str, str]:
    return {"HOME": str(tmp_path), **variables}


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_defaults_follow_xdg(tmp_path: Path) -> None:
    config = resolve({}, environment_in(tmp_path))
    assert config.state_dir == tmp_path / ".local/state/isochrone"
    assert config.listen_default
    assert [str(address) for address in config.listen] == ["/ip4/0.0.0.0/udp/4001/quic-v1", "/ip6/::/udp/4001/quic-v1"]
    assert config.gateway == HostPort("127.0.0.1", 8421)
    assert (config.engines, config.bootstrap, config.announce) == ((), (), ())
    assert default_state_dir({"XDG_STATE_HOME": "/s"}) == Path("/s/isochrone")
    assert default_config_file({"XDG_CONFIG_HOME": "/c"}) == Path("/c/isochrone/config.toml")


def test_relative_xdg_directory_is_ignored(tmp_path: Path) -> None:
    assert default_state_dir(environment_in(tmp_path, XDG_STATE_HOME="state")) == tmp_path / ".local/state/isochrone"


def test_flags_beat_environment_beats_file_beats_default(tmp_path: Path) -> None:
    file = write(tmp_path / "c.toml", f'listen = ["{LISTEN_A}"]\nnetwork = "from-file"\ngrace_s = 3\nlog_level = "error"\n')
    environment = environment_in(tmp_path, ISOCHRONE_LISTEN=f"{LISTEN_B}, {LISTEN_C}", ISOCHRONE_NETWORK="from-env")
    config = resolve({"network": "from-flag", "open": True, "listen": None}, environment, file)
    assert config.network == "from-flag"
    assert [str(address) for address in config.listen] == [LISTEN_B, LISTEN_C]
    assert not config.listen_default
    assert config.grace_s == 3.0
    assert config.log_level == "error"
    assert config.quic_engine == "auto"


def test_a_network_is_private_unless_it_is_said_to_be_open(tmp_path: Path) -> None:
    config = resolve({}, environment_in(tmp_path))
    assert not config.is_open
    assert config.network_dir == tmp_path / ".local/share/isochrone/network"
    assert resolve({}, environment_in(tmp_path, XDG_DATA_HOME="/d")).network_dir == Path("/d/isochrone/network")
    assert resolve({}, environment_in(tmp_path, ISOCHRONE_NETWORK_DIR="/n")).network_dir == Path("/n")
    assert resolve({"open": True}, environment_in(tmp_path)).is_open
    assert resolve({}, environment_in(tmp_path, ISOCHRONE_OPEN="yes")).is_open
    assert resolve({}, environment_in(tmp_path), write(tmp_path / "c.toml", "open = true\n")).is_open
    assert not resolve({"open": False}, environment_in(tmp_path, ISOCHRONE_OPEN="yes")).is_open


def test_a_name_alone_makes_no_private_network(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--network = 'acme'.*add --open.*isochrone join"):
        resolve({"network": "acme"}, environment_in(tmp_path))


@pytest.mark.parametrize("value", ["maybe", "2", ""])
def test_a_switch_is_on_or_off(tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigError, match="true or false"):
        resolve({}, environment_in(tmp_path), write(tmp_path / "c.toml", f'open = "{value}"\n'))


def test_list_from_a_stronger_source_replaces_and_does_not_add(tmp_path: Path) -> None:
    file = write(tmp_path / "c.toml", 'engine = ["echo", "onnx"]\n')
    assert resolve({"engine": ["http://127.0.0.1:8000/"]}, environment_in(tmp_path), file).engines == ("http://127.0.0.1:8000",)


def test_file_is_found_at_its_default_place_and_through_the_variable(tmp_path: Path) -> None:
    write(tmp_path / ".config/isochrone/config.toml", 'network = "here"\nopen = true\n')
    other = write(tmp_path / "other.toml", 'network = "there"\nopen = true\n')
    assert resolve({}, environment_in(tmp_path)).network == "here"
    assert resolve({}, environment_in(tmp_path, ISOCHRONE_CONFIG=str(other))).network == "there"


def test_empty_variable_counts_as_unset(tmp_path: Path) -> None:
    assert resolve({}, environment_in(tmp_path, ISOCHRONE_NETWORK="", ISOCHRONE_LISTEN="")).listen_default


def test_single_value_may_stand_for_a_list_in_the_file(tmp_path: Path) -> None:
    assert resolve({}, environment_in(tmp_path), write(tmp_path / "c.toml", 'engine = "echo"\n')).engines == ("echo",)


def test_unknown_key_in_the_file_is_refused_with_a_suggestion(tmp_path: Path) -> None:
    file = write(tmp_path / "c.toml", 'bootstraps = ["x"]\n')
    with pytest.raises(ConfigError, match=r'c\.toml: bootstraps = .*did you mean "bootstrap"') as caught:
        resolve({}, environment_in(tmp_path), file)
    assert (caught.value.key, caught.value.value) == ("bootstraps", ["x"])


def test_unknown_variable_is_refused_with_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'ISOCHRONE_STATEDIR.*did you mean "ISOCHRONE_STATE_DIR"'):
        resolve({}, environment_in(tmp_path, ISOCHRONE_STATEDIR="/x"))


def test_variables_that_orchestrators_inject_are_left_alone(tmp_path: Path) -> None:
    injected = {
        "ISOCHRONE_SERVICE_HOST": "10.0.0.1",
        "ISOCHRONE_SERVICE_PORT": "8421",
        "ISOCHRONE_PORT": "tcp://10.0.0.1:8421",
        "ISOCHRONE_PORT_4001_UDP_ADDR": "10.0.0.1",
        "ISOCHRONE_GW_SERVICE_PORT_HTTP": "8421",
    }
    assert resolve({}, environment_in(tmp_path, **injected)).network == "isochrone-main"


@pytest.mark.parametrize(
    ("name", "value", "advice"),
    [
        ("listen", ["/ip4/0.0.0.0/tcp/4001"], "/ip4/192.0.2.7/udp/4001/quic-v1"),
        ("listen", ["/dns/a.example/udp/4001/quic-v1"], "--announce"),
        ("listen", [], "at least 1"),
        ("listen", [f"/ip4/127.0.0.1/udp/{port}/quic-v1" for port in range(ADDRESSES_MAX + 1)], f"at most {ADDRESSES_MAX}"),
        ("bootstrap", ["/ip4/192.0.2.7/udp/0/quic-v1"], "port 0"),
        ("bootstrap", ["/ip6/::/udp/4001/quic-v1"], "reaches the node from outside"),
        (
            "bootstrap",
            [f"/ip4/192.0.2.7/udp/{port + 1}/quic-v1" for port in range(BOOTSTRAP_MAX + 1)],
            f"at most {BOOTSTRAP_MAX}",
        ),
        ("announce", ["somewhere"], "/ip4/"),
        ("gateway", "0.0.0.0:8421", "--gateway-key-file and --gateway-tls-cert"),
        ("gateway", "gpu.example:8421", "--gateway-hosts"),
        ("gateway", "8421", "HOST:PORT"),
        ("gateway", "127.0.0.1:70000", "HOST:PORT"),
        ("engine", ["onxx"], 'did you mean "onnx"'),
        ("engine", ["ftp://127.0.0.1/"], "base URL"),
        ("engine", ["http://user:secret@127.0.0.1/"], "password"),
        ("engine", ["none", "echo"], '"none"'),
        ("quic_engine", "qh4", 'did you mean "qh3"'),
        ("grace_s", "soon", "seconds"),
        ("grace_s", "nan", "seconds"),
        ("grace_s", "1e9", "seconds"),
        ("network", "Main Net", "a-z"),
        ("log_level", "loud", "debug, info"),
        ("engine", ["none:text"], "choose one of"),
        ("engine", ["onnx:"], "choose one of"),
        ("state_dir", "", "directory"),
    ],
)
def test_unusable_value_is_refused_with_key_value_and_advice(tmp_path: Path, name: str, value: object, advice: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve({name: value}, environment_in(tmp_path))
    assert caught.value.key == f"--{name.replace('_', '-')}"
    assert caught.value.source == "command line"
    assert advice in str(caught.value)


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("network = [", "not valid TOML"),
        ("network = 7", "text in quotes"),
        ("grace_s = true", "a number"),
        ('listen = [["a"]]', "text in quotes"),
        ("[node]\nnetwork = 'x'", "no such setting"),
    ],
)
def test_file_that_cannot_be_used_is_refused(tmp_path: Path, text: str, advice: str) -> None:
    with pytest.raises(ConfigError, match=advice):
        resolve({}, environment_in(tmp_path), write(tmp_path / "c.toml", text))


def test_named_file_must_exist_and_be_readable(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        resolve({}, environment_in(tmp_path), tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        resolve({}, environment_in(tmp_path), tmp_path)


def test_engine_may_name_a_part(tmp_path: Path) -> None:
    assert resolve({"engine": ["onnx:text", "echo"]}, environment_in(tmp_path)).engines == ("onnx:text", "echo")


def test_ipv6_gateway_is_written_with_brackets(tmp_path: Path) -> None:
    assert str(resolve({"gateway": "[::1]:0"}, environment_in(tmp_path)).gateway) == "[::1]:0"


def test_passing_on_for_others_can_be_turned_off(tmp_path: Path) -> None:
    assert resolve({}, environment_in(tmp_path)).relay
    assert not resolve({"open": True}, environment_in(tmp_path)).relay, "strangers are served only where that is said"
    assert resolve({"open": True, "relay": True}, environment_in(tmp_path)).relay
    assert not resolve({"relay": False}, environment_in(tmp_path)).relay
    assert not resolve({}, environment_in(tmp_path, ISOCHRONE_RELAY="off")).relay
    assert not resolve({}, environment_in(tmp_path), write(tmp_path / "c.toml", "relay = false\n")).relay
    with pytest.raises(ConfigError, match="RELAY"):
        resolve({}, environment_in(tmp_path, ISOCHRONE_RELAY="sometimes"))


def test_a_node_may_be_in_as_many_pools_as_its_advert_tells() -> None:
    assert CXL_POOLS_MAX == POOLS_MAX
