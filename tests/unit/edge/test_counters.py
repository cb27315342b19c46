"""What clawctl reads of the edge: who asked how often, and when last."""

import time

from clawdeploy.edge import HAProxy
from tests.unit.edge.conftest import Site
from tests.unit.edge.harness import Edge


def test_requests_are_counted_by_bot_and_age(site: Site, edge: Edge) -> None:
    haproxy = HAProxy(edge.directory / "admin.sock")
    bot = edge.maps["hosts"]["neighbour"]
    for _ in range(3):
        assert edge.ask("neighbour", "/health").status == 200
    deadline = time.monotonic() + 5
    while (row := haproxy.table("strangers")[bot])["conn_cur"]:  # the last one may not have hung up yet
        assert time.monotonic() < deadline
    assert row["http_req_rate"] >= 3
    assert 3_590_000 < row["exp"] <= 3_600_000
    time.sleep(0.2)
    assert haproxy.table("strangers")[bot]["exp"] <= row["exp"] - 150
    assert bot not in haproxy.table("nowhere")
