#!/usr/bin/env python3
"""Holds an XDP program by the daemon, in nothing but Python's own library.

    hold.py IF OBJ [NAME]

It says "held" and then what happens, a line each, until its input ends. It needs no
privilege: the daemon's policy says who may. Killed, it leaves nothing.
"""

import array
import json
import os
import select
import socket
import sys

INTERFACE = "dev.holdfast.Attachments"


class Connection:
    """A Varlink connection: JSON objects with a NUL byte behind each, and descriptors."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.unread = b""
        self.files = []

    def call(self, method, parameters, files=(), more=False):
        message = json.dumps({"method": f"{INTERFACE}.{method}", "parameters": parameters, "more": more})
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))] if files else []
        message = message.encode() + b"\0"
        sent = self.socket.sendmsg([message], rights)
        self.socket.sendall(message[sent:])

    def reply(self):
        """Returns the next reply's parameters, and the descriptors that came with it."""
        while b"\0" not in self.unread:
            size = socket.CMSG_SPACE(253 * 4)
            data, messages, _, _ = self.socket.recvmsg(65536, size, socket.MSG_CMSG_CLOEXEC)
            if not data:
                raise EOFError("the daemon has gone")
            self.unread += data
            for level, kind, rights in messages:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    self.files += array.array("i", rights)
        message, _, self.unread = self.unread.partition(b"\0")
        files, self.files = self.files, []
        reply = json.loads(message)
        if "error" in reply:
            parameters = reply.get("parameters", {})
            sys.exit(parameters.get("message") or f"{reply['error']} {parameters}")
        return reply.get("parameters", {}), files


def main():
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    connection = Connection(os.environ.get("HOLDFAST_SOCKET", "/run/holdfast/holdfast.sock"))
    with open(sys.argv[2], "rb") as program:
        parameters = {
            "hook": {"interface": sys.argv[1]},
            "object": {"file": 0, "name": os.path.basename(sys.argv[2])},
            "lifetime": "held",
        }
        if len(sys.argv) == 4:
            parameters["name"] = sys.argv[3]
        connection.call("Attach", parameters, files=[program.fileno()], more=True)
        reply, files = connection.reply()
    # From here on these descriptors hold the member. The kernel closes them with the
    # process, and the member ends.
    lease = reply["leases"][0]
    link = files[lease["link"]] if "link" in lease else None
    print("held", lease["member"], flush=True)
    while True:
        ready, _, _ = select.select([sys.stdin, connection.socket], [], [])
        if sys.stdin in ready:
            return
        reply, files = connection.reply()
        event = reply["event"]
        print(event["kind"], flush=True)
        if event["kind"] == "ended":
            return
        if event["kind"] == "moved":
            # The chain runs elsewhere now. To show the new link is to say that it is
            # held, and after that the old one can go.
            new = files[event["link"]]
            other = Connection(connection.socket.getpeername())
            other.call("Claim", {"proof": 0}, files=[new])
            other.reply()
            if link is not None:
                os.close(link)
            link = new


if __name__ == "__main__":
    main()
