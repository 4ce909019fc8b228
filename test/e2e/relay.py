"""A TCP relay: what listens on 127.0.0.1 becomes reachable at another address, and its connections can be cut."""
import selectors
import socket
import threading

CHUNK = 1 << 16


class Relay:
    def __init__(self, listen, port, at=0):
        """Forwards listen:<at, or any port> to 127.0.0.1:port."""
        self.target = ("127.0.0.1", port)
        self.server = socket.create_server((listen, at))
        self.port = self.server.getsockname()[1]
        self.address = f"{listen}:{self.port}"
        self.lock, self.until_cut, self.cuts = threading.Lock(), None, 0
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_after(self, n):
        """The connection that brings the server's n-th byte from now on ends there; once."""
        with self.lock:
            self.until_cut = n

    def _passes(self, data):
        """What of the server's bytes goes on. Less than all: the connection is cut behind it."""
        with self.lock:
            if self.until_cut is None:
                return data
            kept = data[:self.until_cut]
            self.until_cut -= len(kept)
            if len(kept) < len(data):
                self.until_cut = None
                self.cuts += 1
            return kept

    def _accept(self):
        while True:
            try:
                client, _ = self.server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        try:
            peer = socket.create_connection(self.target, 5)
        except OSError:
            client.close()
            return
        other = {client: peer, peer: client}
        with selectors.DefaultSelector() as sel, client, peer:
            for s in other:
                s.settimeout(30)
                sel.register(s, selectors.EVENT_READ)
            while True:
                for key, _ in sel.select():
                    try:
                        data = key.fileobj.recv(CHUNK)
                        kept = self._passes(data) if key.fileobj is peer else data
                        other[key.fileobj].sendall(kept)
                        if not data or len(kept) < len(data):
                            return
                    except OSError:
                        return

    def close(self):
        self.server.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self.server.close()
