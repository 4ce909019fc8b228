"""The message queues that a source Milvus can write to: how it is told, and how milvus-cdc is told."""
import json
import socket

from servers import free_port


class RocksMQ:
    """The default of a standalone Milvus: files."""
    name = "rocksmq"
    broker = None

    def configure(self, y, milvus):
        pass

    def cdc(self, milvus):
        return {"rocksmq": {"path": str(milvus.rocksmq)}}

    def start(self):
        return self

    def revive(self):
        pass


class Natsmq(RocksMQ):
    """A NATS server inside the Milvus."""
    name = "natsmq"

    def __init__(self):
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"

    def configure(self, y, milvus):
        y.setdefault("mq", {})["type"] = "natsmq"
        server = y.setdefault("natsmq", {}).setdefault("server", {})
        server.update(port=self.port, storeDir=str(milvus.data / "nats"))
        server["monitor"] = {"logFile": str(milvus.dir / "nats.log"), "debug": False, "logTime": True}

    def cdc(self, milvus):
        return {"natsmq": {"address": self.address}}

    def relayed(self):
        """Where a relay forwards to, and the port where it must listen; 0: any."""
        return self.port, 0

    def purge(self, stream):
        """Removes every message of a stream, as retention does."""
        with socket.create_connection(("127.0.0.1", self.port), 10) as s:
            f = s.makefile("rwb")
            f.readline()
            f.write(b'CONNECT {"verbose":false}\r\nSUB answer 1\r\n')
            f.write(b"PUB $JS.API.STREAM.PURGE.%s answer 0\r\n\r\n" % stream.encode())
            f.flush()
            while not (line := f.readline()).startswith(b"MSG"):
                assert line, "NATS closed the connection"
            answer = json.loads(f.read(int(line.split()[-1])))
            assert answer.get("success"), answer


class OnBroker(RocksMQ):
    def __init__(self, broker):
        self.broker = broker

    def start(self):
        self.broker.start()
        return self

    def relayed(self):
        return self.broker.relayed_port, self.broker.relay_port

    def revive(self):
        if not self.broker.alive():
            self.broker.start()


class OnKafka(OnBroker):
    name = "kafka"

    def configure(self, y, milvus):
        y.setdefault("mq", {})["type"] = "kafka"
        y["kafka"] = {"brokerList": self.broker.address, "securityProtocol": "PLAINTEXT", "saslUsername": "",
                      "saslPassword": "", "saslMechanisms": ""}

    def cdc(self, milvus):
        return {"kafka": {"address": self.broker.address}}


class OnPulsar(OnBroker):
    name = "pulsar"

    def configure(self, y, milvus):
        y.setdefault("mq", {})["type"] = "pulsar"
        y["pulsar"] = {"address": "127.0.0.1", "port": self.broker.port, "webport": self.broker.web_port,
                       "maxMessageSize": 5242880}

    def cdc(self, milvus):
        return {"pulsar": {"address": f"pulsar://127.0.0.1:{self.broker.port}"}}


def make(name, folder):
    """A queue by name; its broker, if it has one, keeps its files below folder."""
    if name == "kafka":
        from brokers import Kafka
        return OnKafka(Kafka("kafka", folder / "kafka", relay=True))
    if name == "pulsar":
        from brokers_pulsar import Pulsar
        return OnPulsar(Pulsar(folder / "pulsar", relay=True))
    return {"rocksmq": RocksMQ, "natsmq": Natsmq}[name]()
