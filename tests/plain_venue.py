"""A foreign venue: a bare WebSocket server over sockets and threads, which knows nothing of K4."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterable

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def ws_frame(data: bytes, binary: bool = False) -> bytes:
    """One unmasked, final frame."""
    first = 0x82 if binary else 0x81
    if len(data) < 126:
        return bytes([first, len(data)]) + data
    if len(data) < 65_536:
        return bytes([first, 126]) + struct.pack(">H", len(data)) + data
    return bytes([first, 127]) + struct.pack(">Q", len(data)) + data


class Client:
    """One connected client: its request line and headers, and what the venue noted of it.

    topics: what it is subscribed to. seen: how often it did what else the venue counts.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.lock = threading.Lock()
        self.topics: list[str] = []
        self.seen: Counter[str] = Counter()
        self._heard = threading.Condition()
        self._ended = False
        head = b""
        while b"\r\n\r\n" not in head:
            head += sock.recv(4096)
        lines = head.split(b"\r\n\r\n")[0].decode().split("\r\n")
        self.path = lines[0].split()[1]
        self.headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines[1:])
        }

    def upgrade(self) -> None:
        digest = hashlib.sha1(self.headers["sec-websocket-key"].encode() + GUID).digest()
        self.sock.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n\r\n"
        )

    def receive(self) -> tuple[int, bytes] | None:
        """The next frame's opcode and unmasked payload; None at the end."""
        head = self._exactly(2)
        if head is None:
            return None
        length = head[1] & 127
        if length == 126:
            length = struct.unpack(">H", self._exactly(2) or b"\0\0")[0]
        mask = self._exactly(4) or b"\0\0\0\0"
        data = self._exactly(length) if length else b""
        if data is None:
            return None
        return head[0] & 15, bytes(byte ^ mask[i % 4] for i, byte in enumerate(data))

    def send(self, *pieces: bytes) -> None:
        """Whole frames, cut into so many writes."""
        with self.lock:
            for piece in pieces:
                self.sock.sendall(piece)

    def until(self, reached: Callable[[], bool], seconds: float = 30.0) -> None:
        """Wait for something that the client does; raises TimeoutError, OSError where it left."""
        with self._heard:
            if not self._heard.wait_for(lambda: self._ended or reached(), seconds):
                raise TimeoutError(f"{self.path} {self.topics[:3]}")
        if not reached():
            raise ConnectionResetError("the client left")

    def settle(self) -> None:
        """Wait until the client has read all that it was sent: it answers a ping sent after it."""
        wanted = self.seen["pong"] + 1
        self.send(bytes([0x89, 0]))
        self.until(lambda: self.seen["pong"] >= wanted)

    def heard(self, ended: bool = False) -> None:
        """Wake who waits for the client."""
        with self._heard:
            self._ended = self._ended or ended
            self._heard.notify_all()

    def _exactly(self, count: int) -> bytes | None:
        data = b""
        while len(data) < count:
            try:
                more = self.sock.recv(count - len(data))
            except OSError:
                return None
            if not more:
                return None
            data += more
        return data


Answer = Callable[[Client, bytes], list[bytes]]
"""What the venue says to a client's text. It notes in `topics` and `seen` what that meant."""


def acknowledge(client: Client, text: bytes) -> list[bytes]:
    """As Binance does: every request by its id."""
    request = json.loads(text)
    if request["method"] == "SUBSCRIBE":
        client.topics += request["params"]
    return [json.dumps({"result": None, "id": request["id"]}).encode()]


class PlainVenue:
    """Answers texts and pings, and hands every subscribed client to `feed`.

    feed(client) runs in a thread of its own from the client's first subscription on.
    """

    def __init__(self, feed: Callable[[Client], None], answer: Answer = acknowledge) -> None:
        self.clients: list[Client] = []
        self._feed = feed
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def url(self, path: str) -> str:
        return f"ws://127.0.0.1:{self.port}{path}"

    def close(self) -> None:
        self._listener.close()
        for client in self.clients:
            with contextlib.suppress(OSError):
                client.sock.shutdown(socket.SHUT_RDWR)
            client.sock.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        client = Client(sock)
        client.upgrade()
        self.clients.append(client)
        fed = False
        while (frame := client.receive()) is not None:
            opcode, data = frame
            if opcode == 9:
                client.send(bytes([0x8A, len(data)]) + data)
            elif opcode == 8:
                client.send(bytes([0x88, len(data)]) + data)
                break
            elif opcode == 10:
                client.seen["pong"] += 1
            elif opcode == 1:
                for text in self._answer(client, data):
                    client.send(ws_frame(text))
                if client.topics and not fed:
                    fed = True
                    threading.Thread(target=self._run, args=(client,), daemon=True).start()
            client.heard()
        client.heard(ended=True)

    def _run(self, client: Client) -> None:
        with contextlib.suppress(OSError):  # the client went away: a test sees it in the stores
            self._feed(client)


def in_chunks(frames: Iterable[bytes], size: int = 60_000) -> list[bytes]:
    """Frames joined into writes of some `size` bytes."""
    chunks, buffer = [], bytearray()
    for frame in frames:
        buffer += frame
        if len(buffer) >= size:
            chunks.append(bytes(buffer))
            buffer.clear()
    chunks.append(bytes(buffer))
    return chunks
