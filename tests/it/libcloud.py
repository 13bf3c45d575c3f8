"""Calls of apache-libcloud 3.7.0 against a server on 127.0.0.1:PORT.

    libcloud.py PORT [IMAGE]       with a bootable image: nodes as well
"""

import base64
import gzip
import json
import os
import sys
import time
import urllib.request

from libcloud.common.exceptions import BaseHTTPError
from libcloud.common.types import InvalidCredsError
from libcloud.compute.base import NodeImage
from libcloud.compute.providers import get_driver
from libcloud.compute.types import NodeState, Provider

PORT = int(sys.argv[1])
USER, KEY = os.environ["OHAUTH"].split(":", 1)
BASIC = "Basic " + base64.b64encode(os.environ["OHAUTH"].encode()).decode()
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
    # The calls that create_node makes for drives.
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



def walk_a_node(d, image):
    """What the driver does with nodes, from the first call to the last."""
    packed = gzip.compress(open(image, "rb").read())
    source = post(d, "/drives/create", name="image", size=len(packed)).object["drive"]
    address = f"http://127.0.0.1:{PORT}/drives/{source}/write"
    write = urllib.request.Request(address, data=packed, method="POST")
    write.add_header("Authorization", BASIC)
    assert urllib.request.urlopen(write).status == 204

    assert d.list_nodes() == []
    size = d.list_sizes()[0]
    # The smallest size has 160 GB of disk and 1.7 GB of memory, which is too much here.
    size.disk, size.ram = 1, 16
    picture = NodeImage(id=source, name="boot", driver=d)
    node = d.create_node(
        name="node", size=size, image=picture, nic_model="virtio", vnc_password="secret"
    )
    assert node.state == NodeState.RUNNING, node
    assert node.public_ips[0].startswith("127."), node.public_ips
    assert node.extra["vnc:password"] == "secret", node.extra
    assert node.extra["vnc:ip"] == node.public_ips[0], node.extra
    while "boot 1" not in console(node):
        time.sleep(0.1)

    [listed] = d.list_nodes()
    assert (listed.id, listed.name) == (node.id, "node"), listed
    assert d.ex_set_node_configuration(node, name="renamed", cpu="500") is True
    [listed] = d.list_nodes()
    assert listed.name == "renamed", listed
    assert d.reboot_node(node) is True
    while "boot 2" not in console(node):
        time.sleep(0.1)
    # This guest ignores the button, and the driver only requires that the call is answered.
    assert d.ex_shutdown_node(node) is True
    drive = d.connection.request(action=f"/servers/{node.id}/info").object["ide:0:0"]
    try:
        d.ex_destroy_drive(drive)
        raise AssertionError("a drive was destroyed under its guest")
    except BaseHTTPError as error:
        assert "X-Elastic-Error: busy" in str(error), error
    assert d.destroy_node(node) is True
    assert d.list_nodes() == []
    for drive in (drive, source):
        assert d.ex_destroy_drive(drive) is True
    print("walked a node")


def console(node):
    address = f"http://127.0.0.1:{PORT}/servers/{node.id}/console"
    ask = urllib.request.Request(address)
    ask.add_header("Authorization", BASIC)
    return urllib.request.urlopen(ask).read().decode()


if len(sys.argv) > 2:
    walk_a_node(driver(Provider.ELASTICHOSTS), sys.argv[2])
print("all passed")
