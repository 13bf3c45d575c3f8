"""Drive calls of apache-libcloud 3.7.0 against a server on 127.0.0.1:PORT."""

import json
import os
import sys
import time

from libcloud.common.exceptions import BaseHTTPError
from libcloud.common.types import InvalidCredsError
from libcloud.compute.providers import get_driver
from libcloud.compute.types import Provider

PORT = int(sys.argv[1])
USER, KEY = os.environ["OHAUTH"].split(":", 1)
NOBODY = "0012e24a-6eae-4279-9912-3432f698cec8"


def driver(provider, key=KEY):
    return get_driver(provider)(USER, key, secure=False, host="127.0.0.1", port=PORT)


def post(d, path, **keys):
    data = json.dumps(keys) if keys else None
    return d.connection.request(action=path, method="POST", data=data)


def info(d, drive):
    return d.connection.request(action=f"/drives/{drive}/info").object


for provider in (Provider.ELASTICHOSTS, Provider.SERVERLOVE, Provider.SKALICLOUD):
    d = driver(provider)
    # What create_node does with drives.
    source = post(d, "/drives/create", name="source", size="1M").object
    assert source["size"] == 1 << 20, source
    target = post(d, "/drives/create", name="node", size="160G").object
    assert target["size"] == 160 << 30, target
    answer = post(d, f"/drives/{target['drive']}/image/{source['drive']}")
    assert answer.status == 204, answer.status
    while "imaging" in info(d, target["drive"]):
        time.sleep(0.1)
    assert info(d, target["drive"])["status"] == "active"

    changed = post(d, f"/drives/{target['drive']}/set", name="renamed", size=1000).object
    assert (changed["name"], changed["size"]) == ("renamed", 1000), changed
    drives = d.connection.request(action="/drives/info").object
    assert {o["drive"] for o in drives} >= {source["drive"], target["drive"]}

    for drive in (source["drive"], target["drive"]):
        assert d.ex_destroy_drive(drive) is True
    try:
        d.ex_destroy_drive(NOBODY)
        raise AssertionError("an unknown drive was destroyed")
    except BaseHTTPError as error:
        assert "X-Elastic-Error: missing" in str(error), error
        assert error.code == 404, error
    try:
        driver(provider, "wrong").ex_destroy_drive(NOBODY)
        raise AssertionError("a wrong key was let in")
    except InvalidCredsError:
        pass

print("all passed")
