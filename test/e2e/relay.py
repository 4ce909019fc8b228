"""A TCP relay: what listens on 127.0.0.1 becomes reachable at the address of a bridge."""
import selectors
import socket
import threading

CHUNK = 1 << 16


class Relay:
    def __init__(self, listen, port):
        """Forwards listen:<any port> to 127.0.0.1:port."""
        self.target = ("127.0.0.1", port)
        self.server = socket.create_server((listen, 0))
        self.address = f"{listen}:{self.server.getsockname()[1]}"
        self.port = self.server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

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
                        if not data:
                            return
                        other[key.fileobj].sendall(data)
                    except OSError:
                        return

    def close(self):
        self.server.close()
