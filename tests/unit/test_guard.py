"""Which requests that change something may be another site's."""

import pytest
from multidict import CIMultiDict

from lb.admin.guard import foreign

HERE = "127.0.0.1:9901"


@pytest.mark.parametrize(
    "headers",
    [
        {},  # curl
        {"Host": "balancer.example:9901"},
        {"Origin": f"http://{HERE}"},
        {"Origin": f"http://{HERE}", "Sec-Fetch-Site": "same-origin"},
        {"Origin": "http://[::1]:9901", "Host": "[::1]:9901"},
        {"Origin": "http://localhost:9901", "Host": "localhost:9901"},
        {"Referer": f"http://{HERE}/"},
        {"Sec-Fetch-Site": "none"},
    ],
    ids=str,
)
def test_allowed(headers: dict[str, str]) -> None:
    assert foreign(CIMultiDict({"Host": HERE} | headers)) is None


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://example.com"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://[::1"},
        {"Referer": "https://example.com/page"},
        {"origin": f"http://{HERE}", "sec-fetch-site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": ""},
        # A site whose name leads here.
        {"Origin": "http://example.com:9901", "Host": "example.com:9901", "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "same-origin", "Host": "127.0.0.1.example.com"},
        {"Origin": "http://", "Host": ""},
        {"Origin": "http://[::1", "Host": "[::1"},
    ],
    ids=str,
)
def test_refused(headers: dict[str, str]) -> None:
    assert foreign(CIMultiDict({"Host": HERE} | headers))
