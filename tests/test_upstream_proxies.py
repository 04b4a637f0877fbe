"""Which proxy the environment names for an address, and what is said of one that can't be used."""

from __future__ import annotations

from base64 import b64encode
from urllib.parse import urlsplit

import pytest

from farebox.upstream import Unusable
from farebox.upstream.proxies import Via, find_proxy

BOTH = {"HTTP_PROXY": "http://plain:1", "HTTPS_PROXY": "http://tls:2"}

NAMED: dict[str, tuple[dict[str, str], str, str | None]] = {
    "none": ({}, "https://api.test/v1", None),
    "for https": (BOTH, "https://api.test/v1", "tls:2"),
    "for http": (BOTH, "http://api.test/v1", "plain:1"),
    "only for the other scheme": ({"HTTP_PROXY": "http://plain:1"}, "https://api.test", None),
    "for all": ({"ALL_PROXY": "http://all:3"}, "https://api.test", "all:3"),
    "its own before all": ({**BOTH, "ALL_PROXY": "http://all:3"}, "http://api.test", "plain:1"),
    "small letters first": ({**BOTH, "https_proxy": "http://small:4"}, "https://api.test", "small:4"),
    "empty in small letters": ({**BOTH, "https_proxy": ""}, "https://api.test", None),
    "empty, and one for all": ({"https_proxy": " ", "all_proxy": "http://all:3"}, "https://api.test", "all:3"),
    "without a scheme": ({"HTTPS_PROXY": "tls:2"}, "https://api.test", "tls:2"),
    "without a port": ({"HTTPS_PROXY": "http://tls/"}, "https://api.test", "tls:80"),
    "an IPv6 address": ({"HTTPS_PROXY": "http://[fd00::1]:2"}, "https://api.test", "fd00::1:2"),
    "loopback": ({**BOTH, "NO_PROXY": ""}, "http://127.0.0.1:8080", None),
    "loopback's other addresses": (BOTH, "http://127.9.9.9:8080", None),
    "loopback, version 6": (BOTH, "http://[::1]:8080", None),
    "localhost": (BOTH, "http://localhost:11434", None),
    "a name below localhost": (BOTH, "http://ollama.localhost.:11434", None),
    "not localhost": (BOTH, "http://notlocalhost", "plain:1"),
}


@pytest.mark.parametrize("case", NAMED)
def test_the_environment_names_the_proxy(case: str) -> None:
    """By scheme, then for all; small letters first; never for this machine's loopback."""
    environ, url, expected = NAMED[case]
    via = find_proxy(urlsplit(url), environ)
    assert (f"{via.host}:{via.port}" if via is not None else None) == expected


DIRECT = {
    "api.test": "api.test",
    "a name below": "eu.api.test",
    "in capitals": "API.test",
    "with a dot before": "x.dotted.test",
    "its own name with a dot before": "dotted.test",
    "with a star before": "x.starred.test",
    "with its port": "ported.test:8443",
    "an address": "10.1.2.3",
    "a network": "192.168.77.1",
    "an IPv6 address": "[fd00::5]",
    "an IPv6 network": "[fd11::5]",
    "an IPv6 address with its port": "[fd22::5]:8443",
}
LISTED = (
    "api.test, .dotted.test *.starred.test,ported.test:8443,10.1.2.3 192.168.0.0/16,fd00::5,fd11::/16,[fd22::5]:8443"
)


@pytest.mark.parametrize("case", DIRECT)
def test_what_no_proxy_lists_is_reached_directly(case: str) -> None:
    """Names and all below them, addresses and networks, with and without a port, in a list with commas or spaces."""
    assert find_proxy(urlsplit(f"https://{DIRECT[case]}/v1"), {**BOTH, "NO_PROXY": LISTED}) is None
    assert find_proxy(urlsplit(f"https://{DIRECT[case]}/v1"), {**BOTH, "NO_PROXY": "x", "no_proxy": LISTED}) is None
    assert find_proxy(urlsplit(f"https://{DIRECT[case]}/v1"), BOTH) is not None


@pytest.mark.parametrize(
    "host", ["notapi.test", "api.test.evil.test", "ported.test", "10.1.2.4", "192.169.0.1", "[fd00::6]", "[fd22::5]"]
)
def test_what_no_proxy_does_not_list_goes_through_it(host: str) -> None:
    """An entry means itself and what is below it, not what only looks like it."""
    assert find_proxy(urlsplit(f"https://{host}/v1"), {**BOTH, "NO_PROXY": LISTED + ",,."}) is not None


def test_a_star_lets_everything_go_directly() -> None:
    """`*` is everything."""
    assert find_proxy(urlsplit("https://api.test"), {**BOTH, "NO_PROXY": "*"}) is None


def test_a_proxys_credential_is_decoded() -> None:
    """What is escaped in the address is not in the header."""
    via = find_proxy(urlsplit("https://api.test"), {"HTTPS_PROXY": "http://us%40er:p%3Ass%0d%0a@proxy:3128"})
    assert via == Via("proxy", 3128, b"Basic " + b64encode(b"us@er:p:ss\r\n"))


@pytest.mark.parametrize(
    "value",
    [
        "https://user:geheim@proxy:443",
        "socks5://user:geheim@proxy:1080",
        "socks5h://proxy",
        "http://proxy:0",
        "http://proxy:port",
        "http://proxy:99999",
        "http://:3128",
        "http://[nonsense:1",
    ],
)
def test_a_proxy_farebox_can_not_go_through_is_refused(value: str) -> None:
    """The text names the variable and the ways out, never the value, which may hold a password."""
    with pytest.raises(Unusable) as refusal:
        find_proxy(urlsplit("https://api.test"), {"ALL_PROXY": value})
    text = str(refusal.value)
    assert "ALL_PROXY names a proxy for api.test" in text and "put api.test into NO_PROXY" in text
    assert "geheim" not in text and refusal.value.kind == "proxy"
    assert find_proxy(urlsplit("https://api.test"), {"ALL_PROXY": value, "NO_PROXY": "api.test"}) is None
