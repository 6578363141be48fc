"""A client that floods a server until its stdin is closed, and then prints how often it got which status, as JSON.

It is a process of its own, with a low priority, so that the clients that measure do not wait for it. For a server on
this machine only: `python -m training.chaos.flood http://127.0.0.1:8000 KEY --requests 100`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
from collections import Counter

import httpx

from training.chaos import attacks, media
from training.chaos.fairness import PATIENCE_SECONDS, bearer, chat_body


def main() -> None:
    """Flood a server as the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="address of the server")
    parser.add_argument("key", help="a valid key")
    parser.add_argument("--requests", type=int, default=0, help="streams of long answers at a time")
    parser.add_argument("--model", default="thinking", help="mode of the streams")
    parser.add_argument("--max-tokens", type=int, default=2000, help="length of the answers")
    parser.add_argument("--silent", type=int, default=0, help="connections that send nothing")
    parser.add_argument("--bodies", action="store_true", help="bodies of 60 MiB, large pictures and videos")
    options = parser.parse_args()
    os.nice(10)
    bodies = []
    if options.bodies:
        bodies = [media.picture_body(8192), media.video_body(3000, 2048)]
        bodies += [attacks.BODIES[kind](60 * 2**20) for kind in ("text", "fields")]
    long = {**chat_body(options.model, options.max_tokens, options.max_tokens), "stream": True}
    flood = Flood(options.url, options.key)
    with attacks.silent(options.url, options.silent):
        for content in [*bodies, *[json.dumps(long).encode()] * options.requests]:
            threading.Thread(target=flood.send, args=(content,), daemon=True).start()
        print("flooding", flush=True)
        sys.stdin.read()
    flood.ended.set()
    print(json.dumps(flood.got), flush=True)
    os._exit(0)  # leaving the streams cancels their answers


class Flood:
    """Requests that are sent again and again.

    Args:
        url: Address of the server.
        key: A valid key.

    Attributes:
        ended: Set at the end of the flood.
        got: How many requests got which status; 0: a closed connection.
    """

    def __init__(self, url: str, key: str) -> None:
        self.url, self.key = url, key
        self.ended, self.got = threading.Event(), Counter[int]()

    def send(self, content: bytes) -> None:
        """Send a body, read the reply, and begin again.

        Args:
            content: The JSON.
        """
        headers = bearer(self.key) | {"Content-Type": "application/json"}
        with httpx.Client(base_url=self.url, timeout=PATIENCE_SECONDS, headers=headers) as client:
            while not self.ended.is_set():
                status = 0
                try:
                    with client.stream("POST", "/v1/chat/completions", content=content) as reply:
                        status = reply.status_code
                        self.got[status] += 1
                        for _ in reply.iter_bytes():
                            pass
                except httpx.HTTPError:  # the server closes the connection of a body that it refuses
                    if status == 0:
                        self.got[0] += 1
                if status != 200:
                    self.ended.wait(0.5)


if __name__ == "__main__":
    main()
